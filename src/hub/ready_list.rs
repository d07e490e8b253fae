//! The ready list of a subscription to several topics: the changed topics that the subscription has
//! to read.

use super::sync::{Mutex, lock};
use std::{mem, task::Waker};

/// The changed topics that a subscription has to read, and the waker of the subscription. A topic
/// is listed as the index of its reader. A reader reads one topic.
///
/// When a topic changes, it is usually added to the list before any subscriber can read the change.
/// If more than 32 readers wait for the topic, only the lists of the first 32 readers get the topic
/// at that time. The other lists get it later. Until then, the topic is in the hub's [wake
/// queue](super::wake_queue), where subscriptions look as well.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    marked: Vec<u32>,
    /// The waker of the subscription, if the subscription waits.
    waker: Option<Waker>,
    /// `true` while the subscription pauses after a write to the client, to deliver the next events
    /// together. During the pause, published events do not wake the subscription, but the end of a
    /// topic does.
    is_paused: bool,
    /// `true` if a topic of the subscription was finished, or the hub was shut down, since the
    /// subscription last waited.
    has_end: bool,
}

impl ReadyList {
    /// Adds a changed topic of the subscription to this list. `reader` is the index of the reader
    /// that reads the topic. If the subscription waits for events, returns its waker, which the
    /// caller wakes after it has released all locks. Returns `None` while the subscription pauses
    /// after a write to its client, to deliver the next events together.
    pub(super) fn mark(&self, reader: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.marked.push(reader);
        if state.is_paused { None } else { state.waker.take() }
    }

    /// Notes that a topic is finished or the hub is shut down, which ends the subscription's pause
    /// after a write to the client. If the subscription waits, returns its waker, which the caller
    /// wakes.
    pub(super) fn end_pause(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.has_end = true;
        state.waker.take()
    }

    /// Removes all changed topics from this list, and appends the indices of their readers to
    /// `readers`. Each topic of the subscription has one reader.
    pub(super) fn take(&self, readers: &mut Vec<u32>) {
        let mut state = lock(&self.state);
        if readers.is_empty() {
            mem::swap(&mut state.marked, readers);
        } else {
            readers.append(&mut state.marked);
        }
    }

    /// Stores the waker of the subscription and returns `true`, so that the next change of a topic
    /// wakes the subscription. If this list already has a changed topic, stores nothing and returns
    /// `false`. The caller then reads the changed topics.
    pub(super) fn wait(&self, waker: &Waker) -> bool {
        self.store(waker, false, |state| state.marked.is_empty())
    }

    /// Stores the waker of a subscription that pauses after a write to the client, and returns
    /// `true`. If a topic was finished or the hub was shut down since the subscription last waited,
    /// stores nothing and returns `false`: the subscription must not pause any longer.
    pub(super) fn pause(&self, waker: &Waker) -> bool {
        self.store(waker, true, |state| !state.has_end)
    }

    fn store(&self, waker: &Waker, is_paused: bool, waits: impl FnOnce(&State) -> bool) -> bool {
        // Clone the waker before the list is locked, because `clone` runs code of the application.
        let waker = waker.clone();
        let mut state = lock(&self.state);
        let waits = waits(&state);
        let unused = if waits { state.waker.replace(waker) } else { Some(waker) };
        state.is_paused = waits && is_paused;
        state.has_end = false;
        drop(state);
        drop(unused);
        waits
    }
}
