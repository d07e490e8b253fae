//! Faults of the backend, and of the network to it.

use crate::{
    checker::{Checker, Load, PauseMode, Recovery},
    nodes::{Node, Parser},
    setup::{ERROR_TIMEOUT, assert_publish_fails_fast, connect, min_events, start_load, two_hubs},
    with_each_store,
};
use e2e::{Store, StoreKind, Wire};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tower_sse::hub::Hub;

with_each_store! {
    killed_backend_loses_nothing,
    stopped_backend_loses_nothing,
    connection_resets_lose_nothing,
    silent_network_loses_nothing,
    forgotten_connections_lose_nothing,
    slow_network_loses_nothing,
}

async fn start_two(kind: StoreKind, url: &str) -> ([Hub; 2], Checker) {
    let hubs = two_hubs(kind, url).await;
    let nodes = [Node::from(&hubs[0]), Node::from(&hubs[1])];
    let checker = start_load(kind, &nodes).await;
    (hubs, checker)
}

/// Breaks and mends the connection three times. Returns the recovery after each time.
async fn interrupt(checker: &Checker, hub: &Hub, break_it: impl Fn(), mend_it: impl Fn()) -> Vec<Recovery> {
    let mut recoveries = Vec::new();
    for _ in 0..3 {
        break_it();
        assert_publish_fails_fast(hub).await;
        checker.wait_for_errors(1).await;
        checker.wait_until_idle().await;
        mend_it();
        recoveries.push(checker.wait_for_delivery_to_all().await);
        checker.wait_for_more_acknowledged(2000).await;
    }
    recoveries
}

async fn killed_backend_loses_nothing(kind: StoreKind) {
    let mut store = Store::start(kind, &[]).await;
    let (hubs, checker) = start_two(kind, &store.url()).await;
    let mut recoveries = Vec::new();
    for _ in 0..3 {
        store.kill();
        assert_publish_fails_fast(&hubs[0]).await;
        checker.wait_for_errors(1).await;
        checker.wait_until_idle().await;
        store.restart().await;
        recoveries.push(checker.wait_for_delivery_to_all().await);
        checker.wait_for_more_acknowledged(2000).await;
    }
    // Restart immediately, so that clients may not notice.
    store.kill();
    store.restart().await;
    checker.wait_for_acknowledged(min_events::KILLED.get()).await;
    let report = checker.check(&hubs[0], "killed four times").await;
    report.assert_nothing_missed(min_events::KILLED.get()).assert_errors_within(ERROR_TIMEOUT);
    Recovery::assert_fast(kind, "killed", &recoveries);
}

async fn stopped_backend_loses_nothing(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let (hubs, checker) = start_two(kind, &store.url()).await;
    let mut recoveries = Vec::new();
    for seconds in [10, 1, 3] {
        let begin = Instant::now();
        store.signal("STOP");
        checker.wait_until_idle().await;
        if seconds == 10 {
            assert_publish_fails_fast(&hubs[0]).await;
        }
        sleep(Duration::from_secs(seconds).saturating_sub(begin.elapsed())).await;
        store.signal("CONT");
        recoveries.push(checker.wait_for_delivery_to_all().await);
        checker.wait_for_more_acknowledged(2000).await;
    }
    checker.wait_for_acknowledged(min_events::STOPPED.get()).await;
    let report = checker.check(&hubs[0], "stopped for 10, 1 and 3 s").await;
    report.assert_nothing_missed(min_events::STOPPED.get()).assert_errors_within(ERROR_TIMEOUT);
    Recovery::assert_fast(kind, "stopped", &recoveries);
}

async fn connection_resets_lose_nothing(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = start_two(kind, &store.url_through(&wire)).await;
    let recoveries = interrupt(&checker, &hubs[0], || wire.cut(), || wire.mend()).await;
    // Cut many more times under load.
    while checker.acknowledged() < min_events::CUT.get() {
        wire.cut();
        sleep(Duration::from_millis(20)).await;
        wire.mend();
        checker.wait_for_more_acknowledged(2000).await;
    }
    let report = checker.check(&hubs[0], "cut repeatedly").await;
    report.assert_nothing_missed(min_events::CUT.get()).assert_errors_within(ERROR_TIMEOUT);
    Recovery::assert_fast(kind, "reset", &recoveries);
}

async fn silent_network_loses_nothing(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = start_two(kind, &store.url_through(&wire)).await;
    let recoveries = interrupt(&checker, &hubs[0], || wire.silence(), || wire.mend()).await;
    checker.wait_for_acknowledged(min_events::SILENT.get()).await;
    let report = checker.check(&hubs[0], "silent three times").await;
    report.assert_nothing_missed(min_events::SILENT.get()).assert_errors_within(ERROR_TIMEOUT);
    Recovery::assert_fast(kind, "silent", &recoveries);
}

/// Neither end is notified that the connections are dead. A node notices when an answer times out.
async fn forgotten_connections_lose_nothing(kind: StoreKind) {
    const MAX_DETECTION: Duration = Duration::from_secs(8);

    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = start_two(kind, &store.url_through(&wire)).await;
    wire.silence();
    assert_publish_fails_fast(&hubs[0]).await;
    checker.wait_until_idle().await;
    wire.mend_for_new_connections();
    let first = checker.wait_for_delivery_to_all().await.last;
    checker.wait_for_more_acknowledged(2000).await;
    // Again under load, without a silence before.
    wire.mend_for_new_connections();
    let back = Instant::now();
    checker.wait_until_idle().await;
    checker.wait_for_delivery_to_all().await;
    let second = back.elapsed();
    println!(
        "{kind:?}: delivered to the last client {first:.0?} and {second:.0?} after the connections were forgotten"
    );
    checker.wait_for_acknowledged(min_events::FORGOTTEN.get()).await;
    let report = checker.check(&hubs[0], "connections forgotten twice").await;
    report.assert_nothing_missed(min_events::FORGOTTEN.get()).assert_errors_within(ERROR_TIMEOUT);
    assert!(first.max(second) < MAX_DETECTION, "{first:?}, {second:?}");
}

async fn slow_network_loses_nothing(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let fast = connect(kind, &store.url()).await.expect("the backend runs");
    let slow = connect(kind, &store.url_through(&wire)).await.expect("the backend runs");
    let mut checker = Checker::new(kind);
    checker.follow(&[Node::from(&fast)], usize::MAX, Parser::Fast).await;
    checker.follow_unpaced(&slow, PauseMode::StaySubscribed).await;
    wire.slow_down(100_000);
    checker.publish(&fast, Load::BATCHES);
    checker.publish(&fast, Load::SINGLE);
    checker.wait_for_acknowledged(min_events::SLOW_NETWORK.get()).await;
    let behind = checker.lag();
    // A client with an id of the fast node can move to the slow node, which may not have that event
    // yet.
    checker.follow(&[Node::from(&fast), Node::from(&slow)], 10, Parser::Fast).await;
    checker.wait_for_more_acknowledged(200).await;
    wire.mend();
    let report = checker.check(&fast, &format!("a node was {behind} events behind")).await;
    report.assert_nothing_missed(min_events::SLOW_NETWORK.get());
    assert!(behind > 5000, "the slow node is not slower: {behind}");
}
