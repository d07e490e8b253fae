use super::whatwg;
use crate::Event;
use serde_core::de::DeserializeOwned;

/// An event that a test has received, with the fields that a client passes to a web page.
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
    /// The name of the event, or `message` if the event has no name in the stream.
    pub name: String,
    /// The data of the event. Several `data` lines are joined with LF.
    pub data: String,
    /// The last event id of the client when it dispatches this event. If the event itself has no
    /// id, this is the last id before it in the stream. Empty if there is no such id.
    pub id: String,
}

impl ReceivedEvent {
    pub(super) fn new(message: whatwg::Message) -> Self {
        let whatwg::Message { r#type, data, last_event_id } = message;
        Self { name: r#type, data, id: last_event_id }
    }

    /// Deserializes the data of the event from JSON.
    ///
    /// # Panics
    ///
    /// Panics if the data is not JSON of the type `T`. The message contains the data.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in the data {:?}", self.data))
    }
}

/// Compares the received event with `event`: the name, the data, and the id if `event` has an id.
/// Reconnect delay and comments are not compared, because a client does not dispatch them.
///
/// A client does not dispatch an event that has neither data nor a name, so such an `event` equals
/// no received event.
impl PartialEq<Event> for ReceivedEvent {
    fn eq(&self, event: &Event) -> bool {
        event.event_data().is_some_and(|data| data == self.data)
            && event.name().unwrap_or("message") == self.name
            && event.event_id().is_none_or(|id| id == self.id)
    }
}
