//! Presence on nodes that have missed records of the log, on new nodes that ask for the members,
//! and in topics that are used again.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    presence::{
        GRACE, HOUR, LEASE, SECOND, assert_members, builder, changes, events, evict, join, members, node, nodes,
        records,
    },
    recording_replaced::KeepsEpoch,
    settle,
};
use futures_util::FutureExt;
use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Wake},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::Stream;
use tower_sse::{
    Event,
    hub::{
        Start, Subscription,
        backend::{Backend, Record, RecordKind},
    },
};

/// The number of records that the log retains.
const RETAINED: usize = 20;

/// Appends events of another topic until the log has evicted all records before them.
fn evict_all(shared: &Shared) {
    (0..2 * RETAINED).for_each(|n| shared.append_event("other", &n.to_string()));
}

/// Appends a message about presence, as another node would.
fn append_message(shared: &Shared, message: &str) {
    let event = Event::new(format!("{{\"presence\":{message}}}")).encode();
    shared.append(vec![Record::new("tower-sse/nodes", RecordKind::State, event)]);
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
    evict_all(&shared);
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
    evict_all(&shared);
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

/// The second node lists its members after it has announced the join of the member. No node knows
/// all members at that time.
#[tokio::test(start_paused = true)]
async fn join_has_an_event_if_the_member_also_joins_elsewhere() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _first = join(&hubs[0], "m").await;
    sleep(SECOND).await;
    let _second = join(&hubs[1], "m").await;
    sleep(SECOND).await;
    let _third = node(&shared.connect()).await;
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["m"]).await;
    assert_eq!(events(&shared), ["+m"]);
}

/// A member leaves the first node and then joins the second node. Both nodes have missed earlier
/// records, and one of them works again a second before the other one.
#[tokio::test(start_paused = true)]
async fn last_event_of_a_member_that_moves_during_a_loss_is_its_join() {
    for first in [0, 1] {
        let shared = Shared::new(RETAINED);
        let (hubs, connections) = nodes::<2>(&shared).await;
        let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
        let old = join(&hubs[0], "x").await;
        sleep(SECOND).await;
        connections.iter().for_each(|connection| connection.set(Mode::Lags));
        settle().await;
        evict_all(&shared);
        drop(old);
        sleep(GRACE + SECOND).await;
        let _new = join(&hubs[1], "x").await;
        sleep(SECOND).await;
        connections[first].set(Mode::Works);
        sleep(SECOND).await;
        connections[1 - first].set(Mode::Works);
        sleep(LEASE * 3).await;
        assert_members(&hubs, &["a", "b", "x"]).await;
        assert_eq!(events(&shared)[3..], ["-x", "+x"], "{first}");
    }
}

/// The log has evicted records before the nodes start, so both nodes know all members only after a
/// lease. The second node has not caused the join.
#[tokio::test(start_paused = true)]
async fn member_that_joins_and_leaves_two_nodes_has_events() {
    for first in [0, 1] {
        let shared = Shared::new(RETAINED);
        evict_all(&shared);
        let (hubs, _) = nodes::<2>(&shared).await;
        let one = join(&hubs[first], "x").await;
        sleep(SECOND).await;
        let other = join(&hubs[1 - first], "x").await;
        drop(one);
        sleep(SECOND).await;
        drop(other);
        sleep(LEASE * 3).await;
        assert_members(&hubs, &[]).await;
        assert_eq!(events(&shared), ["+x", "-x"], "{first}");
    }
}

/// The node cannot append the record of the leave. Its next record lists its members, and is read
/// after a loss.
#[tokio::test(start_paused = true)]
async fn leave_that_is_only_in_a_list_has_an_event() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let (a, _b) = (join(&hubs[0], "a").await, join(&hubs[1], "b").await);
    sleep(SECOND).await;
    connections[0].set(Mode::ReadsOnly);
    drop(a);
    sleep(GRACE + SECOND).await;
    evict_all(&shared);
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["b"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "-a"]);
}

/// The event of the join waits until the node knows all members. Meanwhile, the node misses records
/// a second time.
#[tokio::test(start_paused = true)]
async fn pending_event_survives_a_second_loss() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _x = join(&hubs[0], "x").await;
    sleep(SECOND).await;
    drop(join(&hubs[1], "y").await);
    sleep(GRACE + SECOND).await;
    evict_all(&shared);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["x"]).await;
    assert_eq!(events(&shared), ["+x", "+y", "-y"]);
}

/// The topic has no events and no subscribers on the second node, which knows all members earlier
/// than the first node. The second node must not publish the second join without the leave.
#[tokio::test(start_paused = true)]
async fn leave_before_a_join_in_a_quiet_topic_has_an_event() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let x = join(&hubs[0], "x").await;
    sleep(LEASE + SECOND).await;
    evict_all(&shared);
    connections[0].set(Mode::Lags);
    drop(x);
    sleep(SECOND * 2).await;
    connections[0].set(Mode::Works);
    sleep(GRACE).await;
    let _x = join(&hubs[0], "x").await;
    assert!(!hubs[1].topic("lobby").exists());
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["x"]).await;
    assert_eq!(events(&shared), ["+x", "-x", "+x"]);
}

/// All nodes have missed records. One of them cannot list its members, although it is alive.
#[tokio::test(start_paused = true)]
async fn member_of_a_node_that_cannot_answer_stays() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    evict_all(&shared);
    connections[0].set(Mode::ReadsOnly);
    sleep(LEASE + SECOND).await;
    assert_members(&hubs[1..], &["a", "b"]).await;
    connections[0].set(Mode::Works);
    sleep(LEASE * 2).await;
    assert_members(&hubs, &["a", "b"]).await;
    let mut events = events(&shared);
    events.sort();
    assert_eq!(events, ["+a", "+b"]);
}

/// All nodes have missed records. One of them dies before it lists its members.
#[tokio::test(start_paused = true)]
async fn member_of_a_node_that_dies_after_a_loss_leaves() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    evict_all(&shared);
    connections[0].set(Mode::Hangs);
    sleep(LEASE * 2 + GRACE).await;
    assert_members(&hubs[1..], &["b"]).await;
    assert_eq!(events(&shared)[2..], ["-a"]);
}

/// The other node is dead. The local node misses records so often that it requests the members only
/// 8 seconds after its previous request. It then waits for a lease.
#[tokio::test(start_paused = true)]
async fn members_of_a_dead_node_leave_during_a_request() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    connections[1].set(Mode::Hangs);
    for seconds in [0, 3, 5, 1] {
        sleep(SECOND * seconds).await;
        evict_all(&shared);
    }
    sleep(LEASE + GRACE + SECOND).await;
    let begin = Instant::now();
    assert_members(&hubs[..1], &["a"]).await;
    assert!(begin.elapsed() > SECOND / 2, "the node has not known the members before");
}

/// The node is declared dead before it can append the leave of its member. It does not know all
/// members at that time.
#[tokio::test(start_paused = true)]
async fn leave_after_a_death_is_published_once() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let x = join(&hubs[0], "x").await;
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    sleep(LEASE).await;
    let _y = join(&hubs[0], "y").await;
    drop(x);
    sleep(GRACE + SECOND * 2).await;
    assert_eq!(events(&shared), ["+x", "-x"]);
    connections[0].set(Mode::Works);
    sleep(LEASE * 2).await;
    assert_members(&hubs, &["y"]).await;
    assert_eq!(events(&shared), ["+x", "-x", "+y"]);
}

/// The members have joined the other node in records that the log has evicted. One of them is also
/// on the local node, which must not take its join for new.
#[tokio::test(start_paused = true)]
async fn leave_of_an_unknown_member_has_an_event() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<1>(&shared).await;
    let _m = join(&hubs[0], "m").await;
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,7,10000],"changes":[["lobby","m",false],["lobby","q",false]]}"#);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["m"]).await;
    assert_eq!(events(&shared), ["-q"]);
}

/// The first list that the local node reads from another node has the member.
#[tokio::test(start_paused = true)]
async fn join_of_a_member_that_was_present_has_no_event() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<1>(&shared).await;
    let _m = join(&hubs[0], "m").await;
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,7,10000],"first":true,"last":true,"members":[["lobby",["m"]]]}"#);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["m"]).await;
    assert_eq!(events(&shared), [""; 0]);
}

/// Another node lists the member in a record that arrives after a later record of that node.
#[tokio::test(start_paused = true)]
async fn late_list_of_members_does_not_drop_a_join_event() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<1>(&shared).await;
    let _m = join(&hubs[0], "m").await;
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,3,10000],"changes":[["quiet","q",true]]}"#);
    append_message(&shared, r#"{"author":[9,2,10000],"first":true,"last":true,"members":[["lobby",["m"]]]}"#);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["m"]).await;
    assert_eq!(events(&shared), ["+m"]);
}

/// The second list of another node has a member that was not in its first list. The member has
/// joined the local node in between.
#[tokio::test(start_paused = true)]
async fn second_list_of_members_does_not_drop_a_join_event() {
    let shared = Shared::new(RETAINED);
    evict_all(&shared);
    let (hubs, _) = nodes::<1>(&shared).await;
    append_message(&shared, r#"{"author":[9,1,10000],"first":true,"last":true,"members":[["quiet",["q"]]]}"#);
    let _m = join(&hubs[0], "m").await;
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,2,10000],"first":true,"last":true,"members":[["lobby",["m"]]]}"#);
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["m"]).await;
    assert_eq!(events(&shared), ["+m"]);
}

/// All nodes have missed records, and read the rest of a small log in pages of one record. If each
/// page made each node list its members, these lists would evict the records that the nodes have to
/// read next.
#[tokio::test(start_paused = true)]
async fn repeated_losses_do_not_fill_the_log_with_lists() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await, join(&hubs[2], "c").await];
    sleep(SECOND).await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    settle().await;
    evict_all(&shared);
    let before = shared.log().all.len();
    connections.iter().for_each(|connection| {
        connection.page.store(1, Relaxed);
        connection.set(Mode::Works);
    });
    // No time passes meanwhile.
    for _ in 0..100 {
        settle().await;
    }
    let appended = shared.log().all.len() - before;
    assert!(appended <= RETAINED, "{appended} records");
    sleep(SECOND).await;
    let begin = Instant::now();
    assert_members(&hubs, &["a", "b", "c"]).await;
    assert!(begin.elapsed() < LEASE + GRACE, "{:?}", begin.elapsed());
}

/// The record about the death does not have the sign of life that only the local node has read. The
/// new node removes the member, and the local node does not.
#[tokio::test(start_paused = true)]
async fn outdated_death_does_not_remove_a_living_member() {
    let shared = Shared::new(RETAINED);
    let hub = node(&shared.connect()).await;
    let _a = join(&hub, "a").await;
    sleep(SECOND).await;
    evict(&hub).await;
    let hubs = [hub, node(&shared.connect()).await];
    assert_members(&hubs, &["a"]).await;
    let records = records(&shared);
    let list = records.iter().rfind(|record| record.contains("\"members\"")).unwrap();
    let author = &serde_json::from_str::<serde_json::Value>(list).unwrap()["presence"]["author"];
    append_message(&shared, &format!(r#"{{"dead":[{},{},0,9]}}"#, author[0], author[1]));
    sleep(SECOND).await;
    assert_members(&hubs, &["a"]).await;
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

/// The log evicts all records about the members before the new node starts.
#[tokio::test(start_paused = true)]
async fn new_node_asks_for_evicted_members() {
    let shared = Shared::new(20);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _members = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    evict(&hubs[0]).await;
    sleep(SECOND).await;
    let begin = Instant::now();
    let third = node(&shared.connect()).await;
    let mut stream = third.topic("lobby").presence();
    assert_eq!(members(&third).await, ["a", "b"]);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    assert_eq!(changes(&mut stream), ["+a", "+b"]);
    let _c = join(&third, "c").await;
    sleep(SECOND).await;
    assert_members(&hubs, &["a", "b", "c"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "+c"]);
    // There is one request, and one or two rosters (lists of nodes with members). The lists of all
    // members are the two answers, and the first record of each of the three nodes.
    let count = |text: &str| records(&shared).iter().filter(|record| record.contains(text)).count();
    let counts = [count("\"ask\""), count("\"through\""), count("\"members\"")];
    assert!(counts[0] == 1 && counts[1] <= 2 && counts[2] == 5, "{:?}", records(&shared));
}

/// Nodes without members answer, too: they know that no node has members.
#[tokio::test(start_paused = true)]
async fn new_node_without_members_elsewhere_gets_an_answer() {
    let shared = Shared::new(5);
    let (hubs, _) = nodes::<2>(&shared).await;
    evict(&hubs[0]).await;
    let third = node(&shared.connect()).await;
    let begin = Instant::now();
    assert_eq!(members(&third).await, [""; 0]);
    assert!(begin.elapsed() < SECOND);
    // If no other node exists, the new node waits for a lease.
    let [alone] = {
        let shared = Shared::new(5);
        let connection = shared.connect();
        for n in 0..50 {
            let record = Record::new("x", RecordKind::Event, format!("data: {n}\n\n"));
            connection.append(vec![record]).await.unwrap();
        }
        [node(&connection).await]
    };
    let begin = Instant::now();
    let _a = join(&alone, "a").await;
    assert_eq!(members(&alone).await, ["a"]);
    assert!(begin.elapsed() <= LEASE + SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn node_that_missed_evicted_records_has_the_same_members() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let mut kept = vec![join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    let c = join(&hubs[1], "c").await;
    sleep(SECOND).await;
    let mut streams = [0, 1, 2].map(|node| hubs[node].topic("lobby").presence());
    streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["+a", "+b", "+c"]));
    connections[2].set(Mode::Lags);
    sleep(SECOND).await;
    drop(c);
    kept.push(join(&hubs[0], "d").await);
    sleep(GRACE + SECOND).await;
    evict(&hubs[0]).await;
    connections[2].set(Mode::Works);
    sleep(SECOND * 3).await;
    assert_members(&hubs, &["a", "b", "d"]).await;
    // The node that has missed the changes does not know their order. Its stream yields the
    // differences.
    assert_eq!(changes(&mut streams[2]), ["-c", "+d"]);
    assert_eq!(changes(&mut streams[0]), ["+d", "-c"]);
    assert_eq!(events(&shared), ["+a", "+b", "+c", "+d", "-c"]);
}

/// A member joins after a new node has requested the members, and before the other nodes answer.
#[tokio::test(start_paused = true)]
async fn member_that_joins_during_a_request_is_known() {
    let shared = Shared::new(20);
    let (hubs, _) = nodes::<2>(&shared).await;
    evict(&hubs[0]).await;
    let third = node(&shared.connect()).await;
    let begin = Instant::now();
    let asking = tokio::spawn(async move { members(&third).await });
    while !records(&shared).iter().any(|record| record.contains("\"ask\"")) {
        tokio::task::yield_now().await;
    }
    settle().await;
    let _a = join(&hubs[1], "a").await;
    assert_eq!(asking.await.unwrap(), ["a"]);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

/// The node cannot append the leave of its member, and then misses evicted records. The other nodes
/// still have the member, until the node lists its members again.
#[tokio::test(start_paused = true)]
async fn node_that_missed_records_corrects_its_own_members() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<3>(&shared).await;
    drop(join(&hubs[0], "a").await);
    sleep(SECOND).await;
    connections[0].set(Mode::Fails);
    sleep(GRACE).await;
    evict(&hubs[1]).await;
    // The node notices that records were evicted before it can append.
    connections[0].set(Mode::ReadsOnly);
    sleep(SECOND).await;
    let _b = join(&hubs[0], "b").await;
    connections[0].set(Mode::Works);
    sleep(SECOND * 2).await;
    let begin = Instant::now();
    assert_members(&hubs, &["b"]).await;
    let _c = join(&hubs[0], "c").await;
    assert_members(&hubs, &["b", "c"]).await;
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

/// The other log has evicted its first records, and has no records of the node that hangs.
#[tokio::test(start_paused = true)]
async fn members_of_a_silent_node_leave_another_log() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    shared.replace(RETAINED, (0..2 * RETAINED).map(record).collect());
    sleep(LEASE + SECOND).await;
    assert_members(&hubs[1..], &["a", "b"]).await;
    sleep(LEASE + GRACE).await;
    assert_members(&hubs[1..], &["b"]).await;
    assert_eq!(events(&shared), ["-a"]);
}

/// Another log replaces the current one while the node waits until it has read the current one up
/// to its end. The other log never has as many records. It has the members of the dead node.
#[tokio::test(start_paused = true)]
async fn members_of_a_dead_node_leave_a_shorter_log() {
    for milliseconds in (0..4_000).step_by(100) {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = nodes::<2>(&shared).await;
        let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
        sleep(SECOND).await;
        let old = shared.log().held();
        connections[0].set(Mode::Lags);
        settle().await;
        evict_all(&shared);
        sleep(Duration::from_millis(milliseconds)).await;
        connections[1].set(Mode::Hangs);
        shared.replace(PLENTY, old);
        connections[0].set(Mode::Works);
        // The node notices the other log after two seconds at most.
        sleep(LEASE + GRACE + SECOND * 3).await;
        assert_eq!(members(&hubs[0]).await, ["a"], "{milliseconds} ms");
    }
}

/// Another log replaces the current one while the call waits until the node has read the current
/// one up to its end.
#[tokio::test(start_paused = true)]
async fn members_are_returned_from_a_shorter_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<1>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    assert_members(&hubs, &["a"]).await;
    connections[0].set(Mode::Lags);
    settle().await;
    evict_all(&shared);
    let begin = Instant::now();
    let replace = async {
        settle().await;
        shared.replace(PLENTY, Vec::new());
        connections[0].set(Mode::Works);
    };
    tokio::join!(assert_members(&hubs, &["a"]), replace);
    assert!(begin.elapsed() < SECOND * 3, "{:?}", begin.elapsed());
}

/// The log keeps its epoch and loses its newest records while the call waits for the position of
/// its end.
#[tokio::test(start_paused = true)]
async fn members_are_returned_from_a_log_that_has_lost_records() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let hub = builder().backend(KeepsEpoch(connection.clone())).connect().await.unwrap();
    let _a = join(&hub, "a").await;
    assert_eq!(members(&hub).await, ["a"]);
    let kept = shared.log().held();
    evict_all(&shared);
    settle().await;
    // The request has the end of the log before the loss, and takes four seconds.
    connection.latency.store(8_000, Relaxed);
    let mut call = pin!(members(&hub));
    assert!(timeout(SECOND / 10, &mut call).await.is_err());
    connection.latency.store(0, Relaxed);
    shared.replace(PLENTY, kept);
    connection.set(Mode::Fails);
    settle().await;
    connection.set(Mode::Works);
    let begin = Instant::now();
    assert_eq!(call.await, ["a"]);
    assert!(begin.elapsed() < SECOND * 6, "{:?}", begin.elapsed());
}

/// A node misses records directly after the last sign of life of another node. The third node knows
/// all members, so it has to declare the death: it publishes the leave.
#[tokio::test(start_paused = true)]
async fn leave_has_an_event_if_a_node_does_not_know_all_members() {
    for _ in 0..10 {
        let shared = Shared::new(RETAINED);
        let (hubs, connections) = nodes::<3>(&shared).await;
        let _b = join(&hubs[2], "b").await;
        sleep(HOUR * 2).await;
        assert!(!hubs[1].topic("lobby").exists(), "a topic without events and subscribers is dropped");
        let signs = || shared.log().all.values().filter(|record| &*record.topic == "tower-sse/nodes").count();
        let before = signs();
        while signs() == before {
            sleep(SECOND / 1000).await;
        }
        settle().await;
        connections[2].set(Mode::Hangs);
        connections[0].set(Mode::Lags);
        settle().await;
        shared.append_event("other", "missed");
        connections[0].missed.store(shared.log().bounds.last.get(), Relaxed);
        connections[0].set(Mode::Works);
        sleep(LEASE + GRACE + SECOND * 5).await;
        assert_members(&hubs[..2], &[]).await;
        assert_eq!(events(&shared), ["+b", "-b"]);
    }
}

/// The backend refuses events. After that, the node does not read a record of the topic for more
/// than a minute. Then the backend refuses events again.
#[tokio::test(start_paused = true)]
async fn unread_record_does_not_count_as_refusal() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<1>(&shared).await;
    let connection = &connections[0];
    connection.max_bytes.store(0, Relaxed);
    let _members = [join(&hubs[0], "a").await, join(&hubs[0], "b").await];
    sleep(SECOND * 2).await;
    assert!(connection.asked.refusals.load(Relaxed) > 1);
    connection.set(Mode::Lags);
    shared.append_event("lobby", "foreign");
    connection.max_bytes.store(usize::MAX, Relaxed);
    sleep(SECOND * 70).await;
    connection.max_bytes.store(0, Relaxed);
    sleep(SECOND * 3).await;
    connection.max_bytes.store(usize::MAX, Relaxed);
    connection.set(Mode::Works);
    sleep(SECOND * 5).await;
    assert_eq!(events(&shared), ["foreign", "+a", "+b"]);
}

/// Another log replaces the current one while a node is cut off. The new log contains old records
/// of both nodes, with a member that has left since.
#[tokio::test(start_paused = true)]
async fn node_that_is_late_in_another_log_corrects_its_own_members() {
    let shared = Shared::new(40);
    let (hubs, connections) = nodes::<2>(&shared).await;
    evict(&hubs[0]).await;
    let _a = join(&hubs[0], "a").await;
    let b = join(&hubs[1], "b").await;
    sleep(SECOND).await;
    connections[1].set(Mode::Fails);
    drop(b);
    sleep(SECOND).await;
    let mut kept = shared.log().held();
    kept.insert(0, kept[0].clone());
    shared.replace(kept.len() - 1, kept);
    sleep(LEASE + SECOND).await;
    let _c = join(&hubs[1], "c").await;
    connections[1].set(Mode::Works);
    sleep(SECOND * 3).await;
    let begin = Instant::now();
    assert_members(&hubs, &["a", "c"]).await;
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

/// A new node requests the members before another node has appended the leave of its last member.
/// The other node has no members any more, but still answers. It sends signs of life because of a
/// recording.
#[tokio::test(start_paused = true)]
async fn node_whose_members_have_left_answers() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _recording = hubs[0].topic("recorded").record(tokio_stream::pending::<Event>()).start();
    drop(join(&hubs[0], "a").await);
    sleep(SECOND).await;
    evict(&hubs[1]).await;
    sleep(GRACE - SECOND * 2).await;
    connections[0].set(Mode::Hangs);
    sleep(SECOND * 2).await;
    let third = node(&shared.connect()).await;
    let asking = tokio::spawn(async move { (members(&third).await, third) });
    sleep(SECOND / 2).await;
    let begin = Instant::now();
    connections[0].set(Mode::Works);
    let (members_of_third, _third) = asking.await.unwrap();
    assert!(members_of_third.is_empty() && begin.elapsed() < SECOND * 2, "{:?}", begin.elapsed());
    evict(&hubs[1]).await;
    let begin = Instant::now();
    let fourth = node(&shared.connect()).await;
    assert!(members(&fourth).await.is_empty());
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

/// The new node cannot know all members before the dead node is declared dead. Its own members are
/// present on the other nodes at once.
#[tokio::test(start_paused = true)]
async fn members_of_a_dead_node_can_reconnect_to_a_new_node() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let mut stream = hubs[1].topic("lobby").presence();
    let _old = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    evict(&hubs[1]).await;
    connections[0].set(Mode::Hangs);
    let new = node(&shared.connect()).await;
    let _new = [join(&new, "a").await, join(&new, "b").await];
    sleep(SECOND).await;
    assert_members(&hubs[1..], &["a", "b"]).await;
    assert_eq!(events(&shared), ["+a", "+b"]);
    assert!(new.topic("lobby").members().now_or_never().is_none(), "it does not know the members of the dead node");
    sleep(LEASE * 2 + GRACE).await;
    assert_members(&[hubs[1].clone(), new], &["a", "b"]).await;
    assert_eq!((changes(&mut stream), events(&shared)), (vec!["+a".into(), "+b".into()], events(&shared)));
    assert_eq!(events(&shared), ["+a", "+b"]);
}

/// The new node reads the roster (the list of nodes with members) of one node first, and the answer
/// of the other node later.
#[tokio::test(start_paused = true)]
async fn late_answer_of_a_node_is_no_change() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    evict(&hubs[1]).await;
    connections[0].set(Mode::ReadsOnly);
    let third = node(&shared.connect()).await;
    let lobby = third.topic("lobby");
    let members_of_third = tokio::spawn(async move { lobby.members().await });
    sleep(SECOND).await;
    assert!(records(&shared).last().unwrap().contains("\"through\""));
    connections[0].set(Mode::Works);
    assert_eq!(members_of_third.await.unwrap().unwrap(), [std::sync::Arc::from("a")]);
    sleep(SECOND * 3).await;
    assert_eq!(events(&shared), ["+a"]);
}

/// No other node knows the members, so the new node publishes the events of its own members as soon
/// as it knows all members.
#[tokio::test(start_paused = true)]
async fn single_node_publishes_events_after_its_restart() {
    let shared = Shared::new(20);
    let (mut hubs, connections) = nodes::<1>(&shared).await;
    evict(&hubs[0]).await;
    connections[0].set(Mode::Hangs);
    hubs[0] = node(&shared.connect()).await;
    let _a = join(&hubs[0], "a").await;
    let b = join(&hubs[0], "b").await;
    sleep(SECOND).await;
    drop(b);
    assert_eq!(events(&shared), [""; 0]);
    sleep(LEASE + SECOND).await;
    assert_members(&hubs, &["a"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "-b"]);
}

/// The new node appends a single request, although one node does not answer until its death.
#[tokio::test(start_paused = true)]
async fn new_node_asks_once_while_another_node_is_silent() {
    let shared = Shared::new(20);
    let start = async |connection: &Faulty| {
        let builder = builder().presence_lease(Duration::from_millis(100));
        builder.backend(connection.clone()).connect().await.unwrap()
    };
    let connections = [shared.connect(), shared.connect()];
    let hubs = [start(&connections[0]).await, start(&connections[1]).await];
    let _members = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    evict(&hubs[1]).await;
    connections[0].set(Mode::Hangs);
    let third = start(&shared.connect()).await;
    assert_eq!(members(&third).await, ["b"]);
    let count = |text: &str| records(&shared).iter().filter(|record| record.contains(text)).count();
    assert_eq!([count("\"ask\""), count("\"members\"")], [1, 3], "{:?}", records(&shared));
}

/// A new node waits for a lease. The members that it does not know would be missing.
#[tokio::test(start_paused = true)]
async fn new_node_has_the_members_of_a_node_with_a_long_grace_time() {
    let shared = Shared::new(20);
    let hour = || builder().presence_grace(SECOND * 3600);
    let first = hour().backend(shared.connect()).connect().await.unwrap();
    let _a = join(&first, "a").await;
    drop(join(&first, "b").await);
    sleep(SECOND).await;
    evict(&first).await;
    let second = hour().backend(shared.connect()).connect().await.unwrap();
    assert_eq!(members(&second).await, ["a", "b"]);
    sleep(LEASE * 2).await;
    assert_members(&[first, second], &["a", "b"]).await;
    assert_eq!(events(&shared), ["+a", "+b"]);
}

/// All nodes miss the same records, so no node can answer the others.
#[tokio::test(start_paused = true)]
async fn members_do_not_join_again_after_all_nodes_have_missed_records() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    assert_members(&hubs, &["a", "b"]).await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    for n in 0..50 {
        shared.connect().append(vec![record(n)]).await.unwrap();
    }
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    let _c = join(&hubs[0], "c").await;
    sleep(LEASE * 3).await;
    assert_members(&hubs, &["a", "b", "c"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "+c"]);
}

/// The node reads each record 1.5 seconds late, so it is never at the end of the log.
#[tokio::test(start_paused = true)]
async fn node_behind_a_busy_log_announces_members() {
    let shared = Shared::new(100);
    let connection = shared.connect();
    for n in 0..200 {
        connection.append(vec![record(n)]).await.unwrap();
    }
    connection.lag.store(1500, Relaxed);
    let hub = node(&connection).await;
    let busy = shared.clone();
    let publisher = tokio::spawn(async move {
        loop {
            busy.append_event("other", "x");
            sleep(SECOND / 10).await;
        }
    });
    let _kept = join(&hub, "a").await;
    sleep(LEASE * 2).await;
    let _later = join(&hub, "b").await;
    assert_members(&[hub], &["a", "b"]).await;
    assert_eq!(events(&shared), ["+a", "+b"]);
    publisher.abort();
}

fn record(n: usize) -> Record {
    Record::new("other", RecordKind::Event, format!("data: {n}\n\n"))
}

/// The announcer has nothing to do until the end of the grace time, which is an hour away.
#[tokio::test(start_paused = true)]
async fn join_after_a_failed_answer_is_announced() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let first = builder().presence_grace(SECOND * 3600).backend(connection.clone()).connect().await.unwrap();
    let second = node(&shared.connect()).await;
    let _reader = first.topic("jobs").subscribe(Start::Latest).await.unwrap();
    drop(join(&first, "a").await);
    sleep(SECOND).await;
    connection.set(Mode::ReadsOnly);
    assert!(!second.topic("jobs").exists_anywhere().await.unwrap());
    connection.set(Mode::Works);
    let _b = join(&first, "b").await;
    sleep(SECOND).await;
    assert_eq!(members(&second).await, ["a", "b"]);
    assert!(second.topic("jobs").exists_anywhere().await.unwrap());
}

/// The node with all members cannot append its roster, the list of nodes with members, at first.
#[tokio::test(start_paused = true)]
async fn join_is_not_repeated_after_a_failed_roster() {
    for mode in [Mode::ReadsOnly, Mode::LosesAnswers] {
        let shared = Shared::new(20);
        let (hubs, connections) = nodes::<1>(&shared).await;
        let _old = join(&hubs[0], "a").await;
        sleep(SECOND).await;
        evict(&hubs[0]).await;
        connections[0].set(mode);
        let second = node(&shared.connect()).await;
        let _new = join(&second, "a").await;
        sleep(SECOND).await;
        connections[0].set(Mode::Works);
        sleep(LEASE * 2).await;
        assert_members(&[hubs[0].clone(), second], &["a"]).await;
        assert_eq!(events(&shared), ["+a"], "{mode:?}");
    }
}

/// The node has no members of its own, so after the loss it sends no signs of life, and reads no
/// record of another node.
#[tokio::test(start_paused = true)]
async fn node_without_members_declares_deaths_after_a_loss() {
    for seconds in [0, 12] {
        let shared = Shared::new(RETAINED);
        let (hubs, connections) = nodes::<2>(&shared).await;
        let _a = join(&hubs[0], "a").await;
        sleep(SECOND).await;
        let mut stream = hubs[1].topic("lobby").presence();
        assert_eq!(changes(&mut stream), ["+a"]);
        connections[0].set(Mode::Hangs);
        sleep(SECOND * seconds).await;
        evict_all(&shared);
        sleep(LEASE * 4).await;
        assert_eq!(changes(&mut stream), ["-a"], "{seconds}");
        assert_eq!(events(&shared), ["+a", "-a"], "{seconds}");
        assert_members(&hubs[1..], &[]).await;
    }
}

/// Another node lists its members in three parts. The log evicts the second part before it is read.
#[tokio::test(start_paused = true)]
async fn incomplete_list_of_members_is_forgotten_after_a_loss() {
    let shared = Shared::new(RETAINED);
    let (_hubs, _) = nodes::<1>(&shared).await;
    append_message(
        &shared,
        r#"{"author":[9,1,10000],"first":true,"last":true,"new":true,"members":[["lobby",["m","n"]]]}"#,
    );
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,2,10000],"first":true,"last":false,"members":[["lobby",["m"]]]}"#);
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,2,10000],"first":false,"last":false,"members":[["lobby",["n"]]]}"#);
    evict_all(&shared);
    append_message(&shared, r#"{"author":[9,2,10000],"first":false,"last":true,"members":[]}"#);
    sleep(SECOND).await;
    append_message(&shared, r#"{"author":[9,3,10000],"first":true,"last":true,"members":[["lobby",["m","n"]]]}"#);
    sleep(LEASE + SECOND).await;
    assert_eq!(events(&shared), ["+m", "+n"]);
}

/// A record declares another node dead, although the local node has read a later record of it. The
/// local node has missed records in between.
#[tokio::test(start_paused = true)]
async fn outdated_death_after_a_loss_removes_no_members() {
    let shared = Shared::new(RETAINED);
    let (hubs, _) = nodes::<1>(&shared).await;
    let _kept = join(&hubs[0], "k").await;
    sleep(SECOND).await;
    append_message(
        &shared,
        r#"{"author":[9,2,10000],"first":true,"last":true,"new":true,"members":[["lobby",["m"]]]}"#,
    );
    sleep(SECOND).await;
    evict_all(&shared);
    sleep(SECOND).await;
    append_message(&shared, r#"{"dead":[9,1,0,8]}"#);
    sleep(LEASE).await;
    assert_members(&hubs, &["k", "m"]).await;
    sleep(LEASE).await;
    assert_members(&hubs, &["k"]).await;
    assert_eq!(events(&shared), ["+k", "+m", "-m"]);
}

#[tokio::test(start_paused = true)]
async fn stream_is_not_woken_while_members_are_unknown() {
    let shared = Shared::new(20);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    let mut stream = hubs[1].topic("lobby").presence();
    assert_eq!(changes(&mut stream), ["+a"]);
    connections[1].set(Mode::Lags);
    evict(&hubs[0]).await;
    let wakes = std::sync::Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    let mut poll = || Pin::new(&mut stream).poll_next(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    // The node cannot ask for the members.
    connections[1].set(Mode::ReadsOnly);
    sleep(SECOND * 3).await;
    assert_eq!(wakes.0.load(Relaxed), 0);
    connections[1].set(Mode::Works);
    sleep(SECOND * 3).await;
    assert!(poll().is_pending(), "the members are the same");
    assert!(wakes.0.load(Relaxed) <= 1);
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}
