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

/// Locks a mutex, even if it is poisoned. This is safe because no code of the application, which
/// could panic, runs while the hub holds a lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mutex for threads that do much work in parts. Between two parts, such a thread releases the
/// mutex and calls [`give_way`](Self::give_way), so that a waiting thread gets it.
///
/// A mutex of `std` alone does not ensure this. Unlocking wakes a waiting thread, but a thread that
/// immediately locks the mutex again is nearly always faster.
#[derive(Default)]
pub(super) struct TurnMutex<T> {
    mutex: Mutex<T>,
    /// `waiting` is the number of threads that wait for the lock. `turns` counts how often a
    /// waiting thread got the lock. Both are atomics of `std` in loom tests, too, because no other
    /// memory access depends on their order.
    waiting: StdAtomicUsize,
    turns: StdAtomicUsize,
}

impl<T> TurnMutex<T> {
    /// The maximum time for which [`give_way`](Self::give_way) waits until a waiting thread has the
    /// lock.
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

    /// Waits until one of the threads that wait for the lock has got it, but for at most 200 µs.
    /// Returns immediately if no thread waits. The caller must not hold the lock.
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
