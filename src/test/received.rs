use super::whatwg;
use crate::Event;
use serde_core::de::DeserializeOwned;

/// An event as a client dispatches it.
///
/// It can be compared with an [`Event`]:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// # use tower_sse::{Event, SseStream, test};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let response = SseStream::new(tokio_stream::iter([Event::new("7").event("count").id(1)])).into_http_response();
/// let mut events = test::events(response);
/// assert_eq!(events.next().await.unwrap(), Event::new("7").event("count").id(1));
/// # }
/// # main();
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// The name of the event, or `message` if the stream sets no name.
    pub name: String,
    /// The data of the event. Several lines are joined with LF.
    pub data: String,
    /// The client's last event id when it dispatches this event. If the event itself has no id,
    /// this is the id of an earlier event. Empty if no event had an id.
    pub id: String,
}

impl ReceivedEvent {
    pub(super) fn new(message: whatwg::Message) -> Self {
        let whatwg::Message { r#type, data, last_event_id } = message;
        Self { name: r#type, data, id: last_event_id }
    }

    /// Deserializes the data from JSON.
    ///
    /// # Panics
    ///
    /// Panics if the data is not JSON of this type. The message contains the data.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in the data {:?}", self.data))
    }
}

/// Compares the name and the data, and the id if `event` has one. A client does not dispatch the
/// reconnect delay and the comments of an event, so they are not compared. An `Event` without data
/// and name equals no received event, because a client does not dispatch it.
impl PartialEq<Event> for ReceivedEvent {
    fn eq(&self, event: &Event) -> bool {
        event.event_data().is_some_and(|data| data == self.data)
            && event.name().unwrap_or("message") == self.name
            && event.event_id().is_none_or(|id| id == self.id)
    }
}
