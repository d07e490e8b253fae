//! The fields of events, and the last event id.

use crate::{
    in_every_engine,
    page::{self, Page, message},
    requests::{self, Requests},
};
use axum::{Router, extract::State, middleware, routing::get};
use e2e::{Engine, Server, eventually};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{Event, EventId, EventName, LastEventId, SseStream};

in_every_engine! {
    names_ids_and_data_arrive_unchanged,
    engines_differ_in_handling_of_checkpoints,
    ids_round_trip_as_utf_8,
}

const EVERY_KIND: &str = "/every-kind";
const IDS: &str = "/ids";

async fn names_ids_and_data_arrive_unchanged(engine: Engine) {
    let long = "ü".repeat(40_000);
    let sent = [
        Event::new("plain"),
        Event::new("with a name").event("created"),
        Event::new("with an id").id("41"),
        Event::new("the id stays"),
        Event::new(""),
        // Without data, an event with a name is dispatched.
        Event::default().event("created"),
        Event::new("a\nb"),
        Event::new("a\r\nb\rc\n\nd\n"),
        Event::new("\n"),
        Event::new("  two spaces before: a colon, \u{feff}a mark, \u{2028}\u{2029}\u{85}\u{b}\u{c}lines that are none"),
        Event::new("a\0b"),
        Event::new("data: 1\nid: 2\n\nevent: 3\n:4"),
        Event::new("größer als 日本 🦀").event(EventName::new("größe 日本 🦀").expect("one line is valid")),
        Event::new("an id").id(EventId::new("größe 日本 🦀").expect("one line is valid")),
        Event::default().comment("a comment"),
        Event::new(&long),
        Event::new("no id any more").id(""),
    ];
    let expected = [
        message("message", "", "plain"),
        message("created", "", "with a name"),
        message("message", "41", "with an id"),
        message("message", "41", "the id stays"),
        message("message", "41", ""),
        message("created", "41", ""),
        message("message", "41", "a\nb"),
        message("message", "41", "a\nb\nc\n\nd\n"),
        message("message", "41", "\n"),
        message(
            "message",
            "41",
            "  two spaces before: a colon, \u{feff}a mark, \u{2028}\u{2029}\u{85}\u{b}\u{c}lines that are none",
        ),
        // Firefox drops NUL.
        message("message", "41", if engine == Engine::Firefox { "ab" } else { "a\0b" }),
        message("message", "41", "data: 1\nid: 2\n\nevent: 3\n:4"),
        message("größe 日本 🦀", "41", "größer als 日本 🦀"),
        message("message", "größe 日本 🦀", "an id"),
        message("message", "größe 日本 🦀", &long),
        message("message", "", "no id any more"),
    ];
    let all = async move || SseStream::new(tokio_stream::iter(sent).chain(tokio_stream::pending()));
    let server = Server::start(Router::new().route("/", get(page::html)).route(EVERY_KIND, get(all)));

    let page = Page::open(engine, &server.url("/")).await;
    page.listen("source", EVERY_KIND, &["created", "größe 日本 🦀"]).await;
    let received = page.wait_for_events("source", "all events", |received| received.len() >= expected.len()).await;
    for (message, expected) in received.iter().zip(&expected) {
        assert_eq!(message, expected);
    }
    assert_eq!(received.len(), expected.len());
}

async fn engines_differ_in_handling_of_checkpoints(engine: Engine) {
    const ALONE: &str = "/alone";
    const BEFORE_DATA: &str = "/before-data";
    const WITH_A_NAME: &str = "/with-a-name";

    let answer = |rest: fn() -> Vec<Event>| {
        get(async move || {
            let events = [Event::new("one").id(1)].into_iter().chain(rest());
            SseStream::new(tokio_stream::iter(events)).retry(Duration::from_millis(1))
        })
    };
    let requests = Requests::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route(ALONE, answer(|| vec![Event::checkpoint(2)]))
        .route(BEFORE_DATA, answer(|| vec![Event::checkpoint(2), Event::new("two")]))
        // With a name, the checkpoint becomes an event with empty data.
        .route(WITH_A_NAME, answer(|| vec![Event::checkpoint(2).event("unhandled")]))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;

    let [alone, before_data] = match engine {
        Engine::Chromium => ["2", "2"],
        Engine::WebKit => ["1", "2"],
        Engine::Firefox => ["1", "1"],
    };
    for (path, id) in [(ALONE, alone), (BEFORE_DATA, before_data), (WITH_A_NAME, "2")] {
        page.listen(path, path, &[]).await;
        let second = async || requests.to(path).get(1).cloned().ok_or("one request");
        let request = eventually(page::SOON, "it reconnects", second).await;
        assert_eq!(request.last_event_id(), Some(id.as_bytes()), "{path}");
        let received = page.received(path).await;
        assert_eq!(received[0], message("message", "1", "one"), "{path}");
        assert!(path != BEFORE_DATA || received[1] == message("message", id, "two"), "{received:?}");
        page.close(path).await;
    }
}

/// The n-th request gets the n-th of these ids, and has to reconnect.
const SENT_IDS: [&str; 6] = ["41", "größe", "日本 🦀", "%20+\"';,=", "\u{a1}\u{a0}\u{ff}", "\u{10ffff}"];

#[derive(Clone, Default)]
struct Ids(Arc<Mutex<Vec<LastEventId>>>);

async fn next_id(State(Ids(read)): State<Ids>, last: LastEventId) -> SseStream<impl Stream<Item = Event>> {
    let mut read = read.lock().expect("no holder panics");
    read.push(last);
    let id = SENT_IDS.get(read.len() - 1).copied().unwrap_or_default();
    let event = Event::new("reconnect").id(EventId::new(id).expect("one line is valid"));
    SseStream::new(tokio_stream::once(event)).retry(Duration::from_millis(1))
}

async fn ids_round_trip_as_utf_8(engine: Engine) {
    let requests = Requests::default();
    let ids = Ids::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route(IDS, get(next_id))
        .with_state(ids.clone())
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);

    let page = Page::open(engine, &server.url("/")).await;
    page.listen("source", IDS, &[]).await;
    // After the empty id, the browser sends no header.
    let enough = 1 + SENT_IDS.len() + 1;
    eventually(page::SOON, "it has reconnected with each id", async || match requests.count(IDS) {
        requests if requests >= enough => Ok(()),
        requests => Err(requests),
    })
    .await;
    page.close("source").await;

    let sent: Vec<_> =
        requests.to(IDS).into_iter().map(|request| request.last_event_id().map(<[u8]>::to_vec)).collect();
    let read: Vec<_> =
        ids.0.lock().expect("no holder panics").iter().map(|last| last.as_str().map(str::to_owned)).collect();
    assert_eq!((&sent[0], &read[0]), (&None, &None), "a new client has no id");
    for (n, given) in SENT_IDS.into_iter().enumerate() {
        assert_eq!(sent[n + 1].as_deref(), Some(given.as_bytes()), "the bytes of {given:?}");
        assert_eq!(read[n + 1].as_deref(), Some(given));
    }
    assert_eq!((&sent[enough - 1], &read[enough - 1]), (&None, &None), "an empty id is not sent");
}
