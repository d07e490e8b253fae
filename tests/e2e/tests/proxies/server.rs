//! What stands behind the proxies: event streams that a test sends into, with the layer around them and without.

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

/// Ours, axum's, and one that has a content type and nothing else.
pub(crate) const LAYERED: [&str; 3] = ["/layer/ours", "/layer/axums", "/layer/bare"];
/// Those that are not ours, as they are.
pub(crate) const PLAIN: [&str; 2] = ["/plain/axums", "/plain/bare"];

/// An event: its id and its data.
type Item = (u64, String);

pub(crate) struct Server {
    server: e2e::Server,
    /// Those whose handlers have been called.
    streams: UnboundedReceiver<Open>,
    /// What the layer tells of those that are over.
    pub(crate) closed: UnboundedReceiver<StreamSummary>,
}

/// A stream as its handler sees it. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) last: LastEventId,
    items: UnboundedSender<Item>,
}

impl Server {
    /// With this heartbeat from the layer.
    pub(crate) fn start(heartbeat: Heartbeat) -> Self {
        let (open, streams) = unbounded_channel();
        let (tell, closed) = unbounded_channel();
        let layer = SseLayer::new().heartbeat(heartbeat).on_close(move |summary| {
            let _the_test_is_over = tell.send(summary);
        });
        let streams_of = Router::new().route("/ours", get(ours)).route("/axums", get(axums)).route("/bare", get(bare));
        let app =
            Router::new().nest("/layer", streams_of.clone().layer(layer)).nest("/plain", streams_of).with_state(open);
        Self { server: e2e::Server::start(app), streams, closed }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The next stream that is asked for.
    pub(crate) async fn next(&mut self) -> Open {
        within("the request to reach the handler", self.streams.recv()).await.expect("the server is there")
    }
}

impl Open {
    /// Sends an event, now.
    pub(crate) fn send(&self, id: u64, data: &str) {
        self.items.send((id, data.to_owned())).expect("nobody has let go of the stream");
    }

    /// Waits until the handler's stream is dropped.
    pub(crate) async fn is_let_go(&self) {
        self.items.closed().await;
    }
}

type Opener = UnboundedSender<Open>;

fn open(opener: Opener, last: LastEventId) -> impl Stream<Item = Item> + Send {
    let (items, stream) = unbounded_channel();
    opener.send(Open { last, items }).expect("the test waits for it");
    unfold(stream, async |mut stream| Some((stream.recv().await?, stream)))
}

async fn ours(State(opener): State<Opener>, last: LastEventId) -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(open(opener, last).map(|(id, data)| Event::new(data).id(id)))
}

async fn axums(State(opener): State<Opener>, last: LastEventId) -> impl IntoResponse {
    let event = |(id, data): Item| Ok::<_, Infallible>(sse::Event::default().id(id.to_string()).data(data));
    Sse::new(open(opener, last).map(event))
}

async fn bare(State(opener): State<Opener>, last: LastEventId) -> impl IntoResponse {
    let chunk = |(id, data): Item| Ok::<_, Infallible>(format!("id: {id}\ndata: {data}\n\n"));
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(open(opener, last).map(chunk)))
}
