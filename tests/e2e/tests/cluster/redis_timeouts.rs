//! Timeouts of requests to Redis.

use crate::{
    redis::{Client, publish},
    unchanged::{DEFAULT_TIMEOUT, append, redis},
};
use e2e::{Store, StoreKind, Wire};
use std::time::Duration;
use tower_sse::hub::{
    Hub, Start,
    backend::{Backend, Position},
};

/// The first read asks for entries of the usual size, which would be 64 MB here.
#[tokio::test(flavor = "multi_thread")]
async fn node_reads_backlog_of_large_entries_over_slow_connection() {
    const EVENTS: usize = 1100;

    let store = Store::start(StoreKind::Redis, &["--appendonly", "no"]).await;
    let wire = Wire::to(store.address()).await;
    let near = redis(&store.url());
    let padding = "x".repeat(64 << 10);
    for n in 0..EVENTS {
        append(&near, "news", format_args!("{n} {padding}")).await;
    }
    wire.slow_down(12_500_000);
    for is_history in [false, true] {
        let far = redis(&store.url_through(&wire)).timeout(DEFAULT_TIMEOUT);
        let (mut after, mut records, mut errors) = (Position::START, 0, 0);
        while records < 300 {
            let page = match is_history {
                true => far.read(&["news".into()], after).await,
                false => far.follow(after).await,
            };
            match page {
                Ok(page) => {
                    records += page.records.len();
                    after = page.through;
                }
                Err(error) => {
                    errors += 1;
                    assert!(errors <= 3, "{error}");
                }
            }
        }
    }
    // The machine may be busy. But a read of all entries would take longer than this timeout.
    let backend = redis(&store.url_through(&wire)).timeout(Duration::from_secs(4));
    Hub::builder().backend(backend).connect().await.expect("a node starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn longest_timeout_is_no_timeout() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let backend = redis(&store.url()).timeout(Duration::MAX);
    let hub = Hub::builder().backend(backend).connect().await.expect("the server responds");
    let mut client = Client::of(&hub.topic("news"), Start::Latest).await;
    publish(&hub.topic("news"), "first").await;
    client.assert_next("first").await;
}
