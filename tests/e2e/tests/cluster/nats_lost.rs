//! A log in NATS over a connection that loses messages and acknowledgements.

use crate::{
    nats::{admin, marks, stream_info},
    nats_wire::NatsWire,
    unchanged::{DEFAULT_TIMEOUT, PATIENT, append, nats, read, record},
};
use async_nats::jetstream::stream;
use e2e::{Store, StoreKind, Wire, eventually};
use std::{future::pending, time::Duration};
use tokio::time::sleep;
use tower_sse::hub::backend::{Backend, Position};

/// A client that reconnects subscribes to the same inbox again, and does not receive the messages
/// that were sent in between. The relay loses one message instead, because that is repeatable.
#[tokio::test(flavor = "multi_thread")]
async fn history_page_has_no_hole_if_a_message_is_lost() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let near = nats(&store.url());
    near.bounds().await.expect("the server responds");
    let mut positions = Vec::new();
    for n in 0..10 {
        positions.push(append(&near, "news", n).await);
    }
    let far = nats(&wire.url()).timeout(DEFAULT_TIMEOUT);
    for nth in 1..=10 {
        wire.lose_delivery(nth);
        let (mut after, mut received) = (Position::START, Vec::new());
        while after < positions[9] {
            // The hub also reads again after an error.
            let Ok(page) = far.read(&["news".into()], after).await else { continue };
            received.extend(page.records.into_iter().map(|(position, _)| position));
            after = page.through;
        }
        assert_eq!(received, positions, "message {nth} of the page was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_page_over_slow_connection_ends_early() {
    const SIZE: usize = 10_000;
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let (near, far) = (nats(&store.url()), nats(&wire.url()));
    let mut last = Position::START;
    for _ in 0..10 {
        last = append(&near, "news", "x".repeat(SIZE)).await;
    }
    far.bounds().await.expect("the server responds");
    wire.slow_down(SIZE, Duration::from_millis(600));
    let (mut after, mut pages) = (Position::START, Vec::new());
    while after < last {
        let page = far.read(&["news".into()], after).await.expect("the server responds");
        pages.push(page.records.len());
        after = page.through;
    }
    assert!(pages[0] < 10 && pages.iter().sum::<usize>() == 10, "{pages:?}");
}

/// Starts a server with a stream that forgets the ids of messages after half a second.
async fn store_with_short_duplicate_window() -> Store {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let config = stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        duplicate_window: Duration::from_millis(500),
        ..stream::Config::default()
    };
    admin(&store.url()).await.create_stream(config).await.expect("the stream is new");
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn short_duplicate_window_stores_one_copy_if_an_acknowledgement_is_lost() {
    let store = store_with_short_duplicate_window().await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url()).timeout(DEFAULT_TIMEOUT);
    log.bounds().await.expect("the server responds");
    wire.lose_acknowledgements(1);
    let error = log.append(vec![record("news", "unsure")]).await.expect_err("the acknowledgement is lost");
    assert!(error.to_string().contains("has not answered"), "{error}");
    append(&log, "news", "next").await;
    assert_eq!(read(&log, "news").await, ["unsure", "next"]);
}

/// While the servers of a cluster store a message, nats-server 2.10 responds to another copy
/// without a sequence.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgement_without_sequence_is_no_proof_of_loss() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url());
    let before = log.bounds().await.expect("the server responds");
    wire.lose_acknowledgements(1);
    wire.remove_sequences(1);
    let appended = log.append(vec![record("news", "slow")]).await.expect("the message is stored");
    let after = log.bounds().await.expect("the server responds");
    assert_eq!((appended.epoch, after.epoch), (before.epoch, before.epoch));
    assert_eq!(appended.position, after.last);
    assert_eq!(marks(&admin(&store.url()).await).await.len(), 1, "no new log began");
    assert_eq!(read(&log, "news").await, ["slow"]);
}

/// While the servers of a cluster store a message, nats-server 2.11 refuses another copy.
#[tokio::test(flavor = "multi_thread")]
async fn late_acknowledgement_counts_after_the_second_copy() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url());
    let before = log.bounds().await.expect("the server responds");
    for conditional in [false, true] {
        wire.delay_acknowledgement();
        let records = vec![record("news", "slow")];
        let appended = match conditional {
            false => log.append(records).await.map(Some),
            true => log.append_if_unchanged(records, before.epoch, log.bounds().await.expect("it responds").last).await,
        };
        let appended = appended.expect("the message is stored").expect("no other node publishes");
        let after = log.bounds().await.expect("the server responds");
        assert_eq!((appended.epoch, appended.position), (before.epoch, after.last));
    }
    assert_eq!(read(&log, "news").await, ["slow", "slow"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_second_copy_is_unsure() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url());
    log.bounds().await.expect("the server responds");
    wire.lose_acknowledgements(1);
    wire.refuse(Some("\"duplicate\""));
    let refusal = async {
        eventually(2 * PATIENT, "the second copy is sent", async || {
            if wire.refused() > 0 { Ok(()) } else { Err(wire.acknowledgements_to_lose()) }
        })
        .await;
        wire.refuse(None);
    };
    let (appended, ()) = tokio::join!(log.append(vec![record("news", "unsure")]), refusal);
    let error = appended.expect_err("the second copy has failed").to_string();
    assert!(error.contains("it is unknown whether"), "{error}");
    assert_eq!(read(&log, "news").await, ["unsure"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_message_is_sent_a_few_times() {
    const MANY: usize = 1000;
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let log = nats(&wire.url()).timeout(DEFAULT_TIMEOUT);
    log.bounds().await.expect("the server responds");
    wire.lose_acknowledgements(MANY);
    log.append(vec![record("news", "unsure")]).await.expect_err("no acknowledgement arrives");
    sleep(Duration::from_secs(1)).await;
    let sent = MANY - wire.acknowledgements_to_lose();
    assert!((2..=6).contains(&sent), "{sent} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_duplicate_window_stores_one_copy_if_the_connection_is_lost() {
    let store = store_with_short_duplicate_window().await;
    let wire = Wire::to(store.address()).await;
    let log = nats(&store.url_through(&wire));
    log.bounds().await.expect("the server responds");
    wire.silence_responses();
    let cut = async {
        let admin = admin(&store.url()).await;
        while stream_info(&admin).await.state.messages < 2 {
            sleep(Duration::from_millis(1)).await;
        }
        // The stream forgets the id of the message meanwhile.
        sleep(Duration::from_millis(900)).await;
        wire.cut();
        // The error needs no new connection.
        sleep(PATIENT / 2).await;
        wire.mend();
        pending().await
    };
    let error = tokio::select! {
        appended = log.append(vec![record("news", "unsure")]) => appended.expect_err("the connection is lost"),
        () = cut => unreachable!("it never ends"),
    };
    assert!(error.to_string().contains("duplicate_window"), "{error}");
    assert_eq!(read(&nats(&store.url()), "news").await, ["unsure"]);
}
