//! Recordings when another log replaces the log. The other log may be a copy of the first one, for
//! example after a failover of Postgres. Then it lacks the newest records.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    recording::{LEASE, SECOND, channel, log, record},
    two,
};
use serde_json::json;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tower_sse::{
    BoxError, Event,
    hub::{
        Hub, Outcome,
        backend::{Appended, Backend, Bounds, Page, Position, Record, RecordKind},
    },
};

/// Replaces the log by a copy without the newest `lost` records of the topic `a`, and everything
/// after them.
fn fail_over(shared: &Shared, lost: usize) {
    let mut records = shared.log().held();
    for _ in 0..lost {
        let last = records.iter().rposition(|record| &*record.topic == "a").expect("the topic has a record");
        records.truncate(last);
    }
    shared.replace(PLENTY, records);
}

async fn connect(shared: &Shared) -> (Hub, Faulty) {
    let connection = shared.connect();
    (Hub::builder().backend(connection.clone()).connect().await.unwrap(), connection)
}

/// Returns two nodes. The first has a recording with one event, and hangs from now on.
async fn with_dead_node() -> (Shared, [Hub; 2], [Faulty; 2], impl Sized) {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    (shared, hubs, connections, (sender, recording))
}

/// The log is replaced between the two records of a takeover, the will and the end.
#[tokio::test(start_paused = true)]
async fn takeover_is_repeated_in_another_log() {
    let (shared, _hubs, connections, _running) = with_dead_node().await;
    // Before the node appends the end, it waits until it has read the will.
    connections[1].lag.store(400, Relaxed);
    let will = async {
        while log(&shared, "a") != ["1", "will"] {
            sleep(SECOND / 100).await;
        }
    };
    timeout(LEASE * 2, will).await.expect("the node publishes the will");
    shared.replace(PLENTY, Vec::new());
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

#[tokio::test(start_paused = true)]
async fn lost_takeover_is_repeated() {
    let (shared, _hubs, _connections, _running) = with_dead_node().await;
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
    fail_over(&shared, 2);
    assert_eq!(log(&shared, "a"), ["1"]);
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
}

/// The failover loses the response to an append. An earlier, equal event is in the copy.
#[tokio::test(start_paused = true)]
async fn event_equal_to_an_earlier_one_is_not_lost() {
    for is_stored in [false, true] {
        let shared = Shared::new(PLENTY);
        let (hub, connection) = connect(&shared).await;
        let (sender, items) = channel();
        let recording = record(&hub, "a", items).start();
        sender.send(Event::new("tick")).unwrap();
        sleep(SECOND).await;
        connection.set(if is_stored { Mode::LosesAnswers } else { Mode::Fails });
        sender.send(Event::new("tick")).unwrap();
        sleep(SECOND / 100).await;
        connection.set(Mode::Fails);
        sleep(SECOND).await;
        fail_over(&shared, 0);
        connection.set(Mode::Works);
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, "a"), ["tick", "tick"], "the second is stored: {is_stored}");
        drop(sender);
        assert_eq!(recording.outcome().await, Outcome::Finished);
        assert_eq!(log(&shared, "a"), ["tick", "tick", "end", "."]);
    }
}

/// All nodes die soon after the log was replaced, long before the next regular sign of life.
#[tokio::test(start_paused = true)]
async fn recording_is_announced_in_another_log() {
    const LONG: Duration = Duration::from_secs(60);
    let shared = Shared::new(PLENTY);
    let (hub, connection) = connect(&shared).await;
    let (sender, items) = channel();
    let recording = record(&hub, "a", items).lease(LONG).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    shared.replace(PLENTY, Vec::new());
    sleep(SECOND * 5).await;
    recording.announced().await.unwrap();
    sender.send(Event::new("2")).unwrap();
    sleep(SECOND).await;
    connection.set(Mode::Hangs);
    let _another = connect(&shared).await;
    sleep(LONG * 2).await;
    assert_eq!(log(&shared, "a"), ["2", "will", "."]);
}

/// The log is replaced before the node gets the response to the first sign of life.
#[tokio::test(start_paused = true)]
async fn late_response_announces_nothing_in_another_log() {
    const LONG: Duration = Duration::from_secs(60);
    let shared = Shared::new(PLENTY);
    let (hub, connection) = connect(&shared).await;
    let _earlier = record(&hub, "b", tokio_stream::pending()).lease(LONG).start();
    sleep(SECOND).await;
    connection.latency.store(8_000, Relaxed);
    let _recording = record(&hub, "a", tokio_stream::pending()).lease(LONG).start();
    let is_listed = || {
        let records = shared.log().held();
        records.iter().any(|record| String::from_utf8_lossy(&record.event).contains(r#"["a","#))
    };
    timeout(SECOND * 10, async {
        while !is_listed() {
            sleep(SECOND / 100).await;
        }
    })
    .await
    .expect("the recording is listed");
    connection.latency.store(0, Relaxed);
    shared.replace(PLENTY, Vec::new());
    // The node switches to the other log while the response is still in flight.
    connection.set(Mode::Fails);
    sleep(SECOND / 100).await;
    connection.set(Mode::Works);
    sleep(SECOND * 8).await;
    assert!(is_listed());
}

/// Appends a record that would end a recording of the topic `a`, and makes the topic available
/// again.
async fn end_earlier_recording(hub: &Hub, shared: &Shared, kind: &str) {
    match kind {
        "finish" => hub.topic("a").finish().await.unwrap(),
        "stop" => hub.topic("a").stop_recording().await.unwrap(),
        _ => shared.append_event("a", "will"),
    }
    hub.topic("a").remove().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn end_of_earlier_recording_in_a_copy_ends_no_later_one() {
    for kind in ["finish", "stop", "will"] {
        for page in [1, usize::MAX] {
            let shared = Shared::new(PLENTY);
            let (hub, connection) = connect(&shared).await;
            connection.page.store(page, Relaxed);
            end_earlier_recording(&hub, &shared, kind).await;
            let (sender, items) = channel();
            let recording = record(&hub, "a", items).start();
            sender.send(Event::new("1")).unwrap();
            sleep(SECOND).await;
            // Both failovers keep all records.
            for n in 2..4 {
                fail_over(&shared, 0);
                sender.send(Event::display(n)).expect("the recording runs");
                sleep(SECOND * 5).await;
            }
            drop(sender);
            assert_eq!(recording.outcome().await, Outcome::Finished, "{kind}");
            assert!(log(&shared, "a").ends_with(&["1", "2", "3", "end", "."].map(String::from)), "{kind}");
        }
    }
}

/// Runs a recording of the topic `a` that ends in this way, and makes the topic available again.
async fn run_earlier_recording(hub: &Hub, shared: &Shared, end: &str) {
    let (sender, items) = channel();
    let earlier = record(hub, "a", items).start();
    sender.send(Event::new("0")).unwrap();
    sleep(SECOND).await;
    match end {
        "stop" => hub.topic("a").stop_recording().await.unwrap(),
        "will" => shared.append_event("a", "will"),
        _ => drop(sender),
    }
    earlier.outcome().await;
    // The node reports in a sign of life that it has no recording any more.
    sleep(SECOND).await;
    hub.topic("a").remove().await.unwrap();
}

/// Returns the records of the log up to the removal of the topic `a`.
fn through_removal(shared: &Shared) -> Vec<Record> {
    let mut records = shared.log().held();
    let removal = records.iter().rposition(|record| record.kind == RecordKind::Remove).expect("a topic was removed");
    records.truncate(removal + 1);
    records
}

/// The node has not read the first sign of life of the recording when the log is replaced.
#[tokio::test(start_paused = true)]
async fn copied_end_ends_no_recording_with_unread_beat() {
    for end in ["finish", "stop", "will"] {
        for is_announced in [true, false] {
            let shared = Shared::new(PLENTY);
            let (hub, connection) = connect(&shared).await;
            run_earlier_recording(&hub, &shared, end).await;
            connection.set(if is_announced { Mode::Lags } else { Mode::ReadsOnly });
            let (sender, items) = channel();
            let recording = record(&hub, "a", items).start();
            sender.send(Event::new("1")).unwrap();
            sleep(SECOND).await;
            assert_eq!(log(&shared, "a").last().is_some_and(|last| last == "1"), is_announced, "{end}");
            fail_over(&shared, 0);
            connection.page.store(1, Relaxed);
            connection.set(Mode::Works);
            sleep(SECOND * 5).await;
            drop(sender);
            assert_eq!(recording.outcome().await, Outcome::Finished, "{end}, announced: {is_announced}");
            assert!(
                log(&shared, "a").ends_with(&["1", "end", "."].map(String::from)),
                "{end}: {:?}",
                log(&shared, "a")
            );
        }
    }
}

/// The node reads the copy slowly, and a recording is started meanwhile.
#[tokio::test(start_paused = true)]
async fn unread_end_counts_only_while_the_topic_is_finished() {
    for is_removed in [true, false] {
        let shared = Shared::new(PLENTY);
        let (hub, connection) = connect(&shared).await;
        (0..10).for_each(|n| shared.append_event("b", &n.to_string()));
        hub.topic("a").finish().await.unwrap();
        if is_removed {
            hub.topic("a").remove().await.unwrap();
        }
        connection.page.store(1, Relaxed);
        connection.lag.store(1_000, Relaxed);
        fail_over(&shared, 0);
        // The node notices the failover, and reads the first records.
        sleep(SECOND * 5).await;
        let (sender, items) = channel();
        let recording = record(&hub, "a", items).start();
        sender.send(Event::new("1")).unwrap();
        drop(sender);
        let outcome = timeout(SECOND * 60, recording.outcome()).await.expect("the recording ends");
        let expected = if is_removed { Outcome::Finished } else { Outcome::Interrupted };
        assert_eq!(outcome, expected);
        let expected: &[_] = if is_removed { &[".", "", "1", "end", "."] } else { &["."] };
        assert_eq!(log(&shared, "a"), expected);
    }
}

/// The copy has the end of the earlier recording, and nothing of the later one.
#[tokio::test(start_paused = true)]
async fn copied_end_ends_no_recording_that_it_lacks() {
    for end in ["finish", "stop", "will"] {
        for has_grown in [false, true] {
            let shared = Shared::new(PLENTY);
            let (hub, connection) = connect(&shared).await;
            run_earlier_recording(&hub, &shared, end).await;
            let (sender, items) = channel();
            let recording = record(&hub, "a", items).start();
            sender.send(Event::new("1")).unwrap();
            sleep(SECOND).await;
            shared.replace(PLENTY, through_removal(&shared));
            if has_grown {
                // The copy has another record at the position of the first sign of life.
                (0..20).for_each(|n| shared.append_event("b", &n.to_string()));
            }
            connection.page.store(1, Relaxed);
            sleep(SECOND * 5).await;
            sender.send(Event::new("2")).expect("the recording runs");
            drop(sender);
            assert_eq!(recording.outcome().await, Outcome::Finished, "{end}, longer: {has_grown}");
            assert!(
                log(&shared, "a").ends_with(&["2", "end", "."].map(String::from)),
                "{end}: {:?}",
                log(&shared, "a")
            );
        }
    }
}

/// The node of the recording dies with the failover that loses the recording.
#[tokio::test(start_paused = true)]
async fn recording_that_a_copy_lacks_is_taken_over() {
    for end in ["finish", "will"] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, Hub::builder).await;
        run_earlier_recording(&hubs[0], &shared, end).await;
        let (sender, items) = channel();
        let _recording = record(&hubs[0], "a", items).start();
        sender.send(Event::new("1")).unwrap();
        sleep(SECOND).await;
        connections[0].set(Mode::Hangs);
        shared.replace(PLENTY, through_removal(&shared));
        sleep(LEASE * 2).await;
        let records = log(&shared, "a");
        let removal = records.iter().rposition(|text| text.is_empty()).expect("the topic was removed");
        assert_eq!(records[removal + 1..], ["will", "."], "{end}: {records:?}");
    }
}

/// The first failover loses the recording. A copy replaces the log between the will and the end,
/// after a late sign of life of the dead node.
#[tokio::test(start_paused = true)]
async fn will_before_a_late_beat_is_not_repeated() {
    let shared = Shared::new(PLENTY);
    let (_hub, connection) = connect(&shared).await;
    (0..20).for_each(|n| shared.append_event("b", &n.to_string()));
    shared.append(vec![part(1, 0, true, &["a"])]);
    sleep(SECOND).await;
    shared.replace(PLENTY, Vec::new());
    // Before the node appends the end, it waits until it has read the will.
    connection.lag.store(400, Relaxed);
    let will = async {
        while log(&shared, "a") != ["will"] {
            sleep(SECOND / 100).await;
        }
    };
    timeout(LEASE * 2, will).await.expect("the node publishes the will");
    connection.set(Mode::ReadsOnly);
    shared.append(vec![part(2, 0, true, &["a"])]);
    sleep(SECOND * 3).await;
    fail_over(&shared, 0);
    sleep(SECOND * 3).await;
    assert_eq!(log(&shared, "a"), ["will"]);
    connection.set(Mode::Works);
    sleep(LEASE * 3).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

/// The other node also reads the end of the earlier recording a second time.
#[tokio::test(start_paused = true)]
async fn later_recording_is_taken_over_in_a_copy() {
    for kind in ["finish", "will"] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, Hub::builder).await;
        end_earlier_recording(&hubs[0], &shared, kind).await;
        let (sender, items) = channel();
        let _recording = record(&hubs[0], "a", items).start();
        sender.send(Event::new("1")).unwrap();
        sleep(SECOND * 8).await;
        fail_over(&shared, 0);
        connections[0].set(Mode::Hangs);
        sleep(LEASE * 2).await;
        assert!(log(&shared, "a").ends_with(&["1", "will", "."].map(String::from)), "{kind}: {:?}", log(&shared, "a"));
    }
}

/// The node is cut off while another node takes over its recording in another log, which is no
/// copy. The takeover is at smaller positions than the start of the recording.
#[tokio::test(start_paused = true)]
async fn takeover_in_another_log_ends_the_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    (0..20).for_each(|n| shared.append_event("b", &n.to_string()));
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Fails);
    shared.replace(PLENTY, Vec::new());
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
    (0..40).for_each(|n| shared.append_event("b", &n.to_string()));
    connections[0].page.store(1, Relaxed);
    connections[0].set(Mode::Works);
    let _is_running = sender.send(Event::new("2"));
    assert_eq!(timeout(LEASE, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

/// A request to stop the recording is only in the other log, before the node switches to it.
#[tokio::test(start_paused = true)]
async fn stop_in_another_log_stops_the_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    (0..20).for_each(|n| shared.append_event("b", &n.to_string()));
    let (_sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Fails);
    shared.replace(PLENTY, Vec::new());
    hubs[1].topic("a").stop_recording().await.unwrap();
    (0..40).for_each(|n| shared.append_event("b", &n.to_string()));
    connections[0].set(Mode::Works);
    assert_eq!(timeout(LEASE, recording.outcome()).await, Ok(Outcome::Stopped));
}

/// The node gets the response to an append after the log was replaced by a copy with its record.
/// It reads this record while the backend refuses an equal event.
#[tokio::test(start_paused = true)]
async fn event_equal_to_one_with_a_late_response_is_not_lost() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = connect(&shared).await;
    let (sender, items) = channel();
    let recording = record(&hub, "a", items).start();
    sleep(SECOND).await;
    (0..3).for_each(|n| shared.append_event("b", &n.to_string()));
    sleep(SECOND).await;
    connection.set(Mode::IsLate);
    sender.send(Event::new("tick")).unwrap();
    sleep(SECOND / 10).await;
    assert_eq!(log(&shared, "a"), ["tick"]);
    // The node switches to the copy within two seconds, and gets the response after four seconds.
    // It reads the record more than six seconds later, after four other records.
    connection.page.store(1, Relaxed);
    connection.lag.store(1_500, Relaxed);
    fail_over(&shared, 0);
    connection.max_bytes.store(1, Relaxed);
    sender.send(Event::new("tick")).unwrap();
    sleep(SECOND * 12).await;
    connection.set(Mode::Works);
    connection.lag.store(0, Relaxed);
    connection.max_bytes.store(usize::MAX, Relaxed);
    sleep(SECOND * 5).await;
    assert_eq!(log(&shared, "a"), ["tick", "tick"]);
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
    assert_eq!(log(&shared, "a"), ["tick", "tick", "end", "."]);
}

/// Returns a part of a sign of life of a node with recordings of these topics.
fn part(number: u64, index: u64, is_last: bool, topics: &[&str]) -> Record {
    let recording = |topic: &&str| json!([topic, topic.as_bytes()[0], "data: will\n\n", false]);
    let recordings: Vec<_> = topics.iter().map(recording).collect();
    let text = json!({
        "node": 7, "beat": number, "lease": 10_000, "recordings": recordings, "watching": [],
        "first": index == 0, "part": index, "last": is_last
    });
    Record::new("tower-sse/nodes", RecordKind::State, format!("data: {text}\n\n"))
}

/// The log has a sign of life after the end of a recording that it lists, because it was late.
/// Another publisher continues the topic.
#[tokio::test(start_paused = true)]
async fn late_sign_of_life_in_a_copy_revives_no_recording() {
    for failovers in 1..3 {
        let shared = Shared::new(PLENTY);
        let (_hubs, connections) = two(&shared, Hub::builder).await;
        shared.append(vec![part(1, 0, true, &["a", "b"])]);
        shared.append(vec![Record::new("a", RecordKind::Finish, "")]);
        shared.append(vec![part(2, 0, true, &["a", "b"])]);
        shared.append_event("a", "foreign");
        sleep(SECOND).await;
        // The nodes notice each failover, and read only the last log.
        connections.iter().for_each(|connection| connection.set(Mode::Lags));
        for _ in 0..failovers {
            fail_over(&shared, 0);
            sleep(SECOND * 3).await;
        }
        connections.iter().for_each(|connection| connection.set(Mode::Works));
        sleep(SECOND).await;
        shared.append(vec![part(3, 0, true, &["b"])]);
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, "a"), [".", "foreign"], "after {failovers} failovers");
    }
}

/// A node has written the second part of a sign of life to the log that was lost, and the third
/// part to its copy.
#[tokio::test(start_paused = true)]
async fn sign_of_life_without_its_middle_part_ends_no_recording() {
    let shared = Shared::new(PLENTY);
    let _hubs = two(&shared, Hub::builder).await;
    shared.append(vec![part(1, 0, true, &["a", "b", "c"])]);
    shared.append(vec![part(2, 0, false, &["a"])]);
    sleep(SECOND).await;
    shared.replace(PLENTY, shared.log().held());
    shared.append(vec![part(2, 2, true, &["c"])]);
    sleep(SECOND * 5).await;
    for (index, topic) in ["a", "b", "c"].into_iter().enumerate() {
        shared.append(vec![part(3, index as u64, index == 2, &[topic])]);
    }
    sleep(SECOND * 5).await;
    assert_eq!(["a", "b", "c"].map(|topic| log(&shared, topic)), [[""; 0]; 3]);
    sleep(LEASE * 2).await;
    assert_eq!(["a", "b", "c"].map(|topic| log(&shared, topic)), [["will", "."]; 3]);
}

/// A backend that keeps its epoch when the log is replaced.
pub(crate) struct KeepsEpoch(pub(crate) Faulty);

impl Backend for KeepsEpoch {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let mut bounds = self.0.bounds().await?;
        bounds.epoch = 1;
        Ok(bounds)
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        Ok(Appended::new(1, self.0.append(records).await?.position))
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        _: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let epoch = self.0.bounds().await?.epoch;
        let appended = self.0.append_if_unchanged(records, epoch, since).await?;
        Ok(appended.map(|appended| Appended::new(1, appended.position)))
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let mut page = self.0.read(topics, after).await?;
        page.epoch = 1;
        Ok(page)
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let mut page = self.0.follow(after).await?;
        page.epoch = 1;
        Ok(page)
    }
}

/// The log loses the will of a takeover, and keeps its epoch.
#[tokio::test(start_paused = true)]
async fn lost_will_is_repeated_in_a_log_with_the_same_epoch() {
    let shared = Shared::new(PLENTY);
    let connections = [shared.connect(), shared.connect()];
    let hub = |connection: &Faulty| Hub::builder().backend(KeepsEpoch(connection.clone())).connect();
    let hubs = [hub(&connections[0]).await.unwrap(), hub(&connections[1]).await.unwrap()];
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    let will = async {
        while log(&shared, "a") != ["1", "will"] {
            sleep(SECOND / 1000).await;
        }
    };
    // Before the node appends the end, it waits until it has read the will.
    connections[1].lag.store(400, Relaxed);
    timeout(LEASE * 2, will).await.expect("the node publishes the will");
    connections[1].set(Mode::ReadsOnly);
    sleep(SECOND).await;
    connections[1].set(Mode::Fails);
    fail_over(&shared, 1);
    sleep(SECOND).await;
    // The node notices that the log has become shorter. After a further record, it could not.
    connections[1].set(Mode::ReadsOnly);
    sleep(SECOND * 3).await;
    connections[1].set(Mode::Works);
    sleep(LEASE * 3).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
}

/// The node reads the end of an earlier recording again while the backend refuses the takeover.
#[tokio::test(start_paused = true)]
async fn takeover_continues_after_a_copied_finish_record() {
    let shared = Shared::new(PLENTY);
    let connections = [shared.connect(), shared.connect()];
    let hub = |connection: &Faulty| Hub::builder().backend(KeepsEpoch(connection.clone())).connect();
    let hubs = [hub(&connections[0]).await.unwrap(), hub(&connections[1]).await.unwrap()];
    run_earlier_recording(&hubs[0], &shared, "finish").await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND * 5).await;
    connections[0].set(Mode::Hangs);
    connections[1].max_bytes.store(1, Relaxed);
    let refusal = async {
        while connections[1].asked.refusals.load(Relaxed) == 0 {
            sleep(SECOND / 100).await;
        }
    };
    timeout(LEASE * 2, refusal).await.expect("the node tries to take the recording over");
    fail_over(&shared, 1);
    // The node notices after three checks that the log has become shorter.
    sleep(LEASE).await;
    connections[1].max_bytes.store(usize::MAX, Relaxed);
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["0", "end", ".", "", "will", "."]);
}

/// The node has read the end of the topic, but not the log up to the start of the recording.
#[tokio::test(start_paused = true)]
async fn recording_publishes_nothing_after_an_unread_end() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = connect(&shared).await;
    let _other = record(&hub, "b", tokio_stream::pending()).start();
    connection.page.store(1, Relaxed);
    connection.lag.store(200, Relaxed);
    // The start is at different times after the last sign of life.
    for offset in 0..10 {
        sleep(SECOND * 3 + SECOND / 10 * offset).await;
        let topic = format!("a{offset}");
        shared.append(vec![Record::new(topic.as_str(), RecordKind::Finish, "")]);
        for _ in 0..5 {
            hub.topic("c").publish(Event::new("x")).await.unwrap();
        }
        let (sender, items) = channel();
        let recording = record(&hub, &topic, items).start();
        sender.send(Event::new("1")).unwrap();
        assert_eq!(timeout(SECOND * 60, recording.outcome()).await, Ok(Outcome::Interrupted));
        assert_eq!(log(&shared, &topic), ["."]);
    }
}
