//! No event is lost, repeated or out of order, and no thread waits for ever, in every order of the
//! steps of the threads.

use loom::{future::block_on, thread};
use std::{future::poll_fn, pin::Pin};
use tokio_stream::Stream;
use tower_sse::{
    Event,
    hub::{Hub, Start, Subscription},
};

/// Explores all orders with at most this number of preemptions of a thread.
fn check(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

fn publish(hub: &Hub, topic: &str, data: &str) {
    block_on(hub.topic(topic).publish(Event::new(data))).unwrap();
}

fn subscribe(hub: &Hub, topics: &[&str], start: Start) -> Subscription {
    block_on(hub.subscribe(topics, start)).unwrap()
}

/// Waits for this number of events, and returns their data. The ids have to rise.
fn read(subscription: &mut Subscription, events: usize) -> Vec<String> {
    let mut data = Vec::new();
    let mut last = 0;
    while data.len() < events {
        let next = block_on(poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx))).expect("it goes on").unwrap();
        for event in std::str::from_utf8(next.as_bytes()).unwrap().split_terminator("\n\n") {
            let (id, rest) = event.split_once("\ndata: ").unwrap();
            let id = id.split_once('-').unwrap().1.parse::<u64>().unwrap();
            assert!(id > last, "{id} after {last}");
            last = id;
            data.push(rest.to_owned());
        }
    }
    data
}

fn has_ended(subscription: &mut Subscription) -> bool {
    block_on(poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx))).is_none()
}

#[test]
fn subscriber_gets_each_event_and_the_end() {
    check(3, || {
        let hub = Hub::new();
        let mut subscription = subscribe(&hub, &["a"], Start::Latest);
        let publisher = thread::spawn(move || {
            publish(&hub, "a", "1");
            publish(&hub, "a", "2");
            block_on(hub.topic("a").finish()).unwrap();
        });
        assert_eq!(read(&mut subscription, 2), ["1", "2"]);
        assert!(has_ended(&mut subscription));
        publisher.join().unwrap();
    });
}

#[test]
fn events_of_two_topics_arrive_in_order() {
    check(2, || {
        let hub = Hub::new();
        let mut subscription = subscribe(&hub, &["a", "b"], Start::Latest);
        let publishers = ["a", "b"].map(|topic| {
            let hub = hub.clone();
            thread::spawn(move || publish(&hub, topic, topic))
        });
        let mut got = read(&mut subscription, 2);
        got.sort();
        assert_eq!(got, ["a", "b"]);
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    });
}

#[test]
fn subscribing_during_publish_gets_all_after_cursor() {
    check(3, || {
        let hub = Hub::new();
        publish(&hub, "a", "1");
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || publish(&hub, "a", "2")
        });
        let mut subscription = subscribe(&hub, &["a"], Start::Earliest);
        assert_eq!(read(&mut subscription, 2), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn all_that_wait_are_woken_while_others_leave() {
    check(2, || {
        let hub = Hub::new();
        let mut stays = subscribe(&hub, &["a", "b"], Start::Latest);
        let mut leaves = subscribe(&hub, &["a"], Start::Latest);
        let leaver = thread::spawn(move || {
            // It waits, and is dropped.
            let mut polled = false;
            block_on(poll_fn(|cx| {
                if !std::mem::replace(&mut polled, true) {
                    let _waits_or_not = Pin::new(&mut leaves).poll_next(cx);
                }
                std::task::Poll::Ready(())
            }));
            drop(leaves);
        });
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || publish(&hub, "a", "1")
        });
        assert_eq!(read(&mut stays, 1), ["1"]);
        leaver.join().unwrap();
        publisher.join().unwrap();
        assert_eq!(hub.topic("a").subscribers(), 1);
    });
}

#[test]
fn topic_survives_leave_during_subscribe() {
    check(3, || {
        let hub = Hub::new();
        let leaves = subscribe(&hub, &["a"], Start::Latest);
        let leaver = thread::spawn(move || drop(leaves));
        let mut comes = subscribe(&hub, &["a"], Start::Latest);
        publish(&hub, "a", "1");
        assert_eq!(read(&mut comes, 1), ["1"]);
        leaver.join().unwrap();
        assert_eq!(hub.topic("a").subscribers(), 1);
        drop(comes);
        assert_eq!(hub.stats().topics, 1, "it holds an event");
    });
}

/// Polls a subscription that has no event yet, so that it waits.
fn wait(subscription: &mut Subscription) {
    block_on(poll_fn(|cx| {
        assert!(Pin::new(&mut *subscription).poll_next(cx).is_pending());
        std::task::Poll::Ready(())
    }));
}

/// Under loom, an audience of two is large: a thread wakes the second subscriber.
#[test]
fn large_audience_is_woken_while_one_leaves() {
    check(2, || {
        let hub = Hub::new();
        let mut audience = [(); 3].map(|()| subscribe(&hub, &["a"], Start::Latest));
        audience.iter_mut().for_each(wait);
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || publish(&hub, "a", "1")
        });
        let [mut one, leaves, mut other] = audience;
        drop(leaves);
        assert_eq!(read(&mut other, 1), ["1"]);
        assert_eq!(read(&mut one, 1), ["1"]);
        publisher.join().unwrap();
    });
}

#[test]
fn merged_topics_of_a_large_audience_arrive_in_order() {
    check(2, || {
        let hub = Hub::new();
        let mut alone = subscribe(&hub, &["a"], Start::Latest);
        let mut merged = subscribe(&hub, &["a", "b"], Start::Latest);
        wait(&mut alone);
        wait(&mut merged);
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || {
                publish(&hub, "a", "1");
                publish(&hub, "b", "2");
            }
        });
        assert_eq!(read(&mut merged, 2), ["1", "2"]);
        publisher.join().unwrap();
    });
}

/// One event of each topic is retained, so either reader may lag.
#[test]
fn lagged_subscriber_gets_gap_and_continues() {
    check(2, || {
        let hub = Hub::builder().max_events(1).build();
        let mut subscription = subscribe(&hub, &["a", "b"], Start::Latest);
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || {
                publish(&hub, "a", "1");
                publish(&hub, "a", "2");
                publish(&hub, "b", "3");
                block_on(hub.topic("a").finish()).unwrap();
                block_on(hub.topic("b").finish()).unwrap();
            }
        });
        let (mut data, mut gaps) = (Vec::new(), 0);
        while let Some(Ok(next)) = block_on(poll_fn(|cx| Pin::new(&mut subscription).poll_next(cx))) {
            for event in std::str::from_utf8(next.as_bytes()).unwrap().split_terminator("\n\n") {
                match event.split_once("\ndata: ").unwrap() {
                    (head, _) if head.ends_with("event: gap") => gaps += 1,
                    (_, text) => data.push(text.to_owned()),
                }
            }
        }
        assert!(data == ["1", "2", "3"] && gaps == 0 || data == ["2", "3"] && gaps == 1, "{data:?}, {gaps} gaps");
        publisher.join().unwrap();
    });
}

#[test]
fn shutdown_ends_waiting_and_reading_subscribers() {
    for topics in [&["a"][..], &["a", "b"]] {
        check(3, || {
            let hub = Hub::new();
            let mut subscription = subscribe(&hub, topics, Start::Latest);
            publish(&hub, "a", "1");
            let ends = thread::spawn(move || hub.shutdown());
            while let Some(_event_or_news) = block_on(poll_fn(|cx| Pin::new(&mut subscription).poll_next(cx))) {}
            ends.join().unwrap();
        });
    }
}

#[test]
fn shutdown_delivers_each_acknowledged_event() {
    for topics in [&["b"][..], &["a", "b"]] {
        check(3, || {
            let hub = Hub::new();
            let mut subscription = subscribe(&hub, topics, Start::Latest);
            let publisher = {
                let topic = hub.topic("b");
                thread::spawn(move || block_on(topic.publish(Event::new("1"))).is_ok())
            };
            let ends = thread::spawn(move || hub.shutdown());
            let mut delivered = 0;
            while let Some(item) = block_on(poll_fn(|cx| Pin::new(&mut subscription).poll_next(cx))) {
                delivered += item.map_or(0, |events| events.count());
            }
            ends.join().unwrap();
            assert_eq!(delivered, usize::from(publisher.join().unwrap()));
        });
    }
}
