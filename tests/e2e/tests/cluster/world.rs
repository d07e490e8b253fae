//! What the tests of faults have in common.

use crate::{
    checker::{Checker, Load},
    nodes::{Node, Parser},
};
use e2e::{
    Wire,
    store::{Engine, Store},
};
use std::time::{Duration, Instant};
use tower_sse::{
    Event,
    hub::{
        Error, ErrorKind, Hub,
        backend::{NatsBackend, RedisBackend},
    },
};

/// How many acknowledged events each kind of test has to have at least.
pub(crate) mod at_least {
    pub(crate) const KILLED: usize = 60_000;
    pub(crate) const STOPPED: usize = 60_000;
    pub(crate) const CUT: usize = 60_000;
    pub(crate) const SILENT: usize = 60_000;
    pub(crate) const FORGOTTEN: usize = 40_000;
    pub(crate) const SLOW_WAY: usize = 40_000;
    pub(crate) const OVERTAKEN: usize = 30_000;
    pub(crate) const DELETED: usize = 30_000;
    pub(crate) const FULL: usize = 30_000;
    pub(crate) const NODES_KILLED: usize = 60_000;
    pub(crate) const SLOW_PROCESS: usize = 50_000;

    const WITH_EACH_ENGINE: [usize; 11] =
        [KILLED, STOPPED, CUT, SILENT, FORGOTTEN, SLOW_WAY, OVERTAKEN, DELETED, FULL, NODES_KILLED, SLOW_PROCESS];
    const _: () = {
        let (mut sum, mut i) = (0, 0);
        while i < WITH_EACH_ENGINE.len() {
            sum += 2 * WITH_EACH_ENGINE[i];
            i += 1;
        }
        assert!(sum >= 1_000_000, "these tests together are to check a million events");
    };
}

/// What of the local log there is: less than the clients are behind at times.
const HELD_HERE: usize = 2000;

pub(crate) async fn connect(engine: Engine, url: &str) -> Result<Hub, Error> {
    connect_small(engine, url, 10_000_000).await
}

/// To a log that holds so many records, or messages.
pub(crate) async fn connect_small(engine: Engine, url: &str, records: u32) -> Result<Hub, Error> {
    let hub = Hub::builder().max_events(HELD_HERE);
    match engine {
        Engine::Redis => hub.backend(RedisBackend::new(url).expect("a URL").max_records(records.into())),
        Engine::Nats => hub.backend(NatsBackend::new(url).expect("a URL").max_messages(records)),
    }
    .connect()
    .await
}

/// The URL of a store by way of a wire.
pub(crate) fn url_by(wire: &Wire, store: &Store) -> String {
    store.url().replace(&store.address().to_string(), &wire.address().to_string())
}

/// Clients that go from node to node, and those that stay, of both kinds; and publishers on every node.
pub(crate) async fn busy(engine: Engine, nodes: &[Node]) -> Checker {
    let mut checker = Checker::new(engine);
    let mut reversed = nodes.to_vec();
    reversed.reverse();
    for (stays_for, parser) in [(370, Parser::Standard), (5000, Parser::Fast), (usize::MAX, Parser::Fast)] {
        checker.follow(nodes, stays_for, parser).await;
        checker.follow(&reversed, stays_for, parser).await;
    }
    for node in nodes {
        checker.publish(node.clone(), Load::SINGLE);
        checker.publish(node.clone(), Load::BATCHES);
    }
    checker.acknowledges(2000).await;
    checker
}

/// Two nodes in this process.
pub(crate) async fn two_hubs(engine: Engine, url: &str) -> [Hub; 2] {
    [connect(engine, url).await.expect("it is there"), connect(engine, url).await.expect("it is there")]
}

/// To publish is an error of the backend, soon.
pub(crate) async fn fails_fast(hub: &Hub) {
    let begin = Instant::now();
    let error = hub.topic("others").publish(Event::new("now")).await.expect_err("the backend is away");
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    assert!(begin.elapsed() < AN_ERROR, "{:?}", begin.elapsed());
}

/// As long as the backends wait for an answer, twice, on a machine that is busy.
pub(crate) const AN_ERROR: Duration = Duration::from_secs(6);
