use crate::EventId;
use std::fmt;

/// Events that a subscriber should have had and cannot get any more.
///
/// [`Subscription::gap`](super::Subscription::gap) tells the handler before it answers. The client
/// gets an event of type `gap`, whose data is JSON, before the first event that it can get:
///
/// ```text
/// id: fzk2m5qa-407
/// event: gap
/// data: {"reason":"evicted","requested":"fzk2m5qa-100","resumed":"fzk2m5qa-408"}
/// ```
///
/// Its id is a place in the log, from which a client that comes back goes on: nothing is skipped by
/// it.
///
/// # Examples
///
/// A client that has missed something loads the page anew, which has all of it:
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
    /// Why they are missing.
    #[must_use]
    pub fn reason(&self) -> GapReason {
        self.reason
    }

    /// After which event the subscriber wanted to go on: what it sent, whatever that was; or, if it
    /// was too slow, the last that it got.
    #[must_use]
    pub fn requested(&self) -> &EventId {
        &self.requested
    }

    /// The event with which it goes on instead, the oldest that is held; `None` if there is none
    /// yet, or if the backend did not say which it is.
    #[must_use]
    pub fn resumed(&self) -> Option<&EventId> {
        self.resumed.as_ref()
    }
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// Some events after the one requested are no longer held. On the wire `evicted`.
    Evicted,
    /// The id is greater than any id that the hub has issued. On the wire `ahead`.
    Ahead,
    /// The id is of another hub: of this server before it was restarted, or of another one. On the
    /// wire `other_epoch`.
    OtherEpoch,
    /// It is no id of a hub. On the wire `malformed`.
    Malformed,
    /// The subscriber was so slow that events were let go before it had got them. On the wire
    /// `lagged`.
    Lagged,
}

impl GapReason {
    /// As it is on the wire.
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

/// What becomes of a subscriber that is so slow that events are let go before it has got them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LagPolicy {
    /// It gets a [`Gap`] event and goes on with the oldest event that is held.
    #[default]
    Gap,
    /// The subscription ends with [`SubscriptionError::Lagged`](super::SubscriptionError::Lagged).
    /// The client returns with the last id that it received. The handler then sees the [`Gap`], and
    /// can respond with a snapshot.
    Disconnect,
}
