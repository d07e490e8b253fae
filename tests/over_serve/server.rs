//! The functions of `support::server`, with the server of the crate.

pub(crate) use axum::body::Body as Incoming;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::net::SocketAddr;
pub(crate) use support::server::LingeringSocket;
use tokio::{net::TcpListener, task::AbortHandle};
use tower::Service;
use tower_sse::BoxError;

/// A listening server. Dropping it stops the listener.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    listening: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Serves HTTP/1 and HTTP/2 with prior knowledge on a free port.
pub(crate) async fn serve<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the port");
    let listening = tokio::spawn(tower_sse::serve(listener, service).into_future()).abort_handle();
    Server { address, listening }
}
