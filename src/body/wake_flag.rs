//! A waker that records whether it was woken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

/// A waker that wakes another waker, and notes that it was called. If a stream wakes its own task
/// while it is polled, the stream is pending only to let other tasks run.
pub(super) struct WakeFlag {
    waker: Waker,
    is_woken: AtomicBool,
}

impl WakeFlag {
    pub(super) fn new(waker: &Waker) -> Arc<Self> {
        Arc::new(Self { waker: waker.clone(), is_woken: AtomicBool::new(false) })
    }

    pub(super) fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }
}
