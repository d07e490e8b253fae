//! Streams that become another log, although name and configuration stay the same, and streams with
//! missing messages.

use crate::{
    nats::{
        SOON, admin, backend, connect, copy_all, marks, publish, publish_retrying, read_until, reason, replay_with_gap,
        stream_info, stream_of_log, try_connect,
    },
    nats_cluster::Cluster,
};
use async_nats::jetstream::{self, stream};
use e2e::{Store, StoreKind, eventually};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{Hub, Start, backend::Backend},
};

/// The data of the last event.
const LAST: &str = "last";

/// The node and the number of an event, its id, and the time of the acknowledgement.
type Acknowledged = (usize, u32, String, Instant);

/// Publishers and clients on several nodes, before, during and after an incident.
struct Traffic {
    nodes: Vec<Hub>,
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    /// The last error of a publisher, with its source.
    error: Arc<Mutex<String>>,
    publishers: Vec<JoinHandle<()>>,
    clients: Vec<JoinHandle<Received>>,
}

/// Events and gaps in the order of their arrival at a client.
#[derive(Debug, Default)]
struct Received {
    events: Vec<(usize, u32)>,
    /// The number of events before each gap, and the time of its arrival.
    gaps: Vec<(usize, Instant)>,
}

impl Traffic {
    async fn start(nodes: &[Hub]) -> Self {
        Self::of_events(nodes, 0).await
    }

    /// Starts to publish events with a comment of this many bytes.
    async fn of_events(nodes: &[Hub], bytes: usize) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let acknowledged = Arc::<Mutex<Vec<_>>>::default();
        let error = Arc::<Mutex<String>>::default();
        let mut clients = Vec::new();
        for node in nodes {
            let subscription =
                node.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
            let last = subscription.cursor();
            drop(subscription);
            clients.push(tokio::spawn(receive(node.clone(), last)));
        }
        let publishers = nodes.iter().cloned().enumerate().map(|(name, node)| {
            let (is_over, acknowledged, last_error) = (is_over.clone(), acknowledged.clone(), error.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if is_over.load(SeqCst) {
                        break;
                    }
                    let event = Event::new(format!("{name}/{n}"));
                    let event = if bytes > 0 { event.comment("x".repeat(bytes)) } else { event };
                    match node.topic("news").publish(event).await {
                        Ok(id) => {
                            let event = (name, n, id.to_string(), Instant::now());
                            acknowledged.lock().expect("no holder panics").push(event);
                        }
                        Err(error) => {
                            *last_error.lock().expect("no holder panics") = format!("{error:?}");
                            sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            })
        });
        let publishers = publishers.collect();
        let traffic = Self { nodes: nodes.to_vec(), is_over, acknowledged, error, publishers, clients };
        traffic.wait_for_more_acknowledged(500).await;
        traffic
    }

    /// Waits until this many more events are acknowledged.
    async fn wait_for_more_acknowledged(&self, more: usize) {
        let count = || self.acknowledged.lock().expect("no holder panics").len();
        let (begin, before) = (Instant::now(), count());
        while count() < before + more {
            if begin.elapsed() >= 2 * SOON {
                let error = self.error.lock().expect("no holder panics");
                panic!("only {} of {more} were acknowledged; the last error: {error}", count() - before);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Checks that no id was issued twice, and that each client has received every event, or a gap
    /// instead.
    async fn check(self, what: &str) {
        self.wait_for_more_acknowledged(500).await;
        self.is_over.store(true, SeqCst);
        for publisher in self.publishers {
            publisher.await.expect("the task does not panic");
        }
        publish_retrying(&self.nodes[0], LAST).await;
        let acknowledged = self.acknowledged.lock().expect("no holder panics").clone();
        let ids: BTreeSet<_> = acknowledged.iter().map(|(.., id, _)| id).collect();
        assert_eq!(ids.len(), acknowledged.len(), "an id was acknowledged twice");
        for (name, client) in self.clients.into_iter().enumerate() {
            let received = timeout(SOON, client).await.expect("the last event comes").expect("the task does not panic");
            let missing = received.missing(&acknowledged);
            println!(
                "{what}: client {name} received {} events, {} gaps instead of {missing} of {} acknowledged events",
                received.events.len(),
                received.gaps.len(),
                acknowledged.len()
            );
            assert!(!received.gaps.is_empty(), "the log was replaced");
        }
    }
}

impl Received {
    /// Returns the number of acknowledged events that this client has not received. Panics if no
    /// gap reports a missing event. A gap reports it if the gap arrived between the events of the
    /// same publisher around it. It also reports an event that was acknowledged before the gap: the
    /// events that follow the gap may begin with older ones.
    fn missing(&self, acknowledged: &[Acknowledged]) -> usize {
        let mut first = BTreeMap::new();
        for (index, event) in self.events.iter().enumerate() {
            first.entry(*event).or_insert(index);
        }
        let mut missing = 0;
        for (name, n, id, at) in acknowledged.iter().filter(|(name, n, ..)| !first.contains_key(&(*name, *n))) {
            let before = first.range((*name, 0)..(*name, *n)).map(|(_, index)| *index + 1).max().unwrap_or(0);
            let after = first.range((*name, *n)..=(*name, u32::MAX)).map(|(_, index)| *index).min();
            let after = after.unwrap_or(self.events.len());
            let reports = |gap: &(usize, Instant)| gap.0 <= after && (gap.0 >= before || gap.1 > *at);
            let is_reported = self.gaps.iter().any(reports);
            assert!(is_reported, "{name}/{n} with the id {id} was lost silently: {:?}", self.gaps);
            missing += 1;
        }
        missing
    }
}

/// Receives events until the last, and reconnects with the last id whenever the stream ends.
async fn receive(node: Hub, mut last: EventId) -> Received {
    let mut received = Received::default();
    loop {
        let Ok(mut subscription) = node.topic("news").subscribe(last.clone()).await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        while let Some(Ok(events)) = subscription.next().await {
            let source = whatwg::parse_after(last.as_str(), events.as_bytes());
            for message in source.messages {
                match &*message.r#type {
                    "gap" => received.gaps.push((received.events.len(), Instant::now())),
                    "hub-cursor" => {}
                    _ if message.data == LAST => return received,
                    _ => {
                        let (name, n) = message.data.split_once('/').expect("two numbers");
                        received.events.push((name.parse().expect("a number"), n.parse().expect("a number")));
                    }
                }
            }
            last = EventId::new(source.last_event_id).expect("an id");
        }
    }
}

async fn two_nodes(url: &str) -> [Hub; 2] {
    [connect(backend(url)).await, connect(backend(url)).await]
}

/// Publishes events with a comment of this many bytes, and restores the same copy of the stream
/// this many times.
async fn restore_copy(bytes: usize, times: usize) {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let (files, copy) = (folder.path().join("files"), folder.path().join("copy"));
    let mut store = Store::start(StoreKind::Nats, &["-sd", files.to_str().expect("the path is UTF-8")]).await;
    let nodes = two_nodes(&store.url()).await;
    let traffic = Traffic::of_events(&nodes, bytes).await;
    store.kill();
    copy_all(&files, &copy);
    store.restart().await;
    for _ in 0..times {
        traffic.wait_for_more_acknowledged(1000).await;
        store.kill();
        fs::remove_dir_all(&files).expect("the files can be removed");
        copy_all(&copy, &files);
        store.restart().await;
    }
    traffic.check("a copy was restored").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_issues_no_id_twice() {
    restore_copy(0, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_that_is_restored_again_issues_no_id_twice() {
    restore_copy(0, 3).await;
}

/// A node does not remember messages over 4 KiB for its quick checks.
#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_of_large_events_issues_no_id_twice() {
    restore_copy(5000, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_stream_with_same_configuration_is_another_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let nodes = two_nodes(&store.url()).await;
    let admin = admin(&store.url()).await;
    let config = stream_info(&admin).await.config;
    let traffic = Traffic::start(&nodes).await;
    for _ in 0..3 {
        admin.delete_stream("tower-sse").await.expect("the server responds");
        // nats-server 2.9 still removes files after its response, and would remove those of a new
        // stream as well.
        sleep(Duration::from_millis(500)).await;
        // The nodes may have created it already.
        let _stream = admin.create_stream(config.clone()).await;
        traffic.wait_for_more_acknowledged(500).await;
    }
    traffic.check("the stream was created again, three times").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stream_of_restarted_server_is_another_log() {
    let mut store = Store::start(StoreKind::Nats, &[]).await;
    let config = stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        storage: stream::StorageType::Memory,
        ..stream::Config::default()
    };
    admin(&store.url()).await.create_stream(config.clone()).await.expect("the stream is new");
    let nodes = two_nodes(&store.url()).await;
    let traffic = Traffic::start(&nodes).await;
    for _ in 0..2 {
        store.kill();
        store.restart().await;
        // The server has forgotten the stream with its messages. An operator may be faster than the
        // nodes.
        let _stream = admin(&store.url()).await.create_stream(config.clone()).await;
        traffic.wait_for_more_acknowledged(500).await;
    }
    traffic.check("a server with a stream in memory was restarted twice").await;
}

/// The nodes are connected to the other servers, so they lose no connection.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_server_without_its_disk_begins_another_log() {
    let mut cluster = Cluster::start().await;
    cluster.connect(&cluster.url(), 1).await;
    let leader = cluster.leader().await;
    let others: Vec<_> = (0..3).filter(|n| *n != leader).map(|n| cluster.servers[n].url()).collect();
    let nodes = [cluster.connect(&others[0], 1).await, cluster.connect(&others[1], 1).await];
    let traffic = Traffic::start(&nodes).await;
    cluster.servers[leader].kill();
    cluster.start_without_disk(leader).await;
    traffic.check("a server of a cluster has lost its disk").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_starts_later_recognizes_another_log() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let node = connect(backend(&store.url())).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(publish(&node, &format!("before {n}")).await);
    }
    drop(node);
    let admin = admin(&store.url()).await;
    let config = stream_info(&admin).await.config;
    admin.delete_stream("tower-sse").await.expect("the server responds");
    sleep(Duration::from_millis(500)).await;
    admin.create_stream(config).await.expect("the stream is new");
    let later = connect(backend(&store.url())).await;
    for n in 0..8 {
        ids.push(publish(&later, &format!("after {n}")).await);
    }
    assert_eq!(ids.iter().map(EventId::as_str).collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    let mut client = later.topic("news").subscribe(ids[2].clone()).await.expect("the hub accepts the subscription");
    let got = read_until(&mut client, "after 7").await;
    assert!(got.contains("event: gap\n") && got.contains("data: after 0\n"), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_other_programs_stop_no_node() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let nodes = two_nodes(&store.url()).await;
    let admin = admin(&store.url()).await;
    let first = publish(&nodes[0], "first").await;
    let put = async |subject: &str, kind: &str, payload: &'static str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Tower-Sse-Kind", kind);
        let ack =
            admin.publish_with_headers(subject.to_owned(), headers, payload.into()).await.expect("the server responds");
        ack.await.expect("the message is stored");
    };
    // Kinds that this version does not know, and a configuration that an operator has edited,
    // change nothing.
    put("tower-sse.=", "log 7", "").await;
    put("tower-sse.news=", "log 18446744073709551615", "data: no event\n\n").await;
    let stream = stream_of_log(&admin).await;
    let edited = stream::Config { description: Some("; log 1.7".to_owned()), ..stream.cached_info().config.clone() };
    admin.update_stream(edited).await.expect("the server responds");
    let second = publish(&nodes[1], "second").await;
    for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
        let mut client = node.topic("news").subscribe(first.clone()).await.expect("the hub accepts the subscription");
        let got = read_until(&mut client, "data: second\n").await;
        assert!(!got.contains("gap") && !got.contains("no event"), "{got}");
    }
    // Any mark of another program begins another log, once.
    for payload in ["", "a mark of the operator", "\u{1F980}"] {
        put("tower-sse._log", "", payload).await;
        let third = publish_retrying(&nodes[0], "third").await;
        for node in [&nodes[0], &nodes[1], &connect(backend(&store.url())).await] {
            replay_with_gap(node, &second, "data: third\n").await;
        }
        let fourth = publish_retrying(&nodes[1], "fourth").await;
        assert_ne!(third, fourth);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_deleted_from_the_middle_are_a_gap() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    // The node retains too few events, so its clients read the stream.
    let node = connect(backend(&store.url())).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        let topic = if (2..5).contains(&n) { "other" } else { "news" };
        ids.push(node.topic(topic).publish(Event::display(n)).await.expect("the server responds"));
    }
    for n in 0..200 {
        publish(&node, &format!("filler {n}")).await;
    }
    let stream = stream_of_log(&admin).await;
    let read = async |topic: &str, from: usize| {
        let node = connect(backend(&store.url())).await;
        let mut client =
            node.topic(topic).subscribe(ids[from].clone()).await.expect("the hub accepts the subscription");
        let next = timeout(SOON, client.next())
            .await
            .expect("an event arrives")
            .expect("the stream does not end")
            .expect("no error");
        String::from_utf8_lossy(next.as_bytes()).into_owned()
    };
    assert!(!read("news", 0).await.contains("gap"), "nothing is missing yet");

    // The mark is message 1.
    stream.delete_message(2 + 6).await.expect("the server responds");
    let mut client = connect(backend(&store.url())).await.topic("news").subscribe(ids[0].clone()).await.expect("room");
    let got = read_until(&mut client, "data: filler 199\n").await;
    let gap = got.find("event: gap\n").expect("there is a gap");
    assert!(got.find("data: 5\n").expect("the event is retained") < gap, "{got}");
    assert!(gap < got.find("data: 7\n").expect("the event is retained") && !got.contains("data: 6\n"), "{got}");

    stream.purge().filter("tower-sse.other=").await.expect("the server responds");
    let got = read("other", 0).await;
    assert!(got.contains("event: gap\n"), "{got}");
    assert!(!read("news", 7).await.contains("gap"), "nothing after it is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_drop_from_the_middle_are_rejected() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let make = async |name: &str, config: stream::Config| {
        admin.create_stream(stream::Config { name: name.to_owned(), ..config }).await.expect("the stream is new");
    };
    let subjects = |name: &str| vec![format!("{name}.>")];
    let config = stream::Config { subjects: subjects("seven"), max_messages_per_subject: 7, ..Default::default() };
    make("seven", config).await;
    make("sealed", stream::Config { subjects: subjects("sealed"), ..Default::default() }).await;
    let sealed = admin.get_stream("sealed").await.expect("the server responds").cached_info().config.clone();
    admin.update_stream(stream::Config { sealed: true, ..sealed }).await.expect("the server responds");
    for (name, part) in [("seven", "max_msgs_per_subject is 7"), ("sealed", "sealed")] {
        let error = try_connect(backend(&store.url()).stream(name)).await.expect_err("the stream is unsuitable");
        assert!(reason(&error).contains(part), "{}", reason(&error));
    }
}

/// Waits until the stream has no message with data.
async fn has_aged(admin: &jetstream::Context) {
    let begin = Instant::now();
    loop {
        let state = stream_info(admin).await.state;
        if state.first_sequence > 3 && state.messages <= 1 {
            return;
        }
        assert!(begin.elapsed() < SOON, "{state:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_or_purged_log_stays_the_same() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let backend = || backend(&store.url()).max_age(Duration::from_secs(2));
    let node = connect(backend()).await;
    let mut last = publish(&node, "first").await;
    for text in ["aged", "purged"] {
        match text {
            "aged" => has_aged(&admin).await,
            _ => drop(stream_of_log(&admin).await.purge().await.expect("the server responds")),
        }
        // The node notices that the stream is empty after two seconds without a message.
        sleep(Duration::from_secs(3)).await;
        let other = connect(backend()).await;
        let next = publish(&other, text).await;
        for node in [&node, &other] {
            let mut client =
                node.topic("news").subscribe(last.clone()).await.expect("the hub accepts the subscription");
            let got = read_until(&mut client, &format!("data: {text}\n")).await;
            assert!(!got.contains("gap"), "{got}");
        }
        last = next;
    }
    let marks: BTreeSet<_> = marks(&admin).await.into_iter().collect();
    assert!(marks.len() <= 1, "the log stays the same: {marks:?}");
}

/// The follower of a node gets a page for each message of the other program, so the node sends no
/// request while it waits.
#[tokio::test(flavor = "multi_thread")]
async fn log_stays_the_same_while_other_programs_publish() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    // Half of this time is left for a mark that is late because the machine is busy.
    let backend = || backend(&store.url()).max_age(Duration::from_secs(8));
    let node = connect(backend()).await;
    publish(&node, "first").await;
    let epoch = backend().bounds().await.expect("the server responds").epoch;
    let begin = stream_info(&admin).await.state.last_sequence;
    let publisher = admin.clone();
    let other_program = tokio::spawn(async move {
        loop {
            let sent = publisher.publish("tower-sse.noise", "".into()).await.expect("the server responds");
            sent.await.expect("the message is stored");
        }
    });
    for _ in 0..2 {
        let end = stream_info(&admin).await.state.last_sequence;
        eventually(SOON, "the messages are removed", async || match stream_info(&admin).await.state.first_sequence {
            first if first > end => Ok(()),
            first => Err(first),
        })
        .await;
        assert_eq!(backend().bounds().await.expect("the server responds").epoch, epoch);
    }
    assert!(!other_program.is_finished(), "{:?}", other_program.await);
    other_program.abort();
    assert!(stream_info(&admin).await.state.first_sequence > begin);
}
