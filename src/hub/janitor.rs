//! The janitor: the task of a hub that removes expired events from idle topics.

use super::core::Core;
use std::{
    panic,
    sync::{Arc, Weak},
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, yield_now},
    time::timeout_at,
};

/// Starts the janitor, the task that removes expired events, on the current tokio runtime. Returns
/// `None` outside of a runtime. Publishers and subscribers then remove expired events instead, in
/// small steps.
pub(super) fn spawn(core: &Arc<Core>) -> Option<AbortHandle> {
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn(expire(Arc::downgrade(core), core.earlier_expiry.clone())).abort_handle())
}

/// Runs the janitor, the task that removes expired events whenever a removal is due. The task ends
/// when no removal is scheduled, when the hub is dropped, or when the runtime has no timers.
/// Between the removals, the task sleeps. If an earlier removal is scheduled during this sleep,
/// `earlier` wakes the task.
async fn expire(core: Weak<Core>, earlier: Arc<Notify>) {
    while let Some(next) = core.upgrade().and_then(|core| core.sweep()) {
        yield_now().await;
        // `timeout_at` panics on a runtime without timers. Only this panic disables the janitor.
        // An unrelated panic may also drop this task, and the next janitor may run on a runtime
        // with timers.
        let Ok(pause) = panic::catch_unwind(|| timeout_at(next, earlier.notified())) else {
            core.upgrade().inspect(|core| core.disable_timers());
            return;
        };
        let _elapsed = pause.await;
    }
}
