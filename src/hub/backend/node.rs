//! The part of a hub that uses its backend: the follower, history reads and appends.

use super::{
    Appended, Bounds, Erased, IdFormat, Page, Record, RecordKind, RunError, outage::Outage, single_flight::SingleFlight,
};
use crate::{
    BoxError, EncodedEvents, Event, EventId,
    hub::{Error, Start, core::Core, cursor::Epoch},
    metrics, random, trace,
};
use bytes::Bytes;
use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, yield_now},
    time::{sleep, timeout},
};

/// The pause of the follower after an error: at first, and at most. With at most 0.4 s, more than
/// half a second is left to deliver a record within a second after an outage.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(400)];

/// The follower asks for the bounds of the log after so long without a record.
const QUIET: Duration = Duration::from_secs(2);

/// The number of times that the bounds may show a record that `follow` does not return, before the
/// follower calls `follow` again. The number doubles each time, because a page may take that long.
const PATIENCE: u32 = 3;

/// The time limit of a request. Backends have shorter timeouts of their own; this limit is for
/// those without.
const LONGEST: Duration = Duration::from_secs(10);

/// The time limit for the initial read in [`connect`](Node::connect).
const CATCH_UP: Duration = Duration::from_secs(5);

/// The number of history reads that the backend gets at the same time. Further reads wait.
const MAX_CONCURRENT_READS: usize = 8;

/// The number of history reads that run or wait, each for other topics or another position. A new
/// subscription that needs one more is an error, [`Overloaded`](crate::hub::ErrorKind::Overloaded).
///
/// With 5 ms per read, the last of 1,024 waits for 0.7 s. Requests for the same read share one of
/// them, and a read that no client waits for any more leaves the queue immediately.
pub(in crate::hub) const MAX_QUEUED_READS: usize = 1_024;

/// The connection of a hub to its backend.
pub(in crate::hub) struct Node {
    backend: Arc<dyn Erased>,
    known: Mutex<Known>,
    bounds: SingleFlight<(), Bounds>,
    bounds_outage: Arc<Outage>,
    reads: SingleFlight<Place, Arc<Part>>,
    reads_outage: Arc<Outage>,
    /// The last logged state: whether reads are rejected.
    is_overloaded: AtomicBool,
    /// The runtime that the hub was connected in.
    runtime: OnceLock<Handle>,
    reader: OnceLock<AbortHandle>,
}

/// The state of the log that this node knows of, whether the follower has read it or not.
#[derive(Default)]
struct Known {
    /// The other fields belong to the log with this epoch.
    epoch: u64,
    /// The greatest known position. The log may have greater ones.
    last: u64,
    /// Eviction watermark: the backend may have evicted records up to and including this position.
    evicted_through: u64,
    /// The topics that this node has finished, and the positions of their ends, until the follower
    /// has read them.
    finished: HashMap<Arc<str>, u64>,
}

/// The key of a history read: topics, and the position after which to read.
type Place = (Arc<[Arc<str>]>, u64);

/// A page for subscriptions, encoded once for all that need the same page.
pub(in crate::hub) struct Part {
    pub(in crate::hub) epoch: Epoch,
    pub(in crate::hub) evicted_through: u64,
    pub(in crate::hub) through: u64,
    /// The position of the first event.
    pub(in crate::hub) first: Option<u64>,
    pub(in crate::hub) events: EncodedEvents,
    /// The topics that have a record in the page. The value is the position of the last record if
    /// that finishes the topic, or 0.
    pub(in crate::hub) topics: HashMap<Arc<str>, u64>,
}

/// The end of the log, as far as this node knows it.
pub(in crate::hub) struct End {
    pub(in crate::hub) epoch: Epoch,
    /// The greatest known position.
    pub(in crate::hub) last: u64,
    /// Set if the log may have greater positions, because the backend did not respond.
    pub(in crate::hub) is_unsure: bool,
}

impl Node {
    pub(in crate::hub) fn new(backend: Arc<dyn Erased>) -> Self {
        Self {
            backend,
            known: Mutex::default(),
            bounds: SingleFlight::new(1, 1),
            bounds_outage: Arc::new(Outage::of("bounds")),
            reads: SingleFlight::new(MAX_CONCURRENT_READS, MAX_QUEUED_READS),
            reads_outage: Arc::new(Outage::of("read")),
            is_overloaded: AtomicBool::new(false),
            runtime: OnceLock::new(),
            reader: OnceLock::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::hub) fn id_format(&self) -> IdFormat {
        self.backend.id_format()
    }

    fn epoch(&self, bits: u64) -> Epoch {
        Epoch::of(bits, self.id_format())
    }

    /// Reads the retained log, and starts the follower, which runs until the hub is dropped.
    ///
    /// Reading the whole log takes longer than starting at its end: 0.3 s for a million records in
    /// memory. But then the node knows the finished topics and the newest states, and serves
    /// returning clients without the backend. The follower reads the rest if that takes longer than
    /// [`CATCH_UP`]. Meanwhile the node serves clients as a node that is behind, and loses nothing.
    pub(in crate::hub) async fn connect(&self, core: &Arc<Core>) -> Result<(), BoxError> {
        let runtime = Handle::try_current()?;
        let bounds = in_time(self.backend.bounds()).await?;
        core.begin_anew(&bounds);
        let mut after = bounds.evicted_through;
        let catch_up = async {
            while after < bounds.last {
                let page = self.backend.follow(after).await?;
                if page.epoch != bounds.epoch {
                    break;
                }
                after = page.through;
                core.deliver(page);
                // A backend that never waits would block the other tasks of this thread.
                yield_now().await;
            }
            Ok::<_, BoxError>(())
        };
        timeout(CATCH_UP, catch_up).await.unwrap_or(Ok(()))?;
        let reader = runtime.spawn(follow(Arc::clone(&self.backend), Arc::downgrade(core), after, bounds.epoch));
        self.reader.get_or_init(|| reader.abort_handle());
        self.runtime.get_or_init(|| runtime);
        Ok(())
    }

    pub(in crate::hub) fn stop(&self) {
        self.reader.get().inspect(|reader| reader.abort());
    }

    /// Switches to another log. Returns its epoch.
    pub(in crate::hub) fn begin_anew(&self, bounds: &Bounds) -> Epoch {
        let Bounds { epoch, evicted_through, last } = *bounds;
        *self.known() = Known { epoch, last, evicted_through, finished: HashMap::new() };
        self.epoch(epoch)
    }

    pub(in crate::hub) fn evicted_through(&self) -> u64 {
        self.known().evicted_through
    }

    /// Raises the eviction watermark of the log with this epoch.
    pub(in crate::hub) fn advance_evicted(&self, epoch: Epoch, through: u64) {
        let mut known = self.known();
        if self.epoch(known.epoch) == epoch {
            known.evicted_through = known.evicted_through.max(through);
        }
    }

    /// Returns the end of the log. Asks the backend if the client has a greater position than this
    /// node knows.
    pub(in crate::hub) async fn end(&self, core: &Core, start: &Start) -> End {
        let known = |is_unsure| {
            let known = self.known();
            End { epoch: self.epoch(known.epoch), last: known.last, is_unsure }
        };
        let end = known(false);
        match start {
            Start::After(id) if end.epoch.number(id).is_ok_and(|claimed| claimed > end.last.max(core.committed())) => {}
            _ => return end,
        }
        let Some(bounds) = self.bounds().await else { return known(true) };
        let mut there = self.known();
        // The follower does not know the other log yet, so no position in it is certain.
        if bounds.epoch != there.epoch {
            drop(there);
            return known(true);
        }
        there.last = there.last.max(bounds.last);
        there.evicted_through = there.evicted_through.max(bounds.evicted_through);
        End { epoch: end.epoch, last: there.last, is_unsure: false }
    }

    async fn bounds(&self) -> Option<Bounds> {
        let (backend, outage) = (Arc::clone(&self.backend), Arc::clone(&self.bounds_outage));
        let bounds = move || {
            let (backend, outage) = (Arc::clone(&backend), Arc::clone(&outage));
            async move { outage.watch(in_time(backend.bounds())).await.ok() }
        };
        self.bounds.run(self.runtime.get()?, (), bounds).await.ok()
    }

    /// Reads one page of these topics after a position from the backend.
    pub(in crate::hub) async fn read(&self, topics: Arc<[Arc<str>]>, after: u64) -> Result<Arc<Part>, RunError> {
        let runtime = self.runtime.get().ok_or(RunError::Failed)?;
        let place = (topics.clone(), after);
        let (backend, outage) = (Arc::clone(&self.backend), Arc::clone(&self.reads_outage));
        let page = move || {
            let (backend, outage, topics) = (Arc::clone(&backend), Arc::clone(&outage), Arc::clone(&topics));
            async move {
                let page = outage.watch(in_time(backend.read(&topics, after))).await.ok()?;
                Some(Arc::new(Part::new(page, backend.id_format())))
            }
        };
        let part = self.reads.run(runtime, place, page).await;
        match part {
            Err(RunError::Full) => self.read_was_rejected(),
            _ => self.read_was_accepted(),
        }
        part
    }

    fn read_was_rejected(&self) {
        metrics::read_rejected();
        if !self.is_overloaded.swap(true, Ordering::Relaxed) {
            trace::reads_rejected(MAX_QUEUED_READS);
        }
    }

    /// Logs the end of an overload once half of the queue is free, so that a queue whose length is
    /// about the limit does not log each read.
    fn read_was_accepted(&self) {
        let is_over = self.is_overloaded.load(Ordering::Relaxed) && self.reads.len() <= MAX_QUEUED_READS / 2;
        if is_over && self.is_overloaded.swap(false, Ordering::Relaxed) {
            trace::reads_accepted();
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
        let Appended { epoch, position } = self.append(core, topic, events.into_iter().map(record).collect()).await?;
        Ok(Some(self.epoch(epoch).id(position)))
    }

    pub(in crate::hub) async fn finish(&self, core: &Core, topic: &Arc<str>) -> Result<(), Error> {
        let finish = Record { topic: topic.clone(), kind: RecordKind::Finish, event: Bytes::new() };
        let Appended { epoch, position } = match self.append(core, topic, vec![finish]).await {
            Err(error) if error.is_finished() => return Ok(()),
            other => other?,
        };
        let mut known = self.known();
        if known.epoch == epoch {
            known.finished.insert(topic.clone(), position);
        }
        drop(known);
        // The follower may have read the end meanwhile.
        self.was_read(core.committed());
        Ok(())
    }

    /// Returns whether this node has finished the topic and has not read that yet.
    pub(in crate::hub) fn is_finished(&self, topic: &str) -> bool {
        self.known().finished.contains_key(topic)
    }

    /// Forgets the ends of topics that the follower has read.
    pub(in crate::hub) fn was_read(&self, through: u64) {
        let mut known = self.known();
        if !known.finished.is_empty() {
            known.finished.retain(|_, position| *position > through);
        }
    }

    /// Appends records. The log that stored them may be newer than the log that this node follows.
    async fn append(&self, core: &Core, topic: &Arc<str>, records: Vec<Record>) -> Result<Appended, Error> {
        core.can_publish(topic)?;
        // The publisher gets the error, so it is counted and not logged.
        let appended = in_time(self.backend.append(records)).await.map_err(|source| {
            metrics::backend_failed("publish");
            Error::backend(topic, source)
        })?;
        let mut known = self.known();
        if known.epoch == appended.epoch {
            known.last = known.last.max(appended.position);
        }
        Ok(appended)
    }
}

impl Part {
    fn new(page: Page, ids: IdFormat) -> Self {
        let epoch = Epoch::of(page.epoch, ids);
        let mut topics = HashMap::new();
        let mut states = HashSet::new();
        let mut events = Vec::with_capacity(page.records.len());
        let mut first = None;
        for (position, record) in page.records.into_iter().rev() {
            let end = if record.kind == RecordKind::Finish { position } else { 0 };
            topics.entry(record.topic.clone()).or_insert(end);
            match record.kind {
                RecordKind::Finish => continue,
                // The newest state replaces earlier states.
                RecordKind::State if !states.insert(record.topic) => continue,
                _ => {}
            }
            let Some(event) = Event::from_wire(&record.event) else { continue };
            events.push(event.id(epoch.id(position)));
            first = Some(position);
        }
        let events = events.into_iter().rev().collect();
        Self { epoch, evicted_through: page.evicted_through, through: page.through, first, events, topics }
    }
}

/// Runs the follower: reads the log page by page, until the hub is dropped.
async fn follow(backend: Arc<dyn Erased>, core: Weak<Core>, mut after: u64, mut epoch: u64) {
    let [mut pause, longest] = PAUSES;
    let mut patience = PATIENCE;
    let outage = Outage::of("follow");
    loop {
        match next(&*backend, after, epoch, &mut patience, &outage).await {
            Ok(page) if page.epoch == epoch => {
                let Some(core) = core.upgrade() else { return };
                outage.succeeded();
                (pause, patience) = (PAUSES[0], PATIENCE);
                after = page.through;
                core.deliver(page);
                drop(core);
                yield_now().await;
                continue;
            }
            Ok(_) => {}
            Err(error) => outage.failed(&error),
        }
        // After an outage the log may be another one, so its epoch is checked before the next page.
        let bounds = loop {
            sleep(pause.mul_f64(0.5 + random::part() / 2.0)).await;
            pause = longest.min(pause * 2);
            match in_time(backend.bounds()).await {
                Ok(bounds) => break bounds,
                Err(error) => outage.failed(&error),
            }
        };
        let Some(core) = core.upgrade() else { return };
        if bounds.epoch != epoch || bounds.last < after {
            (epoch, after) = (bounds.epoch, bounds.evicted_through);
            core.begin_anew(&bounds);
        }
    }
}

/// Waits for the next page. Compares the bounds of the log with `after` every two seconds, because
/// a connection can be lost without an error.
async fn next(
    backend: &dyn Erased,
    after: u64,
    epoch: u64,
    patience: &mut u32,
    outage: &Outage,
) -> Result<Page, BoxError> {
    let mut page = pin!(backend.follow(after));
    let mut missed = 0;
    while missed < *patience {
        if let Ok(page) = timeout(QUIET, page.as_mut()).await {
            return page;
        }
        let mut bounds = pin!(in_time(backend.bounds()));
        let bounds = poll_fn(|cx| match page.as_mut().poll(cx) {
            Poll::Ready(page) => Poll::Ready(Err(page)),
            Poll::Pending => bounds.as_mut().poll(cx).map(Ok),
        });
        match bounds.await {
            Err(page) => return page,
            Ok(Ok(bounds)) if bounds.epoch != epoch => return Err("the log is another one than before".into()),
            Ok(Ok(bounds)) if bounds.last == after => {
                missed = 0;
                outage.succeeded();
            }
            Ok(Ok(_)) => missed += 1,
            Ok(Err(error)) => outage.failed(&error),
        }
    }
    *patience = patience.saturating_mul(2);
    Err("the backend does not hand out what is in the log".into())
}

/// Waits for a response of the backend, at most [`LONGEST`].
async fn in_time<T>(answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    timeout(LONGEST, answer).await?
}
