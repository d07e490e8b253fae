//! Logs outages in which the backend does not accept the records of recordings, the tasks that
//! publish streams into topics.

use crate::{BoxError, trace};
use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// The value of the field `operation` in the lines that are logged about outages. It names the
/// requests that fail: the appends of recordings.
const OPERATION: &str = "recording";

/// Logs the beginning and the end of each outage once, for all recordings of a node.
///
/// An outage begins when an append of a recording fails. It ends when an append succeeds and no
/// recording is left whose last attempt has failed. So an event that the backend refuses, such as a
/// large one, is logged as a single outage, even if other recordings publish in the meantime.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of tasks whose last append to the log has failed, according to their [`Appends`].
    failing: usize,
    is_logged: bool,
}

impl Outage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tracker of the appends of one task, such as a recording. The task makes one append after the
/// other, and reports each failure and each success to the tracker.
#[derive(Debug)]
pub(super) struct Appends {
    outage: Arc<Outage>,
    /// Set if the last append that the task has reported to this tracker has failed.
    is_failing: AtomicBool,
}

impl Appends {
    pub(super) fn new(outage: &Arc<Outage>) -> Self {
        Self { outage: outage.clone(), is_failing: AtomicBool::new(false) }
    }

    /// Notes a failed append. Logs a line with `error` if this failure begins an outage.
    pub(super) fn failed(&self, error: &BoxError) {
        let mut state = self.outage.state();
        if !self.is_failing.swap(true, Relaxed) {
            state.failing += 1;
        }
        let is_new = !mem::replace(&mut state.is_logged, true);
        // Release the lock before logging, because a `tracing` subscriber runs code of the
        // application.
        drop(state);
        if is_new {
            trace::backend_failed(OPERATION, error);
        }
    }

    /// Notes a successful append. Logs a line if this ends an outage: no task is left whose last
    /// append has failed.
    pub(super) fn succeeded(&self) {
        let mut state = self.outage.state();
        if self.is_failing.swap(false, Relaxed) {
            state.failing -= 1;
        }
        let is_over = state.failing == 0 && mem::take(&mut state.is_logged);
        drop(state);
        if is_over {
            trace::backend_recovered(OPERATION);
        }
    }

    /// Notes that the task, such as a recording, makes no further appends. A failure of its last
    /// append then no longer prevents the end of the outage. The outage does not end now: the task
    /// may have given up because the backend refuses its appends. Calling this again has no effect.
    pub(super) fn end(&self) {
        let mut state = self.outage.state();
        if self.is_failing.swap(false, Relaxed) {
            state.failing -= 1;
        }
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.end();
    }
}
