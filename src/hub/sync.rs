//! What threads share, from std; and from loom where `tests/interleavings` compiles this crate to
//! try every order of steps.

#[cfg(tower_sse_loom)]
pub(super) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::sync::PoisonError;
#[cfg(not(tower_sse_loom))]
pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Nothing that is called under a lock of the hub is a caller's code, so a poisoned one would be as
/// good as any other.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
