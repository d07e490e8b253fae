//! A server for any tower service, on a real socket.

use http::{Request, Response};
use http_body::Body;
pub use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tower::Service;

/// A listening server. Dropping it stops the listener, and leaves open connections open.
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

/// Serves HTTP/1 and HTTP/2 with prior knowledge on a free port, with hyper only.
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
            // Without this, small writes wait for acknowledgements, and the tests take seconds.
            let _unimportant = socket.set_nodelay(true);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                // A connection fails when a body fails or a client disconnects. Tests check this
                // at the client.
                let _ended =
                    auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
        }
    };
    Server { address, listening: tokio::spawn(accept).abort_handle() }
}

/// A server's end of a connection that closes without a TCP reset.
///
/// After `shutdown`, it reads and discards until the client closes. hyper closes a connection as
/// soon as its last response is written. If the client has sent bytes by then that hyper did not
/// read, such as window updates of HTTP/2, the kernel resets the connection and discards the part
/// of the responses that the client has not received. See RFC 9112, section 9.6.
#[derive(Debug)]
pub struct LingeringSocket {
    socket: TcpStream,
    is_shut_down: bool,
}

impl LingeringSocket {
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, is_shut_down: false }
    }
}

impl AsyncRead for LingeringSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for LingeringSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.is_shut_down = true;
        }
        let mut discarded = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
