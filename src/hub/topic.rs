use super::{
    core::Core,
    error::Error,
    presence::{self, Membership, PresenceStream},
    recording::{self, Recorder},
    start::Start,
    subscriber_counts::SubscriberCounts,
    subscription::Subscription,
};
use crate::{Event, EventId, SseItem};
use std::{fmt, sync::Arc};
use tokio_stream::Stream;

/// A handle to one topic of a [`Hub`](super::Hub).
///
/// Handles are cheap to create, to clone and to drop. Publishing, subscribing or finishing creates
/// the topic. A topic without subscribers is dropped when its last event has expired. If it is
/// created again later, the evicted events are still reported as a gap.
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
    core: Arc<Core>,
    name: Arc<str>,
    latest_only: bool,
}

impl Topic {
    pub(super) fn new(core: Arc<Core>, name: Arc<str>) -> Self {
        Self { core, name, latest_only: false }
    }

    /// Makes each event of this topic replace the previous event. Use it for a state without a
    /// history, such as presence or the progress of a job.
    ///
    /// Only the newest event is retained. A client that connects or reconnects receives it, unless
    /// the client has it already. Replaced events are not missing, so there is no gap. The setting
    /// applies to the events that are published with this handle from now on.
    ///
    /// # Retention
    ///
    /// A state does not expire while its topic has subscribers. When the last subscriber has left,
    /// the state is retained for [`max_age`](super::Builder::max_age).
    ///
    /// With a backend, this holds for each node and its own subscribers. The backend removes a
    /// state after its own retention, whether or not a node has subscribers. After that, a node
    /// that starts later, or that had no subscribers for `max_age`, does not have the state. To
    /// keep it on all nodes, publish it again within the retention of the backend.
    ///
    /// A client whose subscription begins [after](super::Start::After) an id never receives a state
    /// that is older than the id, for example if it takes the id from a snapshot that lacks the
    /// state.
    ///
    /// # Slow clients
    ///
    /// In a subscription to several topics, each state has its turn, however often the topics are
    /// updated: with K states, a client that reads one item at a time receives each of them within
    /// 2K items. If a state was replaced before its turn, the client receives the newest state in
    /// its place. That has two consequences:
    ///
    /// - The newest state may arrive before earlier events of other topics. Its id is that of the
    ///   place, and smaller than the id that `publish` returned.
    /// - A client that reconnects with such an id may receive the same state again. When nothing
    ///   else follows, an event of type `hub-cursor` moves the client to the newest id.
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
    /// hub.subscribe(["lobby", "lobby/presence"], Start::Earliest).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn latest_only(mut self) -> Self {
        self.latest_only = true;
        self
    }

    /// Returns the name of the topic.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Publishes an event, and returns its id when the event is in the log.
    ///
    /// The hub replaces the id of the event, because ids are positions in the log. The event is
    /// encoded once. Publishing never waits for a subscriber. A comment or a `retry` alone counts
    /// as an event.
    ///
    /// # Errors
    ///
    /// - [`Finished`](super::ErrorKind::Finished) if the topic is [finished](Self::finish).
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`ReservedName`](super::ErrorKind::ReservedName) if the event is named `gap` or
    ///   `hub-cursor`.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) after [`Hub::shutdown`](super::Hub::shutdown).
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the event.
    ///
    /// # Cancel safety
    ///
    /// In memory, the future completes on its first poll. With a backend, the event of a dropped
    /// future may or may not be in the log.
    pub async fn publish(&self, event: Event) -> Result<EventId, Error> {
        let id = self.core.publish(&self.name, self.latest_only, [complete(event)?]).await?;
        Ok(id.expect("one event was added, so there is a last one"))
    }

    /// Publishes an event in memory without an `await`, and returns its id.
    ///
    /// It does the same as [`publish`](Self::publish), in code that is not async, and while a
    /// [`std::sync::Mutex`] is locked. So a state and the event that reports it can change
    /// together. It needs no runtime.
    ///
    /// The call wakes up to 32 waiting subscribers. The locks of the hub are released before that,
    /// but those of the caller are not. An executor that polls its tasks inside of `wake` would run
    /// the subscribers while the caller holds its lock. The executors of tokio do not do this.
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
        let id = self.core.publish_now(&self.name, self.latest_only, complete(event)?)?;
        Ok(id.expect("one event was added, so there is a last one"))
    }

    /// Publishes events as one batch, with one wake-up. Except for large batches in memory, no
    /// other events are between them. Returns the id of the last event, or `None` if there are no
    /// events.
    ///
    /// In memory, a batch is published in blocks of 1,000 events. Each block is contiguous and
    /// causes one wake-up. Other publishers can publish between the blocks, so a large batch does
    /// not block them. The events of the batch stay in order.
    ///
    /// The iterator is read to its end before the first event is added. If there are more events
    /// than the topic retains, live subscribers get a gap for the oldest events.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`publish`](Self::publish). After an error, no event is in the
    /// log, with two exceptions:
    ///
    /// - After [`Backend`](super::ErrorKind::Backend), all of the events or none are in the log.
    /// - In memory, if the topic is finished or the hub is shut down during a batch of more than
    ///   1,000 events, a multiple of 1,000 events is in the log.
    ///
    /// # Cancel safety
    ///
    /// In memory, the future completes on its first poll. With a backend, the log contains either
    /// all events of a dropped future or no event of it.
    pub async fn publish_all(&self, events: impl IntoIterator<Item = Event>) -> Result<Option<EventId>, Error> {
        let events = events.into_iter().map(complete).collect::<Result<Vec<_>, Error>>()?;
        if events.is_empty() {
            return Ok(None);
        }
        self.core.publish(&self.name, self.latest_only, events).await
    }

    /// Subscribes to this topic.
    ///
    /// Retained and live events are one sequence: no event is lost, repeated or out of order
    /// between them. See the [table](super#where-a-client-resumes) for what each id receives.
    ///
    /// # Errors
    ///
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`Overloaded`](super::ErrorKind::Overloaded) if the client needs history from the backend,
    ///   and 1,024 other history reads run or wait. The client can reconnect with the same id.
    ///
    /// During an outage of the backend, subscribing returns no error. After
    /// [`Hub::shutdown`](super::Hub::shutdown), the subscription ends immediately with
    /// [`Shutdown`](super::SubscriptionError::Shutdown).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect. In memory, it completes on its first poll. With a
    /// backend, it waits at most two seconds for events that this process does not retain.
    pub async fn subscribe(&self, start: impl Into<Start>) -> Result<Subscription, Error> {
        let subscription = self.core.subscribe(vec![(self.name.clone(), None)], start.into()).await?;
        Ok(subscription.with_default_linger())
    }

    /// Finishes the topic, for example because a job is done or an answer is complete.
    ///
    /// Its subscriptions end after the last event. An `EventSource` then reconnects, and gets `204
    /// No Content`, which stops it. The hub remembers that the topic is finished for `max_age`, or
    /// longer if a subscription still has it together with unfinished topics. As long as the hub
    /// remembers it, publishing to the topic returns an error. Calling this again has no effect.
    ///
    /// With a backend, each node learns of the end when it reads the log. If another node publishes
    /// to the topic before it has read this, the topic continues on all nodes with that event.
    ///
    /// # Errors
    ///
    /// - [`TooManyTopics`](super::ErrorKind::TooManyTopics) if the topic is new, and the hub
    ///   already has `max_topics` topics.
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the finish
    ///   record.
    pub async fn finish(&self) -> Result<(), Error> {
        self.core.finish(&self.name).await
    }

    /// Records a stream in this topic: a task publishes its events, independently of any client.
    /// Call [`start`](Recorder::start) on the result.
    ///
    /// So the answer of a language model, or the output of a job, does not end with the connection
    /// of the client that has requested it. Clients subscribe to the topic like to any other. The
    /// items of the stream are the same as for an [`SseStream`](crate::SseStream::new). Their ids
    /// are replaced. Items that are ready at the same time are published as one batch.
    ///
    /// The topic is [finished](Self::finish) however the recording [ends](super::Outcome), so its
    /// clients stop reconnecting. Use a topic of its own for each recording. Other publishers may
    /// publish to it meanwhile.
    ///
    /// # With a backend
    ///
    /// During an outage of the backend, the recording does not poll its stream. It publishes the
    /// last batch, of at most 64 items, again until the log has it. No event is lost or published
    /// twice. If this node dies, another node publishes the [`will`](super::Recorder::will) and
    /// finishes the topic. If the log is [replaced](super::backend) by another log, the recording
    /// continues in it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stream::Stream;
    /// use tower_sse::{BoxError, Event, hub::{Hub, Outcome}};
    ///
    /// # fn model(prompt: &str) -> impl Stream<Item = Result<Event, BoxError>> + Send + use<> {
    /// #     tokio_stream::iter([Ok(Event::new(prompt))])
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let hub = Hub::new();
    /// let answer = hub.topic("answer/42");
    /// let recording = answer
    ///     .record(model("Why is the sky blue?"))
    ///     .abandon_after(Duration::from_secs(30))
    ///     .time_limit(Duration::from_secs(600))
    ///     .on_error(|error| Some(Event::display(error).event("failed")))
    ///     .end_with(Event::new("[DONE]"))
    ///     .will(Event::new("").event("interrupted"))
    ///     .start();
    /// assert_eq!(recording.outcome().await, Outcome::Finished);
    /// # }
    /// ```
    pub fn record<S>(&self, stream: S) -> Recorder
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        Recorder::new(self.core.clone(), self.name.clone(), stream)
    }

    /// Stops the recordings of this topic, on whichever node they run. It returns when the log has
    /// the request, and a recording ends when its node reads it. Without a recording, this has no
    /// effect.
    ///
    /// # Errors
    ///
    /// [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the request.
    /// Recordings of this node are stopped nevertheless.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::{Error, Hub};
    ///
    /// /// The handler of a "Stop" button.
    /// async fn stop(hub: &Hub, answer: &str) -> Result<(), Error> {
    ///     hub.topic(format!("answers/{answer}")).stop_recording().await
    /// }
    /// ```
    pub async fn stop_recording(&self) -> Result<(), Error> {
        recording::stop(&self.core, &self.name).await
    }

    /// Removes the events and the state of the topic from a hub in memory, for example because a
    /// chat room was deleted. The topic then no longer [exists](Self::exists), and its memory is
    /// free.
    ///
    /// - A client that returns with an id from before the last event gets a gap (`evicted`). A
    ///   client that has received all events misses none, so it gets no gap.
    /// - Open subscriptions stay open, and the topic exists as long as it has one. A subscription
    ///   that has not received all events gets a gap (`lagged`). To end the subscriptions,
    ///   [finish](Self::finish) the topic first.
    /// - A finished topic is forgotten when it has no subscribers: publishing creates it again.
    ///   Clients that return get an empty subscription and no 204. To reject them, check that the
    ///   topic [exists](Self::exists) before you subscribe.
    /// - A [state](Self::latest_only) is removed as well. Pages that show it keep it, so publish a
    ///   last state before, if pages need to know.
    ///
    /// Removing a topic that does not exist has no effect. Ids are never used again.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](super::ErrorKind::Unsupported) if the hub has a backend. The log in the
    /// backend retains the events of all topics together, and this version cannot remove a topic
    /// from it. No event is removed.
    ///
    /// # Cancel safety
    ///
    /// The future completes on its first poll.
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
        self.core.remove(&self.name)
    }

    /// Returns `true` if the topic retains events, is remembered as finished, or has subscribers.
    ///
    /// Subscribing creates a topic. Where a client chooses the name, check with this method that
    /// the topic exists before you subscribe. With a backend, the answer depends on what this
    /// process has read so far.
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

    /// Returns the number of subscriptions to this topic in this process.
    ///
    /// A subscription counts until it is dropped. A server drops it when the client closes its
    /// connection. If the client vanishes without closing, the server drops it when a write fails,
    /// which depends on heartbeats and on the timeouts of the transport.
    ///
    /// A browser may keep a page that the user has left, with its open `EventSource`, in its
    /// back/forward cache. To end the subscription in this case, the page can close its
    /// `EventSource` on `pagehide`.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.core.subscribers(&self.name)
    }

    /// Returns whether the topic [exists](Self::exists) on any node of the hub.
    ///
    /// If it exists on this node, this returns at once. Otherwise it asks the other nodes through
    /// the log, and returns after the first node that has the topic, or after one second. The
    /// question is one record, and each node that has the topic writes one record. So use it for
    /// single requests, and not per client. A node that does not respond in this time is not
    /// counted. In memory it is the same as [`exists`](Self::exists).
    ///
    /// # Errors
    ///
    /// [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the question.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::hub::{Error, Hub};
    /// async fn is_open(hub: &Hub, room: &str) -> Result<bool, Error> {
    ///     hub.topic(room).exists_anywhere().await
    /// }
    /// ```
    pub async fn exists_anywhere(&self) -> Result<bool, Error> {
        presence::exists_anywhere(&self.core, &self.name).await
    }

    /// Returns the number of [subscriptions](Self::subscribers) to this topic on all nodes of the
    /// hub.
    ///
    /// With a backend, this asks the other nodes through the log, and takes one second. The question
    /// is one record, and each node that has the topic writes one record. A node that does not
    /// respond in this time is not counted. For a number that changes with each client, count the
    /// [members](Self::members). In memory it is the same as [`subscribers`](Self::subscribers).
    ///
    /// # Errors
    ///
    /// [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the question.
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

    /// Makes this member present in the topic as long as the returned subscription lives.
    ///
    /// A member can have any number of subscriptions, for example one per tab, on any nodes. It
    /// joins with the first one. It leaves when it has had none for the
    /// [grace time](super::Builder::presence_grace), so a client that reconnects in time does
    /// neither. The subscription need not be one of this topic, and can be a membership in several
    /// topics: call `join` once for each of them.
    ///
    /// With a backend, other nodes learn of the member from one small record, whatever the number of
    /// members. A second subscription of the member on the same node writes no record. While the
    /// backend is down, joins and leaves wait.
    ///
    /// The name can be any text of up to 256 bytes. Use the name or the id of a user who has logged
    /// in. A client that chooses its name freely can be present as another user.
    ///
    /// # Errors
    ///
    /// - [`MemberTooLong`](super::ErrorKind::MemberTooLong) if the name has more than 256 bytes.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the hub uses the topic itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{LastEventId, hub::{Error, Hub, Subscription}};
    ///
    /// async fn enter(hub: &Hub, room: &str, user: &str, last: LastEventId) -> Result<Subscription, Error> {
    ///     let room = hub.topic(room);
    ///     room.join(user, room.subscribe(last).await?)
    /// }
    /// ```
    pub fn join(&self, member: impl AsRef<str>, mut subscription: Subscription) -> Result<Subscription, Error> {
        let membership = Membership::new(&self.core, &self.name, member.as_ref())?;
        subscription.memberships.push(membership);
        Ok(subscription)
    }

    /// Returns the members of the topic on all nodes, sorted, each once.
    ///
    /// The result includes each change that this node has made before the call, and each change that
    /// was in the log before. With a backend, each call asks it for the end of the log. Concurrent
    /// calls share this request.
    ///
    /// A node that starts, or that was cut off, may not know the members yet, if the log has evicted
    /// records. Then it asks the other nodes, and this method waits for them: usually milliseconds.
    /// If there is no other node, it waits for the [lease](super::Builder::presence_lease). If a node
    /// has died, it waits for the lease and the grace time.
    ///
    /// # Errors
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not respond, or if the members
    ///   are not known after the lease, the grace time and five seconds.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub is shut down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect. In memory, it completes on its first poll.
    ///
    /// # Examples
    ///
    /// A page that begins with the members, and continues with their
    /// [changes](super::Builder::presence_events):
    ///
    /// ```
    /// use tower_sse::{Event, LastEventId, hub::{Error, Hub, Subscription}};
    ///
    /// async fn enter(hub: &Hub, room: &str, user: &str, last: LastEventId) -> Result<Subscription, Error> {
    ///     let room = hub.topic(room);
    ///     let events = room.join(user, room.subscribe(last).await?)?;
    ///     if events.is_resumed() {
    ///         return Ok(events);
    ///     }
    ///     let members = room.members().await?;
    ///     Ok(events.begin_with(Event::json(&members)?.event("members")))
    /// }
    /// ```
    pub async fn members(&self) -> Result<Vec<Arc<str>>, Error> {
        presence::members(&self.core, &self.name).await
    }

    /// Returns a stream of the members of the topic on all nodes: first each member that it has, and
    /// then each change.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::hub::{Hub, Presence, Start};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let lobby = Hub::new().topic("lobby");
    /// let _page = lobby.join("Anna", lobby.subscribe(Start::Latest).await?)?;
    /// let mut changes = lobby.presence();
    /// assert_eq!(changes.next().await, Some(Presence::Joined("Anna".into())));
    /// # Ok(()) }
    /// ```
    pub fn presence(&self) -> PresenceStream {
        PresenceStream::new(&self.core, &self.name)
    }

    /// Returns a stream of the number of [subscribers](Self::subscribers) in this process: the
    /// current number, and then each later number.
    ///
    /// The stream is woken when a subscription begins or ends, and never polls. A slow reader gets
    /// the newest number and skips those in between. The stream ends when the hub is
    /// [shut down](super::Hub::shutdown).
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

/// Checks the name of an event and encodes it for publication, without an id. The log assigns the
/// id later.
pub(super) fn complete(event: Event) -> Result<Event, Error> {
    check_name(event.name_if_set())?;
    Ok(event.without_id().complete())
}

/// Checks that the name of an event is not a name that the hub uses itself.
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
