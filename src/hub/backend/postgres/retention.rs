//! Retention of the log in Postgres: every node deletes the oldest records, in small batches.

use super::Log;
use crate::BoxError;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_postgres::types::{ToSql, Type};

/// The maximum number of old records that one batch deletes. A batch is one transaction of an
/// eviction, the deletion of old records. Deleting this number takes about 10 ms. If this node has
/// appended or read more records than this since its previous batch, the next batch deletes up to
/// that greater number of records.
const MAX_DELETED: u64 = 1000;
/// The size of deleted records, in bytes, that ends a batch, a transaction that deletes old
/// records. If this node has appended or read more bytes than this since its previous batch, the
/// next batch stops only at that larger number of bytes.
const MAX_DELETED_BYTES: u64 = 8 << 20;

/// The number of new records after which a node starts an eviction, the deletion of the oldest
/// records. If the maximum number of records in the log is below 4,000, the node starts an eviction
/// after a quarter of this maximum.
const MAX_NEW: u64 = 1000;

/// The maximum interval between two evictions. An eviction deletes the records that are older than
/// the maximum age, or beyond the maximum number of records.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The state of the task on this node that deletes the oldest records.
#[derive(Default)]
pub(super) struct Eviction {
    /// The number of records that this node has appended or read since this number last started an
    /// eviction. Evictions by age do not reset it.
    new: AtomicU64,
    /// The number of records that this node has appended or read since its last batch, a
    /// transaction that deletes old records. The next batch can delete this number of records, or
    /// 1,000 ([`MAX_DELETED`]) if that is more, so that evictions keep up with appends.
    /// `bytes_since_batch` is the size of these records.
    since_batch: AtomicU64,
    bytes_since_batch: AtomicU64,
    is_running: AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Log {
    /// Adds `records` to the count of records that this node has appended or read. If the count is
    /// enough for an eviction (the deletion of old records), returns `true` and sets the count to
    /// 0. Enough are 1,000 records, or a quarter of the maximum number in the log if that is less.
    fn counts_enough(&self, records: usize) -> bool {
        let enough = (self.settings.max_records / 4).clamp(1, MAX_NEW);
        let is_enough = self.eviction.new.fetch_add(records as u64, Relaxed) + records as u64 >= enough;
        if is_enough {
            self.eviction.new.store(0, Relaxed);
        }
        is_enough
    }

    /// Counts records that this node has appended or read, and the bytes of their events. If there
    /// are enough of them, starts an eviction, the deletion of old records.
    ///
    /// Appends do not wait until the eviction has ended. But appends and evictions use the same
    /// connection, whose requests run one after the other. So an append waits for at most one batch
    /// of the eviction. Each batch is large enough to delete all records and bytes that were
    /// appended since the batch before it. So the appends of a node cannot outrun its eviction,
    /// whatever their size.
    pub(super) fn note_new(self: &Arc<Self>, records: usize, bytes: usize) {
        self.eviction.since_batch.fetch_add(records as u64, Relaxed);
        self.eviction.bytes_since_batch.fetch_add(bytes as u64, Relaxed);
        if self.counts_enough(records) {
            self.start_eviction();
        }
    }

    /// Starts an eviction, the deletion of old records, if enough time has passed since the last
    /// eviction began: a quarter of the maximum age, but at most ten seconds. The follower, the
    /// task that reads the log, calls this function at least once a second.
    pub(super) fn evict_by_age(self: &Arc<Self>) {
        let interval = (self.settings.max_age.get() / 4).min(MAX_INTERVAL);
        let last = *self.eviction.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= interval) {
            self.start_eviction();
        }
    }

    fn start_eviction(self: &Arc<Self>) {
        if self.eviction.is_running.swap(true, Relaxed) {
            return;
        }
        // The guard exists before the task, because a runtime that shuts down can drop a task
        // before it polls the task for the first time.
        let running = Running(Arc::clone(self));
        self.spawn(async move { running.0.evict().await });
    }

    /// Deletes the records of the log that are older than the maximum age, or beyond the maximum
    /// number of records. The caller must have set `is_running`, which prevents a second eviction
    /// at the same time. This function clears the flag at its end.
    async fn evict(&self) {
        *self.eviction.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        loop {
            match self.evict_batch().await {
                Ok(Some(has_more)) => {
                    self.eviction_outage.succeeded();
                    if !has_more {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => return self.eviction_outage.failed(&error),
            }
        }
    }

    /// Deletes the oldest records in one transaction. Returns `true` if there may be more records
    /// to delete, and `None` if another node is deleting records.
    async fn evict_batch(&self) -> Result<Option<bool>, BoxError> {
        let connection = self.shared_connection().await?;
        let max_records = i64::try_from(self.settings.max_records).unwrap_or(i64::MAX);
        // The maximum interval of SQL is 178,000,000 years.
        let max_age = self.settings.max_age.get().as_secs_f64().min(1e10);
        let limit = |least: u64, new: &AtomicU64| i64::try_from(least.max(new.swap(0, Relaxed))).unwrap_or(i64::MAX);
        let max_deleted = limit(MAX_DELETED, &self.eviction.since_batch);
        let max_bytes = limit(MAX_DELETED_BYTES, &self.eviction.bytes_since_batch);
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&max_records, Type::INT8),
            (&max_age, Type::FLOAT8),
            (&max_deleted, Type::INT8),
            (&max_bytes, Type::INT8),
        ];
        let rows = self.query(&connection, &self.sql.evict, &parameters).await?;
        Ok(rows.first().ok_or("the response to an eviction is empty")?.try_get(0)?)
    }
}

/// A guard in the task of an eviction, the deletion of old records. It clears the flag `is_running`
/// when the task ends or is dropped, so that the next eviction can start.
struct Running(Arc<Log>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.eviction.is_running.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::postgres::PostgresBackend;
    use tokio::runtime::Builder;

    #[test]
    fn eviction_after_a_dropped_task_starts_another() {
        let backend = PostgresBackend::new("postgres://host").unwrap();
        let log = backend.log();
        let runtime = Builder::new_current_thread().build().unwrap();
        let entered = runtime.enter();
        log.evict_by_age();
        assert!(log.eviction.is_running.load(Relaxed));
        drop(entered);
        drop(runtime);
        assert!(!log.eviction.is_running.load(Relaxed));
    }

    #[tokio::test]
    async fn outage_of_the_eviction_is_logged() {
        // No server listens on this port.
        let backend = PostgresBackend::new("postgres://user@127.0.0.1:1/").unwrap();
        let log = backend.log();
        assert!(!log.eviction_outage.is_logged());
        log.start_eviction();
        while log.eviction.is_running.load(Relaxed) {
            tokio::task::yield_now().await;
        }
        assert!(log.eviction_outage.is_logged());
    }
}
