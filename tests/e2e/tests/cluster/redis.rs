//! What only Redis can do to a hub, and what it can be asked for in no other way.

use e2e::{
    eventually, installed,
    store::{Engine, Store},
};
use std::{
    collections::{BTreeSet, VecDeque},
    error::Error,
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};
use support::whatwg;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{
        Hub, Start, Subscription, Topic,
        backend::{Backend, Record, RecordKind, RedisBackend},
    },
};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a client gets.
pub(crate) struct Client {
    pub(crate) subscription: Subscription,
    last: String,
    messages: VecDeque<(String, String)>,
}

impl Client {
    pub(crate) async fn of(topic: &Topic, start: impl Into<Start>) -> Self {
        let subscription = topic.subscribe(start).await.expect("there is room");
        let last = subscription.cursor().as_str().to_owned();
        Self { subscription, last, messages: VecDeque::new() }
    }

    /// The same client after its stream has ended, with the last id that it got.
    pub(crate) async fn comes_back(&mut self, topic: &Topic) {
        while let Some(Ok(events)) = timeout(SOON, self.subscription.next()).await.expect("it ends") {
            self.last = whatwg::parse_after(&self.last, events.as_bytes()).last_event_id;
        }
        *self = Self::of(topic, EventId::new(&*self.last).expect("an id")).await;
    }

    /// The type and the data of the next message.
    pub(crate) async fn next(&mut self) -> (String, String) {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return message;
            }
            let events = timeout(SOON, self.subscription.next()).await.expect("there is more");
            let events = events.expect("it goes on").expect("no error");
            let source = whatwg::parse_after(&self.last, events.as_bytes());
            self.messages.extend(source.messages.into_iter().map(|message| {
                self.last = message.last_event_id;
                (message.r#type, message.data)
            }));
        }
    }

    /// The next message is this one.
    pub(crate) async fn gets(&mut self, data: &str) {
        assert_eq!(self.next().await, ("message".to_owned(), data.to_owned()));
    }

    /// The next messages tell of a gap. Returns the one after it.
    pub(crate) async fn is_told(&mut self) -> String {
        let (kind, data) = self.next().await;
        assert_eq!(kind, "gap", "{data}");
        self.next().await.1
    }
}

/// What the server answers to a command.
pub(crate) fn cli(store: &Store, command: &[&str]) -> String {
    let port = store.address().port().to_string();
    let mut cli = Command::new(installed(&["redis-cli", "valkey-cli"], "redis-server"));
    let output = cli.args(["-h", "127.0.0.1", "-p", &port]).args(command).output().expect("it runs");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

pub(crate) async fn hub(store: &Store) -> Hub {
    Hub::builder().backend(RedisBackend::new(store.url()).expect("a URL")).connect().await.expect("it is there")
}

pub(crate) async fn publish(topic: &Topic, data: &str) -> EventId {
    topic.publish(Event::new(data)).await.expect("it is there")
}

/// What is wrong.
pub(crate) async fn refused(topic: &Topic) -> String {
    let error = topic.publish(Event::new("refused")).await.expect_err("it cannot be published");
    error.source().expect("there is a reason").to_string()
}

async fn refuses(backend: RedisBackend) -> String {
    let begin = Instant::now();
    let error = Hub::builder().backend(backend).connect().await.expect_err("it cannot be used");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    error.source().expect("there is a reason").to_string()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is one").port()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_believes_the_authority_it_is_told_and_shows_its_own_certificate() {
    let folder = certificates();
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let store = Store::start(
        Engine::Redis,
        &[
            ["--tls-port", "0"],
            ["--tls-cert-file", &path("server.pem")],
            ["--tls-key-file", &path("server.key")],
            ["--tls-ca-cert-file", &path("ca.pem")],
        ]
        .concat(),
    )
    .await;
    let port = free_port();
    assert_eq!(cli(&store, &["config", "set", "tls-port", &port.to_string()]), "OK");
    let redis = || RedisBackend::new(format!("rediss://localhost:{port}")).expect("a URL");

    let known = redis().root_certificates(path("ca.pem")).client_certificate(path("client.pem"), path("client.key"));
    let hub = Hub::builder().backend(known).connect().await.expect("both are believed");
    let topic = hub.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "in secret").await;
    client.gets("in secret").await;

    for (backend, reason) in [
        (redis(), "UnknownIssuer"),
        (redis().root_certificates(path("client.pem")), "UnknownIssuer"),
        (redis().root_certificates(path("nowhere.pem")), "nowhere.pem: No such file"),
        (redis().root_certificates(path("server.key")), "server.key: there is no certificate"),
        (redis().root_certificates(path("ca.pem")), "Redis at localhost"),
        (
            RedisBackend::new(format!("rediss://127.0.0.1:{port}")).expect("a URL").root_certificates(path("ca.pem")),
            "not valid for name",
        ),
    ] {
        let error = refuses(backend).await;
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let error = RedisBackend::new(format!("rediss://localhost:{port}#insecure")).expect_err("no").to_string();
    assert!(error.contains("always checked"), "{error}");
}

/// An authority, and what it has signed for a server and for a client.
fn certificates() -> TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    let openssl = |args: &str| {
        let mut command = Command::new(installed(&["openssl"], "openssl"));
        let output = command.args(args.split(' ')).current_dir(folder.path()).output().expect("it runs");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(folder.path().join("server.ext"), "subjectAltName=DNS:localhost\n").expect("there is room");
    fs::write(folder.path().join("client.ext"), "extendedKeyUsage=clientAuth\n").expect("there is room");
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

/// A sentinel, killed on drop.
struct Sentinel {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Sentinel {
    fn start(master: &Store, password: &str) -> Self {
        let folder = tempfile::tempdir().expect("there is room");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let port = master.address().port();
        let config = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nrequirepass watchful\nsentinel monitor main 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n\
             sentinel auth-pass main {password}\n",
            address.port(),
            folder.path().display()
        );
        let path = folder.path().join("sentinel.conf");
        fs::write(&path, config).expect("there is room");
        let mut command = Command::new(installed(&["redis-server", "valkey-server"], "redis-server"));
        let process = command.arg(&path).arg("--sentinel").stdout(Stdio::null()).spawn().expect("it starts");
        Self { address, process, _folder: folder }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _nothing_to_do_about_it = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_new_master_and_nothing_that_was_replicated_is_lost() {
    let auth = ["--requirepass", "secret", "--masterauth", "secret"];
    let mut master = Store::start(Engine::Redis, &auth).await;
    let port = master.address().port().to_string();
    let replica = Store::start(Engine::Redis, &[&auth[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;
    let asked =
        |store: &Store, command: &[&str]| cli(store, &[&["--no-auth-warning", "-a", "secret"], command].concat());
    let is_replicated = async || {
        let offset = |store: &Store, name: &str| {
            let info = asked(store, &["info", "replication"]);
            info.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
        };
        eventually(SOON, "the replica has it all", async || {
            match (offset(&master, "master_repl_offset:"), offset(&replica, "slave_repl_offset:")) {
                (Some(one), Some(other)) if one == other => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    let sentinel = Sentinel::start(&master, "secret");
    let mut command = vec!["--no-auth-warning", "-a", "watchful"];
    let sentinel_port = sentinel.address.port().to_string();
    command.extend(["-p", &sentinel_port, "sentinel", "replicas", "main"]);
    eventually(SOON, "the sentinel knows the replica", async || {
        let known = cli(&master, &command);
        if known.contains(&replica.address().port().to_string()) { Ok(()) } else { Err(known) }
    })
    .await;
    is_replicated().await;

    let backend = || {
        let urls = [format!("redis://127.0.0.1:{}", free_port()), format!("redis://:watchful@{}", sentinel.address)];
        RedisBackend::new("redis://:secret@main").expect("a URL").sentinels(urls).expect("two of them")
    };
    let connect = async || Hub::builder().max_events(10).backend(backend()).connect().await.expect("it is there");
    let nodes = [connect().await, connect().await];
    let topics = nodes.each_ref().map(|node| node.topic("news"));
    let mut clients = [Client::of(&topics[0], Start::Latest).await, Client::of(&topics[1], Start::Latest).await];
    let begin = clients[0].subscription.cursor();
    let mut published = Vec::new();
    for n in 0..100 {
        published.push(n.to_string());
        publish(&topics[n % 2], &n.to_string()).await;
    }
    is_replicated().await;
    master.kill();
    let killed = Instant::now();
    let mut unsure = Vec::new();
    for n in 100.. {
        match topics[n % 2].publish(Event::display(n)).await {
            Ok(_) => {
                published.push(n.to_string());
                break;
            }
            Err(_) => unsure.push(n.to_string()),
        }
        assert!(killed.elapsed() < SOON, "there is a new master");
        sleep(Duration::from_millis(20)).await;
    }
    println!("published at the new master after {:?}", killed.elapsed());
    for client in &mut clients {
        for data in &published {
            client.gets(data).await;
        }
    }
    let mut late = Client::of(&connect().await.topic("news"), begin).await;
    for data in &published {
        late.gets(data).await;
    }
    assert!(late.subscription.gap().is_none() && !unsure.is_empty());

    let unknown = RedisBackend::new("redis://:secret@other").expect("a URL");
    let error = refuses(unknown.sentinels([format!("redis://:watchful@{}", sentinel.address)]).expect("one")).await;
    assert!(error.contains("knows no master \"other\""), "{error}");
    let no_auth = RedisBackend::new("redis://:secret@main").expect("a URL");
    let error = refuses(no_auth.sentinels([format!("redis://:drowsy@{}", sentinel.address)]).expect("one")).await;
    assert!(error.contains(&sentinel.address.to_string()) && !error.contains("drowsy"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_is_a_gap_for_everybody_and_its_ids_are_not_given_again() {
    let store = Store::start(Engine::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        if n == 7 {
            // What comes after this is lost, as in a failover to a replica that has not got it.
            assert_eq!(cli(&store, &["copy", "tower-sse", "older"]), "1");
        }
        ids.push(publish(&topic, &n.to_string()).await);
        client.gets(&n.to_string()).await;
    }
    assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
    let id = publish(&topic, "after").await;
    assert!(id.as_str() > ids[9].as_str(), "{id:?} {ids:?}");
    assert_eq!(client.is_told().await, "after");

    // So is whoever comes to a node that has never seen them: with an id of what is lost, and with one before.
    let other = hub(&store).await.topic("news");
    for id in [&ids[8], &ids[6], &ids[4]] {
        let mut late = Client::of(&other, id.clone()).await;
        assert_eq!(late.is_told().await, "after");
    }
    let mut later = Client::of(&other, id).await;
    publish(&topic, "all is well").await;
    later.gets("all is well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_on_before_a_place_that_was_read_is_read_anew() {
    let store = Store::start(Engine::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    publish(&topic, "kept").await;
    // Somebody's clock was wrong.
    let future = "9999999999999-0";
    cli(&store, &["xadd", "tower-sse", future, "t", "news", "e", "data: wrong\n\n"]);
    let mut client = Client::of(&topic, Start::Earliest).await;
    client.gets("kept").await;
    client.gets("wrong").await;
    cli(&store, &["del", "tower-sse"]);
    sleep(Duration::from_secs(2)).await;
    // Another process, which does not know of that, and whose ids are those of now.
    let other = hub(&store).await.topic("news");
    for n in 0..3 {
        publish(&other, &n.to_string()).await;
        sleep(Duration::from_millis(700)).await;
    }
    eventually(SOON, "the first node has them", async || {
        let mut all = Client::of(&topic, Start::Earliest).await;
        let mut found = Vec::new();
        while let Ok(Some(Ok(events))) = timeout(Duration::from_millis(300), all.subscription.next()).await {
            found.extend(whatwg::parse_after("", events.as_bytes()).messages.into_iter().map(|message| message.data));
        }
        if found == ["0", "1", "2"] { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_become_a_replica_refuses_until_it_is_one_again() {
    let store = Store::start(Engine::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "before").await;
    cli(&store, &["replicaof", "127.0.0.1", &free_port().to_string()]);
    let error = refused(&topic).await;
    assert!(error.contains("READONLY") || error.contains("read only"), "{error}");
    // It can still be read.
    let mut late = Client::of(&topic, Start::Earliest).await;
    late.gets("before").await;
    cli(&store, &["replicaof", "no", "one"]);
    publish(&topic, "after").await;
    client.gets("before").await;
    client.gets("after").await;
    late.gets("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_add_to_the_stream_is_passed_over() {
    let store = Store::start(Engine::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let begin = client.subscription.cursor();
    publish(&topic, "first").await;
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is later").as_millis();
    let mut expected = vec!["first".to_owned()];
    for (n, (id, fields)) in [
        ("*".to_owned(), &["anything", "at all"][..]),
        ("*".to_owned(), &["t", "news"]),
        ("*".to_owned(), &["e", "data: no topic\n\n"]),
        ("*".to_owned(), &["t", "news", "e", "this is no event"]),
        ("*".to_owned(), &["p", "no id", "t", "", "", ""]),
        (format!("{}-18446744073709551615", now + 5_000), &["far", "off"]),
        // In the future, for which a clock that goes back is the same.
        (format!("{}-1048574", now + 60_000), &["far", "off"]),
        (format!("{}-99999999", now + 120_000), &["far", "off"]),
    ]
    .into_iter()
    .enumerate()
    {
        let added = cli(&store, &[&["xadd", "tower-sse", &id], fields].concat());
        assert!(added.contains('-'), "{added}");
        expected.push(n.to_string());
        publish(&topic, &n.to_string()).await;
    }
    // Two of one position.
    for sequence in ["99999999", "100000000"] {
        cli(&store, &["xadd", "tower-sse", &format!("{}-{sequence}", now + 180_000), "far", "off"]);
    }
    expected.push("last".to_owned());
    publish(&topic, "last").await;
    let mut anew = Client::of(&topic, begin.clone()).await;
    let mut other = Client::of(&hub(&store).await.topic("news"), begin).await;
    for client in [&mut client, &mut anew, &mut other] {
        for data in &expected {
            client.gets(data).await;
        }
        assert!(client.subscription.gap().is_none());
    }

    // After this one there is no room.
    cli(&store, &["xadd", "tower-sse", "18446744073709551615-7", "the", "end"]);
    let error = refused(&topic).await;
    assert!(error.contains("18446744073709551615-7") && error.contains("delete the stream"), "{error}");
    cli(&store, &["del", "tower-sse"]);
    publish(&topic, "anew").await;
    client.comes_back(&topic).await;
    assert_eq!(client.is_told().await, "anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted_trimmed_or_evicted_by_others_is_a_gap_and_goes_on() {
    let store = Store::start(Engine::Redis, &[]).await;
    let nodes = [hub(&store).await, hub(&store).await];
    let topics = nodes.each_ref().map(|node| node.topic("news"));
    let mut clients = [Client::of(&topics[0], Start::Latest).await, Client::of(&topics[1], Start::Latest).await];
    let first = publish(&topics[0], "first").await;
    for client in &mut clients {
        client.gets("first").await;
    }
    cli(&store, &["del", "tower-sse"]);
    publish(&topics[1], "second").await;
    for client in &mut clients {
        assert_eq!(client.is_told().await, "second");
    }

    // Another type.
    cli(&store, &["del", "tower-sse"]);
    cli(&store, &["set", "tower-sse", "text"]);
    let error = refused(&topics[0]).await;
    assert!(error.contains("WRONGTYPE") && error.contains("\"tower-sse\""), "{error}");
    let error = refuses(RedisBackend::new(store.url()).expect("a URL")).await;
    assert!(error.contains("WRONGTYPE"), "{error}");
    cli(&store, &["del", "tower-sse"]);
    publish(&topics[0], "third").await;
    for client in &mut clients {
        assert_eq!(client.is_told().await, "third");
    }

    // Evicted.
    cli(&store, &["config", "set", "maxmemory-policy", "allkeys-random"]);
    cli(&store, &["config", "set", "maxmemory", "1"]);
    let _evicts_it = topics[0].publish(Event::new("too much")).await;
    assert_eq!(cli(&store, &["exists", "tower-sse"]), "0");
    cli(&store, &["config", "set", "maxmemory", "0"]);
    publish(&topics[0], "fourth").await;
    for client in &mut clients {
        assert_eq!(client.is_told().await, "fourth");
    }

    // Trimmed: whoever has read it has lost nothing.
    for n in 5..10 {
        publish(&topics[0], &n.to_string()).await;
    }
    for client in &mut clients {
        for n in 5..10 {
            client.gets(&n.to_string()).await;
        }
    }
    let has_seven = EventId::new(ids_of(&store)[3].clone()).expect("an id");
    cli(&store, &["xtrim", "tower-sse", "maxlen", "2"]);
    publish(&topics[1], "10").await;
    for client in &mut clients {
        client.gets("10").await;
    }
    let late = hub(&store).await.topic("news");
    let mut in_time = Client::of(&late, has_seven).await;
    in_time.gets("8").await;
    assert!(in_time.subscription.gap().is_none());
    let mut too_late = Client::of(&late, first).await;
    assert_eq!(too_late.is_told().await, "8");
    cli(&store, &["xtrim", "tower-sse", "maxlen", "0"]);
    publish(&topics[1], "11").await;
    for client in &mut clients {
        client.gets("11").await;
    }
}

/// The ids of the entries that are held.
fn ids_of(store: &Store) -> Vec<String> {
    let entries = cli(store, &["xrange", "tower-sse", "-", "+"]);
    let is_id = |line: &&str| {
        line.split_once('-').is_some_and(|(ms, n)| ms.len() == 13 && n.parse().is_ok_and(|n: u64| n < 1_048_575))
    };
    // Some are also what a field says.
    entries.lines().filter(is_id).map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_refuses_what_is_published_and_lets_read() {
    let store = Store::start(Engine::Redis, &[]).await;
    let redis = || RedisBackend::new(store.url()).expect("a URL").max_age(Duration::from_secs(1));
    let node = Hub::builder().backend(redis()).connect().await.expect("it is there");
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let begin = client.subscription.cursor();
    publish(&topic, "before").await;
    cli(&store, &["config", "set", "maxmemory", "1"]);
    let error = refused(&topic).await;
    assert!(error.contains("OOM") && error.contains("maxmemory"), "{error}");
    client.gets("before").await;
    let mut late = Client::of(&hub(&store).await.topic("news"), begin).await;
    late.gets("before").await;
    cli(&store, &["config", "set", "maxmemory", "0"]);
    publish(&topic, "after").await;
    client.gets("after").await;
    late.gets("after").await;

    // What is too old goes also if nothing can be added.
    for _ in 0..500 {
        publish(&topic, "old").await;
    }
    sleep(Duration::from_millis(1500)).await;
    let before: usize = cli(&store, &["xlen", "tower-sse"]).parse().expect("a number");
    let fill = "for i = 1, 30 do redis.call('XADD', KEYS[1], '*', 't', 'others', 'e', 'data: 7\\n\\n') end";
    cli(&store, &["eval", fill, "1", "tower-sse"]);
    let mut other = Client::of(&hub(&store).await.topic("others"), Start::Earliest).await;
    for _ in 0..30 {
        other.gets("7").await;
    }
    cli(&store, &["config", "set", "maxmemory", "1"]);
    // It has to know what time it is there.
    eventually(SOON, "it lets go of what is old", async || {
        refused(&topic).await;
        let length: usize = cli(&store, &["xlen", "tower-sse"]).parse().expect("a number");
        if length < before { Ok(()) } else { Err(length) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_so_without_the_password() {
    let store = Store::start(Engine::Redis, &["--requirepass", "topsecret"]).await;
    let asked = |command: &[&str]| cli(&store, &[&["--no-auth-warning", "-a", "topsecret"], command].concat());
    let backend = |user: &str| RedisBackend::new(store.url_with(user)).expect("a URL");
    for commands in [
        "",
        "-eval -evalsha",
        "-xadd",
        "-xread",
        "-info",
        "-@all +evalsha +script|load +exists +time +xadd +xinfo +xrange +xread +xrevrange +xtrim",
    ] {
        let rule = format!("acl setuser me reset on >mine ~tower-sse +@all {commands}");
        assert_eq!(asked(&rule.split_whitespace().collect::<Vec<_>>()), "OK", "{rule}");
        let backend = backend("me:mine@");
        assert!(!format!("{backend:?}").contains("mine"), "{backend:?}");
        let connected = Hub::builder().backend(backend).connect().await;
        let is_told = |error: tower_sse::hub::Error| {
            let error = error.source().expect("a reason").to_string();
            let says_so = error.contains("permission") || error.contains("can't run this command");
            assert!(says_so && !error.contains("mine"), "{commands}: {error}");
        };
        // Without INFO a random number separates the ids of servers.
        let is_enough = commands.is_empty() || commands == "-info" || commands.starts_with("-@all");
        match connected {
            Ok(hub) if is_enough => {
                let topic = hub.topic("news");
                let mut client = Client::of(&topic, Start::Latest).await;
                publish(&topic, "allowed").await;
                client.gets("allowed").await;
                // Nobody may name other streams than these.
                let other = RedisBackend::new(store.url_with("me:mine@")).expect("a URL").stream("other");
                let error = refuses(other).await;
                assert!(error.contains("\"other\"") && error.contains("permission"), "{error}");
            }
            Ok(hub) => {
                // To follow is no matter of connecting, if there is nothing to be read.
                match hub.topic("news").publish(Event::new("forbidden")).await {
                    Err(error) => is_told(error),
                    Ok(_) => assert_eq!(commands, "-xread"),
                }
            }
            Err(error) => {
                assert!(!is_enough, "{error}");
                is_told(error);
            }
        }
        asked(&["del", "tower-sse"]);
    }
    for user in ["", ":wrongword@", "nobody:wrongword@"] {
        let error = refuses(backend(user)).await;
        println!("{error}");
        assert!(error.contains("uthentication") && !error.contains("wrongword"), "{error}");
    }
    for url in ["http://:wrongword@localhost", "redis://:wrongword@localhost/x", "redis://:wrongword@localhost:x"] {
        let error = RedisBackend::new(url).expect_err("no URL of Redis").to_string();
        assert!(error.contains("no URL of Redis") && !error.contains("wrongword"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_can_name_a_socket_a_database_and_a_protocol_and_scripts_can_be_flushed() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("redis.sock");
    let store = Store::start(Engine::Redis, &["--unixsocket", path.to_str().expect("text")]).await;
    let socket = path.display();
    for (url, database) in [
        (format!("unix://{socket}?db=1"), "1"),
        (format!("redis+unix://{socket}?db=2&protocol=resp3"), "2"),
        (format!("{}/3?protocol=resp3", store.url()), "3"),
        (format!("{}/4", store.url().replace("redis://", "valkey://")), "4"),
        (format!("{}/5", store.url().replace("127.0.0.1", "localhost")), "5"),
    ] {
        let node =
            Hub::builder().backend(RedisBackend::new(&url).expect("a URL")).connect().await.expect("it is there");
        let topic = node.topic("news");
        let mut client = Client::of(&topic, Start::Latest).await;
        for data in ["1", "2", "3"] {
            publish(&topic, data).await;
            cli(&store, &["script", "flush"]);
            client.gets(data).await;
        }
        assert_eq!(cli(&store, &["-n", database, "xlen", "tower-sse"]), "3", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_two_connections_with_names_whatever_the_number_of_its_clients() {
    let store = Store::start(Engine::Redis, &[]).await;
    let node = Hub::builder()
        .max_events(10)
        .backend(RedisBackend::new(store.url()).expect("a URL"))
        .connect()
        .await
        .expect("it is there");
    let topic = node.topic("news");
    let first = publish(&topic, "first").await;
    for n in 0..100 {
        publish(&topic, &n.to_string()).await;
    }
    let names = || {
        let list = cli(&store, &["client", "list"]);
        let name = |line: &str| line.split(' ').find_map(|field| field.strip_prefix("name=").map(str::to_owned));
        let mut names: Vec<_> = list.lines().filter_map(name).filter(|name| !name.is_empty()).collect();
        names.sort();
        (names, list.lines().count())
    };
    for clients in [1, 500] {
        let mut all = Vec::new();
        for _ in 0..clients {
            let (topic, first) = (topic.clone(), first.clone());
            // What they have missed is not held here.
            all.push(tokio::spawn(async move {
                let mut client = Client::of(&topic, first).await;
                for n in 0..100 {
                    client.gets(&n.to_string()).await;
                }
                client
            }));
        }
        for client in all {
            client.await.expect("it has got them");
            assert_eq!(names().0, ["tower-sse-commands", "tower-sse-follow"]);
            if clients > 1 {
                break;
            }
        }
        // The third is the one that asks.
        assert_eq!(names(), (vec!["tower-sse-commands".to_owned(), "tower-sse-follow".to_owned()], 3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_make_small_pages() {
    let store = Store::start(Engine::Redis, &["--appendfsync", "no"]).await;
    let redis = || RedisBackend::new(store.url()).expect("a URL");
    let backend = redis();
    let begin = backend.bounds().await.expect("it is there").last;
    let record = |bytes: usize| Record {
        topic: "news".into(),
        kind: RecordKind::Event,
        event: format!("data: {}\n\n", "x".repeat(bytes)).into(),
    };
    backend.append((0..2000).map(|_| record(10)).collect()).await.expect("there is room");
    for _ in 0..100 {
        backend.append(vec![record(200 << 10)]).await.expect("there is room");
    }
    for follows in [false, true] {
        let (backend, mut after, mut sizes) = (redis(), begin, Vec::new());
        let newest = backend.bounds().await.expect("it is there").last;
        while after < newest {
            let page = match follows {
                true => backend.follow(after).await,
                false => backend.read(&["news".into()], after).await,
            }
            .expect("a page");
            assert!(page.evicted_through <= after);
            after = page.through;
            sizes.push(page.records.iter().map(|(_, record)| record.event.len()).sum::<usize>());
        }
        let large = sizes.iter().filter(|size| **size > 2 << 20).count();
        assert!(large <= 1, "one at most comes before it is known how large they are: {sizes:?}");
        assert!(sizes.len() < 110 + 2000 / 64, "small ones come together: {sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_still_loads_is_waited_for() {
    let slowly = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    let mut store = Store::start(Engine::Redis, &slowly).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "before").await;
    cli(&store, &["eval", "for i = 1, 500 do redis.call('SET', 'key' .. i, string.rep(i, 100)) end", "0"]);
    // Its delay is one of snapshots.
    cli(&store, &["bgrewriteaof"]);
    eventually(SOON, "the log of the server is a snapshot", async || {
        let info = cli(&store, &["info", "persistence"]);
        let is_idle = info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0");
        if is_idle { Ok(()) } else { Err(info) }
    })
    .await;
    store.kill();
    store.restart().await;
    let error = refused(&topic).await;
    assert!(error.contains("loading"), "{error}");
    eventually(SOON, "it is loaded", async || {
        let answer = cli(&store, &["exists", "key1"]);
        if answer == "1" { Ok(()) } else { Err(answer) }
    })
    .await;
    let back = Instant::now();
    publish(&topic, "after").await;
    client.gets("before").await;
    client.gets("after").await;
    println!("delivered {:?} after it was loaded", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_that_has_not_the_stream_says_who_has() {
    let start = async || {
        let bus = free_port().to_string();
        (Store::start(Engine::Redis, &["--cluster-enabled", "yes", "--cluster-port", &bus]).await, bus)
    };
    let (asked, _) = start().await;
    let (has, bus) = start().await;
    let slots: Vec<_> = (0..16_384).map(|slot| slot.to_string()).collect();
    let slots: Vec<_> = ["cluster", "addslots"].into_iter().chain(slots.iter().map(|slot| &**slot)).collect();
    assert_eq!(cli(&has, &slots), "OK");
    let port = has.address().port().to_string();
    assert_eq!(cli(&asked, &["cluster", "meet", "127.0.0.1", &port, &bus]), "OK");
    eventually(SOON, "both know who has what", async || {
        let states = [&asked, &has].map(|store| cli(store, &["cluster", "info"]));
        if states.iter().all(|state| state.contains("cluster_state:ok")) { Ok(()) } else { Err(states) }
    })
    .await;
    let node = hub(&asked).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "there").await;
    client.gets("there").await;
    assert_eq!(cli(&has, &["xlen", "tower-sse"]), "1");
}
