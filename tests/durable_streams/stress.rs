//! Readers of every mode while several publishers publish: each reader gets every event once, in
//! the order of the log.

use super::*;
use http_body_util::BodyExt;
use std::time::Duration;
use support::whatwg;
use tokio::task::JoinSet;
use tower_sse::hub::backend::MemoryBackend;

const PUBLISHERS: usize = 4;
const EVENTS: usize = 300;

/// Reads with this mode until the stream is closed. Returns the events and the number of requests.
async fn read(streams: DurableStreams, mode: &'static str) -> (Vec<u64>, usize) {
    let (mut offset, mut read, mut requests) = ("-1".to_owned(), Vec::new(), 0);
    loop {
        requests += 1;
        let uri = format!("/t?offset={offset}{mode}");
        if mode != "&live=sse" {
            let page = get(&streams, &uri).await;
            assert!(page.status.is_success(), "{page:?}");
            if !page.body.is_empty() {
                read.extend(serde_json::from_slice::<Vec<u64>>(&page.body).unwrap());
            }
            offset = page.next_offset();
            if page.is_closed() {
                return (read, requests);
            }
            tokio::task::yield_now().await;
            continue;
        }
        let response = respond(&streams, Request::get(&uri).body(()).unwrap()).await;
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        for message in whatwg::parse(&body).messages {
            if message.r#type == "data" {
                read.extend(serde_json::from_str::<Vec<u64>>(&message.data).unwrap());
                continue;
            }
            let control: serde_json::Value = serde_json::from_str(&message.data).unwrap();
            offset = control["streamNextOffset"].as_str().unwrap().to_owned();
            if control["streamClosed"] == true {
                return (read, requests);
            }
        }
    }
}

async fn check(hub: Hub) {
    let streams = all(&hub)
        .existing(|_| true)
        .page_size(50)
        .long_poll_timeout(Duration::from_millis(2))
        .close_events_after(Duration::from_millis(5));
    let mut readers = JoinSet::new();
    for mode in ["", "&live=long-poll", "&live=sse"] {
        for _ in 0..3 {
            let read = read(streams.clone(), mode);
            readers.spawn(async move { (mode, read.await) });
        }
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let hub = hub.clone();
        publishers.spawn(async move {
            for event in 0..EVENTS {
                publish(&hub.topic("t"), (publisher * EVENTS + event).to_string()).await;
                publish(&hub.topic("other"), "x").await;
                if event % 10 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    publishers.join_all().await;
    hub.topic("t").finish().await.unwrap();
    let mut order: Option<Vec<u64>> = None;
    while let Some(reader) = readers.join_next().await {
        let (mode, (read, requests)) = reader.unwrap();
        println!("{mode}: {requests} requests");
        assert_eq!(read.len(), PUBLISHERS * EVENTS, "{mode}");
        assert_eq!(order.get_or_insert_with(|| read.clone()), &read, "{mode}: all readers get the same order");
    }
    let mut order = order.unwrap();
    order.sort_unstable();
    assert!(order.into_iter().eq(0..(PUBLISHERS * EVENTS) as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_every_mode_get_every_event_once() {
    check(Hub::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_node_get_every_event_once() {
    // The node retains few events, so most are read from the backend.
    let builder = Hub::builder().max_events(20).backend(MemoryBackend::new(1_000_000));
    check(builder.connect().await.unwrap()).await;
}
