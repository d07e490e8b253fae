//! Records that are missing in the middle of the log, because an operator has deleted them, or
//! because a server has lost them. The log still retains the records before them.

use super::{Faulty, Mode, PLENTY, Shared, data_soon, hub, publish, settle, subscribe};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    EventId,
    hub::{GapReason, Hub, Start},
};

/// Creates a log with one event of each of the topics `first`, `deleted` and `news`, where the
/// event of `deleted` is deleted. Returns their ids, and a node that starts after that.
async fn node_after_deletion(shared: &Shared) -> ([EventId; 3], Hub, Faulty) {
    let publisher = hub(shared.connect()).await;
    let first = publish(&publisher, "first", "first").await;
    let deleted = publish(&publisher, "deleted", "deleted").await;
    shared.delete(2);
    let news = publish(&publisher, "news", "news").await;
    let connection = shared.connect();
    let node = hub(connection.clone()).await;
    ([first, deleted, news], node, connection)
}

#[tokio::test(start_paused = true)]
async fn topics_before_deleted_record_exist_in_log() {
    let (_, node, _) = node_after_deletion(&Shared::new(PLENTY)).await;
    for (topic, is_retained) in [("first", true), ("deleted", false), ("news", true), ("never", false)] {
        assert_eq!(node.topic(topic).exists_in_log().await.unwrap(), is_retained, "{topic}");
    }
}

#[tokio::test(start_paused = true)]
async fn earliest_start_replays_events_before_deleted_record() {
    let (_, node, _) = node_after_deletion(&Shared::new(PLENTY)).await;
    let both = node.subscribe(["first", "news"], Start::Earliest).await.unwrap();
    assert_eq!(data_soon(&mut task::spawn(both)).await, ["first", "lagged", "news"]);
    assert_eq!(data_soon(&mut subscribe(&node, "first", Start::Earliest).await).await[0], "first");
}

#[tokio::test(start_paused = true)]
async fn returning_client_gets_gap_at_deleted_record() {
    let ([first, deleted, _], node, _) = node_after_deletion(&Shared::new(PLENTY)).await;
    let start = EventId::new(first.as_str().replace("-1", "-0")).unwrap();
    let topics = ["first", "deleted", "news"];
    let back = node.subscribe(topics, start).await.unwrap();
    assert!(back.is_resumed(), "the log retains the next event");
    assert_eq!(data_soon(&mut task::spawn(back)).await, ["first", "lagged", "news"]);
    let back = node.subscribe(topics, first.clone()).await.unwrap();
    assert_eq!(back.gap().map(|gap| (gap.reason(), gap.requested())), Some((GapReason::Evicted, &first)));
    assert_eq!(data_soon(&mut task::spawn(back)).await, ["evicted", "news"]);
    let back = node.subscribe(topics, deleted).await.unwrap();
    assert!(back.is_resumed(), "the client has the deleted event");
    assert_eq!(data_soon(&mut task::spawn(back)).await, ["news"]);
}

/// The records before the deleted record are evicted later. The first read finds that.
#[tokio::test(start_paused = true)]
async fn evicted_records_before_deleted_record_need_no_read() {
    let shared = Shared::new(3);
    let ([first, ..], node, connection) = node_after_deletion(&shared).await;
    for n in 0..3 {
        publish(&node, "news", n).await;
    }
    settle().await;
    let mut back = subscribe(&node, "first", first.clone()).await;
    assert_eq!(data_soon(&mut back).await, ["evicted"]);
    connection.asked.reads.store(0, Relaxed);
    let mut back = subscribe(&node, "first", first).await;
    assert_eq!(data_soon(&mut back).await, ["evicted"]);
    assert_eq!(connection.asked.reads.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn live_subscriber_gets_one_gap_per_deleted_record() {
    let shared = Shared::new(PLENTY);
    let (publisher, connection) = (hub(shared.connect()).await, shared.connect());
    let node = hub(connection.clone()).await;
    let mut live = subscribe(&node, "news", Start::Latest).await;
    let mut expected = Vec::new();
    for n in 0..3 {
        connection.set(Mode::Lags);
        publish(&publisher, "news", "deleted").await;
        shared.delete(shared.log().bounds.last.get());
        publish(&publisher, "news", n).await;
        sleep(Duration::from_secs(30)).await;
        connection.set(Mode::Works);
        expected.extend(["lagged".to_owned(), n.to_string()]);
        assert_eq!(data_soon(&mut live).await, expected[2 * n..]);
    }
    assert_eq!(node.stats().gaps, 3);
}

/// A removal hides the records of its topic, also those before a record that was deleted later.
#[tokio::test(start_paused = true)]
async fn removed_events_before_deleted_record_stay_hidden() {
    let shared = Shared::new(PLENTY);
    let publisher = hub(shared.connect()).await;
    let oldest = publish(&publisher, "old", "old").await;
    publish(&publisher, "removed", "removed").await;
    publisher.topic("removed").remove().await.unwrap();
    publish(&publisher, "deleted", "deleted").await;
    shared.delete(4);
    publish(&publisher, "removed", "again").await;
    let node = hub(shared.connect()).await;
    let all = node.subscribe(["old", "removed"], Start::Earliest).await.unwrap();
    assert_eq!(data_soon(&mut task::spawn(all)).await, ["old", "lagged", "again"]);
    let mut back = subscribe(&node, "removed", oldest).await;
    assert_eq!(data_soon(&mut back).await, ["evicted", "again"]);
}
