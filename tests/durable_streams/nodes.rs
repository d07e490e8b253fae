//! Several nodes with one log, whose backend fails on request.

#[path = "../nodes/faulty.rs"]
#[allow(dead_code, reason = "the tests of nodes use the rest")]
mod faulty;

use super::*;
use faulty::{Faulty, Mode, Shared};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_test::{
    assert_pending,
    task::{self, Spawn},
};
use tower_sse::hub::{Builder, Retention, Start, backend::Backend, durable_streams::Content};

async fn hub(backend: impl Backend, builder: Builder) -> Hub {
    builder.backend(backend).connect().await.unwrap()
}

/// Creates a node that retains two events of each topic, and its connection.
async fn node(shared: &Shared) -> (Hub, Faulty) {
    let backend = shared.connect();
    (hub(backend.clone(), Hub::builder().max_events(2)).await, backend)
}

/// Reads a topic from the offset, page by page, until the client is up to date.
async fn read_all(streams: &DurableStreams, topic: &str, offset: &str) -> (Vec<u64>, Answer) {
    let (mut offset, mut read) = (offset.to_owned(), Vec::new());
    loop {
        let page = get(streams, &format!("/{topic}?offset={offset}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        read.extend(serde_json::from_slice::<Vec<u64>>(&page.body).unwrap());
        offset = page.next_offset();
        if page.is_up_to_date() {
            return (read, page);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn node_serves_what_only_the_backend_retains() {
    let shared = Shared::new(1_000_000);
    let (hub, _) = node(&shared).await;
    for number in 0..3_000 {
        publish(&hub.topic("t"), number.to_string()).await;
        publish(&hub.topic("other"), "x").await;
    }
    hub.topic("t").finish().await.unwrap();
    let (other, _) = node(&shared).await;
    for hub in [&hub, &other] {
        let (read, last) = read_all(&all(hub).page_size(1_000), "t", "-1").await;
        assert!(read.iter().copied().eq(0..3_000));
        assert!(last.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn offset_of_one_node_continues_on_another() {
    let shared = Shared::new(1_000_000);
    let ((one, _), (other, _)) = (node(&shared).await, node(&shared).await);
    publish_all(&one.topic("t"), 0..10).await;
    let first = get(&all(&one).page_size(8), "/t").await;
    assert_eq!(first.text(), "[0,1,2,3]");
    let (rest, last) = read_all(&all(&other), "t", &first.next_offset()).await;
    assert!(rest.iter().copied().eq(4..10));
    assert_eq!(head(&all(&one), "/t").await.next_offset(), last.next_offset());
}

#[tokio::test(start_paused = true)]
async fn offset_of_new_log_continues_on_node_that_follows_the_old_log() {
    let shared = Shared::new(1_000_000);
    let (hub, connection) = node(&shared).await;
    publish_all(&hub.topic("t"), 0..2).await;
    let old = head(&all(&hub), "/t").await.next_offset();
    connection.set(Mode::Lags);
    shared.replace(1_000_000, Vec::new());
    for number in 10..14 {
        shared.append_event("t", &number.to_string());
    }
    assert_eq!(get(&all(&hub), &format!("/t?offset={old}")).await.status, 200, "it follows the old log");
    tokio::spawn(async move {
        sleep(Duration::from_millis(500)).await;
        connection.set(Mode::Works);
    });
    let (rest, _) = read_all(&all(&hub), "t", &format!("{}_{:020}", shared.log().letters, 1)).await;
    assert_eq!(rest, [11, 12, 13]);
    assert_eq!(get(&all(&hub), &format!("/t?offset={old}")).await.status, 410);
}

#[tokio::test(start_paused = true)]
async fn topic_that_the_node_has_forgotten_is_found_in_the_backend() {
    let shared = Shared::new(1_000_000);
    let backend = shared.connect();
    let hub = hub(backend, Hub::builder().max_age(Duration::from_secs(10))).await;
    publish_all(&hub.topic("t"), 0..10).await;
    publish_all(&hub.topic("finished"), 0..10).await;
    hub.topic("finished").finish().await.unwrap();
    let streams = all(&hub);
    let end = head(&streams, "/t").await.next_offset();
    sleep(Duration::from_secs(60)).await;
    assert!(!hub.topic("t").exists() && !hub.topic("finished").exists());

    assert!(read_all(&streams, "t", "-1").await.0.into_iter().eq(0..10));
    assert_eq!(get(&streams, "/t?offset=now").await.summary(), (200, "[]", true, false));
    assert_eq!(get(&streams, &format!("/t?offset={end}")).await.summary(), (200, "[]", true, false));
    assert_eq!(head(&streams, "/t").await.next_offset(), end);
    let closed = head(&streams, "/finished").await;
    assert!(closed.status == 200 && closed.is_closed());
    assert_eq!(get(&streams, "/finished?offset=now&live=long-poll").await.summary(), (204, "", true, true));
    for uri in ["/never", "/never?offset=now", "/never?offset=-1&live=sse", "/never?offset=now&live=long-poll"] {
        assert_eq!(get(&streams, uri).await.status, 404, "{uri}");
    }
    assert_eq!(head(&streams, "/never").await.status, 404);
}

/// Starts a request, and polls it until the node searches the backend for its topic.
async fn search<'a>(streams: &'a DurableStreams, backend: &Faulty, uri: &'a str) -> Spawn<impl Future + 'a> {
    backend.asked.reads.store(0, Relaxed);
    let mut search = task::spawn(get(streams, uri));
    while backend.asked.reads.load(Relaxed) == 0 {
        assert_pending!(search.poll());
        yield_now().await;
    }
    search
}

#[tokio::test(start_paused = true)]
async fn subscriber_does_not_hide_the_end_of_forgotten_topic() {
    let shared = Shared::new(1_000_000);
    let backend = shared.connect();
    backend.delay.store(100, Relaxed);
    let hub = hub(backend.clone(), Hub::builder().max_age(Duration::from_secs(10))).await;
    let (streams, topic) = (all(&hub), hub.topic("t"));
    publish_all(&topic, 0..10).await;
    topic.finish().await.unwrap();
    for subscribes in [false, true] {
        for uri in ["", "/t?offset=now", "/t?offset=now&live=long-poll", "/t?offset=-1"] {
            // The node forgets what the previous request has found.
            sleep(Duration::from_secs(60)).await;
            let subscription = match subscribes {
                true => Some(topic.subscribe(Start::Latest).await.unwrap()),
                false => None,
            };
            let search = search(&streams, &backend, "/t?offset=-1").await;
            assert_eq!(topic.exists(), subscribes);
            let answer = if uri.is_empty() { head(&streams, "/t").await } else { get(&streams, uri).await };
            assert!(answer.status.is_success() && answer.is_closed(), "{subscribes} {uri}: {answer:?}");
            drop((search, subscription));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_searches_do_not_find_missing_topic() {
    let shared = Shared::new(1_000_000);
    let backend = shared.connect();
    backend.delay.store(100, Relaxed);
    let hub = hub(backend.clone(), Hub::builder().max_age(Duration::from_secs(10))).await;
    // So many topics that the node does not remember which of them it has forgotten.
    for topic in 0..10_010 {
        shared.append_event(&topic.to_string(), "x");
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(hub.stats().topics, 0);
    let (streams, topic) = (all(&hub), hub.topic("never"));
    let end = head(&streams.clone().existing(|_| true), "/never").await.next_offset();
    let zero = format!("/never?offset={}{:020}", &end[..end.len() - 20], 0);
    for first in ["/never?offset=-1", &zero] {
        let search = search(&streams, &backend, first).await;
        for uri in ["/never", "/never?offset=now", "/never?offset=-1&live=long-poll", "/never?offset=-1&live=sse"] {
            assert_eq!(get(&streams, uri).await.status, 404, "{uri}");
        }
        assert_eq!(head(&streams, "/never").await.status, 404);
        assert!(!topic.exists() && !topic.exists_in_log().await.unwrap());
        drop(search);
    }
    assert_eq!(hub.stats().topics, 0);
}

/// A request that waits keeps the topic in the memory of the node, but does not make it exist.
#[tokio::test(start_paused = true)]
async fn event_that_expires_during_a_lookup_is_found_in_log() {
    let shared = Shared::new(5);
    let first = hub(shared.connect(), Hub::builder()).await;
    publish(&first.topic("t"), "1").await;
    let uri = format!("/t?offset={}&live=long-poll", head(&all(&first), "/t").await.next_offset());
    // The backend evicts the event before the next node starts.
    publish_all(&first.topic("other"), 0..5).await;
    let hub = hub(shared.connect(), Hub::builder().max_age(Duration::from_secs(10))).await;
    let (streams, topic) = (all(&hub), hub.topic("t"));
    let mut waiting = task::spawn(get(&streams, &uri));
    while topic.subscribers() == 0 {
        assert_pending!(waiting.poll());
        yield_now().await;
    }
    publish(&topic, "2").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!((topic.subscribers(), topic.exists()), (1, false));
    assert!(topic.exists_in_log().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn lookup_does_not_drop_the_retention_of_a_subscriber() {
    let shared = Shared::new(1_000_000);
    let ((hub, backend), (other, _)) = (node(&shared).await, node(&shared).await);
    backend.set(Mode::Lags);
    backend.latency.store(1_000, Relaxed);
    let id = other.topic("other").publish(Event::new("x")).await.unwrap();
    let topic = hub.topic("t").retention(Retention::new().max_events(1));
    // The node has not read the event with this id, so it asks the backend for the end of the log.
    let mut subscribing = task::spawn(topic.subscribe(Start::After(id)));
    assert_pending!(subscribing.poll());
    let streams = all(&hub);
    for _ in 0..2 {
        assert_eq!(get(&streams, "/t").await.summary(), (200, "[]", true, false));
    }
    let _subscription = subscribing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn acknowledged_event_is_in_the_next_response() {
    let shared = Shared::new(1_000_000);
    let (hub, _) = node(&shared).await;
    let topic = hub.topic("t");
    for number in 1..100 {
        publish(&topic, number.to_string()).await;
        let page = get(&all(&hub), "/t?offset=-1").await;
        assert!(page.text().ends_with(&format!("{number}]")), "{page:?}");
        assert!(page.is_up_to_date());
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_the_backend_has_evicted_are_gone() {
    let shared = Shared::new(5);
    let (hub, _) = node(&shared).await;
    publish_all(&hub.topic("t"), 0..4).await;
    let streams = all(&hub).page_size(1);
    let first = get(&streams, "/t").await.next_offset();
    publish_all(&hub.topic("t"), 4..20).await;
    sleep(Duration::from_secs(1)).await;
    for mode in ["", "&live=long-poll", "&live=sse"] {
        assert_eq!(get(&streams, &format!("/t?offset={first}{mode}")).await.status, 410, "{mode}");
    }
    assert!(read_all(&streams, "t", "-1").await.0.into_iter().eq(15..20));
}

#[tokio::test(start_paused = true)]
async fn offset_of_a_replaced_log_is_gone() {
    let shared = Shared::new(1_000_000);
    let (hub, _) = node(&shared).await;
    publish_all(&hub.topic("t"), 0..4).await;
    let streams = all(&hub);
    let offset = get(&streams, "/t").await.next_offset();
    let uri = format!("/t?offset={offset}&live=long-poll");
    let mut poll = task::spawn(get(&streams, &uri));
    assert_pending!(poll.poll());
    shared.replace(1_000_000, Vec::new());
    publish_all(&hub.topic("t"), 10..12).await;
    assert_eq!(poll.await.status, 204, "the client asks again");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(get(&streams, &uri).await.status, 410);
    assert_eq!(get(&streams, "/t").await.text(), "[10,11]");
}

/// Creates a node that has acknowledged five events, and whose connection hangs before it has read
/// the last of them. Returns the offset of the event before it, too.
async fn node_behind(shared: &Shared) -> (Hub, Faulty, String) {
    let (hub, backend) = node(shared).await;
    let topic = hub.topic("t");
    publish_all(&topic, 0..4).await;
    let offset = get(&all(&hub), "/t").await.next_offset();
    publish(&topic, "4").await;
    backend.set(Mode::Hangs);
    (hub, backend, offset)
}

#[tokio::test(start_paused = true)]
async fn offset_of_a_log_that_is_replaced_during_the_request_is_gone() {
    let shared = Shared::new(1_000_000);
    let (hub, backend, offset) = node_behind(&shared).await;
    let (streams, uri) = (all(&hub), format!("/t?offset={offset}"));
    let mut request = task::spawn(get(&streams, &uri));
    assert_pending!(request.poll(), "the node has read its event already");
    let records = [shared.log().held(), shared.log().held()].concat();
    shared.replace(1_000_000, records);
    // The event of the old log is lost on its way to the node.
    backend.set(Mode::Fails);
    yield_now().await;
    backend.set(Mode::Works);
    let answer = request.await;
    assert_eq!(answer.status, 410, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_the_request_gives_no_offset() {
    for (method, uri) in
        [(Method::HEAD, "/t"), (Method::GET, "/t?offset=now"), (Method::GET, "/t?offset=now&live=long-poll")]
    {
        let shared = Shared::new(1_000_000);
        let (hub, _, _) = node_behind(&shared).await;
        let streams = all(&hub);
        let head = Request::builder().method(method).uri(uri).body(()).unwrap();
        let mut request = task::spawn(request(&streams, head));
        assert_pending!(request.poll(), "the node has read its event already");
        hub.shutdown();
        assert_eq!(request.await.status, 503, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn outage_is_unavailable_and_never_a_wrong_end() {
    let shared = Shared::new(1_000_000);
    let (hub, backend) = node(&shared).await;
    publish_all(&hub.topic("t"), 0..10).await;
    let streams = all(&hub);
    let first = get(&streams.clone().page_size(1), "/t").await.next_offset();
    let end = get(&streams, "/t?offset=now").await.next_offset();
    for mode in [Mode::Fails, Mode::Hangs] {
        backend.set(mode);
        for uri in ["/t".to_owned(), format!("/t?offset={first}"), format!("/t?offset={first}&live=long-poll")] {
            let began = Instant::now();
            let answer = get(&streams, &uri).await;
            assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")), "{uri}");
            assert!(began.elapsed() < Duration::from_secs(25));
        }
        let answer = get(&streams, &format!("/t?offset={end}")).await;
        assert_eq!(answer.summary(), (200, "[]", true, false), "the node has all events after this offset");

        let response = respond(&streams, Request::get(format!("/t?offset={first}&live=sse")).body(()).unwrap()).await;
        let mut events = Polled::new(response);
        let waits = available(&mut events);
        assert!(!waits.contains("event:"), "{waits:?}");
        backend.set(Mode::Works);
        let mut text = String::new();
        for _ in 0..50 {
            sleep(Duration::from_millis(100)).await;
            text += &available(&mut events);
        }
        assert!(text.contains("data:[1,2,3,4,5,6,7,8,9]"), "{text:?}");
        assert!(text.contains("upToDate"));
    }
}

#[tokio::test(start_paused = true)]
async fn client_of_a_quiet_topic_outlives_the_retention_of_the_log() {
    let shared = Shared::new(1_000);
    let (hub, _) = node(&shared).await;
    publish(&hub.topic("quiet"), "1").await;
    let streams = all(&hub);
    let first = get(&streams, "/quiet").await.next_offset();
    let mut offset = first.clone();
    let mut moves = 0;
    for _ in 0..100 {
        publish_all(&hub.topic("busy"), 0..50).await;
        let answer = get(&streams, &format!("/quiet?offset={offset}&live=long-poll")).await;
        assert_eq!(answer.status, 204, "no event of the topic is missing");
        moves += usize::from(answer.next_offset() != offset);
        offset = answer.next_offset();
    }
    assert_eq!(moves, 5_000 / 256, "clients share an offset for a while");

    let (other, _) = node(&shared).await;
    let streams = all(&other).existing(|_| true);
    assert_eq!(get(&streams, &format!("/quiet?offset={first}")).await.status, 410, "this node cannot know");
    assert_eq!(get(&streams, &format!("/quiet?offset={offset}")).await.summary(), (200, "[]", true, false));
    publish(&hub.topic("quiet"), "2").await;
    assert_eq!(get(&all(&hub), &format!("/quiet?offset={offset}")).await.text(), "[2]");
}

#[tokio::test(start_paused = true)]
async fn event_stream_of_a_quiet_topic_announces_the_new_offset_at_its_end() {
    let shared = Shared::new(1_000);
    let (hub, _) = node(&shared).await;
    publish(&hub.topic("quiet"), "1").await;
    let response = respond(&all(&hub), Request::get("/quiet?offset=-1&live=sse").body(()).unwrap()).await;
    let mut events = Polled::new(response);
    let before = available(&mut events);
    publish_all(&hub.topic("busy"), 0..600).await;
    sleep(Duration::from_secs(90)).await;
    let after = available(&mut events);
    assert!(events.is_end_stream());
    let offset = |text: &str| {
        let control = text.split("data:").last().unwrap().trim();
        let control: serde_json::Value = serde_json::from_str(control).unwrap();
        assert_eq!(control["upToDate"], true);
        control["streamNextOffset"].as_str().unwrap().to_owned()
    };
    assert!(offset(&after) > offset(&before));
    assert!(offset(&after).ends_with("00512"));
}

/// Publishes this number of events to a busy topic, whose events evict those of quiet topics.
async fn publish_busy(hub: &Hub, events: usize) {
    for _ in 0..events / 50 {
        publish_all(&hub.topic("busy"), 0..50).await;
    }
}

#[tokio::test(start_paused = true)]
async fn end_of_a_quiet_topic_is_valid_on_all_nodes() {
    let shared = Shared::new(1_000);
    let (hub, _) = node(&shared).await;
    publish(&hub.topic("quiet"), "1").await;
    let streams = all(&hub).existing(|_| true);
    // The log still retains the event of the topic in the first round only.
    for _ in 0..2 {
        publish_busy(&hub, 800).await;
        let now = get(&streams, "/quiet?offset=now").await.next_offset();
        let tail = head(&streams, "/quiet").await.next_offset();
        let events = respond(&streams, Request::get("/quiet?offset=now&live=sse").body(()).unwrap()).await;
        let control = available(&mut Polled::new(events));
        assert_eq!(now, tail);
        assert!(control.contains(&now), "{control:?}");

        publish_busy(&hub, 600).await;
        let (other, _) = node(&shared).await;
        let answer = get(&all(&other).existing(|_| true), &format!("/quiet?offset={now}")).await;
        assert_eq!(answer.summary(), (200, "[]", true, false), "{now}");
    }
}

#[tokio::test(start_paused = true)]
async fn end_of_a_forgotten_topic_is_valid_on_all_nodes() {
    let shared = Shared::new(1_000);
    let hub = hub(shared.connect(), Hub::builder().max_age(Duration::from_secs(10))).await;
    publish(&hub.topic("quiet"), "1").await;
    publish_busy(&hub, 800).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!hub.topic("quiet").exists());
    let now = get(&all(&hub), "/quiet?offset=now").await.next_offset();
    assert_eq!(head(&all(&hub), "/quiet").await.next_offset(), now);
    publish_busy(&hub, 600).await;
    let (other, _) = node(&shared).await;
    let answer = get(&all(&other), &format!("/quiet?offset={now}")).await;
    assert_eq!(answer.summary(), (200, "[]", true, false), "{now}");
}

#[tokio::test(start_paused = true)]
async fn event_that_is_not_base64_is_an_error_in_every_mode() {
    let shared = Shared::new(1_000_000);
    let (hub, backend) = node(&shared).await;
    publish_all(&hub.topic("t"), ["AQID", "not base64!", "BAUG", "BAUG", "BAUG"]).await;
    let streams = all(&hub).content(|_| Content::base64());
    let next = get(&streams, "/t").await.next_offset();
    // Subscribing waits for the backend for two seconds.
    for milliseconds in [0, 3_000] {
        backend.delay.store(milliseconds, Relaxed);
        for mode in ["", "&live=long-poll", "&live=sse"] {
            assert_eq!(get(&streams, &format!("/t?offset={next}{mode}")).await.status, 500, "{mode}");
        }
    }
}

/// A node that is behind the log does not know which topics exist.
#[tokio::test(start_paused = true)]
async fn unread_topic_is_not_missing() {
    let shared = Shared::new(1_000_000);
    let (hub, connection) = node(&shared).await;
    connection.set(Mode::Lags);
    shared.append_event("t", "1");
    publish(&hub.topic("other"), "x").await;
    for uri in ["/t?offset=-1", "/t?offset=now"] {
        assert_eq!(get(&all(&hub), uri).await.status, 503, "{uri}");
    }
    connection.set(Mode::Works);
    assert_eq!(get(&all(&hub), "/t?offset=-1").await.text(), "[1]");
    assert_eq!(get(&all(&hub), "/missing?offset=-1").await.status, 404);
}
