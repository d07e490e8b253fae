//! The events of joins and leaves that this node has not found in the log yet.

use crate::random;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The maximum number of events in one append.
pub(super) const MAX_BATCH: usize = 1_000;
/// The maximum size of one event in bytes. A larger event is not published. One append has at most
/// twice this size.
pub(super) const MAX_BATCH_BYTES: usize = 256 << 10;

/// The minimum pause before this node publishes the event of a join or a leave that another node
/// has written. The pause is random, and at most twice as long. The other node usually publishes
/// the event before.
const PAUSE: Duration = Duration::from_millis(300);

/// The events of joins and leaves that are not in the log yet, by topic. Every node that knows all
/// members has the same pending events, so if one node dies, another one publishes them. An event
/// is removed when this node reads it from the log.
#[derive(Default)]
pub(super) struct Pending {
    topics: HashMap<Arc<str>, OfTopic>,
    /// The topics that may have pending events, and have no task that publishes them.
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
    /// Set while a task of this node publishes the pending events of the topic.
    is_publishing: bool,
}

struct PendingEvent {
    member: Arc<str>,
    event: Bytes,
    /// The time when this node publishes the event, unless another node has published it before.
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

    /// Removes an event from the pending ones, because this node has read it from the log. Also
    /// removes the earlier pending events of the same member. An event that is not pending has no
    /// effect.
    pub(super) fn note(&mut self, topic: &str, event: &Bytes) {
        let Some(of_topic) = self.topics.get_mut(topic) else { return };
        let Some(number) = of_topic.by_event.get(event).and_then(BTreeSet::first).copied() else { return };
        let member = of_topic.events.get(&number).map(|published| &published.member);
        // The node that has published the event may have known all members only for a short time,
        // and not the earlier changes. So their events are not in the log. They are given up,
        // because an earlier change of a member must not follow a later one.
        let of_member = member.and_then(|member| of_topic.by_member.get(member));
        let through: Vec<u64> = of_member.into_iter().flat_map(|numbers| numbers.range(..=number)).copied().collect();
        through.into_iter().for_each(|number| of_topic.remove(number));
        self.remove_if_done(topic);
    }

    /// Gives up all pending events of a topic, because the topic is finished or the backend refuses
    /// the events.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.get_mut(topic).into_iter().for_each(OfTopic::clear);
        self.remove_if_done(topic);
    }

    /// Gives up the first pending event of a topic, because the backend refuses it.
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

    /// Returns the topics that have pending events and no task that publishes them. From now on
    /// they count as topics with a task, so the caller must spawn a task for each of them.
    pub(super) fn begin(&mut self) -> Vec<Arc<str>> {
        let begins = |topic: &Arc<str>| {
            let idle = self.topics.get_mut(topic).filter(|it| !it.is_publishing && !it.events.is_empty());
            idle.is_some_and(|of_topic| !mem::replace(&mut of_topic.is_publishing, true))
        };
        mem::take(&mut self.idle).into_iter().filter(begins).collect()
    }

    /// Returns the first pending events of a topic for one append, at most `max`. If the first
    /// event is not due yet, returns the time when it is due as `Err`. Returns `None` if the topic
    /// has no pending events. Its task must end then.
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

    /// Stores that a topic has no task any more, because its task was dropped or has ended early.
    /// The pending events stay, and [`begin`](Self::begin) returns the topic again.
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

    /// If each published event needed a walk over all pending events, this test would take minutes.
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
