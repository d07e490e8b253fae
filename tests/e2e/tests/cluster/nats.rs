//! Tests for NATS only.

use crate::{
    connections::nats_connections,
    setup::{ERROR_TIMEOUT, assert_fast_once},
    unchanged::{DEFAULT_TIMEOUT, nats},
};
use async_nats::jetstream::{self, stream};
use e2e::{Port, Store, StoreKind, Wire, eventually};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
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
    nats(url)
}

pub(crate) async fn connect(backend: NatsBackend) -> Hub {
    try_connect(backend).await.expect("the server responds")
}

pub(crate) async fn try_connect(backend: NatsBackend) -> Result<Hub, Error> {
    // The hub retains events for longer than some of the logs.
    Hub::builder().max_events(100).max_age(Duration::from_secs(3600)).backend(backend).connect().await
}

/// Connects as an operator of the server.
pub(crate) async fn admin(url: &str) -> jetstream::Context {
    jetstream::new(async_nats::connect(url).await.expect("the server responds"))
}

/// Returns the reason of a backend error.
pub(crate) fn reason(error: &Error) -> String {
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    std::error::Error::source(error).expect("the error has a source").to_string()
}

/// Returns the stream of the log.
pub(crate) async fn stream_of_log(admin: &jetstream::Context) -> stream::Stream {
    admin.get_stream("tower-sse").await.expect("the server responds")
}

/// Returns the configuration and the state of the stream.
pub(crate) async fn stream_info(admin: &jetstream::Context) -> stream::Info {
    stream_of_log(admin).await.cached_info().clone()
}

/// Returns the marks that identify logs, in the order of their messages.
pub(crate) async fn marks(admin: &jetstream::Context) -> Vec<String> {
    let stream = stream_of_log(admin).await;
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
    hub.topic("news").publish(Event::new(text)).await.expect("the server responds")
}

/// Publishes an event, and tries again after errors.
pub(crate) async fn publish_retrying(hub: &Hub, text: &str) -> EventId {
    let begin = Instant::now();
    loop {
        match hub.topic("news").publish(Event::new(text)).await {
            Ok(id) => return id,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}: {}", reason(&error)),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Reads until the text has arrived, and returns everything that was read.
pub(crate) async fn read_until(subscription: &mut Subscription, text: &str) -> String {
    let read = timeout(SOON, try_read_until(subscription, text)).await;
    read.unwrap_or_else(|_| panic!("{text:?} does not arrive"))
        .unwrap_or_else(|all| panic!("the stream ended: {all:?}"))
}

/// Reads until the text has arrived. The error is everything before the end of the stream.
async fn try_read_until(subscription: &mut Subscription, text: &str) -> Result<String, String> {
    let mut all = String::new();
    while !all.contains(text) {
        let Some(Ok(events)) = subscription.next().await else { return Err(all) };
        all.push_str(&String::from_utf8_lossy(events.as_bytes()));
    }
    Ok(all)
}

/// Subscribes with this id until the node knows of a gap, and reads until the text has arrived.
pub(crate) async fn replay_with_gap(node: &Hub, id: &EventId, text: &str) -> String {
    let read = async {
        loop {
            let mut back = node.topic("news").subscribe(id.clone()).await.expect("the hub accepts the subscription");
            // When the node learns of another log, it ends its subscriptions.
            match try_read_until(&mut back, text).await {
                Ok(all) if all.contains("event: gap\n") => return all,
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(SOON, read).await.expect("the client receives a gap")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_one_connection_and_one_consumer() {
    let monitor = Port::free().expect("there is a free port");
    let store = Store::start(StoreKind::Nats, &["-m", &monitor.address().port().to_string()]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;

    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    let first = publish(&nodes[0], "first").await;
    for n in 0..1200 {
        nodes[0].topic(format!("news/{}", n % 3)).publish(Event::display(n)).await.expect("the server responds");
    }
    publish(&nodes[0], "last").await;
    let mut most = 0;
    for round in 0..6 {
        // Clients of both nodes resume after the first event. Some disconnect before they read.
        let mut clients = Vec::new();
        for n in 0..20 {
            let topics = ["news", "news/0", "news/1", "news/2"];
            let hub = nodes[n % 2].clone();
            let id = first.clone();
            clients.push(tokio::spawn(async move {
                let mut late = hub.subscribe(topics, id).await.expect("the hub accepts the subscription");
                assert_eq!(late.gap().map(|gap| gap.reason()), None);
                if n % 4 != 0 {
                    read_until(&mut late, "last").await;
                }
            }));
        }
        for (n, client) in clients.into_iter().enumerate() {
            if n % 5 == 0 { client.abort() } else { client.await.expect("the client does not panic") }
        }
        // A node that disconnects.
        let short = connect(backend(&store.url_through(&wire))).await;
        publish(&short, &format!("of round {round}")).await;
        most = most.max(stream_info(&admin).await.state.consumer_count);
    }
    // The connections of the dropped nodes are closed soon.
    let what = "three connections are left: two of nodes, and one of this test";
    eventually(SOON, what, async || match nats_connections(monitor.address()).await {
        3 => Ok(()),
        other => Err(other),
    })
    .await;
    // Two nodes, six dropped nodes, and the replays that were reading a page at their disconnect.
    assert!(most <= 2 + 6 + 2 * 16, "{most} consumers");
    let mut left = most;
    let begin = Instant::now();
    while left != 2 {
        assert!(begin.elapsed() < SOON, "{left} consumers are left");
        sleep(Duration::from_millis(100)).await;
        left = stream_info(&admin).await.state.consumer_count;
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "the consumers were removed after {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_stream_is_recreated_with_a_gap() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;
    let node = async || connect(backend(&store.url_through(&wire)).timeout(DEFAULT_TIMEOUT)).await;
    let nodes = [node().await, node().await];
    for by_operator in [false, true] {
        let last = publish_retrying(&nodes[0], "before").await;
        let mut client =
            nodes[1].topic("news").subscribe(last.clone()).await.expect("the hub accepts the subscription");
        // The operator creates the stream before the nodes can.
        if by_operator {
            wire.silence();
        }
        admin.delete_stream("tower-sse").await.expect("the server responds");
        if by_operator {
            let config = stream::Config {
                name: "tower-sse".to_owned(),
                subjects: vec!["tower-sse.>".to_owned()],
                ..stream::Config::default()
            };
            admin.create_stream(config).await.expect("the stream is deleted");
        }
        wire.mend();
        let begin = Instant::now();
        // The cursor is of another log, so the subscription ends.
        let ended = timeout(SOON, async { while client.next().await.is_some() {} }).await;
        assert!(ended.is_ok(), "the subscription does not end");
        println!("ended after {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        let id = publish_retrying(&nodes[0], "after").await;
        assert_ne!(id, last);
        for node in &nodes {
            // Each node has to detect the new log by itself.
            let replay = replay_with_gap(node, &last, "data: after\n").await;
            assert!(replay.contains("event: gap\n") && !replay.contains("before"), "{replay}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_without_its_end_is_another_epoch() {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let (files, copy) = (folder.path().join("files"), folder.path().join("copy"));
    let mut store = Store::start(StoreKind::Nats, &["-sd", files.to_str().expect("the path is UTF-8")]).await;
    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    publish(&nodes[0], "kept").await;
    store.kill();
    copy_all(&files, &copy);
    store.restart().await;
    let early = publish_retrying(&nodes[0], "lost").await;
    for n in 0..20 {
        publish_retrying(&nodes[n % 2], &format!("lost {n}")).await;
    }
    let mut client = nodes[1].topic("news").subscribe(early.clone()).await.expect("the hub accepts the subscription");
    read_until(&mut client, "lost 19").await;
    // The disk is restored from an older copy, for example after a power failure. Before the nodes
    // reconnect, another node publishes more events than were lost, so the sequence numbers reach
    // the same height.
    store.kill();
    fs::remove_dir_all(&files).expect("the server responds");
    copy_all(&copy, &files);
    let elsewhere = Store::start(StoreKind::Nats, &["-sd", files.to_str().expect("the path is UTF-8")]).await;
    let other = connect(backend(&elsewhere.url())).await;
    for n in 0..50 {
        publish(&other, &format!("again {n}")).await;
    }
    drop((other, elsewhere));
    store.restart().await;
    timeout(SOON, async { while client.next().await.is_some() {} }).await.expect("the subscription ends");
    for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
        let replay = replay_with_gap(node, &early, "data: again 49\n").await;
        assert!(replay.contains("other_epoch"), "{replay}");
        for n in 0..50 {
            assert!(replay.contains(&format!("data: again {n}\n")), "{n}: {replay}");
        }
    }
    let marks = marks(&admin(&store.url()).await).await;
    assert_eq!(marks.len(), 2, "the log has one new mark for both nodes: {marks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_or_edit_without_loss_keeps_the_epoch() {
    let mut store = Store::start(StoreKind::Nats, &[]).await;
    let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
    let mut last = publish(&nodes[0], "first").await;
    for n in 0..5 {
        store.kill();
        store.restart().await;
        let admin = admin(&store.url()).await;
        let config = stream_info(&admin).await.config;
        admin
            .update_stream(stream::Config { max_messages: 1000 + n as i64, ..config })
            .await
            .expect("the server responds");
        let text = format!("after {n}");
        let next = publish_retrying(&nodes[n % 2], &text).await;
        for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
            let mut back = node.topic("news").subscribe(last.clone()).await.expect("the hub accepts the subscription");
            let got = read_until(&mut back, &format!("data: {text}\n")).await;
            assert!(!got.contains("gap"), "{got}");
        }
        last = next;
    }
}

pub(crate) fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be created");
    for entry in fs::read_dir(from).expect("the server responds").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_all(&from, &to),
            false => assert!(fs::copy(&from, &to).is_ok(), "the file can be copied"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsuitable_streams_are_errors_with_the_reason() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let subjects = |name: &str| vec![format!("{name}.>")];
    let make = async |name: &str, config: stream::Config| {
        admin.create_stream(stream::Config { name: name.to_owned(), ..config }).await.expect("the stream is new");
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
        let error = try_connect(backend(&store.url()).stream(name)).await.expect_err("the stream is unsuitable");
        let reason = reason(&error);
        assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    }
    // Messages of other programs are skipped, and the limits of an existing stream stay.
    make("mine", stream::Config { subjects: subjects("mine"), max_messages: 7, ..stream::Config::default() }).await;
    let hub = connect(backend(&store.url()).stream("mine").max_messages(1000)).await;
    let mut client = hub.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
    for subject in ["mine.x", "mine.news", "mine.=ZZ=", "mine.news=.more"] {
        let ack = admin.publish(subject, "no event".into()).await.expect("the server responds");
        ack.await.expect("the message is stored");
    }
    admin
        .publish("mine.news=", "no event".into())
        .await
        .expect("the server responds")
        .await
        .expect("the message is stored");
    publish(&hub, "mine").await;
    let got = read_until(&mut client, "data: mine\n").await;
    assert!(!got.contains("no event"), "{got}");
    let info = admin.get_stream("mine").await.expect("the server responds").cached_info().clone();
    assert_eq!(info.config.max_messages, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_batch_is_an_error_and_stores_nothing() {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let file = folder.path().join("nats.conf");
    fs::write(&file, "max_payload: 64KB").expect("the file can be written");
    let store = Store::start(StoreKind::Nats, &["-c", file.to_str().expect("the path is UTF-8")]).await;
    let admin = admin(&store.url()).await;
    let config = stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        max_bytes: 200_000,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    admin.create_stream(config).await.expect("the stream is new");
    let hub = connect(backend(&store.url())).await;
    let mut client = hub.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");

    // Each event alone would fit.
    let many = (0..100).map(|n| Event::new(format!("{n}: {}", "x".repeat(1000))));
    let error = hub.topic("news").publish_all(many).await.expect_err("the batch is too large");
    let why = reason(&error);
    assert!(why.contains("one message of 10") && why.contains("takes 65536"), "{why}");
    let long = "x".repeat(3000);
    let error = hub.topic(&long).publish(Event::new("x")).await.expect_err("the name is too long");
    assert!(reason(&error).contains("too long"), "{}", reason(&error));
    // Such a topic can be subscribed to, and is empty.
    let mut both = hub.subscribe(["news", &long], Start::Earliest).await.expect("the hub accepts the subscription");
    assert_eq!(stream_info(&admin).await.state.messages, 1, "only the mark is stored");

    publish(&hub, "first").await;
    read_until(&mut both, "data: first\n").await;
    let mut count = 2;
    let error = loop {
        match hub.topic("news").publish(Event::new("y".repeat(10_000))).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 100, "the stream never becomes full");
    };
    let why = reason(&error);
    assert!(why.contains("maximum bytes exceeded"), "{why}");
    assert_eq!(stream_info(&admin).await.state.messages, count);
    // The connection stays usable, and publishing succeeds when the stream has room.
    stream_of_log(&admin).await.purge().await.expect("the stream is purged");
    publish(&hub, "after the purge").await;
    read_until(&mut client, "after the purge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_store_once_and_silent_connections_are_replaced() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = Wire::to(store.address()).await;
    let admin = admin(&store.url()).await;
    let near = connect(backend(&store.url())).await;
    let far = connect(backend(&store.url_through(&wire)).timeout(DEFAULT_TIMEOUT)).await;
    let mut client = far.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
    publish(&near, "first").await;
    read_until(&mut client, "first").await;

    assert_fast_once("silent responses", async |n| {
        wire.silence_responses();
        let begin = Instant::now();
        let error = far.topic("news").publish(Event::new("unsure")).await.expect_err("the answer does not arrive");
        println!("silent: {:?}: {}", begin.elapsed(), reason(&error));
        assert!(begin.elapsed() < ERROR_TIMEOUT, "{:?}", begin.elapsed());
        assert!(reason(&error).contains("has not answered"), "{}", reason(&error));
        // The server has received the event twice, and has stored it once, before this one.
        publish(&near, &format!("second {n}")).await;
        let state = stream_info(&admin).await.state;
        let expected = 2 + 2 * (n as u64 + 1);
        assert_eq!((state.messages, state.last_sequence), (expected, expected), "a mark, first, unsure, second ...");
        // The node has detected the dead connection by itself, so it recovers quickly.
        wire.mend();
        let begin = Instant::now();
        let got = read_until(&mut client, &format!("second {n}")).await;
        assert_eq!(got.matches("data: unsure").count(), 1, "{got}");
        begin.elapsed()
    })
    .await;

    // Both directions are silent, and new connections, too. No node publishes.
    for silence in [Duration::from_millis(500), Duration::from_secs(6)] {
        let what = format!("silent for {silence:?}");
        assert_fast_once(&what, async |n| {
            wire.silence();
            sleep(silence).await;
            publish(&near, &format!("{what} {n}")).await;
            wire.mend();
            let begin = Instant::now();
            read_until(&mut client, &format!("{what} {n}")).await;
            begin.elapsed()
        })
        .await;
    }
    publish_retrying(&far, "the end").await;
    read_until(&mut client, "the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_deleted_from_the_middle_is_evicted() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let log = backend(&store.url());
    log.bounds().await.expect("the server responds");
    let mut positions = Vec::new();
    for n in 0..6 {
        let record = Record::new("news", RecordKind::Event, format!("data: {n}\n\n"));
        positions.push(log.append(vec![record]).await.expect("the server responds").position);
    }
    stream_of_log(&admin).await.delete_message(5).await.expect("the server responds");
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
fn hub_can_be_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    let (store, hub, log) = runtime.block_on(async {
        let store = Store::start(StoreKind::Nats, &[]).await;
        let hub = connect(backend(&store.url())).await;
        publish(&hub, "x").await;
        let log = backend(&store.url());
        log.follow(Position::START).await.expect("a page");
        (store, hub, log)
    });
    // The backend still has a consumer.
    drop(log);
    drop(runtime);
    drop(hub);
    drop(store);
}
