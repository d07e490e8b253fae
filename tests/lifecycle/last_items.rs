//! Guarantee: after the shutdown of a layer, an `SseStream` sends the items that are ready, also
//! those that wait for a linger, and then ends.

use crate::common::{Summaries, channel, endless, ours, shutdown_layer};
use futures_util::{StreamExt, stream};
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
use tokio::time::advance;
use tokio_stream::Stream;
use tower_sse::{
    CloseReason, Event, SseStream, StreamRegistry,
    hub::{Hub, Start, backend::MemoryBackend},
};

/// The maximum number of items that are sent after a shutdown: 256 turns with 64 items each.
const MAX_ITEMS: usize = 256 * 64;

/// Reads the rest of a body, which may give other tasks a turn in between.
#[track_caller]
fn rest(body: &mut Polled) -> String {
    let mut rest = Vec::new();
    while !body.is_end_stream() {
        match body.poll() {
            Poll::Ready(Some(Ok(frame))) => rest.extend_from_slice(&frame),
            Poll::Ready(None) => break,
            Poll::Pending => assert!(body.is_woken(), "after {:?}", String::from_utf8_lossy(&rest)),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&rest)),
        }
    }
    String::from_utf8(rest).unwrap()
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

#[tokio::test]
async fn published_events_are_sent_before_the_end() {
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
        for text in ["1", "2"] {
            hub.topic("a").publish(Event::new(text)).await.unwrap();
        }
        token.cancel();
        if is_hub_shut_down {
            hub.shutdown();
        }
        for mut body in bodies {
            let expected: &[&str] = if is_hub_shut_down { &["bye"] } else { &["1", "2", "bye"] };
            assert_eq!(data(&rest(&mut body)), expected);
        }
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

/// The last frame has no room for the shutdown event, which is in a frame of its own.
#[tokio::test]
async fn large_shutdown_event_follows_the_last_item_once() {
    let (token, layer) = shutdown_layer();
    let bye = "b".repeat(10_000);
    let layer = layer.shutdown_event(Event::new(&bye));
    let mut body = ours(SseStream::new(endless().1), &[&layer]);
    assert!(body.poll().is_ready());
    token.cancel();
    let rest = rest(&mut body);
    assert_eq!(data(&rest).last(), Some(&bye));
    assert_eq!(rest.matches("retry: ").count(), 1);
}

/// The last frames are not larger than others, and share the memory of large events.
#[tokio::test]
async fn last_items_leave_in_ordinary_frames() {
    let (token, layer) = shutdown_layer();
    let hub = Hub::builder().build();
    let topic = hub.topic("a");
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let mut body = ours(SseStream::new(topic.subscribe(Start::Latest).await.unwrap()), &[&layer]);
        while body.poll().is_ready() {}
        bodies.push(body);
    }
    for _ in 0..100 {
        topic.publish(Event::new("x".repeat(50_000))).await.unwrap();
        topic.publish(Event::new("y".repeat(1_000))).await.unwrap();
    }
    token.cancel();
    let frames = bodies.iter_mut().map(|body| {
        let mut frames = Vec::new();
        while !body.is_end_stream() {
            match body.poll() {
                Poll::Ready(Some(Ok(frame))) => frames.push(frame),
                Poll::Pending => assert!(body.is_woken()),
                other => panic!("{other:?}"),
            }
        }
        frames
    });
    let frames: Vec<_> = frames.collect();
    let large = |frames: &[bytes::Bytes]| -> Vec<*const u8> {
        frames.iter().filter(|frame| frame.len() > 20_000).map(|frame| frame.as_ptr()).collect()
    };
    assert_eq!(large(&frames[0]).len(), 100);
    assert_eq!(large(&frames[0]), large(&frames[1]));
}

/// A channel of tokio is pending when a task has taken 128 items in one poll.
#[tokio::test]
async fn items_beyond_the_budget_of_a_task_are_sent() {
    let (token, layer) = shutdown_layer();
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_pending();
    for n in 0..1000 {
        sender.send(Event::display(n)).unwrap();
    }
    token.cancel();
    let rest = tokio::spawn(body.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(data(std::str::from_utf8(&rest).unwrap()), (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(rest.ends_with(b"\n\nretry: 1000\n"));
}

#[tokio::test]
async fn stream_that_wakes_itself_is_polled_again() {
    let (token, layer) = shutdown_layer();
    let (mut left, mut is_pending) = (3, true);
    let events = stream::poll_fn(move |cx| {
        is_pending = !is_pending;
        if is_pending || left == 0 {
            (left > 0).then(|| cx.waker().wake_by_ref());
            return Poll::Pending;
        }
        left -= 1;
        Poll::Ready(Some(Event::display(left)))
    });
    let mut body = ours(SseStream::new(events), &[&layer]);
    body.assert_data("data: 2\n\n");
    token.cancel();
    assert_eq!(rest(&mut body), "data: 1\n\ndata: 0\n\nretry: 1000\n");
}

#[tokio::test]
async fn stream_that_ends_after_the_shutdown_has_finished() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let (sender, events) = channel();
    let mut body = ours(SseStream::new(events).end_with(Event::new("no more")), &[&layer]);
    body.assert_pending();
    sender.send(Event::new("last")).unwrap();
    drop(sender);
    token.cancel();
    assert_eq!(rest(&mut body), "data: last\n\ndata: no more\n\n");
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Finished);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_lifetime_that_ends_with_the_shutdown() {
    let second = Duration::from_secs(1);
    for is_of_handler in [true, false] {
        let (token, layer) = shutdown_layer();
        let layer = if is_of_handler { layer } else { layer.max_lifetime(second) };
        let (sender, events) = channel();
        let stream = SseStream::new(events);
        let mut body = ours(if is_of_handler { stream.max_lifetime(second) } else { stream }, &[&layer]);
        body.assert_pending();
        sender.send(Event::new("late")).unwrap();
        advance(second * 2).await;
        token.cancel();
        assert_eq!(rest(&mut body), "");
    }
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
    for is_endless in [false, true] {
        let hub = Hub::builder().backend(MemoryBackend::new(100)).connect().await.unwrap();
        let (token, layer) = shutdown_layer();
        let switch = Arc::default();
        let subscription = hub.topic("a").subscribe(Start::Latest).await.unwrap();
        let items = endless_when(&switch).map(|event| Ok(event.into()));
        let mut body = ours(SseStream::new(stream::select(subscription, items)), &[&layer]);
        while body.poll().is_ready() {}
        let id = hub.topic("b").publish(Event::new("1")).await.unwrap();
        // The node reads the event soon after it was published.
        hub.read(["b"], Start::Earliest).await.unwrap().next().await.unwrap().unwrap();
        switch.store(is_endless, Ordering::Relaxed);
        token.cancel();
        let rest = rest(&mut body);
        assert_eq!(rest.contains(&format!("event: hub-cursor\nid: {id}\n")), !is_endless, "{rest}");
        assert!(rest.ends_with("\nretry: 1000\n"));
    }
}
