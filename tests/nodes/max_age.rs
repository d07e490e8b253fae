//! The maximum age of a hub and that of its backend.

use super::settle;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use support::pass_on;
use tokio::time::sleep;
use tower_sse::{
    Event,
    hub::{
        Builder, Hub,
        backend::{Backend, MemoryBackend},
    },
};

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A log that does not remove records by their age.
struct Aged {
    log: MemoryBackend,
    max_age: Option<Duration>,
    /// The ages that the hub has set.
    inherited: Arc<Mutex<Vec<Duration>>>,
}

impl Aged {
    fn new(max_age: Option<Duration>) -> Self {
        Self { log: MemoryBackend::new(1000), max_age, inherited: Arc::default() }
    }
}

impl Backend for Aged {
    pass_on!(log: bounds append append_if_unchanged read follow);

    fn configured_max_age(&self) -> Option<Duration> {
        self.max_age
    }

    fn inherit_max_age(&mut self, age: Duration) {
        self.inherited.lock().unwrap().push(age);
    }
}

/// Checks that the hub knows for this time that a topic is finished.
async fn assert_age(builder: Builder, backend: Aged, age: Duration) {
    let hub = builder.backend(backend).connect().await.unwrap();
    let topic = hub.topic("job");
    topic.publish(Event::new("done")).await.unwrap();
    topic.finish().await.unwrap();
    settle().await;
    sleep(age - Duration::from_secs(1)).await;
    assert!(topic.exists(), "before {age:?}");
    // Expired topics are removed with a delay.
    sleep(Duration::from_secs(2) + age / 16).await;
    assert!(!topic.exists(), "after {age:?}");
}

#[tokio::test(start_paused = true)]
async fn hub_without_age_uses_age_of_backend() {
    for (set, expected) in [(Some(HOUR / 60), HOUR / 60), (Some(DAY), DAY), (Some(DAY * 7), DAY), (None, HOUR)] {
        assert_age(Hub::builder(), Aged::new(set), expected).await;
    }
}

/// Without an age, the topics of a hub would never expire.
#[tokio::test(start_paused = true)]
async fn unlimited_age_of_backend_is_not_inherited() {
    for unlimited in [Duration::MAX, Duration::ZERO] {
        assert_age(Hub::builder(), Aged::new(Some(unlimited)), HOUR).await;
    }
}

#[tokio::test(start_paused = true)]
async fn hub_and_backend_keep_different_ages() {
    assert_age(Hub::builder().max_age(DAY), Aged::new(Some(HOUR)), DAY).await;
    assert_age(Hub::builder().max_age(HOUR), Aged::new(Some(DAY)), HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn backend_inherits_age_that_is_set_later() {
    let backend = Aged::new(None);
    let inherited = backend.inherited.clone();
    let connector = Hub::builder().max_age(HOUR).backend(backend).max_age(DAY).max_topics(1);
    let hub = connector.connect().await.unwrap();
    assert_eq!(*inherited.lock().unwrap(), [DAY], "once");
    assert!(hub.topic("one").finish().await.is_ok());
    assert!(hub.subscribe(["one", "two"], None).await.is_err(), "the hub has the other settings, too");
}

#[tokio::test(start_paused = true)]
async fn backend_inherits_only_an_age_that_is_set() {
    for (builder, expected) in [(Hub::builder(), None), (Hub::builder().max_age(Duration::ZERO), Some(Duration::MAX))] {
        let backend = Aged::new(None);
        let inherited = backend.inherited.clone();
        let _hub = builder.backend(backend).connect().await.unwrap();
        assert_eq!(inherited.lock().unwrap().pop(), expected);
    }
}
