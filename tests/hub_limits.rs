//! Limits of a hub, and code of others inside of it that fails.

use futures_util::{FutureExt, StreamExt};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::runtime::{Builder, Runtime};
use tokio_test::task;
use tower_sse::{
    Event, EventId, EventName,
    hub::{ErrorKind, Hub, Start, Subscription, SubscriptionError, backend::MemoryBackend},
};

#[tokio::test]
async fn reserved_event_names_are_rejected() {
    let hub = Hub::new();
    let topic = hub.topic("news");
    let mut subscription = topic.subscribe(Start::Latest).await.unwrap();
    for name in ["gap", "hub-cursor"] {
        let error = topic.publish(Event::new("x").event(EventName::new(name).unwrap())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReservedName);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.status(), 500);
        let several = [Event::new("first"), Event::default().event(EventName::new(name).unwrap())];
        assert_eq!(topic.publish_all(several).await.unwrap_err().kind(), ErrorKind::ReservedName);
    }
    // Neither of them was added, and data may look like a name.
    topic.publish(Event::new("event: gap").event("gaps")).await.unwrap();
    let events = subscription.next().await.unwrap().unwrap();
    assert_eq!(events.count(), 1);
    assert_eq!(hub.stats().published, 1);
}

#[tokio::test]
async fn topics_of_a_subscription_are_limited() {
    let hub = Hub::builder().max_topics_per_subscription(3).build();
    let names = |count: usize| (0..count).map(|n| n.to_string());
    let error = hub.subscribe(names(4), Start::Latest).await.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::TooManyTopicsInSubscription, 400));
    assert_eq!(error.to_string(), "a subscription may have 3 topics, and not 4: see max_topics_per_subscription");
    assert_eq!(hub.stats().topics, 0, "no topic was created");
    // Names count once.
    drop(hub.subscribe(names(3).chain(names(3)), Start::Latest).await.unwrap());
    let hub = Hub::new();
    drop(hub.subscribe(names(1_000), Start::Latest).await.unwrap());
    assert!(hub.subscribe(names(1_001), Start::Latest).await.is_err());
}

#[test]
fn publishers_do_not_wait_for_large_subscription() {
    let hub = Hub::builder().max_topics_per_subscription(20_000).build();
    let names: Vec<_> = (0..20_000).map(|n| n.to_string()).collect();
    let subscribe = || hub.subscribe(&names, Start::Latest).now_or_never().unwrap().unwrap();
    drop(subscribe());
    let mut ratios = Vec::new();
    for _ in 0..9 {
        let is_over = AtomicBool::new(false);
        let (took, blocked) = thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                let topic = hub.topic("news");
                let mut longest = Duration::ZERO;
                while !is_over.load(Relaxed) {
                    let begun = Instant::now();
                    topic.publish(Event::new("x")).now_or_never().unwrap().unwrap();
                    longest = longest.max(begun.elapsed());
                }
                longest
            });
            let begun = Instant::now();
            let subscription = subscribe();
            let took = begun.elapsed();
            is_over.store(true, Relaxed);
            drop(subscription);
            (took, publisher.join().unwrap())
        });
        ratios.push(blocked.as_secs_f64() / took.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[4] < 0.4, "a publisher waits for this part of a subscription: {ratios:?}");
}

#[test]
fn events_during_large_subscription_arrive_or_are_reported() {
    for max_events in [1, 100_000] {
        let hub = Hub::builder().max_topics_per_subscription(5_000).max_events(max_events).build();
        let names: Vec<_> = (0..5_000).map(|n| n.to_string()).collect();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                let mut published = 0_usize;
                while !is_over.load(Relaxed) {
                    let topic = hub.topic(&names[published * 997 % names.len()]);
                    topic.publish(Event::display(published)).now_or_never().unwrap().unwrap();
                    published += 1;
                }
                published
            });
            let subscription = hub.subscribe(&names, Start::Latest).now_or_never().unwrap().unwrap();
            let mut at = number(&subscription.cursor());
            is_over.store(true, Relaxed);
            let published = publisher.join().unwrap() as u64;
            let mut subscription = task::spawn(subscription);
            loop {
                let item = match subscription.poll_next() {
                    Poll::Ready(item) => item,
                    // A poll looks at a part of the topics.
                    Poll::Pending if subscription.is_woken() => continue,
                    Poll::Pending => break,
                };
                for message in whatwg::parse(item.unwrap().unwrap().as_bytes()).messages {
                    let id = number(&EventId::new(&message.last_event_id).unwrap());
                    // Each topic has every 5,000th event, so a gap is for a topic that has wrapped.
                    assert!(message.r#type == "gap" || id == at + 1 || max_events == 1, "{id} after {at}");
                    at = id;
                }
            }
            assert_eq!(at, published);
        });
        assert_eq!(hub.topic(&names[0]).subscribers(), 0);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn topics_expire_after_an_unrelated_panic() {
    let hub = Hub::builder().max_age(Duration::from_secs(1)).build();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let runtime = runtime();
        runtime.block_on(async {
            hub.topic("first").publish(Event::new("")).await.unwrap();
            // The janitor begins to sleep.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        // The runtime, and with it the janitor, is dropped by the panic.
        panic!("unrelated");
    }));
    assert!(unwound.is_err());
    runtime().block_on(async {
        hub.topic("second").publish(Event::new("")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(hub.stats().topics, 0);
    });
}

struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("the waker panics");
    }
}

#[test]
fn panicking_waker_keeps_no_other_from_being_woken() {
    let hub = Hub::new();
    let counts = Arc::new(Counts(AtomicUsize::new(0)));
    let wakers = [Waker::from(counts.clone()), Arc::new(Panics).into(), counts.clone().into()];
    let mut subscriptions = Vec::new();
    for waker in &wakers {
        let topic = hub.topic("news");
        let mut subscribe = Box::pin(topic.subscribe(Start::Latest));
        let Poll::Ready(subscription) = subscribe.as_mut().poll(&mut Context::from_waker(waker)) else { panic!() };
        let mut subscription = subscription.unwrap();
        assert!(subscription.poll_next_unpin(&mut Context::from_waker(waker)).is_pending());
        subscriptions.push(subscription);
    }
    let topic = hub.topic("news");
    let published = catch_unwind(AssertUnwindSafe(|| {
        let mut publish = pin!(topic.publish(Event::new("")));
        let _ready = publish.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }));
    assert!(published.is_ok(), "the publisher does not see the panic");
    assert_eq!(counts.0.load(Relaxed), 2);
    for subscription in &mut subscriptions {
        assert!(subscription.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}

/// Subscribes to a topic, and waits for its next item with a waker that panics.
async fn wait_and_panic(hub: &Hub, topic: &str) -> Subscription {
    let mut subscription = hub.topic(topic).subscribe(Start::Latest).await.unwrap();
    let waker = Waker::from(Arc::new(Panics));
    assert!(subscription.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
    subscription
}

fn number(id: &EventId) -> u64 {
    id.as_str().rsplit('-').next().unwrap().parse().unwrap()
}

/// A waker that publishes.
struct Publishes {
    hub: Hub,
    ids: Mutex<Vec<EventId>>,
}

impl Wake for Publishes {
    fn wake(self: Arc<Self>) {
        let id = self.hub.topic("other").publish(Event::new("x")).now_or_never();
        self.ids.lock().unwrap().extend(id.expect("a hub in memory waits for nothing"));
    }
}

#[tokio::test]
async fn others_publish_during_a_large_batch() {
    let hub = Hub::builder().max_events(10_000).build();
    let topic = hub.topic("news");
    let mut subscription = topic.subscribe(Start::Latest).await.unwrap();
    let publishes = Arc::new(Publishes { hub: hub.clone(), ids: Mutex::default() });
    let waker = Waker::from(publishes.clone());
    assert!(subscription.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
    let last = topic.publish_all((0..2_500).map(Event::display)).await.unwrap().unwrap();
    let ids = publishes.ids.lock().unwrap().clone();
    assert_eq!((ids.iter().map(number).collect::<Vec<_>>(), number(&last)), (vec![1_001], 2_501));
    // All events arrive in order, and each id is that of one event.
    let mut bytes = Vec::new();
    while let Some(events) = subscription.next().now_or_never() {
        bytes.extend_from_slice(events.unwrap().unwrap().as_bytes());
    }
    let messages = whatwg::parse(&bytes).messages;
    assert!(messages.iter().map(|message| &message.data).eq(&(0..2_500).map(|n| n.to_string()).collect::<Vec<_>>()));
    assert!(messages.is_sorted_by_key(|message| number(&EventId::new(&message.last_event_id).unwrap())));
}

#[tokio::test]
async fn panicking_waker_does_not_stop_a_shutdown() {
    let hub = Hub::new();
    let mut subscriptions = Vec::new();
    for topic in ["a", "b", "c"] {
        subscriptions.push(wait_and_panic(&hub, topic).await);
    }
    hub.shutdown();
    for subscription in &mut subscriptions {
        let item = subscription.next().await.unwrap();
        assert_eq!(item.unwrap_err(), SubscriptionError::Shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_waker_does_not_stop_the_follower() {
    let hub = Hub::builder().backend(MemoryBackend::new(100)).connect().await.unwrap();
    let mut other = hub.topic("news").subscribe(Start::Latest).await.unwrap();
    let _waits = wait_and_panic(&hub, "news").await;
    for round in 0..2 {
        hub.topic("news").publish(Event::display(round)).await.unwrap();
        let item = tokio::time::timeout(Duration::from_secs(60), other.next()).await;
        assert_eq!(item.expect("the follower runs").unwrap().unwrap().count(), 1, "{round}");
    }
}
