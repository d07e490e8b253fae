//! Long polls.

use super::*;
use std::time::Duration;
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready, task};

/// Starts a request, and polls its response by hand.
fn start<'a>(streams: &'a DurableStreams, uri: &'a str) -> task::Spawn<impl Future<Output = Answer> + 'a> {
    task::spawn(get(streams, uri))
}

#[tokio::test(start_paused = true)]
async fn long_poll_waits_for_the_next_event() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub);
    let uri = format!("/t?offset={}&live=long-poll", get(&streams, "/t").await.next_offset());
    let mut poll = start(&streams, &uri);
    assert_pending!(poll.poll());
    assert_eq!(topic.subscribers(), 1, "a client that waits is a subscriber");
    publish(&hub.topic("other"), "x").await;
    assert!(!poll.is_woken(), "an event of another topic does not wake it");
    publish(&topic, "2").await;
    assert!(poll.is_woken());
    let answer = assert_ready!(poll.poll());
    assert_eq!(answer.summary(), (200, "[2]", true, false));
    assert!(answer.header("stream-cursor").is_some());
    drop(poll);
    assert_eq!(topic.subscribers(), 0);
}

#[tokio::test(start_paused = true)]
async fn long_poll_from_now_misses_no_event() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "old").await;
    let streams = all(&hub);
    let mut poll = start(&streams, "/t?offset=now&live=long-poll");
    assert_pending!(poll.poll());
    publish_all(&topic, ["1", "2"]).await;
    let answer = assert_ready!(poll.poll());
    assert_eq!(answer.text(), "[1,2]");
}

#[tokio::test(start_paused = true)]
async fn long_poll_without_event_ends_after_its_time() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub).long_poll_timeout(Duration::from_secs(7));
    let end = get(&streams, "/t").await.next_offset();
    let began = Instant::now();
    let answer = get(&streams, &format!("/t?offset={end}&live=long-poll")).await;
    assert!((7.0..7.1).contains(&began.elapsed().as_secs_f64()));
    assert_eq!((answer.summary(), answer.next_offset()), ((204, "", true, false), end));
    assert!(answer.header("stream-cursor").is_some());
}

#[tokio::test(start_paused = true)]
async fn long_poll_of_available_events_does_not_wait() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["1", "2"]).await;
    let streams = all(&hub).page_size(1);
    let first = assert_ready!(start(&streams, "/t?offset=-1&live=long-poll").poll());
    assert_eq!(first.summary(), (200, "[1]", false, false));
    let uri = format!("/t?offset={}&live=long-poll", first.next_offset());
    assert_eq!(assert_ready!(start(&streams, &uri).poll()).summary(), (200, "[2]", true, false));
}

#[tokio::test(start_paused = true)]
async fn end_of_a_topic_ends_long_polls() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub);
    let mut poll = start(&streams, "/t?offset=now&live=long-poll");
    assert_pending!(poll.poll());
    topic.finish().await.unwrap();
    let answer = assert_ready!(poll.poll());
    assert_eq!(answer.summary(), (204, "", true, true));
    for uri in ["/t?offset=now&live=long-poll".to_owned(), format!("/t?offset={}&live=long-poll", answer.next_offset())]
    {
        let again = assert_ready!(start(&streams, &uri).poll());
        assert_eq!((again.summary(), again.header("stream-cursor")), ((204, "", true, true), None), "{uri}");
    }
    assert_eq!(get(&streams, "/t?offset=-1&live=long-poll").await.summary(), (200, "[1]", true, true));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_long_polls_immediately() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub);
    let end = get(&streams, "/t").await.next_offset();
    let uri = format!("/t?offset={end}&live=long-poll");
    let mut poll = start(&streams, &uri);
    assert_pending!(poll.poll());
    hub.shutdown();
    let answer = assert_ready!(poll.poll());
    assert_eq!((answer.status.as_u16(), answer.next_offset()), (204, end), "the client continues elsewhere");
    for uri in ["/t", &uri, "/t?offset=now", "/t?offset=-1&live=sse"] {
        let answer = assert_ready!(start(&streams, uri).poll());
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")), "{uri}");
    }
    assert_eq!(head(&streams, "/t").await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn event_without_data_does_not_end_a_long_poll() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub);
    let mut poll = start(&streams, "/t?offset=now&live=long-poll");
    assert_pending!(poll.poll());
    topic.publish(Event::default().comment("c")).await.unwrap();
    assert_pending!(poll.poll());
    publish(&topic, "2").await;
    assert_eq!(assert_ready!(poll.poll()).text(), "[2]");
}
