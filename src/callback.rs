//! Calls of code that the crate does not own, where a panic must not spread.

use crate::trace;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls a callback or a waker, and ends its panic here. The panic hook has reported the panic.
///
/// A panic would abort the process in a `drop` while the thread unwinds. It would also end the
/// follower of a node, and keep the callbacks and wakers after this one from being called.
pub(crate) fn contain_panic(callback: &'static str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        trace::callback_panicked(callback);
    }
}
