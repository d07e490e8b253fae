//! Appends records to the log for recordings: tasks that publish a stream into a topic. Each record
//! is in the log once, even after a lost response or while another node takes over the recording.

use super::local::Local;
use crate::{
    BoxError,
    hub::{
        backend::{Appended, Position, Record},
        core::Core,
        node::BackendClient,
    },
    random,
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};

/// The maximum wait before a recording, a task that publishes a stream into a topic, repeats a
/// rejected append. An append is rejected if the log has records of the topic that this node has
/// not read yet. So the append is repeated when this node has read more of the log, or after this
/// time.
const FOLLOWER: Duration = Duration::from_secs(1);

/// The maximum time that a recording, a task that publishes a stream into a topic, repeats an
/// append that the backend refuses, although the backend responds to other requests. After this
/// time, the recording fails. Takeovers of recordings by other nodes, and appends of join and leave
/// events, have the same limit.
///
/// Within this time, a server that has run out of memory may recover, and so may a cluster without
/// a leader. Other causes are permanent, such as an event that is too large for the backend.
pub(in crate::hub) const REFUSED: Duration = Duration::from_secs(60);

/// The maximum time that one refused append counts towards the limit of 60 seconds, [`REFUSED`]. If
/// the process was paused during the append, for example by a debugger, the rest of the pause does
/// not count.
const MAX_REFUSED_ATTEMPT: Duration = Duration::from_secs(10);

/// A fence: a condition for an append. The backend rejects the append if the log has a record of
/// the same topic that this node had not read when the fence was created.
pub(in crate::hub) struct Fence {
    epoch: u64,
    /// The number of times that this node had begun to follow a log when this fence was created.
    /// The number changes when another log replaces the log.
    resets: u64,
    since: Position,
}

impl Fence {
    /// Creates a fence: a condition for an append. The backend rejects the append if the log has a
    /// record of the same topic after the last position that this node has read so far. Returns
    /// `None` if the hub is shut down or has no backend.
    pub(in crate::hub) fn new(core: &Core) -> Option<Self> {
        // The epoch and the position change together while the registry is locked.
        let registry = core.registry.lock();
        let backend = core.backend.as_ref().filter(|_| !registry.is_shut_down)?;
        Some(Self { epoch: backend.epoch_bits(), resets: backend.resets(), since: core.committed() })
    }

    /// Returns how many times this node had begun to follow a log when it created this fence. The
    /// number changes when another log replaces the log, and when the log loses its newest records.
    pub(in crate::hub) fn resets(&self) -> u64 {
        self.resets
    }

    pub(in crate::hub) async fn append(
        &self,
        backend: &BackendClient,
        records: Vec<Record>,
    ) -> Result<Option<Appended>, BoxError> {
        backend.append_if_unchanged(records, self.epoch, self.since).await
    }

    /// Waits until this node has read more of the log than when it created this fence, but for at
    /// most one second. A fence makes the backend reject an append if the log has a record of the
    /// topic that the node had not read when it created the fence.
    pub(in crate::hub) async fn passed(&self, core: &Core) {
        caught_up(core, self.since.next(), self.resets, Instant::now() + FOLLOWER).await;
    }

    /// Waits until this node has read more of the log than when it created this fence, but for at
    /// most one second. A fence makes the backend reject an append if the log has a record of the
    /// topic that the node had not read when it created the fence. Unlike [`passed`](Self::passed),
    /// does not keep the hub alive in the meantime.
    pub(in crate::hub) async fn passed_unless_dropped(&self, core: &Weak<Core>) {
        caught_up_unless_dropped(core, self.since.next(), self.resets, Instant::now() + FOLLOWER).await;
    }
}

/// Waits until this node has read the log up to and including `through`, but not after `deadline`.
/// Returns `true` if the node has read that far in time. `resets` is the number of times that this
/// node had begun to follow a log ([resets]) when the log had the position `through`. Returns
/// `false` as soon as the number changes: the log may have been replaced by another one, which may
/// never reach the position.
///
/// [resets]: Core::resets
pub(in crate::hub) async fn caught_up(core: &Core, through: Position, resets: u64, deadline: Instant) -> bool {
    let is_valid = || core.resets() == resets;
    let is_over = || core.committed() >= through || !is_valid();
    timeout_at(deadline, core.recordings.progressed(is_over)).await.is_ok() && is_valid()
}

/// Waits until this node has read the log up to and including `through`, like [`caught_up`], but
/// does not keep the hub alive in the meantime. Returns `None` if the hub was dropped.
pub(in crate::hub) async fn caught_up_unless_dropped(
    core: &Weak<Core>,
    through: Position,
    resets: u64,
    deadline: Instant,
) -> Option<bool> {
    let recordings = core.upgrade()?.recordings.clone();
    let is_valid = |core: &Core| core.resets() == resets;
    let is_over = || core.upgrade().is_none_or(|core| core.committed() >= through || !is_valid(&core));
    let is_in_time = timeout_at(deadline, recordings.progressed(is_over)).await.is_ok();
    core.upgrade().map(|core| is_in_time && is_valid(&core))
}

/// Waits until this node has read the log up to its current end. The wait has no time limit.
/// Returns `false` if the backend does not respond, if another log replaces the log, or if the hub
/// is shut down.
pub(in crate::hub) async fn has_read_to_end(core: &Core, backend: &BackendClient) -> bool {
    let resets = backend.resets();
    // A node that is always some seconds behind a busy log would never reach a later end, so the
    // backend is asked only once.
    let Some(newest) = backend.newest().await else { return false };
    let is_valid = || backend.resets() == resets && !core.is_shut_down();
    core.recordings.progressed(|| core.committed() >= newest || !is_valid()).await;
    is_valid()
}

/// Returns a random pause before an append is repeated, after `failures` consecutive failures: 25
/// to 50 ms after the first failure, doubled after each further failure, and at most 400 ms.
pub(in crate::hub) fn retry_pause(failures: u32) -> Duration {
    let longest = Duration::from_millis(25 << failures.clamp(1, 4));
    longest.mul_f64(0.5 + random::fraction() / 2.0)
}

/// Returns the time that a refused append counts towards the limit of 60 seconds, [`REFUSED`]. It
/// is the time since `began`, when the append began, but at most 10 seconds. The time includes the
/// pause after the refusal, so the caller calls this function after the pause.
///
/// The other time between two refused appends does not count. It can be long: an append is
/// rejected, which is no refusal, until this node has read all records of the topic.
pub(in crate::hub) fn refused_time(began: Instant) -> Duration {
    began.elapsed().min(MAX_REFUSED_ATTEMPT)
}

/// The reason why a recording, a task that publishes a stream into a topic, no longer tries to
/// append its records to the log.
pub(super) enum Failure {
    /// The recording, a task that publishes a stream into a topic, must not append these records:
    /// the topic is finished, the hub is shut down, or another node has or may have taken over the
    /// recording.
    Ended,
    /// The hub or the backend refuses the records. The recording, a task that publishes a stream
    /// into a topic, fails with this error.
    Refused(BoxError),
}

/// Appends records of a recording, a task that publishes a stream into a topic, to the log. Tries
/// again after each failure. If the backend did not respond to an attempt, but has appended the
/// records, they are not appended a second time.
///
/// If the backend refuses several records together while it responds to other requests, the next
/// attempt has half as many. So the log gets every record that precedes the first refused record.
///
/// Returns [`Failure::Ended`] if the recording must not append the records, for example because its
/// topic is finished. Returns [`Failure::Refused`] if the backend refuses the first of the
/// remaining records alone for 60 seconds while it responds to other requests. Only the time of
/// refused attempts counts (see [`refused_time`]).
pub(super) async fn append(core: &Arc<Core>, local: &Local, mut records: Vec<Record>) -> Result<(), Failure> {
    let Some(backend) = &core.backend else { return Err(Failure::Ended) };
    local.begin_append();
    let mut failures = 0;
    // How long the backend has refused the first record alone while it responded to other requests.
    let (mut refused_for, mut resets) = (Duration::ZERO, core.resets());
    // The maximum number of records of one attempt.
    let mut max = records.len();
    // The numbers of records of the attempts without a response, in descending order. Each of these
    // attempts began with the first of `records`. The log has the records of at most one attempt.
    let mut unsure: Vec<usize> = Vec::new();
    while !records.is_empty() {
        if local.is_silenced() {
            // The topic may belong to a newer recording, which this one must not end.
            while !has_read_to_end(core, backend).await && !core.is_shut_down() {
                refused_for = Duration::ZERO;
                sleep(retry_pause(1)).await;
            }
            if core.recordings.has_successor(&local.announced) {
                return Err(Failure::Ended);
            }
        }
        // Every record up to the position of the fence was noted before, so an earlier attempt that
        // has succeeded is either noted, or prevents the next one.
        let fence = Fence::new(core).ok_or(Failure::Ended)?;
        if fence.resets() != resets {
            // Another log has refused nothing yet.
            (refused_for, resets) = (Duration::ZERO, fence.resets());
        }
        // The topic may have been finished before the recording was started.
        let has_read_start = fence.since >= local.started_at();
        if local.is_checking() || !has_read_start {
            local.note_retry();
            fence.passed(core).await;
            continue;
        }
        // Each unsure attempt contains all of these records. So the log has all of them or none.
        let count = unsure.last().copied().unwrap_or(records.len()).min(max);
        let may_continue = unsure.first().is_some_and(|most| *most > count);
        if local.has_appended(&records[..count], !unsure.is_empty(), may_continue).ok_or(Failure::Ended)? {
            records.drain(..count);
            unsure.retain_mut(|attempted| {
                *attempted -= count;
                *attempted > 0
            });
            (failures, refused_for) = (0, Duration::ZERO);
            local.note_progress();
            continue;
        }
        let began = Instant::now();
        match fence.append(backend, records[..count].to_vec()).await {
            Ok(Some(appended)) => {
                // Another log may have replaced the log since. The number of resets changes while
                // the registry is locked.
                let registry = core.registry.lock();
                if fence.resets() == backend.resets() {
                    local.note_appended(appended.position);
                } else {
                    local.note_appended_earlier(appended.position);
                }
                drop(registry);
                records.drain(..count);
                // The fence shows that no earlier attempt was stored. An earlier attempt that still
                // reaches the backend fails at its own fence.
                unsure.clear();
                max = count * 2;
                (failures, refused_for) = (0, Duration::ZERO);
                local.note_progress();
                if !records.is_empty() {
                    // The next fence must be after these records.
                    caught_up(core, appended.position, fence.resets(), Instant::now() + FOLLOWER).await;
                }
            }
            Ok(None) => {
                local.note_retry();
                fence.passed(core).await;
            }
            Err(error) => {
                // A recording has no caller that gets the error.
                local.appends.failed(&error);
                unsure.push(count);
                unsure.dedup();
                failures += 1;
                sleep(retry_pause(failures)).await;
                if backend.newest().await.is_none() {
                    refused_for = Duration::ZERO;
                    local.note_retry();
                    continue;
                }
                if count > 1 {
                    // The backend may accept a part, so this is no reason to give up the records.
                    max = count / 2;
                    continue;
                }
                local.note_retry();
                refused_for += refused_time(began);
                if refused_for >= REFUSED {
                    return Err(Failure::Refused(error));
                }
            }
        }
    }
    local.appends.succeeded();
    Ok(())
}
