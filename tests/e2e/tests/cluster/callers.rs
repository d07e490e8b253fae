//! Callers of one backend that share its connection: callers that are not polled, and callers in
//! other runtimes.

use crate::{
    nats::SOON,
    redis::cli,
    unchanged::{append, nats, read, record, redis},
};
use e2e::{Store, StoreKind};
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
};
use tokio::{runtime::Builder, task::spawn_blocking, time::timeout};
use tower_sse::hub::backend::Backend;

/// A caller is not polled if its future is in a `select!` that has continued with another branch.
async fn assert_stalled_caller_blocks_no_other<B: Backend>(log: &B) {
    let mut stalled = pin!(log.append(vec![record("news", "stalled")]));
    assert!(stalled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    timeout(SOON, append(log, "news", "next")).await.expect("the other caller gets a connection");
    assert_eq!(read(log, "news").await, ["next"]);
    stalled.await.expect("the server responds");
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_caller_of_redis_blocks_no_other() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    assert_stalled_caller_blocks_no_other(&redis(&store.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_caller_of_nats_blocks_no_other() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    assert_stalled_caller_blocks_no_other(&nats(&store.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_to_redis_outlives_the_runtime_of_a_publisher() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let log = Arc::new(redis(&store.url()));
    log.bounds().await.expect("the server responds");
    // The publisher opens the next connection.
    cli(&store, &["client", "kill", "type", "normal"]);
    let publisher = log.clone();
    let publish = spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { while publisher.append(vec![record("news", "first")]).await.is_err() {} });
    });
    publish.await.expect("the publisher does not panic");
    append(&*log, "news", "second").await;
    assert_eq!(read(&*log, "news").await, ["first", "second"]);
}
