//! Publishers and clients, on several nodes.

use crate::{
    nodes::{Following, Node, Parser},
    report::{Batch, Entries, Report, Tells, compare},
};
use e2e::store::Engine;
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

/// How many events may be on their way to the slowest client. Without a limit, the end of a test would be the clients' alone.
const UNDER_WAY: usize = 20_000;

/// Nothing takes so long, unless it never comes.
const FOR_EVER: Duration = Duration::from_secs(60);

/// What publishes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// How many events at once.
    pub(crate) batch: u32,
    /// How long are the events, about.
    pub(crate) bytes: usize,
    pub(crate) pause: Duration,
}

impl Load {
    /// One event after the other.
    pub(crate) const SINGLE: Self = Self { batch: 1, bytes: 10, pause: Duration::from_millis(2) };
    /// As many as the clients can read.
    pub(crate) const BATCHES: Self = Self { batch: 100, bytes: 10, pause: Duration::from_millis(1) };
}

/// All of them, and what they have seen.
#[derive(Debug)]
pub(crate) struct Checker {
    engine: Engine,
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    publishers: Vec<JoinHandle<Vec<Batch>>>,
    clients: Vec<Client>,
    /// Whether those that nobody waits for read.
    holds: Arc<AtomicBool>,
    /// The first parts of ids that do not begin with a time, in the order in which they were seen.
    epochs: Arc<Mutex<Vec<String>>>,
}

/// How long it took until clients got something again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    first: Option<Duration>,
    pub(crate) last: Duration,
}

impl Back {
    /// A second to the first delivery at most. A machine that does something else for a while is not to fail a test: of three
    /// times one may be longer.
    pub(crate) fn is_soon(engine: Engine, what: &str, times: &[Self]) {
        let mut first: Vec<_> = times.iter().filter_map(|back| back.first).collect();
        let last: Vec<_> = times.iter().map(|back| back.last).collect();
        println!(
            "{engine:?}: {what}: back, the first client got something after {first:.0?}, the last after {last:.0?}"
        );
        assert_eq!(first.len(), 3, "there were three");
        first.sort_unstable();
        assert!(first[1] <= Duration::from_secs(1), "{first:?}");
    }
}

#[derive(Debug)]
struct Client {
    reads: JoinHandle<Entries>,
    received: Arc<AtomicUsize>,
    /// Who publishes waits for it.
    is_waited_for: bool,
}

/// The last event of all: whoever has got it has got, or was told that it missed, all before it.
const LAST: &str = "the last one";

impl Checker {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            is_over: Arc::default(),
            acknowledged: Arc::default(),
            refused: Arc::default(),
            publishers: Vec::new(),
            clients: Vec::new(),
            holds: Arc::default(),
            epochs: Arc::default(),
        }
    }

    /// Publishes until it is over, one batch after the other, whether it is answered with an error or not. The clients have to
    /// be there already.
    pub(crate) fn publish(&mut self, node: impl Into<Node>, load: Load) {
        let (node, name) = (node.into(), self.publishers.len());
        let (is_over, acknowledged, refused) = (self.is_over.clone(), self.acknowledged.clone(), self.refused.clone());
        let paced: Vec<_> =
            self.clients.iter().filter(|client| client.is_waited_for).map(|client| client.received.clone()).collect();
        self.publishers.push(tokio::spawn(async move {
            let mut batches = Vec::new();
            let mut numbers = 0..0;
            while !is_over.load(SeqCst) {
                let slowest = paced.iter().map(|received| received.load(SeqCst)).min();
                if slowest.is_some_and(|slowest| slowest + UNDER_WAY < acknowledged.load(SeqCst)) {
                    sleep(Duration::from_millis(2)).await;
                    continue;
                }
                numbers = numbers.end..numbers.end + load.batch;
                let data: Vec<_> = numbers.clone().map(|n| datum(name, n, load.bytes)).collect();
                let begin = Instant::now();
                let id = node.publish(&data).await;
                if id.is_ok() { &acknowledged } else { &refused }.fetch_add(data.len(), SeqCst);
                batches.push(Batch { numbers: numbers.clone(), id, took: begin.elapsed() });
                sleep(load.pause).await;
            }
            batches
        }));
    }

    /// Follows from now on, and goes from node to node each time it has got so many events, or the stream ends.
    pub(crate) async fn follow(&mut self, nodes: &[Node], stays_for: usize, parser: Parser) {
        self.client(nodes, Reads { stays_for, parser, holds: Holds::Never }).await;
    }

    /// Follows one node, and nobody waits for it.
    pub(crate) async fn follow_at_leisure(&mut self, node: impl Into<Node>, holds: Holds) {
        self.client(&[node.into()], Reads { stays_for: usize::MAX, parser: Parser::Fast, holds }).await;
    }

    async fn client(&mut self, nodes: &[Node], reads: Reads) {
        let mut following = nodes[0].follow(None).await.expect("there is room");
        let mut entries = Entries::new(self.engine, self.epochs.clone());
        // The place from which it follows.
        let place = following.next().await.expect("it has a place");
        entries.begin(reads.parser.read(&place, |_, _, _| {}).expect("it is an id"));
        let received: Arc<AtomicUsize> = Arc::default();
        let is_waited_for = matches!(reads.holds, Holds::Never);
        let task = follow(nodes.to_vec(), following, entries, reads, received.clone(), self.holds.clone());
        self.clients.push(Client { reads: tokio::spawn(task), received, is_waited_for });
    }

    /// Whether those that hold do so now.
    pub(crate) fn hold(&self, now: bool) {
        self.holds.store(now, SeqCst);
    }

    /// How far the last one of those that nobody waits for is behind.
    pub(crate) fn is_behind(&self) -> usize {
        let clients = self.clients.iter().filter(|client| !client.is_waited_for);
        let least = clients.map(|client| client.received.load(SeqCst)).min();
        self.acknowledged().saturating_sub(least.expect("there is one"))
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(SeqCst)
    }

    /// Waits until so many more were acknowledged.
    pub(crate) async fn acknowledges(&self, more: usize) {
        let before = self.acknowledged();
        self.acknowledges_in_all(before + more).await;
    }

    /// Waits until so many were acknowledged.
    pub(crate) async fn acknowledges_in_all(&self, number: usize) {
        let begin = Instant::now();
        while self.acknowledged() < number {
            assert!(begin.elapsed() < FOR_EVER, "only {} of {number} are acknowledged", self.acknowledged());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many more were answered with an error.
    pub(crate) async fn refuses(&self, more: usize) {
        let before = self.refused.load(SeqCst);
        let begin = Instant::now();
        while self.refused.load(SeqCst) < before + more {
            assert!(begin.elapsed() < FOR_EVER, "nothing is refused");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody gets anything any more.
    pub(crate) async fn stands_still(&self) {
        let begin = Instant::now();
        let counts = || self.clients.iter().map(|client| client.received.load(SeqCst)).collect::<Vec<_>>();
        loop {
            let before = counts();
            sleep(Duration::from_millis(150)).await;
            if counts() == before {
                return;
            }
            assert!(begin.elapsed() < FOR_EVER, "events still come");
        }
    }

    /// Waits until every client has got something more. Returns how long it took the first of them, and the last.
    pub(crate) async fn all_get_more(&self) -> Back {
        let begin = Instant::now();
        let mut waits: Vec<_> =
            self.clients.iter().map(|client| (&client.received, client.received.load(SeqCst))).collect();
        let mut back = Back { first: None, last: Duration::ZERO };
        while !waits.is_empty() {
            let before = waits.len();
            waits.retain(|(received, before)| received.load(SeqCst) == *before);
            if waits.len() < before {
                back.first.get_or_insert(begin.elapsed());
                back.last = begin.elapsed();
            }
            assert!(begin.elapsed() < FOR_EVER, "{} of {} clients get nothing", waits.len(), self.clients.len());
            sleep(Duration::from_millis(2)).await;
        }
        back
    }

    /// Ends it, and compares what every client has got with what was acknowledged.
    pub(crate) async fn check(self, node: impl Into<Node>, what: &str) -> Report {
        self.check_with(Tells::Before, node, what).await
    }

    /// The same, where clients may get gaps later than the events after them.
    pub(crate) async fn check_with(self, tells: Tells, node: impl Into<Node>, what: &str) -> Report {
        self.is_over.store(true, SeqCst);
        let mut published = Vec::new();
        for publisher in self.publishers {
            published.push(timeout(FOR_EVER, publisher).await.expect("it is over").expect("it does not panic"));
        }
        node.into().publish(&[LAST.to_owned()]).await.expect("all is well again");
        let mut clients = Vec::new();
        for client in self.clients {
            let reads = timeout(FOR_EVER, client.reads).await;
            let received = client.received.load(SeqCst);
            clients.push(
                reads
                    .unwrap_or_else(|_| panic!("a client stands still after {received} events"))
                    .expect("it does not panic"),
            );
        }
        let report = compare(self.engine, tells, &published, clients);
        println!("{:?}: {what}: {report}", self.engine);
        report
    }
}

/// How a client reads.
#[derive(Clone, Copy, Debug)]
struct Reads {
    stays_for: usize,
    parser: Parser,
    holds: Holds,
}

/// What a client does while the checker [holds](Checker::hold) it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holds {
    /// It goes on.
    Never,
    /// It stays, and does not read.
    Still,
    /// It is away.
    Away,
}

async fn follow(
    nodes: Vec<Node>,
    mut following: Following,
    mut entries: Entries,
    reads: Reads,
    received: Arc<AtomicUsize>,
    holds: Arc<AtomicBool>,
) -> Entries {
    let mut nodes = nodes.iter().cycle().skip(1);
    while !read(&mut entries, &mut following, reads, &received, &holds).await {
        drop(following);
        while matches!(reads.holds, Holds::Away) && holds.load(SeqCst) {
            sleep(Duration::from_millis(5)).await;
        }
        following = loop {
            let node = nodes.next().expect("they are a circle");
            match node.follow(Some(&entries.last)).await {
                Ok(following) => break following,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
    }
    entries
}

/// Until the stream ends, or as many have come as it stays for; whether it is over.
async fn read(
    entries: &mut Entries,
    following: &mut Following,
    reads: Reads,
    received: &AtomicUsize,
    holds: &AtomicBool,
) -> bool {
    let mut left = reads.stays_for;
    while left > 0 {
        match reads.holds {
            Holds::Away if holds.load(SeqCst) => return false,
            Holds::Still if holds.load(SeqCst) => {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            _ => {}
        }
        let Some(bytes) = following.next().await else { return false };
        let (mut is_over, mut count) = (false, 0);
        let last = reads.parser.read(&bytes, |id, kind, data| {
            // What it reads behind the last one is of nobody.
            if is_over || kind == "hub-cursor" {
                return;
            }
            if data == LAST {
                is_over = true;
            } else if kind == "gap" {
                entries.gap(id, data);
            } else {
                entries.event(id, number(data));
                count += 1;
            }
        });
        if let Some(last) = last {
            entries.last = last;
        }
        received.fetch_add(count, SeqCst);
        left = left.saturating_sub(count);
        if is_over {
            return true;
        }
    }
    false
}

/// The data of the event with this number of a publisher.
fn datum(publisher: usize, n: u32, bytes: usize) -> String {
    let mut datum = format!("{publisher}/{n}/");
    datum.extend(std::iter::repeat_n('.', bytes.saturating_sub(datum.len())));
    datum
}

fn number(data: &str) -> (usize, u32) {
    let mut parts = data.splitn(3, '/');
    let mut next = || parts.next().and_then(|part| part.parse::<u32>().ok()).unwrap_or_else(|| panic!("{data:?}"));
    (next() as usize, next())
}

/// Numbers of events.
pub(crate) type Numbers = Range<u32>;
