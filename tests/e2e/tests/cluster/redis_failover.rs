//! Events that a master has acknowledged and its successor does not have.

use crate::{
    checker::{Checker, Load},
    nodes::{Node, Parser},
    redis::{Client, SOON, cli, hub, publish},
    report::Tells,
    world::{connect, url_by},
};
use e2e::{
    Wire, eventually,
    store::{Engine, Store},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tower_sse::{
    Event,
    hub::{
        Hub, Start,
        backend::{Backend, Record, RecordKind, RedisBackend},
    },
};

/// Leads to one server, and then to another.
struct Switch {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
}

impl Switch {
    async fn to(server: &Store) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let target = watch::Sender::new(server.address());
        let targets = target.subscribe();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut targets = targets.clone();
                tokio::spawn(async move {
                    let target = *targets.borrow_and_update();
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = targets.changed() => {}
                    }
                });
            }
        });
        Self { address, target }
    }

    /// Cuts all connections. New ones lead to this server.
    fn turn_to(&self, server: &Store) {
        self.target.send_replace(server.address());
    }

    async fn node(&self) -> Hub {
        connect(Engine::Redis, &format!("redis://{}", self.address)).await.expect("it is there")
    }
}

const FAST: [&str; 4] = ["--appendfsync", "no", "--repl-diskless-sync-delay", "0"];

/// Two servers whose ids do not meet. By chance they can, once in some thousand times.
async fn two_servers() -> (Store, Store) {
    let old = Store::start(Engine::Redis, &FAST).await;
    let begins = first_sequence(&old).await;
    for _ in 0..10 {
        let new = Store::start(Engine::Redis, &FAST).await;
        if first_sequence(&new).await.abs_diff(begins) > 1000 {
            return (old, new);
        }
    }
    panic!("servers begin a millisecond with numbers of their own, and not all with {begins}");
}

/// Returns the first sequence number of a server in a millisecond. Leaves no stream behind.
async fn first_sequence(store: &Store) -> u64 {
    let topic = hub(store).await.topic("news");
    // The beginning of a stream is random.
    sleep(Duration::from_millis(10)).await;
    let id = publish(&topic, "first").await;
    cli(store, &["del", "tower-sse"]);
    id.as_str().split_once('-').and_then(|(_, sequence)| sequence.parse().ok()).expect("a number")
}

async fn is_linked(replica: &Store) {
    eventually(SOON, "the replica has it all", async || {
        let info = cli(replica, &["info", "replication"]);
        if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
    })
    .await;
}

/// Two masters, with publishers and clients on both sides. Then the old master becomes a replica.
#[tokio::test(flavor = "multi_thread")]
async fn two_masters_repeat_no_id_and_report_losses() {
    for round in 0..6 {
        let (old, new) = two_servers().await;
        let [stays, moves] = [Switch::to(&old).await, Switch::to(&old).await];
        let on_old = stays.node().await;
        let on_new = [moves.node().await, moves.node().await];
        let port = old.address().port().to_string();
        cli(&new, &["replicaof", "127.0.0.1", &port]);
        is_linked(&new).await;
        let mut checker = Checker::new(Engine::Redis);
        for parser in [Parser::Standard, Parser::Fast] {
            checker.follow(&[Node::from(&on_old)], usize::MAX, parser).await;
            checker.follow(&[Node::from(&on_new[0])], usize::MAX, parser).await;
        }
        // This node only follows.
        checker.follow(&[Node::from(&on_new[1])], usize::MAX, Parser::Fast).await;
        for node in [&on_old, &on_new[0]] {
            checker.publish(node, Load::BATCHES);
            checker.publish(node, Load::SINGLE);
        }
        checker.acknowledges(1500).await;
        // In some rounds the old master is alone for a moment, in others the new one has all the
        // time of the world.
        cli(&new, &["replicaof", "no", "one"]);
        if round % 2 == 0 {
            checker.acknowledges(500).await;
        }
        moves.turn_to(&new);
        checker.acknowledges(1500 + 500 * round).await;
        let port = new.address().port().to_string();
        cli(&old, &["replicaof", "127.0.0.1", &port]);
        if round % 3 == 0 {
            is_linked(&old).await;
        }
        let said = says_of_loss(&new);
        stays.turn_to(&new);
        eventually(SOON, "the log says what the old master had", async || {
            let now = says_of_loss(&new);
            if now > said { Ok(()) } else { Err(now) }
        })
        .await;
        checker.acknowledges(1500).await;
        let report = checker.check_with(Tells::Ever, &on_new[1], "two masters").await.has(5000);
        assert!(report.gaps.iter().all(|gaps| !gaps.is_empty()), "all clients were told: {:?}", report.gaps);
        let marks = marks(&new);
        println!("round {round}: {marks} marks");
        assert!(marks <= 3, "nodes do not mark what another one has marked: {marks}");
    }
}

/// Counts the entries of the stream that have this field.
fn entries_with(store: &Store, field: &str) -> usize {
    let count = "local n = 0 for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do \
                 for i = 1, #entry[2], 2 do if entry[2][i] == ARGV[1] then n = n + 1 end end end return n";
    cli(store, &["eval", count, "1", "tower-sse", field]).parse().expect("a number")
}

fn marks(store: &Store) -> usize {
    entries_with(store, "g")
}

/// Counts the entries that report a loss: marks, and first events of nodes that know it.
fn says_of_loss(store: &Store) -> usize {
    marks(store) + entries_with(store, "l")
}

/// A stream that ends where it did some time ago, as after a failover, and the nodes that know what
/// is lost, and that do not.
struct Lost {
    store: Store,
    wires: Vec<Wire>,
    nodes: Vec<Hub>,
    clients: Vec<Client>,
}

impl Lost {
    /// The first of the nodes know it. None of them is connected.
    async fn new(count: usize, know: usize) -> Self {
        let store = Store::start(Engine::Redis, &[]).await;
        let publisher = hub(&store).await.topic("news");
        let (mut wires, mut nodes, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let wire = Wire::to(store.address()).await;
            let backend = RedisBackend::new(url_by(&wire, &store)).expect("a URL");
            let node = Hub::builder().backend(backend).connect().await.expect("it is there");
            clients.push(Client::of(&node.topic("news"), Start::Latest).await);
            wires.push(wire);
            nodes.push(node);
        }
        publish(&publisher, "kept").await;
        for client in &mut clients {
            client.gets("kept").await;
        }
        wires[know..].iter().for_each(Wire::cut);
        assert_eq!(cli(&store, &["copy", "tower-sse", "older"]), "1");
        for n in 0..3 {
            publish(&publisher, &n.to_string()).await;
            for client in &mut clients[..know] {
                client.gets(&n.to_string()).await;
            }
        }
        drop(publisher);
        wires[..know].iter().for_each(Wire::cut);
        assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
        Self { store, wires, nodes, clients }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_nodes_report_a_failover_to_every_client() {
    let mut lost = Lost::new(4, 2).await;
    lost.wires.iter().for_each(Wire::mend);
    for client in &mut lost.clients {
        assert_eq!(client.next().await.0, "gap");
    }
    assert_eq!(marks(&lost.store), 1, "both nodes know the same");
    publish(&lost.nodes[3].topic("news"), "on").await;
    for client in &mut lost.clients {
        client.gets("on").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_reported_after_an_unknowing_publisher() {
    let mut lost = Lost::new(4, 2).await;
    lost.wires[2..].iter().for_each(Wire::mend);
    let begin = lost.clients[3].subscription.cursor();
    publish(&lost.nodes[2].topic("news"), "after").await;
    for client in &mut lost.clients[2..] {
        client.gets("after").await;
    }
    lost.wires.iter().for_each(Wire::mend);
    for client in &mut lost.clients[..2] {
        assert_eq!(client.is_told().await, "after");
    }
    for client in &mut lost.clients[2..] {
        assert_eq!(client.next().await.0, "gap");
    }
    assert_eq!(marks(&lost.store), 1, "both nodes know the same");
    let mut late = Client::of(&hub(&lost.store).await.topic("news"), begin).await;
    assert_eq!(late.next().await.0, "gap");
}

/// The node that has published an event has not read it, and does not publish afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_that_no_node_read_are_reported() {
    let store = Store::start(Engine::Redis, &[]).await;
    let wire = Wire::to(store.address()).await;
    let backend = RedisBackend::new(url_by(&wire, &store)).expect("a URL");
    let other = Hub::builder().backend(backend).connect().await.expect("it is there").topic("news");
    let mut client = Client::of(&other, Start::Latest).await;
    publish(&other, "kept").await;
    client.gets("kept").await;
    for is_idle in [true, false] {
        let backend = RedisBackend::new(store.url()).expect("a URL");
        let mut after = backend.bounds().await.expect("it is there").last;
        wire.cut();
        assert_eq!(cli(&store, &["copy", "tower-sse", "older", "replace"]), "1");
        let event = Event::new("lost").encode();
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event };
        let lost = backend.append(vec![record]).await.expect("it is added").position;
        assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
        wire.mend();
        if !is_idle {
            eventually(SOON, "the other node is back", async || {
                other.publish(Event::new("after")).await.map(drop).map_err(|error| error.to_string())
            })
            .await;
            client.gets("after").await;
        }
        let page = loop {
            let page = timeout(SOON, backend.follow(after)).await.expect("it is told").expect("a page");
            if page.evicted_through > lost {
                break page;
            }
            after = page.through;
        };
        assert!(page.through > page.evicted_through, "{page:?}");
        assert_eq!(client.next().await.0, "gap");
    }
}
