//! What only a server of NATS can show.

use async_nats::jetstream::{self, stream};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use e2e::{
    Port, installed,
    store::{Engine, Store},
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{
        Error, ErrorKind, Hub, Start, Subscription,
        backend::{Backend, NatsBackend, Position, Record, RecordKind},
    },
};

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn backend(url: &str) -> NatsBackend {
    NatsBackend::new(url).expect("a URL")
}

pub(crate) async fn connect(backend: NatsBackend) -> Hub {
    try_connect(backend).await.expect("it is there")
}

pub(crate) async fn try_connect(backend: NatsBackend) -> Result<Hub, Error> {
    Hub::builder().max_events(100).backend(backend).connect().await
}

/// Whoever looks after the servers.
pub(crate) async fn admin(url: &str) -> jetstream::Context {
    jetstream::new(async_nats::connect(url).await.expect("it is there"))
}

/// Why it is refused.
pub(crate) fn reason(error: &Error) -> String {
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    std::error::Error::source(error).expect("there is a reason").to_string()
}

pub(crate) async fn stored(admin: &jetstream::Context) -> stream::Info {
    admin.get_stream("tower-sse").await.expect("it is there").cached_info().clone()
}

/// The marks that identify logs, in the order in which they were written.
pub(crate) async fn marks(admin: &jetstream::Context) -> Vec<String> {
    let stream = admin.get_stream("tower-sse").await.expect("it is there");
    let mut marks = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        if &*message.subject == "tower-sse._log" {
            marks.push(String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    marks
}

pub(crate) async fn publish(hub: &Hub, text: &str) -> EventId {
    hub.topic("news").publish(Event::new(text)).await.expect("it is there")
}

/// As soon as it goes.
pub(crate) async fn publishes_again(hub: &Hub, text: &str) -> EventId {
    let begin = Instant::now();
    loop {
        match hub.topic("news").publish(Event::new(text)).await {
            Ok(id) => return id,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}: {}", reason(&error)),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// What comes next, until it has this in it.
pub(crate) async fn until(subscription: &mut Subscription, text: &str) -> String {
    let read = timeout(SOON, read_until(subscription, text)).await;
    read.unwrap_or_else(|_| panic!("{text:?} does not come")).unwrap_or_else(|all| panic!("it ends: {all:?}"))
}

/// The same. An error is what comes before the end.
async fn read_until(subscription: &mut Subscription, text: &str) -> Result<String, String> {
    let mut all = String::new();
    while !all.contains(text) {
        let Some(Ok(events)) = subscription.next().await else { return Err(all) };
        all.push_str(&String::from_utf8_lossy(events.as_bytes()));
    }
    Ok(all)
}

/// What a client gets that comes back with this id, until it has this in it, as soon as the node knows that it has missed
/// something.
pub(crate) async fn told(node: &Hub, id: &EventId, text: &str) -> String {
    let told = async {
        loop {
            let mut back = node.topic("news").subscribe(id.clone()).await.expect("there is room");
            // Those who are subscribed when it gets to know are sent away.
            match read_until(&mut back, text).await {
                Ok(told) if told.contains("event: gap\n") => return told,
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(SOON, told).await.expect("it is a gap")
}

/// A wire on which it can become silent, as on one that is cut far away: nobody is told.
struct Wire {
    address: SocketAddr,
    /// Whether it passes on what is said to the server, and what is said by it.
    passes: watch::Sender<[bool; 2]>,
    accepts: JoinHandle<()>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let passes = watch::Sender::new([true; 2]);
        let whole = passes.subscribe();
        let accepts = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let whole = whole.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((client_reads, client_writes), (server_reads, server_writes)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(
                        pass(client_reads, server_writes, whole.clone(), 0),
                        pass(server_reads, client_writes, whole, 1)
                    );
                });
            }
        });
        Self { address, passes, accepts }
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    fn passes(&self, to_the_server: bool, from_the_server: bool) {
        self.passes.send_replace([to_the_server, from_the_server]);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut passes: watch::Receiver<[bool; 2]>,
    way: usize,
) {
    let mut bytes = vec![0; 4096];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if passes.wait_for(|passes| passes[way]).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_do_not_pile_up_and_connections_are_one_for_each_node() {
    let monitor = Port::free().expect("there is a free port");
    let store = Store::start(Engine::Nats, &["-m", &monitor.address().port().to_string()]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;
    let connections = async || {
        let answer = e2e::request(monitor.address(), "GET /connz HTTP/1.0\r\n\r\n").await;
        answer.split("\"num_connections\": ").nth(1).expect("a number")[..1].parse::<u8>().expect("one digit")
    };

    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    let first = publish(&nodes[0], "first").await;
    for n in 0..1200 {
        nodes[0].topic(format!("news/{}", n % 3)).publish(Event::display(n)).await.expect("it is there");
    }
    publish(&nodes[0], "last").await;
    let mut most = 0;
    for round in 0..6 {
        // Late clients of both nodes, some of which go before they have got anything.
        let mut clients = Vec::new();
        for n in 0..20 {
            let topics = ["news", "news/0", "news/1", "news/2"];
            let hub = nodes[n % 2].clone();
            let id = first.clone();
            clients.push(tokio::spawn(async move {
                let mut late = hub.subscribe(topics, id).await.expect("there is room");
                assert_eq!(late.gap().map(|gap| gap.reason()), None);
                if n % 4 != 0 {
                    until(&mut late, "last").await;
                }
            }));
        }
        for (n, client) in clients.into_iter().enumerate() {
            if n % 5 == 0 { client.abort() } else { client.await.expect("it does not panic") }
        }
        // A node that goes, and one whose connection does.
        let short = connect(backend(&wire.url())).await;
        publish(&short, &format!("of round {round}")).await;
        most = most.max(stored(&admin).await.state.consumer_count);
    }
    // Those of the nodes that went are closed in a moment.
    e2e::eventually(SOON, "three connections: of the nodes, and of this test", async || match connections().await {
        3 => Ok(()),
        other => Err(other),
    })
    .await;
    // Those that read a page at the time they went, and the nodes.
    assert!(most <= 2 + 6 + 2 * 16, "{most} consumers");
    let mut left = most;
    let begin = Instant::now();
    while left != 2 {
        assert!(begin.elapsed() < SOON, "{left} consumers are left");
        sleep(Duration::from_millis(100)).await;
        left = stored(&admin).await.state.consumer_count;
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "they are forgotten after {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted_is_made_anew_and_everybody_is_told() {
    let store = Store::start(Engine::Nats, &[]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;
    let nodes = [connect(backend(&wire.url())).await, connect(backend(&wire.url())).await];
    for by_somebody_else in [false, true] {
        let last = publishes_again(&nodes[0], "before").await;
        let mut client = nodes[1].topic("news").subscribe(last.clone()).await.expect("there is room");
        // Before the nodes have a chance to.
        wire.passes(!by_somebody_else, !by_somebody_else);
        admin.delete_stream("tower-sse").await.expect("it is there");
        if by_somebody_else {
            let config = stream::Config {
                name: "tower-sse".to_owned(),
                subjects: vec!["tower-sse.>".to_owned()],
                ..stream::Config::default()
            };
            admin.create_stream(config).await.expect("it is gone");
        }
        wire.passes(true, true);
        let begin = Instant::now();
        // Its place is none in the new one, so it is sent away, to come again.
        let ended = timeout(SOON, async { while client.next().await.is_some() {} }).await;
        assert!(ended.is_ok(), "it is not told");
        println!("told after {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        let id = publishes_again(&nodes[0], "after").await;
        assert_ne!(id, last);
        for node in &nodes {
            // Each has to see it for itself.
            let told = told(node, &last, "data: after\n").await;
            assert!(told.contains("event: gap\n") && !told.contains("before"), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_is_another_one_for_everybody() {
    let folder = tempfile::tempdir().expect("there is room");
    let (files, copy) = (folder.path().join("files"), folder.path().join("copy"));
    let mut store = Store::start(Engine::Nats, &["-sd", files.to_str().expect("UTF-8")]).await;
    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    publish(&nodes[0], "kept").await;
    store.kill();
    copy_all(&files, &copy);
    store.restart().await;
    let early = publishes_again(&nodes[0], "lost").await;
    for n in 0..20 {
        publishes_again(&nodes[n % 2], &format!("lost {n}")).await;
    }
    let mut client = nodes[1].topic("news").subscribe(early.clone()).await.expect("there is room");
    until(&mut client, "lost 19").await;
    // The power fails, say, and the disk has the state of some time ago. Others publish more than was lost before the nodes
    // can look: the numbers of the log are as high as they were.
    store.kill();
    fs::remove_dir_all(&files).expect("it is there");
    copy_all(&copy, &files);
    let elsewhere = Store::start(Engine::Nats, &["-sd", files.to_str().expect("UTF-8")]).await;
    let other = connect(backend(&elsewhere.url())).await;
    for n in 0..50 {
        publish(&other, &format!("again {n}")).await;
    }
    drop((other, elsewhere));
    store.restart().await;
    timeout(SOON, async { while client.next().await.is_some() {} }).await.expect("it is told that its place is none");
    for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
        let told = told(node, &early, "data: again 49\n").await;
        assert!(told.contains("other_epoch"), "{told}");
        for n in 0..50 {
            assert!(told.contains(&format!("data: again {n}\n")), "{n}: {told}");
        }
    }
    let marks = marks(&admin(&store.url()).await).await;
    assert_eq!(marks.len(), 2, "both nodes have marked it once: {marks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_or_an_edit_that_loses_nothing_changes_nothing() {
    let mut store = Store::start(Engine::Nats, &[]).await;
    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    let mut last = publish(&nodes[0], "first").await;
    for n in 0..5 {
        store.kill();
        store.restart().await;
        let admin = admin(&store.url()).await;
        let config = stored(&admin).await.config;
        admin.update_stream(stream::Config { max_messages: 1000 + n as i64, ..config }).await.expect("it is there");
        let text = format!("after {n}");
        let next = publishes_again(&nodes[n % 2], &text).await;
        for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
            let mut back = node.topic("news").subscribe(last.clone()).await.expect("there is room");
            let got = until(&mut back, &format!("data: {text}\n")).await;
            assert!(!got.contains("gap"), "{got}");
        }
        last = next;
    }
}

pub(crate) fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("there is room");
    for entry in fs::read_dir(from).expect("it is there").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_all(&from, &to),
            false => assert!(fs::copy(&from, &to).is_ok(), "there is room"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_a_log_is_an_error_that_says_so() {
    let store = Store::start(Engine::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let subjects = |name: &str| vec![format!("{name}.>")];
    let make = async |name: &str, config: stream::Config| {
        admin.create_stream(stream::Config { name: name.to_owned(), ..config }).await.expect("there is none");
    };
    make("orders", stream::Config { subjects: vec!["orders.new".to_owned()], ..stream::Config::default() }).await;
    let retention = stream::RetentionPolicy::WorkQueue;
    make("work", stream::Config { subjects: subjects("work"), retention, ..stream::Config::default() }).await;
    make("deaf", stream::Config { subjects: subjects("deaf"), no_ack: true, ..stream::Config::default() }).await;
    for (name, parts) in [
        ("orders", &["\"orders\"", "[\"orders.new\"]", "\"orders.>\"", "another name"][..]),
        ("work", &["\"work\"", "workqueue"]),
        ("deaf", &["\"deaf\"", "does not acknowledge"]),
        ("a.b", &["\"a.b\"", "cannot be the name"]),
        ("", &["cannot be the name"]),
    ] {
        let error = try_connect(backend(&store.url()).stream(name)).await.expect_err("it is no log");
        let reason = reason(&error);
        assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    }
    // Somebody else's messages do not stand in the way, and its limits are left alone.
    make("mine", stream::Config { subjects: subjects("mine"), max_messages: 7, ..stream::Config::default() }).await;
    let hub = connect(backend(&store.url()).stream("mine").max_messages(1000)).await;
    let mut client = hub.topic("news").subscribe(Start::Latest).await.expect("there is room");
    for subject in ["mine.x", "mine.news", "mine.=ZZ=", "mine.news=.more"] {
        let ack = admin.publish(subject, "no event".into()).await.expect("it is there");
        ack.await.expect("it is stored");
    }
    admin.publish("mine.news=", "no event".into()).await.expect("it is there").await.expect("it is stored");
    publish(&hub, "mine").await;
    let got = until(&mut client, "data: mine\n").await;
    assert!(!got.contains("no event"), "{got}");
    let info = admin.get_stream("mine").await.expect("it is there").cached_info().clone();
    assert_eq!(info.config.max_messages, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_not_take_is_an_error_and_none_of_it_is_stored() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("nats.conf");
    fs::write(&file, "max_payload: 64KB").expect("there is room");
    let store = Store::start(Engine::Nats, &["-c", file.to_str().expect("UTF-8")]).await;
    let admin = admin(&store.url()).await;
    let config = stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        max_bytes: 200_000,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    admin.create_stream(config).await.expect("there is none");
    let hub = connect(backend(&store.url())).await;
    let mut client = hub.topic("news").subscribe(Start::Latest).await.expect("there is room");

    // Each of them would fit.
    let many = (0..100).map(|n| Event::new(format!("{n}: {}", "x".repeat(1000))));
    let refused = hub.topic("news").publish_all(many).await.expect_err("it is too much at once");
    let why = reason(&refused);
    assert!(why.contains("one message of 10") && why.contains("takes 65536"), "{why}");
    let long = "x".repeat(3000);
    let refused = hub.topic(&long).publish(Event::new("x")).await.expect_err("its name is too long");
    assert!(reason(&refused).contains("too long"), "{}", reason(&refused));
    // Nor is there anything to read of it.
    let mut both = hub.subscribe(["news", &long], Start::Earliest).await.expect("there is room");
    assert_eq!(stored(&admin).await.state.messages, 1, "only the mark is stored");

    publish(&hub, "first").await;
    until(&mut both, "data: first\n").await;
    let mut count = 2;
    let refused = loop {
        match hub.topic("news").publish(Event::new("y".repeat(10_000))).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 100, "it is never full");
    };
    let why = reason(&refused);
    assert!(why.contains("maximum bytes exceeded"), "{why}");
    assert_eq!(stored(&admin).await.state.messages, count);
    // It is the same connection still, and it goes on as soon as there is room.
    admin.get_stream("tower-sse").await.expect("it is there").purge().await.expect("it is purged");
    publish(&hub, "there is room again").await;
    until(&mut client, "there is room again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_is_stored_once_and_a_wire_that_is_silent_is_given_up() {
    let store = Store::start(Engine::Nats, &[]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;
    let (near, far) = (connect(backend(&store.url())).await, connect(backend(&wire.url())).await);
    let mut client = far.topic("news").subscribe(Start::Latest).await.expect("there is room");
    publish(&near, "first").await;
    until(&mut client, "first").await;

    // Its answers do not come.
    wire.passes(true, false);
    let begin = Instant::now();
    let error = far.topic("news").publish(Event::new("unsure")).await.expect_err("nobody answers");
    println!("silent: {:?}: {}", begin.elapsed(), reason(&error));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(reason(&error).contains("has not answered"), "{}", reason(&error));
    // All of it has arrived, twice, in one order with this.
    publish(&near, "second").await;
    let state = stored(&admin).await.state;
    assert_eq!((state.messages, state.last_sequence), (4, 4), "a mark, first, unsure, second");
    // It tells for itself that the wire is dead, and does not wait for the end of that.
    wire.passes(true, true);
    let begin = Instant::now();
    let got = until(&mut client, "second").await;
    println!("deaf: delivered {:?} after it was mended", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(got.matches("data: unsure").count(), 1, "{got}");

    // Nothing passes, neither way, and nobody publishes; connections are accepted, and nothing is said on them.
    for silence in [Duration::from_millis(500), Duration::from_secs(6)] {
        wire.passes(false, false);
        sleep(silence).await;
        publish(&near, &format!("after {silence:?}")).await;
        wire.passes(true, true);
        let begin = Instant::now();
        until(&mut client, &format!("after {silence:?}")).await;
        println!("silent for {silence:?}: delivered {:?} after it was mended", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
    publishes_again(&far, "the end").await;
    until(&mut client, "the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_accepted_and_never_answered_is_no_connection() {
    // Nobody reads what is said here.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let dead = listener.local_addr().expect("it listens");
    let begin = Instant::now();
    let url = format!("nats://{dead}");
    let error = try_connect(backend(&url).timeout(Duration::from_millis(300))).await.expect_err("it says nothing");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    println!("{:?}: {}", begin.elapsed(), reason(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_servers_is_enough() {
    let store = Store::start(Engine::Nats, &["--auth", "s3cret"]).await;
    let nobody = Port::free().expect("there is a free port");
    for _ in 0..10 {
        let hub = connect(backend(&format!("nats://{},nats://s3cret@{}", nobody.address(), store.address()))).await;
        publish(&hub, "x").await;
    }
    let wrong = format!("nats://wr0ng@{},nats://{}", store.address(), nobody.address());
    for _ in 0..5 {
        let why = reason(&try_connect(backend(&wrong)).await.expect_err("it is another token"));
        assert!(!why.contains("wr0ng"), "{why}");
    }
    let shown = format!("{:?} {:?}", backend(&wrong), Hub::builder().backend(backend(&wrong)));
    assert!(!shown.contains("wr0ng"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_password_can_be_in_a_url() {
    let store = Store::start(Engine::Nats, &["--user", "m@il", "--pass", "p/a:s,s%w ö"]).await;
    connect(backend(&store.url_with("m%40il:p%2Fa%3As%2Cs%25w%20%C3%B6@"))).await;
    let error = try_connect(backend(&store.url_with("m%40il:p%2Fa%3As%2Cs%25w%20@"))).await.expect_err("it is not");
    assert!(reason(&error).contains("authorization"), "{}", reason(&error));
}

/// Runs it, and panics if it does not succeed.
fn run(program: &str, package: &str, folder: &Path, args: &[&str]) {
    let output = Command::new(installed(&[program], package)).args(args).current_dir(folder).output().expect("it runs");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a server that it vouches for.
fn authority(folder: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |args: &[&str]| run("openssl", "openssl", folder, args);
    let ca = ["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=a test", "-days", "2"];
    openssl(&[&["req"], &key[..], &ca[..]].concat());
    openssl(&[&["req"], &key[..], &["-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=a server"]].concat());
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("there is room");
    let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-out", "server.pem", "-days", "2", "-extfile", "names"]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_is_who_its_certificate_says() {
    let [folder, others] = [(); 2].map(|()| tempfile::tempdir().expect("there is room"));
    authority(folder.path());
    authority(others.path());
    let path = |folder: &TempDir, name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (cert, key) = (path(&folder, "server.pem"), path(&folder, "server.key"));
    let mut store = Store::start(Engine::Nats, &["--tls", "--tlscert", &cert, "--tlskey", &key]).await;
    let url = store.url().replace("nats://", "tls://");
    let node = connect(backend(&url).root_certificates(path(&folder, "ca.pem"))).await;
    let mut client = node.topic("news").subscribe(Start::Latest).await.expect("there is room");
    publish(&node, "secret").await;
    until(&mut client, "data: secret\n").await;
    store.kill();
    store.restart().await;
    publishes_again(&node, "again").await;
    until(&mut client, "data: again\n").await;

    for stranger in [backend(&url), backend(&url).root_certificates(path(&others, "ca.pem"))] {
        let why = reason(&try_connect(stranger).await.expect_err("nobody vouches for it"));
        assert!(why.contains("certificate"), "{why}");
    }
    let missing = backend(&url).root_certificates(path(&folder, "no.pem"));
    let why = reason(&try_connect(missing).await.expect_err("there is no such file"));
    assert!(why.contains("No such file"), "{why}");

    // Whoever asks for TLS does not do without.
    let plain = Store::start(Engine::Nats, &[]).await;
    let url = plain.url().replace("nats://", "tls://");
    try_connect(backend(&url).root_certificates(path(&folder, "ca.pem"))).await.expect_err("it has no TLS");
}

/// What the holder of one key says of another, as `nsc` writes it.
fn claim(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (issued_by, subject) = (issuer.public_key(), subject.public_key());
    let payload = json!({ "jti": subject, "iat": 1_700_000_000, "iss": issued_by, "sub": subject, "nats": claims });
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(payload.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("it has a seed");
    format!("{signed}.{}", encode(&signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_credentials_opens_an_account() {
    let folder = tempfile::tempdir().expect("there is room");
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    let [system, account] = [(); 2].map(|()| KeyPair::new_account());
    let without_limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = |limits: &Value| json!({ "type": "account", "version": 2, "limits": limits });
    let no_storage = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "wildcards": true });
    let config = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}: {}\n{}: {}\n}}\n",
        claim(&operator, &operator, json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        system.public_key(),
        claim(&operator, &system, of_account(&no_storage)),
        account.public_key(),
        claim(&operator, &account, of_account(&without_limits)),
    );
    let file = folder.path().join("nats.conf");
    fs::write(&file, config).expect("there is room");
    let store = Store::start(Engine::Nats, &["-c", file.to_str().expect("UTF-8")]).await;

    let credentials = |name: &str, issuer: &KeyPair, seed: &KeyPair| {
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let (claim, seed) = (claim(issuer, &user, claims), seed.seed().expect("it has one"));
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{claim}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let path = folder.path().join(name);
        fs::write(&path, text).expect("there is room");
        path
    };
    let right = credentials("right.creds", &account, &user);
    let hub = connect(backend(&store.url()).credentials_file(&right)).await;
    publish(&hub, "x").await;

    let of_nobody = credentials("nobody.creds", &KeyPair::new_account(), &user);
    let stolen = credentials("stolen.creds", &account, &KeyPair::new_user());
    let none = folder.path().join("none.creds");
    for (path, part) in [(&of_nobody, "authorization"), (&stolen, "authorization"), (&none, "none.creds")] {
        let error = try_connect(backend(&store.url()).credentials_file(path)).await.expect_err("it is not right");
        assert!(reason(&error).contains(part), "{}", reason(&error));
    }
    fs::write(&none, "SUAsecret").expect("there is room");
    let error = try_connect(backend(&store.url()).credentials_file(&none)).await.expect_err("it has no credentials");
    assert!(reason(&error).contains("cannot be used") && !reason(&error).contains("SUA"), "{}", reason(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_docs_name_are_enough() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("nats.conf");
    let rights = r#"
        publish: ["tower-sse.>", "$JS.API.STREAM.INFO.tower-sse", "$JS.API.STREAM.MSG.GET.tower-sse",
            "$JS.API.CONSUMER.CREATE.tower-sse",
            "$JS.API.CONSUMER.*.tower-sse.>", "$JS.API.CONSUMER.MSG.NEXT.tower-sse.>"]
        subscribe: ["_INBOX.>"]"#;
    let config = format!(
        "authorization {{ users: [{{ user: root, password: r }}, {{ user: app, password: a, permissions: {{ {rights} }} }}] }}"
    );
    fs::write(&file, config).expect("there is room");
    let mut store = Store::start(Engine::Nats, &["-c", file.to_str().expect("UTF-8")]).await;
    // To make the stream takes one more.
    let error = try_connect(backend(&store.url_with("app:a@"))).await.expect_err("there is no stream");
    assert!(reason(&error).contains("cannot be created"), "{}", reason(&error));
    connect(backend(&store.url_with("root:r@"))).await;
    let hub = connect(backend(&store.url_with("app:a@"))).await;
    let first = publish(&hub, "first").await;
    for n in 0..200 {
        hub.topic(format!("news/{}", n % 2)).publish(Event::display(n)).await.expect("it is there");
    }
    publish(&hub, "last").await;
    // From the log, as the node holds less, and after a restart.
    let topics = ["news", "news/0", "news/1"];
    let late = connect(backend(&store.url_with("app:a@"))).await;
    store.kill();
    store.restart().await;
    publishes_again(&hub, "after it").await;
    let mut client = late.subscribe(topics, first).await.expect("there is room");
    let got = until(&mut client, "data: after it\n").await;
    assert_eq!((got.matches("data: ").count(), client.gap()), (202, None), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_from_the_middle_is_told() {
    let store = Store::start(Engine::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let log = backend(&store.url());
    log.bounds().await.expect("it is there");
    let mut positions = Vec::new();
    for n in 0..6 {
        let event = format!("data: {n}\n\n").into();
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event };
        positions.push(log.append(vec![record]).await.expect("it is there").position);
    }
    admin.get_stream("tower-sse").await.expect("it is there").delete_message(5).await.expect("it is there");
    let mut after = Position::START;
    let mut followed = Vec::new();
    while after < positions[5] {
        let page = log.follow(after).await.expect("a page");
        if page.evicted_through > after {
            let expected = (positions[2], positions[3]);
            assert_eq!((after, page.evicted_through), expected, "only the deleted message is reported, at once");
        }
        followed.extend(page.records.iter().map(|(position, _)| *position));
        assert!(page.evicted_through < page.through, "the page ends after the deleted message");
        after = page.through;
    }
    assert_eq!(followed, [&positions[..3], &positions[4..]].concat());
}

#[test]
fn a_hub_can_be_dropped_where_there_is_no_runtime() {
    let runtime = tokio::runtime::Runtime::new().expect("there are threads");
    let (store, hub, log) = runtime.block_on(async {
        let store = Store::start(Engine::Nats, &[]).await;
        let hub = connect(backend(&store.url())).await;
        publish(&hub, "x").await;
        let log = backend(&store.url());
        log.follow(Position::START).await.expect("a page");
        (store, hub, log)
    });
    // It keeps a consumer.
    drop(log);
    drop(runtime);
    drop(hub);
    drop(store);
}
