//! The join and leave events of members that are still to be published: the local node has not
//! found them in the log yet. They report to the subscribers of a topic that a name has become a
//! member of the topic, or has left it.

use super::{Presence, free_if_empty};
use crate::random;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

/// The maximum number of events about joins and leaves of members that one append to the log
/// contains.
pub(super) const MAX_BATCH: usize = 1_000;
/// The maximum size of a join or leave event of a member, in bytes: 256 KiB. A larger event is not
/// published. The events of one append to the log have at most twice this size together, so at
/// least two events fit.
pub(super) const MAX_BATCH_BYTES: usize = 256 << 10;

/// The minimum pause before the local node publishes a join or leave event if another node has
/// caused the join or the leave. The pause is random, and at most twice as long as this minimum.
/// Usually the other node publishes the event during the pause.
const PAUSE: Duration = Duration::from_millis(300);

/// The join and leave events that are not in the log yet, by topic. An event is removed when the
/// local node reads it from the log. The other nodes have the same unpublished events, so if one
/// node dies, another node publishes them. A node that does not know all members keeps its events
/// until it knows all members.
#[derive(Default)]
pub(super) struct Pending {
    topics: HashMap<Arc<str>, OfTopic>,
    /// The topics that may have unpublished join and leave events of members, but that have no task
    /// to publish these events.
    idle: HashSet<Arc<str>>,
    /// The local node did not know all members, so it has left its join and leave events to the
    /// nodes that did. These nodes have time until this time to publish the events. `None` if the
    /// local node has left no events to other nodes.
    others_publish_until: Option<Instant>,
}

#[derive(Default)]
struct OfTopic {
    events: BTreeMap<u64, PendingEvent>,
    next_number: u64,
    by_event: HashMap<Bytes, BTreeSet<u64>>,
    by_member: HashMap<Arc<str>, BTreeSet<u64>>,
    /// Set while a task of the local node publishes the join and leave events of the topic.
    is_publishing: bool,
    /// The handle of the task that publishes the join and leave events of the topic. `None` until
    /// the task was spawned.
    task: Option<AbortHandle>,
    /// Wakes the task that publishes the join and leave events of the topic, after one of these
    /// events was removed, for example because another node has published it. Otherwise the task
    /// could wait for the time when the removed event was due.
    changed: Arc<Notify>,
}

struct PendingEvent {
    member: Arc<str>,
    is_leave: bool,
    /// Set if the local node has caused the join or leave that this event reports: a member on the
    /// local node has joined or left, or the local node has declared the node of the member dead.
    is_own: bool,
    event: Bytes,
    /// The time when the local node publishes this event about a join or leave of a member, if no
    /// other node has published it before.
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
        self.changed.notify_one();
        remove(&mut self.by_event, &event, number);
        remove(&mut self.by_member, &member, number);
    }

    /// Returns `true` if `event` is the newest unpublished join or leave event of its member.
    fn is_last_of_member(&self, event: &PendingEvent) -> bool {
        let last = self.by_member.get(&event.member).and_then(BTreeSet::last).and_then(|last| self.events.get(last));
        last.is_some_and(|last| std::ptr::eq(last, event))
    }

    /// Removes the first unpublished join or leave event of the topic if `is_void` returns `true`
    /// for it. Returns `true` if the event was removed.
    fn remove_first_if(&mut self, is_void: impl Fn(&Self, &PendingEvent) -> bool) -> bool {
        let first = self.events.first_key_value().filter(|(_, event)| is_void(self, event)).map(|(number, _)| *number);
        first.inspect(|number| self.remove(*number)).is_some()
    }

    fn clear(&mut self) {
        self.changed.notify_one();
        let (task, changed) = (self.task.take(), self.changed.clone());
        *self = Self { is_publishing: self.is_publishing, task, changed, ..Self::default() };
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

    /// Returns `true` if a topic has events about joins or leaves of its members that are not in
    /// the log yet.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|of_topic| !of_topic.events.is_empty())
    }

    /// Adds a join or leave event of `topic` to the events that are not in the log yet. `is_own` is
    /// `true` if the local node has caused the join or the leave. The local node then publishes the
    /// event immediately. Otherwise the node that has caused it first gets a random time of 0.3 s
    /// to 0.6 s to publish the event.
    ///
    /// For 0.9 s after a call of [`leave_to_others`](Self::leave_to_others), the local node
    /// publishes no event, not even its own.
    pub(super) fn add(&mut self, topic: &Arc<str>, change: &Presence, event: Bytes, is_own: bool) {
        let pause = if is_own { Duration::ZERO } else { PAUSE.mul_f64(1.0 + random::fraction()) };
        let due = Instant::now() + pause;
        let due = self.others_publish_until.map_or(due, |until| due.max(until));
        let of_topic = self.topics.entry(topic.clone()).or_default();
        let (member, is_leave) = (change.member().clone(), matches!(change, Presence::Left { .. }));
        of_topic.add(PendingEvent { member, is_leave, is_own, event, due });
        if !of_topic.is_publishing {
            self.idle.insert(topic.clone());
        }
    }

    /// Removes a join or leave event from the events that are still to be published, because the
    /// local node has read it from the log. Also removes the earlier unpublished events of the same
    /// member. Has no effect if `event` is not one of the unpublished events.
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

    /// Drops all unpublished join and leave events of a topic. Called if the topic is finished, or
    /// if the backend refuses the events.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.get_mut(topic).into_iter().for_each(OfTopic::clear);
        self.remove_if_done(topic);
    }

    /// Drops `event`, a join or leave event that the backend refuses, without publishing it.
    /// Returns `true` if it was dropped. Returns `false` if the event is not the topic's first
    /// unpublished event any more, for example because another node has published it.
    pub(super) fn forget_refused(&mut self, topic: &str, event: &Bytes) -> bool {
        let is_dropped = self
            .topics
            .get_mut(topic)
            .is_some_and(|of_topic| of_topic.remove_first_if(|_, first| first.event == event));
        self.remove_if_done(topic);
        is_dropped
    }

    /// Drops the unpublished leave events of a topic that come before its first unpublished join
    /// event. Called if the application has removed the topic: a leave event does not create a
    /// removed topic again, but a join event does.
    pub(super) fn forget_leaves(&mut self, topic: &str) {
        self.forget_first_while(topic, |_, event| event.is_leave);
    }

    /// Drops the first unpublished events of a topic, up to the first event that is not an overdue
    /// leave event of another node. The node that causes a leave has a random time of 0.3 s to 0.6
    /// s to publish the event of the leave. It publishes no event if it knows that the application
    /// has removed the topic. The local node may not know of the removal, so this method is called
    /// if the topic does not exist on the local node.
    ///
    /// A leave event stays if the same member has joined again since. The join event creates the
    /// topic again. Without the leave event, two joins of the member would follow each other.
    pub(super) fn forget_leaves_of_others(&mut self, topic: &str, now: Instant) {
        self.forget_first_while(topic, |of_topic, event| {
            event.is_leave && !event.is_own && event.due <= now && of_topic.is_last_of_member(event)
        });
    }

    fn forget_first_while(&mut self, topic: &str, is_void: impl Fn(&OfTopic, &PendingEvent) -> bool) {
        if let Some(of_topic) = self.topics.get_mut(topic) {
            while of_topic.remove_first_if(&is_void) {}
        }
        self.remove_if_done(topic);
    }

    /// Drops the unpublished join and leave events of a member of a topic. Called if these events
    /// may be wrong, because the member may have been present on another node meanwhile.
    pub(super) fn forget_member(&mut self, topic: &str, member: &str) {
        let Some(of_topic) = self.topics.get_mut(topic) else { return };
        for number in of_topic.by_member.get(member).cloned().unwrap_or_default() {
            of_topic.remove(number);
        }
        self.remove_if_done(topic);
    }

    /// Leaves all join and leave events that are not in the log yet to the nodes that know all
    /// members. These nodes publish them within 0.6 s. The local node forgets them, and publishes
    /// no event for 0.9 s: the next event of a member must not be published before an earlier one.
    pub(super) fn leave_to_others(&mut self) {
        self.clear();
        self.others_publish_until = Some(Instant::now() + 3 * PAUSE);
    }

    /// Drops all join and leave events of members that are not in the log yet, of all topics. The
    /// tasks that publish events continue to run.
    pub(super) fn clear(&mut self) {
        self.topics.values_mut().for_each(OfTopic::clear);
        self.topics.retain(|_, of_topic| of_topic.is_publishing);
        free_if_empty(&mut self.topics);
    }

    /// Drops all join and leave events that are not in the log yet, and returns the tasks that
    /// publish them. The caller aborts the tasks after it has released its lock, because dropping a
    /// task takes the same lock.
    pub(super) fn end(&mut self) -> Vec<AbortHandle> {
        let topics = mem::take(self).topics;
        topics.into_values().filter_map(|of_topic| of_topic.task).collect()
    }

    /// Stores the handle of the task that publishes the join and leave events of a topic. Has no
    /// effect if the task has already ended.
    pub(super) fn set_task(&mut self, topic: &str, task: AbortHandle) {
        let of_topic = self.topics.get_mut(topic).filter(|of_topic| of_topic.is_publishing && !task.is_finished());
        of_topic.into_iter().for_each(|of_topic| of_topic.task = Some(task.clone()));
    }

    fn remove_if_done(&mut self, topic: &str) {
        if self.topics.get(topic).is_some_and(|of_topic| of_topic.events.is_empty() && !of_topic.is_publishing) {
            self.remove(topic);
        }
    }

    fn remove(&mut self, topic: &str) {
        self.topics.remove(topic);
        free_if_empty(&mut self.topics);
    }

    /// Returns the topics that have unpublished join or leave events, but no task to publish them.
    /// The caller must spawn a task for each of these topics, because they count as topics with a
    /// task from now on.
    ///
    /// The [`Notify`] of each topic wakes its task when an event does not have to be published any
    /// more, for example because another node has published it.
    pub(super) fn begin(&mut self) -> Vec<(Arc<str>, Arc<Notify>)> {
        let begin = |topic: Arc<str>| {
            let idle = self.topics.get_mut(&topic).filter(|it| !it.is_publishing && !it.events.is_empty())?;
            idle.is_publishing = true;
            Some((topic, idle.changed.clone()))
        };
        mem::take(&mut self.idle).into_iter().filter_map(begin).collect()
    }

    /// Returns the first unpublished join and leave events of a topic, at most `max`, for one
    /// append to the log. If another node has caused the first of these joins and leaves, that node
    /// has a random time of 0.3 s to 0.6 s to publish the event. During this time, returns `Err`
    /// with the end of this time. Returns `None` if there are no unpublished events. The task that
    /// publishes them must then end.
    pub(super) fn next(&mut self, topic: &str, now: Instant, max: usize) -> Option<Result<Vec<Bytes>, Instant>> {
        let of_topic = self.topics.get_mut(topic)?;
        let Some((_, first)) = of_topic.events.first_key_value() else {
            self.remove(topic);
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

    /// Notes that the task that publishes the join and leave events of a topic was dropped or has
    /// ended early. The unpublished events stay, and [`begin`](Self::begin) returns the topic
    /// again, so that another task is started.
    pub(super) fn stop(&mut self, topic: &Arc<str>) {
        if let Some(of_topic) = self.topics.get_mut(topic) {
            (of_topic.is_publishing, of_topic.task) = (false, None);
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

    /// Creates a join or a leave of a member from a text: `a+` is the join of the member `a`, and
    /// `a-` is the leave.
    fn change(event: &str) -> Presence {
        let (member, change) = event.split_at(1);
        if change == "+" { Presence::joined(member) } else { Presence::left(member) }
    }

    #[tokio::test]
    async fn leaves_before_the_first_join_are_given_up() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        for event in ["a-", "b-", "c+", "a+", "a-"] {
            pending.add(&topic, &change(event), Bytes::from_static(event.as_bytes()), true);
        }
        pending.forget_leaves("t");
        pending.forget_leaves("u");
        assert_eq!(texts(&mut pending), ["c+", "a+", "a-"]);
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_of_other_nodes_are_given_up_when_they_are_due() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        for (event, is_own) in [("a-", false), ("b-", true), ("c-", false)] {
            pending.add(&topic, &change(event), Bytes::from_static(event.as_bytes()), is_own);
        }
        pending.forget_leaves_of_others("t", Instant::now());
        assert!(texts(&mut pending).is_empty(), "the node that has caused the first leave has time to publish it");
        tokio::time::advance(PAUSE * 2).await;
        pending.forget_leaves_of_others("t", Instant::now());
        assert_eq!(texts(&mut pending), ["b-", "c-"]);
    }

    /// The local node drops an event that the backend refuses. It drops nothing if another node has
    /// published the event before the refusal arrives.
    #[tokio::test]
    async fn refused_event_is_dropped_only_while_it_is_first() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        for event in ["a+", "b+", "c+"] {
            pending.add(&topic, &change(event), Bytes::from_static(event.as_bytes()), true);
        }
        pending.note("t", &"a+".into());
        assert!(!pending.forget_refused("t", &"a+".into()));
        assert_eq!(texts(&mut pending), ["b+", "c+"]);
        assert!(pending.forget_refused("t", &"b+".into()));
        assert_eq!(texts(&mut pending), ["c+"]);
    }

    #[tokio::test]
    async fn earlier_change_of_a_member_does_not_follow_a_later_one() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        for event in ["a+", "b+", "a-", "b-", "a+"] {
            pending.add(&topic, &change(event), Bytes::from_static(event.as_bytes()), true);
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

    /// Publishes 100,000 join events. If each published event required an iteration over all
    /// unpublished events, this would take minutes. The test fails after ten seconds.
    #[tokio::test]
    async fn cost_of_an_event_does_not_depend_on_the_number_of_pending_ones() {
        const EVENTS: usize = 100_000;
        let begin = std::time::Instant::now();
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        let event = |n: usize| Bytes::from(format!("+{n}"));
        for n in 0..EVENTS {
            pending.add(&topic, &Presence::joined(n.to_string()), event(n), true);
        }
        for n in 0..EVENTS {
            pending.note("t", &"message".into());
            pending.note("t", &event(n));
        }
        assert!(pending.is_empty());
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }

    /// The local node has left the leave event of a member to other nodes. It publishes its next
    /// join event of the member only after these nodes have had time to publish the leave event.
    #[tokio::test(start_paused = true)]
    async fn event_after_those_left_to_other_nodes_is_due_later() {
        let (mut left, mut other) = (Pending::default(), Pending::default());
        let topic: Arc<str> = "t".into();
        left.add(&topic, &change("a-"), "a-".into(), true);
        other.add(&topic, &change("a-"), "a-".into(), false);
        left.leave_to_others();
        left.add(&topic, &change("a+"), "a+".into(), true);
        let due = |pending: &mut Pending| pending.next("t", Instant::now(), MAX_BATCH).and_then(Result::err);
        assert!(due(&mut left).unwrap() > due(&mut other).unwrap());
        tokio::time::advance(PAUSE * 3).await;
        assert_eq!(texts(&mut left), ["a+"]);
    }

    #[tokio::test(start_paused = true)]
    async fn event_of_another_node_is_due_later() {
        let mut pending = Pending::default();
        let topic: Arc<str> = "t".into();
        pending.add(&topic, &change("a+"), "a+".into(), false);
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
