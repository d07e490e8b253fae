//! Epochs of a log in NATS that has lost messages, for small and large messages.

use crate::{
    nats::{SOON, admin, copy_all},
    nats_wire::NatsWire,
    unchanged::{nats, record},
};
use async_nats::jetstream::stream;
use e2e::{Store, StoreKind};
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tower_sse::hub::backend::{Appended, Backend, NatsBackend, Position};

/// Payload sizes below and above the limit for messages that each quick check fetches.
const SIZES: [usize; 2] = [10, 5000];

/// A server whose files can be replaced by an older copy.
struct Restorable {
    folder: TempDir,
    store: Store,
}

impl Restorable {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("the folder can be created");
        let files = folder.path().join("files");
        let store = Store::start(StoreKind::Nats, &["-sd", files.to_str().expect("the path is UTF-8")]).await;
        Self { folder, store }
    }

    fn paths(&self) -> [PathBuf; 2] {
        ["files", "copy"].map(|name| self.folder.path().join(name))
    }

    async fn copy(&mut self) {
        let [files, copy] = self.paths();
        self.store.kill();
        copy_all(&files, &copy);
        self.store.restart().await;
    }

    /// Restores the copy. Other nodes, which know nothing of the lost messages, then append
    /// `others` messages before the nodes of the test can reconnect.
    async fn restore(&mut self, others: usize, bytes: usize) {
        let [files, copy] = self.paths();
        self.store.kill();
        fs::remove_dir_all(&files).expect("the folder can be removed");
        copy_all(&copy, &files);
        if others > 0 {
            let elsewhere = Store::start(StoreKind::Nats, &["-sd", files.to_str().expect("the path is UTF-8")]).await;
            let other = nats(&elsewhere.url());
            append_all(&other, "other", others, bytes).await;
        }
        self.store.restart().await;
    }
}

/// Appends a large or small message, and tries again after errors.
async fn append(log: &NatsBackend, text: &str, bytes: usize) -> Appended {
    let begin = Instant::now();
    loop {
        match log.append(vec![record("news", format!("{text} {}", "x".repeat(bytes)))]).await {
            Ok(appended) => return appended,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn append_all(log: &NatsBackend, text: &str, count: usize, bytes: usize) -> Vec<Appended> {
    let mut all = Vec::new();
    for n in 0..count {
        all.push(append(log, &format!("{text} {n}"), bytes).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_log_issues_no_position_twice() {
    for bytes in SIZES {
        let mut server = Restorable::start().await;
        let log = nats(&server.store.url());
        let before = log.bounds().await.expect("the server responds").epoch;
        let mut all = append_all(&log, "kept", 3, bytes).await;
        server.copy().await;
        all.extend(append_all(&log, "lost", 3, bytes).await);
        server.restore(0, bytes).await;
        let again = append_all(&log, "again", 4, bytes).await;
        assert!(again.iter().all(|appended| !all.contains(appended)), "{bytes} bytes: {all:?}, {again:?}");
        let after = log.bounds().await.expect("the server responds").epoch;
        assert!(again.iter().all(|appended| appended.epoch == after && after != before), "{bytes} bytes: {again:?}");
    }
}

/// The last message is at the sequence of the last lost message, or after it.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_log_that_has_grown_again_is_another_epoch() {
    for (bytes, others) in SIZES.into_iter().flat_map(|bytes| [(bytes, 3), (bytes, 5)]) {
        for is_followed in [false, true] {
            let mut server = Restorable::start().await;
            let log = nats(&server.store.url());
            log.bounds().await.expect("the server responds");
            append_all(&log, "kept", 3, bytes).await;
            server.copy().await;
            let lost = append_all(&log, "lost", 3, bytes).await;
            let mut after = Position::START;
            while is_followed && after < lost[2].position {
                // The connection may have been lost with the server.
                match log.follow(after).await {
                    Ok(page) => after = page.through,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
            server.restore(others, bytes).await;
            let begin = Instant::now();
            let bounds = loop {
                match log.bounds().await {
                    Ok(bounds) => break bounds,
                    Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
                }
                sleep(Duration::from_millis(10)).await;
            };
            let what = format!("{bytes} bytes, {others} new messages, followed: {is_followed}");
            assert_ne!(bounds.epoch, lost[2].epoch, "{what}");
            let same = log.bounds().await.expect("the server responds");
            assert_eq!(same.epoch, bounds.epoch, "{what}: one loss begins one new log");
        }
    }
}

/// The stream is created again, and its retention has then removed the sequences of all messages
/// and marks that the first node knows.
#[tokio::test(flavor = "multi_thread")]
async fn recreated_log_without_known_messages_is_another_epoch() {
    for (bytes, is_first_to_append) in SIZES.into_iter().flat_map(|bytes| [(bytes, false), (bytes, true)]) {
        let store = Store::start(StoreKind::Nats, &[]).await;
        let admin = admin(&store.url()).await;
        let config = stream::Config {
            name: "tower-sse".to_owned(),
            subjects: vec!["tower-sse.>".to_owned()],
            max_messages: 5,
            ..stream::Config::default()
        };
        admin.create_stream(config.clone()).await.expect("the stream is new");
        let nodes = [nats(&store.url()), nats(&store.url())];
        let old = nodes[0].bounds().await.expect("the server responds");
        append_all(&nodes[0], "old", 9, bytes).await;
        admin.delete_stream("tower-sse").await.expect("the server responds");
        // nats-server 2.9 still removes files after its response, and would remove those of a new
        // stream as well.
        sleep(Duration::from_secs(1)).await;
        admin.create_stream(config).await.expect("the stream is deleted");
        let new = nodes[1].bounds().await.expect("the server responds");
        append_all(&nodes[1], "new", 20, bytes).await;
        let what = format!("{bytes} bytes, appends first: {is_first_to_append}");
        if is_first_to_append {
            assert_ne!(append(&nodes[0], "first", bytes).await.epoch, old.epoch, "{what}");
        }
        for node in &nodes {
            let bounds = node.bounds().await.expect("the server responds");
            assert_eq!(bounds.epoch, new.epoch, "{what}: the epoch of the log has not changed");
        }
    }
}

/// The size of a message that quick checks do not fetch.
const LARGE: usize = 100_000;

/// Publishes a large message of another program as the last message of the stream.
async fn publish_foreign(store: &Store) {
    let admin = admin(&store.url()).await;
    let ack = admin.publish("tower-sse.x", "x".repeat(LARGE).into()).await.expect("the server responds");
    ack.await.expect("the message is stored");
}

/// Neither the oldest nor the newest message names the log, and the mark was removed.
#[tokio::test(flavor = "multi_thread")]
async fn log_between_messages_of_other_programs_stays_the_same() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let log = nats(&store.url()).max_messages(5);
    append_all(&log, "t", 2, 10).await;
    for _ in 0..4 {
        publish_foreign(&store).await;
    }
    append_all(&log, "t", 1, 10).await;
    publish_foreign(&store).await;
    let before = log.bounds().await.expect("the server responds");
    let another = nats(&store.url()).max_messages(5);
    assert_eq!(another.bounds().await.expect("the server responds").epoch, before.epoch);
    assert_eq!(log.bounds().await.expect("the server responds"), before, "no mark is published");
}

/// With a retention of three messages, the stream has no small message.
#[tokio::test(flavor = "multi_thread")]
async fn checks_of_idle_log_fetch_no_large_message() {
    for (is_last_foreign, max_messages) in [(false, 3), (false, 1000), (true, 3), (true, 1000)] {
        let store = Store::start(StoreKind::Nats, &[]).await;
        let wire = NatsWire::to(store.address()).await;
        let log = nats(&wire.url()).max_messages(max_messages);
        let mut after = log.bounds().await.expect("the server responds").last;
        let all = append_all(&log, "large", 3, LARGE).await;
        while after < all[2].position {
            after = log.follow(after).await.expect("a page").through;
        }
        if is_last_foreign {
            publish_foreign(&store).await;
        }
        // The first check of a new state compares the large message.
        let end = log.bounds().await.expect("the server responds").last;
        let before = wire.bytes_from_server();
        for _ in 0..10 {
            assert_eq!(log.bounds().await.expect("the server responds").last, end);
        }
        let fetched = wire.bytes_from_server() - before;
        let what = format!("last message foreign: {is_last_foreign}, retention: {max_messages} messages");
        assert!(fetched < LARGE, "{what}: {fetched} bytes");
    }
}

/// The message takes longer than the time after which other requests are sent again.
#[tokio::test(flavor = "multi_thread")]
async fn check_waits_for_large_message_over_slow_connection() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url());
    log.bounds().await.expect("the server responds");
    append_all(&log, "large", 1, LARGE).await;
    publish_foreign(&store).await;
    wire.slow_down(LARGE, Duration::from_millis(600));
    let before = wire.bytes_from_server();
    log.bounds().await.expect("the large message arrives");
    let fetched = wire.bytes_from_server() - before;
    assert!((LARGE..3 * LARGE).contains(&fetched), "the large message is fetched once: {fetched} bytes");
}

/// No follower has read the mark yet, and the stream retains all messages that the node remembers.
#[tokio::test(flavor = "multi_thread")]
async fn append_after_the_mark_of_another_log_has_its_epoch() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let log = nats(&store.url());
    let before = append(&log, "before", 10).await;
    let admin = admin(&store.url()).await;
    let mark = admin.publish("tower-sse._log", "a mark of the operator".into()).await.expect("the server responds");
    mark.await.expect("the mark is stored");
    let after = append(&log, "after", 10).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(log.bounds().await.expect("the server responds").epoch, after.epoch);
}
