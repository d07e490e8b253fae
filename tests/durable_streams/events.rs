//! The mode `live=sse`.

use super::*;
use serde_json::{Value, json};
use std::time::Duration;
use support::whatwg;
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt};
use tower_sse::{Heartbeat, SseLayer, hub::durable_streams::Content};

/// An event stream, and what it has sent.
struct Client {
    body: Polled,
    headers: HeaderMap,
}

impl Client {
    async fn new(streams: &DurableStreams, uri: &str) -> Self {
        let response = respond(streams, Request::get(uri).body(()).unwrap()).await;
        assert_eq!(response.status(), 200);
        Self { headers: response.headers().clone(), body: Polled::new(response) }
    }

    /// Returns the events that are available: the data, or the parsed control event.
    fn read(&mut self) -> Vec<Result<String, Value>> {
        parse(available(&mut self.body).as_bytes())
    }
}

fn parse(bytes: &[u8]) -> Vec<Result<String, Value>> {
    let messages = whatwg::parse(bytes).messages.into_iter();
    let events = messages.map(|message| match &*message.r#type {
        "data" => Ok(message.data),
        "control" => Err(serde_json::from_str(&message.data).unwrap()),
        other => panic!("unexpected event {other}"),
    });
    events.collect()
}

/// Returns the control event without its cursor, which has to be there unless the stream is closed.
fn control(event: &Result<String, Value>) -> Value {
    let mut control = event.clone().expect_err("a control event");
    let cursor = control.as_object_mut().unwrap().remove("streamCursor");
    assert_eq!(cursor.is_none(), control["streamClosed"] == true);
    control
}

#[tokio::test(start_paused = true)]
async fn each_data_event_has_a_control_event() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish_all(&topic, ["1", "2"]).await;
    let streams = all(&hub);
    let mut client = Client::new(&streams, "/t?offset=-1&live=sse").await;
    assert_eq!(client.headers["content-type"], "text/event-stream");
    assert!(client.headers.get("stream-sse-data-encoding").is_none());
    let end = get(&streams, "/t").await.next_offset();
    let events = client.read();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0], Ok("[1,2]".into()));
    assert_eq!(control(&events[1]), json!({"streamNextOffset": end, "upToDate": true}));
    assert_eq!(client.read(), [], "the control event is not repeated");

    publish(&topic, "3").await;
    let events = client.read();
    assert_eq!(events[0], Ok("[3]".into()));
    topic.finish().await.unwrap();
    let end = head(&streams, "/t").await.next_offset();
    let events = client.read();
    assert_eq!(events.len(), 1);
    assert_eq!(control(&events[0]), json!({"streamNextOffset": end, "upToDate": true, "streamClosed": true}));
    assert!(client.body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn first_control_event_says_where_the_client_is() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub).existing(|topic| topic == "empty");
    for (topic, offset) in [("t", "now"), ("empty", "now"), ("empty", "-1")] {
        let mut client = Client::new(&streams, &format!("/{topic}?offset={offset}&live=sse")).await;
        let events = client.read();
        let end = head(&streams, &format!("/{topic}")).await.next_offset();
        assert_eq!(control(&events[0]), json!({"streamNextOffset": end, "upToDate": true}));
    }
}

#[tokio::test(start_paused = true)]
async fn client_is_up_to_date_after_its_last_page_only() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), 0..3).await;
    let mut client = Client::new(&all(&hub).page_size(1), "/t?offset=-1&live=sse").await;
    let events = client.read();
    let data: Vec<_> = events.iter().filter_map(|event| event.as_ref().ok()).collect();
    assert_eq!(data, ["[0]", "[1]", "[2]"]);
    let controls: Vec<_> =
        events.iter().filter(|event| event.is_err()).map(|event| control(event)["upToDate"].clone()).collect();
    assert_eq!(controls, [Value::Null, Value::Null, Value::Null, true.into()]);
}

#[tokio::test(start_paused = true)]
async fn closed_topic_sends_its_events_and_the_end() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    hub.topic("t").finish().await.unwrap();
    let streams = all(&hub);
    for (offset, data) in [("-1", 1), ("now", 0)] {
        let answer = get(&streams, &format!("/t?offset={offset}&live=sse")).await;
        let events = parse(&answer.body);
        assert_eq!(events.len(), data + 1);
        assert_eq!(control(&events[data])["streamClosed"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn binary_streams_are_base64() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["AQ==", "AgM="]).await;
    let mut client = Client::new(&all(&hub).content(|_| Content::base64()), "/t?offset=-1&live=sse").await;
    assert_eq!(client.headers["stream-sse-data-encoding"], "base64");
    assert_eq!(client.read()[0], Ok("AQID".into()));
}

#[tokio::test(start_paused = true)]
async fn event_that_is_not_base64_ends_the_stream_and_is_then_an_error() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["AQ==", "not base64!", "AgM="]).await;
    let streams = all(&hub).content(|_| Content::base64());
    let mut client = Client::new(&streams, "/t?offset=-1&live=sse").await;
    let events = client.read();
    assert_eq!(events[0], Ok("AQ==".into()));
    assert!(client.body.is_end_stream());
    let offset = control(&events[1])["streamNextOffset"].as_str().unwrap().to_owned();
    let answer = get(&streams, &format!("/t?offset={offset}&live=sse")).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (500, Some("no-store")));
}

#[tokio::test(start_paused = true)]
async fn text_keeps_its_lines_and_cannot_break_out() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["a\n\nevent: control\ndata: {}\n\n", "b"]).await;
    let mut client = Client::new(&all(&hub).content(|_| Content::text()), "/t?offset=-1&live=sse").await;
    let events = client.read();
    assert_eq!(events[0], Ok("a\n\nevent: control\ndata: {}\n\nb".into()));
    assert_eq!(events.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn stream_ends_after_its_time_and_misses_nothing() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub).close_events_after(Duration::from_secs(30));
    let began = Instant::now();
    let quiet = timeout(Duration::from_secs(60), get(&streams, "/t?offset=now&live=sse")).await.unwrap();
    assert!((30.0..33.1).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    assert_eq!(parse(&quiet.body).len(), 1);

    let mut client = Client::new(&streams, "/t?offset=now&live=sse").await;
    client.read();
    advance(Duration::from_secs(40)).await;
    publish(&topic, "2").await;
    let events = client.read();
    assert!(client.body.is_end_stream());
    match &events[..] {
        [] => {}
        [data, _] => assert_eq!(*data, Ok("[2]".into())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_times_are_accepted() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let endless = all(&hub).close_events_after(Duration::MAX).long_poll_timeout(Duration::MAX);
    let mut client = Client::new(&endless, "/t?offset=-1&live=sse").await;
    assert_eq!(client.read().len(), 2);
    advance(Duration::from_secs(1_000_000)).await;
    assert_eq!(client.read(), []);
    assert!(!client.body.is_end_stream());
    let year = Duration::from_secs(365 * 86_400);
    assert!(timeout(year, get(&endless, "/t?offset=now&live=long-poll")).await.is_err());

    // The first event has expired.
    publish(&hub.topic("t"), "2").await;
    let hasty = all(&hub).close_events_after(Duration::ZERO).long_poll_timeout(Duration::ZERO);
    assert_eq!(get(&hasty, "/t?offset=now&live=long-poll").await.status, 204);
    assert_eq!(get(&hasty, "/t?offset=-1&live=long-poll").await.text(), "[2]");
    let events = parse(&get(&hasty, "/t?offset=-1&live=sse").await.body);
    assert_eq!(events[0], Ok("[2]".into()));
    assert_eq!(control(&events[1])["upToDate"], true);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_event_streams_after_a_control_event() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let mut client = Client::new(&all(&hub), "/t?offset=-1&live=sse").await;
    client.read();
    hub.shutdown();
    assert_eq!(client.read(), [], "the stream is not closed for good");
    assert!(client.body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn layer_ends_event_streams_at_its_shutdown() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let shutdown = CancellationToken::new();
    let service = SseLayer::new().shutdown(shutdown.clone()).flush_time(Duration::ZERO).layer(all(&hub));
    let request = Request::get("/t?offset=-1&live=sse").body(()).unwrap();
    let mut events = Polled::new(service.oneshot(request).await.unwrap());
    assert!(available(&mut events).contains("event: control"));
    shutdown.cancel();
    assert!(!available(&mut events).contains("event:"));
    assert!(events.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn slow_client_is_disconnected_and_then_gone() {
    let hub = Hub::builder().max_events(2).build();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub);
    let mut client = Client::new(&streams, "/t?offset=-1&live=sse").await;
    let events = client.read();
    let offset = control(&events[1])["streamNextOffset"].as_str().unwrap().to_owned();
    publish_all(&topic, 2..10).await;
    assert_eq!(client.read(), []);
    assert!(client.body.is_end_stream());
    assert_eq!(get(&streams, &format!("/t?offset={offset}&live=sse")).await.status, 410);
}

/// The first part of the stream has no event, but an offset.
#[tokio::test(start_paused = true)]
async fn slow_client_of_an_empty_topic_is_disconnected() {
    let hub = Hub::builder().max_events(1).build();
    let topic = hub.topic("t");
    let streams = all(&hub).existing(|_| true);
    let mut client = Client::new(&streams, "/t?offset=-1&live=sse").await;
    let events = client.read();
    let offset = control(&events[0])["streamNextOffset"].as_str().unwrap().to_owned();
    publish_all(&topic, 1..3).await;
    assert_eq!(client.read(), []);
    assert!(client.body.is_end_stream());
    assert_eq!(get(&streams, &format!("/t?offset={offset}&live=sse")).await.status, 410);
}

#[tokio::test(start_paused = true)]
async fn busy_event_stream_gets_no_heartbeat_event() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "0").await;
    let heartbeat = Heartbeat::every(Duration::from_secs(15)).event(Event::default().event("beat"));
    let service = SseLayer::new().heartbeat(heartbeat).layer(all(&hub));
    let request = Request::get("/t?offset=-1&live=sse").body(()).unwrap();
    let mut events = Polled::new(service.oneshot(request).await.unwrap());
    let mut text = String::new();
    for n in 1..=50 {
        text += &available(&mut events);
        sleep(Duration::from_secs(1)).await;
        publish(&topic, n.to_string()).await;
    }
    assert!(text.contains("data:[49]") && !text.contains("event: beat"), "{text}");
}
