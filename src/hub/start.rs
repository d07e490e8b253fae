use crate::{EventId, LastEventId};

/// The position at which a subscription begins.
///
/// # Examples
///
/// ```
/// use tower_sse::{LastEventId, hub::{Hub, Start}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
/// # let last = LastEventId::default();
/// let news = Hub::new().topic("news");
/// news.subscribe(Start::Earliest).await?;
/// // After the last id of the client. A new client receives live events.
/// news.subscribe(last.clone()).await?;
/// // After the last id of the client. A new client receives all retained events first.
/// news.subscribe(last.or(Start::Earliest)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// Begins with live events.
    #[default]
    Latest,
    /// Begins with the oldest retained event.
    Earliest,
    /// Begins after the event with this id. An empty id means [`Latest`](Self::Latest).
    ///
    /// A [state](super::Topic::latest_only) that is older than this id is not delivered, because a
    /// client with this id has received it already. So use an id that this client has received, or
    /// the id of the last event that a snapshot includes.
    After(EventId),
}

impl From<EventId> for Start {
    fn from(id: EventId) -> Self {
        Self::After(id)
    }
}

/// Resumes after the last id of the client. Without an id, it is [`Start::Latest`].
impl From<LastEventId> for Start {
    fn from(last: LastEventId) -> Self {
        last.or(Self::Latest)
    }
}

/// Resumes after the last id of the client. Without an id, it is [`Start::Latest`].
impl From<Option<LastEventId>> for Start {
    fn from(last: Option<LastEventId>) -> Self {
        last.unwrap_or_default().into()
    }
}

impl LastEventId {
    /// Returns the start after the last id of the client, or `start` if the client sent no id.
    #[must_use]
    pub fn or(self, start: Start) -> Start {
        self.into_id().map_or(start, Start::After)
    }
}
