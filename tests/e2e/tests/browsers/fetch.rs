//! A stream that is not read by an `EventSource`: the answer to a POST, as of a language model.

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
    the_stream_of_an_answer_is_dropped_at_once_when_the_page_aborts_it,
}

/// Far less than a heartbeat, by which a server notices a client that has vanished.
const AT_ONCE: Duration = Duration::from_secs(1);

/// When a stream was dropped, and how it ended.
type Ends = UnboundedSender<(Instant, StreamSummary)>;

/// Says what it was asked, and thinks.
async fn answer(State(ends): State<Ends>, question: String) -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(tokio_stream::once(Event::new(question)).chain(tokio_stream::pending()))
        .on_close(move |summary| ends.send((Instant::now(), summary)).expect("somebody waits for it"))
}

fn app() -> (Router, UnboundedReceiver<(Instant, StreamSummary)>) {
    let (ends, closed) = unbounded_channel();
    let app = Router::new().route("/", get(page::html)).route("/answer", post(answer)).with_state(ends);
    (app.layer(SseLayer::new()), closed)
}

async fn the_stream_of_an_answer_is_dropped_at_once_when_the_page_aborts_it(engine: Engine) {
    let (app, closed) = app();
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    ask_and_abort(&page, closed).await;

    // Here the connection stays, and the stream is reset.
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
    let (dropped, summary) = timeout(SOON, closed.recv()).await.expect("it is dropped").expect("the layer is there");
    reads("data: why?\n\nAbortError").await;
    assert_eq!(summary.reason, CloseReason::ClientGone);
    assert!(dropped - aborted < AT_ONCE, "dropped after {:?}", dropped - aborted);
}
