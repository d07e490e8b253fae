//! The task of a hub that removes expired events from idle topics.

use super::core::Core;
use std::{
    sync::{Arc, Weak},
    thread,
};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, yield_now},
    time::sleep_until,
};

/// Starts the task on the current runtime. Outside of a runtime, publishers and subscribers do its
/// work in small steps.
pub(super) fn spawn(core: &Arc<Core>) -> Option<AbortHandle> {
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn(tidy(Arc::downgrade(core))).abort_handle())
}

/// Runs until no event is left that can expire, or until the hub is dropped.
async fn tidy(core: Weak<Core>) {
    let _told = TellsOfPanic(Weak::clone(&core));
    while let Some(next) = core.upgrade().and_then(|core| core.sweep()) {
        yield_now().await;
        sleep_until(next).await;
    }
}

/// Sleeping panics in a runtime without timers. This makes it panic once, and not for each event.
struct TellsOfPanic(Weak<Core>);

impl Drop for TellsOfPanic {
    fn drop(&mut self) {
        if let (true, Some(core)) = (thread::panicking(), self.0.upgrade()) {
            core.disable_timers();
        }
    }
}
