use super::{Appended, Backend, Bounds, Page, Record};
use crate::{BoxError, random};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// A log in the memory of this process: for several hubs of one process, in tests for instance, and as the plainest
/// [`Backend`] there is.
///
/// A clone is the same log. It holds as many records as it was made for.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    log: Arc<Mutex<Log>>,
    newest: watch::Sender<u64>,
    max_records: usize,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Log {
    records: VecDeque<(u64, Record)>,
    lost: u64,
    newest: u64,
}

/// How many records are a page.
const PAGE: usize = 1000;

impl MemoryBackend {
    /// A log of this length.
    #[must_use]
    pub fn new(max_records: usize) -> Self {
        Self { log: Arc::default(), newest: watch::Sender::new(0), max_records, epoch: random::bits() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, after: u64, is_wanted: impl Fn(&Record) -> bool) -> Page {
        let log = self.log();
        let first = log.records.partition_point(|(position, _)| *position <= after);
        let records: Vec<_> =
            log.records.iter().skip(first).filter(|(_, record)| is_wanted(record)).take(PAGE).cloned().collect();
        let is_whole = records.len() < PAGE;
        let through = records.last().map(|(position, _)| *position).filter(|_| !is_whole).unwrap_or(log.newest);
        Page { epoch: self.epoch, lost: if log.lost > after { log.lost } else { 0 }, records, through }
    }
}

impl Backend for MemoryBackend {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let log = self.log();
        Ok(Bounds { epoch: self.epoch, lost: log.lost, newest: log.newest })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let mut log = self.log();
        for record in records {
            log.newest += 1;
            let position = log.newest;
            log.records.push_back((position, record));
            if log.records.len() > self.max_records {
                log.lost = log.records.pop_front().map_or(log.lost, |(position, _)| position);
            }
        }
        self.newest.send_replace(log.newest);
        Ok(Appended { epoch: self.epoch, position: log.newest })
    }

    async fn read(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
        Ok(self.page(after, |record| topics.contains(&record.topic)))
    }

    async fn follow(&self, after: u64) -> Result<Page, BoxError> {
        let mut newest = self.newest.subscribe();
        // Its sender is in `self`.
        let _is_there = newest.wait_for(|newest| *newest > after).await;
        Ok(self.page(after, |_| true))
    }
}
