//! The server behind the proxies: event streams that a test controls, with and without the layer.

use axum::{
    Router,
    body::Body,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Sse, sse},
    routing::get,
};
use futures_util::{Stream, StreamExt, stream::unfold};
use std::{convert::Infallible, net::SocketAddr};
use support::client::within;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower_sse::{Event, Heartbeat, LastEventId, SseLayer, SseStream, StreamSummary};

/// Streams inside the layer: an `SseStream`, an `Sse` of axum, and one with only a content type.
pub(crate) const LAYERED: [&str; 3] = ["/layer/ours", "/layer/axum", "/layer/bare"];
/// Streams without the layer.
pub(crate) const PLAIN: [&str; 2] = ["/plain/axum", "/plain/bare"];

/// The id and the data of an event.
type Item = (u64, String);

pub(crate) struct Server {
    server: e2e::Server,
    /// The streams whose handlers were called.
    streams: UnboundedReceiver<OpenStream>,
    /// The summaries of the streams that have ended in the layer.
    pub(crate) closed: UnboundedReceiver<StreamSummary>,
}

/// The sender of an open stream. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) last: LastEventId,
    items: UnboundedSender<Item>,
}

impl Server {
    /// Starts a server whose layer sends this heartbeat.
    pub(crate) fn start(heartbeat: Heartbeat) -> Self {
        let (open, streams) = unbounded_channel();
        let (record, closed) = unbounded_channel();
        let layer = SseLayer::new().heartbeat(heartbeat).on_close(move |summary| {
            let _test_has_ended = record.send(summary);
        });
        let router = Router::new().route("/ours", get(ours)).route("/axum", get(axum)).route("/bare", get(bare));
        let app = Router::new().nest("/layer", router.clone().layer(layer)).nest("/plain", router).with_state(open);
        Self { server: e2e::Server::start(app), streams, closed }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Waits for the next request for a stream.
    pub(crate) async fn next(&mut self) -> OpenStream {
        within("the request to reach the handler", self.streams.recv()).await.expect("the server runs")
    }
}

impl OpenStream {
    /// Sends an event.
    pub(crate) fn send(&self, id: u64, data: &str) {
        self.items.send((id, data.to_owned())).expect("the stream is open");
    }

    /// Waits until the handler's stream is dropped.
    pub(crate) async fn wait_for_drop(&self) {
        self.items.closed().await;
    }
}

/// The channel for streams whose handlers were called.
type OpenStreams = UnboundedSender<OpenStream>;

fn open(streams: OpenStreams, last: LastEventId) -> impl Stream<Item = Item> + Send {
    let (items, stream) = unbounded_channel();
    streams.send(OpenStream { last, items }).expect("the test receives the stream");
    unfold(stream, async |mut stream| Some((stream.recv().await?, stream)))
}

async fn ours(State(streams): State<OpenStreams>, last: LastEventId) -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(open(streams, last).map(|(id, data)| Event::new(data).id(id)))
}

async fn axum(State(streams): State<OpenStreams>, last: LastEventId) -> impl IntoResponse {
    let event = |(id, data): Item| Ok::<_, Infallible>(sse::Event::default().id(id.to_string()).data(data));
    Sse::new(open(streams, last).map(event))
}

async fn bare(State(streams): State<OpenStreams>, last: LastEventId) -> impl IntoResponse {
    let chunk = |(id, data): Item| Ok::<_, Infallible>(format!("id: {id}\ndata: {data}\n\n"));
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(open(streams, last).map(chunk)))
}
