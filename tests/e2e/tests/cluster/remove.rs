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
/// No further event may arrive within this time.
const A_WHILE: Duration = Duration::from_millis(500);
/// More events of a topic than a node retains.
const MANY: usize = 3000;

async fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    hub.topic(topic).publish(Event::new(data)).await.expect("the backend runs")
}

/// The reason of the gap that a client gets, and the data of its events.
type Read = (Option<GapReason>, Vec<String>);

/// Subscribes to a topic, and waits until the client has the events of `expected`. Then asserts
/// that it gets exactly these.
async fn assert_read(hub: &Hub, topic: &str, start: impl Into<Start>, expected: Read) {
    let mut subscription = hub.topic(topic).subscribe(start).await.expect("a subscription");
    let gap = subscription.gap().map(|gap| gap.reason());
    let mut data = Vec::new();
    loop {
        let limit = if data.len() < expected.1.len() { SOON } else { A_WHILE };
        let Ok(Some(events)) = timeout(limit, subscription.next()).await else { break };
        let messages = whatwg::parse_after("", events.expect("no error").as_bytes()).messages.into_iter();
        data.extend(messages.filter(|message| message.r#type == "message").map(|message| message.data));
    }
    let summary = |data: &[String]| format!("{} events, {:?} to {:?}", data.len(), data.first(), data.last());
    assert_eq!((gap, summary(&data)), (expected.0, summary(&expected.1)), "{topic}");
    assert!(data == expected.1, "the order is wrong: {data:?}");
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
        assert_read(hub, "room", Start::Earliest, (None, vec![])).await;
        assert_read(hub, "room", last.clone(), (None, vec![])).await;
        assert_read(hub, "room", first.clone(), (Some(GapReason::Evicted), vec![])).await;
        assert_read(hub, "lobby", Start::Earliest, (None, vec!["stays".to_owned()])).await;
    }

    // The room begins again, and needs history reads after a while.
    let numbers: Vec<_> = (0..MANY).map(|n| n.to_string()).collect();
    late.topic("room").publish_all(numbers.iter().map(Event::new)).await.expect("the backend runs");
    for hub in [&one, &other, &late] {
        assert_read(hub, "room", Start::Earliest, (None, numbers.clone())).await;
        assert_read(hub, "room", first.clone(), (Some(GapReason::Evicted), numbers.clone())).await;
    }
}

async fn node_that_was_cut_off_removes_the_topic(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let here = connect_small(kind, &store.url(), 10_000).await.expect("the backend runs");
    let there = connect_small(kind, &store.url_through(&wire), 10_000).await.expect("the backend runs");
    publish(&here, "room", "secret").await;
    assert_read(&there, "room", Start::Earliest, (None, vec!["secret".to_owned()])).await;
    wire.cut();
    here.topic("room").remove().await.expect("the backend runs");
    wire.mend();
    wait_for_removal(&there, "room").await;
    assert_read(&there, "room", Start::Earliest, (None, vec![])).await;
}
