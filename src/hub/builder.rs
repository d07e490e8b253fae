#[cfg(feature = "nats")]
use super::backend::NatsBackend;
#[cfg(feature = "redis")]
use super::backend::RedisBackend;
use super::{
    Error, Hub, LagPolicy,
    backend::{Backend, Erased},
    core::{Core, Limits},
    log::Retention,
};
use crate::BoxError;
use std::{fmt, sync::Arc, time::Duration};

/// How much a [`Hub`] holds, and for whom.
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
pub struct Builder(Limits);

impl Builder {
    pub(super) const DEFAULT: Self = Self(Limits {
        retention: Retention { max_events: 10_000, max_bytes: 8 << 20, max_age: Duration::from_secs(60 * 60) },
        max_topics: 100_000,
        lag_policy: LagPolicy::Gap,
    });

    /// How many events each topic holds at most. The default is 10,000.
    ///
    /// This, like the next two, is how far a client that comes back can go back, and how far one that is slow can fall behind.
    /// A topic holds its newest event in any case, until that is too old.
    pub fn max_events(mut self, events: usize) -> Self {
        self.0.retention.max_events = events;
        self
    }

    /// How many bytes of events, as they are sent, each topic holds at most. The default is 8 MiB.
    ///
    /// What it takes in memory is up to 48 KiB more, and some 16 bytes more for each event.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.0.retention.max_bytes = bytes;
        self
    }

    /// For how long each topic holds an event at most, and how long a topic is remembered that is finished. The default is an
    /// hour; [`Duration::MAX`] is for ever.
    ///
    /// A topic without subscribers is dropped when its last event is too old. The memory of events that are too old is given
    /// back a while later, at most a sixteenth of this time; whoever subscribes gets them no more by then.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.0.retention.max_age = age;
        self
    }

    /// How many topics there are at most. The default is 100,000. One more is an
    /// [error](super::ErrorKind::TooManyTopics).
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.0.max_topics = topics;
        self
    }

    /// What becomes of a client that is so slow that events are let go before it has got them. The default is
    /// [`LagPolicy::Gap`].
    pub fn lag_policy(mut self, policy: LagPolicy) -> Self {
        self.0.lag_policy = policy;
        self
    }

    /// The hub, in the memory of this process.
    #[must_use]
    pub fn build(self) -> Hub {
        Hub { core: Arc::new(Core::new(self.0, None)) }
    }

    /// A hub whose log is in this backend, which other processes use, too. See [several nodes](super#several-nodes).
    ///
    /// What the hub [holds](Self::max_events) is then what clients get without asking the backend, and costs memory in each process;
    /// what is no longer held here comes from the backend, whose own retention is how far anybody can go back. The time for which
    /// an event is held counts from when it was read here. [`max_topics`](Self::max_topics) are those of the whole log: of a
    /// topic for which there is no room here nothing is held, and to subscribe or publish to it is an error.
    ///
    /// # Examples
    ///
    /// Two hubs with one log, as two processes have:
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
    /// assert_eq!(news.next().await.unwrap().count(), 1);
    /// # Ok(()) }
    /// ```
    pub fn backend(self, backend: impl Backend) -> Connect {
        self.of(Ok(backend))
    }

    /// A hub whose log is in Redis, at this URL. Its stream is trimmed to what is too old for this hub, by the
    /// [`max_age`](Self::max_age) that is set before this. For more, give a [`RedisBackend`] to [`backend`](Self::backend).
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
    pub fn redis(self, url: impl AsRef<str>) -> Connect {
        let backend = RedisBackend::new(url).map(|redis| redis.max_age(self.0.retention.max_age));
        self.of(backend)
    }

    /// A hub whose log is in NATS JetStream, at this address. Its stream is trimmed to what is too old for this hub, by the
    /// [`max_age`](Self::max_age) that is set before this. For more, give a [`NatsBackend`] to [`backend`](Self::backend).
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
    pub fn nats(self, server: impl AsRef<str>) -> Connect {
        let backend = NatsBackend::new(server).map(|nats| nats.max_age(self.0.retention.max_age));
        self.of(backend)
    }

    fn of(self, backend: Result<impl Backend, BoxError>) -> Connect {
        Connect { limits: self.0, backend: backend.map(|backend| Arc::new(backend) as Arc<dyn Erased>) }
    }
}

/// A hub that is not connected yet.
#[must_use = "it does nothing until it is connected"]
pub struct Connect {
    limits: Limits,
    backend: Result<Arc<dyn Erased>, BoxError>,
}

impl Connect {
    /// The hub, once everything that the backend holds was read, as far as the hub holds it; for five seconds at most, after which
    /// the rest is read while it already serves.
    ///
    /// One task follows the log from then on, on the runtime in which this is called, until the last handle of the hub and the last
    /// subscription are dropped, or the hub is [shut down](Hub::shutdown).
    ///
    /// # Errors
    ///
    /// If the backend cannot be reached now, or not at all, or if this is no tokio runtime. Later it is an error for those who
    /// publish, while those who are subscribed wait.
    pub async fn connect(self) -> Result<Hub, Error> {
        let backend = self.backend.map_err(|source| Error::backend("", source))?;
        Ok(Hub { core: Core::connected(self.limits, backend).await? })
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("limits", &self.limits).finish_non_exhaustive()
    }
}
