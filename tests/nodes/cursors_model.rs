//! Clients with quiet and busy topics on nodes that are replaced, with a small log. Each client gets
//! each event of its topics once and in order, or a gap. A client that was silent for the time of a
//! heartbeat has the newest position of the log, and gets no gap on any node.

use super::{
    Mode, Shared,
    cursors::{Client, HEARTBEAT},
    faulty::{Faulty, Log},
    hub, settle,
};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::Index};
use std::{collections::BTreeSet, time::Duration};
use support::{polled::Polled, respond::through, whatwg::Message};
use tokio::{runtime, time::sleep};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Event, EventId, SseLayer, SseStream,
    hub::{Hub, Start},
};

const TOPICS: [&str; 4] = ["a", "b", "c", "state"];
/// The topic whose events each replace the event before.
const STATE: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        node: usize,
        topic: usize,
        count: usize,
    },
    Come {
        node: usize,
        topics: Vec<usize>,
        lingers: bool,
    },
    Read {
        client: Index,
        frames: usize,
    },
    Vanish {
        client: Index,
    },
    /// A layer ends the stream of the client.
    End {
        client: Index,
    },
    Return {
        client: Index,
        node: usize,
    },
    Settle,
    Pass {
        seconds: u64,
    },
    Set {
        node: usize,
        mode: Mode,
    },
    /// The hub of the node is shut down. A new node takes its place.
    Replace {
        node: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..2_usize;
    let topic = || 0..TOPICS.len();
    let mode = prop_oneof![2 => Just(Mode::Works), 1 => Just(Mode::Lags), 1 => Just(Mode::Hangs)];
    prop_oneof![
        10 => (node(), topic(), 0..8_usize).prop_map(|(node, topic, count)| Step::Publish { node, topic, count }),
        4 => (node(), vec(topic(), 1..4), any::<bool>())
            .prop_map(|(node, topics, lingers)| Step::Come { node, topics, lingers }),
        8 => (any::<Index>(), 1..4_usize).prop_map(|(client, frames)| Step::Read { client, frames }),
        2 => any::<Index>().prop_map(|client| Step::Vanish { client }),
        2 => any::<Index>().prop_map(|client| Step::End { client }),
        8 => (any::<Index>(), node()).prop_map(|(client, node)| Step::Return { client, node }),
        6 => Just(Step::Settle),
        6 => prop_oneof![Just(1), Just(16)].prop_map(|seconds| Step::Pass { seconds }),
        3 => (node(), mode).prop_map(|(node, mode)| Step::Set { node, mode }),
        1 => node().prop_map(|node| Step::Replace { node }),
    ]
}

struct Reader {
    topics: BTreeSet<usize>,
    lingers: bool,
    stream: Option<Client>,
    stop: CancellationToken,
    last_event_id: String,
    /// The position of the last id.
    at: u64,
    /// The position where the client has begun.
    since: u64,
    /// Events up to this position may be missing.
    may_miss: u64,
    /// Set after a gap whose end is not known yet: it ends at the next event or cursor.
    has_open_gap: bool,
    /// The number of the newest state that has arrived.
    state: usize,
}

struct World {
    shared: Shared,
    max_events: usize,
    nodes: Vec<(Hub, Faulty)>,
    clients: Vec<Reader>,
    published: usize,
}

fn position(id: &str) -> u64 {
    id.split_once('-').and_then(|(_, number)| number.parse().ok()).expect("an id of the log")
}

impl Reader {
    /// Asserts that no event of the topics of the client follows, up to this position.
    fn pass(&mut self, log: &Log, through: u64) {
        assert!(through >= self.at, "{through} is before {}", self.at);
        let from = self.at.max(self.may_miss);
        for (position, record) in log.all.range(..=through).filter(|(position, _)| **position > from) {
            let is_own = self.topics.iter().any(|topic| *topic != STATE && TOPICS[*topic] == &*record.topic);
            assert!(!is_own, "the event at {position} is lost between {} and {through}", self.at);
        }
        self.at = through;
    }

    fn receive(&mut self, log: &Log, message: &Message) {
        let at = position(&message.last_event_id);
        if std::mem::take(&mut self.has_open_gap) {
            self.may_miss = log.bounds.evicted_through.get();
        }
        match &*message.r#type {
            "hub-cursor" if self.last_event_id.is_empty() => (self.at, self.since) = (at, at),
            "hub-cursor" => self.pass(log, at),
            "gap" => {
                let evicted = log.bounds.evicted_through.get();
                assert!(evicted > self.at, "nothing after {} is evicted: {:?}", self.at, log.bounds);
                self.may_miss = evicted;
                self.has_open_gap = message.data.contains("\"resumed\":null");
                self.pass(log, at);
            }
            _ => {
                let (topic, number) = message.data.split_once(' ').unwrap();
                if topic == TOPICS[STATE] {
                    let number = number.parse().unwrap();
                    assert!(number > self.state, "state {number} follows {}", self.state);
                    self.state = number;
                    self.pass(log, at);
                } else {
                    assert!(at > self.at, "the event at {at} follows {}", self.at);
                    self.pass(log, at - 1);
                    self.at = at;
                    let record = String::from_utf8(log.all[&at].event.to_vec()).unwrap();
                    assert_eq!(record.trim_end(), format!("data: {}", message.data));
                }
            }
        }
        self.last_event_id.clone_from(&message.last_event_id);
    }

    fn read(&mut self, shared: &Shared, frames: usize) {
        let Some(stream) = &mut self.stream else { return };
        let messages = stream.messages(frames);
        if stream.has_ended {
            self.stream = None;
        }
        let log = shared.log();
        for message in messages {
            self.receive(&log, &message);
        }
    }
}

impl World {
    async fn new(max_records: usize, max_events: usize) -> Self {
        let shared = Shared::new(max_records);
        let mut world = Self { shared, max_events, nodes: Vec::new(), clients: Vec::new(), published: 0 };
        for _ in 0..2 {
            world.nodes.push(world.start().await);
        }
        world
    }

    async fn start(&self) -> (Hub, Faulty) {
        let connection = self.shared.connect();
        let builder = Hub::builder().max_events(self.max_events);
        (builder.backend(connection.clone()).connect().await.unwrap(), connection)
    }

    async fn connect(&self, hub: &Hub, client: &mut Reader) {
        let start = match &*client.last_event_id {
            "" => Start::Latest,
            id => Start::After(EventId::new(id).unwrap()),
        };
        let topics = client.topics.iter().map(|topic| TOPICS[*topic]);
        let mut subscription = hub.subscribe(topics, start).await.unwrap();
        if client.lingers {
            subscription = subscription.linger(Duration::from_millis(200));
        }
        client.stop = CancellationToken::new();
        client.has_open_gap = false;
        let layer = SseLayer::new().shutdown(client.stop.clone()).flush_time(Duration::ZERO);
        let response = SseStream::new(subscription).into_http_response();
        client.stream = Some(Client::new(Polled::new(through(&layer, response))));
        // Each response begins with an id.
        client.read(&self.shared, 1);
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Publish { node, topic, count } => {
                let (hub, connection) = &self.nodes[node];
                if connection.mode() == Mode::Hangs {
                    return;
                }
                for _ in 0..count {
                    self.published += 1;
                    let name = TOPICS[topic];
                    let handle = hub.topic(name);
                    let handle = if topic == STATE { handle.latest_only() } else { handle };
                    handle.publish(Event::new(format!("{name} {}", self.published))).await.unwrap();
                }
            }
            Step::Come { node, topics, lingers } => {
                let mut client = Reader {
                    topics: topics.into_iter().collect(),
                    lingers,
                    stream: None,
                    stop: CancellationToken::new(),
                    last_event_id: String::new(),
                    at: 0,
                    since: 0,
                    may_miss: 0,
                    has_open_gap: false,
                    state: 0,
                };
                self.connect(&self.nodes[node].0, &mut client).await;
                self.clients.push(client);
            }
            Step::Return { client, node } if !self.clients.is_empty() => {
                let index = client.index(self.clients.len());
                let mut client = self.clients.swap_remove(index);
                self.connect(&self.nodes[node].0, &mut client).await;
                self.clients.push(client);
            }
            Step::Read { client, frames } if !self.clients.is_empty() => {
                client.get_mut(&mut self.clients).read(&self.shared, frames);
            }
            Step::Vanish { client } if !self.clients.is_empty() => client.get_mut(&mut self.clients).stream = None,
            Step::End { client } if !self.clients.is_empty() => {
                let client = client.get_mut(&mut self.clients);
                client.stop.cancel();
                client.read(&self.shared, usize::MAX);
                client.stream = None;
            }
            Step::Settle => settle().await,
            Step::Pass { seconds } => sleep(Duration::from_secs(seconds)).await,
            Step::Set { node, mode } => self.nodes[node].1.set(mode),
            Step::Replace { node } => {
                let next = self.start().await;
                std::mem::replace(&mut self.nodes[node], next).0.shutdown();
            }
            _ => {}
        }
    }

    /// Lets all clients receive everything, and then a heartbeat.
    async fn come_to_rest(&mut self) {
        for (_, connection) in &self.nodes {
            connection.set(Mode::Works);
        }
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            if client.stream.is_none() {
                self.connect(&self.nodes[0].0, client).await;
            }
        }
        for _ in 0..4 {
            sleep(HEARTBEAT).await;
            settle().await;
            for client in &mut clients {
                // A node that was replaced has ended the stream.
                client.read(&self.shared, usize::MAX);
                if client.stream.is_none() {
                    self.connect(&self.nodes[0].0, client).await;
                }
            }
        }
        let log = self.shared.log();
        let last = log.bounds.last.get();
        let state = log.all.iter().rfind(|(_, record)| *record.topic == *TOPICS[STATE]);
        for client in &mut clients {
            assert_eq!(client.at, last, "the client has the newest position of the log");
            if let Some((position, record)) = state.filter(|_| client.topics.contains(&STATE)) {
                let data = String::from_utf8(record.event.to_vec()).unwrap();
                let number: usize = data.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
                let is_missed = *position <= client.since.max(client.may_miss);
                assert!(client.state == number || is_missed, "state {} instead of {number}", client.state);
            }
            let fresh = hub(self.shared.connect()).await;
            let id = EventId::new(&client.last_event_id).unwrap();
            let back = fresh.subscribe(client.topics.iter().map(|topic| TOPICS[*topic]), id).await.unwrap();
            assert_eq!(back.gap(), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn silent_client_has_newest_cursor_and_misses_no_event(
        max_records in 1..40_usize,
        max_events in 1..8_usize,
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
