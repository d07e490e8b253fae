//! The search of the backend's log for a topic that the local node does not know. The topic exists
//! if the log has records of it.

use super::{
    backend::Position,
    core::Core,
    error::Error,
    node::{BackendClient, MAX_QUEUED_READS, RunError},
    registry::check_reserved,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{error::Elapsed, sleep, timeout},
};

/// The time limit of one search of the backend's log for records of a topic. After this time, the
/// search returns an error.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of searches for topics that read the log at the same time. Clients can choose
/// the names of topics, and their searches must not delay other clients, which read old events from
/// the log.
pub(super) const MAX_SEARCHES: usize = 2;

/// The pause of a search before its next read, if the server does not have the rest of the log yet.
/// Such a server can be a replica that lags.
const PAUSE: Duration = Duration::from_millis(200);

/// The task of a search. Dropping this value ends the search.
struct Search(JoinHandle<Result<Result<bool, Error>, Elapsed>>);

impl Drop for Search {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The knowledge of the local node about one topic, from the part of the log that it has read.
struct Known {
    epoch: u64,
    is_known: bool,
    /// An upper bound for the positions of the topic's records that the local node has read.
    last_of_topic: Position,
    /// The position of the end of the part of the log that the local node has read.
    read_through: Position,
}

impl Core {
    fn known(&self, backend: &BackendClient, topic: &Arc<str>) -> Known {
        // The epoch and the positions change together while the registry is locked.
        let registry = self.registry.lock();
        // A topic that does not exist can have had events while a lookup keeps it in memory.
        let last = registry.topics.get(topic).map_or(Position::START, |topic| topic.lock().newest());
        Known {
            epoch: backend.epoch_bits(),
            is_known: registry.exists(topic),
            last_of_topic: registry.topic_dropped_through(topic).max(last),
            read_through: self.committed(),
        }
    }

    /// Returns `true` if the topic exists on the local node, or if the log of the backend retains a
    /// record of the topic after its last removal. In a hub without a backend, only the local node
    /// counts.
    ///
    /// If the local node does not know the topic, requests the end of the log from the backend, and
    /// reads the log. It reads only the two parts that can have a record of the topic: up to the
    /// topic's last record that the local node has read and dropped, and after the last record of
    /// any topic that the local node has read.
    ///
    /// Returns an error if the backend does not respond, or if the search takes more than ten
    /// seconds.
    pub(super) async fn is_in_log(self: &Arc<Self>, topic: &Arc<str>) -> Result<bool, Error> {
        if self.exists(topic) {
            return Ok(true);
        }
        let Some(backend) = self.backend.as_ref().filter(|_| check_reserved(topic).is_ok()) else { return Ok(false) };
        let failed = |reason: &str| Error::backend("", reason.into());
        let Some(runtime) = backend.runtime() else { return Err(failed("the hub is not connected")) };
        let (core, topic) = (self.clone(), topic.clone());
        let searched = backend.unless_stopped(async {
            // The search runs in a task of its own, because a caller that is not polled would keep
            // its permit.
            let mut search = Search(runtime.spawn(async move { timeout(SEARCH_TIMEOUT, core.search(&topic)).await }));
            // The runtime of the hub may not run while the caller waits in another one.
            match Handle::try_current() {
                Ok(_) => timeout(2 * SEARCH_TIMEOUT, &mut search.0).await,
                Err(_) => Ok((&mut search.0).await),
            }
        });
        match searched.await {
            None => Err(Error::shut_down()),
            Some(Ok(Ok(Ok(searched)))) => searched,
            Some(Ok(Err(_))) => Err(failed("the task of the search has ended")),
            Some(Err(_) | Ok(Ok(Err(_)))) => Err(failed("the log was not searched to its end within ten seconds")),
        }
    }

    async fn search(&self, topic: &Arc<str>) -> Result<bool, Error> {
        let Some(backend) = &self.backend else { return Ok(false) };
        let failed = |reason: &str| Error::backend("", reason.into());
        let epoch = backend.epoch_bits();
        let newest = backend.newest().await.ok_or_else(|| failed("the backend has not returned the end of its log"))?;
        let topics: Arc<[_]> = [topic.clone()].into();
        let mut after = backend.after_removed(&topics, backend.evicted_through());
        let mut permit = None;
        loop {
            let known = self.known(backend, topic);
            if known.epoch != epoch {
                return Err(failed("another log has replaced the log"));
            }
            if known.is_known {
                return Ok(true);
            }
            if after >= known.last_of_topic {
                after = after.max(known.read_through);
            }
            if after >= newest {
                return Ok(false);
            }
            if permit.is_none() {
                permit = self.searches.acquire().await.ok();
            }
            let page = match backend.read(topics.clone(), after).await {
                Ok(page) => page,
                Err(RunError::Full) => return Err(Error::overloaded(MAX_QUEUED_READS)),
                Err(RunError::Failed) => return Err(failed("the backend has not returned a part of its log")),
            };
            // The local node may not know the epoch of the page yet.
            if page.epoch != self.epoch() {
                return Err(failed("another log has replaced the log"));
            }
            if page.has_topic(topic) {
                return Ok(true);
            }
            if page.through <= after {
                sleep(PAUSE).await;
            }
            after = after.max(page.through);
        }
    }
}
