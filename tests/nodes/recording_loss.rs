//! Recordings on several nodes whose log has lost records before the nodes have read them. The
//! records may include the end of a recording, so its topic gets no event any more, but an end.

use super::{
    faulty::{Faulty, Mode, Shared},
    recording::{LEASE, SECOND, channel, log, record},
    settle, two,
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{sleep, timeout};
use tower_sse::{
    Event,
    hub::{
        Hub, Outcome, Recording,
        backend::{Backend, Record, RecordKind},
    },
};

/// The number of records that the log retains.
pub(crate) const RETAINED: usize = 10;

/// Appends events of another topic until the log has evicted all records before them.
pub(crate) async fn evict(connection: &Faulty) {
    for _ in 0..2 * RETAINED {
        append(connection).await;
    }
}

/// Appends an event of another topic.
pub(crate) async fn append(connection: &Faulty) {
    let record = Record::new("news", RecordKind::Event, "data: news\n\n");
    connection.append(vec![record]).await.unwrap();
}

/// Spawns a task that appends two events of another topic in each second.
fn keep_busy(shared: &Shared) {
    let connection = shared.connect();
    tokio::spawn(async move {
        loop {
            append(&connection).await;
            sleep(SECOND / 2).await;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn loss_on_all_nodes_finishes_recordings_without_event() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    evict(&shared.connect()).await;
    sender.send(Event::new("2")).unwrap();
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    assert_eq!(timeout(SECOND * 5, recording.outcome()).await, Ok(Outcome::Interrupted));
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "."]);
}

/// The node has not read the lost records when the recording starts, but knows a later position.
#[tokio::test(start_paused = true)]
async fn recording_that_starts_after_the_lost_records_continues() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let earlier = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Lags);
    evict(&shared.connect()).await;
    hubs[0].topic("news").publish(Event::new("the newest")).await.unwrap();
    let (sender, items) = channel();
    let later = record(&hubs[0], "b", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    assert_eq!(timeout(SECOND * 5, earlier.outcome()).await, Ok(Outcome::Interrupted));
    drop(sender);
    assert_eq!(timeout(SECOND * 5, later.outcome()).await, Ok(Outcome::Finished));
    assert_eq!([log(&shared, "a"), log(&shared, "b")], [vec!["."], vec!["1", "end", "."]]);
}

/// The node reads each record of a busy log more than a second after its append.
#[tokio::test(start_paused = true)]
async fn loss_ends_the_recording_of_a_lagging_node() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Lags);
    evict(&shared.connect()).await;
    keep_busy(&shared);
    connections[0].lag.store(1800, Relaxed);
    connections[0].set(Mode::Works);
    assert_eq!(timeout(SECOND * 8, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(log(&shared, "a"), ["1", "."]);
}

/// Creates a node whose recording of the topic `large` was ended by a loss. The node waits for the
/// end of the log, and reads nothing new.
async fn waiting_for_the_end() -> (Shared, Hub, Faulty, Recording) {
    let shared = Shared::new(RETAINED);
    let (connection, other) = (shared.connect(), shared.connect());
    let hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
    let recording = hub.topic("large").record(tokio_stream::pending::<Event>()).start();
    sleep(SECOND).await;
    connection.set(Mode::Lags);
    evict(&other).await;
    connection.set(Mode::Refuses);
    sleep(SECOND).await;
    connection.set(Mode::Lags);
    append(&other).await;
    assert!(timeout(LEASE, recording.outcome()).await.is_err());
    (shared, hub, connection, recording)
}

#[tokio::test(start_paused = true)]
async fn shutdown_or_another_log_ends_the_wait_for_the_end() {
    let (shared, hub, _, recording) = waiting_for_the_end().await;
    hub.shutdown();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(log(&shared, "large"), [""; 0]);

    let (shared, _hub, connection, recording) = waiting_for_the_end().await;
    shared.replace(RETAINED, Vec::new());
    connection.set(Mode::Works);
    assert_eq!(timeout(SECOND * 5, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(log(&shared, "large"), ["."], "in the other log");
}

#[tokio::test(start_paused = true)]
async fn lagging_node_finishes_topic_of_dead_node_after_a_loss() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    connections[1].set(Mode::Lags);
    evict(&shared.connect()).await;
    keep_busy(&shared);
    connections[1].lag.store(1600, Relaxed);
    connections[1].set(Mode::Works);
    sleep(LEASE * 3).await;
    assert_eq!(log(&shared, "a"), ["."]);
}

/// The recording may have ended with another event, in the part of the log that was lost.
#[tokio::test(start_paused = true)]
async fn dead_node_gets_no_will_after_a_loss() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    connections[1].set(Mode::Lags);
    evict(&shared.connect()).await;
    connections[1].set(Mode::Works);
    sleep(LEASE - SECOND).await;
    assert_eq!(log(&shared, "a"), ["1"], "the node may be alive");
    sleep(SECOND * 4).await;
    assert_eq!(log(&shared, "a"), ["1", "."]);
}

#[tokio::test(start_paused = true)]
async fn sign_of_life_after_a_loss_restores_the_will() {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[1].set(Mode::Lags);
    settle().await;
    for n in 0..2 * RETAINED {
        hubs[0].topic("news").publish(Event::display(n)).await.unwrap();
        settle().await;
    }
    connections[1].set(Mode::Works);
    sleep(LEASE).await;
    assert_eq!(log(&shared, "a"), ["1"], "the node lives");
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
}

/// Two nodes have missed the end of a recording, and the beginning of another recording of the
/// topic.
#[tokio::test(start_paused = true)]
async fn loss_does_not_end_a_newer_recording_of_the_topic() {
    let shared = Shared::new(RETAINED);
    let builder = || Hub::builder().max_age(SECOND);
    let (hubs, connections) = two(&shared, builder).await;
    let third = shared.connect();
    let third_hub = builder().backend(third.clone()).connect().await.unwrap();
    let (sender, items) = channel();
    let earlier = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    third.set(Mode::Lags);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
    // The hub forgets that the topic is finished.
    sleep(SECOND * 10).await;
    evict(&shared.connect()).await;
    sleep(SECOND).await;
    let (sender, items) = channel();
    let newer = record(&hubs[1], "a", items).start();
    sleep(SECOND).await;

    // They read the loss in another page than the announcement of the newer recording.
    for connection in [&connections[0], &third] {
        connection.page.store(1, Relaxed);
        connection.set(Mode::Works);
    }
    assert_eq!(timeout(SECOND * 5, earlier.outcome()).await, Ok(Outcome::Interrupted));
    connections[0].set(Mode::Hangs);
    sleep(LEASE * 2).await;
    sender.send(Event::new("2")).unwrap();
    drop(sender);
    assert_eq!(timeout(SECOND, newer.outcome()).await, Ok(Outcome::Finished));
    assert_eq!(log(&shared, "a"), ["1", "will", ".", "2", "end", "."]);
    drop(third_hub);
}

/// Creates a log in which the second of two nodes has finished the topic `a` of the first node,
/// which is dead. The second node has not read the end of the topic.
async fn unread_takeover() -> (Shared, [Hub; 2], [Faulty; 2]) {
    let shared = Shared::new(RETAINED);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    hubs[0].topic("a").record(items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    connections[1].set(Mode::Lags);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["."]);
    (shared, hubs, connections)
}

#[tokio::test(start_paused = true)]
async fn lost_end_of_a_takeover_is_appended_again() {
    let (shared, _hubs, connections) = unread_takeover().await;
    evict(&shared.connect()).await;
    connections[1].set(Mode::Works);
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), [".", "."]);

    let (shared, _hubs, connections) = unread_takeover().await;
    shared.replace(RETAINED, Vec::new());
    connections[1].set(Mode::Works);
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["."], "in the other log");
}

/// Returns a part of a sign of life of a node with these recordings.
fn part(number: u64, recordings: &[&str], is_first: bool, is_last: bool) -> Record {
    let recordings: Vec<Value> = recordings.iter().map(|topic| json!([topic, 1, "data: will\n\n", false])).collect();
    let text = json!({
        "node": 7, "beat": number, "lease": 10_000, "recordings": recordings, "watching": [],
        "first": is_first, "last": is_last
    });
    Record::new("tower-sse/nodes", RecordKind::State, format!("data: {text}\n\n"))
}

/// The lost part of the sign of life has a recording that the other parts do not have.
#[tokio::test(start_paused = true)]
async fn sign_of_life_with_a_lost_part_ends_no_recording() {
    let shared = Shared::new(RETAINED);
    let (_hubs, connections) = two(&shared, Hub::builder).await;
    let node = shared.connect();
    node.append(vec![part(1, &["a", "b"], true, true)]).await.unwrap();
    node.append(vec![part(2, &["a"], true, false)]).await.unwrap();
    settle().await;
    connections.iter().for_each(|connection| connection.set(Mode::Lags));
    settle().await;
    node.append(vec![part(2, &["b"], false, false)]).await.unwrap();
    evict(&node).await;
    node.append(vec![part(2, &[], false, true)]).await.unwrap();
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(SECOND * 5).await;
    node.append(vec![part(3, &["a", "b"], true, true)]).await.unwrap();
    sleep(SECOND * 5).await;
    assert_eq!([log(&shared, "a"), log(&shared, "b")], [[""; 0]; 2]);
}

/// The newest sign of life of a node is lost, shortly before the end of its lease.
#[tokio::test(start_paused = true)]
async fn loss_gives_other_nodes_another_lease() {
    let shared = Shared::new(RETAINED);
    let _hubs = two(&shared, Hub::builder).await;
    let node = shared.connect();
    node.append(vec![part(1, &["a"], true, true)]).await.unwrap();
    sleep(LEASE - SECOND / 10).await;
    node.append(vec![part(2, &["a"], true, true)]).await.unwrap();
    evict(&node).await;
    sleep(LEASE - SECOND).await;
    node.append(vec![part(3, &["a"], true, true)]).await.unwrap();
    sleep(LEASE - SECOND).await;
    assert_eq!(log(&shared, "a"), [""; 0]);
}

/// Returns a sign of life of a node that lists a recording of the topic `a`, and had read the log
/// up to `read` when it was sent.
fn beat(node: u64, number: u64, read: u64) -> Record {
    let lease = if node == 7 { 2_000 } else { 10_000 };
    let text = json!({
        "node": node, "beat": number, "lease": lease, "recordings": [["a", node, "data: will\n\n", false]],
        "watching": [], "first": true, "last": true, "read": read
    });
    Record::new("tower-sse/nodes", RecordKind::State, format!("data: {text}\n\n"))
}

/// The recording was taken over in the part of the log that a lagging node and a later node do not
/// know. The dead node had sent the sign of life before.
#[tokio::test(start_paused = true)]
async fn late_sign_of_life_after_a_loss_repeats_no_will() {
    for is_known in [true, false] {
        let shared = Shared::new(RETAINED);
        let (_hubs, connections) = two(&shared, Hub::builder).await;
        let node = shared.connect();
        node.append(vec![beat(7, 1, 0)]).await.unwrap();
        sleep(SECOND / 2).await;
        connections[1].set(Mode::Fails);
        sleep(SECOND * 4).await;
        assert_eq!(log(&shared, "a"), ["will", "."]);
        evict(&node).await;
        node.append(vec![beat(7, 2, 1)]).await.unwrap();
        if is_known {
            connections[1].set(Mode::Works);
        }
        let _later =
            if is_known { None } else { Some(Hub::builder().backend(shared.connect()).connect().await.unwrap()) };
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, "a"), ["will", ".", "."], "known: {is_known}");
    }
}

/// The node of the recording has read the lost records, and still lists its recording.
#[tokio::test(start_paused = true)]
async fn sign_of_life_sent_after_the_lost_records_has_a_will() {
    let shared = Shared::new(RETAINED);
    let node = shared.connect();
    evict(&node).await;
    node.append(vec![beat(7, 1, 2 * RETAINED as u64)]).await.unwrap();
    let _hub = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    sleep(SECOND * 5).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

/// The node of the newer recording had not read the lost records either when it announced it.
#[tokio::test(start_paused = true)]
async fn loss_does_not_end_a_recording_announced_after_it() {
    let shared = Shared::new(RETAINED);
    let connection = shared.connect();
    let _hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
    let node = shared.connect();
    node.append(vec![beat(7, 1, 0)]).await.unwrap();
    sleep(SECOND / 2).await;
    connection.set(Mode::Fails);
    sleep(SECOND / 2).await;
    evict(&node).await;
    node.append(vec![beat(8, 1, 1)]).await.unwrap();
    connection.set(Mode::Works);
    sleep(SECOND * 5).await;
    assert_eq!(log(&shared, "a"), [""; 0], "only the node of the earlier recording is dead");
}

/// The node reads the end while an append of the recording has no response yet. Its next sign of
/// life must not claim that the recording continues after the end.
#[tokio::test(start_paused = true)]
async fn will_before_an_unexamined_end_is_not_repeated() {
    for dies in [true, false] {
        let shared = Shared::new(RETAINED);
        let (hubs, connections) = two(&shared, Hub::builder).await;
        let (sender, items) = channel();
        let recording = record(&hubs[0], "a", items).start();
        sleep(SECOND).await;
        connections[1].set(Mode::Lags);
        // The response takes four seconds.
        connections[0].set(Mode::IsLate);
        sleep(SECOND * 2).await;
        sender.send(Event::new("1")).unwrap();
        sleep(SECOND / 10).await;
        assert_eq!(log(&shared, "a"), ["1"]);
        // Another node takes the recording over.
        let will = Event::new("will").encode();
        shared.append(vec![Record::new("a", RecordKind::Event, will)]);
        shared.append(vec![Record::new("a", RecordKind::Finish, "")]);
        sleep(SECOND / 10).await;
        let other = shared.connect();
        for _ in 0..2 * RETAINED {
            append(&other).await;
            settle().await;
        }
        sleep(SECOND * 2).await;
        if dies {
            connections[0].set(Mode::Hangs);
        }
        connections[1].set(Mode::Works);
        sleep(LEASE * 3).await;
        let log = log(&shared, "a");
        assert_eq!(log.iter().filter(|text| *text == "will").count(), 1, "{log:?}");
        assert_eq!(log.last().map(String::as_str), Some("."), "{log:?}");
        if !dies {
            assert_eq!(recording.outcome().await, Outcome::Interrupted);
        }
    }
}
