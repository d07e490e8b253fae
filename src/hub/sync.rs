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
    hint,
    sync::{PoisonError, TryLockError, atomic::AtomicUsize as StdAtomicUsize},
    thread,
    time::{Duration, Instant},
};

/// Locks a mutex, even if it is poisoned. This is safe because no code of the application, which
/// could panic, runs while the hub holds a lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mutex of a state that many threads change, each for a short time.
///
/// A thread that finds the mutex locked first spins instead of parking, and tries again every 10
/// µs. During each of these pauses, the thread that has the mutex can unlock and lock it many
/// times. This wakes no other thread, and moves no memory to another core.
///
/// A thread that does much work in parts releases the mutex between two parts, and calls
/// [`give_way`](Self::give_way), so that a waiting thread gets the mutex. A mutex of `std` alone
/// does not ensure this. Unlocking wakes a waiting thread, but a thread that immediately locks the
/// mutex again is nearly always faster.
#[derive(Default)]
pub(super) struct TurnMutex<T> {
    mutex: Mutex<T>,
    /// The number of threads that wait for the lock. The next field, `turns`, counts how often a
    /// waiting thread got the lock. Both fields are atomics of `std` even in loom tests, because no
    /// other memory access depends on their order.
    waiting: StdAtomicUsize,
    turns: StdAtomicUsize,
}

impl<T> TurnMutex<T> {
    /// The maximum time that [`give_way`](Self::give_way) waits until one of the waiting threads
    /// has locked the mutex.
    const PATIENCE: Duration = Duration::from_micros(200);

    /// The time that a waiting thread spins between two attempts to lock the mutex.
    const PAUSE: Duration = Duration::from_micros(10);

    /// The number of attempts to lock the mutex after which a waiting thread parks. More attempts
    /// may be useless, because the thread that has locked the mutex may not be running.
    const ATTEMPTS: usize = if cfg!(tower_sse_loom) { 0 } else { 8 };

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        // Under loom, an attempt would only add interleavings.
        if cfg!(tower_sse_loom) { self.wait() } else { self.try_lock().unwrap_or_else(|| self.wait()) }
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.mutex.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let attempt = |_| {
            let begun = Instant::now();
            while begun.elapsed() < Self::PAUSE {
                hint::spin_loop();
            }
            self.try_lock()
        };
        let guard = (0..Self::ATTEMPTS).find_map(attempt).unwrap_or_else(|| lock(&self.mutex));
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
