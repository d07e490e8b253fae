//! The client of the backend: it appends records, reads old records, and remembers where the log
//! ends.

use super::{
    dyn_backend::DynBackend,
    removals::{Removal, Removals},
    single_flight::{RunError, SingleFlight},
};
use crate::{
    BoxError, EncodedEvents, Event, EventId,
    hub::{
        backend::{Appended, Bounds, IdFormat, Page, Position, Record, RecordKind},
        error::Error,
        id::Epoch,
        item::{self, Runs},
        outage::Outage,
        start::Start,
    },
    metrics, trace,
};
use bytes::Bytes;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::poll_fn,
    iter, mem,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::timeout,
};

/// The time limit of a request to the backend: 10 seconds. It matters only for a backend that has
/// no shorter timeout of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of history reads (reads of old events from the backend) that run at the same
/// time. Further reads wait until a running read ends.
const MAX_CONCURRENT_READS: usize = 8;

/// The maximum number of different history reads that run or wait in a queue. A history read gets
/// old events, which the local node does not have in memory, from the backend. Two reads are
/// different if their topics or their start positions differ. Requests for the same read share one
/// read.
///
/// At this limit, a new subscription that needs one more read fails with
/// [`Overloaded`](crate::hub::ErrorKind::Overloaded). With 5 ms per read, and 8 reads at the same
/// time ([`MAX_CONCURRENT_READS`]), the last of 1,024 reads waits for about 0.6 s. A read leaves
/// the queue immediately when no client waits for its result any more.
pub(in crate::hub) const MAX_QUEUED_READS: usize = 1_024;

/// The number of replaced logs that a node remembers, by their epochs. An epoch is the number that
/// identifies one log. A client with an event id of such a log gets a gap at once: it does not wait
/// for the node to switch to another log.
const MAX_LEFT: usize = 16;

/// The maximum time that a new subscription waits until the local node switches to the log of the
/// client's `Last-Event-ID`. The wait is for the case that this log has replaced the log that the
/// local node still follows, and that another node has already switched to it.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of the backend, for one hub: it appends records, reads old records, and remembers where
/// the log ends. The backend is the log that several processes share.
pub(in crate::hub) struct BackendClient {
    backend: Arc<dyn DynBackend>,
    state: Arc<Mutex<LogState>>,
    bounds: SingleFlight<(), Bounds>,
    bounds_outage: Arc<Outage>,
    reads: SingleFlight<ReadKey, Arc<EncodedPage>>,
    reads_outage: Arc<Outage>,
    /// Set while the queue of history reads (reads of old events) counts as overloaded: from the
    /// first read that is rejected because the queue is full, until at least half of the queue is
    /// free. The begin and the end of each overload are then logged only once.
    is_overloaded: AtomicBool,
    /// The tokio runtime for requests to the backend and for tasks of the hub. Set when the hub
    /// connects to its backend.
    runtime: OnceLock<Handle>,
    follower: OnceLock<AbortHandle>,
    /// Asks the follower, the task that reads the log, to check at once whether another log has
    /// replaced the log.
    check: Arc<Notify>,
    /// The epoch of the log that the local node follows: the number that identifies this log.
    /// `None` after [`stop`](Self::stop) has ended the task that reads the log: the node then
    /// switches to no other log.
    followed: watch::Sender<Option<u64>>,
}

/// The state of the log, as far as the local node knows it from responses of the backend. A node is
/// one of several hubs that share the log. The state can be newer than the records that the
/// follower, the task that reads the log, has read so far.
#[derive(Default)]
struct LogState {
    /// Set once the local node has begun to follow a log: to read its records as they arrive.
    is_known: bool,
    /// The number of times that the local node has begun to follow a log.
    resets: u64,
    /// The epoch of the log: the number that identifies it. The other fields of this struct
    /// describe this log, except `left`, which lists earlier logs.
    epoch: u64,
    /// The greatest position of the log that the local node knows. The log may have greater
    /// positions.
    last: Position,
    /// The backend may have evicted (removed by retention) the records up to and including this
    /// position.
    evicted_through: Position,
    /// The newest record that finishes or removes a topic, by topic. Contains only records that the
    /// local node has appended and that its follower, the task that reads the log, has not read
    /// yet. After the follower has read the record, the topic itself stores that it is finished.
    unread_ends: HashMap<Arc<str>, UnreadEnd>,
    /// The position of the last record that the follower, the task that reads the log, has added to
    /// the topics. If the response to an append arrives after the follower has read the appended
    /// record, `unread_ends` gets no entry for this record.
    followed_through: Position,
    removals: Removals,
    /// The logs that the local node has followed before this log: up to 16, oldest first. Each log
    /// is stored as its epoch, the number that identifies it.
    left: VecDeque<u64>,
}

/// A record that finishes or removes a topic, and that the follower of the local node, the task
/// that reads the log, has not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnreadEnd {
    position: Position,
    is_removal: bool,
}

/// The key under which identical history reads are shared: the topics, and the position after which
/// to read.
type ReadKey = (Arc<[Arc<str>]>, Position);

/// One page of old records: the result of one read from the backend, with its events encoded as
/// wire bytes. All subscriptions that need the same page share it.
pub(in crate::hub) struct EncodedPage {
    pub(in crate::hub) epoch: Epoch,
    pub(in crate::hub) evicted_through: Position,
    pub(in crate::hub) through: Position,
    /// The position of the first event in this page of old records. `None` if the page has no
    /// event.
    pub(in crate::hub) first: Option<Position>,
    /// The position of the last event in this page of old records. `None` if the page has no event.
    pub(in crate::hub) last: Option<Position>,
    pub(in crate::hub) events: EncodedEvents,
    /// The topics of the events in this page of old records, as runs: the name of a topic, and how
    /// many consecutive events of the page belong to it.
    pub(in crate::hub) runs: Runs,
    /// The topics that have records in this page (the result of one read of the log). If the last
    /// record of a topic in the page finishes the topic, the value is the position of this record.
    /// Otherwise, the value is `None`.
    pub(in crate::hub) topics: HashMap<Arc<str>, Option<Position>>,
    /// The topics whose last record in this page of the log is a removal of the topic.
    removed: HashSet<Arc<str>>,
    /// The newest removal of each requested topic, as far as the local node has read the log. This
    /// page of old records contains no event of a topic from before its removal. Topics that were
    /// never removed are not in the map.
    pub(in crate::hub) removals: HashMap<Arc<str>, Removal>,
}

/// The end of the log, as far as the local node knows it from responses of the backend. A new
/// subscription compares the id of its client with this end. An id after the end is not from this
/// log, except if the end may be outdated (see [`is_unsure`](Self::is_unsure)).
pub(in crate::hub) struct LogEnd {
    pub(in crate::hub) epoch: Epoch,
    /// The greatest position of the log that the local node knows.
    pub(in crate::hub) last: Position,
    /// `true` if the log may have positions after [`last`](Self::last), because the backend did not
    /// respond, another log has replaced the log, or the hub is shut down.
    pub(in crate::hub) is_unsure: bool,
}

impl BackendClient {
    pub(in crate::hub) fn new(backend: Arc<dyn DynBackend>) -> Self {
        Self {
            backend,
            state: Arc::default(),
            bounds: SingleFlight::new(1, 1),
            bounds_outage: Arc::new(Outage::of("bounds")),
            reads: SingleFlight::new(MAX_CONCURRENT_READS, MAX_QUEUED_READS),
            reads_outage: Arc::new(Outage::of("read")),
            is_overloaded: AtomicBool::new(false),
            runtime: OnceLock::new(),
            follower: OnceLock::new(),
            check: Arc::default(),
            followed: watch::Sender::new(Some(0)),
        }
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        lock(&self.state)
    }

    pub(in crate::hub) fn id_format(&self) -> IdFormat {
        self.backend.id_format()
    }

    fn epoch(&self, bits: u64) -> Epoch {
        Epoch::of(bits, self.id_format())
    }

    /// Stores a handle to the follower, the task that reads the log, so that [`stop`](Self::stop)
    /// can abort the task. Later calls have no effect.
    pub(super) fn set_follower(&self, follower: AbortHandle) {
        self.follower.get_or_init(|| follower);
    }

    /// Stores the tokio runtime for requests to the backend and for tasks of the hub. Later calls
    /// have no effect.
    pub(super) fn set_runtime(&self, runtime: &Handle) {
        self.runtime.get_or_init(|| runtime.clone());
    }

    pub(super) fn backend(&self) -> Arc<dyn DynBackend> {
        Arc::clone(&self.backend)
    }

    /// Aborts the follower, the task that reads the log, and ends the waits in
    /// [`unless_stopped`](Self::unless_stopped). The caller holds no lock.
    pub(in crate::hub) fn stop(&self) {
        self.follower.get().inspect(|follower| follower.abort());
        self.followed.send_replace(None);
    }

    /// Replaces the stored state of the log, because the node switches to another log. `bounds` has
    /// the state of the other log: its last position, the greatest position that it may have
    /// evicted, and its epoch, the number that identifies it. Returns this epoch.
    pub(in crate::hub) fn reset(&self, bounds: &Bounds) -> Epoch {
        let Bounds { epoch, evicted_through, last } = *bounds;
        let mut state = self.state();
        let mut left = mem::take(&mut state.left);
        left.extend(state.is_known.then_some(state.epoch));
        left.drain(..left.len().saturating_sub(MAX_LEFT));
        let resets = state.resets + 1;
        *state = LogState { is_known: true, resets, epoch, last, evicted_through, left, ..LogState::default() };
        drop(state);
        self.epoch(epoch)
    }

    /// Wakes the subscriptions that wait for the node to switch to another log: the node now
    /// follows the log that `epoch` identifies. Has no effect after [`stop`](Self::stop). The
    /// caller has called [`reset`](Self::reset) before, and holds no lock.
    pub(in crate::hub) fn announce_reset(&self, epoch: u64) {
        self.followed.send_modify(|followed| *followed = followed.and(Some(epoch)));
    }

    pub(in crate::hub) fn evicted_through(&self) -> Position {
        self.state().evicted_through
    }

    /// Notes that the log that `epoch` identifies has evicted its records up to and including
    /// `through`. Has no effect if the node has switched to another log.
    pub(in crate::hub) fn advance_evicted(&self, epoch: Epoch, through: Position) {
        let mut state = self.state();
        if self.epoch(state.epoch) == epoch {
            state.evicted_through = state.evicted_through.max(through);
        }
    }

    /// Notes that a topic was removed, so that later reads of the log leave out its earlier events.
    /// The caller deletes these events from memory after this call.
    pub(in crate::hub) fn note_removal(&self, topic: &Arc<str>, removal: Removal) {
        self.state().removals.note(topic, removal);
    }

    /// Returns the eviction watermark of a removed topic: its events up to this position may be
    /// missing. Returns [`Position::START`] if the local node knows of no removal of the topic.
    pub(in crate::hub) fn removed_through(&self, topic: &str) -> Position {
        self.state().removals.get(topic).map_or(Position::START, |removal| removal.evicted_through)
    }

    /// Returns `true` if the local node knows that the topic was removed after the position
    /// `position`.
    pub(in crate::hub) fn is_removed_after(&self, topic: &str, position: Position) -> bool {
        self.state().removals.get(topic).is_some_and(|removal| removal.at > position)
    }

    /// Returns the position after which a read of these topics can begin. This is usually `after`.
    /// The records of a topic before its removal are hidden. So if all of the topics were removed
    /// after `after`, the read can begin at the earliest of these removals.
    pub(in crate::hub) fn after_removed(&self, topics: &[Arc<str>], after: Position) -> Position {
        let state = self.state();
        let after_removal = |topic| state.removals.get(topic).map_or(after, |removal| removal.at.max(after));
        topics.iter().map(|topic| after_removal(topic)).min().unwrap_or(after)
    }

    /// Forgets each removal of a topic whose record the log has evicted: the position of this
    /// record is at or before `evicted_through`. The log has then also evicted all earlier records
    /// of the topic, so the removal has no records to hide any more.
    pub(in crate::hub) fn forget_removals(&self, evicted_through: Position) {
        self.state().removals.forget_through(evicted_through);
    }

    /// Returns the end of the log for a new subscription that begins at `start`. `committed` is the
    /// last position that the local node has read and delivered.
    ///
    /// If `start` is an id after every position that the local node knows, the function first asks
    /// the backend for the current end. If the backend does not respond, another log has replaced
    /// the log, or the hub is shut down, [`LogEnd::is_unsure`] is `true`.
    pub(in crate::hub) async fn end(&self, committed: Position, start: &Start) -> LogEnd {
        let end = |is_unsure| {
            let state = self.state();
            LogEnd { epoch: self.epoch(state.epoch), last: state.last, is_unsure }
        };
        let known = end(false);
        match start {
            Start::After(id) if known.epoch.position(id).is_ok_and(|claimed| claimed > known.last.max(committed)) => {}
            _ => return known,
        }
        let bounds = self.unless_stopped(self.bounds()).await.flatten();
        let Some(bounds) = bounds else { return end(true) };
        let mut state = self.state();
        // The follower does not know the other log yet, so no position in it is certain.
        if bounds.epoch != state.epoch {
            drop(state);
            return end(true);
        }
        state.last = state.last.max(bounds.last);
        state.evicted_through = state.evicted_through.max(bounds.evicted_through);
        LogEnd { epoch: known.epoch, last: state.last, is_unsure: false }
    }

    /// Waits until the local node has switched to the log that has issued a client's event id, if
    /// this log is new to the node. Such a client has got the id from another node, which has
    /// switched earlier. Without this wait, the client would get a gap, and then all events of the
    /// new log again. `has_issued(epoch)` returns `true` if the id can be from the log that `epoch`
    /// identifies.
    ///
    /// Returns at once if the id is from the current log of the node, or from an earlier log of the
    /// node. The wait ends after two seconds ([`SWITCH_TIMEOUT`]), and when the hub shuts down.
    pub(in crate::hub) async fn await_log(&self, has_issued: impl Fn(Epoch) -> bool) {
        let is_known = {
            let state = self.state();
            iter::once(&state.epoch).chain(&state.left).any(|epoch| has_issued(self.epoch(*epoch)))
        };
        if is_known || self.runtime.get().is_none() {
            return;
        }
        let mut followed = self.followed.subscribe();
        let wait = self.unless_stopped(async {
            let Some(Bounds { epoch, .. }) = self.bounds().await else { return };
            if has_issued(self.epoch(epoch)) {
                self.check.notify_one();
                // The client owns the sender. The guard is dropped at once.
                drop(followed.wait_for(|followed| *followed == Some(epoch)).await);
            }
        });
        let wait = self.in_runtime(|| timeout(SWITCH_TIMEOUT, wait));
        let _the_client_gets_a_gap = wait.await;
    }

    /// Returns the output of `wait`, or `None` if [`stop`](Self::stop) is called before or during
    /// the wait. A shutdown of the hub calls `stop`, so the wait does not outlast the hub.
    pub(in crate::hub) async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut followed = self.followed.subscribe();
        // The client owns the sender. The guard is dropped at once.
        let mut stop = pin!(async { drop(followed.wait_for(Option::is_none).await) });
        let mut wait = pin!(wait);
        poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => wait.as_mut().poll(cx).map(Some),
        })
        .await
    }

    /// Returns the [`Notify`] that asks the follower, the task that reads the log, to check whether
    /// another log has replaced the log.
    pub(super) fn checks(&self) -> Arc<Notify> {
        Arc::clone(&self.check)
    }

    async fn bounds(&self) -> Option<Bounds> {
        let (backend, outage) = (Arc::clone(&self.backend), Arc::clone(&self.bounds_outage));
        let bounds = move || {
            let (backend, outage) = (Arc::clone(&backend), Arc::clone(&outage));
            async move { outage.watch(in_time(backend.bounds())).await.ok() }
        };
        self.bounds.run(self.runtime.get()?, (), bounds).await.ok()
    }

    /// Reads one page of the records of `topics` from the backend: the next records after the
    /// position `after`, as many as the backend returns at once. Concurrent calls with the same
    /// arguments share one request.
    pub(in crate::hub) async fn read(
        &self,
        topics: Arc<[Arc<str>]>,
        after: Position,
    ) -> Result<Arc<EncodedPage>, RunError> {
        let runtime = self.runtime.get().ok_or(RunError::Failed)?;
        let key = (topics.clone(), after);
        let (backend, outage) = (Arc::clone(&self.backend), Arc::clone(&self.reads_outage));
        let state = Arc::clone(&self.state);
        let page = move || {
            let (backend, outage, topics) = (Arc::clone(&backend), Arc::clone(&outage), Arc::clone(&topics));
            let state = Arc::clone(&state);
            async move {
                // A removal is forgotten when the log evicts its record, which can happen during
                // the read.
                let mut removals = lock(&state).removals_of(&topics);
                let page = outage.watch(in_time(backend.read(&topics, after))).await.ok()?;
                // The watermark of a page can also be the end of a hole in the log, because a
                // client chooses `after`. Only the bounds show which records the log has evicted.
                if page.evicted_through > lock(&state).evicted_through {
                    let bounds = in_time(backend.bounds()).await.ok();
                    let mut state = lock(&state);
                    if let Some(bounds) = bounds.filter(|bounds| bounds.epoch == state.epoch) {
                        state.evicted_through = state.evicted_through.max(bounds.evicted_through);
                    }
                }
                let state = lock(&state);
                if state.epoch == page.epoch {
                    removals.extend(state.removals_of(&topics));
                } else {
                    removals.clear();
                }
                drop(state);
                Some(Arc::new(EncodedPage::new(page, removals, backend.id_format())))
            }
        };
        let page = self.reads.run(runtime, key, page).await;
        match page {
            Err(RunError::Full) => self.note_rejected_read(),
            _ => self.note_accepted_read(),
        }
        page
    }

    /// Returns `true` if one of these topics was removed after the old records in `page` were read
    /// from the backend. The page can then contain events from before the removal, which clients
    /// must not get any more.
    pub(in crate::hub) fn is_removed_since<'a>(
        &self,
        page: &EncodedPage,
        mut topics: impl Iterator<Item = &'a str>,
    ) -> bool {
        let state = self.state();
        let position = |removal: Removal| removal.at;
        !state.removals.is_empty()
            && topics
                .any(|topic| state.removals.get(topic).map(position) > page.removals.get(topic).copied().map(position))
    }

    fn note_rejected_read(&self) {
        metrics::read_rejected();
        if !self.is_overloaded.swap(true, Ordering::Relaxed) {
            trace::reads_rejected(MAX_QUEUED_READS);
        }
    }

    /// Logs the end of an overload of the queue of history reads, if at least half of the queue is
    /// free now. Called after each read that was not rejected. If the end were logged as soon as
    /// the queue is not full, a queue near its limit would log at every read.
    fn note_accepted_read(&self) {
        let is_over = self.is_overloaded.load(Ordering::Relaxed) && self.reads.len() <= MAX_QUEUED_READS / 2;
        if is_over && self.is_overloaded.swap(false, Ordering::Relaxed) {
            trace::reads_accepted();
        }
    }

    /// Appends events to one topic, and returns the id of the last event. `kind` is the kind of
    /// their records: normal events, or states. A state replaces the previous event of the topic.
    /// The id is always `Some`. It is an `Option` because publishing in a hub without a backend has
    /// the same return type.
    pub(in crate::hub) async fn publish(
        &self,
        topic: &Arc<str>,
        kind: RecordKind,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Option<EventId>, Error> {
        let record = |event: Event| Record { topic: topic.clone(), kind, event: event.encode() };
        let Appended { epoch, position } = self.append(topic, events.into_iter().map(record).collect()).await?;
        Ok(Some(self.epoch(epoch).id(position)))
    }

    /// Spawns a task on the runtime of the hub. Returns `false` and drops the task if the hub is
    /// not connected to its backend yet.
    pub(in crate::hub) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        self.runtime.get().map(|runtime| runtime.spawn(task)).is_some()
    }

    /// Returns the tokio runtime of the hub, or `None` if the hub is not connected to its backend
    /// yet.
    pub(in crate::hub) fn runtime(&self) -> Option<Handle> {
        self.runtime.get().cloned()
    }

    /// Calls `create`, which creates a timer, inside the tokio runtime of the hub. The caller may
    /// be outside of a runtime, where creating a timer panics.
    pub(in crate::hub) fn in_runtime<T>(&self, create: impl FnOnce() -> T) -> T {
        let _context = self.runtime.get().map(Handle::enter);
        create()
    }

    /// Returns the greatest position of the log that the local node knows. The log may have greater
    /// positions, because other nodes append, too.
    pub(in crate::hub) fn last(&self) -> Position {
        self.state().last
    }

    /// Returns the epoch of the log that the local node follows: the number that identifies the
    /// log.
    pub(in crate::hub) fn epoch_bits(&self) -> u64 {
        self.state().epoch
    }

    /// Returns the number of times that the local node has begun to follow a log. The number
    /// changes when another log replaces the log. It also changes when the log keeps its epoch, the
    /// number that identifies it, but has lost its newest records.
    pub(in crate::hub) fn resets(&self) -> u64 {
        self.state().resets
    }

    /// Asks the backend for the last position of the log. Returns `None` if the backend does not
    /// respond, or if another log has replaced the log that the local node follows.
    pub(in crate::hub) async fn newest(&self) -> Option<Position> {
        let bounds = self.bounds().await?;
        (bounds.epoch == self.epoch_bits()).then_some(bounds.last)
    }

    pub(in crate::hub) async fn append_record(&self, record: Record) -> Result<Appended, Error> {
        self.append_records(vec![record]).await
    }

    /// Appends records of the same topic and kind to the log. The kind of a record is, for example,
    /// event, finish or removal.
    pub(in crate::hub) async fn append_records(&self, records: Vec<Record>) -> Result<Appended, Error> {
        let topic = records.first().map_or_else(|| "".into(), |record| record.topic.clone());
        self.append(&topic, records).await
    }

    /// Appends records if `epoch` still identifies the log (no other log has replaced it), and the
    /// log has no record of their topic after the position `since`. Otherwise appends nothing and
    /// returns `None`. See
    /// [`Backend::append_if_unchanged`](crate::hub::backend::Backend::append_if_unchanged).
    pub(in crate::hub) async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let end = ended_topic(&records);
        let appended = in_time(self.backend.append_if_unchanged(records, epoch, since)).await;
        let appended = appended.inspect_err(|_| metrics::backend_failed("publish"))?;
        if let Some(appended) = appended {
            self.note_appended(appended, end);
        }
        Ok(appended)
    }

    /// Appends the record that finishes the topic. Its subscriptions then end after its last event.
    pub(in crate::hub) async fn finish(&self, topic: &Arc<str>) -> Result<(), Error> {
        let finish = Record { topic: topic.clone(), kind: RecordKind::Finish, event: Bytes::new() };
        self.append(topic, vec![finish]).await?;
        Ok(())
    }

    /// Appends the record that removes the topic with its events. The topic then does not count as
    /// finished any more, even if the local node has not yet read an earlier record that finishes
    /// it.
    pub(in crate::hub) async fn remove(&self, topic: &Arc<str>) -> Result<Appended, Error> {
        let remove = Record { topic: topic.clone(), kind: RecordKind::Remove, event: Bytes::new() };
        self.append_record(remove).await
    }

    /// Returns `true` if the local node has appended a record that removes the topic, and the task
    /// that reads the log has not read this record yet.
    pub(in crate::hub) fn has_unread_removal(&self, topic: &str) -> bool {
        self.state().unread_ends.get(topic).is_some_and(|end| end.is_removal)
    }

    /// Returns `true` if the local node has appended the record that finishes the topic, and the
    /// task that reads the log has not read this record yet. Records from
    /// [`append_if_unchanged`](Self::append_if_unchanged) count, too.
    pub(in crate::hub) fn is_finished(&self, topic: &str) -> bool {
        self.state().unread_ends.get(topic).is_some_and(|end| !end.is_removal)
    }

    /// Forgets the finish and removal records of topics that the local node has appended, up to and
    /// including the position `through`. The caller must have read the log up to this position, and
    /// must have updated these topics.
    pub(in crate::hub) fn forget_ends(&self, through: Position) {
        let mut state = self.state();
        state.followed_through = state.followed_through.max(through);
        if !state.unread_ends.is_empty() {
            state.unread_ends.retain(|_, end| end.position > through);
        }
    }

    /// Appends records to `topic`. Returns the position of the last record, and the epoch of the
    /// log that has stored them: the number that identifies the log. This log may already have
    /// replaced the log that the local node follows.
    async fn append(&self, topic: &Arc<str>, records: Vec<Record>) -> Result<Appended, Error> {
        let end = ended_topic(&records);
        // The error is counted but not logged, because the publisher gets it.
        let appended = in_time(self.backend.append(records)).await.map_err(|source| {
            metrics::backend_failed("publish");
            Error::backend(topic, source)
        })?;
        self.note_appended(appended, end);
        Ok(appended)
    }

    /// Updates the greatest known position of the log after an append. If the append has finished
    /// or removed a topic, `end` is this topic, and `true` for a removal. The topic then counts as
    /// finished or removed on the local node at once. Has no effect if the append went to another
    /// log than the log that the local node follows.
    fn note_appended(&self, appended: Appended, end: Option<(Arc<str>, bool)>) {
        let mut state = self.state();
        if state.epoch != appended.epoch {
            return;
        }
        state.last = state.last.max(appended.position);
        if let Some((topic, is_removal)) = end {
            state.note_end(topic, UnreadEnd { position: appended.position, is_removal });
        }
    }
}

impl LogState {
    /// Notes that the local node has appended a record that finishes or removes the topic. Has no
    /// effect if the follower, the task that reads the log, has already read the record. Also has
    /// no effect if a later such record of the topic is noted, because the responses to concurrent
    /// appends can arrive in another order than the records have in the log.
    fn note_end(&mut self, topic: Arc<str>, end: UnreadEnd) {
        let is_newest = self.unread_ends.get(&topic).is_none_or(|known| known.position < end.position);
        if end.position > self.followed_through && is_newest {
            self.unread_ends.insert(topic, end);
        }
    }

    /// Returns the newest removal of each of these topics, by topic, as far as the local node has
    /// read the log. A topic that was never removed is not in the result.
    fn removals_of(&self, topics: &[Arc<str>]) -> HashMap<Arc<str>, Removal> {
        if self.removals.is_empty() {
            return HashMap::new();
        }
        topics.iter().filter_map(|topic| Some((topic.clone(), self.removals.get(topic)?))).collect()
    }
}

/// Returns the topic that these records finish or remove, and `true` for a removal. Returns `None`
/// if the records are of another kind. All records have the same topic and kind.
fn ended_topic(records: &[Record]) -> Option<(Arc<str>, bool)> {
    let record = records.first()?;
    let is_removal = record.kind == RecordKind::Remove;
    (is_removal || record.kind == RecordKind::Finish).then(|| (record.topic.clone(), is_removal))
}

fn lock(state: &Mutex<LogState>) -> MutexGuard<'_, LogState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EncodedPage {
    fn new(mut page: Page, removals: HashMap<Arc<str>, Removal>, ids: IdFormat) -> Self {
        let epoch = Epoch::of(page.epoch, ids);
        let mut topics = HashMap::new();
        let mut removed = HashSet::new();
        let mut states = HashSet::new();
        let mut events = Vec::with_capacity(page.records.len());
        let (mut first, mut last) = (None, None);
        for (position, record) in mem::take(&mut page.records).into_iter().rev() {
            if removals.get(&record.topic).is_some_and(|removal| position <= removal.at) {
                continue;
            }
            let event = match record.kind {
                // A removal takes effect when the follower reads it.
                RecordKind::Finish | RecordKind::Remove => None,
                // Records are visited from the newest to the oldest. A newer state replaces the
                // earlier states of its topic.
                RecordKind::State if states.contains(&record.topic) => continue,
                RecordKind::Event | RecordKind::State => match Event::from_wire(&record.event) {
                    Some(event) => Some(event),
                    // Another program has written a record that is not an event. It has no effect.
                    None => continue,
                },
            };
            let end = (record.kind == RecordKind::Finish).then_some(position);
            let mut is_last = false;
            topics.entry(record.topic.clone()).or_insert_with(|| {
                is_last = true;
                end
            });
            if is_last && record.kind == RecordKind::Remove {
                removed.insert(record.topic.clone());
            }
            let Some(event) = event else { continue };
            if record.kind == RecordKind::State {
                states.insert(record.topic.clone());
            }
            events.push((record.topic, event.id(epoch.id(position))));
            first = Some(position);
            last = last.or(first);
        }
        let runs = item::runs(events.iter().rev().map(|(topic, _)| topic.clone()));
        let events = events.into_iter().rev().map(|(_, event)| event).collect();
        let Page { evicted_through, through, .. } = page;
        Self { epoch, evicted_through, through, first, last, events, runs, topics, removed, removals }
    }

    /// Returns `true` if this page of the log has records of the topic, and the last of these
    /// records does not remove the topic.
    pub(in crate::hub) fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic) && !self.removed.contains(topic)
    }
}

/// Waits for a response of the backend. Returns an error if there is no response within
/// [`REQUEST_TIMEOUT`].
pub(super) async fn in_time<T>(response: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    timeout(REQUEST_TIMEOUT, response).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_response_does_not_replace_newer_end() {
        let topic: Arc<str> = "a".into();
        for is_removal in [false, true] {
            let mut state = LogState { followed_through: Position::new(5), ..LogState::default() };
            let mut note = |position, is_removal| {
                let end = UnreadEnd { position: Position::new(position), is_removal };
                state.note_end(topic.clone(), end);
                state.unread_ends.get(&topic).map(|end| (end.position.get(), end.is_removal))
            };
            assert_eq!(note(5, is_removal), None, "the follower has read it");
            assert_eq!(note(8, is_removal), Some((8, is_removal)));
            assert_eq!(note(7, !is_removal), Some((8, is_removal)));
            assert_eq!(note(9, !is_removal), Some((9, !is_removal)));
        }
    }
}
