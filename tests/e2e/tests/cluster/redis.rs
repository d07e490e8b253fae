//! Tests for Redis only.

use crate::{setup::assert_fast_once, unchanged::redis};
use e2e::{Port, Store, StoreKind, eventually, installed};
use std::{
    collections::{BTreeSet, VecDeque},
    error::Error,
    process::Command,
    time::{Duration, Instant, SystemTime},
};
use support::whatwg;
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

/// A client that parses its subscription.
pub(crate) struct Client {
    pub(crate) subscription: Subscription,
    last: String,
    messages: VecDeque<(String, String)>,
}

impl Client {
    pub(crate) async fn of(topic: &Topic, start: impl Into<Start>) -> Self {
        let subscription = topic.subscribe(start).await.expect("the hub accepts the subscription");
        let last = subscription.cursor().as_str().to_owned();
        Self { subscription, last, messages: VecDeque::new() }
    }

    /// Reads to the end of the stream, and subscribes with the last id.
    pub(crate) async fn reconnect(&mut self, topic: &Topic) {
        while let Some(Ok(events)) = timeout(SOON, self.subscription.next()).await.expect("the stream ends") {
            self.last = whatwg::parse_after(&self.last, events.as_bytes()).last_event_id;
        }
        *self = Self::of(topic, EventId::new(&*self.last).expect("an id")).await;
    }

    /// Returns the type and the data of the next message.
    pub(crate) async fn next(&mut self) -> (String, String) {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return message;
            }
            let events = timeout(SOON, self.subscription.next()).await.expect("a message arrives");
            let events = events.expect("the stream does not end").expect("no error");
            let source = whatwg::parse_after(&self.last, events.as_bytes());
            self.messages.extend(source.messages.into_iter().map(|message| {
                self.last = message.last_event_id;
                (message.r#type, message.data)
            }));
        }
    }

    /// Asserts that the next message has this data.
    pub(crate) async fn assert_next(&mut self, data: &str) {
        assert_eq!(self.next().await, ("message".to_owned(), data.to_owned()));
    }

    /// Asserts that the next message is a gap, and returns the data of the message after it.
    pub(crate) async fn next_after_gap(&mut self) -> String {
        let (kind, data) = self.next().await;
        assert_eq!(kind, "gap", "{data}");
        self.next().await.1
    }
}

/// Runs a command with `redis-cli`, and returns its output.
pub(crate) fn cli(store: &Store, command: &[&str]) -> String {
    let port = store.address().port().to_string();
    let mut cli = Command::new(installed(&["redis-cli", "valkey-cli"], "redis-server"));
    let output = cli.args(["-h", "127.0.0.1", "-p", &port]).args(command).output().expect("redis-cli runs");
    String::from_utf8(output.stdout).expect("the output is UTF-8").trim().to_owned()
}

pub(crate) async fn hub(store: &Store) -> Hub {
    Hub::builder().backend(redis(&store.url())).connect().await.expect("the server responds")
}

pub(crate) async fn publish(topic: &Topic, data: &str) -> EventId {
    topic.publish(Event::new(data)).await.expect("the server responds")
}

/// Publishes an event, and returns the reason of the error.
pub(crate) async fn publish_error(topic: &Topic) -> String {
    let error = topic.publish(Event::new("rejected")).await.expect_err("publishing is an error");
    error.source().expect("the error has a source").to_string()
}

/// Connects, and returns the reason of the error.
pub(crate) async fn connect_error(backend: RedisBackend) -> String {
    let begin = Instant::now();
    let error = Hub::builder().backend(backend).connect().await.expect_err("connecting is an error");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    error.source().expect("the error has a source").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_end_is_a_gap_without_repeated_ids() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        if n == 7 {
            // Later events are lost, as in a failover to a replica that has not received them.
            assert_eq!(cli(&store, &["copy", "tower-sse", "older"]), "1");
        }
        ids.push(publish(&topic, &n.to_string()).await);
        client.assert_next(&n.to_string()).await;
    }
    assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
    let id = publish(&topic, "after").await;
    assert!(id.as_str() > ids[9].as_str(), "{id:?} {ids:?}");
    assert_eq!(client.next_after_gap().await, "after");

    // On a node that has never read the lost events, clients with lost ids and with older ids
    // receive a gap, too.
    let other = hub(&store).await.topic("news");
    for id in [&ids[8], &ids[6], &ids[4]] {
        let mut late = Client::of(&other, id.clone()).await;
        assert_eq!(late.next_after_gap().await, "after");
    }
    let mut later = Client::of(&other, id).await;
    publish(&topic, "later").await;
    later.assert_next("later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_follows_a_log_whose_ids_went_back() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    publish(&topic, "kept").await;
    // An id from a wrong clock.
    let future = "9999999999999-0";
    cli(&store, &["xadd", "tower-sse", future, "t", "news", "e", "data: wrong\n\n"]);
    let mut client = Client::of(&topic, Start::Earliest).await;
    client.assert_next("kept").await;
    client.assert_next("wrong").await;
    cli(&store, &["del", "tower-sse"]);
    sleep(Duration::from_secs(2)).await;
    // Another process has not read that id, and uses ids of the current time.
    let other = hub(&store).await.topic("news");
    for n in 0..3 {
        publish(&other, &n.to_string()).await;
        sleep(Duration::from_millis(700)).await;
    }
    eventually(SOON, "the first node delivers the new events", async || {
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
async fn demoted_master_is_an_error_until_promoted() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "before").await;
    let unused = Port::free().expect("there is a free port");
    cli(&store, &["replicaof", "127.0.0.1", &unused.address().port().to_string()]);
    let error = publish_error(&topic).await;
    assert!(error.contains("READONLY") || error.contains("read only"), "{error}");
    // Subscriptions still work.
    let mut late = Client::of(&topic, Start::Earliest).await;
    late.assert_next("before").await;
    cli(&store, &["replicaof", "no", "one"]);
    publish(&topic, "after").await;
    client.assert_next("before").await;
    client.assert_next("after").await;
    late.assert_next("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_other_programs_are_skipped() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let begin = client.subscription.cursor();
    publish(&topic, "first").await;
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is after 1970").as_millis();
    let mut expected = vec!["first".to_owned()];
    for (n, (id, fields)) in [
        ("*".to_owned(), &["anything", "at all"][..]),
        ("*".to_owned(), &["t", "news"]),
        ("*".to_owned(), &["e", "data: no topic\n\n"]),
        ("*".to_owned(), &["t", "news", "e", "this is no event"]),
        ("*".to_owned(), &["p", "no id", "t", "", "", ""]),
        (format!("{}-18446744073709551615", now + 5_000), &["far", "off"]),
        // Ids in the future, as after a clock that went back.
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
    // Two entries with the same position.
    for sequence in ["99999999", "100000000"] {
        cli(&store, &["xadd", "tower-sse", &format!("{}-{sequence}", now + 180_000), "far", "off"]);
    }
    expected.push("last".to_owned());
    publish(&topic, "last").await;
    let mut second = Client::of(&topic, begin.clone()).await;
    let mut other = Client::of(&hub(&store).await.topic("news"), begin).await;
    for client in [&mut client, &mut second, &mut other] {
        for data in &expected {
            client.assert_next(data).await;
        }
        assert!(client.subscription.gap().is_none());
    }

    // No id is possible after this one.
    cli(&store, &["xadd", "tower-sse", "18446744073709551615-7", "the", "end"]);
    let error = publish_error(&topic).await;
    assert!(error.contains("18446744073709551615-7") && error.contains("delete the stream"), "{error}");
    cli(&store, &["del", "tower-sse"]);
    publish(&topic, "again").await;
    client.reconnect(&topic).await;
    assert_eq!(client.next_after_gap().await, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_replaced_and_evicted_streams_are_gaps() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let nodes = [hub(&store).await, hub(&store).await];
    let topics = nodes.each_ref().map(|node| node.topic("news"));
    let mut clients = [Client::of(&topics[0], Start::Latest).await, Client::of(&topics[1], Start::Latest).await];
    let first = publish(&topics[0], "first").await;
    for client in &mut clients {
        client.assert_next("first").await;
    }
    cli(&store, &["del", "tower-sse"]);
    publish(&topics[1], "second").await;
    for client in &mut clients {
        assert_eq!(client.next_after_gap().await, "second");
    }

    // Replaced by a key of another type.
    cli(&store, &["del", "tower-sse"]);
    cli(&store, &["set", "tower-sse", "text"]);
    let error = publish_error(&topics[0]).await;
    assert!(error.contains("WRONGTYPE") && error.contains("\"tower-sse\""), "{error}");
    let error = connect_error(RedisBackend::new(store.url()).expect("the URL is valid")).await;
    assert!(error.contains("WRONGTYPE"), "{error}");
    cli(&store, &["del", "tower-sse"]);
    publish(&topics[0], "third").await;
    for client in &mut clients {
        assert_eq!(client.next_after_gap().await, "third");
    }

    // Evicted by Redis.
    cli(&store, &["config", "set", "maxmemory-policy", "allkeys-random"]);
    cli(&store, &["config", "set", "maxmemory", "1"]);
    let _evicts_it = topics[0].publish(Event::new("too much")).await;
    assert_eq!(cli(&store, &["exists", "tower-sse"]), "0");
    cli(&store, &["config", "set", "maxmemory", "0"]);
    publish(&topics[0], "fourth").await;
    for client in &mut clients {
        assert_eq!(client.next_after_gap().await, "fourth");
    }

    // Trimmed: clients that have read the entries miss nothing.
    for n in 5..10 {
        publish(&topics[0], &n.to_string()).await;
    }
    for client in &mut clients {
        for n in 5..10 {
            client.assert_next(&n.to_string()).await;
        }
    }
    let has_seven = EventId::new(ids_of(&store)[3].clone()).expect("an id");
    cli(&store, &["xtrim", "tower-sse", "maxlen", "2"]);
    publish(&topics[1], "10").await;
    for client in &mut clients {
        client.assert_next("10").await;
    }
    let late = hub(&store).await.topic("news");
    let mut in_time = Client::of(&late, has_seven).await;
    in_time.assert_next("8").await;
    assert!(in_time.subscription.gap().is_none());
    let mut too_late = Client::of(&late, first).await;
    assert_eq!(too_late.next_after_gap().await, "8");
    cli(&store, &["xtrim", "tower-sse", "maxlen", "0"]);
    publish(&topics[1], "11").await;
    for client in &mut clients {
        client.assert_next("11").await;
    }
}

/// Returns the ids of the entries in the stream.
fn ids_of(store: &Store) -> Vec<String> {
    let entries = cli(store, &["xrange", "tower-sse", "-", "+"]);
    let is_id = |line: &&str| {
        line.split_once('-').is_some_and(|(ms, n)| ms.len() == 13 && n.parse().is_ok_and(|n: u64| n < 1_048_575))
    };
    // An id can occur in a field of another entry, too.
    entries.lines().filter(is_id).map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_rejects_publishing_and_allows_reading() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let redis = || redis(&store.url()).max_age(Duration::from_secs(1));
    // The hub retains events for longer than the log.
    let builder = Hub::builder().max_age(Duration::from_secs(3600));
    let node = builder.backend(redis()).connect().await.expect("the server responds");
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    let begin = client.subscription.cursor();
    publish(&topic, "before").await;
    cli(&store, &["config", "set", "maxmemory", "1"]);
    let error = publish_error(&topic).await;
    assert!(error.contains("OOM") && error.contains("maxmemory"), "{error}");
    client.assert_next("before").await;
    let mut late = Client::of(&hub(&store).await.topic("news"), begin).await;
    late.assert_next("before").await;
    cli(&store, &["config", "set", "maxmemory", "0"]);
    publish(&topic, "after").await;
    client.assert_next("after").await;
    late.assert_next("after").await;

    // Old entries are trimmed although no entry can be added.
    for _ in 0..500 {
        publish(&topic, "old").await;
    }
    sleep(Duration::from_millis(1500)).await;
    let before: usize = cli(&store, &["xlen", "tower-sse"]).parse().expect("a number");
    let fill = "for i = 1, 30 do redis.call('XADD', KEYS[1], '*', 't', 'others', 'e', 'data: 7\\n\\n') end";
    cli(&store, &["eval", fill, "1", "tower-sse"]);
    let mut other = Client::of(&hub(&store).await.topic("others"), Start::Earliest).await;
    for _ in 0..30 {
        other.assert_next("7").await;
    }
    cli(&store, &["config", "set", "maxmemory", "1"]);
    // The node has to learn the time of the server first.
    eventually(SOON, "the node trims old entries", async || {
        publish_error(&topic).await;
        let length: usize = cli(&store, &["xlen", "tower-sse"]).parse().expect("a number");
        if length < before { Ok(()) } else { Err(length) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_has_two_named_connections_for_all_clients() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let node = Hub::builder().max_events(10).backend(redis(&store.url())).connect().await.expect("the server responds");
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
            // The node does not retain these events, so it reads them from Redis.
            all.push(tokio::spawn(async move {
                let mut client = Client::of(&topic, first).await;
                for n in 0..100 {
                    client.assert_next(&n.to_string()).await;
                }
                client
            }));
        }
        for client in all {
            client.await.expect("the client does not panic");
            assert_eq!(names().0, ["tower-sse-commands", "tower-sse-follow"]);
            if clients > 1 {
                break;
            }
        }
        // The third connection is that of the request.
        assert_eq!(names(), (vec!["tower-sse-commands".to_owned(), "tower-sse-follow".to_owned()], 3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_make_small_pages() {
    let store = Store::start(StoreKind::Redis, &["--appendfsync", "no"]).await;
    let redis = || redis(&store.url());
    let backend = redis();
    let begin = backend.bounds().await.expect("the server responds").last;
    let record = |bytes: usize| Record::new("news", RecordKind::Event, format!("data: {}\n\n", "x".repeat(bytes)));
    backend.append((0..2000).map(|_| record(10)).collect()).await.expect("the server has memory");
    for _ in 0..100 {
        backend.append(vec![record(200 << 10)]).await.expect("the server has memory");
    }
    for follows in [false, true] {
        let (backend, mut after, mut sizes) = (redis(), begin, Vec::new());
        let newest = backend.bounds().await.expect("the server responds").last;
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
        assert!(large <= 1, "only one page may be large, before the size of the events is known: {sizes:?}");
        assert!(sizes.len() < 110 + 2000 / 64, "small events share pages: {sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_recovers_after_the_server_has_loaded() {
    let slowly = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    let mut store = Store::start(StoreKind::Redis, &slowly).await;
    let node = hub(&store).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "before").await;
    client.assert_next("before").await;
    cli(&store, &["eval", "for i = 1, 500 do redis.call('SET', 'key' .. i, string.rep(i, 100)) end", "0"]);
    // `key-load-delay` applies to snapshots only.
    cli(&store, &["bgrewriteaof"]);
    eventually(SOON, "the append-only file is a snapshot", async || {
        let info = cli(&store, &["info", "persistence"]);
        let is_idle = info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0");
        if is_idle { Ok(()) } else { Err(info) }
    })
    .await;
    assert_fast_once("after the server has loaded", async |n| {
        store.kill();
        store.restart().await;
        let error = publish_error(&topic).await;
        assert!(error.contains("loading"), "{error}");
        eventually(SOON, "the server has loaded its data", async || {
            let answer = cli(&store, &["exists", "key1"]);
            if answer == "1" { Ok(()) } else { Err(answer) }
        })
        .await;
        let back = Instant::now();
        publish(&topic, &format!("after {n}")).await;
        client.assert_next(&format!("after {n}")).await;
        back.elapsed()
    })
    .await;
}
