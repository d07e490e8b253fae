//! Many threads publish, read, connect, disconnect and lag at the same time. No event is lost,
//! repeated or out of order.
//!
//! ```console
//! $ cargo test --profile bench -p tests --test hub_stress -- --nocapture
//! ```
//!
//! With optimizations the test runs until 50 million events were delivered. Otherwise it stops at a
//! million.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::{JoinSet, yield_now};
use tokio_stream::StreamExt;
use tower_sse::{
    EncodedEvents, Event, EventId,
    hub::{Hub, Start, Subscription},
};

const TOPICS: usize = 4;
const DELIVERIES: u64 = if cfg!(debug_assertions) { 1_000_000 } else { 50_000_000 };
/// The number of events that each topic retains, and the maximum lag of the slowest reader that
/// must not miss an event.
const HELD: usize = 2_000;
const AHEAD: u64 = 1_000;

/// Readers that read as fast as they can, and must never get a gap.
const STEADY: usize = 48;
/// Readers that disconnect and reconnect.
const RESTLESS: usize = 12;
/// Readers that pause for so long that events are evicted before they read them.
const SLOW: usize = 4;

struct World {
    hub: Hub,
    delivered: AtomicU64,
    gaps: AtomicU64,
    resumed: AtomicU64,
    /// The number of events of each topic that each steady reader has received.
    progress: Vec<[AtomicU64; TOPICS]>,
    is_over: AtomicBool,
}

fn name(topic: usize) -> String {
    format!("topic {topic}")
}

/// The events that a reader has received over all its connections.
#[derive(Default)]
struct Seen {
    last: u64,
    /// The count in the last event of each topic.
    counts: [Option<u64>; TOPICS],
    is_after_a_gap: bool,
    gaps: u64,
    last_id: Option<EventId>,
}

impl Seen {
    /// Checks each event of a piece, and returns the number of events.
    fn look_at(&mut self, piece: &[u8]) -> u64 {
        let mut events = 0;
        let mut rest = piece;
        let mut id: &[u8] = &[];
        while !rest.is_empty() {
            let end = rest.windows(2).position(|two| two == b"\n\n").expect("events are whole");
            let event = &rest[..end];
            rest = &rest[end + 2..];
            let line_end = event.iter().position(|byte| *byte == b'\n').expect("an id, and more");
            id = event[..line_end].strip_prefix(b"id: ").expect("each has an id");
            let number = number(&id[id.iter().position(|byte| *byte == b'-').expect("a cursor") + 1..]);
            if event[line_end + 1..].starts_with(b"event: gap") {
                assert!(number >= self.last, "a gap does not go back");
                self.last = number;
                self.is_after_a_gap = true;
                self.gaps += 1;
                // Events of any topic may be missing.
                self.counts = [None; TOPICS];
                continue;
            }
            assert!(number > self.last, "{number} after {}", self.last);
            self.last = number;
            let data = event[line_end + 1..].strip_prefix(b"data: ").expect("data");
            let topic = usize::from(data[0] - b'0');
            let count = self::number(&data[2..]);
            if let Some(before) = self.counts[topic].replace(count) {
                assert_eq!(count, before + 1, "of topic {topic}");
            }
            events += 1;
        }
        self.last_id = Some(EventId::new(std::str::from_utf8(id).unwrap()).unwrap());
        events
    }
}

fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

async fn publish(world: Arc<World>, topic: usize) {
    let handle = world.hub.topic(name(topic));
    let mut count = 0_u64;
    let mut random = 0x9E37_79B9_u64 + topic as u64;
    while !world.is_over.load(Ordering::Relaxed) {
        let slowest = || {
            let heard = world.progress.iter().map(|progress| progress[topic].load(Ordering::Relaxed));
            heard.min().unwrap_or(u64::MAX)
        };
        while count.saturating_sub(slowest()) > AHEAD && !world.is_over.load(Ordering::Relaxed) {
            yield_now().await;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let event = |count: u64| Event::display(format_args!("{topic} {count}"));
        match random >> 60 {
            0..8 => {
                for _ in 0..random >> 58 & 7 {
                    handle.publish(event(count)).await.unwrap();
                    count += 1;
                }
            }
            _ => {
                let many = random >> 54 & 63;
                handle.publish_all((count..count + many).map(event)).await.unwrap();
                count += many;
            }
        }
        yield_now().await;
    }
    // Readers that wait for another event need no further one.
    handle.finish().await.unwrap();
}

fn topics(reader: usize) -> Vec<usize> {
    match reader % 3 {
        0 => (0..TOPICS).collect(),
        1 => vec![reader / 3 % TOPICS],
        _ => vec![reader / 3 % TOPICS, (reader / 3 + 1) % TOPICS],
    }
}

async fn subscribe(world: &World, topics: &[usize], start: Start) -> Subscription {
    world.hub.subscribe(topics.iter().map(|topic| name(*topic)), start).await.unwrap()
}

async fn read_steadily(world: Arc<World>, reader: usize) {
    let topics = topics(reader);
    let mut subscription = subscribe(&world, &topics, Start::Earliest).await;
    for topic in (0..TOPICS).filter(|topic| !topics.contains(topic)) {
        world.progress[reader][topic].store(u64::MAX, Ordering::Relaxed);
    }
    let mut seen = Seen::default();
    while !world.is_over.load(Ordering::Relaxed) {
        let Some(piece) = world.next(&mut subscription).await else { break };
        let events = seen.look_at(piece.as_bytes());
        for topic in &topics {
            // The first event of a topic has the count 0. A reader that began there must have it.
            let heard = seen.counts[*topic].map_or(0, |count| count + 1);
            world.progress[reader][*topic].store(heard, Ordering::Relaxed);
        }
        world.count(events);
    }
    assert_eq!(seen.gaps, 0, "it was never far behind");
}

async fn come_and_go(world: Arc<World>, reader: usize) {
    let topics = topics(reader);
    let mut seen = Seen::default();
    while !world.is_over.load(Ordering::Relaxed) {
        let start = seen.last_id.clone().map_or(Start::Latest, Start::After);
        if start == Start::Latest {
            seen = Seen::default();
        } else {
            world.resumed.fetch_add(1, Ordering::Relaxed);
        }
        let mut subscription = subscribe(&world, &topics, start).await;
        for _ in 0..20 + reader * 7 {
            let Some(piece) = world.next(&mut subscription).await else { return };
            world.count(seen.look_at(piece.as_bytes()));
        }
        drop(subscription);
        if seen.last % 13 == 0 {
            // Sometimes the client is a new one.
            seen.last_id = None;
        }
        yield_now().await;
    }
}

async fn fall_behind(world: Arc<World>, reader: usize) {
    let topics = topics(reader);
    let mut subscription = subscribe(&world, &topics, Start::Latest).await;
    let mut seen = Seen::default();
    while !world.is_over.load(Ordering::Relaxed) {
        let Some(piece) = world.next(&mut subscription).await else { break };
        world.count(seen.look_at(piece.as_bytes()));
        let published = world.hub.stats().published;
        while world.hub.stats().published < published + (HELD * TOPICS * 2) as u64
            && !world.is_over.load(Ordering::Relaxed)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    world.gaps.fetch_add(seen.gaps, Ordering::Relaxed);
}

impl World {
    /// Returns the next piece, or `None` after the end of the test. No subscription ends earlier.
    async fn next(&self, subscription: &mut Subscription) -> Option<EncodedEvents> {
        let piece = subscription.next().await.map(|piece| piece.expect("no subscription fails"));
        assert!(piece.is_some() || self.is_over.load(Ordering::Relaxed), "a subscription ended too early");
        piece
    }

    fn count(&self, events: u64) {
        if self.delivered.fetch_add(events, Ordering::Relaxed) > DELIVERIES {
            self.is_over.store(true, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_event_is_lost_repeated_or_reordered() {
    let begin = Instant::now();
    let world = Arc::new(World {
        hub: Hub::builder().max_events(HELD).build(),
        delivered: AtomicU64::new(0),
        gaps: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        progress: (0..STEADY).map(|_| Default::default()).collect(),
        is_over: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for reader in 0..STEADY {
        tasks.spawn(read_steadily(world.clone(), reader));
    }
    for reader in 0..RESTLESS {
        tasks.spawn(come_and_go(world.clone(), reader));
    }
    for reader in 0..SLOW {
        tasks.spawn(fall_behind(world.clone(), reader));
    }
    for topic in 0..TOPICS {
        tasks.spawn(publish(world.clone(), topic));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let [delivered, gaps, resumed] = [&world.delivered, &world.gaps, &world.resumed].map(|n| n.load(Ordering::Relaxed));
    let published = world.hub.stats().published;
    println!(
        "{delivered} deliveries of {published} events in {:?}: none lost, repeated or out of order; \
         {resumed} resumed, {gaps} gaps told to those who fell behind",
        begin.elapsed()
    );
    assert!(delivered >= DELIVERIES && resumed > 0 && gaps > 0);
    assert_eq!(world.hub.stats().subscriptions, 0);
}
