//! Stream registries that follow a hub: a close on one node ends the streams of all nodes, whatever
//! happens to the backend.

use super::{Faulty, Mode, PLENTY, Shared, hub, settle, two};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, request::Parts};
use std::{hash::Hash, sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};
use support::{polled::Polled, respond::respond};
use tokio::time::{Instant, sleep, timeout};
use tower_sse::{
    Event, SseLayer, SseStream, StreamRegistry,
    hub::{
        ErrorKind, Hub, Outcome, Start, Stats,
        backend::{Backend, Record, RecordKind},
    },
};

type Registry = StreamRegistry<String>;

trait Key: Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

const ALICE: &str = "alice";
const CLOSED_STREAMS: &str = "tower-sse/closed-streams";
/// The silence of the log after which a node fails closed.
const LIMIT: Duration = Duration::from_secs(30);

async fn following(hub: &Hub) -> Registry {
    let registry = Registry::new();
    registry.follow(hub).await.unwrap();
    registry
}

/// Two nodes that follow each other.
async fn two_registries(max_records: usize) -> (Shared, [Hub; 2], [Faulty; 2], [Registry; 2]) {
    let shared = Shared::new(max_records);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let registries = [following(&hubs[0]).await, following(&hubs[1]).await];
    (shared, hubs, connections, registries)
}

/// Opens a stream of this user.
fn open(registry: &Registry, user: &str) -> Polled {
    open_under(registry, user.to_owned())
}

fn open_under<K: Key>(registry: &StreamRegistry<K>, key: K) -> Polled {
    let mut body = request(registry, key);
    body.assert_pending();
    body
}

fn request<K: Key>(registry: &StreamRegistry<K>, key: K) -> Polled {
    let layer = SseLayer::new().without_heartbeat().register(registry, move |_: &Parts| Some(key.clone()));
    let stream = SseStream::new(stream::pending::<Event>());
    Polled::new(respond(&layer, Request::new(()), stream.into_http_response()))
}

async fn ends(body: &mut Polled) -> String {
    let begun = Instant::now();
    while !body.is_woken() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the stream does not end");
        sleep(Duration::from_millis(10)).await;
    }
    body.rest()
}

async fn stays_open(body: &mut Polled) {
    settle().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(body.poll(), Poll::Pending);
}

#[tokio::test(start_paused = true)]
async fn close_ends_streams_of_all_nodes() {
    let (_shared, _hubs, _connections, [one, other]) = two_registries(PLENTY).await;
    let mut here = open(&one, ALICE);
    let mut there = [open(&other, ALICE), open(&other, ALICE)];
    let mut bob = open(&other, "bob");
    assert_eq!(one.close_with(&ALICE.to_owned(), Event::new("").event("logout")), 1, "the streams of this node");
    assert_eq!(here.rest(), "event: logout\ndata: \n\n");
    for body in &mut there {
        assert_eq!(ends(body).await, "event: logout\ndata: \n\n");
    }
    stays_open(&mut bob).await;
    assert_eq!(other.close_everywhere(&"bob".to_owned()).await.unwrap(), 1);
}

/// A stream that begins after the close stays open on the node of the close.
#[tokio::test(start_paused = true)]
async fn own_announcement_closes_no_later_stream() {
    let (_shared, _hubs, _connections, [one, _other]) = two_registries(PLENTY).await;
    one.close(&ALICE.to_owned());
    let mut later = open(&one, ALICE);
    stays_open(&mut later).await;
}

#[tokio::test(start_paused = true)]
async fn close_reaches_a_node_that_was_cut_off() {
    for mode in [Mode::Fails, Mode::Hangs, Mode::Lags] {
        let (_shared, _hubs, connections, [one, other]) = two_registries(PLENTY).await;
        let mut there = open(&other, ALICE);
        connections[1].set(mode);
        assert_eq!(one.close_everywhere(&ALICE.to_owned()).await.unwrap(), 0);
        stays_open(&mut there).await;
        connections[1].set(Mode::Works);
        assert_eq!(ends(&mut there).await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn close_during_an_outage_is_announced_after_it() {
    for mode in [Mode::Fails, Mode::LosesAnswers, Mode::Hangs] {
        let (_shared, _hubs, connections, [one, other]) = two_registries(PLENTY).await;
        let mut here = [open(&one, ALICE), open(&one, "bob")];
        let mut there = [open(&other, ALICE), open(&other, "bob")];
        connections[0].set(mode);
        assert_eq!(one.close(&ALICE.to_owned()), 1);
        let error =
            timeout(Duration::from_secs(60), one.close_everywhere(&"bob".to_owned())).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend);
        for body in &mut here {
            assert_eq!(body.rest(), "");
        }
        sleep(Duration::from_secs(5)).await;
        connections[0].set(Mode::Works);
        for body in &mut there {
            assert_eq!(ends(body).await, "");
        }
    }
}

/// The log retains 3 records, so the announcement is evicted while a node is cut off.
#[tokio::test(start_paused = true)]
async fn evicted_announcement_closes_all_streams() {
    let (_shared, hubs, connections, [one, other]) = two_registries(3).await;
    let mut there = [open(&other, ALICE), open(&other, "bob")];
    connections[1].set(Mode::Fails);
    one.close_everywhere(&ALICE.to_owned()).await.unwrap();
    for n in 0..10 {
        hubs[0].topic("news").publish(Event::display(n)).await.unwrap();
    }
    one.close_everywhere(&"carol".to_owned()).await.unwrap();
    connections[1].set(Mode::Works);
    for body in &mut there {
        assert_eq!(ends(body).await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn replaced_log_closes_all_streams() {
    let (shared, _hubs, _connections, [one, other]) = two_registries(PLENTY).await;
    one.close_everywhere(&"carol".to_owned()).await.unwrap();
    let mut there = open(&other, ALICE);
    shared.replace(PLENTY, Vec::new());
    assert_eq!(ends(&mut there).await, "");
    // The registries follow the new log.
    let mut there = open(&other, ALICE);
    sleep(Duration::from_secs(5)).await;
    one.close_everywhere(&ALICE.to_owned()).await.unwrap();
    assert_eq!(ends(&mut there).await, "");
}

/// Each attempt to publish an announcement is a request to a backend that is already in trouble.
#[tokio::test(start_paused = true)]
async fn further_closes_do_not_shorten_the_pause_between_attempts() {
    const CLOSES: usize = 50;
    let (_shared, _hubs, connections, [one, other]) = two_registries(PLENTY).await;
    let mut there = open(&other, ALICE);
    connections[0].set(Mode::ReadsOnly);
    for _ in 0..CLOSES {
        one.close(&ALICE.to_owned());
        sleep(Duration::from_millis(10)).await;
    }
    // There are three pauses in half a second, and an attempt for each announcement after each.
    let attempts = connections[0].asked.refusals.load(Relaxed);
    assert!((1..=3 * CLOSES).contains(&attempts), "{attempts} attempts");
    connections[0].set(Mode::Works);
    assert_eq!(ends(&mut there).await, "");
}

#[tokio::test(start_paused = true)]
async fn node_that_cannot_read_the_log_fails_closed() {
    for (mode, is_replaced) in
        [Mode::Fails, Mode::Hangs, Mode::Lags].into_iter().flat_map(|mode| [(mode, false), (mode, true)])
    {
        let shared = Shared::new(PLENTY);
        let connection = shared.connect();
        let hub = hub(connection.clone()).await;
        let registry = Registry::new().fail_closed_after(LIMIT);
        registry.follow(&hub).await.unwrap();
        if is_replaced {
            shared.replace(PLENTY, Vec::new());
            sleep(LIMIT).await;
        }
        let mut body = open(&registry, ALICE);
        // The signs of life keep the streams of a quiet hub open.
        sleep(10 * LIMIT).await;
        assert_eq!(body.poll(), Poll::Pending);
        connection.set(mode);
        let begun = Instant::now();
        sleep(LIMIT / 2).await;
        assert_eq!(body.poll(), Poll::Pending);
        sleep(LIMIT / 2).await;
        assert_eq!(ends(&mut body).await, "");
        assert!(begun.elapsed() < LIMIT + Duration::from_secs(3), "{:?}", begun.elapsed());
        // New streams end at once until the node reads the log again.
        assert_eq!(request(&registry, ALICE.to_owned()).rest(), "");
        connection.set(Mode::Works);
        sleep(LIMIT).await;
        stays_open(&mut open(&registry, ALICE)).await;
    }
}

/// A node that is cut off from one of its hubs accepts no stream, although it reads the log of the
/// other hub.
#[tokio::test(start_paused = true)]
async fn node_cut_off_from_one_of_two_hubs_fails_closed() {
    let shared = [Shared::new(PLENTY), Shared::new(PLENTY)];
    let connections = shared.each_ref().map(Shared::connect);
    let registry = Registry::new().fail_closed_after(LIMIT);
    let mut hubs = Vec::new();
    for connection in &connections {
        let hub = hub(connection.clone()).await;
        registry.follow(&hub).await.unwrap();
        hubs.push(hub);
    }
    stays_open(&mut open(&registry, ALICE)).await;
    connections[0].set(Mode::Hangs);
    sleep(2 * LIMIT).await;
    for _ in 0..10 {
        sleep(LIMIT / 7).await;
        assert_eq!(request(&registry, ALICE.to_owned()).rest(), "");
    }
    connections[0].set(Mode::Works);
    sleep(LIMIT).await;
    stays_open(&mut open(&registry, ALICE)).await;
    // A hub that is shut down closes no more streams.
    connections[0].set(Mode::Hangs);
    sleep(2 * LIMIT).await;
    assert_eq!(request(&registry, ALICE.to_owned()).rest(), "");
    hubs[0].shutdown();
    sleep(LIMIT).await;
    stays_open(&mut open(&registry, ALICE)).await;
}

/// The subscription of the node ends again and again, as another program has finished the topic.
/// The node cannot append signs of life, which would continue the topic.
#[tokio::test(start_paused = true)]
async fn node_whose_topic_was_finished_fails_closed() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let hub = hub(connection.clone()).await;
    let registry = Registry::new().fail_closed_after(LIMIT);
    registry.follow(&hub).await.unwrap();
    let mut body = open(&registry, ALICE);
    connection.set(Mode::ReadsOnly);
    finish_closed_streams(&shared).await;
    sleep(LIMIT / 2).await;
    assert_eq!(body.poll(), Poll::Pending);
    sleep(LIMIT / 2 + Duration::from_secs(3)).await;
    assert_eq!(ends(&mut body).await, "");
    // After a shutdown of the hub, no stream is closed, although the subscription had ended before.
    hub.shutdown();
    sleep(LIMIT / 10).await;
    let mut body = open(&registry, ALICE);
    sleep(2 * LIMIT).await;
    stays_open(&mut body).await;
}

/// Finishes the topic of the announcements, like another program.
async fn finish_closed_streams(shared: &Shared) {
    let finish = Record::new(CLOSED_STREAMS, RecordKind::Finish, Bytes::new());
    shared.connect().append(vec![finish]).await.unwrap();
}

/// Applications cannot use the topic, which contains the keys of closed streams.
#[tokio::test(start_paused = true)]
async fn topic_of_closed_streams_is_reserved() {
    let (_shared, hubs, _connections, _registries) = two_registries(PLENTY).await;
    for hub in [&hubs[0], &Hub::new()] {
        let topic = hub.topic(CLOSED_STREAMS);
        let errors = [
            topic.publish(Event::new("forged")).await.unwrap_err(),
            topic.publish_now(Event::new("forged")).unwrap_err(),
            topic.publish_all([]).await.unwrap_err(),
            topic.subscribe(Start::Earliest).await.unwrap_err(),
            topic.finish().await.unwrap_err(),
            topic.remove().await.unwrap_err(),
            topic.stop_recording().await.unwrap_err(),
            hub.subscribe(["news", CLOSED_STREAMS], Start::Earliest).await.unwrap_err(),
            hub.listen(["news", CLOSED_STREAMS], Start::Earliest).await.unwrap_err(),
            topic.join(ALICE, hub.topic("news").subscribe(Start::Latest).await.unwrap()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::ReservedTopic, "{error}");
        }
        let recording = topic.record(tokio_stream::iter([Event::new("forged")])).start();
        assert_eq!(recording.outcome().await, Outcome::Interrupted);
    }
    assert!(hubs[0].topic("tower-sse").publish(Event::new("")).await.is_ok());
}

/// The subscription of the hub in memory lags behind the announcements.
#[tokio::test(start_paused = true)]
async fn statistics_leave_out_closed_streams() {
    let (_shared, [hub, _], _connections, [registry, _other]) = two_registries(PLENTY).await;
    registry.follow_as(&hub, "again").await.unwrap();
    let memory = Hub::builder().max_events(2).build();
    for (hub, registry) in [(&hub, &registry), (&memory, &following(&memory).await)] {
        settle().await;
        for _ in 0..5 {
            registry.close_everywhere(&ALICE.to_owned()).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.stats(), Stats::default());
        let news = hub.topic("news");
        let clients = [news.subscribe(Start::Latest).await.unwrap(), news.subscribe(Start::Latest).await.unwrap()];
        news.publish(Event::new("")).await.unwrap();
        settle().await;
        let Stats { topics, subscriptions, events, published, .. } = hub.stats();
        assert_eq!((topics, subscriptions, events, published), (1, 2, 1, 1));
        drop(clients);
        assert_eq!(hub.stats().subscriptions, 0);
        hub.shutdown();
        settle().await;
        assert_eq!(hub.stats().subscriptions, 0);
        let late = Registry::new();
        late.follow_as(hub, "late").await.unwrap();
        assert_eq!(hub.stats().subscriptions, 0);
    }
}

/// Records of other programs in the topic stop no node and close no stream.
#[tokio::test(start_paused = true)]
async fn foreign_records_close_no_stream() {
    let (shared, _hubs, _connections, [one, other]) = two_registries(PLENTY).await;
    let mut there = open(&other, ALICE);
    for data in [
        "",
        "no JSON",
        "{}",
        "[]",
        r#"{"node":"x"}"#,
        r#"{"node":"x","key":7}"#,
        r#"{"key":"alice"}"#,
        "two\nlines",
        r#"{"node":"x","registry":"","key":7}"#,
        r#"{"node":"x","registry":"users","key":"alice"}"#,
        r#"{"node":"x","registry":[],"key":"alice"}"#,
    ] {
        shared.append_event(CLOSED_STREAMS, data);
    }
    stays_open(&mut there).await;
    one.close(&ALICE.to_owned());
    assert_eq!(ends(&mut there).await, "");
    // Bytes that are not one whole event do not reach a client.
    for event in ["data: incomplete", "data: a\n\ndata: b\n\n", "id: 7\ndata: a\n\n"] {
        let mut there = open(&other, ALICE);
        let announcement = serde_json::json!({ "node": "x", "registry": "", "key": ALICE, "event": event });
        shared.append_event(CLOSED_STREAMS, &announcement.to_string());
        assert_eq!(ends(&mut there).await, "", "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn close_sends_any_event_to_the_other_node() {
    let (_shared, _hubs, _connections, [one, other]) = two_registries(PLENTY).await;
    let event = || Event::new("two\nlines").event("logout").comment("why").retry(Duration::from_secs(9));
    let mut there = open(&other, ALICE);
    one.close_with(&ALICE.to_owned(), event().id(7));
    assert_eq!(ends(&mut there).await.as_bytes(), &event().encode()[..]);
}

#[tokio::test(start_paused = true)]
async fn tasks_end_with_the_hub_or_the_registry() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let hub = Hub::new();
    // The hub has tasks of its own once it has a topic.
    let first = following(&hub).await;
    drop(first);
    sleep(Duration::from_secs(5)).await;
    let before = tasks();
    let registry = following(&hub).await;
    assert_eq!(tasks(), before + 2);
    drop(registry);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(tasks(), before);
    let registry = following(&hub).await;
    hub.shutdown();
    sleep(Duration::from_secs(5)).await;
    registry.close(&ALICE.to_owned());
    sleep(Duration::from_secs(5)).await;
    assert!(tasks() <= before, "{} and {before}", tasks());
}

/// Another program finishes the topic of the announcements. A close reaches the other node when the
/// topic accepts events again.
#[tokio::test(start_paused = true)]
async fn finished_topic_closes_no_stream_and_loses_no_close() {
    const MAX_AGE: Duration = Duration::from_secs(60);

    let shared = Shared::new(PLENTY);
    let (hubs, _connections) = two(&shared, || Hub::builder().max_age(MAX_AGE)).await;
    let [one, other] = [following(&hubs[0]).await, following(&hubs[1]).await];
    let mut there = [open(&other, ALICE), open(&other, "bob")];
    finish_closed_streams(&shared).await;
    settle().await;
    one.close(&ALICE.to_owned());
    for body in &mut there {
        stays_open(body).await;
    }
    sleep(2 * MAX_AGE).await;
    let [alice, bob] = &mut there;
    assert_eq!(ends(alice).await, "");
    stays_open(bob).await;
}

#[tokio::test(start_paused = true)]
async fn close_everywhere_that_is_dropped_is_announced() {
    let (_shared, _hubs, connections, [one, other]) = two_registries(PLENTY).await;
    let mut there = open(&other, ALICE);
    connections[0].set(Mode::Hangs);
    let alice = ALICE.to_owned();
    assert!(timeout(Duration::from_millis(1), one.close_everywhere(&alice)).await.is_err());
    connections[0].set(Mode::Works);
    assert_eq!(ends(&mut there).await, "");
}

/// A registry follows two hubs, and the log of the first is down.
#[tokio::test(start_paused = true)]
async fn failure_of_one_hub_does_not_keep_a_close_from_another() {
    let (down, up) = (Shared::new(PLENTY), Shared::new(PLENTY));
    let connection = down.connect();
    let registry = Registry::new();
    registry.follow(&hub(connection.clone()).await).await.unwrap();
    registry.follow(&hub(up.connect()).await).await.unwrap();
    let other = following(&hub(up.connect()).await).await;
    let mut there = open(&other, ALICE);
    connection.set(Mode::Fails);
    let error = registry.close_everywhere(&ALICE.to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    assert_eq!(ends(&mut there).await, "");
}

#[tokio::test(start_paused = true)]
async fn longest_time_is_no_limit() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let registry = Registry::new().fail_closed_after(Duration::MAX);
    registry.follow(&hub).await.unwrap();
    stays_open(&mut open(&registry, ALICE)).await;
}

#[tokio::test(start_paused = true)]
async fn node_without_backend_is_never_cut_off() {
    let hub = Hub::new();
    let registry = Registry::new().fail_closed_after(LIMIT);
    registry.follow(&hub).await.unwrap();
    let mut body = open(&registry, ALICE);
    sleep(10 * LIMIT).await;
    stays_open(&mut body).await;
    stays_open(&mut open(&registry, ALICE)).await;
}

/// Otherwise the node would take itself for cut off.
#[tokio::test(start_paused = true)]
async fn slow_announcement_delays_no_sign_of_life() {
    let shared = Shared::new(PLENTY);
    let connection = shared.connect();
    let hub = hub(connection.clone()).await;
    let registry = Registry::new().fail_closed_after(Duration::from_secs(2));
    registry.follow(&hub).await.unwrap();
    let (mut alice, mut slow) = (open(&registry, ALICE), open(&registry, "slow"));
    connection.set(Mode::IsSlow);
    assert_eq!(registry.close(&"slow".to_owned()), 1);
    assert_eq!(slow.rest(), "");
    sleep(Duration::from_secs(20)).await;
    stays_open(&mut alice).await;
    connection.set(Mode::Hangs);
    ends(&mut alice).await;
}

/// The keys of the registries are equal, and the layers can put one stream into both.
#[tokio::test(start_paused = true)]
async fn registries_with_different_names_close_their_own_streams() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut nodes = Vec::new();
    for hub in &hubs {
        let [users, tenants] = [StreamRegistry::<u64>::new(), StreamRegistry::new()];
        users.follow(hub).await.unwrap();
        tenants.follow_as(hub, "tenants").await.unwrap();
        nodes.push([users, tenants]);
    }
    let mut users = [open_under(&nodes[0][0], 7), open_under(&nodes[1][0], 7)];
    let mut tenants = [open_under(&nodes[0][1], 7), open_under(&nodes[1][1], 7)];
    assert_eq!(nodes[0][1].close_with(&7, Event::new("tenant")), 1);
    for body in &mut tenants {
        assert_eq!(ends(body).await, "data: tenant\n\n");
    }
    for body in &mut users {
        stays_open(body).await;
    }
    nodes[1][0].close_everywhere_with(&7, Event::new("user")).await.unwrap();
    for body in &mut users {
        assert_eq!(ends(body).await, "data: user\n\n");
    }
}

/// Otherwise each registry would close the streams of the other, also if their keys have other
/// types.
#[tokio::test(start_paused = true)]
async fn second_registry_of_a_name_gets_an_error() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let [first, second, names] = [Registry::new(), Registry::new(), Registry::new()];
    first.follow(&hubs[0]).await.unwrap();
    let error = second.follow(&hubs[0]).await.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::RegistryNameInUse, 500));
    assert_eq!(
        error.to_string(),
        "a stream registry of this process already follows the hub under the name \"\"; \
         choose another name in follow_as"
    );
    names.follow_as(&hubs[0], "a").await.unwrap();
    for error in [
        StreamRegistry::<u64>::new().follow(&hubs[0]).await.unwrap_err(),
        second.follow_as(&hubs[0], "a").await.unwrap_err(),
        first.follow(&hubs[0]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::RegistryNameInUse);
    }
    let mut body = open(&second, ALICE);
    first.close(&ALICE.to_owned());
    stays_open(&mut body).await;
    // On another node, and when the first registry is dropped, the name is free.
    second.follow(&hubs[1]).await.unwrap();
    drop(first);
    second.follow(&hubs[0]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn name_of_a_registry_has_a_maximum_length() {
    let hub = Hub::new();
    let registry = Registry::new();
    let error = registry.follow_as(&hub, &"n".repeat(257)).await.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::RegistryNameTooLong, 500));
    assert!(error.to_string().ends_with("has 257 bytes: at most 256 are allowed"), "{error}");
    registry.follow_as(&hub, &"n".repeat(256)).await.unwrap();
}

/// The subscription is rejected, and the next attempt may use the same name.
#[tokio::test(start_paused = true)]
async fn name_is_free_after_a_failure() {
    let hub = Hub::builder().max_topics(1).build();
    hub.topic("news").publish(Event::new("x")).await.unwrap();
    let registry = Registry::new();
    assert_eq!(registry.follow(&hub).await.unwrap_err().kind(), ErrorKind::TooManyTopics);
    hub.topic("news").remove().await.unwrap();
    registry.follow(&hub).await.unwrap();
}

/// A sign of life has no key, and `None` is `null` in JSON.
#[tokio::test(start_paused = true)]
async fn sign_of_life_closes_no_stream_without_a_user() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut registries = Vec::new();
    for hub in &hubs {
        let registry = StreamRegistry::<Option<String>>::new().fail_closed_after(LIMIT);
        registry.follow(hub).await.unwrap();
        registries.push(registry);
    }
    let mut anonymous = open_under(&registries[0], None);
    let mut alice = open_under(&registries[0], Some(ALICE.to_owned()));
    sleep(3 * LIMIT).await;
    stays_open(&mut anonymous).await;
    registries[1].close_with(&None, Event::new("bye"));
    assert_eq!(ends(&mut anonymous).await, "data: bye\n\n");
    stays_open(&mut alice).await;
}

/// Events for clients may wait, and the end of a session may not.
#[tokio::test(start_paused = true)]
async fn linger_of_the_hub_delays_no_close() {
    let shared = Shared::new(PLENTY);
    let (hubs, _connections) = two(&shared, || Hub::builder().linger(LIMIT)).await;
    let [one, other] = [following(&hubs[0]).await, following(&hubs[1]).await];
    let close_in_time = async || {
        // The linger is a pause after an event.
        let mut there = [open(&other, ALICE), open(&other, "bob")];
        for (user, body) in [ALICE, "bob"].into_iter().zip(&mut there) {
            one.close_everywhere(&user.to_owned()).await.unwrap();
            let begun = Instant::now();
            ends(body).await;
            assert!(begun.elapsed() < LIMIT / 10, "{user} after {:?}", begun.elapsed());
        }
    };
    close_in_time().await;
    // The registries subscribe again.
    shared.replace(PLENTY, Vec::new());
    sleep(2 * LIMIT).await;
    close_in_time().await;
}
