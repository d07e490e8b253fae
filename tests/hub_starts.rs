//! A start per topic: what a client without an id receives of each topic.

use futures_util::FutureExt;
use http_body_util::BodyExt;
use proptest::{collection::vec, prelude::*};
use std::{borrow::Cow, sync::Arc, task::Poll};
use support::whatwg::{self, Message};
use tokio_test::task;
use tower_sse::{
    Event, EventId, LastEventId, SseStream,
    hub::{GapReason, Hub, IntoTopicStart, Listener, Start, Subscription, Topic, backend::MemoryBackend},
};

type Task = task::Spawn<Subscription>;

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

fn publish(topic: &Topic, data: &str) -> EventId {
    now(topic.publish(Event::new(data))).unwrap()
}

fn subscribe<T: IntoTopicStart>(hub: &Hub, topics: impl IntoIterator<Item = T>, start: impl Into<Start>) -> Task {
    task::spawn(now(hub.subscribe(topics, start)).unwrap())
}

fn messages(subscription: &mut Task) -> Vec<Message> {
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(Ok(events))) = subscription.poll_next() {
        bytes.extend_from_slice(events.as_bytes());
    }
    whatwg::parse(&bytes).messages
}

/// Returns the data of the events, and the types of the control events, that can be read now.
fn data(subscription: &mut Task) -> Vec<String> {
    let say = |message: Message| if message.r#type == "message" { message.data } else { message.r#type };
    messages(subscription).into_iter().map(say).collect()
}

/// Publishes three notes, a state, two notes and a message.
fn board(hub: &Hub) -> Vec<EventId> {
    let here = hub.topic("here").latest_only();
    let notes = |data| publish(&hub.topic("notes"), data);
    vec![notes("n1"), publish(&here, "here"), notes("n2"), notes("n3"), publish(&hub.topic("chat"), "c1"), notes("n4")]
}

#[test]
fn each_topic_begins_at_its_own_start() {
    let hub = Hub::new();
    let ids = board(&hub);
    let topics = [("notes", Start::After(ids[2].clone())), ("here", Start::Earliest), ("chat", Start::Latest)];
    let mut client = subscribe(&hub, topics, LastEventId::default());
    assert!(client.gap().is_none() && !client.is_resumed());
    assert_eq!(data(&mut client), ["here", "n3", "n4"]);
    publish(&hub.topic("chat"), "c2");
    publish(&hub.topic("notes"), "n5");
    assert_eq!(data(&mut client), ["c2", "n5"]);
    assert_eq!(hub.stats().gaps, 0);
}

#[test]
fn id_of_the_client_takes_precedence_over_starts() {
    let hub = Hub::new();
    let ids = board(&hub);
    let topics = || [("notes", Start::Latest), ("here", Start::Earliest), ("chat", Start::After(ids[4].clone()))];
    let mut client = subscribe(&hub, topics(), ids[2].clone());
    assert!(client.is_resumed());
    assert_eq!(data(&mut client), ["n3", "c1", "n4"]);
    // An empty id is none.
    let mut client = subscribe(&hub, topics(), Start::After(EventId::from_static("")));
    assert_eq!(data(&mut client)[0], "here");
    let lost = subscribe(&hub, topics(), EventId::from_static("lost"));
    assert_eq!(lost.gap().map(|gap| gap.reason()), Some(GapReason::Malformed));
}

#[test]
fn start_applies_to_topics_without_their_own() {
    struct Named(&'static str, Option<Start>);
    impl IntoTopicStart for Named {
        fn into_topic_start(self) -> (Arc<str>, Option<Start>) {
            (self.0.into(), self.1)
        }
    }
    let hub = Hub::new();
    board(&hub);
    let topics = || [Named("notes", None), Named("here", Some(Start::Latest)), Named("chat", None)];
    assert_eq!(data(&mut subscribe(&hub, topics(), Start::Earliest)), ["n1", "n2", "n3", "c1", "n4"]);
    assert_eq!(data(&mut subscribe(&hub, topics(), None)), [""; 0]);
    // The first own start of a topic applies.
    let twice = [Named("chat", None), Named("chat", Some(Start::Earliest)), Named("chat", Some(Start::Latest))];
    assert_eq!(data(&mut subscribe(&hub, twice, None)), ["c1"]);
}

#[test]
fn topics_are_named_by_any_text() {
    let hub = Hub::new();
    let text = String::from("a");
    let all = [
        now(hub.subscribe(["a"], None)),
        now(hub.subscribe(&["a"][..], None)),
        now(hub.subscribe([&text], None)),
        now(hub.subscribe(&vec![text.clone()], None)),
        now(hub.subscribe([text.clone()], None)),
        now(hub.subscribe([Arc::<str>::from("a")], None)),
        now(hub.subscribe([Box::<str>::from("a")], None)),
        now(hub.subscribe([Cow::from("a")], None)),
        now(hub.subscribe([(text, LastEventId::default())], None)),
        now(hub.subscribe([(Arc::<str>::from("a"), EventId::from_static("lost"))], None)),
    ];
    assert_eq!(hub.topic("a").subscribers(), 10);
    assert_eq!(all.iter().filter(|one| one.as_ref().unwrap().gap().is_some()).count(), 1);
}

/// The ids of the events before the latest start are smaller than this start. When nothing else
/// follows, the cursor moves behind it.
#[test]
fn cursor_moves_past_the_latest_start() {
    let hub = Hub::new();
    let ids = board(&hub);
    let topics = || [("notes", Start::After(ids[5].clone())), ("here", Start::Earliest)];
    let mut client = subscribe(&hub, topics(), None);
    let messages = messages(&mut client);
    assert_eq!((&*messages[0].data, &*messages[0].last_event_id), ("here", ids[1].as_str()));
    assert_eq!((&*messages[1].r#type, &*messages[1].last_event_id), ("hub-cursor", ids[5].as_str()));
    assert_eq!(messages.len(), 2);
    assert_eq!(client.cursor(), ids[5]);
    // A client that loses its connection in between receives too much, and not too little.
    assert_eq!(data(&mut subscribe(&hub, topics(), ids[1].clone())), ["n2", "n3", "n4"]);
}

#[test]
fn gap_after_the_start_of_one_topic_is_reported() {
    let hub = Hub::builder().max_events(2).build();
    let ids = board(&hub);
    // Of the notes, n3 and n4 are retained.
    let mut client = subscribe(&hub, [("notes", Start::After(ids[0].clone())), ("here", Start::Earliest)], None);
    let gap = client.gap().unwrap();
    assert_eq!((gap.reason(), gap.requested()), (GapReason::Evicted, &ids[0]));
    assert_eq!(data(&mut client), ["gap", "here", "n3", "n4"]);

    let earliest = subscribe(&hub, [("notes", Start::Earliest), ("here", Start::After(ids[1].clone()))], None);
    assert!(earliest.gap().is_none(), "no event of `here` is missing");

    let mut malformed =
        subscribe(&hub, [("notes", Start::After(EventId::from_static("7"))), ("here", Start::Latest)], None);
    assert_eq!(malformed.gap().map(|gap| gap.reason()), Some(GapReason::Malformed));
    assert_eq!(data(&mut malformed), ["gap", "n3", "n4"]);
}

#[test]
fn finished_topics_end_after_events_of_their_starts() {
    let hub = Hub::new();
    let ids = board(&hub);
    for topic in ["notes", "here", "chat"] {
        now(hub.topic(topic).finish()).unwrap();
    }
    let status = |subscription: Task| SseStream::new(subscription.into_inner()).into_http_response().status().as_u16();
    let after_all = [("notes", Start::After(ids[5].clone())), ("chat", Start::Latest)];
    assert_eq!(status(subscribe(&hub, after_all, None)), 204);
    let mut client = subscribe(&hub, [("notes", Start::Latest), ("chat", Start::Earliest)], None);
    assert_eq!(data(&mut client), ["c1", "hub-cursor"]);
    assert!(client.is_finished());
    assert_eq!(status(subscribe(&hub, [("notes", Start::Latest), ("chat", Start::Earliest)], None)), 200);
}

#[test]
fn shutdown_moves_no_client_to_an_early_start() {
    let hub = Hub::new();
    let ids = board(&hub);
    hub.shutdown();
    let client = subscribe(&hub, [("notes", Start::After(ids[5].clone())), ("here", Start::Earliest)], None);
    let body = SseStream::new(client.into_inner()).into_http_response().into_body();
    let bytes = now(body.collect()).unwrap().to_bytes();
    assert!(bytes.starts_with(b":") || bytes.starts_with(b"retry:"), "{bytes:?}");
    assert_eq!(whatwg::parse(&bytes).messages.len(), 0, "the client returns without an id");
}

/// Nodes that retain one event read the others from the backend, and skip those before the starts.
#[tokio::test(start_paused = true)]
async fn history_of_backend_begins_at_each_start() {
    let backend = MemoryBackend::new(200);
    let hub = Hub::builder().max_events(1).backend(backend.clone()).connect().await.unwrap();
    let mut ids = Vec::new();
    for n in 0..100 {
        let topic = if n % 10 == 0 { "rare" } else { "often" };
        ids.push(hub.topic(topic).publish(Event::display(n)).await.unwrap());
    }
    while hub.stats().published < 100 {
        tokio::task::yield_now().await;
    }
    let rare = || (0..100).step_by(10).map(|n| n.to_string());
    let topics = || [("often", Start::After(ids[96].clone())), ("rare", Start::Earliest)];
    let mut client = task::spawn(hub.subscribe(topics(), None).await.unwrap());
    assert!(client.gap().is_none() && !client.is_resumed());
    let expected: Vec<_> = rare().chain(["97", "98", "99"].map(str::to_owned)).collect();
    assert_eq!(data(&mut client), expected);

    let topics_of_ids = [("often", Start::After(ids[96].clone())), ("rare", Start::After(ids[50].clone()))];
    let mut client = task::spawn(hub.subscribe(topics_of_ids, None).await.unwrap());
    assert!(client.gap().is_none() && client.is_resumed());
    assert_eq!(data(&mut client), ["60", "70", "80", "90", "97", "98", "99"]);

    // The backend evicts the first hundred events but three.
    for n in 100..297 {
        hub.topic("often").publish(Event::display(n)).await.unwrap();
    }
    while hub.stats().published < 297 {
        tokio::task::yield_now().await;
    }
    let client = hub.subscribe(topics(), None).await.unwrap();
    assert!(client.gap().is_none(), "no event after the id is missing");
    let topics = [("often", Start::After(ids[50].clone())), ("rare", Start::After(ids[98].clone()))];
    let mut client = task::spawn(hub.subscribe(topics, None).await.unwrap());
    let gap = client.gap().unwrap();
    assert_eq!((gap.reason(), gap.requested(), gap.resumed()), (GapReason::Evicted, &ids[50], Some(&ids[97])));
    let data = data(&mut client);
    assert_eq!((&*data[0], &*data[1], data.len()), ("gap", "97", 201));
}

#[tokio::test(start_paused = true)]
async fn listener_accepts_a_start_per_topic() {
    let hub = Hub::new();
    let ids = board(&hub);
    let topics = [("notes", Start::After(ids[5].clone())), ("here", Start::Earliest)];
    let mut listener = task::spawn(hub.listen(topics, None).await.unwrap());
    let Poll::Ready(Some(Ok(published))) = listener.poll_next() else { panic!("the state is retained") };
    assert_eq!(&*published.topic, "here");
    assert!(listener.poll_next().is_pending());
    assert_eq!(listener.cursor(), ids[5]);
}

const TOPICS: [&str; 3] = ["a", "b", "c"];

/// The start of a topic: live events, all events, or after the event with this index.
fn topic_start() -> impl Strategy<Value = Option<Option<usize>>> {
    prop_oneof![Just(None), Just(Some(None)), (0..40_usize).prop_map(|after| Some(Some(after)))]
}

fn position(id: &str) -> u64 {
    id.split_once('-').unwrap().1.parse().unwrap()
}

proptest! {
    /// Each topic yields all events after its start, in the order of the log, or a gap is reported.
    #[test]
    fn topics_yield_events_after_their_starts_or_gap(
        past in vec(0..3_usize, 1..40),
        live in vec((0..3_usize, any::<bool>()), 0..20),
        starts in [topic_start(), topic_start(), topic_start()],
        max_events in 1..40_usize,
    ) {
        let hub = Hub::builder().max_events(max_events).build();
        let ids: Vec<_> = past.iter().map(|topic| publish(&hub.topic(TOPICS[*topic]), "")).collect();
        let after = |topic: usize| match starts[topic] {
            None => past.len(),
            Some(None) => 0,
            Some(Some(after)) => after.min(past.len() - 1) + 1,
        };
        let start = |topic: usize| match starts[topic] {
            None => Start::Latest,
            Some(None) => Start::Earliest,
            Some(Some(_)) => Start::After(ids[after(topic) - 1].clone()),
        };
        let retained = |index: &usize| {
            past[*index + 1..].iter().filter(|topic| **topic == past[*index]).count() < max_events
        };
        let due = |index: &usize| *index >= after(past[*index]);
        let names: [_; 3] = std::array::from_fn(|topic| (TOPICS[topic], start(topic)));
        let mut client = subscribe(&hub, names.clone(), None);
        let mut listener = task::spawn(now(hub.listen(names, None)).unwrap());

        let has_id = |index: &usize| matches!(starts[past[*index]], Some(Some(_)));
        let is_lost = (0..past.len()).any(|index| due(&index) && has_id(&index) && !retained(&index));
        prop_assert_eq!(client.gap().is_some(), is_lost);
        prop_assert_eq!(client.is_resumed(), !is_lost && starts.iter().all(|start| matches!(start, Some(Some(_)))));
        let events = |subscription: &mut Task| {
            let events = messages(subscription).into_iter().filter(|message| message.r#type == "message");
            events.map(|message| message.last_event_id).collect::<Vec<_>>()
        };
        let mut expected: Vec<_> = (0..past.len()).filter(due).filter(retained).map(|index| ids[index].to_string()).collect();
        let listen = |listener: &mut task::Spawn<Listener>| {
            let next = || match listener.poll_next() {
                Poll::Ready(Some(Ok(published))) => Some(published.id.to_string()),
                _ => None,
            };
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        let (mut got, mut listened) = (events(&mut client), listen(&mut listener));
        for (topic, reads) in live {
            expected.push(publish(&hub.topic(TOPICS[topic]), "").to_string());
            if reads || max_events < 20 {
                got.extend(events(&mut client));
                listened.extend(listen(&mut listener));
            }
        }
        got.extend(events(&mut client));
        listened.extend(listen(&mut listener));
        prop_assert_eq!(&got, &expected);
        prop_assert_eq!(&listened, &expected);
        prop_assert_eq!(client.cursor(), listener.cursor());
        prop_assert!(expected.last().is_none_or(|last| position(client.cursor().as_str()) >= position(last)));
    }

    /// The same with a backend, which retains the newest events for a node that retains fewer.
    #[test]
    fn backend_yields_events_after_their_starts_or_gap(
        past in vec(0..3_usize, 1..60),
        starts in [topic_start(), topic_start(), topic_start()],
        max_events in 1..10_usize,
        max_records in 1..60_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let backend = MemoryBackend::new(max_records);
            let hub = Hub::builder().max_events(max_events).backend(backend).connect().await.unwrap();
            let mut ids = Vec::new();
            for (n, topic) in past.iter().enumerate() {
                ids.push(hub.topic(TOPICS[*topic]).publish(Event::new("")).await.unwrap());
                while hub.stats().published <= n as u64 {
                    tokio::task::yield_now().await;
                }
            }
            let evicted = past.len().saturating_sub(max_records);
            let (mut names, mut after) = (Vec::new(), Vec::new());
            for (start, name) in starts.iter().zip(TOPICS) {
                let index = start.flatten().map(|after| after.min(past.len() - 1));
                after.push(index.map_or(if start.is_some() { 0 } else { past.len() }, |index| index + 1));
                let earliest = if start.is_some() { Start::Earliest } else { Start::Latest };
                names.push((name, index.map_or(earliest, |index| Start::After(ids[index].clone()))));
            }
            let expected: Vec<_> = (0..past.len())
                .filter(|index| *index >= after[past[*index]])
                .map(|index| (TOPICS[past[index]], ids[index].as_str()))
                .collect();
            let client = hub.subscribe(names.iter().cloned(), None).await.unwrap();
            let listener = hub.listen(names, None).await.unwrap();
            // A gap is reported if neither the backend nor the node retains an event.
            let later = |index: usize| past[index + 1..].iter().filter(|topic| **topic == past[index]).count();
            let is_lost = (0..evicted).any(|index| {
                let has_id = matches!(starts[past[index]], Some(Some(_)));
                has_id && index >= after[past[index]] && later(index) >= max_events
            });
            // The watermark of the backend is that of all topics.
            let may_be_lost = (0..3).any(|topic| matches!(starts[topic], Some(Some(_))) && after[topic] < evicted);
            let gap = client.gap().map(|gap| gap.reason());
            for gap in [gap, listener.gap().map(|gap| gap.reason())] {
                prop_assert!(gap.is_none_or(|reason| reason == GapReason::Evicted && may_be_lost));
                prop_assert!(gap.is_some() || !is_lost);
            }
            let is_resume = starts.iter().all(|start| matches!(start, Some(Some(_))));
            prop_assert_eq!(client.is_resumed(), gap.is_none() && is_resume);

            let messages = messages(&mut task::spawn(client)).into_iter();
            let got: Vec<_> =
                messages.filter(|message| message.r#type == "message").map(|message| message.last_event_id).collect();
            let (mut listener, mut listened) = (task::spawn(listener), Vec::new());
            while let Poll::Ready(Some(Ok(published))) = listener.poll_next() {
                let due = (&*published.topic, published.id.as_str());
                prop_assert!(expected.contains(&due), "{:?} is not due", due);
                listened.push(published.id.to_string());
            }
            for received in [got, listened] {
                // Every due event, once and in order, except for events that the backend has
                // evicted.
                let is_received = |id: &str| received.iter().any(|other| other == id);
                let due = expected.iter().map(|(_, id)| *id);
                let due: Vec<_> = due.filter(|id| position(id) > evicted as u64 || is_received(id)).collect();
                prop_assert_eq!(received, due);
            }
            Ok(())
        })?;
    }
}
