//! A server that is stopped as one is that is killed, and started again where it was.

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

/// A server of an application, in this process. It is gone on drop, with its connections.
#[derive(Debug)]
pub struct Server {
    port: Port,
    scheme: &'static str,
    connections: Arc<AtomicU64>,
    accepts: Accepts,
}

/// Ends on drop.
#[derive(Debug)]
struct Accepts(JoinHandle<()>);

impl Server {
    /// Over HTTP/1.1, on a port that is free.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn start(app: Router) -> Self {
        Self::start_at(Port::free().expect("there is a free port"), app)
    }

    /// The same, where another one was.
    ///
    /// # Panics
    ///
    /// If it still listens there.
    pub fn start_at(port: Port, app: Router) -> Self {
        Self::listen(port, app, None)
    }

    /// Over HTTP/2 and TLS, with a certificate that nobody has signed, on a port that is free.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn start_with_tls(app: Router) -> Self {
        Self::listen(Port::free().expect("there is a free port"), app, Some(tls::acceptor()))
    }

    fn listen(port: Port, app: Router, tls: Option<TlsAcceptor>) -> Self {
        let listener = port.listen().expect("nobody else listens there");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connections = Arc::new(AtomicU64::new(0));
        let accepts = Accepts(tokio::spawn(accept(listener, app, tls, Arc::clone(&connections))));
        Self { port, scheme, connections, accepts }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The address of something on it, for a browser.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address())
    }

    /// How many connections were made to it so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(SeqCst)
    }

    /// Cuts every connection, and returns when nobody listens any more. Another one can be started there.
    pub async fn stop(mut self) -> Port {
        self.accepts.0.abort();
        let _cancelled = (&mut self.accepts.0).await;
        self.port
    }
}

impl Drop for Accepts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, app: Router, tls: Option<TlsAcceptor>, connections: Arc<AtomicU64>) {
    // They end with this task.
    let mut open = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.fetch_add(1, SeqCst);
        while open.try_join_next().is_some() {}
        open.spawn(serve(tcp, app.clone(), tls.clone()));
    }
}

/// What goes wrong with a connection is the browser's to notice.
async fn serve(tcp: TcpStream, app: Router, tls: Option<TlsAcceptor>) {
    // Otherwise the kernel holds an event back until the client, or a proxy, has acknowledged the one before: for 40 to 200 ms.
    let _ends_with_its_connection = tcp.set_nodelay(true);
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
