//! Replays from the backend next to the memory of the node: ends of topics, and retained states.

use super::{
    PLENTY, data, data_soon,
    faulty::{Faulty, Mode, Shared},
    numbers, publish, read,
    recording::SECOND,
    settle, subscribe, two,
};
use std::{sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    Event, EventId,
    hub::{
        ErrorKind, Gap, Hub, Listener, Start, Subscription, SubscriptionError,
        backend::{Record, RecordKind},
    },
};

/// Fills a log with an end of the topic "a" at position 3, which both nodes then forget.
async fn forgotten_end(shared: &Shared) -> ([Hub; 2], [Faulty; 2], EventId) {
    let (hubs, connections) = two(shared, || Hub::builder().max_age(SECOND * 10)).await;
    let first = publish(&hubs[0], "a", 1).await;
    publish(&hubs[0], "a", 2).await;
    hubs[0].topic("a").finish().await.unwrap();
    for n in 4..11 {
        publish(&hubs[0], "b", n).await;
    }
    sleep(SECOND * 60).await;
    assert_eq!(hubs[0].stats().topics, 0);
    (hubs, connections, first)
}

#[tokio::test(start_paused = true)]
async fn forgotten_end_is_found_pages_before_the_watermark() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].page.store(1, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    assert_eq!(data_soon(&mut both).await, numbers((2..11).filter(|n| *n != 3)));
    let error = hubs[0].topic("a").publish(Event::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Finished);
}

/// Another node publishes before it reads the end, so the topic continues.
#[tokio::test(start_paused = true)]
async fn later_replay_does_not_finish_a_reopened_topic() {
    let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(2)).await;
    let first = publish(&hubs[0], "t", 0).await;
    settle().await;
    connections[1].set(Mode::Lags);
    hubs[0].topic("t").finish().await.unwrap();
    for n in 1..9 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    let mut both = task::spawn(hubs[0].subscribe(["t", "u"], first).await.unwrap());
    data_soon(&mut both).await;
    publish(&hubs[1], "t", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
    for n in 0..5 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    assert_eq!(data_soon(&mut both).await, numbers(0..5));
    publish(&hubs[0], "t", "more").await;
    assert_eq!(data_soon(&mut both).await, ["more"]);
}

/// The client reads the later event from memory. Then the node forgets the event, because the
/// backend has evicted it.
#[tokio::test(start_paused = true)]
async fn replay_after_eviction_does_not_finish_a_reopened_topic() {
    let (hubs, connections) = two(&Shared::new(9), || Hub::builder().max_events(2)).await;
    let first = publish(&hubs[0], "t", 0).await;
    settle().await;
    connections[1].set(Mode::Lags);
    hubs[0].topic("t").finish().await.unwrap();
    for n in 1..8 {
        publish(&hubs[0], "u", n).await;
    }
    settle().await;
    let mut both = task::spawn(hubs[0].subscribe(["t", "u"], first).await.unwrap());
    data_soon(&mut both).await;
    publish(&hubs[1], "t", "again").await;
    publish(&hubs[0], "u", "next").await;
    assert_eq!(data_soon(&mut both).await, ["again", "next"]);
    // The node misses the eviction of these records, and learns of it from the next page.
    connections[0].set(Mode::Lags);
    for n in 0..20 {
        publish(&hubs[1], "u", n).await;
    }
    connections[0].set(Mode::Works);
    data_soon(&mut both).await;
    publish(&hubs[0], "t", "more").await;
    assert_eq!(data_soon(&mut both).await, ["more"]);
}

#[tokio::test(start_paused = true)]
async fn later_page_does_not_finish_a_removed_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].page.store(2, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    hubs[0].topic("a").remove().await.unwrap();
    data_soon(&mut both).await;
    publish(&hubs[0], "a", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
}

#[tokio::test(start_paused = true)]
async fn page_read_before_removal_does_not_finish_the_topic() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, first) = forgotten_end(&shared).await;
    connections[0].delay.store(3_000, Relaxed);
    let mut both = task::spawn(hubs[0].subscribe(["a", "b"], first).await.unwrap());
    // The page arrives, and then the removal.
    sleep(SECOND * 2).await;
    hubs[0].topic("a").remove().await.unwrap();
    connections[0].delay.store(0, Relaxed);
    data_soon(&mut both).await;
    publish(&hubs[0], "a", "again").await;
    assert_eq!(data_soon(&mut both).await, ["again"]);
}

/// A log of ten records, and a node that retains two events of each topic. The states of the topics
/// "here" and "also" are at the positions 2 and 3, which the backend has evicted.
struct EvictedStates {
    hub: Hub,
    /// The ids of the events of the topic "busy": "first" at position 1, and 20 numbers from
    /// position 4 on. The backend retains the last 10 of them.
    busy: Vec<EventId>,
    /// A subscription that has read nothing.
    slow: task::Spawn<Subscription>,
}

const TOPICS: [&str; 3] = ["also", "busy", "here"];

impl EvictedStates {
    async fn new() -> Self {
        let builder = Hub::builder().max_events(2).backend(Shared::new(10).connect());
        let hub = builder.connect().await.unwrap();
        let slow = task::spawn(hub.subscribe(TOPICS, Start::Latest).await.unwrap());
        let mut busy = vec![publish(&hub, "busy", "first").await];
        for topic in ["here", "also"] {
            hub.topic(topic).latest_only().publish(Event::new(topic)).await.unwrap();
        }
        for n in 0..20 {
            busy.push(publish(&hub, "busy", n).await);
            settle().await;
        }
        Self { hub, busy, slow }
    }

    async fn subscribe(&self, start: impl Into<Start>) -> task::Spawn<Subscription> {
        task::spawn(self.hub.subscribe(TOPICS, start).await.unwrap())
    }
}

fn after(first: &[&str], rest: impl IntoIterator<Item = usize>) -> Vec<String> {
    first.iter().map(ToString::to_string).chain(numbers(rest)).collect()
}

#[tokio::test(start_paused = true)]
async fn state_evicted_by_backend_precedes_the_replay() {
    let log = EvictedStates::new().await;
    let mut earliest = log.subscribe(Start::Earliest).await;
    assert_eq!(data_soon(&mut earliest).await, after(&["here", "also"], 10..20));
    let starts = [
        ("here", Start::Earliest),
        ("busy", Start::After(log.busy[15].clone())),
        ("also", Start::After(log.busy[15].clone())),
    ];
    let mut page = task::spawn(log.hub.subscribe(starts, None).await.unwrap());
    assert_eq!(data_soon(&mut page).await, after(&["here"], 15..20));
    // Nothing is repeated, and a newer state follows.
    log.hub.topic("here").latest_only().publish(Event::new("there")).await.unwrap();
    for client in [&mut earliest, &mut page] {
        assert_eq!(data_soon(client).await, ["there"]);
    }
    // The client has both states.
    let mut back = log.subscribe(log.busy[15].clone()).await;
    assert!(back.is_resumed());
    assert_eq!(data_soon(&mut back).await, [numbers(15..20), vec!["there".to_owned()]].concat());
}

#[tokio::test(start_paused = true)]
async fn state_evicted_by_backend_follows_the_gap() {
    let mut log = EvictedStates::new().await;
    assert_eq!(data_soon(&mut log.slow).await, after(&["lagged", "here", "also"], 10..20));
    let expected = after(&["evicted", "here", "also"], 10..20);
    let mut back = log.subscribe(log.busy[0].clone()).await;
    let gap = back.gap().unwrap();
    let next = gap.resumed().cloned();
    assert_eq!(data_soon(&mut back).await, expected);
    // The connection ends after the gap, or after any event of the replay.
    let mut messages = Vec::new();
    let mut back = log.subscribe(log.busy[0].clone()).await;
    for _ in 0..5 {
        settle().await;
        messages.extend(read(&mut back).0);
    }
    messages.retain(|message| message.r#type != "hub-cursor");
    assert_eq!(next, Some(EventId::new(&*messages[1].last_event_id).unwrap()));
    for (received, message) in (1..).zip(&messages) {
        let mut resumed = log.subscribe(EventId::new(&*message.last_event_id).unwrap()).await;
        let has_gap = received < 4;
        assert_eq!(resumed.gap().is_some(), has_gap, "after {received} messages");
        let rest = data_soon(&mut resumed).await;
        assert_eq!(rest[usize::from(has_gap)..], expected[received..], "after {received} messages");
    }
}

/// The page of the replay is dropped, because it may contain removed events.
#[tokio::test(start_paused = true)]
async fn removal_during_replay_skips_no_state() {
    let log = EvictedStates::new().await;
    let mut earliest = log.subscribe(Start::Earliest).await;
    log.hub.topic("busy").remove().await.unwrap();
    let mut received = data_soon(&mut earliest).await;
    received.retain(|data| data != "lagged");
    assert_eq!(received, ["here", "also"]);
}

/// A topic that is dropped and created again needs a replay, although no other topic does.
#[tokio::test(start_paused = true)]
async fn state_of_a_single_topic_is_not_skipped() {
    let shared = Shared::new(5);
    let hub = Hub::builder().max_age(SECOND * 10).backend(shared.connect()).connect().await.unwrap();
    publish(&hub, "here", "old").await;
    sleep(SECOND * 60).await;
    let _subscriber = subscribe(&hub, "here", Start::Latest).await;
    hub.topic("here").latest_only().publish(Event::new("state")).await.unwrap();
    for n in 0..20 {
        publish(&hub, "busy", n).await;
        settle().await;
    }
    let mut earliest = subscribe(&hub, "here", Start::Earliest).await;
    assert_eq!(data_soon(&mut earliest).await, ["state"]);
}

/// Returns a hub, a listener and a client of the topic "a" that have fallen behind the log, and the
/// last id of the client. The first page after the missing events has no event, so the gap is
/// reported with a later page.
async fn behind_a_gap() -> (Hub, task::Spawn<Listener>, task::Spawn<Subscription>, EventId) {
    let shared = Shared::new(5);
    let connection = shared.connect();
    let hub = Hub::builder().max_events(1).backend(connection.clone()).connect().await.unwrap();
    let mut events = task::spawn(hub.topic("a").subscribe(Start::Latest).await.unwrap());
    let listener = task::spawn(hub.listen(["a"], Start::Latest).await.unwrap());
    let first = publish(&hub, "a", 0).await;
    settle().await;
    assert_eq!(data(&mut events), ["0"]);
    assert_eq!(events.cursor(), first);
    connection.page.store(1, Relaxed);
    (1..5).for_each(|n| shared.append_event("a", &n.to_string()));
    shared.append(vec![Record::new("a", RecordKind::Event, "no event")]);
    (5..9).for_each(|n| shared.append_event("a", &n.to_string()));
    settle().await;
    (hub, listener, events, first)
}

#[tokio::test(start_paused = true)]
async fn cursor_stays_before_a_gap_until_it_is_reported() {
    let (_hub, _, mut events, first) = behind_a_gap().await;
    while events.poll_next().is_pending() {
        assert_eq!(events.cursor(), first);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(events.gap().map(Gap::requested), Some(&first));
    assert_ne!(events.cursor(), first);
}

#[tokio::test(start_paused = true)]
async fn cursor_stays_before_a_gap_at_a_shutdown() {
    let mut has_ended = false;
    for polls in 0..10 {
        let (hub, _, mut events, first) = behind_a_gap().await;
        for _ in 0..polls {
            if events.poll_next().is_ready() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        hub.shutdown();
        if events.gap().is_none() {
            while !matches!(events.poll_next(), Poll::Ready(None | Some(Err(_)))) {}
            has_ended |= events.gap().is_none();
            assert!(events.gap().is_some() || events.cursor() == first, "after {polls} polls");
        }
    }
    assert!(has_ended, "the shutdown ended a replay");
}

#[tokio::test(start_paused = true)]
async fn cursor_of_lagged_listener_is_before_the_gap() {
    let (hub, mut listener, ..) = behind_a_gap().await;
    let lagged = loop {
        match listener.poll_next() {
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
            Poll::Ready(item) => break item,
        }
        sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(lagged.unwrap().unwrap_err(), SubscriptionError::Lagged);
    let again = hub.listen(["a"], listener.cursor()).await.unwrap();
    assert!(again.gap().is_some());
}
