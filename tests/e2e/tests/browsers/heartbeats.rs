//! Heartbeats as comments and as events.

use crate::{
    in_every_engine,
    page::{self, Page, message},
};
use axum::{Router, routing::get};
use e2e::{Engine, Server};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{Event, Heartbeat, SseLayer, SseStream, StreamSummary};

in_every_engine! {
    pages_see_heartbeat_events_and_no_comments,
}

const EVERY: Duration = Duration::from_millis(50);

/// Streams an event, a silence of many heartbeats, and another event.
fn silence() -> SseStream<impl Stream<Item = Event>> {
    let silence = async || {
        tokio::time::sleep(20 * EVERY).await;
        Event::new("after").id(2)
    };
    let after = tokio_stream::once(()).then(move |()| silence());
    SseStream::new(tokio_stream::once(Event::new("before").id(1)).chain(after).chain(tokio_stream::pending()))
}

async fn pages_see_heartbeat_events_and_no_comments(engine: Engine) {
    let (summaries, mut closed) = mpsc::unbounded_channel::<StreamSummary>();
    let record = move |summary| summaries.send(summary).expect("the test receives it");
    let with = |heartbeat| SseLayer::new().heartbeat(heartbeat).on_close(record.clone());
    let named = Heartbeat::every(EVERY).event(Event::default().event("heartbeat"));
    let unnamed = Heartbeat::every(EVERY).event(Event::new("heartbeat"));
    let app = Router::new()
        .route("/", get(page::html))
        .route("/comments", get(async || silence()).layer(with(Heartbeat::every(EVERY).comment("still here"))))
        .route("/named", get(async || silence()).layer(with(named)))
        .route("/unnamed", get(async || silence()).layer(with(unnamed)));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    let has_ended = |received: &[e2e::Message]| received.iter().any(|message| message.data == "after");
    let (before, after) = (message("message", "1", "before"), message("message", "2", "after"));

    page.listen("comments", "/comments", &["heartbeat"]).await;
    let received = page.wait_for_events("comments", "the event after the silence", has_ended).await;
    assert_eq!(received, [before.clone(), after.clone()], "the page sees no comment");
    page.close("comments").await;
    let summary = timeout(page::SOON, closed.recv()).await.expect("the stream is closed").expect("the layer runs");
    assert!(summary.heartbeats >= 5, "the layer has sent heartbeats: {summary:?}");

    // Heartbeat events do not move the cursor of the client.
    page.listen("named", "/named", &["heartbeat"]).await;
    let received = page.wait_for_events("named", "the event after the silence", has_ended).await;
    let heartbeats = received.iter().filter(|event| **event == message("heartbeat", "1", "")).count();
    assert!(heartbeats >= 5, "the page sees each heartbeat: {received:?}");
    let others: Vec<_> = received.iter().filter(|message| message.kind != "heartbeat").collect();
    assert_eq!(others, [&before, &after], "`onmessage` sees no heartbeat");

    page.listen("unnamed", "/unnamed", &[]).await;
    let received = page.wait_for_events("unnamed", "the event after the silence", has_ended).await;
    let heartbeats = received.iter().filter(|event| **event == message("message", "1", "heartbeat")).count();
    assert!(heartbeats >= 5, "`onmessage` sees a heartbeat without a name: {received:?}");
}
