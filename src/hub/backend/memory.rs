use super::{Appended, Backend, Bounds, Page, Position, Record};
use crate::{BoxError, random};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// A log in the memory of this process. It is for tests with several hubs, and is the simplest
/// [`Backend`].
///
/// Clones share the log. The log retains the newest `max_records` records of all topics together.
/// An append beyond this limit evicts the oldest record.
///
/// Two locks guard the log: a mutex around the records, and the lock inside the `watch` channel
/// through which waiting readers learn the last position. No task holds both locks at the same
/// time.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    log: Arc<Mutex<Log>>,
    last: watch::Sender<Position>,
    max_records: usize,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Log {
    records: VecDeque<(Position, Record)>,
    evicted_through: Position,
    last: Position,
}

/// The maximum number of records in a page, the result of one read.
const PAGE: usize = 1000;

impl MemoryBackend {
    /// Creates an empty log that retains the newest `max_records` records. With 0, the log retains
    /// no record.
    #[must_use]
    pub fn new(max_records: usize) -> Self {
        Self { log: Arc::default(), last: watch::Sender::new(Position::START), max_records, epoch: random::bits() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, after: Position, is_wanted: impl Fn(&Record) -> bool) -> Page {
        let log = self.log();
        let first = log.records.partition_point(|(position, _)| *position <= after);
        let records: Vec<_> =
            log.records.iter().skip(first).filter(|(_, record)| is_wanted(record)).take(PAGE).cloned().collect();
        let is_whole = records.len() < PAGE;
        let through = records.last().map(|(position, _)| *position).filter(|_| !is_whole).unwrap_or(log.last);
        Page { epoch: self.epoch, evicted_through: log.evicted_through, records, through }
    }
}

impl MemoryBackend {
    fn append_to(&self, mut log: MutexGuard<'_, Log>, records: Vec<Record>) -> Appended {
        for record in records {
            let position = log.last.next();
            log.last = position;
            log.records.push_back((position, record));
            if log.records.len() > self.max_records {
                log.evicted_through = log.records.pop_front().map_or(log.evicted_through, |(position, _)| position);
            }
        }
        let position = log.last;
        drop(log);
        // Without the lock, another append may have announced a greater position by now.
        self.last.send_if_modified(|last| {
            let is_greater = position > *last;
            *last = position.max(*last);
            is_greater
        });
        Appended { epoch: self.epoch, position }
    }
}

impl Backend for MemoryBackend {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let log = self.log();
        Ok(Bounds { epoch: self.epoch, evicted_through: log.evicted_through, last: log.last })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        Ok(self.append_to(self.log(), records))
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let log = self.log();
        let mut newer = log.records.iter().rev().take_while(|(position, _)| *position > since);
        let has_changed = newer.any(|(_, newer)| records.iter().any(|record| record.topic == newer.topic));
        if has_changed || epoch != self.epoch || log.evicted_through > since {
            return Ok(None);
        }
        Ok(Some(self.append_to(log, records)))
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        Ok(self.page(after, |record| topics.contains(&record.topic)))
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let mut last = self.last.subscribe();
        // `wait_for` returns a guard of the channel's read lock. The guard has to be dropped before
        // `page` locks the records. The wait cannot fail: `self` owns the sender.
        drop(last.wait_for(|last| *last > after).await);
        Ok(self.page(after, |_| true))
    }
}
