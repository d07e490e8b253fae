//! After the flush time of a shutdown, an `SseStream` sends the items that are ready, and then
//! ends. This includes events that wait for a linger. The tests have no flush time.

use crate::common::{Summaries, channel, endless, ours, shutdown_layer};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http_body_util::BodyExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use support::{polled::Polled, whatwg};
use tokio::{
    sync::oneshot,
    task::consume_budget,
    time::{advance, timeout},
};
use tokio_stream::Stream;
use tower_sse::{
    BoxError, CloseReason, EncodedEvents, Event, EventId, SseStream, StreamRegistry,
    hub::{Hub, Start, backend::MemoryBackend},
};

/// The maximum number of last items: 256 polls with 64 items each.
const MAX_ITEMS: usize = 256 * 64;

/// Reads the rest of a body, which may give other tasks a turn in between.
#[track_caller]
fn frames(body: &mut Polled) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while !body.is_end_stream() {
        match body.poll() {
            Poll::Ready(Some(Ok(frame))) => frames.push(frame),
            Poll::Ready(None) => break,
            Poll::Pending => assert!(body.is_woken(), "after {frames:?}"),
            other => panic!("{other:?} after {frames:?}"),
        }
    }
    frames
}

#[track_caller]
fn rest(body: &mut Polled) -> String {
    String::from_utf8(frames(body).concat()).unwrap()
}

fn data(events: &str) -> Vec<String> {
    whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data).collect()
}

/// Returns an endless stream that is pending until the switch is set.
fn endless_when(switch: &Arc<AtomicBool>) -> impl Stream<Item = Event> + Send + use<> {
    let (switch, mut items) = (Arc::clone(switch), endless().1);
    stream::poll_fn(move |cx| match switch.load(Ordering::Relaxed) {
        true => items.poll_next_unpin(cx),
        false => Poll::Pending,
    })
}

/// The number of events is greater than the number of items that a body or a listener takes in one
/// turn.
#[tokio::test]
async fn published_events_are_sent_before_the_end() {
    const EVENTS: usize = 200;
    for is_hub_shut_down in [false, true] {
        let hub = Hub::builder().build();
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let [one, several] = [&["a"][..], &["a", "b", "c"]].map(|topics| hub.subscribe(topics, Start::Latest));
        let listener = hub.listen(["a", "b"], Start::Latest).await.unwrap();
        let listener = listener.map(|published| published.map(|published| published.event));
        let [one, several] = [one.await.unwrap(), several.await.unwrap()].map(SseStream::new);
        let mut bodies = [ours(one, &[&layer]), ours(several, &[&layer]), ours(SseStream::new(listener), &[&layer])];
        for body in &mut bodies {
            while body.poll().is_ready() {}
        }
        for n in 0..EVENTS {
            hub.topic("a").publish(Event::display(n)).await.unwrap();
        }
        token.cancel();
        if is_hub_shut_down {
            hub.shutdown();
        }
        for mut body in bodies {
            let events = (0..EVENTS).map(|n| n.to_string());
            let expected: Vec<_> = events.chain(["bye".to_owned()]).collect();
            assert_eq!(data(&rest(&mut body)), expected);
        }
    }
}

/// Each event is larger than a frame, so the idle subscription ends first. Without an event, the
/// response ends in the same poll, because nothing would wake it.
#[tokio::test]
async fn merged_subscriptions_send_their_events_before_the_end() {
    for (events, has_layer, is_layer_shut_down) in
        [0, 5].into_iter().flat_map(|events| [(events, false, false), (events, true, false), (events, true, true)])
    {
        let large: Vec<_> = (0..events).map(|n| format!("{n}").repeat(20_000)).collect();
        let hub = Hub::builder().build();
        let summaries = Summaries::default();
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye")).on_close(summaries.callback());
        let layers: &[_] = if has_layer { &[&layer] } else { &[] };
        let [idle, busy] = ["idle", "busy"].map(|topic| hub.topic(topic));
        let mut streams = stream::SelectAll::new();
        for topic in [&idle, &busy] {
            let events = topic.subscribe(Start::Latest).await.unwrap();
            streams.push(events.map(|item| item.map_err(BoxError::from)).boxed());
        }
        // A subscription to another hub stays open.
        let other = Hub::builder().build().topic("other").subscribe(Start::Latest).await.unwrap();
        streams.push(other.map(|item| item.map_err(BoxError::from)).boxed());
        let mut body = ours(SseStream::new(streams), layers);
        while body.poll().is_ready() {}
        for data in &large {
            busy.publish(Event::new(data)).await.unwrap();
        }
        if is_layer_shut_down {
            token.cancel();
        }
        hub.shutdown();
        let rest = rest(&mut body);
        let mut expected = large.clone();
        expected.extend(is_layer_shut_down.then(|| "bye".to_owned()));
        assert_eq!(data(&rest), expected, "{events} {has_layer} {is_layer_shut_down}");
        assert!(whatwg::parse(rest.as_bytes()).reconnection_time.is_some());
        if has_layer {
            drop(body);
            assert_eq!(summaries.take_only().reason, CloseReason::Shutdown);
        }
    }
}

/// One poll of a subscription looks at 256 topics.
#[tokio::test]
async fn events_of_many_topics_are_sent() {
    let hub = Hub::builder().build();
    let names: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
    let (token, layer) = shutdown_layer();
    let mut body = ours(SseStream::new(hub.subscribe(&names, Start::Latest).await.unwrap()), &[&layer]);
    while body.poll().is_ready() || body.is_woken() {}
    for name in &names {
        hub.topic(name.as_str()).publish(Event::new(name)).await.unwrap();
    }
    token.cancel();
    assert_eq!(data(&rest(&mut body)), names);
}

/// The task has a budget of 128 uses of resources of tokio.
#[tokio::test]
async fn items_beyond_the_budget_of_a_task_are_sent() {
    let (token, layer) = shutdown_layer();
    let (sender, events) = channel();
    let events = events.then(async |event| (consume_budget().await, consume_budget().await, event).2);
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    for n in 0..300 {
        sender.send(Event::display(n)).unwrap();
    }
    token.cancel();
    let rest = tokio::spawn(body.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(data(str::from_utf8(&rest).unwrap()), (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// After 32 events, the budget is spent exactly, and the stream waits for no resource of tokio.
#[tokio::test(start_paused = true)]
async fn stream_that_has_just_spent_its_budget_ends() {
    for events in [31, 32, 33] {
        let (token, layer) = shutdown_layer();
        let hub = Hub::builder().build();
        let listener = hub.listen(["a"], Start::Latest).await.unwrap();
        let stream = listener.then(async |published| {
            for _ in 0..4 {
                consume_budget().await;
            }
            published.map(|published| published.event)
        });
        let mut body = ours(SseStream::new(stream), &[&layer]);
        while body.poll().is_ready() {}
        for n in 0..events {
            hub.topic("a").publish(Event::display(n)).await.unwrap();
        }
        token.cancel();
        let rest = timeout(Duration::from_secs(1), tokio::spawn(body.into_body().collect())).await;
        let rest = rest.expect("the body ends").unwrap().unwrap().to_bytes();
        assert_eq!(data(str::from_utf8(&rest).unwrap()).len(), events);
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_for_a_linger_are_sent() {
    let second = Duration::from_secs(1);
    let hub = Hub::builder().linger(second).build();
    for topics in [&["a"][..], &["a", "b", "c"]] {
        let (token, layer) = shutdown_layer();
        let mut body = ours(SseStream::new(hub.subscribe(topics, Start::Latest).await.unwrap()), &[&layer]);
        while body.poll().is_ready() {}
        hub.topic("a").publish(Event::new("1")).await.unwrap();
        assert_eq!(
            body.poll().map(|frame| data(&String::from_utf8_lossy(&frame.unwrap().unwrap()))),
            Poll::Ready(vec!["1".to_owned()])
        );
        body.assert_pending();
        for text in ["2", "3"] {
            hub.topic("a").publish(Event::new(text)).await.unwrap();
        }
        advance(second / 2).await;
        body.assert_pending();
        token.cancel();
        let rest = rest(&mut body);
        assert_eq!(data(&rest), ["2", "3"]);
        assert!(rest.ends_with("\n\nretry: 1000\n"), "{rest}");
    }
}

#[tokio::test]
async fn stream_that_is_always_ready_ends() {
    let (token, layer) = shutdown_layer();
    let (taken, events) = endless();
    let mut body = ours(SseStream::new(events), &[&layer]);
    let Poll::Ready(Some(Ok(first))) = body.poll() else { panic!("the stream is ready") };
    let before = taken.load(Ordering::Relaxed);
    token.cancel();
    let rest = rest(&mut body);
    assert!(rest.ends_with("\n\nretry: 1000\n"));
    let taken = taken.load(Ordering::Relaxed);
    assert_eq!(taken, before + MAX_ITEMS);
    let seen = data(&(String::from_utf8_lossy(&first) + &*rest));
    assert_eq!(seen, (0..taken).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// A large shutdown event has a frame of its own.
#[tokio::test]
async fn shutdown_event_follows_the_last_item_once() {
    for length in [1, 10_000] {
        let (token, layer) = shutdown_layer();
        let bye = "b".repeat(length);
        let layer = layer.shutdown_event(Event::new(&bye));
        let mut body = ours(SseStream::new(endless().1), &[&layer]);
        assert!(body.poll().is_ready());
        token.cancel();
        let rest = rest(&mut body);
        assert_eq!(data(&rest).last(), Some(&bye));
        assert_eq!(rest.matches("retry: ").count(), 1);
    }
}

/// After the maximum number of polls, a body may still have a large item that did not fit into a
/// frame with a small one. The large item shares its memory with other clients, so the final bytes
/// follow in a frame of their own.
#[tokio::test]
async fn large_last_item_is_not_copied() {
    let [large, small] = [50_000, 1_000].map(|length| EncodedEvents::from(Event::new("x".repeat(length))));
    let mut large_is_last = 0;
    for smalls in 0..8 {
        let (token, layer) = shutdown_layer();
        let items = vec![small.clone(); smalls].into_iter().chain([large.clone(), small.clone()].into_iter().cycle());
        let mut body = ours(SseStream::new(stream::iter(items)), &[&layer]);
        assert!(body.poll().is_ready());
        token.cancel();
        let frames = frames(&mut body);
        for frame in frames.iter().filter(|frame| frame.len() > 20_000) {
            assert_eq!(frame.as_ptr(), large.as_bytes().as_ptr());
        }
        large_is_last += usize::from(frames[frames.len() - 2].len() > 20_000);
    }
    assert!(large_is_last > 0);
}

/// The stream ends for another reason while it sends its last items.
#[tokio::test(start_paused = true)]
async fn other_ends_have_precedence_over_last_items() {
    let second = Duration::from_secs(1);
    for (has_lifetime, has_end, expected) in
        [(true, false, "retry: 1000\n"), (false, true, "data: over\n\n"), (true, true, "data: over\n\n")]
    {
        let (token, layer) = shutdown_layer();
        let (end, is_over) = oneshot::channel::<()>();
        let mut stream = SseStream::new(endless().1);
        if has_lifetime {
            stream = stream.max_lifetime(second);
        }
        if has_end {
            stream = stream.end_when(is_over.map(|_| Some(Event::new("over"))));
        }
        let mut body = ours(stream, &[&layer]);
        assert!(body.poll().is_ready());
        token.cancel();
        for _ in 0..5 {
            _ = body.poll();
        }
        advance(second * 2).await;
        _ = end.send(());
        assert_eq!(rest(&mut body), expected);
    }
}

/// While a body waits to return an error, it does not poll for last items.
#[tokio::test(start_paused = true)]
async fn error_of_a_finite_stream_stays_an_error() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let (sender, events) = channel();
    let events = events.map(|_| Err::<Event, BoxError>("broken".into()));
    let mut body = ours(SseStream::new(events).finite(), &[&layer]);
    body.assert_pending();
    token.cancel();
    sender.send(Event::new("")).unwrap();
    for _ in 0..300 {
        body.assert_pending();
    }
    advance(Duration::from_millis(251)).await;
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".to_owned()))));
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
}

#[tokio::test]
async fn close_during_the_last_items_discards_them() {
    let registry = StreamRegistry::<u8>::new();
    let (token, layer) = shutdown_layer();
    let layer = layer.register(&registry, |_| Some(1));
    let (sender, events) = channel();
    let closing = registry.clone();
    let events = events.inspect(move |_| _ = closing.close_with(&1, Event::new("closed")));
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    sender.send(Event::new("late")).unwrap();
    token.cancel();
    assert_eq!(rest(&mut body), "data: closed\n\n");
}

/// The cursor of a subscription moves with the log, so it can be after an item of another source.
#[tokio::test]
async fn cursor_is_sent_only_after_the_last_item() {
    for (is_endless, is_hub_shut_down) in [(false, false), (false, true), (true, false)] {
        let hub = Hub::builder().backend(MemoryBackend::new(100)).connect().await.unwrap();
        let (token, layer) = shutdown_layer();
        let switch = Arc::default();
        let subscription = hub.topic("a").subscribe(Start::Latest).await.unwrap();
        let items = endless_when(&switch).map(|event| Ok(event.into()));
        let mut body = ours(SseStream::new(stream::select(subscription, items)), &[&layer]);
        while body.poll().is_ready() {}
        let id = publish_elsewhere(&hub).await;
        switch.store(is_endless, Ordering::Relaxed);
        token.cancel();
        if is_hub_shut_down {
            hub.shutdown();
        }
        let rest = rest(&mut body);
        assert_eq!(rest.contains(&format!("event: hub-cursor\nid: {id}\n")), !is_endless, "{rest}");
        assert!(rest.ends_with("\nretry: 1000\n"));
    }
}

/// The stream is first pending after its last item.
#[tokio::test]
async fn cursor_follows_the_last_item_of_a_busy_stream() {
    let hub = Hub::builder().backend(MemoryBackend::new(1000)).connect().await.unwrap();
    let (token, layer) = shutdown_layer();
    for n in 0..300 {
        hub.topic("a").publish(Event::display(n)).await.unwrap();
    }
    hub.read(["a"], Start::Earliest).await.unwrap().count().await;
    let mut body = ours(SseStream::new(hub.topic("a").subscribe(Start::Earliest).await.unwrap()), &[&layer]);
    assert!(body.poll().is_ready());
    let id = publish_elsewhere(&hub).await;
    token.cancel();
    let rest = rest(&mut body);
    assert!(rest.contains("data: 299\n"));
    assert!(rest.contains(&format!("event: hub-cursor\nid: {id}\n")), "{rest}");
}

/// Publishes to another topic, and waits until the node has read the event. Returns its id.
async fn publish_elsewhere(hub: &Hub) -> EventId {
    let id = hub.topic("b").publish(Event::new("1")).await.unwrap();
    hub.read(["b"], Start::Earliest).await.unwrap().next().await.unwrap().unwrap();
    id
}
