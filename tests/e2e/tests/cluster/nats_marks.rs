//! Marks, the messages of a NATS stream that identify the log: adding them, and what they prove.

use crate::{
    nats::{SOON, admin, marks, stream_info, stream_of_log},
    nats_wire::NatsWire,
    unchanged::{append, nats},
};
use async_nats::{
    HeaderMap,
    jetstream::{self, stream},
};
use e2e::{Store, StoreKind, eventually};
use std::{future::Future, time::Duration};
use tokio::time::sleep;
use tower_sse::hub::backend::{Backend, NatsBackend};

const MARKS: &str = "tower-sse._log";
const NOISE: &str = "tower-sse.noise";

/// Publishes a message as another program does, and returns its sequence.
async fn put(admin: &jetstream::Context, subject: &'static str, headers: HeaderMap, payload: String) -> u64 {
    let sent = admin.publish_with_headers(subject, headers, payload.into()).await.expect("the server responds");
    sent.await.expect("the message is stored").sequence
}

async fn put_noise(admin: &jetstream::Context, count: usize) {
    for _ in 0..count {
        put(admin, NOISE, HeaderMap::new(), String::new()).await;
    }
}

async fn last_sequence(admin: &jetstream::Context) -> u64 {
    stream_info(admin).await.state.last_sequence
}

/// A stream in memory. A new stream with the same name can follow it at once, because there are no
/// files that the server still removes.
fn in_memory() -> stream::Config {
    stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        storage: stream::StorageType::Memory,
        max_age: Duration::from_secs(60 * 60),
        ..stream::Config::default()
    }
}

/// Checks the log until the backend adds a mark, and holds this mark during `traffic`. Returns the
/// result of the check.
async fn hold_next_mark<T>(
    wire: &NatsWire,
    log: &NatsBackend,
    traffic: impl Future<Output = T>,
) -> (Result<(), String>, T) {
    wire.hold(true);
    let check = async {
        loop {
            let checked = log.bounds().await.map(|_| ()).map_err(|error| error.to_string());
            if wire.held() > 0 {
                return checked;
            }
            // A busy machine can lose the connection, so an earlier error is no failure.
            sleep(Duration::from_millis(10)).await;
        }
    };
    let traffic = async {
        let is_held = async || if wire.held() > 0 { Ok(()) } else { Err("no mark is sent") };
        eventually(SOON, "a mark is held", is_held).await;
        let result = traffic.await;
        wire.hold(false);
        result
    };
    tokio::join!(check, traffic)
}

/// While the backend adds a mark, another node publishes. So the mark cannot name the last event
/// before it.
#[tokio::test(flavor = "multi_thread")]
async fn mark_added_during_traffic_is_no_evicted_event() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let (wire, admin) = (NatsWire::to(store.address()).await, admin(&store.url()).await);
    // Without a maximum age, a backend adds a mark only if the stream is empty.
    let near = || nats(&store.url()).max_age(Duration::MAX);
    let (log, other) = (nats(&wire.url()).max_age(Duration::MAX), near());
    for log in [&log, &other] {
        log.bounds().await.expect("the server responds");
    }
    stream_of_log(&admin).await.purge().await.expect("the stream is purged");
    let (checked, event) = hold_next_mark(&wire, &log, append(&other, "news", "first")).await;
    checked.expect("the server responds");
    assert_eq!(last_sequence(&admin).await, 3, "a mark, the event, another mark");

    let evicted_through = async |log: NatsBackend| log.bounds().await.expect("the server responds").evicted_through;
    stream_of_log(&admin).await.purge().sequence(3).await.expect("the event is removed");
    assert_eq!(evicted_through(near()).await, event, "the mark is the oldest message");
    stream_of_log(&admin).await.purge().await.expect("the stream is purged");
    assert_eq!(evicted_through(log).await, event, "the mark was removed");
    assert_eq!(evicted_through(near()).await, event, "there is one more mark");
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_is_added_during_traffic_after_the_newest_was_deleted() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let (wire, admin) = (NatsWire::to(store.address()).await, admin(&store.url()).await);
    admin.create_stream(in_memory()).await.expect("the stream is new");
    nats(&store.url()).bounds().await.expect("the server responds");
    let id = marks(&admin).await.remove(0);
    let newest = put(&admin, MARKS, HeaderMap::new(), id.clone()).await;
    let log = nats(&wire.url());
    log.bounds().await.expect("the server responds");
    stream_of_log(&admin).await.delete_message(newest).await.expect("the mark is deleted");
    let (checked, ()) = hold_next_mark(&wire, &log, put_noise(&admin, 1)).await;
    checked.expect("the server responds");
    assert_eq!(marks(&admin).await, [&*id, &*id], "the old mark, and a new one");
}

/// The lost messages are of other programs, so the node does not remember them.
#[tokio::test(flavor = "multi_thread")]
async fn mark_at_a_known_sequence_begins_another_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let (wire, admin) = (NatsWire::to(store.address()).await, admin(&store.url()).await);
    admin.create_stream(in_memory()).await.expect("the stream is new");
    nats(&store.url()).bounds().await.expect("the server responds");
    put_noise(&admin, 3).await;
    let log = nats(&wire.url());
    let before = log.bounds().await.expect("the server responds");

    let restored = async {
        let mark = stream_of_log(&admin).await.get_raw_message(1).await.expect("the mark is retained");
        admin.delete_stream("tower-sse").await.expect("the server responds");
        admin.create_stream(in_memory()).await.expect("the stream is deleted");
        let payload = String::from_utf8_lossy(&mark.payload).into_owned();
        assert_eq!(put(&admin, MARKS, mark.headers, payload).await, 1);
    };
    let (checked, ()) = hold_next_mark(&wire, &log, restored).await;
    // The stream now has as many messages as before, and those that the node remembers.
    put_noise(&admin, 10).await;
    let after = log.bounds().await.expect("the server responds");
    assert_ne!(after.epoch, before.epoch, "the node has seen the sequence of the mark before: {checked:?}");
    let error = checked.expect_err("the stream has lost messages");
    assert!(error.contains("lost messages"), "{error}");
}

/// The server responds to a duplicate with the sequence of the earlier message.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_mark_is_no_proof_of_loss() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let log = nats(&store.url());
    let epoch = log.bounds().await.expect("the server responds").epoch;
    let id = marks(&admin).await.remove(0);
    // The id of the message that will be the next mark.
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("renew {id} 2"));
    assert_eq!(put(&admin, NOISE, headers, String::new()).await, 2);
    eventually(SOON, "the node adds a mark", async || {
        assert_eq!(log.bounds().await.expect("the server responds").epoch, epoch);
        match marks(&admin).await {
            marks if marks == [&*id, &*id] => Ok(()),
            marks => Err(marks),
        }
    })
    .await;
}

/// Deletes the stream, and creates it again with the mark as its only message.
async fn restore_mark_only(admin: &jetstream::Context) {
    let mark = stream_of_log(admin).await.get_raw_message(1).await.expect("the mark is retained");
    admin.delete_stream("tower-sse").await.expect("the server responds");
    admin.create_stream(in_memory()).await.expect("the stream is deleted");
    let payload = String::from_utf8_lossy(&mark.payload).into_owned();
    assert_eq!(put(admin, MARKS, mark.headers, payload).await, 1);
}

/// Checks the log until the stream has this number of marks. A check adds a mark about two seconds
/// after the node has connected.
async fn wait_for_marks(admin: &jetstream::Context, log: &NatsBackend, count: usize) {
    eventually(SOON, "the node adds a mark", async || {
        log.bounds().await.map_err(|error| error.to_string())?;
        match marks(admin).await.len() {
            marks if marks >= count => Ok(()),
            marks => Err(marks.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_notices_a_loss_late_joins_the_new_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    admin.create_stream(in_memory()).await.expect("the stream is new");
    let [first, late, latest] = [(); 3].map(|()| nats(&store.url()));
    append(&first, "news", "lost").await;
    for log in [&late, &latest] {
        log.bounds().await.expect("the server responds");
    }
    restore_mark_only(&admin).await;
    let second = first.bounds().await.expect("the server responds").epoch;
    wait_for_marks(&admin, &first, 3).await;
    assert_eq!(late.bounds().await.expect("the server responds").epoch, second);

    // The second log is lost, too, and the last node has noticed neither loss.
    restore_mark_only(&admin).await;
    let third = late.bounds().await.expect("the server responds").epoch;
    assert_ne!(third, second);
    assert_eq!(latest.bounds().await.expect("the server responds").epoch, third);
    assert_eq!(first.bounds().await.expect("the server responds").epoch, third);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_log_does_not_continue_at_a_late_mark() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let (wire, admin) = (NatsWire::to(store.address()).await, admin(&store.url()).await);
    admin.create_stream(in_memory()).await.expect("the stream is new");
    let (log, unaware) = (nats(&wire.url()), nats(&store.url()));
    let before = unaware.bounds().await.expect("the server responds").epoch;
    assert_eq!(log.bounds().await.expect("the server responds").epoch, before);
    append(&nats(&store.url()), "news", "lost").await;
    append(&nats(&store.url()), "news", "lost").await;
    // Only this node has seen the lost messages.
    assert_eq!(log.bounds().await.expect("the server responds").last.get() >> 16, 3);
    restore_mark_only(&admin).await;
    let (checked, ()) = hold_next_mark(&wire, &log, wait_for_marks(&admin, &unaware, 2)).await;
    checked.expect("the server responds");
    let after = log.bounds().await.expect("the server responds").epoch;
    assert_ne!(after, before, "the lost log issues no further sequence");
    assert_eq!(unaware.bounds().await.expect("the server responds").epoch, after);
}
