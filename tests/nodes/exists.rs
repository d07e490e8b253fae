//! `Topic::exists_in_log` finds topics that are in the log, whether the local node knows them or
//! not.

use super::{
    PLENTY,
    faulty::{Mode, Shared},
    publish,
    recording::{SECOND, log},
    settle, subscribe, two,
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_test::task;
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Start},
};

async fn exists(hub: &Hub, topic: &str) -> bool {
    hub.topic(topic).exists_in_log().await.unwrap()
}

/// Returns the number of questions and answers in the log.
fn questions(shared: &Shared) -> usize {
    log(shared, "tower-sse/nodes").len()
}

/// A node that starts reads one record in 0.1 seconds. `connect` returns after 5 seconds.
#[tokio::test(start_paused = true)]
async fn topic_exists_while_starting_node_reads_log() {
    let shared = Shared::new(PLENTY);
    let ([one, _], _) = two(&shared, Hub::builder).await;
    for n in 0..500 {
        publish(&one, &format!("chat/{n}"), n).await;
    }
    one.topic("chat/498").remove().await.unwrap();
    let slow = shared.connect();
    slow.page.store(1, Relaxed);
    slow.lag.store(100, Relaxed);
    let node = Hub::builder().backend(slow).connect().await.unwrap();
    assert!(!node.topic("chat/499").exists(), "the node has not read it yet");
    let begun = Instant::now();
    for n in [499, 300, 100, 0] {
        assert!(exists(&node, &format!("chat/{n}")).await, "{n}");
    }
    assert!(begun.elapsed() < SECOND / 10, "{:?}", begun.elapsed());
    assert_eq!(questions(&shared), 0, "no other node was asked");
    assert!(!exists(&node, "chat/500").await);
    sleep(SECOND * 60).await;
    assert!(node.topic("chat/499").exists());
    assert!(!exists(&node, "chat/498").await);
}

#[tokio::test(start_paused = true)]
async fn topic_that_nodes_have_forgotten_exists_in_log() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_age(SECOND * 10)).await;
    publish(&one, "a", 0).await;
    publish(&one, "finished", 0).await;
    one.topic("finished").finish().await.unwrap();
    sleep(SECOND * 60).await;
    publish(&one, "b", 0).await;
    settle().await;
    for topic in ["a", "finished"] {
        connection.asked.reads.store(0, Relaxed);
        assert!(!other.topic(topic).exists());
        assert!(exists(&other, topic).await);
        assert_eq!(connection.asked.reads.load(Relaxed), 1);
        assert!(!other.topic(topic).exists(), "a question creates no topic");
    }
    assert_eq!(questions(&shared), 0, "no other node was asked");
    // The nodes know that they have read no record of this topic.
    assert!(!exists(&other, "never").await);
    assert_eq!(connection.asked.reads.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn topic_is_found_after_many_pages_of_other_topics() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_age(SECOND * 10).max_topics(1)).await;
    publish(&other, "first", 0).await;
    for n in 0..100 {
        publish(&one, "first", n).await;
    }
    // The node has no room for this topic.
    shared.append_event("second", "0");
    settle().await;
    connection.page.store(1, Relaxed);
    assert!(!other.topic("second").exists());
    assert!(exists(&other, "second").await);
    assert!(exists(&other, "first").await);
}

#[tokio::test(start_paused = true)]
async fn removed_topic_does_not_exist_in_log() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_age(SECOND * 10)).await;
    publish(&hubs[0], "a", 0).await;
    hubs[0].topic("a").remove().await.unwrap();
    settle().await;
    for hub in &hubs {
        assert!(!exists(hub, "a").await);
    }
    // The other node has not read the end of the log.
    connections[1].set(Mode::Lags);
    publish(&hubs[0], "b", 0).await;
    assert!(exists(&hubs[1], "b").await);
    hubs[0].topic("b").remove().await.unwrap();
    assert!(!exists(&hubs[1], "b").await);
    publish(&hubs[0], "b", 1).await;
    assert!(exists(&hubs[1], "b").await);
    connections[1].set(Mode::Works);
    publish(&hubs[0], "a", 1).await;
    sleep(SECOND * 60).await;
    for hub in &hubs {
        assert!(!hub.topic("a").exists() && !hub.topic("b").exists());
        assert!(exists(hub, "a").await && exists(hub, "b").await, "an event follows the removal");
    }
}

#[tokio::test(start_paused = true)]
async fn topic_that_log_has_evicted_does_not_exist() {
    let shared = Shared::new(10);
    let (hubs, connections) = two(&shared, || Hub::builder().max_age(SECOND * 10)).await;
    publish(&hubs[0], "a", 0).await;
    sleep(SECOND * 60).await;
    assert!(exists(&hubs[1], "a").await);
    for n in 0..20 {
        publish(&hubs[0], "b", n).await;
    }
    for hub in &hubs {
        assert!(!exists(hub, "a").await);
    }
    // The node of a restarted process, too.
    let third = Hub::builder().backend(shared.connect()).connect().await.unwrap();
    assert!(!exists(&third, "a").await && exists(&third, "b").await);
    drop(connections);
}

#[tokio::test(start_paused = true)]
async fn topic_of_the_hub_does_not_exist() {
    let shared = Shared::new(PLENTY);
    let ([one, other], _) = two(&shared, Hub::builder).await;
    let _reader = subscribe(&one, "a", Start::Latest).await;
    assert_eq!(other.topic("a").subscribers_anywhere().await.unwrap(), 1);
    let before = questions(&shared);
    assert!(before > 0 && !exists(&other, "tower-sse/nodes").await);
    assert_eq!(questions(&shared), before);
}

/// An unknown topic is an error and not `false`, because clients stop for good after a 404.
#[tokio::test(start_paused = true)]
async fn search_that_fails_is_an_error() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_age(SECOND * 10)).await;
    publish(&one, "a", 0).await;
    sleep(SECOND * 60).await;
    let error = async || other.topic("a").exists_in_log().await.unwrap_err();
    for mode in [Mode::Fails, Mode::Hangs] {
        connection.set(mode);
        let begun = Instant::now();
        assert_eq!(error().await.kind(), ErrorKind::Backend, "{mode:?}");
        assert!(begun.elapsed() <= SECOND * 11, "{mode:?}: {:?}", begun.elapsed());
    }
    connection.set(Mode::Works);
    sleep(SECOND).await;
    connection.delay.store(20_000, Relaxed);
    assert_eq!(error().await.kind(), ErrorKind::Backend);
    connection.delay.store(0, Relaxed);
    assert!(exists(&other, "a").await);
    other.shutdown();
    assert_eq!(error().await.kind(), ErrorKind::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn search_is_rejected_while_too_many_reads_wait() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_events(1).max_age(SECOND * 10)).await;
    publish(&one, "a", 0).await;
    sleep(SECOND * 60).await;
    let mut ids = Vec::new();
    for n in 0..1_030 {
        ids.push(publish(&one, "b", n).await);
    }
    settle().await;
    connection.delay.store(5_000, Relaxed);
    let topic = other.topic("b");
    let mut waiting: Vec<_> = ids[..1_024].iter().map(|id| Box::pin(topic.subscribe(id.clone()))).collect();
    for client in &mut waiting {
        assert!(futures_util::poll!(client).is_pending());
    }
    let found = timeout(SECOND, other.topic("a").exists_in_log()).await.expect("it is rejected at once");
    assert_eq!(found.unwrap_err().kind(), ErrorKind::Overloaded);
    drop(waiting);
    connection.delay.store(0, Relaxed);
    sleep(Duration::from_secs(10)).await;
    assert!(exists(&other, "a").await);
    other.topic("a").publish(Event::new("1")).await.unwrap();
}

/// Futures in a buffer are not polled while the application handles an earlier result.
#[tokio::test(start_paused = true)]
async fn searches_that_are_not_polled_block_no_other() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_age(SECOND * 10).max_topics(1)).await;
    publish(&other, "first", 0).await;
    for n in 0..10 {
        shared.append_event(&n.to_string(), "x");
    }
    settle().await;
    connection.delay.store(5, Relaxed);
    let topics = ["8", "9", "0"].map(|topic| other.topic(topic));
    let mut searches = topics.each_ref().map(|topic| task::spawn(topic.exists_in_log()));
    // The first poll asks for the end of the log, and the second one reads a page.
    for _ in 0..2 {
        assert!(searches[..2].iter_mut().all(|search| search.poll().is_pending()));
        sleep(SECOND / 1000).await;
    }
    sleep(SECOND).await;
    let third = timeout(SECOND * 5, &mut searches[2]).await.expect("it does not wait for the others");
    assert!(third.unwrap());
    drop(one);
}
