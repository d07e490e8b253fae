//! A running server, and streams that the tests drive.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::header;
use http_body::Frame;
use std::{convert::Infallible, net::SocketAddr, pin::Pin, task::Context, task::Poll};
use support::client::within;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_sse::serve::{Serve, serve};

/// A server that runs until it is dropped or shut down.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    _shut_down_at_drop: DropGuard,
}

impl Running {
    pub(crate) async fn new(app: axum::Router) -> Self {
        Self::with(app, |server| server).await
    }

    /// Starts a server with the settings that `configure` makes.
    pub(crate) async fn with(
        app: axum::Router,
        configure: impl FnOnce(Serve<TcpListener, axum::Router>) -> Serve<TcpListener, axum::Router>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = configure(serve(listener, app)).with_graceful_shutdown(shutdown.clone());
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { address, task, _shut_down_at_drop: shutdown.clone().drop_guard(), shutdown }
    }

    /// Begins a graceful shutdown.
    pub(crate) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    pub(crate) async fn returned(self) {
        within("the server to return", self.task).await.unwrap();
    }
}

/// Returns a response with a body of any kind that is an event stream.
pub(crate) fn event_stream<B>(body: B) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tower_sse::BoxError>,
{
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(body)).into_response()
}

/// A body that yields what its sender sends, and reports when it is dropped.
pub(crate) struct Driven {
    frames: mpsc::UnboundedReceiver<Bytes>,
    _dropped: oneshot::Sender<Infallible>,
}

/// The other end of a [`Driven`] body. The body ends when it is dropped.
pub(crate) struct Driver {
    frames: mpsc::UnboundedSender<Bytes>,
    dropped: oneshot::Receiver<Infallible>,
}

pub(crate) fn driven() -> (Driver, Driven) {
    let (sender, frames) = mpsc::unbounded_channel();
    let (alive, dropped) = oneshot::channel();
    (Driver { frames: sender, dropped }, Driven { frames, _dropped: alive })
}

/// Returns an app with an event stream at `/` that the test drives, and the drivers of its streams.
pub(crate) fn live() -> (Drivers, axum::Router) {
    let (sender, drivers) = mpsc::unbounded_channel();
    let handler = async move || {
        let (driver, body) = driven();
        sender.send(driver).unwrap();
        event_stream(body)
    };
    (Drivers(drivers), axum::Router::new().route("/", get(handler)))
}

/// The drivers of the streams of [`live`], in the order of the requests.
pub(crate) struct Drivers(mpsc::UnboundedReceiver<Driver>);

impl Drivers {
    /// Waits for the next request, and returns the driver of its stream.
    pub(crate) async fn next(&mut self) -> Driver {
        within("the request", self.0.recv()).await.unwrap()
    }

    /// Returns whether the server has not received another request.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Driver {
    pub(crate) fn send(&self, frame: &str) {
        self.frames.send(Bytes::copy_from_slice(frame.as_bytes())).unwrap();
    }

    /// Waits until the server has dropped the body.
    pub(crate) async fn body_dropped(self) {
        within("the server to drop the body", self.dropped).await.unwrap_err();
    }
}

impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}
