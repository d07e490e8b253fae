//! Subscribes to a hub with any `Last-Event-ID`.
//!
//! The subscription delivers every later event of its topics, once and in order, or reports a gap.
//! A state can arrive earlier, at the place of a state that it has replaced.
//! A client that reconnects with the id of its last event continues there.
//!
//! An input is three lines, and after them the text of the header. The first line is the
//! subscription: its topics of `a`, `b` and `c`, and settings. The second line is the history of
//! the hub, and the third line is what happens after the client has subscribed.
//!
//! | setting | meaning |
//! |---|---|
//! | `a`, `b`, `c` | subscribes to the topic |
//! | `1` to `9` | a topic retains so many events; 3 is the default |
//! | `x` | without an id, the client begins with the earliest event |
//! | `d` | a slow client is disconnected |
//! | `r` | the client reads the body of a response |
//!
//! | step | meaning |
//! |---|---|
//! | `a`, `b`, `c` | publishes to the topic; in `c`, a state, an event replaces the previous event |
//! | `1` to `9` | publishes so many events to `a`, together |
//! | `A`, `B`, `C` | finishes the topic |
//! | `+` | a quarter of the retention time of the hub passes |
//! | `.` | reads one item |
//! | `!` | reconnects |
//!
//! Random numbers are 0 in fuzzing, so the ids of the hub are `aaaaaaaa-1`, `aaaaaaaa-2` and so on.

#![no_main]

use fuzz::{in_paused_time, split_line, whatwg};
use http::{HeaderValue, Request};
use http_body::Body;
use libfuzzer_sys::{Corpus, fuzz_target};
use std::{
    collections::BTreeSet,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio_stream::Stream;
use tower_sse::{
    Event, EventId, LastEventId, SseStream,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Start, Subscription, SubscriptionError},
};

const EPOCH: &str = "aaaaaaaa-";
const MAX_AGE: Duration = Duration::from_secs(60);

fuzz_target!(|input: &[u8]| -> Corpus {
    let (settings, rest) = split_line(input);
    let (history, rest) = split_line(rest);
    let (steps, id) = split_line(rest);
    let topics: BTreeSet<_> = settings.iter().copied().filter(|letter| b"abc".contains(letter)).collect();
    let Ok(header) = HeaderValue::from_bytes(id) else { return Corpus::Reject };
    if topics.is_empty() || std::str::from_utf8(id).is_err() || history.len() + steps.len() > 200 {
        return Corpus::Reject;
    }
    let request = Request::builder().header("Last-Event-ID", header).body(()).expect("the value is valid");
    let last = LastEventId::from_request(&request);

    in_paused_time(async {
        let mut world = World::new(settings);
        for step in history {
            world.step(*step).await;
        }
        let mut client = Client::new(&world, settings, topics, last);
        for step in steps {
            match step {
                b'.' => drop(client.read(&world)),
                b'!' => client.reconnect(&world),
                step => world.step(*step).await,
            }
        }
        client.read_all(&world);
        client.reconnect(&world);
        client.read_all(&world);
    });
    Corpus::Keep
});

/// An event that was published.
#[derive(Debug)]
struct Published {
    number: u64,
    topic: u8,
    data: String,
}

struct World {
    hub: Hub,
    log: Vec<Published>,
    /// The topics that were finished, and the newest position then.
    finished: Vec<(u8, u64)>,
    /// Time has passed, so events may have expired.
    is_late: bool,
}

impl World {
    fn new(settings: &[u8]) -> Self {
        let max_events = settings.iter().rfind(|byte| (b'1'..=b'9').contains(byte)).map_or(3, |digit| digit - b'0');
        let policy = if settings.contains(&b'd') { LagPolicy::Disconnect } else { LagPolicy::Gap };
        let builder = Hub::builder().max_events(max_events.into()).max_age(MAX_AGE).lag_policy(policy);
        Self { hub: builder.build(), log: Vec::new(), finished: Vec::new(), is_late: false }
    }

    fn newest(&self) -> u64 {
        self.log.last().map_or(0, |event| event.number)
    }

    async fn step(&mut self, step: u8) {
        match step {
            b'a'..=b'c' => self.publish(step, 1).await,
            b'1'..=b'9' => self.publish(b'a', u64::from(step - b'0')).await,
            b'A'..=b'C' => {
                let topic = step.to_ascii_lowercase();
                self.hub.topic(name(&topic)).finish().await.expect("a hub in memory does not fail");
                self.finished.push((topic, self.newest()));
            }
            b'+' => {
                tokio::time::sleep(MAX_AGE / 4).await;
                self.is_late = true;
            }
            _ => {}
        }
    }

    async fn publish(&mut self, topic: u8, count: u64) {
        let handle = self.hub.topic(name(&topic));
        let handle = if topic == b'c' { handle.latest_only() } else { handle };
        let begin = self.newest() + 1;
        let data = |number| format!("{}/{number}", char::from(topic));
        match handle.publish_all((begin..begin + count).map(|number| Event::new(data(number)))).await {
            Ok(id) => {
                let published = (begin..begin + count).map(|number| Published { number, topic, data: data(number) });
                self.log.extend(published);
                assert_eq!(number(id.expect("there is an event").as_str()), self.newest());
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Finished),
        }
    }
}

struct Client {
    topics: BTreeSet<u8>,
    reads_body: bool,
    starts_earliest: bool,
    connection: Connection,
    /// The id that the client sends when it reconnects.
    last: LastEventId,
    /// The newest position when the client connected.
    connected_at: u64,
    /// Every event up to this position was delivered or reported as missing.
    cursor: u64,
    /// The oldest events of each topic up to this position may be missing: they were reported, or
    /// the client has begun with the earliest event.
    excused_through: u64,
    /// The topics with an event that has arrived since then.
    arrived: BTreeSet<u8>,
    /// The numbers of the events that have arrived on this connection.
    delivered: BTreeSet<u64>,
}

enum Connection {
    Items(Box<Subscription>),
    Body(Pin<Box<dyn Body<Data = bytes::Bytes, Error = tower_sse::BoxError>>>),
    Ended,
}

impl Client {
    fn new(world: &World, settings: &[u8], topics: BTreeSet<u8>, last: LastEventId) -> Self {
        let is_disconnected = settings.contains(&b'd');
        let mut client = Self {
            topics,
            // A body delays the error of a client that is disconnected.
            reads_body: settings.contains(&b'r') && !is_disconnected,
            starts_earliest: settings.contains(&b'x'),
            connection: Connection::Ended,
            last,
            connected_at: 0,
            cursor: 0,
            excused_through: 0,
            arrived: BTreeSet::new(),
            delivered: BTreeSet::new(),
        };
        client.connect(world);
        client
    }

    fn connect(&mut self, world: &World) {
        let newest = world.newest();
        let start = if self.starts_earliest { Start::Earliest } else { Start::Latest };
        let start = self.last.clone().or(start);
        let (cursor, reason) = match &start {
            Start::Earliest => (0, None),
            Start::After(id) => match classify(id.as_str()) {
                Ok(number) if number <= newest => (number, None),
                Ok(_) => (0, Some(GapReason::Ahead)),
                Err(reason) => (0, Some(reason)),
            },
            _ => (newest, None),
        };
        (self.cursor, self.connected_at) = (cursor, newest);
        self.excused_through = if start == Start::Earliest { newest } else { 0 };
        self.arrived.clear();
        self.delivered.clear();

        let topics: Vec<_> = self.topics.iter().map(name).collect();
        let subscription = poll(world.hub.subscribe(topics, start)).expect("a hub in memory does not fail");
        let gap = subscription.gap().cloned();
        match (reason, gap.as_ref().map(|gap| gap.reason())) {
            (Some(reason), reported) => assert_eq!(reported, Some(reason)),
            (None, Some(reason)) => assert_eq!(reason, GapReason::Evicted),
            (None, None) => {}
        }
        if let Some(gap) = &gap {
            // A gap has only the beginning of a long text.
            let (requested, last) = (gap.requested().as_str(), self.last.as_str().expect("an id"));
            let beginning = requested.strip_suffix('…').filter(|_| last.len() > 64);
            assert!(requested == last || beginning.is_some_and(|beginning| last.starts_with(beginning)), "{gap:?}");
        }
        assert!(!(subscription.is_resumed() && gap.is_some()));
        self.connection = if self.reads_body {
            let response = SseStream::new(subscription).without_heartbeat().into_http_response();
            assert!(response.status() == 200 || (response.status() == 204 && response.body().is_end_stream()));
            Connection::Body(Box::pin(response.into_body()))
        } else {
            Connection::Items(Box::new(subscription))
        };
        if gap.is_some() {
            // The client gets the gap as its first event.
            match self.read(world) {
                Read::Items(types) => assert_eq!(types.first().map(String::as_str), Some("gap")),
                _ => panic!("the gap is missing"),
            }
        }
    }

    fn reconnect(&mut self, world: &World) {
        self.connection = Connection::Ended;
        self.connect(world);
    }

    fn read_all(&mut self, world: &World) {
        loop {
            match self.read(world) {
                Read::Items(_) => {}
                Read::Nothing => break self.skip(world, world.newest() + 1),
                Read::Lagged => break,
            }
        }
    }

    /// Reads the events of one item or frame, and returns their types.
    fn read(&mut self, world: &World) -> Read {
        let mut cx = Context::from_waker(Waker::noop());
        let bytes = match &mut self.connection {
            Connection::Items(items) => match Pin::new(&mut **items).poll_next(&mut cx) {
                Poll::Ready(Some(Ok(events))) => events.into_bytes(),
                Poll::Ready(Some(Err(error))) => {
                    assert!(matches!(error, SubscriptionError::Lagged));
                    self.connection = Connection::Ended;
                    return Read::Lagged;
                }
                Poll::Ready(None) => {
                    self.connection = Connection::Ended;
                    // All topics are finished, so nothing is missing.
                    self.skip(world, world.newest() + 1);
                    return Read::Nothing;
                }
                Poll::Pending => return Read::Nothing,
            },
            Connection::Body(body) if body.is_end_stream() => return Read::Nothing,
            Connection::Body(body) => match body.as_mut().poll_frame(&mut cx) {
                Poll::Ready(Some(frame)) => frame.expect("a hub in memory does not fail").into_data().expect("data"),
                Poll::Ready(None) => {
                    self.connection = Connection::Ended;
                    self.skip(world, world.newest() + 1);
                    return Read::Nothing;
                }
                Poll::Pending => return Read::Nothing,
            },
            Connection::Ended => return Read::Lagged,
        };
        let source = whatwg::parse_after(self.last.as_str().unwrap_or_default(), &bytes);
        let types = source.messages.iter().map(|message| message.r#type.clone()).collect();
        for message in source.messages {
            let at = number(&message.last_event_id);
            match &*message.r#type {
                "gap" => {
                    assert!(at >= self.cursor, "a gap moves the cursor back");
                    (self.excused_through, self.arrived) = (world.newest(), BTreeSet::new());
                    self.skip(world, at + 1);
                }
                "hub-cursor" => {
                    assert_eq!(message.data, "");
                    assert!(at >= self.cursor, "the first cursor moves the cursor back");
                    self.skip(world, at + 1);
                }
                _ => {
                    let published = world.log.iter().find(|published| published.data == message.data);
                    let published = published.expect("an event that was published");
                    assert!(self.topics.contains(&published.topic), "an event of another topic");
                    if published.number == at {
                        assert!(at > self.cursor, "event {at} is not after {}", self.cursor);
                        self.skip(world, at);
                    } else {
                        // A state at the place of an earlier state, which it has replaced.
                        assert!(
                            published.topic == b'c' && published.number > at,
                            "event {published:?} with the id {at}"
                        );
                        assert!(at >= self.cursor, "a state moves the cursor back");
                        self.skip(world, at + 1);
                    }
                    assert!(self.delivered.insert(published.number), "{published:?} comes twice");
                    self.arrived.insert(published.topic);
                    self.cursor = at;
                }
            }
            self.last = LastEventId::from(EventId::new(message.last_event_id).expect("an id of the hub"));
        }
        Read::Items(types)
    }

    /// Moves the cursor up to the position before `until`. No event may be missing there.
    fn skip(&mut self, world: &World, until: u64) {
        for event in world.log.iter().filter(|event| event.number > self.cursor && event.number < until) {
            let is_replaced =
                || world.log.iter().any(|later| later.topic == event.topic && later.number > event.number);
            // After its end, a topic can be forgotten and created again.
            let is_of_next_topic = || {
                let mut ends =
                    world.finished.iter().filter(|(topic, end)| *topic == event.topic && *end < event.number);
                ends.any(|(_, end)| {
                    let between = |it: &&Published| it.number > *end && it.number <= self.connected_at;
                    !world.log.iter().filter(between).any(|between| between.topic == event.topic)
                })
            };
            let is_excused = !self.topics.contains(&event.topic)
                || self.delivered.contains(&event.number)
                || is_of_next_topic()
                || (event.topic == b'c' && (world.is_late || is_replaced()))
                || (event.number <= self.excused_through && !self.arrived.contains(&event.topic));
            assert!(is_excused, "event {} is missing, and no gap reports it", event.number);
        }
        self.cursor = self.cursor.max(until - 1);
    }
}

enum Read {
    /// The types of the events that have arrived.
    Items(Vec<String>),
    Nothing,
    /// The client was disconnected.
    Lagged,
}

fn name(topic: &u8) -> &'static str {
    match topic {
        b'a' => "a",
        b'b' => "b",
        _ => "c",
    }
}

/// Returns the position of an id of the hub.
fn number(id: &str) -> u64 {
    id.strip_prefix(EPOCH).and_then(|number| number.parse().ok()).expect("an id of the hub")
}

/// Returns the position of any id, or the reason why it has none.
fn classify(id: &str) -> Result<u64, GapReason> {
    let (epoch, number) = id.split_once('-').ok_or(GapReason::Malformed)?;
    let is_epoch = epoch.len() == 8 && epoch.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    let is_number = number == "0" || (!number.starts_with('0') && !number.is_empty());
    if !is_epoch || !is_number || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(GapReason::Malformed);
    }
    if epoch != &EPOCH[..8] {
        return Err(GapReason::OtherEpoch);
    }
    number.parse().map_err(|_| GapReason::Ahead)
}

fn poll<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hub in memory does not wait"),
    }
}
