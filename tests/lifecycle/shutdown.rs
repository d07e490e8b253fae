//! Guarantee: a shutdown ends every `SseStream` between events. Without a flush time, an idle
//! stream ends within one poll.

use crate::common::{Summaries, channel, ours, shutdown_layer, silent, upstream};
use futures_util::{StreamExt, stream};
use std::{task::Poll, time::Duration};
use support::{script::Step, whatwg};
use tokio::time::advance;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tower_sse::{
    CloseReason, EncodedEvents, Event, EventId, SseLayer, SseStream,
    hub::{Hub, Start, SubscriptionError},
};

#[tokio::test]
async fn idle_stream_ends_with_event_and_reconnect_delay() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye"));
    let (_sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    assert!(!body.is_woken());

    token.cancel();
    assert!(body.is_woken());
    body.assert_data("retry: 1000\ndata: bye\n\n");
    assert!(body.is_end_stream());
    body.assert_end();
    body.assert_end();
}

#[tokio::test]
async fn pending_event_is_sent_before_shutdown_event() {
    for shutdown_event in ["bye".to_owned(), "b".repeat(10_000)] {
        let (token, layer) = shutdown_layer();
        let summaries = Summaries::default();
        let layer = layer.shutdown_event(Event::new(&shutdown_event)).on_close(summaries.callback());
        let large = "x".repeat(10_000);
        let events = stream::iter([Event::new("small"), Event::new(&large)]).chain(stream::pending());
        let mut body = ours(SseStream::new(events), &[&layer]);
        body.assert_data("data: small\n\n");
        token.cancel();
        let rest = body.rest();
        assert_eq!(rest, format!("data: {large}\n\nretry: 1000\ndata: {shutdown_event}\n\n"));
        drop(body);
        let summary = summaries.only();
        assert_eq!(summary.reason, CloseReason::Shutdown);
        assert_eq!(summary.bytes, "data: small\n\n".len() as u64 + rest.len() as u64);
    }
}

#[tokio::test]
async fn end_with_event_is_not_sent_at_shutdown() {
    let (token, layer) = shutdown_layer();
    let events = stream::iter([Event::new("a")]).chain(stream::pending());
    let mut body = ours(SseStream::new(events).end_with(Event::new("no more")), &[&layer]);
    body.assert_data("data: a\n\n");
    body.assert_pending();
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
}

#[tokio::test]
async fn ending_poll_drops_the_handlers_stream() {
    let (token, layer) = shutdown_layer();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    token.cancel();
    assert!(!sender.is_closed());
    body.assert_data("retry: 1000\n");
    assert!(sender.is_closed());
}

#[tokio::test]
async fn shutdown_event_is_sent_without_its_id() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye").event("shutdown").id(7));
    let events = stream::iter([Event::new("a").id(3)]).chain(stream::pending());
    let chunk = Step::chunk("id: 3\ndata: a\n\n");
    let mut bodies = [ours(SseStream::new(events), &[&layer]), upstream([chunk, Step::Hang], &[&layer])];
    for body in &mut bodies {
        body.assert_data("id: 3\ndata: a\n\n");
        body.assert_pending();
    }
    token.cancel();
    for mut body in bodies {
        let rest = body.rest();
        assert_eq!(rest, "retry: 1000\nevent: shutdown\ndata: bye\n\n");
        let whole = whatwg::parse(format!("id: 3\ndata: a\n\n{rest}").as_bytes());
        assert_eq!(whole.last_event_id, "3");
    }
}

#[tokio::test]
async fn stream_after_shutdown_ends_unpolled() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye")).retry(Duration::from_secs(3));
    token.cancel();
    let never = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("the stream was polled") });
    let mut body = ours(SseStream::new(never), &[&layer]);
    assert_eq!(body.rest(), "retry: 3000\nretry: 3000\ndata: bye\n\n");

    let mut body = upstream([Step::Fail("the stream was polled")], &[&layer]);
    assert_eq!(body.rest(), "retry: 3000\nretry: 3000\ndata: bye\n\n");
    let (token, quiet) = shutdown_layer();
    token.cancel();
    assert_eq!(ours(silent(), &[&quiet]).rest(), "retry: 1000\n");
    assert_eq!(upstream([Step::Hang], &[&quiet]).rest(), "retry: 1000\n");
}

#[tokio::test]
async fn shutdown_event_does_not_erase_id_of_returning_client() {
    let hub = Hub::builder().build();
    let topic = hub.topic("a");
    let id = topic.publish(Event::new("1")).await.unwrap();
    let shutdown_layer = || {
        let (token, layer) = shutdown_layer();
        (token, layer.shutdown_event(Event::new("bye")))
    };
    let quiet = async || topic.subscribe(id.clone()).await.unwrap().without_control_events();
    let lost = async || topic.subscribe(EventId::from_static("lost")).await.unwrap();
    let earlier = async || topic.subscribe(Start::Earliest).await.unwrap();
    let (token, layer) = shutdown_layer();
    token.cancel();
    for stream in [
        lost().await.boxed(),
        lost().await.begin_with(Event::new("state")).boxed(),
        quiet().await.boxed(),
        // Subscriptions with different cursors have no common cursor.
        tokio_stream::StreamExt::merge(earlier().await, quiet().await).boxed(),
    ] {
        let rest = ours(SseStream::new(stream), &[&layer]).rest();
        assert_eq!(rest, "retry: 1000\n");
        assert_eq!(whatwg::parse_after("lost", rest.as_bytes()).last_event_id, "lost");
    }
    // An item without bytes that is ready at the shutdown is no cursor.
    let (sender, items) = tokio::sync::mpsc::unbounded_channel();
    let items = UnboundedReceiverStream::new(items).map(Ok::<EncodedEvents, SubscriptionError>);
    let (token, late) = shutdown_layer();
    let merged = tokio_stream::StreamExt::merge(quiet().await, items);
    let mut body = ours(SseStream::new(merged), &[&late]);
    body.assert_pending();
    sender.send(EncodedEvents::default()).unwrap();
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
    // A client that gets an id, or has none to lose, gets the event.
    let resumed = ours(SseStream::new(topic.subscribe(id.clone()).await.unwrap()), &[&layer]).rest();
    assert_eq!(resumed, format!("event: hub-cursor\nid: {id}\ndata: \n\nretry: 1000\ndata: bye\n\n"));
    let new = topic.subscribe(Start::Latest).await.unwrap().without_control_events();
    assert_eq!(ours(SseStream::new(new), &[&layer]).rest(), "retry: 1000\ndata: bye\n\n");
    // The last event of the handler is sent.
    let ended = SseStream::new(lost().await).end_when(async { Some(Event::new("expired")) });
    assert_eq!(ours(ended, &[]).rest(), "data: expired\n\n");

    for stream in [quiet().await.boxed(), stream::select(quiet().await, stream::pending()).boxed()] {
        let (token, layer) = shutdown_layer();
        let mut body = ours(SseStream::new(stream), &[&layer]);
        body.assert_pending();
        token.cancel();
        assert_eq!(body.rest(), "retry: 1000\n");
    }
    let (token, layer) = shutdown_layer();
    let mut body = ours(SseStream::new(quiet().await), &[&layer]);
    body.assert_pending();
    let next = topic.publish(Event::new("2")).await.unwrap();
    body.assert_data(format!("id: {next}\ndata: 2\n\n"));
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\ndata: bye\n\n");

    // A cursor is an id, but no event.
    let (token, layer) = shutdown_layer();
    let cursor = topic.subscribe(next.clone()).await.unwrap().begin_with_cursor().take(1);
    let quiet = topic.subscribe(next.clone()).await.unwrap().without_control_events();
    let mut body = ours(SseStream::new(cursor.chain(quiet)), &[&layer]);
    body.assert_data(format!("event: hub-cursor\nid: {next}\ndata: \n\n"));
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\ndata: bye\n\n");
}

#[tokio::test]
async fn each_layer_ends_with_its_own_event() {
    for cancelled in [0, 1] {
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let layers = [0, 1].map(|n| {
            let layer = SseLayer::new().shutdown(tokens[n].clone()).flush_time(Duration::ZERO);
            let layer = layer.shutdown_event(Event::display(n)).reconnect_jitter(Duration::ZERO);
            layer.without_heartbeat()
        });
        let layers = [&layers[0], &layers[1]];
        let mut bodies = [ours(silent(), &layers), upstream([Step::Hang], &layers)];
        for body in &mut bodies {
            body.assert_pending();
        }
        tokens[cancelled].cancel();
        for mut body in bodies {
            assert_eq!(body.rest(), format!("retry: 1000\ndata: {cancelled}\n\n"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn error_before_shutdown_stays_an_error() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let items = stream::iter([Ok(Event::new("a")), Err("broken")]);
    let mut body = ours(SseStream::new(items).on_close(summaries.callback()), &[&layer]);
    body.assert_data("data: a\n\n");
    token.cancel();
    body.assert_pending();
    advance(Duration::from_millis(251)).await;
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".to_owned()))));
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
}
