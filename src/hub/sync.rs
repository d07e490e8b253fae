//! Synchronization types: those of `std`, or those of loom if `tests/interleavings` compiles this
//! crate.

#[cfg(tower_sse_loom)]
pub(super) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(tower_sse_loom))]
pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::{
    sync::{PoisonError, atomic::AtomicUsize as StdAtomicUsize},
    thread,
    time::{Duration, Instant},
};

/// Locks a mutex, even if it is poisoned. Code of the application, which could panic, never runs
/// while a lock of the hub is held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mutex whose owner can let waiting threads have their turn.
///
/// A mutex of `std` wakes a waiting thread when it is unlocked. A thread that locks it again at once
/// is nearly always faster, so the other thread would wait until the work is done.
#[derive(Default)]
pub(super) struct TurnMutex<T> {
    mutex: Mutex<T>,
    /// The number of threads that wait, and how many have had their turn. Not of loom: they order
    /// nothing.
    waiting: StdAtomicUsize,
    turns: StdAtomicUsize,
}

impl<T> TurnMutex<T> {
    /// The longest time to wait until a waiting thread runs.
    const PATIENCE: Duration = Duration::from_micros(200);

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(not(tower_sse_loom))]
        if let Ok(guard) = self.mutex.try_lock() {
            return guard;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = lock(&self.mutex);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
        guard
    }

    /// Waits until one of the waiting threads has had its turn. The caller does not hold the lock.
    pub(super) fn give_way(&self) {
        let turns = self.turns.load(Ordering::Relaxed);
        let begun = Instant::now();
        while self.waiting.load(Ordering::Relaxed) > 0
            && self.turns.load(Ordering::Relaxed) == turns
            && begun.elapsed() < Self::PATIENCE
        {
            thread::yield_now();
        }
    }
}
