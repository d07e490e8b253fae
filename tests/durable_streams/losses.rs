//! Missing events: each loss is a 410, in every mode.

use super::*;
use std::time::Duration;
use tokio::time::advance;
use tokio_test::{assert_pending, task};

const MODES: [&str; 3] = ["", "&live=long-poll", "&live=sse"];

async fn assert_gone(streams: &DurableStreams, offset: &str) {
    for mode in MODES {
        let answer = get(streams, &format!("/t?offset={offset}{mode}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (410, Some("no-store")), "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn evicted_offset_is_gone_and_the_oldest_one_is_not() {
    let hub = Hub::builder().max_events(3).build();
    let topic = hub.topic("t");
    let streams = all(&hub).page_size(1);
    publish(&topic, "0").await;
    let zero = get(&streams, "/t").await.next_offset();
    publish(&topic, "1").await;
    let one = get(&streams, &format!("/t?offset={zero}")).await.next_offset();
    publish_all(&topic, ["2", "3", "4"]).await;
    assert_gone(&streams, &zero).await;
    assert_eq!(get(&streams, &format!("/t?offset={one}")).await.text(), "[2]", "nothing after this offset is missing");
    assert_eq!(get(&streams, "/t?offset=-1").await.text(), "[2]", "the beginning is the oldest retained event");
}

#[tokio::test(start_paused = true)]
async fn offset_of_another_log_is_gone() {
    let (hub, other) = (Hub::new(), Hub::new());
    publish(&hub.topic("t"), "1").await;
    publish(&other.topic("t"), "1").await;
    let offset = get(&all(&other), "/t").await.next_offset();
    assert_gone(&all(&hub), &offset).await;
}

#[tokio::test(start_paused = true)]
async fn offset_that_was_never_issued_is_gone() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let offset = get(&all(&hub), "/t").await.next_offset();
    let ahead = format!("{}9", &offset[..offset.len() - 1]);
    assert_gone(&all(&hub), &ahead).await;
}

#[tokio::test(start_paused = true)]
async fn expired_topic_is_not_found_and_then_gone() {
    let hub = Hub::builder().max_age(Duration::from_secs(60)).build();
    let topic = hub.topic("t");
    let streams = all(&hub).page_size(1);
    publish_all(&topic, ["1", "2"]).await;
    let first = get(&streams, "/t").await.next_offset();
    let last = get(&streams, "/t?offset=now").await.next_offset();
    advance(Duration::from_secs(100)).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(get(&streams, &format!("/t?offset={first}")).await.status, 404);
    publish(&topic, "3").await;
    assert_gone(&streams, &first).await;
    assert_eq!(get(&streams, &format!("/t?offset={last}")).await.text(), "[3]");
}

#[tokio::test(start_paused = true)]
async fn removed_events_are_gone() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    let streams = all(&hub).page_size(1);
    publish_all(&topic, ["1", "2"]).await;
    let first = get(&streams, "/t").await.next_offset();
    topic.remove().await.unwrap();
    assert_eq!(get(&streams, "/t").await.status, 404);
    publish(&topic, "3").await;
    assert_gone(&streams, &first).await;
    assert_eq!(get(&streams, "/t").await.text(), "[3]");
}

#[tokio::test(start_paused = true)]
async fn reader_at_the_end_outlives_the_events_of_its_topic() {
    let hub = Hub::builder().max_age(Duration::from_secs(60)).build();
    let topic = hub.topic("t");
    let streams = all(&hub);
    for mode in MODES {
        publish(&topic, "1").await;
        let mut offset = get(&streams, "/t?offset=now").await.next_offset();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let answer = get(&streams, &format!("/t?offset={offset}{mode}")).await;
            assert!(answer.status.is_success(), "{mode}: {answer:?}");
            if mode != "&live=sse" {
                assert!(answer.is_up_to_date() && answer.next_offset() == offset);
                offset = answer.next_offset();
            }
        }
        assert_eq!(hub.stats().topics, 0, "a request leaves no topic");
        publish(&topic, "2").await;
        assert_eq!(get(&streams, &format!("/t?offset={offset}")).await.text(), "[2]");
    }
}

#[tokio::test(start_paused = true)]
async fn reader_at_the_end_does_not_make_expired_topic_exist() {
    let hub = Hub::builder().max_age(Duration::from_secs(60)).build();
    let topic = hub.topic("t");
    let streams = all(&hub);
    publish(&topic, "1").await;
    let uri = format!("/t?offset={}&live=long-poll", head(&streams, "/t").await.next_offset());
    tokio::time::sleep(Duration::from_secs(200)).await;
    let mut waiting = task::spawn(get(&streams, &uri));
    assert_pending!(waiting.poll());
    assert_eq!((topic.subscribers(), topic.exists()), (1, false));
    for mode in MODES {
        assert_eq!(get(&streams, &format!("/t?offset=-1{mode}")).await.status, 404, "{mode}");
    }
    assert_eq!(head(&streams, "/t").await.status, 404);
    let subscription = topic.subscribe(tower_sse::hub::Start::Latest).await.unwrap();
    assert_eq!((topic.subscribers(), topic.exists()), (2, true));
    drop(subscription);
    publish(&topic, "2").await;
    assert_eq!(waiting.await.text(), "[2]");
    assert_eq!(get(&streams, "/t").await.text(), "[2]");
}

#[tokio::test(start_paused = true)]
async fn end_of_a_finished_or_removed_topic_is_not_found_later() {
    let hub = Hub::builder().max_age(Duration::from_secs(60)).build();
    let streams = all(&hub);
    let mut offsets = Vec::new();
    let topics = ["finished", "finished-late", "removed", "removed-late", "never"];
    for topic in ["finished", "finished-late", "removed", "removed-late", "busy"] {
        publish(&hub.topic(topic), "1").await;
        offsets.push(get(&streams, &format!("/{topic}")).await.next_offset());
    }
    hub.topic("finished").finish().await.unwrap();
    hub.topic("removed").remove().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(hub.stats().topics, 0);
    hub.topic("finished-late").finish().await.unwrap();
    hub.topic("removed-late").remove().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(hub.stats().topics, 0);
    for mode in MODES {
        for (topic, offset) in topics.iter().zip(&offsets) {
            // A subscriber that has created the topic again changes nothing.
            drop(hub.topic(*topic).subscribe(tower_sse::hub::Start::Latest).await.unwrap());
            let answer = get(&streams, &format!("/{topic}?offset={offset}{mode}")).await;
            assert_eq!(answer.status, 404, "{topic}{mode}");
            assert_eq!(hub.stats().topics, 0, "{topic}{mode}");
        }
    }
}
