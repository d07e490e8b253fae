//! Keeps tokio from advancing the paused clock of a test while the test waits for an append. Tokio
//! advances this clock when all tasks wait, and does not see that the thread that stores appends is
//! busy.

#[cfg(feature = "test-util")]
use std::sync::mpsc;
#[cfg(feature = "test-util")]
use tokio::runtime::{Handle, RuntimeFlavor};

/// Keeps tokio from advancing the paused clock of a test until this value is dropped.
///
/// Tokio advances a paused clock to the next timer when all tasks wait. Tokio does not see that the
/// thread that stores appends is busy, so the hub's timeout would end each append. While one of
/// tokio's own blocking threads is busy, tokio does not advance the clock. So a blocking thread
/// waits as long as this value exists, and dropping the runtime waits for this thread. Without the
/// feature `test-util`, this type does nothing.
pub(super) struct StoppedClock {
    #[cfg(feature = "test-util")]
    _dropped: Option<mpsc::Sender<()>>,
}

impl StoppedClock {
    pub(super) fn new() -> Self {
        Self {
            #[cfg(feature = "test-util")]
            _dropped: block_until_dropped(),
        }
    }
}

/// Blocks a thread of tokio until the returned value is dropped, so that tokio does not advance the
/// paused clock of a test meanwhile. Returns `None` outside of a tokio runtime, and in a runtime
/// with several threads, whose clock cannot be paused.
#[cfg(feature = "test-util")]
fn block_until_dropped() -> Option<mpsc::Sender<()>> {
    let runtime = Handle::try_current().ok()?;
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return None;
    }
    let (sender, receiver) = mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || receiver.recv()));
    Some(sender)
}
