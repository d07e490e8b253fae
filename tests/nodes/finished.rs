//! Finished topics, on the node that has finished them and on others.

use super::{
    PLENTY, data, data_soon,
    faulty::{Mode, Shared},
    hub, numbers, publish, settle, status, subscribe, two,
};
use std::time::Duration;
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Start},
};

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
