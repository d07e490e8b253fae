//! Another log replaces the log, and the nodes notice this at different times.

use super::{
    PLENTY, data, data_soon,
    faulty::{Faulty, Mode, Shared},
    hub, numbers, publish, settle, subscribe, two,
};
use http_body_util::BodyExt;
use std::{sync::mpsc, task::Poll, thread, time::Duration};
use support::whatwg;
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower_sse::{
    CloseReason, Event, EventId, SseStream,
    hub::{GapReason, Hub, Start, SubscriptionError, backend::MemoryBackend},
};

/// Two nodes with a new log. Only the first node has noticed that it has replaced their log.
/// Returns an id of the new log, after which it has one more event.
async fn switched(shared: &Shared) -> ([Hub; 2], [Faulty; 2], EventId) {
    let (hubs, connections) = two(shared, Hub::builder).await;
    publish(&hubs[0], "news", "old").await;
    settle().await;
    connections[1].set(Mode::Lags);
    shared.replace(PLENTY, Vec::new());
    let id = loop {
        let id = publish(&hubs[0], "news", "new").await;
        sleep(Duration::from_millis(100)).await;
        let subscription = hubs[0].topic("news").subscribe(Start::After(id.clone())).await.unwrap();
        if subscription.is_resumed() {
            break id;
        }
    };
    publish(&hubs[0], "news", "newest").await;
    let old = subscribe(&hubs[1], "news", Start::Latest).await;
    assert!(!old.cursor().as_str().starts_with(&shared.log().letters), "the node has not noticed the new log");
    (hubs, connections, id)
}

#[tokio::test(start_paused = true)]
async fn client_of_new_log_resumes_on_node_that_follows_the_old_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, id) = switched(&shared).await;
    let begin = Instant::now();
    let mut client = subscribe(&hubs[1], "news", id).await;
    assert_eq!(client.gap(), None);
    assert!(client.is_resumed() && begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    connections[1].set(Mode::Works);
    assert_eq!(data_soon(&mut client).await, ["newest"]);
}

#[tokio::test(start_paused = true)]
async fn client_of_new_log_gets_gap_from_node_without_connection() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, id) = switched(&shared).await;
    connections[1].set(Mode::Hangs);
    let begin = Instant::now();
    let mut client = subscribe(&hubs[1], "news", id.clone()).await;
    assert_eq!(begin.elapsed().as_secs(), 2);
    assert_eq!(data(&mut client), ["other_epoch", "old"]);
    // The node switches when it has a connection, and then the id is valid.
    connections[1].set(Mode::Works);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(data_soon(&mut client).await, ["end"]);
    let mut client = subscribe(&hubs[1], "news", id).await;
    assert_eq!(data_soon(&mut client).await, ["newest"]);
}

#[tokio::test(start_paused = true)]
async fn client_with_ids_per_topic_resumes_on_node_that_follows_the_old_log() {
    for names in [["news", "other"], ["other", "news"]] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections, id) = switched(&shared).await;
        let [with_id, without] = names;
        publish(&hubs[0], with_id, "next").await;
        let topics = [(with_id, Start::After(id)), (without, Start::Latest)];
        let subscription = hubs[1].subscribe(topics, Start::Latest).await.unwrap();
        assert_eq!(subscription.gap(), None);
        connections[1].set(Mode::Works);
        let received = data_soon(&mut task::spawn(subscription)).await;
        assert_eq!(received.last().map(String::as_str), Some("next"), "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_of_earlier_log_does_not_wait() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    let old = publish(&hubs[0], "news", "old").await;
    shared.replace(PLENTY, Vec::new());
    sleep(Duration::from_secs(5)).await;
    publish(&hubs[0], "news", "new").await;
    settle().await;
    connections[1].set(Mode::Hangs);
    let begin = Instant::now();
    let mut client = subscribe(&hubs[1], "news", old).await;
    assert_eq!(data(&mut client), ["other_epoch", "new"]);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_wait_for_the_other_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections, id) = switched(&shared).await;
    connections[1].set(Mode::Hangs);
    let begin = Instant::now();
    let topic = hubs[1].topic("news");
    let waiting = tokio::spawn({
        let id = id.clone();
        async move { topic.subscribe(id).await }
    });
    sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    hubs[1].shutdown();
    drop(waiting.await.unwrap().unwrap());
    drop(subscribe(&hubs[1], "news", id).await);
    assert_eq!(begin.elapsed(), Duration::from_millis(100));
}

/// A client can send any id, and a subscription need not be created inside the runtime.
#[test]
fn subscribing_outside_the_runtime_works_with_each_id() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(Hub::builder().max_events(1).backend(MemoryBackend::new(2)).connect()).unwrap();
    let topic = hub.topic("news");
    let ids: Vec<_> = (0..4).map(|n| runtime.block_on(publish(&hub, "news", n))).collect();
    let gap = |id: &EventId| {
        let mut subscribing = task::spawn(topic.subscribe(id.clone()));
        loop {
            match subscribing.poll() {
                Poll::Ready(subscription) => return subscription.unwrap().gap().map(|gap| gap.reason()),
                Poll::Pending => thread::sleep(Duration::from_millis(1)),
            }
        }
    };
    assert_eq!(gap(&EventId::from_static("bbbbbbbb-3")), Some(GapReason::OtherEpoch));
    assert_eq!(gap(&ids[0]), Some(GapReason::Evicted));
    assert_eq!(gap(&ids[1]), None, "the backend retains the event after it");
    let unknown = hub.topic("unknown");
    let mut exists = task::spawn(unknown.exists_in_log());
    while exists.poll().is_pending() {
        thread::sleep(Duration::from_millis(1));
    }
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
