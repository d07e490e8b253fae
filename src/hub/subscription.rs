use super::{
    backend::Position,
    core::Core,
    error::SubscriptionError,
    gap::{Gap, GapReason, LagPolicy},
    id::Epoch,
    item::{Item, Topics},
    linger::Linger,
    merge::Merge,
    presence::Memberships,
    reader::{Reader, Step, Wait},
    readers::Readers,
    replay::Replay,
    resume::ResumePoint,
};
use crate::{
    EncodedEvents, Event, EventId,
    preamble::{self, Preamble, Purpose, ResponseNumber},
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

/// A stream of the events of one or more topics, for one client.
///
/// A handler of axum can return a subscription, or
/// [`SseStream::new(subscription)`](crate::SseStream::new), with the same result:
///
/// - The response begins with the [`cursor`](Self::cursor), the id of the client's position in the
///   log, as an event that [`begin_with_cursor`](Self::begin_with_cursor) describes. So a client
///   that loses its connection before the first event resumes at the same position.
///   [`without_control_events`](Self::without_control_events) omits this event.
/// - In a hub with a [backend](super#several-nodes), the client gets its newest cursor as a further
///   event of this type, at a heartbeat and at an early end of the response. The cursor moves
///   without an event of the client's topics if other topics have events.
/// - If all topics are finished and the client has received their events, the response is `204 No
///   Content`. An `EventSource` then does not reconnect.
///
/// As a stream, a subscription yields events as wire bytes. Clients at the same position share
/// these bytes. An item can contain many events.
///
/// A subscription is a cursor, not a queue: its memory does not grow if its client is slow. The
/// topics retain the events for all subscriptions. If a client is so slow that its next event was
/// evicted, its [`LagPolicy`] decides: the client gets a [`Gap`], or is disconnected.
///
/// # Adapters
///
/// Most adapters (`map`, `filter`, `merge`, `take_until` …) forward the response's calls of
/// [`size_hint`](Stream::size_hint) and `poll_next`. During these calls, the subscription detects
/// the response. So the event with the cursor and the status 204 also work with an adapter, each
/// under a condition:
///
/// - The response begins with the cursor if the first poll of its body polls the subscription. If a
///   separate task polls the subscription and forwards the events, call
///   [`begin_with_cursor`](Self::begin_with_cursor). The adapter does not get this first cursor as
///   an item. Several subscriptions with different cursors have no common cursor to begin with.
/// - Under the same condition, the response asks the subscription for its newest cursor at
///   heartbeats and at an early end, also at a [shutdown](super::Hub::shutdown) of the hub. The
///   adapter gets such a cursor as an item whose [`count`](EncodedEvents::count) is 0. The adapter
///   must keep the order of its items, because a cursor means that the client has every earlier
///   event. An adapter over several subscriptions or [listeners](super::Listener) gets no such
///   cursors, because the cursor of one subscription can be after an undelivered event of another.
///   Such an adapter must poll all of them from the beginning: the response does not know of a
///   subscription that was never polled, such as the second one of a `chain`.
/// - `204 No Content` needs an adapter that adds no event and forwards
///   [`size_hint`](Stream::size_hint), as most adapters do. For other adapters, such as `select` of
///   `futures-util` or a generator, use [`SseStream::map_stream`](crate::SseStream::map_stream).
///   With the feature `tracing`, a warning is logged if a finished subscription is answered with
///   200.
///
/// A stream can also use a subscription only as a signal, for example in the future of
/// `take_until`. Set this subscription to [`without_control_events`](Self::without_control_events),
/// or use [`Hub::listen`](super::Hub::listen). Both yield only published events and errors.
/// Otherwise a gap event would count as the signal, and with several nodes also a cursor after a
/// replay, at a heartbeat or at a shutdown. The response could also begin with the cursor of the
/// signal, but only if no subscription gets the response's call of `size_hint`.
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
/// ends earlier with a [`SubscriptionError`] in these cases:
///
/// - The hub is shut down. The stream first yields the published events that this process retains.
///   It may then yield the newest cursor as an event of type `hub-cursor`, but only if a response
///   polls it.
/// - Another log replaces the log of the backend.
/// - Events for a slow client were evicted, and the client gets no gap event: with
///   [`LagPolicy::Disconnect`], and with [`without_control_events`](Self::without_control_events).
///
/// A subscription keeps its hub alive, even after every [`Hub`](super::Hub) and
/// [`Topic`](super::Topic) was dropped.
#[must_use = "a subscription yields events only if it is polled"]
pub struct Subscription {
    pub(super) core: Arc<Core>,
    /// The epoch of the log that the positions in this subscription belong to. An epoch is a number
    /// that identifies one lifetime of a log. A log that replaces this log has another epoch.
    pub(super) epoch: Epoch,
    /// The readers of this subscription. Each reader reads one topic, and each topic has one
    /// reader. Empty after the end of the subscription.
    pub(super) readers: Readers,
    /// Merges the events of several topics in the order of the log. Also contains the timer of
    /// [`linger`](Self::linger), the pause that a subscription can make after each write to its
    /// client. `None` for a subscription to a single topic that makes no pauses.
    merge: Option<Box<Merge>>,
    /// The position of this subscription in the log. Every event of its topics up to this position
    /// was delivered to the client, or reported as missing.
    pub(super) cursor: Position,
    /// The position of the last event in the log when the subscription was created. If events after
    /// the client's id are missing, the application can begin the subscription with a snapshot of
    /// its state. The subscription then continues after this position, because the snapshot
    /// replaces all earlier events.
    subscribed_at: Position,
    /// The item that the subscription yields before all events of its topics, such as a snapshot or
    /// a gap event.
    pub(super) beginning: Option<Box<Beginning>>,
    gap: Option<Box<Gap>>,
    /// The replay in progress: it reads old events from the backend, because this process has
    /// evicted them. `None` if no replay is in progress.
    pub(super) replay: Option<Box<Replay>>,
    /// The state of a subscription to a single topic while it waits for the next change of the
    /// topic: the registered waker, and the value of the topic's change counter when the wait
    /// began. Used only if `merge` is `None`, because a [`Merge`] stores its own waker.
    wait: Option<Wait>,
    pub(super) lag_policy: LagPolicy,
    pub(super) origin: Origin,
    /// `true` if the client gets the events that the hub itself sends: `hub-cursor`, whose id is
    /// the position of the client, and `gap`, which reports missing events.
    pub(super) has_control_events: bool,
    /// `true` if the subscription was polled, or has passed its preamble to a response. The
    /// preamble is the first bytes of a response, or the status 204. A response gets it when it
    /// calls `size_hint` of its stream, or at the first poll. Later polls pass no preamble.
    has_preamble: AtomicBool,
    /// The number of the HTTP response that last polled this subscription, directly or through the
    /// listener that contains the subscription.
    pub(super) polled_by: ResponseNumber,
    /// `true` if the last id of the client may be older than the cursor, the position of this
    /// subscription. The reason is a page of old records that was read from the backend. It moves
    /// the cursor to the end of the page, but the client gets only the ids of its own events in the
    /// page. The next heartbeat then sends the cursor.
    pub(super) has_unsent_cursor: bool,
    /// `true` if the subscription has ended with an error, and not because all of its topics are
    /// finished.
    has_failed: bool,
    /// The members that [`Topic::join`](super::Topic::join) has added to this subscription. A
    /// member is a name that is present in a topic while a subscription for this member exists,
    /// such as the user of the client.
    pub(super) memberships: Option<Box<Memberships>>,
}

/// The item that a subscription yields before all events of its topics.
pub(super) enum Beginning {
    /// The event of type `gap`, which reports to the client that events before the first event of
    /// the subscription are missing.
    Gap(EncodedEvents),
    /// A snapshot: events that describe the state of the application. The application has passed
    /// them to [`begin_with`](Subscription::begin_with).
    Snapshot(EncodedEvents),
    /// The event of type `hub-cursor`, which contains only the cursor. A client that loses its
    /// connection before the first event of a topic then resumes at this position.
    Cursor(EncodedEvents),
}

/// The point where a subscription begins: at live events, at retained events, or after the last id
/// of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The subscription begins with live events: it delivers only events that were published after
    /// it was created.
    Live,
    /// The subscription begins with retained events, or with a gap. A subscription also has this
    /// origin while it waits for the backend, so that it is unknown whether events are missing.
    Replay,
    /// The subscription continues from the last id of its client, and no event is missing.
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
            polled_by: ResponseNumber::default(),
            has_unsent_cursor: false,
            has_failed: false,
            memberships: None,
        }
    }

    /// Sets how the subscription begins for a client that has sent the id `requested`. Has no
    /// effect if `requested` is `None`.
    ///
    /// If `reason` is `None`, the client continues after its id without a gap, and `resumed` is
    /// ignored. Otherwise events after the id are or may be missing for this reason, and the
    /// subscription begins with a gap event. `resumed` is then the position of the first event
    /// after the gap, if it is known.
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

    /// Records that events after the id `requested` are missing: stores this gap, which
    /// [`gap`](Self::gap) returns to the application, and counts it in the metrics. Returns the gap
    /// event for the client. `resumed` is the position of the first event after the gap, if it is
    /// known.
    pub(super) fn report_gap(&mut self, reason: GapReason, requested: EventId, resumed: Option<Position>) -> Event {
        self.count_gap(reason);
        let gap = Gap { reason, requested, resumed: resumed.map(|number| self.epoch.id(number)) };
        let event = self.gap_event(&gap);
        self.gap = Some(Box::new(gap));
        event
    }

    /// Returns the last gap of the subscription, a range of events that the client misses. The gap
    /// is at the beginning, or follows later because the client was too slow. The client gets each
    /// gap as an event of type `gap`. At the beginning, a [snapshot](Self::begin_with) replaces
    /// this event.
    ///
    /// Returns `None` if no event is missing. During an outage of the backend, it can also be
    /// unknown whether events after the client's id are missing. In this case, `gap` returns
    /// `None`, and [`is_resumed`](Self::is_resumed) returns `false`.
    ///
    /// # Examples
    ///
    /// The handler knows of the gap before it responds. So it can send the current state, or report
    /// the missing events in the application's own logs:
    ///
    /// ```
    /// use tower_sse::{Event, hub::{GapReason, Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::builder().max_events(2).build();
    /// let scores = hub.topic("scores");
    /// let last = scores.publish(Event::new("1 : 0")).await?;
    /// scores.publish(Event::new("1 : 1")).await?;
    /// let oldest = scores.publish(Event::new("2 : 1")).await?;
    /// scores.publish(Event::new("3 : 1")).await?;
    ///
    /// // The client has missed three events, and the hub retains only two of them.
    /// let events = scores.subscribe(Start::After(last.clone())).await?;
    /// let gap = events.gap().unwrap();
    /// assert_eq!(gap.reason(), GapReason::Evicted);
    /// assert_eq!((gap.requested(), gap.resumed()), (&last, Some(&oldest)));
    /// let events = events.begin_with(Event::new("3 : 1"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn gap(&self) -> Option<&Gap> {
        self.gap.as_deref()
    }

    /// Returns `true` if the subscription continues after the last id of its client, and no event
    /// is missing.
    ///
    /// Returns `false` for a client without an id, and if there is or may be a [gap](Self::gap). In
    /// these cases, the next events do not continue from the client's state. The handler can send a
    /// snapshot of the state with [`begin_with`](Self::begin_with).
    ///
    /// # Examples
    ///
    /// Only clients that need the state get it:
    ///
    /// ```
    /// use tower_sse::{Event, hub::{Hub, Start, Subscription}};
    ///
    /// fn with_total(events: Subscription, total: u32) -> Subscription {
    ///     if events.is_resumed() { events } else { events.begin_with(Event::display(total).event("total")) }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let votes = hub.topic("votes");
    /// let last = votes.publish(Event::new("+1")).await?;
    /// let returning = votes.subscribe(Start::After(last)).await?;
    /// assert!(returning.is_resumed());
    /// let new = votes.subscribe(Start::Latest).await?;
    /// assert!(!new.is_resumed());
    /// # with_total(new, 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.origin == Origin::Resumed
    }

    /// Returns the cursor, the id of the current position. The client has received every event of
    /// its topics up to this id, or was notified of a gap. A client that reconnects with this id
    /// receives all events that were not delivered yet.
    ///
    /// # Examples
    ///
    /// A program that forwards events stores the cursor. After a restart, it continues there:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let news = hub.topic("news");
    /// let mut events = news.subscribe(Start::Latest).await?;
    /// let first = news.publish(Event::new("one")).await?;
    /// events.next().await;
    /// let stored = events.cursor();
    /// assert_eq!(stored, first);
    /// drop(events);
    ///
    /// news.publish(Event::new("two")).await?;
    /// let mut events = news.subscribe(Start::After(stored)).await?;
    /// assert!(events.gap().is_none());
    /// assert_eq!(events.next().await.unwrap().unwrap().count(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.epoch.id(self.resume_position())
    }

    /// Returns `true` if all topics are finished and the stream has no more items. A response to
    /// such a subscription is `204 No Content`. Returns `false` if the stream has ended with an
    /// error.
    ///
    /// # Examples
    ///
    /// A web page that reads the response with `fetch` has no use for a 204. The handler sends it a
    /// last event with the status 200 instead:
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_sse::{Event, SseStream, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let answer = hub.topic("answers/42");
    /// let last = answer.publish(Event::new("world")).await?;
    /// answer.finish().await?;
    ///
    /// let mut events = answer.subscribe(Start::After(last)).await?;
    /// if events.is_finished() {
    ///     events = events.begin_with(Event::new("").event("done"));
    /// }
    /// assert_eq!(SseStream::new(events).into_http_response().status(), StatusCode::OK);
    /// # Ok(()) }
    /// ```
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

    /// Begins the stream with a snapshot: one or several events that describe the application's
    /// state, which the following events change.
    ///
    /// The last event of the snapshot gets the [`cursor`](Self::cursor) as its id. The other events
    /// get no id, so a client that loses its connection within the snapshot does not continue in
    /// the middle of it. Ids that the events of the snapshot had before are removed. The last event
    /// needs data or a name, because not all browsers apply an id without data. The snapshot is one
    /// item of the stream. If `snapshot` contains no event, a response begins with the
    /// [`hub-cursor`](Self::begin_with_cursor) event instead.
    ///
    /// If there is or may be a [gap](Self::gap), the snapshot replaces the gap event and all
    /// retained events of all topics. The subscription then continues with the events that were
    /// published after the subscription was created. So the snapshot must contain the current data
    /// of every topic, also of a [state](super::Topic::latest_only). If it does not, for example
    /// because it lists only [members](super::Topic::members), put the event in front of the
    /// subscription with `tokio_stream::StreamExt::chain` instead.
    ///
    /// The snapshot must be exactly the state at the cursor. There are two ways to ensure that:
    ///
    /// - Publishers and the handler share a lock, as in the first example. Publishers hold it while
    ///   they change the state and publish. The handler holds it while it subscribes and reads the
    ///   state. This works in one process only.
    /// - The state contains the id of the event that changed the state last, and the subscription
    ///   begins [after](super::Start::After) that id. If the subscription then has a gap, the state
    ///   is too old. In this case, read a newer state and subscribe again. This also works with
    ///   [several nodes](super#several-nodes).
    ///
    /// Do not use [`Start::Earliest`](super::Start::Earliest) with a snapshot. It begins without a
    /// gap, so all retained events would follow the snapshot.
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
            Box::new(Beginning::Snapshot(item))
        });
        self
    }

    /// Begins the stream with an event that contains only the [`cursor`](Self::cursor). A client
    /// that loses its connection before the first event then resumes at this position.
    ///
    /// The event has the type `hub-cursor` and empty data, and its id is the cursor. A web page
    /// needs no listener for this event. The HTML standard (§9.2.6) allows an id without an event.
    /// But Firefox ignores such an id, WebKit applies it only with the next event that has data,
    /// and several Python clients report it as an empty `message`.
    ///
    /// A response to a subscription begins with this event anyway. Call this method if the
    /// subscription is not polled by a response, for example if a task forwards its events. Has no
    /// effect if the subscription begins with the event of a [gap](Self::gap) or with a
    /// [snapshot](Self::begin_with), or is [without control events](Self::without_control_events).
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
    pub fn begin_with_cursor(mut self) -> Self {
        if self.beginning.is_none() && self.has_control_events {
            self.beginning = Some(Box::new(Beginning::Cursor(self.encoded_cursor())));
        }
        self
    }

    /// Omits the hub's own events: [`hub-cursor`](Self::begin_with_cursor), and `gap`, which
    /// reports [missing events](super::Gap).
    ///
    /// Use this method for clients that fail at an event of an unknown type. For example, OpenAI's
    /// libraries parse all data as JSON. The method has these effects:
    ///
    /// - A client without an id that loses its connection before the first event reconnects without
    ///   an id.
    /// - If events are missing at the beginning, the client is not notified. The handler can check
    ///   [`gap`](Self::gap) and choose another response.
    /// - If events are missing later, the stream ends with [`SubscriptionError::Lagged`].
    /// - In a hub with a [backend](super#several-nodes), the id of a client whose topics have no
    ///   events gets old. When the backend has evicted the events up to this id and more, a client
    ///   that reconnects can have a [`gap`](Self::gap), although it has missed nothing.
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
    pub fn without_control_events(mut self) -> Self {
        self.has_control_events = false;
        self.beginning.take_if(|beginning| !matches!(**beginning, Beginning::Snapshot(_)));
        self
    }

    /// Sets what happens if this client is slower than the retention of its topics, so that its
    /// next event was evicted. Overrides the [setting of the hub](super::Builder::lag_policy).
    ///
    /// # Examples
    ///
    /// A slow client is disconnected. When it returns, its handler can begin with a snapshot, which
    /// is not possible in the middle of a stream:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, LagPolicy, Start, SubscriptionError}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::builder().max_events(1).build();
    /// let prices = hub.topic("prices");
    /// let mut slow = prices.subscribe(Start::Latest).await?.lag_policy(LagPolicy::Disconnect);
    /// prices.publish(Event::new("17.20")).await?;
    /// prices.publish(Event::new("17.25")).await?;
    /// assert_eq!(slow.next().await, Some(Err(SubscriptionError::Lagged)));
    /// # Ok(()) }
    /// ```
    pub fn lag_policy(mut self, policy: LagPolicy) -> Self {
        self.lag_policy = policy;
        self
    }

    /// Delivers events in groups: after a write, the subscription pauses for `time`, and delivers
    /// the events that arrive in the pause together. Zero means no pause. Default: the setting of
    /// the [hub](super::Builder::linger), which is zero unless it was changed.
    ///
    /// A write to a socket costs the server far more than the event in it. With a topic of 200
    /// events per second and a pause of 25 milliseconds, a client gets 40 writes per second instead
    /// of 200. An event arrives up to `time` later.
    ///
    /// - The first event after a silence of `time` is not delayed.
    /// - A client that is behind gets all available events without a pause.
    /// - The end of a topic and a shutdown of the [hub](super::Hub::shutdown) end the pause. A
    ///   shutdown of a [layer](crate::SseLayer::shutdown) ends it after the flush time. The events
    ///   that wait are sent.
    /// - The pause does not change when heartbeats are sent. An event that waits for the end of the
    ///   pause does not postpone a heartbeat.
    ///
    /// The pause should be much shorter than the retention time of the topics. Otherwise events are
    /// evicted during the pause, and the client gets a gap.
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
            let replaced = reader.topic.lock().add_lingering(ready);
            drop(replaced);
        }
        self
    }

    /// Makes the subscription pause after each write to its client, for the time in the settings of
    /// the hub. See [`linger`](Self::linger).
    pub(super) fn with_default_linger(self) -> Self {
        let time = self.core.config.linger;
        self.linger(time)
    }

    /// Returns `true` if the subscription ends with an error when its client was so slow that the
    /// next event was evicted. Otherwise a gap event reports the missing events. Does not apply to
    /// a gap at the beginning of the subscription.
    pub(super) fn ends_at_gap(&self) -> bool {
        self.lag_policy == LagPolicy::Disconnect || !self.has_control_events
    }

    /// Returns the bytes that a response sends first: an event of type `hub-cursor`. Its id is the
    /// cursor, the position where a client resumes when it reconnects. Returns no bytes if the
    /// client gets no `hub-cursor` events, or if the subscription has an item to yield before its
    /// events, such as a snapshot or a gap event. Also returns no bytes if the cursor may be after
    /// the end of the log, because the backend has not responded yet.
    fn first_bytes(&self) -> Bytes {
        if self.beginning.is_none() && self.has_control_events && !self.is_unsure() {
            self.cursor_event().encode()
        } else {
            Bytes::new()
        }
    }

    /// Returns the preamble for the HTTP response: its first bytes, and whether its status is 204.
    /// The status is 204 if `is_over` is `true`, because all topics are finished and the client has
    /// their events.
    fn preamble(&self, is_over: bool) -> Preamble {
        let is_returning = self.origin != Origin::Live;
        Preamble { bytes: self.first_bytes(), is_over, has_subscription: true, is_returning }
    }

    /// Returns the event of type [`hub-cursor`](Self::begin_with_cursor). Its id is the
    /// [`cursor`](Self::cursor), after which a client resumes.
    fn cursor_event(&self) -> Event {
        Event::checkpoint(self.cursor()).event("hub-cursor")
    }

    /// Returns the event of type `hub-cursor` as an item of the stream. Its id is the cursor, the
    /// position where a client that reconnects resumes. The [`count`](EncodedEvents::count) of the
    /// item is 0, which distinguishes the item from published events.
    fn encoded_cursor(&self) -> EncodedEvents {
        EncodedEvents::from_parts(self.cursor_event().encode(), 0)
    }

    /// Moves the cursor to the newest position up to which the client has received every event of
    /// its topics. Returns the cursor as an event of type `hub-cursor`, or `None` if the client
    /// already has this cursor.
    ///
    /// While the topics of a client are quiet, the log continues with events of other topics. Once
    /// the log has evicted such an event, a client that resumes from an earlier cursor gets a gap,
    /// although it has missed nothing.
    ///
    /// Also returns `None` if the client gets no `hub-cursor` events, or if a snapshot, a gap event
    /// or other events have to be delivered first.
    fn newer_cursor(&mut self) -> Option<EncodedEvents> {
        if !self.has_control_events {
            return None;
        }
        // Read the position before the topics. So the topics contain every event up to it.
        let topic = &self.readers.first()?.topic;
        let position = self.core.newer_position(topic, self.cursor, self.has_unsent_cursor)?;
        if !self.is_caught_up() {
            return None;
        }
        self.cursor = position;
        self.has_unsent_cursor = false;
        Some(self.encoded_cursor())
    }

    /// Returns `true` if a snapshot, a gap event or events from the backend still have to be
    /// delivered, before the events that the local node retains.
    pub(super) fn has_beginning(&self) -> bool {
        self.beginning.is_some() || self.replay.is_some()
    }

    /// Returns `true` if the client has received every event of its topics that the local node
    /// knows.
    pub(super) fn is_caught_up(&mut self) -> bool {
        if self.has_beginning() {
            return false;
        }
        match (&self.readers[..], &mut self.merge) {
            (readers, Some(merge)) => merge.is_caught_up(readers, &self.core.wake_queue, self.cursor),
            (readers, None) => readers.iter().all(|reader| reader.is_caught_up(self.cursor)),
        }
    }

    /// Returns the event that reports `gap` to the client. The id of the event is the cursor of the
    /// subscription, so a client that reconnects with this id continues after the gap.
    fn gap_event(&self, gap: &Gap) -> Event {
        let data = serde_json::json!({
            "reason": gap.reason.as_str(),
            "requested": gap.requested.as_str(),
            "resumed": gap.resumed.as_ref().map(EventId::as_str),
        });
        Event::display(data).event("gap").id(self.cursor())
    }

    /// Replaces the id of `event` by the cursor, the position of the subscription. Used for the
    /// newest event of a `latest_only` topic (each event replaces the previous event). This event
    /// is delivered early, at the place of an older event that it has replaced. Its own id can be
    /// greater than the ids of undelivered events of other topics, so a client that reconnects with
    /// this id would miss these events.
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

    /// Discards the cached position of the next event in each topic, so that the next poll looks
    /// for the next events again. Called when the cached positions may be wrong: after the cursor
    /// of the subscription was moved, or after a page of old events was read from the backend.
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

    /// Moves the cursor, the position after which the subscription continues, past evicted events,
    /// because the client was too slow. The next event is then the oldest retained event. Records
    /// the gap, and returns the gap event for the client.
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
            // A `latest_only` topic keeps its place in the order of delivery. Otherwise another
            // topic that lags all the time, with gap after gap, would starve it.
            let is_state = contents.latest_only;
            drop(contents);
            reader.reset_after_gap(first.filter(|_| is_state));
        }
        self.reset_merge();
        self.cursor = point.cursor;
        self.report_gap(GapReason::Lagged, requested, point.first.filter(|first| *first <= through))
    }

    /// Ends the subscription with `error`: removes it from its topics, so that it yields no more
    /// events. Returns `error`, for the caller to yield.
    pub(super) fn fail(&mut self, error: SubscriptionError) -> SubscriptionError {
        self.leave();
        self.has_failed = true;
        error
    }

    fn leave(&mut self) {
        let Some(reader) = self.readers.first() else { return };
        self.core.left(&reader.topic.name);
        for reader in &mut *mem::take(&mut self.readers) {
            if let Some(merge) = &self.merge {
                let removed = reader.topic.lock().remove_lingering(&merge.ready);
                drop(removed);
            }
            self.core.leave(&reader.topic, &mut reader.ticket, reader.is_lookup);
        }
    }

    fn count_gap(&self, reason: GapReason) {
        if let Some(reader) = self.readers.first() {
            self.core.count_gap(&reader.topic.name, reason);
        }
    }

    /// Polls for the next events of the subscription. Returns them together with the topics that
    /// they belong to.
    ///
    /// At a shutdown of the hub, the subscription ends with an error. Before the error, it yields
    /// the events that this process retains, and its newest cursor (the id where the client
    /// resumes) if `purpose` is [`ItemsOfOne`](Purpose::ItemsOfOne) or
    /// [`Heartbeat`](Purpose::Heartbeat). With these purposes, the stream of the response contains
    /// no other subscription.
    pub(super) fn poll_item(
        &mut self,
        purpose: Purpose,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Item, SubscriptionError>>> {
        if let Some(beginning) = self.beginning.take() {
            let (Beginning::Gap(item) | Beginning::Snapshot(item) | Beginning::Cursor(item)) = *beginning;
            return Poll::Ready(Some(Ok(Item::of_hub(item))));
        }
        loop {
            if self.replay.is_some() {
                if let Some(item) = ready!(self.poll_replay(cx)) {
                    return Poll::Ready(Some(item));
                }
            }
            if let Some(Merge { linger: Some(linger), ready, .. }) = self.merge.as_deref_mut() {
                match purpose {
                    Purpose::LastItems => linger.end(),
                    _ => ready!(linger.poll(ready, cx)),
                }
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
                    self.has_unsent_cursor = false;
                    Poll::Ready(Some(Ok(self.item(events))))
                }
                Step::Replacement(events, place) => {
                    self.cursor = place;
                    self.has_unsent_cursor = false;
                    Poll::Ready(Some(Ok(self.item(self.at_cursor(events)))))
                }
                Step::CaughtUp(position) => {
                    self.cursor = position;
                    self.has_unsent_cursor = false;
                    if !self.has_control_events {
                        continue;
                    }
                    Poll::Ready(Some(Ok(Item::of_hub(self.encoded_cursor()))))
                }
                Step::Wait => Poll::Pending,
                Step::Yield => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Step::EarlyEnd(_) if purpose == Purpose::LastItems => Poll::Pending,
                Step::EarlyEnd(reason) => {
                    let is_alone = matches!(purpose, Purpose::ItemsOfOne | Purpose::Heartbeat);
                    let cursor = if is_alone { self.newer_cursor() } else { None };
                    // After a cursor, the next poll returns the error, because there is no newer
                    // cursor.
                    Poll::Ready(Some(match cursor {
                        Some(cursor) => Ok(Item::of_hub(cursor)),
                        None => Err(self.fail(reason.into())),
                    }))
                }
                Step::Finished => {
                    self.leave();
                    Poll::Ready(None)
                }
                Step::Evicted if self.core.backend.is_some() => {
                    self.replay_after_lag();
                    continue;
                }
                Step::Evicted if self.ends_at_gap() => {
                    self.count_gap(GapReason::Lagged);
                    Poll::Ready(Some(Err(self.fail(SubscriptionError::Lagged))))
                }
                Step::Evicted => Poll::Ready(Some(Ok(Item::of_hub(self.skip())))),
            };
        }
    }

    /// Returns `events` as an item of the subscription's stream, together with the index of their
    /// topic. The events were just read from this topic.
    fn item(&self, events: EncodedEvents) -> Item {
        let reader = self.merge.as_ref().map_or(0, |merge| merge.last_turn);
        Item { events, topics: Topics::Reader(reader) }
    }
}

impl Stream for Subscription {
    type Item = Result<EncodedEvents, SubscriptionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let purpose = preamble::purpose_of_poll(&mut this.polled_by);
        if !mem::replace(this.has_preamble.get_mut(), true) {
            Preamble::offer(|| this.preamble(this.is_finished()));
        }
        if purpose == Purpose::End {
            return this.newer_cursor().map_or(Poll::Pending, |cursor| Poll::Ready(Some(Ok(cursor))));
        }
        let item = this.poll_item(purpose, cx).map(|item| item.map(|item| item.map(|item| item.events)));
        if purpose == Purpose::Heartbeat && item.is_pending() {
            if let Some(cursor) = this.newer_cursor() {
                return Poll::Ready(Some(Ok(cursor)));
            }
        }
        item
    }

    /// Returns `(0, Some(0))` once the subscription [is finished](Self::is_finished). The response
    /// is then `204 No Content`. Otherwise, returns no upper bound.
    fn size_hint(&self) -> (usize, Option<usize>) {
        let is_over = self.is_finished();
        let is_offered = Preamble::offer(|| self.preamble(is_over));
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
