//! Large audiences: a topic with many subscribers, and a subscription to many topics.

use futures_util::FutureExt;
use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
};
use tokio_stream::Stream;
use tokio_test::task::{self, Spawn};
use tower_sse::{
    Event,
    hub::{Hub, Start, Subscription, Topic},
};

const SUBSCRIBERS: usize = 5_000;

/// The maximum number of wakers that `publish` calls itself.
const WOKEN_BY_PUBLISHER: usize = 64;

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(topic: &Topic, data: &str) {
    now(topic.publish(Event::new(data))).unwrap();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Counts the calls of its wakers.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Subscriptions that wait for a topic.
struct Audience {
    subscriptions: Vec<Subscription>,
    woken: Arc<Woken>,
}

impl Audience {
    fn new(topic: &Topic) -> Self {
        Self::of(topic, SUBSCRIBERS)
    }

    fn of(topic: &Topic, subscribers: usize) -> Self {
        let subscriptions = (0..subscribers).map(|_| now(topic.subscribe(Start::Latest)).unwrap()).collect();
        let mut audience = Self { subscriptions, woken: Arc::default() };
        assert_eq!(audience.read(), 0);
        audience
    }

    /// Reads until all subscriptions wait. Returns the number of events.
    fn read(&mut self) -> usize {
        let waker = Waker::from(self.woken.clone());
        let mut events = 0;
        for subscription in &mut self.subscriptions {
            while let Poll::Ready(item) =
                std::pin::Pin::new(&mut *subscription).poll_next(&mut Context::from_waker(&waker))
            {
                events += item.unwrap().unwrap().count();
            }
        }
        events
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Relaxed)
    }
}

#[test]
fn task_wakes_most_of_a_large_audience() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    runtime().block_on(async {
        for round in 0..3 {
            publish(&topic, "x");
            let by_publisher = audience.woken() - round * SUBSCRIBERS;
            assert!(by_publisher <= WOKEN_BY_PUBLISHER, "the publisher wakes {by_publisher}");
            let mut turns = 0;
            let mut before = audience.woken();
            while audience.woken() < (round + 1) * SUBSCRIBERS {
                yield_now().await;
                turns += 1;
                assert!(audience.woken() - before <= SUBSCRIBERS / 4, "other tasks have their turn");
                before = audience.woken();
                assert!(turns < 1000, "{before} are woken");
            }
            assert_eq!(audience.read(), SUBSCRIBERS);
        }
    });
    assert_eq!(audience.woken(), 3 * SUBSCRIBERS, "each event wakes each subscriber once");
}

/// More events than the wake queue has entries, before its task runs.
#[test]
fn publisher_of_a_burst_wakes_few_per_event() {
    let hub = Hub::new();
    let topics = ["a", "b"].map(|name| hub.topic(name));
    let audiences = topics.each_ref().map(|topic| Audience::of(topic, 20_000));
    let woken = || audiences.iter().map(Audience::woken).sum::<usize>();
    runtime().block_on(async {
        for n in 0..1_100 {
            let before = woken();
            publish(&topics[n % 2], "x");
            let by_publisher = woken() - before;
            assert!(by_publisher <= WOKEN_BY_PUBLISHER, "the publisher of event {n} wakes {by_publisher}");
        }
        assert!(woken() < 40_000);
        while woken() < 40_000 {
            yield_now().await;
        }
    });
}

#[test]
fn small_audience_is_woken_directly() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    audience.subscriptions.truncate(20);
    runtime().block_on(async {
        publish(&topic, "x");
        assert_eq!(audience.woken(), 20);
    });
}

#[test]
fn publisher_without_runtime_wakes_all() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    publish(&topic, "x");
    assert_eq!(audience.woken(), SUBSCRIBERS);
    assert_eq!(audience.read(), SUBSCRIBERS);
}

#[test]
fn audience_is_woken_when_the_runtime_is_dropped() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    let publisher = runtime();
    publisher.block_on(async { publish(&topic, "x") });
    drop(publisher);
    assert_eq!(audience.woken(), SUBSCRIBERS);
    // The next runtime gets a task of its own.
    assert_eq!(audience.read(), SUBSCRIBERS);
    runtime().block_on(async {
        publish(&topic, "x");
        while audience.woken() < 2 * SUBSCRIBERS {
            yield_now().await;
        }
    });
}

/// The publisher has left its runtime, so the task does not run.
#[test]
fn readers_wake_each_other_while_the_task_does_not_run() {
    let topic = Hub::new().topic("news");
    let mut subscriptions: Vec<_> =
        (0..SUBSCRIBERS).map(|_| task::spawn(now(topic.subscribe(Start::Latest)).unwrap())).collect();
    for subscription in &mut subscriptions {
        assert!(subscription.poll_next().is_pending());
    }
    let publisher = runtime();
    for round in 1..=2 {
        publisher.block_on(async { publish(&topic, "x") });
        let mut received = 0;
        let mut is_progress = true;
        while is_progress {
            is_progress = false;
            for subscription in subscriptions.iter_mut().filter(|subscription| subscription.is_woken()) {
                while subscription.poll_next().is_ready() {
                    received += 1;
                }
                is_progress = true;
            }
        }
        assert_eq!(received, SUBSCRIBERS, "in round {round}");
    }
}

#[test]
fn leaving_readers_wake_others_while_the_task_does_not_run() {
    for left_before in [0, 100] {
        let topic = Hub::new().topic("news");
        let mut subscriptions: Vec<_> =
            (0..SUBSCRIBERS).map(|_| task::spawn(now(topic.subscribe(Start::Latest)).unwrap())).collect();
        for subscription in &mut subscriptions {
            assert!(subscription.poll_next().is_pending());
        }
        subscriptions.drain(..left_before);
        let publisher = runtime();
        publisher.block_on(async { publish(&topic, "x") });
        // Each subscription ends when it is woken.
        let mut before = usize::MAX;
        while subscriptions.len() < before {
            before = subscriptions.len();
            subscriptions.retain(|subscription| !subscription.is_woken());
        }
        assert_eq!(subscriptions.len(), 0, "subscriptions were not woken");
    }
}

#[test]
fn next_publisher_replaces_a_task_that_does_not_run() {
    let hub = Hub::new();
    let (first, second) = (hub.topic("first"), hub.topic("second"));
    let [of_first, of_second] = [&first, &second].map(Audience::new);
    let publisher = runtime();
    publisher.block_on(async { publish(&first, "x") });
    let other = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    other.block_on(async {
        tokio::time::advance(Duration::from_secs(1)).await;
        publish(&second, "x");
        while of_first.woken() < SUBSCRIBERS || of_second.woken() < SUBSCRIBERS {
            yield_now().await;
        }
    });
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("the waker panics");
    }
}

#[test]
fn panicking_wakers_do_not_stop_the_task() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    let panics = Waker::from(Arc::new(Panics));
    for subscription in audience.subscriptions.iter_mut().step_by(100) {
        assert!(std::pin::Pin::new(subscription).poll_next(&mut Context::from_waker(&panics)).is_pending());
    }
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    runtime().block_on(async {
        publish(&topic, "x");
        while audience.woken() < SUBSCRIBERS - SUBSCRIBERS / 100 {
            yield_now().await;
        }
    });
    panic::set_hook(hook);
    assert_eq!(audience.read(), SUBSCRIBERS);
}

#[test]
fn dropped_subscribers_are_not_woken() {
    let topic = Hub::new().topic("news");
    let mut audience = Audience::new(&topic);
    runtime().block_on(async {
        publish(&topic, "x");
        audience.subscriptions.drain(1_000..4_000);
        for _ in 0..1000 {
            yield_now().await;
        }
    });
    assert_eq!(audience.woken(), SUBSCRIBERS - 3_000);
}

/// A subscriber reads an event before the task wakes it for this event, and waits again.
#[test]
fn subscriber_that_reads_before_it_is_woken_misses_no_wakeup() {
    let topic = Hub::new().topic("news");
    runtime().block_on(async {
        let _others = Audience::new(&topic);
        let mut last = task::spawn(now(topic.subscribe(Start::Latest)).unwrap());
        assert!(last.poll_next().is_pending());
        publish(&topic, "first");
        assert!(!last.is_woken(), "the task has not run yet");
        assert!(last.poll_next().is_ready());
        assert!(last.poll_next().is_pending());
        for _ in 0..SUBSCRIBERS {
            yield_now().await;
        }
        // Polled without a reason, as a body can be.
        assert!(last.poll_next().is_pending());
        publish(&topic, "second");
        for _ in 0..SUBSCRIBERS {
            yield_now().await;
        }
        assert!(last.is_woken());
        assert!(last.poll_next().is_ready());
    });
}

fn data(subscription: &mut Spawn<Subscription>) -> Vec<String> {
    let mut data = Vec::new();
    while let Poll::Ready(item) = subscription.poll_next() {
        let events = item.unwrap().unwrap();
        data.extend(whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data));
    }
    data
}

/// The event of a large audience has not reached the subscription yet when the event of a small one
/// does.
#[test]
fn merged_topics_keep_their_order_while_an_audience_is_woken() {
    let hub = Hub::new();
    let (large, small) = (hub.topic("large"), hub.topic("small"));
    let _audience = Audience::new(&large);
    let mut merged = task::spawn(now(hub.subscribe(["large", "small"], Start::Latest)).unwrap());
    assert!(merged.poll_next().is_pending());
    runtime().block_on(async {
        for _ in 0..3 {
            publish(&large, "1");
            publish(&small, "2");
            publish(&large, "3");
            assert!(merged.is_woken());
            assert_eq!(data(&mut merged), ["1", "2", "3"]);
            publish(&small, "4");
            assert_eq!(data(&mut merged), ["4"]);
            for _ in 0..100 {
                yield_now().await;
            }
            assert!(data(&mut merged).is_empty());
        }
    });
}

/// Polls while the subscription wakes itself. Returns the number of events and of polls.
fn poll_until_it_waits(subscription: &mut Spawn<Subscription>) -> (usize, usize) {
    let (mut events, mut polls) = (0, 0);
    loop {
        polls += 1;
        match subscription.poll_next() {
            Poll::Ready(item) => events += item.unwrap().unwrap().count(),
            Poll::Pending if subscription.is_woken() => {}
            Poll::Pending => return (events, polls),
        }
    }
}

fn subscribed_to(topics: usize) -> (Vec<Topic>, Spawn<Subscription>) {
    let hub = Hub::builder().max_topics_per_subscription(topics).build();
    let names: Vec<_> = (0..topics).map(|n| n.to_string()).collect();
    let subscription = task::spawn(now(hub.subscribe(&names, Start::Latest)).unwrap());
    (names.iter().map(|name| hub.topic(name)).collect(), subscription)
}

#[test]
fn one_poll_looks_at_a_part_of_10000_topics() {
    let (topics, mut subscription) = subscribed_to(10_000);
    let (events, polls) = poll_until_it_waits(&mut subscription);
    assert!(events == 0 && polls > 10, "{polls} polls");
    topics.iter().for_each(|topic| publish(topic, "x"));
    assert!(subscription.poll_next().is_pending() && subscription.is_woken());
    assert_eq!(poll_until_it_waits(&mut subscription).0, 10_000);
}

/// The shortest time of an event, which other processes disturb the least.
fn time_of_event(topics: usize) -> Duration {
    let (topics, mut subscription) = subscribed_to(topics);
    poll_until_it_waits(&mut subscription);
    let time = |n: usize| {
        let began = Instant::now();
        publish(&topics[n * 7919 % topics.len()], "x");
        assert_eq!(poll_until_it_waits(&mut subscription), (1, 2));
        began.elapsed()
    };
    (0..1000).map(time).min().unwrap()
}

#[test]
fn event_costs_about_the_same_with_10000_topics() {
    let ratio = time_of_event(10_000).as_secs_f64() / time_of_event(10).as_secs_f64();
    assert!(ratio < 10.0, "{ratio}");
}
