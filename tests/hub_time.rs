//! Expired events are removed without traffic, and without a task for each topic.

use http_body::Body;
use std::{task::Poll, time::Duration};
use support::whatwg;
use tokio::{runtime::Handle, time::sleep};
use tokio_test::{assert_pending, task};
use tower_sse::{
    Event, EventId, SseStream,
    hub::{ErrorKind, Hub, Retention, Start, Subscription},
};

const MAX_AGE: Duration = Duration::from_secs(64);
/// The time after which the memory of expired events is freed.
const A_WHILE: Duration = Duration::from_secs(4);

fn hub() -> Hub {
    Hub::builder().max_age(MAX_AGE).build()
}

async fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    hub.topic(topic).publish(Event::new(data)).await.unwrap()
}

async fn subscribe(hub: &Hub, topic: &str, start: impl Into<Start>) -> task::Spawn<Subscription> {
    task::spawn(hub.topic(topic).subscribe(start).await.unwrap())
}

fn data(subscription: &mut task::Spawn<Subscription>) -> Vec<String> {
    let mut data = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        data.extend(whatwg::parse(events.as_bytes()).messages.into_iter().map(|message| message.data));
    }
    data
}

#[tokio::test(start_paused = true)]
async fn event_is_retained_until_it_expires() {
    let hub = hub();
    publish(&hub, "a", "old").await;
    sleep(MAX_AGE / 2).await;
    publish(&hub, "a", "young").await;
    sleep(MAX_AGE / 2 - Duration::from_millis(2)).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["old", "young"]);
    sleep(Duration::from_millis(4)).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["young"]);
    sleep(MAX_AGE / 2).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn state_does_not_expire_while_topic_has_subscribers() {
    let hub = hub();
    let state = hub.topic("state").latest_only();
    let mut shows = subscribe(&hub, "state", Start::Latest).await;
    let id = state.publish(Event::new("open")).await.unwrap();
    assert_eq!(data(&mut shows), ["open"]);
    sleep(3 * MAX_AGE).await;
    let mut late = subscribe(&hub, "state", Start::Earliest).await;
    assert_eq!(data(&mut late), ["open"]);
    drop((shows, late));
    // From now on it ages.
    sleep(MAX_AGE - Duration::from_secs(1)).await;
    assert_eq!(data(&mut subscribe(&hub, "state", Start::Earliest).await), ["open"]);
    let back = subscribe(&hub, "state", id).await;
    assert!(back.is_resumed());
    drop(back);
    sleep(MAX_AGE + A_WHILE).await;
    assert_eq!((hub.stats().topics, hub.stats().events), (0, 0));
    // A state without subscribers is retained like an event.
    state.publish(Event::new("closed")).await.unwrap();
    sleep(MAX_AGE).await;
    assert!(data(&mut subscribe(&hub, "state", Start::Earliest).await).is_empty());
}

#[tokio::test(start_paused = true)]
async fn memory_is_given_back_without_traffic() {
    let hub = hub();
    for topic in 0..1000 {
        publish(&hub, &topic.to_string(), &"x".repeat(100)).await;
    }
    let listening = subscribe(&hub, "7", Start::Latest).await;
    assert_eq!((hub.stats().topics, hub.stats().events), (1000, 1000));
    sleep(MAX_AGE + A_WHILE).await;
    assert_eq!((hub.stats().topics, hub.stats().events, hub.stats().bytes), (1, 0, 0));
    drop(listening);
    assert_eq!(hub.stats().topics, 0);
}

#[tokio::test(start_paused = true)]
async fn one_janitor_serves_all_topics_and_ends() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let hub = hub();
    assert_eq!(tasks(), 0);
    for round in 0..3 {
        for topic in 0..100 {
            publish(&hub, &format!("{round}/{topic}"), "").await;
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(tasks(), 1);
        sleep(MAX_AGE + A_WHILE).await;
        assert_eq!((tasks(), hub.stats().topics), (0, 0));
    }
    publish(&hub, "a", "").await;
    assert_eq!(tasks(), 1);
    drop(hub);
    tokio::task::yield_now().await;
    assert_eq!(tasks(), 0, "it does not outlive the hub");
}

#[tokio::test(start_paused = true)]
async fn busy_topic_is_swept_sometimes() {
    let hub = hub();
    for _ in 0..1000 {
        publish(&hub, "a", "").await;
        sleep(MAX_AGE / 100).await;
    }
    assert!((100..=101).contains(&hub.stats().events), "{}", hub.stats().events);
    let before = Handle::current().metrics().worker_park_count(0);
    sleep(MAX_AGE + A_WHILE).await;
    let wake_ups = Handle::current().metrics().worker_park_count(0) - before;
    assert!(wake_ups < 100, "{wake_ups}");
    assert_eq!(hub.stats().events, 0);
}

#[tokio::test(start_paused = true)]
async fn expiry_is_no_gap_for_complete_client() {
    let hub = hub();
    let last = publish(&hub, "a", "1").await;
    let mut listening = subscribe(&hub, "a", last.clone()).await;
    assert_pending!(listening.poll_next());
    sleep(2 * MAX_AGE).await;
    assert_pending!(listening.poll_next());
    publish(&hub, "a", "2").await;
    assert_eq!(data(&mut listening), ["2"]);
    assert_eq!(data(&mut subscribe(&hub, "a", last).await), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn unread_expired_event_is_gap() {
    let hub = hub();
    let mut stalled = subscribe(&hub, "a", Start::Latest).await;
    publish(&hub, "a", "1").await;
    sleep(2 * MAX_AGE).await;
    let told = data(&mut stalled);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("lagged") && told[0].contains("\"resumed\":null"), "{told:?}");
    publish(&hub, "a", "2").await;
    assert_eq!(data(&mut stalled), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn for_ever_is_for_ever() {
    let hub = Hub::builder().max_age(Duration::MAX).build();
    publish(&hub, "a", "1").await;
    hub.topic("a").finish().await.unwrap();
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    sleep(Duration::from_secs(60 * 60 * 24 * 365)).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["1"]);
    assert!(hub.topic("a").publish(Event::new("2")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn max_age_of_zero_disables_expiry() {
    let hub = Hub::builder().max_age(Duration::ZERO).build();
    let mut live = subscribe(&hub, "a", Start::Latest).await;
    publish(&hub, "a", "1").await;
    sleep(2 * MAX_AGE).await;
    assert_eq!(data(&mut live), ["1"]);
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn log_outlives_the_range_of_its_clock() {
    let day = Duration::from_secs(60 * 60 * 24);
    let hub = Hub::builder().max_age(200 * day).build();
    for n in 0..4 {
        publish(&hub, "a", &n.to_string()).await;
        sleep(60 * day).await;
    }
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["1", "2", "3"]);
}

/// Publishers and subscribers remove expired events where no task can.
#[test]
fn topics_expire_outside_of_a_runtime() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let publish = |topic: &str| futures_executor::block_on(publish(&hub, topic, ""));
    for topic in 0..100 {
        publish(&topic.to_string());
    }
    std::thread::sleep(Duration::from_millis(2));
    for _ in 0..100 {
        publish("another");
    }
    assert!(hub.stats().topics <= 2, "{:?}", hub.stats());
}

#[test]
fn expired_topic_does_not_exist_outside_of_a_runtime() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let topic = hub.topic("a");
    topic.publish_now(Event::new("")).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert!(!topic.exists());
    assert_eq!(hub.stats().topics, 0);
}

/// An error needs no successful call before, which would remove expired events.
#[test]
fn full_hub_drops_expired_topics_outside_of_a_runtime() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).max_topics(10).build();
    let subscribe = |topics: &[&str]| futures_executor::block_on(hub.subscribe(topics, Start::Latest));
    let publish = |topic: &str| futures_executor::block_on(publish(&hub, topic, ""));
    let expire = || std::thread::sleep(Duration::from_millis(2));
    let names = ["0", "1", "2", "3", "4", "5", "6", "7"];
    for (first, second) in [("8", "9"), ("10", "11")] {
        [names.as_slice(), &[first, second]].concat().into_iter().for_each(|topic| _ = publish(topic));
        expire();
    }
    let new = subscribe(&["new", "newer"]).unwrap();
    let others = subscribe(&names).unwrap();
    expire();
    // Topics with subscribers are not dropped.
    let error = subscribe(&["newest"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyTopics);
    drop((new, others));
}

#[test]
fn expired_finish_is_forgotten_outside_of_a_runtime() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let topic = hub.topic("a");
    for handle in [topic.clone(), topic.retention(Retention::new().max_events(1))] {
        // An open subscription keeps the topic finished.
        let subscription = futures_executor::block_on(handle.subscribe(Start::Latest)).unwrap();
        futures_executor::block_on(handle.finish()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(handle.publish_now(Event::new("")).unwrap_err().kind(), ErrorKind::Finished);
        drop(subscription);
        futures_executor::block_on(handle.finish()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        handle.publish_now(Event::new("")).unwrap();
    }
}

#[test]
fn topics_expire_in_an_idle_runtime() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    first.block_on(publish(&hub, "first", ""));
    let second = runtime();
    second.block_on(async {
        for topic in 0..100 {
            publish(&hub, &topic.to_string(), "").await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..100 {
            publish(&hub, "another", "").await;
        }
        assert!(hub.stats().topics <= 2, "{:?}", hub.stats());
    });
}

/// Sleeping panics there. It happens once, and not for every event.
#[test]
fn topics_expire_in_runtime_without_timers() {
    let hub = Hub::builder().max_age(Duration::from_millis(1)).build();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        publish(&hub, "first", "").await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        // The janitor runs, and then another task.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(2));
        for _ in 0..10 {
            publish(&hub, "another", "").await;
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        }
    });
    assert_eq!(hub.stats().topics, 1);
}

/// A hub in a static outlives the runtime of its first user.
#[test]
fn a_hub_goes_from_one_runtime_to_another() {
    let hub = hub();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            publish(&hub, "a", "").await;
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn silent_subscription_sends_heartbeats() {
    let hub = hub();
    let stream = SseStream::new(hub.topic("a").subscribe(Start::Latest).await.unwrap());
    let mut body = task::spawn(stream.into_http_response().into_body());
    let mut frames = Vec::new();
    for _ in 0..2 {
        sleep(Duration::from_secs(16)).await;
        while let Poll::Ready(Some(Ok(frame))) = body.enter(|cx, body| body.poll_frame(cx)) {
            frames.push(frame.into_data().unwrap());
        }
        sleep(Duration::from_secs(16)).await;
    }
    assert!(frames[0].starts_with(b"event: hub-cursor\n") && frames[1] == ":\n", "{frames:?}");
}

/// The janitor removes an expired finish some time after it has expired.
#[tokio::test(start_paused = true)]
async fn expired_finish_is_forgotten_by_finish_and_subscribe() {
    for subscribes in [false, true] {
        let hub = Hub::builder().max_age(Duration::from_secs(3600)).build();
        let topic = hub.topic("a");
        topic.publish(Event::new("1")).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        topic.finish().await.unwrap();
        sleep(Duration::from_secs(3600)).await;
        if subscribes {
            let mut subscription = subscribe(&hub, "a", Start::Latest).await;
            topic.publish(Event::new("2")).await.unwrap();
            assert_eq!(data(&mut subscription), ["2"], "the topic is open again");
        } else {
            topic.finish().await.unwrap();
            let error = topic.publish(Event::new("2")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Finished, "the second finish counts");
        }
    }
}
