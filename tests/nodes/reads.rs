//! History reads under load: clients that leave cost no read, and the queue of reads is bounded.

use super::{Faulty, Mode, PLENTY, Shared, data_soon, numbers, publish, settle, subscribe, two};
use futures_util::{FutureExt, future::join_all};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_test::{assert_pending, task};
use tower_sse::{
    Event, EventId,
    hub::{Error, ErrorKind, Hub, Start, Subscription},
};

/// The documented limit of different reads that run or wait.
const MAX_QUEUED_READS: usize = 1_024;
const READ: Duration = Duration::from_millis(5);

/// Two nodes that retain one event, a log of so many events of the topic "a", and the ids of all
/// events.
async fn nodes_with_history(events: usize) -> ([Hub; 2], [Faulty; 2], Vec<EventId>) {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    hubs[0].topic("a").publish_all((0..events).map(Event::display)).await.unwrap();
    let letters = shared.log().letters;
    // Positions begin with 1.
    let ids = (1..=events).map(|position| EventId::new(format!("{letters}-{position}")).unwrap());
    sleep(Duration::from_secs(1)).await;
    connections[1].delay.store(READ.as_millis() as u64, Relaxed);
    (hubs, connections, ids.collect())
}

#[tokio::test(start_paused = true)]
async fn leaving_clients_delay_next_client_by_few_reads() {
    const CLIENTS: usize = 20_000;
    let (hubs, connections, ids) = nodes_with_history(CLIENTS + 10).await;
    let topic = hubs[1].topic("a");
    let asked = &connections[1].asked;
    for patience in [Duration::ZERO, Duration::from_millis(1), 3 * READ] {
        asked.reads.store(0, Relaxed);
        // All clients come at the same time.
        let clients = ids[..CLIENTS].iter().map(|id| timeout(patience, topic.subscribe(id.clone())));
        join_all(clients).await;
        // And one after the other.
        for id in &ids[..CLIENTS] {
            assert!(timeout(Duration::ZERO, topic.subscribe(id.clone())).await.is_err());
        }
        let begun = Instant::now();
        let next = subscribe(&hubs[1], "a", ids[CLIENTS + 5].clone()).await;
        assert!(next.is_resumed());
        assert!(begun.elapsed() <= 3 * READ, "{:?} after clients that waited for {patience:?}", begun.elapsed());
        let reads = asked.reads.load(Relaxed);
        assert!(reads <= 40, "{reads} reads for clients that waited for {patience:?}");
    }
    assert_eq!(hubs[1].stats().subscriptions, 0, "nothing is left of the clients");
    let [_, connection] = connections;
    drop((hubs, topic));
    settle().await;
    assert_eq!(Arc::strong_count(&connection.asked), 1, "no task holds the backend");
}

#[tokio::test(start_paused = true)]
async fn subscribing_is_overloaded_while_the_queue_is_full() {
    let (hubs, connections, ids) = nodes_with_history(MAX_QUEUED_READS + 10).await;
    let topic = hubs[1].topic("a");
    connections[1].set(Mode::Hangs);
    let mut waiting: Vec<_> = ids[..MAX_QUEUED_READS].iter().map(|id| Box::pin(topic.subscribe(id.clone()))).collect();
    assert!(waiting.iter_mut().all(|client| client.now_or_never().is_none()));
    let error = topic.subscribe(ids[MAX_QUEUED_READS].clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::Overloaded, 503));
    assert_eq!(
        error.to_string(),
        "the limit of 1024 history reads at the same time is reached; subscribe again later with the same id"
    );
    assert_eq!(hubs[1].stats().subscriptions, MAX_QUEUED_READS, "nothing is left of the rejected client");
    // A client that shares a read, and clients that need no read, are not rejected.
    assert!(topic.subscribe(ids[7].clone()).now_or_never().is_none());
    assert!(topic.subscribe(ids[ids.len() - 1].clone()).await.unwrap().is_resumed());
    drop(topic.subscribe(Start::Latest).await.unwrap());
    // One client leaves, and another takes its place.
    waiting.pop();
    assert!(topic.subscribe(ids[MAX_QUEUED_READS].clone()).now_or_never().is_none());
    drop(waiting);
    assert_eq!(hubs[1].stats().subscriptions, 0);

    connections[1].set(Mode::Works);
    let subscriptions = join_all(ids[..MAX_QUEUED_READS].iter().map(|id| topic.subscribe(id.clone()))).await;
    assert!(subscriptions.iter().all(|subscription| subscription.as_ref().unwrap().is_resumed()));
    assert!((2..=8).contains(&connections[1].asked.most_reads_at_once.load(Relaxed)));
}

#[tokio::test(start_paused = true)]
async fn open_subscription_retries_while_the_queue_is_full() {
    let (hubs, connections, ids) = nodes_with_history(MAX_QUEUED_READS + 10).await;
    let mut slow = subscribe(&hubs[1], "a", Start::Latest).await;
    hubs[0].topic("a").publish_all((0..5).map(Event::display)).await.unwrap();
    settle().await;
    connections[1].set(Mode::Hangs);
    let topic = hubs[1].topic("a");
    let mut waiting: Vec<_> = ids[..MAX_QUEUED_READS].iter().map(|id| Box::pin(topic.subscribe(id.clone()))).collect();
    assert!(waiting.iter_mut().all(|client| client.now_or_never().is_none()));
    for _ in 0..3 {
        assert_pending!(slow.poll_next());
        assert_eq!(topic.subscribe(ids[MAX_QUEUED_READS].clone()).await.unwrap_err().kind(), ErrorKind::Overloaded);
        sleep(Duration::from_millis(400)).await;
    }
    let reads = connections[1].asked.reads.load(Relaxed);
    drop(waiting);
    connections[1].delay.store(0, Relaxed);
    connections[1].set(Mode::Works);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(data_soon(&mut slow).await, numbers(0..5));
    assert!(connections[1].asked.reads.load(Relaxed) > reads);
    assert_eq!(hubs[1].stats().gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn clients_of_same_read_share_queue_entry() {
    let (hubs, connections, ids) = nodes_with_history(10).await;
    let topic = hubs[1].topic("a");
    let clients = join_all((0..5_000).map(|_| topic.subscribe(ids[3].clone()))).await;
    assert!(clients.into_iter().all(|client| client.unwrap().is_resumed()));
    assert!(connections[1].asked.reads.load(Relaxed) <= 2);
    let mut back = task::spawn(topic.subscribe(ids[3].clone()).await.unwrap());
    assert_eq!(data_soon(&mut back).await, numbers(4..10));
}

async fn read(hub: &Hub) -> Result<Vec<String>, Error> {
    let events = hub.read(["a"], Start::Earliest).await?;
    Ok(events.map(|published| published.unwrap().event.event_data().unwrap().into_owned()).collect().await)
}

#[tokio::test(start_paused = true)]
async fn read_waits_for_events_of_other_nodes() {
    // The node retains all events that it has read, or most events are only in the log.
    for max_events in [100, 3] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(max_events)).await;
        hubs[0].topic("a").publish_all((0..20).map(Event::display)).await.unwrap();
        settle().await;
        connections[1].lag.store(1000, Relaxed);
        hubs[0].topic("a").publish(Event::display(20)).await.unwrap();
        assert_eq!(read(&hubs[1]).await.unwrap(), numbers(0..21));
    }
}

#[tokio::test(start_paused = true)]
async fn read_fails_if_the_end_of_the_log_is_unknown() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    hubs[0].topic("a").publish(Event::new("0")).await.unwrap();
    for mode in [Mode::Fails, Mode::Hangs, Mode::Lags] {
        connections[1].set(mode);
        hubs[0].topic("a").publish(Event::new("unread")).await.unwrap();
        let begun = Instant::now();
        let error = read(&hubs[1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend, "{mode:?}: {error}");
        assert!(begun.elapsed() <= Duration::from_secs(10), "{mode:?}: {:?}", begun.elapsed());
        connections[1].set(Mode::Works);
        settle().await;
    }
    assert_eq!(read(&hubs[1]).await.unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_read_that_waits() {
    for mode in [Mode::Lags, Mode::Hangs] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, Hub::builder).await;
        connections[1].set(mode);
        hubs[0].topic("a").publish(Event::new("unread")).await.unwrap();
        let mut reading = task::spawn(read(&hubs[1]));
        assert_pending!(reading.poll());
        settle().await;
        assert_pending!(reading.poll());
        hubs[1].shutdown();
        settle().await;
        let error = reading.now_or_never().expect("it has ended").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shutdown, "{mode:?}");
    }
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
