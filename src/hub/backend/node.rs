//! One process that follows a backend.

use super::{Bounds, Erased, Record, RecordKind};
use crate::{
    Event, EventId,
    hub::{Error, Start, core::Core},
    random, trace,
};
use bytes::Bytes;
use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{task::AbortHandle, time::sleep};

/// How long to wait before a backend that has failed is followed again: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(400)];

/// What a hub has of its backend.
pub(in crate::hub) struct Node {
    pub(in crate::hub) backend: Arc<dyn Erased>,
    /// The newest position that is known to be in the log, whether it was read here or not.
    acknowledged: AtomicU64,
    /// Everything up to here is known to be lost for good.
    lost: AtomicU64,
    reader: OnceLock<AbortHandle>,
}

impl Node {
    pub(in crate::hub) fn new(backend: Arc<dyn Erased>, bounds: &Bounds) -> Self {
        let node = Self { backend, acknowledged: AtomicU64::new(0), lost: AtomicU64::new(0), reader: OnceLock::new() };
        node.begin(bounds);
        node
    }

    /// The log is another one now.
    pub(in crate::hub) fn begin(&self, bounds: &Bounds) {
        self.acknowledged.store(bounds.newest, Relaxed);
        self.lost.store(bounds.lost, Relaxed);
    }

    pub(in crate::hub) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(in crate::hub) fn is_lost(&self, through: u64) {
        self.lost.fetch_max(through, Relaxed);
    }

    /// A position that is known to be in the log. The backend is asked if a client has one that is greater than what is known
    /// here; if it does not answer, the client is taken at its word.
    pub(in crate::hub) async fn newest(&self, core: &Core, start: &Start) -> u64 {
        let known = self.acknowledged.load(Relaxed).max(core.committed());
        let claimed = match start {
            Start::After(id) => core.epoch().number(id).unwrap_or(0),
            _ => 0,
        };
        if claimed <= known {
            return known;
        }
        match self.backend.bounds().await {
            Ok(bounds) => known.max(bounds.newest),
            Err(_) => claimed,
        }
    }

    pub(in crate::hub) async fn publish(
        &self,
        core: &Core,
        topic: &Arc<str>,
        kind: RecordKind,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Option<EventId>, Error> {
        let record = |event: Event| Record { topic: topic.clone(), kind, event: event.encode() };
        let position = self.append(core, topic, events.into_iter().map(record).collect()).await?;
        Ok(Some(core.epoch().id(position)))
    }

    pub(in crate::hub) async fn finish(&self, core: &Core, topic: &Arc<str>) -> Result<(), Error> {
        let finish = Record { topic: topic.clone(), kind: RecordKind::Finish, event: Bytes::new() };
        match self.append(core, topic, vec![finish]).await {
            Err(error) if error.is_finished() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn append(&self, core: &Core, topic: &Arc<str>, records: Vec<Record>) -> Result<u64, Error> {
        core.can_publish(topic)?;
        let position = self.backend.append(records).await.map_err(|source| Error::backend(topic, source))?;
        self.acknowledged.fetch_max(position, Relaxed);
        Ok(position)
    }

    /// Follows the log from a position on, for as long as there is the hub.
    pub(in crate::hub) fn follow(&self, core: Weak<Core>, after: u64, epoch: u64) {
        let task = tokio::spawn(follow(Arc::clone(&self.backend), core, after, epoch));
        self.reader.get_or_init(|| task.abort_handle());
    }

    pub(in crate::hub) fn stop(&self) {
        self.reader.get().inspect(|reader| reader.abort());
    }
}

async fn follow(backend: Arc<dyn Erased>, core: Weak<Core>, mut after: u64, mut epoch: u64) {
    let [mut pause, longest] = PAUSES;
    loop {
        let error = match backend.follow(after).await {
            Ok(page) => {
                let Some(core) = core.upgrade() else { return };
                after = page.through;
                core.deliver(page);
                pause = PAUSES[0];
                continue;
            }
            Err(error) => error,
        };
        if pause == PAUSES[0] {
            trace::backend_failed(&error);
        }
        sleep(pause.mul_f64(0.5 + random::part() / 2.0)).await;
        pause = longest.min(pause * 2);
        // It may be another log that comes back.
        let Ok(bounds) = backend.bounds().await else { continue };
        let Some(core) = core.upgrade() else { return };
        if bounds.epoch != epoch || bounds.newest < after {
            (epoch, after) = (bounds.epoch, bounds.lost);
            core.begin_anew(&bounds);
        }
    }
}
