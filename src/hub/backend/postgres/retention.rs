//! Retention: every node deletes the oldest records, in small batches.

use super::Log;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_postgres::types::{ToSql, Type};

/// The maximum number of records that one transaction deletes.
const MAX_DELETED: i64 = 1000;

/// The number of new records after which a node deletes the oldest ones. A smaller log is checked
/// more often.
const MAX_NEW: u64 = 1000;

/// The longest interval between two checks of the age.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The state of a node's eviction.
#[derive(Default)]
pub(super) struct Eviction {
    /// The number of records that this node has appended or read since the last eviction.
    new: AtomicU64,
    is_running: AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Log {
    /// Counts new records. Starts an eviction if there are enough of them.
    pub(super) fn note_appended(self: &Arc<Self>, records: usize) {
        let enough = (self.settings.max_records / 4).clamp(1, MAX_NEW);
        if self.eviction.new.fetch_add(records as u64, Relaxed) + records as u64 >= enough {
            self.eviction.new.store(0, Relaxed);
            self.start_eviction();
        }
    }

    /// Starts an eviction if the last one is long ago. The follower calls it while it waits.
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
        tokio::spawn(async move {
            // Otherwise the end of the runtime would leave the flag set.
            let _running = Running(&log.eviction.is_running);
            *log.eviction.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let max_records = i64::try_from(log.settings.max_records).unwrap_or(i64::MAX);
            // An interval of SQL ends at 178,000,000 years.
            let max_age = log.settings.max_age.as_secs_f64().min(1e10);
            let parameters: [(&(dyn ToSql + Sync), Type); 3] =
                [(&max_records, Type::INT8), (&max_age, Type::FLOAT8), (&MAX_DELETED, Type::INT8)];
            loop {
                let rows = log.query(&log.sql.evict, &parameters).await;
                // An error is reported by the next request that a publisher or client needs.
                let deleted = rows.ok().and_then(|rows| rows.first()?.try_get(0).ok());
                if deleted.is_none_or(|deleted: i64| deleted < MAX_DELETED) {
                    return;
                }
            }
        });
    }
}

struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}
