//! The events of changes that are not in the log yet.

use crate::random;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The limits of a batch.
pub(super) const MAX_BATCH: usize = 1_000;
pub(super) const MAX_BATCH_BYTES: usize = 256 << 10;

/// The pause before a node publishes an event of a change that another node has written. The other
/// node is usually faster.
const PAUSE: Duration = Duration::from_millis(300);

/// Every node with a complete view has the same pending events. So if one node dies, another one
/// publishes them. An event is removed when it is read from the log.
#[derive(Default)]
pub(super) struct Pending {
    topics: HashMap<Arc<str>, OfTopic>,
    /// The topics that may have events and no task.
    idle: HashSet<Arc<str>>,
    /// Set if a topic has no more events since the last [`take_done`](Self::take_done).
    is_done: bool,
}

#[derive(Default)]
struct OfTopic {
    events: BTreeMap<u64, PendingEvent>,
    next_number: u64,
    by_event: HashMap<Bytes, BTreeSet<u64>>,
    by_member: HashMap<Arc<str>, BTreeSet<u64>>,
    /// Set while a task of this node publishes the events.
    is_publishing: bool,
}

struct PendingEvent {
    member: Arc<str>,
    event: Bytes,
    /// The time when this node publishes the event.
    due: Instant,
}

impl OfTopic {
    fn add(&mut self, event: PendingEvent) {
        let number = self.next_number;
        self.next_number += 1;
        self.by_event.entry(event.event.clone()).or_default().insert(number);
        self.by_member.entry(event.member.clone()).or_default().insert(number);
        self.events.insert(number, event);
    }

    fn remove(&mut self, number: u64) {
        let Some(PendingEvent { member, event, .. }) = self.events.remove(&number) else { return };
        remove(&mut self.by_event, &event, number);
        remove(&mut self.by_member, &member, number);
    }

    fn clear(&mut self) {
        let is_publishing = self.is_publishing;
        *self = Self { is_publishing, ..Self::default() };
    }
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<u64>>, key: &K, number: u64) {
    if let Some(numbers) = index.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Returns `true` if a topic has pending events.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|of_topic| !of_topic.events.is_empty())
    }

    pub(super) fn add(&mut self, topic: &Arc<str>, member: &Arc<str>, event: Bytes, is_own: bool) {
        let pause = if is_own { Duration::ZERO } else { PAUSE.mul_f64(1.0 + random::fraction()) };
        let due = Instant::now() + pause;
        let of_topic = self.topics.entry(topic.clone()).or_default();
        of_topic.add(PendingEvent { member: member.clone(), event, due });
        if !of_topic.is_publishing {
            self.idle.insert(topic.clone());
        }
    }

    /// Notes an event of a topic. If it is a pending one, it is in the log now.
    pub(super) fn note(&mut self, topic: &str, event: &Bytes) {
        let Some(of_topic) = self.topics.get_mut(topic) else { return };
        let Some(number) = of_topic.by_event.get(event).and_then(BTreeSet::first).copied() else { return };
        let member = of_topic.events.get(&number).map(|published| &published.member);
        // A node that has a complete view for a short time did not know the earlier changes. An
        // earlier change of the member must not follow a later one.
        let of_member = member.and_then(|member| of_topic.by_member.get(member));
        let through: Vec<u64> = of_member.into_iter().flat_map(|numbers| numbers.range(..=number)).copied().collect();
        through.into_iter().for_each(|number| of_topic.remove(number));
        self.remove_if_done(topic);
    }

    /// Forgets the events of a topic, because it is finished or the backend refuses them.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.get_mut(topic).into_iter().for_each(OfTopic::clear);
        self.remove_if_done(topic);
    }

    /// Forgets the first event of a topic, because the backend refuses it.
    pub(super) fn forget_first(&mut self, topic: &str) {
        if let Some(of_topic) = self.topics.get_mut(topic) {
            let first = of_topic.events.first_key_value().map(|(number, _)| *number);
            first.into_iter().for_each(|number| of_topic.remove(number));
        }
        self.remove_if_done(topic);
    }

    pub(super) fn clear(&mut self) {
        self.is_done = true;
        self.topics.values_mut().for_each(OfTopic::clear);
        self.topics.retain(|_, of_topic| of_topic.is_publishing);
    }

    /// Returns `true` if a topic has no more events since the last call.
    pub(super) fn take_done(&mut self) -> bool {
        mem::take(&mut self.is_done)
    }

    fn remove_if_done(&mut self, topic: &str) {
        self.is_done |= !self.has(topic);
        if self.topics.get(topic).is_some_and(|of_topic| of_topic.events.is_empty() && !of_topic.is_publishing) {
            self.topics.remove(topic);
        }
    }

    /// Returns the topics with pending events and without a task. The caller spawns a task for each
    /// of them.
    pub(super) fn begin(&mut self) -> Vec<Arc<str>> {
        let begins = |topic: &Arc<str>| {
            let idle = self.topics.get_mut(topic).filter(|it| !it.is_publishing && !it.events.is_empty());
            idle.is_some_and(|of_topic| !mem::replace(&mut of_topic.is_publishing, true))
        };
        mem::take(&mut self.idle).into_iter().filter(begins).collect()
    }

    /// Returns at most `max` events to publish, or the time when the first one is due. Returns
    /// `None` and ends the task of the topic if there is no event.
    pub(super) fn next(&mut self, topic: &str, now: Instant, max: usize) -> Option<Result<Vec<Bytes>, Instant>> {
        let of_topic = self.topics.get_mut(topic)?;
        let Some((_, first)) = of_topic.events.first_key_value() else {
            self.topics.remove(topic);
            return None;
        };
        if first.due > now {
            return Some(Err(first.due));
        }
        let mut bytes = 0;
        let fits = |pending: &&PendingEvent| {
            bytes += pending.event.len();
            bytes <= 2 * MAX_BATCH_BYTES
        };
        let batch = of_topic.events.values().take(max).take_while(fits);
        Some(Ok(batch.map(|pending| pending.event.clone()).collect()))
    }

    /// Notes that the task of a topic was dropped.
    pub(super) fn stop(&mut self, topic: &Arc<str>) {
        if let Some(of_topic) = self.topics.get_mut(topic) {
            of_topic.is_publishing = false;
            self.idle.insert(topic.clone());
        }
        self.remove_if_done(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pending: &mut Pending) -> Vec<String> {
        let events = pending.next("t", Instant::now(), MAX_BATCH).and_then(Result::ok).unwrap_or_default();
        events.into_iter().map(|event| String::from_utf8(event.to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn earlier_change_of_a_member_does_not_follow_a_later_one() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        for (member, event) in [("a", "a+"), ("b", "b+"), ("a", "a-"), ("b", "b-"), ("a", "a+")] {
            pending.add(&topic, &member.into(), Bytes::from_static(event.as_bytes()), true);
        }
        pending.note("t", &"c+".into());
        pending.note("u", &"a+".into());
        pending.note("t", &"a-".into());
        assert_eq!(texts(&mut pending), ["b+", "b-", "a+"]);
        pending.note("t", &"b+".into());
        assert_eq!(texts(&mut pending), ["b-", "a+"]);
        pending.forget("t");
        assert!(pending.is_empty());
    }

    /// A walk over all pending events for each published one would take minutes.
    #[tokio::test]
    async fn cost_of_an_event_does_not_depend_on_the_number_of_pending_ones() {
        const EVENTS: usize = 100_000;
        let begin = std::time::Instant::now();
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        let event = |n: usize| Bytes::from(format!("+{n}"));
        for n in 0..EVENTS {
            pending.add(&topic, &n.to_string().into(), event(n), true);
        }
        for n in 0..EVENTS {
            pending.note("t", &"message".into());
            pending.note("t", &event(n));
        }
        assert!(pending.is_empty());
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn event_of_another_node_is_due_later() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        pending.add(&topic, &"a".into(), "a+".into(), false);
        assert_eq!(pending.begin().len(), 1);
        assert!(pending.begin().is_empty(), "one task per topic");
        let due = pending.next("t", Instant::now(), MAX_BATCH).and_then(Result::err).unwrap();
        let pause = due.duration_since(Instant::now());
        assert!(pause >= PAUSE && pause <= PAUSE * 2, "{pause:?}");
        assert!(pending.next("t", due, 1).unwrap().is_ok());
        pending.note("t", &"a+".into());
        assert!(pending.next("t", due, 1).is_none() && pending.is_empty());
    }
}
