//! Clients whose next events are not in the memory of the node. They get a replay from the log, or a
//! gap if the log has evicted the events.

use super::{
    PLENTY, data, data_soon,
    faulty::{Mode, Shared},
    hub, numbers, publish, read, settle, subscribe, two,
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::sleep;
use tokio_test::task;
use tower_sse::{
    Event, EventId,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Start},
};

#[tokio::test(start_paused = true)]
async fn evicted_events_are_replayed_from_backend_in_pages() {
    for page in [1, 2, 7, 1000] {
        let shared = Shared::new(PLENTY);
        let (hubs, connections) = two(&shared, || Hub::builder().max_events(3)).await;
        connections.iter().for_each(|connection| connection.page.store(page, Relaxed));
        let mut slow = subscribe(&hubs[1], "a", Start::Latest).await;
        let mut ids = Vec::new();
        for n in 0..40 {
            ids.push(publish(&hubs[0], if n % 4 == 3 { "b" } else { "a" }, n).await);
        }
        settle().await;
        settle().await;
        let of_a = |from: usize| numbers((from..40).filter(|n| n % 4 != 3));
        let mut back = subscribe(&hubs[1], "a", ids[5].clone()).await;
        assert!(back.is_resumed() && back.gap().is_none());
        assert_eq!(data_soon(&mut back).await, of_a(6), "pages of {page}");
        assert_eq!(data_soon(&mut slow).await, of_a(0), "one that has fallen behind, pages of {page}");
        let mut all = subscribe(&hubs[1], "a", Start::Earliest).await;
        assert_eq!(data_soon(&mut all).await, of_a(0));
        let both = hubs[1].subscribe(["a", "b"], ids[1].clone()).await.unwrap();
        assert!(both.is_resumed());
        assert_eq!(data_soon(&mut task::spawn(both)).await, numbers(2..40), "two topics, pages of {page}");
        assert_eq!(hubs[1].stats().gaps, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn retained_events_need_no_read() {
    let (hubs, connections) = two(&Shared::new(PLENTY), Hub::builder).await;
    let mut ids = Vec::new();
    for n in 0..100 {
        ids.push(publish(&hubs[0], "a", n).await);
    }
    settle().await;
    for connection in &connections {
        connection.asked.bounds.store(0, Relaxed);
    }
    for id in ids {
        for hub in &hubs {
            data(&mut subscribe(hub, "a", id.clone()).await);
        }
    }
    for connection in &connections {
        assert_eq!((connection.asked.reads.load(Relaxed), connection.asked.bounds.load(Relaxed)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn events_evicted_by_backend_are_gap_before_response() {
    let ([one, other], _) = two(&Shared::new(10), || Hub::builder().max_events(3)).await;
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(publish(&one, "a", n).await);
    }
    settle().await;
    let mut back = subscribe(&other, "a", ids[7].clone()).await;
    let gap = back.gap().expect("it is told before the answer").clone();
    assert_eq!((gap.reason(), gap.requested(), gap.resumed()), (GapReason::Evicted, &ids[7], Some(&ids[30])));
    assert!(!back.is_resumed());
    assert_eq!(
        data_soon(&mut back).await,
        ["evicted".to_owned()].into_iter().chain(numbers(30..40)).collect::<Vec<_>>()
    );
    // The last event before the oldest retained one: nothing is missing in between.
    let mut edge = subscribe(&other, "a", ids[29].clone()).await;
    assert!(edge.is_resumed());
    assert_eq!(data_soon(&mut edge).await, numbers(30..40));
}

#[tokio::test(start_paused = true)]
async fn gap_names_next_event_even_pages_later() {
    let shared = Shared::new(20);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    connections[1].page.store(1, Relaxed);
    let early = publish(&hubs[0], "a", "early").await;
    for n in 0..20 {
        publish(&hubs[0], "b", n).await;
    }
    let next = publish(&hubs[0], "a", "next").await;
    publish(&hubs[0], "a", "last").await;
    settle().await;
    let mut back = subscribe(&hubs[1], "a", early.clone()).await;
    assert_eq!(back.gap().and_then(|gap| gap.resumed()), Some(&next));
    assert_eq!(data_soon(&mut back).await, ["evicted", "next", "last"]);
}

#[tokio::test(start_paused = true)]
async fn client_slower_than_backend_retention_gets_gap_or_ends() {
    for (policy, control_events) in [(LagPolicy::Gap, true), (LagPolicy::Gap, false), (LagPolicy::Disconnect, true)] {
        let (hubs, _) = two(&Shared::new(10), || Hub::builder().max_events(3).lag_policy(policy)).await;
        let mut slow = subscribe(&hubs[1], "a", Start::Latest).await;
        if !control_events {
            slow = task::spawn(slow.into_inner().without_control_events());
        }
        publish(&hubs[0], "a", "first").await;
        settle().await;
        assert_eq!(data(&mut slow), ["first"]);
        for n in 0..40 {
            publish(&hubs[0], "a", n).await;
        }
        settle().await;
        let got = data_soon(&mut slow).await;
        match policy {
            LagPolicy::Gap if control_events => {
                assert_eq!(got, ["lagged".to_owned()].into_iter().chain(numbers(30..40)).collect::<Vec<_>>());
            }
            _ => assert_eq!(got, ["end"]),
        }
        assert_eq!(hubs[1].stats().gaps, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn id_never_issued_is_gap_once_known() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, Hub::builder).await;
    publish(&hubs[0], "a", 0).await;
    settle().await;
    let forged: EventId = EventId::new(format!("{}-77", shared.log().letters)).unwrap();
    let mut told = subscribe(&hubs[1], "a", forged.clone()).await;
    assert_eq!(told.gap().map(|gap| gap.reason()), Some(GapReason::Ahead));
    assert_eq!(data(&mut told), ["ahead", "0"]);

    connections[1].set(Mode::Fails);
    let mut unknown = subscribe(&hubs[1], "a", forged.clone()).await;
    assert!(unknown.gap().is_none() && !unknown.is_resumed());
    let snapshot = hubs[1].topic("a").subscribe(forged.clone()).await.unwrap().begin_with(Event::new("snapshot"));
    let mut snapshot = task::spawn(snapshot);
    assert_eq!(data(&mut unknown), [""; 0]);
    publish(&hubs[0], "a", 1).await;
    connections[1].set(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut unknown).await, ["ahead", "0", "1"]);
    assert_eq!(data_soon(&mut snapshot).await, ["snapshot", "1"], "it goes on with what follows the snapshot");
}

#[tokio::test(start_paused = true)]
async fn start_of_a_topic_can_be_ahead_of_the_node() {
    let ([one, other], [_, to_other]) = two(&Shared::new(PLENTY), Hub::builder).await;
    publish(&one, "state", "s").await;
    settle().await;
    // The node does not read the next events.
    to_other.set(Mode::Fails);
    settle().await;
    publish(&one, "a", 0).await;
    let newest = publish(&one, "a", 1).await;
    let topics = || [("a", Start::After(newest.clone())), ("state", Start::Earliest)];
    // The backend does not confirm the id: a gap, and too many events instead of too few.
    let mut early = task::spawn(other.subscribe(topics(), None).await.unwrap());
    assert_eq!(early.gap().map(|gap| gap.reason()), Some(GapReason::Ahead));
    to_other.set(Mode::Works);
    let mut client = task::spawn(other.subscribe(topics(), None).await.unwrap());
    assert!(client.gap().is_none());
    publish(&one, "a", 2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(data_soon(&mut early).await, ["ahead", "s", "0", "1", "2"]);
    assert_eq!(data_soon(&mut client).await, ["s", "2"]);
}

#[tokio::test(start_paused = true)]
async fn snapshot_replaces_gap_and_retained_events() {
    let shared = Shared::new(10);
    let ([one, other], _) = two(&shared, || Hub::builder().max_events(3)).await;
    let early = publish(&one, "a", "early").await;
    for n in 0..40 {
        publish(&one, "a", n).await;
    }
    settle().await;
    let back = other.topic("a").subscribe(early.clone()).await.unwrap();
    assert!(!back.is_resumed());
    let mut back = task::spawn(back.begin_with(Event::new("snapshot")));
    publish(&one, "a", "next").await;
    let (messages, _) = {
        settle().await;
        read(&mut back)
    };
    assert_eq!(messages.iter().map(|message| &*message.data).collect::<Vec<_>>(), ["snapshot", "next"]);
    // Its id is a cursor. No event after it is missing.
    let id = EventId::new(&*messages[0].last_event_id).unwrap();
    assert_eq!(data_soon(&mut subscribe(&other, "a", id).await).await, ["next"]);
}

#[tokio::test(start_paused = true)]
async fn hub_retains_at_most_what_backend_retains() {
    let shared = Shared::new(30);
    let early = hub(shared.connect()).await;
    for n in 0..40 {
        publish(&early, &format!("topic-{}", n % 5), n).await;
    }
    settle().await;
    for builder in [Hub::builder(), Hub::builder().max_events(2)] {
        let late = builder.backend(shared.connect()).connect().await.unwrap();
        for hub in [&early, &late] {
            let all = hub.subscribe((0..5).map(|n| format!("topic-{n}")), Start::Earliest).await.unwrap();
            assert!(all.gap().is_none());
            assert_eq!(
                data_soon(&mut task::spawn(all)).await.into_iter().rev().take(30).rev().collect::<Vec<_>>(),
                numbers(10..40)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn replayed_page_has_newest_state() {
    let shared = Shared::new(PLENTY);
    let (hubs, connections) = two(&shared, || Hub::builder().max_events(1)).await;
    connections[1].page.store(5, Relaxed);
    let first = publish(&hubs[0], "a", "a").await;
    let state = hubs[0].topic("here").latest_only();
    for n in 0..9 {
        state.publish(Event::new(n.to_string())).await.unwrap();
    }
    publish(&hubs[0], "a", "b").await;
    publish(&hubs[0], "a", "c").await;
    settle().await;
    let both = hubs[1].subscribe(["a", "here"], first).await.unwrap();
    assert!(both.is_resumed());
    assert_eq!(data_soon(&mut task::spawn(both)).await, ["4", "8", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn topic_over_limit_is_read_from_backend_later() {
    let age = Duration::from_secs(60);
    let shared = Shared::new(PLENTY);
    let roomy = hub(shared.connect()).await;
    let narrow = Hub::builder().max_topics(1).max_age(age).backend(shared.connect()).connect().await.unwrap();
    publish(&roomy, "a", 0).await;
    let id = publish(&roomy, "b", 1).await;
    publish(&roomy, "b", 2).await;
    settle().await;
    let error = narrow.topic("b").subscribe(id.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyTopics);
    assert_eq!(narrow.topic("b").publish(Event::new("3")).await.unwrap_err().kind(), ErrorKind::TooManyTopics);
    sleep(age * 2).await;
    let mut back = subscribe(&narrow, "b", id).await;
    assert!(back.is_resumed());
    assert_eq!(data_soon(&mut back).await, ["2"]);
}
