//! Stream registries that follow a hub: after a close on one node, no stream of the closed user
//! reads an event that was published later, on any node and however late the node reads the log.

use super::{Mode, PLENTY, Shared, hub, settle, threads::on_four_threads, two};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http::Request;
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use serde::{Deserialize, Serialize};
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc,
    },
    task::{Context, Poll, Wake},
    time::Duration,
};
use support::{respond::respond, whatwg};
use tokio::{
    runtime,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_sse::{
    BoxError, Event, EventId, SseItem, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start, Subscription, backend::MemoryBackend},
};

const ALICE: &str = "alice";

/// A stream that reads everything at once when it is woken, like a task on an idle thread. So it
/// reads before any other task that the same change has woken.
struct Eager {
    body: Mutex<UnsyncBoxBody<Bytes, BoxError>>,
    received: Mutex<Vec<u8>>,
    has_ended: AtomicBool,
    is_woken: AtomicBool,
}

impl Eager {
    fn open<S, K>(registry: &StreamRegistry<K>, key: K, stream: SseStream<S>) -> Arc<Self>
    where
        S: Stream<Item: SseItem> + Send + 'static,
        K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
    {
        let layer = SseLayer::new().without_heartbeat().register(registry, move |_| Some(key.clone()));
        let response = respond(&layer, Request::new(()), stream.into_http_response());
        let body = Mutex::new(response.into_body().map_err(Into::into).boxed_unsync());
        let (has_ended, is_woken) = Default::default();
        let eager = Arc::new(Self { body, received: Mutex::default(), has_ended, is_woken });
        Wake::wake_by_ref(&eager);
        eager
    }

    fn received(&self) -> Vec<String> {
        let messages = whatwg::parse(&self.received.lock().unwrap()).messages.into_iter();
        messages.map(|message| message.data).filter(|data| !data.is_empty()).collect()
    }

    async fn ends(&self) {
        for _ in 0..100 {
            if self.has_ended.load(SeqCst) {
                return;
            }
            settle().await;
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the stream does not end, and has received {:?}", self.received());
    }
}

impl Wake for Eager {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, SeqCst);
        // A poll that is running sees the flag.
        let Ok(mut body) = self.body.try_lock() else { return };
        while self.is_woken.swap(false, SeqCst) && !self.has_ended.load(SeqCst) {
            let waker = self.clone().into();
            let mut cx = Context::from_waker(&waker);
            loop {
                match Pin::new(&mut *body).poll_frame(&mut cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(frame))) => {
                        self.received.lock().unwrap().extend_from_slice(&frame.into_data().unwrap());
                    }
                    Poll::Ready(None | Some(Err(_))) => {
                        self.has_ended.store(true, SeqCst);
                        return;
                    }
                }
            }
        }
    }
}

async fn publish(hub: &Hub, topic: &str, data: impl ToString) -> EventId {
    hub.topic(topic).publish(Event::new(data.to_string())).await.unwrap()
}

async fn publish_secrets(hub: &Hub) {
    for n in 0..20 {
        publish(hub, ["news", "chat"][n % 2], format!("secret {n}")).await;
    }
}

async fn following(hub: &Hub) -> StreamRegistry<String> {
    let registry = StreamRegistry::new();
    registry.follow(hub).await.unwrap();
    registry
}

async fn subscribe<const N: usize>(hub: &Hub, topics: [&str; N]) -> Subscription {
    hub.subscribe(topics, Start::Latest).await.unwrap()
}

/// A node reads a close and later events in one page, and each stream reads as soon as it is woken.
#[tokio::test(start_paused = true)]
async fn closed_stream_reads_no_later_event_of_the_page() {
    for page in [1, 2, 1000] {
        let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
        let registries = [following(&hubs[0]).await, following(&hubs[1]).await];
        connections[1].page.store(page, Relaxed);
        let open = |subscription| Eager::open(&registries[1], ALICE.to_owned(), SseStream::new(subscription));
        let one = open(subscribe(&hubs[1], ["news"]).await);
        let both = open(subscribe(&hubs[1], ["chat", "news"]).await);
        let lingering = open(subscribe(&hubs[1], ["news"]).await.linger(Duration::from_millis(5)));
        let listener = hubs[1].listen(["news"], Start::Latest).await.unwrap();
        let listener =
            Eager::open(&registries[1], ALICE.to_owned(), SseStream::new(listener.map(|it| it.map(|it| it.event))));
        let bob = Eager::open(&registries[1], "bob".to_owned(), SseStream::new(subscribe(&hubs[1], ["news"]).await));
        publish(&hubs[0], "news", "before").await;
        settle().await;
        assert_eq!(one.received(), ["before"]);

        connections[1].set(Mode::Lags);
        registries[0].close_everywhere(&ALICE.to_owned()).await.unwrap();
        publish_secrets(&hubs[0]).await;
        connections[1].set(Mode::Works);
        for stream in [one, both, lingering, listener] {
            stream.ends().await;
            assert_eq!(stream.received(), ["before"], "pages of {page}");
        }
        assert_eq!(bob.received().len(), 11, "the stream of another user stays open");
    }
}

/// The changes of presence are read from the same page.
#[tokio::test(start_paused = true)]
async fn closed_stream_reads_no_later_change_of_presence() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let registries = [following(&hubs[0]).await, following(&hubs[1]).await];
    let changes = hubs[1].topic("room").presence().map(|change| Event::new(format!("{change:?}")));
    let stream = Eager::open(&registries[1], ALICE.to_owned(), SseStream::new(changes));
    let join = async |member| hubs[0].topic("room").join(member, subscribe(&hubs[0], ["room"]).await).unwrap();
    let _bob = join("bob").await;
    sleep(Duration::from_secs(60)).await;
    let before = stream.received();
    assert!(before.iter().any(|change| change.contains("bob")), "{before:?}");

    connections[1].set(Mode::Lags);
    registries[0].close_everywhere(&ALICE.to_owned()).await.unwrap();
    let _secret = join("secret").await;
    sleep(Duration::from_millis(500)).await;
    connections[1].set(Mode::Works);
    stream.ends().await;
    assert_eq!(stream.received(), before);
}

/// The log has evicted the announcement before the node reads it, but not all later events.
#[tokio::test(start_paused = true)]
async fn stream_of_an_evicted_close_reads_no_later_event() {
    for mode in [Mode::Fails, Mode::Lags] {
        let (hubs, connections) = two(&Shared::new(5), Hub::builder).await;
        let registries = [following(&hubs[0]).await, following(&hubs[1]).await];
        let stream = Eager::open(&registries[1], ALICE.to_owned(), SseStream::new(subscribe(&hubs[1], ["news"]).await));
        connections[1].set(mode);
        registries[0].close_everywhere(&ALICE.to_owned()).await.unwrap();
        publish_secrets(&hubs[0]).await;
        connections[1].set(Mode::Works);
        stream.ends().await;
        assert_eq!(stream.received(), [""; 0]);
    }
}

/// A read of old events can return what the follower of the node has not read yet.
#[tokio::test(start_paused = true)]
async fn closed_stream_replays_no_later_event() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let registries = [following(&hubs[0]).await, following(&hubs[1]).await];
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(publish(&hubs[0], "news", n).await);
    }
    settle().await;
    // The response begins before the events are read.
    connections[1].set(Mode::Hangs);
    let replay = async || hubs[1].topic("news").subscribe(ids[0].clone()).await.unwrap();
    let stream = Eager::open(&registries[1], ALICE.to_owned(), SseStream::new(replay().await));
    let bob = Eager::open(&registries[1], "bob".to_owned(), SseStream::new(replay().await));
    registries[0].close_everywhere(&ALICE.to_owned()).await.unwrap();
    publish_secrets(&hubs[0]).await;
    connections[1].set(Mode::Lags);
    sleep(Duration::from_secs(5)).await;
    connections[1].set(Mode::Works);
    stream.ends().await;
    assert!(stream.received().iter().all(|data| !data.starts_with("secret")), "{:?}", stream.received());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bob.received().len(), 12, "the other stream gets all events");
}

/// A key whose code panics, or uses the hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct Special(String);

static HUB: OnceLock<Hub> = OnceLock::new();

impl<'de> Deserialize<'de> for Special {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        assert_ne!(name, "panic");
        if let Some(hub) = HUB.get() {
            assert!(hub.stats().topics > 0 && hub.topic("tower-sse/closed-streams").exists());
        }
        Ok(Self(name))
    }
}

/// The node cannot know which streams were closed, so it closes all of them.
#[tokio::test(start_paused = true)]
async fn panic_of_a_key_closes_all_streams_and_stops_no_node() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    HUB.set(hubs[1].clone()).unwrap();
    let registries = [StreamRegistry::<Special>::new(), StreamRegistry::new()];
    for (registry, hub) in registries.iter().zip(&hubs) {
        registry.follow(hub).await.unwrap();
    }
    let other = following_as(&hubs[1], "other").await;
    let open = async || {
        let stream = SseStream::new(subscribe(&hubs[1], ["news"]).await);
        Eager::open(&registries[1], Special(ALICE.to_owned()), stream)
    };
    let stream = open().await;
    let stays = Eager::open(&other, ALICE.to_owned(), SseStream::new(subscribe(&hubs[1], ["news"]).await));
    registries[0].close_everywhere(&Special("panic".to_owned())).await.unwrap();
    publish(&hubs[0], "news", "secret").await;
    stream.ends().await;
    assert_eq!(stream.received(), [""; 0]);
    let stream = open().await;
    publish(&hubs[0], "news", "next").await;
    registries[0].close_everywhere(&Special("bob".to_owned())).await.unwrap();
    settle().await;
    assert_eq!((stream.received(), stays.received().len()), (vec!["next".to_owned()], 2));
    registries[0].close_everywhere(&Special(ALICE.to_owned())).await.unwrap();
    stream.ends().await;
}

async fn following_as(hub: &Hub, name: &str) -> StreamRegistry<String> {
    let registry = StreamRegistry::new();
    registry.follow_as(hub, name).await.unwrap();
    registry
}

/// The only worker of a node is busy while another node closes the streams and publishes. Of the
/// tasks that the page then wakes, tokio runs the last one first.
#[test]
fn streams_closed_while_their_node_was_busy_read_no_later_event() {
    for _ in 0..10 {
        let log = MemoryBackend::new(PLENTY);
        let busy = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let own = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let node = log.clone();
        let (ready, is_ready) = mpsc::channel();
        let (release, is_released) = mpsc::channel::<()>();
        let setup = async move {
            let hub = hub(node).await;
            let registry = following(&hub).await;
            let tasks: Vec<_> = join_all((0..5).map(|_| subscribe(&hub, ["news"])))
                .await
                .into_iter()
                .map(|events| {
                    let layer = SseLayer::new().without_heartbeat().register(&registry, |_| Some(ALICE.to_owned()));
                    let response = respond(&layer, Request::new(()), SseStream::new(events).into_http_response());
                    let ready = ready.clone();
                    let mut body = response.into_body();
                    tokio::spawn(async move {
                        let mut received = Vec::new();
                        while let Some(Ok(frame)) = body.frame().await {
                            received.extend_from_slice(&frame.into_data().unwrap());
                            let _closed = ready.send(());
                        }
                        whatwg::parse(&received).messages.len()
                    })
                })
                .collect();
            (tasks, registry)
        };
        let (tasks, _registry) = busy.block_on(async { tokio::spawn(setup).await }).unwrap();
        // Each stream has sent its cursor, and waits for events.
        (0..5).for_each(|_| is_ready.recv().unwrap());
        let (blocks, is_blocked) = mpsc::channel();
        busy.spawn(async move {
            blocks.send(()).unwrap();
            is_released.recv().unwrap();
        });
        is_blocked.recv().unwrap();
        own.block_on(async {
            let hub = hub(log.clone()).await;
            following(&hub).await.close_everywhere(&ALICE.to_owned()).await.unwrap();
            publish_secrets(&hub).await;
        });
        release.send(()).unwrap();
        for task in tasks {
            assert_eq!(busy.block_on(task).unwrap(), 1, "only the cursor");
        }
    }
}

const USERS: usize = 4;
/// The number of events that the streams have to read.
const EVENTS: usize = 20_000;

/// The progress of the task that closes streams and publishes events.
#[derive(Default)]
struct Done {
    /// The numbers of closes that have begun, by user.
    begun: [AtomicUsize; USERS],
    /// For each close of a user, the number of the last event before the end of the close.
    last_before: [Mutex<Vec<u64>>; USERS],
    /// The number of events that streams have read.
    read: AtomicUsize,
    is_over: AtomicBool,
}

impl Done {
    /// Opens streams of one user, one after the other, and reads each to its end.
    async fn read_streams(self: Arc<Self>, hub: Hub, registry: StreamRegistry<usize>, user: usize) {
        let mut last_id = None;
        for turn in 0.. {
            if self.is_over.load(SeqCst) {
                break;
            }
            let start = match (turn % 3, last_id.take()) {
                (0, _) => Start::Latest,
                (1, Some(id)) => Start::After(id),
                _ => Start::Earliest,
            };
            let topics = if turn % 2 == 0 { vec!["news"] } else { vec!["news", "chat"] };
            let hub = hub.clone();
            // The request is registered before it subscribes.
            let items = stream::once(async move { hub.subscribe(topics, start).await.unwrap() }).flatten().boxed();
            let layer = SseLayer::new().without_heartbeat().register(&registry, move |_| Some(user));
            let mut body = respond(&layer, Request::new(()), SseStream::new(items).into_http_response()).into_body();
            let closes = self.begun[user].load(SeqCst);
            let mut received = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                received.extend_from_slice(&frame.into_data().unwrap());
            }
            let messages = whatwg::parse(&received).messages;
            let numbers: Vec<u64> = messages.iter().filter_map(|message| message.data.parse().ok()).collect();
            // The close with this index began after the registration, so it has closed the stream,
            // unless an earlier one has.
            if let Some(last) = self.last_before[user].lock().unwrap().get(closes) {
                let later = numbers.iter().filter(|number| *number > last).count();
                assert_eq!(later, 0, "events after the close at {last}");
            }
            last_id = messages.last().and_then(|message| EventId::new(&*message.last_event_id).ok());
            self.read.fetch_add(numbers.len(), SeqCst);
        }
    }
}

/// One task closes and publishes in a random sequence, and many streams on two nodes read. The
/// nodes retain few events, so that most streams read old events from the log.
#[test]
fn no_stream_reads_an_event_published_after_its_close() {
    on_four_threads(async {
        let log = MemoryBackend::new(PLENTY);
        let done = Arc::new(Done::default());
        let mut readers = JoinSet::new();
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let hub = Hub::builder().max_events(3).backend(log.clone()).connect().await.unwrap();
            let registry = StreamRegistry::<usize>::new();
            registry.follow(&hub).await.unwrap();
            for reader in 0..8 * USERS {
                readers.spawn(done.clone().read_streams(hub.clone(), registry.clone(), reader % USERS));
            }
            nodes.push((hub, registry));
        }
        let (hub, registry) = &nodes[0];
        let close = async |user: usize, published: u64| {
            done.begun[user].fetch_add(1, SeqCst);
            registry.close_everywhere(&user).await.unwrap();
            done.last_before[user].lock().unwrap().push(published);
        };
        let mut random = 0x9E37_79B9_u64;
        let mut published = 0;
        while done.read.load(SeqCst) < EVENTS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if random >> 61 == 0 {
                close((random >> 32) as usize % USERS, published).await;
            } else {
                published += 1;
                publish(hub, ["news", "chat"][(random >> 32) as usize % 2], published).await;
            }
            if random >> 58 & 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        done.is_over.store(true, SeqCst);
        while !readers.is_empty() {
            for user in 0..USERS {
                close(user, published).await;
            }
            while let Ok(Some(read)) = timeout(Duration::from_millis(10), readers.join_next()).await {
                read.unwrap();
            }
        }
    });
}
