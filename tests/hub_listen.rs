//! `Hub::listen`: decoded events with their topics, for consumers in Rust.

use futures_util::FutureExt;
use std::{task::Poll, time::Duration};
use tokio_stream::StreamExt;
use tokio_test::{assert_pending, assert_ready, assert_ready_eq, task};
use tower_sse::{
    Event, EventId, EventName,
    hub::{
        ErrorKind, GapReason, Hub, Listener, Published, Retention, Start, SubscriptionError, backend::MemoryBackend,
    },
};

type Task = task::Spawn<Listener>;

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    now(hub.topic(topic).publish(Event::new(data))).unwrap()
}

fn listen(hub: &Hub, topics: &[&str], start: impl Into<Start>) -> Task {
    task::spawn(now(hub.listen(topics, start)).unwrap())
}

#[track_caller]
fn next(listener: &mut Task) -> Published {
    assert_ready!(listener.poll_next()).expect("it has not ended").unwrap()
}

/// Returns the topics and the data of the events that can be read now.
fn read(listener: &mut Task) -> Vec<String> {
    let mut read = Vec::new();
    while let Poll::Ready(Some(Ok(published))) = listener.poll_next() {
        read.push(format!("{} {}", published.topic, published.event.event_data().unwrap()));
    }
    read
}

/// The newest state takes the place of the replaced one, and comes again after its id.
#[test]
fn newest_state_has_the_id_of_the_replaced_state() {
    let hub = Hub::new();
    let publish_state = |data| now(hub.topic("state").latest_only().publish(Event::new(data))).unwrap();
    let mut listener = listen(&hub, &["a", "state"], Start::Latest);
    publish(&hub, "a", "1");
    let replaced = publish_state("old");
    assert_eq!(&*next(&mut listener).topic, "a");
    publish(&hub, "a", "2");
    let newest = publish_state("new");
    let published = next(&mut listener);
    assert_eq!((&*published.topic, &published.id), ("state", &replaced));
    assert_eq!(published.event, Event::new("new"));
    assert_eq!(read(&mut listener), ["a 2"]);
    assert_eq!(listener.cursor(), newest);
    assert_eq!(read(&mut listen(&hub, &["a", "state"], replaced)), ["a 2", "state new"]);
}

#[test]
fn listener_yields_events_as_published() {
    let hub = Hub::new();
    let mut listener = listen(&hub, &["a"], Start::Latest);
    assert_pending!(listener.poll_next());
    let name = EventName::from_static("name");
    for event in [
        Event::new("two\n\nlines").event(name.clone()),
        Event::new("id: 7\ndata: no"),
        Event::default().event(name.clone()).retry(Duration::from_secs(1)).comment("c"),
        Event::default(),
        Event::new("x".repeat(10_000)),
    ] {
        let id = now(hub.topic("a").publish(event.clone().id("mine"))).unwrap();
        assert!(listener.is_woken());
        let published = next(&mut listener);
        assert_eq!((&*published.topic, &published.id), ("a", &id));
        assert_eq!((published.event.event_id(), &published.event), (None, &event));
        // The setters replace the fields.
        let other = published.event.event("other").data("d").id(1);
        assert_eq!(
            (other.name(), other.event_data().as_deref(), other.event_id()),
            (Some("other"), Some("d"), Some("1"))
        );
        assert_eq!(other.encode().windows(7).filter(|bytes| bytes == b"event: ").count(), 1);
        assert_pending!(listener.poll_next());
    }
    now(hub.topic("a").finish()).unwrap();
    assert!(listener.is_woken());
    assert_ready_eq!(listener.poll_next(), None);
}

#[test]
fn merged_events_have_their_topics_in_order() {
    let hub = Hub::new();
    let mut expected = Vec::new();
    let topics = ["a", "b", "c"];
    let mut live = listen(&hub, &topics, Start::Latest);
    let mut got = Vec::new();
    for n in 0..500_u32 {
        let topic = topics[(n.wrapping_mul(2_654_435_761) >> 29) as usize % 3];
        publish(&hub, topic, &n.to_string());
        expected.push(format!("{topic} {n}"));
        if n % 50 == 0 {
            got.extend(read(&mut live));
        }
    }
    let mut late = listen(&hub, &topics, Start::Earliest);
    let mut replayed = Vec::new();
    // Other tasks have a turn after 64 events.
    while replayed.len() < 500 {
        let more = read(&mut late);
        assert!(!more.is_empty() && more.len() <= 64);
        replayed.extend(more);
        assert_eq!(late.is_woken(), replayed.len() < 500);
    }
    while got.len() < 500 {
        got.extend(read(&mut live));
    }
    assert_eq!(replayed, expected);
    assert_eq!(got, expected);
}

#[test]
fn cursor_resumes_after_the_last_yielded_event() {
    let hub = Hub::new();
    let ids: Vec<_> = (0..5).map(|n| publish(&hub, if n == 3 { "b" } else { "a" }, &n.to_string())).collect();
    let mut listener = listen(&hub, &["a", "b"], ids[0].clone());
    assert_eq!(listener.cursor(), ids[0]);
    for id in &ids[1..] {
        // All events of one topic are one item of the hub. The cursor moves event by event.
        assert_eq!(&next(&mut listener).id, id);
        assert_eq!(&listener.cursor(), id);
        let rest = read(&mut listen(&hub, &["a", "b"], listener.cursor()));
        assert_eq!(rest.len(), ids.iter().rev().position(|last| last == id).unwrap());
    }
}

#[test]
fn gap_at_the_beginning_is_reported_and_not_yielded() {
    let hub = Hub::builder().max_events(2).build();
    let ids: Vec<_> = (0..4).map(|n| publish(&hub, "a", &n.to_string())).collect();
    let mut listener = listen(&hub, &["a"], ids[0].clone());
    let gap = listener.gap().unwrap();
    assert_eq!((gap.reason(), gap.requested(), gap.resumed()), (GapReason::Evicted, &ids[0], Some(&ids[2])));
    assert_eq!(read(&mut listener), ["a 2", "a 3"]);
    assert!(listen(&hub, &["a"], ids[1].clone()).gap().is_none());
}

#[test]
fn slow_listener_ends_and_listens_again_with_gap() {
    let hub = Hub::builder().max_events(2).build();
    let mut listener = listen(&hub, &["a", "b"], Start::Latest);
    let first = publish(&hub, "a", "0");
    assert_eq!(next(&mut listener).id, first);
    (1..5).for_each(|n| drop(publish(&hub, "a", &n.to_string())));
    assert_ready_eq!(listener.poll_next(), Some(Err(SubscriptionError::Lagged)));
    assert_ready_eq!(listener.poll_next(), None);
    assert_eq!(listener.cursor(), first);
    let mut again = listen(&hub, &["a", "b"], listener.cursor());
    assert_eq!(again.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    assert_eq!(read(&mut again), ["a 3", "a 4"]);
}

#[test]
fn shutdown_ends_listeners() {
    let hub = Hub::new();
    let mut listener = listen(&hub, &["a"], Start::Latest);
    assert_pending!(listener.poll_next());
    assert_eq!((hub.topic("a").subscribers(), hub.stats().subscriptions), (1, 1));
    hub.shutdown();
    assert!(listener.is_woken());
    assert_ready_eq!(listener.poll_next(), Some(Err(SubscriptionError::Shutdown)));
    let mut late = listen(&hub, &["a"], Start::Latest);
    assert_ready_eq!(late.poll_next(), Some(Err(SubscriptionError::Shutdown)));
    drop((listener, late));
    assert_eq!((hub.topic("a").subscribers(), hub.stats().subscriptions), (0, 0));
}

#[test]
fn replaced_state_has_the_id_of_its_place() {
    let hub = Hub::new();
    let state = hub.topic("state").latest_only();
    let mut listener = listen(&hub, &["log", "state"], Start::Latest);
    publish(&hub, "log", "hello");
    let place = now(state.publish(Event::new("1"))).unwrap();
    assert_eq!(&*next(&mut listener).topic, "log");
    publish(&hub, "log", "hi");
    let last = now(state.publish(Event::new("2"))).unwrap();
    let published = next(&mut listener);
    assert_eq!((&*published.topic, published.event, &published.id), ("state", Event::new("2"), &place));
    assert_eq!(listener.cursor(), place);
    assert_eq!(read(&mut listener), ["log hi"]);
    assert_eq!(listener.cursor(), last, "no event follows, so the cursor moves to the end");
}

#[tokio::test(start_paused = true)]
async fn linger_of_the_hub_does_not_delay_a_listener() {
    let hub = Hub::builder().linger(Duration::from_secs(10)).build();
    let of_hub = hub.listen(["a"], Start::Latest).await.unwrap();
    let of_topic = hub.topic("a").listen(Start::Latest).await.unwrap();
    let mut listeners = [of_hub, of_topic];
    let begun = tokio::time::Instant::now();
    for n in 0..3 {
        hub.topic("a").publish(Event::display(n)).await.unwrap();
        for listener in &mut listeners {
            assert_eq!(listener.next().await.unwrap().unwrap().event, Event::display(n));
            assert!(listener.next().now_or_never().is_none());
        }
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// A node that retains one event per topic reads the others from the backend.
#[tokio::test(start_paused = true)]
async fn history_from_a_backend_has_its_topics() {
    let hub = Hub::builder().max_events(1).backend(MemoryBackend::new(3_000)).connect().await.unwrap();
    let topics = ["a", "b", "not mine"];
    let mut ids = Vec::new();
    for n in 0..2_500_usize {
        let topic = topics[n.wrapping_mul(2_654_435_761) / 100 % 3];
        let id = hub.topic(topic).publish(Event::display(n)).await.unwrap();
        ids.push((topic, id, n.to_string()));
    }
    while hub.stats().published < 2_500 {
        tokio::task::yield_now().await;
    }
    let mut listener = hub.listen(["b", "a"], Start::Earliest).await.unwrap();
    for (topic, id, data) in ids.iter().filter(|(topic, ..)| *topic != "not mine") {
        let published = listener.next().await.unwrap().unwrap();
        assert_eq!((&*published.topic, &published.id), (*topic, id));
        assert_eq!(published.event.event_data().as_deref(), Some(&**data));
        assert!(listener.gap().is_none());
    }
    hub.topic("a").publish(Event::new("live")).await.unwrap();
    let live = listener.next().await.unwrap().unwrap();
    assert_eq!((&*live.topic, live.event), ("a", Event::new("live")));

    let again = hub.listen(["a", "b"], ids[7].1.clone()).await.unwrap();
    assert!(again.gap().is_none());
    for n in 0..1_000 {
        hub.topic("c").publish(Event::display(n)).await.unwrap();
    }
    let late = hub.listen(["a", "b"], ids[7].1.clone()).await.unwrap();
    assert_eq!(late.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
}

#[test]
fn read_ends_after_present_events() {
    let hub = Hub::new();
    ["1", "2"].iter().for_each(|data| drop(publish(&hub, "a", data)));
    publish(&hub, "b", "3");
    let mut reading = task::spawn(now(hub.read(["a", "b", "empty"], Start::Earliest)).unwrap());
    assert_eq!(read(&mut reading), ["a 1", "a 2", "b 3"]);
    publish(&hub, "a", "later");
    assert!(assert_ready!(reading.poll_next()).is_none(), "it has ended");
    let cursor = reading.enter(|_, reading| reading.cursor());
    assert_eq!(read(&mut listen(&hub, &["a"], cursor)), ["a later"]);
}

#[test]
fn topic_reads_with_the_retention_of_its_handle() {
    let hub = Hub::new();
    ["1", "2", "3"].iter().for_each(|data| drop(publish(&hub, "a", data)));
    let all = now(hub.topic("a").read(Start::Earliest)).unwrap();
    assert_eq!(read(&mut task::spawn(all)), ["a 1", "a 2", "a 3"]);
    let topic = hub.topic("a").retention(Retention::new().max_events(2));
    let mut reading = task::spawn(now(topic.read(Start::Earliest)).unwrap());
    assert_eq!(read(&mut reading), ["a 2", "a 3"]);
    publish(&hub, "a", "later");
    assert!(assert_ready!(reading.poll_next()).is_none(), "it has ended");
}

#[test]
fn reserved_topic_cannot_be_listened_to() {
    let topic = Hub::new().topic("tower-sse/a");
    for listener in [now(topic.listen(Start::Latest)), now(topic.read(Start::Latest))] {
        assert_eq!(listener.unwrap_err().kind(), ErrorKind::ReservedTopic);
    }
}

#[test]
fn read_ends_before_later_events_of_another_topic() {
    let hub = Hub::new();
    publish(&hub, "a", "1");
    publish(&hub, "other", "2");
    let mut reading = task::spawn(now(hub.read(["a"], Start::Earliest)).unwrap());
    assert_eq!(read(&mut reading), ["a 1"]);
    assert!(assert_ready!(reading.poll_next()).is_none());
}

/// A topic with a fast publisher would never be read to its end.
#[test]
fn read_of_a_busy_topic_ends() {
    let hub = Hub::new();
    publish(&hub, "a", "0");
    let mut reading = task::spawn(now(hub.read(["a"], Start::Earliest)).unwrap());
    let mut count = 0;
    while let Poll::Ready(Some(Ok(_))) = {
        publish(&hub, "a", "more");
        reading.poll_next()
    } {
        count += 1;
        assert!(count < 100, "it does not end");
    }
    assert!(assert_ready!(reading.poll_next()).is_none());
}

#[test]
fn read_of_empty_topic_or_from_the_end_is_empty() {
    let hub = Hub::new();
    let last = publish(&hub, "a", "1");
    for (topic, start) in [("empty", Start::Earliest), ("a", Start::Latest), ("a", last.into())] {
        let mut reading = task::spawn(now(hub.read([topic], start)).unwrap());
        assert!(assert_ready!(reading.poll_next()).is_none(), "{topic}");
    }
}

#[test]
fn read_after_evicted_events_has_a_gap() {
    let hub = Hub::builder().max_events(2).build();
    let first = publish(&hub, "a", "1");
    ["2", "3", "4"].iter().for_each(|data| drop(publish(&hub, "a", data)));
    let mut reading = task::spawn(now(hub.read(["a"], first)).unwrap());
    assert!(reading.enter(|_, reading| reading.gap().is_some()));
    assert_eq!(read(&mut reading), ["a 3", "a 4"]);
    assert!(assert_ready!(reading.poll_next()).is_none());
}
