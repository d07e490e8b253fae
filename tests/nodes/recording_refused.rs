//! Recordings of a dead node, while the backend refuses records.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    recording::{LEASE, SECOND, channel, log, record},
    recording_loss::{RETAINED, append, evict},
    two,
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{advance, sleep, timeout};
use tower_sse::{
    EncodedEvents, Event, SseItem,
    hub::{Hub, Outcome, Recorder, Start},
};

/// Records items that are ready together. An error is the last event.
fn record_all<T: SseItem + Send + 'static>(hub: &Hub, topic: &str, items: Vec<T>) -> Recorder {
    hub.topic(topic).record(tokio_stream::iter(items)).on_error(|error| Some(Event::display(error)))
}

fn numbered(count: usize) -> Vec<Event> {
    (0..count).map(|n| Event::new(format!("{n:03}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn events_before_a_refused_event_are_in_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    connections[0].set(Mode::Refuses);
    let events = || ["1", "2", "large", "3"].map(Event::new).to_vec();
    let encoded: EncodedEvents = events().into_iter().collect();
    let recordings = [
        ("items", record_all(&hubs[0], "items", events()).start()),
        ("encoded", record_all(&hubs[0], "encoded", vec![encoded]).start()),
    ];
    for (topic, recording) in recordings {
        assert_eq!(timeout(SECOND * 65, recording.outcome()).await, Ok(Outcome::Failed), "{topic}");
        assert_eq!(log(&shared, topic), ["1", "2", "the record is too big", "."], "{topic}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_refused_together_are_published_in_order() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    // Each event has 11 bytes.
    connections[0].max_bytes.store(55, Relaxed);
    let expected: Vec<_> = (0..50).map(|n| format!("{n:03}")).chain([".".to_owned()]).collect();
    let encoded: EncodedEvents = numbered(50).into_iter().collect();
    let recordings = [
        ("items", record_all(&hubs[0], "items", numbered(50)).start()),
        ("encoded", record_all(&hubs[0], "encoded", vec![encoded]).start()),
    ];
    for (topic, recording) in recordings {
        assert_eq!(timeout(SECOND * 30, recording.outcome()).await, Ok(Outcome::Finished), "{topic}");
        assert_eq!(log(&shared, topic), expected, "{topic}");
    }
    assert!(connections[0].asked.refusals.load(Relaxed) > 0);
}

/// The backend accepts parts of the batch, so the recording completes it first.
#[tokio::test(start_paused = true)]
async fn stop_drops_no_event_of_a_batch_in_parts() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    connections[0].max_bytes.store(55, Relaxed);
    // More events would be a second batch.
    let recording = record_all(&hubs[0], "a", numbered(30)).start();
    while log(&shared, "a").is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    recording.stop();
    assert_eq!(timeout(SECOND * 30, recording.outcome()).await, Ok(Outcome::Stopped));
    let expected: Vec<_> = (0..30).map(|n| format!("{n:03}")).chain([".".to_owned()]).collect();
    assert_eq!(log(&shared, "a"), expected);
}

#[tokio::test(start_paused = true)]
async fn large_item_is_published_alone() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    connections[0].max_bytes.store(1_000_000, Relaxed);
    let event = |bytes: usize| Event::new("x".repeat(bytes - "data: \n\n".len()));
    // The large event is as large as the backend accepts.
    let sizes = [vec![1_000; 60], vec![1_000_000], vec![1_000; 2]].concat();
    let recording = record_all(&hubs[0], "a", sizes.iter().map(|bytes| event(*bytes)).collect()).start();
    assert_eq!(timeout(SECOND * 10, recording.outcome()).await, Ok(Outcome::Finished));
    let written: Vec<_> = log(&shared, "a").iter().map(|data| data.len() + "data: \n\n".len()).collect();
    assert_eq!(written.strip_suffix(&[9]), Some(&sizes[..]), "the last record is the end");
    assert_eq!(connections[0].asked.refusals.load(Relaxed), 0);
}

/// The backend stores the batch, and refuses its repetition.
#[tokio::test(start_paused = true)]
async fn batch_without_response_is_not_repeated_in_parts() {
    for (page, lag) in [(usize::MAX, 0), (usize::MAX, 700), (1, 0), (2, 300), (3, 0), (5, 700)] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, Hub::builder).await;
        let (sender, items) = channel();
        let recording = record(&hubs[0], "a", items).start();
        sleep(SECOND).await;
        connections[0].page.store(page, Relaxed);
        connections[0].lag.store(lag, Relaxed);
        connections[0].set(Mode::LosesAnswers);
        numbered(11).into_iter().for_each(|event| sender.send(event).unwrap());
        sleep(SECOND / 100).await;
        connections[0].max_bytes.store(30, Relaxed);
        sleep(SECOND * 5).await;
        connections[0].set(Mode::Works);
        drop(sender);
        assert_eq!(timeout(SECOND * 60, recording.outcome()).await, Ok(Outcome::Finished));
        let expected: Vec<_> = (0..11).map(|n| format!("{n:03}")).chain(["end", "."].map(str::to_owned)).collect();
        assert_eq!(log(&shared, "a"), expected, "pages of {page} after {lag} ms");
    }
}

/// Creates two nodes. The backend refuses the records of a recording of the first node, so the
/// other node cannot take over this recording.
async fn two_with_refused_recording(shared: &Shared) -> ([Hub; 2], [Faulty; 2]) {
    let (hubs, connections) = two(shared, Hub::builder).await;
    connections.iter().for_each(|connection| connection.set(Mode::Refuses));
    let recording = record(&hubs[0], "large", tokio_stream::once(Event::new("1"))).start();
    // The event and the end are refused for a minute each.
    assert_eq!(timeout(SECOND * 130, recording.outcome()).await, Ok(Outcome::Interrupted));
    sleep(SECOND).await;
    (hubs, connections)
}

#[tokio::test(start_paused = true)]
async fn refused_takeover_delays_no_other_death() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two_with_refused_recording(&shared).await;
    let (sender, items) = channel();
    let _recording = record(&hubs[0], "a", items).start();
    sender.send(Event::new("1")).unwrap();
    let room = hubs[0].topic("room");
    let _member = room.join("Anna", room.subscribe(Start::Latest).await.unwrap()).unwrap();
    sleep(SECOND).await;
    assert_eq!(hubs[1].topic("room").members().await.unwrap().len(), 1);
    connections[0].set(Mode::Hangs);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["1", "will", "."]);
    sleep(LEASE * 2).await;
    assert_eq!(hubs[1].topic("room").members().await.unwrap().len(), 0);
}

/// Both recordings are of the same node, which dies.
#[tokio::test(start_paused = true)]
async fn refused_will_delays_no_other_will() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_senders, recordings): (Vec<_>, Vec<_>) = ["large", "a"]
        .map(|topic| {
            let (sender, items) = channel();
            (sender, record(&hubs[0], topic, items).start())
        })
        .into_iter()
        .unzip();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    connections[1].set(Mode::Refuses);
    sleep(LEASE + SECOND * 2).await;
    assert_eq!(log(&shared, "a"), ["will", "."]);
    // The refusal may be temporary.
    sleep(SECOND * 30).await;
    connections[1].set(Mode::Works);
    sleep(SECOND).await;
    assert_eq!(log(&shared, "large"), ["will", "."]);
    drop(recordings);
}

/// The log has lost records, so the node reads the whole log before it finishes the topic.
#[tokio::test(start_paused = true)]
async fn outage_does_not_count_as_refusal_after_a_loss() {
    let shared = Shared::new(RETAINED);
    let (connection, other) = (shared.connect(), shared.connect());
    let hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
    let (_sender, items) = channel();
    let recording = record(&hub, "large", items).start();
    sleep(SECOND).await;
    connection.set(Mode::Lags);
    evict(&other).await;
    connection.set(Mode::Refuses);
    sleep(SECOND * 30).await;
    for outage in [Mode::Fails, Mode::Hangs, Mode::Fails] {
        // The outage begins when the node has asked for the end of the log.
        connection.set(Mode::Lags);
        append(&other).await;
        sleep(SECOND).await;
        connection.set(outage);
        sleep(SECOND * 40).await;
        connection.set(Mode::Refuses);
        sleep(SECOND * 8).await;
    }
    connection.set(Mode::Works);
    assert_eq!(timeout(SECOND * 5, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(log(&shared, "large"), ["."]);
}

/// The backend refuses events. After that, the node does not read a record of the topic, or a copy
/// of the log, for more than a minute. Then the backend refuses events again.
#[tokio::test(start_paused = true)]
async fn unread_records_do_not_count_as_refusal() {
    for case in ["own record", "foreign record", "copy"] {
        let shared = Shared::new(PLENTY);
        let connection = shared.connect();
        let hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
        let (sender, items) = channel();
        let recording = record(&hub, "a", items).start();
        sleep(SECOND).await;
        let mut expected = vec!["0", "1", "2", "end", "."];
        if case == "own record" {
            // The backend refuses several events together, and accepts the first one.
            connection.max_bytes.store(12, Relaxed);
            connection.set(Mode::Lags);
        } else {
            connection.set(Mode::ReadsOnly);
        }
        (0..3).for_each(|n| sender.send(Event::display(n)).unwrap());
        sleep(SECOND * 5).await;
        connection.set(Mode::Lags);
        if case == "foreign record" {
            shared.append_event("a", "foreign");
            expected.insert(0, "foreign");
        } else if case == "copy" {
            shared.replace(PLENTY, shared.log().held());
        }
        sleep(SECOND * 70).await;
        connection.set(Mode::ReadsOnly);
        sleep(SECOND * 30).await;
        connection.set(Mode::Works);
        drop(sender);
        assert_eq!(timeout(SECOND * 30, recording.outcome()).await, Ok(Outcome::Finished), "{case}");
        assert_eq!(log(&shared, "a"), expected, "{case}");
    }
}

/// The log refuses events for most of the time after which a recording fails. Then a copy replaces
/// it.
#[tokio::test(start_paused = true)]
async fn refusals_of_a_replaced_log_do_not_count() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
    let (sender, items) = channel();
    let recording = record(&hub, "a", items).start();
    sleep(SECOND).await;
    connection.set(Mode::ReadsOnly);
    sender.send(Event::new("1")).unwrap();
    sleep(SECOND * 45).await;
    shared.replace(PLENTY, shared.log().held());
    sleep(SECOND * 30).await;
    connection.set(Mode::Works);
    drop(sender);
    assert_eq!(timeout(SECOND * 30, recording.outcome()).await, Ok(Outcome::Finished));
    assert_eq!(log(&shared, "a"), ["1", "end", "."]);
}

/// The process is paused after the backend has refused an event twice.
#[tokio::test(start_paused = true)]
async fn pause_of_the_process_does_not_count_as_refusal() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let hub = Hub::builder().backend(connection.clone()).connect().await.unwrap();
    let (sender, items) = channel();
    let recording = record(&hub, "a", items).start();
    sleep(SECOND).await;
    connection.set(Mode::ReadsOnly);
    sender.send(Event::new("1")).unwrap();
    while connection.asked.refusals.load(Relaxed) < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    advance(SECOND * 70).await;
    sleep(SECOND * 5).await;
    connection.set(Mode::Works);
    drop(sender);
    assert_eq!(timeout(SECOND * 10, recording.outcome()).await, Ok(Outcome::Finished));
    assert_eq!(log(&shared, "a"), ["1", "end", "."]);
}

/// A node has published the will of a dead node. The backend refuses the end of the topic once, and
/// again more than a minute later. Meanwhile, the node does not read a record of the topic.
#[tokio::test(start_paused = true)]
async fn unread_record_does_not_end_a_takeover() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (_sender, items) = channel();
    let _recording = record(&hubs[0], "large", items).start();
    sleep(SECOND).await;
    connections[0].set(Mode::Hangs);
    // The node finishes the topic only after it has read the will.
    connections[1].lag.store(500, Relaxed);
    while log(&shared, "large").is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    connections[1].set(Mode::Refuses);
    while connections[1].asked.refusals.load(Relaxed) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    connections[1].set(Mode::Lags);
    shared.append_event("large", "foreign");
    sleep(SECOND * 70).await;
    connections[1].set(Mode::Refuses);
    sleep(SECOND * 10).await;
    connections[1].set(Mode::Works);
    sleep(SECOND * 5).await;
    assert_eq!(log(&shared, "large"), ["will", "foreign", "."]);
}

#[tokio::test(start_paused = true)]
async fn refused_takeover_ends_after_a_minute() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two_with_refused_recording(&shared).await;
    sleep(SECOND * 62).await;
    let [first, other] = hubs;
    drop(other);
    sleep(SECOND).await;
    assert_eq!(connections[1].asked.follows.load(Relaxed), 0, "the hub was dropped");
    drop(first);
}

/// The nodes can read the log, and no node can append to it.
#[tokio::test(start_paused = true)]
async fn living_node_keeps_its_recording_in_a_read_only_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let (sender, items) = channel();
    let recording = record(&hubs[0], "a", items).start();
    sleep(SECOND).await;
    for round in 0..40 {
        connections.iter().for_each(|connection| connection.set(Mode::ReadsOnly));
        sleep(LEASE + Duration::from_millis(round * 97)).await;
        connections.iter().for_each(|connection| connection.set(Mode::Works));
        sleep(SECOND * 5).await;
        assert_eq!(log(&shared, "a"), [""; 0], "{round}");
    }
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
}
