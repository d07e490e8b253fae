//! Replay from the backend: reads events that the topics of this node do not retain any more, for
//! clients that reconnect late and for subscribers that have lagged.

use super::{
    backend::Position,
    core::Core,
    error::{Error, SubscriptionError},
    gap::GapReason,
    id::Epoch,
    item::{self, Item, Runs, Topics},
    node::{EncodedPage, MAX_QUEUED_READS, RunError},
    reader::ReplayedEnd,
    resume::ResumePoint,
    subscription::{Beginning, Origin, Subscription},
};
use crate::{EncodedEvents, Event, EventId, random};
use bytes::BytesMut;
use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

/// The minimum pause before a failed read of events from the backend is repeated. The actual pause
/// is random, from once to twice this time, so that not all subscriptions read at the same time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The maximum time that subscribing waits for events that only the backend still retains. After
/// this time, the client gets its response, and the events follow when they arrive.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A replay reads events from the backend for one subscription, because this process does not
/// retain them any more. It ends as soon as this process retains all events that the subscription
/// has not delivered yet.
pub(super) struct Replay {
    pending_gap: Option<PendingGap>,
    /// `true` while it is unknown whether the position of the client's last id is after the end of
    /// the log. The first successful read from the backend shows the end.
    is_unsure: bool,
    state: State,
}

/// A range of events that may be missing. It is reported to the client as a gap only if a read from
/// the backend shows that events are missing.
struct PendingGap {
    requested: EventId,
    /// The client has all events of this subscription up to this position. If a later event was
    /// evicted, there is a gap.
    after: Position,
    reason: GapReason,
    /// `true` if it is known that events are missing. The gap event is then sent as soon as the
    /// first event after the gap is known, because the gap event contains the id of that event.
    is_confirmed: bool,
    /// `true` if the client has sent its last id, to continue after it. If no events are missing,
    /// the subscription reports to the application that it has resumed.
    is_resume: bool,
}

enum State {
    /// The replay, which reads old events from the backend, is not waiting for a response. The next
    /// poll of the replay begins a read.
    Idle,
    Reads(PageRequest),
    Pauses(Pin<Box<Sleep>>),
    /// The replay has read a page, which is a part of the backend's log. The next poll of the
    /// replay returns the events of the page. It also moves the cursor of the subscription to the
    /// end of the page, because the subscription has then delivered the log up to there.
    Yields(Undelivered, Arc<EncodedPage>),
}

/// The undelivered events of one page, a part of the backend's log. States that this node still
/// retains come first, because the backend may have evicted them. A state is the newest event of a
/// `latest_only` topic.
#[derive(Clone)]
struct Undelivered {
    events: EncodedEvents,
    /// The topics of the events.
    runs: Runs,
    /// The position of the first event in `events`. `None` if `events` is empty.
    first: Option<Position>,
    /// The position of the last event in `events`. `None` if `events` is empty.
    last: Option<Position>,
}

/// The newest event of a `latest_only` topic, with its position and the name of the topic.
type RetainedState = (Position, Arc<str>, EncodedEvents);

impl Undelivered {
    /// Inserts states, the newest events of `latest_only` topics, before these events. The position
    /// of each state must be before the first of these events.
    fn insert_states(&mut self, mut states: Vec<RetainedState>) {
        states.sort_unstable_by_key(|(position, ..)| *position);
        let (Some((first, ..)), Some((last, ..))) = (states.first(), states.last()) else { return };
        self.first = Some(*first);
        self.last = self.last.or(Some(*last));
        let topics = states.iter().map(|(_, topic, _)| topic).chain(item::topics(&self.runs));
        self.runs = item::runs(topics.cloned());
        self.events = states.into_iter().map(|(.., state)| state).chain([mem::take(&mut self.events)]).collect();
    }
}

/// The future of a read from the backend. The mutex is never locked: it makes the subscription
/// `Sync` although the future is not `Sync`.
struct PageRequest(Mutex<Pin<Box<PageFuture>>>);

type PageFuture = dyn Future<Output = Result<Arc<EncodedPage>, RunError>> + Send;

impl Future for PageRequest {
    type Output = Result<Arc<EncodedPage>, RunError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll(cx)
    }
}

impl Subscription {
    /// Starts to read events from the backend: the events after the cursor, the position after
    /// which the subscription delivers events. `requested` is the id that the client sent, with the
    /// position of this id (the start of the log for an invalid id). The cursor is before this
    /// position if another topic of the subscription starts earlier.
    ///
    /// `reason` is `Some` if it is already known why events after this id are missing. A gap is
    /// then reported in any case. If `reason` is `None`, a gap is reported only if the read shows
    /// that events after this id are missing.
    ///
    /// `is_resume` is `true` if the client continues from its last id. `is_unsure` is `true` if it
    /// is unknown whether the cursor is after the end of the log.
    pub(super) fn start_replay(
        &mut self,
        requested: Option<(EventId, Position)>,
        reason: Option<GapReason>,
        is_resume: bool,
        is_unsure: bool,
    ) {
        let pending_gap = requested.map(|(requested, after)| PendingGap {
            requested,
            after,
            reason: reason.unwrap_or(GapReason::Evicted),
            is_confirmed: reason.is_some(),
            is_resume,
        });
        self.replay = Some(Box::new(Replay { pending_gap, is_unsure, state: State::Idle }));
    }

    /// Starts to read old events from the backend, because this process has evicted events before
    /// the subscription read them. A gap is reported only if the backend has evicted such events,
    /// too.
    pub(super) fn replay_after_lag(&mut self) {
        let gap = PendingGap {
            requested: self.cursor(),
            after: self.cursor,
            reason: GapReason::Lagged,
            is_confirmed: false,
            is_resume: false,
        };
        self.replay = Some(Box::new(Replay { pending_gap: Some(gap), is_unsure: false, state: State::Idle }));
    }

    /// Returns `true` while a gap is pending: events may be missing, and the client gets a report
    /// only if a read from the backend shows that they are.
    pub(super) fn is_undecided(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| replay.pending_gap.is_some())
    }

    /// Returns `true` if events up to the cursor are or may be missing, and no gap event has
    /// reported them to the client yet.
    #[cfg(feature = "durable-streams")]
    pub(super) fn has_unreported_gap(&self) -> bool {
        self.unreported_gap_after().is_some()
    }

    fn unreported_gap_after(&self) -> Option<Position> {
        let pending_gap = self.replay.as_ref()?.pending_gap.as_ref()?;
        let is_passed = pending_gap.is_confirmed || pending_gap.after < self.cursor;
        is_passed.then_some(pending_gap.after)
    }

    /// Returns the position after which a client should resume if it reconnects now. Usually this
    /// is the cursor. If the cursor is already after missing events that were not reported yet, it
    /// is an earlier position, so that the client still gets the gap.
    pub(super) fn resume_position(&self) -> Position {
        self.unreported_gap_after().map_or(self.cursor, |after| after.min(self.cursor))
    }

    /// Returns `true` while the backend has not responded yet, so that it is unknown whether the
    /// cursor, the position of the subscription, is after the end of the log.
    pub(super) fn is_unsure(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| replay.is_unsure)
    }

    /// Waits for the first events from the backend, so that a gap is known before the client gets
    /// its response. After two seconds, returns without these events, and the subscription delivers
    /// them later. After a shutdown of the hub, returns immediately. Returns an error if too many
    /// other reads run or wait.
    pub(super) async fn read_first_page(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let pending_gap = self.replay.as_ref().and_then(|replay| replay.pending_gap.as_ref());
        let is_returning = pending_gap.is_some_and(|pending_gap| pending_gap.is_resume);
        while let Some(State::Idle) = self.replay.as_ref().map(|replay| &replay.state) {
            let Some((mut page, backend)) = self.request_page().zip(self.core.backend.as_ref()) else { return Ok(()) };
            let in_time = backend.in_runtime(|| timeout_at(deadline, backend.unless_stopped(&mut page)));
            match in_time.await {
                Ok(Some(Err(RunError::Full))) => return Err(Error::overloaded(MAX_QUEUED_READS)),
                Ok(Some(page)) => {
                    if let Some(gap) = self.apply_page(page.ok()) {
                        self.beginning = Some(Box::new(Beginning::Gap(gap.into())));
                    }
                }
                Ok(None) | Err(_) => self.set_state(State::Reads(page)),
            }
        }
        if self.gap().is_none() && self.is_undecided() {
            let confirmed = self
                .replay
                .as_mut()
                .and_then(|replay| replay.pending_gap.take_if(|pending_gap| pending_gap.is_confirmed));
            self.beginning = confirmed.map(|pending_gap| {
                let gap = self.report_gap(pending_gap.reason, pending_gap.requested, None);
                Box::new(Beginning::Gap(gap.into()))
            });
        } else if self.gap().is_none() && is_returning {
            self.origin = Origin::Resumed;
        }
        Ok(())
    }

    /// Polls for the next events from the backend, or for a gap event, which reports missing
    /// events. Returns `Ready(None)` once this process itself retains all events that the
    /// subscription has not delivered yet. Returns an error after a shutdown of the hub, or if the
    /// subscription has to end at a gap.
    pub(super) fn poll_replay(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, SubscriptionError>>> {
        loop {
            let Some(replay) = &mut self.replay else { return Poll::Ready(None) };
            // A shutdown ends all topics of a hub, so watching the first topic is enough.
            if let Some(reason) = self.readers.first_mut().and_then(|reader| reader.watch_early_end(cx.waker())) {
                self.cursor = self.resume_position();
                self.replay = None;
                return Poll::Ready(Some(Err(self.fail(reason.into()))));
            }
            match &mut replay.state {
                State::Yields(undelivered, page) => {
                    let (Undelivered { events, runs, last, .. }, page) = (undelivered.clone(), page.clone());
                    self.replay = None;
                    if self.is_removed_since(&page) {
                        // Reading the topics then reports the removed events as a gap, like a lag.
                        return Poll::Ready(None);
                    }
                    self.cursor = self.cursor.max(page.through);
                    self.has_unsent_cursor = last != Some(self.cursor);
                    return Poll::Ready(Some(Ok(Item { events, topics: Topics::Runs(runs) })));
                }
                State::Idle => match self.request_page() {
                    Some(page) => self.set_state(State::Reads(page)),
                    None => self.replay = None,
                },
                State::Pauses(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.set_state(State::Idle);
                }
                State::Reads(page) => {
                    // A read that is rejected because too many reads are waiting is also retried,
                    // because the client already has its response.
                    let page = ready!(Pin::new(page).poll(cx)).ok();
                    let (cursor, resume_position) = (self.cursor, self.resume_position());
                    let gap = self.apply_page(page);
                    self.has_unsent_cursor |= self.cursor != cursor;
                    let Some(gap) = gap else { continue };
                    // The id of the gap event is the cursor.
                    self.has_unsent_cursor = false;
                    let has_lagged = self.gap().is_some_and(|gap| gap.reason() == GapReason::Lagged);
                    if !self.has_control_events || (has_lagged && self.ends_at_gap()) {
                        self.cursor = resume_position;
                        self.replay = None;
                        return Poll::Ready(Some(Err(self.fail(SubscriptionError::Lagged))));
                    }
                    return Poll::Ready(Some(Ok(Item::of_hub(gap))));
                }
            }
        }
    }

    /// Returns the events of `page`, a part of the backend's log, that have to be delivered. If the
    /// subscription has a separate start position for a topic, the topic's events up to this
    /// position are left out. Events of a `latest_only` topic are also left out if they, or a newer
    /// event of the topic, were already delivered.
    fn undelivered(&self, page: &EncodedPage) -> Undelivered {
        let EncodedPage { first, last, .. } = *page;
        if self.readers.iter().all(|reader| reader.delivered_through <= self.cursor) {
            return Undelivered { events: page.events.clone(), runs: page.runs.clone(), first, last };
        }
        let mut rest = page.events.clone().into_bytes();
        let (mut bytes, mut kept, mut first, mut last) = (BytesMut::new(), Vec::new(), None, None);
        for topic in item::topics(&page.runs) {
            let before = rest.clone();
            let Some((id, _)) = item::split_first(&mut rest) else { break };
            let Ok(position) = self.epoch.position(&id) else { continue };
            // The readers are sorted by the names of their topics.
            let reader = self.readers.binary_search_by(|reader| reader.topic.name.cmp(topic));
            if reader.is_ok_and(|reader| position > self.readers[reader].delivered_through) {
                bytes.extend_from_slice(&before[..before.len() - rest.len()]);
                kept.push(topic.clone());
                first = first.or(Some(position));
                last = Some(position);
            }
        }
        let events = EncodedEvents::from_parts(bytes.freeze(), kept.len());
        Undelivered { events, runs: item::runs(kept), first, last }
    }

    fn set_state(&mut self, state: State) {
        if let Some(replay) = &mut self.replay {
            replay.state = state;
        }
    }

    fn request_page(&self) -> Option<PageRequest> {
        self.core.backend.as_ref()?;
        let core = Arc::clone(&self.core);
        let topics: Arc<[_]> = self.readers.iter().map(|reader| reader.topic.name.clone()).collect();
        let after = self.cursor;
        let page = async move {
            let backend = core.backend.as_ref().ok_or(RunError::Failed)?;
            // Wait before the read, so that a client that waits for long holds no page.
            core.close_streams_through(core.epoch(), backend.last()).await;
            let after = backend.after_removed(&topics, after);
            let page = backend.read(topics, after).await?;
            core.close_streams_through(page.epoch, page.through).await;
            Ok(page)
        };
        Some(PageRequest(Mutex::new(Box::pin(page))))
    }

    /// Returns `true` if this process retains all events of the subscription's topics after the
    /// position `cursor`.
    fn has_all_after(&self, cursor: Position) -> bool {
        self.readers.iter().all(|reader| reader.topic.lock().log.evicted_through() <= reader.resumes_after(cursor))
    }

    /// Returns `true` if an application has removed a topic of this subscription, and the client
    /// has neither received all removed events nor a gap that reports them as missing.
    fn has_missed_removed(&self, page: &EncodedPage) -> bool {
        let after =
            self.replay.as_ref().and_then(|replay| replay.pending_gap.as_ref()).map(|pending_gap| pending_gap.after);
        let after = after.unwrap_or(self.cursor);
        self.readers.iter().any(|reader| {
            let removal = page.removals.get(&reader.topic.name);
            removal.is_some_and(|removal| removal.evicted_through > reader.resumes_after(after))
        })
    }

    /// Returns `true` if a topic of the subscription was removed, and this node has read the record
    /// of the removal only after it read `page`, a part of the backend's log. The page may then
    /// contain removed events.
    fn is_removed_since(&self, page: &EncodedPage) -> bool {
        let topics = self.readers.iter().map(|reader| &*reader.topic.name);
        self.core.backend.as_ref().is_some_and(|backend| backend.is_removed_since(page, topics))
    }

    /// Processes the result of a read from the backend: stores the events of `page`, the next part
    /// of the log, for the next poll. If the read has failed, `page` is `None`, and the
    /// subscription pauses before the next read. Returns a gap event if events are missing. If the
    /// first event after the gap is not known yet, a later call returns the gap event.
    fn apply_page(&mut self, page: Option<Arc<EncodedPage>>) -> Option<Event> {
        // A page with another epoch is ignored. The follower detects the replaced log and ends this
        // subscription.
        let page = page.filter(|page| page.epoch == self.epoch);
        let (Some(page), Some(replay)) = (page, &mut self.replay) else {
            self.set_state(State::Pauses(pause(&self.core)));
            return None;
        };
        if replay.is_unsure && page.through < self.cursor {
            // The log has never had this position, so the client resumes with the oldest retained
            // event.
            replay.is_unsure = false;
            if let Some(pending_gap) = &mut replay.pending_gap {
                (pending_gap.reason, pending_gap.is_confirmed) = (GapReason::Ahead, true);
                pending_gap.after = Position::START;
            }
            replay.state = State::Idle;
            self.cursor = Position::START;
            return None;
        }
        replay.is_unsure = false;
        if page.through <= self.cursor && !self.has_all_after(self.cursor) {
            // The server is behind this node, for example a replica that lags. Wait and read again.
            self.set_state(State::Pauses(pause(&self.core)));
            return None;
        }

        let mut undelivered = self.undelivered(&page);
        let has_missed_removed = self.has_missed_removed(&page);
        // The page has all records of the topics after this position, up to `page.through`.
        let begin = self.cursor.max(page.evicted_through);
        // States up to `begin` may be retained only by this node. They are delivered before the
        // page.
        let has_evicted = page.evicted_through > self.cursor;
        let states_through = page.first.map_or(begin, |first| first.previous().min(begin));
        let mut states = Vec::new();
        for reader in &mut *self.readers {
            let removed_through =
                page.removals.get(&reader.topic.name).map_or(Position::START, |it| it.evicted_through);
            let evicted_through = page.evicted_through.max(removed_through);
            let state = has_evicted.then(|| reader.undelivered_state(self.cursor, states_through)).flatten();
            match state {
                Some((position, state)) => states.push((position, reader.topic.name.clone(), state)),
                None => reader.gap_reported_through = reader.gap_reported_through.max(evicted_through),
            }
            reader.replayed_end = match page.topics.get(&reader.topic.name) {
                Some(end) => end.map(|at| Box::new(ReplayedEnd { at, through: page.through })),
                // If no replay has read the records before this page, they may contain an event
                // that has reopened the topic.
                None => reader.replayed_end.take().filter(|end| end.through >= begin),
            };
            if let Some(end) = &mut reader.replayed_end {
                end.through = page.through;
                self.core.note_end(&reader.topic, end.at, end.through);
            }
        }
        undelivered.insert_states(states);
        let first = undelivered.first;
        if has_evicted {
            self.cursor = ResumePoint::of(first, begin.max(page.through)).cursor;
        }
        self.reset_readers();

        let is_empty = undelivered.events.is_empty();
        let is_at_end = is_empty && self.has_all_after(page.through);
        let replay = self.replay.as_mut()?;
        let mut pending_gap = replay.pending_gap.take();
        if let Some(pending_gap) = &mut pending_gap {
            pending_gap.is_confirmed |= page.evicted_through > pending_gap.after || has_missed_removed;
        }
        let through = page.through;
        replay.state = State::Yields(undelivered, page);
        if is_empty {
            self.cursor = self.cursor.max(through);
            // If the topics have evicted the following events in the meantime, a new replay begins,
            // as after a lag.
            self.replay = None;
        }
        let pending_gap = pending_gap.filter(|pending_gap| pending_gap.is_confirmed)?;
        if first.is_none() && !is_at_end {
            // The gap event contains the id of the first event after it, so it waits until that
            // event is known.
            self.replay =
                Some(Box::new(Replay { pending_gap: Some(pending_gap), is_unsure: false, state: State::Idle }));
            return None;
        }
        let local = self.readers.iter().filter_map(|reader| reader.topic.lock().log.first_after(self.cursor));
        let resumed = first.or_else(|| local.min());
        Some(self.report_gap(pending_gap.reason, pending_gap.requested, resumed))
    }
}

impl Core {
    /// Waits until the follower, the task that reads the log, has read the log up to the position
    /// `through`, and has closed the streams that other nodes have announced there as closed. Also
    /// returns if another log has replaced the log that `epoch` identifies. Returns immediately if
    /// no stream registry (a table of open streams) follows the hub.
    ///
    /// A page of old events that was read for one subscription may be ahead of the follower.
    /// Suppose that another node has closed the stream of this client, and the follower has not
    /// read that yet. The page may then contain events that were published after the close.
    async fn close_streams_through(&self, epoch: Epoch, through: Position) {
        let has_read = || self.committed() >= through || self.epoch() != epoch;
        if !self.stream_registries.is_empty() {
            self.recordings.progressed(has_read).await;
        }
    }
}

fn pause(core: &Core) -> Pin<Box<Sleep>> {
    Box::pin(in_runtime(core, || sleep(RETRY_PAUSE.mul_f64(1.0 + random::fraction()))))
}

/// Calls `create`, which creates a timer, inside the tokio runtime of the hub's backend. So the
/// caller may be outside of a runtime. A hub without a backend has no such runtime, and only calls
/// `create`.
fn in_runtime<T>(core: &Core, create: impl FnOnce() -> T) -> T {
    match &core.backend {
        Some(backend) => backend.in_runtime(create),
        None => create(),
    }
}
