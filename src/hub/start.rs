use crate::{EventId, LastEventId};
use std::{borrow::Cow, sync::Arc};

/// The start position of a subscription, or of one of its [topics](super::Hub::subscribe).
///
/// # Examples
///
/// ```
/// use tower_sse::{LastEventId, hub::{Hub, Start}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
/// # let last = LastEventId::default();
/// let news = Hub::new().topic("news");
/// let all = news.subscribe(Start::Earliest).await?;
/// // After the last id of the client. A new client receives live events.
/// let missed_or_live = news.subscribe(last.clone()).await?;
/// // After the last id of the client. A new client receives all retained events first.
/// let missed_or_all = news.subscribe(last.or(Start::Earliest)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// Begins with the next published event: no retained event is delivered.
    #[default]
    Latest,
    /// Begins with the oldest retained event of each topic.
    Earliest,
    /// Begins after the event with this id. An empty id means [`Latest`](Self::Latest).
    ///
    /// No event with an older id is delivered, not even the current event of a
    /// [`latest_only`](super::Topic::latest_only) topic. So the client must have all events up to
    /// this id. For example, use the last id that the client received, or the id of the last event
    /// that a snapshot includes.
    ///
    /// If events after the id are no longer retained, the subscription begins with a
    /// [gap](super::Gap).
    After(EventId),
}

impl Start {
    /// Returns [`Latest`](Self::Latest) if this start position is [`After`](Self::After) an empty
    /// id. Otherwise returns the start position unchanged.
    pub(super) fn or_latest_if_empty(self) -> Self {
        match self {
            Self::After(id) if id.as_bytes().is_empty() => Self::Latest,
            start => start,
        }
    }
}

impl From<EventId> for Start {
    fn from(id: EventId) -> Self {
        Self::After(id)
    }
}

/// Converts the `Last-Event-ID` of a client to a start position: [`Start::After`] this id, or
/// [`Start::Latest`] if the client sent no id.
impl From<LastEventId> for Start {
    fn from(last: LastEventId) -> Self {
        last.or(Self::Latest)
    }
}

/// Converts the optional `Last-Event-ID` of a client to a start position: [`Start::After`] this id,
/// or [`Start::Latest`] if there is no id.
impl From<Option<LastEventId>> for Start {
    fn from(last: Option<LastEventId>) -> Self {
        last.unwrap_or_default().into()
    }
}

impl LastEventId {
    /// Returns [`Start::After`] the last id of the client, or `start` if the client sent no id.
    #[must_use]
    pub fn or(self, start: Start) -> Start {
        self.into_id().map_or(start, Start::After)
    }
}

/// Types that name a topic in a call of [`Hub::subscribe`](super::Hub::subscribe): a `&str`, a
/// `String`, or a pair of a name and the start position ([`Start`]) in this topic.
///
/// Implement this trait for types of your own that name topics.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use tower_sse::hub::{Hub, IntoTopicStart, Start};
///
/// struct Room(u64);
///
/// impl IntoTopicStart for Room {
///     fn into_topic_start(self) -> (Arc<str>, Option<Start>) {
///         (format!("rooms/{}", self.0).into(), None)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
/// let hub = Hub::new();
/// let rooms = hub.subscribe([Room(1), Room(2)], Start::Latest).await?;
/// assert_eq!(hub.topic("rooms/2").subscribers(), 1);
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not name a topic",
    label = "expected a text, or a pair of a text and a `Start`",
    note = "a topic is a `&str`, a `String`, or a pair such as `(\"orders\", Start::Earliest)`"
)]
pub trait IntoTopicStart {
    /// Returns the name of the topic, and the start position in this topic. If the position is
    /// `None`, the [`Start`] of the whole subscription applies.
    fn into_topic_start(self) -> (Arc<str>, Option<Start>);
}

impl<T: AsRef<str> + ?Sized> IntoTopicStart for &T {
    fn into_topic_start(self) -> (Arc<str>, Option<Start>) {
        (self.as_ref().into(), None)
    }
}

impl<T: AsRef<str>, S: Into<Start>> IntoTopicStart for (T, S) {
    fn into_topic_start(self) -> (Arc<str>, Option<Start>) {
        (self.0.as_ref().into(), Some(self.1.into()))
    }
}

macro_rules! into_topic_start {
    ($($Text:ty)*) => {$(
        impl IntoTopicStart for $Text {
            fn into_topic_start(self) -> (Arc<str>, Option<Start>) {
                (self.into(), None)
            }
        }
    )*};
}

into_topic_start!(String Box<str> Arc<str> Cow<'_, str>);
