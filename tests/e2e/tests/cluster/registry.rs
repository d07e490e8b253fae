//! Stream registries of two nodes: how soon a logout on one node ends the streams of the other, and
//! that these streams get nothing that is published later.

use crate::{
    setup::{connect, two_hubs},
    with_each_store,
};
use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use e2e::{Store, StoreKind};
use futures_util::stream;
use std::{
    sync::mpsc,
    time::{Duration, Instant},
};
use support::{polled::Polled, respond::respond, whatwg};
use tokio::{runtime, time::sleep};
use tower_sse::{Event, SseLayer, SseStream, StreamRegistry, hub::Start};

with_each_store! {
    close_ends_streams_of_the_other_node,
    close_during_an_outage_ends_streams_after_it,
    streams_closed_while_their_node_was_busy_get_no_later_event,
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

/// The only worker of a node is blocked while another node closes the streams and publishes. So the
/// node then finds the close and the events together in the log.
async fn streams_closed_while_their_node_was_busy_get_no_later_event(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let one = connect(kind, &store.url()).await.expect("the backend runs");
    let registry = StreamRegistry::<u32>::new();
    registry.follow(&one).await.expect("the hub accepts the registry");
    let busy = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let url = store.url();
    let node = async move {
        let hub = connect(kind, &url).await.expect("the backend runs");
        let registry = StreamRegistry::<u32>::new();
        registry.follow(&hub).await.expect("the hub accepts the registry");
        (hub, registry)
    };
    let (other, registry_of_other) = busy.spawn(node).await.expect("no panic");
    for user in 0..ROUNDS / 10 {
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let events = other.topic("news").subscribe(Start::Latest).await.expect("the topic exists");
            let layer = SseLayer::new().without_heartbeat().register(&registry_of_other, move |_| Some(user));
            let response = respond(&layer, Request::new(()), SseStream::new(events).into_http_response());
            let body = Body::new(response.into_body());
            tasks.push(busy.spawn(async move {
                let received = to_bytes(body, usize::MAX).await.expect("the stream ends without an error");
                let messages = whatwg::parse(&received).messages.into_iter();
                // The events of earlier rounds were published before the close.
                let later = messages.filter(|message| message.data.starts_with(&format!("{user}: ")));
                later.map(|message| message.data).collect::<Vec<_>>()
            }));
        }
        // The worker runs its tasks in turn, so all streams wait for events when it is blocked.
        let (blocks, is_blocked) = mpsc::channel();
        let (release, is_released) = mpsc::channel::<()>();
        busy.spawn(async move {
            blocks.send(()).expect("the test waits");
            is_released.recv().expect("the test continues");
        });
        is_blocked.recv().expect("the worker is blocked");
        registry.close_everywhere(&user).await.expect("the backend runs");
        for n in 0..20 {
            one.topic("news").publish(Event::display(format_args!("{user}: {n}"))).await.expect("the backend runs");
        }
        release.send(()).expect("the worker waits");
        for task in tasks {
            let received = tokio::time::timeout(SOON, task).await.expect("the stream ends").expect("no panic");
            assert!(received.is_empty(), "{kind:?}: a closed stream got {received:?}");
        }
    }
    busy.shutdown_background();
}
