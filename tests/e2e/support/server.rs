//! A server in this process that a test can stop and start again.

use crate::{port::Port, tls};
use axum::{Router, serve::Listener};
use std::{
    future, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// A server for an axum application: `tower_sse::serve`. Dropping it closes its connections.
#[derive(Debug)]
pub struct Server {
    port: Port,
    scheme: &'static str,
    connections: Arc<AtomicU64>,
    /// Returns when all connections are closed.
    running: JoinHandle<()>,
    /// Returns when the listener is closed.
    accepting: JoinHandle<()>,
    cut: DropGuard,
}

impl Server {
    /// Serves HTTP/1.1 on a free port.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub fn start(app: Router) -> Self {
        Self::start_at(Port::free().expect("there is a free port"), app)
    }

    /// Serves HTTP/1.1 on the port of a server that was stopped.
    ///
    /// # Panics
    ///
    /// If another server listens on the port.
    pub fn start_at(port: Port, app: Router) -> Self {
        Self::listen(port, app, None)
    }

    /// Serves HTTP/2 over TLS on a free port, with a self-signed certificate.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub fn start_with_tls(app: Router) -> Self {
        Self::listen(Port::free().expect("there is a free port"), app, Some(tls::acceptor()))
    }

    fn listen(port: Port, app: Router, tls: Option<TlsAcceptor>) -> Self {
        let listener = port.listen().expect("the port is free");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connections = Arc::new(AtomicU64::new(0));
        let cut = CancellationToken::new();
        let (listener, accepting) = Connections::new(listener, tls, Arc::clone(&connections), cut.clone());
        let server = tower_sse::serve(listener, app).with_graceful_shutdown(cut.clone());
        let running = tokio::spawn(async move { server.await.expect("the server never fails") });
        Self { port, scheme, connections, running, accepting, cut: cut.drop_guard() }
    }

    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Returns the URL of a path of the server.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address())
    }

    /// Returns the number of connections until now.
    pub fn connections(&self) -> u64 {
        self.connections.load(SeqCst)
    }

    /// Cuts every connection, and waits until the port is free for another server.
    ///
    /// # Panics
    ///
    /// If the server has panicked.
    pub async fn stop(self) -> Port {
        drop(self.cut);
        self.running.await.expect("the server runs");
        self.accepting.await.expect("accepting does not panic");
        self.port
    }
}

/// A listener whose connections can be cut, with or without TLS.
struct Connections {
    accepted: mpsc::UnboundedReceiver<(Connection, SocketAddr)>,
    address: SocketAddr,
}

impl Connections {
    /// Starts to accept connections. The task ends when it has closed the listener.
    fn new(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        count: Arc<AtomicU64>,
        cut: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let address = listener.local_addr().expect("the listener has an address");
        let (sender, accepted) = mpsc::unbounded_channel();
        let accept = async move {
            while let Some(Ok((tcp, client))) = cut.run_until_cancelled(listener.accept()).await {
                count.fetch_add(1, SeqCst);
                // Without this, the kernel can delay an event for 40 to 200 ms: until the client,
                // or a proxy, has acknowledged the event before.
                let _connection_may_have_ended = tcp.set_nodelay(true);
                let (sender, tls, cut) = (sender.clone(), tls.clone(), cut.clone());
                // A handshake must not delay other connections.
                tokio::spawn(async move {
                    let io: Box<dyn Io> = match tls {
                        None => Box::new(tcp),
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => Box::new(stream),
                            Err(_broken_handshake) => return,
                        },
                    };
                    let cut = Box::pin(cut.cancelled_owned());
                    let _server_has_ended = sender.send((Connection { io, cut }, client));
                });
            }
        };
        let accepting = tokio::spawn(accept);
        (Self { accepted, address }, accepting)
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that breaks when the server stops.
struct Connection {
    io: Box<dyn Io>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
