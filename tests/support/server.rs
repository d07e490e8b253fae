//! A server on a socket, for any tower service.

use http::{Request, Response};
use http_body::Body;
pub use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{error::Error, net::SocketAddr};
use tokio::{net::TcpListener, task::AbortHandle};
use tower_service::Service;

/// Listens until it is dropped. Connections that are open then stay open.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    listening: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Serves HTTP/1 and HTTP/2 with prior knowledge on a port of its own, by hyper and nothing else.
pub async fn serve<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the port");
    let accept = async move {
        while let Ok((socket, _)) = listener.accept().await {
            // Small writes are not to wait for the acknowledgement of others: it makes the tests take seconds.
            let _unimportant = socket.set_nodelay(true);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                // It fails when a body fails or a client goes, which the tests see at the client.
                let _ended =
                    auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
        }
    };
    Server { address, listening: tokio::spawn(accept).abort_handle() }
}
