use super::{
    core::Core, error::Error, listener::Listener, presence, registry::check_reserved, retention::Retention,
    start::Start, subscriber_counts::SubscriberCounts, subscription::Subscription,
};
use crate::{Event, EventId};
use std::{fmt, sync::Arc};

/// A handle to one topic of a [`Hub`](super::Hub).
///
/// A topic is a label of events in the hub's log. Handles are cheap to create, clone and drop. A
/// handle alone does not create the topic, but publishing, subscribing and finishing do. A topic
/// without subscribers is dropped when its last event has expired. If the topic is created again, a
/// returning client that has missed events still gets a [gap](super::Gap), which reports that
/// events are missing.
///
/// # Examples
///
/// Streaming the answer of a language model, which continues even if no client reads it:
///
/// ```
/// use tokio_stream::{Stream, StreamExt};
/// use tower_sse::{Event, hub::{Error, Hub}};
///
/// async fn answer(hub: Hub, tokens: impl Stream<Item = String>) -> Result<(), Error> {
///     let answer = hub.topic("answer-42");
///     answer.publish(Event::new("").event("started")).await?;
///     let mut tokens = std::pin::pin!(tokens);
///     while let Some(token) = tokens.next().await {
///         answer.publish(Event::new(token)).await?;
///     }
///     println!("{} read it to its end", answer.subscribers());
///     answer.publish_all([Event::new("2 tokens").event("usage"), Event::default().event("done")]).await?;
///     answer.finish().await
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let hub = Hub::new();
/// # let reader = hub.topic("answer-42").subscribe(tower_sse::hub::Start::Latest).await?;
/// # answer(hub.clone(), tokio_stream::iter(["Hello".to_owned(), " world".to_owned()])).await?;
/// # assert_eq!(hub.stats().published, 5);
/// # assert_eq!(reader.map(|events| events.unwrap().count()).collect::<Vec<_>>().await.iter().sum::<usize>(), 5);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Topic {
    pub(super) core: Arc<Core>,
    pub(super) name: Arc<str>,
    pub(super) latest_only: bool,
    pub(super) retention: Option<Retention>,
    /// `true` if this handle is to a topic that the crate itself uses. The names of these topics
    /// begin with `tower-sse/`, and applications cannot use them.
    is_of_crate: bool,
}

impl Topic {
    pub(super) fn new(core: Arc<Core>, name: Arc<str>) -> Self {
        Self { core, name, latest_only: false, retention: None, is_of_crate: false }
    }

    /// Returns an error if the name of the topic is reserved for the crate, unless the crate itself
    /// uses this handle.
    pub(super) fn check_reserved(&self) -> Result<(), Error> {
        if self.is_of_crate { Ok(()) } else { check_reserved(&self.name) }
    }

    /// Allows this handle to use a topic whose name is reserved for the crate, because the crate
    /// itself uses the handle.
    #[cfg(feature = "json")]
    pub(super) fn of_crate(self) -> Self {
        Self { is_of_crate: true, ..self }
    }

    /// Makes each event of this topic replace the previous event. Such a topic is called a state.
    /// Use it for data without a history, such as presence or the progress of a job.
    ///
    /// The topic retains only its newest event. A client that reconnects, or that begins with
    /// retained events, receives this event unless the client has it already. Replaced events do
    /// not count as missing, so they cause no [gap](super::Gap).
    ///
    /// The setting takes effect when an event is published with this handle. From then on, each
    /// event of the topic replaces the previous events, even if it is published with another
    /// handle.
    ///
    /// # Retention
    ///
    /// The event of a state does not expire while the topic has subscribers. After the last
    /// subscriber has left, the event is retained for [`max_age`](super::Builder::max_age).
    ///
    /// With a backend, each node applies this rule to its own memory and its own subscribers. The
    /// backend removes the event after the retention of the backend, even if a node has
    /// subscribers. A node that still retains the event delivers it to its subscribers. In a
    /// subscription to several topics, the event then precedes the events that the node reads from
    /// the backend for the other topics. Nodes that start after this removal do not have the event.
    /// To keep the state on all nodes, publish the event again within the retention of the backend.
    ///
    /// A client whose subscription begins [after](super::Start::After) an id never receives an
    /// event with an older id. So if the id comes from a
    /// [snapshot](super::Subscription::begin_with) of the application's state, the snapshot must
    /// include the current data of this topic.
    ///
    /// # Slow clients
    ///
    /// In a subscription to several topics, frequent updates of one state do not hold back the
    /// other states. With K states, a client receives each of them at least once within 2K items of
    /// the stream. If an event was replaced before it was delivered, the client receives the newest
    /// event of its topic in its place. This has two consequences:
    ///
    /// - The newest event of a state may arrive before earlier events of other topics. It then
    ///   arrives with the id of the replaced event, which is smaller than the id that `publish`
    ///   returned.
    /// - A client that reconnects with such an id may receive the same event again. When no further
    ///   event follows, an event of type `hub-cursor` moves the client to the newest id.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::{Hub, Start}};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let presence = hub.topic("lobby/presence").latest_only();
    /// presence.publish(Event::display(hub.topic("lobby").subscribers()).event("here")).await?;
    /// // One connection for messages and presence.
    /// let page = hub.subscribe(["lobby", "lobby/presence"], Start::Earliest).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn latest_only(mut self) -> Self {
        self.latest_only = true;
        self
    }

    /// Sets limits for the retained events of this topic, instead of those of the hub.
    ///
    /// A limit may be greater than that of the hub, or smaller, for example for a topic with many
    /// events that are soon worthless. The limits apply to the whole topic as soon as this handle
    /// publishes, subscribes, [listens](Self::listen), [reads](Self::read) or [records a
    /// stream](Self::record). They replace limits that another handle has set. Handles without
    /// limits do not change them. When the topic is dropped, its limits are forgotten. A
    /// [recording](Self::record) of this handle sets them again with each batch of events that it
    /// publishes.
    ///
    /// Events that exceed the new limits are evicted at once. A client that has not received them
    /// gets a gap, as after any eviction.
    ///
    /// # With a backend
    ///
    /// The limits apply only to the memory of the nodes where a handle with these limits is used.
    /// The retention of the log is that of the backend, for all topics together. So an event that a
    /// node has evicted because of these limits may still be in the backend. A client then gets the
    /// event from there, and no gap. A limit greater than the retention of the backend has no
    /// effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_sse::{Event, hub::{Hub, Retention, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let mouse = hub.topic("board/7/mouse").retention(Retention::new().max_events(2).max_age(Duration::from_secs(5)));
    /// for x in 0..100 {
    ///     mouse.publish(Event::display(x)).await?;
    /// }
    /// assert_eq!(hub.stats().events, 2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Sets the retention limits of the topic to the limits of this handle. Has no effect if this
    /// handle has no limits. `awaits_event` is `true` if the caller is about to publish an event.
    /// The hub then keeps the topic with its limits until the event arrives, for up to 60 seconds,
    /// even if a subscriber comes and leaves meanwhile.
    pub(super) fn apply_retention(&self, awaits_event: bool) -> Result<(), Error> {
        let set = |retention| self.core.set_retention(&self.name, retention, awaits_event, || true);
        self.retention.map_or(Ok(()), set)
    }

    /// Returns the name of the topic.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Publishes an event to the topic. Returns the id of the event as soon as the event is in the
    /// log of the hub, which is in memory or in the backend.
    ///
    /// The hub replaces an id that the event has, because ids are positions in the log. The event
    /// is encoded once for all subscribers. Publishing never waits for a subscriber. An event with
    /// only a comment or a `retry` field is published like any other event.
    ///
    /// # Errors
    ///
    /// - [`Finished`](super::ErrorKind::Finished) if the topic is [finished](Self::finish).
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`ReservedName`](super::ErrorKind::ReservedName) if the event is named `gap` or
    ///   `hub-cursor`.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the name of the topic begins with
    ///   `tower-sse/`.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) after [`Hub::shutdown`](super::Hub::shutdown).
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the event.
    ///
    /// # Cancel safety
    ///
    /// Without a backend, the future completes on its first poll. With a backend, the event of a
    /// dropped future may or may not be in the log.
    ///
    /// # Examples
    ///
    /// The application returns the id with its response. A web page that already shows the order
    /// then subscribes after this id, and does not receive the order again:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let orders = hub.topic("orders");
    /// let id = orders.publish(Event::new("7").event("created")).await?;
    /// orders.publish(Event::new("7").event("paid")).await?;
    ///
    /// let mut events = orders.subscribe(Start::After(id)).await?;
    /// let paid = events.next().await.unwrap().unwrap();
    /// assert!(paid.as_bytes().ends_with(b"event: paid\ndata: 7\n\n"));
    /// # Ok(()) }
    /// ```
    pub async fn publish(&self, event: Event) -> Result<EventId, Error> {
        let event = complete(event)?;
        self.check_reserved()?;
        self.apply_retention(true)?;
        let id = self.core.publish(&self.name, self.latest_only, [event]).await?;
        Ok(id.expect("one event was added, so there is a last one"))
    }

    /// Publishes an event without an `await`, and returns its id. Only for a hub in memory, without
    /// a backend.
    ///
    /// Use it in place of [`publish`](Self::publish) in code that is not async, or while a
    /// [`std::sync::Mutex`] is locked. With such a lock, the application can change its state and
    /// publish the event about this change in one step. The call needs no runtime.
    ///
    /// In a tokio runtime, the call itself wakes up to 32 waiting subscribers, and a task wakes the
    /// others. Outside of a runtime, the call wakes all of them. If the caller holds locks of its
    /// own, the call wakes subscribers under these locks. An executor that polls tasks inside of
    /// `wake` would run the subscribers under these locks, too. The executors of tokio do not do
    /// this.
    ///
    /// # Errors
    ///
    /// - [`NeedsAwait`](super::ErrorKind::NeedsAwait) if the hub has a backend. The event is not
    ///   published.
    /// - The same errors as [`publish`](Self::publish), except for those of a backend.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Mutex;
    /// use tower_sse::{Event, EventId, hub::{Error, Hub}};
    ///
    /// struct Counter { hub: Hub, count: Mutex<u64> }
    ///
    /// impl Counter {
    ///     /// The events are in the order of the numbers.
    ///     fn increment(&self) -> Result<EventId, Error> {
    ///         let mut count = self.count.lock().unwrap();
    ///         *count += 1;
    ///         self.hub.topic("count").latest_only().publish_now(Event::display(*count))
    ///     }
    /// }
    /// # let counter = Counter { hub: Hub::new(), count: Mutex::default() };
    /// # counter.increment().unwrap();
    /// # assert_eq!(*counter.count.lock().unwrap(), 1);
    /// # assert_eq!(counter.hub.stats().published, 1);
    /// ```
    pub fn publish_now(&self, event: Event) -> Result<EventId, Error> {
        let event = complete(event)?;
        self.check_reserved()?;
        self.apply_retention(true)?;
        let id = self.core.publish_now(&self.name, self.latest_only, event)?;
        Ok(id.expect("one event was added, so there is a last one"))
    }

    /// Publishes events as one batch. Returns the id of the last event, or `None` if `events` is
    /// empty.
    ///
    /// The events stay in order, and no event of another publisher is between them. The exception
    /// is a hub without a backend: it publishes a batch of more than 1,000 events in blocks of
    /// 1,000, and other publishers can publish between the blocks. It wakes waiting subscribers
    /// once per block.
    ///
    /// The iterator is read to its end before the first event is added. If the batch has more
    /// events than the topic retains, subscribers that wait for events get a [gap](super::Gap) in
    /// place of the oldest events.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`publish`](Self::publish). After an error, no event is in the
    /// log, with two exceptions:
    ///
    /// - After [`Backend`](super::ErrorKind::Backend), the log contains either all events or none
    ///   of the events.
    /// - Without a backend, the topic can be finished, or the hub shut down, during a batch of more
    ///   than 1,000 events. The blocks that were published before are then in the log.
    ///
    /// # Cancel safety
    ///
    /// Without a backend, the future completes on its first poll. With a backend, the log contains
    /// either all events of a dropped future or no event of it.
    ///
    /// # Examples
    ///
    /// No client sees the new item with the old total, because the two events are one batch:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let cart = hub.topic("carts/7");
    /// let mut page = cart.subscribe(Start::Latest).await?;
    /// cart.publish_all([Event::new("apple").event("added"), Event::new("2.50").event("total")]).await?;
    /// assert_eq!(page.next().await.unwrap().unwrap().count(), 2);
    /// # Ok(()) }
    /// ```
    pub async fn publish_all(&self, events: impl IntoIterator<Item = Event>) -> Result<Option<EventId>, Error> {
        let events = events.into_iter().map(complete).collect::<Result<Vec<_>, Error>>()?;
        self.check_reserved()?;
        if events.is_empty() {
            return Ok(None);
        }
        self.apply_retention(true)?;
        self.core.publish(&self.name, self.latest_only, events).await
    }

    /// Subscribes to this topic.
    ///
    /// `start` decides which retained events the client receives first. The
    /// [table](super#where-a-client-resumes) shows the result for each kind of id. Live events
    /// follow, and no event is lost, repeated or out of order between retained and live events. The
    /// exceptions are losses in the log of a backend, which the [guarantees](super#guarantees)
    /// list.
    ///
    /// # Errors
    ///
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the name of the topic begins with
    ///   `tower-sse/`.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if the client needs history from the backend,
    ///   and 1,024 other history reads run or wait. The client can reconnect with the same id.
    ///
    /// During an outage of the backend, subscribing returns no error. After
    /// [`Hub::shutdown`](super::Hub::shutdown), the subscription ends immediately with
    /// [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect. Without a backend, the future completes on its first
    /// poll.
    ///
    /// With a backend, the future waits at most two seconds for events that this process does not
    /// retain. If the id in `start` is newer than all events that this process has read, the hub
    /// first asks the backend for the end of the log. This request takes at most 10 seconds. If the
    /// id is from a new log, which has just replaced the log that this process follows, the future
    /// waits at most two seconds until this process follows the new log. A shutdown of the hub ends
    /// each of these waits.
    ///
    /// # Examples
    ///
    /// The progress of a job. A new page receives the earlier steps, and a page that reconnects
    /// receives the steps that it has missed:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, LastEventId, hub::{Error, Hub, Start, Subscription}};
    ///
    /// async fn progress(hub: &Hub, job: u64, last: LastEventId) -> Result<Subscription, Error> {
    ///     hub.topic(format!("jobs/{job}")).subscribe(last.or(Start::Earliest)).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let hub = Hub::new();
    /// let job = hub.topic("jobs/7");
    /// job.publish(Event::new("10 %")).await?;
    /// let last = job.publish(Event::new("20 %")).await?;
    /// job.publish(Event::new("30 %")).await?;
    ///
    /// let mut new_page = progress(&hub, 7, LastEventId::default()).await?;
    /// assert_eq!(new_page.next().await.unwrap().unwrap().count(), 3);
    /// let mut returning_page = job.subscribe(Start::After(last)).await?;
    /// assert_eq!(returning_page.next().await.unwrap().unwrap().count(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn subscribe(&self, start: impl Into<Start>) -> Result<Subscription, Error> {
        Ok(self.subscribe_without_linger(start.into()).await?.with_default_linger())
    }

    async fn subscribe_without_linger(&self, start: Start) -> Result<Subscription, Error> {
        self.check_reserved()?;
        self.apply_retention(false).or_else(|error| if self.core.is_shut_down() { Ok(()) } else { Err(error) })?;
        self.core.subscribe(vec![(self.name.clone(), None)], start).await
    }

    /// Listens to this topic in this process: returns a stream of decoded events, each with its id.
    /// Use it for workers, bridges to WebSockets, and filters per client.
    ///
    /// To listen to several topics, use [`Hub::listen`](super::Hub::listen). [`Listener`] describes
    /// gaps and cursors. The listener counts as a [subscriber](Self::subscribers).
    ///
    /// # Errors
    ///
    /// The same as for [`subscribe`](Self::subscribe). After
    /// [`Hub::shutdown`](super::Hub::shutdown), the stream ends immediately with
    /// [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// # Cancel safety
    ///
    /// The same as for [`subscribe`](Self::subscribe).
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let alerts = Hub::new().topic("alerts");
    /// let mut events = alerts.listen(Start::Latest).await?;
    /// let id = alerts.publish(Event::new("fire").event("raised")).await?;
    ///
    /// let Some(Ok(published)) = events.next().await else { return Ok(()) };
    /// assert_eq!(published.id, id);
    /// assert_eq!(published.event, Event::new("fire").event("raised"));
    /// # Ok(()) }
    /// ```
    pub async fn listen(&self, start: impl Into<Start>) -> Result<Listener, Error> {
        Ok(Listener::new(self.subscribe_without_linger(start.into()).await?))
    }

    /// Reads the events that the topic contains now: returns a stream of these events, from `start`
    /// on, that then ends. The stream can also contain events that are published while it is read.
    ///
    /// [`Hub::read`](super::Hub::read) reads several topics. Its documentation describes how long
    /// the call waits for a backend. To continue with later events, [listen](Self::listen) after
    /// the [cursor](Listener::cursor).
    ///
    /// # Errors
    ///
    /// The errors of [`subscribe`](Self::subscribe). With a backend, also those of
    /// [`Hub::read`](super::Hub::read).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect, except that the topic exists.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{BoxError, Event, hub::{Hub, Published, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
    /// let orders = Hub::new().topic("orders");
    /// orders.publish(Event::new("tea")).await?;
    ///
    /// let retained: Vec<Published> = orders.read(Start::Earliest).await?.collect::<Result<_, _>>().await?;
    /// assert_eq!(retained.len(), 1);
    /// assert_eq!(retained[0].event, Event::new("tea"));
    /// # Ok(()) }
    /// ```
    pub async fn read(&self, start: impl Into<Start>) -> Result<Listener, Error> {
        self.listen(start).await?.until_now().await
    }

    /// Finishes the topic, for example because a job is done or an answer is complete.
    ///
    /// The subscriptions to the topic end after its last event. An `EventSource` then reconnects,
    /// and gets `204 No Content`, after which it does not reconnect again. Finishing a topic again
    /// has no effect, unless the topic was [removed](Self::remove) meanwhile.
    ///
    /// The hub remembers that the topic is finished for the time
    /// [`max_age`](super::Builder::max_age), and longer while the topic has subscribers. During
    /// this time, publishing to the topic returns an error.
    ///
    /// With a backend, finishing a topic appends a record to the log. Another node knows that the
    /// topic is finished when it has read this record. Until then, it can publish a further event.
    /// The topic then continues on all nodes with that event. The same applies to a topic that is
    /// finished by a [recording](Self::record).
    ///
    /// # Errors
    ///
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the name of the topic begins with
    ///   `tower-sse/`.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) after [`Hub::shutdown`](super::Hub::shutdown).
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the finish
    ///   record.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::StatusCode;
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, SseStream, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// let job = hub.topic("jobs/7");
    /// let mut page = job.subscribe(Start::Latest).await?;
    /// let last = job.publish(Event::new("100 %")).await?;
    /// job.finish().await?;
    ///
    /// // An open stream ends after the last event.
    /// assert_eq!(page.next().await.unwrap().unwrap().count(), 1);
    /// assert!(page.next().await.is_none());
    /// // The page reconnects. The response stops it.
    /// let again = SseStream::new(job.subscribe(Start::After(last)).await?);
    /// assert_eq!(again.into_http_response().status(), StatusCode::NO_CONTENT);
    /// # Ok(()) }
    /// ```
    pub async fn finish(&self) -> Result<(), Error> {
        self.check_reserved()?;
        self.core.finish(&self.name).await
    }

    /// Removes all events of the topic, for example because a chat room was deleted. A topic
    /// without subscribers then no longer [exists](Self::exists), and its memory is freed.
    ///
    /// - A client that returns with an id from before the last event gets a [gap](super::Gap)
    ///   (`evicted`). A client that has received all events gets no gap.
    /// - Open subscriptions stay open, and the topic exists until the last of them ends. A
    ///   subscription that has not received all removed events gets a gap (`lagged`). To end the
    ///   subscriptions, [finish](Self::finish) the topic first.
    /// - The hub forgets that the topic is finished when the topic has no subscribers. Publishing
    ///   then creates the topic again. A client that returns gets an empty subscription, and not
    ///   `204 No Content`. To reject such clients, check that the topic
    ///   [exists](Self::exists_in_log) before you subscribe.
    /// - The event of a [`latest_only`](Self::latest_only) topic is removed as well. A client that
    ///   has this event is not notified. If its page has to change, publish a last event before the
    ///   removal.
    ///
    /// Removing a topic that does not exist has no effect. The ids of removed events are never used
    /// again.
    ///
    /// # With a backend
    ///
    /// Removing a topic appends a record to the log, so the same events precede the removal on all
    /// nodes. Each node removes the topic when it reads the record. From then on, none of its
    /// clients receives an earlier event of the topic. The call returns when the local node has
    /// read the record, but after 10 seconds at the latest. When the call returns, another node may
    /// not have read the record yet. If the backend is down, the local node may not have read it
    /// either.
    ///
    /// The log retains the removed events until its own retention evicts them. If a law requires
    /// the deletion of the data, also delete them in the server of the backend. Each node remembers
    /// the newest 100,000 removals in the log, and hides the events that precede them. An older
    /// removal is forgotten, and no longer hides its events: a client that returns with an id from
    /// before these events can receive them.
    ///
    /// # Errors
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the record.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub has a backend, and was
    ///   [shut down](super::Hub::shutdown).
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the name of the topic begins with
    ///   `tower-sse/`.
    ///
    /// # Cancel safety
    ///
    /// Without a backend, the future completes on its first poll. With a backend, the topic of a
    /// dropped future may or may not be removed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::{Hub, Start}};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let room = hub.topic("rooms/7");
    /// room.publish(Event::new("hello")).await?;
    /// room.finish().await?;
    /// room.remove().await?;
    /// assert!(!room.exists());
    /// assert_eq!(hub.stats().bytes, 0);
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self) -> Result<(), Error> {
        self.core.remove(&self.name).await
    }

    /// Returns `true` if the topic retains events, is remembered as finished, or has subscribers.
    ///
    /// A handle with its own [retention limits](Self::retention) creates the topic before it
    /// publishes, records or subscribes. If the operation then fails, for example because the
    /// backend does not respond, the result is still `true` for about a minute.
    ///
    /// Subscribing creates a topic that does not exist. So if a client chooses the name, call this
    /// method before you subscribe. A request in the Durable Streams protocol for a topic that does
    /// not exist does not count as a subscriber here.
    ///
    /// # With a backend
    ///
    /// The result is about the memory of this process. It is `false` although the log has events of
    /// the topic, and a subscription would deliver them, in these cases:
    ///
    /// - This process has not read the events yet: another node has just published them, or this
    ///   process reads a large log after its start. [`connect`](super::Connector::connect) returns
    ///   after five seconds, and the process reads the rest in the background.
    /// - The events are older than the [`max_age`](super::Builder::max_age) of the hub, and the
    ///   backend retains them longer.
    /// - The hub had [`max_topics`](super::Builder::max_topics) topics when it read the events.
    ///
    /// A 404 ends an `EventSource` for good. So before a 404, await
    /// [`exists_in_log`](Self::exists_in_log) instead, which also searches the log.
    ///
    /// # Examples
    ///
    /// A hub in memory:
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_sse::{BoxError, LastEventId, SseStream, hub::{Hub, Start, Subscription}};
    ///
    /// async fn progress(hub: &Hub, job: &str, last: LastEventId) -> Result<SseStream<Subscription>, StatusCode> {
    ///     let job = hub.topic(format!("jobs/{job}"));
    ///     if !job.exists() {
    ///         return Err(StatusCode::NOT_FOUND);
    ///     }
    ///     let events = job.subscribe(last.or(Start::Earliest)).await;
    ///     Ok(SseStream::new(events.map_err(|error| error.status())?))
    /// }
    /// ```
    #[must_use]
    pub fn exists(&self) -> bool {
        self.core.exists(&self.name)
    }

    /// Returns the number of subscriptions to this topic in this process.
    ///
    /// A subscription counts until it is dropped. A server drops the subscription when the client
    /// closes its connection. If a client vanishes without closing its connection, the server drops
    /// the subscription when a write fails. The time until then depends on heartbeats and on the
    /// timeouts of the transport.
    ///
    /// When the user leaves a page, a browser may keep the page in its back/forward cache, with its
    /// open `EventSource`. To end the subscription in this case, the page can close its
    /// `EventSource` in a `pagehide` listener.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.core.subscribers(&self.name)
    }

    /// Returns `true` if the topic [exists](Self::exists) on the local node, or if the log of the
    /// backend retains an event of the topic, or the record that finishes the topic. Without a
    /// backend, this method returns the same as [`exists`](Self::exists).
    ///
    /// If the local node does not know the topic, it asks the backend for the end of the log, and
    /// reads only the parts that can have records of the topic: the part that the node has not read
    /// yet, and the part that it has read and does not retain. Usually this is one read, or none.
    /// The reads share the limits of all [history reads](super::ErrorKind::Overloaded). At most two
    /// searches read from the backend at the same time, and further searches wait. The node
    /// remembers the last positions of up to 10,000 topics that it has dropped, for example expired
    /// topics. After it has dropped more topics, a search for a topic that does not exist reads
    /// most of the log. Nothing is written to the log.
    ///
    /// A topic that has only subscribers, on another node, is not in the log.
    /// [`exists_anywhere`](Self::exists_anywhere) asks the other nodes, too.
    ///
    /// A [removed](Self::remove) topic does not exist, although the log may retain its events. It
    /// exists again if an event follows the removal. While this node reads a large log after its
    /// start, a removed topic counts as existing until the node has read the removal.
    ///
    /// # Errors
    ///
    /// An error means that it is unknown whether the topic exists.
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not respond, or if the search
    ///   of the log takes more than ten seconds.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if 1,024 other history reads run or wait.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub has a backend and is [shut
    ///   down](super::Hub::shutdown), also during the call, and the topic does not exist on the
    ///   local node.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::response::{IntoResponse, Response};
    /// use http::StatusCode;
    /// use tower_sse::{LastEventId, hub::{Error, Hub, Start}};
    ///
    /// async fn progress(hub: &Hub, job: &str, last: LastEventId) -> Result<Response, Error> {
    ///     let job = hub.topic(format!("jobs/{job}"));
    ///     if !job.exists_in_log().await? {
    ///         return Ok(StatusCode::NOT_FOUND.into_response());
    ///     }
    ///     Ok(job.subscribe(last.or(Start::Earliest)).await?.into_response())
    /// }
    /// ```
    pub async fn exists_in_log(&self) -> Result<bool, Error> {
        self.core.is_in_log(&self.name).await
    }

    /// Returns `true` if the topic exists on the local node or [in the log](Self::exists_in_log),
    /// or if it has subscribers on another node. Without a backend, this method returns the same as
    /// [`exists`](Self::exists).
    ///
    /// If neither the local node nor the log has the topic, this method asks the other nodes. A
    /// node that does not respond within one second counts as a node without the topic. The request
    /// to the other nodes is one record in the log, and each node that has the topic responds with
    /// one record. So for a topic that does not exist, each call takes one second and writes a
    /// record. Do not call this method for a name that any client can choose.
    ///
    /// # Errors
    ///
    /// The errors of [`exists_in_log`](Self::exists_in_log). Also
    /// [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the request.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect, except that the request to the other nodes may be in the
    /// log.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::hub::{Error, Hub};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// let hub = Hub::new();
    /// assert!(!hub.topic("news").exists_anywhere().await?);
    /// # Ok(()) }
    /// ```
    pub async fn exists_anywhere(&self) -> Result<bool, Error> {
        presence::exists_anywhere(&self.core, &self.name).await
    }

    /// Returns the number of [subscriptions](Self::subscribers) to this topic on all nodes of the
    /// hub.
    ///
    /// With a backend, this method asks the other nodes through the log, and takes one second. The
    /// request to the other nodes is one record in the log, and each node that has the topic
    /// responds with one record. Subscriptions on a node that does not respond within this second
    /// are not counted. Readers in the Durable Streams protocol that wait on another node for the
    /// first event of a topic are not counted either. To show a number that is updated each time a
    /// client comes or leaves, count the [members](Self::members) instead, which are the names that
    /// clients have [joined](Self::join) with. Without a backend, this method returns the same
    /// number as [`subscribers`](Self::subscribers).
    ///
    /// # Errors
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the request.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub has a backend, and is [shut
    ///   down](super::Hub::shutdown), also during the call.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::hub::{Error, Hub, Start};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// let news = Hub::new().topic("news");
    /// let _reader = news.subscribe(Start::Latest).await?;
    /// assert_eq!(news.subscribers_anywhere().await?, 1);
    /// # Ok(()) }
    /// ```
    pub async fn subscribers_anywhere(&self) -> Result<usize, Error> {
        presence::subscribers_anywhere(&self.core, &self.name).await
    }

    /// Returns a stream of the number of [subscribers](Self::subscribers) in this process: the
    /// current number, and then each later number.
    ///
    /// The stream yields a number when a subscription begins or ends, and uses no timer. A slow
    /// consumer gets the newest number and misses the numbers in between. The stream ends when the
    /// hub is [shut down](super::Hub::shutdown).
    ///
    /// # Examples
    ///
    /// A page that shows how many clients are in the lobby:
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Error, Hub}};
    ///
    /// async fn show_presence(hub: Hub) -> Result<(), Error> {
    ///     let here = hub.topic("lobby/here").latest_only();
    ///     let mut counts = hub.topic("lobby").subscriber_counts();
    ///     while let Some(count) = counts.next().await {
    ///         here.publish(Event::display(count).event("here")).await?;
    ///     }
    ///     Ok(())
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let hub = Hub::new();
    /// # tokio::spawn(show_presence(hub.clone()));
    /// # let mut here = hub.topic("lobby/here").subscribe(tower_sse::hub::Start::Latest).await?;
    /// # assert!(here.next().await.unwrap().is_ok());
    /// # Ok(()) }
    /// ```
    pub fn subscriber_counts(&self) -> SubscriberCounts {
        SubscriberCounts::new(&self.core, &self.name)
    }
}

/// Prepares an event for publication: removes its id, and encodes its other fields. The log adds an
/// id later. Returns an error if the name of the event is reserved for events of the hub itself.
pub(super) fn complete(event: Event) -> Result<Event, Error> {
    check_name(event.name_if_set())?;
    Ok(event.without_id().complete())
}

/// Returns an error if the name of an event is `gap` or `hub-cursor`. The hub itself sends events
/// with these names.
pub(super) fn check_name(name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name @ ("gap" | "hub-cursor")) => Err(Error::reserved_name(name)),
        _ => Ok(()),
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Topic").field(&self.name).finish()
    }
}
