//! Two nodes with each backend: pages that one node begins and the other continues, long polls
//! across nodes, and the end.

use super::SOON;
use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use e2e::{Store, StoreKind, eventually};
use std::time::Duration;
use tower_service::Service;
use tower_sse::{
    Event,
    hub::{
        Builder, Hub,
        backend::{NatsBackend, PostgresBackend, RedisBackend},
        durable_streams::DurableStreams,
    },
};

/// A request timeout that a busy machine does not exceed.
const PATIENT: Duration = Duration::from_secs(10);

/// The nodes retain few events, so most are read from the backend.
fn builder() -> Builder {
    Hub::builder().max_events(10)
}

fn streams(hub: &Hub) -> DurableStreams {
    hub.durable_streams().readable(|_, _| true).page_size(20)
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    numbers: Vec<u64>,
}

impl Answer {
    fn next_offset(&self) -> String {
        self.headers["stream-next-offset"].to_str().expect("an ASCII text").to_owned()
    }
}

async fn get(streams: &DurableStreams, query: &str) -> Answer {
    let request = Request::get(format!("/t?{query}")).body(()).expect("a request");
    let (head, body) = streams.clone().call(request).await.unwrap_or_else(|never| match never {}).into_parts();
    let body = to_bytes(Body::new(body), usize::MAX).await.expect("a page");
    let numbers = serde_json::from_slice(&body).unwrap_or_default();
    Answer { status: head.status, headers: head.headers, numbers }
}

async fn check([one, other]: [Hub; 2]) {
    let topic = one.topic("t");
    topic.publish_all((0..40).map(Event::display)).await.expect("the events are in the log");
    for number in 40..60 {
        topic.publish(Event::display(number)).await.expect("the event is in the log");
        one.topic("other").publish(Event::display(number)).await.expect("the event is in the log");
    }
    let (one, other) = (streams(&one), streams(&other));
    let newest = get(&one, "offset=now").await.next_offset();
    eventually(SOON, "the other node has read the log", async || {
        let end = get(&other, "offset=now").await;
        if end.status.is_success() && end.next_offset() == newest { Ok(()) } else { Err(end.status) }
    })
    .await;

    let (mut offset, mut read) = ("-1".to_owned(), Vec::new());
    for node in [&one, &other].into_iter().cycle() {
        let page = get(node, &format!("offset={offset}")).await;
        assert_eq!(page.status, 200);
        assert!(offset == "-1" || page.next_offset() > offset, "offsets increase as text");
        offset = page.next_offset();
        read.extend(page.numbers);
        if page.headers.contains_key("stream-up-to-date") {
            break;
        }
    }
    assert!(read.into_iter().eq(0..60));
    assert_eq!(offset, newest);

    let poll = tokio::spawn(async move { get(&other, &format!("offset={offset}&live=long-poll")).await });
    topic.publish(Event::display(60)).await.expect("the event is in the log");
    let answer = poll.await.expect("no panic");
    assert_eq!((answer.status.as_u16(), &answer.numbers[..]), (200, &[60][..]));

    topic.finish().await.expect("the end is in the log");
    let end = get(&one, &format!("offset={}&live=long-poll", answer.next_offset())).await;
    assert_eq!((end.status.as_u16(), &end.headers["stream-closed"]), (204, &"true".parse().expect("a header")));
}

#[tokio::test(flavor = "multi_thread")]
async fn file_serves_streams() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = builder().file(folder.path().join("log")).connect().await.expect("a log");
    check([hub.clone(), hub]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_serves_streams() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let connect = || builder().backend(RedisBackend::new(store.url()).expect("a URL").timeout(PATIENT)).connect();
    check([connect().await.expect("a log"), connect().await.expect("a log")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_serves_streams() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let connect = || builder().backend(NatsBackend::new(store.url()).expect("a URL").timeout(PATIENT)).connect();
    check([connect().await.expect("a log"), connect().await.expect("a log")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_serves_streams() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let connect = || builder().backend(PostgresBackend::new(store.url()).expect("a URL").timeout(PATIENT)).connect();
    check([connect().await.expect("a log"), connect().await.expect("a log")]).await;
}
