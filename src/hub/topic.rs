use super::{core::Core, error::Error, start::Start, subscription::Subscription};
use crate::{Event, EventId};
use std::{fmt, sync::Arc};

/// A label for events of a [`Hub`](super::Hub), and where they are kept.
///
/// It is a handle: cheap to make, to clone and to drop. A topic comes into being when something is
/// published to it, when somebody subscribes to it, or when it is finished, and is dropped when
/// nobody is subscribed and its last event is too old. What was lost with it is still told when it
/// is made anew.
///
/// # Examples
///
/// An answer of a model, which goes on whoever reads it, and is complete at some time:
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
    core: Arc<Core>,
    name: Arc<str>,
    latest_only: bool,
}

impl Topic {
    pub(super) fn new(core: Arc<Core>, name: Arc<str>) -> Self {
        Self { core, name, latest_only: false }
    }

    /// Makes each event of this topic replace the one before it: a state and no history, such as
    /// who is here, or how far a job is.
    ///
    /// Only the newest event is held. A client that comes, or comes back, gets that one if it does
    /// not have it; what it was before is not missing, so there is no gap. It holds from the next
    /// event on that is published by this handle.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::{Hub, Start}};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let presence = hub.topic("lobby/presence").latest_only();
    /// presence.publish(Event::display(hub.topic("lobby").subscribers()).event("here")).await?;
    /// // One connection for what is said and for who is there to hear it.
    /// hub.subscribe(["lobby", "lobby/presence"], Start::Earliest).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn latest_only(mut self) -> Self {
        self.latest_only = true;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an event, and returns the id that it got once it is in the log: those who subscribe
    /// from then on can have it.
    ///
    /// An id that the event has is replaced, as ids are places in the log of the hub. It is encoded
    /// here and never again, and never waits for a subscriber. A comment, or a `retry` alone, is an
    /// event as well.
    ///
    /// # Errors
    ///
    /// If the topic is [finished](Self::finish), or if it would be one more than the hub may have;
    /// or if the backend does not say that it has [taken it](super::ErrorKind::Backend).
    ///
    /// # Cancel safety
    ///
    /// In memory it does not wait for anything: it is done when it was polled once. With a backend,
    /// the event of a future that was dropped may or may not be in the log.
    pub async fn publish(&self, event: Event) -> Result<EventId, Error> {
        let event = event.without_id().complete();
        let id = self.core.publish(&self.name, self.latest_only, [event]).await?;
        Ok(id.expect("one event was added, so there is a last one"))
    }

    /// Adds events that follow each other immediately, with one wake-up for all of them, and
    /// returns the id of the last; `None` if there are none.
    ///
    /// All of them are read before the first is added, so the iterator can take its time. If they
    /// are more than the topic holds, everybody who listens has missed the first of them, and is
    /// told.
    ///
    /// # Errors
    ///
    /// If the topic is [finished](Self::finish), or if it would be one more than the hub may have:
    /// then none is added. Or if the backend does not say that it has
    /// [taken them](super::ErrorKind::Backend): then all or none are.
    ///
    /// # Cancel safety
    ///
    /// In memory it does not wait for anything: it is done when it was polled once. With a backend,
    /// the events of a future that was dropped may or may not be in the log, all of them or none.
    pub async fn publish_all(&self, events: impl IntoIterator<Item = Event>) -> Result<Option<EventId>, Error> {
        let events: Vec<_> = events.into_iter().map(|event| event.without_id().complete()).collect();
        if events.is_empty() {
            return Ok(None);
        }
        self.core.publish(&self.name, self.latest_only, events).await
    }

    /// The events of this topic, from a place in the log on.
    ///
    /// What is held already and what is published later is one sequence: nothing is lost, repeated
    /// or out of order where the one passes into the other. See the
    /// [table](super#where-a-client-goes-on) for what each id gets.
    ///
    /// # Errors
    ///
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic would be one more than the
    ///   hub may have.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if the client needs history from the backend,
    ///   and 1,024 other history reads run or wait. The client can come back with the same id.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) after [`Hub::shutdown`](super::Hub::shutdown).
    ///
    /// A backend outage is not an error here.
    ///
    /// # Cancel safety
    ///
    /// Of a future that was dropped nothing is left. In memory it does not wait for anything; with
    /// a backend, at most two seconds for what is not held here.
    pub async fn subscribe(&self, start: impl Into<Start>) -> Result<Subscription, Error> {
        self.core.subscribe(vec![self.name.clone()], start.into()).await
    }

    /// Says that there will be no more events: a job that is done, an answer that is complete.
    ///
    /// Its subscriptions end after its last event. An `EventSource` takes that for a lost
    /// connection and comes back, and then gets `204 No Content`, by which it knows. It is
    /// remembered for the hub's `max_age`, and for as long as there is a subscription to it and to
    /// other topics that go on; until then nothing can be published to it. Finished twice is
    /// finished.
    ///
    /// With a backend every node knows it once it has read that. What is published on another node
    /// before then is not lost: the topic goes on with it, on all nodes, and whoever was at its end
    /// comes back to it.
    ///
    /// # Errors
    ///
    /// If the topic would be one more than the hub may have, or if the backend does not say that it
    /// has [noted it](super::ErrorKind::Backend).
    pub async fn finish(&self) -> Result<(), Error> {
        self.core.finish(&self.name).await
    }

    /// Whether it has come into being and is still there: it holds events, is remembered as
    /// finished, or has subscribers.
    ///
    /// Whoever subscribes to a topic makes it. Where a client chooses the name, this tells a topic
    /// that somebody has published to from one that the client has made up. With a backend it is
    /// what this process has read of it by now.
    ///
    /// # Examples
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

    /// How many subscriptions there are now, in this process.
    ///
    /// It counts those that were not dropped yet. A server drops one when the client closes its
    /// connection; for a client that has vanished that is when a write to it fails, so it depends
    /// on heartbeats and on the timeouts of the transport.
    ///
    /// A browser may keep a page that was left, and its `EventSource` with it, to show it again. A
    /// page that is not to count then closes its `EventSource` on `pagehide`.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.core.subscribers(&self.name)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Topic").field(&self.name).finish()
    }
}
