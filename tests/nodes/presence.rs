//! Presence on several nodes: all nodes have the same members. Each join and each leave is
//! published as an event once and in order, in spite of failures of nodes and of the backend.

use super::{
    PLENTY, data_soon,
    faulty::{Faulty, Mode, Shared},
    settle,
};
use futures_util::FutureExt;
use std::{
    collections::BTreeSet,
    sync::{atomic::Ordering::Relaxed, mpsc},
    thread,
    time::Duration,
};
use tokio::{
    runtime,
    time::{Instant, sleep, timeout},
};
use tokio_stream::StreamExt;
use tokio_test::task;
use tower_sse::{
    Event,
    hub::{
        Builder, Error, ErrorKind, Hub, Presence, PresenceStream, Start, Subscription,
        backend::{Backend, Record, RecordKind},
    },
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The maximum age of events, after which a topic without subscribers is dropped.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const LEASE: Duration = Duration::from_secs(10);
pub(crate) const GRACE: Duration = Duration::from_secs(5);

fn text(change: &Presence) -> String {
    match change {
        Presence::Joined { member, .. } => format!("+{member}"),
        Presence::Left { member, .. } => format!("-{member}"),
        _ => panic!("{change:?}"),
    }
}

pub(crate) fn builder() -> Builder {
    Hub::builder().presence_events(|_, change| Some(Event::new(text(change))))
}

pub(crate) async fn nodes<const N: usize>(shared: &Shared) -> ([Hub; N], [Faulty; N]) {
    let connections = [(); N].map(|()| shared.connect());
    let mut hubs = Vec::new();
    for connection in &connections {
        hubs.push(node(connection).await);
    }
    (hubs.try_into().expect("there are N"), connections)
}

pub(crate) async fn node(connection: &Faulty) -> Hub {
    builder().backend(connection.clone()).connect().await.unwrap()
}

pub(crate) async fn join(hub: &Hub, member: &str) -> Subscription {
    let lobby = hub.topic("lobby");
    lobby.join(member, lobby.subscribe(Start::Latest).await.unwrap()).unwrap()
}

pub(crate) async fn members(hub: &Hub) -> Vec<String> {
    let members = timeout(SECOND * 60, hub.topic("lobby").members()).await.expect("it is bounded").unwrap();
    members.iter().map(ToString::to_string).collect()
}

/// Asserts that the topic `lobby` has the members `expected` on each node.
pub(crate) async fn assert_members(hubs: &[Hub], expected: &[&str]) {
    for (number, hub) in hubs.iter().enumerate() {
        assert_eq!(members(hub).await, expected, "node {number}");
    }
}

/// Publishes 50 events to another topic, one at a time, so that a small log evicts all earlier
/// records.
pub(crate) async fn evict(hub: &Hub) {
    for n in 0..50 {
        hub.topic("other").publish(Event::display(n)).await.unwrap();
        settle().await;
    }
}

pub(crate) fn changes(stream: &mut PresenceStream) -> Vec<String> {
    let mut changes = Vec::new();
    while let Some(Some(change)) = stream.next().now_or_never() {
        changes.push(text(&change));
    }
    changes
}

/// Returns the data of all records of a topic that were ever appended to the log, also of evicted
/// ones.
fn log(shared: &Shared, topic: &str) -> Vec<String> {
    let data = |record: &Record| {
        let text = String::from_utf8(record.event.to_vec()).unwrap();
        text.trim_start_matches("data: ").trim_end().to_owned()
    };
    shared.log().all.values().filter(|record| *record.topic == *topic).map(data).collect()
}

pub(crate) fn events(shared: &Shared) -> Vec<String> {
    log(shared, "lobby")
}

/// Returns the data of all records about members that were ever appended to the log.
pub(crate) fn records(shared: &Shared) -> Vec<String> {
    let mut records = log(shared, "tower-sse/nodes");
    records.retain(|record| record.starts_with("{\"presence\":"));
    records
}

/// Asserts that the joins (`+`) and leaves (`-`) of each member in `events` alternate. Returns the
/// members after the last event.
pub(crate) fn replay(events: &[String]) -> BTreeSet<String> {
    let mut present = BTreeSet::new();
    for event in events {
        let (change, member) = event.split_at(1);
        let is_change = if change == "+" { present.insert(member.to_owned()) } else { present.remove(member) };
        assert!(is_change, "{event} is repeated or missing in {events:?}");
    }
    present
}

#[tokio::test(start_paused = true)]
async fn all_nodes_have_the_same_members_and_events() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<3>(&shared).await;
    let mut streams = [0, 1, 2].map(|node| hubs[node].topic("lobby").presence());
    streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), [""; 0]));
    let b = join(&hubs[1], "b").await;
    // The node has appended the join before it returns the members.
    assert_eq!(members(&hubs[1]).await, ["b"]);
    let _a = [join(&hubs[0], "a").await, join(&hubs[2], "a").await];
    assert_members(&hubs, &["a", "b"]).await;
    streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["+b", "+a"]));
    drop(b);
    sleep(GRACE - SECOND).await;
    assert_members(&hubs, &["a", "b"]).await;
    sleep(SECOND * 2).await;
    assert_members(&hubs, &["a"]).await;
    streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["-b"]));
    assert_eq!(events(&shared), ["+b", "+a", "-b"]);
}

#[tokio::test(start_paused = true)]
async fn reconnect_to_another_node_is_no_change() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<3>(&shared).await;
    let mut stream = hubs[2].topic("lobby").presence();
    let mut subscription = join(&hubs[0], "a").await;
    for round in 1..10 {
        drop(subscription);
        sleep(GRACE - SECOND).await;
        subscription = join(&hubs[round % 3], "a").await;
        sleep(SECOND * 2).await;
    }
    assert_eq!((changes(&mut stream), events(&shared)), (vec!["+a".to_owned()], vec!["+a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn join_costs_the_same_with_ten_thousand_members() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let mut all = Vec::new();
    let mut sizes = Vec::new();
    for n in 0..10_000 {
        all.push(join(&hubs[n % 2], &format!("member {n:05}")).await);
        // The node appends one record for each join if it has the time.
        settle().await;
    }
    let appended = shared.log().all.len();
    for n in [10_000, 10_001] {
        let before = shared.log().all.len();
        all.push(join(&hubs[n % 2], &format!("member {n:05}")).await);
        settle().await;
        let new: Vec<_> = records(&shared).into_iter().skip(records(&shared).len() - 1).collect();
        // The record about the join, and its event.
        assert_eq!(shared.log().all.len() - before, 2, "{new:?}");
        sizes.push(new[0].len());
    }
    assert!(sizes.iter().all(|size| *size < 150), "{sizes:?}");
    // The time is paused, so there are no signs of life in between. The records are a join and an
    // event for each member, and the first sign of life of each node.
    assert!(appended <= 20_002, "{appended}");
    assert!(records(&shared).iter().all(|record| record.len() < 150));
    // Further subscriptions of the same members append no record.
    let before = shared.log().all.len();
    for n in 0..100 {
        all.push(join(&hubs[n % 2], &format!("member {n:05}")).await);
    }
    settle().await;
    assert_eq!(shared.log().all.len(), before);
    assert_eq!(members(&hubs[0]).await.len(), 10_002);
    assert_eq!(members(&hubs[0]).await, members(&hubs[1]).await);
    // A new node reads the members in the log.
    let third = node(&shared.connect()).await;
    assert_eq!(members(&third).await.len(), 10_002);
}

#[tokio::test(start_paused = true)]
async fn members_of_a_dead_node_leave_after_lease_and_grace() {
    for round in 0..10 {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = nodes::<3>(&shared).await;
        let _members = [join(&hubs[0], "a").await, join(&hubs[0], "b").await, join(&hubs[1], "b").await];
        sleep(Duration::from_millis(500 + 537 * round)).await;
        let mut streams = [1, 2].map(|node| hubs[node].topic("lobby").presence());
        streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["+a", "+b"]));
        connections[0].set(Mode::Hangs);
        // The node has appended its last sign of life at most a third of the lease ago.
        sleep(LEASE * 2 / 3 + GRACE - SECOND).await;
        assert_members(&hubs[1..], &["a", "b"]).await;
        sleep(LEASE / 3 + SECOND * 2).await;
        assert_members(&hubs[1..], &["b"]).await;
        streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["-a"]));
        assert_eq!(events(&shared), ["+a", "+b", "-a"]);
        // The node was not dead, but only cut off.
        connections[0].set(Mode::Works);
        sleep(SECOND * 2).await;
        assert_members(&hubs, &["a", "b"]).await;
        streams.iter_mut().for_each(|stream| assert_eq!(changes(stream), ["+a"]));
        assert_eq!(events(&shared), ["+a", "+b", "-a", "+a"]);
        sleep(LEASE * 3).await;
        assert_members(&hubs, &["a", "b"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn members_of_a_dead_node_can_reconnect_elsewhere() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _old = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    sleep(LEASE).await;
    let _new = join(&hubs[1], "a").await;
    sleep(LEASE * 2).await;
    assert_members(&hubs[1..], &["a"]).await;
    assert_eq!(events(&shared), ["+a"]);
}

#[tokio::test(start_paused = true)]
async fn joins_and_leaves_wait_for_the_end_of_an_outage() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let a = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    for mode in [Mode::Fails, Mode::Hangs, Mode::LosesAnswers] {
        connections.iter().for_each(|connection| connection.set(mode));
        let b = join(&hubs[0], "b").await;
        let _c = join(&hubs[1], "c").await;
        let error = timeout(SECOND * 60, hubs[0].topic("lobby").members()).await.expect("it is bounded");
        if mode != Mode::LosesAnswers {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Backend, "{mode:?}");
        }
        sleep(LEASE * 3).await;
        connections.iter().for_each(|connection| connection.set(Mode::Works));
        sleep(SECOND * 2).await;
        assert_members(&hubs, &["a", "b", "c"]).await;
        drop(b);
        drop(_c);
        sleep(GRACE + SECOND * 2).await;
        assert_members(&hubs, &["a"]).await;
    }
    drop(a);
    sleep(GRACE + SECOND * 2).await;
    assert_members(&hubs, &[]).await;
    let events = events(&shared);
    assert!(replay(&events).is_empty());
    assert_eq!(events.len(), 2 + 3 * 4, "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn presence_begins_anew_in_another_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _all = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    shared.replace(PLENTY, Vec::new());
    sleep(SECOND * 5).await;
    assert_members(&hubs, &["a", "b"]).await;
    assert_eq!(replay(&events(&shared)), BTreeSet::from(["a".to_owned(), "b".to_owned()]));
}

/// The node dies after it has appended the join of a member, and before it publishes the event of
/// the join.
#[tokio::test(start_paused = true)]
async fn another_node_publishes_the_event_of_a_dead_node() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let _a = join(&hubs[1], "a").await;
    sleep(SECOND).await;
    // The join is appended, but the node gets no response.
    connections[0].set(Mode::LosesAnswers);
    let _b = join(&hubs[0], "b").await;
    while !records(&shared).iter().any(|record| record.contains("\"b\"")) {
        tokio::task::yield_now().await;
    }
    connections[0].set(Mode::Hangs);
    sleep(SECOND).await;
    assert_eq!(events(&shared), ["+a", "+b"]);
}

#[tokio::test(start_paused = true)]
async fn finished_topic_gets_no_events() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    hubs[0].topic("lobby").finish().await.unwrap();
    let _b = join(&hubs[1], "b").await;
    sleep(SECOND * 2).await;
    assert_members(&hubs, &["a", "b"]).await;
    assert_eq!(events(&shared), ["+a", ""], "the last record is the end");
    assert!(hubs[1].topic("lobby").publish(Event::new("x")).await.is_err());
}

/// Other publishers use the same topic at the same time.
#[tokio::test(start_paused = true)]
async fn events_are_published_once_in_a_busy_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let mut kept = Vec::new();
    for n in 0..200 {
        connections[n % 3].set([Mode::Works, Mode::LosesAnswers, Mode::Lags, Mode::Works][n / 3 % 4]);
        kept.push(join(&hubs[n % 3], &format!("m{n}")).await);
        let _result = hubs[(n + 1) % 3].topic("lobby").publish(Event::new("message")).await;
        sleep(Duration::from_millis(n as u64 % 7 * 20)).await;
    }
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(SECOND * 10).await;
    let mut events = events(&shared);
    events.retain(|event| event != "message");
    assert_eq!(replay(&events).len(), 200);
    assert_eq!(events.len(), 200);
}

#[tokio::test(start_paused = true)]
async fn foreign_records_are_harmless() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    let connection = shared.connect();
    let author = "[7,1,2000]";
    for text in [
        "x",
        "{}",
        "null",
        r#"{"ask":5}"#,
        r#"{"through":99999999,"nodes":[[1,2],[7,100]]}"#,
        r#"{"dead":[6,7,7,7]}"#,
        r#"{"answer":[1,2,3]}"#,
        r#"{"question":[1,2,"lobby"]}"#,
        &format!(r#"{{"author":{author},"changes":[["lobby","foreign",true],["lobby","nobody",false]]}}"#),
        &format!(r#"{{"author":{author},"members":[["lobby",["again"]]],"first":true,"last":true}}"#),
        r#"{"author":[7,9,2000],"members":[["lobby",["second part"]]],"first":false,"last":true}"#,
        r#"{"author":[7,10,2000],"changes":[["tower-sse/nodes","x",true]]}"#,
        r#"{"author":[8,18446744073709551615,18446744073709551615],"changes":[]}"#,
        r#"{"author":[9,-1,2000],"changes":[["lobby","x",true]]}"#,
        r#"{"author":[9,1e30,2000],"changes":[["lobby","x",true]]}"#,
        r#"{"author":[9,1,-5],"changes":[["lobby","x",true]]}"#,
        r#"{"author":[9],"changes":[["lobby"]]}"#,
        r#"{"author":[9,1,2000],"members":[["lobby"]],"first":true,"last":true}"#,
        r#"{"through":18446744073709551615,"nodes":[[18446744073709551615,18446744073709551615]]}"#,
        r#"{"dead":[18446744073709551615,18446744073709551615,18446744073709551615,18446744073709551615]}"#,
        r#"{"answer":[18446744073709551615,18446744073709551615,18446744073709551615]}"#,
        r#"{"question":[18446744073709551615,18446744073709551615,""]}"#,
        &format!(r#"{{"author":[7,13,2000],"changes":[["{}","x",true]]}}"#, "t".repeat(1025)),
        &"[".repeat(100_000),
        r#"{"author":[7,11,2000],"members":[["tower-sse/nodes",["x"]]],"first":true,"last":true}"#,
        &format!(r#"{{"author":[7,12,2000],"changes":[["lobby","{}",true]]}}"#, "m".repeat(257)),
    ] {
        for record in [format!("data: {{\"presence\":{text}}}\n\n"), format!("data: {text}\n\n"), text.to_owned()] {
            let record = Record::new("tower-sse/nodes", RecordKind::State, record);
            connection.append(vec![record]).await.unwrap();
        }
    }
    sleep(SECOND).await;
    assert_members(&hubs, &["a", "foreign"]).await;
    assert_eq!(log(&shared, "tower-sse/nodes").iter().filter(|record| *record == "+x").count(), 0);
    // No node sends signs of life for the members in the foreign records, so they leave.
    sleep(SECOND * 3 + GRACE).await;
    assert_members(&hubs, &["a"]).await;
    assert_eq!(events(&shared), ["+a", "+foreign", "-foreign"]);
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered_by_all_nodes() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let topics = [0, 1, 2].map(|node| hubs[node].topic("jobs"));
    assert!(!topics[0].exists_anywhere().await.unwrap());
    assert_eq!(topics[0].subscribers_anywhere().await.unwrap(), 0);
    let mut readers = Vec::new();
    for (topic, count) in topics.iter().zip([1, 0, 3]) {
        for _ in 0..count {
            readers.push(topic.subscribe(Start::Latest).await.unwrap());
        }
    }
    for topic in &topics {
        assert!(topic.exists_anywhere().await.unwrap());
        let before = log(&shared, "tower-sse/nodes").len();
        assert_eq!(topic.subscribers_anywhere().await.unwrap(), 4);
        let records = log(&shared, "tower-sse/nodes").len() - before;
        assert!(records <= 3, "one question, and an answer of each other node that has the topic: {records}");
    }
    assert!(!topics[1].exists());
    let begin = Instant::now();
    assert!(topics[1].exists_anywhere().await.unwrap());
    assert!(begin.elapsed() < SECOND / 10, "the first answer is enough");
    // The subscriptions on a node that does not answer are not counted.
    connections[2].set(Mode::Hangs);
    assert_eq!(topics[1].subscribers_anywhere().await.unwrap(), 1);
    connections[1].set(Mode::Fails);
    assert_eq!(topics[1].subscribers_anywhere().await.unwrap_err().kind(), ErrorKind::Backend);
    assert_eq!(topics[1].exists_anywhere().await.unwrap_err().kind(), ErrorKind::Backend);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_question() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let topic = hubs[0].topic("jobs");
    connections[1].set(Mode::Hangs);
    let asking = tokio::spawn(async move { topic.subscribers_anywhere().await });
    sleep(SECOND / 10).await;
    let begin = Instant::now();
    hubs[0].shutdown();
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), ErrorKind::Shutdown);
    assert!(begin.elapsed() < SECOND / 10, "{:?}", begin.elapsed());
}

/// Asserts that a call is still waiting after half a second, and that a shutdown of the hub then
/// ends it immediately.
async fn assert_ended_by_shutdown<T: Send + 'static>(
    hub: &Hub,
    call: impl Future<Output = Result<T, Error>> + Send + 'static,
) {
    let call = tokio::spawn(call);
    sleep(SECOND / 2).await;
    assert!(!call.is_finished());
    let begin = Instant::now();
    hub.shutdown();
    let error = call.await.unwrap().err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Shutdown));
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

/// The node waits for the answers of other nodes, for its follower, or for the backend.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_wait_for_members() {
    for (retained, mode) in [(20, Mode::Works), (PLENTY, Mode::Lags), (PLENTY, Mode::Hangs)] {
        let shared = Shared::new(retained);
        (0..40).for_each(|n| shared.append_event("other", &n.to_string()));
        let (hubs, connections) = nodes::<1>(&shared).await;
        let _member = join(&hubs[0], "a").await;
        settle().await;
        connections[0].set(mode);
        shared.append_event("other", "unread");
        let lobby = hubs[0].topic("lobby");
        assert_ended_by_shutdown(&hubs[0], async move { lobby.members().await }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_questions_that_wait_for_the_backend() {
    for asks_nodes in [false, true] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = nodes::<1>(&shared).await;
        connections[0].set(Mode::Hangs);
        let topic = hubs[0].topic("jobs");
        let call = async move {
            match asks_nodes {
                true => topic.subscribers_anywhere().await.map(drop),
                false => topic.exists_in_log().await.map(drop),
            }
        };
        assert_ended_by_shutdown(&hubs[0], call).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_without_members_send_nothing() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    drop(join(&hubs[0], "a").await);
    sleep(LEASE * 2).await;
    assert_members(&hubs, &[]).await;
    let before = shared.log().bounds.last;
    sleep(LEASE * 10).await;
    assert_eq!(shared.log().bounds.last, before);
}

#[tokio::test(start_paused = true)]
async fn dropped_hubs_have_no_tasks() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let all = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    drop((all, hubs));
    sleep(SECOND * 3).await;
    assert_eq!(runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

/// A node declares another node dead, but has not read the newest sign of life of that node. Such a
/// declaration has no effect.
#[tokio::test(start_paused = true)]
async fn death_has_no_effect_after_a_sign_of_life() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    let connection = shared.connect();
    let append = async |text: &str| {
        let record = Record::new("tower-sse/nodes", RecordKind::State, format!("data: {text}\n\n"));
        connection.append(vec![record]).await.unwrap();
    };
    let beat = r#""lease":2000,"recordings":[],"watching":[],"first":true,"last":true"#;
    append(r#"{"presence":{"author":[7,2,2000],"changes":[["lobby","a",true]]}}"#).await;
    append(&format!(r#"{{"node":7,"beat":5,{beat}}}"#)).await;
    for (number, beat, is_dead) in [(1, 5, false), (2, 4, false), (2, 5, true)] {
        append(&format!(r#"{{"presence":{{"dead":[7,{number},{beat},8]}}}}"#)).await;
        let expected: &[&str] = if is_dead { &[] } else { &["a"] };
        assert_members(&hubs, expected).await;
    }
    // A record that was created before the death arrives late, and has no effect.
    append(r#"{"presence":{"author":[7,2,2000],"changes":[["lobby","b",true]]}}"#).await;
    assert_members(&hubs, &[]).await;
}

/// The event is in the log, but the nodes have not read it yet. No node may publish it again.
#[tokio::test(start_paused = true)]
async fn event_is_not_repeated_before_it_is_read() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _b = join(&hubs[1], "b").await;
    sleep(SECOND).await;
    connections[0].set(Mode::LosesAnswers);
    let _a = join(&hubs[0], "a").await;
    while !records(&shared).iter().any(|record| record.contains("\"a\"")) {
        tokio::task::yield_now().await;
    }
    connections[0].set(Mode::Hangs);
    settle().await;
    connections[1].set(Mode::Lags);
    sleep(SECOND * 5).await;
    assert_eq!(events(&shared), ["+b", "+a"]);
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(SECOND * 3).await;
    assert_members(&hubs, &["a", "b"]).await;
    assert_eq!(events(&shared), ["+b", "+a"]);
}

/// The runtime of the hub ends while the hub has an event to publish. Dropping a membership
/// afterwards must not block.
#[test]
fn membership_outlives_the_runtime_of_its_hub() {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let new_runtime = || runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let runtime = new_runtime();
        let (hub, membership) = runtime.block_on(async {
            let connection = Shared::new(PLENTY).connect();
            let hub = node(&connection).await;
            // The backend refuses the event about this member.
            connection.set(Mode::Refuses);
            let membership = join(&hub, "large").await;
            sleep(SECOND).await;
            (hub, membership)
        });
        drop(runtime);
        drop(membership);
        drop(new_runtime().block_on(join(&hub, "b")));
        done.send(()).unwrap();
    });
    is_done.recv_timeout(SECOND * 60).expect("no call blocks");
}

#[tokio::test(start_paused = true)]
async fn old_questions_are_not_answered() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    hubs[0].topic("jobs").publish(Event::new("x")).await.unwrap();
    for _ in 0..10 {
        assert!(hubs[1].topic("absent").subscribers_anywhere().await.is_ok());
        assert!(hubs[1].topic("jobs").subscribers_anywhere().await.is_ok());
    }
    let before = shared.log().all.len();
    let third = node(&shared.connect()).await;
    sleep(SECOND * 3).await;
    assert!(third.topic("jobs").exists());
    assert_eq!(shared.log().all.len(), before);
}

/// The node has not read the whole log when `connect` returns. The stream waits until the node has
/// read it.
#[tokio::test(start_paused = true)]
async fn stream_does_not_yield_old_changes_while_the_log_is_read() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<1>(&shared).await;
    drop(join(&hubs[0], "a").await);
    sleep(GRACE + SECOND).await;
    let _b = join(&hubs[0], "b").await;
    sleep(SECOND).await;
    let connection = shared.connect();
    connection.page.store(1, Relaxed);
    connection.set(Mode::Lags);
    let late = node(&connection).await;
    let mut stream = late.topic("lobby").presence();
    connection.set(Mode::Works);
    let mut all = Vec::new();
    for _ in 0..200 {
        tokio::task::yield_now().await;
        all.extend(changes(&mut stream));
    }
    assert_eq!(all, ["+b"]);
    assert_eq!(members(&late).await, ["b"]);
}

/// The backend refuses one event of the topic for longer than a minute.
#[tokio::test(start_paused = true)]
async fn refused_event_does_not_block_later_events_forever() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    connections.iter().for_each(|connection| connection.set(Mode::Refuses));
    let mut all = Vec::new();
    for member in ["large", "b", "c"] {
        all.push(join(&hubs[0], member).await);
        settle().await;
    }
    sleep(SECOND * 50).await;
    assert_eq!(events(&shared), [""; 0]);
    sleep(SECOND * 20).await;
    assert_eq!(events(&shared), ["+b", "+c"]);
    all.push(join(&hubs[1], "d").await);
    sleep(SECOND).await;
    assert_eq!(events(&shared), ["+b", "+c", "+d"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_hubs_have_no_tasks_while_events_are_pending() {
    for mode in [Mode::Refuses, Mode::Fails, Mode::Hangs] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = nodes::<2>(&shared).await;
        connections.iter().for_each(|connection| connection.set(Mode::Refuses));
        let all = [join(&hubs[0], "large").await, join(&hubs[1], "very large").await];
        sleep(SECOND).await;
        connections.iter().for_each(|connection| connection.set(mode));
        sleep(SECOND).await;
        drop((all, hubs));
        sleep(SECOND * 20).await;
        assert_eq!(runtime::Handle::current().metrics().num_alive_tasks(), 0, "{mode:?}");
    }
}

/// The announcer, the task that answers, sleeps until the end of the grace time.
#[tokio::test(start_paused = true)]
async fn questions_are_answered_during_a_grace_time() {
    let shared = Shared::new(20);
    let (hubs, _) = nodes::<2>(&shared).await;
    let _reader = hubs[0].topic("jobs").subscribe(Start::Latest).await.unwrap();
    let _b = join(&hubs[0], "b").await;
    drop(join(&hubs[0], "a").await);
    sleep(SECOND).await;
    assert!(hubs[1].topic("jobs").exists_anywhere().await.unwrap());
    assert_eq!(hubs[1].topic("jobs").subscribers_anywhere().await.unwrap(), 1);
    evict(&hubs[0]).await;
    // A new node asks for the members, and this is a question as well.
    let begin = Instant::now();
    let third = node(&shared.connect()).await;
    assert_eq!(members(&third).await, ["a", "b"]);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

/// A request takes longer than the pause between two joins.
#[tokio::test(start_paused = true)]
async fn members_are_returned_while_others_join() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<1>(&shared).await;
    connections[0].latency.store(20, Relaxed);
    let hub = hubs[0].clone();
    let joins = tokio::spawn(async move {
        let mut kept = Vec::new();
        for n in 0..10_000 {
            kept.push(join(&hub, &format!("other {n}")).await);
            sleep(Duration::from_millis(3)).await;
        }
    });
    sleep(SECOND).await;
    for n in 0..20 {
        let name = format!("own {n}");
        let own = join(&hubs[0], &name).await;
        let begin = Instant::now();
        let members = members(&hubs[0]).await;
        assert!(begin.elapsed() < SECOND / 5, "{:?}", begin.elapsed());
        assert!(members.contains(&name), "a member sees itself");
        drop(own);
    }
    joins.abort();
}

/// A request for the end of the log is sent before the join is stored, and answered after it.
#[tokio::test(start_paused = true)]
async fn members_have_the_joins_before_the_call() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<1>(&shared).await;
    connections[0].latency.store(20, Relaxed);
    connections[0].set(Mode::Lags);
    let _own = join(&hubs[0], "own").await;
    let hub = hubs[0].clone();
    let members = tokio::spawn(async move { members(&hub).await });
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    assert_eq!(members.await.unwrap(), ["own"]);
}

/// Without an event, a client of a removed topic does not bring it back.
#[tokio::test(start_paused = true)]
async fn finished_and_removed_topic_does_not_come_back() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    for is_reopened in [false, true] {
        let mut kept = vec![join(&hubs[0], "a").await, join(&hubs[1], "b").await];
        sleep(SECOND).await;
        hubs[0].topic("lobby").finish().await.unwrap();
        sleep(SECOND).await;
        hubs[1].topic("lobby").remove().await.unwrap();
        let before = events(&shared).len();
        if is_reopened {
            sleep(SECOND).await;
            kept.clear();
            hubs[0].topic("lobby").publish(Event::new("again")).await.unwrap();
        }
        kept.clear();
        sleep(GRACE * 2).await;
        assert_members(&hubs, &[]).await;
        let mut events = events(&shared).split_off(before);
        events.sort();
        match is_reopened {
            false => {
                assert_eq!(events, [""; 0]);
                hubs.iter().for_each(|hub| assert!(!hub.topic("lobby").exists()));
            }
            true => assert_eq!(events, ["-a", "-b", "again"]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn leave_does_not_bring_a_removed_topic_back() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    for is_reopened in [false, true] {
        let before = events(&shared).len();
        let reader = hubs[0].topic("other").subscribe(Start::Latest).await.unwrap();
        let reader = hubs[0].topic("lobby").join("a", reader).unwrap();
        sleep(SECOND).await;
        hubs[1].topic("lobby").remove().await.unwrap();
        if is_reopened {
            hubs[1].topic("lobby").publish(Event::new("again")).await.unwrap();
            sleep(HOUR * 2).await;
        }
        hubs.iter().for_each(|hub| assert!(!hub.topic("lobby").exists()));
        drop(reader);
        sleep(GRACE * 2).await;
        assert_members(&hubs, &[]).await;
        // A removal has no data.
        let events = events(&shared).split_off(before);
        match is_reopened {
            false => assert_eq!(events, ["+a", ""]),
            true => assert_eq!(events, ["+a", "", "again", "-a"]),
        }
        hubs.iter().for_each(|hub| assert_eq!(hub.topic("lobby").exists(), is_reopened));
    }
}

/// All clients lose their connections after more than an hour without an event, and only one of
/// them returns.
#[tokio::test(start_paused = true)]
async fn returning_client_of_a_quiet_topic_gets_the_leaves() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<3>(&shared).await;
    let lobby = hubs[1].topic("lobby");
    for _ in 0..3 {
        let before = events(&shared).len();
        let [a, b] = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
        sleep(HOUR * 2).await;
        let mut b = task::spawn(b);
        data_soon(&mut b).await;
        let id = b.cursor();
        drop((a, b));
        sleep(GRACE + SECOND * 2).await;
        let b = lobby.join("b", lobby.subscribe(Start::After(id)).await.unwrap()).unwrap();
        assert!(b.is_resumed() && b.gap().is_none());
        sleep(SECOND * 2).await;
        let mut missed = data_soon(&mut task::spawn(b)).await;
        missed[..2].sort();
        assert_eq!(missed, ["-a", "-b", "+b"]);
        sleep(HOUR * 2).await;
        // Each event is published once.
        assert_eq!(events(&shared).len() - before, 6);
        hubs.iter().for_each(|hub| assert!(!hub.topic("lobby").exists()));
    }
}

#[tokio::test(start_paused = true)]
async fn leaves_of_a_dead_node_reach_a_quiet_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<3>(&shared).await;
    let _a = join(&hubs[0], "a").await;
    sleep(HOUR * 2).await;
    connections[0].set(Mode::Hangs);
    sleep(LEASE + GRACE + SECOND * 2).await;
    assert_members(&hubs[1..], &[]).await;
    assert_eq!(events(&shared), ["+a", "-a"]);
}

/// The response of the backend takes longer than the lease of one of the nodes.
#[tokio::test(start_paused = true)]
async fn short_lease_does_not_hide_the_death_of_other_nodes() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    let _kept = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    let short = builder().presence_lease(Duration::from_millis(100));
    let connection = shared.connect();
    let short = short.backend(connection.clone()).connect().await.unwrap();
    let _c = join(&short, "c").await;
    sleep(SECOND).await;
    connections[0].latency.store(100, Relaxed);
    connection.latency.store(100, Relaxed);
    connections[1].set(Mode::Hangs);
    sleep(LEASE + GRACE + SECOND * 2).await;
    // A sign of life of the node with `c` takes longer than its lease, but not longer than the
    // lease and the grace time.
    assert_eq!(members(&hubs[0]).await, ["a", "c"]);
    assert_eq!(events(&shared), ["+a", "+b", "+c", "-b"]);
}

#[tokio::test(start_paused = true)]
async fn node_with_a_short_lease_writes_three_signs_of_life_per_lease() {
    let shared = Shared::new(PLENTY);
    let short = builder().presence_lease(SECOND * 2).backend(shared.connect()).connect().await.unwrap();
    let _others = nodes::<2>(&shared).await;
    let mut kept = Vec::new();
    for n in 0..1000 {
        kept.push(join(&short, &n.to_string()).await);
        sleep(Duration::from_millis(20)).await;
    }
    let signs = log(&shared, "tower-sse/nodes").len() - records(&shared).len();
    assert!((28..=31).contains(&signs), "{signs} in 20 seconds");
}

/// A call on one node begins while a request of an earlier call is in flight.
#[tokio::test(start_paused = true)]
async fn members_have_the_joins_that_another_node_knows() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = nodes::<2>(&shared).await;
    assert_members(&hubs, &[]).await;
    connections[1].latency.store(20, Relaxed);
    let spawn = |hub: &Hub| {
        let hub = hub.clone();
        tokio::spawn(async move { members(&hub).await })
    };
    for n in 0..20 {
        let early = spawn(&hubs[1]);
        sleep(Duration::from_millis(5)).await;
        let member = format!("m{n}");
        let own = join(&hubs[0], &member).await;
        assert!(members(&hubs[0]).await.contains(&member));
        let late = [spawn(&hubs[1]), spawn(&hubs[1])];
        for late in late {
            assert!(late.await.unwrap().contains(&member), "{member}");
        }
        early.await.unwrap();
        drop(own);
    }
}

#[tokio::test(start_paused = true)]
async fn member_that_joins_a_finished_topic_does_not_bring_it_back() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<2>(&shared).await;
    hubs[0].topic("lobby").finish().await.unwrap();
    sleep(SECOND).await;
    let kept = join(&hubs[1], "a").await;
    sleep(SECOND).await;
    hubs[1].topic("lobby").remove().await.unwrap();
    let before = events(&shared).len();
    drop(kept);
    sleep(GRACE * 2).await;
    assert_members(&hubs, &[]).await;
    assert_eq!(events(&shared).len(), before);
    hubs.iter().for_each(|hub| assert!(!hub.topic("lobby").exists()));
}

/// The log has evicted the end of the topic before the new node starts.
#[tokio::test(start_paused = true)]
async fn new_node_does_not_bring_a_removed_topic_back() {
    let shared = Shared::new(20);
    let (hubs, _) = nodes::<1>(&shared).await;
    let kept = join(&hubs[0], "a").await;
    sleep(SECOND).await;
    hubs[0].topic("lobby").finish().await.unwrap();
    hubs[0].topic("lobby").remove().await.unwrap();
    evict(&hubs[0]).await;
    let second = node(&shared.connect()).await;
    assert_eq!(members(&second).await, ["a"]);
    let before = events(&shared).len();
    drop(kept);
    sleep(GRACE * 2).await;
    assert_eq!(members(&second).await, [""; 0]);
    assert_eq!(events(&shared).len(), before);
    assert!(!second.topic("lobby").exists());
}

#[tokio::test(start_paused = true)]
async fn members_of_a_stopped_hub_leave_after_the_grace_time() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = nodes::<3>(&shared).await;
    let _stopped = [join(&hubs[0], "a").await, join(&hubs[0], "b").await];
    sleep(SECOND).await;
    hubs[0].shutdown();
    sleep(GRACE - SECOND).await;
    assert_members(&hubs[1..], &["a", "b"]).await;
    // The client reconnects in time.
    let _b = join(&hubs[1], "b").await;
    sleep(SECOND * 2).await;
    assert_members(&hubs[1..], &["b"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "-a"]);
    assert_eq!(hubs[0].topic("lobby").members().await.unwrap_err().kind(), ErrorKind::Shutdown);
    sleep(LEASE * 2).await;
    assert_members(&hubs[1..], &["b"]).await;
    assert_eq!(events(&shared), ["+a", "+b", "-a"]);
}

/// During the grace time of the members of a stopped hub, other nodes ask the backend as often as
/// before.
#[tokio::test(start_paused = true)]
async fn shutdown_of_a_node_costs_few_requests() {
    let shared = Shared::new(PLENTY);
    let long = |connection: &Faulty| builder().presence_grace(SECOND * 600).backend(connection.clone()).connect();
    let connections = [shared.connect(), shared.connect()];
    let hubs = [long(&connections[0]).await.unwrap(), long(&connections[1]).await.unwrap()];
    let _members = [join(&hubs[0], "a").await, join(&hubs[1], "b").await];
    sleep(SECOND).await;
    hubs[0].shutdown();
    let before = connections[1].asked.bounds.load(Relaxed);
    sleep(SECOND * 60).await;
    let requests = connections[1].asked.bounds.load(Relaxed) - before;
    assert!(requests <= 80, "{requests} in 60 seconds");
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_all_tasks_while_events_are_pending() {
    for mode in [Mode::Refuses, Mode::Fails, Mode::Hangs] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = nodes::<2>(&shared).await;
        connections.iter().for_each(|connection| connection.set(Mode::Refuses));
        let all = [join(&hubs[0], "large").await, join(&hubs[1], "very large").await];
        sleep(SECOND).await;
        connections.iter().for_each(|connection| connection.set(mode));
        sleep(SECOND).await;
        let tasks = || runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        hubs.iter().for_each(Hub::shutdown);
        settle().await;
        // The keepers, and the appends of the last records.
        assert!(before >= 6 && tasks() <= 4, "{mode:?}: {before}, {}", tasks());
        sleep(SECOND * 5).await;
        assert_eq!(tasks(), 0, "{mode:?}");
        drop(all);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_hub_is_freed_at_once_during_an_outage() {
    for mode in [Mode::Refuses, Mode::Fails, Mode::Hangs, Mode::Lags, Mode::LosesAnswers] {
        for seconds in 0..8 {
            let shared = Shared::new(PLENTY);
            let owned = std::sync::Arc::new(());
            let event_of = owned.clone();
            let builder = builder().presence_events(move |_, change| {
                let _owned = &event_of;
                Some(Event::new(text(change)))
            });
            let connection = shared.connect();
            let hub = builder.backend(connection.clone()).connect().await.unwrap();
            let other = node(&shared.connect()).await;
            let members = [join(&hub, "a").await, join(&other, "b").await];
            sleep(SECOND).await;
            connection.set(mode);
            let late = join(&hub, "large").await;
            sleep(SECOND * seconds).await;
            drop((hub, members, late));
            settle().await;
            assert_eq!(std::sync::Arc::strong_count(&owned), 1, "{mode:?} for {seconds} seconds");
        }
    }
}
