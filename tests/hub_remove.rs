//! `Topic::remove`: what clients get afterwards, and what is left.

use futures_util::FutureExt;
use std::task::Poll;
use support::whatwg;
use tokio_test::{assert_pending, assert_ready_eq, task};
use tower_sse::{
    Event, EventId, SseStream,
    hub::{ErrorKind, GapReason, Hub, Start, Stats, Subscription, Topic},
};

type Task = task::Spawn<Subscription>;

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(topic: &Topic, data: &str) -> EventId {
    topic.publish_now(Event::new(data)).unwrap()
}

fn subscribe(topic: &Topic, start: impl Into<Start>) -> Task {
    task::spawn(now(topic.subscribe(start)).unwrap())
}

fn data(subscription: &mut Task) -> Vec<String> {
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        bytes.extend_from_slice(events.as_bytes());
    }
    let say = |message: whatwg::Message| if message.r#type == "message" { message.data } else { message.r#type };
    whatwg::parse(&bytes).messages.into_iter().map(say).collect()
}

#[test]
fn reserved_topic_cannot_be_removed() {
    let error = now(Hub::new().topic("tower-sse/nodes").remove()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReservedTopic);
}

#[test]
fn removed_topic_leaves_nothing_and_reports_evicted() {
    let hub = Hub::new();
    let (topic, other) = (hub.topic("a"), hub.topic("b"));
    let early = publish(&topic, "1");
    let last = publish(&topic, &"2".repeat(100_000));
    publish(&other, "3");
    now(topic.remove()).unwrap();
    assert!(!topic.exists());
    let Stats { topics, events, .. } = hub.stats();
    assert_eq!((topics, events), (1, 1), "the other topic remains");
    assert!(hub.stats().bytes < 100);

    assert_eq!(data(&mut subscribe(&topic, Start::Earliest)), [""; 0]);
    assert!(subscribe(&topic, last).is_resumed(), "a client that has every event misses none");
    let mut back = subscribe(&topic, early);
    assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    let next = publish(&topic, "4");
    assert_eq!(next.as_str().split_once('-').unwrap().1, "4", "ids are not used again");
    assert_eq!(data(&mut back), ["gap", "4"]);
    now(hub.topic("never").remove()).unwrap();
    assert!(!hub.topic("never").exists());
}

#[test]
fn open_subscriptions_continue_after_remove() {
    let hub = Hub::new();
    let topic = hub.topic("a");
    let (mut complete, mut behind) = (subscribe(&topic, Start::Latest), subscribe(&topic, Start::Latest));
    let mut merged = task::spawn(now(hub.subscribe(["a", "b"], Start::Latest)).unwrap());
    publish(&topic, "1");
    assert_eq!((data(&mut complete), data(&mut merged)), (vec!["1".to_owned()], vec!["1".to_owned()]));
    publish(&hub.topic("b"), "2");
    now(topic.remove()).unwrap();
    assert!(!complete.is_woken());
    assert!(topic.exists(), "it has subscribers");
    publish(&topic, "3");
    assert_eq!(data(&mut complete), ["3"]);
    assert_eq!(data(&mut merged), ["2", "3"]);
    assert_eq!(data(&mut behind), ["gap", "3"]);
    assert_eq!(behind.gap().map(|gap| gap.reason()), Some(GapReason::Lagged));
}

#[test]
fn finished_topic_ends_its_subscriptions_and_is_forgotten() {
    let topic = Hub::new().topic("a");
    let id = publish(&topic, "1");
    let (mut complete, behind) = (subscribe(&topic, id.clone()), subscribe(&topic, Start::Earliest));
    assert_pending!(complete.poll_next());
    now(topic.finish()).unwrap();
    now(topic.remove()).unwrap();
    assert!(complete.is_woken());
    assert_ready_eq!(complete.poll_next(), None);
    assert_eq!(topic.publish_now(Event::new("2")).unwrap_err().kind(), ErrorKind::Finished);
    drop(behind);
    assert!(!topic.exists(), "the end is forgotten with the last subscriber");
    let back = now(topic.subscribe(id)).unwrap();
    assert_eq!(SseStream::new(back).into_http_response().status(), 200);
    publish(&topic, "2");
}

#[test]
fn topic_that_is_finished_again_after_removal_stays_finished() {
    let topic = Hub::new().topic("a");
    let subscriber = subscribe(&topic, Start::Latest);
    for _ in 0..2 {
        now(topic.finish()).unwrap();
        now(topic.remove()).unwrap();
    }
    now(topic.finish()).unwrap();
    drop(subscriber);
    assert_eq!(topic.publish_now(Event::new("late")).unwrap_err().kind(), ErrorKind::Finished);
}

#[test]
fn removed_state_is_an_ordinary_topic_again() {
    let topic = Hub::new().topic("a");
    let old = topic.clone().latest_only().publish_now(Event::new("1")).unwrap();
    let _stays = subscribe(&topic, old);
    now(topic.remove()).unwrap();
    publish(&topic, "2");
    publish(&topic, "3");
    assert_eq!(data(&mut subscribe(&topic, Start::Earliest)), ["2", "3"]);
}
