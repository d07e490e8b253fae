//! Searches for old events in a large log, which take longer than one request waits.

use super::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use support::{pass_on, whatwg};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, task};
use tower_sse::{
    BoxError,
    hub::backend::{Backend, MemoryBackend, Page, Position},
};

const MODES: [&str; 3] = ["", "&live=long-poll", "&live=sse"];

/// A backend that searches this number of records in each read, and takes a second for it.
#[derive(Clone)]
struct Slow {
    backend: MemoryBackend,
    records: u64,
}

impl Backend for Slow {
    pass_on!(backend: bounds append append_if_unchanged follow);

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        sleep(Duration::from_secs(1)).await;
        let mut page = self.backend.read(topics, after).await?;
        let end = Position::new(after.max(page.evicted_through).get() + self.records);
        if page.through > end {
            page.through = end;
            page.records.retain(|(position, _)| *position <= end);
        }
        Ok(page)
    }
}

/// Creates a node, and a log with 603 events, three of them of the topic `t`. The node has
/// forgotten all events.
async fn node(max_records: usize) -> Hub {
    node_with(Slow { backend: MemoryBackend::new(max_records), records: 10 }).await
}

async fn node_with(backend: Slow) -> Hub {
    let hub = Hub::builder().max_age(Duration::from_secs(10)).backend(backend).connect().await.unwrap();
    publish_all(&hub.topic("busy"), 0..300).await;
    publish_all(&hub.topic("t"), [1, 2]).await;
    publish_all(&hub.topic("busy"), 0..300).await;
    publish(&hub.topic("t"), "3").await;
    sleep(Duration::from_secs(60)).await;
    assert!(!hub.topic("t").exists());
    hub
}

/// Returns the offset before the first event of the log.
async fn zero(hub: &Hub) -> String {
    let end = head(&all(hub).existing(|_| true), "/busy").await.next_offset();
    format!("{}{:020}", &end[..end.len() - 20], 0)
}

/// Reads a topic from the offset until the client is up to date. Returns the events and the number
/// of requests.
async fn read_all(streams: &DurableStreams, topic: &str, mode: &str, mut offset: String) -> (Vec<u64>, usize) {
    let mut read = Vec::new();
    for request in 1..100 {
        let began = Instant::now();
        let answer = get(streams, &format!("/{topic}?offset={offset}{mode}")).await;
        assert!(answer.status.is_success(), "{mode} {offset}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(80));
        let mut is_up_to_date = answer.is_up_to_date();
        if mode == "&live=sse" {
            for message in whatwg::parse(&answer.body).messages {
                if message.r#type == "data" {
                    read.extend(serde_json::from_str::<Vec<u64>>(&message.data).unwrap());
                    continue;
                }
                let control: serde_json::Value = serde_json::from_str(&message.data).unwrap();
                offset = control["streamNextOffset"].as_str().unwrap().to_owned();
                is_up_to_date |= control["upToDate"] == true;
            }
        } else {
            assert_eq!(answer.status == 204, mode == "&live=long-poll" && is_up_to_date && answer.body.is_empty());
            if answer.status != 204 {
                read.extend(serde_json::from_slice::<Vec<u64>>(&answer.body).unwrap());
            }
            assert!(answer.next_offset() > offset || offset == "-1" || is_up_to_date, "the search has moved");
            assert!(mode.is_empty() || answer.header("stream-cursor").is_some());
            offset = answer.next_offset();
        }
        if is_up_to_date {
            return (read, request);
        }
    }
    panic!("{mode}: the reader never becomes up to date");
}

#[tokio::test(start_paused = true)]
async fn long_search_continues_in_the_next_request() {
    let hub = node(1_000_000).await;
    for mode in MODES {
        for begin in ["-1".to_owned(), zero(&hub).await] {
            let streams = all(&hub).close_events_after(Duration::from_secs(20));
            let (read, requests) = read_all(&streams, "t", mode, begin.clone()).await;
            assert_eq!(read, [1, 2, 3], "{mode} {begin}");
            assert!(requests > 1, "{mode} {begin}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn topic_that_a_long_search_does_not_find_has_no_events() {
    let backend = Slow { backend: MemoryBackend::new(1_000_000), records: 500 };
    let hub = Hub::builder().max_age(Duration::from_secs(10)).backend(backend).connect().await.unwrap();
    // So many topics that the node does not remember which of them it has forgotten.
    for topic in 0..10_010 {
        publish(&hub.topic(topic.to_string()), "x").await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(hub.stats().topics, 0);
    for mode in MODES {
        let (read, requests) = read_all(&all(&hub), "never", mode, "-1".into()).await;
        assert!(read.is_empty(), "{mode}");
        assert!(requests > 1 || mode == "&live=sse", "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn topic_that_the_node_has_never_seen_is_not_found() {
    let hub = node(1_000).await;
    for mode in MODES {
        assert_eq!(get(&all(&hub), &format!("/never?offset=-1{mode}")).await.status, 404, "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn search_does_not_skip_evicted_events() {
    for mode in MODES {
        let hub = node(1_000).await;
        let (streams, uri) = (all(&hub), format!("/t?offset={}{mode}", zero(&hub).await));
        let mut first = task::spawn(get(&streams, &uri));
        assert_pending!(first.poll());
        sleep(Duration::from_secs(5)).await;
        assert_pending!(first.poll());
        // The log evicts the events of the topic while the request searches for them.
        publish_all(&hub.topic("busy"), 0..900).await;
        let answer = first.await;
        assert_eq!((answer.text().contains("event:"), answer.header("stream-next-offset")), (false, None), "{mode}");
        assert_eq!(get(&streams, &uri).await.status, 410, "{mode}");
    }
}

/// A client without an offset has missed nothing, so it gets the events that are still retained.
#[tokio::test(start_paused = true)]
async fn search_without_an_offset_continues_after_evicted_events() {
    for (method, uri) in [
        (Method::GET, "/t?offset=-1"),
        (Method::GET, "/t?offset=-1&live=long-poll"),
        (Method::GET, "/t?offset=now"),
        (Method::HEAD, "/t"),
    ] {
        let hub = node_with(Slow { backend: MemoryBackend::new(1_000), records: 100 }).await;
        let streams = all(&hub);
        let builder = Request::builder();
        let mut reading = task::spawn(request(&streams, builder.method(method.clone()).uri(uri).body(()).unwrap()));
        assert_pending!(reading.poll());
        sleep(Duration::from_secs(3)).await;
        assert_pending!(reading.poll());
        publish_all(&hub.topic("busy"), 0..900).await;
        let answer = reading.await;
        assert_eq!(answer.status, 200, "{method} {uri}: {}", answer.text());
        if uri.contains("-1") {
            assert_eq!(answer.text(), "[3]", "{uri}");
        }
    }
}

/// Publishing evicts the oldest event while the requests subscribe.
#[test]
fn oldest_event_that_is_evicted_meanwhile_is_no_gap() {
    let hub = Hub::builder().max_events(1).build();
    let topic = hub.topic("t");
    topic.publish_now(Event::new("0")).unwrap();
    struct EndAtDrop<'a>(&'a AtomicBool);
    impl Drop for EndAtDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = EndAtDrop(&is_done);
        scope.spawn(|| {
            while !is_done.load(Relaxed) {
                topic.publish_now(Event::new("1")).unwrap();
            }
        });
        let streams = all(&hub);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..2_000 {
            let answer = runtime.block_on(get(&streams, "/t?offset=-1"));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
}
