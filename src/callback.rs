//! Calls of application code (callbacks and wakers) whose panic must not propagate.

use crate::trace;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls a callback or a waker, and catches its panic. The panic hook has already reported the
/// panic.
///
/// In a `drop` during unwinding, a second panic would abort the process. Elsewhere, a panic would
/// end the task that runs the callback (in a hub, the task that follows the log), and the callbacks
/// and wakers after this one would not be called.
pub(crate) fn contain_panic(callback: &'static str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        trace::callback_panicked(callback);
    }
}
