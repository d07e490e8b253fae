#[cfg(feature = "file")]
use super::backend::FileBackend;
#[cfg(feature = "nats")]
use super::backend::NatsBackend;
#[cfg(feature = "postgres")]
use super::backend::PostgresBackend;
#[cfg(feature = "redis")]
use super::backend::RedisBackend;
use super::{
    backend::Backend,
    config::HubConfig,
    core::Core,
    error::Error,
    gap::LagPolicy,
    handle::Hub,
    node::DynBackend,
    presence::{Presence, PresenceEvents},
};
use crate::Event;
use std::{fmt, sync::Arc, time::Duration};

/// The longest maximum age of events that a hub takes over from its backend: one day. The hub keeps
/// topics and their events in memory for their maximum age, so a longer age has to be set
/// explicitly.
const MAX_INHERITED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings of a [`Hub`]: retention, limits, and the backend.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::hub::{Hub, LagPolicy};
///
/// let hub = Hub::builder()
///     .max_events(1000)
///     .max_bytes(256 << 10)
///     .max_age(Duration::from_secs(10 * 60))
///     .max_topics(5000)
///     .lag_policy(LagPolicy::Disconnect)
///     .build();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    config: HubConfig,
    /// The maximum age of retained events, if the user has set it. It then replaces the age in
    /// `config`.
    max_age: Option<Duration>,
}

impl Builder {
    pub(super) const DEFAULT: Self = Self { config: HubConfig::DEFAULT, max_age: None };

    /// Sets the maximum number of retained events per topic. Default: 10,000.
    ///
    /// An event is evicted when it exceeds this limit, [`max_bytes`](Self::max_bytes) or
    /// [`max_age`](Self::max_age). The newest event of a topic is evicted only by its age. The
    /// three limits decide how far back a client can resume, and how far a slow client can fall
    /// behind.
    pub fn max_events(mut self, events: usize) -> Self {
        self.config.retention.max_events = events;
        self
    }

    /// Sets the maximum size of retained events per topic, in bytes on the wire. Default: 8 MiB.
    ///
    /// The oldest events are evicted first. The newest event is retained even if it alone is larger
    /// than the limit. In addition to the events, a topic takes up to 48 KiB of memory, and about
    /// 16 bytes per event.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.config.retention.max_bytes = bytes;
        self
    }

    /// Sets how long events are retained, and how long the hub remembers that a topic is
    /// [finished](super::Topic::finish). Default: one hour. [`Duration::MAX`] and zero disable
    /// expiry.
    ///
    /// A topic without subscribers is dropped when its last event has expired. The event of a
    /// [`latest_only`](super::Topic::latest_only) topic does not expire while the topic has
    /// subscribers. A new subscriber does not receive expired events. An open subscription still
    /// receives an expired event that was not removed yet. Expired events are removed within
    /// `max_age / 16` after their expiry.
    ///
    /// With a backend, set the age either on the hub or on the backend:
    ///
    /// - If only the age of the hub is set, a backend of this crate takes over this age, and
    ///   deletes older records from the log.
    /// - If only the age of the backend is set, the hub takes over this age, but at most a day,
    ///   because the hub keeps topics and their events in memory for this time. The hub does not
    ///   take over an unlimited age.
    /// - If both ages are set, the backend's age decides how long the log retains events, and the
    ///   hub's age decides how long the hub retains them in memory.
    ///
    /// A hub forgets a topic without subscribers when the hub's age has passed since the topic's
    /// last event or its finish. Then the hub does not know any more that the topic
    /// [exists](super::Topic::exists) or is finished, even if the log still has its events. A
    /// client of a finished topic that returns without an id, or with an id after the finish, then
    /// waits instead of getting 204. So set the longest time after which clients may return. To
    /// save memory, set a smaller [`max_events`](Self::max_events) or
    /// [`max_bytes`](Self::max_bytes) instead: the backend provides older events.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(if age.is_zero() { Duration::MAX } else { age });
        self
    }

    /// Sets the maximum number of topics of the hub. Default: 100,000. Publishing or subscribing to
    /// one more topic returns an [error](super::ErrorKind::TooManyTopics).
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.config.max_topics = topics;
        self
    }

    /// Sets the maximum number of topics in one subscription. Default: 1,000. Subscribing to more
    /// topics returns an [error](super::ErrorKind::TooManyTopicsInSubscription).
    ///
    /// The limit protects a hub whose clients choose the topics: subscribing creates topics that do
    /// not exist, and they count towards [`max_topics`](Self::max_topics).
    pub fn max_topics_per_subscription(mut self, topics: usize) -> Self {
        self.config.max_topics_per_subscription = topics;
        self
    }

    /// Sets what happens to a client that is so slow that its next event was evicted before the
    /// client received it. Default: [`LagPolicy::Gap`], which reports the missing events to the
    /// client.
    pub fn lag_policy(mut self, policy: LagPolicy) -> Self {
        self.config.lag_policy = policy;
        self
    }

    /// Sets how long each subscription of the hub pauses after it has written events to its client.
    /// Events that arrive during the pause are written together. Default: zero, no pause.
    /// [`Subscription::linger`](super::Subscription::linger) sets another time for one
    /// subscription.
    pub fn linger(mut self, time: Duration) -> Self {
        self.config.linger = time;
        self
    }

    /// Sets how long a [member](super::Topic::join), a name that is present in a topic, stays in
    /// this topic after its last subscription was dropped. Default: 5 seconds. At most one day.
    ///
    /// If the client reconnects within this time, to any node, the member neither leaves nor joins.
    /// Choose a time that is longer than the reconnect delay of the clients. With zero, a member
    /// leaves as soon as its last subscription is dropped.
    pub fn presence_grace(mut self, time: Duration) -> Self {
        self.config.presence_grace = time.min(Duration::from_secs(24 * 3600));
        self
    }

    /// Sets the lease of the local node: the time without a sign of life after which the other
    /// nodes declare the local node dead. Its [members](super::Topic::join), names that are present
    /// in topics, then leave. Default: 10 seconds. At least 100 milliseconds, at most one hour. If
    /// the lease is shorter than about ten response times of the backend, the other nodes can
    /// declare the local node dead while it runs.
    ///
    /// If this process dies, its members leave after the sum of three times: the lease, the [grace
    /// time for a reconnect](Self::presence_grace) on the other nodes, and at most one more second.
    /// After a [shutdown](Hub::shutdown) of the hub, the other nodes do not wait for the lease,
    /// only for a reconnect and at most one more second. While the local node has members, it
    /// appends a sign of life to the log three times per lease. A hub in memory does not use the
    /// lease.
    pub fn presence_lease(mut self, time: Duration) -> Self {
        self.config.presence_lease = time.clamp(Duration::from_millis(100), Duration::from_secs(3600));
        self
    }

    /// Publishes the joins and leaves of the [members](super::Topic::join) of each topic, names
    /// that are present in it, as events of that topic. `event` gets the name of the topic and the
    /// change, and returns the event to publish, or `None`. Default: no events.
    ///
    /// Each event is published once, in the order of the changes, which is the same on all nodes.
    /// The nodes compare the bytes of events, to detect that another node has already published the
    /// event of a change. So set the same function on all nodes, and return equal events for equal
    /// arguments. While some nodes run with a different function, for example during a deploy, a
    /// change can have several events: one of each function.
    ///
    /// The node that writes a change into the log publishes the event. If this node dies first,
    /// another node publishes it. While the backend is down, events wait. An event is lost in three
    /// cases only:
    ///
    /// - Every node that knows of the change dies, or is cut off from the backend until another
    ///   node has published a later change of the same member, or the log has evicted the records
    ///   of the change.
    /// - The backend works, but refuses the event for a minute. If it then refuses the next event
    ///   of the topic, too, all waiting events of the topic are lost.
    /// - The node that has written a leave into the log dies before it has published the event, and
    ///   the topic has neither events nor subscribers.
    ///
    /// A [`latest_only`](super::Topic::latest_only) topic retains only its newest event, its state.
    /// The event of a join or a leave would replace this state, so return `None` for such topics.
    ///
    /// Joins and leaves are not published to a finished topic. If the topic is then removed, and an
    /// event or a subscription creates it again, its later joins and leaves are published.
    ///
    /// A topic without retained events and subscribers does not [exist](super::Topic::exists). The
    /// event of a join or a leave creates such a topic, which then exists until these events
    /// expire. So a client that returns to the topic gets the events of the leaves that it has
    /// missed. The exception is a topic that the application has [removed](super::Topic::remove)
    /// while it had members and no subscribers. A leave does not create such a topic again, but a
    /// published event, a join or a subscription does. The hub remembers up to 10,000 such topics.
    ///
    /// An event with a name that is reserved for the hub (`gap` or `hub-cursor`) is not published.
    /// With a backend, an event of more than 256 KiB is not published either. If the function
    /// panics, the change has no event.
    ///
    /// The function must not block. It is called without a lock. With a backend, the task that
    /// reads the log calls it. In memory, it is called by the thread that joins, leaves or reads
    /// members, or by the task that removes a member after its [grace time](Self::presence_grace).
    ///
    /// With a backend, an append of these events is repeated if the topic got another event during
    /// the append. If a topic has hundreds of messages per second, such an append can need many
    /// attempts. Use another topic for the members: clients can subscribe to both topics over one
    /// connection.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Hub, Presence, Start}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::builder()
    ///     .presence_events(|_topic, change| match change {
    ///         Presence::Joined { member, .. } => Some(Event::new(member).event("joined")),
    ///         Presence::Left { member, .. } => Some(Event::new(member).event("left")),
    ///         _ => None,
    ///     })
    ///     .build();
    /// let lobby = hub.topic("lobby");
    /// let mut page = lobby.join("Anna", lobby.subscribe(Start::Latest).await?)?;
    /// let events = page.next().await.unwrap().unwrap();
    /// assert!(events.as_bytes().ends_with(b"event: joined\ndata: Anna\n\n"));
    /// # Ok(()) }
    /// ```
    pub fn presence_events(mut self, event: impl Fn(&str, &Presence) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.config.presence_events = Some(PresenceEvents(Arc::new(event)));
        self
    }

    /// Creates the hub, with its log in the memory of this process.
    #[must_use]
    pub fn build(self) -> Hub {
        let config = self.into_config(None);
        Hub::new_handle(Arc::new(Core::new(config, None)))
    }

    /// Puts the log of the hub into this backend, which other processes can share. See
    /// [several nodes](super#several-nodes).
    ///
    /// The [retention](Self::max_events) of the hub then decides which events this process keeps in
    /// its memory. Older events come from the backend, and the retention of the backend decides how
    /// far back a client can resume. The age of an event in memory counts from the time when this
    /// process read the event.
    ///
    /// [`max_topics`](Self::max_topics) counts the topics of all nodes. For a topic over the limit,
    /// this process retains no events, and subscribing or publishing returns an error.
    ///
    /// # Examples
    ///
    /// Two hubs that share one log, like hubs in two processes:
    ///
    /// ```
    /// # use tower_sse::{Event, hub::{Error, Hub, Start, backend::MemoryBackend}};
    /// # use tokio_stream::StreamExt;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// let log = MemoryBackend::new(10_000);
    /// let one = Hub::builder().backend(log.clone()).connect().await?;
    /// let other = Hub::builder().backend(log).connect().await?;
    /// let mut news = other.topic("news").subscribe(Start::Latest).await?;
    /// one.topic("news").publish(Event::new("hello")).await?;
    /// assert_eq!(news.next().await.unwrap().unwrap().count(), 1);
    /// # Ok(()) }
    /// ```
    pub fn backend(self, backend: impl Backend) -> Connector {
        self.of(Ok(backend))
    }

    /// Puts the log of the hub in a file of this machine, so that it survives the process.
    ///
    /// The file is created if it does not exist. A second file beside it, whose name ends in
    /// `.mark`, shows at the next start whether the log has lost events or was replaced. Only one
    /// process at a time can use the log. The log retains events for the [`max_age`](Self::max_age)
    /// of the hub, whether that is set before or after this call. For other settings, pass a
    /// [`FileBackend`] to [`backend`](Self::backend).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::{Error, Hub, Start}};
    /// # use tokio_stream::StreamExt;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let folder = std::env::temp_dir().join(format!("tower-sse-doc-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder).unwrap();
    /// # let path = folder.join("events.log");
    /// let hub = Hub::builder().file(&path).connect().await?;
    /// let id = hub.topic("news").publish(Event::new("hello")).await?;
    /// hub.topic("news").publish(Event::new("world")).await?;
    /// drop(hub);
    ///
    /// // After a restart, clients resume after the last event that they have received.
    /// let hub = Hub::builder().file(&path).connect().await?;
    /// let mut news = hub.topic("news").subscribe(Start::After(id)).await?;
    /// assert!(news.gap().is_none());
    /// assert_eq!(news.next().await.unwrap().unwrap().count(), 1);
    /// # drop((hub, news));
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "file")]
    pub fn file(self, path: impl AsRef<std::path::Path>) -> Connector {
        self.of(Ok(FileBackend::new(path)))
    }

    /// Puts the log of the hub in Redis, at this URL.
    ///
    /// Events that are older than the [`max_age`](Self::max_age) of the hub are removed from the
    /// Redis stream. `max_age` can be set before or after this call. For other settings, pass a
    /// [`RedisBackend`] to [`backend`](Self::backend).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tower_sse::hub::{Error, Hub};
    /// # async fn connect() -> Result<Hub, Error> {
    /// let hub = Hub::builder().redis("redis://127.0.0.1/").connect().await?;
    /// # Ok(hub) }
    /// ```
    #[cfg(feature = "redis")]
    pub fn redis(self, url: impl AsRef<str>) -> Connector {
        self.of(RedisBackend::new(url).map_err(Error::invalid_url))
    }

    /// Puts the log of the hub in NATS JetStream, at this address.
    ///
    /// If the JetStream stream does not exist, it is created with the [`max_age`](Self::max_age) of
    /// the hub. `max_age` can be set before or after this call. An existing stream keeps its
    /// settings. For other settings, pass a [`NatsBackend`] to [`backend`](Self::backend).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tower_sse::hub::{Error, Hub};
    /// # async fn connect() -> Result<Hub, Error> {
    /// let hub = Hub::builder().nats("nats://127.0.0.1").connect().await?;
    /// # Ok(hub) }
    /// ```
    #[cfg(feature = "nats")]
    pub fn nats(self, server: impl AsRef<str>) -> Connector {
        self.of(NatsBackend::new(server).map_err(Error::invalid_url))
    }

    /// Puts the log of the hub in Postgres, at this URL.
    ///
    /// Events are deleted after the [`max_age`](Self::max_age) of the hub, whether that is set
    /// before or after this call. For other settings, pass a [`PostgresBackend`] to
    /// [`backend`](Self::backend).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tower_sse::hub::{Error, Hub};
    /// # async fn connect() -> Result<Hub, Error> {
    /// let hub = Hub::builder().postgres("postgres://app:secret@127.0.0.1/shop").connect().await?;
    /// # Ok(hub) }
    /// ```
    #[cfg(feature = "postgres")]
    pub fn postgres(self, url: impl AsRef<str>) -> Connector {
        self.of(PostgresBackend::new(url).map_err(Error::invalid_url))
    }

    /// Creates a [`Connector`] with these settings and this backend. If `backend` is an `Err`,
    /// [`Connector::connect`] returns this error later.
    fn of<B: Backend>(self, backend: Result<B, Error>) -> Connector {
        Connector { settings: self, backend: backend.map(|backend| Box::new(backend) as _) }
    }

    /// Returns the settings of the hub. `inherited` is the maximum age of events in the backend. It
    /// applies, limited to one day, if the builder has set no maximum age.
    fn into_config(self, inherited: Option<Duration>) -> HubConfig {
        let Self { mut config, max_age } = self;
        // Without a limit, topics would never expire, so their number in memory would only grow.
        let inherited = inherited.filter(|age| !age.is_zero() && *age != Duration::MAX);
        let inherited = inherited.map(|age| age.min(MAX_INHERITED_AGE));
        config.retention.max_age = max_age.or(inherited).unwrap_or(config.retention.max_age);
        config
    }
}

/// The settings of a hub with a backend. [`connect`](Self::connect) creates the hub.
///
/// Each setting of the [`Builder`] can be set here as well.
#[must_use = "it does nothing until it is connected"]
pub struct Connector {
    settings: Builder,
    backend: Result<Box<dyn DynBackend>, Error>,
}

impl Connector {
    /// Sets the maximum number of retained events per topic, like [`Builder::max_events`].
    pub fn max_events(self, events: usize) -> Self {
        Self { settings: self.settings.max_events(events), ..self }
    }

    /// Sets the maximum size of retained events per topic, like [`Builder::max_bytes`].
    pub fn max_bytes(self, bytes: usize) -> Self {
        Self { settings: self.settings.max_bytes(bytes), ..self }
    }

    /// Sets how long events are retained, like [`Builder::max_age`].
    pub fn max_age(self, age: Duration) -> Self {
        Self { settings: self.settings.max_age(age), ..self }
    }

    /// Sets the maximum number of topics in one subscription, like
    /// [`Builder::max_topics_per_subscription`].
    pub fn max_topics_per_subscription(self, topics: usize) -> Self {
        Self { settings: self.settings.max_topics_per_subscription(topics), ..self }
    }

    /// Sets the maximum number of topics of the hub, like [`Builder::max_topics`].
    pub fn max_topics(self, topics: usize) -> Self {
        Self { settings: self.settings.max_topics(topics), ..self }
    }

    /// Sets what happens to a client that is so slow that its next event was evicted, like
    /// [`Builder::lag_policy`].
    pub fn lag_policy(self, policy: LagPolicy) -> Self {
        Self { settings: self.settings.lag_policy(policy), ..self }
    }

    /// Sets how long a subscription pauses after it has written events to its client, like
    /// [`Builder::linger`].
    pub fn linger(self, time: Duration) -> Self {
        Self { settings: self.settings.linger(time), ..self }
    }

    /// Sets how long a member, a name that is present in a topic, stays in the topic after its last
    /// subscription was dropped, like [`Builder::presence_grace`].
    pub fn presence_grace(self, time: Duration) -> Self {
        Self { settings: self.settings.presence_grace(time), ..self }
    }

    /// Sets the time without a sign of life after which the other nodes declare the local node
    /// dead, like [`Builder::presence_lease`].
    pub fn presence_lease(self, time: Duration) -> Self {
        Self { settings: self.settings.presence_lease(time), ..self }
    }

    /// Publishes the joins and leaves of members, names that are present in topics, as events of
    /// these topics, like [`Builder::presence_events`].
    pub fn presence_events(self, event: impl Fn(&str, &Presence) -> Option<Event> + Send + Sync + 'static) -> Self {
        Self { settings: self.settings.presence_events(event), ..self }
    }

    /// Connects to the backend and returns the hub.
    ///
    /// `connect` waits until the backend has opened its log, without a time limit. Opening takes
    /// longer than a few seconds only for a `FileBackend` after a crash, because its file is then
    /// verified.
    ///
    /// The hub first reads the newest events from the backend, as many as its own retention allows.
    /// If this takes longer than five seconds, `connect` returns the hub, and the hub reads the
    /// remaining events in the background.
    ///
    /// One task on the current tokio runtime reads new events from the log. The task ends when the
    /// last handle of the hub and the last subscription are dropped, or when the hub is [shut
    /// down](Hub::shutdown).
    ///
    /// # Errors
    ///
    /// - [`InvalidUrl`](super::ErrorKind::InvalidUrl) if the URL of the server is invalid.
    /// - [`Backend`](super::ErrorKind::Backend) if the backend cannot be reached or opened, and if
    ///   there is no tokio runtime.
    ///
    /// If the backend fails later, `publish` returns an error, and subscriptions wait until the
    /// backend is back.
    ///
    /// # Examples
    ///
    /// `connect` does not try again if the server of the log cannot be reached. If the server and
    /// this process start together, try again for some time, and then exit with the error. An
    /// invalid URL is not [temporary](Error::is_temporary):
    ///
    /// ```
    /// # #[cfg(feature = "redis")] {
    /// use std::{error::Error as _, time::Duration};
    /// use tokio::time::sleep;
    /// use tower_sse::hub::{Error, Hub};
    ///
    /// async fn connect(url: &str) -> Result<Hub, Error> {
    ///     let mut pauses = [1, 2, 4, 8].map(Duration::from_secs).into_iter();
    ///     loop {
    ///         let error = match Hub::builder().redis(url).connect().await {
    ///             Ok(hub) => return Ok(hub),
    ///             Err(error) => error,
    ///         };
    ///         let Some(pause) = pauses.next().filter(|_| error.is_temporary()) else { return Err(error) };
    ///         eprintln!("{error}: {:?}; next attempt after {pause:?}", error.source());
    ///         sleep(pause).await;
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// # assert_eq!(connect("redis://127.0.0.1:1/").await.unwrap_err().kind(), tower_sse::hub::ErrorKind::Backend);
    /// # assert_eq!(connect("redis").await.unwrap_err().kind(), tower_sse::hub::ErrorKind::InvalidUrl);
    /// # }
    /// # main();
    /// # }
    /// ```
    pub async fn connect(self) -> Result<Hub, Error> {
        let mut backend = self.backend?;
        if let Some(age) = self.settings.max_age {
            backend.inherit_max_age(age);
        }
        let config = self.settings.into_config(backend.configured_max_age());
        let core = Core::connected(config, Arc::from(backend)).await?;
        Ok(Hub::new_handle(core))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("settings", &self.settings).finish_non_exhaustive()
    }
}
