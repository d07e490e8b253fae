//! Publishers and clients on several nodes, and a check of everything that the clients received.

use crate::{
    nodes::{Node, NodeStream, Parser},
    received::Received,
    report::{Batch, GapTiming, Report, compare},
};
use e2e::StoreKind;
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The limit for events in flight to the slowest paced client. Without this limit, publishers
/// would outpace the clients, and a test would end with a long wait.
const MAX_IN_FLIGHT: usize = 20_000;

/// Longer than any expected event takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The load of a publisher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// The number of events in a batch.
    pub(crate) batch: u32,
    /// The approximate length of an event.
    pub(crate) bytes: usize,
    /// The time between two batches.
    pub(crate) pause: Duration,
}

impl Load {
    /// Single events.
    pub(crate) const SINGLE: Self = Self { batch: 1, bytes: 10, pause: Duration::from_millis(2) };
    /// Batches, as fast as the clients can read.
    pub(crate) const BATCHES: Self = Self { batch: 100, bytes: 10, pause: Duration::from_millis(1) };
}

/// Runs publishers and clients, and checks what the clients have received.
#[derive(Debug)]
pub(crate) struct Checker {
    kind: StoreKind,
    has_ended: Arc<AtomicBool>,
    /// The number of acknowledged events, and of events whose publication was an error.
    acknowledged: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    publishers: Vec<JoinHandle<Vec<Batch>>>,
    clients: Vec<Client>,
    is_paused: Arc<AtomicBool>,
    /// The epochs in the ids of NATS, in the order of their first appearance.
    epochs: Arc<Mutex<Vec<String>>>,
}

/// The times until the first and the last client received an event again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    first: Option<Duration>,
    pub(crate) last: Duration,
}

impl Recovery {
    /// Asserts that one of three recoveries took at most a second to the first delivery. The others
    /// may take longer, because the machine may be busy.
    pub(crate) fn assert_fast(kind: StoreKind, what: &str, recoveries: &[Self]) {
        let mut first: Vec<_> = recoveries.iter().filter_map(|recovery| recovery.first).collect();
        let last: Vec<_> = recoveries.iter().map(|recovery| recovery.last).collect();
        println!("{kind:?}: {what}: delivered to the first client after {first:.0?}, to the last after {last:.0?}");
        assert_eq!(first.len(), 3, "there are three recoveries");
        first.sort_unstable();
        assert!(first[0] <= Duration::from_secs(1), "{first:?}");
    }
}

#[derive(Debug)]
struct Client {
    task: JoinHandle<Received>,
    received: Arc<AtomicUsize>,
    /// Publishers wait for this client.
    is_paced: bool,
}

/// The data of the last event. A client that has received it has received every earlier event or a
/// gap.
const LAST: &str = "the last one";

impl Checker {
    pub(crate) fn new(kind: StoreKind) -> Self {
        Self {
            kind,
            has_ended: Arc::default(),
            acknowledged: Arc::default(),
            failed: Arc::default(),
            publishers: Vec::new(),
            clients: Vec::new(),
            is_paused: Arc::default(),
            epochs: Arc::default(),
        }
    }

    /// Starts a publisher on a node. It publishes batches until the check, and continues after
    /// errors. Start the clients first.
    pub(crate) fn publish(&mut self, node: impl Into<Node>, load: Load) {
        let (node, name) = (node.into(), self.publishers.len());
        let (has_ended, acknowledged, failed) =
            (self.has_ended.clone(), self.acknowledged.clone(), self.failed.clone());
        let paced: Vec<_> =
            self.clients.iter().filter(|client| client.is_paced).map(|client| client.received.clone()).collect();
        self.publishers.push(tokio::spawn(async move {
            let mut batches = Vec::new();
            let mut numbers = 0..0;
            while !has_ended.load(SeqCst) {
                let slowest = paced.iter().map(|received| received.load(SeqCst)).min();
                if slowest.is_some_and(|slowest| slowest + MAX_IN_FLIGHT < acknowledged.load(SeqCst)) {
                    sleep(Duration::from_millis(2)).await;
                    continue;
                }
                numbers = numbers.end..numbers.end + load.batch;
                let data: Vec<_> = numbers.clone().map(|n| datum(name, n, load.bytes)).collect();
                let begin = Instant::now();
                let id = node.publish(&data).await;
                if id.is_ok() { &acknowledged } else { &failed }.fetch_add(data.len(), SeqCst);
                batches.push(Batch { numbers: numbers.clone(), id, took: begin.elapsed() });
                sleep(load.pause).await;
            }
            batches
        }));
    }

    /// Starts a client that receives live events. It moves to the next node after this many events,
    /// and whenever its stream ends.
    pub(crate) async fn follow(&mut self, nodes: &[Node], events_per_node: usize, parser: Parser) {
        self.client(nodes, Behavior { events_per_node, parser, pause: PauseMode::Never }).await;
    }

    /// Starts a client of one node. Publishers do not wait for it.
    pub(crate) async fn follow_unpaced(&mut self, node: impl Into<Node>, pause: PauseMode) {
        let behavior = Behavior { events_per_node: usize::MAX, parser: Parser::Fast, pause };
        self.client(&[node.into()], behavior).await;
    }

    async fn client(&mut self, nodes: &[Node], behavior: Behavior) {
        let mut stream = nodes[0].follow(None).await.expect("the node accepts a subscription");
        let mut received = Received::new(self.kind, self.epochs.clone());
        let cursor = stream.next().await.expect("a new stream begins with its cursor");
        received.start_after(behavior.parser.read(&cursor, |_, _, _| {}).expect("the cursor has an id"));
        let count: Arc<AtomicUsize> = Arc::default();
        let is_paced = matches!(behavior.pause, PauseMode::Never);
        let task = follow(nodes.to_vec(), stream, received, behavior, count.clone(), self.is_paused.clone());
        self.clients.push(Client { task: tokio::spawn(task), received: count, is_paced });
    }

    /// Pauses or resumes the unpaced clients, as their [`PauseMode`] says.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, SeqCst);
    }

    /// Returns how many acknowledged events the slowest unpaced client has not received.
    pub(crate) fn lag(&self) -> usize {
        let clients = self.clients.iter().filter(|client| !client.is_paced);
        let least = clients.map(|client| client.received.load(SeqCst)).min();
        self.acknowledged().saturating_sub(least.expect("there is an unpaced client"))
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(SeqCst)
    }

    /// Waits until this many more events are acknowledged.
    pub(crate) async fn wait_for_more_acknowledged(&self, more: usize) {
        let before = self.acknowledged();
        self.wait_for_acknowledged(before + more).await;
    }

    /// Waits until this many events are acknowledged in total.
    pub(crate) async fn wait_for_acknowledged(&self, number: usize) {
        let (mut begin, mut before) = (Instant::now(), 0);
        while self.acknowledged() < number {
            let acknowledged = self.acknowledged();
            if acknowledged > before {
                (begin, before) = (Instant::now(), acknowledged);
            }
            assert!(begin.elapsed() < TIMEOUT, "only {acknowledged} of {number} events are acknowledged");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the publication of this many more events is an error.
    pub(crate) async fn wait_for_errors(&self, more: usize) {
        let before = self.failed.load(SeqCst);
        let begin = Instant::now();
        while self.failed.load(SeqCst) < before + more {
            assert!(begin.elapsed() < TIMEOUT, "no publication is an error");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until no client receives events any more.
    pub(crate) async fn wait_until_idle(&self) {
        let begin = Instant::now();
        let counts = || self.clients.iter().map(|client| client.received.load(SeqCst)).collect::<Vec<_>>();
        loop {
            let before = counts();
            sleep(Duration::from_millis(150)).await;
            if counts() == before {
                return;
            }
            assert!(begin.elapsed() < TIMEOUT, "clients still receive events");
        }
    }

    /// Waits until every client has received another event. Returns the times of the first and the
    /// last client.
    pub(crate) async fn wait_for_delivery_to_all(&self) -> Recovery {
        let begin = Instant::now();
        let mut waiting: Vec<_> =
            self.clients.iter().map(|client| (&client.received, client.received.load(SeqCst))).collect();
        let mut recovery = Recovery { first: None, last: Duration::ZERO };
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|(received, before)| received.load(SeqCst) == *before);
            if waiting.len() < before {
                recovery.first.get_or_insert(begin.elapsed());
                recovery.last = begin.elapsed();
            }
            let (waiting, all) = (waiting.len(), self.clients.len());
            assert!(begin.elapsed() < TIMEOUT, "{waiting} of {all} clients receive nothing");
            sleep(Duration::from_millis(2)).await;
        }
        recovery
    }

    /// Stops the publishers, and compares what every client received with the acknowledged events.
    pub(crate) async fn check(self, node: impl Into<Node>, what: &str) -> Report {
        self.check_with(GapTiming::BeforeLaterEvents, node, what).await
    }

    /// Does the same as [`check`](Self::check), with another rule for the time of gaps.
    pub(crate) async fn check_with(self, timing: GapTiming, node: impl Into<Node>, what: &str) -> Report {
        self.has_ended.store(true, SeqCst);
        let mut published = Vec::new();
        for publisher in self.publishers {
            let batches = timeout(TIMEOUT, publisher).await.expect("the publisher stops");
            published.push(batches.expect("the publisher does not panic"));
        }
        node.into().publish(&[LAST.to_owned()]).await.expect("the node has recovered");
        let mut clients = Vec::new();
        for client in self.clients {
            let received = timeout(TIMEOUT, client.task).await;
            let count = client.received.load(SeqCst);
            let received = received.unwrap_or_else(|_| panic!("a client has stopped after {count} events"));
            clients.push(received.expect("the client does not panic"));
        }
        let report = compare(self.kind, timing, &published, clients);
        println!("{:?}: {what}: {report}", self.kind);
        report
    }
}

/// The behavior of a client.
#[derive(Clone, Copy, Debug)]
struct Behavior {
    events_per_node: usize,
    parser: Parser,
    pause: PauseMode,
}

/// The behavior of a client while the checker [pauses](Checker::pause) it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PauseMode {
    /// It continues.
    Never,
    /// It stays subscribed, and does not read.
    StaySubscribed,
    /// It disconnects.
    Disconnect,
}

async fn follow(
    nodes: Vec<Node>,
    mut stream: NodeStream,
    mut received: Received,
    behavior: Behavior,
    count: Arc<AtomicUsize>,
    is_paused: Arc<AtomicBool>,
) -> Received {
    let mut nodes = nodes.iter().cycle().skip(1);
    while !read(&mut received, &mut stream, behavior, &count, &is_paused).await {
        drop(stream);
        while matches!(behavior.pause, PauseMode::Disconnect) && is_paused.load(SeqCst) {
            sleep(Duration::from_millis(5)).await;
        }
        stream = loop {
            let node = nodes.next().expect("the iterator is endless");
            match node.follow(Some(&received.last)).await {
                Ok(stream) => break stream,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
    }
    received
}

/// Reads until the stream ends, the client moves to another node, or the last event arrives.
/// Returns whether the last event has arrived.
async fn read(
    received: &mut Received,
    stream: &mut NodeStream,
    behavior: Behavior,
    total: &AtomicUsize,
    is_paused: &AtomicBool,
) -> bool {
    let mut left = behavior.events_per_node;
    while left > 0 {
        match behavior.pause {
            PauseMode::Disconnect if is_paused.load(SeqCst) => return false,
            PauseMode::StaySubscribed if is_paused.load(SeqCst) => {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            _ => {}
        }
        let Some(bytes) = stream.next().await else { return false };
        let (mut is_last, mut count) = (false, 0);
        let last = behavior.parser.read(&bytes, |id, kind, data| {
            // Events after the last one belong to no publisher.
            if is_last || kind == "hub-cursor" {
                return;
            }
            if data == LAST {
                is_last = true;
            } else if kind == "gap" {
                received.gap(id, data);
            } else {
                received.event(id, number(data));
                count += 1;
            }
        });
        if let Some(last) = last {
            received.last = last;
        }
        total.fetch_add(count, SeqCst);
        left = left.saturating_sub(count);
        if is_last {
            return true;
        }
    }
    false
}

/// Returns the data of the n-th event of a publisher.
fn datum(publisher: usize, n: u32, bytes: usize) -> String {
    let mut datum = format!("{publisher}/{n}/");
    datum.extend(std::iter::repeat_n('.', bytes.saturating_sub(datum.len())));
    datum
}

/// Parses the publisher and the number of an event.
fn number(data: &str) -> (usize, u32) {
    let mut parts = data.splitn(3, '/');
    let mut next = || parts.next().and_then(|part| part.parse::<u32>().ok()).unwrap_or_else(|| panic!("{data:?}"));
    (next() as usize, next())
}

/// The numbers of the events in a batch.
pub(crate) type Numbers = Range<u32>;
