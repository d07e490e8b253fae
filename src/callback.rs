//! Runs application code (callbacks and wakers), and keeps its panics from propagating.

use crate::trace;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`, a closure that calls a callback or a waker of the application. Catches and logs a
/// panic. `callback` is the name of the callback in the log.
///
/// In a `drop` during unwinding, a second panic would abort the process. Elsewhere, a panic would
/// end the task that runs the callback, such as the task that reads the log of a hub.
pub(crate) fn contain_panic(callback: &'static str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        trace::callback_panicked(callback);
    }
}
