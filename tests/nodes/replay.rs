//! Replays from the backend next to the memory of the node: the ends of topics, retained states, and
//! records that are not events.

use super::{
    PLENTY, data_soon,
    faulty::{Faulty, Mode, Shared},
    numbers, publish,
    recording::SECOND,
    settle, two,
};
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    Event, EventId,
    hub::{ErrorKind, Hub},
};

/// Fills a log with an end of the topic "a" at position 3, which both nodes then forget.
async fn forgotten_end(shared: &Shared) -> ([Hub; 2], [Faulty; 2], EventId) {
    let (hubs, connections) = two(shared, || Hub::builder().max_age(SECOND * 10)).await;
    let first = publish(&hubs[0], "a", 1).await;
    publish(&hubs[0], "a", 2).await;
    hubs[0].topic("a").finish().await.unwrap();
    for n in 4..11 {
        publish(&hubs[0], "b", n).await;
    }
    sleep(SECOND * 60).await;
    assert_eq!(hubs[0].stats().topics, 0);
    (hubs, connections, first)
}

#[tokio::test(start_paused = true)]
async fn forgotten_end_is_found_pages_before_the_watermark() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].page.store(1, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    assert_eq!(data_soon(&mut both).await, numbers((2..11).filter(|n| *n != 3)));
    let error = hubs[0].topic("a").publish(Event::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Finished);
}

/// Another node publishes before it reads the end, so the topic continues.
#[tokio::test(start_paused = true)]
async fn later_replay_does_not_finish_a_reopened_topic() {
    let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(2)).await;
    let first = publish(&hubs[0], "t", 0).await;
    settle().await;
    connections[1].set(Mode::Lags);
    hubs[0].topic("t").finish().await.unwrap();
    for n in 1..9 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    let mut both = task::spawn(hubs[0].subscribe(["t", "u"], first).await.unwrap());
    data_soon(&mut both).await;
    publish(&hubs[1], "t", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
    for n in 0..5 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    assert_eq!(data_soon(&mut both).await, numbers(0..5));
    publish(&hubs[0], "t", "more").await;
    assert_eq!(data_soon(&mut both).await, ["more"]);
}

/// As above, but the node reads the later event from memory, and then forgets it because the backend
/// has evicted it.
#[tokio::test(start_paused = true)]
async fn replay_after_eviction_does_not_finish_a_reopened_topic() {
    let (hubs, connections) = two(&Shared::new(9), || Hub::builder().max_events(2)).await;
    let first = publish(&hubs[0], "t", 0).await;
    settle().await;
    connections[1].set(Mode::Lags);
    hubs[0].topic("t").finish().await.unwrap();
    for n in 1..8 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    let mut both = task::spawn(hubs[0].subscribe(["t", "u"], first).await.unwrap());
    data_soon(&mut both).await;
    publish(&hubs[1], "t", "again").await;
    publish(&hubs[0], "u", "next").await;
    assert_eq!(data_soon(&mut both).await, ["again", "next"]);
    // The node misses the eviction of these records, and learns of it from the next page.
    connections[0].set(Mode::Lags);
    for n in 0..20 {
        publish(&hubs[1], "u", n).await;
    }
    connections[0].set(Mode::Works);
    data_soon(&mut both).await;
    publish(&hubs[0], "t", "more").await;
    assert_eq!(data_soon(&mut both).await, ["more"]);
}

#[tokio::test(start_paused = true)]
async fn later_page_does_not_finish_a_removed_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].page.store(2, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    hubs[0].topic("a").remove().await.unwrap();
    data_soon(&mut both).await;
    publish(&hubs[0], "a", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
}

#[tokio::test(start_paused = true)]
async fn page_read_before_removal_does_not_finish_the_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].delay.store(3_000, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    // The page arrives, and then the removal.
    sleep(SECOND * 2).await;
    hubs[0].topic("a").remove().await.unwrap();
    connections[0].delay.store(0, Relaxed);
    data_soon(&mut both).await;
    publish(&hubs[0], "a", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
}
