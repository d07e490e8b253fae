//! The shutdown of a hub, and its end with its last handle.

use super::{
    PLENTY, data,
    faulty::{Mode, Shared},
    hub, publish, settle, subscribe, two,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, task};
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Start},
};

#[tokio::test(start_paused = true)]
async fn shutdown_ends_subscriptions_that_wait_for_backend() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&hubs[0], "a", 0).await;
    publish(&hubs[0], "a", 1).await;
    publish(&hubs[0], "a", 2).await;
    settle().await;
    let mut live = subscribe(&hubs[1], "a", Start::Latest).await;
    connections[1].set(Mode::Hangs);
    let mut waits = subscribe(&hubs[1], "a", early.clone()).await;
    connections[1].set(Mode::Fails);
    let mut pauses = subscribe(&hubs[1], "a", early.clone()).await;
    for subscription in [&mut live, &mut waits, &mut pauses] {
        assert_pending!(subscription.poll_next());
    }
    hubs[1].shutdown();
    for subscription in [&mut live, &mut waits, &mut pauses] {
        assert!(subscription.is_woken());
        assert_eq!(data(subscription), ["end"]);
    }
    assert_eq!(hubs[1].topic("a").publish(Event::new("3")).await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(data(&mut subscribe(&hubs[1], "a", early).await), ["end"]);
    settle().await;
    assert_eq!(connections[1].asked.follows.load(Relaxed), 0, "nobody follows the log any more");
}

/// The client's id is before or after the end of the log that the node knows.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_pending_subscribe() {
    for is_ahead in [false, true] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
        let early = publish(&hubs[0], "a", 0).await;
        publish(&hubs[0], "a", 1).await;
        publish(&hubs[0], "a", 2).await;
        settle().await;
        connections[1].set(Mode::Hangs);
        let id = if is_ahead { publish(&hubs[0], "a", 3).await } else { early };
        let topic = hubs[1].topic("a");
        let call = tokio::spawn(async move { topic.subscribe(id).await });
        sleep(Duration::from_millis(500)).await;
        assert!(!call.is_finished());
        let begin = Instant::now();
        hubs[1].shutdown();
        let subscription = call.await.unwrap().unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO, "{is_ahead}");
        assert_eq!(data(&mut task::spawn(subscription)), ["end"]);
    }
}

#[tokio::test(start_paused = true)]
async fn follower_ends_with_last_handle() {
    let connection = Shared::new(PLENTY).connect();
    let hub = hub(connection.clone()).await;
    let subscription = subscribe(&hub, "a", Start::Latest).await;
    settle().await;
    let topic = hub.topic("a");
    drop(hub);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 1);
    drop(topic);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 1, "a subscription is a handle");
    drop(subscription);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 0);
    assert_eq!(Arc::strong_count(&connection.asked), 1, "nobody else has the connection");
}
