//! Events arrive as they were written.

use crate::{
    in_every_engine,
    page::{self, Page, message},
    visits::{self, Visits},
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
    names_ids_and_data_arrive_as_they_were_written,
    an_id_without_data_counts_at_once_in_chromium_later_in_webkit_and_never_in_firefox,
    an_id_comes_back_as_the_bytes_of_its_utf_8_and_is_read_as_what_it_was,
}

const EVERY_KIND: &str = "/every-kind";
const IDS: &str = "/ids";

async fn names_ids_and_data_arrive_as_they_were_written(engine: Engine) {
    let long = "ü".repeat(40_000);
    let sent = [
        Event::new("plain"),
        Event::new("with a name").event("created"),
        Event::new("with an id").id("41"),
        Event::new("the id stays"),
        Event::new(""),
        // A name is enough.
        Event::default().event("created"),
        Event::new("a\nb"),
        Event::new("a\r\nb\rc\n\nd\n"),
        Event::new("\n"),
        Event::new("  two spaces before: a colon, \u{feff}a mark, \u{2028}\u{2029}\u{85}\u{b}\u{c}lines that are none"),
        Event::new("a\0b"),
        Event::new("data: 1\nid: 2\n\nevent: 3\n:4"),
        Event::new("größer als 日本 🦀").event(EventName::new("größe 日本 🦀").expect("it is one line")),
        Event::new("an id").id(EventId::new("größe 日本 🦀").expect("it is one line")),
        Event::default().comment("nobody reads this"),
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
        // Firefox has no NUL.
        message("message", "41", if engine == Engine::Firefox { "ab" } else { "a\0b" }),
        message("message", "41", "data: 1\nid: 2\n\nevent: 3\n:4"),
        message("größe 日本 🦀", "41", "größer als 日本 🦀"),
        message("message", "größe 日本 🦀", "an id"),
        message("message", "größe 日本 🦀", &long),
        message("message", "", "no id any more"),
    ];
    let all_of_it = async move || SseStream::new(tokio_stream::iter(sent).chain(tokio_stream::pending()));
    let server = Server::start(Router::new().route("/", get(page::html)).route(EVERY_KIND, get(all_of_it)));

    let page = Page::open(engine, &server.url("/")).await;
    page.listen("source", EVERY_KIND, &["created", "größe 日本 🦀"]).await;
    let told = page.is_told("source", "everything", |told| told.len() >= expected.len()).await;
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(told, expected);
    }
    assert_eq!(told.len(), expected.len());
}

async fn an_id_without_data_counts_at_once_in_chromium_later_in_webkit_and_never_in_firefox(engine: Engine) {
    const ALONE: &str = "/alone";
    const BEFORE_DATA: &str = "/before-data";
    const WITH_A_NAME: &str = "/with-a-name";

    let answer = |rest: fn() -> Vec<Event>| {
        get(async move || {
            let events = [Event::new("one").id(1)].into_iter().chain(rest());
            SseStream::new(tokio_stream::iter(events)).retry(Duration::from_millis(1))
        })
    };
    let visits = Visits::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route(ALONE, answer(|| vec![Event::checkpoint(2)]))
        .route(BEFORE_DATA, answer(|| vec![Event::checkpoint(2), Event::new("two")]))
        // It has empty data then.
        .route(WITH_A_NAME, answer(|| vec![Event::checkpoint(2).event("nobody-listens")]))
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;

    let [alone, before_data] = match engine {
        Engine::Chromium => ["2", "2"],
        Engine::WebKit => ["1", "2"],
        Engine::Firefox => ["1", "1"],
    };
    for (path, id) in [(ALONE, alone), (BEFORE_DATA, before_data), (WITH_A_NAME, "2")] {
        page.listen(path, path, &[]).await;
        let back = async || visits.to(path).get(1).cloned().ok_or("not yet");
        let visit = eventually(page::SOON, "it comes back", back).await;
        assert_eq!(visit.last_event_id(), Some(id.as_bytes()), "{path}");
        let told = page.told(path).await;
        assert_eq!(told[0], message("message", "1", "one"), "{path}");
        assert!(path != BEFORE_DATA || told[1] == message("message", id, "two"), "{told:?}");
        page.close(path).await;
    }
}

/// The n-th visitor gets the n-th of these ids, and has to come back.
const GIVEN: [&str; 6] = ["41", "größe", "日本 🦀", "%20+\"';,=", "\u{80}\u{a0}\u{ff}", "\u{10ffff}"];

#[derive(Clone, Default)]
struct Ids(Arc<Mutex<Vec<LastEventId>>>);

async fn next_id(State(Ids(read)): State<Ids>, last: LastEventId) -> SseStream<impl Stream<Item = Event>> {
    let mut read = read.lock().expect("no holder panics");
    read.push(last);
    let id = GIVEN.get(read.len() - 1).copied().unwrap_or_default();
    let event = Event::new("come back").id(EventId::new(id).expect("it is one line"));
    SseStream::new(tokio_stream::once(event)).retry(Duration::from_millis(1))
}

async fn an_id_comes_back_as_the_bytes_of_its_utf_8_and_is_read_as_what_it_was(engine: Engine) {
    let visits = Visits::default();
    let ids = Ids::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route(IDS, get(next_id))
        .with_state(ids.clone())
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep));
    let server = Server::start(app);

    let page = Page::open(engine, &server.url("/")).await;
    page.listen("source", IDS, &[]).await;
    // The last one comes back with an id that is empty, which is none.
    let enough = 1 + GIVEN.len() + 1;
    eventually(page::SOON, "it has come back with each id", async || match visits.count(IDS) {
        visits if visits >= enough => Ok(()),
        visits => Err(visits),
    })
    .await;
    page.close("source").await;

    let sent: Vec<_> = visits.to(IDS).into_iter().map(|visit| visit.last_event_id().map(<[u8]>::to_vec)).collect();
    let read: Vec<_> =
        ids.0.lock().expect("no holder panics").iter().map(|last| last.as_str().map(str::to_owned)).collect();
    assert_eq!((&sent[0], &read[0]), (&None, &None), "a newcomer has no id");
    for (n, given) in GIVEN.into_iter().enumerate() {
        assert_eq!(sent[n + 1].as_deref(), Some(given.as_bytes()), "the bytes of {given:?}");
        assert_eq!(read[n + 1].as_deref(), Some(given));
    }
    assert_eq!((&sent[enough - 1], &read[enough - 1]), (&None, &None), "an empty id is not sent");
}
