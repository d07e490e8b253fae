//! Pages of the log in NATS, over a connection that loses messages.

use crate::{
    nats_wire::NatsWire,
    unchanged::{append, nats},
};
use e2e::{Store, StoreKind};
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
    let far = nats(&wire.url());
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
