//! Streams are opened, closed and read on two nodes in any order, while the connections to the log
//! fail, hang and lag. After a close has returned, its node delivers nothing that was sent later.
//! Every node ends the streams of a closed user when it reads the log again, and no other stream.

use super::{PLENTY, Shared, faulty::Faulty, faulty::Mode, settle};
use futures_util::{FutureExt, stream};
use http::{Request, request::Parts};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use std::{task::Poll, time::Duration};
use support::{polled::Polled, respond::respond, whatwg};
use tokio::{
    runtime,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, sleep, timeout},
};
use tower_sse::{
    Event, SseLayer, SseStream, StreamRegistry,
    hub::{ErrorKind, Hub},
};

const USERS: usize = 3;
/// The longest timeout of a node that reads the log, and some time to notice it.
const SLACK: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
enum Step {
    Open {
        node: usize,
        user: usize,
    },
    Close {
        node: usize,
        user: usize,
        waits_for_log: bool,
    },
    /// Sends an event to all streams of a user.
    Send {
        user: usize,
    },
    Read {
        stream: Index,
    },
    Set {
        node: usize,
        mode: Mode,
    },
    Pass {
        milliseconds: u64,
    },
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..2_usize;
    let user = || 0..USERS;
    let mode = prop_oneof![
        4 => Just(Mode::Works),
        1 => Just(Mode::Fails),
        1 => Just(Mode::Hangs),
        1 => Just(Mode::LosesAnswers),
        1 => Just(Mode::Lags),
    ];
    let pass = prop_oneof![4 => 1..500_u64, 2 => 500..5000_u64, 1 => 5000..60_000_u64];
    prop_oneof![
        6 => (node(), user()).prop_map(|(node, user)| Step::Open { node, user }),
        3 => (node(), user(), any::<bool>())
            .prop_map(|(node, user, waits_for_log)| Step::Close { node, user, waits_for_log }),
        8 => user().prop_map(|user| Step::Send { user }),
        6 => any::<Index>().prop_map(|stream| Step::Read { stream }),
        3 => (node(), mode).prop_map(|(node, mode)| Step::Set { node, mode }),
        3 => pass.prop_map(|milliseconds| Step::Pass { milliseconds }),
        3 => Just(Step::Settle),
    ]
}

struct Stream {
    node: usize,
    user: usize,
    body: Polled,
    events: UnboundedSender<Event>,
    /// The number of the last event that has arrived.
    received: usize,
    /// The number of the last event that may arrive, because its node has closed it then.
    closed_after: Option<usize>,
    must_end: bool,
    /// Set if the stream may have been closed together with earlier streams.
    may_end: bool,
    has_ended: bool,
}

struct Node {
    connection: Faulty,
    registry: StreamRegistry<usize>,
    _hub: Hub,
    /// The time since when the node cannot read the log.
    cut_off_since: Option<Instant>,
    /// Set if new streams may end without a close of this node: it may have missed announcements.
    is_suspicious: bool,
    /// The users with an announcement that the node may not have read yet.
    announced: [bool; USERS],
}

struct World {
    nodes: Vec<Node>,
    streams: Vec<Stream>,
    /// The number of the last event.
    sent: usize,
    limit: Option<Duration>,
    /// Set if the log evicts announcements.
    is_small: bool,
}

impl World {
    async fn new(max_records: usize, limit: Option<Duration>) -> Self {
        let shared = Shared::new(max_records);
        let is_small = max_records < PLENTY;
        // The signs of life of one node may evict those of the other.
        let is_suspicious = is_small && limit.is_some();
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let connection = shared.connect();
            let hub = super::hub(connection.clone()).await;
            let registry =
                limit.map_or_else(StreamRegistry::new, |limit| StreamRegistry::new().fail_closed_after(limit));
            registry.follow(&hub).await.unwrap();
            let (cut_off_since, announced) = (None, [false; USERS]);
            nodes.push(Node { connection, registry, _hub: hub, cut_off_since, is_suspicious, announced });
        }
        Self { nodes, streams: Vec::new(), sent: 0, limit, is_small }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Open { node, user } => self.open(node, user),
            Step::Close { node, user, waits_for_log } => self.close(node, user, waits_for_log).await,
            Step::Send { user } => self.send(user),
            Step::Read { stream } => {
                if !self.streams.is_empty() {
                    self.read(stream.index(self.streams.len()));
                }
            }
            Step::Set { node, mode } => self.set(node, mode),
            Step::Pass { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
            Step::Settle => settle().await,
        }
        for node in 0..2 {
            self.check_fail_closed(node);
        }
    }

    fn open(&mut self, node: usize, user: usize) {
        let at = &self.nodes[node];
        let layer = SseLayer::new().without_heartbeat().register(&at.registry, move |_: &Parts| Some(user));
        let (events, mut receiver) = unbounded_channel::<Event>();
        let items = SseStream::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let body = Polled::new(respond(&layer, Request::new(()), items.into_http_response()));
        let may_end = at.announced[user] || at.is_suspicious;
        let (closed_after, must_end, has_ended) = (None, false, false);
        let received = self.sent;
        self.streams.push(Stream { node, user, body, events, received, closed_after, must_end, may_end, has_ended });
    }

    async fn close(&mut self, node: usize, user: usize, waits_for_log: bool) {
        let registry = &self.nodes[node].registry;
        let closed = if waits_for_log {
            // The streams of this node are closed before the first await.
            timeout(Duration::from_millis(50), registry.close_everywhere(&user)).await.ok()
        } else {
            Some(Ok(registry.close(&user)))
        };
        let open = self.streams.iter().filter(|it| it.node == node && it.user == user && !it.must_end && !it.may_end);
        match closed {
            Some(Ok(closed)) => assert!(closed >= open.filter(|it| !it.has_ended).count()),
            Some(Err(error)) => assert_eq!(error.kind(), ErrorKind::Backend),
            None => {}
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.user == user) {
            stream.must_end = true;
            if stream.node == node {
                stream.closed_after.get_or_insert(self.sent);
            }
        }
        self.nodes[1 - node].announced[user] = true;
        // The log may evict the announcement before this node has read its own one, too.
        self.suspect(node);
        self.suspect(1 - node);
    }

    /// Notes that a node may close all of its streams. In a log that evicts announcements, it
    /// cannot know which of its streams were closed.
    fn suspect(&mut self, node: usize) {
        if self.is_small {
            self.nodes[node].is_suspicious = true;
            self.streams.iter_mut().filter(|stream| stream.node == node).for_each(|stream| stream.may_end = true);
        }
    }

    fn send(&mut self, user: usize) {
        self.sent += 1;
        for stream in self.streams.iter().filter(|stream| stream.user == user) {
            // The stream may have ended.
            let _ = stream.events.send(Event::display(self.sent));
        }
    }

    fn set(&mut self, node: usize, mode: Mode) {
        let at = &mut self.nodes[node];
        at.connection.set(mode);
        let reads = matches!(mode, Mode::Works | Mode::LosesAnswers);
        at.cut_off_since = if reads { None } else { at.cut_off_since.or(Some(Instant::now())) };
        self.suspect(node);
        if self.limit.is_some() && mode != Mode::Works {
            self.nodes[node].is_suspicious = true;
            self.streams.iter_mut().filter(|stream| stream.node == node).for_each(|stream| stream.may_end = true);
        }
    }

    fn read(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        while !stream.has_ended {
            match stream.body.poll() {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(bytes))) => {
                    for message in whatwg::parse(&bytes).messages {
                        let number: usize = message.data.parse().unwrap();
                        assert!(number > stream.received, "{number} after {}", stream.received);
                        assert!(stream.closed_after.is_none_or(|last| number <= last), "{number} after the close");
                        stream.received = number;
                    }
                }
                Poll::Ready(Some(Err(error))) => panic!("{error}"),
                Poll::Ready(None) => {
                    assert!(stream.must_end || stream.may_end, "a stream of {} ends without reason", stream.user);
                    stream.has_ended = true;
                }
            }
        }
    }

    fn check_fail_closed(&mut self, node: usize) {
        let time = self.nodes[node].cut_off_since.map(|since| since.elapsed());
        if self.limit.zip(time).is_some_and(|(limit, time)| time > limit + SLACK) {
            for stream in 0..self.streams.len() {
                if self.streams[stream].node == node {
                    self.read(stream);
                    assert!(self.streams[stream].has_ended, "a node that is cut off has an open stream");
                }
            }
        }
    }

    async fn come_to_rest(&mut self) {
        for node in 0..2 {
            self.set(node, Mode::Works);
        }
        sleep(Duration::from_secs(60)).await;
        for user in 0..USERS {
            self.send(user);
        }
        for stream in 0..self.streams.len() {
            self.read(stream);
            let Stream { must_end, may_end, has_ended, received, .. } = self.streams[stream];
            assert!(!must_end || has_ended, "a closed stream is open");
            assert!(has_ended || received + USERS > self.sent, "an open stream has received the last event");
            assert!(must_end || may_end || !has_ended);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn closed_streams_end_on_all_nodes_and_no_others(
        max_records in prop_oneof![2 => Just(PLENTY), 1 => 1..8_usize],
        limit in option::of((1..30_u64).prop_map(Duration::from_secs)),
        steps in vec(step(), 1..80),
    ) {
        let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(max_records, limit).await;
            for step in steps {
                world.take(step).await;
            }
            world.come_to_rest().await;
        }.boxed_local());
    }
}
