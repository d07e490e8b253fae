//! Recordings on several nodes: a topic gets every event of its recording once and in order, then
//! one end, and nothing after it, whatever happens to the nodes and the backend.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    settle, two,
};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*};
use serde_json::json;
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::{
    runtime,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tower_sse::{
    Event,
    hub::{
        ErrorKind, Hub, Outcome, Recorder, Start,
        backend::{Backend, Record, RecordKind},
    },
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const LEASE: Duration = Duration::from_secs(10);

pub(crate) fn channel() -> (mpsc::UnboundedSender<Event>, impl Stream<Item = Event> + Send + 'static) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// Returns what the log has of a topic: the data of its events, and `.` for the end.
pub(crate) fn log(shared: &Shared, topic: &str) -> Vec<String> {
    let of_topic = |record: &Record| (*record.topic == *topic).then(|| text(record));
    shared.log().all.values().filter_map(of_topic).collect()
}

fn text(record: &Record) -> String {
    let data = String::from_utf8(record.event.to_vec()).unwrap();
    match record.kind {
        RecordKind::Finish => ".".to_owned(),
        _ => data.trim_start_matches("data: ").trim_end().to_owned(),
    }
}

pub(crate) fn record(hub: &Hub, topic: &str, items: impl Stream<Item = Event> + Send + 'static) -> Recorder {
    hub.topic(topic).record(items).will(Event::new("will")).end_with(Event::new("end"))
}

#[tokio::test(start_paused = true)]
async fn dead_node_is_replaced_within_lease_and_a_second() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let third = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    for round in 0..20 {
        let topic = format!("answer/{round}");
        let (sender, items) = channel();
        let recording = record(&hubs[0], &topic, items).start();
        sender.send(Event::new("1")).unwrap();
        sleep(Duration::from_millis(500 + 137 * round)).await;
        let mut reader = third.topic(&topic).subscribe(Start::Earliest).await.unwrap();
        connections[0].set(Mode::Hangs);
        sleep(LEASE - SECOND * 4).await;
        assert_eq!(log(&shared, &topic), ["1"], "the node may be alive");
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, &topic), ["1", "will", "."]);
        while timeout(SECOND, reader.next()).await.expect("the client gets the end").is_some() {}
        // The node was only paused. It may have noticed the end already.
        let _is_running = sender.send(Event::new("2"));
        connections[0].set(Mode::Works);
        assert_eq!(timeout(SECOND * 30, recording.outcome()).await, Ok(Outcome::Interrupted));
        sleep(LEASE * 2).await;
        assert_eq!(log(&shared, &topic), ["1", "will", "."], "nothing follows");
    }
}

/// A program that restarts records the rest of an answer in the same topic.
#[tokio::test(start_paused = true)]
async fn recording_replaces_that_of_a_dead_node() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let third = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    // The other recording is on the node that takes over, and then on a third node.
    for (topic, hub) in [("here", &hubs[1]), ("elsewhere", &third)] {
        let (sender, items) = channel();
        let _dead = record(&hubs[0], topic, items).start();
        sender.send(Event::new("1")).unwrap();
        sleep(SECOND).await;
        connections[0].set(Mode::Hangs);
        let (sender, items) = channel();
        let recording = record(hub, topic, items).start();
        sender.send(Event::new("2")).unwrap();
        sleep(LEASE * 2).await;
        sender.send(Event::new("3")).unwrap();
        drop(sender);
        assert_eq!(recording.outcome().await, Outcome::Finished);
        assert_eq!(log(&shared, topic), ["1", "2", "3", "end", "."]);
        connections[0].set(Mode::Works);
        sleep(LEASE).await;
    }
}

/// A living node settles one of the two recordings, and takes the other one over.
#[tokio::test(start_paused = true)]
async fn topic_recorded_by_two_dead_nodes_is_finished() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let mut recordings = Vec::new();
    for hub in &hubs {
        let (sender, items) = channel();
        sender.send(Event::new("1")).unwrap();
        recordings.push((sender, record(hub, "a", items).start()));
        sleep(SECOND).await;
    }
    connections.iter().for_each(|connection| connection.set(Mode::Hangs));
    // For this node, both are dead at the same moment.
    let _living = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "1", "will", "."]);
}

#[tokio::test(start_paused = true)]
async fn node_without_will_finishes_its_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let _recording = hubs[0].topic("a").record(items).lease(SECOND).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    sleep(SECOND * 3).await;
    assert_eq!(log(&shared, "a"), ["1", "."]);
}

/// The node that takes over dies as well, after the will and before the end.
#[tokio::test(start_paused = true)]
async fn will_is_not_repeated_by_a_third_node() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    // The other node stores the will, and gets no response any more.
    connections[1].set(Mode::LosesAnswers);
    while !log(&shared, "a").contains(&"will".to_owned()) {
        sleep(Duration::from_millis(1)).await;
    }
    connections[1].set(Mode::Hangs);
    let third = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    sleep(LEASE * 3).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
    drop(third);
}

#[tokio::test(start_paused = true)]
async fn outage_pauses_a_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    for (topic, mode) in [("fails", Mode::Fails), ("hangs", Mode::Hangs), ("lost", Mode::LosesAnswers)] {
        let (sender, items) = channel();
        let recording = record(&hubs[0], topic, items).start();
        let mut expected = Vec::new();
        for n in 0..500 {
            if n == 100 {
                connections.iter().for_each(|connection| connection.set(mode));
            }
            // The other node comes back first, and gives this node a whole lease.
            if n == 400 {
                connections[1].set(Mode::Works);
            }
            if n == 450 {
                connections[0].set(Mode::Works);
            }
            sender.send(Event::display(n)).unwrap();
            expected.push(n.to_string());
            sleep(Duration::from_millis(100)).await;
        }
        drop(sender);
        assert_eq!(timeout(SECOND * 60, recording.outcome()).await, Ok(Outcome::Finished), "{topic}");
        expected.extend(["end".to_owned(), ".".to_owned()]);
        assert_eq!(log(&shared, topic), expected, "{topic}");
    }
}

/// The event has the same bytes as the beginning of a record of presence.
#[tokio::test(start_paused = true)]
async fn recorded_event_that_looks_like_presence_is_not_repeated() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::LosesAnswers);
    let event = r#"{"presence":"online"}"#;
    sender.send(Event::new(event)).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    drop(sender);
    assert_eq!(timeout(SECOND * 60, recording.outcome()).await, Ok(Outcome::Finished));
    assert_eq!(log(&shared, "a"), [event, "end", "."]);
}

#[tokio::test(start_paused = true)]
async fn other_node_stops_a_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = two(&shared, Hub::builder).await;
    // A request without a recording does not stop a later one.
    hubs[1].topic("a").stop_recording().await.unwrap();
    settle().await;
    let (_sender, items) = channel();
    let recording = hubs[0].topic("a").record(items).on_stop(|_| Some(Event::new("stopped"))).start();
    sleep(SECOND).await;
    hubs[1].topic("b").stop_recording().await.unwrap();
    assert!(timeout(SECOND * 60, recording.outcome()).await.is_err());
    hubs[1].topic("a").stop_recording().await.unwrap();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Stopped));
    assert_eq!(log(&shared, "a"), ["stopped", "."]);
}

#[tokio::test(start_paused = true)]
async fn subscribers_of_other_nodes_keep_a_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let recording = record(&hubs[0], "a", items).abandon_after(SECOND * 5).start();
    sleep(SECOND * 3).await;
    let subscription = hubs[1].topic("a").subscribe(Start::Earliest).await.unwrap();
    assert!(timeout(SECOND * 60, recording.outcome()).await.is_err());
    // It is unknown during an outage.
    connections.iter().for_each(|connection| connection.set(Mode::Fails));
    assert!(timeout(SECOND * 60, recording.outcome()).await.is_err());
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    assert!(timeout(SECOND * 60, recording.outcome()).await.is_err());
    drop(subscription);
    assert!(timeout(SECOND * 4, recording.outcome()).await.is_err());
    assert_eq!(timeout(SECOND * 5, recording.outcome()).await, Ok(Outcome::Abandoned));
}

#[tokio::test(start_paused = true)]
async fn recording_continues_in_another_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    shared.replace(PLENTY, Vec::new());
    sender.send(Event::new("2")).unwrap();
    sleep(SECOND * 5).await;
    sender.send(Event::new("3")).unwrap();
    sleep(SECOND).await;
    assert_eq!(log(&shared, "a"), ["2", "3"]);
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["2", "3", "will", "."]);
    drop(recording);
}

/// The lease of a node is the shortest one of its recordings.
#[tokio::test(start_paused = true)]
async fn end_of_recording_with_short_lease_ends_no_other_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, _connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    let (short, items) = channel();
    let other = record(&hubs[0], "b", items).lease(SECOND).start();
    sleep(SECOND * 2).await;
    drop(short);
    assert_eq!(other.outcome().await, Outcome::Finished);
    sleep(LEASE * 2).await;
    assert_eq!(log(&shared, "a"), ["1"]);
}

/// A response of the backend takes longer than a third of the lease.
#[tokio::test(start_paused = true)]
async fn dead_node_with_very_short_lease_is_replaced() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    connections[1].latency.store(40, Relaxed);
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).lease(SECOND / 10).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND / 10).await;
    connections[0].set(Mode::Hangs);
    sleep(SECOND * 10).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
}

/// A recording without a will has an empty one.
#[tokio::test(start_paused = true)]
async fn empty_record_of_another_program_ends_no_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, _connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = hubs[0].topic("a").record(items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    shared.append(vec![Record::new("a", RecordKind::Event, "")]);
    sleep(SECOND).await;
    sender.send(Event::new("2")).unwrap();
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
    assert_eq!(log(&shared, "a"), ["1", "", "2", "."]);
}

#[tokio::test(start_paused = true)]
async fn topic_can_be_recorded_again() {
    let shared = Shared::new(PLENTY);
    let builder = || Hub::builder().max_age(SECOND);
    let (hubs, connections) = two(&shared, builder).await;
    for round in 0..3 {
        let (sender, items) = channel();
        let recording = record(&hubs[round % 2], "a", items).start();
        sender.send(Event::display(round)).unwrap();
        sleep(SECOND).await;
        drop(sender);
        assert_eq!(recording.outcome().await, Outcome::Finished);
        // The hub forgets that the topic is finished.
        sleep(SECOND * 10).await;
    }
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("3")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["0", "end", ".", "1", "end", ".", "2", "end", ".", "3", "will", "."]);
}

/// Returns the sign of life of a node with these recordings of the topic `a`.
fn beat(number: u64, recordings: &[u64]) -> Record {
    let recordings: Vec<_> = recordings.iter().map(|id| json!(["a", id, "data: will\n\n", false])).collect();
    let text = json!({
        "node": 7, "beat": number, "lease": 2000, "recordings": recordings, "watching": [], "first": true, "last": true
    });
    Record::new("tower-sse/nodes", RecordKind::State, format!("data: {text}\n\n"))
}

/// A request of the node was slow, and its next one was faster.
#[tokio::test(start_paused = true)]
async fn earlier_sign_of_life_that_arrives_later_is_ignored() {
    let shared = Shared::new(PLENTY);
    let _hubs = two(&shared, Hub::builder).await;
    let connection = shared.connect();
    for (number, recordings) in [(1, &[1_u64][..]), (3, &[1]), (2, &[])] {
        connection.append(vec![beat(number, recordings)]).await.unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(log(&shared, "a"), [""; 0], "the node lives");
    sleep(SECOND * 3).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

/// A node is paused while it sends a sign of life, which arrives after the end of its recording.
#[tokio::test(start_paused = true)]
async fn late_sign_of_life_revives_no_recording() {
    let shared = Shared::new(PLENTY);
    let _hubs = two(&shared, Hub::builder).await;
    let connection = shared.connect();
    // The last two beats arrive late. The nodes did not know these recordings before the end of the
    // topic.
    for (id, number) in [(1, 1), (1, 2), (2, 3), (3, 2)] {
        connection.append(vec![beat(number, &[id])]).await.unwrap();
        sleep(SECOND * 4).await;
        assert_eq!(log(&shared, "a"), ["will", "."], "{id}");
    }
}

/// A shutdown without a drain does not wait for the lease.
#[tokio::test(start_paused = true)]
async fn shutdown_hands_recordings_to_another_node() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    hubs[0].shutdown();
    assert_eq!(recording.outcome().await, Outcome::Interrupted);
    sleep(SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
}

#[tokio::test(start_paused = true)]
async fn refused_events_fail_a_recording_after_a_minute() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let fails = |hub: &Hub, topic: &str| {
        let (sender, items) = channel();
        let recording = record(hub, topic, items).on_error(|error| Some(Event::display(error))).start();
        (sender, recording)
    };
    connections[0].set(Mode::Refuses);
    let (sender, recording) = fails(&hubs[0], "a");
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    sender.send(Event::new("large")).unwrap();
    assert!(timeout(SECOND * 59, recording.outcome()).await.is_err());
    assert_eq!(timeout(SECOND * 3, recording.outcome()).await, Ok(Outcome::Failed));
    assert_eq!(log(&shared, "a"), ["1", "the record is too big", "."]);

    // The event of `end_with` is refused.
    let recording = hubs[0].topic("end").record(tokio_stream::once(Event::new("1")));
    let recording = recording.on_error(|error| Some(Event::display(error))).end_with(Event::new("large")).start();
    assert_eq!(timeout(SECOND * 63, recording.outcome()).await, Ok(Outcome::Failed));
    assert_eq!(log(&shared, "end"), ["1", "the record is too big", "."]);

    // A recording that is refused can be stopped.
    let (sender, recording) = fails(&hubs[0], "b");
    sender.send(Event::new("large")).unwrap();
    sleep(SECOND).await;
    recording.stop();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Stopped));
    assert_eq!(log(&shared, "b"), ["."], "without the refused event");
}

#[tokio::test(start_paused = true)]
async fn lease_is_that_of_the_own_recordings() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = two(&shared, Hub::builder).await;
    let (_one, items) = channel();
    let _long = record(&hubs[0], "a", items).start();
    let (other, items) = channel();
    let short = record(&hubs[1], "b", items).lease(SECOND / 10).start();
    sleep(SECOND).await;
    drop(other);
    short.outcome().await;
    let beats: Vec<_> = log(&shared, "tower-sse/nodes").into_iter().filter(|beat| beat.contains("[\"a\"")).collect();
    assert!(beats.iter().all(|beat| beat.contains("\"lease\":10000")), "{beats:?}");
}

#[tokio::test(start_paused = true)]
async fn stop_reaches_a_recording_that_has_just_started() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    connections[0].set(Mode::LosesAnswers);
    let recording = record(&hubs[0], "a", items).start();
    hubs[1].topic("a").stop_recording().await.unwrap();
    connections[0].set(Mode::Works);
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Stopped));
}

#[tokio::test(start_paused = true)]
async fn node_that_missed_evicted_records_publishes_no_event() {
    let shared = Shared::new(10);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Lags);
    sleep(SECOND).await;
    // The other node finishes the topic, and the log evicts that.
    hubs[1].topic("a").finish().await.unwrap();
    for n in 0..20 {
        hubs[1].topic("b").publish(Event::display(n)).await.unwrap();
    }
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    assert_eq!(timeout(SECOND * 5, recording.outcome()).await, Ok(Outcome::Interrupted));
    // The node does not know that the topic is finished. A second end has no effect on readers.
    assert_eq!(log(&shared, "a"), [".", "."]);
}

#[tokio::test(start_paused = true)]
async fn finished_topic_is_not_recorded_again() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = two(&shared, Hub::builder).await;
    hubs[1].topic("a").finish().await.unwrap();
    settle().await;
    let recording = record(&hubs[0], "a", tokio_stream::once(Event::new("1"))).start();
    assert_eq!(recording.outcome().await, Outcome::Interrupted);
    assert_eq!(log(&shared, "a"), ["."]);
}

/// The node has not read the end of the topic yet.
#[tokio::test(start_paused = true)]
async fn node_cannot_publish_after_its_own_recording() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    for lag in [0, 500] {
        let topic = format!("lag/{lag}");
        connections[0].lag.store(lag, Relaxed);
        let recording = record(&hubs[0], &topic, tokio_stream::once(Event::new("1"))).start();
        assert_eq!(timeout(SECOND * 10, recording.outcome()).await, Ok(Outcome::Finished));
        let late = hubs[0].topic(&topic).publish(Event::new("late")).await;
        assert_eq!(late.map_err(|error| error.kind()), Err(ErrorKind::Finished), "{lag} ms");
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, &topic), ["1", "end", "."]);
        // The hub forgets the topic with its events, and has no other note of its end.
        sleep(Duration::from_secs(2 * 3600)).await;
        hubs[0].topic(&topic).publish(Event::new("again")).await.expect("the topic is new");
    }
}

/// The node reads the end of the topic before it gets the response to its append.
#[tokio::test(start_paused = true)]
async fn topic_can_be_used_again_after_a_slow_finish() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    connections[0].latency.store(200, Relaxed);
    hubs[0].topic("a").finish().await.unwrap();
    sleep(Duration::from_secs(2 * 3600)).await;
    hubs[0].topic("a").publish(Event::new("again")).await.expect("the topic is new");
}

/// The node has not read the end of the topic yet.
#[tokio::test(start_paused = true)]
async fn node_cannot_publish_after_its_takeover() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    connections[1].lag.store(500, Relaxed);
    while !log(&shared, "a").contains(&".".to_owned()) {
        sleep(Duration::from_millis(1)).await;
    }
    let late = hubs[1].topic("a").publish(Event::new("late")).await;
    assert_eq!(late.map_err(|error| error.kind()), Err(ErrorKind::Finished));
    sleep(SECOND * 5).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
}

/// Another publisher publishes the same text, and the append of the recording is refused for that.
#[tokio::test(start_paused = true)]
async fn event_of_another_publisher_is_not_taken_for_its_own() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Lags);
    sleep(SECOND).await;
    hubs[1].topic("a").publish(Event::new("same")).await.unwrap();
    sender.send(Event::new("same")).unwrap();
    sleep(SECOND).await;
    connections[0].set(Mode::Works);
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
    assert_eq!(log(&shared, "a"), ["same", "same", "end", "."]);
}

#[tokio::test(start_paused = true)]
async fn topic_of_the_nodes_is_reserved() {
    let shared = Shared::new(PLENTY);
    let (hubs, _) = two(&shared, Hub::builder).await;
    for hub in [&hubs[0], &Hub::new()] {
        let topic = hub.topic("tower-sse/nodes");
        let published = topic.publish(Event::new("{}")).await.unwrap_err();
        let subscribed = hub.subscribe(["a", "tower-sse/nodes"], Start::Latest).await.unwrap_err();
        let finished = topic.finish().await.unwrap_err();
        for error in [published, subscribed, finished] {
            assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::ReservedTopic, 400));
        }
    }
    let forged = Event::new(r#"{"stop":"a"}"#);
    for hub in [&hubs[0], &Hub::new()] {
        let recording = record(hub, "tower-sse/nodes", tokio_stream::once(forged.clone())).start();
        assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Interrupted));
    }
    assert!(log(&shared, "tower-sse/nodes").iter().all(|record| record.contains("\"recordings\":[]")));
}

/// The node is cut off during an append. When it comes back, it reads the end of the topic by
/// another node, and a request to stop.
#[tokio::test(start_paused = true)]
async fn stopped_recording_publishes_nothing_after_the_end() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    for round in 0..40 {
        let topic = format!("a/{round}");
        let (sender, items) = channel();
        let recording = hubs[0].topic(&topic).record(items).on_stop(|_| Some(Event::new("stopped"))).start();
        sleep(SECOND).await;
        connections[0].set(Mode::Fails);
        sender.send(Event::new("1")).unwrap();
        sleep(SECOND).await;
        hubs[1].topic(&topic).finish().await.unwrap();
        hubs[1].topic(&topic).stop_recording().await.unwrap();
        sleep(Duration::from_millis(round * 17)).await;
        connections[0].set(Mode::Works);
        timeout(SECOND * 5, recording.outcome()).await.expect("it ends");
        assert_eq!(log(&shared, &topic), ["."]);
    }
}

/// A node publishes its own will, and dies before it finishes the topic.
#[tokio::test(start_paused = true)]
async fn will_of_a_drained_node_is_not_repeated() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    let drained = tokio::spawn({
        let hub = hubs[0].clone();
        async move { hub.drain_recordings(Duration::ZERO).await }
    });
    while !log(&shared, "a").contains(&"will".to_owned()) {
        tokio::task::yield_now().await;
    }
    connections[0].set(Mode::Hangs);
    sleep(LEASE * 3).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
    drained.abort();
}

#[tokio::test(start_paused = true)]
async fn idle_nodes_send_nothing() {
    let shared = Shared::new(PLENTY);
    let (hubs, _connections) = two(&shared, Hub::builder).await;
    let recording = record(&hubs[0], "a", tokio_stream::once(Event::new("1"))).start();
    recording.outcome().await;
    sleep(LEASE).await;
    let before = shared.log().bounds.last;
    sleep(LEASE * 10).await;
    assert_eq!(shared.log().bounds.last, before);
}

/// The start of a recording announces only this recording.
#[tokio::test(start_paused = true)]
async fn announcements_grow_with_the_number_of_recordings() {
    const RECORDINGS: usize = 200;

    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let topic = |n: usize| format!("answers/{n}");
    let mut senders = Vec::new();
    for n in 0..RECORDINGS {
        let (sender, items) = channel();
        sender.send(Event::new("1")).unwrap();
        record(&hubs[0], &topic(n), items).start();
        senders.push(sender);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(log(&shared, &topic(n)), ["1"], "the recording is announced");
    }
    let announced: Vec<_> =
        shared.log().all.into_values().filter(|record| *record.topic == *"tower-sse/nodes").collect();
    let bytes: usize = announced.iter().map(|record| record.event.len()).sum();
    println!("{} announcements of {bytes} bytes", announced.len());
    assert!(bytes < RECORDINGS * 400, "{bytes} bytes");
    // Before the next sign of life with all recordings.
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    for n in 0..RECORDINGS {
        assert_eq!(log(&shared, &topic(n)), ["1", "will", "."], "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn recorded_state_is_a_state_on_all_nodes() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let progress = hubs[0].topic("progress").latest_only();
    let recording = progress.record(items).will(Event::new("will")).start();
    for n in 0..3 {
        sender.send(Event::display(n)).unwrap();
        sleep(SECOND).await;
        assert_eq!(hubs.each_ref().map(|hub| hub.stats().events), [1, 1]);
    }
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    connections[0].set(Mode::Works);
    assert_eq!(recording.outcome().await, Outcome::Interrupted);
    sleep(LEASE).await;
    let of_topic = shared.log().all.into_values().filter(|record| *record.topic == *"progress");
    let (kinds, texts): (Vec<_>, Vec<_>) = of_topic.map(|record| (record.kind, text(&record))).unzip();
    assert_eq!(texts, ["0", "1", "2", "will", "."]);
    assert_eq!(kinds, [[RecordKind::State; 4].as_slice(), &[RecordKind::Finish]].concat());
    assert_eq!(hubs.each_ref().map(|hub| hub.stats().events), [1, 1]);
}

#[derive(Clone, Debug)]
enum Step {
    Produce {
        recording: usize,
        count: usize,
    },
    End {
        recording: usize,
    },
    Set {
        node: usize,
        mode: Mode,
    },
    Pass {
        milliseconds: u64,
    },
    Page {
        node: usize,
        size: usize,
    },
    /// The backend refuses larger appends of recordings. Each record alone fits.
    Limit {
        node: usize,
        bytes: usize,
    },
    /// Another publisher publishes to the topic.
    Foreign {
        recording: usize,
    },
    /// A copy of the log replaces the log.
    FailOver,
}

fn step() -> impl Strategy<Value = Step> {
    let recording = || 0..4_usize;
    let mode = prop_oneof![
        4 => Just(Mode::Works),
        1 => Just(Mode::Fails),
        2 => Just(Mode::Hangs),
        2 => Just(Mode::LosesAnswers),
        1 => Just(Mode::Lags),
    ];
    let pass = prop_oneof![4 => 1..500_u64, 3 => 500..5000_u64, 2 => 5000..30_000_u64];
    prop_oneof![
        6 => (recording(), 1..100_usize).prop_map(|(recording, count)| Step::Produce { recording, count }),
        1 => recording().prop_map(|recording| Step::End { recording }),
        4 => (0..3_usize, mode).prop_map(|(node, mode)| Step::Set { node, mode }),
        5 => pass.prop_map(|milliseconds| Step::Pass { milliseconds }),
        1 => recording().prop_map(|recording| Step::Foreign { recording }),
        1 => (0..3_usize, 1..5_usize).prop_map(|(node, size)| Step::Page { node, size }),
        2 => (0..3_usize, 12..200_usize).prop_map(|(node, bytes)| Step::Limit { node, bytes }),
        1 => Just(Step::FailOver),
    ]
}

/// The recordings 0 to 3 run on the nodes 0 and 1. The node 2 records nothing.
async fn every_topic_is_complete(steps: Vec<Step>) {
    let shared = Shared::new(PLENTY);
    let connections: Vec<Faulty> = (0..3).map(|_| shared.connect()).collect();
    let mut hubs = Vec::new();
    for connection in &connections {
        hubs.push(Hub::builder().backend(connection.clone()).connect().await.unwrap());
    }
    let topics = ["a", "b", "c", "d"];
    for topic in topics {
        // The topic had an earlier recording, which was taken over.
        let earlier = record(&hubs[0], topic, tokio_stream::pending()).start();
        earlier.announced().await.unwrap();
        shared.append_event(topic, "will");
        assert_eq!(earlier.outcome().await, Outcome::Interrupted);
        hubs[0].topic(topic).remove().await.unwrap();
    }
    // The node reports in a sign of life that it has no recording any more.
    sleep(SECOND).await;
    let mut senders = Vec::new();
    let mut recordings = Vec::new();
    for (number, topic) in topics.iter().enumerate() {
        let (sender, items) = channel();
        senders.push(Some(sender));
        recordings.push(record(&hubs[number % 2], topic, items).start());
    }
    let mut produced = [0; 4];
    for step in steps {
        match step {
            Step::Produce { recording, count } => {
                let Some(sender) = &senders[recording] else { continue };
                for _ in 0..count {
                    // The recording has ended if this fails.
                    if sender.send(Event::display(produced[recording])).is_ok() {
                        produced[recording] += 1;
                    }
                }
            }
            Step::End { recording } => senders[recording] = None,
            Step::Set { node, mode } => connections[node].set(mode),
            Step::Page { node, size } => connections[node].page.store(size, Relaxed),
            Step::Limit { node, bytes } => connections[node].max_bytes.store(bytes, Relaxed),
            Step::Pass { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
            Step::Foreign { recording } => {
                let topic = hubs[2].topic(topics[recording]);
                let _result = timeout(SECOND, topic.publish(Event::new("foreign"))).await;
            }
            Step::FailOver => shared.replace(PLENTY, shared.log().held()),
        }
    }
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    senders.clear();
    for (number, topic) in topics.iter().enumerate() {
        let outcome = timeout(SECOND * 120, recordings[number].outcome()).await.expect("the recording ends");
        // The nodes have come back, so a node that has taken over has finished the topic.
        sleep(LEASE * 2).await;
        let records = log(&shared, topic).split_off(3);
        let own: Vec<_> = records.iter().filter(|text| *text != "foreign").cloned().collect();
        let end = own.iter().position(|text| text.parse::<usize>().is_err()).expect("there is an end");
        let (events, end) = own.split_at(end);
        let expected: Vec<_> = (0..events.len()).map(|n| n.to_string()).collect();
        assert_eq!(events, expected, "{topic}: once and in order");
        match outcome {
            Outcome::Finished => {
                assert_eq!(end, ["end", "."], "{topic}");
                assert_eq!(events.len(), produced[number], "{topic}");
            }
            // The node may have been cut off between its last event and the end.
            Outcome::Interrupted => {
                assert_eq!(end.strip_prefix(&["end".to_owned()]).unwrap_or(end), ["will", "."], "{topic}");
            }
            other => panic!("{topic}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn recorded_topic_is_complete_or_has_its_will(steps in vec(step(), 1..60)) {
        let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(every_topic_is_complete(steps).boxed_local());
    }
}
