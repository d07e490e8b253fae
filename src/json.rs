//! Data that serializes: the only file that knows JSON.

use crate::{Event, SseStream, event::with_scratch};
use pin_project_lite::pin_project;
use serde_core::Serialize;
use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tokio_stream::Stream;

impl Event {
    /// An event with a value as compact JSON as its data, on one line.
    ///
    /// It is written into a buffer that the thread keeps, so no `String` is allocated for it. The line ends in a raw value
    /// (serde_json's `RawValue`), which can stand between tokens only, become spaces.
    ///
    /// # Errors
    ///
    /// If the value does not serialize: its `Serialize` fails, or it has a map whose keys are not strings.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// #[derive(serde::Serialize)]
    /// struct Order { id: u32, note: &'static str }
    ///
    /// let event = Event::json(&Order { id: 7, note: "two\nlines" })?.event("created");
    /// assert_eq!(event.encode(), "event: created\ndata: {\"id\":7,\"note\":\"two\\nlines\"}\n\n");
    /// # Ok::<_, tower_sse::JsonError>(())
    /// ```
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        with_scratch(|json| {
            serde_json::to_writer(&mut *json, value).map_err(JsonError)?;
            if memchr::memchr2(b'\n', b'\r', json).is_some() {
                json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
            }
            Ok(Self::from_utf8_bytes(json))
        })
    }
}

impl<S> SseStream<JsonEvents<S>> {
    /// A response of values, each the data of one event, as [`Event::json`] writes it.
    ///
    /// A value that does not serialize ends the stream, as an error does. A `Result` serializes, too, but not as one would
    /// want it here: to stream `Result`s, or to set names and ids, map the stream to [`Event::json`] instead.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::SseStream;
    /// SseStream::json(tokio_stream::iter([1, 2, 3]))
    /// # ;
    /// ```
    pub fn json(stream: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: Serialize,
    {
        Self::new(JsonEvents { stream })
    }
}

pin_project! {
    /// The stream of events inside of [`SseStream::json`].
    #[derive(Debug)]
    pub struct JsonEvents<S> {
        #[pin]
        stream: S,
    }
}

impl<S> Stream for JsonEvents<S>
where
    S: Stream,
    S::Item: Serialize,
{
    type Item = Result<Event, JsonError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().stream.poll_next(cx).map(|value| value.map(|value| Event::json(&value)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

/// A value that does not serialize to JSON. Its [source](Error::source) says why.
#[derive(Debug)]
pub struct JsonError(serde_json::Error);

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the data of an event does not serialize to JSON: the keys of maps have to be strings, and no part may fail")
    }
}

impl Error for JsonError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}
