//! The number of subscribers of a topic, for the streams that watch it.

use super::sync::{Mutex, lock};
use crate::callback::contain_panic;
use std::{
    collections::BTreeMap,
    mem,
    task::{Poll, Waker},
};

/// The number of subscribers of one topic, and the streams that wait for it to change.
///
/// The registry has a watch for each topic with such a stream, whether or not the topic exists. So
/// a stream outlives its topic, and a topic without a stream has no cost.
#[derive(Debug, Default)]
pub(super) struct CountWatch {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    streams: usize,
    /// The wakers of the streams that wait, by their keys.
    wakers: BTreeMap<u64, Waker>,
    next_key: u64,
    is_ended: bool,
}

impl CountWatch {
    /// Adds a stream, and returns its key.
    pub(super) fn join(&self) -> u64 {
        let mut state = lock(&self.state);
        state.streams += 1;
        state.next_key += 1;
        state.next_key
    }

    /// Removes a stream. Returns its waker to be dropped, and whether it was the last stream.
    pub(super) fn leave(&self, key: u64) -> (Option<Waker>, bool) {
        let mut state = lock(&self.state);
        state.streams -= 1;
        (state.wakers.remove(&key), state.streams == 0)
    }

    /// Sets the number. Returns the streams to wake after all locks are released.
    pub(super) fn set(&self, count: usize) -> Wakers {
        let mut state = lock(&self.state);
        match mem::replace(&mut state.count, count) == count {
            true => Wakers::default(),
            false => Wakers(mem::take(&mut state.wakers).into_values().collect()),
        }
    }

    /// Ends the streams. Returns the streams to wake after all locks are released.
    pub(super) fn end(&self) -> Wakers {
        let mut state = lock(&self.state);
        state.is_ended = true;
        Wakers(mem::take(&mut state.wakers).into_values().collect())
    }

    /// Returns the number if it is not `seen`, or registers the waker. Returns `None` after the
    /// end.
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

/// The streams to wake after a number has changed.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn add(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// Wakes the streams. The caller holds no lock.
    pub(super) fn wake(self) {
        for waker in self.0 {
            contain_panic("waker", || waker.wake());
        }
    }
}
