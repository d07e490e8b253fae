//! The registry of a hub: the table of its topics, and the tombstones of topics that were dropped.
//! A tombstone stores that events of a dropped topic may be missing, up to a certain position.

use super::{
    backend::Position,
    config::HubConfig,
    count_watch::{CountWatch, Wakers},
    error::Error,
    log::{Amount, Limits},
    stream_registries::CLOSED_STREAMS,
    topic_state::{Contents, TopicState},
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    hash::BuildHasher,
    sync::Arc,
};
use tokio::{task::AbortHandle, time::Instant};

/// The maximum number of topics whose expired events are removed before the lock of the registry,
/// the table of all topics, is released.
pub(super) const SWEEP: usize = 64;

/// The maximum number of removed topics that the hub remembers because they still had members, the
/// names that are present in a topic. Beyond this number, the hub forgets all of them. When a
/// member of a forgotten topic leaves later, the hub publishes an event about the leave. This event
/// creates the topic again, until the event expires.
const MAX_REMOVED: usize = 10_000;

#[derive(Default)]
pub(super) struct Registry {
    pub(super) topics: HashMap<Arc<str>, Arc<TopicState>>,
    pub(super) last: Position,
    pub(super) retained: Amount,
    /// The number of events that were added to topics, except to the [topic of the
    /// crate](is_of_crate).
    pub(super) published: u64,
    /// The retention limits from the settings of the hub, for topics that have no limits of their
    /// own. All of these topics share this `Arc`, but the limits apply to each topic separately.
    /// `None` before the first topic.
    limits: Option<Arc<Limits>>,
    tombstones: Tombstones,
    /// The hashes of the names of topics that still had members (names that are present in a topic)
    /// when the application removed the topics. When these members leave, no event is published,
    /// because the event would create the topic again. If a topic is created again, its hash is
    /// removed.
    removed_with_members: HashSet<u64>,
    /// The numbers of subscribers that [`SubscriberCounts`](super::SubscriberCounts) streams
    /// report, by the names of the topics. An entry can exist without a topic.
    pub(super) count_watches: HashMap<Arc<str>, Arc<CountWatch>>,
    /// The topics whose expired events have to be removed, in the order of these removals. The key
    /// of the map is the time of the removal, and the address of the topic in memory, which
    /// distinguishes topics with the same time.
    pub(super) due: BTreeMap<(Instant, u64), Arc<TopicState>>,
    pub(super) janitor: Option<AbortHandle>,
    /// The time until which the janitor, the task that removes expired events, sleeps.
    pub(super) next_sweep: Option<Instant>,
    pub(super) is_shut_down: bool,
    /// `true` if the hub has a backend, which may retain events that this process has evicted.
    has_backend: bool,
    /// `true` if the runtime has no timers, so that the janitor cannot run. Publishers and
    /// subscribers then remove expired events instead.
    pub(super) is_without_timers: bool,
}

impl Registry {
    /// Returns the topic with this name, and creates the topic if it does not exist. Returns an
    /// error if the hub is shut down. Also returns an error for a new topic if there are already
    /// `max_topics` topics.
    pub(super) fn topic(&mut self, name: &Arc<str>, config: &HubConfig) -> Result<Arc<TopicState>, Error> {
        if self.is_shut_down {
            return Err(Error::shut_down());
        }
        if let Some(topic) = self.topics.get(name) {
            return Ok(topic.clone());
        }
        self.check_topic_limit(std::slice::from_ref(name), config)?;
        let hash = self.topics.hasher().hash_one(name);
        self.removed_with_members.remove(&hash);
        let evicted_through = self.tombstones.evicted_through(hash);
        let topic = Arc::new(TopicState::new(name.clone(), evicted_through, self.limits(config)));
        if let Some(watch) = self.count_watches.get(name) {
            topic.lock().count_watch = Some(watch.clone());
        }
        self.topics.insert(name.clone(), topic.clone());
        Ok(topic)
    }

    /// Returns `true` if the topic is in memory and [exists](Contents::exists) for the application,
    /// for example because it has events or subscribers. A request of the Durable Streams protocol
    /// that only looks up a topic creates the topic in memory, but does not count as a subscriber.
    pub(super) fn exists(&self, name: &str) -> bool {
        self.topics.get(name).is_some_and(|topic| topic.lock().exists())
    }

    /// Returns the retention limits from the settings of the hub, which apply to each topic that
    /// has no limits of its own.
    pub(super) fn limits(&mut self, config: &HubConfig) -> Arc<Limits> {
        self.limits.get_or_insert_with(|| Arc::new(config.retention)).clone()
    }

    pub(super) fn check_topic_limit(&mut self, names: &[Arc<str>], config: &HubConfig) -> Result<(), Error> {
        self.count_new_topics(names, 0, config).map(drop)
    }

    /// Returns the number of topics in `names` that do not exist yet, plus `others`, the number of
    /// new topics that the caller has counted before. Returns an error if the hub would then have
    /// more than `max_topics` topics.
    pub(super) fn count_new_topics(
        &mut self,
        names: &[Arc<str>],
        others: usize,
        config: &HubConfig,
    ) -> Result<usize, Error> {
        let mut count = others;
        for name in names {
            if self.topics.contains_key(name) {
                continue;
            }
            count += 1;
            if !self.has_room(count, config) {
                return Err(Error::too_many_topics(name, config.max_topics));
            }
        }
        Ok(count)
    }

    /// Returns `true` if the hub can have `count` more topics. If the hub is at its limit, the
    /// function first drops expired topics, and then checks again. The janitor, the task that
    /// usually drops them, does not run outside of a tokio runtime or without timers.
    fn has_room(&mut self, count: usize, config: &HubConfig) -> bool {
        let has_room = |topics: usize| count <= config.max_topics.saturating_sub(topics);
        if !has_room(self.topics.len()) {
            self.sweep(SWEEP);
        }
        has_room(self.topics.len())
    }

    /// Removes all topics, because another log has replaced the log of the backend. Events of the
    /// new log up to `evicted_through` count as evicted.
    ///
    /// Returns the removed topics, whose subscriptions the caller ends. Also returns the wakers of
    /// the streams that watch numbers of subscribers, which the caller wakes.
    pub(super) fn reset(&mut self, evicted_through: Position) -> (Vec<Arc<TopicState>>, Wakers) {
        let mut wakers = Wakers::default();
        for (name, watch) in &self.count_watches {
            // The subscriptions of the removed topic do not count any more.
            if let Some(topic) = self.topics.get(name) {
                topic.lock().count_watch = None;
            }
            wakers.add(watch.set(0));
        }
        self.has_backend = true;
        self.last = evicted_through;
        self.retained = Amount::default();
        self.due.clear();
        self.tombstones = Tombstones { topics: HashMap::new(), others: evicted_through };
        self.removed_with_members.clear();
        (self.topics.drain().map(|(_, topic)| topic).collect(), wakers)
    }

    /// Records that the backend has evicted all events up to `through`, also for topics that are
    /// created later. Returns the existing topics. The caller has to remove the events up to
    /// `through` from each of them.
    pub(super) fn truncate_through(&mut self, through: Position) -> Vec<Arc<TopicState>> {
        self.tombstones = Tombstones { topics: HashMap::new(), others: through };
        self.topics.values().cloned().collect()
    }

    /// Notes that this process does not retain the event of `topic` at `position`, because the hub
    /// already has its maximum number of topics. If the topic is created later, its subscribers
    /// read the event from the backend.
    pub(super) fn note_skipped(&mut self, topic: &Arc<str>, position: Position) {
        let hash = self.topics.hasher().hash_one(topic);
        self.removed_with_members.remove(&hash);
        self.tombstones.note(hash, position, false);
    }

    /// Returns the smallest eviction watermark of the topics that the hub creates from now on:
    /// older events of such a topic, up to and including this position, may be missing.
    pub(super) fn dropped_through(&self) -> Position {
        self.tombstones.others
    }

    /// Notes that the application has removed a topic, with all of the topic's events up to and
    /// including the position `through`.
    pub(super) fn note_removed(&mut self, name: &Arc<str>, through: Position) {
        let topic = self.topics.hasher().hash_one(name);
        let through = through.max(self.tombstones.evicted_through(topic));
        self.tombstones.note(topic, through, true);
    }

    /// Returns an upper bound for the positions of the records of a dropped topic that this process
    /// has read. A dropped topic is no longer in memory.
    pub(super) fn topic_dropped_through(&self, name: &Arc<str>) -> Position {
        self.tombstones.evicted_through(self.topics.hasher().hash_one(name))
    }

    /// Returns `true` if the hub has dropped the topic because its events have expired, and the
    /// topic had no event after `position`. Returns `false` if the topic was finished or removed,
    /// or if the hub does not remember it.
    #[cfg(feature = "durable-streams")]
    pub(super) fn has_expired(&self, name: &Arc<str>, position: Position) -> bool {
        let tombstone = self.tombstones.topics.get(&self.topics.hasher().hash_one(name));
        tombstone.is_some_and(|tombstone| !tombstone.is_ended && tombstone.evicted_through <= position)
    }

    /// Remembers that the application has removed a topic while the topic had members. Has no
    /// effect if the hub still has the topic, for example because the topic has subscribers.
    pub(super) fn note_removed_with_members(&mut self, topic: &Arc<str>) {
        if self.topics.contains_key(topic) {
            return;
        }
        if self.removed_with_members.len() >= MAX_REMOVED {
            self.removed_with_members.clear();
        }
        self.removed_with_members.insert(self.topics.hasher().hash_one(topic));
    }

    /// Returns `true` if the topic still had members when the application removed the topic, and
    /// the topic was not created again.
    pub(super) fn is_removed_with_members(&self, topic: &Arc<str>) -> bool {
        self.removed_with_members.contains(&self.topics.hasher().hash_one(topic))
    }

    /// Schedules the removal of the topic's expired events for the time `due`. Has no effect if
    /// `due` is `None`, or if a removal is already scheduled for this or an earlier time.
    pub(super) fn schedule(&mut self, topic: &Arc<TopicState>, contents: &mut Contents, due: Option<Instant>) {
        let Some(due) = due.filter(|due| contents.due.is_none_or(|scheduled| scheduled > *due)) else { return };
        self.unschedule(topic, contents);
        contents.due = Some(due);
        self.due.insert((due, Arc::as_ptr(topic).addr() as u64), topic.clone());
    }

    /// Cancels the scheduled removal of the topic's expired events. Has no effect if no removal is
    /// scheduled.
    pub(super) fn unschedule(&mut self, topic: &Arc<TopicState>, contents: &mut Contents) {
        if let Some(due) = contents.due.take() {
            self.due.remove(&(due, Arc::as_ptr(topic).addr() as u64));
        }
    }

    /// Returns the topic, and creates it if it does not exist, like [`topic`](Self::topic). If the
    /// topic is finished and [idle](Contents::is_idle), returns a new, open topic instead. A
    /// finished topic is idle when the hub need not remember its finish, usually after the maximum
    /// age of its events.
    pub(super) fn current_topic(
        &mut self,
        name: &Arc<str>,
        config: &HubConfig,
        now: Instant,
    ) -> Result<Arc<TopicState>, Error> {
        let topic = self.topic(name, config)?;
        let is_finished = topic.lock().finished.is_some();
        if is_finished { self.renew(&topic, config, now) } else { Ok(topic) }
    }

    /// Returns the topic with the name of `finished`, a finished topic. If that topic [is
    /// idle](Contents::is_idle), because the hub need not remember its finish any more, replaces it
    /// with a new, open topic. Otherwise returns the same topic.
    pub(super) fn renew(
        &mut self,
        finished: &Arc<TopicState>,
        config: &HubConfig,
        now: Instant,
    ) -> Result<Arc<TopicState>, Error> {
        self.refresh(finished, now);
        self.topic(&finished.name, config)
    }

    /// Removes the expired events of one topic now, and drops the topic if it [is
    /// idle](Contents::is_idle), which means that it is not needed any more. Called before the hub
    /// reports that a topic is finished, because an idle topic no longer counts as finished. The
    /// janitor, the task that usually drops idle topics, does not run outside of a tokio runtime or
    /// without timers.
    pub(super) fn refresh(&mut self, topic: &Arc<TopicState>, now: Instant) {
        self.unschedule(topic, &mut topic.lock());
        self.expire(topic, now);
    }

    /// Removes the expired events of topics whose time in `due` has come. One call handles at most
    /// `at_once` topics.
    pub(super) fn sweep(&mut self, at_once: usize) {
        let now = Instant::now();
        for _ in 0..at_once {
            match self.due.first_entry() {
                Some(first) if first.key().0 <= now => {
                    let topic = first.remove();
                    self.expire(&topic, now);
                }
                _ => break,
            }
        }
    }

    /// Removes the expired events of one topic, and schedules the next removal. Drops the topic if
    /// it is not needed any more.
    fn expire(&mut self, topic: &Arc<TopicState>, now: Instant) {
        let mut contents = topic.lock();
        contents.due = None;
        self.retained = self.retained - contents.evict(now);
        if contents.awaited_until.is_some_and(|until| until <= now) {
            (contents.awaited_until, contents.awaits_event) = (None, false);
        }
        if let Some(expiry) = contents.expiry().filter(|expiry| *expiry > now) {
            // The next expiry is delayed by up to 1/16 of `max_age`, so that one pass removes many
            // events. New subscribers never receive expired events in any case.
            let not_before = contents.retention.expiry(now).map_or(expiry, |end| now + (end - now) / 16);
            self.schedule(topic, &mut contents, Some(expiry.max(not_before)));
        }
        self.forget_if_idle(topic, &mut contents, now);
    }

    /// Handles a topic after its last subscriber has left. If the topic has events, schedules their
    /// removal. Otherwise drops the topic, unless the hub has to remember that the topic is
    /// finished.
    pub(super) fn check_left(&mut self, topic: &Arc<TopicState>, now: Instant) {
        let mut contents = topic.lock();
        let is_current = self.topics.get(&topic.name).is_some_and(|there| Arc::ptr_eq(there, topic));
        if is_current && contents.log.retained().events > 0 {
            let due = contents.retention.expiry(now);
            self.schedule(topic, &mut contents, due);
        }
        self.forget_if_idle(topic, &mut contents, now);
    }

    /// Drops the topic if it [is idle](Contents::is_idle): it has no subscribers and no events, and
    /// need not be remembered. Returns `true` if the topic was dropped.
    pub(super) fn forget_if_idle(&mut self, topic: &Arc<TopicState>, contents: &mut Contents, now: Instant) -> bool {
        let is_current = self.topics.get(&topic.name).is_some_and(|there| Arc::ptr_eq(there, topic));
        if !is_current {
            return false;
        }
        let is_idle = contents.is_idle(now);
        if is_idle {
            self.topics.remove(&topic.name);
            self.unschedule(topic, contents);
            // The log of the backend has the finish record after the topic's last event. The higher
            // watermark makes a returning client read it from the backend.
            let knows_more = self.has_backend && contents.finished.is_some() && !contents.is_removed;
            let evicted_through = if knows_more { self.last } else { contents.log.evicted_through() };
            let is_ended = contents.finished.is_some();
            self.tombstones.note(self.topics.hasher().hash_one(&topic.name), evicted_through, is_ended);
        } else if let Some(until) = contents.awaited_until.filter(|until| *until > now) {
            self.schedule(topic, contents, Some(until));
        }
        is_idle
    }
}

/// The names of the topics that the crate itself uses begin with this prefix.
pub(super) const RESERVED: &str = "tower-sse/";

/// Returns `true` for `tower-sse/closed-streams`, where the crate announces closed streams. The
/// statistics of the hub leave this topic out.
pub(super) fn is_of_crate(topic: &str) -> bool {
    topic == CLOSED_STREAMS
}

/// Returns an error if `name` begins with `tower-sse/`. Only the crate itself uses such topics.
pub(super) fn check_reserved(name: &str) -> Result<(), Error> {
    if name.starts_with(RESERVED) { Err(Error::reserved_topic(name)) } else { Ok(()) }
}

/// The eviction watermark of each dropped topic: events up to and including this position may be
/// missing. If a topic is created again, a returning client still gets a gap.
///
/// Topics are identified by the hashes of their names. At most 10,000 watermarks are kept. At this
/// limit, the greatest watermark replaces all of them, and applies to every topic. So a gap may be
/// reported although no event is missing. The same can happen if two names have the same hash.
#[derive(Default)]
struct Tombstones {
    topics: HashMap<u64, Tombstone>,
    /// The eviction watermark that applies to every topic: events up to this position may be
    /// missing. At most 10,000 watermarks of single topics are kept. Before a further watermark is
    /// added, the greatest of them becomes this common watermark, and they are dropped. The common
    /// watermark also rises when the backend evicts events that this node has not read.
    others: Position,
}

/// A tombstone: the information that the hub keeps about a dropped topic.
#[derive(Clone, Copy, Default)]
struct Tombstone {
    /// The eviction watermark that the topic had when the hub dropped the topic: events up to and
    /// including this position may be missing.
    evicted_through: Position,
    /// `true` if the topic was finished or removed, and no event of the topic has followed.
    is_ended: bool,
}

impl Tombstones {
    const MAX: usize = 10_000;

    fn evicted_through(&self, topic: u64) -> Position {
        self.topics.get(&topic).map_or(self.others, |tombstone| tombstone.evicted_through.max(self.others))
    }

    fn note(&mut self, topic: u64, evicted_through: Position, is_ended: bool) {
        if let Some(known) = self.topics.get_mut(&topic) {
            match evicted_through.cmp(&known.evicted_through) {
                Ordering::Less => {}
                // A subscriber can create the topic again. That does not undo its end.
                Ordering::Equal => known.is_ended |= is_ended,
                Ordering::Greater => *known = Tombstone { evicted_through, is_ended },
            }
            return;
        }
        if evicted_through <= self.others {
            return;
        }
        if self.topics.len() >= Self::MAX {
            let topics = self.topics.drain().map(|(_, tombstone)| tombstone.evicted_through);
            self.others = topics.fold(self.others, Position::max);
        }
        self.topics.insert(topic, Tombstone { evicted_through, is_ended });
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn removed_topics_need_little_memory() {
        let mut registry = Registry::default();
        let name = |n: usize| -> Arc<str> { n.to_string().into() };
        for n in 0..3 * MAX_REMOVED {
            registry.note_removed_with_members(&name(n));
            assert!(registry.is_removed_with_members(&name(n)) && registry.removed_with_members.len() <= MAX_REMOVED);
        }
        let last = name(3 * MAX_REMOVED - 1);
        registry.topic(&last, &HubConfig::DEFAULT).unwrap();
        assert!(!registry.is_removed_with_members(&last));
        registry.note_removed_with_members(&last);
        assert!(!registry.is_removed_with_members(&last), "the topic exists");
    }

    /// A publisher has set the retention limits of a topic, but its event never arrives. After 60
    /// seconds, a topic with nothing but a lookup must not exist for other lookups.
    #[test]
    fn awaited_topic_does_not_exist_for_lookups_forever() {
        let mut registry = Registry::default();
        let topic = registry.topic(&"a".into(), &HubConfig::DEFAULT).unwrap();
        let (now, time) = (Instant::now(), Duration::from_secs(60));
        let mut contents = topic.lock();
        (contents.subscribers, contents.lookups) = (1, 1);
        (contents.awaited_until, contents.awaits_event) = (Some(now + time), true);
        drop(contents);
        registry.refresh(&topic, now);
        assert!(registry.exists("a"));
        registry.refresh(&topic, now + time);
        assert!(!registry.exists("a"));
    }

    #[test]
    fn ended_topic_stays_ended_at_the_limit_of_tombstones() {
        let mut tombstones = Tombstones::default();
        for topic in 0..Tombstones::MAX as u64 {
            tombstones.note(topic, Position::new(1 + topic), true);
        }
        // Dropping the topic notes the same watermark again.
        let last = Tombstones::MAX as u64 - 1;
        tombstones.note(last, Position::new(1 + last), false);
        assert!(tombstones.topics.len() == Tombstones::MAX && tombstones.topics[&last].is_ended);
        tombstones.note(last + 1, Position::new(2 + last), false);
        assert_eq!(tombstones.others, Position::new(1 + last), "the watermarks are joined for a new topic");
    }
}
