//! Events and streams of values that serialize to JSON. No other file encodes events of the
//! application as JSON.

use crate::{
    BoxError, Event, FieldError, SseStream,
    event::{
        tagged::{self, TaggedError},
        with_scratch,
    },
    headers::error_response,
};
use http::{Response, StatusCode};
use pin_project_lite::pin_project;
use serde_core::Serialize;
use std::{
    any::type_name,
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
            serde_json::to_writer(&mut *json, value).map_err(JsonError::new)?;
            Ok(Self::from_json(json))
        })
    }

    /// Creates an event from a variant of an enum. The event has the name of the variant, and its
    /// data is the content of the variant as compact JSON ([`json`](Self::json)).
    ///
    /// The enum can have any of serde's tagged [representations]: external (the default), internal
    /// (`tag = "…"`) and adjacent (`tag = "…", content = "…"`). The event is the same in all of
    /// them. The name of the event replaces the tag, so the data does not contain it:
    ///
    /// | variant | data |
    /// |---|---|
    /// | `Moved { x: 1, y: 2 }` | `{"x":1,"y":2}` |
    /// | `Moved(point)` | the JSON of `point` |
    /// | `Moved(1, 2)` | `[1,2]` |
    /// | `Reset` | `null`; `{}` if the enum is internally tagged |
    ///
    /// `#[serde(rename_all = "…")]` renames the events. A struct with `#[serde(tag = "…")]` counts
    /// as a variant, and so does a struct whose first field is a flattened internally tagged enum.
    ///
    /// Derive `Serialize`. A hand-written `Serialize` looks like an internally tagged enum if it
    /// passes the first field of a struct or map as a `&str`, and not as a `&String` or `&&str`.
    /// The text of this field then becomes the name of the event. A derived `Serialize` has this
    /// effect only for a struct whose first field is of the unsized type `str`.
    ///
    /// [representations]: https://serde.rs/enum-representations.html
    ///
    /// # Errors
    ///
    /// Returns an error
    ///
    /// - if the value is not a variant of an enum, or if the enum is untagged,
    /// - if the name of the variant is empty or contains CR, LF or NUL,
    /// - if the content does not serialize to JSON.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// #[derive(serde::Serialize)]
    /// #[serde(rename_all = "kebab-case")]
    /// enum Message { UserJoined { name: String }, Said(String), Closed }
    ///
    /// let event = Event::tagged(&Message::UserJoined { name: "Anna".into() })?;
    /// assert_eq!(event.encode(), "event: user-joined\ndata: {\"name\":\"Anna\"}\n\n");
    /// assert_eq!(Event::tagged(&Message::Said("hello".into()))?.encode(), "event: said\ndata: \"hello\"\n\n");
    /// assert_eq!(Event::tagged(&Message::Closed)?.encode(), "event: closed\ndata: null\n\n");
    ///
    /// assert_eq!(
    ///     Event::tagged("hello").unwrap_err().to_string(),
    ///     "a value of the type str is not a variant of a tagged enum, so its event has no name; use Event::json",
    /// );
    /// # Ok::<_, tower_sse::JsonError>(())
    /// ```
    pub fn tagged<T: Serialize + ?Sized>(value: &T) -> Result<Self, JsonError> {
        with_scratch(|json| {
            let name = tagged::write(value, json).map_err(|error| {
                JsonError(match error {
                    TaggedError::Json(error) => Reason::Json(error),
                    TaggedError::NotTagged => Reason::NotTagged(type_name::<T>()),
                    TaggedError::Name(error) => Reason::Name(error),
                })
            })?;
            Ok(Self::from_json(json).event(name))
        })
    }

    /// Creates an event whose data is `json`, which must be valid JSON. Replaces line ends by
    /// spaces, and escapes the line separators of Unicode.
    fn from_json(json: &mut [u8]) -> Self {
        if memchr::memchr2(b'\n', b'\r', json).is_some() {
            json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        }
        match escape_separators(json) {
            Some(escaped) => Self::from_utf8_bytes(&escaped),
            None => Self::from_utf8_bytes(json),
        }
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
        Self::new(JsonEvents { stream, form: Form::Data })
    }

    /// Creates a response from a stream of enum values. Each value is one event, as
    /// [`Event::tagged`] writes it: its name is that of the variant, and its data is the content.
    ///
    /// A value that is not a variant of a tagged enum, or does not serialize, ends the stream like
    /// an error. [`try_tagged`](Self::try_tagged) takes a stream of `Result`s. To set ids, map the
    /// stream to [`Event::tagged`] instead.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::SseStream;
    /// #[derive(serde::Serialize)]
    /// #[serde(rename_all = "lowercase")]
    /// enum Progress { Step { percent: u8 }, Done }
    ///
    /// // In the page:
    /// // source.addEventListener("step", (event) => show(JSON.parse(event.data).percent));
    /// // source.addEventListener("done", () => source.close());
    /// SseStream::tagged(tokio_stream::iter([Progress::Step { percent: 50 }, Progress::Done]))
    /// # ;
    /// ```
    pub fn tagged(stream: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: Serialize,
    {
        Self::new(JsonEvents { stream, form: Form::Tagged })
    }
}

impl<S> SseStream<TryJsonEvents<S>> {
    /// Creates a response from a stream of `Result`s of values. Each value is the data of one
    /// event, as [`Event::json`] writes it.
    ///
    /// An error of the stream and a value that does not serialize both end the response the same
    /// way: see [`on_error`](Self::on_error). The closure of `on_error` receives the error of the
    /// stream itself, or a [`JsonError`]. The status is 200 even if the first item is an error, so
    /// an `EventSource` then repeats its request.
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
        Self::new(TryJsonEvents { stream, form: Form::Data })
    }

    /// Creates a response from a stream of `Result`s of enum values. Each value is one event, as
    /// [`Event::tagged`] writes it.
    ///
    /// An error of the stream, and a value that [`Event::tagged`] rejects, end the response as in
    /// [`try_json`](Self::try_json).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::SseStream;
    /// #[derive(serde::Serialize)]
    /// enum Row { Price(f64) }
    ///
    /// # let rows = tokio_stream::iter([Ok(Row::Price(1.5)), Err(std::io::Error::other("connection lost"))]);
    /// SseStream::try_tagged(rows)
    /// # ;
    /// ```
    pub fn try_tagged<T, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: Into<BoxError>,
    {
        Self::new(TryJsonEvents { stream, form: Form::Tagged })
    }
}

/// Selects how a serializable value becomes an event: with its JSON as data only, or also with a
/// name.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// An event with data only, as [`Event::json`] creates it from a value.
    Data,
    /// An event with a name and data, as [`Event::tagged`] creates it from a variant of an enum.
    Tagged,
}

impl Form {
    fn event(self, value: &impl Serialize) -> Result<Event, JsonError> {
        match self {
            Self::Data => Event::json(value),
            Self::Tagged => Event::tagged(value),
        }
    }
}

pin_project! {
    /// The stream of events that [`SseStream::json`] and [`SseStream::tagged`] make of a stream of
    /// values.
    #[derive(Debug)]
    #[must_use = "a stream does nothing until it is polled"]
    pub struct JsonEvents<S> {
        #[pin]
        stream: S,
        form: Form,
    }
}

impl<S> Stream for JsonEvents<S>
where
    S: Stream,
    S::Item: Serialize,
{
    type Item = Result<Event, JsonError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        this.stream.poll_next(cx).map(|value| value.map(|value| this.form.event(&value)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

pin_project! {
    /// The stream of events that [`SseStream::try_json`] and [`SseStream::try_tagged`] make of a
    /// stream of `Result`s.
    #[derive(Debug)]
    #[must_use = "a stream does nothing until it is polled"]
    pub struct TryJsonEvents<S> {
        #[pin]
        stream: S,
        form: Form,
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
        let this = self.project();
        let item = ready!(this.stream.poll_next(cx));
        Poll::Ready(item.map(|value| Ok(this.form.event(&value.map_err(Into::into)?)?)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

/// The error of a value that does not serialize to JSON, or that is not a variant of a tagged enum.
/// The [source](Error::source) is the error of the serialization or of the event name, if there is
/// one.
///
/// As a response of an axum handler, this error is `500 Internal Server Error`. It converts into
/// [`hub::Error`](crate::hub::Error), so a handler that also uses a hub can return that type for
/// both.
#[derive(Debug)]
pub struct JsonError(Reason);

#[derive(Debug)]
enum Reason {
    Json(serde_json::Error),
    /// The value is not a variant of a tagged enum, so its event has no name. Contains the Rust
    /// type of the value.
    NotTagged(&'static str),
    Name(FieldError),
}

impl JsonError {
    pub(crate) fn new(error: serde_json::Error) -> Self {
        Self(Reason::Json(error))
    }

    /// Returns the status of an HTTP response that reports a [`JsonError`]: `500 Internal Server
    /// Error`.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// Converts this error into an [`http::Response`], for tower and hyper: its
    /// [`status`](Self::status), and its message as plain text. In an axum handler, return the error
    /// itself.
    #[must_use]
    pub fn into_http_response(self) -> Response<String> {
        error_response(self.status(), &self)
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Json(_) => f.write_str("the data of an event does not serialize to JSON: the keys of maps have to be strings, and no part may fail"),
            Reason::NotTagged(name) => write!(f, "a value of the type {name} is not a variant of a tagged enum, so its event has no name; use Event::json"),
            Reason::Name(_) => f.write_str("the name of a variant is not valid as the name of an event; rename the variant"),
        }
    }
}

impl Error for JsonError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Reason::Json(error) => Some(error),
            Reason::NotTagged(_) => None,
            Reason::Name(error) => Some(error),
        }
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
