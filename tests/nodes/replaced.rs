//! Another log replaces the log, and the nodes notice this at different times.

use super::*;

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
