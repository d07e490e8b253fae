//! Hubs of several nodes with one log. Every event that one node acknowledges arrives once and in
//! order on all of them, or a gap is reported, whatever happens to the backend.

mod cursors;
mod cursors_model;
mod eviction;
mod exists;
mod faulty;
mod foreign;
mod max_age;
mod model;
mod opening;
mod presence;
mod presence_loss;
mod presence_model;
mod reads;
mod recording;
mod recording_announced;
mod recording_loss;
mod recording_refused;
mod recording_replaced;
mod registry;
mod registry_model;
mod registry_order;
mod remove;
mod replaced;
mod replay;
mod threads;

use faulty::{Faulty, Mode, Shared};
use http_body_util::BodyExt;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    task::Poll,
    thread,
    time::Duration,
};
use support::whatwg::{self, Message};
use tokio::{
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower_sse::{
    BoxError, CloseReason, Event, EventId, SseStream,
    hub::{
        Builder, ErrorKind, GapReason, Hub, LagPolicy, Start, Subscription, SubscriptionError,
        backend::{Appended, Backend, Bounds, MemoryBackend, Page, Position, Record, RecordKind},
    },
};

const PLENTY: usize = 1_000_000;

async fn hub(backend: impl Backend) -> Hub {
    Hub::builder().backend(backend).connect().await.unwrap()
}

/// Creates two nodes and their connections.
async fn two(shared: &Shared, builder: impl Fn() -> Builder) -> ([Hub; 2], [Faulty; 2]) {
    let [one, other] = [shared.connect(), shared.connect()];
    let hubs = [
        builder().backend(one.clone()).connect().await.unwrap(),
        builder().backend(other.clone()).connect().await.unwrap(),
    ];
    (hubs, [one, other])
}

/// Lets the nodes read the records that exist.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

async fn publish(hub: &Hub, topic: &str, data: impl ToString) -> EventId {
    hub.topic(topic).publish(Event::new(data.to_string())).await.unwrap()
}

async fn subscribe(hub: &Hub, topic: &str, start: impl Into<Start>) -> task::Spawn<Subscription> {
    task::spawn(hub.topic(topic).subscribe(start).await.unwrap())
}

/// Returns the messages that can be read now, and whether the subscription ended after them.
fn read(subscription: &mut task::Spawn<Subscription>) -> (Vec<Message>, bool) {
    let mut bytes = Vec::new();
    loop {
        match subscription.poll_next() {
            Poll::Ready(Some(Ok(events))) => bytes.extend_from_slice(events.as_bytes()),
            Poll::Ready(None | Some(Err(_))) => return (whatwg::parse(&bytes).messages, true),
            Poll::Pending => return (whatwg::parse(&bytes).messages, false),
        }
    }
}

/// Returns the data of the messages that can be read now, the reason for a gap, and a marker for an
/// end.
fn data(subscription: &mut task::Spawn<Subscription>) -> Vec<String> {
    let (messages, is_end) = read(subscription);
    let say = |message: Message| match &*message.r#type {
        "gap" => reason(&message.data),
        _ => message.data,
    };
    messages.into_iter().map(say).chain(is_end.then(|| "end".to_owned())).collect()
}

fn reason(gap: &str) -> String {
    let gap: serde_json::Value = serde_json::from_str(gap).unwrap();
    gap["reason"].as_str().unwrap().to_owned()
}

/// The same, after the node has read the log.
async fn data_soon(subscription: &mut task::Spawn<Subscription>) -> Vec<String> {
    let mut all = Vec::new();
    let mut quiet = 0;
    while quiet < 5 {
        settle().await;
        let more = data(subscription);
        let is_end = more.last().is_some_and(|last| last == "end");
        quiet = if more.is_empty() { quiet + 1 } else { 0 };
        all.extend(more);
        if is_end {
            break;
        }
    }
    all
}

fn numbers(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|n| n.to_string()).collect()
}

fn status(subscription: Subscription) -> u16 {
    SseStream::new(subscription).without_heartbeat().into_http_response().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn events_reach_both_nodes_and_clients_resume_at_either() {
    let ([one, other], _) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut here = subscribe(&one, "a", Start::Latest).await;
    let mut there = subscribe(&other, "a", Start::Latest).await;
    let first = publish(&one, "a", 0).await;
    publish(&other, "a", 1).await;
    publish(&other, "b", "not of this topic").await;
    settle().await;
    assert_eq!(data(&mut here), numbers(0..2));
    assert_eq!(data(&mut there), numbers(0..2));
    for hub in [&one, &other] {
        let mut back = subscribe(hub, "a", first.clone()).await;
        assert!(back.is_resumed() && back.gap().is_none());
        assert_eq!(data(&mut back), numbers(1..2));
    }
}

#[tokio::test(start_paused = true)]
async fn client_loses_nothing_at_a_node_behind() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    to_other.set(Mode::Lags);
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(publish(&one, "a", n).await);
    }
    settle().await;
    let mut back = subscribe(&other, "a", ids[2].clone()).await;
    assert!(back.is_resumed(), "it is a place in the log, which the other node does not know yet");
    let mut latest = subscribe(&other, "a", ids[4].clone()).await;
    assert_eq!((data(&mut back), data(&mut latest)), (vec![], vec![]));
    to_other.set(Mode::Works);
    assert_eq!(data_soon(&mut back).await, numbers(3..5));
    assert_eq!(data(&mut latest), numbers(0..0));
}

#[tokio::test(start_paused = true)]
async fn live_subscriber_gets_no_earlier_event_of_node() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    connections[0].set(Mode::Lags);
    publish(&hubs[0], "a", "before").await;
    let mut latest = subscribe(&hubs[0], "a", Start::Latest).await;
    publish(&hubs[0], "a", "after").await;
    connections[0].set(Mode::Works);
    assert_eq!(data_soon(&mut latest).await, ["after"]);
}

#[tokio::test(start_paused = true)]
async fn evicted_events_are_replayed_from_backend_in_pages() {
    for page in [1, 2, 7, 1000] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(3)).await;
        connections.iter().for_each(|connection| connection.page.store(page, Relaxed));
        let mut slow = subscribe(&hubs[1], "a", Start::Latest).await;
        let mut ids = Vec::new();
        for n in 0..40 {
            ids.push(publish(&hubs[0], if n % 4 == 3 { "b" } else { "a" }, n).await);
        }
        settle().await;
        settle().await;
        let of_a = |from: usize| numbers((from..40).filter(|n| n % 4 != 3));
        let mut back = subscribe(&hubs[1], "a", ids[5].clone()).await;
        assert!(back.is_resumed() && back.gap().is_none());
        assert_eq!(data_soon(&mut back).await, of_a(6), "pages of {page}");
        assert_eq!(data_soon(&mut slow).await, of_a(0), "one that has fallen behind, pages of {page}");
        let mut all = subscribe(&hubs[1], "a", Start::Earliest).await;
        assert_eq!(data_soon(&mut all).await, of_a(0));
        let both = hubs[1].subscribe(["a", "b"], ids[1].clone()).await.unwrap();
        assert!(both.is_resumed());
        assert_eq!(data_soon(&mut task::spawn(both)).await, numbers(2..40), "two topics, pages of {page}");
        assert_eq!(hubs[1].stats().gaps, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn retained_events_need_no_read() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut ids = Vec::new();
    for n in 0..100 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    settle().await;
    for connection in &connections {
        connection.asked.bounds.store(0, Relaxed);
    }
    for id in ids {
        for hub in &hubs {
            data(&mut subscribe(hub, "a", id.clone()).await);
        }
    }
    for connection in &connections {
        assert_eq!((connection.asked.reads.load(Relaxed), connection.asked.bounds.load(Relaxed)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn events_evicted_by_backend_are_gap_before_response() {
    let ([one, other], _) = two(&Shared::new(10), || Hub::builder().max_events(3)).await;
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(publish(&one, "a", n).await);
    }
    settle().await;
    let mut back = subscribe(&other, "a", ids[7].clone()).await;
    let gap = back.gap().expect("it is told before the answer").clone();
    assert_eq!((gap.reason(), gap.requested(), gap.resumed()), (GapReason::Evicted, &ids[7], Some(&ids[30])));
    assert!(!back.is_resumed());
    assert_eq!(
        data_soon(&mut back).await,
        ["evicted".to_owned()].into_iter().chain(numbers(30..40)).collect::<Vec<_>>()
    );
    // The last event before the oldest retained one: nothing is missing in between.
    let mut edge = subscribe(&other, "a", ids[29].clone()).await;
    assert!(edge.is_resumed());
    assert_eq!(data_soon(&mut edge).await, numbers(30..40));
}

#[tokio::test(start_paused = true)]
async fn gap_names_next_event_even_pages_later() {
    let shared = Shared::new(20);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    connections[1].page.store(1, Relaxed);
    let early = publish(&hubs[0], "a", "early").await;
    for n in 0..20 {
        publish(&hubs[0], "b", n).await;
    }
    let next = publish(&hubs[0], "a", "next").await;
    publish(&hubs[0], "a", "last").await;
    settle().await;
    let mut back = subscribe(&hubs[1], "a", early.clone()).await;
    assert_eq!(back.gap().and_then(|gap| gap.resumed()), Some(&next));
    assert_eq!(data_soon(&mut back).await, ["evicted", "next", "last"]);
}

#[tokio::test(start_paused = true)]
async fn client_slower_than_backend_retention_gets_gap_or_ends() {
    for (policy, control_events) in [(LagPolicy::Gap, true), (LagPolicy::Gap, false), (LagPolicy::Disconnect, true)] {
        let (hubs, _) = two(&Shared::new(10), || Hub::builder().max_events(3).lag_policy(policy)).await;
        let mut slow = subscribe(&hubs[1], "a", Start::Latest).await;
        if !control_events {
            slow = task::spawn(slow.into_inner().without_control_events());
        }
        publish(&hubs[0], "a", "first").await;
        settle().await;
        assert_eq!(data(&mut slow), ["first"]);
        for n in 0..40 {
            publish(&hubs[0], "a", n).await;
        }
        settle().await;
        let got = data_soon(&mut slow).await;
        match policy {
            LagPolicy::Gap if control_events => {
                assert_eq!(got, ["lagged".to_owned()].into_iter().chain(numbers(30..40)).collect::<Vec<_>>());
            }
            _ => assert_eq!(got, ["end"]),
        }
        assert_eq!(hubs[1].stats().gaps, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn client_resumes_without_gap_after_backend_outage() {
    let shared = Shared::new(5);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(2).lag_policy(LagPolicy::Disconnect)).await;
    let id = publish(&hubs[0], "a", "seen").await;
    for n in 0..20 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[1].set(Mode::Fails);
    let mut back = subscribe(&hubs[1], "a", id).await;
    assert!(back.gap().is_none() && !back.is_resumed(), "it is not known yet");
    assert_eq!(data(&mut back), [""; 0]);
    connections[1].set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut back).await, ["evicted", "15", "16", "17", "18", "19"]);
}

#[tokio::test(start_paused = true)]
async fn id_never_issued_is_gap_once_known() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    publish(&hubs[0], "a", 0).await;
    settle().await;
    let forged: EventId = EventId::new(format!("{}-77", shared.log().letters)).unwrap();
    let mut told = subscribe(&hubs[1], "a", forged.clone()).await;
    assert_eq!(told.gap().map(|gap| gap.reason()), Some(GapReason::Ahead));
    assert_eq!(data(&mut told), ["ahead", "0"]);

    connections[1].set(Mode::Fails);
    let mut unknown = subscribe(&hubs[1], "a", forged.clone()).await;
    assert!(unknown.gap().is_none() && !unknown.is_resumed());
    let snapshot = hubs[1].topic("a").subscribe(forged.clone()).await.unwrap().begin_with(Event::new("snapshot"));
    let mut snapshot = task::spawn(snapshot);
    assert_eq!(data(&mut unknown), [""; 0]);
    publish(&hubs[0], "a", 1).await;
    connections[1].set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut unknown).await, ["ahead", "0", "1"]);
    assert_eq!(data_soon(&mut snapshot).await, ["snapshot", "1"], "it goes on with what follows the snapshot");
}

#[tokio::test(start_paused = true)]
async fn subscribers_of_replaced_log_do_not_count() {
    let shared = Shared::new(PLENTY);
    let hub = hub(shared.connect()).await;
    let mut counts = task::spawn(hub.topic("a").subscriber_counts());
    let mut old = subscribe(&hub, "a", Start::Latest).await;
    assert_eq!(assert_ready!(counts.poll_next()), Some(1));
    assert_pending!(counts.poll_next());
    shared.replace(PLENTY, Vec::new());
    sleep(Duration::from_secs(5)).await;
    assert!(counts.is_woken());
    assert_eq!(assert_ready!(counts.poll_next()), Some(0));
    let new = subscribe(&hub, "a", Start::Latest).await;
    assert_eq!(assert_ready!(counts.poll_next()), Some(1));
    assert_eq!(data_soon(&mut old).await, ["end"]);
    drop(old);
    assert_pending!(counts.poll_next());
    drop(new);
    assert_eq!(assert_ready!(counts.poll_next()), Some(0));
}

#[tokio::test(start_paused = true)]
async fn start_of_a_topic_can_be_ahead_of_the_node() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    publish(&one, "state", "s").await;
    settle().await;
    // The node does not read the next events.
    to_other.set(Mode::Fails);
    settle().await;
    publish(&one, "a", 0).await;
    let newest = publish(&one, "a", 1).await;
    let topics = || [("a", Start::After(newest.clone())), ("state", Start::Earliest)];
    // The backend does not confirm the id: a gap, and too many events instead of too few.
    let mut early = task::spawn(other.subscribe(topics(), None).await.unwrap());
    assert_eq!(early.gap().map(|gap| gap.reason()), Some(GapReason::Ahead));
    to_other.set(Mode::Works);
    let mut client = task::spawn(other.subscribe(topics(), None).await.unwrap());
    assert!(client.gap().is_none());
    publish(&one, "a", 2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut early).await, ["ahead", "s", "0", "1", "2"]);
    assert_eq!(data_soon(&mut client).await, ["s", "2"]);
}

#[tokio::test(start_paused = true)]
async fn unknown_id_is_decided_after_backend_outage() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    to_other.set(Mode::Fails);
    let ids = [publish(&one, "a", 0).await, publish(&one, "a", 1).await];
    publish(&one, "a", 2).await;
    let mut back = subscribe(&other, "a", ids[1].clone()).await;
    assert_eq!(data(&mut back), [""; 0]);
    let opening = SseStream::new(other.topic("a").subscribe(ids[1].clone()).await.unwrap());
    drop(opening);
    to_other.set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut back).await, ["2"]);
    assert_eq!(other.stats().gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn snapshot_replaces_gap_and_retained_events() {
    let shared = Shared::new(10);
    let ([one, other], _) = two(&shared, || Hub::builder().max_events(3)).await;
    let early = publish(&one, "a", "early").await;
    for n in 0..40 {
        publish(&one, "a", n).await;
    }
    settle().await;
    let back = other.topic("a").subscribe(early.clone()).await.unwrap();
    assert!(!back.is_resumed());
    let mut back = task::spawn(back.begin_with(Event::new("snapshot")));
    publish(&one, "a", "next").await;
    let (messages, _) = {
        settle().await;
        read(&mut back)
    };
    assert_eq!(messages.iter().map(|message| &*message.data).collect::<Vec<_>>(), ["snapshot", "next"]);
    // Its id is a cursor. No event after it is missing.
    let id = EventId::new(&*messages[0].last_event_id).unwrap();
    assert_eq!(data_soon(&mut subscribe(&other, "a", id).await).await, ["next"]);
}

#[tokio::test(start_paused = true)]
async fn response_waits_two_seconds_for_silent_backend() {
    let shared = Shared::new(10);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&hubs[0], "a", "early").await;
    for n in 0..3 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[1].set(Mode::Hangs);
    let begun = Instant::now();
    let mut back = subscribe(&hubs[1], "a", early).await;
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(!back.is_resumed() && back.gap().is_none());
    assert_eq!(data(&mut back), [""; 0]);
    connections[1].set(Mode::Works);
    assert_eq!(data_soon(&mut back).await, numbers(0..3));
    // A certain gap is reported without it.
    connections[1].set(Mode::Hangs);
    let other = subscribe(&hubs[1], "a", EventId::new("aaaaaaaa-1").unwrap()).await;
    assert_eq!(other.gap().map(|gap| gap.reason()), Some(GapReason::OtherEpoch));
}

#[tokio::test(start_paused = true)]
async fn client_of_finished_topic_gets_204_on_any_node() {
    let age = Duration::from_secs(60);
    let shared = Shared::new(PLENTY);
    let ([one, other], _) = two(&shared, || Hub::builder().max_age(age)).await;
    let first = publish(&one, "job", "begun").await;
    let last = publish(&one, "job", "done").await;
    one.topic("job").finish().await.unwrap();
    settle().await;
    for hub in [&one, &other] {
        assert_eq!(status(hub.topic("job").subscribe(last.clone()).await.unwrap()), 204);
        assert_eq!(status(hub.topic("job").subscribe(Start::Latest).await.unwrap()), 204);
        assert_eq!(data(&mut subscribe(hub, "job", first.clone()).await), ["done", "end"]);
        assert_eq!(hub.topic("job").publish(Event::new("more")).await.unwrap_err().kind(), ErrorKind::Finished);
        hub.topic("job").finish().await.unwrap();
    }
    sleep(age * 2).await;
    publish(&one, "other", "later").await;
    settle().await;
    assert!(!other.topic("job").exists(), "it is forgotten here");
    assert_eq!(status(other.topic("job").subscribe(last.clone()).await.unwrap()), 204);
    assert_eq!(data_soon(&mut subscribe(&one, "job", first.clone()).await).await, ["done", "end"]);
    // And on a node that has just connected.
    let third = hub(shared.connect()).await;
    assert_eq!(status(third.topic("job").subscribe(last).await.unwrap()), 204);
    assert_eq!(status(third.topic("job").subscribe(Start::Latest).await.unwrap()), 204);
}

#[tokio::test(start_paused = true)]
async fn event_published_after_unread_finish_is_not_lost() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut alone = subscribe(&one, "a", Start::Latest).await;
    let mut both = task::spawn(one.subscribe(["a", "b"], Start::Latest).await.unwrap());
    let first = publish(&one, "a", 0).await;
    settle().await;
    to_other.set(Mode::Lags);
    one.topic("a").finish().await.unwrap();
    settle().await;
    assert_eq!(data(&mut alone), ["0", "end"]);
    assert_eq!(data(&mut both), ["0"]);
    publish(&other, "a", 1).await;
    to_other.set(Mode::Works);
    settle().await;
    assert_eq!(data(&mut both), ["1"], "who has seen the end sees that it goes on");
    for hub in [&one, &other] {
        assert_eq!(data_soon(&mut subscribe(hub, "a", first.clone()).await).await, ["1"]);
    }
    other.topic("a").finish().await.unwrap();
    settle().await;
    assert_eq!(one.topic("a").publish(Event::new("2")).await.unwrap_err().kind(), ErrorKind::Finished);
}

#[tokio::test(start_paused = true)]
async fn node_cannot_publish_after_its_own_finish() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    connections[0].set(Mode::Lags);
    let last = publish(&hubs[0], "a", 0).await;
    hubs[0].topic("a").finish().await.unwrap();
    assert_eq!(hubs[0].topic("a").publish(Event::new("1")).await.unwrap_err().kind(), ErrorKind::Finished);
    hubs[0].topic("a").finish().await.unwrap();
    let mut behind = subscribe(&hubs[0], "a", Start::Earliest).await;
    assert_eq!(data(&mut behind), [""; 0], "what comes before the end is still to come");
    connections[0].set(Mode::Works);
    assert_eq!(data_soon(&mut behind).await, ["0", "end"]);
    assert_eq!(status(hubs[0].topic("a").subscribe(last).await.unwrap()), 204);
}

#[tokio::test(start_paused = true)]
async fn replayed_end_ends_no_other_subscription_early() {
    let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(1)).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    settle().await;
    connections[1].set(Mode::Lags);
    for n in 3..6 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    hubs[0].topic("a").finish().await.unwrap();
    let mut waits = subscribe(&hubs[1], "a", ids[3].clone()).await;
    let mut history = subscribe(&hubs[1], "a", ids[0].clone()).await;
    assert_eq!(data_soon(&mut history).await, numbers(1..6));
    assert_eq!(data(&mut waits), [""; 0]);
    connections[1].set(Mode::Works);
    assert_eq!(data_soon(&mut waits).await, ["4", "5", "end"]);
    assert_eq!(data_soon(&mut history).await, ["end"]);
}

#[tokio::test(start_paused = true)]
async fn unpolled_client_delays_no_client_of_its_page() {
    let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(1)).await;
    connections[1].page.store(1, Relaxed);
    let early = publish(&hubs[0], "a", 0).await;
    for n in 1..30 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    // As many as may read at once, and one more. Each of them requests a page, and is not polled.
    let mut silent = Vec::new();
    for skip in 0..9 {
        let mut client = subscribe(&hubs[1], "a", early.clone()).await;
        for _ in 0..skip {
            while client.poll_next().is_pending() {
                settle().await;
            }
        }
        assert!(skip == 0 || client.poll_next().is_pending());
        silent.push(client);
    }
    assert_eq!(data_soon(&mut subscribe(&hubs[1], "a", early).await).await, numbers(1..30));
}

#[tokio::test(start_paused = true)]
async fn hub_retains_at_most_what_backend_retains() {
    let shared = Shared::new(30);
    let early = hub(shared.connect()).await;
    for n in 0..40 {
        publish(&early, &format!("topic-{}", n % 5), n).await;
    }
    settle().await;
    for builder in [Hub::builder(), Hub::builder().max_events(2)] {
        let late = builder.backend(shared.connect()).connect().await.unwrap();
        for hub in [&early, &late] {
            let all = hub.subscribe((0..5).map(|n| format!("topic-{n}")), Start::Earliest).await.unwrap();
            assert!(all.gap().is_none());
            assert_eq!(
                data_soon(&mut task::spawn(all)).await.into_iter().rev().take(30).rev().collect::<Vec<_>>(),
                numbers(10..40)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ids_of_all_topics_follow_log_order() {
    for page in [1, 3, 1000] {
        let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(4)).await;
        connections[1].page.store(page, Relaxed);
        let names: Vec<_> = (0..20).map(|n| format!("topic-{n}")).collect();
        let mut all = task::spawn(hubs[1].subscribe(&names, Start::Latest).await.unwrap());
        let mut got = Vec::new();
        for n in 0..500 {
            publish(&hubs[0], &names[n * 7 % 20], n).await;
            if n % 11 == 0 {
                settle().await;
                got.extend(data(&mut all));
            }
        }
        got.extend(data_soon(&mut all).await);
        assert_eq!(got, numbers(0..500));
    }
}

#[tokio::test(start_paused = true)]
async fn latest_only_topic_is_so_on_every_node() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let state = one.topic("here").latest_only();
    let first = state.publish(Event::new("0")).await.unwrap();
    for n in 1..10 {
        state.publish(Event::new(n.to_string())).await.unwrap();
    }
    settle().await;
    for hub in [&one, &other] {
        let mut back = subscribe(hub, "here", first.clone()).await;
        assert!(back.is_resumed(), "what it was before is not missing");
        assert_eq!(data(&mut back), ["9"]);
    }
    // A node that has not read yet that the event is a state, and a handle without `latest_only`.
    to_other.set(Mode::Lags);
    state.publish(Event::new("10")).await.unwrap();
    publish(&other, "here", 11).await;
    to_other.set(Mode::Works);
    settle().await;
    for hub in [&one, &other] {
        assert_eq!(data(&mut subscribe(hub, "here", first.clone()).await), ["11"]);
    }
}

#[tokio::test(start_paused = true)]
async fn replayed_page_has_newest_state() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    connections[1].page.store(5, Relaxed);
    let first = publish(&hubs[0], "a", "a").await;
    let state = hubs[0].topic("here").latest_only();
    for n in 0..9 {
        state.publish(Event::new(n.to_string())).await.unwrap();
    }
    publish(&hubs[0], "a", "b").await;
    publish(&hubs[0], "a", "c").await;
    settle().await;
    let both = hubs[1].subscribe(["a", "here"], first).await.unwrap();
    assert!(both.is_resumed());
    assert_eq!(data_soon(&mut task::spawn(both)).await, ["4", "8", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn topic_over_limit_is_read_from_backend_later() {
    let age = Duration::from_secs(60);
    let shared = Shared::new(PLENTY);
    let roomy = hub(shared.connect()).await;
    let narrow = Hub::builder().max_topics(1).max_age(age).backend(shared.connect()).connect().await.unwrap();
    publish(&roomy, "a", 0).await;
    let id = publish(&roomy, "b", 1).await;
    publish(&roomy, "b", 2).await;
    settle().await;
    let error = narrow.topic("b").subscribe(id.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyTopics);
    assert_eq!(narrow.topic("b").publish(Event::new("3")).await.unwrap_err().kind(), ErrorKind::TooManyTopics);
    sleep(age * 2).await;
    let mut back = subscribe(&narrow, "b", id).await;
    assert!(back.is_resumed());
    assert_eq!(data_soon(&mut back).await, ["2"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_subscriptions_that_wait_for_backend() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&hubs[0], "a", 0).await;
    publish(&hubs[0], "a", 1).await;
    publish(&hubs[0], "a", 2).await;
    settle().await;
    let mut live = subscribe(&hubs[1], "a", Start::Latest).await;
    connections[1].set(Mode::Hangs);
    let mut waits = subscribe(&hubs[1], "a", early.clone()).await;
    connections[1].set(Mode::Fails);
    let mut pauses = subscribe(&hubs[1], "a", early.clone()).await;
    for subscription in [&mut live, &mut waits, &mut pauses] {
        assert_pending!(subscription.poll_next());
    }
    hubs[1].shutdown();
    for subscription in [&mut live, &mut waits, &mut pauses] {
        assert!(subscription.is_woken());
        assert_eq!(data(subscription), ["end"]);
    }
    assert_eq!(hubs[1].topic("a").publish(Event::new("3")).await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(data(&mut subscribe(&hubs[1], "a", early).await), ["end"]);
    settle().await;
    assert_eq!(connections[1].asked.follows.load(Relaxed), 0, "nobody follows the log any more");
}

/// The client's id is before or after the end of the log that the node knows.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_pending_subscribe() {
    for is_ahead in [false, true] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
        let early = publish(&hubs[0], "a", 0).await;
        publish(&hubs[0], "a", 1).await;
        publish(&hubs[0], "a", 2).await;
        settle().await;
        connections[1].set(Mode::Hangs);
        let id = if is_ahead { publish(&hubs[0], "a", 3).await } else { early };
        let topic = hubs[1].topic("a");
        let call = tokio::spawn(async move { topic.subscribe(id).await });
        sleep(Duration::from_millis(500)).await;
        assert!(!call.is_finished());
        let begin = Instant::now();
        hubs[1].shutdown();
        let subscription = call.await.unwrap().unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO, "{is_ahead}");
        assert_eq!(data(&mut task::spawn(subscription)), ["end"]);
    }
}

#[tokio::test(start_paused = true)]
async fn follower_ends_with_last_handle() {
    let connection = Shared::new(PLENTY).connect();
    let hub = hub(connection.clone()).await;
    let subscription = subscribe(&hub, "a", Start::Latest).await;
    settle().await;
    let topic = hub.topic("a");
    drop(hub);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 1);
    drop(topic);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 1, "a subscription is a handle");
    drop(subscription);
    settle().await;
    assert_eq!(connection.asked.follows.load(Relaxed), 0);
    assert_eq!(Arc::strong_count(&connection.asked), 1, "nobody else has the connection");
}

#[tokio::test(start_paused = true)]
async fn publish_fails_during_outage_and_recovers() {
    let ([one, other], [to_one, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut listens = subscribe(&other, "a", Start::Latest).await;
    for down in [1, 100, 3600] {
        let id = publish(&one, "a", "before").await;
        settle().await;
        assert_eq!(data(&mut listens), ["before"]);
        to_one.set(Mode::Fails);
        to_other.set(Mode::Fails);
        sleep(Duration::from_secs(down)).await;
        let begun = Instant::now();
        let error = one.topic("a").publish(Event::new("lost")).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::Backend, Duration::ZERO));
        assert_eq!(data(&mut listens), [""; 0], "whoever is subscribed waits");
        to_one.set(Mode::Works);
        to_other.set(Mode::Works);
        let begun = Instant::now();
        publish(&one, "a", "after").await;
        while data(&mut listens).is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?} after {down} s", begun.elapsed());
        let mut back = subscribe(&other, "a", id).await;
        assert_eq!(data(&mut back), ["after"]);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_backend_is_error_after_ten_seconds() {
    let connection = Shared::new(PLENTY).connect();
    let hub = hub(connection.clone()).await;
    connection.set(Mode::Hangs);
    let begun = Instant::now();
    let error = hub.topic("a").publish(Event::new("0")).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Backend, 10));
    let error = Hub::builder().backend(connection).connect().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Backend, 20));
}

#[tokio::test(start_paused = true)]
async fn follower_notices_silently_dead_connection() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut listens = subscribe(&other, "a", Start::Latest).await;
    settle().await;
    // A `follow` from here waits for ever. A new one does not.
    to_other.set(Mode::Lags);
    publish(&one, "a", 0).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(data(&mut listens), [""; 0]);
    assert_eq!(to_other.asked.follows.load(Relaxed), 1, "one reader, however often it begins anew");
    to_other.set(Mode::Works);
    settle().await;
    assert_eq!(data(&mut listens), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn replaced_log_ends_subscriptions_and_is_gap() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(2)).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    settle().await;
    let mut live = subscribe(&hubs[1], "a", Start::Latest).await;
    connections[1].set(Mode::Hangs);
    let mut history = subscribe(&hubs[1], "a", ids[3].clone()).await;
    // A failover: the newest events are lost, and others have their positions.
    let kept = shared.log().held()[..6].to_vec();
    shared.replace(PLENTY, kept);
    connections.iter().for_each(|connection| connection.set(Mode::Fails));
    settle().await;
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(Duration::from_secs(1)).await;
    for n in 0..10 {
        publish(&hubs[0], "a", format!("new {n}")).await;
    }
    settle().await;
    for subscription in [&mut live, &mut history] {
        assert_eq!(data(subscription), ["end"], "no event of one log under an id of the other");
    }
    let expected: Vec<_> = numbers(0..6).into_iter().chain((0..10).map(|n| format!("new {n}"))).collect();
    for hub in &hubs {
        let mut back = subscribe(hub, "a", ids[9].clone()).await;
        assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::OtherEpoch));
        assert_eq!(data_soon(&mut back).await[1..], expected);
    }
}

#[tokio::test(start_paused = true)]
async fn replaced_log_ends_a_response_cleanly_with_its_reason() {
    let shared = Shared::new(PLENTY);
    let hub = hub(shared.connect()).await;
    let (sender, summary) = mpsc::channel();
    let stream = SseStream::new(hub.topic("a").subscribe(Start::Latest).await.unwrap());
    let stream = stream.on_error(|_| Some(Event::new("failed"))).on_close(move |summary| sender.send(summary).unwrap());
    let body = stream.into_http_response().into_body();
    let read = tokio::spawn(body.collect());
    settle().await;
    shared.replace(PLENTY, Vec::new());
    let bytes = read.await.unwrap().unwrap().to_bytes();
    let parsed = whatwg::parse(&bytes);
    assert!(parsed.reconnection_time.is_some());
    assert!(parsed.messages.iter().all(|message| message.r#type == "hub-cursor"));
    assert_eq!(summary.recv().unwrap().reason, CloseReason::LogReplaced);
}

/// The position of the next event is known, and the positions of the other log are smaller.
#[tokio::test(start_paused = true)]
async fn replaced_log_ends_a_subscription_that_is_behind() {
    let shared = Shared::new(PLENTY);
    let hub = hub(shared.connect()).await;
    let mut subscription = task::spawn(hub.subscribe(["a", "b"], Start::Latest).await.unwrap());
    for topic in ["a", "b", "a", "b"] {
        publish(&hub, topic, topic).await;
    }
    settle().await;
    let first = assert_ready!(subscription.poll_next()).unwrap().unwrap();
    assert_eq!(whatwg::parse(first.as_bytes()).messages[0].data, "a");
    shared.replace(PLENTY, Vec::new());
    // The node reads the bounds of the log once per second.
    sleep(Duration::from_secs(3)).await;
    // The poll must return, so it has a thread of its own.
    let (sender, polled) = mpsc::channel();
    thread::spawn(move || sender.send(subscription.poll_next().map(|item| item.map(|item| item.map(drop)))));
    let polled = polled.recv_timeout(Duration::from_secs(20)).expect("the poll returns");
    assert_eq!(polled, Poll::Ready(Some(Err(SubscriptionError::LogReplaced))));
    assert!(!hub.is_shut_down());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_reconnects_share_few_reads() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    settle().await;
    let asked = &connections[1].asked;
    connections[1].set(Mode::Lags);
    let newer = publish(&hubs[0], "b", "newer").await;
    asked.bounds.store(0, Relaxed);
    let come = |start: EventId| {
        let hub = &hubs[1];
        async move { hub.topic("a").subscribe(start).await.unwrap() }
    };
    // With an id that this node does not know yet, and with the same id when the node has evicted
    // it.
    let clients = (0..10_000).map(|n| come(if n % 2 == 0 { newer.clone() } else { ids[3].clone() }));
    let clients = futures_util::future::join_all(clients).await;
    assert!(clients.iter().all(Subscription::is_resumed));
    assert!(asked.bounds.load(Relaxed) <= 3, "{} questions where the log ends", asked.bounds.load(Relaxed));
    assert!(asked.reads.load(Relaxed) <= 3, "{} pages", asked.reads.load(Relaxed));
    // Each client has another cursor.
    let many = (0..1000).map(|n| come(ids[n % 18].clone()));
    assert_eq!(futures_util::future::join_all(many).await.len(), 1000);
    assert!(asked.reads.load(Relaxed) <= 50, "{} pages", asked.reads.load(Relaxed));
    let most = asked.most_reads_at_once.load(Relaxed);
    assert!((2..=8).contains(&most), "{most} at once");
}

#[tokio::test(start_paused = true)]
async fn client_leaving_during_read_delays_no_other() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&hubs[0], "a", 0).await;
    for n in 1..5 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[1].set(Mode::Hangs);
    let topic = hubs[1].topic("a");
    let leaves = timeout(Duration::from_millis(100), topic.subscribe(early.clone())).await;
    assert!(leaves.is_err());
    assert_eq!(hubs[1].stats().subscriptions, 0, "nothing is left of it");
    let waits = tokio::spawn({
        let topic = topic.clone();
        async move { topic.subscribe(early).await.unwrap() }
    });
    settle().await;
    connections[1].set(Mode::Works);
    assert_eq!(data_soon(&mut task::spawn(waits.await.unwrap())).await, numbers(1..5));
}

#[tokio::test(start_paused = true)]
async fn unsure_publish_is_error_and_same_for_all() {
    let ([one, other], [to_one, _]) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut clients = [subscribe(&one, "a", Start::Latest).await, subscribe(&other, "a", Start::Latest).await];
    to_one.set(Mode::LosesAnswers);
    let error = one.topic("a").publish(Event::new("unsure")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    to_one.set(Mode::Hangs);
    assert!(timeout(Duration::from_millis(1), one.topic("a").publish(Event::new("dropped"))).await.is_err());
    to_one.set(Mode::Works);
    publish(&one, "a", "sure").await;
    for client in &mut clients {
        assert_eq!(data_soon(client).await, ["unsure", "sure"]);
    }
}

/// Returns the given records, whatever they are.
struct Odd(Vec<(Position, Record)>);

impl Backend for Odd {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        Ok(Bounds::new(7, Position::new(9)))
    }

    async fn append(&self, _: Vec<Record>) -> Result<Appended, BoxError> {
        Ok(Appended::new(0, Position::START))
    }

    async fn append_if_unchanged(&self, _: Vec<Record>, _: u64, _: Position) -> Result<Option<Appended>, BoxError> {
        Ok(None)
    }

    async fn read(&self, _: &[Arc<str>], _: Position) -> Result<Page, BoxError> {
        let mut page = Page::new(7, Position::MAX);
        page.evicted_through = Position::MAX;
        page.records.clone_from(&self.0);
        Ok(page)
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        match after.get() {
            9 => std::future::pending().await,
            _ => {
                let mut page = Page::new(7, Position::new(9));
                page.records.clone_from(&self.0);
                Ok(page)
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn odd_backend_causes_no_panic_or_invalid_event() {
    let record = |position: u64, event: &'static str| (position.into(), Record::new("a", RecordKind::Event, event));
    let records = vec![
        record(0, "data: nowhere\n\n"),
        record(3, "data: 3\n\n"),
        record(2, "data: backwards\n\n"),
        record(3, "data: twice\n\n"),
        record(4, ""),
        record(5, "data: two\n\ndata: events\n\n"),
        record(6, "id: 1\ndata: with an id\n\n"),
        record(7, "data: no end"),
        record(8, "data: \r\n\r\n"),
        record(9, "data: 9\n\n"),
    ];
    let hub = hub(Odd(records)).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["3", "9"]);
    data(&mut subscribe(&hub, "a", EventId::new("haaaaaaa-8").unwrap()).await);
}

#[tokio::test]
async fn hub_works_with_memory_backend_retaining_nothing() {
    let hub = hub(MemoryBackend::new(0)).await;
    assert_eq!(publish(&hub, "a", "held by nobody but the node").await.as_str().split('-').count(), 2);
}
