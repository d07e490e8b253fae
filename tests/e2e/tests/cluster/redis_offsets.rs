//! Positions between the entries of a stream in Redis: a client must not change what others get.

use crate::{
    redis::{cli, publish},
    unchanged::redis,
};
use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use e2e::{Store, StoreKind};
use std::time::{Duration, SystemTime};
use tokio::time::sleep;
use tower_service::Service;
use tower_sse::{
    EventId,
    hub::{Hub, Start, durable_streams::DurableStreams},
};

/// A node with less memory than the log.
async fn node(store: &Store) -> Hub {
    let backend = redis(&store.url());
    Hub::builder().max_events(10).backend(backend).connect().await.expect("the server responds")
}

/// Returns the status, the next offset and the content of a read.
async fn get(streams: &DurableStreams, offset: &str) -> (StatusCode, String, String) {
    let request = Request::get(format!("/quiet?offset={offset}")).body(Body::empty()).expect("a request");
    let response = streams.clone().call(request).await.expect("no error");
    let next = response.headers().get("stream-next-offset").map(|next| next.to_str().expect("text").to_owned());
    let status = response.status();
    let body = to_bytes(Body::new(response.into_body()), usize::MAX).await.expect("the body ends");
    (status, next.unwrap_or_default(), String::from_utf8(body.to_vec()).expect("text"))
}

/// While its topic is quiet, a client of Durable Streams moves to the last entry before a multiple
/// of 65,536 ms. A position without an entry would look like that of a lost entry.
#[tokio::test(flavor = "multi_thread")]
async fn offset_of_a_quiet_topic_is_no_gap() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is after 1970").as_millis();
    let multiple = now / 65_536 * 65_536 - 65_536;
    for (time, topic) in [(multiple - 9, "quiet"), (multiple - 5, "busy"), (multiple + 5, "busy")] {
        cli(&store, &["xadd", "tower-sse", &format!("{time}-0"), "t", topic, "e", "data: 0\n\n"]);
    }
    let node = node(&store).await;
    publish(&node.topic("busy"), "0").await;
    let streams = node.durable_streams().readable(|_, _| true);
    let (status, offset, _) = get(&streams, "now").await;
    assert_eq!(status, StatusCode::OK);
    for n in 0..20 {
        publish(&node.topic("quiet"), &n.to_string()).await;
    }
    let (status, _, events) = get(&streams, &offset).await;
    assert_eq!((status, events.matches(',').count()), (StatusCode::OK, 19), "{events}");
}

/// The id of one client may be made up. Clients of other topics get their events nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn made_up_id_takes_no_events_from_other_clients() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = node(&store).await;
    let mut ids = Vec::new();
    for topic in ["quiet", "busy"] {
        for n in 0..30 {
            ids.push(publish(&node.topic(topic), &n.to_string()).await);
            sleep(Duration::from_millis(2)).await;
        }
    }
    let (time, sequence) = ids[35].as_str().split_once('-').expect("a time and a number");
    let made_up = format!("{time}-{}", sequence.parse::<u64>().expect("a number") + 7);
    let busy = node.topic("busy").subscribe(EventId::new(made_up).expect("an id")).await.expect("it works");
    assert!(busy.gap().is_some(), "no entry has this id");
    let quiet = node.topic("quiet").subscribe(Start::After(ids[4].clone())).await.expect("it works");
    assert_eq!(quiet.gap(), None);
}
