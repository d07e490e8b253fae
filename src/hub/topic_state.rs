//! The state of one topic: its log, and the readers that wait for its next change.

use super::{
    backend::Position,
    config::HubConfig,
    count_watch::{CountWatch, Wakers},
    log::{Amount, Limits, Log},
    ready_list::ReadyList,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock},
    waiters::{Batch, Waiters},
};
use crate::callback::contain_panic;
use std::{collections::BTreeMap, sync::Arc, task::Waker};
use tokio::time::Instant;

pub(super) struct TopicState {
    pub(super) name: Arc<str>,
    /// The version of the topic. Each change increments it.
    version: AtomicU64,
    contents: Mutex<Contents>,
}

pub(super) struct Contents {
    pub(super) log: Log,
    pub(super) retention: Limits,
    pub(super) waiters: Waiters,
    /// The subscriptions that [linger](super::linger), by the addresses of their lists. They do not
    /// wait for events all the time, but the end of the topic wakes them.
    pub(super) lingering: BTreeMap<usize, Arc<ReadyList>>,
    pub(super) finished: Option<Instant>,
    pub(super) subscribers: usize,
    /// The watch of the number of subscribers, if a stream reads it.
    pub(super) count_watch: Option<Arc<CountWatch>>,
    /// The time at which the last subscriber left.
    pub(super) left_at: Option<Instant>,
    /// Set if each event replaces the previous event.
    pub(super) latest_only: bool,
    /// The time when the topic is scheduled for expiry in the registry.
    pub(super) due: Option<Instant>,
    pub(super) is_shut_down: bool,
    /// Set if the topic was removed after it was finished, and not reopened since: its end is not
    /// remembered.
    pub(super) is_removed: bool,
}

impl TopicState {
    pub(super) fn new(name: Arc<str>, lost: Position, retention: Limits) -> Self {
        let contents = Contents {
            log: Log::new(lost),
            retention,
            waiters: Waiters::default(),
            lingering: BTreeMap::new(),
            finished: None,
            subscribers: 0,
            count_watch: None,
            left_at: None,
            latest_only: false,
            due: None,
            is_shut_down: false,
            is_removed: false,
        };
        Self { name, version: AtomicU64::new(0), contents: Mutex::new(contents) }
    }

    /// Creates a topic that is not in the registry. Its only subscription ends immediately.
    pub(super) fn shut_down() -> Self {
        let topic = Self::new("".into(), Position::START, HubConfig::DEFAULT.retention);
        let mut contents = topic.lock();
        (contents.subscribers, contents.is_shut_down) = (1, true);
        drop(contents);
        topic
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Makes a change visible to the readers, and makes the waiting readers due. The caller wakes
    /// them after it has released all locks.
    pub(super) fn changed(&self, contents: &mut Contents) -> Change {
        self.version.fetch_add(1, Ordering::Release);
        let through = contents.waiters.make_due();
        let first = contents.waiters.take_due();
        let mut lingering = Vec::new();
        if contents.finished.is_some() || contents.is_shut_down {
            lingering.extend(contents.lingering.values().filter_map(|list| list.end_pause()));
        }
        Change { first, lingering, rest: contents.waiters.has_due().then_some(through) }
    }

    /// Wakes all waiters that are due before this number.
    pub(super) fn wake_through(&self, through: u64) {
        loop {
            let mut contents = self.lock();
            if !contents.waiters.has_due_before(through) {
                return;
            }
            let batch = contents.waiters.take_due::<BATCH>();
            drop(contents);
            batch.wake();
        }
    }

    /// Wakes a batch of the waiters that are due. Returns whether others are due.
    pub(super) fn wake_batch(&self) -> bool {
        let mut contents = self.lock();
        let batch = contents.waiters.take_due::<BATCH>();
        let has_more = contents.waiters.has_due();
        drop(contents);
        batch.wake();
        has_more
    }

    /// Unlocks the contents, and wakes a few waiters if some are due.
    ///
    /// So an audience is woken even if the runtime of the task that wakes it is not driven.
    #[inline]
    pub(super) fn unlock_and_help(mut contents: MutexGuard<'_, Contents>) {
        if contents.waiters.has_due() {
            let batch = contents.waiters.take_due::<HELP>();
            drop(contents);
            batch.wake();
        }
    }
}

/// The maximum number of waiters that a publisher wakes itself. The task of the wake queue wakes
/// the others, in batches of the same size.
pub(super) const BATCH: usize = if cfg!(tower_sse_loom) { 1 } else { 32 };

/// The number of waiters that a reader wakes if some are due.
const HELP: usize = if cfg!(tower_sse_loom) { 1 } else { 4 };

/// The waiters to wake after a change.
#[must_use]
pub(super) struct Change {
    first: Batch<BATCH>,
    /// The subscriptions that linger, if this is the end.
    lingering: Vec<Waker>,
    /// The end of the range of further due waiters, if there are any.
    pub(super) rest: Option<u64>,
}

impl Change {
    /// Wakes the waiters that the publisher wakes. The caller holds no lock.
    pub(super) fn wake(self) {
        self.first.wake();
        for waker in self.lingering {
            contain_panic("waker", || waker.wake());
        }
    }
}

impl Contents {
    /// Returns the time when the oldest event began to age. `None` means that there is no event, or
    /// that the event is a state with subscribers. The clients of these subscribers show the state,
    /// so it does not age, and later subscribers receive it as well.
    pub(super) fn ages_since(&self) -> Option<Instant> {
        let oldest = self.log.oldest_time()?;
        match self.latest_only {
            false => Some(oldest),
            true if self.subscribers > 0 => None,
            true => Some(self.left_at.map_or(oldest, |left_at| left_at.max(oldest))),
        }
    }

    /// Sets the number of subscribers. Returns the streams of this number, which the caller wakes
    /// after it has released all locks.
    pub(super) fn set_subscribers(&mut self, subscribers: usize) -> Wakers {
        self.subscribers = subscribers;
        self.count_watch.as_ref().map(|watch| watch.set(subscribers)).unwrap_or_default()
    }

    /// Evicts the events that exceed the retention. Returns their number and size.
    pub(super) fn evict(&mut self, now: Instant) -> Amount {
        let expiry = self.ages_since().and_then(|since| self.retention.expiry(since));
        if self.latest_only && expiry.is_none_or(|expiry| expiry > now) {
            return self.log.evict_excess(&self.retention);
        }
        self.log.evict(&self.retention, now)
    }

    /// Returns when the oldest event expires, or when the end of the topic is forgotten.
    pub(super) fn expiry(&self) -> Option<Instant> {
        self.ages_since().or(self.finished).and_then(|since| self.retention.expiry(since))
    }

    /// Returns `true` if the topic can be dropped: no client could resume from it.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let is_remembered =
            |finished| !self.is_removed && self.retention.expiry(finished).is_none_or(|expiry| expiry > now);
        self.subscribers == 0 && self.log.retained().events == 0 && !self.finished.is_some_and(is_remembered)
    }
}

/// Ends the subscriptions of these topics.
pub(super) fn shut_down(mut topics: Vec<Arc<TopicState>>) {
    // The order is fixed because `tests/interleavings` needs deterministic runs.
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    for topic in topics {
        let mut contents = topic.lock();
        contents.is_shut_down = true;
        let change = topic.changed(&mut contents);
        drop(contents);
        let rest = change.rest;
        change.wake();
        rest.inspect(|through| topic.wake_through(*through));
    }
}
