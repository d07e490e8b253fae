//! Retention of the log in Postgres: every node deletes the oldest records, in small batches.

use super::Log;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_postgres::types::{ToSql, Type};

/// The maximum number of records that one transaction deletes, which takes about 10 ms. A
/// transaction deletes more if this node has appended or read more since the transaction before it.
const MAX_DELETED: u64 = 1000;
/// A transaction stops when the deleted records have reached this size in bytes. It deletes more if
/// this node has appended or read more bytes since the transaction before it.
const MAX_DELETED_BYTES: u64 = 8 << 20;

/// A node starts an eviction, the deletion of the oldest records, after this number of new records.
/// If the limit of the log is below 4,000 records, the node does so after a quarter of the limit.
const MAX_NEW: u64 = 1000;

/// The maximum interval between two checks of the age of records.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The state of the task on this node that deletes the oldest records.
#[derive(Default)]
pub(super) struct Eviction {
    /// The number of records that this node has appended or read since the last eviction.
    new: AtomicU64,
    /// The number of the records that this node has appended or read since the last batch of an
    /// eviction. The next batch may delete as many. `bytes_since_batch` is the size of these
    /// records.
    since_batch: AtomicU64,
    bytes_since_batch: AtomicU64,
    is_running: AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Log {
    /// Counts new records. Returns `true` if there are enough of them for an eviction, the deletion
    /// of the oldest records, and then begins to count at 0.
    fn counts_enough(&self, records: usize) -> bool {
        let enough = (self.settings.max_records / 4).clamp(1, MAX_NEW);
        let is_enough = self.eviction.new.fetch_add(records as u64, Relaxed) + records as u64 >= enough;
        if is_enough {
            self.eviction.new.store(0, Relaxed);
        }
        is_enough
    }

    /// Counts records that this node has appended or read, and starts an eviction if there are
    /// enough of them.
    ///
    /// Appends do not wait until the eviction has ended. But both use the shared connection, whose
    /// requests run one after the other. So an append waits for at most one batch of the eviction.
    /// Each batch may delete as many records and bytes as were appended since the batch before it.
    /// So the appends of a node cannot outrun its eviction, whatever their size.
    pub(super) fn note_new(self: &Arc<Self>, records: usize, bytes: usize) {
        self.eviction.since_batch.fetch_add(records as u64, Relaxed);
        self.eviction.bytes_since_batch.fetch_add(bytes as u64, Relaxed);
        if self.counts_enough(records) {
            self.start_eviction();
        }
    }

    /// Starts an eviction if the last eviction was a quarter of the maximum age ago, or ten seconds
    /// if this is shorter. The follower, the task that reads the log, calls this function at least
    /// once a second.
    pub(super) fn evict_by_age(self: &Arc<Self>) {
        let interval = (self.settings.max_age / 4).min(MAX_INTERVAL);
        let last = *self.eviction.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= interval) {
            self.start_eviction();
        }
    }

    fn start_eviction(self: &Arc<Self>) {
        if self.eviction.is_running.swap(true, Relaxed) {
            return;
        }
        let log = Arc::clone(self);
        tokio::spawn(async move { log.evict().await });
    }

    /// Deletes the records of the log that the retention does not cover. The caller must have set
    /// `is_running`, which this function clears at its end.
    async fn evict(&self) {
        // Clears the flag also if the future is dropped.
        let _running = Running(&self.eviction.is_running);
        *self.eviction.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let max_records = i64::try_from(self.settings.max_records).unwrap_or(i64::MAX);
        // An interval of SQL ends at 178,000,000 years.
        let max_age = self.settings.max_age.as_secs_f64().min(1e10);
        loop {
            let limit =
                |least: u64, new: &AtomicU64| i64::try_from(least.max(new.swap(0, Relaxed))).unwrap_or(i64::MAX);
            let max_deleted = limit(MAX_DELETED, &self.eviction.since_batch);
            let max_bytes = limit(MAX_DELETED_BYTES, &self.eviction.bytes_since_batch);
            let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
                (&max_records, Type::INT8),
                (&max_age, Type::FLOAT8),
                (&max_deleted, Type::INT8),
                (&max_bytes, Type::INT8),
            ];
            // An error is reported by the next request that a publisher or client needs.
            let Ok(connection) = self.shared_connection().await else { return };
            let rows = self.query(&connection, &self.sql.evict, &parameters).await;
            let has_more: Option<bool> = rows.ok().and_then(|rows| rows.first()?.try_get(0).ok());
            if has_more != Some(true) {
                return;
            }
        }
    }
}

struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}
