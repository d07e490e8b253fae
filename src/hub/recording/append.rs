//! Appends that are in the log once, whatever happens to the connection and to the node.

use super::nodes::Local;
use crate::{
    BoxError,
    hub::{
        backend::{Appended, Position, Record},
        core::Core,
        node::BackendClient,
    },
    random,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The longest wait for the follower before another attempt.
const FOLLOWER: Duration = Duration::from_secs(1);

/// The end of the log as this node has read it. An append after it succeeds only if its topic has
/// no later record.
pub(super) struct Fence {
    epoch: u64,
    since: Position,
}

impl Fence {
    /// Returns `None` if the hub is shut down.
    pub(super) fn new(core: &Core) -> Option<Self> {
        // The epoch and the position change together while the registry is locked.
        let registry = core.registry.lock();
        let backend = core.backend.as_ref().filter(|_| !registry.is_shut_down)?;
        Some(Self { epoch: backend.epoch_bits(), since: core.committed() })
    }

    pub(super) async fn append(
        &self,
        backend: &BackendClient,
        records: Vec<Record>,
    ) -> Result<Option<Appended>, BoxError> {
        backend.append_if_unchanged(records, self.epoch, self.since).await
    }

    /// Waits until this node has read more of the log.
    pub(super) async fn passed(&self, core: &Core) {
        core.recordings.caught_up(core, self.since.next(), Instant::now() + FOLLOWER).await;
    }
}

/// Returns the pause after this number of consecutive failures: up to 0.4 s.
pub(super) fn retry_pause(failures: u32) -> Duration {
    let longest = Duration::from_millis(25 << failures.clamp(1, 4));
    longest.mul_f64(0.5 + random::fraction() / 2.0)
}

/// The topic is finished, or the hub is shut down.
pub(super) struct Ended;

/// Appends records of a recording. Tries again until the log has them, once.
pub(super) async fn append(core: &Arc<Core>, local: &Local, records: Vec<Record>) -> Result<(), Ended> {
    let Some(backend) = &core.backend else { return Err(Ended) };
    local.begin_append();
    let mut failures = 0;
    loop {
        // Every record up to the position of the fence was noted before, so an earlier attempt that
        // has succeeded is either noted, or prevents the next one.
        let fence = Fence::new(core).ok_or(Ended)?;
        if local.has_appended(&records).ok_or(Ended)? {
            return Ok(());
        }
        match fence.append(backend, records.clone()).await {
            Ok(Some(appended)) => {
                local.note_appended(appended.position);
                return Ok(());
            }
            Ok(None) => fence.passed(core).await,
            Err(_) => {
                failures += 1;
                sleep(retry_pause(failures)).await;
            }
        }
    }
}
