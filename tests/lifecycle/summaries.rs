//! Guarantee: each stream is reported once, with the reason of its end and the amount it sent.

use crate::common::{
    Summaries, assert_summary, channel, encoded, has_permit, limited, ours, shutdown_layer, silent, upstream,
    upstream_response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use support::{
    polled::Polled,
    respond::through,
    script::{Script, Step},
};
use tokio::time::advance;
use tower_sse::{CloseReason, Event, Heartbeat, SseLayer, SseStream, StreamRegistry, StreamSummary};

#[tokio::test]
async fn panicking_stream_ends_with_reason_error() {
    let summaries: [Summaries; 3] = Default::default();
    let layer = SseLayer::new().on_close(summaries[1].callback());
    let bad = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("in the stream") });
    let ours = through(&layer, SseStream::new(bad).on_close(summaries[0].callback()).into_http_response());
    let layer = SseLayer::new().on_close(summaries[2].callback());
    let bad =
        stream::poll_fn(|_| -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> { panic!("in the body") });
    let upstream = through(&layer, upstream_response(http_body_util::StreamBody::new(bad)));
    for body in [ours.into_body().map_err(drop).boxed_unsync(), upstream.into_body().map_err(drop).boxed_unsync()] {
        let polled = tokio::spawn(async move { body.collect().await.map(drop) }).await;
        assert!(polled.unwrap_err().is_panic());
    }
    for summaries in summaries {
        assert_eq!(summaries.only().reason, CloseReason::Error);
    }
}

#[tokio::test]
async fn panicking_callback_does_not_prevent_others() {
    let summaries: [Summaries; 2] = Default::default();
    let inner = SseLayer::new().on_close(|_| panic!("the inner layer's"));
    let layers = [inner, SseLayer::new().on_close(summaries[1].callback())];
    let body = ours(silent(), &[&layers[0], &layers[1]]);
    drop(body);
    summaries[1].only();
    let layer = SseLayer::new().on_close(summaries[0].callback());
    let body = ours(silent().on_close(|_| panic!("the handler's")), &[&layer]);
    drop(body);
    summaries[0].only();
}

#[tokio::test]
async fn on_close_runs_after_stream_is_dropped() {
    for polled in [true, false] {
        let captured = Arc::new(());
        let weak = Arc::downgrade(&captured);
        let count = Arc::new(AtomicUsize::new(usize::MAX));
        let count_at_close = Arc::clone(&count);
        let stream = stream::pending::<Event>().inspect(move |_| drop(Arc::clone(&captured)));
        let stream = SseStream::new(stream).without_heartbeat();
        let stream = stream.on_close(move |_| count_at_close.store(weak.strong_count(), Ordering::Relaxed));
        let mut body = ours(stream, &[]);
        if polled {
            body.assert_pending();
        }
        drop(body);
        assert_eq!(count.load(Ordering::Relaxed), 0, "polled: {polled}");
    }
}

#[tokio::test(start_paused = true)]
async fn finished_stream_is_reported_when_body_is_dropped() {
    let summaries = Summaries::default();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events).on_close(summaries.callback()), &[]);
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
    assert!(summaries.is_empty());
    drop(body);
    assert_summary(&summaries, CloseReason::Finished, [2, 22, 2], Duration::from_millis(16_002));
}

#[tokio::test(start_paused = true)]
async fn dropped_stream_reports_what_was_handed_out() {
    let summaries = Summaries::default();
    let layer = SseLayer::new().on_close(summaries.callback()).retry(Duration::from_secs(1));
    let large = "x".repeat(9_000);
    let events = stream::iter([Event::new("a"), Event::new(large)]).chain(stream::pending());
    let mut body = ours(SseStream::new(events), &[&layer]);
    // The large event waits for the next frame, which is never polled.
    body.assert_data("retry: 1000\ndata: a\n\n");
    advance(Duration::from_secs(2)).await;
    drop(body);
    assert_summary(&summaries, CloseReason::ClientGone, [1, 21, 0], Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn duration_begins_when_response_passes_layer() {
    let summaries = Summaries::default();
    let (of_stream, of_request) = (summaries.callback(), summaries.callback());
    for layer in [
        SseLayer::new().on_close(of_stream),
        SseLayer::new().on_close_with(|_| (), move |(), summary| of_request(summary)),
    ] {
        let layer = layer.without_heartbeat();
        for is_own in [true, false] {
            let mut body = if is_own { ours(silent(), &[&layer]) } else { upstream([Step::Hang], &[&layer]) };
            advance(Duration::from_secs(2)).await;
            body.assert_pending();
            advance(Duration::from_secs(1)).await;
            drop(body);
            assert_eq!(summaries.take_only().duration, Duration::from_secs(3), "{is_own}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn end_counts_only_when_handed_out() {
    let summaries = Summaries::default();
    let events = stream::iter([Event::new("a"), Event::new("x".repeat(9_000))]);
    let mut body = ours(SseStream::new(events).on_close(summaries.callback()), &[]);
    body.assert_data("data: a\n\n");
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::ClientGone);

    let (summaries, (token, layer)) = (Summaries::default(), shutdown_layer());
    let mut body = ours(silent().on_close(summaries.callback()), &[&layer]);
    body.assert_pending();
    token.cancel();
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::ClientGone, "the end was not polled");
}

#[tokio::test(start_paused = true)]
async fn error_is_reported_even_as_an_event() {
    let items = || stream::iter([Ok(Event::new("a")), Err("broken")]);
    let summaries = Summaries::default();
    let mut body = ours(SseStream::new(items()).on_close(summaries.callback()), &[]);
    body.assert_data("data: a\n\n");
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
    assert_eq!((summaries.only().events, summaries.only().bytes), (1, 9));

    let summaries = Summaries::default();
    let stream = SseStream::new(items()).on_error(|error| Some(Event::display(error))).on_close(summaries.callback());
    let mut body = ours(stream, &[]);
    body.assert_data("data: a\n\ndata: broken\n\n");
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
    assert_eq!((summaries.only().events, summaries.only().bytes), (2, 23));

    let summaries = Summaries::default();
    let mut body = upstream(
        [Step::chunk("data: a\n\n"), Step::Fail("broken")],
        &[&SseLayer::new().on_close(summaries.callback())],
    );
    body.assert_data("data: a\n\n");
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
    assert_eq!((summaries.only().events, summaries.only().bytes), (1, 9));
}

/// hyper drops a body after its trailers, without another poll.
#[tokio::test]
async fn stream_that_ends_with_trailers_is_finished() {
    let steps = [Step::chunk("data: a\n\n"), Step::Trailers(HeaderMap::new()), Step::Hang];
    for response in [upstream_response(Script::new(steps.clone())), encoded(&steps)] {
        let summaries = Summaries::default();
        let layer = SseLayer::new().on_close(summaries.callback());
        let mut body = through(&layer, response).into_body();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(!body.is_end_stream());
        drop(body);
        assert_eq!((summaries.only().reason, summaries.only().bytes), (CloseReason::Finished, 9));
    }
}

#[tokio::test]
async fn client_that_leaves_before_error_is_gone() {
    let summaries = Summaries::default();
    let stream = SseStream::new(stream::iter([Ok(Event::new("a")), Err("broken")])).on_close(summaries.callback());
    let mut body = ours(stream, &[]);
    body.assert_data("data: a\n\n");
    body.assert_pending();
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn slow_subscriber_ends_with_reason_lagged() {
    use tower_sse::hub::{Hub, LagPolicy, Start};

    let hub = Hub::builder().max_events(3).lag_policy(LagPolicy::Disconnect).build();
    let topic = hub.topic("a");
    let summaries = [Summaries::default(), Summaries::default()];
    let layer = SseLayer::new().on_close(summaries[1].callback());
    let stream = SseStream::new(topic.subscribe(Start::Latest).await.unwrap()).on_close(summaries[0].callback());
    let mut body = ours(stream, &[&layer]);
    let Poll::Ready(Some(Ok(cursor))) = body.poll() else { panic!("the first bytes are ready") };
    for n in 0..5 {
        topic.publish(Event::display(n)).await.unwrap();
    }
    assert!(matches!(body.poll_in_time().await, Poll::Ready(Some(Err(_)))));
    drop(body);
    for summaries in summaries {
        assert_eq!(summaries.only().reason, CloseReason::Lagged);
        assert_eq!((summaries.only().events, summaries.only().bytes), (0, cursor.len() as u64));
    }
}

/// The handler counts its stream before it returns the stream, so the callback has to run.
#[tokio::test(start_paused = true)]
async fn no_content_of_finished_subscription_is_reported_to_handler() {
    use tower_sse::hub::{Hub, Start};

    let topic = Hub::new().topic("a");
    topic.publish(Event::new("only")).await.unwrap();
    topic.finish().await.unwrap();
    for polled in [true, false] {
        let [handler, layer] = [Summaries::default(), Summaries::default()];
        let subscription = topic.subscribe(Start::Latest).await.unwrap();
        let response = SseStream::new(subscription).on_close(handler.callback()).into_http_response();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let response = through(&SseLayer::new().on_close(layer.callback()), response);
        assert!(response.body().is_end_stream() && response.body().size_hint().exact() == Some(0));
        let mut body = Polled::new(response);
        if polled {
            body.assert_end();
        }
        advance(Duration::from_secs(1)).await;
        assert!(handler.is_empty());
        drop(body);
        assert_summary(&handler, CloseReason::Finished, [0, 0, 0], Duration::from_secs(1));
        assert!(layer.is_empty(), "a 204 is not a stream");
    }
}

#[tokio::test(start_paused = true)]
async fn unpolled_stream_is_reported_once_to_all() {
    let summaries: [Summaries; 5] = Default::default();
    let layers = [SseLayer::new().on_close(summaries[1].callback()), SseLayer::new().on_close(summaries[2].callback())];
    let response =
        through(&layers[1], through(&layers[0], silent().on_close(summaries[0].callback()).into_http_response()));
    advance(Duration::from_secs(3)).await;
    drop(response);
    for summaries in &summaries[..3] {
        assert_summary(summaries, CloseReason::ClientGone, [0, 0, 0], Duration::from_secs(3));
    }
    let layers = [SseLayer::new().on_close(summaries[3].callback()), SseLayer::new().on_close(summaries[4].callback())];
    let response = through(&layers[1], through(&layers[0], upstream_response(Script::new([Step::Hang]))));
    drop(response);
    for summaries in &summaries[3..] {
        assert_summary(summaries, CloseReason::ClientGone, [0, 0, 0], Duration::ZERO);
    }
}

#[tokio::test]
async fn callbacks_run_from_handler_to_outermost_layer() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let limit = limited();
    let record = |name: &'static str| {
        let (order, limit) = (Arc::clone(&order), limit.clone());
        move |_: StreamSummary| order.lock().unwrap().push((name, has_permit(&limit)))
    };
    let inner = limit.clone().on_close(record("inner"));
    let outer = SseLayer::new().on_close(record("outer"));
    let mut body = ours(silent().on_close(record("handler")), &[&inner, &outer]);
    body.assert_pending();
    drop(body);
    assert_eq!(*order.lock().unwrap(), [("handler", true), ("inner", true), ("outer", true)]);
}

/// An application that reports a user as offline when the last stream of the user closes.
#[tokio::test]
async fn stream_has_left_its_registry_when_callbacks_run() {
    for polled in [true, false] {
        let registry = StreamRegistry::new();
        let counts = Arc::new(Mutex::new(Vec::new()));
        let record = || {
            let (registry, counts) = (registry.clone(), Arc::clone(&counts));
            move |_: StreamSummary| counts.lock().unwrap().push(registry.count(&7))
        };
        let layer = SseLayer::new().register(&registry, |_| Some(7)).on_close(record());
        let mut body = ours(silent().on_close(record()), &[&layer]);
        if polled {
            body.assert_pending();
        }
        let other = ours(silent(), &[&layer]);
        drop(body);
        drop(other);
        assert_eq!(*counts.lock().unwrap(), [1, 1, 0], "polled: {polled}");
    }
}

#[tokio::test]
async fn stream_without_response_is_not_reported() {
    let summaries = Summaries::default();
    drop(silent().on_close(summaries.callback()));
    assert!(summaries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn upstream_events_are_counted_as_clients_do() {
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
            let summaries = Summaries::default();
            let layer = SseLayer::new().without_heartbeat().on_close(summaries.callback());
            let chunks = text.as_bytes().chunks(size).map(Step::chunk).chain([Step::Silence(Duration::ZERO)]);
            let mut body = upstream(chunks, &[&layer]);
            while let Poll::Ready(Some(frame)) = body.poll_in_time().await {
                frame.unwrap();
            }
            drop(body);
            let summary = summaries.only();
            assert_eq!(summary.events, events, "{text:?} in chunks of {size}");
            assert_eq!(summary.bytes, text.len() as u64);
            assert_eq!(summary.reason, CloseReason::Finished);
        }
    }
}

#[tokio::test]
async fn shutdown_event_is_counted() {
    for shutdown_event in ["bye".to_owned(), "b".repeat(10_000)] {
        let summaries: [Summaries; 2] = Default::default();
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new(shutdown_event));
        let a = "data: a\n\n";
        let large = "x".repeat(9_000);
        let events = stream::iter([Event::new("a"), Event::new(&large)]).chain(stream::pending());
        let first = ours(SseStream::new(events).on_close(summaries[0].callback()), &[&layer]);
        let chunks = [Step::chunk(a), Step::chunk(format!("data: {large}\n\n")), Step::Hang];
        let second = upstream(chunks, &[&layer.clone().on_close(summaries[1].callback())]);
        let mut bodies = [first, second];
        let [ours, upstream] = &mut bodies;
        ours.assert_data(a);
        upstream.assert_data(a);
        assert!(upstream.poll().is_ready());
        token.cancel();
        for mut body in bodies {
            body.rest();
        }
        for summaries in &summaries {
            assert_eq!(summaries.only().events, 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_event_counts_as_heartbeat_only() {
    let summaries: [Summaries; 2] = Default::default();
    let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)).event(Event::new("alive")));
    let first = ours(SseStream::new(stream::pending::<Event>()).on_close(summaries[0].callback()), &[&layer]);
    let second = upstream([Step::Hang], &[&layer.on_close(summaries[1].callback())]);
    for (mut body, first_byte, summaries) in [(first, 1, &summaries[0]), (second, 0, &summaries[1])] {
        if first_byte == 1 {
            body.assert_data(":\n");
        }
        for _ in 0..3 {
            body.assert_pending();
            advance(Duration::from_millis(1_002)).await;
            body.assert_data("data: alive\n\n");
        }
        drop(body);
        let summary = summaries.only();
        assert_eq!((summary.events, summary.heartbeats), (0, 3 + first_byte));
        assert_eq!(summary.bytes, 3 * 13 + 2 * first_byte);
    }
}

#[test]
fn unpolled_body_needs_no_runtime() {
    let summaries = Summaries::default();
    let layer = SseLayer::new().max_lifetime(Duration::from_secs(1)).on_close(summaries.callback());
    drop(through(&layer, silent().into_http_response()));
    assert_eq!(summaries.only().reason, CloseReason::ClientGone);
    let summaries = Summaries::default();
    drop(through(&layer.on_close(summaries.callback()), upstream_response(Script::new([Step::Hang]))));
    assert_eq!(summaries.only().reason, CloseReason::ClientGone);
}
