//! Guarantee: streams continue for the flush time of a shutdown, so that clients get the events
//! that were published before it. Then they end with a reconnect delay and the shutdown event.

use crate::common::{Summaries, channel, encoded, ours, shutdown_layer, silent, upstream, upstream_response};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use std::{sync::Arc, task::Poll, time::Duration};
use support::{
    polled::Polled,
    respond::through,
    script::{Script, Step},
    whatwg,
};
use tokio::{
    sync::RwLock,
    task::yield_now,
    time::{Instant, advance, sleep},
};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    BoxError, CloseReason, Event, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start, backend::MemoryBackend},
};

const FLUSH_TIME: Duration = Duration::from_millis(250);

/// Returns a layer with the default flush time, and the token that ends its streams.
fn flushing_layer() -> (CancellationToken, SseLayer) {
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).reconnect_jitter(Duration::ZERO).without_heartbeat();
    (token, layer.shutdown_event(Event::new("bye")))
}

/// Reads the rest of a body like a server, within the budget of a task.
async fn rest(body: Polled) -> String {
    let rest = tokio::spawn(body.into_body().collect()).await.unwrap().unwrap().to_bytes();
    String::from_utf8(rest.to_vec()).unwrap()
}

fn data(events: &str) -> Vec<String> {
    whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data).collect()
}

#[tokio::test(start_paused = true)]
async fn idle_stream_ends_after_the_flush_time() {
    for (time, is_set) in [(FLUSH_TIME, false), (Duration::from_secs(3), true)] {
        let (token, layer) = flushing_layer();
        let layer = if is_set { layer.flush_time(time) } else { layer };
        let mut bodies = [ours(silent(), &[&layer]), upstream([Step::Hang], &[&layer])];
        bodies.iter_mut().for_each(Polled::assert_pending);
        token.cancel();
        for body in bodies {
            let begin = Instant::now();
            assert_eq!(rest(body).await, "retry: 1000\ndata: bye\n\n");
            assert!(begin.elapsed() >= time && begin.elapsed() <= time + Duration::from_millis(2));
        }
    }
}

#[tokio::test]
async fn outer_layer_sets_the_flush_time_of_inner_layers() {
    let (token, layer) = flushing_layer();
    let (_, outer) = shutdown_layer();
    let mut body = ours(silent(), &[&layer, &outer]);
    body.assert_pending();
    token.cancel();
    body.assert_data("retry: 1000\ndata: bye\n\n");
}

/// An adapter can be pending although its source has events, for example because it waits for a
/// query, lets other tasks run, or has spent the budget of its task.
#[tokio::test(start_paused = true)]
async fn events_that_pass_asynchronous_adapters_are_sent() {
    const EVENTS: usize = 500;
    type Events = BoxStream<'static, Event>;
    let adapters: [fn(Events) -> Events; 5] = [
        |events| events,
        |events| events.then(async |event| (yield_now().await, event).1).boxed(),
        |events| events.map(async |event| (sleep(FLUSH_TIME / 2).await, event).1).buffered(EVENTS).boxed(),
        |events| events.map(async |event| (yield_now().await, event).1).buffer_unordered(1).boxed(),
        |events| {
            let rights = Arc::new(RwLock::new(()));
            let check = move |event| {
                let rights = rights.clone();
                async move {
                    for _ in 0..3 {
                        drop(rights.read().await);
                    }
                    event
                }
            };
            events.map(check).buffered(16).boxed()
        },
    ];
    for (n, adapter) in adapters.into_iter().enumerate() {
        let (token, layer) = flushing_layer();
        let (sender, events) = channel();
        let mut body = ours(SseStream::new(adapter(events.boxed())), &[&layer]);
        body.assert_pending();
        for n in 0..EVENTS {
            sender.send(Event::display(n)).unwrap();
        }
        token.cancel();
        let seen = data(&rest(body).await);
        assert!(
            seen.iter().eq((0..EVENTS).map(|n| n.to_string()).collect::<Vec<_>>().iter().chain([&"bye".to_owned()])),
            "{n}: {seen:?}"
        );
    }
}

/// A node with a backend reads an event from the log after `publish` has returned.
#[tokio::test(start_paused = true)]
async fn event_that_the_node_has_not_read_is_sent() {
    let hub = Hub::builder().backend(MemoryBackend::new(100)).connect().await.unwrap();
    let (token, layer) = flushing_layer();
    let mut body = ours(SseStream::new(hub.topic("a").subscribe(Start::Latest).await.unwrap()), &[&layer]);
    while body.poll().is_ready() {}
    hub.topic("a").publish(Event::new("1")).await.unwrap();
    token.cancel();
    assert_eq!(data(&rest(body).await), ["1", "bye"]);
}

#[tokio::test(start_paused = true)]
async fn upstream_events_are_sent_in_the_flush_time() {
    let (token, layer) = flushing_layer();
    let chunk = |n: u32| Step::chunk(format!("data: {n}\n\n"));
    let pause = Step::Silence(FLUSH_TIME / 3);
    let steps = [chunk(1), pause.clone(), chunk(2), pause, chunk(3), Step::Hang];
    let mut body = upstream(steps, &[&layer]);
    body.assert_data("data: 1\n\n");
    body.assert_pending();
    token.cancel();
    assert_eq!(rest(body).await, "data: 2\n\ndata: 3\n\nretry: 1000\ndata: bye\n\n");
}

/// The handler or its producer may use the token of the layer.
#[tokio::test(start_paused = true)]
async fn stream_that_ends_because_of_the_shutdown_sends_its_final_bytes() {
    let is_cancelled = |token: &CancellationToken| token.clone().cancelled_owned();
    for fails in [false, true] {
        let (token, layer) = flushing_layer();
        let summaries = Summaries::default();
        let layer = layer.on_close(summaries.callback());
        let first = Step::chunk("data: 1\n\n");
        let end = move || fails.then(|| Err::<Event, BoxError>("the producer was cancelled".into()));
        let (_sender, events) = channel();
        let events = events.map(Ok).take_until(is_cancelled(&token)).chain(stream::iter(end()));
        let ours = ours(SseStream::new(events).end_with(Event::new("[DONE]")), &[&layer]);
        let last = fails.then_some(Step::Fail("the producer was cancelled"));
        let steps = [first.clone(), Step::Silence(FLUSH_TIME / 2)].into_iter().chain(last);
        let mut bodies = [ours, upstream(steps, &[&layer])];
        bodies[1].assert_data("data: 1\n\n");
        bodies.iter_mut().for_each(Polled::assert_pending);
        token.cancel();
        for body in bodies {
            assert_eq!(rest(body).await, "retry: 1000\ndata: bye\n\n");
            assert_eq!(summaries.take_only().reason, CloseReason::Shutdown);
        }
    }
}

/// An upstream body can know its end with its last frame. A server does not poll such a body again.
#[tokio::test(start_paused = true)]
async fn known_end_in_the_flush_time_is_a_shutdown() {
    let (token, layer) = flushing_layer();
    let chunk = Step::chunk("data: 1\n\n");
    let mut body = upstream([chunk.clone(), Step::Silence(FLUSH_TIME / 2), chunk], &[&layer]);
    body.assert_data("data: 1\n\n");
    body.assert_pending();
    token.cancel();
    advance(FLUSH_TIME / 2 + Duration::from_millis(1)).await;
    assert_eq!(body.rest(), "data: 1\n\nretry: 1000\ndata: bye\n\n");
}

/// The token is cancelled during the poll that returns the end of the stream.
#[tokio::test]
async fn end_in_the_poll_of_the_cancellation_is_a_shutdown() {
    let (token, layer) = flushing_layer();
    let events = stream::iter([Event::new("1")]).chain(stream::poll_fn(move |_| {
        token.cancel();
        Poll::Ready(None)
    }));
    let mut body = ours(SseStream::new(events).end_with(Event::new("[DONE]")), &[&layer]);
    assert_eq!(body.rest(), "data: 1\n\nretry: 1000\ndata: bye\n\n");
}

#[tokio::test(start_paused = true)]
async fn error_in_the_flush_time_is_passed_to_on_error() {
    for has_event in [false, true] {
        let (token, layer) = flushing_layer();
        let (sender, events) = channel();
        let events = events.map(|event| Err::<Event, BoxError>(format!("{event:?}").into()));
        let (errors, seen) = std::sync::mpsc::channel();
        let stream = SseStream::new(events).on_error(move |error| {
            errors.send(error.to_string()).unwrap();
            has_event.then(|| Event::new("failed"))
        });
        let mut body = ours(stream, &[&layer]);
        body.assert_pending();
        token.cancel();
        sender.send(Event::new("late")).unwrap();
        let last = if has_event { "data: failed\n\n" } else { "" };
        assert_eq!(rest(body).await, format!("{last}retry: 1000\ndata: bye\n\n"));
        assert!(seen.try_recv().unwrap().contains("late"));
    }
}

/// The client has an incomplete event, so it must see that the response is incomplete.
#[tokio::test(start_paused = true)]
async fn upstream_error_within_an_event_is_passed_on() {
    for pause in [FLUSH_TIME / 2, FLUSH_TIME * 3 / 2] {
        let (token, layer) = flushing_layer();
        let summaries = Summaries::default();
        let layer = layer.on_close(summaries.callback());
        let steps = [Step::chunk("data: 1\n"), Step::Silence(pause), Step::Fail("broken")];
        let mut body = upstream(steps, &[&layer]);
        body.assert_data("data: 1\n");
        body.assert_pending();
        token.cancel();
        body.assert_pending();
        let result = tokio::spawn(body.into_body().collect()).await.unwrap();
        assert_eq!(result.unwrap_err().to_string(), "broken");
        assert_eq!(summaries.only().reason, CloseReason::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_in_the_flush_time_follow_the_final_bytes() {
    let (token, layer) = flushing_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let trailers =
        Step::Trailers([(HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))].into_iter().collect());
    let script = Script::new([Step::chunk("data: 1\n\n"), Step::Silence(FLUSH_TIME / 2), trailers]);
    let mut body = through(&layer, upstream_response(script)).into_body();
    body.frame().await.unwrap().unwrap();
    token.cancel();
    let rest = body.collect().await.unwrap();
    assert!(rest.trailers().is_some_and(|trailers| trailers.contains_key("x-sum")));
    assert_eq!(rest.to_bytes(), "retry: 1000\ndata: bye\n\n");
    assert_eq!(summaries.only().reason, CloseReason::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn encoded_stream_that_ends_in_the_flush_time_is_shut_down() {
    let (token, layer) = flushing_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let steps = [Step::chunk("abc"), Step::Silence(FLUSH_TIME / 2)];
    let mut body = Polled::new(through(&layer, encoded(&steps)));
    body.assert_data("abc");
    body.assert_pending();
    token.cancel();
    assert_eq!(rest(body).await, "");
    assert_eq!(summaries.only().reason, CloseReason::Shutdown);
}

/// The outer layer ends the stream while the flush time of the inner layer is not over.
#[tokio::test(start_paused = true)]
async fn layer_whose_flush_time_is_over_ends_the_stream() {
    let (inner, long) = flushing_layer();
    let (outer, short) = flushing_layer();
    let (long, short) = (long.flush_time(FLUSH_TIME * 9), short.shutdown_event(Event::new("outer")));
    let mut body = ours(silent(), &[&long, &short]);
    body.assert_pending();
    inner.cancel();
    body.assert_pending();
    outer.cancel();
    assert_eq!(rest(body).await, "retry: 1000\ndata: outer\n\n");
}

#[tokio::test(start_paused = true)]
async fn finite_stream_that_ends_after_the_shutdown_has_finished() {
    for has_drain_timeout in [false, true] {
        let (token, layer) = flushing_layer();
        let layer = if has_drain_timeout { layer.drain_timeout(Duration::from_secs(9)) } else { layer };
        let (sender, events) = channel();
        let mut body = ours(SseStream::new(events).end_with(Event::new("[DONE]")).finite(), &[&layer]);
        body.assert_pending();
        token.cancel();
        body.assert_pending();
        sender.send(Event::new("last")).unwrap();
        drop(sender);
        assert_eq!(rest(body).await, "data: last\n\ndata: [DONE]\n\n");
    }
}

#[tokio::test(start_paused = true)]
async fn lifetime_that_ends_in_the_flush_time_sends_the_final_bytes() {
    for is_of_handler in [true, false] {
        let (token, layer) = flushing_layer();
        let layer = if is_of_handler { layer } else { layer.max_lifetime(FLUSH_TIME / 3) };
        let (sender, events) = channel();
        let stream = SseStream::new(events);
        let mut body = ours(if is_of_handler { stream.max_lifetime(FLUSH_TIME / 3) } else { stream }, &[&layer]);
        body.assert_pending();
        token.cancel();
        body.assert_pending();
        advance(FLUSH_TIME / 2).await;
        sender.send(Event::new("late")).unwrap();
        body.assert_data("retry: 1000\ndata: bye\n\n");
    }
}

#[tokio::test(start_paused = true)]
async fn close_in_the_flush_time_ends_the_stream() {
    let registry = StreamRegistry::<u8>::new();
    let (token, layer) = flushing_layer();
    let layer = layer.register(&registry, |_| Some(1));
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    token.cancel();
    body.assert_pending();
    registry.close_with(&1, Event::new("closed"));
    sender.send(Event::new("late")).unwrap();
    body.assert_data("data: closed\n\n");
    assert_eq!(body.poll(), Poll::Ready(None));
}
