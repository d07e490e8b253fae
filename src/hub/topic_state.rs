//! The state of one topic: its log, and the readers that wait for its next change.

use super::{
    backend::Position,
    log::{Amount, Log, Retention},
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock},
    waiters::Waiters,
};
use crate::callback::contain_panic;
use std::{sync::Arc, task::Waker};
use tokio::time::Instant;

pub(super) struct TopicState {
    pub(super) name: Arc<str>,
    /// The version of the topic. Each change increments it.
    version: AtomicU64,
    contents: Mutex<Contents>,
}

pub(super) struct Contents {
    pub(super) log: Log,
    pub(super) waiters: Waiters,
    pub(super) finished: Option<Instant>,
    pub(super) subscribers: usize,
    /// The time at which the last subscriber left.
    pub(super) left_at: Option<Instant>,
    /// Set if each event replaces the previous event.
    pub(super) latest_only: bool,
    /// Set if the topic is scheduled for expiry in the registry (`due`).
    pub(super) is_due: bool,
    pub(super) is_shut_down: bool,
}

impl TopicState {
    pub(super) fn new(name: Arc<str>, lost: Position) -> Self {
        let contents = Contents {
            log: Log::new(lost),
            waiters: Waiters::default(),
            finished: None,
            subscribers: 0,
            left_at: None,
            latest_only: false,
            is_due: false,
            is_shut_down: false,
        };
        Self { name, version: AtomicU64::new(0), contents: Mutex::new(contents) }
    }

    /// Creates a topic that is not in the registry. Its only subscription ends immediately.
    pub(super) fn shut_down() -> Self {
        let topic = Self::new("".into(), Position::START);
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

    /// Notifies readers of a change by incrementing the version. The caller has to wake the
    /// returned wakers of waiting readers after it has released all locks.
    pub(super) fn changed(&self, contents: &mut Contents) -> Vec<Option<Waker>> {
        self.version.fetch_add(1, Ordering::Release);
        contents.waiters.take()
    }

    pub(super) fn wake(&self, mut wakers: Vec<Option<Waker>>) {
        if wakers.is_empty() {
            return;
        }
        for waker in wakers.drain(..).flatten() {
            contain_panic("waker", || waker.wake());
        }
        self.lock().waiters.give_back(wakers);
    }
}

impl Contents {
    /// Returns the time from which the oldest event ages. `None`: there is no event, or the event is
    /// a state with subscribers. They show the state, so later subscribers receive it as well.
    pub(super) fn ages_since(&self) -> Option<Instant> {
        let oldest = self.log.oldest_time()?;
        match self.latest_only {
            false => Some(oldest),
            true if self.subscribers > 0 => None,
            true => Some(self.left_at.map_or(oldest, |left_at| left_at.max(oldest))),
        }
    }

    /// Evicts the events that exceed the retention. Returns their number and size.
    pub(super) fn evict(&mut self, retention: &Retention, now: Instant) -> Amount {
        let expiry = self.ages_since().and_then(|since| retention.expiry(since));
        if self.latest_only && expiry.is_none_or(|expiry| expiry > now) {
            return self.log.evict_excess(retention);
        }
        self.log.evict(retention, now)
    }

    /// Returns `true` if the topic can be dropped: no client could resume from it.
    pub(super) fn is_idle(&self, retention: &Retention, now: Instant) -> bool {
        let is_remembered = |finished| retention.expiry(finished).is_none_or(|expiry| expiry > now);
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
        let wakers = topic.changed(&mut contents);
        drop(contents);
        topic.wake(wakers);
    }
}
