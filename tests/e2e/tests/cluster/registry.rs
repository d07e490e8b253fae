//! Stream registries of two nodes: how soon a logout on one node ends the streams of the other.

use crate::{setup::two_hubs, with_each_store};
use axum::http::Request;
use e2e::{Store, StoreKind};
use futures_util::stream;
use std::time::{Duration, Instant};
use support::{polled::Polled, respond::respond};
use tokio::time::sleep;
use tower_sse::{Event, SseLayer, SseStream, StreamRegistry};

with_each_store! {
    close_ends_streams_of_the_other_node,
    close_during_an_outage_ends_streams_after_it,
}

const ROUNDS: u32 = 100;
const SOON: Duration = Duration::from_secs(20);

async fn start(kind: StoreKind, url: &str) -> [StreamRegistry<u32>; 2] {
    let registries = [StreamRegistry::new(), StreamRegistry::new()];
    for (registry, hub) in registries.iter().zip(two_hubs(kind, url).await) {
        registry.follow(&hub).await.expect("the hub accepts the subscription");
    }
    registries
}

fn open(registry: &StreamRegistry<u32>, user: u32) -> Polled {
    let layer = SseLayer::new().without_heartbeat().register(registry, move |_| Some(user));
    let stream = SseStream::new(stream::pending::<Event>());
    let mut body = Polled::new(respond(&layer, Request::new(()), stream.into_http_response()));
    body.assert_pending();
    body
}

/// Waits until the stream has to end, and returns the time since then.
async fn wait_for_end(body: &mut Polled) -> Duration {
    let begin = Instant::now();
    while !body.is_woken() {
        assert!(begin.elapsed() < SOON, "the stream does not end");
        sleep(Duration::from_micros(100)).await;
    }
    assert_eq!(body.rest(), "");
    begin.elapsed()
}

async fn close_ends_streams_of_the_other_node(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let [one, other] = start(kind, &store.url()).await;
    let mut lags = Vec::new();
    for user in 0..ROUNDS {
        let mut body = open(&other, user);
        assert_eq!(one.close(&user), 0, "the streams of this node");
        lags.push(wait_for_end(&mut body).await);
    }
    lags.sort_unstable();
    let [median, most] = [lags[lags.len() / 2], lags[lags.len() - 1]];
    println!("{kind:?}: a close ends streams of the other node after {median:?} in the median, {most:?} at most");
}

async fn close_during_an_outage_ends_streams_after_it(kind: StoreKind) {
    let mut store = Store::start(kind, &[]).await;
    let [one, other] = start(kind, &store.url()).await;
    let mut body = open(&other, 7);
    store.kill();
    one.close(&7);
    sleep(Duration::from_secs(1)).await;
    body.assert_pending();
    store.restart().await;
    println!("{kind:?}: {:?} after the restart of the store", wait_for_end(&mut body).await);
}
