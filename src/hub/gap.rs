use crate::EventId;
use std::fmt;

/// A range of events that are missing for a subscriber.
///
/// [`Subscription::gap`](super::Subscription::gap) reports the gap to the handler before the
/// handler responds. The client gets an event of type `gap` before the next available event. The
/// data of this event is JSON:
///
/// ```text
/// id: fzk2m5qa-407
/// event: gap
/// data: {"reason":"evicted","requested":"fzk2m5qa-100","resumed":"fzk2m5qa-408"}
/// ```
///
/// The id of the event is a log position. A client that resumes from this id misses no further
/// event.
///
/// # Examples
///
/// A client that has missed events can reload its page, which shows the current state:
///
/// ```
/// # use tower_sse::{Event, LastEventId, SseStream, hub::{Error, Hub, Subscription}};
/// async fn orders(hub: &Hub, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
///     let orders = hub.topic("orders").subscribe(last).await?;
///     let missed = orders.gap().map(|gap| format!("{} after {}", gap.reason(), gap.requested()));
///     Ok(match missed {
///         // In the page: source.addEventListener("reload", () => location.reload());
///         Some(missed) => SseStream::new(orders.begin_with(Event::new(missed).event("reload"))),
///         None => SseStream::new(orders),
///     })
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub(super) reason: GapReason,
    pub(super) requested: EventId,
    pub(super) resumed: Option<EventId>,
}

impl Gap {
    /// Returns the reason why events are missing.
    #[must_use]
    pub fn reason(&self) -> GapReason {
        self.reason
    }

    /// Returns the id after which events are missing. It is the id that the client sent. For a slow
    /// client, it is the last id that the client received.
    #[must_use]
    pub fn requested(&self) -> &EventId {
        &self.requested
    }

    /// Returns the id of the event with which the subscription resumes: the oldest retained event.
    /// `None` if there is no such event yet, or if the backend did not report it.
    #[must_use]
    pub fn resumed(&self) -> Option<&EventId> {
        self.resumed.as_ref()
    }
}

/// The reason why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// Events after the requested id are no longer retained. On the wire `evicted`.
    Evicted,
    /// The id is greater than any id that the hub has issued. On the wire `ahead`.
    Ahead,
    /// The id is from another log: a hub without a backend was restarted, the log was replaced, or
    /// the id is of another hub. On the wire `other_epoch`.
    OtherEpoch,
    /// The text is not an id of a hub. On the wire `malformed`.
    Malformed,
    /// The subscriber was slower than the retention of its topics. On the wire `lagged`.
    Lagged,
}

impl GapReason {
    /// Returns the name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Ahead => "ahead",
            Self::OtherEpoch => "other_epoch",
            Self::Malformed => "malformed",
            Self::Lagged => "lagged",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The treatment of a subscriber that is slower than the retention of its topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LagPolicy {
    /// It gets a [`Gap`] event, and resumes with the oldest retained event.
    #[default]
    Gap,
    /// The subscription ends with [`SubscriptionError::Lagged`](super::SubscriptionError::Lagged).
    /// The client reconnects with the last id that it received. The handler then gets the [`Gap`],
    /// and can respond with a snapshot.
    Disconnect,
}
