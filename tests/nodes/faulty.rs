//! A backend that fails on request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;
use tower_sse::{
    BoxError, Event,
    hub::backend::{Appended, Backend, Bounds, MemoryBackend, Page, Position, Record, RecordKind},
};

/// A log that several nodes share, and everything that was ever in it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Vec<Log>>>);

/// A log of the name. The last log of the list is the current one.
#[derive(Clone)]
pub(crate) struct Log {
    backend: MemoryBackend,
    pub letters: String,
    pub all: BTreeMap<u64, Record>,
    pub bounds: Bounds,
}

/// The connection of one node to the log.
#[derive(Clone)]
pub(crate) struct Faulty {
    shared: Shared,
    mode: Arc<watch::Sender<Mode>>,
    pub page: Arc<AtomicUsize>,
    /// The duration of each read in milliseconds.
    pub delay: Arc<AtomicU64>,
    /// The time in milliseconds from the moment when the log has the records of a page until
    /// `follow` returns the page. It must be shorter than two seconds.
    pub lag: Arc<AtomicU64>,
    /// The duration of each append, and of each request for the bounds, in milliseconds. An append
    /// takes effect after half of it, and the bounds are those at its beginning.
    pub latency: Arc<AtomicU64>,
    /// The maximum size of the events of one conditional append, in bytes. A larger append is
    /// refused.
    pub max_bytes: Arc<AtomicUsize>,
    /// The log seems to have evicted all records up to this position, also if it retains them for
    /// other nodes.
    pub missed: Arc<AtomicU64>,
    /// The end of the part of the log that the node has read.
    pub followed: Arc<AtomicU64>,
    pub asked: Arc<Asked>,
}

/// The numbers of calls.
#[derive(Default)]
pub(crate) struct Asked {
    pub bounds: AtomicUsize,
    pub reads: AtomicUsize,
    pub reads_at_once: AtomicUsize,
    pub most_reads_at_once: AtomicUsize,
    /// The number of futures of `follow`.
    pub follows: AtomicUsize,
    /// The number of appends that were refused.
    pub refusals: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Works,
    /// Every request fails, also a request in flight.
    Fails,
    /// No request gets a response.
    Hangs,
    /// Records are stored, but the response is lost.
    LosesAnswers,
    /// Nothing new is read, and that is no error.
    Lags,
    /// Appends of records whose text or topic ends with "large" fail, and other requests succeed.
    Refuses,
    /// Every append fails, and other requests succeed.
    ReadsOnly,
    /// Appends of records with the text "slow" take five seconds.
    IsSlow,
    /// The response to a conditional append takes four seconds.
    IsLate,
}

impl Shared {
    pub(crate) fn new(max_records: usize) -> Self {
        let shared = Self(Arc::default());
        shared.replace(max_records, Vec::new());
        shared
    }

    pub(crate) fn connect(&self) -> Faulty {
        Faulty {
            shared: self.clone(),
            mode: Arc::new(watch::Sender::new(Mode::Works)),
            page: Arc::new(AtomicUsize::new(usize::MAX)),
            delay: Arc::default(),
            lag: Arc::default(),
            latency: Arc::default(),
            max_bytes: Arc::new(AtomicUsize::new(usize::MAX)),
            missed: Arc::default(),
            followed: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// Replaces the log by another log that begins with these records.
    pub(crate) fn replace(&self, max_records: usize, records: Vec<Record>) {
        let backend = MemoryBackend::new(max_records);
        let bounds = now(backend.bounds()).unwrap();
        let letter = |i| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(bounds.epoch >> (5 * i)) as usize % 32]);
        let log = Log { backend, letters: (0..8).map(letter).collect(), all: BTreeMap::new(), bounds };
        let mut logs = self.0.lock().unwrap();
        logs.push(log);
        let log = logs.last_mut().unwrap();
        for record in records {
            log.append(vec![record]);
        }
    }

    /// Returns the current log.
    pub(crate) fn log(&self) -> Log {
        self.0.lock().unwrap().last().unwrap().clone()
    }

    fn backend(&self) -> MemoryBackend {
        self.0.lock().unwrap().last().unwrap().backend.clone()
    }

    pub(crate) fn logs(&self) -> Vec<Log> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn append(&self, records: Vec<Record>) -> Appended {
        self.0.lock().unwrap().last_mut().unwrap().append(records)
    }

    /// Appends an event like another program.
    pub(crate) fn append_event(&self, topic: &str, data: &str) {
        let event = Event::new(data).encode();
        self.append(vec![Record::new(topic, RecordKind::Event, event)]);
    }

    fn append_if_unchanged(&self, records: Vec<Record>, epoch: u64, since: Position) -> Option<Appended> {
        let mut logs = self.0.lock().unwrap();
        let log = logs.last_mut().unwrap();
        let appended = now(log.backend.append_if_unchanged(records.clone(), epoch, since)).unwrap()?;
        log.note(records);
        Some(appended)
    }
}

impl Log {
    fn append(&mut self, records: Vec<Record>) -> Appended {
        let appended = now(self.backend.append(records.clone())).unwrap();
        self.note(records);
        appended
    }

    fn note(&mut self, records: Vec<Record>) {
        let first = self.bounds.last.get() + 1;
        self.all.extend((first..).zip(records));
        self.bounds = now(self.backend.bounds()).unwrap();
    }

    /// Returns the retained records.
    pub(crate) fn held(&self) -> Vec<Record> {
        self.all.range(self.bounds.evicted_through.get() + 1..).map(|(_, record)| record.clone()).collect()
    }
}

impl Faulty {
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    async fn answered<T>(&self, answer: impl AsyncFnOnce(MemoryBackend) -> Result<T, BoxError>) -> Result<T, BoxError> {
        let mut mode = self.mode.subscribe();
        let works = *mode.wait_for(|mode| *mode != Mode::Hangs).await?;
        if works == Mode::Fails {
            return Err("there is no connection".into());
        }
        let backend = self.shared.backend();
        let answer = tokio::select! {
            biased;
            answer = answer(backend) => answer,
            _ = mode.wait_for(|mode| *mode == Mode::Fails) => Err("the connection is lost".into()),
        };
        // A request that was sent before the connection hangs gets no response, either.
        match *mode.wait_for(|mode| *mode != Mode::Hangs).await? {
            Mode::Fails => Err("the connection is lost".into()),
            _ => answer,
        }
    }

    /// Waits for half of the latency.
    async fn wait(&self) {
        match self.latency.load(Relaxed) {
            0 => {}
            milliseconds => tokio::time::sleep(Duration::from_millis(milliseconds) / 2).await,
        }
    }

    fn check_refusal(&self, records: &[Record]) -> Result<(), BoxError> {
        let is_large = |record: &Record| record.event.ends_with(b"large\n\n") || record.topic.ends_with("large");
        let refusal = match self.mode() {
            Mode::Refuses if records.iter().any(is_large) => "the record is too big",
            Mode::ReadsOnly => "the log is read-only",
            _ => return Ok(()),
        };
        self.asked.refusals.fetch_add(1, Relaxed);
        Err(refusal.into())
    }

    /// Returns the position up to which the log seems to have evicted its records.
    fn missed(&self) -> Position {
        Position::new(self.missed.load(Relaxed))
    }

    fn cut(&self, mut page: Page) -> Page {
        let size = self.page.load(Relaxed).max(1);
        if page.records.len() > size {
            page.records.truncate(size);
            page.through = page.records[size - 1].0;
        }
        page
    }
}

impl Backend for Faulty {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.asked.bounds.fetch_add(1, Relaxed);
        let bounds = self.answered(async |backend| backend.bounds().await).await;
        self.wait().await;
        self.wait().await;
        let mut bounds = bounds?;
        bounds.evicted_through = bounds.evicted_through.max(self.missed());
        Ok(bounds)
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.check_refusal(&records)?;
        let is_slow = |record: &Record| String::from_utf8_lossy(&record.event).contains("slow");
        if self.mode() == Mode::IsSlow && records.iter().any(is_slow) {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        self.wait().await;
        let appended = self.answered(async |_| Ok(self.shared.append(records))).await?;
        self.wait().await;
        match *self.mode.borrow() {
            Mode::LosesAnswers => Err("the connection is lost".into()),
            _ => Ok(appended),
        }
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        self.check_refusal(&records)?;
        if records.iter().map(|record| record.event.len()).sum::<usize>() > self.max_bytes.load(Relaxed) {
            self.asked.refusals.fetch_add(1, Relaxed);
            return Err("the records are too big".into());
        }
        let append = async |_| {
            let is_retained = self.missed() <= since;
            Ok(if is_retained { self.shared.append_if_unchanged(records, epoch, since) } else { None })
        };
        let appended = self.answered(append).await?;
        if self.mode() == Mode::IsLate {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        match *self.mode.borrow() {
            Mode::LosesAnswers => Err("the connection is lost".into()),
            _ => Ok(appended),
        }
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.asked.reads.fetch_add(1, Relaxed);
        let _at_once = Held::new(&self.asked.reads_at_once);
        self.asked.most_reads_at_once.fetch_max(self.asked.reads_at_once.load(Relaxed), Relaxed);
        match self.delay.load(Relaxed) {
            0 => tokio::task::yield_now().await,
            milliseconds => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
        }
        let page = self.answered(async |backend| backend.read(topics, after).await).await?;
        Ok(self.cut(page))
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let _held = Held::new(&self.asked.follows);
        self.followed.store(after.get(), Relaxed);
        loop {
            self.mode.subscribe().wait_for(|mode| *mode != Mode::Lags).await?;
            let page = self.answered(async |backend| backend.follow(after).await).await?;
            match self.lag.load(Relaxed) {
                0 => {}
                milliseconds => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
            }
            // A request that was sent before the node lags is repeated, so its page is not old.
            if self.mode() != Mode::Lags {
                let mut page = self.cut(page);
                let missed = self.missed();
                page.records.retain(|(position, _)| *position > missed);
                page.evicted_through = page.evicted_through.max(missed);
                page.through = page.through.max(missed);
                return Ok(page);
            }
        }
    }
}

struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Returns the output of a future that is ready.
fn now<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("it does not wait")
}
