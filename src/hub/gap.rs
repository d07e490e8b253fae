use crate::EventId;
use std::fmt;

/// A range of events that are missing for a subscriber. The few losses that are not reported as a
/// gap are the [exceptions](super#guarantees) of the backends.
///
/// [`Subscription::gap`](super::Subscription::gap) returns a gap at the beginning of a
/// subscription, so that the handler can choose its response. The client gets an event of type
/// `gap` before the next available event. The data of this event is JSON:
///
/// ```text
/// id: fzk2m5qa-407
/// event: gap
/// data: {"reason":"evicted","requested":"fzk2m5qa-100","resumed":"fzk2m5qa-408"}
/// ```
///
/// A client that resumes after the id of this event misses no further event.
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

    /// Returns the id after which events are missing. At the beginning of a subscription, this is
    /// the id that the client sent. Later, for a client that was too slow, it is the last id that
    /// the client received.
    #[must_use]
    pub fn requested(&self) -> &EventId {
        &self.requested
    }

    /// Returns the id of the first event after the gap. The subscription resumes with this event.
    /// Returns `None` if there is no such event yet, or if the backend has not reported it yet.
    #[must_use]
    pub fn resumed(&self) -> Option<&EventId> {
        self.resumed.as_ref()
    }
}

/// The reason why events are missing for a client. Each reason has a name in the JSON data of the
/// `gap` event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// Events after the requested id are no longer retained. The `gap` event contains this reason
    /// as `evicted`.
    Evicted,
    /// The requested id is greater than any id that the hub has issued. The `gap` event contains
    /// this reason as `ahead`.
    Ahead,
    /// The requested id is from another log. For example, a hub without a backend was restarted,
    /// the log of the backend was replaced, or the id is from another hub. The `gap` event contains
    /// this reason as `other_epoch`.
    OtherEpoch,
    /// The requested id is a text that no hub issues as an id. The `gap` event contains this reason
    /// as `malformed`.
    Malformed,
    /// The subscriber was so slow that its next events were evicted before it read them. The `gap`
    /// event contains this reason as `lagged`.
    Lagged,
}

impl GapReason {
    /// Returns the name of the reason in the JSON data of a `gap` event, such as `evicted`.
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

/// Decides what happens to a subscriber that is so slow that its next events were evicted before it
/// received them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LagPolicy {
    /// The client gets an event of type `gap`, and continues with the oldest retained event. See
    /// [`Gap`].
    #[default]
    Gap,
    /// The subscription ends with [`SubscriptionError::Lagged`](super::SubscriptionError::Lagged),
    /// which disconnects the client. An `EventSource` reconnects with the last id that it received.
    /// The new subscription then begins with a [`Gap`], and the handler can respond with a
    /// snapshot.
    Disconnect,
}
