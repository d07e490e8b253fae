//! The stream of the number of subscribers of a topic.

use futures_util::FutureExt;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
};
use tokio_stream::Stream;
use tokio_test::{assert_pending, assert_ready_eq, task};
use tower_sse::{
    Event,
    hub::{Hub, Start, SubscriberCounts, Subscription},
};

fn subscribe(hub: &Hub, topics: &[&str]) -> Subscription {
    hub.subscribe(topics, Start::Latest).now_or_never().unwrap().unwrap()
}

fn counts(hub: &Hub, topic: &str) -> task::Spawn<SubscriberCounts> {
    task::spawn(hub.topic(topic).subscriber_counts())
}

#[test]
fn current_number_comes_first_and_changes_wake() {
    let hub = Hub::new();
    let first = subscribe(&hub, &["a", "b"]);
    let [mut one, mut other] = [counts(&hub, "a"), counts(&hub, "a")];
    for counts in [&mut one, &mut other] {
        assert_ready_eq!(counts.poll_next(), Some(1));
        assert_pending!(counts.poll_next());
    }
    let second = subscribe(&hub, &["a"]);
    assert!(one.is_woken() && other.is_woken());
    assert_ready_eq!(one.poll_next(), Some(2));
    assert_pending!(one.poll_next());

    drop(subscribe(&hub, &["b"]));
    hub.topic("a").publish_now(Event::new("")).unwrap();
    assert!(!one.is_woken(), "the number has not changed");

    drop((first, second));
    assert_ready_eq!(one.poll_next(), Some(0));
    assert_ready_eq!(other.poll_next(), Some(0), "it skips the numbers in between");
    assert_pending!(other.poll_next());

    drop(one);
    let third = subscribe(&hub, &["a"]);
    assert!(other.is_woken());
    assert_ready_eq!(other.poll_next(), Some(1));
    drop((other, third));
    assert_ready_eq!(counts(&hub, "a").poll_next(), Some(0));
}

#[test]
fn stream_outlives_its_topic_and_creates_none() {
    let hub = Hub::builder().max_topics(1).build();
    let mut counts = counts(&hub, "a");
    assert_ready_eq!(counts.poll_next(), Some(0));
    for _ in 0..3 {
        assert_pending!(counts.poll_next());
        assert_eq!((hub.topic("a").exists(), hub.stats().topics), (false, 0));
        let subscription = subscribe(&hub, &["a"]);
        assert!(counts.is_woken());
        assert_ready_eq!(counts.poll_next(), Some(1));
        assert_pending!(counts.poll_next());
        // A topic without events is dropped with its last subscriber.
        drop(subscription);
        assert!(counts.is_woken());
        assert_ready_eq!(counts.poll_next(), Some(0));
    }
}

#[test]
fn shutdown_ends_the_stream() {
    let hub = Hub::new();
    let mut before = counts(&hub, "a");
    assert_ready_eq!(before.poll_next(), Some(0));
    assert_pending!(before.poll_next());
    hub.shutdown();
    assert!(before.is_woken());
    assert_ready_eq!(before.poll_next(), None);
    assert_ready_eq!(counts(&hub, "a").poll_next(), None);
    assert_ready_eq!(before.poll_next(), None);
}

/// Records the number of subscribers from inside of `wake`, which locks the hub.
struct Recorder(Hub, Mutex<Vec<usize>>);

impl Wake for Recorder {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0.topic("a").subscribers());
    }
}

#[test]
fn wakers_may_use_the_hub() {
    let hub = Hub::new();
    let recorder = Arc::new(Recorder(hub.clone(), Mutex::default()));
    let waker = Waker::from(recorder.clone());
    let mut counts = hub.topic("a").subscriber_counts();
    let mut poll = || while Pin::new(&mut counts).poll_next(&mut Context::from_waker(&waker)).is_ready() {};
    poll();
    let subscription = subscribe(&hub, &["a"]);
    poll();
    drop(subscription);
    assert_eq!(*recorder.1.lock().unwrap(), [1, 0]);
}

struct CountsDrops(Arc<AtomicUsize>);

impl Wake for CountsDrops {
    fn wake(self: Arc<Self>) {}
}

impl Drop for CountsDrops {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn dropped_stream_leaves_no_waker() {
    let hub = Hub::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let mut counts = hub.topic("a").subscriber_counts();
    let waker = Waker::from(Arc::new(CountsDrops(drops.clone())));
    for _ in 0..2 {
        let _ = Pin::new(&mut counts).poll_next(&mut Context::from_waker(&waker));
    }
    drop(waker);
    assert_eq!(drops.load(Ordering::Relaxed), 0, "the stream waits");
    drop(counts);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}
