//! The connection of the follower, the task that reads new records. On this connection, the
//! follower waits for Postgres notifications, and reads the records.

use super::{
    Log,
    connection::Connection,
    error::RequestError,
    page::{PageQuery, Wanted},
};
use crate::{
    BoxError,
    hub::backend::{Page, Position},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// The Postgres setting `application_name` of the connection of the follower, the task that reads
/// new records. A name in the URL replaces it.
const FOLLOW: &str = "tower-sse-follow";

/// The maximum time between two reads of the log by the follower, the task that reads new records.
/// A notification may get lost, for example in a pool of connections. A read also checks whether
/// another log has replaced the log, while notifications of the earlier server still arrive. At
/// this interval, the follower also checks whether an eviction by age is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The greatest time limit of a read of the log by the follower, the task that reads new records.
/// (A longer timeout in the settings replaces it.) A page can have 17 MiB, which needs 5 Mbit/s
/// within this limit.
const MAX_READ_TIME: Duration = Duration::from_secs(30);

/// The number of reads of the log by the follower since its last successful read. The follower is
/// the task that reads new records. Each of these reads has failed, or was dropped before its
/// response arrived. A connection may be too slow for a large record within the timeout, so each of
/// them doubles the time limit of the next read.
#[derive(Default)]
pub(super) struct FailedReads(AtomicU32);

impl FailedReads {
    fn time_limit(&self, timeout: Duration) -> Duration {
        let factor = 1_u32.checked_shl(self.0.load(Relaxed)).unwrap_or(u32::MAX);
        timeout.saturating_mul(factor).min(MAX_READ_TIME.max(timeout))
    }
}

/// The follower, the task that reads new records: its connection, and how far it has read.
pub(super) struct Follower {
    connection: Connection,
    /// `None` before the first read on this connection, during each read, and if the last read did
    /// not reach the end of the log.
    state: Option<State>,
}

/// The progress of the follower, the task that reads new records: how far it has read the log, and
/// when.
struct State {
    /// The epoch, the number that identifies one lifetime of the log.
    epoch: u64,
    /// The position of the end of the part of the log that the follower has returned to the hub.
    through: Position,
    /// The time of the last query for the log. Records from notifications do not change it.
    read_at: Instant,
}

impl Log {
    /// Waits until the log has records after the position `after`, and returns the next page of the
    /// log.
    pub(super) async fn next_page(self: &Arc<Self>, after: Position) -> Result<Page, BoxError> {
        // The connection stays in the slot, so dropping this future does not close it.
        let mut slot = self.follower.lock().await;
        let page = self.next_page_on(&mut slot, after).await;
        if page.is_err() {
            *slot = None;
        }
        page
    }

    async fn next_page_on(self: &Arc<Self>, slot: &mut Option<Follower>, after: Position) -> Result<Page, BoxError> {
        if slot.as_ref().is_none_or(|follower| follower.connection.has_ended()) {
            *slot = Some(Follower { connection: self.listen().await?, state: None });
        }
        let Some(follower) = slot else { return Err("there is no connection".into()) };
        loop {
            let next = match follower.take(self, after) {
                Some(page) => Some(page),
                None if follower.must_read(self, after) => follower.read(self, after).await?,
                None => None,
            };
            if let Some(page) = next {
                self.evict_by_age();
                return Ok(page);
            }
            if timeout(POLL_INTERVAL, follower.connection.notifications.next()).await.is_err() {
                self.evict_by_age();
            }
        }
    }

    /// Opens the connection of the follower, the task that reads new records, and listens to the
    /// notifications of the log. The follower reads the log only after that, so it misses no
    /// notification.
    async fn listen(&self) -> Result<Connection, RequestError> {
        let settings = &self.settings;
        let server = settings.follower.as_ref().unwrap_or(&settings.server);
        let connection = server.connect(FOLLOW, &settings.schema, settings.timeout).await?;
        connection.query(&self.what(), &self.sql.listen, &[], settings.timeout).await?;
        Ok(connection)
    }
}

impl Follower {
    /// Takes the next Postgres notification, and returns its records after the position `after` as
    /// a page. Returns `None` if there is no such notification, or if the follower has to query the
    /// log first.
    fn take(&mut self, log: &Arc<Log>, after: Position) -> Option<Page> {
        if !self.is_current(log, after) {
            return None;
        }
        let state = self.state.as_mut()?;
        let notification = self.connection.notifications.take(after, state.epoch)?;
        log.note_known(notification.newest);
        state.through = notification.through();
        let count = notification.count;
        let page = notification.into_page();
        log.note_new(count, bytes(&page));
        Some(page)
    }

    /// Returns `true` if the follower, the task that reads new records, has to query the log: the
    /// log may have records after the position `after` that no Postgres notification contains.
    fn must_read(&self, log: &Log, after: Position) -> bool {
        !self.is_current(log, after) || self.connection.notifications.must_read()
    }

    /// Returns `true` if the follower, the task that reads new records, can continue with Postgres
    /// notifications instead of a query. The follower is then at the position `after`, and its last
    /// query was less than a second ago. Also, this process knows of no later epoch (lifetime of
    /// the log).
    fn is_current(&self, log: &Log, after: Position) -> bool {
        self.state.as_ref().is_some_and(|state| {
            state.through == after
                && state.read_at.elapsed() < POLL_INTERVAL
                && log.known().is_none_or(|known| known.epoch as u64 <= state.epoch)
        })
    }

    /// Queries the log after the position `after`. Returns `None` if there are no new records.
    /// Forgets the waiting Postgres notifications, because the log has their records.
    async fn read(&mut self, log: &Arc<Log>, after: Position) -> Result<Option<Page>, BoxError> {
        self.state = None;
        self.connection.notifications.clear();
        let query = PageQuery::new(log, Wanted::All, after);
        let time = log.failed_reads.time_limit(log.settings.timeout);
        // The caller can drop this future, so the read counts as failed until it has succeeded.
        log.failed_reads.0.fetch_add(1, Relaxed);
        let rows = self.connection.query(&log.what(), &log.sql.page, &query.parameters(), time).await?;
        log.failed_reads.0.store(0, Relaxed);
        let read = query.decode(log, &rows)?;
        if !read.is_current || read.last < after {
            return Err(log.is_replaced().into());
        }
        let page = read.page;
        if page.through >= read.last {
            self.state = Some(State { epoch: page.epoch, through: page.through, read_at: Instant::now() });
        }
        if page.through <= after && page.evicted_through <= after {
            return Ok(None);
        }
        log.note_new(read.count, bytes(&page));
        Ok(Some(page))
    }
}

fn bytes(page: &Page) -> usize {
    page.records.iter().map(|(_, record)| record.event.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limit_doubles_up_to_thirty_seconds() {
        let limit = |failed, timeout| FailedReads(AtomicU32::new(failed)).time_limit(Duration::from_secs(timeout));
        for (failed, timeout, seconds) in [(0, 2, 2), (1, 2, 4), (3, 2, 16), (4, 2, 30), (99, 2, 30), (1, 60, 60)] {
            assert_eq!(limit(failed, timeout), Duration::from_secs(seconds), "{failed} {timeout}");
        }
    }
}
