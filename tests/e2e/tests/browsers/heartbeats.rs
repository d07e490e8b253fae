//! What keeps a stream alive, and who can see it.

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
    a_comment_is_seen_by_nobody_and_an_event_by_who_listens_to_it,
}

const EVERY: Duration = Duration::from_millis(50);

/// An event, a silence of many heartbeats, and another event.
fn silence() -> SseStream<impl Stream<Item = Event>> {
    let silence = async || {
        tokio::time::sleep(20 * EVERY).await;
        Event::new("after").id(2)
    };
    let after = tokio_stream::once(()).then(move |()| silence());
    SseStream::new(tokio_stream::once(Event::new("before").id(1)).chain(after).chain(tokio_stream::pending()))
}

async fn a_comment_is_seen_by_nobody_and_an_event_by_who_listens_to_it(engine: Engine) {
    let (summaries, mut closed) = mpsc::unbounded_channel::<StreamSummary>();
    let tell = move |summary| summaries.send(summary).expect("somebody waits for it");
    let with = |heartbeat| SseLayer::new().heartbeat(heartbeat).on_close(tell.clone());
    let named = Heartbeat::every(EVERY).event(Event::default().event("heartbeat"));
    let unnamed = Heartbeat::every(EVERY).event(Event::new("heartbeat"));
    let app = Router::new()
        .route("/", get(page::html))
        .route("/comments", get(async || silence()).layer(with(Heartbeat::every(EVERY).comment("still here"))))
        .route("/named", get(async || silence()).layer(with(named)))
        .route("/unnamed", get(async || silence()).layer(with(unnamed)));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    let is_over = |told: &[e2e::Message]| told.iter().any(|message| message.data == "after");
    let (before, after) = (message("message", "1", "before"), message("message", "2", "after"));

    page.listen("comments", "/comments", &["heartbeat"]).await;
    let told = page.is_told("comments", "what comes after the silence", is_over).await;
    assert_eq!(told, [before.clone(), after.clone()], "no comment is told");
    page.close("comments").await;
    let summary = timeout(page::SOON, closed.recv()).await.expect("it is told of").expect("the layer is there");
    assert!(summary.heartbeats >= 5, "and there were some: {summary:?}");

    // They do not move the place of the client, either.
    page.listen("named", "/named", &["heartbeat"]).await;
    let told = page.is_told("named", "what comes after the silence", is_over).await;
    let heartbeats = told.iter().filter(|told| **told == message("heartbeat", "1", "")).count();
    assert!(heartbeats >= 5, "each heartbeat is told: {told:?}");
    let others: Vec<_> = told.iter().filter(|told| told.kind != "heartbeat").collect();
    assert_eq!(others, [&before, &after], "and to `onmessage` none");

    page.listen("unnamed", "/unnamed", &[]).await;
    let told = page.is_told("unnamed", "what comes after the silence", is_over).await;
    let heartbeats = told.iter().filter(|told| **told == message("message", "1", "heartbeat")).count();
    assert!(heartbeats >= 5, "without a name, it is told to `onmessage`: {told:?}");
}
