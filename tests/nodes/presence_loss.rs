//! Presence on nodes that have missed records of the log, and in topics that are used again.

use super::{
    PLENTY,
    faulty::{Mode, Shared},
    presence::{GRACE, HOUR, LEASE, SECOND, assert_members, events, join, node, nodes, records},
    settle,
};
use tokio::time::sleep;
use tower_sse::{
    Event,
    hub::{Start, Subscription},
};

/// The number of records that the log retains.
const RETAINED: usize = 20;

/// Appends events of another topic until the log has evicted all records before them.
fn evict(shared: &Shared) {
    (0..2 * RETAINED).for_each(|n| shared.append_event("other", &n.to_string()));
}

/// No node has read the records before a join and a leave. Both have their events.
#[tokio::test(start_paused = true)]
async fn changes_after_records_that_all_nodes_have_missed_have_events() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let (_a, b) = (join(&hubs[0], "a").await, join(&hubs[1], "b").await);
    sleep(SECOND).await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    settle().await;
    evict(&shared);
    drop(b);
    let _c = join(&hubs[0], "c").await;
    sleep(GRACE + SECOND).await;
    let appended = records(&shared);
    assert!(appended.iter().any(|record| record.contains("[\"lobby\",\"b\",false]")), "{appended:?}");
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["a", "c"]).await;
    assert_eq!(events(&shared)[..2], ["+a", "+b"]);
    let mut new = events(&shared).split_off(2);
    new.sort();
    assert_eq!(new, ["+c", "-b"]);
}

/// A member of the second node joins and leaves on the first node. The first node does not know the
/// members of the second node meanwhile.
#[tokio::test(start_paused = true)]
async fn member_of_a_node_that_answers_late_does_not_leave() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    settle().await;
    evict(&shared);
    connections[1].set(Mode::ReadsOnly);
    connections[0].set(Mode::Works);
    sleep(SECOND).await;
    drop(join(&hubs[0], "b").await);
    sleep(GRACE + SECOND).await;
    connections[1].set(Mode::Works);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["a", "b"]).await;
    assert_eq!(events(&shared), ["+a", "+b"]);
}

/// The topic was finished, removed and used again. Then its events have expired.
#[tokio::test(start_paused = true)]
async fn leave_in_a_topic_that_is_used_again_has_an_event() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let lobby = hubs[0].topic("lobby");
    let reader: Subscription = hubs[0].topic("other").subscribe(Start::Latest).await.unwrap();
    let a = lobby.join("a", reader).unwrap();
    sleep(SECOND).await;
    lobby.finish().await.unwrap();
    lobby.remove().await.unwrap();
    lobby.publish(Event::new("again")).await.unwrap();
    sleep(HOUR * 2).await;
    assert!(!lobby.exists());
    drop(a);
    sleep(GRACE + SECOND).await;
    assert_members(&hubs, &[]).await;
    assert_eq!(events(&shared), ["+a", "", "", "again", "-a"]);
}

/// The other log has evicted all of its records, so the node gets no page of it.
#[tokio::test(start_paused = true)]
async fn stream_asks_for_members_in_a_log_without_records() {
    let shared = Shared::new(PLENTY);
    let hub = node(&shared.connect()).await;
    let _stream = hub.topic("lobby").presence();
    shared.append_event("other", "x");
    sleep(SECOND).await;
    shared.replace(0, shared.log().held());
    sleep(SECOND * 3).await;
    assert!(records(&shared).iter().any(|record| record.contains("\"ask\"")), "{:?}", records(&shared));
}
