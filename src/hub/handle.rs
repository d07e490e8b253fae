use super::{
    builder::Builder,
    core::Core,
    error::Error,
    listener::Listener,
    recording,
    registry::check_reserved,
    start::{IntoTopicStart, Start},
    stats::Stats,
    subscription::Subscription,
    topic::Topic,
};
use std::{fmt, sync::Arc, time::Duration};

/// A publish/subscribe hub: one ordered log of events, which belong to topics, with replay for
/// clients that reconnect. The [module documentation](super) describes how clients resume.
///
/// Clones are handles to the same hub.
#[derive(Clone)]
pub struct Hub {
    core: Arc<Core>,
}

impl Hub {
    pub(super) fn new_handle(core: Arc<Core>) -> Self {
        Self { core }
    }

    #[cfg(feature = "durable-streams")]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Reserves a name for a stream registry, a table of open streams that can be closed by keys
    /// such as users. When the registry closes streams, the registries with the same name on the
    /// other nodes of this hub close their streams of the same keys. For this purpose, the hub
    /// calls `announcements`, a part of the registry, when another node has reported closed streams
    /// in the log. Dropping the result releases the name.
    #[cfg(feature = "json")]
    pub(crate) fn reserve_registry_name(
        &self,
        name: &str,
        announcements: std::sync::Weak<dyn super::Announcements>,
    ) -> Result<super::RegistryName, Error> {
        self.core.stream_registries.reserve(name, announcements)
    }

    /// Creates a hub in the memory of this process, with the defaults of [`Builder`]. Each topic
    /// retains up to 10,000 events and 8 MiB, for one hour. The hub has up to 100,000 topics.
    ///
    /// # Examples
    ///
    /// One hub for the whole process: each task and each handler has a clone.
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let publisher = hub.clone();
    /// tokio::spawn(async move { publisher.topic("news").publish(Event::new("hello")).await });
    ///
    /// let mut news = hub.topic("news").subscribe(Start::Earliest).await?;
    /// assert_eq!(news.next().await.unwrap().unwrap().count(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder for a hub with other settings or with a backend.
    pub fn builder() -> Builder {
        Builder::DEFAULT
    }

    /// Returns a handle to the topic with this name. The handle alone does not create the topic.
    /// The name can be any text that does not begin with `tower-sse/`. This crate uses such topics
    /// itself. Publishing to them, subscribing to them, and joining them return the error
    /// [`ReservedTopic`](super::ErrorKind::ReservedTopic).
    ///
    /// If a part of the name comes from a client, put a prefix of the application before it, such
    /// as `rooms/`. Otherwise clients can choose any topic of the application.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{Event, hub::Hub};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// # let hub = Hub::new();
    /// # let name_from_client = "7";
    /// let room = hub.topic(format!("rooms/{name_from_client}"));
    /// assert!(!room.exists());
    /// room.publish(Event::new("hello")).await?;
    /// assert!(room.exists());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(&self, name: impl AsRef<str>) -> Topic {
        Topic::new(self.core.clone(), name.as_ref().into())
    }

    /// Returns `true` if the log of the hub is in a backend, and not in the memory of the process.
    #[cfg(feature = "json")]
    pub(crate) fn has_backend(&self) -> bool {
        self.core.backend.is_some()
    }

    /// Returns a handle to a topic that the crate itself uses, whose name begins with `tower-sse/`.
    #[cfg(feature = "json")]
    pub(crate) fn topic_of_crate(&self, name: &str) -> Topic {
        self.topic(name).of_crate()
    }

    /// Subscribes to several topics. The subscription yields their events in the order of
    /// publication.
    ///
    /// All topics share one connection and one cursor. (A browser opens at most six connections to
    /// a host over HTTP/1.1.) An event does not contain its topic. To distinguish topics, give
    /// their events different [names](crate::Event::event), or put the topic into the data.
    ///
    /// Subscribing creates topics that do not exist, and they count towards
    /// [`max_topics`](super::Builder::max_topics). So check topic names that come from clients
    /// before you subscribe.
    ///
    /// # A start per topic
    ///
    /// A pair of a topic and a [`Start`] gives the topic a start of its own, for clients without an
    /// id. If the argument `start` is a [`Start::After`] an id, all topics begin after this id, and
    /// their own starts are ignored. Otherwise, a topic without a start of its own begins at
    /// `start`. If a topic is listed several times, the first of its own starts applies.
    ///
    /// One cursor, the last id of the client, covers all topics. If a client loses its connection
    /// before its cursor has reached the start of a topic, it resumes after the cursor in all
    /// topics. So it then also receives the topic's events between the cursor and that start.
    ///
    /// The id of each [`Start::After`] is checked for its topic. If a later event of this topic is
    /// missing, the client gets one [gap](super::Gap) for all topics together. During an outage of
    /// the backend, the local node cannot check an id that is newer than all events that it has
    /// read. If all topics have the same start, the client waits until the node can check the id.
    /// If their starts differ, the client gets a gap at once, although perhaps no event is missing.
    ///
    /// # Errors
    ///
    /// - [`NoTopics`](super::ErrorKind::NoTopics) if no topic is named.
    /// - [`TooManyTopicsInSubscription`](super::ErrorKind::TooManyTopicsInSubscription) if there
    ///   are more topics than
    ///   [`max_topics_per_subscription`](super::Builder::max_topics_per_subscription).
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the hub would have more than
    ///   `max_topics` topics. No topic is then created.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if a name begins with `tower-sse/`.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if the client needs history from the backend,
    ///   and 1,024 other history reads run or wait. The client can reconnect with the same id.
    ///
    /// During an outage of the backend, subscribing returns no error. After
    /// [`shutdown`](Self::shutdown), the subscription ends immediately with
    /// [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// # Cancel safety
    ///
    /// The same as for [`Topic::subscribe`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, LastEventId, SseStream, hub::{Error, Hub, Subscription}};
    /// async fn dashboard(hub: &Hub, user: &str, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    ///     let notices = format!("notices/{user}");
    ///     Ok(SseStream::new(hub.subscribe(["orders", "alerts", &notices], last).await?))
    /// }
    /// ```
    ///
    /// A page was rendered with the notes up to an id, and without the states of the users:
    ///
    /// ```
    /// # use tower_sse::{EventId, LastEventId, hub::{Error, Hub, Start, Subscription}};
    /// async fn board(hub: &Hub, rendered: EventId, last: LastEventId) -> Result<Subscription, Error> {
    ///     hub.subscribe([("notes", Start::After(rendered)), ("here", Start::Earliest)], last).await
    /// }
    /// ```
    pub async fn subscribe<T: IntoTopicStart>(
        &self,
        topics: impl IntoIterator<Item = T>,
        start: impl Into<Start>,
    ) -> Result<Subscription, Error> {
        let subscription = self.core.subscribe(checked(topics)?, start.into()).await?;
        Ok(subscription.with_default_linger())
    }

    /// Listens to topics in this process: returns a stream of decoded events, each with its topic
    /// and its id. Use it for workers, bridges to WebSockets, and filters per client.
    ///
    /// The arguments are those of [`subscribe`](Self::subscribe). The listener counts as a
    /// [subscriber](Topic::subscribers) of each topic, and yields the events of all topics in the
    /// order of publication. If a [`latest_only`](Topic::latest_only) event was replaced, the
    /// newest event of its topic can take its place. [`Listener`] describes this exception, and
    /// also gaps and cursors.
    ///
    /// # Errors
    ///
    /// The same as for [`subscribe`](Self::subscribe). After [`shutdown`](Self::shutdown), the
    /// stream ends immediately with [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// # Cancel safety
    ///
    /// The same as for [`Topic::subscribe`].
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Published, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let mut events = hub.listen(["orders", "alerts"], Start::Latest).await?;
    /// let id = hub.topic("alerts").publish(Event::new("fire").event("raised")).await?;
    ///
    /// let Some(Ok(published)) = events.next().await else { return Ok(()) };
    /// assert_eq!((&*published.topic, &published.id), ("alerts", &id));
    /// assert_eq!(published.event.name(), Some("raised"));
    /// assert_eq!(published.event.event_data().as_deref(), Some("fire"));
    /// # Ok(()) }
    /// ```
    pub async fn listen<T: IntoTopicStart>(
        &self,
        topics: impl IntoIterator<Item = T>,
        start: impl Into<Start>,
    ) -> Result<Listener, Error> {
        Ok(Listener::new(self.core.subscribe(checked(topics)?, start.into()).await?))
    }

    /// Reads the events of topics that the log contains now: returns a stream of these events, from
    /// `start` on, that then ends. The stream can also contain events that are published while it
    /// is read. [`Listener`] describes gaps and the order of the events.
    ///
    /// Use it to restore a state after a restart, or to show the retained events of a topic without
    /// an open stream. To continue with later events, [listen](Self::listen) after the
    /// [cursor](Listener::cursor).
    ///
    /// With a backend, the method first waits until the local node has read the log up to its
    /// current end.
    ///
    /// # Errors
    ///
    /// The errors of [`subscribe`](Self::subscribe). With a backend, also:
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not respond, or if the local
    ///   node has not read the log up to its end after ten seconds.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub is shut down, also during the call.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect, except that the topics exist.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{BoxError, Event, hub::{Hub, Published, Start}};
    ///
    /// async fn retained(hub: &Hub, topic: &str) -> Result<Vec<Published>, BoxError> {
    ///     Ok(hub.read([topic], Start::Earliest).await?.collect::<Result<_, _>>().await?)
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
    /// let hub = Hub::new();
    /// assert!(retained(&hub, "orders").await?.is_empty());
    /// hub.topic("orders").publish(Event::new("tea")).await?;
    /// assert_eq!(retained(&hub, "orders").await?[0].event, Event::new("tea"));
    /// # Ok(()) }
    /// ```
    pub async fn read<T: IntoTopicStart>(
        &self,
        topics: impl IntoIterator<Item = T>,
        start: impl Into<Start>,
    ) -> Result<Listener, Error> {
        self.listen(topics, start).await?.until_now().await
    }

    /// Ends all subscriptions. From now on, publishing returns an error, and a new subscription
    /// ends immediately with [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// Each open subscription first delivers the published events that this process retains. (With
    /// a backend, clients read older events from its log when they reconnect.) Then the response
    /// ends cleanly, with a delay for the reconnect, like the responses of an
    /// [`SseLayer`](crate::SseLayer::shutdown) that is shut down. The [last
    /// event](crate::SseStream::end_with) of the stream is not sent. A response that merges several
    /// streams ends when the first of its subscriptions has ended. Before its end, it sends the
    /// ready items of the other streams. Clients reconnect with the last id that they received.
    ///
    /// A client that reaches this process again gets a short response with status 200, and
    /// reconnects later. (Any other status would stop an `EventSource` for good.) Calling this
    /// method again has no effect.
    ///
    /// A graceful shutdown of a server waits until its responses end. A client that reads slowly
    /// delays the end of its response until it has read the remaining events, so set a time limit
    /// for the shutdown, such as `Serve::shutdown_timeout`.
    ///
    /// The [shutdown of a layer](crate::SseLayer::shutdown) also ends streams that come from no
    /// hub, and can send a shutdown event. To use both shutdowns, cancel the token of the layer
    /// first.
    ///
    /// If this process has [recordings](Topic::record), await
    /// [`drain_recordings`](Self::drain_recordings) first, and wait until the open streams have
    /// sent the last events of the recordings. Recordings that still run when this method is called
    /// are [interrupted](super::Outcome::Interrupted), and their topics may stay unfinished.
    ///
    /// Without recordings, this method can be the first step of a graceful shutdown, as in the
    /// example. A layer then sends no shutdown event. To send this event, cancel the token of
    /// [`SseLayer::shutdown`](crate::SseLayer::shutdown) first. If publishers still run then, call
    /// this method only after the streams have ended. Until then, the streams send the last
    /// published events.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use axum::Router;
    /// # use tower_sse::hub::Hub;
    /// # async fn serve(app: Router, hub: Hub, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    /// axum::serve(listener, app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         hub.shutdown();
    ///     })
    ///     .await
    /// # }
    /// ```
    pub fn shutdown(&self) {
        self.core.shut_down();
    }

    /// Returns `true` after [`shutdown`](Self::shutdown) was called.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.core.is_shut_down()
    }

    /// Waits until the [recordings](Topic::record) of this process have ended. Call it before the
    /// hub and the process are [shut down](Self::shutdown).
    ///
    /// A recording publishes the items of a stream to a topic. Recordings that have not ended after
    /// `time` are [interrupted](super::Outcome::Interrupted). Each interrupted recording publishes
    /// its [`will`](super::Recorder::will), the last event for this case, and finishes its topic.
    /// Returns the number of interrupted recordings. To wait without interrupting, pass
    /// [`Duration::MAX`], and put a timeout around the call.
    ///
    /// If the backend is down, this method waits until the backend is back, so put a timeout around
    /// the call. After the timeout and the end of this process, another node publishes the wills.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_sse::hub::Hub;
    /// # async fn stop(hub: Hub) {
    /// let interrupted = hub.drain_recordings(Duration::from_secs(20)).await;
    /// // Here, wait until the open streams have sent the last events.
    /// hub.shutdown();
    /// # }
    /// ```
    pub async fn drain_recordings(&self, time: Duration) -> usize {
        recording::drain(&self.core, time).await
    }

    /// Returns statistics of the hub, for example for a status page.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::Hub};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// hub.topic("news").publish(Event::new("a hub says how it is")).await?;
    /// let stats = hub.stats();
    /// assert_eq!((stats.topics, stats.subscriptions, stats.events, stats.published), (1, 0, 1, 1));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }
}

/// The topics of a subscription. Each entry has the name of a topic, and its own start position if
/// it has one.
type Topics = Vec<(Arc<str>, Option<Start>)>;

/// Collects the topics of a subscription. Returns an error if a topic has a reserved name, which
/// begins with `tower-sse/`.
fn checked<T: IntoTopicStart>(topics: impl IntoIterator<Item = T>) -> Result<Topics, Error> {
    let checked = |topic: T| {
        let (name, start) = topic.into_topic_start();
        check_reserved(&name).map(|()| (name, start))
    };
    topics.into_iter().map(checked).collect()
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("stats", &self.stats()).finish()
    }
}
