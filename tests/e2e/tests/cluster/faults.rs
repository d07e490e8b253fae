//! What becomes of events while the backend, or the way to it, is broken.

use crate::{
    checker::{Back, Checker, Holds, Load},
    nodes::{Node, Parser},
    with_each_engine,
    world::{AN_ERROR, at_least, busy, connect, fails_fast, two_hubs, url_by},
};
use e2e::{
    Wire,
    store::{Engine, Store},
};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tower_sse::hub::Hub;

with_each_engine! {
    a_backend_that_is_killed_and_started_again_loses_nothing,
    a_backend_that_stands_still_for_ten_seconds_loses_nothing,
    a_network_that_resets_its_connections_loses_nothing,
    a_network_that_is_silent_for_a_while_loses_nothing,
    a_network_that_has_forgotten_its_connections_loses_nothing,
    a_node_to_which_events_come_more_slowly_than_they_are_published_loses_nothing,
}

async fn two(engine: Engine, url: &str) -> ([Hub; 2], Checker) {
    let hubs = two_hubs(engine, url).await;
    let nodes = [Node::from(&hubs[0]), Node::from(&hubs[1])];
    let checker = busy(engine, &nodes).await;
    (hubs, checker)
}

/// Three times away and back. Returns how long it took each time until all clients got something.
async fn away_and_back(checker: &Checker, hub: &Hub, breaks: impl Fn(), mends: impl Fn()) -> Vec<Back> {
    let mut times = Vec::new();
    for _ in 0..3 {
        breaks();
        fails_fast(hub).await;
        checker.refuses(1).await;
        checker.stands_still().await;
        mends();
        times.push(checker.all_get_more().await);
        checker.acknowledges(2000).await;
    }
    times
}

async fn a_backend_that_is_killed_and_started_again_loses_nothing(engine: Engine) {
    let mut store = Store::start(engine, &[]).await;
    let (hubs, checker) = two(engine, &store.url()).await;
    let mut times = Vec::new();
    for _ in 0..3 {
        store.kill();
        fails_fast(&hubs[0]).await;
        checker.refuses(1).await;
        checker.stands_still().await;
        store.restart().await;
        times.push(checker.all_get_more().await);
        checker.acknowledges(2000).await;
    }
    // At once, so that nobody has noticed much.
    store.kill();
    store.restart().await;
    checker.acknowledges_in_all(at_least::KILLED).await;
    let report = checker.check(&hubs[0], "killed four times").await;
    report.nothing_is_missed(at_least::KILLED).fails_within(AN_ERROR);
    Back::is_soon(engine, "killed", &times);
}

async fn a_backend_that_stands_still_for_ten_seconds_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let (hubs, checker) = two(engine, &store.url()).await;
    let mut times = Vec::new();
    for seconds in [10, 1, 3] {
        let begin = Instant::now();
        store.signal("STOP");
        checker.stands_still().await;
        if seconds == 10 {
            fails_fast(&hubs[0]).await;
        }
        sleep(Duration::from_secs(seconds).saturating_sub(begin.elapsed())).await;
        store.signal("CONT");
        times.push(checker.all_get_more().await);
        checker.acknowledges(2000).await;
    }
    checker.acknowledges_in_all(at_least::STOPPED).await;
    let report = checker.check(&hubs[0], "stopped for 10, 1 and 3 s").await;
    report.nothing_is_missed(at_least::STOPPED).fails_within(AN_ERROR);
    Back::is_soon(engine, "stopped", &times);
}

async fn a_network_that_resets_its_connections_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = two(engine, &url_by(&wire, &store)).await;
    let times = away_and_back(&checker, &hubs[0], || wire.cut(), || wire.mend()).await;
    // And many times in mid-stream.
    while checker.acknowledged() < at_least::CUT {
        wire.cut();
        sleep(Duration::from_millis(20)).await;
        wire.mend();
        checker.acknowledges(2000).await;
    }
    let report = checker.check(&hubs[0], "cut again and again").await;
    report.nothing_is_missed(at_least::CUT).fails_within(AN_ERROR);
    Back::is_soon(engine, "reset", &times);
}

async fn a_network_that_is_silent_for_a_while_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = two(engine, &url_by(&wire, &store)).await;
    let times = away_and_back(&checker, &hubs[0], || wire.silence(), || wire.mend()).await;
    checker.acknowledges_in_all(at_least::SILENT).await;
    let report = checker.check(&hubs[0], "silent three times").await;
    report.nothing_is_missed(at_least::SILENT).fails_within(AN_ERROR);
    Back::is_soon(engine, "silent", &times);
}

/// Nobody is told that the connections are gone: to find out takes as long as is waited for an answer.
async fn a_network_that_has_forgotten_its_connections_loses_nothing(engine: Engine) {
    const FOUND_OUT: Duration = Duration::from_secs(8);

    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (hubs, checker) = two(engine, &url_by(&wire, &store)).await;
    wire.silence();
    fails_fast(&hubs[0]).await;
    checker.stands_still().await;
    wire.mend_for_new_connections();
    let first = checker.all_get_more().await.last;
    checker.acknowledges(2000).await;
    // In mid-stream, and at once.
    wire.mend_for_new_connections();
    let back = Instant::now();
    checker.stands_still().await;
    checker.all_get_more().await;
    let second = back.elapsed();
    println!(
        "{engine:?}: the last client got something {first:.0?} and {second:.0?} after the connections were forgotten"
    );
    checker.acknowledges_in_all(at_least::FORGOTTEN).await;
    let report = checker.check(&hubs[0], "connections forgotten twice").await;
    report.nothing_is_missed(at_least::FORGOTTEN).fails_within(AN_ERROR);
    assert!(first.max(second) < FOUND_OUT, "{first:?}, {second:?}");
}

async fn a_node_to_which_events_come_more_slowly_than_they_are_published_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let fast = connect(engine, &store.url()).await.expect("it is there");
    let slow = connect(engine, &url_by(&wire, &store)).await.expect("it is there");
    let mut checker = Checker::new(engine);
    checker.follow(&[Node::from(&fast)], usize::MAX, Parser::Fast).await;
    checker.follow_at_leisure(&slow, Holds::Still).await;
    wire.slow_down(100_000);
    checker.publish(&fast, Load::BATCHES);
    checker.publish(&fast, Load::SINGLE);
    checker.acknowledges_in_all(at_least::SLOW_WAY).await;
    let behind = checker.is_behind();
    // Who comes to it with an id of the other gets what follows, whether the slow one has it yet or not.
    checker.follow(&[Node::from(&fast), Node::from(&slow)], 10, Parser::Fast).await;
    checker.acknowledges(200).await;
    wire.mend();
    let report = checker.check(&fast, &format!("a node was {behind} events behind")).await;
    report.nothing_is_missed(at_least::SLOW_WAY);
    assert!(behind > 5000, "it was slower: {behind}");
}
