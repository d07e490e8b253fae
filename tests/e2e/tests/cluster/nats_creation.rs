//! Several nodes that connect to NATS before the stream exists.

use crate::nats::backend;
use e2e::{Store, StoreKind};
use futures_util::future::join_all;
use std::time::Duration;
use tokio::time::sleep;
use tower_sse::{
    BoxError,
    hub::backend::{Backend, Bounds, NatsBackend},
};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creation_of_the_stream_makes_one_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    for round in 0..150 {
        let nodes: Vec<_> = (0..4).map(|_| backend(&store.url()).stream(format!("round-{round}"))).collect();
        let bounds = join_all(nodes.iter().map(bounds)).await;
        let epochs: Vec<_> = bounds.into_iter().map(|bounds| bounds.expect("the stream is created").epoch).collect();
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{round}: {epochs:?}");
    }
}

/// Returns the bounds of the log. A server that creates streams on a busy disk may not respond in
/// time, and a node then ends its connection.
async fn bounds(node: &NatsBackend) -> Result<Bounds, BoxError> {
    for _ in 0..300 {
        match node.bounds().await {
            Err(error) if is_slow(&error.to_string()) => sleep(Duration::from_millis(100)).await,
            bounds => return bounds,
        }
    }
    node.bounds().await
}

fn is_slow(error: &str) -> bool {
    ["the connection to NATS was lost", "there is no connection to the NATS server", "NATS has not answered"]
        .iter()
        .any(|text| error.contains(text))
}
