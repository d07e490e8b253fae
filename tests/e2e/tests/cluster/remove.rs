//! `Topic::remove`: the removal reaches nodes that run, nodes that were cut off, and nodes that
//! start later.

use crate::{
    setup::{connect_small, two_hubs},
    with_each_store,
};
use e2e::{Store, StoreKind, Wire, eventually};
use futures_util::StreamExt;
use std::time::Duration;
use support::whatwg;
use tokio::time::timeout;
use tower_sse::{
    Event, EventId,
    hub::{GapReason, Hub, Start},
};

with_each_store! {
    removed_topic_is_gone_on_all_nodes,
    node_that_was_cut_off_removes_the_topic,
}

const SOON: Duration = Duration::from_secs(20);
/// No event may arrive within this time.
const A_WHILE: Duration = Duration::from_millis(500);
/// More events of a topic than a node retains.
const MANY: usize = 3000;

async fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    hub.topic(topic).publish(Event::new(data)).await.expect("the backend runs")
}

/// Returns the data of all events of a topic that a client gets, and the reason of a gap before.
async fn read(hub: &Hub, topic: &str, start: impl Into<Start>) -> (Option<GapReason>, Vec<String>) {
    let mut subscription = hub.topic(topic).subscribe(start).await.expect("a subscription");
    let mut bytes = Vec::new();
    while let Ok(Some(events)) = timeout(A_WHILE, subscription.next()).await {
        bytes.extend_from_slice(events.expect("no error").as_bytes());
    }
    let messages = whatwg::parse(&bytes).messages.into_iter().filter(|message| message.r#type == "message");
    (subscription.gap().map(|gap| gap.reason()), messages.map(|message| message.data).collect())
}

async fn wait_for_removal(hub: &Hub, topic: &str) {
    eventually(SOON, "the topic is removed", async || match hub.topic(topic).exists() {
        false => Ok(()),
        true => Err(format!("{:?}", hub.stats())),
    })
    .await;
}

async fn removed_topic_is_gone_on_all_nodes(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let [one, other] = two_hubs(kind, &store.url()).await;
    let first = publish(&one, "room", "first").await;
    one.topic("room").publish_all((0..MANY).map(Event::display)).await.expect("the backend runs");
    let last = publish(&one, "room", "last").await;
    publish(&one, "lobby", "stays").await;
    one.topic("room").finish().await.expect("the backend runs");

    other.topic("room").remove().await.expect("the backend runs");
    assert!(!other.topic("room").exists(), "the node of the removal has read it");
    wait_for_removal(&one, "room").await;
    let late = connect_small(kind, &store.url(), 10_000_000).await.expect("the backend runs");
    for hub in [&one, &other, &late] {
        assert_eq!(read(hub, "room", Start::Earliest).await, (None, vec![]));
        assert_eq!(read(hub, "room", last.clone()).await, (None, vec![]));
        assert_eq!(read(hub, "room", first.clone()).await.0, Some(GapReason::Evicted));
        assert_eq!(read(hub, "lobby", Start::Earliest).await.1, ["stays"]);
    }

    // The room begins again, and needs history reads after a while.
    let numbers: Vec<_> = (0..MANY).map(|n| n.to_string()).collect();
    late.topic("room").publish_all(numbers.iter().map(Event::new)).await.expect("the backend runs");
    for hub in [&one, &other, &late] {
        assert!(read(hub, "room", Start::Earliest).await == (None, numbers.clone()));
        assert!(read(hub, "room", first.clone()).await == (Some(GapReason::Evicted), numbers.clone()));
    }
}

async fn node_that_was_cut_off_removes_the_topic(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let here = connect_small(kind, &store.url(), 10_000).await.expect("the backend runs");
    let there = connect_small(kind, &store.url_through(&wire), 10_000).await.expect("the backend runs");
    publish(&here, "room", "secret").await;
    assert_eq!(read(&there, "room", Start::Earliest).await.1, ["secret"]);
    wire.cut();
    here.topic("room").remove().await.expect("the backend runs");
    wire.mend();
    wait_for_removal(&there, "room").await;
    assert_eq!(read(&there, "room", Start::Earliest).await, (None, vec![]));
}
