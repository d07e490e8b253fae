//! `Recording::announced`: from then on, the topic of the recording is finished if its node dies.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    publish,
    recording::{LEASE, SECOND, channel, log, record},
    settle, two,
};
use std::{error::Error, sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Outcome, Start},
};

async fn one(shared: &Shared) -> (Hub, Faulty) {
    let connection = shared.connect();
    (Hub::builder().backend(connection.clone()).connect().await.unwrap(), connection)
}

#[tokio::test(start_paused = true)]
async fn topic_gets_will_if_node_dies_after_announcement() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    for latency in [0, 1, 50] {
        let topic = format!("answers/{latency}");
        connections[0].latency.store(latency, Relaxed);
        let mut reader = hubs[1].topic(&topic).subscribe(Start::Latest).await.unwrap();
        publish(&hubs[0], &topic, "prompt").await;
        let (sender, items) = channel();
        let recording = record(&hubs[0], &topic, items).start();
        recording.announced().await.unwrap();
        connections[0].set(Mode::Hangs);
        let _is_lost = sender.send(Event::new("1"));
        timeout(LEASE + SECOND * 2, async { while reader.next().await.is_some() {} }).await.expect("the topic ends");
        assert_eq!(log(&shared, &topic), ["prompt", "will", "."]);
        connections[0].set(Mode::Works);
        assert_eq!(timeout(LEASE * 3, recording.outcome()).await, Ok(Outcome::Interrupted));
        recording.announced().await.expect("it was announced");
    }
}

/// The log has the announcement before the method returns, and the first event comes later.
#[tokio::test(start_paused = true)]
async fn announcement_is_in_log_before_first_event() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = one(&shared).await;
    connection.latency.store(200, Relaxed);
    let recording = record(&hub, "a", tokio_stream::pending()).start();
    let other = record(&hub, "b", tokio_stream::once(Event::new("1"))).start();
    assert!(timeout(SECOND / 10, recording.announced()).await.is_err());
    assert_eq!((log(&shared, "tower-sse/nodes"), log(&shared, "b")), (Vec::new(), Vec::new()));
    recording.announced().await.unwrap();
    other.clone().announced().await.unwrap();
    let signs = log(&shared, "tower-sse/nodes");
    assert!(signs[0].contains("will") && signs[0].contains(r#"["a","#), "{signs:?}");
    let begun = Instant::now();
    recording.announced().await.expect("it is announced");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(other.outcome().await, Outcome::Finished);
    assert_eq!(log(&shared, "b"), ["1", "end", "."]);
}

#[tokio::test(start_paused = true)]
async fn refused_announcement_is_an_error_of_the_backend() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = one(&shared).await;
    for (mode, message) in [
        (Mode::ReadsOnly, "the log is read-only"),
        (Mode::Fails, "the backend has not returned the end of its log"),
        (Mode::Hangs, "the backend has not returned the end of its log"),
    ] {
        connection.set(mode);
        let recording = record(&hub, &format!("{mode:?}"), tokio_stream::once(Event::new("1"))).start();
        for _ in 0..3 {
            let announced = timeout(SECOND * 5, recording.announced()).await.expect("it does not wait for the backend");
            let error = announced.unwrap_err();
            assert_eq!((error.kind(), error.source().unwrap().to_string().as_str()), (ErrorKind::Backend, message));
        }
        connection.set(Mode::Works);
        while recording.announced().await.is_err() {}
        assert_eq!(recording.outcome().await, Outcome::Finished);
        assert_eq!(log(&shared, &format!("{mode:?}")), ["1", "end", "."]);
        // The keeper of the next round begins without a contact.
        sleep(LEASE).await;
    }
}

/// A node that has not read the log is no failure of the backend.
#[tokio::test(start_paused = true)]
async fn announcement_waits_while_node_reads_log() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = one(&shared).await;
    let other = one(&shared).await.0;
    connection.set(Mode::Lags);
    publish(&other, "a", 0).await;
    let recording = record(&hub, "b", tokio_stream::pending()).start();
    assert!(timeout(SECOND * 60, recording.announced()).await.is_err(), "it waits");
    connection.set(Mode::Works);
    timeout(SECOND, recording.announced()).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn recording_that_has_ended_is_not_announced() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = one(&shared).await;
    hub.topic("finished").finish().await.unwrap();
    let kind = async |topic: &str| {
        let recording = record(&hub, topic, tokio_stream::pending()).start();
        recording.announced().await.unwrap_err().kind()
    };
    assert_eq!(kind("finished").await, ErrorKind::Finished);
    assert_eq!(kind("tower-sse/nodes").await, ErrorKind::ReservedTopic);
    // From now on, a node without a new contact has to read the log before it announces anything.
    sleep(LEASE).await;
    connection.set(Mode::Lags);
    publish(&one(&shared).await.0, "other", 0).await;
    let recording = record(&hub, "a", tokio_stream::pending()).start();
    assert!(timeout(SECOND, recording.announced()).await.is_err());
    hub.shutdown();
    assert_eq!(recording.announced().await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(kind("b").await, ErrorKind::Shutdown);
}

/// The node has not announced the recording in the other log yet when the recording ends.
#[tokio::test(start_paused = true)]
async fn recording_that_ends_in_another_log_was_announced() {
    let shared = Shared::new(PLENTY);
    let (hub, connection) = one(&shared).await;
    let (sender, items) = channel();
    let recording = record(&hub, "slow", items).start();
    recording.announced().await.unwrap();
    connection.set(Mode::IsSlow);
    shared.replace(PLENTY, Vec::new());
    sleep(SECOND * 3).await;
    assert!(timeout(SECOND / 10, recording.announced()).await.is_err(), "it waits");
    let announced = tokio::spawn({
        let recording = recording.clone();
        async move { recording.announced().await }
    });
    settle().await;
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
    assert!(announced.await.unwrap().is_ok());
    assert_eq!(log(&shared, "slow"), ["end", "."]);
}
