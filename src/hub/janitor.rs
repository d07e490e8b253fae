//! The task of a hub that removes expired events from idle topics.

use super::core::Core;
use std::{
    panic,
    sync::{Arc, Weak},
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
    Some(runtime.spawn(expire(Arc::downgrade(core))).abort_handle())
}

/// Runs until no event is left that can expire, or until the hub is dropped.
async fn expire(core: Weak<Core>) {
    while let Some(next) = core.upgrade().and_then(|core| core.sweep()) {
        yield_now().await;
        // A runtime without timers panics here. Only this panic disables the janitor: an unrelated
        // one may drop this task, and another runtime may have timers.
        let Ok(pause) = panic::catch_unwind(|| sleep_until(next)) else {
            core.upgrade().inspect(|core| core.disable_timers());
            return;
        };
        pause.await;
    }
}
