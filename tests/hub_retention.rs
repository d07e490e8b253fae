//! `Topic::retention`: limits of one topic instead of those of the hub.

use futures_util::{FutureExt, future::join};
use std::{task::Poll, time::Duration};
use support::{pass_on, whatwg};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_test::{assert_pending, task};
use tower_sse::{
    BoxError, Event,
    hub::{
        ErrorKind, GapReason, Hub, Retention, Start, Subscription, Topic,
        backend::{Appended, Backend, MemoryBackend, Position, Record},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A log that needs 5 seconds for each append.
struct Slow(MemoryBackend);

impl Backend for Slow {
    pass_on!(0: bounds read follow);

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        sleep(5 * SECOND).await;
        self.0.append(records).await
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        sleep(5 * SECOND).await;
        self.0.append_if_unchanged(records, epoch, since).await
    }
}

async fn publish(topic: &Topic, count: usize) {
    for n in 0..count {
        topic.publish(Event::display(n)).await.unwrap();
    }
}

async fn subscribe(topic: &Topic, start: impl Into<Start>) -> task::Spawn<Subscription> {
    task::spawn(topic.subscribe(start).await.unwrap())
}

/// Returns the data of the messages that can be read now. A gap is its type.
fn data(subscription: &mut task::Spawn<Subscription>) -> Vec<String> {
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        bytes.extend_from_slice(events.as_bytes());
    }
    let say = |message: whatwg::Message| if message.r#type == "message" { message.data } else { message.r#type };
    whatwg::parse(&bytes).messages.into_iter().map(say).collect()
}

#[tokio::test(start_paused = true)]
async fn limits_replace_those_of_the_hub_in_both_directions() {
    let hub = Hub::builder().max_events(10).build();
    let (short, long) = (hub.topic("short"), hub.topic("long"));
    publish(&short.clone().retention(Retention::new().max_events(3)), 40).await;
    publish(&long.clone().retention(Retention::new().max_events(30)), 40).await;
    publish(&hub.topic("other"), 40).await;
    let retained = async |topic: &Topic| data(&mut subscribe(topic, Start::Earliest).await).len();
    assert_eq!((retained(&short).await, retained(&long).await, retained(&hub.topic("other")).await), (3, 30, 10));
    // A handle without limits keeps them, and the size counts, too.
    publish(&short, 40).await;
    assert_eq!(retained(&short).await, 3);
    publish(&short.clone().retention(Retention::new().max_bytes(0)), 1).await;
    assert_eq!(retained(&short).await, 1, "the newest event is always retained");
    publish(&short, 40).await;
    assert_eq!(retained(&short).await, 1);
    assert_eq!(hub.stats().events, 1 + 30 + 10);
}

#[tokio::test(start_paused = true)]
async fn events_over_new_limits_are_reported_as_gaps() {
    let hub = Hub::new();
    let topic = hub.topic("a");
    let first = topic.publish(Event::new("first")).await.unwrap();
    let (mut behind, mut complete) = (subscribe(&topic, Start::Earliest).await, subscribe(&topic, Start::Latest).await);
    publish(&topic, 5).await;
    assert_eq!(data(&mut complete).len(), 5);
    let small = topic.clone().retention(Retention::new().max_events(2));
    assert_eq!(hub.stats().events, 6, "a handle alone has no effect");
    // Subscribing applies the limits as well.
    let back = subscribe(&small, first).await;
    assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    assert_eq!(hub.stats().events, 2);
    assert_eq!(data(&mut behind), ["gap", "3", "4"]);
    assert_eq!(behind.gap().map(|gap| gap.reason()), Some(GapReason::Lagged));
    assert_pending!(complete.poll_next());
    assert!(complete.gap().is_none(), "a client that has all events gets no gap");
    assert_eq!(data(&mut subscribe(&topic, Start::Earliest).await), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn age_of_topic_is_independent_of_the_hub() {
    let hub = Hub::builder().max_age(MINUTE).build();
    let (short, long, idle) = (hub.topic("short"), hub.topic("long"), hub.topic("idle"));
    // The topics are scheduled for an expiry in one minute.
    publish(&short, 1).await;
    publish(&idle, 1).await;
    sleep(SECOND).await;
    publish(&idle.clone().retention(Retention::new().max_age(8 * SECOND)), 1).await;
    publish(&short.clone().retention(Retention::new().max_age(8 * SECOND)), 1).await;
    publish(&long.clone().retention(Retention::new().max_age(5 * MINUTE)), 1).await;
    sleep(8 * SECOND - Duration::from_millis(2)).await;
    assert_eq!((hub.stats().events, data(&mut subscribe(&short, Start::Earliest).await).len()), (3, 1));
    sleep(Duration::from_millis(4)).await;
    assert_eq!(data(&mut subscribe(&short, Start::Earliest).await), [""; 0]);
    sleep(2 * SECOND).await;
    assert_eq!((hub.stats().topics, hub.stats().events, short.exists()), (1, 1, false), "without traffic");
    sleep(4 * MINUTE).await;
    assert_eq!(data(&mut subscribe(&long, Start::Earliest).await), ["0"]);
    sleep(MINUTE).await;
    assert_eq!((hub.stats().topics, hub.stats().events), (0, 0));
    // A dropped topic has forgotten its limits.
    publish(&short, 1).await;
    sleep(MINUTE / 2).await;
    assert_eq!(data(&mut subscribe(&short, Start::Earliest).await), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn finished_topic_is_remembered_for_its_own_age() {
    let hub = Hub::new();
    let topic = hub.topic("a").retention(Retention::new().max_age(8 * SECOND));
    publish(&topic, 1).await;
    topic.finish().await.unwrap();
    sleep(7 * SECOND).await;
    assert_eq!(topic.publish(Event::new("")).await.unwrap_err().kind(), ErrorKind::Finished);
    sleep(2 * SECOND).await;
    assert!(!topic.exists());
    topic.publish(Event::new("")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn endless_retention_of_one_topic_survives_expiry() {
    let hub = Hub::builder().max_age(MINUTE).build();
    let topic = hub.topic("a").retention(Retention::new().max_age(Duration::ZERO));
    publish(&topic, 1).await;
    publish(&hub.topic("b"), 1).await;
    sleep(1000 * MINUTE).await;
    assert_eq!((hub.stats().topics, hub.stats().events), (1, 1));
    assert_eq!(data(&mut subscribe(&topic, Start::Earliest).await), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn limits_alone_keep_no_topic() {
    let hub = Hub::builder().max_age(MINUTE).max_topics(1).build();
    let limits = Retention::new().max_events(1);
    hub.topic("a").retention(limits).publish(Event::new("").event("gap")).await.unwrap_err();
    assert!(!hub.topic("a").exists(), "a refused event applies no limits");
    drop(subscribe(&hub.topic("a").retention(limits), Start::Latest).await);
    assert!(!hub.topic("a").exists(), "it has neither events nor subscribers");
    hub.topic("a").retention(limits).publish(Event::new("")).await.unwrap();
    let error = hub.topic("b").retention(limits).publish(Event::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyTopics);
    sleep(2 * MINUTE).await;
    assert_eq!(hub.stats().topics, 0);
    hub.shutdown();
    assert_eq!(hub.topic("a").retention(limits).publish(Event::new("")).await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert!(hub.topic("a").retention(limits).subscribe(Start::Latest).await.is_ok(), "it ends at once");
}

#[tokio::test(start_paused = true)]
async fn topic_whose_event_never_comes_is_dropped() {
    for age in [None, Some(SECOND), Some(Duration::ZERO), Some(Duration::MAX)] {
        let hub = Hub::builder().backend(MemoryBackend::new(1000)).connect().await.unwrap();
        let limits = age.map_or_else(Retention::new, |age| Retention::new().max_age(age));
        let error = hub.topic("a").retention(limits).publish_now(Event::new("")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NeedsAwait);
        assert!(hub.topic("a").exists(), "its limits wait for an event");
        sleep(2 * MINUTE).await;
        assert_eq!(hub.stats().topics, 0, "{age:?}");
    }
}

/// A subscriber with shorter limits, and then the last subscriber leave.
#[tokio::test(start_paused = true)]
async fn state_expires_under_limits_set_while_it_has_subscribers() {
    let hub = Hub::builder().max_age(60 * MINUTE).build();
    let subscriber = subscribe(&hub.topic("a"), Start::Latest).await;
    hub.topic("a").latest_only().publish(Event::new("state")).await.unwrap();
    let limits = Retention::new().max_age(SECOND);
    drop((subscribe(&hub.topic("a").retention(limits), Start::Latest).await, subscriber));
    assert_eq!(hub.stats().events, 1);
    sleep(2 * SECOND).await;
    assert_eq!((hub.stats().topics, hub.stats().events), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn removed_topic_expires_under_limits_of_the_hub_again() {
    let hub = Hub::builder().max_age(MINUTE).build();
    let _subscriber = subscribe(&hub.topic("a"), Start::Latest).await;
    publish(&hub.topic("a").retention(Retention::new().max_age(60 * MINUTE)), 1).await;
    hub.topic("a").remove().await.unwrap();
    publish(&hub.topic("a"), 1).await;
    sleep(2 * MINUTE).await;
    assert_eq!(hub.stats().events, 0);
}

#[tokio::test(start_paused = true)]
async fn recording_keeps_its_limits_after_silence() {
    let hubs = [Hub::new(), Hub::builder().backend(MemoryBackend::new(1000)).connect().await.unwrap()];
    for hub in hubs {
        let (events, recorded) = mpsc::unbounded_channel();
        let topic = hub.topic("a").retention(Retention::new().max_events(2).max_age(8 * SECOND));
        let recording = topic.record(UnboundedReceiverStream::new(recorded)).end_with(Event::new("last")).start();
        for _ in 0..3 {
            for n in 0..5 {
                events.send(Event::display(n)).unwrap();
            }
            sleep(SECOND).await;
            assert_eq!(hub.stats().events, 2);
            // The topic and its limits are dropped.
            sleep(2 * MINUTE).await;
            assert!(!topic.exists());
        }
        drop(events);
        recording.outcome().await;
        sleep(20 * SECOND).await;
        assert_eq!(hub.stats().events, 0, "the last event has the limits, too");
    }
}

/// No task removes the first event when it has expired.
#[test]
fn limits_apply_to_event_after_an_expired_event() {
    let hub = Hub::new();
    let topic = hub.topic("a").retention(Retention::new().max_age(Duration::from_millis(1)));
    for _ in 0..2 {
        topic.publish_now(Event::new("")).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let subscription = hub.topic("a").subscribe(Start::Earliest).now_or_never().unwrap();
    assert_eq!(data(&mut task::spawn(subscription.unwrap())), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn limits_wait_for_the_event_of_a_slow_backend() {
    let backend = Slow(MemoryBackend::new(1000));
    let hub = Hub::builder().backend(backend).connect().await.unwrap();
    let topic = hub.topic("a").retention(Retention::new().max_age(2 * SECOND));
    for _ in 0..3 {
        // In the meantime, the previous event expires, and the last subscriber leaves.
        let subscriber = subscribe(&hub.topic("a"), Start::Latest).await;
        let leave = async { drop((sleep(4 * SECOND).await, subscriber)) };
        join(topic.publish(Event::new("")), leave).await.0.unwrap();
        sleep(SECOND).await;
        assert_eq!(hub.stats().events, 1);
        sleep(2 * SECOND).await;
        assert_eq!(hub.stats().events, 0);
    }
    assert_eq!(hub.stats().topics, 0, "the event has come");
}

#[tokio::test(start_paused = true)]
async fn subscriber_does_not_end_the_wait_of_limits_for_an_event() {
    let hub = Hub::builder().backend(Slow(MemoryBackend::new(1000))).connect().await.unwrap();
    let topic = hub.topic("a").retention(Retention::new().max_age(2 * SECOND));
    let visit = async {
        sleep(SECOND).await;
        drop(subscribe(&hub.topic("a"), Start::Latest).await);
    };
    join(topic.publish(Event::new("")), visit).await.0.unwrap();
    sleep(3 * SECOND).await;
    assert_eq!(hub.stats().events, 0, "the event has expired under the limits of the publisher");
}

/// The limits concern the memory of the node. The backend has the other events.
#[tokio::test(start_paused = true)]
async fn backend_has_the_events_over_the_limits() {
    let hub = Hub::builder().backend(MemoryBackend::new(1000)).connect().await.unwrap();
    let topic = hub.topic("a").retention(Retention::new().max_events(2));
    let first = topic.publish(Event::new("first")).await.unwrap();
    publish(&topic, 10).await;
    sleep(SECOND).await;
    assert_eq!(hub.stats().events, 2);
    let mut back = subscribe(&topic, first).await;
    sleep(SECOND).await;
    assert_eq!(data(&mut back), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(hub.stats().gaps, 0);
}
