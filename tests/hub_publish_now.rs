//! `publish_now`: it needs no runtime and no `await`, and runs no foreign code under a lock.

use futures_util::FutureExt;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};
use support::whatwg;
use tokio_stream::{Stream, StreamExt};
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Start, Subscription, backend::MemoryBackend},
};

/// Returns the data of the events that the subscription yields now.
fn read(subscription: &mut Subscription) -> Vec<String> {
    let mut data = Vec::new();
    while let Poll::Ready(Some(events)) =
        Pin::new(&mut *subscription).poll_next(&mut Context::from_waker(Waker::noop()))
    {
        data.extend(whatwg::parse(events.unwrap().as_bytes()).messages.into_iter().map(|message| message.data));
    }
    data
}

#[test]
fn publish_now_publishes_in_order_under_a_mutex() {
    let hub = Hub::new();
    let mut subscription = hub.topic("a").subscribe(Start::Latest).now_or_never().unwrap().unwrap();
    let count = Arc::new(Mutex::new(0));
    let threads = [(); 4].map(|()| {
        let (hub, count) = (hub.clone(), count.clone());
        std::thread::spawn(move || {
            for _ in 0..100 {
                let mut count = count.lock().unwrap();
                *count += 1;
                hub.topic("a").publish_now(Event::display(*count)).unwrap();
            }
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(read(&mut subscription), (1..=400).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn publish_now_and_publish_share_one_sequence() {
    let topic = Hub::new().topic("state").latest_only();
    let first = topic.publish_now(Event::new("1")).unwrap();
    let second = topic.publish(Event::new("2")).now_or_never().unwrap().unwrap();
    let number = |id: &str| id.split_once('-').unwrap().1.parse::<u64>().unwrap();
    assert_eq!(number(first.as_str()) + 1, number(second.as_str()));
    let mut subscription = topic.subscribe(Start::Earliest).now_or_never().unwrap().unwrap();
    assert_eq!(read(&mut subscription), ["2"], "the handle makes it a state");
    topic.publish_now(Event::new("3")).unwrap();
    assert_eq!(read(&mut subscription), ["3"]);
}

/// Publishes from inside of `wake`, and waits for a lock that the publisher has released.
struct PublishesInWake(Hub, AtomicUsize);

impl Wake for PublishesInWake {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.topic("b").publish_now(Event::new("from wake")).unwrap();
        assert!(self.0.topic("a").exists());
    }
}

#[test]
fn wakers_may_use_the_hub() {
    let hub = Hub::new();
    let woken = Arc::new(PublishesInWake(hub.clone(), AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    // More than the publisher wakes itself, without a runtime that wakes the others.
    let mut waiting: Vec<_> =
        (0..100).map(|_| hub.topic("a").subscribe(Start::Latest).now_or_never().unwrap().unwrap()).collect();
    for subscription in &mut waiting {
        assert!(Pin::new(subscription).poll_next(&mut Context::from_waker(&waker)).is_pending());
    }
    hub.topic("a").publish_now(Event::new("1")).unwrap();
    assert_eq!(woken.1.load(Ordering::Relaxed), 100);
    assert_eq!(hub.stats().published, 101);
}

#[test]
fn publish_now_returns_the_errors_of_publish() {
    let hub = Hub::builder().max_topics(1).build();
    let topic = hub.topic("a");
    let kind = |topic: &tower_sse::hub::Topic, event| topic.publish_now(event).map_err(|error| error.kind());
    assert_eq!(kind(&topic, Event::new("").event("gap")), Err(ErrorKind::ReservedName));
    topic.finish().now_or_never().unwrap().unwrap();
    assert_eq!(kind(&topic, Event::new("")), Err(ErrorKind::Finished));
    assert_eq!(kind(&hub.topic("b"), Event::new("")), Err(ErrorKind::TooManyTopics));
    hub.shutdown();
    assert_eq!(kind(&topic, Event::new("")), Err(ErrorKind::Shutdown));
    assert_eq!(hub.stats().published, 0);
}

#[tokio::test]
async fn publish_now_needs_await_with_a_backend() {
    let hub = Hub::builder().backend(MemoryBackend::new(10)).connect().await.unwrap();
    let error = hub.topic("a").publish_now(Event::new("1")).unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::NeedsAwait, 500));
    assert_eq!(
        error.to_string(),
        r#"publish_now cannot publish to "a", because the hub has a backend; await publish instead"#
    );
    hub.topic("a").publish(Event::new("2")).await.unwrap();
    let mut subscription = hub.topic("a").subscribe(Start::Earliest).await.unwrap();
    let events = subscription.next().await.unwrap().unwrap();
    assert_eq!(whatwg::parse(events.as_bytes()).messages[0].data, "2", "nothing else was published");
}
