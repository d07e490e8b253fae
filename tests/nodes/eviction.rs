//! Clients of a node that is behind, when it learns that the log has evicted unread events.

use super::{Faulty, Mode, Shared, data_soon, publish, settle, two};
use futures_util::{
    FutureExt,
    future::{MaybeDone, maybe_done},
};
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_test::task;
use tower_sse::{
    EventId,
    hub::{Error, GapReason, Hub, LagPolicy, Start, Subscription},
};

const TOPICS: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
/// The number of records that the log retains.
const RETAINED: usize = 30;
/// The time after which a follower that gets no page calls `follow` again.
const LONG: Duration = Duration::from_secs(30);

/// Calls a function at each wake-up. A node wakes the subscribers of a topic after it has changed
/// this topic, and before it changes the next one.
struct AtWake<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for AtWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Polls a subscription until it waits.
fn poll(subscription: &mut Subscription, waker: &Waker) {
    while let Poll::Ready(item) = Pin::new(&mut *subscription).poll_next(&mut Context::from_waker(waker)) {
        assert!(item.is_some_and(|item| item.is_ok()));
    }
}

/// Subscribes to each of the topics, and calls `f` when one of the topics changes.
async fn at_changes(hub: &Hub, f: impl Fn() + Send + Sync + 'static) -> Vec<Subscription> {
    let waker = Arc::new(AtWake(f)).into();
    let mut watchers = Vec::new();
    for topic in TOPICS {
        let mut watcher = hub.topic(topic).subscribe(Start::Latest).await.unwrap();
        poll(&mut watcher, &waker);
        watchers.push(watcher);
    }
    watchers
}

/// A node that is behind, and another node.
struct Behind {
    node: Hub,
    connection: Faulty,
    other: Hub,
    /// The id up to which the first node has read the log.
    read: EventId,
    /// The ids of the unread events, one for each topic.
    unread: Vec<EventId>,
    /// An id after those of the unread events.
    ahead: EventId,
}

impl Behind {
    async fn new() -> Self {
        let shared = Shared::new(RETAINED);
        let ([node, other], [connection, _]) = two(&shared, Hub::builder).await;
        let read = publish(&other, "other", "").await;
        settle().await;
        connection.set(Mode::Lags);
        let mut unread = Vec::new();
        for topic in TOPICS {
            unread.push(publish(&other, topic, "unread").await);
        }
        let ahead = publish(&other, "other", "").await;
        Self { node, connection, other, read, unread, ahead }
    }

    /// Makes the log evict the events of the topics, and no later event.
    async fn evict(&self) {
        for _ in 1..RETAINED {
            publish(&self.other, "other", "").await;
        }
        // A page from before the eviction is discarded.
        sleep(LONG).await;
    }

    async fn catch_up(&self) {
        self.connection.set(Mode::Works);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_returns_during_truncation_gets_gap() {
    type Subscribing = Pin<Box<dyn Future<Output = Result<Subscription, Error>> + Send>>;
    let behind = Behind::new().await;
    behind.evict().await;
    let clients = Arc::new(Mutex::new(Vec::<(&str, Pin<Box<MaybeDone<Subscribing>>>)>::new()));
    let subscribe_all = {
        let (clients, hub, id) = (clients.clone(), behind.node.clone(), behind.read.clone());
        move || {
            for topic in TOPICS {
                let (handle, id) = (hub.topic(topic), id.clone());
                let subscribing: Subscribing = Box::pin(async move { handle.subscribe(id).await });
                let mut client = Box::pin(maybe_done(subscribing));
                let _ = client.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                clients.lock().unwrap().push((topic, client));
            }
        }
    };
    let _watchers = at_changes(&behind.node, subscribe_all).await;
    behind.catch_up().await;
    let clients = std::mem::take(&mut *clients.lock().unwrap());
    assert_eq!(clients.len(), TOPICS.len() * TOPICS.len(), "all return after the change of each topic");
    for (topic, mut client) in clients {
        client.as_mut().await;
        let mut client = task::spawn(client.as_mut().take_output().unwrap().unwrap());
        let received = data_soon(&mut client).await;
        assert_eq!(received, ["evicted"], "topic {topic} at cursor {:?}", client.cursor());
    }
}

#[tokio::test(start_paused = true)]
async fn merged_client_passes_no_evicted_event_during_truncation() {
    let behind = Behind::new().await;
    let mut merged = Vec::new();
    for topic in TOPICS {
        // The second topic already has all events up to its start.
        let topics = [(topic, behind.read.clone()), ("other", behind.ahead.clone())];
        let topics = topics.map(|(topic, id)| (topic, Start::After(id)));
        let mut subscription = behind.node.subscribe(topics, Start::Latest).await.unwrap();
        poll(&mut subscription, Waker::noop());
        merged.push(subscription);
    }
    behind.evict().await;
    let (merged, changes) = (Arc::new(Mutex::new(merged)), Arc::new(AtomicUsize::new(0)));
    let poll_all = {
        let (merged, changes) = (merged.clone(), changes.clone());
        move || {
            changes.fetch_add(1, Relaxed);
            merged.lock().unwrap().iter_mut().for_each(|merged| poll(merged, Waker::noop()));
        }
    };
    let _watchers = at_changes(&behind.node, poll_all).await;
    behind.catch_up().await;
    assert_eq!(changes.load(Relaxed), TOPICS.len());
    let merged = std::mem::take(&mut *merged.lock().unwrap());
    for (topic, merged) in TOPICS.iter().zip(merged) {
        let mut merged = task::spawn(merged);
        data_soon(&mut merged).await;
        assert!(merged.gap().is_some(), "topic {topic} at cursor {:?}", merged.cursor());
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_joins_during_truncation_gets_no_gap() {
    let behind = Behind::new().await;
    behind.evict().await;
    let clients = Arc::new(Mutex::new(Vec::new()));
    let subscribe_all = {
        let (clients, hub) = (clients.clone(), behind.node.clone());
        move || {
            for topic in TOPICS.into_iter().chain(["new"]) {
                let client = hub.topic(topic).subscribe(Start::Latest).now_or_never();
                clients.lock().unwrap().push(client.expect("the client needs no read").unwrap());
            }
        }
    };
    let _watchers = at_changes(&behind.node, subscribe_all).await;
    behind.catch_up().await;
    for topic in TOPICS {
        publish(&behind.other, topic, "live").await;
    }
    let clients = std::mem::take(&mut *clients.lock().unwrap());
    for client in clients {
        let mut client = task::spawn(client);
        data_soon(&mut client).await;
        assert_eq!(client.gap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn node_behind_reports_known_eviction_before_the_response() {
    let behind = Behind::new().await;
    behind.evict().await;
    let topic = behind.node.topic("7");
    // The node asks the backend for the end of the log, because it has not read this id.
    let client = topic.subscribe(behind.unread[3].clone()).await.unwrap().lag_policy(LagPolicy::Disconnect);
    assert_eq!(client.gap().map(|gap| (gap.reason(), gap.requested())), Some((GapReason::Evicted, &behind.unread[3])));
    let at_end = topic.subscribe(behind.unread[7].clone()).await.unwrap();
    assert!(at_end.is_resumed(), "the log retains all events after this id");
    let earliest = topic.subscribe(Start::Earliest).await.unwrap();
    assert_eq!(earliest.gap(), None);

    behind.catch_up().await;
    publish(&behind.other, "7", "live").await;
    let mut clients = [client, at_end, earliest].map(task::spawn);
    assert_eq!(data_soon(&mut clients[0]).await, ["evicted", "live"]);
    assert_eq!(data_soon(&mut clients[1]).await, ["live"]);
    assert_eq!(data_soon(&mut clients[2]).await, ["live"]);
}
