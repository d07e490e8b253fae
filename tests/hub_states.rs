//! States (`Topic::latest_only`) that are updated faster than a client reads.

use futures_util::FutureExt;
use http_body::Body;
use proptest::{collection::vec, prelude::*, sample::Index};
use std::{collections::BTreeSet, task::Poll};
use support::whatwg;
use tokio_test::task;
use tower_sse::{
    Event, EventId, SseStream,
    hub::{Hub, Start, Subscription, Topic},
};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing")
}

/// Publishes the number of a version. Returns the id.
fn publish(topic: &Topic, version: usize) -> EventId {
    now(topic.publish(Event::display(version).event("state").comment(topic.name()))).unwrap()
}

fn number(id: &str) -> u64 {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

struct Client {
    subscription: task::Spawn<Subscription>,
    last_id: u64,
    id: EventId,
    /// The newest version of each topic that the client has received.
    versions: Vec<usize>,
}

struct World {
    hub: Hub,
    topics: Vec<Topic>,
    /// The version and the position of each state; 0 before the first.
    current: Vec<(usize, u64)>,
}

impl World {
    fn new(topics: usize) -> Self {
        let hub = Hub::new();
        let topics: Vec<_> = (0..topics).map(|n| hub.topic(n.to_string()).latest_only()).collect();
        Self { current: vec![(0, 0); topics.len()], hub, topics }
    }

    fn publish(&mut self, topic: usize) {
        let version = self.current[topic].0 + 1;
        let id = publish(&self.topics[topic], version);
        self.current[topic] = (version, number(id.as_str()));
    }

    fn subscribe(&self, start: Start) -> task::Spawn<Subscription> {
        let names = self.topics.iter().map(Topic::name);
        let subscription = now(self.hub.subscribe(names, start)).unwrap();
        assert!(subscription.gap().is_none(), "nothing is missing: {:?}", subscription.gap());
        task::spawn(subscription)
    }

    fn client(&self) -> Client {
        let subscription = self.subscribe(Start::Earliest);
        let id = subscription.cursor();
        Client { last_id: number(id.as_str()), id, subscription, versions: vec![0; self.topics.len()] }
    }

    fn reconnect(&self, client: &mut Client) {
        client.subscription = self.subscribe(Start::After(client.id.clone()));
    }

    /// Reads one item. Returns the topic of a state.
    fn read(&self, client: &mut Client) -> Poll<Option<usize>> {
        let Poll::Ready(item) = client.subscription.poll_next() else { return Poll::Pending };
        let bytes =
            item.expect("no topic is finished").expect("the client is not slower than the retention").into_bytes();
        let [message] = &whatwg::parse(&bytes).messages[..] else { panic!("{bytes:?} is not one message") };
        let id = number(&message.last_event_id);
        assert!(id >= client.last_id, "ids rise: {id} after {}", client.last_id);
        assert_eq!(client.subscription.cursor().as_str(), message.last_event_id);
        (client.last_id, client.id) = (id, EventId::new(&message.last_event_id).unwrap());
        let topic = (message.r#type == "state").then(|| {
            let text = std::str::from_utf8(&bytes).unwrap();
            let topic: usize = text.lines().find_map(|line| line.strip_prefix(": ")).unwrap().parse().unwrap();
            let version = message.data.parse().unwrap();
            assert!(version >= client.versions[topic], "no older version comes back");
            client.versions[topic] = version;
            topic
        });
        for (topic, (version, position)) in self.current.iter().enumerate() {
            assert!(*position > id || client.versions[topic] == *version, "{id} is after a state that is missing");
        }
        Poll::Ready(topic)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Index),
    Read,
    Reconnect,
}

proptest! {
    #[test]
    fn ids_of_replaced_states_are_true_cursors(
        topics in 2..6_usize,
        steps in vec(prop_oneof![
            4 => any::<Index>().prop_map(Step::Publish),
            3 => Just(Step::Read),
            1 => Just(Step::Reconnect),
        ], 1..200),
    ) {
        let mut world = World::new(topics);
        let mut client = world.client();
        for step in steps {
            match step {
                Step::Publish(topic) => world.publish(topic.index(topics)),
                Step::Read => drop(world.read(&mut client)),
                Step::Reconnect => world.reconnect(&mut client),
            }
        }
        while world.read(&mut client).is_ready() {}
        prop_assert_eq!(&client.versions, &world.current.iter().map(|(version, _)| *version).collect::<Vec<_>>());
        // The client has the id of the end, so it receives nothing twice.
        world.reconnect(&mut client);
        prop_assert!(world.read(&mut client).is_pending());
    }

    #[test]
    fn each_updated_state_arrives_within_2k_items(
        topics in 2..6_usize,
        rounds in vec((vec(any::<Index>(), 0..6), any::<bool>()), 1..100),
    ) {
        let mut world = World::new(topics);
        let mut client = world.client();
        let mut items_without = vec![0; topics];
        (0..topics).for_each(|topic| world.publish(topic));
        for (order, reverse) in rounds {
            let all: Vec<_> = if reverse { (0..topics).rev().collect() } else { (0..topics).collect() };
            all.into_iter().for_each(|topic| world.publish(topic));
            order.iter().for_each(|topic| world.publish(topic.index(topics)));
            let Poll::Ready(Some(read)) = world.read(&mut client) else { panic!("a state is ready") };
            for (topic, items) in items_without.iter_mut().enumerate() {
                *items = if topic == read { 0 } else { *items + 1 };
                prop_assert!(*items < 2 * topics, "{} waits for {} items", topic, items);
            }
        }
    }
}

#[test]
fn slow_client_receives_two_states_in_turn() {
    let mut world = World::new(2);
    let mut client = world.client();
    let mut read = Vec::new();
    for _ in 0..6 {
        world.publish(0);
        world.publish(1);
        let Poll::Ready(Some(topic)) = world.read(&mut client) else { panic!("a state is ready") };
        read.push(topic);
    }
    assert_eq!(read, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn omitted_cursor_also_omits_the_last_item() {
    let mut world = World::new(2);
    let mut subscription =
        task::spawn(now(world.hub.subscribe(["0", "1"], Start::Earliest)).unwrap().without_control_events());
    world.publish(0);
    world.publish(1);
    assert!(subscription.poll_next().is_ready());
    world.publish(1);
    assert!(subscription.poll_next().is_ready());
    assert!(subscription.poll_next().is_pending());
    assert_eq!(number(subscription.cursor().as_str()), world.current[1].1);
}

#[test]
fn state_keeps_its_turn_while_another_topic_lags() {
    let hub = Hub::builder().max_events(1).build();
    let (said, here) = (hub.topic("said"), hub.topic("here").latest_only());
    let mut slow = task::spawn(now(hub.subscribe(["said", "here"], Start::Earliest)).unwrap());
    let mut states = 0;
    for version in 1..20 {
        for _ in 0..3 {
            now(said.publish(Event::display(version))).unwrap();
        }
        publish(&here, version);
        let Poll::Ready(Some(Ok(events))) = slow.poll_next() else { panic!("an event is ready") };
        states += whatwg::parse(events.as_bytes()).messages.iter().filter(|message| message.r#type == "state").count();
    }
    assert!(states >= 4, "{states} of 19 items are states");
}

#[test]
fn slow_response_shows_each_of_300_states() {
    let mut world = World::new(300);
    let names = world.topics.iter().map(Topic::name);
    let subscription = now(world.hub.subscribe(names, Start::Latest)).unwrap();
    let mut body = task::spawn(SseStream::new(subscription).into_http_response().into_body());
    let mut shown = BTreeSet::new();
    // A frame has up to 64 states, and the body is pending after it: 600 states are 10 frames.
    for _ in 0..20 {
        (0..300).for_each(|topic| world.publish(topic));
        let frame = match body.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(frame) => frame.unwrap().unwrap(),
            Poll::Pending => continue,
        };
        let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
        shown.extend(text.lines().filter_map(|line| line.strip_prefix(": ")).map(str::to_owned));
    }
    assert_eq!(shown.len(), 300);
}
