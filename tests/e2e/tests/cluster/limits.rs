//! What becomes of events that the log no longer holds, or has no room for.

use crate::{
    checker::{Checker, Holds, Load},
    nodes::{Node, Parser},
    with_each_engine,
    world::{AN_ERROR, at_least, busy, connect_small, two_hubs, url_by},
};
use e2e::{
    Wire,
    store::{Engine, Store},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

with_each_engine! {
    clients_that_are_overtaken_by_the_retention_are_told_from_where_to_where,
    a_node_that_is_overtaken_by_the_retention_tells_its_clients,
    a_log_that_is_deleted_is_a_gap_for_everybody_and_goes_on,
    a_log_that_is_full_is_an_error_until_there_is_room,
}

/// Records in the log. A message of NATS is one of ten here.
fn small(engine: Engine) -> u32 {
    match engine {
        Engine::Redis => 5000,
        Engine::Nats => 500,
    }
}

const TENS: Load = Load { batch: 10, bytes: 10, pause: Duration::ZERO };

async fn clients_that_are_overtaken_by_the_retention_are_told_from_where_to_where(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let hub = connect_small(engine, &store.url(), small(engine)).await.expect("it is there");
    let mut checker = Checker::new(engine);
    checker.follow(&[Node::from(&hub)], usize::MAX, Parser::Fast).await;
    checker.follow_at_leisure(&hub, Holds::Still).await;
    checker.follow_at_leisure(&hub, Holds::Away).await;
    checker.publish(&hub, TENS);
    let mut number = 0;
    for _ in 0..3 {
        number += at_least::OVERTAKEN / 3;
        checker.hold(true);
        checker.acknowledges_in_all(number).await;
        checker.hold(false);
        checker.all_get_more().await;
        checker.acknowledges(500).await;
    }
    let report = checker.check(&hub, "clients that hold three times").await.has(at_least::OVERTAKEN);
    for (client, reason) in [(1, "lagged"), (2, "evicted")] {
        let gaps = &report.gaps[client];
        assert!(gaps.len() >= 2, "client {client} was told {gaps:?}");
        assert!(gaps.iter().all(|told| told.reason == reason), "client {client} was told {gaps:?}");
        assert!(gaps.iter().all(|told| told.missed > 0), "nobody is told of nothing: {gaps:?}");
    }
}

async fn a_node_that_is_overtaken_by_the_retention_tells_its_clients(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let hub = connect_small(engine, &store.url(), small(engine)).await.expect("it is there");
    let other = connect_small(engine, &url_by(&wire, &store), small(engine)).await.expect("it is there");
    let mut checker = Checker::new(engine);
    checker.follow(&[Node::from(&hub)], usize::MAX, Parser::Fast).await;
    checker.follow_at_leisure(&other, Holds::Still).await;
    checker.follow_at_leisure(&other, Holds::Still).await;
    checker.publish(&hub, TENS);
    checker.acknowledges(1000).await;
    wire.cut();
    checker.acknowledges_in_all(at_least::OVERTAKEN).await;
    wire.mend();
    checker.acknowledges(1000).await;
    let report = checker.check(&hub, "a node that is cut off").await.has(at_least::OVERTAKEN);
    for client in [1, 2] {
        let gaps = &report.gaps[client];
        assert!(!gaps.is_empty() && gaps.iter().all(|told| told.reason == "lagged"), "client {client}: {gaps:?}");
        assert!(gaps.iter().all(|told| told.missed > 0), "nobody is told of nothing: {gaps:?}");
    }
}

async fn a_log_that_is_deleted_is_a_gap_for_everybody_and_goes_on(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let hubs = two_hubs(engine, &store.url()).await;
    let checker = busy(engine, &[Node::from(&hubs[0]), Node::from(&hubs[1])]).await;
    checker.acknowledges_in_all(at_least::DELETED / 2).await;
    match engine {
        Engine::Redis => assert!(store.redis("DEL tower-sse").await.starts_with(":1\r\n")),
        Engine::Nats => drop(ask(&store, "STREAM.DELETE.tower-sse", "").await),
    }
    let begin = Instant::now();
    checker.acknowledges(1).await;
    let acknowledged = begin.elapsed();
    checker.all_get_more().await;
    let delivered = begin.elapsed();
    println!("{engine:?}: acknowledged {acknowledged:.0?} and delivered {delivered:.0?} after the log was deleted");
    checker.acknowledges_in_all(at_least::DELETED).await;
    let report = checker.check(&hubs[0], "the log is deleted").await.has(at_least::DELETED);
    for gaps in &report.gaps {
        assert_eq!(gaps.len(), 1, "each client is told, once: {gaps:?}");
    }
    assert!(delivered < Duration::from_secs(5), "{delivered:?}");
}

async fn a_log_that_is_full_is_an_error_until_there_is_room(engine: Engine) {
    const ROOM: &str = "12000000";

    let more: &[&str] = match engine {
        Engine::Redis => &["--maxmemory", ROOM, "--maxmemory-policy", "noeviction"],
        Engine::Nats => &[],
    };
    let store = Store::start(engine, more).await;
    let hubs = two_hubs(engine, &store.url()).await;
    if engine == Engine::Nats {
        has_room(&store, ROOM.parse().expect("a number")).await;
    }
    let nodes = [Node::from(&hubs[0]), Node::from(&hubs[1])];
    let mut checker = Checker::new(engine);
    for (stays_for, parser) in [(500, Parser::Standard), (usize::MAX, Parser::Fast)] {
        checker.follow(&nodes, stays_for, parser).await;
    }
    for node in &nodes {
        checker.publish(node.clone(), Load { bytes: 150, ..Load::BATCHES });
    }
    checker.refuses(1).await;
    let until_full = checker.acknowledged();
    checker.stands_still().await;
    // It can still be read, by whoever comes back.
    checker.follow(&nodes, 100, Parser::Fast).await;
    match engine {
        Engine::Redis => assert!(store.redis("CONFIG SET maxmemory 0").await.starts_with("+OK\r\n")),
        Engine::Nats => has_room(&store, -1).await,
    }
    let begin = Instant::now();
    checker.all_get_more().await;
    println!("{engine:?}: full after {until_full}; delivered {:.0?} after there was room", begin.elapsed());
    checker.acknowledges_in_all(at_least::FULL).await;
    let report = checker.check(&hubs[0], "the log is full").await;
    let report = report.nothing_is_missed(at_least::FULL).fails_within(AN_ERROR);
    let says = match engine {
        Engine::Redis => "maxmemory",
        Engine::Nats => "maximum bytes",
    };
    let errors = report.errors.keys().collect::<Vec<_>>();
    assert!(errors.iter().all(|error| error.contains(says)), "it is said what is wrong: {errors:?}");
}

/// Sets how many bytes the stream may have, and that what is too much is refused.
async fn has_room(store: &Store, bytes: i64) {
    let mut config = ask(store, "STREAM.INFO.tower-sse", "").await["config"].take();
    config["max_bytes"] = bytes.into();
    config["discard"] = json!("new");
    ask(store, "STREAM.UPDATE.tower-sse", &config.to_string()).await;
}

/// Asks JetStream for something that it does.
async fn ask(store: &Store, what: &str, json: &str) -> Value {
    let answer = store.nats(&format!("$JS.API.{what}"), json).await;
    let (_, json) = answer.split_once("\r\n").expect("there is an answer");
    let answer: Value = serde_json::from_str(json.trim()).expect("it is JSON");
    assert!(answer.get("error").is_none(), "{answer}");
    answer
}
