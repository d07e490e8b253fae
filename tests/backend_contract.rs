//! The contract of a backend holds of the backend in memory, and rejects a log that breaks it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use support::pass_on;
use tokio::{task::yield_now, time::sleep};
use tower_sse::{
    BoxError,
    hub::backend::{Appended, Backend, Bounds, MemoryBackend, Page, Position, Record, contract},
};

/// More records than a check appends.
const PLENTY: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_backend_keeps_the_contract_on_four_threads() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().unwrap();
        logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone()
    })
    .await;
}

/// A log whose appends return the position of the newest record that this connection has stored.
#[derive(Clone)]
struct Repeats {
    log: MemoryBackend,
    newest: Arc<Mutex<Option<Appended>>>,
}

impl Backend for Repeats {
    pass_on!(log: bounds append_if_unchanged read follow);

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let appended = self.log.append(records).await?;
        *self.newest.lock().unwrap() = Some(appended);
        yield_now().await;
        self.newest.lock().unwrap().ok_or_else(|| "it was set above".into())
    }
}

#[tokio::test]
#[should_panic(expected = "two appends returned the position")]
async fn contract_rejects_positions_that_are_returned_twice() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().unwrap();
        let log = logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone();
        Repeats { log, newest: Arc::default() }
    })
    .await;
}

/// A log that evicts records some time after the append.
#[derive(Clone)]
struct Late {
    log: MemoryBackend,
    max_records: u64,
    evicted_through: Arc<AtomicU64>,
}

impl Late {
    fn evicted_through(&self) -> Position {
        self.evicted_through.load(Relaxed).into()
    }

    fn evict_later(&self, Appended { position, .. }: Appended) {
        let Self { max_records, evicted_through, .. } = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(200)).await;
            evicted_through.fetch_max(position.get().saturating_sub(max_records), Relaxed);
        });
    }
}

impl Backend for Late {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let mut bounds = self.log.bounds().await?;
        bounds.evicted_through = self.evicted_through();
        Ok(bounds)
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.log.append(records).await.inspect(|appended| self.evict_later(*appended))
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        if since < self.evicted_through() {
            return Ok(None);
        }
        self.log.append_if_unchanged(records, epoch, since).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let evicted_through = self.evicted_through();
        let mut page = self.log.read(topics, after.max(evicted_through)).await?;
        page.evicted_through = evicted_through;
        Ok(page)
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let evicted_through = self.evicted_through();
        let mut page = self.log.follow(after.max(evicted_through)).await?;
        page.evicted_through = evicted_through;
        Ok(page)
    }
}

#[tokio::test(start_paused = true)]
async fn contract_accepts_eviction_in_the_background() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let log = || Late {
            log: MemoryBackend::new(PLENTY),
            max_records: max_records as u64,
            evicted_through: Arc::default(),
        };
        logs.lock().unwrap().entry(name.to_owned()).or_insert_with(log).clone()
    })
    .await;
}

/// A log whose pages contain no record if they report an eviction.
#[derive(Clone)]
struct GapFirst(MemoryBackend);

impl GapFirst {
    async fn gap(&self, after: Position) -> Result<Option<Page>, BoxError> {
        let Bounds { epoch, evicted_through, .. } = self.0.bounds().await?;
        let mut gap = Page::new(epoch, evicted_through);
        gap.evicted_through = evicted_through;
        Ok((evicted_through > after).then_some(gap))
    }
}

impl Backend for GapFirst {
    pass_on!(0: bounds append append_if_unchanged);

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        match self.gap(after).await? {
            Some(gap) => Ok(gap),
            None => self.0.read(topics, after).await,
        }
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        match self.gap(after).await? {
            Some(gap) => Ok(gap),
            None => self.0.follow(after).await,
        }
    }
}

#[tokio::test]
async fn contract_accepts_pages_that_only_report_an_eviction() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let log = || GapFirst(MemoryBackend::new(max_records));
        logs.lock().unwrap().entry(name.to_owned()).or_insert_with(log).clone()
    })
    .await;
}

/// A log that does not compare its topics as `append_if_unchanged` has to.
#[derive(Clone)]
struct Careless {
    log: MemoryBackend,
    comparison: Comparison,
}

#[derive(Clone, Copy)]
enum Comparison {
    /// Appends in any case.
    Never,
    /// Appends in no case.
    AlwaysChanged,
    /// Compares all topics instead of one.
    WholeLog,
    /// Compares the topic, and not the epoch.
    AnyEpoch,
    /// Does not regard evicted records.
    RetainedRecords,
    /// Appends in a second step, without a lock around both.
    TwoSteps,
}

impl Backend for Careless {
    pass_on!(log: bounds read follow);

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        yield_now().await;
        self.log.append(records).await
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let bounds = self.log.bounds().await?;
        let since_or_evicted = since.max(bounds.evicted_through);
        match self.comparison {
            Comparison::Never => self.log.append(records).await.map(Some),
            Comparison::AlwaysChanged => Ok(None),
            Comparison::WholeLog if since < bounds.last => Ok(None),
            Comparison::WholeLog => self.log.append_if_unchanged(records, epoch, since).await,
            Comparison::AnyEpoch => self.log.append_if_unchanged(records, bounds.epoch, since).await,
            Comparison::RetainedRecords => self.log.append_if_unchanged(records, epoch, since_or_evicted).await,
            Comparison::TwoSteps => {
                let topic = [records[0].topic.clone()];
                let page = self.log.read(&topic, since).await?;
                if page.epoch != epoch || page.evicted_through > since || !page.records.is_empty() {
                    return Ok(None);
                }
                self.append(records).await.map(Some)
            }
        }
    }
}

async fn check_careless(comparison: Comparison) {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().unwrap();
        let log = logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone();
        Careless { log, comparison }
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "refuses records if the topic has records after the position")]
async fn contract_rejects_appends_to_changed_topics() {
    check_careless(Comparison::Never).await;
}

#[tokio::test]
#[should_panic(expected = "has not changed since")]
async fn contract_rejects_a_log_that_always_refuses() {
    check_careless(Comparison::AlwaysChanged).await;
}

#[tokio::test]
#[should_panic(expected = "has not changed since")]
async fn contract_rejects_refusals_due_to_other_topics() {
    check_careless(Comparison::WholeLog).await;
}

#[tokio::test]
#[should_panic(expected = "refuses records if the log has another epoch")]
async fn contract_rejects_appends_for_another_epoch() {
    check_careless(Comparison::AnyEpoch).await;
}

#[tokio::test]
#[should_panic(expected = "refuses records if records after the position were evicted")]
async fn contract_rejects_appends_after_evicted_records() {
    check_careless(Comparison::RetainedRecords).await;
}

#[tokio::test]
#[should_panic(expected = "one of 4 appends after")]
async fn contract_rejects_a_comparison_before_the_append() {
    check_careless(Comparison::TwoSteps).await;
}
