//! Streams that their handler ends, or that may end by themselves after a shutdown.

use crate::common::{Summaries, channel, lifetime, ours, shutdown_layer, silent, upstream};
use futures_util::{StreamExt, stream};
use std::{future, task::Poll, time::Duration};
use support::script::Step;
use tokio::{sync::oneshot, time::advance};
use tower_sse::{CloseReason, Event, SseLayer, SseStream};

#[tokio::test]
async fn ready_future_ends_stream_with_its_event() {
    for with_layer in [false, true] {
        let (end, ended) = oneshot::channel();
        let (sender, events) = channel();
        let summaries = Summaries::default();
        let stream = SseStream::new(events)
            .without_heartbeat()
            .end_with(Event::new("not sent"))
            .end_when(async { ended.await.unwrap() })
            .on_close(summaries.callback());
        let layer = SseLayer::new();
        let mut body = if with_layer { ours(stream, &[&layer]) } else { ours(stream, &[]) };
        sender.send(Event::new("a")).unwrap();
        body.assert_data("data: a\n\n");
        body.assert_pending();
        end.send(Some(Event::new("").event("expired"))).unwrap();
        assert!(body.is_woken());
        sender.send(Event::new("too late")).unwrap();
        assert_eq!(body.rest(), "event: expired\ndata: \n\n");
        drop(body);
        let summary = summaries.only();
        assert_eq!((summary.reason, summary.events), (CloseReason::Ended, 2));
        assert_eq!(summary.reason.as_str(), "ended");
    }
}

#[tokio::test]
async fn future_without_event_ends_stream_silently() {
    let mut body = ours(silent().end_when(future::ready(None)), &[]);
    assert_eq!(body.rest(), "");
}

/// The frame that was kept for the next poll is older than the end.
#[tokio::test]
async fn pending_event_is_sent_before_the_end() {
    let (end, ended) = oneshot::channel::<()>();
    let large = "x".repeat(10_000);
    let events = stream::iter([Event::new("small"), Event::new(&large)]).chain(stream::pending());
    let ended = async move {
        ended.await.unwrap();
        Some(Event::new("bye"))
    };
    let mut body = ours(SseStream::new(events).end_when(ended), &[]);
    body.assert_data("data: small\n\n");
    end.send(()).unwrap();
    assert_eq!(body.rest(), format!("data: {large}\n\ndata: bye\n\n"));
}

/// A body that is never polled may be dropped outside of any runtime.
#[test]
fn unpolled_stream_drops_its_future() {
    let (end, ended) = oneshot::channel::<()>();
    drop(ours(silent().end_when(async { ended.await.ok().and(None) }).max_lifetime(Duration::from_secs(1)), &[]));
    assert!(end.is_closed());
}

#[tokio::test(start_paused = true)]
async fn lifetime_of_a_handler_is_exact() {
    let exact = Duration::from_secs(1_000);
    let lived = lifetime(ours(silent().max_lifetime(exact), &[])).await;
    assert!((exact..exact + Duration::from_millis(2)).contains(&lived), "{lived:?}");
    // The shorter lifetime applies.
    let layer = SseLayer::new().max_lifetime(Duration::from_secs(100));
    let lived = lifetime(ours(silent().max_lifetime(exact), &[&layer])).await;
    assert!(lived < Duration::from_secs(111), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn finite_stream_uses_the_drain_timeout() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye")).drain_timeout(Duration::from_secs(10));
    let (sender, events) = channel();
    let summaries = Summaries::default();
    let stream = SseStream::new(events).finite().end_with(Event::new("[DONE]")).on_close(summaries.callback());
    let mut finite = ours(stream, &[&layer]);
    let mut endless = ours(silent(), &[&layer]);
    let mut stuck = ours(silent().finite(), &[&layer]);
    for body in [&mut finite, &mut endless, &mut stuck] {
        body.assert_pending();
    }
    token.cancel();
    // A stream that begins after the shutdown has the same time.
    let mut late = ours(silent().finite(), &[&layer]);
    late.assert_pending();
    assert_eq!(endless.rest(), "retry: 1000\ndata: bye\n\n");
    finite.assert_pending();
    stuck.assert_pending();
    advance(Duration::from_secs(9)).await;
    sender.send(Event::new("last token")).unwrap();
    drop(sender);
    assert_eq!(finite.rest(), "data: last token\n\ndata: [DONE]\n\n");
    drop(finite);
    assert_eq!(summaries.only().reason, CloseReason::Finished);
    stuck.assert_pending();
    advance(Duration::from_millis(1_002)).await;
    assert!(stuck.is_woken());
    assert_eq!(stuck.rest(), "retry: 1000\ndata: bye\n\n");
}

/// The layer of a route can declare that its streams are finite.
#[tokio::test(start_paused = true)]
async fn finite_layer_applies_to_upstream_streams() {
    let second = Duration::from_secs(1);
    let inner = SseLayer::new().finite();
    let chunk = Step::chunk("data: 1\n\n");
    let steps = [Step::Silence(second * 4), chunk.clone(), Step::Silence(second * 4), chunk];
    for (steps, end) in [(&steps[..], "retry: 1000\n"), (&steps[..2], "")] {
        for is_outside in [false, true] {
            let (token, layer) = shutdown_layer();
            let layer = layer.drain_timeout(second * 5);
            let layers = if is_outside { [&layer, &inner] } else { [&inner, &layer] };
            let mut body = upstream(steps.to_vec(), &layers);
            body.assert_pending();
            token.cancel();
            body.assert_pending();
            advance(second * 4).await;
            body.assert_data("data: 1\n\n");
            advance(second * 2).await;
            assert_eq!(body.rest(), end);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn finite_stream_without_drain_timeout_ends_at_once() {
    let (token, layer) = shutdown_layer();
    let mut body = ours(silent().finite(), &[&layer]);
    body.assert_pending();
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
    // The outer layer's timeout applies to an inner layer that sets none.
    let (token, inner) = shutdown_layer();
    let outer = SseLayer::new().drain_timeout(Duration::from_secs(10));
    let mut body = ours(silent().finite(), &[&inner, &outer]);
    body.assert_pending();
    token.cancel();
    body.assert_pending();
    advance(Duration::from_millis(10_002)).await;
    assert_eq!(body.rest(), "retry: 1000\n");
}

/// The future of `end_when` and a shutdown are ready at the same time.
#[tokio::test]
async fn handler_ends_before_the_shutdown() {
    let (token, layer) = shutdown_layer();
    token.cancel();
    let stream = silent().end_when(future::ready(Some(Event::new("mine"))));
    let mut body = ours(stream, &[&layer]);
    assert_eq!(body.rest(), "data: mine\n\n");
    let mut body = ours(silent().end_when(future::pending()), &[&layer]);
    assert_eq!(body.rest(), "retry: 1000\n");
    assert_eq!(body.poll(), Poll::Ready(None));
}
