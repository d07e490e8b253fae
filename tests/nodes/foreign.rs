//! Records of other programs that are not events have no effect.

use super::{PLENTY, data, data_soon, faulty::Shared, hub, publish, recording::SECOND, settle, status, subscribe};
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    Event,
    hub::{
        Hub, Start,
        backend::{Record, RecordKind},
    },
};

impl Shared {
    fn append_invalid(&self, topic: &str, kind: RecordKind) {
        self.append(vec![Record::new(topic, kind, "data: no end")]);
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_state_replaces_no_state_in_a_replay() {
    let shared = Shared::new(PLENTY);
    let hub = Hub::builder().max_events(1).backend(shared.connect()).connect().await.unwrap();
    let first = publish(&hub, "a", "first").await;
    hub.topic("here").latest_only().publish(Event::new("state")).await.unwrap();
    shared.append_invalid("here", RecordKind::State);
    for data in ["second", "third"] {
        publish(&hub, "a", data).await;
    }
    settle().await;
    let mut both = task::spawn(hub.subscribe(["a", "here"], first).await.unwrap());
    assert_eq!(data_soon(&mut both).await, ["state", "second", "third"]);
}

#[tokio::test(start_paused = true)]
async fn invalid_state_does_not_make_a_topic_latest_only() {
    let shared = Shared::new(PLENTY);
    let hub = hub(shared.connect()).await;
    let mut slow = subscribe(&hub, "a", Start::Latest).await;
    publish(&hub, "a", 0).await;
    shared.append_invalid("a", RecordKind::State);
    for n in 1..3 {
        publish(&hub, "a", n).await;
    }
    settle().await;
    assert_eq!(data(&mut slow), ["0", "1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn invalid_record_after_the_end_hides_no_end() {
    for kind in [RecordKind::Event, RecordKind::State] {
        let shared = Shared::new(PLENTY);
        let hub = Hub::builder().max_age(SECOND * 10).backend(shared.connect()).connect().await.unwrap();
        let last = publish(&hub, "a", "last").await;
        hub.topic("a").finish().await.unwrap();
        shared.append_invalid("a", kind);
        sleep(SECOND * 60).await;
        assert_eq!(hub.stats().topics, 0);
        assert_eq!(status(hub.topic("a").subscribe(last).await.unwrap()), 204, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_record_creates_no_topic() {
    let shared = Shared::new(PLENTY);
    let hub = hub(shared.connect()).await;
    for kind in [RecordKind::Event, RecordKind::State] {
        shared.append_invalid("a", kind);
    }
    publish(&hub, "b", 0).await;
    settle().await;
    assert_eq!(hub.stats().topics, 1);
    let topic = hub.topic("a");
    assert!(!topic.exists() && !topic.exists_in_log().await.unwrap());
}
