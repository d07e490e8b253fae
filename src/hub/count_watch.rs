//! The number of subscribers of a topic, for the [`SubscriberCounts`](super::SubscriberCounts)
//! streams that report it.

use super::sync::{Mutex, lock};
use crate::callback::contain_panic;
use std::{
    collections::BTreeMap,
    mem,
    task::{Poll, Waker},
};

/// The number of subscribers of one topic, shared with the streams that report this number to the
/// application. The hub has a `CountWatch` for a topic while at least one such stream exists, even
/// if the topic itself does not exist.
#[derive(Debug, Default)]
pub(super) struct CountWatch {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    streams: usize,
    /// The wakers of the streams that wait for a change of the number of subscribers. The key of
    /// the map is the number that identifies the stream.
    wakers: BTreeMap<u64, Waker>,
    next_key: u64,
    is_ended: bool,
}

impl CountWatch {
    /// Registers a stream that watches the number of subscribers of the topic. Returns the key that
    /// identifies the stream.
    pub(super) fn join(&self) -> u64 {
        let mut state = lock(&self.state);
        state.streams += 1;
        state.next_key += 1;
        state.next_key
    }

    /// Removes a stream that watches the number of subscribers. `key` identifies the stream.
    /// Returns the waker of the stream if the stream waits. The caller drops the waker after it has
    /// released its locks. The second result is `true` if no other stream watches the number.
    pub(super) fn leave(&self, key: u64) -> (Option<Waker>, bool) {
        let mut state = lock(&self.state);
        state.streams -= 1;
        (state.wakers.remove(&key), state.streams == 0)
    }

    /// Sets the number of subscribers of the topic. Returns the wakers of the waiting streams if
    /// the number has changed. The caller wakes them after it has released its locks.
    pub(super) fn set(&self, count: usize) -> Wakers {
        let mut state = lock(&self.state);
        match mem::replace(&mut state.count, count) == count {
            true => Wakers::default(),
            false => Wakers(mem::take(&mut state.wakers).into_values().collect()),
        }
    }

    /// Ends all streams that watch the number of subscribers of the topic. Returns the wakers of
    /// the waiting streams. The caller wakes them after it has released its locks.
    pub(super) fn end(&self) -> Wakers {
        let mut state = lock(&self.state);
        state.is_ended = true;
        Wakers(mem::take(&mut state.wakers).into_values().collect())
    }

    /// Polls for a change of the number of subscribers of the topic. `seen` is the last number that
    /// the stream has yielded, or `None` before the first. If the number differs from `seen`,
    /// returns the number. Otherwise registers `waker` under `key`, which identifies the stream,
    /// and returns `Pending`. Returns `Ready(None)` after [`end`](Self::end) was called.
    pub(super) fn poll(&self, seen: Option<usize>, key: u64, waker: &Waker) -> Poll<Option<usize>> {
        // Clone the waker before the watch is locked, because `clone` runs code of the application.
        let waker = waker.clone();
        let mut state = lock(&self.state);
        if state.is_ended {
            return Poll::Ready(None);
        }
        if seen != Some(state.count) {
            return Poll::Ready(Some(state.count));
        }
        let replaced = state.wakers.insert(key, waker);
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

/// The wakers of the streams that wait for a change of the number of subscribers. They are woken
/// after all locks are released.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn add(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// Wakes the tasks of all streams in this list. The caller must hold no lock.
    pub(super) fn wake(self) {
        for waker in self.0 {
            contain_panic("waker", || waker.wake());
        }
    }
}
