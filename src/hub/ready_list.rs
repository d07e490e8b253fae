//! The ready list of a subscription to several topics: the topics that have changed.

use super::sync::{Mutex, lock};
use std::{mem, task::Waker};

/// The list of the readers of a subscription whose topics have changed, and the waker of the
/// subscription. A reader reads one topic.
///
/// Usually the reader is added before the change becomes visible. If many readers wait for one
/// topic, some readers are added later. Until then, the topic is in the
/// [wake queue](super::wake_queue).
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    marked: Vec<u32>,
    /// The waker of the subscription, if the subscription waits.
    waker: Option<Waker>,
    /// Set while the subscription pauses after it has written events to the client. During the
    /// pause, published events do not wake the subscription, but the end of a topic does.
    is_paused: bool,
    /// Set if a topic of the subscription was finished, or the hub was shut down, since the
    /// subscription last waited.
    has_end: bool,
}

impl ReadyList {
    /// Adds a topic of the subscription that has changed to this list, as the index of the reader
    /// that reads the topic. Returns the waker of the subscription if the subscription waits for
    /// events. The caller wakes it after it has released all locks.
    pub(super) fn mark(&self, reader: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.marked.push(reader);
        if state.is_paused { None } else { state.waker.take() }
    }

    /// Ends the pause of the subscription after a write, because a topic is finished or the hub is
    /// shut down. Returns the waker of the subscription if it waits, for the caller to wake.
    pub(super) fn end_pause(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.has_end = true;
        state.waker.take()
    }

    /// Takes the topics that have changed out of this list, and appends the indices of their
    /// readers to `readers`. Each topic of the subscription has one reader.
    pub(super) fn take(&self, readers: &mut Vec<u32>) {
        let mut state = lock(&self.state);
        if readers.is_empty() {
            mem::swap(&mut state.marked, readers);
        } else {
            readers.append(&mut state.marked);
        }
    }

    /// Stores the waker of the subscription and returns `true` if this list is empty: no topic of
    /// the subscription has changed. Otherwise stores nothing and returns `false`. The caller then
    /// takes the changed topics from the list.
    pub(super) fn wait(&self, waker: &Waker) -> bool {
        self.store(waker, false, |state| state.marked.is_empty())
    }

    /// Stores the waker of the subscription for a pause after it has written events to the client,
    /// and returns `true`. Returns `false` if a topic was finished or the hub was shut down since
    /// the subscription last waited. The pause is then over.
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
