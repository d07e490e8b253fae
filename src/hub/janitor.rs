//! The janitor: the task of a hub that removes expired events from idle topics.

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

/// Starts the janitor, the task that removes expired events, on the current runtime. Returns `None`
/// outside of a runtime. Publishers and subscribers then remove expired events in small steps.
pub(super) fn spawn(core: &Arc<Core>) -> Option<AbortHandle> {
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn(expire(Arc::downgrade(core))).abort_handle())
}

/// Removes expired events whenever a removal is due. Ends when no removal is scheduled, when the
/// hub is dropped, or when the runtime has no timers.
async fn expire(core: Weak<Core>) {
    while let Some(next) = core.upgrade().and_then(|core| core.sweep()) {
        yield_now().await;
        // `sleep_until` panics on a runtime without timers. Only this panic disables the janitor.
        // An unrelated panic may also drop this task, and the next janitor may run on a runtime
        // with timers.
        let Ok(pause) = panic::catch_unwind(|| sleep_until(next)) else {
            core.upgrade().inspect(|core| core.disable_timers());
            return;
        };
        pause.await;
    }
}
