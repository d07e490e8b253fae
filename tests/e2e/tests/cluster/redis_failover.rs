//! Events that a master has acknowledged and its successor does not have.

use crate::{
    checker::{Checker, Load},
    nodes::{Node, Parser},
    redis::{Client, SOON, cli, hub, publish},
    report::GapTiming,
    setup::connect,
    unchanged::{append, record, redis},
};
use e2e::{Store, StoreKind, Wire, eventually};
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

/// A TCP relay that can switch to another server.
struct Switch {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    cuts: watch::Sender<()>,
}

impl Switch {
    async fn to(server: &Store) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let target = watch::Sender::new(server.address());
        let targets = target.subscribe();
        let (cuts, all_cuts) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut cuts) = (*targets.borrow(), all_cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, target, cuts }
    }

    /// Cuts all connections. New connections go to this server.
    fn switch_to(&self, server: &Store) {
        self.switch_new_connections_to(server);
        self.cuts.send_replace(());
    }

    /// Keeps all connections. New connections go to this server.
    fn switch_new_connections_to(&self, server: &Store) {
        self.target.send_replace(server.address());
    }

    async fn node(&self) -> Hub {
        connect(StoreKind::Redis, &format!("redis://{}", self.address)).await.expect("the server responds")
    }
}

const FAST: [&str; 4] = ["--appendfsync", "no", "--repl-diskless-sync-delay", "0"];

/// Starts two servers whose ids do not collide. They could by chance, once in some thousand times.
async fn two_servers() -> (Store, Store) {
    let old = Store::start(StoreKind::Redis, &FAST).await;
    let begins = first_sequence(&old).await;
    for _ in 0..10 {
        let new = Store::start(StoreKind::Redis, &FAST).await;
        if first_sequence(&new).await.abs_diff(begins) > 1000 {
            return (old, new);
        }
    }
    panic!("all servers begin a millisecond with {begins}");
}

/// Returns the first sequence number of a server in a millisecond. Leaves no stream behind.
async fn first_sequence(store: &Store) -> u64 {
    let topic = hub(store).await.topic("news");
    // The first sequence number of a stream is random.
    sleep(Duration::from_millis(10)).await;
    let id = publish(&topic, "first").await;
    cli(store, &["del", "tower-sse"]);
    id.as_str().split_once('-').and_then(|(_, sequence)| sequence.parse().ok()).expect("a number")
}

async fn wait_for_link(replica: &Store) {
    eventually(SOON, "the replica is connected to its master", async || {
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
        wait_for_link(&new).await;
        let mut checker = Checker::new(StoreKind::Redis);
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
        checker.wait_for_more_acknowledged(1500).await;
        // In even rounds, both masters accept events before the nodes move to the new one.
        cli(&new, &["replicaof", "no", "one"]);
        if round % 2 == 0 {
            checker.wait_for_more_acknowledged(500).await;
        }
        moves.switch_to(&new);
        checker.wait_for_more_acknowledged(1500 + 500 * round).await;
        let port = new.address().port().to_string();
        cli(&old, &["replicaof", "127.0.0.1", &port]);
        if round % 3 == 0 {
            wait_for_link(&old).await;
        }
        let before = loss_reports(&new);
        stays.switch_to(&new);
        eventually(SOON, "the log reports the loss of the old master", async || {
            let now = loss_reports(&new);
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        checker.wait_for_more_acknowledged(1500).await;
        let report = checker.check_with(GapTiming::AnyTime, &on_new[1], "two masters").await.assert_acknowledged(5000);
        assert!(report.gaps.iter().all(|gaps| !gaps.is_empty()), "every client received a gap: {:?}", report.gaps);
        let marks = marks(&new);
        println!("round {round}: {marks} marks");
        assert!(marks <= 3, "a node repeats no mark of another node: {marks}");
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
fn loss_reports(store: &Store) -> usize {
    marks(store) + entries_with(store, "l")
}

/// A stream that has lost its end, as after a failover. Some nodes have read the lost events.
struct Lost {
    store: Store,
    wires: Vec<Wire>,
    nodes: Vec<Hub>,
    clients: Vec<Client>,
}

impl Lost {
    /// Creates `count` nodes. The first `know` nodes have read the lost events. No node is
    /// connected.
    async fn new(count: usize, know: usize) -> Self {
        let store = Store::start(StoreKind::Redis, &[]).await;
        let publisher = hub(&store).await.topic("news");
        let (mut wires, mut nodes, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let wire = Wire::to(store.address()).await;
            let backend = redis(&store.url_through(&wire));
            let node = Hub::builder().backend(backend).connect().await.expect("the server responds");
            clients.push(Client::of(&node.topic("news"), Start::Latest).await);
            wires.push(wire);
            nodes.push(node);
        }
        publish(&publisher, "kept").await;
        for client in &mut clients {
            client.assert_next("kept").await;
        }
        wires[know..].iter().for_each(Wire::cut);
        assert_eq!(cli(&store, &["copy", "tower-sse", "older"]), "1");
        for n in 0..3 {
            publish(&publisher, &n.to_string()).await;
            for client in &mut clients[..know] {
                client.assert_next(&n.to_string()).await;
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
        client.assert_next("on").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loss_is_reported_after_an_unknowing_publisher() {
    let mut lost = Lost::new(4, 2).await;
    lost.wires[2..].iter().for_each(Wire::mend);
    let begin = lost.clients[3].subscription.cursor();
    publish(&lost.nodes[2].topic("news"), "after").await;
    for client in &mut lost.clients[2..] {
        client.assert_next("after").await;
    }
    lost.wires.iter().for_each(Wire::mend);
    for client in &mut lost.clients[..2] {
        assert_eq!(client.next_after_gap().await, "after");
    }
    for client in &mut lost.clients[2..] {
        assert_eq!(client.next().await.0, "gap");
    }
    assert_eq!(marks(&lost.store), 1, "both nodes know the same");
    let mut late = Client::of(&hub(&lost.store).await.topic("news"), begin).await;
    assert_eq!(late.next().await.0, "gap");
}

/// The publishing node has not read the event, and does not publish again.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_that_no_node_read_are_reported() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let wire = Wire::to(store.address()).await;
    let backend = redis(&store.url_through(&wire));
    let other = Hub::builder().backend(backend).connect().await.expect("the server responds").topic("news");
    let mut client = Client::of(&other, Start::Latest).await;
    publish(&other, "kept").await;
    client.assert_next("kept").await;
    for is_idle in [true, false] {
        let backend = redis(&store.url());
        let mut after = backend.bounds().await.expect("the server responds").last;
        wire.cut();
        assert_eq!(cli(&store, &["copy", "tower-sse", "older", "replace"]), "1");
        let event = Event::new("lost").encode();
        let record = Record::new("news", RecordKind::Event, event);
        let lost = backend.append(vec![record]).await.expect("the record is stored").position;
        assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
        wire.mend();
        if !is_idle {
            eventually(SOON, "the other node can publish again", async || {
                other.publish(Event::new("after")).await.map(drop).map_err(|error| error.to_string())
            })
            .await;
            client.assert_next("after").await;
        }
        let page = loop {
            let page = timeout(SOON, backend.follow(after)).await.expect("the loss is reported").expect("a page");
            if page.evicted_through > lost {
                break page;
            }
            after = page.through;
        };
        assert!(page.through > page.evicted_through, "{page:?}");
        assert_eq!(client.next().await.0, "gap");
    }
}

/// The commands of a process still go to the old master when its follower reads from the new one.
#[tokio::test(flavor = "multi_thread")]
async fn mark_that_the_old_master_loses_is_added_again() {
    let (old, new) = two_servers().await;
    let switch = Switch::to(&old).await;
    let backend = RedisBackend::new(format!("redis://{}", switch.address)).expect("the URL is valid");
    let begin = backend.bounds().await.expect("the server responds").last;
    let first = append(&backend, "news", "first").await;
    assert_eq!(backend.follow(begin).await.expect("a page").through, first);
    cli(&new, &["replicaof", "127.0.0.1", &old.address().port().to_string()]);
    eventually(SOON, "the replica has the entry", async || match &*cli(&new, &["xlen", "tower-sse"]) {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    cli(&new, &["replicaof", "no", "one"]);
    // Only the commands connect again before the new master has the address.
    cli(&old, &["client", "kill", "type", "normal"]);
    backend.follow(first).await.expect_err("the connection is cut");
    let lost = eventually(SOON, "the old master acknowledges", async || {
        backend.append(vec![record("news", "lost")]).await.map_err(|error| error.to_string())
    })
    .await;
    switch.switch_new_connections_to(&new);
    let other = redis(&new.url());
    append(&other, "news", "later").await;
    let mut after = backend.follow(first).await.expect("a page").through;
    assert!(after > lost.position, "the follower has passed the lost record");
    // The process adds a mark on the old master, which loses it.
    append(&other, "news", "later still").await;
    after = backend.follow(after).await.expect("a page").through;
    switch.switch_to(&new);
    let is_reported = async {
        loop {
            match backend.follow(after).await {
                Ok(page) if page.evicted_through > lost.position => break,
                Ok(page) => after = page.through,
                Err(_the_connection_is_cut) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(SOON, is_reported).await.expect("the loss is reported");
    assert_eq!(marks(&new), 1);
}

/// The search for a mark ends before the end of the log, so the follower adds the mark without a
/// complete search, and reads many pages before it reads the mark.
#[tokio::test(flavor = "multi_thread")]
async fn one_loss_before_many_entries_adds_one_mark() {
    let store = Store::start(StoreKind::Redis, &FAST).await;
    let backend = redis(&store.url());
    let mut after = backend.bounds().await.expect("the server responds").last;
    append(&backend, "news", "kept").await;
    assert_eq!(cli(&store, &["copy", "tower-sse", "older", "replace"]), "1");
    let lost = append(&backend, "news", "lost").await;
    assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
    sleep(Duration::from_millis(2)).await;
    let other = redis(&store.url());
    for _ in 0..30 {
        other.append(vec![record("news", "later"); 1000]).await.expect("the server responds");
    }
    let mut gaps = 0;
    let end = other.bounds().await.expect("the server responds").last;
    while after <= end || gaps == 0 {
        let page = timeout(SOON, backend.follow(after)).await.expect("the loss is reported").expect("a page");
        gaps += usize::from(page.evicted_through > lost);
        after = page.through;
    }
    append(&other, "news", "end").await;
    while after < other.bounds().await.expect("the server responds").last {
        after = timeout(SOON, backend.follow(after)).await.expect("a page arrives").expect("a page").through;
    }
    assert_eq!((gaps, marks(&store)), (1, 1));
}
