//! Subscriptions that wait for more events after a write.

use http_body::Body;
use std::{task::Poll, time::Duration};
use support::whatwg;
use tokio::{task::yield_now, time::sleep};
use tokio_test::{
    assert_pending,
    task::{self, Spawn},
};
use tower_sse::{
    Event, Heartbeat, SseStream,
    hub::{Hub, Start, Subscription, SubscriptionError},
};

const PAUSE: Duration = Duration::from_millis(25);
const SHORT: Duration = Duration::from_millis(1);

async fn publish(hub: &Hub, topic: &str, data: &str) {
    hub.topic(topic).publish(Event::new(data)).await.unwrap();
}

async fn subscribe(hub: &Hub, topics: &[&str]) -> Spawn<Subscription> {
    let mut subscription = task::spawn(hub.subscribe(topics, Start::Latest).await.unwrap());
    assert_pending!(subscription.poll_next());
    subscription
}

fn data(subscription: &mut Spawn<Subscription>) -> Vec<String> {
    let mut data = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        data.extend(whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data));
    }
    data
}

/// Subscribers of one and of several topics.
async fn lingering() -> (Hub, [Spawn<Subscription>; 2]) {
    let hub = Hub::builder().linger(PAUSE).build();
    let subscriptions = [subscribe(&hub, &["a"]).await, subscribe(&hub, &["a", "b", "c"]).await];
    (hub, subscriptions)
}

#[tokio::test(start_paused = true)]
async fn events_after_a_write_arrive_together() {
    for of_several in [0, 1] {
        let (hub, subscriptions) = lingering().await;
        let mut subscription = subscriptions.into_iter().nth(of_several).unwrap();
        // Twice, because the second pause uses the same timer.
        for _ in 0..2 {
            publish(&hub, "a", "1").await;
            assert!(subscription.is_woken());
            assert_eq!(data(&mut subscription), ["1"], "the first event is not delayed");
            sleep(PAUSE - SHORT).await;
            publish(&hub, "a", "2").await;
            publish(&hub, "a", "3").await;
            assert!(!subscription.is_woken(), "an event in the pause costs no wake-up");
            assert_eq!(data(&mut subscription), [""; 0]);
            sleep(2 * SHORT).await;
            assert!(subscription.is_woken());
            assert_eq!(data(&mut subscription), ["2", "3"]);
            // That was a write, so a pause follows.
            publish(&hub, "a", "4").await;
            assert_eq!(data(&mut subscription), [""; 0]);
            sleep(PAUSE + SHORT).await;
            assert_eq!(data(&mut subscription), ["4"]);
            sleep(PAUSE + SHORT).await;
            assert_eq!(data(&mut subscription), [""; 0], "the pause is over, and silence begins");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn topics_of_a_subscription_share_a_pause() {
    let (hub, [_, mut subscription]) = lingering().await;
    publish(&hub, "a", "1").await;
    assert_eq!(data(&mut subscription), ["1"]);
    for (topic, text) in [("b", "2"), ("a", "3"), ("c", "4"), ("b", "5")] {
        publish(&hub, topic, text).await;
        assert!(!subscription.is_woken());
    }
    sleep(PAUSE + SHORT).await;
    assert_eq!(data(&mut subscription), ["2", "3", "4", "5"]);
}

#[tokio::test(start_paused = true)]
async fn end_of_the_topics_ends_the_pause() {
    let (hub, mut subscriptions) = lingering().await;
    for topic in ["b", "c"] {
        hub.topic(topic).finish().await.unwrap();
    }
    for subscription in &mut subscriptions {
        assert_pending!(subscription.poll_next());
    }
    publish(&hub, "a", "1").await;
    for subscription in &mut subscriptions {
        assert_eq!(data(subscription), ["1"]);
    }
    publish(&hub, "a", "2").await;
    for subscription in &mut subscriptions {
        assert_pending!(subscription.poll_next());
    }
    hub.topic("a").finish().await.unwrap();
    for mut subscription in subscriptions {
        assert!(subscription.is_woken());
        assert_eq!(data(&mut subscription), ["2"]);
        assert!(matches!(subscription.poll_next(), Poll::Ready(None)));
    }
}

/// The publisher ends a few pauses, and a task ends the others in slices.
#[tokio::test(start_paused = true)]
async fn end_of_a_topic_ends_many_pauses_in_slices() {
    const SUBSCRIBERS: usize = 5_000;
    for is_shutdown in [false, true] {
        let hub = Hub::builder().linger(PAUSE).build();
        let mut subscriptions = Vec::new();
        for _ in 0..SUBSCRIBERS {
            subscriptions.push(subscribe(&hub, &["a"]).await);
        }
        publish(&hub, "a", "1").await;
        for subscription in &mut subscriptions {
            assert_eq!(data(subscription), ["1"]);
        }
        let woken = |all: &[Spawn<Subscription>]| all.iter().filter(|subscription| subscription.is_woken()).count();
        if is_shutdown {
            hub.shutdown();
            assert_eq!(woken(&subscriptions), SUBSCRIBERS);
        } else {
            hub.topic("a").finish().await.unwrap();
            let mut before = woken(&subscriptions);
            assert!(before <= 64, "the publisher wakes {before}");
            while before < SUBSCRIBERS {
                yield_now().await;
                let now = woken(&subscriptions);
                assert!((before + 1..=before + 600).contains(&now), "{before} and then {now}");
                before = now;
            }
        }
        for mut subscription in subscriptions {
            assert!(matches!(subscription.poll_next(), Poll::Ready(None | Some(Err(_)))));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_pause_and_delivers_its_events() {
    let (hub, mut subscriptions) = lingering().await;
    publish(&hub, "a", "1").await;
    for subscription in &mut subscriptions {
        assert_eq!(data(subscription), ["1"]);
    }
    // This event waits for the end of the pause.
    publish(&hub, "a", "2").await;
    hub.shutdown();
    for mut subscription in subscriptions {
        assert!(subscription.is_woken());
        let Poll::Ready(Some(Ok(last))) = subscription.poll_next() else { panic!("no event") };
        assert_eq!(whatwg::parse(last.as_bytes()).messages[0].data, "2");
        assert!(matches!(subscription.poll_next(), Poll::Ready(Some(Err(SubscriptionError::Shutdown)))));
    }
}

#[tokio::test(start_paused = true)]
async fn backlog_is_delivered_without_pause() {
    let hub = Hub::builder().linger(PAUSE).build();
    let text = "x".repeat(3000);
    for _ in 0..100 {
        publish(&hub, "a", &text).await;
    }
    let mut subscription = task::spawn(hub.topic("a").subscribe(Start::Earliest).await.unwrap());
    assert_eq!(data(&mut subscription).len(), 100);
}

#[tokio::test(start_paused = true)]
async fn gap_is_reported_after_the_pause() {
    let hub = Hub::builder().max_events(2).build();
    let subscription = hub.topic("a").subscribe(Start::Latest).await.unwrap().linger(PAUSE);
    let mut subscription = task::spawn(subscription);
    publish(&hub, "a", "1").await;
    assert_eq!(data(&mut subscription), ["1"]);
    for text in ["2", "3", "4"] {
        publish(&hub, "a", text).await;
    }
    sleep(PAUSE + SHORT).await;
    let received = data(&mut subscription);
    assert!(received[0].contains("lagged"), "{received:?}");
    assert_eq!(received[1..], ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_continue_during_a_pause() {
    let hub = Hub::new();
    let second = Duration::from_secs(1);
    let subscription = hub.topic("a").subscribe(Start::Latest).await.unwrap().linger(3 * second);
    let stream = SseStream::new(subscription).heartbeat(Heartbeat::every(second));
    let mut body = task::spawn(stream.into_http_response().into_body());
    let mut frames = Vec::new();
    for round in 0..8 {
        if round == 1 || round == 2 {
            publish(&hub, "a", "x").await;
        }
        while let Poll::Ready(frame) = body.enter(|cx, body| body.poll_frame(cx)) {
            let bytes = frame.unwrap().unwrap().into_data().unwrap();
            frames.push(if bytes == ":\n" { "heartbeat" } else { "event" });
        }
        sleep(second + SHORT).await;
    }
    // The cursor, an event, two heartbeats, the event that waited, and heartbeats.
    let expected = [["event"; 2].as_slice(), &["heartbeat"; 2], &["event"], &["heartbeat"; 3]].concat();
    assert_eq!(frames, expected);
}

#[tokio::test(start_paused = true)]
async fn zero_disables_the_pause_of_the_hub() {
    let hub = Hub::builder().linger(PAUSE).build();
    let subscription = hub.topic("a").subscribe(Start::Latest).await.unwrap();
    let mut subscription = task::spawn(subscription.linger(Duration::ZERO));
    for text in ["1", "2"] {
        publish(&hub, "a", text).await;
        assert_eq!(data(&mut subscription), [text]);
    }
    drop(subscription);
    assert_eq!(hub.topic("a").subscribers(), 0);
}
