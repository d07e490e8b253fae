//! Several nodes that connect to NATS before the stream exists.

use crate::nats::backend;
use e2e::{Store, StoreKind};
use futures_util::future::join_all;
use tower_sse::hub::backend::Backend;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creation_of_the_stream_makes_one_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    for round in 0..150 {
        let nodes: Vec<_> = (0..4).map(|_| backend(&store.url()).stream(format!("round-{round}"))).collect();
        let bounds = join_all(nodes.iter().map(Backend::bounds)).await;
        let epochs: Vec<_> = bounds.into_iter().map(|bounds| bounds.expect("the server responds").epoch).collect();
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{round}: {epochs:?}");
    }
}
