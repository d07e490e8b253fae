//! A backend under many threads: publishers, nodes, subscribers and raw followers share one log.
//!
//! ```console
//! $ cargo test --profile bench -p tests --test backend_stress -- --nocapture
//! ```
//!
//! With optimizations the test publishes 10 million events. The debug build publishes 500,000.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::task::{JoinSet, yield_now};
use tokio_stream::StreamExt;
use tower_sse::{
    Event,
    hub::{
        Hub, Start,
        backend::{Backend, MemoryBackend, Position},
    },
};

const EVENTS: u64 = if cfg!(debug_assertions) { 500_000 } else { 10_000_000 };
const TOPICS: [&str; 4] = ["0", "1", "2", "3"];
const NODES: usize = 2;
const SUBSCRIBERS: usize = 8;
const FOLLOWERS: usize = 4;
/// The retention of the log, and the lead that publishers may have over the slowest reader.
const RETAINED: usize = 50_000;
const AHEAD: u64 = 10_000;
/// The number of events that each topic of a node retains. A subscriber that is further behind
/// reads the log.
const RETAINED_BY_NODE: usize = 500;
/// The test fails after so long without progress. Blocked threads cannot run a timer of tokio.
const STUCK: Duration = Duration::from_secs(30);

struct World {
    log: MemoryBackend,
    published: AtomicU64,
    /// The number of events that each subscriber and each follower has received.
    received: Vec<AtomicU64>,
    is_over: AtomicBool,
}

impl World {
    fn slowest(&self) -> u64 {
        self.received.iter().map(|received| received.load(Relaxed)).min().unwrap_or(u64::MAX)
    }

    fn progress(&self) -> u64 {
        self.received.iter().chain([&self.published]).map(|count| count.load(Relaxed)).sum()
    }

    /// Ends the process if no event is published or received any more.
    fn watch(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let world = Arc::clone(self);
        thread::spawn(move || {
            let (mut progress, mut since) = (0, Instant::now());
            while !world.is_over.load(Relaxed) {
                thread::park_timeout(Duration::from_millis(100));
                let now = world.progress();
                if now != progress {
                    (progress, since) = (now, Instant::now());
                } else if since.elapsed() > STUCK {
                    let published = world.published.load(Relaxed);
                    eprintln!("deadlock: nothing has happened for {STUCK:?} after {published} events");
                    process::exit(101);
                }
            }
        })
    }
}

/// Publishes an equal part of the events, one by one and in batches.
async fn publish(world: Arc<World>, hub: Hub, topic: usize) {
    let handle = hub.topic(TOPICS[topic]);
    let all = EVENTS / TOPICS.len() as u64;
    let mut next = 0;
    let mut random = 0x9E37_79B9_u64 + topic as u64;
    while next < all {
        if world.published.load(Relaxed).saturating_sub(world.slowest()) > AHEAD {
            yield_now().await;
            continue;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = if random >> 63 == 0 { 1 } else { 1 + (random >> 58 & 31) }.min(all - next);
        handle.publish_all((next..next + size).map(Event::display)).await.unwrap();
        next += size;
        world.published.fetch_add(size, Relaxed);
        if random >> 56 & 7 == 0 {
            yield_now().await;
        }
    }
}

/// Subscribes to all topics of a node. Expects every event once and in order.
async fn subscribe(world: Arc<World>, hub: Hub, reader: usize) {
    let mut subscription = hub.subscribe(TOPICS, Start::Earliest).await.unwrap();
    let mut last = 0;
    let mut received = 0;
    while received < EVENTS {
        let events = subscription.next().await.expect("no topic is finished").unwrap();
        for event in events.as_bytes().split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"id: ")) {
            let position = event.rsplit(|byte| *byte == b'-').next().unwrap();
            let position = position.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
            assert_eq!(position, last + 1, "no event is lost, repeated or out of order");
            last = position;
            received += 1;
        }
        world.received[reader].store(received, Relaxed);
    }
}

/// Follows the log itself. Expects every record once and in order.
async fn follow(world: Arc<World>, reader: usize) {
    let mut after = Position::START;
    while after.get() < EVENTS {
        let page = world.log.follow(after).await.unwrap();
        assert!(page.evicted_through <= after, "publishers wait for the slowest reader");
        for (position, _) in &page.records {
            assert_eq!(*position, after.next(), "no record is lost, repeated or out of order");
            after = *position;
        }
        assert_eq!(page.through, after);
        world.received[reader].store(after.get(), Relaxed);
        // `follow` does not wait while there is a page.
        yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_backend_delivers_all_events_on_four_threads() {
    let begin = Instant::now();
    let world = Arc::new(World {
        log: MemoryBackend::new(RETAINED),
        published: AtomicU64::new(0),
        received: (0..SUBSCRIBERS + FOLLOWERS).map(|_| AtomicU64::new(0)).collect(),
        is_over: AtomicBool::new(false),
    });
    let watchdog = world.watch();
    let mut hubs = Vec::new();
    for _ in 0..NODES {
        let builder = Hub::builder().max_events(RETAINED_BY_NODE).backend(world.log.clone());
        hubs.push(builder.connect().await.unwrap());
    }
    let mut tasks = JoinSet::new();
    for reader in 0..SUBSCRIBERS {
        tasks.spawn(subscribe(world.clone(), hubs[reader % NODES].clone(), reader));
    }
    for reader in SUBSCRIBERS..SUBSCRIBERS + FOLLOWERS {
        tasks.spawn(follow(world.clone(), reader));
    }
    for topic in 0..TOPICS.len() {
        tasks.spawn(publish(world.clone(), hubs[topic % NODES].clone(), topic));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    world.is_over.store(true, Relaxed);
    watchdog.join().unwrap();
    assert_eq!(world.published.load(Relaxed), EVENTS);
    assert_eq!(hubs.iter().map(|hub| hub.stats().gaps).sum::<u64>(), 0, "no reader was far behind");
    println!("{EVENTS} events to {SUBSCRIBERS} subscribers and {FOLLOWERS} followers in {:?}", begin.elapsed());
}
