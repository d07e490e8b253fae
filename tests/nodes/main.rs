//! Hubs of several nodes with one log. Every event that one node acknowledges arrives once and in
//! order on all of them, or a gap is reported, whatever happens to the backend.

mod cursors;
mod cursors_model;
mod eviction;
mod exists;
mod faulty;
mod finished;
mod foreign;
mod gaps;
mod max_age;
mod model;
mod odd;
mod opening;
mod outages;
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
mod shutdown;
mod threads;

use faulty::{Faulty, Mode, Shared};
use std::{sync::atomic::Ordering::Relaxed, task::Poll};
use support::whatwg::{self, Message};
use tokio::task::yield_now;
use tokio_test::task;
use tower_sse::{
    Event, EventId, SseStream,
    hub::{Builder, Hub, Start, Subscription, backend::Backend},
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
