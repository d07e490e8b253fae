//! Shared setup of the tests with faults.

use crate::{
    checker::{Checker, Load},
    nodes::{Node, Parser, with_sources},
};
use e2e::{StoreKind, installed};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tower_sse::{
    Event,
    hub::{
        Error, ErrorKind, Hub,
        backend::{NatsBackend, PostgresBackend, RedisBackend},
    },
};

/// The minimum number of acknowledged events for each kind of test. `LOAD=2` doubles the numbers:
/// the tests of one log then check a million events.
pub(crate) mod min_events {
    use std::env;

    #[derive(Clone, Copy)]
    pub(crate) struct MinEvents(usize);

    impl MinEvents {
        pub(crate) fn get(self) -> usize {
            self.0 * env::var("LOAD").map_or(1, |load| load.parse().expect("LOAD is a number"))
        }
    }

    pub(crate) const KILLED: MinEvents = MinEvents(60_000);
    pub(crate) const STOPPED: MinEvents = MinEvents(60_000);
    pub(crate) const CUT: MinEvents = MinEvents(60_000);
    pub(crate) const SILENT: MinEvents = MinEvents(60_000);
    pub(crate) const FORGOTTEN: MinEvents = MinEvents(40_000);
    pub(crate) const SLOW_NETWORK: MinEvents = MinEvents(40_000);
    pub(crate) const OVERTAKEN: MinEvents = MinEvents(30_000);
    pub(crate) const DELETED: MinEvents = MinEvents(30_000);
    pub(crate) const FULL: MinEvents = MinEvents(30_000);
    pub(crate) const NODES_KILLED: MinEvents = MinEvents(60_000);
    pub(crate) const SLOW_PROCESS: MinEvents = MinEvents(50_000);

    const PER_STORE: [MinEvents; 11] =
        [KILLED, STOPPED, CUT, SILENT, FORGOTTEN, SLOW_NETWORK, OVERTAKEN, DELETED, FULL, NODES_KILLED, SLOW_PROCESS];
    const _: () = {
        let (mut sum, mut i) = (0, 0);
        while i < PER_STORE.len() {
            sum += PER_STORE[i].0;
            i += 1;
        }
        assert!(sum >= 500_000, "these tests together check at least half a million events of each store");
    };
}

/// The number of events that a node retains. Clients are sometimes further behind, so that the node
/// has to read from the backend.
const RETAINED_BY_NODE: usize = 2000;

/// Twice the time that a backend waits for an answer. The machine may be busy.
pub(crate) const ERROR_TIMEOUT: Duration = Duration::from_secs(6);

pub(crate) async fn connect(kind: StoreKind, url: &str) -> Result<Hub, Error> {
    connect_small(kind, url, 10_000_000).await
}

/// Connects to a log that retains this many records of Redis or Postgres, or messages of NATS.
/// Tries again after a timeout, because the machine may be busy.
pub(crate) async fn connect_small(kind: StoreKind, url: &str, records: u32) -> Result<Hub, Error> {
    const TRIES: usize = 3;

    let is_timeout = |error: &Error| {
        let text = with_sources(error);
        text.contains("timed out") || text.contains("has not answered")
    };
    let mut result = connect_once(kind, url, records).await;
    for _ in 1..TRIES {
        match &result {
            Err(error) if is_timeout(error) => println!("{kind:?}: connecting again after {}", with_sources(error)),
            _ => break,
        }
        result = connect_once(kind, url, records).await;
    }
    result
}

pub(crate) async fn connect_once(kind: StoreKind, url: &str, records: u32) -> Result<Hub, Error> {
    let hub = Hub::builder().max_events(RETAINED_BY_NODE);
    match kind {
        StoreKind::Redis => hub.backend(RedisBackend::new(url).expect("the URL is valid").max_records(records.into())),
        StoreKind::Nats => hub.backend(NatsBackend::new(url).expect("the URL is valid").max_messages(records)),
        StoreKind::Postgres => {
            hub.backend(PostgresBackend::new(url).expect("the URL is valid").max_records(records.into()))
        }
    }
    .connect()
    .await
}

/// Starts publishers on every node, clients that move between the nodes, and clients that stay.
pub(crate) async fn start_load(kind: StoreKind, nodes: &[Node]) -> Checker {
    let mut checker = Checker::new(kind);
    let mut reversed = nodes.to_vec();
    reversed.reverse();
    for (events_per_node, parser) in [(370, Parser::Standard), (5000, Parser::Fast), (usize::MAX, Parser::Fast)] {
        checker.follow(nodes, events_per_node, parser).await;
        checker.follow(&reversed, events_per_node, parser).await;
    }
    for node in nodes {
        checker.publish(node.clone(), Load::SINGLE);
        checker.publish(node.clone(), Load::BATCHES);
    }
    checker.wait_for_more_acknowledged(2000).await;
    checker
}

/// Asserts that a node recovers within a second at least once in three attempts. A busy machine can
/// make an attempt slower.
pub(crate) async fn assert_fast_once(what: &str, mut recover: impl AsyncFnMut(usize) -> Duration) {
    let mut delays = Vec::new();
    for n in 0..3 {
        delays.push(recover(n).await);
        println!("{what}: delivered after {delays:?}");
        if delays[n] < Duration::from_secs(1) {
            return;
        }
    }
    panic!("{what}: {delays:?}");
}

/// Connects two nodes in this process.
pub(crate) async fn two_hubs(kind: StoreKind, url: &str) -> [Hub; 2] {
    [connect(kind, url).await.expect("the backend runs"), connect(kind, url).await.expect("the backend runs")]
}

/// Asserts that publishing returns a backend error within [`ERROR_TIMEOUT`].
pub(crate) async fn assert_publish_fails_fast(hub: &Hub) {
    let begin = Instant::now();
    let error = hub.topic("others").publish(Event::new("now")).await.expect_err("the backend is unreachable");
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    assert!(begin.elapsed() < ERROR_TIMEOUT, "{:?}", begin.elapsed());
}

/// Creates a certificate authority, and certificates that it has signed for a server and a client.
pub(crate) fn certificates(server_name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let openssl = |args: &str| {
        let mut command = Command::new(installed(&["openssl"], "openssl"));
        let output = command.args(args.split(' ')).current_dir(folder.path()).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("the file can be written");
    write("server.ext", &format!("subjectAltName={server_name}\n"));
    write("client.ext", "extendedKeyUsage=clientAuth\n");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    for name in ["server", "client"] {
        openssl(&format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.pem"
        ));
    }
    folder
}
