//! Outages of the backend: clients wait or get an error, and lose no event.

use super::{
    PLENTY, data, data_soon,
    faulty::{Mode, Shared},
    hub, numbers, publish, settle, subscribe, two,
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tower_sse::{
    Event, EventId, SseStream,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Start},
};

#[tokio::test(start_paused = true)]
async fn client_resumes_without_gap_after_backend_outage() {
    let shared = Shared::new(5);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(2).lag_policy(LagPolicy::Disconnect)).await;
    let id = publish(&hubs[0], "a", "seen").await;
    for n in 0..20 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[1].set(Mode::Fails);
    let mut back = subscribe(&hubs[1], "a", id).await;
    assert!(back.gap().is_none() && !back.is_resumed(), "it is not known yet");
    assert_eq!(data(&mut back), [""; 0]);
    connections[1].set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut back).await, ["evicted", "15", "16", "17", "18", "19"]);
}

#[tokio::test(start_paused = true)]
async fn unknown_id_is_decided_after_backend_outage() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    to_other.set(Mode::Fails);
    let ids = [publish(&one, "a", 0).await, publish(&one, "a", 1).await];
    publish(&one, "a", 2).await;
    let mut back = subscribe(&other, "a", ids[1].clone()).await;
    assert_eq!(data(&mut back), [""; 0]);
    let opening = SseStream::new(other.topic("a").subscribe(ids[1].clone()).await.unwrap());
    drop(opening);
    to_other.set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut back).await, ["2"]);
    assert_eq!(other.stats().gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn response_waits_two_seconds_for_silent_backend() {
    let shared = Shared::new(10);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&hubs[0], "a", "early").await;
    for n in 0..3 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[1].set(Mode::Hangs);
    let begun = Instant::now();
    let mut back = subscribe(&hubs[1], "a", early).await;
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(!back.is_resumed() && back.gap().is_none());
    assert_eq!(data(&mut back), [""; 0]);
    connections[1].set(Mode::Works);
    assert_eq!(data_soon(&mut back).await, numbers(0..3));
    // A certain gap is reported without it.
    connections[1].set(Mode::Hangs);
    let other = subscribe(&hubs[1], "a", EventId::new("aaaaaaaa-1").unwrap()).await;
    assert_eq!(other.gap().map(|gap| gap.reason()), Some(GapReason::OtherEpoch));
}

#[tokio::test(start_paused = true)]
async fn publish_fails_during_outage_and_recovers() {
    let ([one, other], [to_one, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut listens = subscribe(&other, "a", Start::Latest).await;
    for down in [1, 100, 3600] {
        let id = publish(&one, "a", "before").await;
        settle().await;
        assert_eq!(data(&mut listens), ["before"]);
        to_one.set(Mode::Fails);
        to_other.set(Mode::Fails);
        sleep(Duration::from_secs(down)).await;
        let begun = Instant::now();
        let error = one.topic("a").publish(Event::new("lost")).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::Backend, Duration::ZERO));
        assert_eq!(data(&mut listens), [""; 0], "whoever is subscribed waits");
        to_one.set(Mode::Works);
        to_other.set(Mode::Works);
        let begun = Instant::now();
        publish(&one, "a", "after").await;
        while data(&mut listens).is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?} after {down} s", begun.elapsed());
        let mut back = subscribe(&other, "a", id).await;
        assert_eq!(data(&mut back), ["after"]);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_backend_is_error_after_ten_seconds() {
    let connection = Shared::new(PLENTY).connect();
    let hub = hub(connection.clone()).await;
    connection.set(Mode::Hangs);
    let begun = Instant::now();
    let error = hub.topic("a").publish(Event::new("0")).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Backend, 10));
    let error = Hub::builder().backend(connection).connect().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Backend, 20));
}

#[tokio::test(start_paused = true)]
async fn follower_notices_silently_dead_connection() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut listens = subscribe(&other, "a", Start::Latest).await;
    settle().await;
    // A `follow` from here waits for ever. A new one does not.
    to_other.set(Mode::Lags);
    publish(&one, "a", 0).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(data(&mut listens), [""; 0]);
    assert_eq!(to_other.asked.follows.load(Relaxed), 1, "one reader, however often it begins anew");
    to_other.set(Mode::Works);
    settle().await;
    assert_eq!(data(&mut listens), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn unsure_publish_is_error_and_same_for_all() {
    let ([one, other], [to_one, _]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut clients = [subscribe(&one, "a", Start::Latest).await, subscribe(&other, "a", Start::Latest).await];
    to_one.set(Mode::LosesAnswers);
    let error = one.topic("a").publish(Event::new("unsure")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    to_one.set(Mode::Hangs);
    assert!(timeout(Duration::from_millis(1), one.topic("a").publish(Event::new("dropped"))).await.is_err());
    to_one.set(Mode::Works);
    publish(&one, "a", "sure").await;
    for client in &mut clients {
        assert_eq!(data_soon(client).await, ["unsure", "sure"]);
    }
}
