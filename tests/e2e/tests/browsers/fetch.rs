//! A stream that a page reads with `fetch`: the response to a POST, as from a language model.

use crate::{
    in_every_engine,
    page::{self, Page, SOON},
};
use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use e2e::{Engine, Server, eventually};
use std::time::{Duration, Instant};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{CloseReason, Event, SseLayer, SseStream, StreamSummary};

in_every_engine! {
    abort_of_a_fetch_drops_the_stream_immediately,
}

/// Shorter than the heartbeat interval of 15 seconds, after which a server notices a vanished
/// client. The command to the browser also takes time on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);

/// The time when a stream was dropped, and its summary.
type Ends = UnboundedSender<(Instant, StreamSummary)>;

/// Sends the question back, and stays open.
async fn answer(State(ends): State<Ends>, question: String) -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(tokio_stream::once(Event::new(question)).chain(tokio_stream::pending()))
        .on_close(move |summary| ends.send((Instant::now(), summary)).expect("the test receives it"))
}

fn app() -> (Router, UnboundedReceiver<(Instant, StreamSummary)>) {
    let (ends, closed) = unbounded_channel();
    let app = Router::new().route("/", get(page::html)).route("/answer", post(answer)).with_state(ends);
    (app.layer(SseLayer::new()), closed)
}

async fn abort_of_a_fetch_drops_the_stream_immediately(engine: Engine) {
    let (app, closed) = app();
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    ask_and_abort(&page, closed).await;

    // Over HTTP/2, the browser resets the stream, and keeps the connection.
    let (app, closed) = self::app();
    let server = Server::start_with_tls(app);
    page.go_to(&server.url("/")).await;
    ask_and_abort(&page, closed).await;
}

async fn ask_and_abort(page: &Page, mut closed: UnboundedReceiver<(Instant, StreamSummary)>) {
    page.eval("ask('/answer', 'why?')").await;
    let reads = async |expected: &str| {
        eventually(SOON, &format!("the page reads {expected:?}"), async || {
            let text = page.eval("answer.text").await;
            if text == expected { Ok(()) } else { Err(text) }
        })
        .await;
    };
    reads("data: why?\n\n").await;
    assert!(closed.try_recv().is_err(), "the stream is open");

    let aborted = Instant::now();
    page.eval("question.abort()").await;
    let (dropped, summary) =
        timeout(SOON, closed.recv()).await.expect("the stream is dropped").expect("the layer runs");
    reads("data: why?\n\nAbortError").await;
    assert_eq!(summary.reason, CloseReason::ClientGone);
    assert!(dropped - aborted < PROMPT, "dropped after {:?}", dropped - aborted);
}
