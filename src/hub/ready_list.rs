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
}

impl ReadyList {
    /// Marks a reader as changed. Returns the waker of the subscription if it waits. The caller
    /// wakes it after all locks are released.
    pub(super) fn mark(&self, reader: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.marked.push(reader);
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
        // Clone the waker before the list is locked, because `clone` runs code of the application.
        let waker = waker.clone();
        let mut state = lock(&self.state);
        if !state.marked.is_empty() {
            drop(state);
            return false;
        }
        let replaced = state.waker.replace(waker);
        drop(state);
        drop(replaced);
        true
    }
}
