//! Scenarios of several nodes on four threads, with real time. Each wait has a limit.

use super::{Faulty, Mode, PLENTY, Shared, reason, status};
use futures_util::future::join_all;
use std::{
    process,
    sync::{
        atomic::Ordering::Relaxed,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    runtime,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Start, Subscription},
};

/// Longer than any wait of a test that passes.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test on four threads. Ends the process if the test, or the end of its runtime, takes too
/// long: blocked threads run no timer of tokio, and a runtime waits for them.
pub(crate) fn on_four_threads(test: impl Future<Output = ()>) {
    let (_done, is_done) = mpsc::channel::<()>();
    thread::spawn(move || {
        if is_done.recv_timeout(10 * LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("deadlock: a test on four threads has run for {:?}", 10 * LIMIT);
            process::exit(101);
        }
    });
    let runtime = runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(test);
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("in time")
}

/// Reads until so many messages have arrived, or the end. Returns their data, and the reason of a
/// gap.
async fn take(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let Some(Ok(events)) = in_time(subscription.next()).await else {
            taken.push("end".to_owned());
            break;
        };
        let messages = whatwg::parse(events.as_bytes()).messages.into_iter();
        taken.extend(messages.map(|message| match &*message.r#type {
            "gap" => reason(&message.data),
            _ => message.data,
        }));
    }
    taken
}

/// Expects no item for a moment.
async fn is_silent(subscription: &mut Subscription) -> bool {
    timeout(Duration::from_millis(50), subscription.next()).await.is_err()
}

async fn eventually(is_true: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < LIMIT, "in time");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn two(shared: &Shared, max_events: usize) -> ([Hub; 2], [Faulty; 2]) {
    in_time(super::two(shared, || Hub::builder().max_events(max_events))).await
}

async fn publish(hub: &Hub, data: impl ToString) -> EventId {
    in_time(hub.topic("a").publish(Event::new(data.to_string()))).await.unwrap()
}

async fn publish_many(hub: &Hub, count: usize) -> Vec<EventId> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(publish(hub, n).await);
    }
    ids
}

async fn subscribe(hub: &Hub, start: impl Into<Start>) -> Subscription {
    in_time(hub.topic("a").subscribe(start)).await.unwrap()
}

/// Waits until the node has read so many events.
async fn has_read(hub: &Hub, count: u64) {
    eventually(|| hub.stats().published >= count).await;
}

/// Waits until a node that has published nothing has read the log up to this id.
async fn is_at(hub: &Hub, id: &EventId) {
    let begun = Instant::now();
    while subscribe(hub, Start::Latest).await.cursor() != *id {
        assert!(begun.elapsed() < LIMIT, "in time");
        sleep(Duration::from_millis(1)).await;
    }
}

fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    super::numbers(numbers)
}

#[test]
fn event_reaches_both_nodes_and_client_resumes() {
    on_four_threads(async {
        let (hubs, _) = two(&Shared::new(PLENTY), 1000).await;
        let mut clients = Vec::new();
        for hub in &hubs {
            clients.push(subscribe(hub, Start::Latest).await);
        }
        let first = publish(&hubs[0], 0).await;
        for n in 1..200 {
            publish(&hubs[n % 2], n).await;
        }
        for client in &mut clients {
            assert_eq!(take(client, 200).await, numbers(0..200));
            assert!(is_silent(client).await, "no event comes twice");
        }
        for hub in &hubs {
            let mut back = subscribe(hub, first.clone()).await;
            assert!(back.is_resumed());
            assert_eq!(take(&mut back, 199).await, numbers(1..200));
        }
    });
}

#[test]
fn concurrent_publishers_have_one_order_on_nodes() {
    on_four_threads(async {
        const EACH: usize = 500;
        let (hubs, _) = two(&Shared::new(PLENTY), 7).await;
        let mut clients = [subscribe(&hubs[0], Start::Latest).await, subscribe(&hubs[1], Start::Latest).await];
        let publishers: Vec<_> = (0..4)
            .map(|publisher| {
                let hub = hubs[publisher % 2].clone();
                tokio::spawn(async move {
                    for n in 0..EACH {
                        publish(&hub, format!("{publisher} {n}")).await;
                    }
                })
            })
            .collect();
        let [one, other] = &mut clients;
        let (one, other) = tokio::join!(take(one, 4 * EACH), take(other, 4 * EACH));
        assert_eq!(one, other);
        for publisher in 0..4 {
            let prefix = format!("{publisher} ");
            let of_publisher: Vec<_> = one.iter().filter_map(|data| data.strip_prefix(&prefix)).collect();
            assert_eq!(of_publisher, numbers(0..EACH));
        }
        for publisher in publishers {
            in_time(publisher).await.unwrap();
        }
    });
}

#[test]
fn history_is_replayed_in_pages_of_any_size() {
    on_four_threads(async {
        for page in [1, 7, 1000] {
            let (hubs, connections) = two(&Shared::new(PLENTY), 3).await;
            connections[1].page.store(page, Relaxed);
            let mut slow = subscribe(&hubs[1], Start::Latest).await;
            let ids = publish_many(&hubs[0], 40).await;
            has_read(&hubs[1], 40).await;
            let mut back = subscribe(&hubs[1], ids[5].clone()).await;
            assert!(back.is_resumed());
            assert_eq!(take(&mut back, 34).await, numbers(6..40), "pages of {page}");
            assert_eq!(take(&mut slow, 40).await, numbers(0..40), "pages of {page}");
            assert!(is_silent(&mut back).await && is_silent(&mut slow).await, "no event comes twice");
            assert_eq!(hubs[1].stats().gaps, 0);
        }
    });
}

#[test]
fn evicted_history_is_a_gap_before_the_response() {
    on_four_threads(async {
        let (hubs, _) = two(&Shared::new(10), 3).await;
        let ids = publish_many(&hubs[0], 40).await;
        is_at(&hubs[1], &ids[39]).await;
        let mut back = subscribe(&hubs[1], ids[7].clone()).await;
        assert_eq!(back.gap().map(|gap| (gap.reason(), gap.resumed())), Some((GapReason::Evicted, Some(&ids[30]))));
        assert_eq!(take(&mut back, 1).await, ["evicted"]);
        assert_eq!(take(&mut back, 10).await, numbers(30..40));
    });
}

#[test]
fn lagged_subscriber_is_disconnected_or_gets_a_gap() {
    on_four_threads(async {
        for policy in [LagPolicy::Gap, LagPolicy::Disconnect] {
            let (hubs, _) = two(&Shared::new(10), 3).await;
            let mut slow = subscribe(&hubs[1], Start::Latest).await.lag_policy(policy);
            let ids = publish_many(&hubs[0], 40).await;
            is_at(&hubs[1], &ids[39]).await;
            match policy {
                LagPolicy::Gap => {
                    assert_eq!(take(&mut slow, 1).await, ["lagged"]);
                    assert_eq!(take(&mut slow, 10).await, numbers(30..40));
                }
                _ => assert_eq!(take(&mut slow, 1).await, ["end"]),
            }
        }
    });
}

#[test]
fn node_recovers_within_a_second_after_an_outage() {
    on_four_threads(async {
        let (hubs, connections) = two(&Shared::new(PLENTY), 1000).await;
        let mut client = subscribe(&hubs[1], Start::Latest).await;
        for mode in [Mode::Fails, Mode::Lags, Mode::Fails] {
            publish(&hubs[0], "before").await;
            assert_eq!(take(&mut client, 1).await, ["before"]);
            connections[1].set(mode);
            publish(&hubs[0], "during").await;
            if mode == Mode::Fails {
                let error = in_time(hubs[1].topic("a").publish(Event::new("lost"))).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Backend);
            }
            assert!(mode == Mode::Fails || is_silent(&mut client).await);
            connections[1].set(Mode::Works);
            assert_eq!(take(&mut client, 1).await, ["during"]);
        }
    });
}

#[test]
fn finished_topic_ends_on_nodes_with_204() {
    on_four_threads(async {
        let (hubs, _) = two(&Shared::new(PLENTY), 1000).await;
        let mut clients = [subscribe(&hubs[0], Start::Latest).await, subscribe(&hubs[1], Start::Latest).await];
        let last = publish(&hubs[0], "done").await;
        in_time(hubs[0].topic("a").finish()).await.unwrap();
        for (client, hub) in clients.iter_mut().zip(&hubs) {
            assert_eq!(take(client, 2).await, ["done", "end"]);
            assert_eq!(status(subscribe(hub, last.clone()).await), 204);
        }
    });
}

#[test]
fn replaced_log_ends_subscriptions_and_is_a_gap() {
    on_four_threads(async {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, 2).await;
        let ids = publish_many(&hubs[0], 10).await;
        let mut live = Vec::new();
        for hub in &hubs {
            has_read(hub, 10).await;
            live.push(subscribe(hub, Start::Latest).await);
        }
        shared.replace(PLENTY, shared.log().held()[..6].to_vec());
        for connection in &connections {
            connection.set(Mode::Fails);
        }
        sleep(Duration::from_millis(20)).await;
        for connection in &connections {
            connection.set(Mode::Works);
        }
        for (client, hub) in live.iter_mut().zip(&hubs) {
            assert_eq!(take(client, 1).await, ["end"]);
            let mut back = subscribe(hub, ids[9].clone()).await;
            assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::OtherEpoch));
            assert_eq!(take(&mut back, 1).await, ["other_epoch"]);
            assert_eq!(take(&mut back, 6).await, numbers(0..6));
        }
    });
}

#[test]
fn returning_clients_share_reads() {
    on_four_threads(async {
        let (hubs, connections) = two(&Shared::new(PLENTY), 1).await;
        let ids = publish_many(&hubs[0], 20).await;
        has_read(&hubs[1], 20).await;
        const DELAY: u64 = 5;
        const MOST_AT_ONCE: u128 = 8;
        connections[1].delay.store(DELAY, Relaxed);
        let begin = Instant::now();
        let clients = (0..2_000).map(|n| {
            let (hub, id) = (hubs[1].clone(), ids[n % 2].clone());
            tokio::spawn(async move { take(&mut subscribe(&hub, id).await, 18).await })
        });
        for (n, client) in join_all(clients).await.into_iter().enumerate() {
            let client = client.unwrap();
            assert_eq!(client[..18], numbers(n % 2 + 1..n % 2 + 19));
        }
        let asked = &connections[1].asked;
        assert!(asked.most_reads_at_once.load(Relaxed) as u128 <= MOST_AT_ONCE);
        // On a busy machine, clients come too late for a read of the others.
        let reads = asked.reads.load(Relaxed);
        let most = 400.max(MOST_AT_ONCE * (begin.elapsed().as_millis() / u128::from(DELAY) + 1));
        assert!(reads as u128 <= most, "{reads} reads of at most {most}");
    });
}

#[test]
fn connecting_and_leaving_clients_disturb_no_other() {
    on_four_threads(async {
        let (hubs, connections) = two(&Shared::new(PLENTY), 1).await;
        let ids = publish_many(&hubs[0], 500).await;
        has_read(&hubs[1], 500).await;
        connections[1].delay.store(1, Relaxed);
        let leaving = (0..4).map(|task| {
            let (topic, ids) = (hubs[1].topic("a"), ids.clone());
            tokio::spawn(async move {
                for n in 0..2_000 {
                    let id = ids[(task * 97 + n) % 480].clone();
                    let left = timeout(Duration::from_micros(n as u64 % 3 * 100), topic.subscribe(id)).await;
                    assert!(left.is_err() || left.is_ok_and(|subscription| subscription.is_ok()));
                }
            })
        });
        let leaving = join_all(leaving);
        let staying = async {
            for n in 0..50 {
                let mut back = subscribe(&hubs[1], ids[n * 7].clone()).await;
                assert_eq!(take(&mut back, 499 - n * 7).await, numbers(n * 7 + 1..500));
            }
        };
        let (left, ()) = in_time(async { tokio::join!(leaving, staying) }).await;
        left.into_iter().for_each(|task| task.unwrap());
        eventually(|| hubs[1].stats().subscriptions == 0).await;
    });
}

#[test]
fn shutdown_ends_every_subscription_and_releases_the_backend() {
    on_four_threads(async {
        let (hubs, connections) = two(&Shared::new(PLENTY), 1).await;
        let ids = publish_many(&hubs[0], 5).await;
        has_read(&hubs[1], 5).await;
        let live = subscribe(&hubs[1], Start::Latest).await;
        connections[1].set(Mode::Fails);
        let waits = subscribe(&hubs[1], ids[0].clone()).await;
        let ends = [live, waits].map(|mut client| tokio::spawn(async move { take(&mut client, 1).await }));
        sleep(Duration::from_millis(10)).await;
        hubs[1].shutdown();
        for end in ends {
            assert_eq!(in_time(end).await.unwrap(), ["end"]);
        }
        eventually(|| connections[1].asked.follows.load(Relaxed) == 0).await;
        let [_, hub] = hubs;
        drop(hub);
        eventually(|| std::sync::Arc::strong_count(&connections[1].asked) == 1).await;
    });
}
