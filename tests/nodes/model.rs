//! Events are published, topics finished, clients subscribed, and connections broken and restored
//! on two nodes in any order. No acknowledged event is lost without a gap, repeated or out of
//! order. No gap is reported where nothing is missing.
//!
//! The same steps run with paused time on one thread, and with real time on four threads.

use super::{
    faulty::{Faulty, Log, Mode, Shared},
    threads::on_four_threads,
};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::Index};
use std::{
    collections::BTreeSet,
    sync::atomic::Ordering::Relaxed,
    task::Poll,
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    runtime::{self, Handle, RuntimeFlavor},
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_test::task;
use tower_sse::{
    Event, EventId,
    hub::{
        ErrorKind, Hub, Start, Subscription, SubscriptionError,
        backend::{Record, RecordKind},
    },
};

const TOPICS: [&str; 3] = ["a", "b", "c"];
/// The topic whose events each replace the event before.
const STATE: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        node: usize,
        topic: usize,
        count: usize,
    },
    Finish {
        node: usize,
        topic: usize,
    },
    Remove {
        node: usize,
        topic: usize,
    },
    Subscribe {
        node: usize,
        topics: Vec<usize>,
        start: Begin,
    },
    Read {
        client: Index,
        items: usize,
    },
    Resume {
        client: Index,
        node: usize,
    },
    Leave {
        client: Index,
    },
    Settle {
        yields: usize,
    },
    Pass {
        milliseconds: u64,
    },
    Set {
        node: usize,
        mode: Mode,
    },
    Page {
        node: usize,
        size: usize,
    },
    /// Another log replaces the current one, with the oldest of the retained records.
    Replace {
        kept: Index,
    },
}

#[derive(Clone, Debug)]
enum Begin {
    Latest,
    Earliest,
    After(Index),
    Future(u64),
    Foreign(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..2_usize;
    let topic = || 0..TOPICS.len();
    let begin = prop_oneof![
        2 => Just(Begin::Latest),
        2 => Just(Begin::Earliest),
        4 => any::<Index>().prop_map(Begin::After),
        1 => (1..1000_u64).prop_map(Begin::Future),
        1 => prop::sample::select(vec!["", "7", "aaaaaaaa-3"]).prop_map(Begin::Foreign),
    ];
    let mode = prop_oneof![
        6 => Just(Mode::Works),
        1 => Just(Mode::Fails),
        1 => Just(Mode::Hangs),
        1 => Just(Mode::LosesAnswers),
        2 => Just(Mode::Lags),
    ];
    let pass = prop_oneof![4 => 1..500_u64, 2 => 500..5000_u64, 1 => 5000..100_000_u64];
    prop_oneof![
        12 => (node(), topic(), 0..6_usize).prop_map(|(node, topic, count)| Step::Publish { node, topic, count }),
        1 => (node(), topic()).prop_map(|(node, topic)| Step::Finish { node, topic }),
        1 => (node(), topic()).prop_map(|(node, topic)| Step::Remove { node, topic }),
        4 => (node(), vec(topic(), 1..4), begin)
            .prop_map(|(node, topics, start)| Step::Subscribe { node, topics, start }),
        10 => (any::<Index>(), 1..6_usize).prop_map(|(client, items)| Step::Read { client, items }),
        4 => (any::<Index>(), node()).prop_map(|(client, node)| Step::Resume { client, node }),
        1 => any::<Index>().prop_map(|client| Step::Leave { client }),
        8 => (1..20_usize).prop_map(|yields| Step::Settle { yields }),
        3 => pass.prop_map(|milliseconds| Step::Pass { milliseconds }),
        4 => (node(), mode).prop_map(|(node, mode)| Step::Set { node, mode }),
        1 => (node(), 1..5_usize).prop_map(|(node, size)| Step::Page { node, size }),
        1 => any::<Index>().prop_map(|kept| Step::Replace { kept }),
    ]
}

struct Client {
    topics: BTreeSet<usize>,
    stream: Option<task::Spawn<Subscription>>,
    last_event_id: String,
    /// The log of the cursor. Every event up to the cursor has arrived, or is reported as missing.
    log: usize,
    at: u64,
    /// Events up to this position may be missing. The gap may not be reported yet.
    may_miss: Option<u64>,
    /// The newest state that has arrived. It may have the id of a state that it replaced.
    state: u64,
    is_new: bool,
    got: usize,
}

struct World {
    shared: Shared,
    max_records: usize,
    hubs: Vec<Hub>,
    connections: Vec<Faulty>,
    clients: Vec<Client>,
    published: usize,
}

impl World {
    async fn new(max_records: usize, max_events: usize) -> Self {
        let shared = Shared::new(max_records);
        let connections = vec![shared.connect(), shared.connect()];
        let mut hubs = Vec::new();
        for connection in &connections {
            let builder = Hub::builder().max_events(max_events).max_age(Duration::from_secs(60));
            hubs.push(builder.backend(connection.clone()).connect().await.unwrap());
        }
        Self { shared, max_records, hubs, connections, clients: Vec::new(), published: 0 }
    }

    async fn take(&mut self, step: Step) {
        // It is shown if the test fails. The pauses of a hub are random, so it helps more than a
        // smaller case.
        eprintln!("{step:?} {:?}", self.shared.log().bounds);
        match step {
            Step::Publish { node, topic, count } => self.publish(node, topic, count).await,
            Step::Finish { node, topic } => {
                if let Err(error) = self.hubs[node].topic(TOPICS[topic]).finish().await {
                    assert_eq!(error.kind(), ErrorKind::Backend);
                }
            }
            Step::Remove { node, topic } => {
                // A node that lags waits for a long time.
                let topic = self.hubs[node].topic(TOPICS[topic]);
                if let Ok(Err(error)) = timeout(Duration::from_millis(50), topic.remove()).await {
                    assert_eq!(error.kind(), ErrorKind::Backend);
                }
            }
            Step::Subscribe { node, topics, start } => self.subscribe(node, topics, start).await,
            Step::Read { client, items } => {
                if !self.clients.is_empty() {
                    self.read(client.index(self.clients.len()), items);
                }
            }
            Step::Resume { client, node } => {
                if !self.clients.is_empty() {
                    self.resume(client.index(self.clients.len()), node).await;
                }
            }
            Step::Leave { client } => {
                if !self.clients.is_empty() {
                    self.clients.remove(client.index(self.clients.len()));
                }
            }
            Step::Settle { yields } => {
                for _ in 0..yields {
                    yield_now().await;
                }
            }
            Step::Pass { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
            Step::Set { node, mode } => self.connections[node].set(mode),
            Step::Page { node, size } => self.connections[node].page.store(size, Relaxed),
            Step::Replace { kept } => {
                let mut held = self.shared.log().held();
                held.truncate(kept.index(held.len() + 1));
                self.shared.replace(self.max_records, held);
                // Its connections are lost. It is available again at once, for the nodes that can
                // reach it.
                for connection in &self.connections {
                    connection.reset().await;
                }
            }
        }
    }

    async fn publish(&mut self, node: usize, topic: usize, count: usize) {
        let mut handle = self.hubs[node].topic(TOPICS[topic]);
        if topic == STATE {
            handle = handle.latest_only();
        }
        let first = self.published;
        self.published += count;
        let events: Vec<_> = (first..self.published).map(Event::display).collect();
        let published = match <[Event; 1]>::try_from(events) {
            Ok([only]) => handle.publish(only).await.map(Some),
            Err(events) => handle.publish_all(events).await,
        };
        match published {
            Ok(None) => assert_eq!(count, 0),
            Ok(Some(id)) => {
                let (_, position) = id.as_str().split_once('-').unwrap();
                let position: u64 = position.parse().unwrap();
                // The node may not know yet that the log was replaced, so the epoch is not checked.
                let log = self.shared.log();
                let last = &log.all[&position];
                assert_eq!(last.event, Event::display(self.published - 1).encode(), "it is where its id says");
                assert_eq!(&*last.topic, TOPICS[topic]);
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Backend | ErrorKind::Finished), "{error:?}"),
        }
    }

    async fn subscribe(&mut self, node: usize, topics: Vec<usize>, start: Begin) {
        let logs = self.shared.logs();
        let log = logs.last().unwrap();
        let start = match start {
            Begin::Latest => Start::Latest,
            Begin::Earliest => Start::Earliest,
            Begin::After(index) => {
                let newest = log.bounds.last.get();
                let position = index.index(newest as usize + 1) as u64;
                Start::After(EventId::new(format!("{}-{position}", log.letters)).unwrap())
            }
            Begin::Future(more) => {
                Start::After(EventId::new(format!("{}-{}", log.letters, log.bounds.last.get() + more)).unwrap())
            }
            Begin::Foreign(id) => Start::After(EventId::new(id).unwrap()),
        };
        let client = Client {
            topics: topics.into_iter().collect(),
            stream: None,
            last_event_id: String::new(),
            log: logs.len() - 1,
            at: 0,
            may_miss: None,
            state: 0,
            is_new: true,
            got: 0,
        };
        self.clients.push(client);
        let client = self.clients.len() - 1;
        self.begin(client, node, start).await;
    }

    async fn resume(&mut self, client: usize, node: usize) {
        let id = self.clients[client].last_event_id.clone();
        self.clients[client].is_new &= id.is_empty();
        self.begin(client, node, Start::After(EventId::new(id).unwrap())).await;
    }

    async fn begin(&mut self, client: usize, node: usize, start: Start) {
        // Its previous connection ends first: a client has one connection.
        self.clients[client].stream = None;
        let topics = self.clients[client].topics.iter().map(|topic| TOPICS[*topic]).collect::<Vec<_>>();
        let mut subscription = self.hubs[node].subscribe(topics, start.clone()).await.unwrap();
        let logs = self.shared.logs();
        eprintln!("    client {client} begins: {start:?} {subscription:?}");
        let client = &mut self.clients[client];
        (client.may_miss, client.state) = (None, 0);
        match &start {
            Start::After(id) if !id.as_bytes().is_empty() => {
                client.last_event_id = id.as_str().to_owned();
                let place = place(&logs, id.as_str());
                if let Some((log, position)) = place {
                    (client.log, client.at) = (log, position);
                }
                if subscription.is_resumed() {
                    assert!(subscription.gap().is_none());
                    assert!(place.is_some(), "{id} is no place");
                }
                if place.is_none() {
                    assert!(subscription.gap().is_some(), "{id} is told before the answer");
                }
            }
            Start::Earliest => {
                let (log, _) = place(&logs, subscription.cursor().as_str()).unwrap();
                (client.log, client.at, client.may_miss) = (log, 0, Some(u64::MAX));
            }
            _ => {
                let (log, position) = place(&logs, subscription.cursor().as_str()).unwrap();
                (client.log, client.at) = (log, position);
                subscription = subscription.begin_with_cursor();
            }
        }
        client.stream = Some(task::spawn(subscription));
    }

    /// Reads this number of items. Returns whether there may be more.
    fn read(&mut self, client: usize, items: usize) -> bool {
        let logs = self.shared.logs();
        eprintln!("    client {client} reads");
        let client = &mut self.clients[client];
        for _ in 0..items {
            let Some(stream) = &mut client.stream else { return false };
            match stream.poll_next() {
                Poll::Pending => return false,
                Poll::Ready(None) => {
                    client.stream = None;
                    client.has_ended(&logs);
                    return false;
                }
                Poll::Ready(Some(Err(error))) => {
                    // Another log has replaced the log of the subscription.
                    assert_eq!(error, SubscriptionError::LogReplaced);
                    client.stream = None;
                    assert!(client.log + 1 < logs.len(), "nobody has shut it down");
                    return false;
                }
                Poll::Ready(Some(Ok(events))) => {
                    let parsed = whatwg::parse_after(&client.last_event_id, events.as_bytes());
                    for message in parsed.messages {
                        client.takes(&logs, message);
                    }
                    client.last_event_id = parsed.last_event_id;
                }
            }
        }
        true
    }

    /// Restores the connections, and reads until each client has every event that it must not miss.
    /// Uses real time.
    async fn come_to_rest_soon(&mut self) {
        for connection in &self.connections {
            connection.set(Mode::Works);
        }
        let begun = Instant::now();
        for client in 0..self.clients.len() {
            loop {
                while self.read(client, 100) {}
                let logs = self.shared.logs();
                let it = &self.clients[client];
                let is_of_newest = it.log + 1 == logs.len();
                match &it.stream {
                    None if is_of_newest => break,
                    None => self.resume(client, 0).await,
                    Some(_) if is_of_newest && it.missing(&logs[it.log], u64::MAX).is_none() => break,
                    Some(_) => {}
                }
                assert!(begun.elapsed() < Duration::from_secs(30), "client {client} does not get all");
                sleep(Duration::from_millis(2)).await;
            }
        }
        // No event is repeated.
        sleep(Duration::from_millis(5)).await;
        for client in 0..self.clients.len() {
            while self.read(client, 100) {}
        }
    }

    /// Restores all connections, and reads every subscription to its end.
    async fn come_to_rest(&mut self) {
        for connection in &self.connections {
            connection.set(Mode::Works);
        }
        sleep(Duration::from_secs(20)).await;
        let newest = self.shared.logs().len() - 1;
        for client in 0..self.clients.len() {
            let logs = self.shared.logs();
            let has_removal = logs[newest].all.values().any(|record| record.kind == RecordKind::Remove);
            // A client receives nothing while it reads pages of removed events.
            let patience = if has_removal { 100 } else { 8 };
            let mut quiet = 0;
            while quiet < patience {
                let before = self.clients[client].at;
                while self.read(client, 100) {}
                sleep(Duration::from_millis(250)).await;
                let it = &self.clients[client];
                quiet = if it.at == before { quiet + 1 } else { 0 };
                if it.stream.is_none() && it.log < newest {
                    self.resume(client, quiet % 2).await;
                    quiet = 0;
                }
            }
            let logs = self.shared.logs();
            let it = &mut self.clients[client];
            if it.stream.is_some() {
                assert_eq!(it.log, newest, "a client of another log is told");
                it.is_through(&logs[newest], u64::MAX);
            }
        }
    }
}

/// A log, and a position in it.
fn place(logs: &[Log], id: &str) -> Option<(usize, u64)> {
    let (letters, position) = id.split_once('-')?;
    Some((logs.iter().position(|log| log.letters == letters)?, position.parse().ok()?))
}

impl Client {
    fn takes(&mut self, logs: &[Log], message: whatwg::Message) {
        eprintln!("    {message:?} after {}, of {:?}", self.at, self.topics);
        match &*message.r#type {
            "hub-cursor" => return,
            "gap" => return self.is_told(logs, &message),
            _ => {}
        }
        let (log, position) = place(logs, &message.last_event_id).expect("an id of an event is a place");
        assert_eq!(log, self.log, "an event of another log is after a gap");
        let mut states = logs[log].all.iter().filter(|(_, record)| record.kind == RecordKind::State);
        let data = format!("data: {}\n\n", message.data);
        let state = states.find(|(_, record)| record.event[..] == *data.as_bytes()).map(|(state, _)| *state);
        if let Some(state) = state.filter(|state| *state > position) {
            // At the place of an earlier state, which is not before an earlier gap.
            assert!(position >= self.at, "{position} after {}", self.at);
            self.is_through(&logs[log], position);
            (self.at, self.state) = (position, state);
            self.got += 1;
            return;
        }
        assert!(position > self.at, "{position} after {}: twice, or out of order", self.at);
        let record = logs[log].all.get(&position).expect("it was published");
        assert_eq!(format!("data: {}\n\n", message.data).as_bytes(), &record.event[..], "at {position}");
        assert!(self.topics.iter().any(|topic| TOPICS[*topic] == &*record.topic), "it is of its topics");
        self.is_through(&logs[log], position);
        self.at = position;
        // A gap covers everything that was lost by then, also in another topic.
        self.may_miss = self.may_miss.map(|lost| lost.min(self.lost_through(&logs[log])));
        self.got += 1;
    }

    /// Returns the watermark of losses: events of the client's topics up to this position may be
    /// evicted or removed.
    fn lost_through(&self, log: &Log) -> u64 {
        let is_removal = |record: &Record| {
            record.kind == RecordKind::Remove && self.topics.iter().any(|topic| TOPICS[*topic] == &*record.topic)
        };
        let removed = log.all.iter().rev().find(|(_, record)| is_removal(record));
        removed.map_or(0, |(position, _)| *position).max(log.bounds.evicted_through.get())
    }

    /// Asserts that no event before this position is missing.
    fn is_through(&self, log: &Log, position: u64) {
        if let Some(missed) = self.missing(log, position) {
            panic!("{missed} is missing between {} and {position}", self.at);
        }
    }

    /// Returns the first event before this position that the client should have and has not.
    /// Reported evictions and replaced states are not missing.
    fn missing(&self, log: &Log, position: u64) -> Option<u64> {
        let mut skipped = log.all.range(self.at + 1..).take_while(|(missed, _)| **missed < position);
        let missing = skipped.find(|(missed, record)| {
            let is_ours = self.topics.iter().any(|topic| TOPICS[*topic] == &*record.topic);
            let is_removed = || {
                let mut later = log.all.range(*missed + 1..).map(|(_, later)| later);
                later.any(|later| later.kind == RecordKind::Remove && later.topic == record.topic)
            };
            let is_lost = **missed <= log.bounds.evicted_through.get() || is_removed();
            let is_excused = is_lost && self.may_miss.is_some_and(|lost| **missed <= lost);
            let follows = || log.all.range(*missed + 1..).any(|(_, other)| other.topic == record.topic);
            is_ours
                && match record.kind {
                    RecordKind::Event => !is_excused,
                    RecordKind::State => !is_excused && **missed > self.state && !follows(),
                    _ => false,
                }
        });
        missing.map(|(missed, _)| *missed)
    }

    fn is_told(&mut self, logs: &[Log], message: &whatwg::Message) {
        let gap: serde_json::Value = serde_json::from_str(&message.data).unwrap();
        let requested = gap["requested"].as_str().unwrap();
        let (log, position) = place(logs, &message.last_event_id).expect("the id of a gap is a place");
        let asked = place(logs, requested);
        let bounds = logs[log].bounds;
        match gap["reason"].as_str().unwrap() {
            "evicted" | "lagged" => {
                let (of, asked) = asked.expect("it is a place");
                assert_eq!(of, log);
                assert!(self.lost_through(&logs[log]) > asked, "nothing is lost after {asked}: {bounds:?}");
                assert!(asked >= self.at, "{asked} is where it was, {}", self.at);
            }
            "ahead" => assert!(asked.is_some_and(|(of, _)| of == log)),
            "other_epoch" => assert!(asked.is_none_or(|(of, _)| of != log)),
            "malformed" => assert!(asked.is_none()),
            other => panic!("{other}"),
        }
        if matches!(gap["reason"].as_str(), Some("ahead" | "other_epoch" | "malformed")) {
            self.at = 0;
        }
        self.log = log;
        // A gap without a next event covers everything up to the oldest event that is retained when
        // the backend responds.
        self.may_miss = Some(if gap["resumed"].is_null() { u64::MAX } else { self.lost_through(&logs[log]) });
        // All missing events up to here are lost.
        if position > self.at {
            self.is_through(&logs[log], position + 1);
            self.at = position;
        }
    }

    /// Asserts that each topic has an end that the client has reached.
    fn has_ended(&self, logs: &[Log]) {
        let log = &logs[self.log];
        for topic in &self.topics {
            let of_topic = || log.all.iter().filter(|(_, record)| &*record.topic == TOPICS[*topic]);
            let may_miss = self.may_miss.map_or(0, |lost| lost.min(self.lost_through(log))).max(self.at);
            let is_event = |record: &Record| matches!(record.kind, RecordKind::Event | RecordKind::State);
            let next = of_topic().find(|(position, record)| is_event(record) && **position > may_miss);
            let end = of_topic().find(|(_, record)| record.kind == RecordKind::Finish);
            assert!(
                end.is_some_and(|(end, _)| next.is_none_or(|(next, _)| end < next)),
                "it has ended before {next:?}"
            );
        }
    }
}

impl Faulty {
    /// Fails the requests in flight.
    async fn reset(&self) {
        let mode = self.mode();
        self.set(Mode::Fails);
        for _ in 0..5 {
            yield_now().await;
        }
        if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
            // So that the other threads see it. Otherwise the node notices it after two seconds.
            sleep(Duration::from_millis(2)).await;
        }
        self.set(mode);
    }
}

impl Step {
    /// Replaces steps that take long in real time: waits, and requests that get no response.
    fn in_real_time(self) -> Self {
        match self {
            Self::Pass { milliseconds } => Self::Pass { milliseconds: milliseconds % 20 },
            Self::Set { node, mode: Mode::Hangs } => Self::Set { node, mode: Mode::Fails },
            step => step,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_events_arrive_once_in_order_or_gap(
        max_records in 1..60_usize,
        max_events in 1..12_usize,
        steps in vec(step(), 1..80),
    ) {
        let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(max_records, max_events).await;
            for step in steps {
                world.take(step).await;
            }
            world.come_to_rest().await;
        }.boxed_local());
    }
}

proptest! {
    // Outages take time: nodes that lost a connection pause for up to 400 ms.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: ProptestConfig::default().cases / 16,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_acknowledged_event_arrives_on_four_threads(
        max_records in 1..60_usize,
        max_events in 1..12_usize,
        steps in vec(step(), 1..80),
    ) {
        on_four_threads(async {
            let mut world = World::new(max_records, max_events).await;
            for step in steps {
                world.take(step.in_real_time()).await;
            }
            world.come_to_rest_soon().await;
        });
    }
}
