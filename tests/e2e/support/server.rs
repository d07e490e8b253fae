//! A server in this process that a test can stop and start again.

use crate::{port::Port, tls};
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// A server for an axum application. Dropping it closes its connections.
#[derive(Debug)]
pub struct Server {
    port: Port,
    scheme: &'static str,
    connections: Arc<AtomicU64>,
    accept: AcceptTask,
}

/// Aborts the task on drop.
#[derive(Debug)]
struct AcceptTask(JoinHandle<()>);

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
        let accept = AcceptTask(tokio::spawn(accept(listener, app, tls, Arc::clone(&connections))));
        Self { port, scheme, connections, accept }
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
    pub async fn stop(mut self) -> Port {
        self.accept.0.abort();
        let _cancelled = (&mut self.accept.0).await;
        self.port
    }
}

impl Drop for AcceptTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, app: Router, tls: Option<TlsAcceptor>, connections: Arc<AtomicU64>) {
    // The connections end with this task.
    let mut open = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.fetch_add(1, SeqCst);
        while open.try_join_next().is_some() {}
        open.spawn(serve(tcp, app.clone(), tls.clone()));
    }
}

/// Serves one connection. Ignores its errors, because the browser sees them.
async fn serve(tcp: TcpStream, app: Router, tls: Option<TlsAcceptor>) {
    // Without this, the kernel can delay an event for 40 to 200 ms: until the client, or a proxy,
    // has acknowledged the event before.
    let _connection_may_have_ended = tcp.set_nodelay(true);
    match tls {
        None => serve_http(tcp, app).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(tcp).await {
                serve_http(stream, app).await;
            }
        }
    }
}

async fn serve_http(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: Router) {
    let server = Builder::new(TokioExecutor::new());
    let _broken_connection = server.serve_connection(TokioIo::new(io), TowerToHyperService::new(app)).await;
}
