//! The one task of a hub: it lets go of what is too old where nothing is published any more.

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

/// Starts it on the runtime that the caller is in. Outside of a runtime there is none: those who
/// publish and subscribe do its work then, a little each time.
pub(super) fn spawn(core: &Arc<Core>) -> Option<AbortHandle> {
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn(tidy(Arc::downgrade(core))).abort_handle())
}

/// Ends when there is nothing left that could become too old, or when the hub is gone.
async fn tidy(core: Weak<Core>) {
    let _told = TellsOfPanic(Weak::clone(&core));
    while let Some(next) = core.upgrade().and_then(|core| core.sweep()) {
        yield_now().await;
        sleep_until(next).await;
    }
}

/// To sleep panics in a runtime that was built without timers: once, and not with every event.
struct TellsOfPanic(Weak<Core>);

impl Drop for TellsOfPanic {
    fn drop(&mut self) {
        if let (true, Some(core)) = (thread::panicking(), self.0.upgrade()) {
            core.disable_timers();
        }
    }
}
