//! Guarantee: shutdown ends every open stream within one poll, idle or busy, at an event's end. And what else ends streams,
//! limits them, and tells of them.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use proptest::prelude::*;
use std::{
    convert::Infallible,
    future::{self, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use support::{
    script::{Script, Step},
    whatwg,
};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, advance},
};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tokio_test::task;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{BoxError, CloseReason, Event, Heartbeat, Overload, SseItem, SseLayer, SseStream, StreamSummary};

/// A body that is polled by hand.
struct Polled(task::Spawn<UnsyncBoxBody<Bytes, BoxError>>);

impl Polled {
    fn new<B>(response: Response<B>) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(task::spawn(response.into_body().map_err(Into::into).boxed_unsync()))
    }

    fn poll(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        self.0.enter(|cx, body| body.poll_frame(cx)).map(|frame| {
            let data = |frame: http_body::Frame<Bytes>| frame.into_data().expect("data");
            frame.map(|frame| frame.map(data).map_err(|error| error.to_string()))
        })
    }

    #[track_caller]
    fn assert_data(&mut self, expected: impl AsRef<[u8]>) {
        assert_eq!(self.poll(), Poll::Ready(Some(Ok(Bytes::copy_from_slice(expected.as_ref())))));
    }

    #[track_caller]
    fn assert_pending(&mut self) {
        assert_eq!(self.poll(), Poll::Pending);
    }

    #[track_caller]
    fn assert_end(&mut self) {
        assert_eq!(self.poll(), Poll::Ready(None));
    }

    /// What it still has, all of which has to be ready, as hyper reads it: up to the end that it tells in either way.
    #[track_caller]
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        while !self.0.is_end_stream() {
            match self.poll() {
                Poll::Ready(Some(Ok(data))) => rest.extend_from_slice(&data),
                Poll::Ready(None) => break,
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&rest)),
            }
        }
        String::from_utf8(rest).unwrap()
    }
}

/// What layers, the innermost first, make of a stream of ours.
fn ours<S>(stream: SseStream<S>, layers: &[&SseLayer]) -> Polled
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    let response = stream.into_http_response();
    // A layer changes the type of the body, so there are as many cases as layers.
    match layers {
        [] => Polled::new(response),
        [one] => Polled::new(through(one, response)),
        [one, two] => Polled::new(through(two, through(one, response))),
        more => panic!("{} layers", more.len()),
    }
}

fn foreign_response<B>(body: B) -> Response<B> {
    Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body).unwrap()
}

/// What layers, the innermost first, make of somebody else's stream.
fn foreign(steps: impl IntoIterator<Item = Step>, layers: &[&SseLayer]) -> Polled {
    let response = foreign_response(Script::new(steps));
    match layers {
        [] => Polled::new(response),
        [one] => Polled::new(through(one, response)),
        [one, two] => Polled::new(through(two, through(one, response))),
        more => panic!("{} layers", more.len()),
    }
}

fn through<B>(layer: &SseLayer, response: Response<B>) -> Response<tower_sse::ResponseBody<B>>
where
    B: Body<Data = Bytes>,
{
    answer(layer, Request::new(()), response)
}

fn answer<B>(layer: &SseLayer, request: Request<()>, response: Response<B>) -> Response<tower_sse::ResponseBody<B>>
where
    B: Body<Data = Bytes>,
{
    let mut response = Some(response);
    let handler = service_fn(|_| ready(Ok::<_, Infallible>(response.take().expect("one request"))));
    layer.layer(handler).oneshot(request).now_or_never().expect("a handler that does not wait").unwrap()
}

fn channel() -> (UnboundedSender<Event>, UnboundedReceiverStream<Event>) {
    let (sender, receiver) = unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// An endless stream that is always ready, and how many items were taken from it.
fn endless() -> (Arc<AtomicUsize>, impl Stream<Item = Event> + Send) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    (taken, stream::repeat_with(move || Event::display(count.fetch_add(1, Ordering::Relaxed))))
}

fn silent() -> SseStream<stream::Pending<Event>> {
    SseStream::new(stream::pending()).without_heartbeat()
}

/// A layer that a token ends, and that says exactly when to come back.
fn ending() -> (CancellationToken, SseLayer) {
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).reconnect_jitter(Duration::ZERO);
    (token, layer.without_heartbeat())
}

/// What was told of streams.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<StreamSummary>>>);

impl Told {
    fn teller(&self) -> impl Fn(StreamSummary) + Send + Sync + 'static {
        let told = Arc::clone(&self.0);
        move |summary| told.lock().unwrap().push(summary)
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }

    /// The only thing that was told.
    #[track_caller]
    fn only(&self) -> StreamSummary {
        let told = self.0.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        told[0].clone()
    }
}

// Shutdown: streams of ours.

#[tokio::test]
async fn an_idle_stream_is_woken_by_the_shutdown_and_ends_with_the_farewell_and_the_reconnection_time() {
    let (token, layer) = ending();
    let layer = layer.shutdown_event(Event::new("bye"));
    let (_sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    assert!(!body.0.is_woken());

    token.cancel();
    assert!(body.0.is_woken());
    body.assert_data("data: bye\n\nretry: 1000\n");
    assert!(body.0.is_end_stream());
    body.assert_end();
    body.assert_end();
}

#[tokio::test]
async fn a_busy_stream_ends_after_the_frame_under_way_and_no_event_is_cut() {
    let (token, layer) = ending();
    let (taken, events) = endless();
    let mut body = ours(SseStream::new(events), &[&layer]);
    let mut seen = Vec::new();
    for _ in 0..10 {
        let Poll::Ready(Some(Ok(frame))) = body.poll() else { panic!("it is always ready") };
        seen.extend_from_slice(&frame);
    }
    let before = taken.load(Ordering::Relaxed);
    token.cancel();
    let rest = body.rest();
    assert!(rest.ends_with("\n\nretry: 1000\n") || rest == "retry: 1000\n", "{rest:?}");
    assert_eq!(taken.load(Ordering::Relaxed), before, "nothing is taken that is not needed");
    seen.extend_from_slice(rest.as_bytes());
    let data: Vec<_> = whatwg::parse(&seen).messages.into_iter().map(|message| message.data).collect();
    assert_eq!(data, (0..before).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_that_was_held_for_the_next_frame_is_sent_before_the_farewell() {
    for farewell in ["bye".to_owned(), "b".repeat(10_000)] {
        let (token, layer) = ending();
        let told = Told::default();
        let layer = layer.shutdown_event(Event::new(&farewell)).on_close(told.teller());
        let large = "x".repeat(10_000);
        let events = stream::iter([Event::new("small"), Event::new(&large)]).chain(stream::pending());
        let mut body = ours(SseStream::new(events), &[&layer]);
        body.assert_data("data: small\n\n");
        token.cancel();
        let rest = body.rest();
        assert_eq!(rest, format!("data: {large}\n\ndata: {farewell}\n\nretry: 1000\n"));
        drop(body);
        let summary = told.only();
        assert_eq!(summary.reason, CloseReason::Shutdown);
        assert_eq!(summary.bytes, "data: small\n\n".len() as u64 + rest.len() as u64);
    }
}

#[tokio::test]
async fn what_a_stream_says_when_it_ends_by_itself_is_not_said_at_a_shutdown() {
    let (token, layer) = ending();
    let events = stream::iter([Event::new("a")]).chain(stream::pending());
    let mut body = ours(SseStream::new(events).end_with(Event::new("no more")), &[&layer]);
    body.assert_data("data: a\n\n");
    body.assert_pending();
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
}

#[tokio::test]
async fn the_handlers_stream_is_dropped_by_the_poll_that_ends_it_and_not_with_the_body() {
    let (token, layer) = ending();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    token.cancel();
    assert!(!sender.is_closed());
    body.assert_data("retry: 1000\n");
    assert!(sender.is_closed());
}

#[tokio::test]
async fn a_farewell_carries_no_id_as_it_is_no_place_to_come_back_to() {
    let (token, layer) = ending();
    let layer = layer.shutdown_event(Event::new("bye").event("shutdown").id(7));
    let events = stream::iter([Event::new("a").id(3)]).chain(stream::pending());
    let chunk = Step::chunk("id: 3\ndata: a\n\n");
    let mut bodies = [ours(SseStream::new(events), &[&layer]), foreign([chunk, Step::Hang], &[&layer])];
    for body in &mut bodies {
        body.assert_data("id: 3\ndata: a\n\n");
        body.assert_pending();
    }
    token.cancel();
    for mut body in bodies {
        let rest = body.rest();
        assert_eq!(rest, "event: shutdown\ndata: bye\n\nretry: 1000\n");
        let whole = whatwg::parse(format!("id: 3\ndata: a\n\n{rest}").as_bytes());
        assert_eq!(whole.last_event_id, "3");
    }
}

#[tokio::test]
async fn a_stream_that_begins_after_the_shutdown_ends_at_once_and_its_handlers_stream_is_not_polled() {
    let (token, layer) = ending();
    let layer = layer.shutdown_event(Event::new("bye")).retry(Duration::from_secs(3));
    token.cancel();
    let never = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("polled") });
    let mut body = ours(SseStream::new(never), &[&layer]);
    assert_eq!(body.rest(), "retry: 3000\ndata: bye\n\nretry: 3000\n");

    let mut body = foreign([Step::Fail("not to be polled")], &[&layer]);
    assert_eq!(body.rest(), "retry: 3000\ndata: bye\n\nretry: 3000\n");
    let (token, quiet) = ending();
    token.cancel();
    assert_eq!(ours(silent(), &[&quiet]).rest(), "retry: 1000\n");
    assert_eq!(foreign([Step::Hang], &[&quiet]).rest(), "retry: 1000\n");
}

#[tokio::test]
async fn with_several_layers_each_token_ends_the_stream_with_the_farewell_of_its_layer() {
    for cancelled in [0, 1] {
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let layers = [0, 1].map(|n| {
            let layer = SseLayer::new().without_heartbeat().shutdown(tokens[n].clone());
            layer.shutdown_event(Event::display(n)).reconnect_jitter(Duration::ZERO)
        });
        let layers = [&layers[0], &layers[1]];
        let mut bodies = [ours(silent(), &layers), foreign([Step::Hang], &layers)];
        for body in &mut bodies {
            body.assert_pending();
        }
        tokens[cancelled].cancel();
        for mut body in bodies {
            assert_eq!(body.rest(), format!("data: {cancelled}\n\nretry: 1000\n"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_came_before_the_shutdown_stays_an_error() {
    let (token, layer) = ending();
    let told = Told::default();
    let items = stream::iter([Ok(Event::new("a")), Err("broken")]);
    let mut body = ours(SseStream::new(items).on_close(told.teller()), &[&layer]);
    body.assert_data("data: a\n\n");
    token.cancel();
    body.assert_pending();
    advance(Duration::from_millis(251)).await;
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".to_owned()))));
    drop(body);
    assert_eq!(told.only().reason, CloseReason::Error);
}

// Shutdown: streams of others.

#[tokio::test(start_paused = true)]
async fn a_foreign_stream_between_events_ends_at_once() {
    for end in ["\n\n", "\r\n\r\n"] {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let chunk = format!("data: a{end}");
        let mut body = foreign([Step::chunk(&chunk), Step::Hang], &[&layer]);
        body.assert_data(&chunk);
        body.assert_pending();
        token.cancel();
        assert!(body.0.is_woken());
        assert_eq!(body.rest(), "data: bye\n\nretry: 1000\n", "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stream_that_is_always_ready_ends_at_its_next_poll() {
    let (token, layer) = ending();
    let chunks = (0..100).map(|n| Step::chunk(format!("data: {n}\n\n")));
    let mut body = foreign(chunks, &[&layer]);
    body.assert_data("data: 0\n\n");
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_event_under_way_is_completed_and_nothing_of_the_next_one_is_sent() {
    for (begun, next, completed) in [
        ("data: a", "\n\n", "\n\n"),
        ("data: a\n", "\n", "\n"),
        ("data: a\n", "data: b\n\n", "data: b\n\n"),
        ("data: a\n", "\ndata: half", "\n"),
        ("data: a\nda", "ta: b\n\ndata: c\n\ndata: ha", "ta: b\n\ndata: c\n\n"),
        ("data: a\r\n", "\r\n", "\r\n"),
        ("data: a\r\n", "\r\ndata: ha", "\r\n"),
        ("data: a\r\n\r", "\ndata: ha", "\n"),
        ("data: a\r", "\n\r\ndata: ha", "\n\r\n"),
        ("data: a", "\r\n\r\nid: 1\r\n", "\r\n\r\n"),
        ("id: 1\n", "data: a\n\nid: 2\n", "data: a\n\n"),
    ] {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = foreign([Step::chunk(begun), Step::silence(0), Step::chunk(next), Step::Hang], &[&layer]);
        body.assert_data(begun);
        token.cancel();
        let mut rest = String::new();
        while let Poll::Ready(Some(Ok(data))) = body.poll_in_time().await {
            rest.push_str(std::str::from_utf8(&data).unwrap());
        }
        if begun.ends_with("\r\n\r") {
            // The CR was the blank line, and its LF is not waited for.
            assert_eq!(rest.trim_start_matches('\n'), "data: bye\n\nretry: 1000\n");
        } else {
            assert_eq!(rest, format!("{completed}data: bye\n\nretry: 1000\n"), "{begun:?} {next:?}");
        }
        body.assert_end();
    }
}

impl Polled {
    /// Its next frame. A timer may have to go off before it.
    async fn poll_in_time(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        for _ in 0..300 {
            match self.poll() {
                Poll::Pending => advance(Duration::from_millis(1)).await,
                ready => return ready,
            }
        }
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_boundary_that_is_cut_over_chunks_is_one() {
    for end in ["\n\n", "\r\n\r\n"] {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let rest = format!("ta: a{end}data: not this");
        let chunks = rest.bytes().map(|byte| Step::chunk([byte]));
        let mut body = foreign([Step::chunk("da")].into_iter().chain(chunks), &[&layer]);
        body.assert_data("da");
        token.cancel();
        let whole = format!("da{}", body.rest());
        let parsed = whatwg::parse(whole.as_bytes());
        let data: Vec<_> = parsed.messages.iter().map(|message| &*message.data).collect();
        assert_eq!(data, ["a", "bye"], "{whole:?}");
        assert_eq!(parsed.reconnection_time.as_deref(), Some("1000"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_event_that_is_silent_is_cut_after_250_milliseconds_without_a_farewell() {
    for (begun, last) in [("data: a\n", "retry: 1000\n"), ("data: a\r\n", "retry: 1000\n"), ("data: a", "")] {
        let (token, layer) = ending();
        let told = Told::default();
        let layer = layer.shutdown_event(Event::new("bye")).on_close(told.teller());
        let mut body = foreign([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        assert!(body.0.is_woken());
        body.assert_pending();
        advance(Duration::from_millis(248)).await;
        body.assert_pending();
        assert!(!body.0.is_woken());
        advance(Duration::from_millis(3)).await;
        assert!(body.0.is_woken());
        assert_eq!(body.rest(), last, "{begun:?}");
        body.assert_end();
        assert!(whatwg::parse(format!("{begun}{last}").as_bytes()).messages.is_empty());
        drop(body);
        assert_eq!(told.only().reason, CloseReason::Shutdown);
        assert_eq!(told.only().events, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_event_without_an_end_is_cut_although_it_is_always_ready() {
    let (token, layer) = ending();
    let layer = layer.shutdown_event(Event::new("bye"));
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("data: a\n"))));
    let body = http_body_util::StreamBody::new(endless);
    let mut body = Polled::new(through(&layer, foreign_response(body)));
    body.assert_data("data: a\n");
    token.cancel();
    let mut frames = 0;
    let end = loop {
        match body.poll() {
            Poll::Ready(Some(Ok(data))) if data == "data: a\n" => frames += 1,
            end => break end,
        }
        assert!(frames < 1000, "it goes on and on");
        advance(Duration::from_millis(1)).await;
        // What a runtime grants to one poll of a task is not for a whole test.
        tokio::task::yield_now().await;
    };
    assert!((240..=260).contains(&frames), "{frames}");
    assert_eq!(end, Poll::Ready(Some(Ok(Bytes::from("retry: 1000\n")))));
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn an_error_under_way_while_an_event_is_completed_is_passed_on() {
    let (token, layer) = ending();
    let told = Told::default();
    let layer = layer.on_close(told.teller());
    let mut body = foreign([Step::chunk("data: a\n"), Step::Fail("broken")], &[&layer]);
    body.assert_data("data: a\n");
    token.cancel();
    assert_eq!(body.poll_in_time().await, Poll::Ready(Some(Err("broken".to_owned()))));
    drop(body);
    assert_eq!(told.only().reason, CloseReason::Error);
}

#[tokio::test(start_paused = true)]
async fn trailers_of_a_stream_that_is_completed_at_a_shutdown_are_kept() {
    let (token, layer) = ending();
    let trailers = HeaderMap::from_iter([(header::HeaderName::from_static("x-sum"), "1".parse().unwrap())]);
    let response = foreign_response(Script::new([Step::chunk("data: a\n"), Step::Trailers(trailers.clone())]));
    let mut body = task::spawn(through(&layer, response).into_body());
    let mut frame = || body.enter(|cx, body| body.poll_frame(cx)).map(|frame| frame.map(Result::unwrap));
    assert!(matches!(frame(), Poll::Ready(Some(frame)) if frame.is_data()));
    token.cancel();
    let Poll::Ready(Some(last)) = frame() else { panic!("the trailers are ready") };
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(matches!(frame(), Poll::Ready(None)));
}

// When to come back.

/// The reconnection time of a stream that is shut down, in milliseconds.
fn reconnection_time<S>(stream: SseStream<S>, layer: SseLayer) -> u128
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    let token = CancellationToken::new();
    let layer = layer.shutdown(token.clone());
    token.cancel();
    let rest = ours(stream, &[&layer]).rest();
    whatwg::parse(rest.as_bytes()).reconnection_time.expect("a reconnection time").parse().expect("digits")
}

/// Whether these are spread evenly over a range, in a way that practically never fails by chance: each tenth of the range is
/// to have between half and one and a half times its share, which is seven standard deviations for 2,000.
fn assert_uniform(samples: &[f64], from: f64, to: f64) {
    let mut buckets = [0; 10];
    for &sample in samples {
        assert!((from..=to).contains(&sample), "{sample} is not within {from}..={to}");
        buckets[(((sample - from) / (to - from) * 10.0) as usize).min(9)] += 1;
    }
    let share = samples.len() / 10;
    assert!(buckets.iter().all(|&count| count > share / 2 && count < share * 3 / 2), "{buckets:?}");
}

#[test]
fn clients_that_are_sent_away_together_are_spread_evenly() {
    let layer = || SseLayer::new().retry(Duration::from_secs(2)).reconnect_jitter(Duration::from_secs(10));
    let samples: Vec<_> = (0..2_000).map(|_| reconnection_time(silent(), layer()) as f64).collect();
    assert_uniform(&samples, 2_000.0, 12_000.0);
}

#[test]
fn the_defaults_are_one_second_and_a_spread_of_five() {
    let samples: Vec<_> = (0..2_000).map(|_| reconnection_time(silent(), SseLayer::new()) as f64).collect();
    assert_uniform(&samples, 1_000.0, 6_000.0);
}

#[test]
fn the_reconnection_time_that_a_handler_has_set_wins_over_that_of_the_layer() {
    let layer = || SseLayer::new().retry(Duration::from_secs(60)).reconnect_jitter(Duration::from_secs(1));
    for _ in 0..100 {
        let time = reconnection_time(silent().retry(Duration::from_secs(7)), layer());
        assert!((7_000..=8_000).contains(&time), "{time}");
    }
}

#[tokio::test]
async fn no_time_is_too_long_or_too_short() {
    for [retry, spread, lifetime] in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX]
        .into_iter()
        .flat_map(|a| [Duration::ZERO, Duration::from_nanos(1), Duration::MAX].map(|b| [a, b, b]))
    {
        for when_full in [Overload::RetryLater, Overload::ServiceUnavailable] {
            let layer = || SseLayer::new().retry(retry).reconnect_jitter(spread).when_full(when_full);
            for _ in 0..100 {
                let time = reconnection_time(silent().retry(retry), layer().max_lifetime(lifetime));
                assert!(time >= retry.as_millis());
            }
            let response = through(&layer().max_streams(0), foreign_response(Script::new([Step::Hang])));
            assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
            let token = CancellationToken::new();
            let layer = layer().max_lifetime(lifetime).shutdown(token.clone());
            let mut body = foreign([Step::Hang], &[&layer]);
            let _first = body.poll();
            token.cancel();
            let _last_words = body.rest();
        }
    }
}

// The time of a stream.

/// For how long a stream is open.
async fn lifetime(mut body: Polled) -> Duration {
    let began = Instant::now();
    while let Some(frame) = future::poll_fn(|cx| body.0.enter(|_, body| body.poll_frame(cx))).await {
        frame.unwrap();
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_within_10_percent_of_its_time_and_not_always_at_the_same() {
    let layer = SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(1_000));
    for kind in ["ours", "foreign"] {
        let mut samples = Vec::new();
        for _ in 0..2_000 {
            let body = if kind == "ours" { ours(silent(), &[&layer]) } else { foreign([Step::Hang], &[&layer]) };
            samples.push(lifetime(body).await.as_secs_f64());
        }
        // A timer of tokio's goes off at the next millisecond.
        assert_uniform(&samples, 900.0, 1_100.002);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_time_is_up_ends_cleanly_and_without_a_farewell() {
    let layer =
        SseLayer::new().without_heartbeat().shutdown_event(Event::new("bye")).max_lifetime(Duration::from_secs(10));
    let told = Told::default();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events).end_with(Event::new("no more")).on_close(told.teller()), &[&layer]);
    body.assert_pending();
    sender.send(Event::new("a")).unwrap();
    body.assert_data("data: a\n\n");
    body.assert_pending();
    advance(Duration::from_millis(8_999)).await;
    assert!(!body.0.is_woken());
    advance(Duration::from_millis(2_003)).await;
    assert!(body.0.is_woken());
    body.assert_end();
    assert!(sender.is_closed());
    drop(body);
    assert_eq!(told.only().reason, CloseReason::MaxLifetime);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stream_whose_time_is_up_completes_its_event() {
    let layer = SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(10));
    let told = Told::default();
    let layer = layer.on_close(told.teller());
    let steps = [
        Step::chunk("data: a\n"),
        Step::Silence(Duration::from_millis(11_100)),
        Step::chunk("\ndata: b\n"),
        Step::Hang,
    ];
    let mut body = foreign(steps, &[&layer]);
    body.assert_data("data: a\n");
    body.assert_pending();
    advance(Duration::from_millis(11_002)).await;
    body.assert_pending();
    advance(Duration::from_millis(99)).await;
    body.assert_data("\n");
    body.assert_end();
    drop(body);
    assert_eq!(told.only().reason, CloseReason::MaxLifetime);
    assert_eq!(told.only().events, 1);
}

#[tokio::test(start_paused = true)]
async fn of_the_times_of_two_layers_the_shorter_counts() {
    for [inner, outer] in [[10, 1_000], [1_000, 10]] {
        let layers = [inner, outer].map(|s| SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(s)));
        let layers = [&layers[0], &layers[1]];
        for body in [ours(silent(), &layers), foreign([Step::Hang], &layers)] {
            let open = lifetime(body).await;
            assert!((9_000..=11_002).contains(&open.as_millis()), "{open:?}");
        }
    }
}

// How many streams there can be.

/// Whether there is a place; gives it back.
fn has_place(layer: &SseLayer) -> bool {
    through(layer, foreign_response(Script::new([Step::Hang]))).status() == StatusCode::OK
}

fn limited() -> SseLayer {
    SseLayer::new().without_heartbeat().max_streams(1)
}

#[tokio::test]
async fn one_stream_too_many_is_answered_503_and_when_to_come_back() {
    let layer = SseLayer::new().max_streams(3).retry(Duration::from_secs(4)).reconnect_jitter(Duration::from_secs(2));
    let open: Vec<_> = (0..3).map(|_| through(&layer, silent().into_http_response())).collect();
    assert!(open.iter().all(|response| response.status() == StatusCode::OK));

    let response = through(&layer, silent().into_http_response());
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((4..=6).contains(&seconds), "{seconds}");
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"there are as many event streams open as there may be"), "{text:?}");

    // Those that are open are not touched.
    drop(open);
    assert!(has_place(&layer));
}

#[tokio::test]
async fn one_stream_too_many_can_be_a_stream_that_says_when_to_come_back() {
    let layer = SseLayer::new().max_streams(0).when_full(Overload::RetryLater);
    let mut samples = Vec::new();
    for _ in 0..2_000 {
        let response = through(&layer, silent().into_http_response());
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache, no-transform");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let parsed = whatwg::parse(&body);
        assert!(parsed.messages.is_empty() && parsed.comments.is_empty());
        samples.push(parsed.reconnection_time.unwrap().parse().unwrap());
    }
    assert_uniform(&samples, 1_000.0, 6_000.0);
}

#[tokio::test]
async fn a_stream_for_which_there_is_no_place_is_not_polled_and_the_layer_does_not_tell_of_it() {
    for when_full in [Overload::ServiceUnavailable, Overload::RetryLater] {
        let told = Told::default();
        let layer = SseLayer::new().max_streams(0).when_full(when_full).on_close(told.teller());
        let never = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("polled") });
        let response = through(&layer, SseStream::new(never).into_http_response());
        response.into_body().collect().await.unwrap();
        assert!(told.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_again_however_a_stream_ends() {
    let token = CancellationToken::new();
    let layer = limited().shutdown(token.clone()).max_lifetime(Duration::from_secs(10));
    let response = |steps: &[Step]| through(&layer, foreign_response(Script::new(steps.to_vec())));
    let chunk = || Step::chunk("data: a\n\n");

    // Finished, or broken, and dropped.
    for steps in [vec![chunk()], vec![chunk(), Step::Fail("broken")]] {
        let mut body = Polled::new(response(&steps));
        body.assert_data("data: a\n\n");
        assert!(!has_place(&layer));
        let _end = body.poll_in_time().await;
        drop(body);
        assert!(has_place(&layer));
    }
    // The client is gone.
    let mut body = Polled::new(response(&[chunk(), Step::Hang]));
    body.assert_data("data: a\n\n");
    assert!(!has_place(&layer));
    drop(body);
    assert!(has_place(&layer));
    // The body was never polled.
    for response in [response(&[Step::Hang]).map(|_| ()), through(&layer, silent().into_http_response()).map(|_| ())] {
        assert_eq!(response.status(), StatusCode::OK);
        assert!(has_place(&layer));
    }
    // The head goes first, the body is still there.
    let (head, body) = response(&[Step::Hang]).into_parts();
    drop(head);
    assert!(!has_place(&layer));
    drop(body);
    assert!(has_place(&layer));
    // The time is up.
    let body = Polled::new(response(&[Step::Hang]));
    lifetime(body).await;
    assert!(has_place(&layer));
    // A shutdown.
    let mut bodies = [Polled::new(response(&[Step::Hang]))];
    assert!(!has_place(&layer));
    token.cancel();
    assert!(bodies[0].rest().starts_with("retry: "));
    drop(bodies);
    assert!(has_place(&layer));
}

#[tokio::test]
async fn a_stream_that_panics_gives_its_place_back() {
    let layer = limited();
    let bad = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("in the stream") });
    let body = through(&layer, SseStream::new(bad).into_http_response()).into_body();
    let polled = tokio::spawn(async move { body.collect().await.map(drop).map_err(drop) }).await;
    assert!(polled.unwrap_err().is_panic());
    assert!(has_place(&layer));
}

#[tokio::test]
async fn a_stream_that_panics_has_failed_and_its_client_is_not_said_to_be_gone() {
    let told: [Told; 3] = Default::default();
    let layer = SseLayer::new().on_close(told[1].teller());
    let bad = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("in the stream") });
    let ours = through(&layer, SseStream::new(bad).on_close(told[0].teller()).into_http_response());
    let layer = SseLayer::new().on_close(told[2].teller());
    let bad = stream::poll_fn(|_| -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> { panic!("in it") });
    let foreign = through(&layer, foreign_response(http_body_util::StreamBody::new(bad)));
    for body in [ours.into_body().map_err(drop).boxed_unsync(), foreign.into_body().map_err(drop).boxed_unsync()] {
        let polled = tokio::spawn(async move { body.collect().await.map(drop) }).await;
        assert!(polled.unwrap_err().is_panic());
    }
    for told in told {
        assert_eq!(told.only().reason, CloseReason::Error);
    }
}

#[tokio::test]
async fn all_are_told_even_if_one_before_them_panics() {
    let told: [Told; 2] = Default::default();
    let inner = SseLayer::new().on_close(|_| panic!("the inner layer's"));
    let layers = [inner, SseLayer::new().on_close(told[1].teller())];
    let body = ours(silent(), &[&layers[0], &layers[1]]);
    assert!(tokio::spawn(async move { drop(body) }).await.unwrap_err().is_panic());
    told[1].only();
    let layer = SseLayer::new().on_close(told[0].teller());
    let body = ours(silent().on_close(|_| panic!("the handler's")), &[&layer]);
    assert!(tokio::spawn(async move { drop(body) }).await.unwrap_err().is_panic());
    told[0].only();
}

#[tokio::test]
async fn a_handlers_stream_is_gone_when_its_end_is_told_of_polled_or_not() {
    for polled in [true, false] {
        let held = Arc::new(());
        let (seen, inside) = (Arc::downgrade(&held), held);
        let told = Arc::new(AtomicUsize::new(usize::MAX));
        let teller = Arc::clone(&told);
        let stream = stream::pending::<Event>().inspect(move |_| drop(Arc::clone(&inside)));
        let stream = SseStream::new(stream);
        let mut body = ours(
            stream.without_heartbeat().on_close(move |_| teller.store(seen.strong_count(), Ordering::Relaxed)),
            &[],
        );
        if polled {
            body.assert_pending();
        }
        drop(body);
        assert_eq!(told.load(Ordering::Relaxed), 0, "polled: {polled}");
    }
}

#[tokio::test]
async fn a_handler_that_waits_panics_or_is_dropped_takes_no_place() {
    let layer = limited();
    let waiting =
        layer.layer(service_fn(|_: Request<()>| future::pending::<Result<Response<Full<Bytes>>, Infallible>>()));
    let mut waiting = task::spawn(waiting.oneshot(Request::new(())));
    assert!(waiting.poll().is_pending());
    assert!(has_place(&layer));
    drop(waiting);

    let panics = async |_: Request<()>| -> Result<Response<Full<Bytes>>, Infallible> { panic!("in the handler") };
    let panics = layer.layer(service_fn(panics)).oneshot(Request::new(()));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    let fails = layer.layer(service_fn(|_: Request<()>| ready(Err::<Response<Full<Bytes>>, _>("failed"))));
    assert!(fails.oneshot(Request::new(())).await.is_err());
    assert!(has_place(&layer));
}

#[tokio::test]
async fn what_is_no_stream_takes_no_place_and_always_has_one() {
    let layer = SseLayer::new().max_streams(0);
    let head = Request::builder().method(Method::HEAD).body(()).unwrap();
    let stream = || foreign_response(Full::from("data: a\n\n"));
    assert_eq!(answer(&layer, head, stream()).status(), StatusCode::OK);
    assert_eq!(through(&layer, stream().map(|_| Full::<Bytes>::default())).status(), StatusCode::OK);
    assert_eq!(through(&layer, Response::new(Full::from("{}"))).status(), StatusCode::OK);
    assert_eq!(through(&layer, SseStream::stop_reconnecting().into_http_response()).status(), StatusCode::NO_CONTENT);
    let mut not_modified = stream();
    *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
    assert_eq!(through(&layer, not_modified).status(), StatusCode::NOT_MODIFIED);
    assert_eq!(through(&layer, stream()).status(), StatusCode::SERVICE_UNAVAILABLE);
}

fn from_user(user: &str) -> Request<()> {
    Request::builder().header("user", user).body(()).unwrap()
}

fn per_user(streams: usize) -> SseLayer {
    SseLayer::new().max_streams_per(streams, |parts| parts.headers.get("user").cloned())
}

#[tokio::test]
async fn each_key_has_places_of_its_own() {
    let layer = per_user(2);
    let get = |user: &str| answer(&layer, from_user(user), silent().into_http_response());
    let open: Vec<_> = ["anna", "bob", "anna", "bob"].map(get).into();
    assert!(open.iter().all(|response| response.status() == StatusCode::OK));
    for user in ["anna", "bob"] {
        assert_eq!(get(user).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let carol = get("carol");
    assert_eq!(carol.status(), StatusCode::OK);
    drop(open);
    let again = ["anna", "bob", "anna", "bob"].map(get);
    assert!(again.iter().all(|response| response.status() == StatusCode::OK));
    // No key is a key, too.
    let nobody = || answer(&layer, Request::new(()), silent().into_http_response());
    let two = [nobody(), nobody()];
    assert!(two.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(nobody().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_stream_needs_a_place_in_each_limit_and_takes_none_if_one_is_full() {
    let layer = per_user(1).max_streams(2).max_streams_per(2, |parts| parts.method.clone());
    let get = |user: &str| answer(&layer, from_user(user), silent().into_http_response());
    let anna = get("anna");
    for _ in 0..10 {
        // The place in the limits that still have one is given back.
        assert_eq!(get("anna").status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let bob = get("bob");
    assert_eq!(bob.status(), StatusCode::OK);
    for _ in 0..10 {
        assert_eq!(get("carol").status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    drop(anna);
    let carol = get("carol");
    assert_eq!(carol.status(), StatusCode::OK);
}

#[tokio::test]
async fn clones_of_a_layer_and_of_its_services_count_together() {
    let layer = limited();
    // What else is set on a clone does not make it another one.
    let clones = [layer.clone(), layer.clone().retry(Duration::from_secs(9)), layer.clone().max_streams(5)];
    for clone in &clones {
        let open = through(clone, silent().into_http_response());
        assert_eq!(open.status(), StatusCode::OK);
        assert!(!has_place(&layer));
        assert!(clones.iter().all(|clone| !has_place(clone)));
    }
    let service = layer.layer(service_fn(|_| ready(Ok::<_, Infallible>(silent().into_http_response()))));
    let open = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(open.status(), StatusCode::OK);
    let refused = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn two_layers_with_limits_both_count() {
    let (inner, outer) = (SseLayer::new().max_streams(2), SseLayer::new().max_streams(1));
    let get = || through(&outer, through(&inner, silent().into_http_response()));
    let open = get();
    assert_eq!(open.status(), StatusCode::OK);
    // Refused by the outer one, it does not keep the place of the inner one once its answer is sent.
    let refused = get();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(refused);
    assert!(has_place(&inner));
    drop(open);
    assert!(has_place(&outer));
}

#[tokio::test]
async fn who_is_turned_away_by_an_inner_layer_is_no_stream_to_an_outer_one_either() {
    let told = Told::default();
    let inner = SseLayer::new().max_streams(0).when_full(Overload::RetryLater);
    let outer = SseLayer::new().max_streams(0).on_close(told.teller());
    let response = through(&outer, through(&inner, silent().into_http_response()));
    assert_eq!(response.status(), StatusCode::OK);
    assert!(Polled::new(response).rest().starts_with("retry: "));
    assert!(told.is_empty());
}

#[test]
fn after_100_000_streams_on_several_threads_every_place_is_free() {
    const PLACES: usize = 8;
    let layer = per_user(PLACES).max_streams(PLACES);
    let (opened, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (layer, opened, refused) = (&layer, &opened, &refused);
            scope.spawn(move || {
                let mut open = std::collections::VecDeque::new();
                for n in 0..25_000 {
                    let response = answer(layer, from_user(["anna", "bob"][n % 2]), silent().into_http_response());
                    let counter = if response.status() == StatusCode::OK { opened } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let mut body = Polled::new(response);
                    if n % 3 != 0 {
                        let _first = body.poll();
                    }
                    open.push_back(body);
                    // More on each thread than its share of the places.
                    if open.len() > 1 + (n + thread) % 4 {
                        open.pop_front();
                    }
                }
            });
        }
    });
    assert_eq!(opened.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed), 100_000);
    assert!(opened.load(Ordering::Relaxed) > 1_000);
    assert!(refused.load(Ordering::Relaxed) > 0, "there were to be too many at times");
    for user in ["anna", "bob"] {
        let get = || answer(&layer, from_user(user), silent().into_http_response());
        let open: Vec<_> = (0..PLACES).map(|_| get()).collect();
        assert!(open.iter().all(|response| response.status() == StatusCode::OK));
        assert_eq!(get().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

// What is told.

/// The part of a summary that is the same for the handler and for every layer.
#[track_caller]
fn assert_told(told: &Told, reason: CloseReason, [events, bytes, heartbeats]: [u64; 3], duration: Duration) {
    let summary = told.only();
    assert_eq!((summary.reason, summary.duration), (reason, duration));
    assert_eq!([summary.events, summary.bytes, summary.heartbeats], [events, bytes, heartbeats]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_ended_is_told_of_when_the_transport_lets_go_of_it() {
    let told = Told::default();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events).on_close(told.teller()), &[]);
    body.assert_data(":\n");
    body.assert_pending();
    advance(Duration::from_millis(15_002)).await;
    body.assert_data(":\n");
    sender.send(Event::new("a")).unwrap();
    sender.send(Event::new("b")).unwrap();
    body.assert_data("data: a\n\ndata: b\n\n");
    drop(sender);
    body.assert_end();
    advance(Duration::from_secs(1)).await;
    assert!(told.is_empty());
    drop(body);
    assert_told(&told, CloseReason::Finished, [2, 22, 2], Duration::from_millis(16_002));
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_client_goes_is_told_of_with_what_was_handed_to_the_transport() {
    let told = Told::default();
    let layer = SseLayer::new().on_close(told.teller()).retry(Duration::from_secs(1));
    let large = "x".repeat(9_000);
    let events = stream::iter([Event::new("a"), Event::new(large)]).chain(stream::pending());
    let mut body = ours(SseStream::new(events), &[&layer]);
    // The large one waits for the next frame, which nobody asks for.
    body.assert_data("retry: 1000\ndata: a\n\n");
    advance(Duration::from_secs(2)).await;
    drop(body);
    assert_told(&told, CloseReason::ClientGone, [1, 21, 0], Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_not_handed_out_is_not_the_end() {
    let told = Told::default();
    let events = stream::iter([Event::new("a"), Event::new("x".repeat(9_000))]);
    let mut body = ours(SseStream::new(events).on_close(told.teller()), &[]);
    body.assert_data("data: a\n\n");
    drop(body);
    assert_eq!(told.only().reason, CloseReason::ClientGone);

    let (told, (token, layer)) = (Told::default(), ending());
    let mut body = ours(silent().on_close(told.teller()), &[&layer]);
    body.assert_pending();
    token.cancel();
    drop(body);
    assert_eq!(told.only().reason, CloseReason::ClientGone, "its end was never asked for");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_told_of_as_one_also_where_it_became_an_event() {
    let items = || stream::iter([Ok(Event::new("a")), Err("broken")]);
    let told = Told::default();
    let mut body = ours(SseStream::new(items()).on_close(told.teller()), &[]);
    body.assert_data("data: a\n\n");
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    assert_eq!(told.only().reason, CloseReason::Error);
    assert_eq!((told.only().events, told.only().bytes), (1, 9));

    let told = Told::default();
    let stream = SseStream::new(items()).on_error(|error| Some(Event::display(error))).on_close(told.teller());
    let mut body = ours(stream, &[]);
    body.assert_data("data: a\n\ndata: broken\n\n");
    drop(body);
    assert_eq!(told.only().reason, CloseReason::Error);
    assert_eq!((told.only().events, told.only().bytes), (2, 23));

    let told = Told::default();
    let mut body =
        foreign([Step::chunk("data: a\n\n"), Step::Fail("broken")], &[&SseLayer::new().on_close(told.teller())]);
    body.assert_data("data: a\n\n");
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    assert_eq!(told.only().reason, CloseReason::Error);
    assert_eq!((told.only().events, told.only().bytes), (1, 9));
}

#[tokio::test]
async fn a_client_that_goes_before_it_saw_the_error_is_gone() {
    let told = Told::default();
    let stream = SseStream::new(stream::iter([Ok(Event::new("a")), Err("broken")])).on_close(told.teller());
    let mut body = ours(stream, &[]);
    body.assert_data("data: a\n\n");
    body.assert_pending();
    drop(body);
    assert_eq!(told.only().reason, CloseReason::ClientGone);
}

#[cfg(feature = "hub")]
#[tokio::test(start_paused = true)]
async fn a_client_that_is_too_slow_for_a_hub_has_lagged() {
    use tower_sse::hub::{Hub, LagPolicy, Start};

    let hub = Hub::builder().max_events(3).lag_policy(LagPolicy::Disconnect).build();
    let topic = hub.topic("a");
    let told = [Told::default(), Told::default()];
    let layer = SseLayer::new().on_close(told[1].teller());
    let stream = SseStream::new(topic.subscribe(Start::Latest).await.unwrap()).on_close(told[0].teller());
    let mut body = ours(stream, &[&layer]);
    let Poll::Ready(Some(Ok(checkpoint))) = body.poll() else { panic!("its first byte is ready") };
    for n in 0..5 {
        topic.publish(Event::display(n)).await.unwrap();
    }
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    for told in told {
        assert_eq!(told.only().reason, CloseReason::Lagged);
        assert_eq!((told.only().events, told.only().bytes), (0, checkpoint.len() as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_never_polled_is_told_of_once_and_by_everybody() {
    let told: [Told; 5] = Default::default();
    let layers = [SseLayer::new().on_close(told[1].teller()), SseLayer::new().on_close(told[2].teller())];
    let response = through(&layers[1], through(&layers[0], silent().on_close(told[0].teller()).into_http_response()));
    advance(Duration::from_secs(3)).await;
    drop(response);
    for told in &told[..3] {
        assert_told(told, CloseReason::ClientGone, [0, 0, 0], Duration::from_secs(3));
    }
    let layers = [SseLayer::new().on_close(told[3].teller()), SseLayer::new().on_close(told[4].teller())];
    let response = through(&layers[1], through(&layers[0], foreign_response(Script::new([Step::Hang]))));
    drop(response);
    for told in &told[3..] {
        assert_told(told, CloseReason::ClientGone, [0, 0, 0], Duration::ZERO);
    }
}

#[tokio::test]
async fn the_handler_is_told_first_then_the_layers_from_the_inside_and_the_place_is_free_by_then() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let limit = limited();
    let note = |who: &'static str| {
        let (order, limit) = (Arc::clone(&order), limit.clone());
        move |_: StreamSummary| order.lock().unwrap().push((who, has_place(&limit)))
    };
    let inner = limit.clone().on_close(note("inner"));
    let outer = SseLayer::new().on_close(note("outer"));
    let mut body = ours(silent().on_close(note("handler")), &[&inner, &outer]);
    body.assert_pending();
    drop(body);
    assert_eq!(*order.lock().unwrap(), [("handler", true), ("inner", true), ("outer", true)]);
}

#[tokio::test]
async fn a_stream_that_is_not_returned_at_all_is_not_told_of() {
    // It never had a response.
    let told = Told::default();
    drop(silent().on_close(told.teller()));
    assert!(told.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_foreign_stream_are_counted_as_a_client_counts_them() {
    for (text, events) in [
        ("data: a\n\ndata: b\n\n", 2),
        ("data: a\r\n\r\ndata: b\r\n\r\n", 2),
        (": comment\n\ndata: a\n\n\n\n:\n\n", 1),
        ("data: a\n: comment\ndata: b\n\n", 1),
        (": comment\r\n\r\ndata\r\n\r\n\r\n", 1),
        ("data: a\n\ndata: not ended\n", 1),
        ("\n\r\n\n", 0),
        ("\u{feff}data: a\n\n", 1),
        ("", 0),
    ] {
        for size in 1..=text.len().max(1) {
            let told = Told::default();
            let layer = SseLayer::new().without_heartbeat().on_close(told.teller());
            let chunks = text.as_bytes().chunks(size).map(Step::chunk).chain([Step::Silence(Duration::ZERO)]);
            let mut body = foreign(chunks, &[&layer]);
            while let Poll::Ready(Some(frame)) = body.poll_in_time().await {
                frame.unwrap();
            }
            drop(body);
            let summary = told.only();
            assert_eq!(summary.events, events, "{text:?} in chunks of {size}");
            assert_eq!(summary.bytes, text.len() as u64);
            assert_eq!(summary.reason, CloseReason::Finished);
        }
    }
}

#[tokio::test]
async fn a_farewell_is_an_event_that_is_counted() {
    for farewell in ["bye".to_owned(), "b".repeat(10_000)] {
        let told: [Told; 2] = Default::default();
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new(farewell));
        let a = "data: a\n\n";
        let large = "x".repeat(9_000);
        let events = stream::iter([Event::new("a"), Event::new(&large)]).chain(stream::pending());
        let first = ours(SseStream::new(events).on_close(told[0].teller()), &[&layer]);
        let chunks = [Step::chunk(a), Step::chunk(format!("data: {large}\n\n")), Step::Hang];
        let second = foreign(chunks, &[&layer.clone().on_close(told[1].teller())]);
        let mut bodies = [first, second];
        let [ours, foreign] = &mut bodies;
        ours.assert_data(a);
        foreign.assert_data(a);
        assert!(foreign.poll().is_ready());
        token.cancel();
        for mut body in bodies {
            body.rest();
        }
        for told in &told {
            assert_eq!(told.only().events, 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_no_event_of_the_stream_also_where_the_client_gets_it_as_one() {
    let told: [Told; 2] = Default::default();
    let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)).event(Event::new("beat")));
    let first = ours(SseStream::new(stream::pending::<Event>()).on_close(told[0].teller()), &[&layer]);
    let second = foreign([Step::Hang], &[&layer.on_close(told[1].teller())]);
    for (mut body, first_byte, told) in [(first, 1, &told[0]), (second, 0, &told[1])] {
        if first_byte == 1 {
            body.assert_data(":\n");
        }
        for _ in 0..3 {
            body.assert_pending();
            advance(Duration::from_millis(1_002)).await;
            body.assert_data("data: beat\n\n");
        }
        drop(body);
        let summary = told.only();
        assert_eq!((summary.events, summary.heartbeats), (0, 3 + first_byte));
        assert_eq!(summary.bytes, 3 * 12 + 2 * first_byte);
    }
}

#[test]
fn a_body_that_is_dropped_unpolled_needs_no_runtime() {
    let told = Told::default();
    let layer = SseLayer::new().max_lifetime(Duration::from_secs(1)).on_close(told.teller());
    drop(through(&layer, silent().into_http_response()));
    assert_eq!(told.only().reason, CloseReason::ClientGone);
    let told = Told::default();
    drop(through(&layer.on_close(told.teller()), foreign_response(Script::new([Step::Hang]))));
    assert_eq!(told.only().reason, CloseReason::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stream_whose_lines_end_in_cr_ends_between_its_events() {
    let (token, layer) = ending();
    let told = Told::default();
    let layer = layer.shutdown_event(Event::new("bye")).on_close(told.teller());
    let idle = foreign([Step::chunk("data: a\r\r"), Step::Hang], &[&layer]);
    let mut bodies = [idle];
    bodies[0].assert_data("data: a\r\r");
    bodies[0].assert_pending();
    token.cancel();
    assert_eq!(bodies[0].rest(), "data: bye\n\nretry: 1000\n");
    drop(bodies);
    assert_eq!(told.only().events, 2);

    for (next, completed) in
        [("\r\rdata: b", "\r\r"), ("\rdata: b\r\r\rdata", "\rdata: b\r\r\r"), ("\r\n\rdata", "\r\n\r")]
    {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = foreign([Step::chunk("data: a"), Step::chunk(next), Step::Hang], &[&layer]);
        body.assert_data("data: a");
        token.cancel();
        assert_eq!(body.rest(), format!("{completed}data: bye\n\nretry: 1000\n"), "{next:?}");
    }
}

/// So does a stream of this crate that another server hands on: it begins with its reconnection time and a comment, and has
/// comments for heartbeats, none with a blank line.
#[tokio::test(start_paused = true)]
async fn a_foreign_stream_that_is_silent_after_a_comment_or_a_reconnection_time_is_between_events() {
    for begun in [
        ":\n",
        ": comment\r\n",
        "retry: 5\n",
        "retry: 5\n:\n",
        "data: a\n\n:\n",
        "\u{feff}",
        "\u{feff}:\n",
        "unknown\n",
    ] {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = foreign([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        assert_eq!(body.rest(), "data: bye\n\nretry: 1000\n", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_event_that_has_more_than_its_first_line_is_not_ended_by_a_comment() {
    for begun in ["data: a\n:\n", "id: 1\n:\n", "event: e\nretry: 5\n", "data\n: comment\r\n"] {
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = foreign([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        body.assert_pending();
        advance(Duration::from_millis(251)).await;
        assert_eq!(body.rest(), "retry: 1000\n", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_order_mark_that_is_not_whole_at_the_shutdown_is_not_sent_after_the_end() {
    let (token, layer) = ending();
    let layer = layer.retry(Duration::from_secs(2)).shutdown_event(Event::new("bye"));
    let mut body = foreign([Step::chunk(b"\xEF\xBB"), Step::Hang], &[&layer]);
    body.assert_data("retry: 2000\n");
    // It is kept back, since something went first.
    body.assert_data("");
    body.assert_pending();
    token.cancel();
    assert_eq!(body.rest(), "data: bye\n\nretry: 2000\n");
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stream_that_ends_with_its_event_at_a_shutdown_still_says_when_to_come_back() {
    for (last, completed) in
        [("\n", "\ndata: bye\n\n"), ("\n\n", "\n\ndata: bye\n\n"), ("data: b\n", "data: b\n"), ("da", "da")]
    {
        let told = Told::default();
        let (token, layer) = ending();
        let layer = layer.shutdown_event(Event::new("bye")).on_close(told.teller());
        let mut body = foreign([Step::chunk("data: a\n"), Step::chunk(last)], &[&layer]);
        body.assert_data("data: a\n");
        token.cancel();
        let retry = if completed.ends_with('\n') { "retry: 1000\n" } else { "" };
        assert_eq!(body.rest(), format!("{completed}{retry}"));
        body.assert_end();
        drop(body);
        assert_eq!(told.only().reason, CloseReason::Shutdown);
    }
}

/// Pieces of event streams, of which a text is made that holds about everything that can be in one.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec!["data: a", "data: b", "data", "event: e", "id: 1", "id: 2", "id", "retry: 7"]),
        2 => prop::sample::select(vec![":", ": comment", "unknown: x", "\u{feff}", "é", " ", "d", "x"]),
        8 => prop::sample::select(vec!["\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\r\r"]),
    ];
    let mark = prop_oneof![3 => Just(""), 1 => Just("\u{feff}")];
    (mark, prop::collection::vec(piece, 0..20))
        .prop_map(|(mark, pieces)| [mark, &pieces.concat()].concat().into_bytes())
}

/// The text in chunks, some of which come late, and whether it then ends or is silent.
fn script() -> impl Strategy<Value = (Vec<u8>, Vec<Step>)> {
    let cuts = prop::collection::vec((1_usize..12, prop::sample::select(vec![0_u64, 0, 100, 300])), 1..10);
    (pieces(), cuts, any::<bool>()).prop_map(|(text, cuts, ends)| {
        let mut steps = Vec::new();
        let mut rest = &text[..];
        for (size, silence) in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, more) = rest.split_at(size.min(rest.len()));
            steps.push(Step::chunk(chunk));
            if silence > 0 {
                steps.push(Step::Silence(Duration::from_millis(silence)));
            }
            rest = more;
        }
        if !ends {
            steps.push(Step::Hang);
        }
        (text, steps)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_a_shutdown_a_client_has_whole_events_of_a_foreign_stream_and_then_the_farewell(
        (text, steps) in script(),
        polls in 0_usize..20,
        retry in any::<bool>(),
        beats in any::<bool>(),
    ) {
        // What is at its end is left alone.
        prop_assume!(!steps.is_empty());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let told = Told::default();
            let (token, mut layer) = ending();
            layer = layer.shutdown_event(Event::new("bye").event("shutdown").id(9)).on_close(told.teller());
            if retry {
                layer = layer.retry(Duration::from_secs(1));
            }
            if beats {
                layer = layer.heartbeat(Heartbeat::every(Duration::from_millis(40)));
            }
            let mut body = foreign(steps, &[&layer]);
            let mut seen = Vec::new();
            let mut is_over = false;
            for _ in 0..polls {
                match body.poll() {
                    Poll::Ready(Some(Ok(data))) => seen.extend_from_slice(&data),
                    Poll::Ready(Some(Err(error))) => panic!("{error}"),
                    Poll::Ready(None) => {
                        is_over = true;
                        break;
                    }
                    Poll::Pending => advance(Duration::from_millis(90)).await,
                }
                // What hyper asks, and then asks nothing more.
                if body.0.is_end_stream() {
                    is_over = true;
                    break;
                }
            }
            token.cancel();
            let cancelled = Instant::now();
            while !is_over {
                match body.poll() {
                    Poll::Ready(Some(Ok(data))) => seen.extend_from_slice(&data),
                    Poll::Ready(Some(Err(error))) => panic!("{error}"),
                    Poll::Ready(None) => break,
                    Poll::Pending => {
                        prop_assert!(cancelled.elapsed() <= Duration::from_millis(252), "it goes on");
                        advance(Duration::from_millis(10)).await;
                    }
                }
                is_over = body.0.is_end_stream();
            }
            drop(body);

            let original = whatwg::parse(&text);
            let mut client = whatwg::parse(&seen);
            let summary = told.only();
            prop_assert_eq!(summary.bytes, seen.len() as u64);
            if summary.reason == CloseReason::Finished {
                prop_assert_eq!(client.messages, original.messages);
                return Ok(());
            }
            prop_assert_eq!(summary.reason, CloseReason::Shutdown);
            let said_farewell = client.messages.last().is_some_and(|message| message.r#type == "shutdown");
            let farewell = if said_farewell { client.messages.pop() } else { None };
            prop_assert!(original.messages.starts_with(&client.messages), "{:?}", String::from_utf8_lossy(&seen));
            if let Some(farewell) = farewell {
                prop_assert_eq!(&farewell.data, "bye");
                prop_assert_ne!(farewell.last_event_id, "9");
                prop_assert_eq!(client.reconnection_time.as_deref(), Some("1000"));
            } else if matches!(seen.last(), Some(b'\n' | b'\r')) {
                // Only in the middle of a line nothing can be said.
                prop_assert_eq!(client.reconnection_time.as_deref(), Some("1000"), "{:?}", String::from_utf8_lossy(&seen));
            }
            Ok(())
        })?;
    }
}

fn encoded(steps: &[Step]) -> Response<Script> {
    let mut response = foreign_response(Script::new(steps.to_vec()));
    response.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    response.headers_mut().insert(header::CONTENT_LENGTH, 1_000.into());
    response
}

/// An encoded stream that goes on for ever would keep a server from its shutdown, too.
#[tokio::test(start_paused = true)]
async fn an_encoded_stream_is_ended_and_told_of_but_nothing_is_put_into_it() {
    let (token, layer) = ending();
    let layer = layer.shutdown_event(Event::new("bye")).retry(Duration::from_secs(1));
    let layer = layer.heartbeat(Heartbeat::every(Duration::from_secs(1)));
    let told: [Told; 2] = Default::default();
    let outer = SseLayer::new().on_close(told[1].teller()).max_lifetime(Duration::from_secs(100));
    let layer = layer.on_close(told[0].teller());
    let response = through(&outer, through(&layer, encoded(&[Step::chunk("\x1f\n\n:d"), Step::Hang])));
    // It may end before its length.
    assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
    let mut body = Polled::new(response);
    body.assert_data("\x1f\n\n:d");
    body.assert_pending();
    advance(Duration::from_secs(10)).await;
    body.assert_pending();
    token.cancel();
    assert!(body.0.is_woken());
    body.assert_end();
    body.assert_end();
    drop(body);
    assert_told(&told[0], CloseReason::Shutdown, [0, 5, 0], Duration::from_secs(10));
    // It is one stream, to whatever layer.
    assert_told(&told[1], CloseReason::Shutdown, [0, 5, 0], Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_encoded_stream_takes_a_place_and_gives_it_back() {
    let layer = limited();
    let mut body = Polled::new(through(&layer, encoded(&[Step::chunk("\x1f"), Step::Fail("broken")])));
    assert!(!has_place(&layer));
    body.assert_data("\x1f");
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".to_owned()))));
    body.assert_end();
    drop(body);
    assert!(has_place(&layer));
}

#[tokio::test]
async fn what_else_a_handler_has_set_is_in_the_answer_to_one_too_many_such_as_the_headers_of_cors() {
    for (when_full, status) in
        [(Overload::ServiceUnavailable, StatusCode::SERVICE_UNAVAILABLE), (Overload::RetryLater, StatusCode::OK)]
    {
        let layer = SseLayer::new().max_streams(0).when_full(when_full);
        // An outer layer has nothing of the stream that was turned away.
        let outer = SseLayer::new().without_heartbeat().retry(Duration::from_secs(9));
        for mut response in [encoded(&[Step::Fail("polled")]), foreign_response(Script::new([Step::Fail("polled")]))] {
            response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, "https://a.example".parse().unwrap());
            let response = through(&outer, through(&layer, response));
            assert_eq!(response.status(), status);
            let headers = response.headers();
            assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
            for of_the_body in [header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
                assert!(!headers.contains_key(of_the_body));
            }
            let is_stream = headers[header::CONTENT_TYPE] == "text/event-stream";
            assert_eq!(is_stream, when_full == Overload::RetryLater);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.starts_with(b"retry: ") && !body.starts_with(b"retry: 9000"), is_stream, "{body:?}");
        }
    }
    let ours = through(&SseLayer::new().max_streams(0).when_full(Overload::RetryLater), silent().into_http_response());
    let outer = SseLayer::new().max_lifetime(Duration::from_secs(1));
    let body = through(&outer, ours).into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"retry: "));
}

#[tokio::test(start_paused = true)]
async fn a_second_byte_order_mark_is_the_beginning_of_a_line_that_no_farewell_may_follow() {
    let (token, layer) = ending();
    let layer = layer.retry(Duration::from_secs(2)).shutdown_event(Event::new("bye"));
    let mut body = foreign([Step::chunk("\u{feff}\u{feff}"), Step::Hang], &[&layer]);
    body.assert_data("retry: 2000\n");
    body.assert_data("\u{feff}");
    body.assert_pending();
    token.cancel();
    body.assert_pending();
    advance(Duration::from_millis(251)).await;
    assert_eq!(body.rest(), "");
}
