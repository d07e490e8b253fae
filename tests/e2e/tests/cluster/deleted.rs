//! Logs whose newest entry an operator has deleted.

use crate::{
    nats::{admin, stream_of_log},
    redis::cli,
    unchanged::{append, nats, redis},
};
use e2e::{Store, StoreKind};
use std::time::Duration;
use tokio::time::timeout;
use tower_sse::hub::backend::{Backend, Position};

const LIMIT: Duration = Duration::from_secs(20);

/// Checks that both ways to read the log report a deleted entry at its end, and then continue.
/// `kept` is the position of the entry before the deleted entry.
async fn assert_deleted_end_is_a_gap<B: Backend>(log: &B, kept: Position, deleted: Position) {
    let topics = ["news".into()];
    // The hub asks for the end of the log while it waits.
    assert_eq!(log.bounds().await.expect("the server responds").last, deleted);
    let read = timeout(LIMIT, log.read(&topics, kept)).await.expect("the read ends").expect("the server responds");
    let followed = timeout(LIMIT, log.follow(kept)).await.expect("the gap is reported").expect("the server responds");
    for page in [read, followed] {
        assert_eq!((page.evicted_through, page.through, page.records.len()), (deleted, deleted, 0));
    }
    let next = append(log, "news", "next").await;
    for page in [log.read(&topics, deleted).await, log.follow(deleted).await] {
        let page = page.expect("the server responds");
        assert!(page.evicted_through <= deleted, "{page:?}");
        assert_eq!(page.records.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [next]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_reports_deleted_end() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let log = redis(&store.url());
    let (kept, deleted) = (append(&log, "news", 0).await, append(&log, "news", 1).await);
    let newest = cli(&store, &["xrevrange", "tower-sse", "+", "-", "count", "1"]);
    let id = newest.lines().next().expect("an entry");
    assert_eq!(cli(&store, &["xdel", "tower-sse", id]), "1");
    assert_deleted_end_is_a_gap(&log, kept, deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_reports_deleted_end() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let log = nats(&store.url());
    let (kept, deleted) = (append(&log, "news", 0).await, append(&log, "news", 1).await);
    let stream = stream_of_log(&admin(&store.url()).await).await;
    stream.delete_message(stream.cached_info().state.last_sequence).await.expect("the server responds");
    assert_deleted_end_is_a_gap(&log, kept, deleted).await;
}
