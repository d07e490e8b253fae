//! What a review of the hub found.

use futures_util::FutureExt;
use http_body::Body;
use std::{
    task::Poll,
    time::Duration,
};
use support::whatwg;
use tokio_test::task;
use tower_sse::{
    EncodedEvents, Event, EventId, SseStream,
    hub::{Hub, LagPolicy, Start, Subscription},
};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    now(hub.topic(topic).publish(Event::new(data))).unwrap()
}

fn subscribe(hub: &Hub, topics: &[&str], start: impl Into<Start>) -> Subscription {
    now(hub.subscribe(topics, start)).unwrap()
}

fn ready(subscription: &mut task::Spawn<Subscription>) -> (Vec<String>, bool) {
    let mut data = Vec::new();
    loop {
        match subscription.poll_next() {
            Poll::Ready(Some(events)) => {
                data.extend(whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data));
            }
            Poll::Ready(None) => return (data, true),
            Poll::Pending => return (data, false),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn that_a_client_was_too_slow_is_not_lost_when_events_are_joined() {
    use tokio_stream::StreamExt;
    let hub = Hub::builder().max_events(1).lag_policy(LagPolicy::Disconnect).build();
    let subscription = subscribe(&hub, &["a"], Start::Latest);
    publish(&hub, "a", "1");
    publish(&hub, "a", "2");
    let joined = subscription.map(|events| [events].into_iter().collect::<EncodedEvents>());
    let body = SseStream::new(joined).end_with(Event::new("no more")).into_response().into_body();
    let mut body = task::spawn(body);
    let mut text = Vec::new();
    for _ in 0..10 {
        match body.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(Some(Ok(frame))) => text.extend(frame.into_data().unwrap()),
            Poll::Ready(Some(Err(_))) => return,
            Poll::Ready(None) => panic!("a clean end: {:?}", String::from_utf8(text)),
            Poll::Pending => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

#[test]
fn a_snapshot_after_a_lag_does_not_go_back() {
    let hub = Hub::builder().max_events(3).build();
    let mut subscription = task::spawn(subscribe(&hub, &["a"], Start::Latest));
    for n in 0..10 {
        publish(&hub, "a", &n.to_string());
    }
    let (got, _) = ready(&mut subscription);
    assert_eq!(got.len(), 4);
    let before = subscription.cursor();
    let again = subscription.into_inner().begin_with(Event::new("state"));
    assert_eq!(again.cursor(), before);
    let mut again = task::spawn(again);
    assert_eq!(ready(&mut again).0, ["state"]);
}

#[test]
fn a_gap_that_was_told_is_not_told_again_to_who_comes_back_with_its_id() {
    let hub = Hub::builder().max_age(Duration::ZERO).build();
    publish(&hub, "a", "1");
    publish(&hub, "c", "2");
    let mut last = EventId::from("other-epoch");
    let mut gaps = 0;
    for _ in 0..5 {
        let subscription = subscribe(&hub, &["a", "b"], last);
        gaps += u32::from(subscription.gap().is_some());
        last = subscription.cursor();
    }
    assert_eq!(gaps, 1);
}

#[test]
fn who_began_with_the_earliest_and_comes_back_before_the_first_event_missed_nothing() {
    let hub = Hub::builder().max_events(2).build();
    for n in 0..5 {
        publish(&hub, "a", &n.to_string());
    }
    let cursor = subscribe(&hub, &["a", "new"], Start::Earliest).cursor();
    let mut back = task::spawn(subscribe(&hub, &["a", "new"], cursor));
    assert_eq!(back.gap(), None);
    assert_eq!(ready(&mut back).0, ["3", "4"]);
}

#[test]
fn a_runtime_that_nobody_drives_keeps_no_topics() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    first.block_on(async { publish(&hub, "first", "") });
    let second = runtime();
    second.block_on(async {
        for topic in 0..100 {
            publish(&hub, &topic.to_string(), "");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..100 {
            publish(&hub, "another", "");
        }
        assert!(hub.stats().topics <= 2, "{:?}", hub.stats());
    });
}

#[test]
fn a_small_event_after_a_large_one_takes_no_memory_for_many() {
    const TOPICS: usize = 1000;
    let hub = Hub::builder().max_events(1).build();
    let topics: Vec<_> = (0..TOPICS).map(|n| hub.topic(n.to_string())).collect();
    let heap = allocation_counter::measure(|| {
        for topic in &topics {
            now(topic.publish(Event::new("x".repeat(5000)))).unwrap();
            now(topic.publish(Event::new("x"))).unwrap();
        }
    });
    let topic = heap.bytes_current as usize / TOPICS;
    assert!(topic <= 1024, "{topic} bytes for one event");
}
