use super::{
    builder::Builder, core::Core, error::Error, start::Start, stats::Stats, subscription::Subscription, topic::Topic,
};
use std::{fmt, sync::Arc};

/// Topics that are published to, and subscriptions that go on where a client was. See the
/// [module](super).
///
/// A clone is the same hub.
#[derive(Clone)]
pub struct Hub {
    core: Arc<Core>,
}

impl Hub {
    pub(super) fn new_handle(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// A hub in the memory of this process, with the [builder's](Builder) defaults: 10,000 events,
    /// 8 MiB and an hour for each of at most 100,000 topics.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A hub that holds more, or less.
    pub fn builder() -> Builder {
        Builder::DEFAULT
    }

    /// A topic of this name, any text.
    #[must_use]
    pub fn topic(&self, name: impl AsRef<str>) -> Topic {
        Topic::new(self.core.clone(), name.as_ref().into())
    }

    /// The events of many topics, in the order in which they were published, from a place in the
    /// log on.
    ///
    /// One connection for all of them, and one cursor: a browser allows six connections to a host
    /// on HTTP/1.1. Events do not say of which topic they are; give them different
    /// [names](crate::Event::event), or say it in their data.
    ///
    /// # Errors
    ///
    /// - [`NoTopics`](super::ErrorKind::NoTopics) if no topic is named.
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the hub would have more topics than
    ///   it may.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if the client needs history from the backend,
    ///   and 1,024 other history reads run or wait. The client can come back with the same id.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) after [`shutdown`](Self::shutdown).
    ///
    /// A backend outage is not an error here.
    ///
    /// # Cancel safety
    ///
    /// As that of [`Topic::subscribe`].
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
    pub async fn subscribe<T: AsRef<str>>(
        &self,
        topics: impl IntoIterator<Item = T>,
        start: impl Into<Start>,
    ) -> Result<Subscription, Error> {
        let names = topics.into_iter().map(|name| name.as_ref().into()).collect();
        self.core.subscribe(names, start.into()).await
    }

    /// Ends all subscriptions at once, and takes no more events and no more subscribers.
    ///
    /// The response of a subscription ends cleanly and without its
    /// [last event](crate::SseStream::end_with), and says when to reconnect, as at a
    /// [shutdown of its layer](crate::SseLayer::shutdown): clients come back with the last id that
    /// they got, to whoever answers then. What they have not got by now they do not get. Twice is
    /// once.
    ///
    /// A server needs one of the two: this one, or the layer's, which also ends streams that are
    /// not of a hub, and says a farewell.
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

    /// Figures for a status page.
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
