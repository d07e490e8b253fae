use super::{
    builder::Builder,
    core::Core,
    error::Error,
    listener::Listener,
    recording,
    start::{IntoTopicStart, Start},
    stats::Stats,
    subscription::Subscription,
    topic::Topic,
};
use std::{fmt, sync::Arc, time::Duration};

/// A log of events with topics, subscriptions and replay. See the [module](super).
///
/// Clones share the same hub.
#[derive(Clone)]
pub struct Hub {
    core: Arc<Core>,
}

impl Hub {
    pub(super) fn new_handle(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Creates a hub in the memory of this process with the defaults of [`Builder`]: 10,000 events,
    /// 8 MiB and one hour for each of up to 100,000 topics.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder for a hub with other settings or with a backend.
    pub fn builder() -> Builder {
        Builder::DEFAULT
    }

    /// Returns a handle to the topic with this name, which can be any text.
    #[must_use]
    pub fn topic(&self, name: impl AsRef<str>) -> Topic {
        Topic::new(self.core.clone(), name.as_ref().into())
    }

    /// Subscribes to several topics. The subscription yields their events in the order of
    /// publication.
    ///
    /// All topics share one connection and one cursor. (A browser opens at most six connections to
    /// a host over HTTP/1.1.) An event does not name its topic: use different
    /// [names](crate::Event::event), or put the topic into the data.
    ///
    /// Subscribing creates the topics. Check topic names that come from clients first: names that a
    /// client invents count towards [`max_topics`](super::Builder::max_topics).
    ///
    /// # A start per topic
    ///
    /// A pair of a topic and a [`Start`] gives the topic a start of its own, for clients without an
    /// id. If `start` is [after](Start::After) an id, for example the last id of the client, all
    /// topics begin after that id. Otherwise a topic without a start of its own begins at `start`.
    /// If a topic is named twice, its first own start applies.
    ///
    /// One cursor covers all topics. It moves past the latest of the starts when the client has
    /// received the events before it. If the client loses its connection earlier, it reconnects
    /// with an id before some of the starts. It then also receives the events between this id and
    /// these starts. A missing event after the id of any start is a gap. So is an id that this node
    /// does not know yet while the backend is down.
    ///
    /// # Errors
    ///
    /// - [`NoTopics`](super::ErrorKind::NoTopics) if no topic is named.
    /// - [`TooManyTopicsInSubscription`](super::ErrorKind::TooManyTopicsInSubscription) if there
    ///   are more topics than
    ///   [`max_topics_per_subscription`](super::Builder::max_topics_per_subscription).
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the subscription would create more
    ///   topics than the hub may have.
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
        let topics = topics.into_iter().map(T::into_topic_start).collect();
        let subscription = self.core.subscribe(topics, start.into()).await?;
        Ok(subscription.with_default_linger())
    }

    /// Listens to topics in this process: returns a stream of decoded events, each with its topic
    /// and its id. Use it for workers, bridges to WebSockets, and filters per client.
    ///
    /// It starts like [`subscribe`](Self::subscribe), counts as a
    /// [subscriber](Topic::subscribers), and yields the events of all topics in the order of
    /// publication. See [`Listener`] for gaps and cursors.
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
        let topics = topics.into_iter().map(T::into_topic_start).collect();
        Ok(Listener::new(self.core.subscribe(topics, start.into()).await?))
    }

    /// Ends all subscriptions immediately. From then on, publishing returns an error, and a new
    /// subscription ends immediately with [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// The response of a subscription ends cleanly, without its
    /// [last event](crate::SseStream::end_with), and with a reconnect delay, as in a
    /// [shutdown of its layer](crate::SseLayer::shutdown). Undelivered events are dropped. Clients
    /// reconnect with the last id that they received. A client that reaches this process again gets
    /// the same short response, with status 200, because any other status stops an `EventSource`
    /// for good. Calling this again has no effect.
    ///
    /// A server that shuts down gracefully needs this method or the shutdown of the layer. The
    /// layer also ends streams without a hub, and can send a shutdown event.
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

    /// Waits until the [recordings](Topic::record) of this process have ended, for example before
    /// it is shut down.
    ///
    /// Recordings that have not ended after this time are [interrupted](super::Outcome): each of
    /// them publishes its [`will`](super::Recorder::will) and finishes its topic. Returns the
    /// number of these recordings. With a backend that is down, this waits for the backend, so put
    /// a timeout around it. Another node then takes over.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_sse::hub::Hub;
    /// # async fn stop(hub: Hub) {
    /// let interrupted = hub.drain_recordings(Duration::from_secs(20)).await;
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
