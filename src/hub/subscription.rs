use super::{
    backend::Position,
    core::Core,
    error::SubscriptionError,
    gap::{Gap, GapReason, LagPolicy},
    id::Epoch,
    item::{Item, Topics},
    linger::Linger,
    merge::Merge,
    presence::Membership,
    reader::{Reader, Step, Wait},
    readers::Readers,
    replay::Replay,
    resume::ResumePoint,
};
use crate::{
    EncodedEvents, Event, EventId,
    preamble::{self, Preamble},
    trace,
};
use bytes::Bytes;
use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio_stream::Stream;

/// A cursor over the events of one or many topics, for one client.
///
/// As the response of an axum handler, a subscription is the same as
/// [`SseStream::new(subscription)`](crate::SseStream::new):
///
/// - The response begins with the [`cursor`](Self::cursor). So a client that loses its connection
///   before the first event resumes at the same position.
///   [`begin_with_cursor`](Self::begin_with_cursor) describes how.
///   [`without_control_events`](Self::without_control_events) omits the cursor.
/// - If all topics are finished and the client has received their events, the response is `204 No
///   Content`, after which an `EventSource` does not reconnect.
///
/// As a stream, a subscription yields events as wire bytes, which all clients share. An item can
/// contain many events.
///
/// A subscription is a cursor, not a queue: its memory does not grow if its client is slow. The
/// topics retain the events for all subscriptions. A client that falls behind the retention gets a
/// [`Gap`], and resumes as its [`LagPolicy`] says.
///
/// # Adapters
///
/// An adapter (`map`, `filter`, `merge`, `take_until` …) over a subscription keeps the cursor and
/// the 204 in the response, each under a condition:
///
/// - The response begins with the cursor if the first poll of its body polls the subscription. A
///   task that forwards the events needs [`begin_with_cursor`](Self::begin_with_cursor).
/// - `204 No Content` needs an adapter that adds no event and forwards
///   [`size_hint`](Stream::size_hint), as most do. For other adapters, such as `select` of
///   `futures-util` or a generator, use
///   [`SseStream::map_stream`](crate::SseStream::map_stream). With the feature `tracing`, a warning
///   is logged if a finished subscription is answered with 200.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::response::IntoResponse;
/// use tokio_stream::{Stream, StreamExt};
/// use tower_sse::{Event, LastEventId, SseStream, hub::{Error, Hub}};
///
/// async fn page(
///     hub: &Hub,
///     last: LastEventId,
///     weather: impl Stream<Item = Event> + Send + 'static,
/// ) -> Result<impl IntoResponse, Error> {
///     let news = hub.topic("news").subscribe(last).await?;
///     Ok(SseStream::new(news.merge(weather.map(|event| Ok(event.into())))))
/// }
/// # }
/// ```
///
/// # Ends
///
/// The stream ends after the last event when all topics are [finished](super::Topic::finish). It
/// ends early with a [`SubscriptionError`] if the client has lagged under
/// [`LagPolicy::Disconnect`], or if the hub is shut down.
///
/// A subscription keeps its hub alive, even after every [`Hub`](super::Hub) and
/// [`Topic`](super::Topic) was dropped.
pub struct Subscription {
    pub(super) core: Arc<Core>,
    /// The epoch of the log that the cursor belongs to.
    pub(super) epoch: Epoch,
    /// The readers of the topics. Empty after the end of the subscription.
    pub(super) readers: Readers,
    /// The merge of several topics. A single topic needs none, because its events are in order,
    /// unless the subscription lingers.
    merge: Option<Box<Merge>>,
    /// Every event up to this position was delivered, or reported as missing.
    pub(super) cursor: Position,
    /// The position of the hub's newest event when the subscription was created.
    subscribed_at: Position,
    /// The item that is yielded before all events.
    pub(super) beginning: Option<Box<Beginning>>,
    gap: Option<Box<Gap>>,
    /// The replay, which reads events from the backend that the topics have evicted. `None` if
    /// there is no replay.
    pub(super) replay: Option<Box<Replay>>,
    /// The wait for the only topic, if there is no merge.
    wait: Option<Wait>,
    pub(super) lag_policy: LagPolicy,
    pub(super) origin: Origin,
    /// Set if the client gets `hub-cursor` and `gap` events.
    pub(super) has_control_events: bool,
    /// Set when the preamble (the event with the cursor) can no longer be sent: a response has
    /// taken it, or the subscription was polled.
    has_preamble: AtomicBool,
    /// Set if the subscription ended with an error, before the end of its topics.
    has_failed: bool,
    /// The memberships that last as long as the subscription.
    pub(super) memberships: Vec<Membership>,
}

/// The item before all events of a subscription.
pub(super) enum Beginning {
    /// The gap at the beginning of the subscription.
    Gap(EncodedEvents),
    /// A snapshot, or the event with the cursor.
    Item(EncodedEvents),
}

/// The start of a subscription: with live events, with retained events, or after the last id of its
/// client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The subscription began with live events.
    Live,
    /// The subscription began with retained events, or with a gap.
    Replay,
    /// The subscription resumes after the last id of the client, with no missing event.
    Resumed,
}

impl Subscription {
    pub(super) fn new(
        core: Arc<Core>,
        epoch: Epoch,
        readers: Vec<Reader>,
        lag_policy: LagPolicy,
        cursor: Position,
        subscribed_at: Position,
        origin: Origin,
    ) -> Self {
        let merge = (readers.len() > 1).then(|| Box::new(Merge::new(&readers)));
        Self {
            core,
            epoch,
            readers: readers.into(),
            merge,
            cursor,
            subscribed_at,
            beginning: None,
            gap: None,
            replay: None,
            wait: None,
            lag_policy,
            origin,
            has_control_events: true,
            has_preamble: AtomicBool::new(false),
            has_failed: false,
            memberships: Vec::new(),
        }
    }

    /// Resumes after the requested id. Reports a gap if `reason` is set.
    pub(super) fn resume(
        &mut self,
        requested: Option<(EventId, Position)>,
        reason: Option<GapReason>,
        resumed: Option<Position>,
    ) {
        let Some((requested, _)) = requested else { return };
        match reason {
            Some(reason) => {
                let gap = self.report_gap(reason, requested, resumed);
                self.beginning = Some(Box::new(Beginning::Gap(gap.into())));
            }
            None => self.origin = Origin::Resumed,
        }
    }

    /// Records a gap and counts it in the metrics. Returns the gap event for the client.
    pub(super) fn report_gap(&mut self, reason: GapReason, requested: EventId, resumed: Option<Position>) -> Event {
        self.core.count_gap(reason);
        let gap = Gap { reason, requested, resumed: resumed.map(|number| self.epoch.id(number)) };
        let event = self.gap_event(&gap);
        self.gap = Some(Box::new(gap));
        event
    }

    /// Returns the gap with which the subscription began, or the latest gap of a slow client. The
    /// client gets the gap as an event, unless the subscription [begins with](Self::begin_with) a
    /// snapshot.
    ///
    /// During an outage of the backend, `None` can be preliminary: the events after the client's id
    /// may be retained only in the backend. In this case, [`is_resumed`](Self::is_resumed) is
    /// `false` as well.
    #[must_use]
    pub fn gap(&self) -> Option<&Gap> {
        self.gap.as_deref()
    }

    /// Returns `true` if the client resumes after its last id with no missing event.
    ///
    /// It is `false` for a client without an id, and if there is or may be a [gap](Self::gap). In
    /// these cases, the next events do not continue from the client's state. See
    /// [`begin_with`](Self::begin_with).
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.origin == Origin::Resumed
    }

    /// Returns the id up to which the client has received every event of its topics, or a gap. A
    /// client that reconnects with this id receives all undelivered events.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.epoch.id(self.cursor)
    }

    /// Returns `true` if there are no more events, now or later.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.beginning.is_none()
            && self.replay.is_none()
            && !self.has_failed
            && self.readers.iter().all(|reader| {
                let contents = reader.topic.lock();
                contents.finished.is_some() && contents.log.ends_at(self.cursor.max(reader.gap_reported_through))
            })
    }

    /// Begins the stream with a snapshot of one or several events: the state that the next events
    /// change.
    ///
    /// The last event of the snapshot gets the [`cursor`](Self::cursor) as its id. The other events
    /// get no id, so a client that loses its connection within the snapshot receives all of it
    /// again. Ids that the events had are removed. Browsers apply an id only with data, so the last
    /// event needs data or a name. The snapshot is one item of the stream. Without an event, the
    /// stream begins with the cursor, as in a response without a snapshot.
    ///
    /// If there is a [gap](Self::gap), the snapshot replaces the gap event and all retained events.
    /// The subscription then resumes with the events that were published after it was created.
    ///
    /// The snapshot must be exactly the state at the cursor. There are two ways to ensure that:
    ///
    /// - Publishers and the handler use one lock: publishers hold it while they change the state
    ///   and publish, and the handler holds it while it subscribes and reads the state, as below.
    ///   This works in one process only.
    /// - The state contains the id of the event that changed it last, and the subscription begins
    ///   [after](super::Start::After) that id. If the subscription then has a gap, the state is too
    ///   old: read a newer state and subscribe again. This also works with [several
    ///   nodes](super#several-nodes).
    ///
    /// Do not use [`Start::Earliest`](super::Start::Earliest) with a snapshot, because all retained
    /// events would follow.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::sync::Mutex;
    /// use tower_sse::{BoxError, Event, LastEventId, SseStream, hub::{Hub, Subscription}};
    ///
    /// struct Board { hub: Hub, scores: Mutex<Vec<u32>> }
    ///
    /// async fn score(board: &Board, points: u32) -> Result<(), BoxError> {
    ///     let mut scores = board.scores.lock().await;
    ///     board.hub.topic("scores").publish(Event::display(points)).await?;
    ///     scores.push(points);
    ///     Ok(())
    /// }
    ///
    /// async fn watch(board: &Board, last: LastEventId) -> Result<SseStream<Subscription>, BoxError> {
    ///     let scores = board.scores.lock().await;
    ///     let mut events = board.hub.topic("scores").subscribe(last).await?;
    ///     if !events.is_resumed() {
    ///         events = events.begin_with(Event::json(&*scores)?.event("scores"));
    ///     }
    ///     Ok(SseStream::new(events))
    /// }
    /// ```
    ///
    /// A snapshot with an event per score:
    ///
    /// ```
    /// # use tower_sse::{Event, hub::Subscription};
    /// fn begin(events: Subscription, scores: &[u32]) -> Subscription {
    ///     events.begin_with(scores.iter().map(|score| Event::display(score).event("score")))
    /// }
    /// ```
    #[must_use]
    pub fn begin_with(mut self, snapshot: impl IntoIterator<Item = Event>) -> Self {
        if self.gap.is_some() || self.is_undecided() {
            // `subscribed_at` may be smaller than the cursor if events were already read.
            self.cursor = if self.is_unsure() { self.subscribed_at } else { self.cursor.max(self.subscribed_at) };
            self.replay = None;
        }
        self.reset_readers();
        let mut events: Vec<_> = snapshot.into_iter().map(Event::without_id).collect();
        let last = events.pop().map(|last| last.id(self.cursor()));
        self.beginning = last.map(|last| {
            let item = if events.is_empty() { last.into() } else { events.into_iter().chain([last]).collect() };
            Box::new(Beginning::Item(item))
        });
        self
    }

    /// Begins the stream with the [`cursor`](Self::cursor).
    ///
    /// The cursor is the id of an event of type `hub-cursor` with empty data. Pages need no listener
    /// for it. An id alone would dispatch no event (HTML standard, §9.2.6), but Firefox and WebKit
    /// ignore an id without data and would reconnect without an id, and several Python clients report
    /// it as an empty `message`.
    ///
    /// A response does this by itself. Use this method if the subscription is not polled by a
    /// response, for example if a task forwards its events.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::sync::mpsc;
    /// # use tokio_stream::StreamExt;
    /// # use tower_sse::{EncodedEvents, LastEventId, hub::{Error, Hub}};
    /// async fn forward(hub: &Hub, last: LastEventId, to: mpsc::Sender<EncodedEvents>) -> Result<(), Error> {
    ///     let mut news = hub.topic("news").subscribe(last).await?.begin_with_cursor();
    ///     while let Some(Ok(events)) = news.next().await {
    ///         if to.send(events).await.is_err() {
    ///             break;
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn begin_with_cursor(mut self) -> Self {
        if self.beginning.is_none() {
            let cursor = EncodedEvents::from_parts(self.cursor_event().encode(), 0);
            self.beginning = Some(Box::new(Beginning::Item(cursor)));
        }
        self
    }

    /// Sends only published events: no `hub-cursor` and no `gap`.
    ///
    /// Use it for clients that reject an event of an unknown type. OpenAI's libraries, for example,
    /// parse all data as JSON. It has these effects:
    ///
    /// - A new client that loses its connection before the first event reconnects without an id.
    /// - If events are missing at the beginning, only [`gap`](Self::gap) reports it. The handler
    ///   decides how it responds.
    /// - If events are missing later, the stream ends with [`SubscriptionError::Lagged`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{LastEventId, SseStream, hub::{Error, Hub, Start, Subscription}};
    /// async fn completions(hub: &Hub, answer: &str, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    ///     let tokens = hub.topic(answer).subscribe(last.or(Start::Earliest)).await?;
    ///     Ok(SseStream::new(tokens.without_control_events()))
    /// }
    /// ```
    #[must_use]
    pub fn without_control_events(mut self) -> Self {
        self.has_control_events = false;
        self.beginning.take_if(|beginning| matches!(**beginning, Beginning::Gap(_)));
        self
    }

    /// Sets the treatment of this client if it lags, in place of the setting of the hub.
    #[must_use]
    pub fn lag_policy(mut self, policy: LagPolicy) -> Self {
        self.lag_policy = policy;
        self
    }

    /// Delivers events in groups: after a write, the subscription waits for this time for more
    /// events. Default: zero, no pause, or the setting of the [hub](super::Builder::linger).
    ///
    /// A write to a socket costs the server far more than the event in it. With a topic of 200
    /// events per second and a pause of 25 milliseconds, a client gets 40 writes per second instead
    /// of 200. An event arrives up to `time` later.
    ///
    /// - The first event after a silence of `time` is not delayed.
    /// - A client that has more to read than one write gets all of it without a pause.
    /// - The end of a topic and a [shutdown](super::Hub::shutdown) end the pause.
    /// - Heartbeats are sent as without a pause. An event that waits does not postpone a heartbeat.
    ///
    /// The pause should be much shorter than the time that the topics retain events. Otherwise the
    /// client lags, and gets a gap after the pause.
    ///
    /// # Panics
    ///
    /// The stream panics when a pause begins outside of a tokio runtime with timers.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_sse::{LastEventId, hub::{Error, Hub, Subscription}};
    /// async fn prices(hub: &Hub, last: LastEventId) -> Result<Subscription, Error> {
    ///     Ok(hub.topic("prices").subscribe(last).await?.linger(Duration::from_millis(25)))
    /// }
    /// ```
    #[must_use]
    pub fn linger(mut self, time: Duration) -> Self {
        if time.is_zero() {
            if let Some(merge) = &mut self.merge {
                merge.linger = None;
            }
            return self;
        }
        let merge = self.merge.get_or_insert_with(|| Box::new(Merge::new(&self.readers)));
        merge.linger = Some(Linger::new(time));
        let ready = &merge.ready;
        for reader in &*self.readers {
            let replaced = reader.topic.lock().lingering.insert(Arc::as_ptr(ready).addr(), ready.clone());
            drop(replaced);
        }
        self
    }

    /// Lingers as the hub is configured.
    pub(super) fn with_default_linger(self) -> Self {
        let time = self.core.config.linger;
        self.linger(time)
    }

    /// Returns whether a gap after the beginning ends the subscription.
    pub(super) fn ends_at_gap(&self) -> bool {
        self.lag_policy == LagPolicy::Disconnect || !self.has_control_events
    }

    /// Returns the first bytes of a response: the cursor, or no bytes.
    fn first_bytes(&self) -> Bytes {
        if self.beginning.is_none() && self.has_control_events && !self.is_unsure() {
            self.cursor_event().encode()
        } else {
            Bytes::new()
        }
    }

    /// See [`begin_with_cursor`](Self::begin_with_cursor).
    fn cursor_event(&self) -> Event {
        Event::checkpoint(self.cursor()).event("hub-cursor")
    }

    /// Returns the event for a gap. Its id is the cursor, so a client that reconnects immediately
    /// resumes after the gap.
    fn gap_event(&self, gap: &Gap) -> Event {
        let data = serde_json::json!({
            "reason": gap.reason.as_str(),
            "requested": gap.requested.as_str(),
            "resumed": gap.resumed.as_ref().map(EventId::as_str),
        });
        Event::display(data).event("gap").id(self.cursor())
    }

    /// Returns an event of a topic with the cursor as its id.
    fn at_cursor(&self, event: EncodedEvents) -> EncodedEvents {
        let count = event.count();
        let bytes = event.into_bytes();
        // The log puts the id into the first line.
        let id_line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        match Event::from_wire(&bytes[id_line..]) {
            Some(event) => event.id(self.cursor()).into(),
            None => EncodedEvents::from_parts(bytes.slice(id_line..), count),
        }
    }

    /// Makes all readers look at their topics again.
    pub(super) fn reset_readers(&mut self) {
        self.readers.iter_mut().for_each(Reader::reset);
        self.reset_merge();
    }

    fn reset_merge(&mut self) {
        self.wait = None;
        if let Some(merge) = &mut self.merge {
            merge.reset(&self.readers);
        }
    }

    fn step(&mut self, waker: &Waker) -> Step {
        match (&mut self.readers[..], &mut self.merge) {
            ([], _) => Step::Finished,
            (readers, Some(merge)) => {
                let lingers = merge.linger.as_ref().is_some_and(Linger::is_next);
                let waker = Some(waker).filter(|_| !lingers);
                merge.step(readers, || self.core.committed(), &self.core.wake_queue, self.cursor, waker)
            }
            ([only, ..], None) => only.read(self.cursor, waker, &mut self.wait),
        }
    }

    /// Skips to the oldest retained event, and returns the gap event.
    fn skip(&mut self) -> Event {
        let requested = self.cursor();
        let through = self.core.committed();
        let mut point = ResumePoint::START;
        for reader in &mut *self.readers {
            let contents = reader.topic.lock();
            reader.gap_reported_through = contents.log.evicted_through();
            let from = reader.resumes_after(self.cursor);
            let first = contents.log.first_after(from);
            point = point.and(ResumePoint::of(first, from.max(through)));
            // A state keeps its place. Otherwise a topic that lags all the time would starve it.
            let is_state = contents.latest_only;
            drop(contents);
            reader.reset_after_gap(first.filter(|_| is_state));
        }
        self.reset_merge();
        self.cursor = point.cursor;
        self.report_gap(GapReason::Lagged, requested, point.first.filter(|first| *first <= through))
    }

    /// Ends the subscription with an error, before its topics are finished.
    pub(super) fn fail(&mut self, error: SubscriptionError) -> SubscriptionError {
        self.leave();
        self.has_failed = true;
        error
    }

    fn leave(&mut self) {
        if self.readers.is_empty() {
            return;
        }
        for reader in &mut *mem::take(&mut self.readers) {
            if let Some(merge) = &self.merge {
                let removed = reader.topic.lock().lingering.remove(&Arc::as_ptr(&merge.ready).addr());
                drop(removed);
            }
            self.core.leave(&reader.topic, &mut reader.ticket);
        }
        self.core.left();
    }

    /// Returns the next item, without the preamble of a response.
    pub(super) fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, SubscriptionError>>> {
        if let Some(beginning) = self.beginning.take() {
            let (Beginning::Gap(item) | Beginning::Item(item)) = *beginning;
            return Poll::Ready(Some(Ok(Item::of_hub(item))));
        }
        loop {
            if self.replay.is_some() {
                if let Some(item) = ready!(self.poll_replay(cx)) {
                    return Poll::Ready(Some(item));
                }
            }
            if let Some(Merge { linger: Some(linger), ready, .. }) = self.merge.as_deref_mut() {
                ready!(linger.poll(ready, cx));
            }
            let step = self.step(cx.waker());
            if let Some(linger) = self.merge.as_mut().and_then(|merge| merge.linger.as_mut()) {
                match step {
                    Step::Wait if linger.is_next() => {
                        linger.begin();
                        continue;
                    }
                    Step::Wait | Step::Yield => {}
                    _ => linger.note_delivery(),
                }
            }
            return match step {
                Step::Events(events, last) => {
                    self.cursor = last;
                    Poll::Ready(Some(Ok(self.item(events))))
                }
                Step::Replacement(events, place) => {
                    self.cursor = place;
                    Poll::Ready(Some(Ok(self.item(self.at_cursor(events)))))
                }
                Step::CaughtUp(position) => {
                    self.cursor = position;
                    if !self.has_control_events {
                        continue;
                    }
                    let cursor = EncodedEvents::from_parts(self.cursor_event().encode(), 0);
                    Poll::Ready(Some(Ok(Item::of_hub(cursor))))
                }
                Step::Wait => Poll::Pending,
                Step::Yield => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Step::Shutdown => Poll::Ready(Some(Err(self.fail(SubscriptionError::Shutdown)))),
                Step::Finished => {
                    self.leave();
                    Poll::Ready(None)
                }
                Step::Evicted if self.core.backend.is_some() => {
                    self.replay_after_lag();
                    continue;
                }
                Step::Evicted if self.ends_at_gap() => {
                    self.core.count_gap(GapReason::Lagged);
                    Poll::Ready(Some(Err(self.fail(SubscriptionError::Lagged))))
                }
                Step::Evicted => Poll::Ready(Some(Ok(Item::of_hub(self.skip())))),
            };
        }
    }

    /// Returns an item of the topic whose events the last step has returned.
    fn item(&self, events: EncodedEvents) -> Item {
        let reader = self.merge.as_ref().map_or(0, |merge| merge.last_turn);
        Item { events, topics: Topics::Reader(reader) }
    }
}

impl Stream for Subscription {
    type Item = Result<EncodedEvents, SubscriptionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if !mem::replace(this.has_preamble.get_mut(), true) && preamble::is_first_poll() {
            if this.is_finished() {
                trace::end_hidden();
            }
            let bytes = this.first_bytes();
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(EncodedEvents::from_parts(bytes, 0))));
            }
        }
        this.poll_item(cx).map(|item| item.map(|item| item.map(|item| item.events)))
    }

    /// Returns `(0, Some(0))` once the subscription [is finished](Self::is_finished).
    fn size_hint(&self) -> (usize, Option<usize>) {
        let is_over = self.is_finished();
        let is_offered = Preamble::offer(|| Preamble { bytes: self.first_bytes(), is_over });
        self.has_preamble.fetch_or(is_offered, Ordering::Relaxed);
        (0, is_over.then_some(0))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("cursor", &self.cursor()).field("gap", &self.gap).finish_non_exhaustive()
    }
}
