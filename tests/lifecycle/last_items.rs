//! Guarantee: after the flush time of a shutdown, an `SseStream` sends the items that are ready, also
//! those that wait for a linger, and then ends. The tests have no flush time.

use crate::common::{Summaries, channel, endless, ours, shutdown_layer};
use futures_util::{StreamExt, stream};
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

/// The maximum number of last items: 256 polls with 64 items each.
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

/// The polls in which a stream waits to return its error are not polls for last items.
#[tokio::test(start_paused = true)]
async fn reason_of_an_earlier_end_stays() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let mut body = ours(SseStream::new(stream::iter([Ok(Event::new("a")), Err("broken")])), &[&layer]);
    body.assert_data("data: a\n\n");
    token.cancel();
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
