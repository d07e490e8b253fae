//! Reads one topic for one request of the Durable Streams protocol: the events after an offset, and
//! whether more events follow.

use super::{
    super::{
        backend::{self, IdFormat, Position},
        core::Core,
        error::{Error, ErrorKind, SubscriptionError},
        gap::LagPolicy,
        id::Epoch,
        item::{Topics, decode_first},
        start::Start,
        subscription::Subscription,
        topic_state::TopicState,
    },
    content::{Content, NotBase64, Page},
};
use crate::{Event, preamble::Purpose};
use bytes::Bytes;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Release},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// The maximum time that a request to read a topic waits for old events from the backend.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum time that a request waits for the local node to read the log up to the last event
/// that the node knows of, such as an event that it has published itself.
const OWN_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// The point in a topic where a read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// The read begins with the oldest retained event of the topic. The query parameter `offset` of
    /// the request is `-1` or missing.
    Oldest,
    /// The read begins with the next event that is published. The query parameter `offset` of the
    /// request is `now`.
    Now,
    /// The read begins with the event after this position, which the query parameter `offset` of
    /// the request contains. The epoch identifies the log that the position belongs to.
    After(Epoch, Position),
}

/// The reason why a request to read a topic fails.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The topic that the client requests does not exist, or the hub uses it itself.
    NotFound,
    /// Events after the offset in the request are missing: they are not retained any more, or the
    /// offset is from another log.
    Gap,
    /// The data of the next event is not base64, and the format of the stream requires it.
    NotBase64,
    /// The backend of the hub has not responded in time. Or this node does not know the topic, and
    /// cannot decide yet whether the topic exists, because it has not read all events that it knows
    /// to be in the log.
    Backend,
    /// The hub is shut down, or another log has replaced its log.
    Shutdown,
    /// The hub has returned this error when the request subscribed to the topic.
    Subscribe(Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Shutdown => Self::Shutdown,
            _ => Self::Subscribe(error),
        }
    }
}

/// An error that ends the reading of a topic. The request first gets the events before the error.
/// Then the error is returned instead of further events.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Subscription(SubscriptionError),
    NotBase64,
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Subscription(SubscriptionError::Lagged) => Self::Gap,
            Failure::Subscription(SubscriptionError::Shutdown | SubscriptionError::LogReplaced) => Self::Shutdown,
            Failure::NotBase64 => Self::NotBase64,
        }
    }
}

/// States whether the topic has more events after the events of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The topic has more events after the events of the response, or it is unknown whether it has.
    More,
    /// The topic has no events after the events of the response yet.
    Nothing,
    /// No event will ever follow the events of the response, because the topic is finished.
    Closed,
}

/// The outcome of filling a page, the part of a topic that one response contains, with the
/// available events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// The page has reached the requested size. Or an error follows its events, and the next read
    /// returns the error.
    Full,
    /// The page contains all events of the topic so far. The next event of the topic wakes the task
    /// that answers the request.
    Waits,
    /// The next events of the topic are old events that the backend has not returned yet. Their
    /// arrival wakes the task that answers the request, which can then add them to the response.
    AwaitsBackend,
    /// The topic is finished, and the page ends with the last event of the topic.
    Closed,
}

/// Reads one topic for one request of the Durable Streams protocol.
pub(super) struct Reading {
    core: Arc<Core>,
    subscription: Subscription,
    topic: Arc<TopicState>,
    /// Encoded events that were read from the topic, but not added to a response yet.
    pending: Bytes,
    /// The position of the client in the topic. The client has all events of the topic up to this
    /// position. `None` if the reader began with the oldest event and has not read an event yet.
    position: Option<Position>,
    /// Set if the local node does not know whether the topic exists. The topic then exists only if
    /// the backend has an event of it. Not set if the request reads after the offset of an earlier
    /// event: the topic of such a request counts as existing.
    needs_event: bool,
    /// Set if the local node has not read the log up to the last event that it knows of. It then
    /// does not know whether the topic exists.
    is_behind: bool,
    /// Set while the request looks for the end of the topic and drops the events before it.
    is_seeking: bool,
    failure: Option<Failure>,
}

impl Reading {
    /// Prepares the reading of a topic for one request. `is_declared` is `true` if the topic exists
    /// even without an event, because the application has
    /// [declared](super::DurableStreams::existing) that. `is_live` is `true` if the request may
    /// wait for new events.
    ///
    /// A live reading of a topic that exists is a subscriber like any other. Other readings are
    /// lookups, which do not make the topic exist for concurrent requests.
    pub(super) async fn open(
        core: &Arc<Core>,
        topic: &Arc<str>,
        begin: Begin,
        is_declared: bool,
        is_live: bool,
    ) -> Result<Self, ReadError> {
        if core.is_shut_down() {
            return Err(ReadError::Shutdown);
        }
        let is_behind = !has_read_own_events(core).await;
        // A node with a backend may have forgotten a topic whose events the backend retains.
        let is_known = is_declared || core.exists(topic);
        if !is_known && core.backend.is_none() {
            let registry = core.registry.lock();
            // A reader that has all events of an expired topic waits for the next event.
            if !matches!(begin, Begin::After(_, position) if registry.has_expired(topic, position)) {
                return Err(ReadError::NotFound);
            }
        }
        // A topic that exists because of its subscribers may be finished in the backend.
        let knows_end = is_declared || (is_known && core.knows_end(topic));
        let (start, position) = match begin {
            Begin::Now if knows_end => (Start::Latest, None),
            Begin::Now | Begin::Oldest => (Start::Earliest, None),
            // The epoch is that of the request. If the log was replaced in the meantime, the offset
            // is a gap.
            Begin::After(epoch, position) => (Start::After(epoch.id(position)), Some(position)),
        };
        let subscribed = match is_live && is_known {
            true => core.subscribe(vec![(topic.clone(), None)], start).await,
            false => core.look_up(topic.clone(), start).await,
        };
        let mut subscription = subscribed?.without_control_events();
        subscription.lag_policy = LagPolicy::Gap;
        if subscription.gap().is_some() {
            return Err(ReadError::Gap);
        }
        let Some(topic) = subscription.readers.first().map(|reader| reader.topic.clone()) else {
            return Err(ReadError::Shutdown);
        };
        // The subscription has ended, so its position says nothing about the topic.
        if topic.lock().early_end.is_some() {
            return Err(ReadError::Shutdown);
        }
        let (core, pending) = (core.clone(), Bytes::new());
        let needs_event = !is_known && position.is_none();
        let mut reading = Self {
            core,
            subscription,
            topic,
            pending,
            position,
            needs_event,
            is_behind,
            is_seeking: false,
            failure: None,
        };
        if begin == Begin::Now {
            if knows_end {
                // The reader wants no event up to the cursor, which is the end of the log.
                reading.position = Some(reading.position());
                reading.advance(reading.subscription.cursor);
            } else {
                reading.is_seeking = true;
                timeout(BACKEND_TIMEOUT, reading.read_to_end()).await.unwrap_or(Err(ReadError::Backend))?;
                reading.is_seeking = false;
            }
        }
        Ok(reading)
    }

    /// Reads and drops all events of a topic, for a request with the offset `now`, which gets only
    /// later events. The caller uses this if the local node does not know whether the topic exists,
    /// or whether the topic is finished: the read shows both. Returns an error if the topic does
    /// not exist.
    async fn read_to_end(&mut self) -> Result<(), ReadError> {
        poll_fn(|cx| {
            loop {
                let committed = self.core.committed();
                match self.poll_available(cx) {
                    Poll::Ready(Ok(true)) => drop(self.take_event()),
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if self.awaits_backend() => return Poll::Pending,
                    Poll::Pending if self.is_missing() => return Poll::Ready(Err(self.not_found())),
                    Poll::Pending => {
                        // An event that arrives from now on is after the position. Evicted events
                        // can be after the last event that was found.
                        let has_gap = self.subscription.gap().is_some();
                        let end = if has_gap { self.subscription.cursor } else { Position::START };
                        self.position = Some(self.position().max(end));
                        self.advance(committed);
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        })
        .await
    }

    /// Returns `true` if the topic does not exist: the local node does not know it, and no event of
    /// it was found in the log. The result is final only after the reader has reached the end of
    /// the log. Before, `true` means that no event was found so far.
    fn is_missing(&self) -> bool {
        self.needs_event && self.position.is_none()
    }

    /// Returns the error for a request if no event of its topic was found. The topic does not exist
    /// then. If the local node has not read enough of the log to know this, the error is
    /// [`ReadError::Backend`].
    fn not_found(&self) -> ReadError {
        if self.is_behind { ReadError::Backend } else { ReadError::NotFound }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.subscription.epoch
    }

    /// Returns the position of the client in the topic. The client has all events of the topic up
    /// to this position.
    pub(super) fn position(&self) -> Position {
        self.position.unwrap_or_else(|| {
            // The cursor may be after the last event of the topic. No event of the topic is between
            // them, so the smaller position denotes the same point.
            let contents = self.topic.lock();
            contents.log.last().max(contents.log.evicted_through()).min(self.subscription.cursor)
        })
    }

    /// Moves the position of a client towards the end of the log, while its topic has no new
    /// events. Otherwise, a client of a quiet topic would keep an old position. When the backend
    /// evicts events of other topics after this position, another node would report a gap, although
    /// the client has missed no event.
    ///
    /// The caller must have read all events of the topic up to `committed`. The new position is a
    /// multiple of a fixed [`step`], or the position of the last record before such a multiple. So
    /// all waiting clients of the topic get the same position, send it as the same offset, and a
    /// cache can join their requests into one.
    fn advance(&mut self, committed: Position) {
        if self.core.backend.is_none() || self.core.epoch() != self.epoch() {
            return;
        }
        let end = match self.epoch().ids {
            // A position without a record would look like that of a lost record.
            IdFormat::Times => Position::new(self.core.step_end.load(Acquire)),
            ids => Position::new(committed.get() / step(ids) * step(ids)),
        };
        if end > self.position() && end <= committed {
            self.position = Some(end);
            self.subscription.cursor = self.subscription.cursor.max(end);
        }
    }

    /// Moves the position of the client to the end of the part of the log that was searched without
    /// finding the next event of the topic. Returns `true` if the position has moved. The next
    /// request then continues the search, which can take several requests in a large log.
    pub(super) fn skip(&mut self) -> bool {
        let subscription = &self.subscription;
        // A client without a position misses no events, so it needs no gap.
        let has_gap = self.position.is_some() && subscription.has_unreported_gap();
        let is_known = self.pending.is_empty() && !has_gap && !subscription.is_unsure();
        // A reader without a position began at the start of the log.
        let has_moved = is_known && subscription.cursor > self.position.unwrap_or(Position::START);
        if has_moved {
            self.position = Some(subscription.cursor);
        }
        has_moved
    }

    fn awaits_backend(&self) -> bool {
        self.subscription.replay.is_some()
    }

    /// Polls for the next event of the topic. Returns `true` if an event can be
    /// [taken](Self::take_event), and `false` after the last event of a finished topic. Is pending
    /// if no event is available yet.
    fn poll_available(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ReadError>> {
        // Evicted events are an error only for a client that has the events before them. For other
        // clients, the subscription continues with the oldest retained event.
        self.subscription.has_control_events = self.position.is_none() || self.is_seeking;
        while self.pending.is_empty() {
            if let Some(failure) = self.failure {
                return Poll::Ready(Err(failure.into()));
            }
            match std::task::ready!(self.subscription.poll_item(Purpose::Items, cx)) {
                None => return Poll::Ready(Ok(false)),
                // Events of the hub itself are not part of the stream.
                Some(Ok(item)) if matches!(item.topics, Topics::Hub) => {}
                Some(Ok(item)) => self.pending = item.events.into_bytes(),
                Some(Err(error)) => self.failure = Some(Failure::Subscription(error)),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Removes the next event from `pending`, the events that were not added to a response yet, and
    /// returns it. The client's position in the topic becomes the position of this event. Returns
    /// `None` if the event cannot be decoded. The client's position then does not change.
    fn take_event(&mut self) -> Option<Event> {
        let before = self.pending.len();
        let Some((id, event)) = decode_first(&mut self.pending) else {
            if self.pending.len() == before {
                self.pending.clear();
            }
            return None;
        };
        self.position = self.epoch().position(&id).ok().or(self.position);
        Some(event)
    }

    /// Adds the available events of the topic to `page` until it has `size` bytes or more. Returns
    /// the reason why no further event was added. If an error follows the events of the page, the
    /// next call returns the error.
    pub(super) fn fill(&mut self, page: &mut Page, size: usize, cx: &mut Context<'_>) -> Result<Fill, ReadError> {
        while page.len() < size {
            match self.poll_available(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Ok(Fill::Closed),
                Poll::Ready(Err(_)) if page.count > 0 => return Ok(Fill::Full),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending if self.awaits_backend() => return Ok(Fill::AwaitsBackend),
                Poll::Pending if self.is_missing() => return Err(self.not_found()),
                Poll::Pending => return Ok(Fill::Waits),
            }
            let position = self.position();
            let Some(event) = self.take_event() else { continue };
            if let Err(NotBase64) = page.push(&event) {
                self.position = Some(position);
                self.pending.clear();
                self.failure = Some(Failure::NotBase64);
            }
        }
        Ok(Fill::Full)
    }

    /// Returns whether the topic has more events after the last event that the client has, and
    /// whether the topic is finished.
    fn rest(&mut self, cx: &mut Context<'_>) -> Rest {
        match self.poll_available(cx) {
            Poll::Ready(Ok(false)) => Rest::Closed,
            Poll::Pending if !self.awaits_backend() => Rest::Nothing,
            _ => Rest::More,
        }
    }

    /// Returns `true` if the topic is finished, and the reader has read all of its events.
    pub(super) async fn is_closed(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(self.rest(cx))).await == Rest::Closed
    }

    /// Reads the available events as one page of about `size` bytes. Does not wait for new events.
    /// Waits for at most 10 seconds for old events, which are searched in the log of the backend.
    /// If no event of the topic was found by then, returns an empty page. The position of the
    /// client moves to the end of the part of the log that was searched. If no part of the log was
    /// searched by then, returns an error.
    pub(super) async fn page(&mut self, content: &Content, size: usize) -> Result<(Page, Rest), ReadError> {
        let mut page = Page::new(content);
        let read = poll_fn(|cx| {
            let committed = self.core.committed();
            Poll::Ready(match self.fill(&mut page, size, cx) {
                Ok(Fill::AwaitsBackend) => return Poll::Pending,
                Ok(Fill::Full) => Ok(self.rest(cx)),
                Ok(Fill::Waits) => {
                    if page.count == 0 {
                        self.advance(committed);
                    }
                    Ok(Rest::Nothing)
                }
                Ok(Fill::Closed) => Ok(Rest::Closed),
                Err(error) => Err(error),
            })
        });
        let rest = match timeout(BACKEND_TIMEOUT, read).await {
            Ok(rest) => rest?,
            Err(_) if page.count == 0 && !self.skip() => return Err(ReadError::Backend),
            Err(_) => Rest::More,
        };
        Ok((page, rest))
    }

    /// Reads the available events as one page. If no event is available, waits up to `time` for the
    /// next event. Returns an empty page if no event has arrived by then, or if the hub is shut
    /// down during this wait.
    ///
    /// If the request still waits for old events from the backend when the time is over, returns an
    /// empty page, or an error if no part of the log was searched by then. If the hub is shut down
    /// while the request waits for old events, returns an error.
    pub(super) async fn long_poll(
        &mut self,
        content: &Content,
        size: usize,
        time: Duration,
    ) -> Result<(Page, Rest), ReadError> {
        let mut page = Page::new(content);
        let (mut awaits_backend, mut committed) = (self.awaits_backend(), self.core.committed());
        let read = poll_fn(|cx| {
            committed = self.core.committed();
            let fill = self.fill(&mut page, size, cx);
            // After a shutdown of the hub, the value from before the shutdown is needed.
            if let Ok(fill) = &fill {
                awaits_backend = *fill == Fill::AwaitsBackend;
            }
            Poll::Ready(match fill {
                Ok(Fill::Waits | Fill::AwaitsBackend) if page.count == 0 => return Poll::Pending,
                Ok(Fill::Waits) => Ok(Rest::Nothing),
                Ok(Fill::AwaitsBackend) => Ok(Rest::More),
                Ok(Fill::Full) => Ok(self.rest(cx)),
                Ok(Fill::Closed) => Ok(Rest::Closed),
                Err(error) => Err(error),
            })
        });
        let rest = match timeout(time, read).await {
            // The client has all events only if none was expected from the backend.
            Ok(Err(ReadError::Shutdown)) if !awaits_backend => Rest::Nothing,
            Ok(rest) => rest?,
            Err(_) if awaits_backend && self.skip() => Rest::More,
            Err(_) if awaits_backend => return Err(ReadError::Backend),
            Err(_) => {
                self.advance(committed);
                Rest::Nothing
            }
        };
        Ok((page, rest))
    }

    /// Reads the first part of an event stream before the response begins, so that an error before
    /// the first event can still become the response. Does not wait for new events. Waits for at
    /// most 10 seconds for old events from the backend. If none have arrived by then, returns
    /// `None`, or an error if it is still unknown whether the topic exists.
    pub(super) async fn first_part(
        &mut self,
        content: &Content,
        size: usize,
    ) -> Result<Option<(Page, Fill)>, ReadError> {
        let first = poll_fn(|cx| match self.part(content, size, cx) {
            (page, Ok(Fill::AwaitsBackend)) if page.count == 0 => Poll::Pending,
            (page, fill) => Poll::Ready(fill.map(|fill| (page, fill))),
        });
        match timeout(BACKEND_TIMEOUT, first).await {
            Ok(first) => first.map(Some),
            // After the response has begun, it is too late for a 404. So the topic counts as
            // existing from here on, like that of an offset.
            Err(_) if !self.skip() && self.is_missing() => Err(ReadError::Backend),
            Err(_) => Ok(None),
        }
    }

    /// Reads the available events as the next part of an event stream. If no event is available,
    /// [moves](Self::advance) the position of the client towards the end of the log, so that it
    /// does not become too old.
    pub(super) fn part(
        &mut self,
        content: &Content,
        size: usize,
        cx: &mut Context<'_>,
    ) -> (Page, Result<Fill, ReadError>) {
        let mut page = Page::new(content);
        let committed = self.core.committed();
        let fill = self.fill(&mut page, size, cx);
        if page.count == 0 && matches!(fill, Ok(Fill::Waits)) {
            // The response now contains the client's position. Later gaps are errors.
            self.position = Some(self.position());
            self.advance(committed);
        }
        (page, fill)
    }
}

/// Returns the step size of [`Reading::advance`], which moves the position of a client in a topic
/// without new events. The step depends on the format of the ids in the log: 256 events for
/// [`IdFormat::Positions`], 256 messages of NATS for [`IdFormat::Messages`], or 65 seconds for
/// [`IdFormat::Times`].
fn step(ids: IdFormat) -> u64 {
    match ids {
        IdFormat::Positions => 256,
        IdFormat::Messages => 256 * IdFormat::MESSAGE,
        IdFormat::Times => (1 << 16) << IdFormat::SEQUENCE_BITS,
    }
}

/// Stores the position that [`Reading::advance`] gives to clients that wait for events, in a log
/// whose positions contain the time of their records. It is the position of the last record before
/// the newest multiple of 65 seconds ([`step`]). It changes only if `page`, the next page of the
/// log, reaches such a multiple. Has no effect in other logs.
pub(in crate::hub) fn note_step(core: &Core, page: &backend::Page) {
    let (ids, before) = (core.epoch().ids, core.committed());
    let multiple = Position::new(page.through.get() / step(ids) * step(ids));
    if ids == IdFormat::Times && before < multiple {
        let mut earlier = page.records.iter().rev().map(|(position, _)| *position).filter(|at| *at < multiple);
        let end = earlier.next().unwrap_or(before);
        core.step_end.store(end.get(), Release);
    }
}

/// Resets the position that [`note_step`] has stored for clients that wait for events, because
/// another log has replaced the log.
pub(in crate::hub) fn forget_step(core: &Core) {
    core.step_end.store(0, Release);
}

/// Waits until the local node has read the log up to the last event that it knows of, but for at
/// most one second. Without this wait, a client could miss an event whose publication the local
/// node has already acknowledged. Returns `false` if the node has not read this event in time.
async fn has_read_own_events(core: &Core) -> bool {
    let Some(backend) = &core.backend else { return true };
    let (last, epoch) = (backend.last(), backend.epoch_bits());
    let has_read = || core.committed() >= last || backend.epoch_bits() != epoch || core.is_shut_down();
    has_read() || timeout(OWN_EVENTS_TIMEOUT, core.recordings.progressed(has_read)).await.is_ok()
}
