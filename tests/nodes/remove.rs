//! `Topic::remove` on several nodes: the removal is a record of the log.

use super::{Mode, PLENTY, Shared, data, data_soon, hub, numbers, publish, settle, status, subscribe, two};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use support::pass_on;
use tokio::time::{Instant, sleep};
use tokio_test::task;
use tower_sse::{
    BoxError, Event,
    hub::{
        ErrorKind, GapReason, Hub, Start, Subscription,
        backend::{Backend, MemoryBackend, Page, Position},
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the rest of the data. The pages of the removed events are empty.
async fn rest(subscription: &mut task::Spawn<Subscription>) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..50 {
        all.extend(data_soon(subscription).await);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn removal_on_one_node_removes_topic_on_all() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let early = publish(&hubs[0], "a", 0).await;
    let last = publish(&hubs[1], "a", 1).await;
    publish(&hubs[1], "b", 2).await;
    hubs[0].topic("a").remove().await.unwrap();
    settle().await;
    for hub in &hubs {
        assert!(!hub.topic("a").exists());
        assert_eq!((hub.stats().topics, hub.stats().events), (1, 1), "the other topic remains");
        assert_eq!(data_soon(&mut subscribe(hub, "a", Start::Earliest).await).await, [""; 0]);
        let back = subscribe(hub, "a", last.clone()).await;
        assert!(back.is_resumed() && back.gap().is_none(), "a client that has every event misses none");
        let back = subscribe(hub, "a", early.clone()).await;
        assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    }
    let reads = connections.map(|connection| connection.asked.reads.load(Relaxed));
    assert_eq!(reads, [0, 0], "the nodes know that the backend has nothing to replay");
    let mut back = subscribe(&hubs[1], "a", early).await;
    publish(&hubs[0], "a", 3).await;
    assert_eq!(data_soon(&mut back).await, ["evicted", "3"]);
    let mut both = task::spawn(hubs[1].subscribe(["a", "b"], Start::Earliest).await.unwrap());
    assert_eq!(data_soon(&mut both).await, numbers(2..4));
}

#[tokio::test(start_paused = true)]
async fn open_subscriptions_of_all_nodes_continue() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    for hub in &hubs {
        let mut complete = subscribe(hub, "a", Start::Latest).await;
        let mut behind = subscribe(hub, "a", Start::Latest).await;
        publish(&hubs[1], "a", 0).await;
        settle().await;
        assert_eq!(data(&mut complete), numbers(0..1));
        hubs[0].topic("a").remove().await.unwrap();
        publish(&hubs[0], "a", 1).await;
        assert_eq!(data_soon(&mut complete).await, numbers(1..2));
        assert_eq!(data_soon(&mut behind).await, ["lagged", "1"]);
        assert!(complete.gap().is_none());
    }
}

/// The nodes retain three events per topic, so clients read the rest from the backend, where the
/// removed events still are.
#[tokio::test(start_paused = true)]
async fn removed_events_are_not_replayed_from_backend() {
    for page in [1, 2, 7, 1000] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(3)).await;
        connections.iter().for_each(|connection| connection.page.store(page, Relaxed));
        let mut ids = Vec::new();
        for n in 0..20 {
            ids.push(publish(&hubs[0], if n % 4 == 3 { "b" } else { "a" }, n).await);
        }
        hubs[1].topic("a").remove().await.unwrap();
        let after = publish(&hubs[1], "a", 20).await;
        for n in 21..40 {
            publish(&hubs[0], if n % 4 == 3 { "b" } else { "a" }, n).await;
        }
        sleep(SECOND).await;
        let of_a = || (20..40).filter(|n| n % 4 != 3);
        let of_b = || (0..40).filter(|n| n % 4 == 3);
        // The node of a restarted process, too.
        let third = Hub::builder().max_events(3).backend(shared.connect()).connect().await.unwrap();
        for hub in hubs.iter().chain([&third]) {
            let mut earliest = subscribe(hub, "a", Start::Earliest).await;
            assert!(earliest.poll_next().is_ready(), "the first page is after the removed events");
            let mut earliest = subscribe(hub, "a", Start::Earliest).await;
            assert_eq!(rest(&mut earliest).await, numbers(of_a()), "pages of {page}");
            assert!(earliest.gap().is_none());
            let mut resumed = subscribe(hub, "a", after.clone()).await;
            assert_eq!(rest(&mut resumed).await, numbers(of_a().skip(1)));
            assert!(resumed.gap().is_none(), "the removed events are older than its id");
            let mut back = subscribe(hub, "a", ids[5].clone()).await;
            assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
            assert_eq!(rest(&mut back).await[1..], numbers(of_a()));
            let mut all: Vec<_> = of_a().chain(of_b()).collect();
            all.sort_unstable();
            let mut both = task::spawn(hub.subscribe(["a", "b"], Start::Earliest).await.unwrap());
            assert_eq!(rest(&mut both).await, numbers(all.clone()));
            let mut both = task::spawn(hub.subscribe(["b", "a"], ids[1].clone()).await.unwrap());
            let read = rest(&mut both).await;
            assert_eq!(read.iter().filter(|data| data.parse::<usize>().is_err()).count(), 1, "{read:?}");
            assert_eq!(read[1..], numbers(all), "one gap, and then the rest in order");
            let mut other = subscribe(hub, "b", ids[1].clone()).await;
            assert_eq!(rest(&mut other).await, numbers(of_b()));
            assert!(other.gap().is_none(), "its topic was not removed");
        }
    }
}

/// A page of the backend was read, and waits for a slow client, when the topic is removed.
#[tokio::test(start_paused = true)]
async fn page_that_waits_for_client_is_not_delivered_after_removal() {
    for is_resumed in [false, true] {
        let (hubs, _connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(2)).await;
        let first = publish(&hubs[0], "a", 0).await;
        for n in 1..20 {
            publish(&hubs[0], "a", n).await;
        }
        settle().await;
        let start = if is_resumed { first.into() } else { Start::Earliest };
        let mut slow = subscribe(&hubs[0], "a", start).await;
        hubs[1].topic("a").remove().await.unwrap();
        settle().await;
        publish(&hubs[1], "a", 20).await;
        let read = rest(&mut slow).await;
        assert_eq!(read.last().map(String::as_str), Some("20"), "{read:?}");
        assert!(read[..read.len() - 1].iter().all(|gap| gap == "lagged"), "{read:?}");
        assert!(!is_resumed || read.len() == 2, "one gap: {read:?}");
    }
}

/// A node with a subscriber and a node without one agree that the topic is finished.
#[tokio::test(start_paused = true)]
async fn topic_that_is_finished_again_after_removal_stays_finished() {
    for node in [0, 1] {
        let (hubs, _connections) = two(&Shared::new(PLENTY), Hub::builder).await;
        publish(&hubs[0], "a", 0).await;
        settle().await;
        let subscriber = subscribe(&hubs[0], "a", Start::Latest).await;
        let topic = hubs[node].topic("a");
        topic.finish().await.unwrap();
        topic.remove().await.unwrap();
        topic.finish().await.unwrap();
        settle().await;
        drop(subscriber);
        assert_is_finished(&hubs).await;
    }
}

async fn assert_is_finished(hubs: &[Hub; 2]) {
    for hub in hubs {
        let error = hub.topic("a").publish(Event::new("late")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Finished);
    }
}

/// The node has appended three records that it has not read yet.
#[tokio::test(start_paused = true)]
async fn topic_that_node_behind_finishes_again_stays_finished() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    connections[1].set(Mode::Lags);
    let topic = hubs[1].topic("a");
    topic.finish().await.unwrap();
    topic.remove().await.unwrap();
    topic.finish().await.unwrap();
    topic.finish().await.unwrap();
    connections[1].set(Mode::Works);
    settle().await;
    assert_is_finished(&hubs).await;
}

#[tokio::test(start_paused = true)]
async fn topic_whose_removal_is_not_read_yet_stays_finished() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let topic = hubs[1].topic("a");
    topic.finish().await.unwrap();
    settle().await;
    connections[1].set(Mode::Lags);
    topic.remove().await.unwrap();
    topic.finish().await.unwrap();
    connections[1].set(Mode::Works);
    settle().await;
    assert_is_finished(&hubs).await;
}

/// The topic that needs a replay comes before the removed topic, and after it.
#[tokio::test(start_paused = true)]
async fn gap_of_removed_topic_is_reported_next_to_a_replay() {
    for names in [["a", "b"], ["b", "a"]] {
        let (hubs, _connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(2)).await;
        let [removed, long] = names;
        let first = publish(&hubs[0], removed, 0).await;
        publish(&hubs[0], removed, 1).await;
        for n in 2..8 {
            publish(&hubs[0], long, n).await;
        }
        hubs[0].topic(removed).remove().await.unwrap();
        let mut both = task::spawn(hubs[0].subscribe(names, first).await.unwrap());
        assert_eq!(both.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
        assert_eq!(data_soon(&mut both).await[1..], numbers(2..8));
    }
}

#[tokio::test(start_paused = true)]
async fn node_behind_removes_topic_when_it_reads_the_log() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    publish(&hubs[0], "a", 0).await;
    settle().await;
    connections[1].set(Mode::Lags);
    let begun = Instant::now();
    hubs[0].topic("a").remove().await.unwrap();
    assert!(begun.elapsed() < SECOND, "it does not wait for other nodes");
    assert_eq!(data_soon(&mut subscribe(&hubs[1], "a", Start::Earliest).await).await, numbers(0..1));
    // A node behind waits for itself, but not forever.
    hubs[1].topic("b").remove().await.unwrap();
    assert!((9..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    connections[1].set(Mode::Works);
    settle().await;
    assert_eq!(data_soon(&mut subscribe(&hubs[1], "a", Start::Earliest).await).await, [""; 0]);
}

/// A client reads a replay page by page while the topic is removed.
#[tokio::test(start_paused = true)]
async fn removal_during_a_replay_is_a_gap() {
    let (hubs, connections) = two(&Shared::new(PLENTY), || Hub::builder().max_events(2)).await;
    for n in 0..20 {
        publish(&hubs[0], "a", n).await;
    }
    settle().await;
    connections[0].page.store(5, Relaxed);
    let mut slow = subscribe(&hubs[0], "a", Start::Earliest).await;
    let std::task::Poll::Ready(Some(Ok(first))) = slow.poll_next() else { panic!("the first page") };
    assert_eq!(first.count(), 5);
    hubs[1].topic("a").remove().await.unwrap();
    publish(&hubs[1], "a", 20).await;
    settle().await;
    assert_eq!(data_soon(&mut slow).await, ["lagged", "20"]);
}

#[tokio::test(start_paused = true)]
async fn finished_and_removed_topic_begins_again_on_all_nodes() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let id = publish(&hubs[0], "a", 0).await;
    let mut open = [subscribe(&hubs[0], "a", id.clone()).await, subscribe(&hubs[1], "a", id.clone()).await];
    hubs[1].topic("a").finish().await.unwrap();
    hubs[1].topic("a").remove().await.unwrap();
    settle().await;
    for subscription in &mut open {
        assert_eq!(data_soon(subscription).await, ["end"]);
    }
    drop(open);
    settle().await;
    for (n, hub) in hubs.iter().enumerate() {
        assert!(!hub.topic("a").exists());
        assert_eq!(status(hub.topic("a").subscribe(id.clone()).await.unwrap()), 200, "it is forgotten");
        publish(hub, "a", n).await;
    }
    settle().await;
    assert_eq!(data_soon(&mut subscribe(&hubs[0], "a", Start::Earliest).await).await, numbers(0..2));
    let reads = connections.map(|connection| connection.asked.reads.load(Relaxed));
    assert_eq!(reads, [0, 0], "the nodes know that the backend has nothing to replay");
    // It can be finished again, and this end is remembered.
    hubs[0].topic("a").finish().await.unwrap();
    settle().await;
    let error = hubs[1].topic("a").publish(Event::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Finished);
}

/// The topic was removed while it had a subscriber, and continues with a new event.
#[tokio::test(start_paused = true)]
async fn end_of_reopened_topic_is_remembered() {
    let (hubs, _connections) = two(&Shared::new(PLENTY), || Hub::builder().max_age(60 * SECOND)).await;
    let open = subscribe(&hubs[0], "a", Start::Latest).await;
    hubs[1].topic("a").finish().await.unwrap();
    hubs[1].topic("a").remove().await.unwrap();
    settle().await;
    assert_eq!(hubs[0].topic("a").publish(Event::new("")).await.unwrap_err().kind(), ErrorKind::Finished);
    publish(&hubs[1], "a", 0).await;
    sleep(50 * SECOND).await;
    hubs[1].topic("a").finish().await.unwrap();
    // The event has expired, and the end has not.
    sleep(20 * SECOND).await;
    drop(open);
    for hub in &hubs {
        assert_eq!(hub.topic("a").publish(Event::new("")).await.unwrap_err().kind(), ErrorKind::Finished);
    }
}

/// The log retains 5 records, so the removal is evicted, and everything before it as well.
#[tokio::test(start_paused = true)]
async fn evicted_removal_leaves_evicted_events() {
    let shared = Shared::new(5);
    let (hubs, _connections) = two(&shared, Hub::builder).await;
    let early = publish(&hubs[0], "a", 0).await;
    publish(&hubs[0], "a", 1).await;
    hubs[0].topic("a").remove().await.unwrap();
    for n in 2..12 {
        publish(&hubs[0], "b", n).await;
    }
    settle().await;
    for hub in hubs.iter().chain([&hub(shared.connect()).await]) {
        assert_eq!(data_soon(&mut subscribe(hub, "a", Start::Earliest).await).await, [""; 0]);
        let back = subscribe(hub, "a", early.clone()).await;
        assert_eq!(back.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    }
}

#[tokio::test(start_paused = true)]
async fn failed_removal_removes_nothing() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    publish(&hubs[0], "a", 0).await;
    connections[0].set(Mode::Fails);
    assert_eq!(hubs[0].topic("a").remove().await.unwrap_err().kind(), ErrorKind::Backend);
    connections[0].set(Mode::Works);
    sleep(SECOND).await;
    for hub in &hubs {
        assert_eq!(data_soon(&mut subscribe(hub, "a", Start::Earliest).await).await, numbers(0..1));
    }
    let reserved = hubs[0].topic("tower-sse/nodes").remove().await.unwrap_err();
    assert_eq!(reserved.kind(), ErrorKind::ReservedTopic);
    hubs[0].shutdown();
    assert_eq!(hubs[0].topic("a").remove().await.unwrap_err().kind(), ErrorKind::Shutdown);
}

/// The node has no room for the removed topic, and must not serve its events later.
#[tokio::test(start_paused = true)]
async fn removal_over_the_limit_of_topics_is_remembered() {
    let shared = Shared::new(PLENTY);
    let one = hub(shared.connect()).await;
    let small = Hub::builder().max_topics(1).backend(shared.connect()).connect().await.unwrap();
    let filled = subscribe(&small, "b", Start::Latest).await;
    let early = publish(&one, "a", 0).await;
    publish(&one, "a", 1).await;
    one.topic("a").remove().await.unwrap();
    publish(&one, "a", 2).await;
    settle().await;
    drop(filled);
    let mut earliest = subscribe(&small, "a", Start::Earliest).await;
    assert_eq!(data_soon(&mut earliest).await, numbers(2..3));
    drop(earliest);
    assert_eq!(data_soon(&mut subscribe(&small, "a", early).await).await, ["evicted", "2"]);
}

/// A log whose follower reports the record at this position as missing, like the mark of a failover
/// in Redis. The earlier records can still be read.
struct Hole {
    log: MemoryBackend,
    at: Position,
}

impl Backend for Hole {
    pass_on!(log: bounds append append_if_unchanged read);

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let mut page = self.log.follow(after).await?;
        if after.next() == self.at {
            page.evicted_through = self.at;
            page.records.retain(|(position, _)| *position > self.at);
        } else if after < self.at && page.through >= self.at {
            page.through = self.at.previous();
            page.records.retain(|(position, _)| *position < self.at);
        }
        Ok(page)
    }
}

#[tokio::test(start_paused = true)]
async fn removed_events_stay_hidden_after_a_hole_in_the_log() {
    let log = Hole { log: MemoryBackend::new(PLENTY), at: Position::new(3) };
    let hub = Hub::builder().max_events(1).backend(log).connect().await.unwrap();
    publish(&hub, "a", "removed").await;
    hub.topic("a").remove().await.unwrap();
    publish(&hub, "b", "missing").await;
    publish(&hub, "a", 1).await;
    publish(&hub, "a", 2).await;
    settle().await;
    assert_eq!(data_soon(&mut subscribe(&hub, "a", Start::Earliest).await).await, ["1", "2"]);
}
