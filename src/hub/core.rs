//! What the handles of one hub share: its topics, and the order of its events.
//!
//! Two kinds of locks, always taken in this order: that of the registry, by whoever publishes, subscribes or finishes; and that
//! of one topic, by these and by whoever reads it. An event gets its number and its place in its topic under both, so numbers
//! rise in each topic, and when a number is [committed](Core::committed) every smaller one can be read. Readers take the lock
//! of their topic alone. No waker is woken, cloned or dropped while a lock is held.

use super::{
    Error, Gap, GapReason, LagPolicy, Start, Stats, Subscription,
    cursor::Epoch,
    janitor,
    log::{Amount, Log, Retention},
    subscription::Reader,
    sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, lock},
    waiters::{Ticket, Waiters},
};
use crate::{Event, EventId};
use std::{
    collections::{BTreeMap, HashMap},
    hash::BuildHasher,
    sync::Arc,
    task::Waker,
};
use tokio::{task::AbortHandle, time::Instant};

/// What a hub was built with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) retention: Retention,
    pub(super) max_topics: usize,
    pub(super) lag_policy: LagPolicy,
}

pub(super) struct Core {
    limits: Limits,
    epoch: Epoch,
    registry: Mutex<Registry>,
    committed: AtomicU64,
    subscriptions: AtomicUsize,
    gaps: AtomicU64,
}

#[derive(Default)]
struct Registry {
    topics: HashMap<Arc<str>, Arc<TopicState>>,
    newest: u64,
    held: Amount,
    forgotten: Forgotten,
    /// When a topic is to be looked at, because something in it will be too old then. The number tells topics apart.
    due: BTreeMap<(Instant, u64), Arc<TopicState>>,
    janitor: Option<AbortHandle>,
    /// The runtime of a janitor had no timers.
    is_without_timers: bool,
}

pub(super) struct TopicState {
    name: Arc<str>,
    /// Grows with every change that a reader waits for.
    version: AtomicU64,
    contents: Mutex<Contents>,
}

pub(super) struct Contents {
    pub(super) log: Log,
    pub(super) waiters: Waiters,
    pub(super) finished: Option<Instant>,
    subscribers: usize,
    /// Whether each event replaces the one before it.
    latest_only: bool,
    /// Whether it is in the registry's `due`.
    is_due: bool,
}

impl TopicState {
    fn new(name: Arc<str>, lost: u64) -> Self {
        let contents = Contents {
            log: Log::new(lost),
            waiters: Waiters::default(),
            finished: None,
            subscribers: 0,
            latest_only: false,
            is_due: false,
        };
        Self { name, version: AtomicU64::new(0), contents: Mutex::new(contents) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Tells the readers that something has changed: those who look by the version, those who wait by their wakers, which the
    /// caller wakes when it holds no lock.
    fn changed(&self, contents: &mut Contents) -> Vec<Option<Waker>> {
        self.version.fetch_add(1, Ordering::Release);
        contents.waiters.take()
    }

    fn wake(&self, mut wakers: Vec<Option<Waker>>) {
        if wakers.is_empty() {
            return;
        }
        wakers.drain(..).flatten().for_each(Waker::wake);
        self.lock().waiters.give_back(wakers);
    }
}

impl Contents {
    /// Whether there is nothing that anybody could come back for.
    fn is_idle(&self, retention: &Retention, now: Instant) -> bool {
        let is_remembered = |finished| retention.expiry(finished).is_none_or(|expiry| expiry > now);
        self.subscribers == 0 && self.log.held().events == 0 && !self.finished.is_some_and(is_remembered)
    }
}

impl Core {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            epoch: Epoch::random(),
            registry: Mutex::default(),
            committed: AtomicU64::new(0),
            subscriptions: AtomicUsize::new(0),
            gaps: AtomicU64::new(0),
        }
    }

    /// The id of a place in the log.
    pub(super) fn id(&self, number: u64) -> EventId {
        self.epoch.id(number)
    }

    /// Up to which number every event can be read.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Appends events, which have no id yet, and returns the id of the last.
    pub(super) fn publish(
        self: &Arc<Self>,
        name: &Arc<str>,
        latest_only: bool,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Option<EventId>, Error> {
        let now = Instant::now();
        let mut registry = lock(&self.registry);
        let topic = registry.topic(name, &self.limits)?;
        let mut contents = topic.lock();
        if contents.finished.is_some() {
            return Err(Error::finished(name));
        }
        contents.latest_only |= latest_only;
        let mut newest = None;
        for event in events {
            registry.newest += 1;
            let id = self.id(registry.newest);
            let before = contents.log.held();
            contents.log.push(registry.newest, event.id(id.clone()), &self.limits.retention, now);
            if contents.latest_only {
                contents.log.replace();
            }
            contents.log.evict(&self.limits.retention, now);
            registry.held = registry.held + contents.log.held() - before;
            newest = Some(id);
        }
        registry.age(&topic, &mut contents, self.limits.retention.expiry(now));
        let wakers = topic.changed(&mut contents);
        self.committed.store(registry.newest, Ordering::Release);
        drop(contents);
        self.call_janitor(&mut registry, now);
        drop(registry);
        topic.wake(wakers);
        Ok(newest)
    }

    pub(super) fn finish(self: &Arc<Self>, name: &Arc<str>) -> Result<(), Error> {
        let now = Instant::now();
        let mut registry = lock(&self.registry);
        let topic = registry.topic(name, &self.limits)?;
        let mut contents = topic.lock();
        if contents.finished.is_some() {
            return Ok(());
        }
        contents.finished = Some(now);
        registry.age(&topic, &mut contents, self.limits.retention.expiry(now));
        let wakers = topic.changed(&mut contents);
        drop(contents);
        self.call_janitor(&mut registry, now);
        drop(registry);
        topic.wake(wakers);
        Ok(())
    }

    pub(super) fn subscribe(self: &Arc<Self>, mut names: Vec<Arc<str>>, start: Start) -> Result<Subscription, Error> {
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(Error::no_topics());
        }
        let now = Instant::now();
        let mut registry = lock(&self.registry);
        let newest = registry.newest;
        let (base, requested, mut reason) = match start {
            Start::After(id) if !id.as_bytes().is_empty() => match self.epoch.number(&id) {
                Ok(number) if number <= newest => (number, Some(id), None),
                Ok(_) => (0, Some(id), Some(GapReason::Future)),
                Err(reason) => (0, Some(id), Some(reason)),
            },
            Start::Earliest => (0, None, None),
            Start::Latest | Start::After(_) => (newest, None, None),
        };

        registry.has_room_for(&names, &self.limits)?;
        let mut readers = Vec::with_capacity(names.len());
        let mut cursor = u64::MAX;
        let mut resumed = None;
        for name in &names {
            let topic = registry.topic(name, &self.limits)?;
            let mut contents = topic.lock();
            let evicted = contents.log.evict(&self.limits.retention, now);
            registry.held = registry.held - evicted;
            contents.subscribers += 1;
            let lost = contents.log.lost();
            if lost > base {
                reason = reason.or(Some(GapReason::Evicted));
            }
            let from = base.max(lost);
            let first = contents.log.first_after(from);
            // As far on as nothing is between, so that a gap is not told again to whoever comes back from there.
            cursor = cursor.min(first.map_or(newest, |first| first - 1));
            resumed = least(resumed, first);
            drop(contents);
            readers.push(Reader::new(topic, lost));
        }
        self.call_janitor(&mut registry, now);
        drop(registry);

        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let gap = requested.as_ref().zip(reason).map(|(requested, reason)| Gap {
            reason,
            requested: requested.clone(),
            resumed: resumed.map(|number| self.id(number)),
        });
        if gap.is_some() {
            self.count_gap();
        }
        let is_resumed = requested.is_some() && gap.is_none();
        Ok(Subscription::new(self.clone(), readers, self.limits.lag_policy, cursor, newest, is_resumed, gap))
    }

    /// What a subscription does with each of its topics when it goes.
    pub(super) fn leave(&self, topic: &Arc<TopicState>, ticket: &mut Option<Ticket>) {
        let mut contents = topic.lock();
        let waker = contents.waiters.leave(ticket);
        contents.subscribers -= 1;
        // One that is due is looked at then.
        let may_go = contents.subscribers == 0 && contents.log.held().events == 0 && !contents.is_due;
        drop(contents);
        drop(waker);
        if may_go {
            lock(&self.registry).forget_if_idle(topic, &self.limits.retention, Instant::now());
        }
    }

    /// What a subscription does when it has left its topics.
    pub(super) fn left(&self) {
        self.subscriptions.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn count_gap(&self) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        lock(&self.registry).topics.contains_key(name)
    }

    pub(super) fn subscribers(&self, name: &str) -> usize {
        let topic = lock(&self.registry).topics.get(name).cloned();
        topic.map_or(0, |topic| topic.lock().subscribers)
    }

    pub(super) fn stats(&self) -> Stats {
        let registry = lock(&self.registry);
        Stats {
            topics: registry.topics.len(),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            events: registry.held.events,
            bytes: registry.held.bytes,
            published: registry.newest,
            gaps: self.gaps.load(Ordering::Relaxed),
        }
    }

    /// Lets go of what is too old in some of the topics that are due. Returns when to come again, if there is anything that
    /// will be too old.
    pub(super) fn sweep(&self) -> Option<Instant> {
        let mut registry = lock(&self.registry);
        registry.sweep(64, &self.limits.retention);
        let next = registry.due.first_key_value().map(|((at, _), _)| *at);
        if next.is_none() {
            registry.janitor = None;
        }
        next
    }

    /// Who publishes and subscribes does the janitor's work from now on.
    pub(super) fn is_without_timers(&self) {
        lock(&self.registry).is_without_timers = true;
    }

    /// Sees to it that there is a janitor if there is anything to do for one.
    fn call_janitor(self: &Arc<Self>, registry: &mut Registry, now: Instant) {
        let Some((&(due, _), _)) = registry.due.first_key_value() else { return };
        let is_there = registry.janitor.as_ref().is_some_and(|janitor| !janitor.is_finished());
        if !is_there {
            registry.janitor = if registry.is_without_timers { None } else { janitor::spawn(self) };
        }
        // One whose runtime nobody drives is late.
        let is_late = || now.saturating_duration_since(due) > self.limits.retention.max_age / 16;
        if registry.janitor.is_none() || is_late() {
            registry.sweep(4, &self.limits.retention);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(janitor) = lock(&self.registry).janitor.take() {
            janitor.abort();
        }
    }
}

impl Registry {
    /// The topic of this name, which is made if it is not there.
    fn topic(&mut self, name: &Arc<str>, limits: &Limits) -> Result<Arc<TopicState>, Error> {
        if let Some(topic) = self.topics.get(name) {
            return Ok(topic.clone());
        }
        self.has_room_for(std::slice::from_ref(name), limits)?;
        let lost = self.forgotten.lost(self.topics.hasher().hash_one(name));
        let topic = Arc::new(TopicState::new(name.clone(), lost));
        self.topics.insert(name.clone(), topic.clone());
        Ok(topic)
    }

    fn has_room_for(&self, names: &[Arc<str>], limits: &Limits) -> Result<(), Error> {
        let room = limits.max_topics.saturating_sub(self.topics.len());
        match names.iter().filter(|name| !self.topics.contains_key(*name)).nth(room) {
            Some(name) => Err(Error::too_many_topics(name, limits.max_topics)),
            None => Ok(()),
        }
    }

    /// Notes that the topic is to be looked at when it is due.
    fn age(&mut self, topic: &Arc<TopicState>, contents: &mut Contents, due: Option<Instant>) {
        if let (Some(due), false) = (due, contents.is_due) {
            contents.is_due = true;
            self.due.insert((due, Arc::as_ptr(topic).addr() as u64), topic.clone());
        }
    }

    /// Looks at some of the topics that are due.
    fn sweep(&mut self, at_once: usize, retention: &Retention) {
        let now = Instant::now();
        for _ in 0..at_once {
            match self.due.first_entry() {
                Some(first) if first.key().0 <= now => {
                    let topic = first.remove();
                    self.tidy(&topic, retention, now);
                }
                _ => break,
            }
        }
    }

    fn tidy(&mut self, topic: &Arc<TopicState>, retention: &Retention, now: Instant) {
        let mut contents = topic.lock();
        contents.is_due = false;
        self.held = self.held - contents.log.evict(retention, now);
        let changed = contents.log.oldest().or(contents.finished);
        if let Some(expiry) = changed.and_then(|then| retention.expiry(then)).filter(|expiry| *expiry > now) {
            // Not for every single event: whoever comes gets nothing that is too old, whether it is still there or not.
            let not_before = retention.expiry(now).map_or(expiry, |end| now + (end - now) / 16);
            self.age(topic, &mut contents, Some(expiry.max(not_before)));
        }
        drop(contents);
        self.forget_if_idle(topic, retention, now);
    }

    fn forget_if_idle(&mut self, topic: &Arc<TopicState>, retention: &Retention, now: Instant) {
        let contents = topic.lock();
        let is_there = self.topics.get(&topic.name).is_some_and(|there| Arc::ptr_eq(there, topic));
        if is_there && contents.is_idle(retention, now) {
            self.topics.remove(&topic.name);
            self.forgotten.note(self.topics.hasher().hash_one(&topic.name), contents.log.lost());
        }
    }
}

/// What was lost with topics that are gone.
///
/// A topic is known by the hash of its name. If two have the same hash, the one that has lost less is said to have lost more,
/// and the same holds for all of them when there are too many: a gap may be told where there is none, never the other way round.
#[derive(Default)]
struct Forgotten {
    topics: HashMap<u64, u64>,
    /// The greatest number of those that are no longer told apart.
    others: u64,
}

impl Forgotten {
    const MAX: usize = 10_000;

    fn lost(&self, topic: u64) -> u64 {
        self.topics.get(&topic).copied().unwrap_or(0).max(self.others)
    }

    fn note(&mut self, topic: u64, lost: u64) {
        if lost <= self.others {
            return;
        }
        if self.topics.len() >= Self::MAX {
            self.others = self.topics.drain().map(|(_, lost)| lost).fold(self.others, u64::max);
        }
        let known = self.topics.entry(topic).or_default();
        *known = lost.max(*known);
    }
}

/// The smaller one of those that are there.
pub(super) fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}
