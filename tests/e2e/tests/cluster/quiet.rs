//! A client whose topics are quiet, while the log evicts the events of other topics.

use crate::{setup::connect_small, with_each_store};
use axum::body::{Body, BodyDataStream};
use e2e::{Store, StoreKind};
use futures_util::StreamExt;
use std::time::Duration;
use support::whatwg;
use tokio::time::timeout;
use tower_sse::{
    Event, EventId, Heartbeat, SseStream,
    hub::{Hub, Start},
};

with_each_store! {
    quiet_client_moves_to_another_node_without_a_gap,
}

const LIMIT: Duration = Duration::from_secs(30);

/// The number of records in the log, or of messages for NATS. A message contains 500 records here.
fn small_log(kind: StoreKind) -> u32 {
    match kind {
        StoreKind::Redis | StoreKind::Postgres => 1000,
        StoreKind::Nats => 10,
    }
}

async fn start_node(store: &Store) -> Hub {
    connect_small(store.kind(), &store.url(), small_log(store.kind())).await.expect("the backend runs")
}

/// Subscribes a client to a quiet topic, with heartbeats at this interval.
async fn quiet_client(hub: &Hub, interval: Duration) -> BodyDataStream {
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.expect("the hub runs");
    let stream = SseStream::new(subscription).heartbeat(Heartbeat::every(interval));
    Body::new(stream.into_http_response().into_body()).into_data_stream()
}

/// Publishes events of another topic, fewer than the log retains: nodes can read all of them.
/// Returns the id of the last one.
async fn fill(hub: &Hub) -> EventId {
    let events = (0..500).map(|n| Event::new(n.to_string()));
    hub.topic("other").publish_all(events).await.expect("the backend runs").expect("there are events")
}

/// Reads until the client has an id that satisfies `is_awaited`, or the end. Returns the last id.
async fn read_id(body: &mut BodyDataStream, is_awaited: impl Fn(&str) -> bool) -> EventId {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(data) = body.next().await {
            bytes.extend_from_slice(&data.expect("no error"));
            if is_awaited(&whatwg::parse(&bytes).last_event_id) {
                break;
            }
        }
    };
    timeout(LIMIT, read).await.expect("the id arrives in time");
    let received = whatwg::parse(&bytes);
    assert!(received.messages.iter().all(|message| message.r#type == "hub-cursor"), "{:?}", received.messages);
    EventId::new(received.last_event_id).expect("the id is valid")
}

/// Waits until a node has read the log up to this event of the other topic.
async fn wait_until_read(hub: &Hub, newest: &EventId) {
    let mut witness = hub.topic("other").subscribe(Start::Earliest).await.expect("the hub runs");
    while witness.cursor() != *newest {
        timeout(LIMIT, witness.next()).await.expect("in time").expect("an event").expect("no error");
    }
}

/// Fills the log through one node until it has evicted the position of this id. The other node
/// reads all of it: a node that the log overtakes reports a gap to its clients. Returns the newest
/// id.
async fn evict(store: &Store, hub: &Hub, other: &Hub, id: &EventId) -> EventId {
    let evict = async {
        loop {
            let newest = fill(hub).await;
            wait_until_read(other, &newest).await;
            let fresh = start_node(store).await;
            if fresh.topic("quiet").subscribe(id.clone()).await.expect("the hub runs").gap().is_some() {
                return newest;
            }
        }
    };
    timeout(LIMIT, evict).await.expect("the log evicts in time")
}

async fn quiet_client_moves_to_another_node_without_a_gap(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let [hub, other] = [start_node(&store).await, start_node(&store).await];
    let mut client = quiet_client(&hub, Duration::from_millis(50)).await;
    let first = read_id(&mut client, |id| !id.is_empty()).await;
    let newest = evict(&store, &other, &hub, &first).await;
    let moved = read_id(&mut client, |id| id == newest.as_str()).await;

    let fresh = start_node(&store).await;
    let mut back = fresh.topic("quiet").subscribe(moved.clone()).await.expect("the hub runs");
    assert!(back.is_resumed(), "{:?}", back.gap());
    hub.topic("quiet").publish(Event::new("next")).await.expect("the backend runs");
    let next = timeout(LIMIT, back.next()).await.expect("in time").expect("an event").expect("no error");
    assert_eq!(whatwg::parse(next.as_bytes()).messages[0].data, "next");

    // The end of the stream has the newest id, too, without a heartbeat.
    let ending = start_node(&store).await;
    let mut client = quiet_client(&ending, Duration::from_secs(3600)).await;
    let first = read_id(&mut client, |id| !id.is_empty()).await;
    evict(&store, &other, &ending, &first).await;
    let newest = other.topic("other").publish(Event::new("newest")).await.expect("the backend runs");
    wait_until_read(&ending, &newest).await;
    ending.shutdown();
    assert_eq!(read_id(&mut client, |_| false).await, newest);
    let fresh = start_node(&store).await;
    let back = fresh.topic("quiet").subscribe(newest).await.expect("the hub runs");
    assert!(back.is_resumed(), "{:?}", back.gap());
}
