//! Tests of handlers: [`events`] reads the event stream of a response.

#[allow(dead_code, unreachable_pub, missing_docs, reason = "also compiled for the tests of this crate")]
mod whatwg;

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use serde_core::de::DeserializeOwned;
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::timeout;

/// The default time that a test waits for an event before it panics.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads the event stream of a response, as an `EventSource` does.
///
/// The response can come from a router or service in this process, without a socket, or from any
/// client whose response is an [`http::Response`] with a body.
///
/// # Panics
///
/// Panics if a client would not interpret the response as an event stream: if its status is not 200
/// or its `Content-Type` is not `text/event-stream` (HTML standard, §9.2.2).
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use tower::ServiceExt;
/// use tower_sse::{Event, SseStream, test};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let events = || async { SseStream::new(tokio_stream::iter([Event::new("7").event("count").id(1)])) };
/// let app = Router::new().route("/events", get(events));
///
/// let request = Request::get("/events").body(Body::empty()).unwrap();
/// let mut events = test::events(app.oneshot(request).await.unwrap());
/// let event = events.next().await.unwrap();
/// assert_eq!((&*event.name, event.json::<u32>(), &*event.id), ("count", 7, "1"));
/// assert_eq!(events.next().await, None);
/// # }
/// # main();
/// # }
/// ```
#[track_caller]
pub fn events<B>(response: Response<B>) -> EventReader
where
    B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
{
    assert_eq!(response.status(), StatusCode::OK, "a client accepts an event stream only with status 200");
    let content_type = response.headers().get(CONTENT_TYPE);
    assert!(
        content_type.is_some_and(crate::headers::is_event_stream),
        "the content type is {content_type:?}, not text/event-stream"
    );
    EventReader {
        body: Box::new(Box::pin(response.into_body())),
        deadline: DEADLINE,
        interpreter: whatwg::Interpreter::default(),
        read: 0,
        has_ended: false,
    }
}

/// An event as a client dispatches it.
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

/// Reads the events of one response. Created by [`events`].
///
/// Methods that wait for an event panic if it does not arrive within the deadline, which is 5
/// seconds by default. In a test with paused time ([`tokio::time::pause`]), the wait takes no time.
pub struct EventReader {
    body: Box<dyn EventBody>,
    deadline: Duration,
    interpreter: whatwg::Interpreter,
    /// The number of events that were already returned.
    read: usize,
    has_ended: bool,
}

impl EventReader {
    /// Sets the time that each later call waits for an event before it panics. Default: 5 seconds.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Returns the next event, or `None` if the stream has ended.
    ///
    /// # Panics
    ///
    /// Panics if neither an event nor the end of the stream arrives within the deadline, or if the
    /// body fails.
    pub async fn next(&mut self) -> Option<ReceivedEvent> {
        let deadline = self.deadline;
        match timeout(deadline, self.read_event()).await {
            Ok(event) => event,
            Err(_elapsed) => panic!("no event within {deadline:?} after {} events: {self:?}", self.read),
        }
    }

    /// Returns the next `count` events, in order.
    ///
    /// # Panics
    ///
    /// Panics if an event does not arrive within the deadline after the previous event. Also panics
    /// if the stream ends before `count` events, or if the body fails.
    pub async fn collect(&mut self, count: usize) -> Vec<ReceivedEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.next().await {
                Some(event) => events.push(event),
                None => panic!("the stream has ended after {} of {count} events: {events:?}", events.len()),
            }
        }
        events
    }

    /// Returns all remaining events, and waits for the end of the stream.
    ///
    /// # Panics
    ///
    /// Panics if neither the next event nor the end arrives within the deadline, or if the body
    /// fails.
    pub async fn rest(&mut self) -> Vec<ReceivedEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// Returns the comments that were read so far, without their leading colon. By default,
    /// heartbeats are comments.
    #[must_use]
    pub fn comments(&self) -> &[String] {
        &self.interpreter.source.comments
    }

    /// Returns the last reconnect delay that was read so far, or `None` if no delay was read.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        let milliseconds = self.interpreter.source.reconnection_time.as_ref()?;
        milliseconds.parse().ok().map(Duration::from_millis)
    }

    /// Returns the id that a client would send in `Last-Event-ID` if it reconnected now. Empty if
    /// there is no id.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.interpreter.source.last_event_id
    }

    async fn read_event(&mut self) -> Option<ReceivedEvent> {
        loop {
            if let Some(message) = self.interpreter.source.messages.get(self.read) {
                self.read += 1;
                let whatwg::Message { r#type, data, last_event_id } = message.clone();
                return Some(ReceivedEvent { name: r#type, data, id: last_event_id });
            }
            if self.has_ended {
                return None;
            }
            match poll_fn(|cx| self.body.poll_data(cx)).await {
                Some(Ok(bytes)) => self.interpreter.feed(&bytes),
                Some(Err(error)) => panic!("the body has failed: {error}; before: {self:?}"),
                None => self.has_ended = true,
            }
        }
    }
}

impl fmt::Debug for EventReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventReader")
            .field("messages", &self.interpreter.source.messages)
            .field("comments", &self.comments())
            .field("retry", &self.retry())
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

/// A response body of any type, with its type erased.
trait EventBody: Send {
    /// Returns the next data of the body, the text of its error, or `None` at its end. Skips
    /// trailers.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>>;
}

impl<B> EventBody for Pin<Box<B>>
where
    B: Body<Data = Bytes, Error: fmt::Display> + Send,
{
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            return Poll::Ready(match ready!(self.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => Some(Err(error.to_string())),
                None => None,
            });
        }
    }
}
