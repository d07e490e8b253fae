//! Clients connect, read, lag, vanish and reconnect in any order. Each of them gets every event of
//! its topics once and in order, or a gap. A model that keeps all events knows what a hub may have
//! evicted.

use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    task::Poll,
    time::Duration,
};
use support::whatwg;
use tokio_test::task;
use tower_sse::{
    Event, EventId, SseStream,
    hub::{ErrorKind, GapReason, Hub, LagPolicy, Retention, Start, Subscription, SubscriptionError},
};

const TOPICS: [&str; 3] = ["a", "b", "c"];
/// The topic whose events each replace the event before.
const STATE: usize = 2;
const MAX_AGE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
enum Step {
    Publish {
        topic: usize,
        sizes: Vec<usize>,
        /// The limits of events and bytes that the topic gets.
        limits: Option<(usize, usize)>,
    },
    Subscribe {
        topics: Vec<usize>,
        start: Begin,
    },
    /// Reads this number of items.
    Read {
        client: Index,
        items: usize,
    },
    /// Loses the connection, and reconnects with the last id.
    Resume {
        client: Index,
    },
    Leave {
        client: Index,
    },
    Finish {
        topic: usize,
    },
    Remove {
        topic: usize,
    },
    /// A wait until every event has expired.
    Wait,
    /// A quarter of that time.
    Pass,
}

#[derive(Clone, Debug)]
enum Begin {
    Latest,
    Earliest,
    /// After an event of any topic, retained or not.
    After(Index),
    Foreign(&'static str),
    Future(u64),
}

/// The steps that all properties have.
fn common_step(largest: usize) -> impl Strategy<Value = Step> {
    let topic = 0..TOPICS.len();
    let begin = prop_oneof![
        Just(Begin::Latest),
        Just(Begin::Earliest),
        any::<Index>().prop_map(Begin::After),
        prop::sample::select(vec!["", "7", "nonsense", "aaaaaaaa-3", "aaaaaaaa-99999999999999999999"])
            .prop_map(Begin::Foreign),
        (1..u64::MAX / 2).prop_map(Begin::Future),
    ];
    prop_oneof![
        8 => (topic.clone(), vec(0..largest, 0..8))
            .prop_map(|(topic, sizes)| Step::Publish { topic, sizes, limits: None }),
        1 => (topic.clone(), vec(0..largest, 0..8), (1..20_usize, 0..10 * largest))
            .prop_map(|(topic, sizes, limits)| Step::Publish { topic, sizes, limits: Some(limits) }),
        3 => (vec(topic.clone(), 1..4), begin).prop_map(|(topics, start)| Step::Subscribe { topics, start }),
        8 => (any::<Index>(), 1..20_usize).prop_map(|(client, items)| Step::Read { client, items }),
        3 => any::<Index>().prop_map(|client| Step::Resume { client }),
        1 => any::<Index>().prop_map(|client| Step::Leave { client }),
        1 => topic.prop_map(|topic| Step::Remove { topic }),
    ]
}

fn step(largest: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        25 => common_step(largest),
        1 => (0..TOPICS.len()).prop_map(|topic| Step::Finish { topic }),
        1 => Just(Step::Wait),
    ]
}

/// No topic finishes, because the end of a topic expires at another time than its events.
fn step_in_time() -> impl Strategy<Value = Step> {
    prop_oneof![6 => common_step(300), 1 => Just(Step::Pass)]
}

/// A published event.
struct Published {
    topic: usize,
    data: String,
    size: usize,
    /// The time in quarters of the maximum age.
    at: u32,
    is_held: bool,
    is_replaced: bool,
}

#[derive(Default)]
struct Model {
    /// All events by their numbers. The first number is 1.
    log: BTreeMap<u64, Published>,
    finished: [Option<Finished>; 3],
    max_events: usize,
    max_bytes: usize,
    /// The limits of topics that have their own.
    limits: [Option<(usize, usize)>; 3],
    now: u32,
    /// Set if a client listens to the state, with the time when the last client left.
    is_shown: bool,
    left_at: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Finished {
    Remembered,
    /// Expired, but a subscriber was still connected.
    Expired,
    /// Removed, but a subscriber was still connected.
    Removed,
}

impl Model {
    fn newest(&self) -> u64 {
        self.log.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// Expires events. A state does not age while it has clients.
    fn expire(&mut self) {
        for event in self.log.values_mut() {
            let since = if event.topic == STATE { event.at.max(self.left_at) } else { event.at };
            event.is_held &= self.now - since < 4 || (event.topic == STATE && self.is_shown);
        }
    }

    fn publish(&mut self, topic: usize, data: String, size: usize) {
        if topic == STATE {
            for event in self.log.values_mut().filter(|event| event.topic == STATE) {
                event.is_replaced |= event.is_held;
                event.is_held = false;
            }
        }
        self.log.insert(
            self.newest() + 1,
            Published { topic, data, size, at: self.now, is_held: true, is_replaced: false },
        );
        self.evict(topic);
    }

    fn evict(&mut self, topic: usize) {
        let (max_events, max_bytes) = self.limits[topic].unwrap_or((self.max_events, self.max_bytes));
        loop {
            let held = || self.log.values().filter(|event| event.topic == topic && event.is_held);
            let bytes: usize = held().map(|event| event.size).sum();
            if held().count() <= 1 || (held().count() <= max_events && bytes <= max_bytes) {
                break;
            }
            let oldest = self.log.values_mut().find(|event| event.topic == topic && event.is_held);
            oldest.unwrap().is_held = false;
        }
    }
}

struct Client {
    topics: BTreeSet<usize>,
    subscription: task::Spawn<Subscription>,
    /// Every event up to this one has arrived, or is reported.
    position: u64,
    /// The newest state that has arrived. It may have the id of a state that it replaced.
    state: u64,
    /// The gap that the client got.
    excused: BTreeSet<u64>,
    /// The first event after the gap, as the gap reports it.
    first_gap: Option<BTreeSet<u64>>,
    last_id: EventId,
    has_ended: bool,
    was_cut_off: bool,
}

impl Client {
    /// Events that the client is entitled to and has not received.
    fn due<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (u64, &'a Published)> {
        let after = model.log.range(self.position + 1..).map(|(number, event)| (*number, event));
        after.filter(|(number, event)| {
            let has_arrived = event.topic == STATE && *number <= self.state;
            self.topics.contains(&event.topic) && !event.is_replaced && !has_arrived && !self.excused.contains(number)
        })
    }

    fn listens_to(&self, topic: usize) -> bool {
        self.topics.contains(&topic) && !self.has_ended && !self.was_cut_off
    }

    /// Events that the client is entitled to and cannot receive any more.
    fn lost(&self, model: &Model) -> BTreeSet<u64> {
        self.due(model).filter(|(_, event)| !event.is_held).map(|(number, _)| number).collect()
    }
}

struct World {
    hub: Hub,
    model: Model,
    epoch: String,
    clients: Vec<Client>,
    policy: LagPolicy,
}

impl World {
    fn number(&self, id: &str) -> u64 {
        let (epoch, number) = id.split_once('-').unwrap();
        assert_eq!(epoch, self.epoch, "an id of this hub");
        number.parse().unwrap()
    }

    fn id(&self, number: u64) -> EventId {
        EventId::new(format!("{}-{number}", self.epoch)).unwrap()
    }

    fn publish(&mut self, topic: usize, sizes: Vec<usize>, limits: Option<(usize, usize)>) {
        let data = |i: usize, size: usize| format!("{}/{topic}/{i} {}", self.model.newest(), "x".repeat(size));
        let texts: Vec<_> = sizes.into_iter().enumerate().map(|(i, size)| data(i, size)).collect();
        let handle = self.hub.topic(TOPICS[topic]);
        let handle = if topic == STATE { handle.latest_only() } else { handle };
        let handle = match limits {
            Some((events, bytes)) => handle.retention(Retention::new().max_events(events).max_bytes(bytes)),
            None => handle,
        };
        if limits.is_some() && !texts.is_empty() {
            self.model.limits[topic] = limits;
            self.model.evict(topic);
        }
        let published = handle.publish_all(texts.iter().map(Event::new)).now_or_never().unwrap();
        if self.model.finished[topic].is_some() && !texts.is_empty() {
            assert_eq!(published.unwrap_err().kind(), ErrorKind::Finished);
            return;
        }
        for text in texts {
            let size = format!("id: {}\ndata: {text}\n\n", self.id(self.model.newest() + 1)).len();
            self.model.publish(topic, text, size);
        }
        if let Some(id) = published.unwrap() {
            assert_eq!(self.number(id.as_str()), self.model.newest());
        }
    }

    fn subscribe(&mut self, topics: BTreeSet<usize>, start: Begin) {
        let id = match &start {
            Begin::Latest | Begin::Earliest => None,
            Begin::After(index) => Some(self.id(index.index(self.model.newest() as usize + 1) as u64)),
            Begin::Foreign(text) => Some(EventId::new(text).unwrap()),
            Begin::Future(beyond) => Some(self.id(self.model.newest() + beyond)),
        };
        let position = match (&start, &id) {
            (Begin::After(_), Some(id)) => self.number(id.as_str()),
            (Begin::Latest, _) | (Begin::Foreign(""), _) => self.model.newest(),
            _ => 0,
        };
        let reason = match &start {
            Begin::Foreign("7" | "nonsense") => Some(GapReason::Malformed),
            Begin::Foreign("aaaaaaaa-3" | "aaaaaaaa-99999999999999999999") => Some(GapReason::OtherEpoch),
            Begin::Future(_) => Some(GapReason::Ahead),
            _ => None,
        };
        let start = match start {
            Begin::Latest => Start::Latest,
            Begin::Earliest => Start::Earliest,
            _ => Start::After(id.clone().unwrap()),
        };
        let is_earliest = start == Start::Earliest;
        let names: Vec<_> = topics.iter().map(|topic| TOPICS[*topic]).collect();
        let subscription = self.hub.subscribe(names, start).now_or_never().unwrap().unwrap();
        let subscription = task::spawn(subscription);
        let excused = BTreeSet::new();
        let mut client = Client {
            topics,
            subscription,
            position,
            state: 0,
            excused,
            first_gap: None,
            last_id: id.unwrap_or_else(|| EventId::from_static("")),
            has_ended: false,
            was_cut_off: false,
        };
        if is_earliest {
            client.excused = client.lost(&self.model);
        }
        let is_lost = client.due(&self.model).any(|(_, event)| !event.is_held);
        let expected = reason.or(is_lost.then_some(GapReason::Evicted));
        let gap = client.subscription.gap();
        assert_eq!(gap.map(|gap| gap.reason()), expected);
        if let Some(gap) = gap {
            assert_eq!(*gap.requested(), client.last_id);
            let resumed = client.due(&self.model).find(|(_, event)| event.is_held);
            assert_eq!(gap.resumed().cloned(), resumed.map(|(number, _)| self.id(number)));
        }
        let cursor = self.number(client.subscription.cursor().as_str());
        let skipped = client.due(&self.model).find(|(number, event)| *number <= cursor && event.is_held);
        assert!(skipped.is_none(), "the cursor is a place before everything that comes");
        let is_over = expected.is_none()
            && client.due(&self.model).next().is_none()
            && client.topics.iter().all(|topic| self.model.finished[*topic].is_some());
        assert_eq!(client.subscription.is_finished(), is_over);
        // The first bytes of a response.
        if expected.is_none() {
            client.last_id = client.subscription.cursor();
        }
        client.first_gap = client.subscription.gap().is_some().then(|| client.lost(&self.model));
        self.clients.push(client);
        self.forget_topics();
    }

    fn read(&mut self, index: usize, items: usize) {
        for _ in 0..items {
            let client = &mut self.clients[index];
            match client.subscription.poll_next() {
                Poll::Ready(Some(Err(error))) => {
                    assert_eq!(error, SubscriptionError::Lagged);
                    assert_eq!(self.policy, LagPolicy::Disconnect);
                    assert!(client.due(&self.model).any(|(_, event)| !event.is_held), "cut off for a reason");
                    client.was_cut_off = true;
                    self.forget_topics();
                }
                Poll::Ready(Some(Ok(events))) => {
                    let messages = whatwg::parse(events.as_bytes()).messages;
                    let own = messages.iter().filter(|message| message.r#type != "hub-cursor");
                    assert_eq!(own.count(), events.count());
                    for message in messages {
                        self.receive(index, &message);
                    }
                }
                Poll::Ready(None) => {
                    if !client.has_ended && !client.was_cut_off {
                        assert!(client.due(&self.model).next().is_none(), "an end comes after the last event");
                        assert!(client.topics.iter().all(|topic| self.model.finished[*topic].is_some()));
                    }
                    client.has_ended = true;
                    self.forget_topics();
                    return;
                }
                Poll::Pending => {
                    let missing: Vec<_> = client.due(&self.model).map(|(number, _)| number).collect();
                    assert!(missing.is_empty(), "it waits, and should have {missing:?}");
                    return;
                }
            }
        }
    }

    fn receive(&mut self, index: usize, message: &whatwg::Message) {
        let number = self.number(&message.last_event_id);
        let client = &mut self.clients[index];
        client.last_id = EventId::new(&message.last_event_id).unwrap();
        if message.r#type == "gap" {
            let data: serde_json::Value = serde_json::from_str(&message.data).unwrap();
            assert!(data["requested"].is_string() && (data["resumed"].is_string() || data["resumed"].is_null()));
            // The first event is as old as the subscription.
            let excused = client.first_gap.take().unwrap_or_else(|| client.lost(&self.model));
            client.excused.extend(excused);
            let skipped = client.due(&self.model).find(|(due, _)| *due <= number);
            assert!(skipped.is_none(), "the id of a gap is before everything that comes");
            client.position = client.position.max(number);
            return;
        }
        if message.r#type == "hub-cursor" {
            assert!(number > client.position && client.due(&self.model).next().is_none());
            client.position = number;
            return;
        }
        let replacement = client.due(&self.model).find(|(_, event)| event.data == message.data && event.topic == STATE);
        if let Some((state, _)) = replacement.filter(|(state, _)| number < *state) {
            // It has the id of a state that it replaced, or that was removed and reported by a gap.
            assert!(number >= client.position, "an id that is too small");
            let earlier = &self.model.log[&number];
            let is_earlier_state = earlier.topic == STATE && (earlier.is_replaced || client.excused.contains(&number));
            assert!(number == client.position || is_earlier_state);
            let skipped = client.due(&self.model).find(|(due, _)| *due <= number);
            assert!(skipped.is_none(), "a replacement comes after everything before its id");
            (client.position, client.state) = (number, state);
            return;
        }
        assert!(number > client.position, "an event twice, or too late");
        let next = client.due(&self.model).next();
        let (due, event) = next.expect("nothing that is not due");
        assert_eq!(number, due, "the next that is due comes next");
        assert_eq!(message.data, event.data);
        client.position = number;
    }

    fn resume(&mut self, index: usize) {
        let client = self.clients.swap_remove(index);
        let Client { topics, last_id, position, excused, subscription, .. } = client;
        drop(subscription);
        self.forget_topics();
        let known = last_id.as_str().strip_prefix(&format!("{}-", self.epoch)).and_then(|number| number.parse().ok());
        // A client that never had an id of this hub has no cursor yet.
        let Some(number) = known.filter(|number| *number <= self.model.newest()) else { return };
        self.subscribe_after(topics, number);
        let client = &self.clients[self.clients.len() - 1];
        for (due, event) in self.model.log.range(..=number) {
            let is_known = excused.contains(due) || event.is_replaced;
            let was_due = *due > position && client.topics.contains(&event.topic) && !is_known;
            assert!(!was_due, "coming back with {last_id} passes over {due}");
        }
    }

    fn subscribe_after(&mut self, topics: BTreeSet<usize>, number: u64) {
        let names: Vec<_> = topics.iter().map(|topic| TOPICS[*topic]).collect();
        let id = self.id(number);
        let subscription = self.hub.subscribe(names, Start::After(id.clone())).now_or_never().unwrap().unwrap();
        let mut client = Client {
            topics,
            subscription: task::spawn(subscription),
            position: number,
            state: 0,
            excused: BTreeSet::new(),
            first_gap: None,
            last_id: id,
            has_ended: false,
            was_cut_off: false,
        };
        let is_lost = client.due(&self.model).any(|(_, event)| !event.is_held);
        assert_eq!(client.subscription.gap().is_some(), is_lost);
        assert_eq!(client.subscription.is_resumed(), !is_lost);
        client.first_gap = client.subscription.gap().is_some().then(|| client.lost(&self.model));
        self.clients.push(client);
        self.forget_topics();
    }

    fn remove(&mut self, topic: usize) {
        self.hub.topic(TOPICS[topic]).remove().now_or_never().unwrap().unwrap();
        self.model.log.values_mut().filter(|event| event.topic == topic).for_each(|event| event.is_held = false);
        self.model.limits[topic] = None;
        if let Some(finished) = &mut self.model.finished[topic] {
            *finished = Finished::Removed;
        }
        self.forget_topics();
    }

    /// A topic without events and subscribers is dropped, once its end need not be remembered.
    fn forget_topics(&mut self) {
        let is_shown = self.clients.iter().any(|client| client.listens_to(STATE));
        if mem::replace(&mut self.model.is_shown, is_shown) && !is_shown {
            self.model.left_at = self.model.now;
        }
        for (topic, name) in TOPICS.into_iter().enumerate() {
            let is_held = self.model.log.values().any(|event| event.topic == topic && event.is_held);
            let is_heard = self.clients.iter().any(|client| client.listens_to(topic));
            let is_remembered = self.model.finished[topic] == Some(Finished::Remembered);
            if !is_remembered && !is_held && !is_heard {
                self.model.finished[topic] = None;
            }
            if !self.hub.topic(name).exists() {
                self.model.limits[topic] = None;
            }
        }
    }

    async fn pass(&mut self) {
        tokio::time::advance(MAX_AGE / 4).await;
        self.model.now += 1;
        // New subscribers get no expired event, whether or not a janitor has run.
        drop(self.hub.subscribe(TOPICS, Start::Latest).await.unwrap());
        self.model.expire();
        // A state without clients has lost its last subscriber.
        self.model.left_at = self.model.now;
        self.forget_topics();
    }

    async fn wait(&mut self) {
        tokio::time::advance(2 * MAX_AGE).await;
        // The janitor runs.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.model.now += 8;
        self.model.expire();
        let finished = self.model.finished.iter_mut().flatten();
        finished.filter(|finished| **finished == Finished::Remembered).for_each(|it| *it = Finished::Expired);
        self.forget_topics();
        let is_held = self.model.log.values().any(|event| event.is_held);
        assert!(is_held == (self.hub.stats().events > 0) && (!is_held || self.model.is_shown));
    }
}

async fn play(steps: Vec<Step>, max_events: usize, max_bytes: usize, policy: LagPolicy) {
    let hub = Hub::builder().max_events(max_events).max_bytes(max_bytes).max_age(MAX_AGE).lag_policy(policy).build();
    let probe = hub.topic("probe").subscribe(Start::Latest).now_or_never().unwrap().unwrap();
    let epoch = probe.cursor().as_str().split_once('-').unwrap().0.to_owned();
    drop(probe);
    let model = Model { max_events, max_bytes, ..Model::default() };
    let mut world = World { hub, model, epoch, clients: Vec::new(), policy };
    for step in steps {
        let pick = |client: Index| (!world.clients.is_empty()).then(|| client.index(world.clients.len()));
        match step {
            Step::Publish { topic, sizes, limits } => world.publish(topic, sizes, limits),
            Step::Subscribe { topics, start } => world.subscribe(topics.into_iter().collect(), start),
            Step::Read { client, items } => {
                if let Some(client) = pick(client) {
                    world.read(client, items);
                }
            }
            Step::Resume { client } => {
                if let Some(client) = pick(client) {
                    world.resume(client);
                }
            }
            Step::Leave { client } => {
                if let Some(client) = pick(client) {
                    world.clients.swap_remove(client);
                    world.forget_topics();
                }
            }
            Step::Finish { topic } => {
                world.hub.topic(TOPICS[topic]).finish().now_or_never().unwrap().unwrap();
                let finished = &mut world.model.finished[topic];
                if *finished != Some(Finished::Expired) {
                    *finished = Some(Finished::Remembered);
                }
            }
            Step::Remove { topic } => world.remove(topic),
            Step::Wait => world.wait().await,
            Step::Pass => world.pass().await,
        }
        for (topic, name) in TOPICS.into_iter().enumerate() {
            let listening = world.clients.iter().filter(|client| client.listens_to(topic)).count();
            assert_eq!(world.hub.topic(name).subscribers(), listening);
        }
        let held = || world.model.log.values().filter(|event| event.is_held);
        assert_eq!(world.hub.stats().events, held().count());
        assert_eq!(world.hub.stats().bytes, held().map(|event| event.size).sum::<usize>());
    }
    // Every client gets the remaining events.
    for client in 0..world.clients.len() {
        world.read(client, usize::MAX);
    }
}

fn run(steps: Vec<Step>, max_events: usize, max_bytes: usize, policy: LagPolicy) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(steps, max_events, max_bytes, policy));
}

fn policies() -> impl Strategy<Value = LagPolicy> {
    prop_oneof![Just(LagPolicy::Gap), Just(LagPolicy::Disconnect)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn events_arrive_or_gap_with_short_history(
        steps in vec(step(50), 1..120), max_events in 1_usize..30, policy in policies(),
    ) {
        run(steps, max_events, usize::MAX, policy);
    }

    #[test]
    fn events_arrive_or_gap_with_small_history(
        steps in vec(step(400), 1..120), max_bytes in 0_usize..6000, policy in policies(),
    ) {
        run(steps, usize::MAX, max_bytes, policy);
    }

    #[test]
    fn events_arrive_or_gap_while_time_passes(
        steps in vec(step_in_time(), 1..120), policy in policies(),
    ) {
        run(steps, usize::MAX, usize::MAX, policy);
    }

    #[test]
    fn events_arrive_or_gap_with_large_events(
        steps in vec(step(9000), 1..120), max_bytes in 10_000_usize..200_000, policy in policies(),
    ) {
        run(steps, usize::MAX, max_bytes, policy);
    }
}

#[test]
fn limits_evict_from_finished_topic() {
    let limits = Some((1, 0));
    let steps = [
        Step::Publish { topic: 1, sizes: vec![0, 0], limits: None },
        Step::Finish { topic: 1 },
        Step::Publish { topic: 1, sizes: vec![0], limits },
    ];
    run(steps.to_vec(), usize::MAX, 10_000, LagPolicy::Gap);
}

/// A state is removed before a client has read it, and the client gets a gap. The next state then
/// has the id of the removed one, because later events of the other topic are still to come.
#[test]
fn state_after_removal_keeps_place_in_order() {
    let publish = |topic, sizes: &[usize]| Step::Publish { topic, sizes: sizes.to_vec(), limits: None };
    // With so few bytes, each event is read alone.
    let small_history = Step::Publish { topic: 0, sizes: vec![0, 0, 0], limits: Some((4, 200)) };
    let client = any::<Index>().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let steps = [
        small_history,
        Step::Subscribe { topics: vec![0, STATE], start: Begin::Earliest },
        publish(STATE, &[0]),
        Step::Read { client, items: 1 },
        publish(0, &[0; 3]),
        Step::Remove { topic: STATE },
        publish(STATE, &[0]),
    ];
    run(steps.to_vec(), usize::MAX, usize::MAX, LagPolicy::Gap);
}

#[test]
fn response_to_complete_client_is_204() {
    let hub = Hub::new();
    let topic = hub.topic("done");
    let id = topic.publish(Event::new("all")).now_or_never().unwrap().unwrap();
    topic.finish().now_or_never().unwrap().unwrap();
    let response =
        |start: Start| SseStream::new(topic.subscribe(start).now_or_never().unwrap().unwrap()).into_http_response();
    assert_eq!(response(Start::After(id)).status(), 204);
    assert_eq!(response(Start::Latest).status(), 204);
    assert_eq!(response(Start::Earliest).status(), 200);
}
