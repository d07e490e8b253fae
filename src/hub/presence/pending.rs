//! The events of changes that are not in the log yet.

use crate::random;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The limits of a batch.
const MAX_BATCH: usize = 1_000;
pub(super) const MAX_BATCH_BYTES: usize = 256 << 10;

/// The pause before a node publishes an event of a change that another node has written. The other
/// node is usually faster.
const PAUSE: Duration = Duration::from_millis(300);

/// Every node with a complete view has the same pending events. So if one node dies, another one
/// publishes them. An event is removed when it is read from the log.
#[derive(Default)]
pub(super) struct Pending(HashMap<Arc<str>, OfTopic>);

#[derive(Default)]
struct OfTopic {
    events: VecDeque<PendingEvent>,
    /// Set while a task of this node publishes the events.
    is_publishing: bool,
}

struct PendingEvent {
    member: Arc<str>,
    event: Bytes,
    /// The time when this node publishes the event.
    due: Instant,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `true` if a topic has pending events.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.0.get(topic).is_some_and(|of_topic| !of_topic.events.is_empty())
    }

    pub(super) fn add(&mut self, topic: &Arc<str>, member: &Arc<str>, event: Bytes, is_own: bool) {
        let pause = if is_own { Duration::ZERO } else { PAUSE.mul_f64(1.0 + random::fraction()) };
        let due = Instant::now() + pause;
        self.0.entry(topic.clone()).or_default().events.push_back(PendingEvent { member: member.clone(), event, due });
    }

    /// Notes an event of a topic. If it is a pending one, it is in the log now.
    pub(super) fn note(&mut self, topic: &str, event: &Bytes) {
        let Some(of_topic) = self.0.get_mut(topic) else { return };
        let Some(index) = of_topic.events.iter().position(|pending| pending.event == event) else { return };
        let Some(published) = of_topic.events.remove(index) else { return };
        // A node that has a complete view for a short time did not know the earlier changes. An
        // earlier change of the member must not follow a later one.
        let mut before = index;
        of_topic.events.retain(|pending| {
            let is_before = before > 0;
            before = before.saturating_sub(1);
            !is_before || pending.member != published.member
        });
        self.remove_if_done(topic);
    }

    /// Forgets the events of a topic that is finished.
    pub(super) fn forget(&mut self, topic: &str) {
        if let Some(of_topic) = self.0.get_mut(topic) {
            of_topic.events.clear();
        }
        self.remove_if_done(topic);
    }

    pub(super) fn clear(&mut self) {
        self.0.values_mut().for_each(|of_topic| of_topic.events.clear());
        self.0.retain(|_, of_topic| of_topic.is_publishing);
    }

    fn remove_if_done(&mut self, topic: &str) {
        if self.0.get(topic).is_some_and(|of_topic| of_topic.events.is_empty() && !of_topic.is_publishing) {
            self.0.remove(topic);
        }
    }

    /// Returns the topics with pending events and without a task. The caller spawns a task for each
    /// of them.
    pub(super) fn begin(&mut self) -> Vec<Arc<str>> {
        let idle = self.0.iter_mut().filter(|(_, of_topic)| !of_topic.is_publishing && !of_topic.events.is_empty());
        let begin = |(topic, of_topic): (&Arc<str>, &mut OfTopic)| {
            of_topic.is_publishing = true;
            topic.clone()
        };
        idle.map(begin).collect()
    }

    /// Returns the events to publish, or the time when the first one is due. Returns `None` and ends
    /// the task of the topic if there is no event.
    pub(super) fn next(&mut self, topic: &str, now: Instant) -> Option<Result<Vec<Bytes>, Instant>> {
        let of_topic = self.0.get_mut(topic)?;
        let Some(first) = of_topic.events.front() else {
            self.0.remove(topic);
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
        let batch = of_topic.events.iter().take(MAX_BATCH).take_while(fits);
        Some(Ok(batch.map(|pending| pending.event.clone()).collect()))
    }

    /// Notes that the task of a topic was dropped.
    pub(super) fn stop(&mut self, topic: &str) {
        if let Some(of_topic) = self.0.get_mut(topic) {
            of_topic.is_publishing = false;
        }
        self.remove_if_done(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pending: &mut Pending) -> Vec<String> {
        let events = pending.next("t", Instant::now()).and_then(Result::ok).unwrap_or_default();
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

    #[tokio::test(start_paused = true)]
    async fn event_of_another_node_is_due_later() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        pending.add(&topic, &"a".into(), "a+".into(), false);
        assert_eq!(pending.begin().len(), 1);
        assert!(pending.begin().is_empty(), "one task per topic");
        let due = pending.next("t", Instant::now()).and_then(Result::err).unwrap();
        let pause = due.duration_since(Instant::now());
        assert!(pause >= PAUSE && pause <= PAUSE * 2, "{pause:?}");
        assert!(pending.next("t", due).unwrap().is_ok());
        pending.note("t", &"a+".into());
        assert!(pending.next("t", due).is_none() && pending.is_empty());
    }
}
