use crate::{EventId, LastEventId};

/// Where a subscription begins.
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
/// // Where the client left off; if it is new, with what is published from now on.
/// news.subscribe(last.clone()).await?;
/// // Where the client left off; if it is new, with all that is held.
/// news.subscribe(last.or(Start::Earliest)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the events that are published from now on.
    #[default]
    Latest,
    /// With the oldest event that is held.
    Earliest,
    /// With what followed the event of this id. An empty id is none, and means
    /// [`Latest`](Self::Latest).
    After(EventId),
}

impl From<EventId> for Start {
    fn from(id: EventId) -> Self {
        Self::After(id)
    }
}

/// Where the client left off; [`Start::Latest`] for one that sent no id.
impl From<LastEventId> for Start {
    fn from(last: LastEventId) -> Self {
        last.or(Self::Latest)
    }
}

/// Where the client left off; [`Start::Latest`] for one that sent no id.
impl From<Option<LastEventId>> for Start {
    fn from(last: Option<LastEventId>) -> Self {
        last.unwrap_or_default().into()
    }
}

impl LastEventId {
    /// Where the client left off; `start` for one that sent no id.
    #[must_use]
    pub fn or(self, start: Start) -> Start {
        self.into_id().map_or(start, Start::After)
    }
}
