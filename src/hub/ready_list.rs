//! The ready list of a subscription to several topics: the topics that have changed.

use super::sync::{Mutex, lock};
use std::{mem, task::Waker};

/// The indices of the readers whose topics have changed, and the waker of the subscription.
///
/// A topic marks its reader before the change is committed. So the list is complete up to the
/// committed position, except for the topics in the [wake queue](super::wake_queue).
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    marked: Vec<u32>,
    /// The waker, if the subscription waits.
    waker: Option<Waker>,
    /// Set while the subscription [lingers](super::linger): only an end wakes it.
    is_paused: bool,
    /// Set if a topic has ended since the subscription last waited.
    has_end: bool,
}

impl ReadyList {
    /// Marks a reader as changed. Returns the waker of the subscription if it waits for that. The
    /// caller wakes it after all locks are released.
    pub(super) fn mark(&self, reader: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.marked.push(reader);
        if state.is_paused { None } else { state.waker.take() }
    }

    /// Ends a pause, because a topic is finished or the hub is shut down. Returns the waker of the
    /// subscription if it waits.
    pub(super) fn end_pause(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.has_end = true;
        state.waker.take()
    }

    /// Takes the marked readers out of the list, and adds them to `readers`.
    pub(super) fn take(&self, readers: &mut Vec<u32>) {
        let mut state = lock(&self.state);
        if readers.is_empty() {
            mem::swap(&mut state.marked, readers);
        } else {
            readers.append(&mut state.marked);
        }
    }

    /// Stores the waker if no reader is marked. Otherwise returns `false`.
    pub(super) fn wait(&self, waker: &Waker) -> bool {
        self.store(waker, false, |state| state.marked.is_empty())
    }

    /// Stores the waker for the next end of a topic. Returns `false` if a topic has ended.
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
