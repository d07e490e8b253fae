//! Topics and their subscribers: the events that arrive, their form, and the reports.

use futures_util::{FutureExt, StreamExt};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use support::whatwg::{self, Message};
use tokio_stream::Stream;
use tokio_test::{assert_pending, assert_ready, task};
use tower_sse::{
    EncodedEvents, Event, EventId, EventName, SseStream,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Start, Subscription, SubscriptionError, Topic},
};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(topic: &Topic, data: &str) -> EventId {
    now(topic.publish(Event::new(data))).unwrap()
}

fn subscribe(topic: &Topic, start: impl Into<Start>) -> task::Spawn<Subscription> {
    task::spawn(now(topic.subscribe(start)).unwrap())
}

/// Returns the next item, which is ready.
#[track_caller]
fn next(subscription: &mut task::Spawn<Subscription>) -> EncodedEvents {
    assert_ready!(subscription.poll_next()).expect("it has not ended").unwrap()
}

fn text(events: &EncodedEvents) -> &str {
    std::str::from_utf8(events.as_bytes()).unwrap()
}

#[test]
fn subscription_is_woken_for_published_event() {
    let topic = Hub::new().topic("a");
    let mut subscription = subscribe(&topic, Start::Latest);
    assert_pending!(subscription.poll_next());
    let id = publish(&topic, "one");
    assert!(subscription.is_woken());
    let events = next(&mut subscription);
    assert_eq!(text(&events), format!("id: {id}\ndata: one\n\n"));
    assert_eq!(events.count(), 1);
    assert_eq!(subscription.cursor(), id);
    assert_pending!(subscription.poll_next());

    now(topic.finish()).unwrap();
    assert!(subscription.is_woken());
    assert_eq!(assert_ready!(subscription.poll_next()), None);
    assert_eq!(assert_ready!(subscription.poll_next()), None, "it stays at its end");
}

#[test]
fn event_keeps_fields_and_gets_hub_id() {
    let topic = Hub::new().topic("a");
    let mut subscription = subscribe(&topic, Start::Latest);
    let name = EventName::from_static("name");
    for (event, expected) in [
        (Event::new("two\nlines").event(name.clone()).id("mine"), "event: name\ndata: two\ndata: lines\n\n"),
        (Event::default().event(name), "event: name\ndata: \n\n"),
        (Event::default().comment("only"), ": only\n\n"),
        (Event::default(), "\n"),
    ] {
        let id = now(topic.publish(event)).unwrap();
        assert_eq!(text(&next(&mut subscription)), format!("id: {id}\n{expected}"));
    }
}

#[test]
fn ids_rise_over_all_topics_of_a_hub() {
    let hub = Hub::new();
    let ids: Vec<_> = ["a", "b", "a", "c"].map(|name| publish(&hub.topic(name), "")).into();
    let number = |id: &EventId| id.as_str().split_once('-').unwrap().1.parse::<u64>().unwrap();
    assert_eq!(ids.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn topics_are_merged_in_publish_order() {
    let hub = Hub::new();
    let mut expected = Vec::new();
    for n in 0..2000_u32 {
        let name = ["a", "b", "c"][(n.wrapping_mul(2_654_435_761) >> 29) as usize % 3];
        now(hub.topic(name).publish(Event::display(n))).unwrap();
        if name != "c" {
            expected.push(n.to_string());
        }
    }
    let mut subscription = task::spawn(now(hub.subscribe(["b", "a", "b"], Start::Earliest)).unwrap());
    let mut got = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        got.extend(whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data));
    }
    assert_eq!(got, expected);

    publish(&hub.topic("c"), "not for it");
    assert!(!subscription.is_woken());
    publish(&hub.topic("a"), "for it");
    assert!(subscription.is_woken());
    assert!(text(&next(&mut subscription)).ends_with("data: for it\n\n"));
    now(hub.topic("a").finish()).unwrap();
    assert_pending!(subscription.poll_next());
    now(hub.topic("b").finish()).unwrap();
    assert_eq!(assert_ready!(subscription.poll_next()), None);
}

#[test]
fn publish_all_is_one_item_and_wake_up() {
    let topic = Hub::new().topic("a");
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut subscription = now(topic.subscribe(Start::Latest)).unwrap();
    let mut poll = || Pin::new(&mut subscription).poll_next(&mut Context::from_waker(&waker));
    assert_pending!(poll());
    let last = now(topic.publish_all((0..25).map(Event::display))).unwrap().unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    let events = assert_ready!(poll()).unwrap().unwrap();
    assert_eq!(events.count(), 25);
    assert!(text(&events).ends_with(&format!("id: {last}\ndata: 24\n\n")));
    assert_eq!(now(topic.publish_all([])).unwrap(), None);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn waiter_is_woken_once_before_it_reads() {
    let hub = Hub::new();
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut waiting: Vec<_> = (0..100).map(|_| now(hub.subscribe(["a", "b"], Start::Latest)).unwrap()).collect();
    for subscription in &mut waiting {
        assert_pending!(Pin::new(subscription).poll_next(&mut Context::from_waker(&waker)));
    }
    for _ in 0..10 {
        publish(&hub.topic("a"), "");
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 100);
}

#[test]
fn the_waker_that_polled_last_is_woken() {
    let hub = Hub::new();
    for topics in [&["a"][..], &["a", "b"]] {
        let mut subscription = now(hub.subscribe(topics, Start::Latest)).unwrap();
        let counts: [_; 2] = std::array::from_fn(|_| Arc::new(Count::default()));
        for count in &counts {
            let waker = Waker::from(count.clone());
            assert_pending!(Pin::new(&mut subscription).poll_next(&mut Context::from_waker(&waker)));
        }
        publish(&hub.topic("a"), "");
        assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
    }
}

/// Two subscribers at the same cursor share memory: an event is copied once, and not for each of
/// them.
#[test]
fn subscribers_at_same_cursor_share_bytes() {
    let topic = Hub::new().topic("a");
    let mut live: Vec<_> = (0..3).map(|_| subscribe(&topic, Start::Latest)).collect();
    let same = |items: Vec<EncodedEvents>| {
        let pointers: Vec<_> = items.iter().map(|events| events.as_bytes().as_ptr()).collect();
        assert!(pointers.iter().all(|pointer| *pointer == pointers[0]), "{pointers:?}");
    };
    publish(&topic, "alone");
    same(live.iter_mut().map(next).collect());
    for n in 0..25 {
        publish(&topic, &n.to_string());
    }
    let bursts: Vec<_> = live.iter_mut().map(next).collect();
    assert_eq!(bursts[0].count(), 25);
    same(bursts);
    publish(&topic, &"large".repeat(2000));
    same(live.iter_mut().map(next).collect());
}

#[test]
fn history_is_large_pieces_without_copy() {
    let topic = Hub::new().topic("a");
    for n in 0..5000 {
        publish(&topic, &format!("{n:0>100}"));
    }
    let pieces = || {
        let mut subscription = subscribe(&topic, Start::Earliest);
        let mut pieces = Vec::new();
        while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
            pieces.push(events);
        }
        pieces
    };
    let (one, other) = (pieces(), pieces());
    assert_eq!(one.iter().map(EncodedEvents::count).sum::<usize>(), 5000);
    assert!(one.len() < 50, "{} pieces", one.len());
    let pointers = |pieces: &[EncodedEvents]| pieces.iter().map(|piece| piece.as_bytes().as_ptr()).collect::<Vec<_>>();
    assert_eq!(pointers(&one), pointers(&other));
}

#[test]
fn newest_event_is_retained_even_if_too_large() {
    for (max_events, max_bytes) in [(0, 1 << 20), (10, 0)] {
        let topic = Hub::builder().max_events(max_events).max_bytes(max_bytes).build().topic("a");
        let mut subscription = subscribe(&topic, Start::Latest);
        for data in ["one", "two", &"three".repeat(5000)] {
            publish(&topic, data);
            assert!(text(&next(&mut subscription)).ends_with(&format!("data: {data}\n\n")));
        }
        assert_eq!(subscription.gap(), None);
    }
}

fn messages(subscription: &mut task::Spawn<Subscription>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        messages.extend(whatwg::parse(events.as_bytes()).messages);
    }
    messages
}

#[test]
fn slow_subscriber_gets_gap_then_oldest_retained_event() {
    let hub = Hub::builder().max_events(3).build();
    let topic = hub.topic("a");
    let mut subscription = subscribe(&topic, Start::Latest);
    let seen = publish(&topic, "1");
    next(&mut subscription);
    for data in ["2", "3", "4", "5"] {
        publish(&topic, data);
    }
    let messages = messages(&mut subscription);
    assert_eq!(messages[0].r#type, "gap");
    let data: Vec<_> = messages[1..].iter().map(|message| &*message.data).collect();
    assert_eq!(data, ["3", "4", "5"]);
    let gap = subscription.gap().expect("a handler that reads by itself is told, too");
    assert_eq!((gap.reason(), gap.requested()), (GapReason::Lagged, &seen));
    assert_eq!(gap.resumed().map(EventId::as_str), Some(&*messages[1].last_event_id));
    assert_eq!(hub.stats().gaps, 1);
}

/// The last event of a stream says that no more events follow. A subscription that ends early must
/// not send it.
#[tokio::test(start_paused = true)]
async fn disconnected_slow_subscriber_resumes_where_it_was() {
    let hub = Hub::builder().max_events(3).lag_policy(LagPolicy::Disconnect).build();
    let topic = hub.topic("a");
    let stream = SseStream::new(topic.subscribe(Start::Latest).await.unwrap()).end_with(Event::new("no more"));
    let seen = Arc::new(Mutex::new(None));
    let stream = stream.on_error({
        let seen = seen.clone();
        move |error| {
            *seen.lock().unwrap() = error.downcast_ref::<SubscriptionError>().copied();
            None
        }
    });
    let mut body = task::spawn(stream.into_http_response().into_body());
    let mut frame = move || body.enter(|cx, body| body.poll_frame(cx));
    assert_ready!(frame()).unwrap().unwrap();
    let last = publish(&topic, "1");
    let first = assert_ready!(frame()).unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, format!("id: {last}\ndata: 1\n\n"));
    for data in ["2", "3", "4", "5"] {
        publish(&topic, data);
    }
    assert_pending!(frame());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let error = assert_ready!(frame()).unwrap().unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&SubscriptionError::Lagged));
    assert_eq!(*seen.lock().unwrap(), Some(SubscriptionError::Lagged));
    assert_eq!(topic.subscribers(), 0);

    let back = topic.subscribe(last).await.unwrap();
    assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    // The setting of the handler has precedence over the setting of the hub.
    let mut told = task::spawn(back.lag_policy(LagPolicy::Gap));
    for data in ["6", "7", "8"] {
        publish(&topic, data);
    }
    let types: Vec<_> = messages(&mut told).into_iter().map(|message| message.r#type).collect();
    assert_eq!(types, ["gap", "gap", "message", "message", "message"]);
}

#[tokio::test(start_paused = true)]
async fn lagged_error_survives_joined_events() {
    let hub = Hub::builder().max_events(1).lag_policy(LagPolicy::Disconnect).build();
    let subscription = now(hub.topic("a").subscribe(Start::Latest)).unwrap();
    publish(&hub.topic("a"), "1");
    publish(&hub.topic("a"), "2");
    let joined = subscription.map(|events| [events].into_iter().collect::<Result<EncodedEvents, _>>());
    let body = SseStream::new(joined).end_with(Event::new("no more")).into_http_response().into_body();
    let mut body = task::spawn(body);
    let mut text = Vec::new();
    for _ in 0..10 {
        match body.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(Some(Ok(frame))) => text.extend(frame.into_data().unwrap()),
            Poll::Ready(Some(Err(_))) => return,
            Poll::Ready(None) => panic!("a clean end: {:?}", String::from_utf8(text)),
            Poll::Pending => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    }
}

/// A `204` would keep the client from events that it has not received.
#[test]
fn subscription_that_failed_early_is_not_204() {
    let topic = Hub::builder().max_events(1).lag_policy(LagPolicy::Disconnect).build().topic("a");
    let mut subscription = subscribe(&topic, Start::Latest);
    publish(&topic, "1");
    publish(&topic, "2");
    assert_eq!(assert_ready!(subscription.poll_next()), Some(Err(SubscriptionError::Lagged)));
    assert_eq!(assert_ready!(subscription.poll_next()), None);
    assert!(!subscription.is_finished());
    assert_eq!(SseStream::new(subscription.into_inner()).into_http_response().status(), 200);
}

#[test]
fn snapshot_after_lag_does_not_move_back() {
    let hub = Hub::builder().max_events(3).build();
    let mut subscription = subscribe(&hub.topic("a"), Start::Latest);
    for n in 0..10 {
        publish(&hub.topic("a"), &n.to_string());
    }
    assert_eq!(messages(&mut subscription).len(), 4);
    let before = subscription.cursor();
    let again = subscription.into_inner().begin_with(Event::new("state"));
    assert_eq!(again.cursor(), before);
    let mut again = task::spawn(again);
    assert_eq!(messages(&mut again).len(), 1);
}

#[test]
fn snapshot_comes_first_with_id_of_its_state() {
    let topic = Hub::new().topic("a");
    let seen = publish(&topic, "1");
    let subscription = now(topic.subscribe(Start::Latest)).unwrap();
    let begins = subscription.begin_with(Event::new("1").event("state").id("made up"));
    publish(&topic, "2");
    let mut subscription = task::spawn(begins);
    let got = messages(&mut subscription);
    assert_eq!((&*got[0].r#type, &*got[0].data, &*got[0].last_event_id), ("state", "1", seen.as_str()));
    assert_eq!(got[1].data, "2");
    assert_eq!(got.len(), 2);
    // A client that reconnects with the id of the snapshot gets the rest.
    assert_eq!(messages(&mut subscribe(&topic, seen)).len(), 1);
}

#[test]
fn only_last_event_of_a_snapshot_has_an_id() {
    let topic = Hub::new().topic("a");
    let seen = publish(&topic, "1");
    let rows = ["one", "two", "three"].map(|row| Event::new(row).event("row").id("made up"));
    let begins = now(topic.subscribe(Start::Latest)).unwrap().begin_with(rows);
    publish(&topic, "2");
    let mut subscription = task::spawn(begins);
    let snapshot = next(&mut subscription);
    let rows = "event: row\ndata: one\n\nevent: row\ndata: two\n\n";
    assert_eq!(text(&snapshot), format!("{rows}id: {seen}\nevent: row\ndata: three\n\n"));
    assert_eq!(snapshot.count(), 3);
    assert_eq!(messages(&mut subscription)[0].data, "2");
}

#[test]
fn empty_snapshot_replaces_gap_by_cursor() {
    let topic = Hub::new().topic("a");
    let newest = publish(&topic, "1");
    let subscription = now(topic.subscribe(EventId::from_static("lost"))).unwrap().begin_with([]);
    now(topic.finish()).unwrap();
    let body = SseStream::new(subscription.begin_with_cursor()).into_http_response().into_body();
    let bytes = now(body.collect()).unwrap().to_bytes();
    let got = whatwg::parse(&bytes).messages;
    assert_eq!(got.len(), 1, "neither the gap nor a retained event");
    assert_eq!((&*got[0].r#type, &*got[0].last_event_id), ("hub-cursor", newest.as_str()));
}

#[test]
fn snapshot_replaces_gap_and_retained_events() {
    let topic = Hub::new().topic("a");
    let newest = publish(&topic, "1");
    let subscription = now(topic.subscribe(EventId::from_static("lost"))).unwrap();
    assert!(subscription.gap().is_some() && !subscription.is_resumed());
    let mut subscription = task::spawn(subscription.begin_with(Event::new("state")));
    publish(&topic, "2");
    let got = messages(&mut subscription);
    assert_eq!(got.iter().map(|message| &*message.data).collect::<Vec<_>>(), ["state", "2"]);
    assert_eq!(got[0].last_event_id, newest.as_str());
}

#[test]
fn snapshot_with_id_is_followed_by_later_events() {
    let topic = Hub::new().topic("a");
    let (as_of, _) = (publish(&topic, "1"), publish(&topic, "2"));
    let subscription = now(topic.subscribe(as_of.clone())).unwrap();
    let mut subscription = task::spawn(subscription.begin_with(Event::new("state")));
    let got = messages(&mut subscription);
    assert_eq!(got.iter().map(|message| &*message.data).collect::<Vec<_>>(), ["state", "2"]);
    assert_eq!(got[0].last_event_id, as_of.as_str());
}

#[test]
fn snapshot_of_finished_topic_precedes_end() {
    let topic = Hub::new().topic("a");
    now(topic.finish()).unwrap();
    let subscription = now(topic.subscribe(Start::Latest)).unwrap().begin_with(Event::new("state"));
    assert!(!subscription.is_finished());
    let stream = SseStream::new(subscription);
    assert_eq!(stream.into_http_response().status(), 200);
}

#[test]
fn latest_only_client_gets_newest_without_gap() {
    let hub = Hub::new();
    let (said, here) = (hub.topic("said"), hub.topic("here").latest_only());
    let mut slow = task::spawn(now(hub.subscribe(["said", "here"], Start::Latest)).unwrap());
    assert_pending!(slow.poll_next());
    publish(&here, "1");
    publish(&said, "hello");
    let last = publish(&here, "2");
    publish(&said, "hi");
    publish(&here, "3");
    let data = |subscription: &mut task::Spawn<Subscription>| {
        messages(subscription).into_iter().map(|message| message.data).collect::<Vec<_>>()
    };
    assert_eq!(data(&mut slow), ["hello", "hi", "3"]);
    for start in [Start::Earliest, Start::After(EventId::from_static("lost"))] {
        let mut comes = task::spawn(now(hub.subscribe(["said", "here"], start)).unwrap());
        assert_eq!(data(&mut comes).split_off(usize::from(comes.gap().is_some())), ["hello", "hi", "3"]);
    }
    let mut back = task::spawn(now(hub.subscribe(["said", "here"], last)).unwrap());
    assert!(back.is_resumed());
    assert_eq!(data(&mut back), ["hi", "3"]);
    assert_eq!((hub.stats().events, hub.stats().gaps), (3, 1));
}

#[test]
fn replaced_state_is_not_read_from_cache() {
    let hub = Hub::new();
    let (said, here) = (hub.topic("said"), hub.topic("here").latest_only());
    let mut clients = [(); 2].map(|()| task::spawn(now(hub.subscribe(["said", "here"], Start::Latest)).unwrap()));
    publish(&said, "hello");
    publish(&here, "1");
    for client in &mut clients {
        assert!(text(&next(client)).ends_with("data: hello\n\n"));
    }
    assert!(text(&next(&mut clients[0])).ends_with("data: 1\n\n"));
    publish(&said, "hi");
    let last = publish(&here, "2");
    let [_, late] = &mut clients;
    // At the place of the state that it replaces, whose id it has.
    assert_eq!(messages(late).into_iter().map(|message| message.data).collect::<Vec<_>>(), ["2", "hi", ""]);
    // A last item moves the cursor to the end.
    assert_eq!(late.cursor(), last);
}

#[test]
fn stream_of_subscription_can_begin_with_cursor() {
    let topic = Hub::new().topic("a");
    let id = publish(&topic, "1");
    // In some browsers an id counts only with data.
    let expected = format!("event: hub-cursor\nid: {id}\ndata: \n\n");
    for start in [Start::from(tower_sse::LastEventId::default()), Start::from(id.clone())] {
        let mut subscription = task::spawn(now(topic.subscribe(start)).unwrap().begin_with_cursor());
        let first = next(&mut subscription);
        assert_eq!((text(&first), first.count()), (&*expected, 0));
        assert_pending!(subscription.poll_next());
    }
    // A snapshot and a gap have their own ids.
    let snapshot = now(topic.subscribe(Start::Latest)).unwrap().begin_with(Event::new("state")).begin_with_cursor();
    assert_eq!(messages(&mut task::spawn(snapshot)).len(), 1);
    let gap = now(topic.subscribe(EventId::from_static("lost"))).unwrap().begin_with_cursor();
    assert_eq!(messages(&mut task::spawn(gap))[0].r#type, "gap");
}

#[test]
fn each_client_gets_hub_cursor_unless_disabled() {
    let topic = Hub::new().topic("a");
    let id = publish(&topic, "1");
    let first_bytes = |subscription: Subscription| {
        let body = SseStream::new(subscription).without_heartbeat().into_http_response().into_body();
        let mut body = task::spawn(body);
        match body.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(frame) => String::from_utf8(frame.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap(),
            Poll::Pending => String::new(),
        }
    };
    let subscribe = |start: Start| now(topic.subscribe(start)).unwrap();
    let place = format!("event: hub-cursor\nid: {id}\ndata: \n\n");
    assert_eq!(first_bytes(subscribe(Start::Latest)), place);
    assert_eq!(first_bytes(subscribe(Start::After(EventId::new("").unwrap()))), place);
    assert_eq!(first_bytes(subscribe(Start::After(id.clone()))), place, "no client gets an unnamed message");
    let from_the_oldest = first_bytes(subscribe(Start::Earliest));
    assert!(from_the_oldest.starts_with("event: hub-cursor\n"), "{from_the_oldest:?}");
    assert!(from_the_oldest.ends_with("data: 1\n\n"), "{from_the_oldest:?}");

    for start in [Start::Latest, Start::After(id.clone())] {
        assert_eq!(first_bytes(subscribe(start).without_control_events()), "");
    }
    assert_eq!(first_bytes(subscribe(Start::Earliest).without_control_events()), format!("id: {id}\ndata: 1\n\n"));
    now(topic.finish()).unwrap();
    let response = SseStream::new(subscribe(Start::After(id)).without_control_events()).into_http_response();
    assert_eq!(response.status(), 204, "it stays a response of a subscription");
}

/// Some clients read `retry` only as a part of an event with data.
#[test]
fn retry_precedes_cursor_of_new_client() {
    let topic = Hub::new().topic("a");
    let new = now(topic.subscribe(tower_sse::LastEventId::default())).unwrap();
    let place = new.cursor();
    let stream = SseStream::new(new).retry(Duration::from_secs(1));
    let mut body = task::spawn(stream.without_heartbeat().into_http_response().into_body());
    let first = assert_ready!(body.enter(|cx, body| body.poll_frame(cx))).unwrap().unwrap().into_data().unwrap();
    let wire = std::str::from_utf8(&first).unwrap();
    assert_eq!(wire, format!("retry: 1000\nevent: hub-cursor\nid: {place}\ndata: \n\n"));
}

#[test]
fn subscribers_count_until_dropped_or_ended() {
    let hub = Hub::new();
    let (a, b) = (hub.topic("a"), hub.topic("b"));
    let count = || (a.subscribers(), b.subscribers(), hub.stats().subscriptions);
    assert_eq!(count(), (0, 0, 0));
    let never_polled = now(a.subscribe(Start::Latest)).unwrap();
    let body = SseStream::new(now(hub.subscribe(["a", "b", "a"], Start::Latest)).unwrap()).into_http_response();
    let mut at_its_end = subscribe(&a, Start::Latest);
    assert_eq!(count(), (3, 1, 3));
    drop(body);
    assert_eq!(count(), (2, 0, 2));
    drop(never_polled);
    assert_eq!(count(), (1, 0, 1));
    now(a.finish()).unwrap();
    assert_eq!(assert_ready!(at_its_end.poll_next()), None);
    assert_eq!(count(), (0, 0, 0));
}

#[test]
fn a_topic_that_is_finished_takes_no_more() {
    let topic = Hub::new().topic("a");
    publish(&topic, "1");
    now(topic.finish()).unwrap();
    now(topic.finish()).unwrap();
    assert_eq!(now(topic.publish(Event::new("2"))).unwrap_err().kind(), ErrorKind::Finished);
    assert_eq!(now(topic.publish_all([Event::new("2")])).unwrap_err().kind(), ErrorKind::Finished);
    assert_eq!(messages(&mut subscribe(&topic, Start::Earliest)).len(), 1);
}

#[test]
fn topic_over_limit_is_error_without_trace() {
    let hub = Hub::builder().max_topics(2).build();
    publish(&hub.topic("a"), "");
    let error = now(hub.subscribe(["a", "b", "c"], Start::Latest)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyTopics);
    assert!(error.to_string().contains('"') && error.to_string().contains("max_topics"), "{error}");
    assert_eq!(hub.stats().topics, 1);

    let b = now(hub.subscribe(["a", "b", "b"], Start::Latest)).unwrap();
    assert_eq!(now(hub.topic("c").publish(Event::new(""))).unwrap_err().kind(), ErrorKind::TooManyTopics);
    assert_eq!(now(hub.topic("c").finish()).unwrap_err().kind(), ErrorKind::TooManyTopics);
    drop(b);
    publish(&hub.topic("c"), "there is room again");
}

#[test]
fn empty_topic_is_dropped_with_last_subscriber() {
    let hub = Hub::new();
    let topic = hub.topic("a");
    assert!(!topic.exists());
    let (one, other) = (subscribe(&topic, Start::Latest), subscribe(&topic, Start::Latest));
    assert_eq!(hub.stats().topics, 1);
    drop(one);
    assert!(topic.exists());
    drop(other);
    assert!(!topic.exists());
    assert_eq!(hub.stats().topics, 0);
}

#[test]
fn a_subscription_to_no_topic_is_an_error() {
    let error = now(Hub::new().subscribe([""; 0], Start::Latest)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoTopics);
    assert_eq!(error.status(), 400);
}

#[test]
fn any_text_is_the_name_of_a_topic() {
    let hub = Hub::new();
    for name in ["", " ", "a/b", "\r\n\0", "日本", &"x".repeat(10_000)] {
        let mut subscription = subscribe(&hub.topic(name), Start::Latest);
        publish(&hub.topic(String::from(name)), "1");
        assert_eq!(next(&mut subscription).count(), 1);
    }
}

/// A waker can be the last owner of a task, and the task of a subscription. No lock of the hub is
/// held when it is dropped.
#[test]
fn hub_drops_waker_that_owns_a_subscription() {
    struct Holds(Mutex<Option<Subscription>>);
    impl Wake for Holds {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let topic = Hub::new().topic("a");
    let holds = || Waker::from(Arc::new(Holds(Mutex::new(Some(now(topic.subscribe(Start::Latest)).unwrap())))));
    let mut subscription = now(topic.subscribe(Start::Latest)).unwrap();
    let poll = |subscription: &mut Subscription, waker: &Waker| {
        assert_pending!(Pin::new(subscription).poll_next(&mut Context::from_waker(waker)));
    };
    // Replaced.
    poll(&mut subscription, &holds());
    poll(&mut subscription, Waker::noop());
    assert_eq!(topic.subscribers(), 1);
    // Woken.
    poll(&mut subscription, &holds());
    publish(&topic, "1");
    assert_ready!(Pin::new(&mut subscription).poll_next(&mut Context::from_waker(Waker::noop())));
    assert_eq!(topic.subscribers(), 1);
    // Dropped with the subscription.
    poll(&mut subscription, &holds());
    drop(subscription);
    assert_eq!(topic.subscribers(), 0);
}

#[test]
fn hub_shutdown_ends_streams_with_reconnect_delay() {
    let hub = Hub::new();
    let topic = hub.topic("a");
    let body = || {
        let stream = SseStream::new(now(topic.subscribe(Start::Latest)).unwrap());
        task::spawn(stream.without_heartbeat().end_with(Event::new("no more")).into_http_response().into_body())
    };
    let (mut idle, mut busy) = (body(), body());
    let frame = |body: &mut task::Spawn<tower_sse::SseBody<Subscription>>| body.enter(|cx, body| body.poll_frame(cx));
    assert!(frame(&mut idle).is_ready() && frame(&mut busy).is_ready());
    assert_pending!(frame(&mut idle));
    publish(&topic, "1");
    assert!(frame(&mut idle).is_ready());
    assert_pending!(frame(&mut idle));
    hub.shutdown();
    hub.shutdown();
    assert!(idle.is_woken());
    for (body, undelivered) in [(&mut idle, &[][..]), (&mut busy, &["1"])] {
        let last = assert_ready!(frame(body)).unwrap().unwrap().into_data().unwrap();
        let source = whatwg::parse(&last);
        let retry: u64 = source.reconnection_time.unwrap().parse().unwrap();
        assert!((1000..6000).contains(&retry), "{last:?}");
        assert_eq!(source.messages.iter().map(|message| &message.data).collect::<Vec<_>>(), undelivered);
        assert!(body.is_end_stream() && assert_ready!(frame(body)).is_none());
    }
    assert_eq!(topic.subscribers(), 0);
    assert_eq!(now(topic.publish(Event::new("late"))).unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(now(topic.publish(Event::new("late"))).unwrap_err().status(), 503);
}

/// No topic wakes the subscription at the shutdown, because it has events of each of them.
#[test]
fn shutdown_ends_busy_subscription_to_several_topics() {
    let hub = Hub::new();
    let topics = ["a", "b"].map(|topic| hub.topic(topic));
    for n in 0..6 {
        publish(&topics[n % 2], &n.to_string());
    }
    let mut subscription = task::spawn(now(hub.subscribe(["a", "b"], Start::Earliest)).unwrap());
    let mut data = Vec::new();
    data.extend(data_of(&next(&mut subscription)));
    assert!(data.len() < 5, "{data:?}");
    hub.shutdown();
    let end = loop {
        match assert_ready!(subscription.poll_next()) {
            Some(Ok(events)) => data.extend(data_of(&events)),
            end => break end,
        }
    };
    assert_eq!(data, ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(end, Some(Err(SubscriptionError::Shutdown)));
}

/// An end with an error would make its client reconnect.
#[test]
fn finished_topics_are_finished_after_a_shutdown() {
    for topics in [&["a"][..], &["a", "b"]] {
        let hub = Hub::new();
        let mut subscription = task::spawn(now(hub.subscribe(topics, Start::Latest)).unwrap());
        for topic in topics {
            publish(&hub.topic(*topic), topic);
            now(hub.topic(*topic).finish()).unwrap();
        }
        hub.shutdown();
        for topic in topics {
            assert_eq!(data_of(&next(&mut subscription)), [*topic]);
        }
        assert_eq!(assert_ready!(subscription.poll_next()), None, "{topics:?}");
    }
}

#[test]
fn response_after_hub_shutdown_is_200_with_reconnect_delay() {
    let hub = Hub::builder().max_topics(2).build();
    let (topic, done) = (hub.topic("a"), hub.topic("done"));
    let id = publish(&topic, "1");
    let last = publish(&done, "2");
    now(done.finish()).unwrap();
    hub.shutdown();
    assert_eq!(now(topic.publish(Event::new("late"))).unwrap_err().kind(), ErrorKind::Shutdown);
    let starts =
        [Start::Latest, Start::Earliest, Start::After(id), Start::After(last), Start::After(EventId::from_static("7"))];
    // The hub has no room for the last topic.
    for (topic, start) in
        ["a", "done", "new"].into_iter().flat_map(|topic| starts.iter().map(move |start| (topic, start)))
    {
        let mut subscription = subscribe(&hub.topic(topic), start.clone());
        let is_foreign = matches!(start, Start::After(id) if id.as_bytes() == b"7");
        assert_eq!((subscription.gap().is_some(), subscription.is_finished()), (is_foreign, false));
        if is_foreign {
            assert_eq!(messages_of(&next(&mut subscription)), ["gap"]);
        }
        assert_eq!(assert_ready!(subscription.poll_next()), Some(Err(SubscriptionError::Shutdown)));
        assert_eq!(assert_ready!(subscription.poll_next()), None);

        let response = SseStream::new(now(hub.topic(topic).subscribe(start.clone())).unwrap()).into_http_response();
        assert_eq!(response.status(), 200);
        let mut body = task::spawn(response.into_body());
        let mut bytes = Vec::new();
        while let Some(frame) = assert_ready!(body.enter(|cx, body| body.poll_frame(cx))) {
            bytes.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        let source = whatwg::parse(&bytes);
        assert!(source.reconnection_time.is_some(), "{bytes:?}");
        assert!(source.messages.iter().all(|message| ["hub-cursor", "gap"].contains(&&*message.r#type)), "{bytes:?}");
    }
    assert_eq!((hub.stats().subscriptions, hub.stats().topics), (0, 2));
}

fn messages_of(events: &EncodedEvents) -> Vec<String> {
    whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.r#type).collect()
}

fn data_of(events: &EncodedEvents) -> Vec<String> {
    whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data).collect()
}
