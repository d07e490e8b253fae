//! Tracks outages of a backend: counts every failed request, and logs the begin and the end of each
//! outage once.

use crate::{BoxError, metrics, trace};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the failures of one operation of the backend, and logs the begin and the end of each
/// outage.
///
/// An outage begins with the first failure of the operation. It ends with the first success of a
/// request that was sent after the last failure. A request that was sent earlier does not end the
/// outage when it succeeds. So one outage is logged only once, even if requests overlap.
#[derive(Debug)]
pub(super) struct Outage {
    operation: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u64,
    is_logged: bool,
}

impl Outage {
    /// Creates a tracker for the outages of one operation of the backend. `operation` is the name
    /// of the operation in log messages and in the metric that counts failures.
    pub(super) fn of(operation: &'static str) -> Self {
        Self { operation, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Awaits `request`, a request to the backend, and returns its result. A failure is counted,
    /// and begins an outage if there is none. A success ends the outage if `request` was sent after
    /// the last failure.
    pub(super) async fn watch<T>(&self, request: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let failures = self.state().failures;
        let outcome = request.await;
        match &outcome {
            Ok(_) => self.succeeded_after(failures),
            Err(error) => self.failed(error),
        }
        outcome
    }

    /// Counts a failed request of the operation that this tracker watches. Logs the failure if it
    /// begins an outage.
    pub(super) fn failed(&self, error: &BoxError) {
        metrics::backend_failed(self.operation);
        let mut state = self.state();
        state.failures += 1;
        let is_new = !std::mem::replace(&mut state.is_logged, true);
        // Release the lock before logging, because a `tracing` subscriber runs code of the
        // application.
        drop(state);
        if is_new {
            trace::backend_failed(self.operation, error);
        }
    }

    /// Notes a success of the operation that this tracker watches. The success ends the outage, if
    /// there is an outage, and the end is logged. Call this only if the request was sent after the
    /// last failure, because a success of an earlier request must not end an outage.
    pub(super) fn succeeded(&self) {
        let failures = self.state().failures;
        self.succeeded_after(failures);
    }

    #[cfg(all(test, feature = "postgres"))]
    pub(super) fn is_logged(&self) -> bool {
        self.state().is_logged
    }

    fn succeeded_after(&self, failures: u64) {
        let mut state = self.state();
        let is_over = state.is_logged && state.failures == failures;
        state.is_logged &= !is_over;
        drop(state);
        if is_over {
            trace::backend_recovered(self.operation);
        }
    }
}
