use super::{
    backend::Position,
    error::{Error, SubscriptionError},
    gap::Gap,
    item::{Item, Topics, decode_first},
    recording::append::has_read_to_end,
    subscription::Subscription,
};
use crate::{
    Event, EventId,
    preamble::{self, Purpose},
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::timeout;
use tokio_stream::Stream;

/// The maximum time that [`Hub::read`](super::Hub::read) waits until the local node has read the
/// backend's log up to its end.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of events that a listener yields in a row. After these events, it returns
/// `Pending` once and wakes its task, so that other tasks can run.
const MAX_EVENTS_PER_TURN: u32 = 64;

/// A published event that a [`Listener`] yields: decoded, with its topic and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The name of the event's topic.
    pub topic: Arc<str>,
    /// The id of the event. [Listening](super::Hub::listen) after this id resumes with the
    /// following event, with one exception. A listener to several topics can yield the newest event
    /// of a [`latest_only`](super::Topic::latest_only) topic in place of an older event. The newest
    /// event then has the id of the older event. So listening after that id misses no event of
    /// another topic, but yields the newest event once more.
    pub id: EventId,
    /// The event as it was published. It contains no id, because the id is a separate field.
    pub event: Event,
}

/// A stream of the events of one or many topics, for a consumer in Rust: a worker, a bridge to
/// WebSockets, or a filter per client. [`Hub::listen`](super::Hub::listen) and
/// [`Topic::listen`](super::Topic::listen) create it. [`Hub::read`](super::Hub::read) and
/// [`Topic::read`](super::Topic::read) create a listener that ends after the present events.
///
/// Like a [`Subscription`], a listener is a cursor and not a queue, so a slow listener needs no
/// more memory than a fast one. A listener yields published events, but no `hub-cursor` and no
/// `gap` events. Unlike a subscription with [`linger`](super::Builder::linger), a listener never
/// pauses to collect events. After 64 events, a listener is pending once, so that other tasks can
/// run.
///
/// Events are yielded in the order of publication, with one exception. If a
/// [`latest_only`](super::Topic::latest_only) event is replaced before a listener to several topics
/// yields it, the newest event of its topic can take its place. The newest event then has the id of
/// the replaced event.
///
/// # Gaps
///
/// Missing events are reported, with the [exceptions](super#guarantees) of the backends:
///
/// - If a listener begins after an id, events after that id may be missing. [`gap`](Self::gap)
///   returns this gap before the first event.
/// - A listener that is so slow that its next events were evicted ends with
///   [`SubscriptionError::Lagged`], also under [`LagPolicy::Gap`](super::LagPolicy::Gap). To
///   continue, listen again after the [`cursor`](Self::cursor) of the old listener. The new
///   listener then returns the gap.
///
/// # Ends
///
/// The stream ends after the last event when all topics are [finished](super::Topic::finish). After
/// [`Hub::shutdown`](super::Hub::shutdown), it ends with [`SubscriptionError::Shutdown`]. If
/// another log has replaced the log of the backend, it ends with
/// [`SubscriptionError::LogReplaced`]: listen again.
///
/// # Examples
///
/// A worker that reads a state again if it has missed events:
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_sse::hub::{Error, Hub, Published, Start, SubscriptionError};
///
/// async fn work(hub: Hub, read_all: impl AsyncFn(), apply: impl AsyncFn(Published)) -> Result<(), Error> {
///     let mut start = Start::Earliest;
///     loop {
///         let mut orders = hub.listen(["orders"], start).await?;
///         if orders.gap().is_some() {
///             read_all().await;
///         }
///         loop {
///             match orders.next().await {
///                 Some(Ok(published)) => apply(published).await,
///                 Some(Err(SubscriptionError::Lagged | SubscriptionError::LogReplaced)) => break,
///                 _ => return Ok(()),
///             }
///         }
///         start = orders.cursor().into();
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let hub = Hub::new();
/// # hub.topic("orders").publish(tower_sse::Event::new("1")).await?;
/// # hub.topic("orders").finish().await?;
/// # work(hub, async || unreachable!(), async |published| assert_eq!(&*published.topic, "orders")).await
/// # }
/// ```
///
/// The texts for a WebSocket, with a filter per client:
///
/// ```
/// use tokio_stream::{Stream, StreamExt};
/// use tower_sse::hub::{Error, Hub, Start};
///
/// async fn texts(hub: &Hub, user: String) -> Result<impl Stream<Item = String>, Error> {
///     let chat = hub.listen(["chat"], Start::Latest).await?;
///     Ok(chat.map_while(Result::ok).filter_map(move |published| {
///         let text = published.event.event_data()?;
///         text.contains(&user).then(|| text.into_owned())
///     }))
/// }
/// ```
#[must_use = "a listener yields events only if it is polled"]
pub struct Listener {
    subscription: Subscription,
    /// The wire bytes of events that were read from the hub, but not yielded yet.
    pending: Bytes,
    /// The topics of the events in `pending`, in order, each with the number of its consecutive
    /// events.
    topics: VecDeque<(Arc<str>, usize)>,
    /// The id of the last yielded event, while later events of the same read are still in
    /// `pending`. The [`cursor`](Self::cursor) of the listener is then this id. `None` if `pending`
    /// is empty.
    last: Option<EventId>,
    /// The cursor of the subscription immediately before the error that has ended the listener.
    /// After the error, [`cursor`](Self::cursor) returns this position, so that a new listener
    /// begins there and reports the missing events. `None` without an error.
    failed_at: Option<Position>,
    /// The number of events that were yielded since the listener was last pending.
    events_in_turn: u32,
    end: End,
}

/// The position in the log where a listener ends, if it ends before its topics are finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The listener waits for later events. It ends only when its topics are finished, or with an
    /// error.
    Never,
    /// The listener ends when its cursor has reached this position, or when it would wait for
    /// events. The local node has read the log up to this position.
    At(Position),
    Reached,
}

impl Listener {
    pub(super) fn new(subscription: Subscription) -> Self {
        Self {
            subscription: subscription.without_control_events(),
            pending: Bytes::new(),
            topics: VecDeque::new(),
            last: None,
            failed_at: None,
            events_in_turn: 0,
            end: End::Never,
        }
    }

    /// Makes the listener end after the events that the log contains now.
    pub(super) async fn until_now(mut self) -> Result<Self, Error> {
        let core = &self.subscription.core;
        if let Some(backend) = &core.backend {
            let has_read = backend.unless_stopped(has_read_to_end(core, backend));
            let has_read = backend.in_runtime(|| timeout(READ_TIMEOUT, has_read)).await;
            if core.is_shut_down() {
                return Err(Error::shut_down());
            }
            if !matches!(has_read, Ok(Some(true))) {
                return Err(Error::backend("", "the log was not read to its end within ten seconds".into()));
            }
        }
        self.end = End::At(core.committed());
        Ok(self)
    }

    /// Ends the listener if it has reached its [`End`], the position in the log where it has to
    /// end. Returns `true` if it has ended. `is_waiting` is `true` if the subscription has no
    /// further event at the moment.
    fn has_ended(&mut self, is_waiting: bool) -> bool {
        let End::At(end) = self.end else { return self.end == End::Reached };
        let is_past = self.subscription.cursor >= end && !self.subscription.has_beginning();
        if is_past || is_waiting && self.subscription.is_caught_up() {
            self.end = End::Reached;
        }
        self.end == End::Reached
    }

    /// Returns the gap at the beginning of the listener: events after the id that was passed to
    /// [`Hub::listen`](super::Hub::listen) are missing. The listener then yields the retained
    /// events.
    ///
    /// Returns `None` if no event is missing, or if that is unknown because the backend is down. If
    /// events turn out to be missing after the outage, the stream ends with
    /// [`SubscriptionError::Lagged`].
    #[must_use]
    pub fn gap(&self) -> Option<&Gap> {
        self.subscription.gap()
    }

    /// Returns the cursor of the listener, an id. The listener has yielded every event of its
    /// topics up to this id. Listening after this id continues with the next event. If that event
    /// is no longer retained, the new listener has a gap.
    ///
    /// Before the first event, the cursor is the position where the listener begins. The cursor can
    /// be newer than the last [`Published::id`], for example if only other topics have later
    /// events.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        match (&self.last, self.failed_at) {
            (Some(last), _) => last.clone(),
            (None, Some(position)) => self.subscription.epoch.id(position),
            (None, None) => self.subscription.cursor(),
        }
    }

    /// Decodes the next event that was read from the hub but not yielded yet. Returns `None` if
    /// there is no such event.
    fn next_pending(&mut self) -> Option<Published> {
        while let Some((topic, count)) = self.topics.front_mut() {
            let decoded = decode_first(&mut self.pending);
            let topic = match *count {
                ..2 => self.topics.pop_front()?.0,
                _ => {
                    *count -= 1;
                    topic.clone()
                }
            };
            let Some((id, event)) = decoded else { continue };
            self.last = Some(id.clone()).filter(|_| !self.topics.is_empty());
            return Some(Published { topic, id, event });
        }
        None
    }
}

impl Stream for Listener {
    type Item = Result<Published, SubscriptionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        // Its events have ids of the same log as those of a subscription in the same response.
        let _any = preamble::purpose_of_poll(&mut this.subscription.polled_by);
        if this.events_in_turn == MAX_EVENTS_PER_TURN {
            this.events_in_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(published) = this.next_pending() {
                this.events_in_turn += 1;
                return Poll::Ready(Some(Ok(published)));
            }
            if this.has_ended(false) {
                return Poll::Ready(None);
            }
            let before = this.subscription.resume_position();
            let item = this.subscription.poll_item(Purpose::Items, cx);
            if item.is_pending() {
                this.events_in_turn = 0;
                if this.has_ended(true) {
                    return Poll::Ready(None);
                }
            }
            match ready!(item) {
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    this.failed_at = Some(before);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(Item { events, topics })) => {
                    match topics {
                        Topics::Hub => continue,
                        Topics::Reader(index) => {
                            let topic = &this.subscription.readers[index as usize].topic;
                            this.topics.push_back((topic.name.clone(), events.count()));
                        }
                        Topics::Runs(runs) => this.topics.extend(runs.iter().cloned()),
                    }
                    this.pending = events.into_bytes();
                }
            }
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("cursor", &self.cursor()).field("gap", &self.gap()).finish_non_exhaustive()
    }
}
