//! Recordings of a dead node, while the backend refuses records.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    recording::{LEASE, SECOND, channel, log, record},
    recording_loss::{RETAINED, append, evict},
    two,
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{sleep, timeout};
use tower_sse::{
    Event,
    hub::{Hub, Outcome, Start},
};

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
