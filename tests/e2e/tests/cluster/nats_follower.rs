//! Requests of a follower, the task that reads the log, that the NATS server refuses.

use crate::{
    nats::{SOON, admin, stream_of_log},
    nats_wire::NatsWire,
    unchanged::{append, nats},
};
use e2e::{Store, StoreKind, eventually};
use std::time::Duration;
use tower_sse::hub::backend::{Backend, NatsBackend, Page, Position};

/// Waits for the next page with records while the server refuses requests whose responses contain
/// `text`. Another node publishes an event before the first refusal arrives.
async fn page_despite_refusal(
    wire: &NatsWire,
    text: &'static str,
    log: &NatsBackend,
    other: &NatsBackend,
    after: Position,
) -> (Page, Position) {
    wire.refuse(Some(text));
    let published = async {
        let is_held = async || if wire.refused() > 0 { Ok(()) } else { Err("no request is sent") };
        eventually(SOON, "a response is held", is_held).await;
        let event = append(other, "news", "during the request").await;
        wire.refuse(None);
        event
    };
    let followed = async {
        let mut after = after;
        loop {
            let page = log.follow(after).await.expect("the follower reads on");
            if !page.records.is_empty() {
                return page;
            }
            after = page.through;
        }
    };
    tokio::join!(followed, published)
}

/// A follower checks the log between two messages if a mark is due: two seconds after the first
/// check, or, on a busy machine, half of the maximum age after the first of these marks.
#[tokio::test(flavor = "multi_thread")]
async fn event_is_followed_after_a_refused_check() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let node = |url: &str| nats(url).max_age(Duration::from_secs(16));
    let (log, other) = (node(&wire.url()), node(&store.url()));
    for log in [&log, &other] {
        log.bounds().await.expect("the server responds");
    }
    let mark = log.follow(Position::START).await.expect("the server responds");
    assert_eq!(mark.records, [], "the log begins with a mark");
    let (page, event) = page_despite_refusal(&wire, "stream_info_response", &log, &other, mark.through).await;
    assert_eq!(page.records.last().map(|(position, _)| *position), Some(event), "{page:?}");
}

/// A follower without new messages asks for deleted messages.
#[tokio::test(flavor = "multi_thread")]
async fn event_is_followed_after_a_refused_search_for_deleted_messages() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let (wire, admin) = (NatsWire::to(store.address()).await, admin(&store.url()).await);
    // Without a maximum age, the nodes add no further marks.
    let node = |url: &str| nats(url).max_age(Duration::MAX);
    let (log, other) = (node(&wire.url()), node(&store.url()));
    for log in [&log, &other] {
        log.bounds().await.expect("the server responds");
    }
    let deleted = append(&log, "news", "deleted").await;
    stream_of_log(&admin).await.delete_message(2).await.expect("the message is deleted");
    let mark = log.follow(Position::START).await.expect("the server responds");
    assert_eq!(mark.records, [], "the log begins with a mark");
    let (page, event) = page_despite_refusal(&wire, "\"deleted\":[", &log, &other, mark.through).await;
    assert_eq!(page.evicted_through, deleted, "{page:?}");
    assert_eq!(page.records.last().map(|(position, _)| *position), Some(event), "{page:?}");
}
