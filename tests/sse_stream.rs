//! `SseStream` as a body: its frames and their times, its end, and the release of its stream.

use bytes::Bytes;
use futures_util::stream::{self, poll_fn};
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    collections::{HashMap, HashSet},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use support::polled::Polled;
use tokio::{
    sync::mpsc,
    time::{advance, sleep},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tower_sse::{EncodedEvents, Event, Heartbeat, JsonError, RetryLater, SseItem, SseStream, StopReconnecting};

fn polled<S>(stream: SseStream<S>) -> Polled
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    Polled::new(stream.into_http_response())
}

fn channel() -> (mpsc::UnboundedSender<Event>, UnboundedReceiverStream<Event>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// Returns a stream that panics when it is polled after its end, or after an error.
fn strict<T: Send + 'static, E: Send + 'static>(items: Vec<Result<T, E>>) -> impl Stream<Item = Result<T, E>> + Send {
    let mut items = items.into_iter();
    let mut ended = false;
    poll_fn(move |_| {
        assert!(!ended, "the stream was polled after its end");
        let item = items.next();
        ended = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    })
}

#[tokio::test(start_paused = true)]
async fn silent_stream_sends_first_byte_then_heartbeats() {
    let (_sender, events) = channel();
    let mut body = polled(SseStream::new(events));
    body.assert_data(":\n");
    body.assert_pending();

    for _ in 0..3 {
        advance(Duration::from_millis(14_990)).await;
        assert!(!body.is_woken());
        body.assert_pending();
        advance(Duration::from_millis(20)).await;
        assert!(body.is_woken());
        body.assert_data(":\n");
        body.assert_pending();
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_follows_last_event_by_full_interval() {
    let (sender, events) = channel();
    let mut body = polled(SseStream::new(events).heartbeat(Heartbeat::every(Duration::from_secs(10))));
    body.assert_data(":\n");
    body.assert_pending();

    advance(Duration::from_secs(7)).await;
    sender.send(Event::new("a")).unwrap();
    body.assert_data("data: a\n\n");
    body.assert_pending();

    // The timer was set for this instant. It is now set to ten seconds after the event.
    advance(Duration::from_millis(3_001)).await;
    assert!(body.is_woken());
    body.assert_pending();
    advance(Duration::from_millis(6_990)).await;
    assert!(!body.is_woken());
    advance(Duration::from_millis(20)).await;
    assert!(body.is_woken());
    body.assert_data(":\n");
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_comment_or_event_without_id() {
    async fn second_frame(heartbeat: Heartbeat) -> Bytes {
        let (_sender, events) = channel();
        let mut body = SseStream::new(events).heartbeat(heartbeat).into_http_response().into_body();
        body.frame().await;
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    }
    assert_eq!(second_frame(Heartbeat::default().comment("two\r\nlines")).await, ": two\n: lines\n");
    let event = Event::default().event("ping").id(7);
    assert_eq!(second_frame(Heartbeat::default().event(event)).await, "event: ping\ndata: \n\n");
}

#[tokio::test(start_paused = true)]
async fn without_heartbeat_body_has_only_events() {
    let (sender, events) = channel();
    let mut body = polled(SseStream::new(events).without_heartbeat());
    body.assert_pending();
    advance(Duration::from_secs(3600)).await;
    assert!(!body.is_woken());
    body.assert_pending();
    sender.send(Event::new("a")).unwrap();
    body.assert_data("data: a\n\n");
}

#[test]
fn without_heartbeat_body_needs_no_runtime() {
    let events = stream::iter([Event::new("a")]).chain(stream::pending().take(0));
    let body = SseStream::new(events).without_heartbeat().into_http_response().into_body();
    let collected = futures_executor::block_on(body.collect()).unwrap();
    assert_eq!(collected.to_bytes(), "data: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn interval_beyond_instant_range_disables_heartbeats() {
    let (_sender, events) = channel();
    let mut body = polled(SseStream::new(events).heartbeat(Heartbeat::every(Duration::MAX)));
    body.assert_data(":\n");
    body.assert_pending();
}

#[tokio::test]
async fn ready_events_share_a_frame_without_delay() {
    let (sender, events) = channel();
    let mut body = polled(SseStream::new(events));
    sender.send(Event::new("a")).unwrap();
    sender.send(Event::new("b")).unwrap();
    body.assert_data("data: a\n\ndata: b\n\n");
    sender.send(Event::new("c")).unwrap();
    body.assert_data("data: c\n\n");
}

#[tokio::test]
async fn frames_hold_16_kib_and_lose_nothing() {
    for size in [0, 1, 100, 1000, 4000, 4090, 5000, 20_000, 70_000] {
        // An event of the smallest size has no id.
        let event = |n| if size == 0 { Event::new("") } else { Event::new("x".repeat(size)).id(n) };
        let events: Vec<_> = (0..400_000 / (size + 8)).map(event).collect();
        let all: EncodedEvents = events.iter().cloned().collect();
        // The body is pending after every 64 items.
        let turns = events.len() / 64;
        let mut body = SseStream::new(stream::iter(events)).into_http_response().into_body();
        let mut seen = Vec::new();
        let mut frames = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(
                data.len() <= (16 << 10) + 4096.max(size + 100),
                "{} bytes in a frame, events of {size}",
                data.len()
            );
            assert!(!data.is_empty());
            seen.extend_from_slice(&data);
            frames += 1;
        }
        assert!(seen == all.as_bytes(), "events of {size} bytes");
        assert!(frames <= seen.len() / 4096 + turns + 1, "{frames} frames for {size}");
    }
}

#[tokio::test]
async fn large_encoded_events_are_not_copied() {
    let chunk: EncodedEvents = [Event::new("x".repeat(10_000))].into_iter().collect();
    let items = [EncodedEvents::from(Event::new("small")), chunk.clone()];
    let mut body = SseStream::new(stream::iter(items)).into_http_response().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: small\n\n");
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(data.as_ptr(), chunk.as_bytes().as_ptr());
}

/// The time between the last bytes and an error. The transport sends the bytes meanwhile.
const FLUSH_DELAY: Duration = Duration::from_millis(250);

#[tokio::test(start_paused = true)]
async fn events_before_an_error_are_sent_first() {
    let items = vec![Ok(Event::new("a")), Ok(Event::new("b")), Err(io::Error::other("broken"))];
    let mut body = polled(SseStream::new(strict(items)));
    body.assert_data("data: a\n\ndata: b\n\n");
    // The transport can flush now. One poll is not enough for HTTP/2, where another task writes.
    body.assert_pending();
    advance(FLUSH_DELAY - Duration::from_millis(1)).await;
    body.assert_pending();
    advance(Duration::from_millis(2)).await;
    assert!(body.is_woken());
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".into()))));
    body.assert_end();
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn early_error_waits_until_head_is_sent() {
    let mut body = polled(SseStream::new(strict(vec![Err::<Event, _>(io::Error::other("broken"))])));
    body.assert_pending();
    sleep(FLUSH_DELAY).await;
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".into()))));
    body.assert_end();
}

#[test]
fn without_runtime_error_follows_after_one_poll() {
    let items = vec![Ok(Event::new("a")), Err(io::Error::other("broken"))];
    let mut body = polled(SseStream::new(strict(items)).without_heartbeat());
    body.assert_data("data: a\n\n");
    body.assert_pending();
    assert!(body.is_woken());
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".into()))));
}

#[tokio::test(start_paused = true)]
async fn on_error_sends_last_event_or_breaks_transfer() {
    let items = || vec![Ok(Event::new("a")), Err(io::Error::other("broken"))];
    let end_with = Event::new("never sent after an error");

    let stream = SseStream::new(strict(items())).end_with(end_with.clone());
    let mut body = polled(stream.on_error(|error| Some(Event::display(error).event("error"))));
    body.assert_data("data: a\n\nevent: error\ndata: broken\n\n");
    body.assert_end();

    let mut body = polled(SseStream::new(strict(items())).end_with(end_with).on_error(|_| None));
    body.assert_data("data: a\n\n");
    body.assert_pending();
    sleep(FLUSH_DELAY).await;
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".into()))));
}

#[tokio::test]
async fn finished_stream_sends_end_with_event() {
    let items: Vec<Result<_, io::Error>> = vec![Ok(Event::new("a"))];
    let stream = SseStream::new(strict(items)).retry(Duration::from_secs(3)).end_with(Event::default().event("close"));
    let mut body = polled(stream);
    assert!(!body.is_end_stream());
    body.assert_data("retry: 3000\ndata: a\n\nevent: close\ndata: \n\n");
    assert!(body.is_end_stream());
    body.assert_end();
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn retry_is_sent_first_and_immediately() {
    let (_sender, events) = channel();
    let mut body = polled(SseStream::new(events).retry(Duration::from_millis(1500)));
    body.assert_data("retry: 1500\n");
    body.assert_pending();
}

#[tokio::test]
async fn empty_stream_ends_immediately() {
    let mut body = polled(SseStream::new(stream::empty::<Event>()));
    body.assert_end();
    let mut body = polled(SseStream::new(stream::empty::<Event>()).end_with(Event::new("bye")));
    body.assert_data("data: bye\n\n");
    body.assert_end();
}

#[tokio::test]
async fn endless_empty_chunks_yield_to_other_tasks() {
    let mut body = polled(SseStream::new(stream::repeat(EncodedEvents::default())));
    body.assert_data(":\n");
    body.assert_pending();
    assert!(body.is_woken());
}

struct CountsDrops(Arc<AtomicUsize>);

impl Drop for CountsDrops {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Stream for CountsDrops {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Event>> {
        Poll::Ready(None)
    }
}

#[tokio::test]
async fn stream_is_dropped_at_end_or_with_body() {
    let drops = Arc::new(AtomicUsize::new(0));
    drop(SseStream::new(CountsDrops(Arc::clone(&drops))));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    drop(SseStream::new(CountsDrops(Arc::clone(&drops))).into_http_response());
    assert_eq!(drops.load(Ordering::Relaxed), 2);

    let mut body = polled(SseStream::new(CountsDrops(Arc::clone(&drops))));
    body.assert_end();
    assert_eq!(drops.load(Ordering::Relaxed), 3, "the stream is kept until the transport drops the body");
    drop(body);
    assert_eq!(drops.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn items_are_events_encoded_events_or_results() {
    async fn all<S>(stream: S) -> Bytes
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        SseStream::new(stream).into_http_response().into_body().collect().await.unwrap().to_bytes()
    }
    let event = || Event::new("a");
    let encoded = || EncodedEvents::from(event());
    assert_eq!(all(stream::iter([event()])).await, "data: a\n\n");
    assert_eq!(all(stream::iter([encoded()])).await, "data: a\n\n");
    assert_eq!(all(stream::iter([Ok::<_, io::Error>(event())])).await, "data: a\n\n");
    assert_eq!(all(stream::iter([Ok::<_, String>(encoded())])).await, "data: a\n\n");

    let json = SseStream::json(stream::iter([Some(1), None])).into_http_response().into_body();
    assert_eq!(json.collect().await.unwrap().to_bytes(), "data: 1\n\ndata: null\n\n");
}

#[tokio::test(start_paused = true)]
async fn try_json_ends_at_first_error() {
    // JSON has no keys that are arrays.
    let not_json = || HashMap::from([([1, 2], 3)]);
    for (last, expected) in [(Ok(not_json()), "JsonError"), (Err(io::Error::other("gone")), "io::Error")] {
        let items = stream::iter([Ok(HashMap::new()), last, Ok(HashMap::new())]);
        let stream = SseStream::try_json(items).on_error(|error| {
            let kind = if error.is::<JsonError>() { "JsonError" } else { "io::Error" };
            assert!(error.is::<JsonError>() || error.is::<io::Error>());
            Some(Event::new(kind))
        });
        let body = stream.into_http_response().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("data: {{}}\n\ndata: {expected}\n\n"));
    }
    let items = stream::iter([Ok(1), Err("gone")]);
    let error = SseStream::try_json(items).into_http_response().into_body().collect().await.unwrap_err();
    assert_eq!(error.to_string(), "gone");
}

#[tokio::test(start_paused = true)]
async fn events_are_sent_when_their_stream_yields_them() {
    let ticks = Box::pin(stream::unfold(0, |n| async move {
        sleep(Duration::from_secs(1)).await;
        (n < 3).then(|| (Event::display(n), n + 1))
    }));
    let mut body = SseStream::new(ticks).without_heartbeat().into_http_response().into_body();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    assert_eq!(frames, ["data: 0\n\n", "data: 1\n\n", "data: 2\n\n"]);
}

#[test]
fn response_has_event_stream_headers() {
    let response = SseStream::new(stream::empty::<Event>()).into_http_response();
    assert_eq!(response.status(), StatusCode::OK);
    let headers: Vec<_> = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(
        headers,
        [
            ("content-type", &b"text/event-stream"[..]),
            ("cache-control", b"no-cache, no-transform"),
            ("x-accel-buffering", b"no"),
        ]
    );
}

#[tokio::test]
async fn stop_reconnecting_is_an_empty_204() {
    let response: Response<_> = StopReconnecting.into_http_response();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers().len(), 1);
    assert!(response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(0));
    assert!(response.into_body().frame().await.is_none());
}

#[tokio::test]
async fn retry_later_sends_only_a_delay_with_jitter() {
    let later = RetryLater::after(Duration::from_secs(10));
    let in_time = |later: RetryLater, longest| async move {
        let response = later.into_http_response();
        assert_eq!(response.status(), StatusCode::OK);
        let headers = ["content-type", "cache-control", "x-accel-buffering"].map(|name| response.headers().get(name));
        assert_eq!(headers.map(Option::unwrap), ["text/event-stream", "no-cache, no-transform", "no"]);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let delay = str::from_utf8(&text).unwrap().strip_prefix("retry: ").unwrap().strip_suffix('\n').unwrap();
        assert!((10_000..=longest).contains(&delay.parse::<u32>().unwrap()), "{delay}");
        text
    };
    let mut delays = HashSet::new();
    for _ in 0..100 {
        delays.insert(in_time(later.clone(), 15_000).await);
        in_time(later.clone().jitter(Duration::from_secs(1)), 11_000).await;
    }
    // A hundred random numbers of 5,000 are the same only without jitter.
    assert!(delays.len() > 1);
}

#[tokio::test(start_paused = true)]
async fn shortest_heartbeat_interval_is_one_millisecond() {
    let (_sender, events) = channel();
    let mut body = polled(SseStream::new(events).heartbeat(Heartbeat::every(Duration::ZERO)));
    body.assert_data(":\n");
    body.assert_pending();
    advance(Duration::from_millis(2)).await;
    body.assert_data(":\n");
    body.assert_pending();
}

#[tokio::test(start_paused = true)]
async fn first_byte_is_immediate_after_empty_chunks() {
    let chunks = stream::iter(vec![EncodedEvents::default(); 1024]).chain(stream::pending());
    let mut body = polled(SseStream::new(chunks));
    body.assert_data(":\n");
}

#[tokio::test]
async fn event_of_10_mib_has_its_own_frame() {
    let data = "x".repeat(10 * 1024 * 1024);
    let mut body = polled(SseStream::new(stream::iter([Event::new("a"), Event::new(&data), Event::new("b")])));
    body.assert_data("data: a\n\n");
    body.assert_data(format!("data: {data}\n\n"));
    body.assert_data("data: b\n\n");
    body.assert_end();
}
