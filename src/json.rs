//! Events and streams of values that serialize to JSON. No other file encodes events of the
//! application as JSON.

use crate::{BoxError, Event, SseStream, event::with_scratch};
use http::StatusCode;
use pin_project_lite::pin_project;
use serde_core::Serialize;
use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio_stream::Stream;

impl Event {
    /// Creates an event whose data is `value` as compact JSON, on one line.
    ///
    /// The value is written into a thread-local buffer, so no `String` is allocated. Line ends in a
    /// raw value (serde_json's `RawValue`) become spaces. This does not change the value, because
    /// JSON allows line ends only between tokens.
    ///
    /// U+2028, U+2029 and U+0085 are escaped. Some clients split lines at these characters,
    /// although they are not line ends in an event stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the value does not serialize: its `Serialize` fails, or it has a map
    /// whose keys are not strings.
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
            Ok(match escape_separators(json) {
                Some(escaped) => Self::from_utf8_bytes(&escaped),
                None => Self::from_utf8_bytes(json),
            })
        })
    }
}

/// Replaces U+0085, U+2028 and U+2029 in JSON by their escapes. Returns `None` if `json` contains
/// none of these characters, which is usual. They can occur only within strings, where escapes are
/// valid.
fn escape_separators(json: &[u8]) -> Option<Vec<u8>> {
    // The first bytes of U+0085 (C2 85), and of U+2028 and U+2029 (E2 80 A8, E2 80 A9).
    let escape = |at: usize| match &json[at..] {
        [0xC2, 0x85, ..] => Some((2, b"\\u0085")),
        [0xE2, 0x80, 0xA8, ..] => Some((3, b"\\u2028")),
        [0xE2, 0x80, 0xA9, ..] => Some((3, b"\\u2029")),
        _ => None,
    };
    let mut escaped = Vec::new();
    let mut rest = 0;
    for at in memchr::memchr2_iter(0xC2, 0xE2, json) {
        if let Some((length, escape)) = escape(at) {
            escaped.extend_from_slice(&json[rest..at]);
            escaped.extend_from_slice(escape);
            rest = at + length;
        }
    }
    if rest == 0 {
        return None;
    }
    escaped.extend_from_slice(&json[rest..]);
    Some(escaped)
}

impl<S> SseStream<JsonEvents<S>> {
    /// Creates a response from a stream of values. Each value is the data of one event, as
    /// [`Event::json`] writes it.
    ///
    /// A value that does not serialize ends the response like an error of the stream: see
    /// [`on_error`](Self::on_error). For a stream of `Result`s, use [`try_json`](Self::try_json).
    /// To set names and ids, map the values to events with [`Event::json`] and use
    /// [`new`](Self::new).
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

impl<S> SseStream<TryJsonEvents<S>> {
    /// Creates a response from a stream of `Result`s of values. Each value is the data of one
    /// event, as [`Event::json`] writes it.
    ///
    /// An error of the stream and a value that does not serialize both end the response the same
    /// way: see [`on_error`](Self::on_error). The closure of `on_error` receives the error of the
    /// stream itself, or a [`JsonError`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, JsonError, SseStream};
    /// # let rows = tokio_stream::iter([Ok([1, 2]), Err(std::io::Error::other("connection lost"))]);
    /// SseStream::try_json(rows).on_error(|error| {
    ///     let is_bug = error.is::<JsonError>();
    ///     eprintln!("rows ended early (is it a bug: {is_bug}): {error}");
    ///     Some(Event::new("").event("failed"))
    /// })
    /// # ;
    /// ```
    pub fn try_json<T, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: Into<BoxError>,
    {
        Self::new(TryJsonEvents { stream })
    }
}

pin_project! {
    /// The stream of events that [`SseStream::json`] makes of a stream of values.
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

pin_project! {
    /// The stream of events that [`SseStream::try_json`] makes of a stream of `Result`s.
    #[derive(Debug)]
    pub struct TryJsonEvents<S> {
        #[pin]
        stream: S,
    }
}

impl<S, T, E> Stream for TryJsonEvents<S>
where
    S: Stream<Item = Result<T, E>>,
    T: Serialize,
    E: Into<BoxError>,
{
    type Item = Result<Event, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.project().stream.poll_next(cx));
        Poll::Ready(item.map(|value| Ok(Event::json(&value.map_err(Into::into)?)?)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

/// The error of a value that does not serialize to JSON. Its [source](Error::source) is the reason.
///
/// As a response of an axum handler, this error is `500 Internal Server Error`. It converts into
/// [`hub::Error`](crate::hub::Error), so a handler that also uses a hub can return that type for
/// both.
#[derive(Debug)]
pub struct JsonError(pub(crate) serde_json::Error);

impl JsonError {
    /// Returns the status of a response for this error: `500 Internal Server Error`.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_separators_of_unicode_are_escaped() {
        for text in ["a\u{2028}b", "\u{2029}", "x\u{85}\u{85}", "\u{85}ä\u{2028}\u{2029}é", "â€“ Â ä €", "plain"]
        {
            let event = Event::json(&[text, text]).unwrap();
            let data = event.event_data().unwrap().into_owned();
            assert!(!data.contains(['\u{2028}', '\u{2029}', '\u{85}']), "{data:?}");
            assert_eq!(serde_json::from_str::<[String; 2]>(&data).unwrap(), [text, text]);
        }
    }
}
