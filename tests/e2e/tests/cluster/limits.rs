//! Retention and size limits of the log.

use crate::{
    checker::{Checker, Load, PauseMode},
    nodes::{Node, Parser},
    setup::{ERROR_TIMEOUT, connect_small, min_events, start_load, two_hubs},
    with_each_store,
};
use e2e::{Store, StoreKind, Wire};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

with_each_store! {
    clients_behind_the_retention_receive_gaps,
    node_behind_the_retention_reports_gaps,
    deleted_log_is_one_gap_for_each_client,
    full_log_is_an_error_until_extended,
}

/// Returns the number of records in a small log. A message of NATS contains ten records here.
fn small_log(kind: StoreKind) -> u32 {
    match kind {
        StoreKind::Redis | StoreKind::Postgres => 5000,
        StoreKind::Nats => 500,
    }
}

const TENS: Load = Load { batch: 10, bytes: 10, pause: Duration::ZERO };

async fn clients_behind_the_retention_receive_gaps(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let hub = connect_small(kind, &store.url(), small_log(kind)).await.expect("the backend runs");
    let mut checker = Checker::new(kind);
    checker.follow(&[Node::from(&hub)], usize::MAX, Parser::Fast).await;
    checker.follow_unpaced(&hub, PauseMode::StaySubscribed).await;
    checker.follow_unpaced(&hub, PauseMode::Disconnect).await;
    checker.publish(&hub, TENS);
    let mut number = 0;
    for _ in 0..3 {
        number += min_events::OVERTAKEN.get() / 3;
        checker.pause(true);
        checker.wait_for_acknowledged(number).await;
        checker.pause(false);
        checker.wait_for_delivery_to_all().await;
        checker.wait_for_more_acknowledged(500).await;
    }
    let report =
        checker.check(&hub, "clients pause three times").await.assert_acknowledged(min_events::OVERTAKEN.get());
    for (client, reason) in [(1, "lagged"), (2, "evicted")] {
        let gaps = &report.gaps[client];
        assert!(gaps.len() >= 2, "client {client} received {gaps:?}");
        assert!(gaps.iter().all(|gap| gap.reason == reason), "client {client} received {gaps:?}");
        assert!(gaps.iter().all(|gap| gap.missed > 0), "no gap is empty: {gaps:?}");
    }
}

async fn node_behind_the_retention_reports_gaps(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let hub = connect_small(kind, &store.url(), small_log(kind)).await.expect("the backend runs");
    let other = connect_small(kind, &store.url_through(&wire), small_log(kind)).await.expect("the backend runs");
    let mut checker = Checker::new(kind);
    checker.follow(&[Node::from(&hub)], usize::MAX, Parser::Fast).await;
    checker.follow_unpaced(&other, PauseMode::StaySubscribed).await;
    checker.follow_unpaced(&other, PauseMode::StaySubscribed).await;
    checker.publish(&hub, TENS);
    checker.wait_for_more_acknowledged(1000).await;
    wire.cut();
    checker.wait_for_acknowledged(min_events::OVERTAKEN.get()).await;
    wire.mend();
    checker.wait_for_more_acknowledged(1000).await;
    let report = checker.check(&hub, "a node that is cut off").await.assert_acknowledged(min_events::OVERTAKEN.get());
    for client in [1, 2] {
        let gaps = &report.gaps[client];
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.reason == "lagged"), "client {client}: {gaps:?}");
        assert!(gaps.iter().all(|gap| gap.missed > 0), "no gap is empty: {gaps:?}");
    }
}

async fn deleted_log_is_one_gap_for_each_client(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let hubs = two_hubs(kind, &store.url()).await;
    let checker = start_load(kind, &[Node::from(&hubs[0]), Node::from(&hubs[1])]).await;
    checker.wait_for_acknowledged(min_events::DELETED.get() / 2).await;
    match kind {
        StoreKind::Redis => assert!(store.redis("DEL tower-sse").await.starts_with(":1\r\n")),
        StoreKind::Nats => drop(jetstream(&store, "STREAM.DELETE.tower-sse", "").await),
        StoreKind::Postgres => drop(store.sql("DROP SCHEMA tower_sse CASCADE")),
    }
    let begin = Instant::now();
    checker.wait_for_more_acknowledged(1).await;
    let acknowledged = begin.elapsed();
    checker.wait_for_delivery_to_all().await;
    let delivered = begin.elapsed();
    println!("{kind:?}: acknowledged {acknowledged:.0?} and delivered {delivered:.0?} after the log was deleted");
    checker.wait_for_acknowledged(min_events::DELETED.get()).await;
    let report = checker.check(&hubs[0], "the log is deleted").await.assert_acknowledged(min_events::DELETED.get());
    for gaps in &report.gaps {
        assert_eq!(gaps.len(), 1, "each client receives one gap: {gaps:?}");
    }
    assert!(delivered < Duration::from_secs(5), "{delivered:?}");
}

async fn full_log_is_an_error_until_extended(kind: StoreKind) {
    const ROOM: &str = "12000000";

    let arguments: &[&str] = match kind {
        StoreKind::Redis => &["--maxmemory", ROOM, "--maxmemory-policy", "noeviction"],
        StoreKind::Nats | StoreKind::Postgres => &[],
    };
    let store = Store::start(kind, arguments).await;
    let hubs = two_hubs(kind, &store.url()).await;
    match kind {
        StoreKind::Redis => {}
        StoreKind::Nats => set_max_bytes(&store, ROOM.parse().expect("a number")).await,
        // The limit is above the 16 MiB of a WAL file.
        StoreKind::Postgres => store.limit_file_size("17000000"),
    }
    let nodes = [Node::from(&hubs[0]), Node::from(&hubs[1])];
    let mut checker = Checker::new(kind);
    for (events_per_node, parser) in [(500, Parser::Standard), (usize::MAX, Parser::Fast)] {
        checker.follow(&nodes, events_per_node, parser).await;
    }
    for node in &nodes {
        checker.publish(node.clone(), Load { bytes: 150, ..Load::BATCHES });
    }
    checker.wait_for_errors(1).await;
    let until_full = checker.acknowledged();
    checker.wait_until_idle().await;
    // A full log can still be read.
    checker.follow(&nodes, 100, Parser::Fast).await;
    match kind {
        StoreKind::Redis => assert!(store.redis("CONFIG SET maxmemory 0").await.starts_with("+OK\r\n")),
        StoreKind::Nats => set_max_bytes(&store, -1).await,
        StoreKind::Postgres => store.limit_file_size("unlimited"),
    }
    let begin = Instant::now();
    checker.wait_for_delivery_to_all().await;
    println!("{kind:?}: full after {until_full}; delivered {:.0?} after it had room", begin.elapsed());
    checker.wait_for_acknowledged(min_events::FULL.get()).await;
    let report = checker.check(&hubs[0], "the log is full").await;
    let report = report.assert_nothing_missed(min_events::FULL.get()).assert_errors_within(ERROR_TIMEOUT);
    let message = match kind {
        StoreKind::Redis => "maxmemory",
        StoreKind::Nats => "maximum bytes",
        StoreKind::Postgres => "could not extend file",
    };
    let errors = report.errors.keys().collect::<Vec<_>>();
    assert!(errors.iter().all(|error| error.contains(message)), "the errors name the reason: {errors:?}");
}

/// Sets the size limit of the stream, and rejects messages over the limit.
async fn set_max_bytes(store: &Store, bytes: i64) {
    let mut config = jetstream(store, "STREAM.INFO.tower-sse", "").await["config"].take();
    config["max_bytes"] = bytes.into();
    config["discard"] = json!("new");
    jetstream(store, "STREAM.UPDATE.tower-sse", &config.to_string()).await;
}

/// Sends a request to the API of JetStream.
async fn jetstream(store: &Store, subject: &str, json: &str) -> Value {
    let answer = store.nats(&format!("$JS.API.{subject}"), json).await;
    let (_, json) = answer.split_once("\r\n").expect("an answer has a body");
    let answer: Value = serde_json::from_str(json.trim()).expect("the answer is JSON");
    assert!(answer.get("error").is_none(), "{answer}");
    answer
}
