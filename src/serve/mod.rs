//! A server for axum routers and tower services with many long event streams.

mod chunks;
mod connection;
mod event_stream;
mod handover;
mod http1;
mod http2;
mod io;
mod service;
mod shutdown;
mod streams;

use self::connection::Connection;
use crate::{BoxError, ClientTimeout};
use axum::serve::Listener;
use axum_core::body::Body as RequestBody;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
pub use shutdown::ShutdownSignal;
use std::{
    any::Any,
    fmt,
    future::poll_fn,
    io as std_io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_service::Service;

/// Serves an axum `Router`, or any other tower service, on a listener.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S>
where
    L: Listener,
{
    Serve { listener, service, client_timeout: Some(ClientTimeout::default()), signal: None }
}

/// A server that is not running yet. [`serve`] creates it, and `.await` runs it.
#[must_use = "a server runs only while it is awaited"]
pub struct Serve<L, S> {
    listener: L,
    service: S,
    client_timeout: Option<ClientTimeout>,
    signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<L: Listener, S> Serve<L, S> {
    /// Begins a graceful shutdown when the signal completes.
    pub fn with_graceful_shutdown<M>(mut self, signal: impl ShutdownSignal<M>) -> Self {
        self.signal = Some(Box::pin(signal.wait()));
        self
    }

    /// Sets the timeout for clients that do not read or have vanished. Default: 30 seconds.
    pub fn client_timeout(mut self, timeout: ClientTimeout) -> Self {
        self.client_timeout = Some(timeout);
        self
    }

    /// Leaves the timeouts of the system in place.
    pub fn without_client_timeout(mut self) -> Self {
        self.client_timeout = None;
        self
    }

    /// Returns the local address of the listener.
    ///
    /// # Errors
    ///
    /// Returns the error of the listener.
    pub fn local_addr(&self) -> std_io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// The state that all connections of a server share.
struct Server {
    /// Cancelled when the graceful shutdown begins.
    shutdown: CancellationToken,
    http1: hyper::server::conn::http1::Builder,
    /// Reports the end of the last connection.
    _open: DropGuard,
}

impl<L, S, B> Serve<L, S>
where
    L: Listener<Addr: Clone + Sync + 'static>,
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    async fn run(self) {
        let Self { mut listener, service, client_timeout, mut signal } = self;
        let shutdown = CancellationToken::new();
        let all_closed = CancellationToken::new();
        let server = Arc::new(Server {
            shutdown: shutdown.clone(),
            http1: hyper::server::conn::http1::Builder::new(),
            _open: all_closed.clone().drop_guard(),
        });
        // If this future is dropped, the connections shut down gracefully, as with axum.
        let stop = shutdown.drop_guard();
        while let Some((mut io, address)) = accept(&mut listener, signal.as_mut()).await {
            prepare(&mut io, client_timeout);
            tokio::spawn(Connection::new(Arc::clone(&server), io, address, service.clone()));
        }
        drop((stop, listener, server));
        all_closed.cancelled().await;
    }
}

/// Waits for a connection. Returns `None` when the signal completes.
async fn accept<L: Listener>(
    listener: &mut L,
    mut signal: Option<&mut Pin<Box<dyn Future<Output = ()> + Send>>>,
) -> Option<(L::Io, L::Addr)> {
    let mut accepted = pin!(listener.accept());
    poll_fn(|cx| {
        if let Some(signal) = &mut signal {
            if signal.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
        }
        accepted.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Sets the options of a TCP socket. Other connections are left as their listener made them.
fn prepare<I: 'static>(io: &mut I, client_timeout: Option<ClientTimeout>) {
    if let Some(tcp) = (io as &mut dyn Any).downcast_mut::<TcpStream>() {
        // Fails if the client has disconnected already, which the connection notices by itself.
        let _disconnected = match client_timeout {
            Some(timeout) => timeout.apply(tcp),
            None => tcp.set_nodelay(true),
        };
    }
}

impl<L, S, B> IntoFuture for Serve<L, S>
where
    L: Listener<Addr: Clone + Sync + 'static>,
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = std_io::Result<()>;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture { running: Box::pin(self.run()) }
    }
}

impl<L: fmt::Debug, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("client_timeout", &self.client_timeout)
            .finish_non_exhaustive()
    }
}

/// A running server.
#[must_use = "a server runs only while it is awaited"]
pub struct ServeFuture {
    running: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for ServeFuture {
    type Output = std_io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std_io::Result<()>> {
        self.running.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for ServeFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeFuture").finish_non_exhaustive()
    }
}
