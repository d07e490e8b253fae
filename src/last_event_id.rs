//! The extractor for the id of the client's last event.

use crate::{EventId, event::Shortened, headers::error_response};
use http::{HeaderName, Request, Response, StatusCode, request::Parts};
use percent_encoding::percent_decode;
use std::{error::Error, fmt, str::FromStr};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The names of the query parameters that clients use for their last event id, if they cannot set
/// the `Last-Event-ID` header.
const QUERY_NAMES: [&str; 6] =
    ["lastEventId", "last-event-id", "Last-Event-ID", "lastEventID", "last_event_id", "evs_last_event_id"];

/// The id of the last event that a client has received. The client sends the id when it reconnects.
///
/// The axum extractor never rejects a request. ([`parse`](Self::parse) returns an error for an id
/// that is not of the requested type. As a response of a handler, this error is a 400.) A client
/// that connects for the first time sends no id, and the extractor `Option<LastEventId>` then
/// yields `None`. Without axum, [`from_request`](Self::from_request) and
/// [`from_parts`](Self::from_parts) read the id.
///
/// # Sources
///
/// 1. The `Last-Event-ID` header. An `EventSource` sends it as UTF-8 (HTML standard, §9.2.4).
/// 2. The query, form-encoded, for polyfills and clients that cannot set the header. The names are
///    `lastEventId`, `last-event-id`, `Last-Event-ID`, `lastEventID`, `last_event_id` and
///    `evs_last_event_id`.
///
/// The first valid id is used. An empty value counts as absent.
///
/// A value is malformed if it is not UTF-8 or contains a control character. If all values are
/// malformed, the id is made of the first 64 bytes of the first value. U+FFFD replaces their
/// invalid characters. [`parse`](Self::parse) then usually returns an error. A hub reports a
/// [gap](crate::hub::GapReason::Malformed), because it cannot know which events the client has
/// missed.
///
/// The guide `docs/own-history.md` shows how a handler resumes from a database, without a hub.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use tower_sse::LastEventId;
///
/// let request = Request::builder().header("Last-Event-ID", "41").body(()).unwrap();
/// let last = LastEventId::from_request(&request);
/// assert_eq!(last.as_str(), Some("41"));
/// assert_eq!(last.parse::<u64>().unwrap(), Some(41));
///
/// let request = Request::builder().uri("/feed?lastEventId=41").body(()).unwrap();
/// assert_eq!(LastEventId::from_request(&request), last);
/// ```
///
/// In an axum handler:
///
/// ```
/// use tokio_stream::Stream;
/// use tower_sse::{Event, LastEventId, LastEventIdRejection, SseStream};
///
/// async fn count_on(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, LastEventIdRejection> {
///     let next = last.parse::<u64>()?.map_or(0, |seen| seen.saturating_add(1));
///     Ok(SseStream::new(tokio_stream::iter((next..=u64::MAX).map(|n| Event::display(n).id(n)))))
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LastEventId(Option<EventId>);

impl LastEventId {
    /// Reads the id of the client's last event from the `Last-Event-ID` header or the query of a
    /// request.
    #[must_use]
    pub fn from_request<B>(request: &Request<B>) -> Self {
        Self::read(request.headers(), request.uri())
    }

    /// Reads the id of the client's last event from the `Last-Event-ID` header or the query in the
    /// head of a request.
    #[must_use]
    pub fn from_parts(parts: &Parts) -> Self {
        Self::read(&parts.headers, &parts.uri)
    }

    fn read(headers: &http::HeaderMap, uri: &http::Uri) -> Self {
        let mut malformed = None;
        let mut read = |bytes: &[u8]| {
            if bytes.is_empty() {
                return None;
            }
            let id = EventId::from_client(bytes);
            id.map_err(|text| malformed.get_or_insert(text).clone()).ok()
        };
        let in_headers = headers.get_all(LAST_EVENT_ID).into_iter().find_map(|value| read(value.as_bytes()));
        let id = in_headers.or_else(|| uri.query()?.split('&').find_map(|pair| read(&id_in_query(pair)?)));
        Self(id.or(malformed))
    }

    /// Returns the id of the client's last event, or `None` if the client has sent no id.
    #[must_use]
    pub fn id(&self) -> Option<&EventId> {
        self.0.as_ref()
    }

    /// Returns the id of the client's last event as text, or `None` if the client has sent no id.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.id().map(EventId::as_str)
    }

    /// Converts this value into the [`EventId`] of the client's last event, or `None` if the client
    /// has sent no id.
    #[must_use]
    pub fn into_id(self) -> Option<EventId> {
        self.0
    }

    /// Parses the id of the client's last event, for example as a number. Returns `None` if the
    /// client has sent no id.
    ///
    /// # Errors
    ///
    /// Returns an error if the id does not parse. As a response, a [`LastEventIdRejection`] is
    /// `400 Bad Request`, after which an `EventSource` does not reconnect. If clients may have ids
    /// of an older format, the handler can ignore the error and start from the beginning:
    /// `last.parse().unwrap_or(None)`.
    pub fn parse<T>(&self) -> Result<Option<T>, LastEventIdRejection>
    where
        T: FromStr,
        T::Err: Into<crate::BoxError>,
    {
        let Some(id) = self.as_str() else { return Ok(None) };
        let rejection =
            |error: T::Err| LastEventIdRejection { id: Shortened(id).beginning().into(), source: error.into() };
        id.parse().map(Some).map_err(rejection)
    }
}

impl From<EventId> for LastEventId {
    /// Creates a `LastEventId` from the id of an event. An empty id counts as no id.
    fn from(id: EventId) -> Self {
        Self((!id.as_bytes().is_empty()).then_some(id))
    }
}

/// Splits one `name=value` pair of the query. Returns the decoded value if the name is one of the
/// [names](QUERY_NAMES) for the last event id, and `None` otherwise.
fn id_in_query(pair: &str) -> Option<Vec<u8>> {
    let (name, value) = pair.split_once('=')?;
    let is_known = QUERY_NAMES.contains(&std::str::from_utf8(&form_decode(name)).ok()?);
    is_known.then(|| form_decode(value))
}

/// Decodes `application/x-www-form-urlencoded` (URL standard, §5.1). Unlike the standard, it keeps
/// bytes that are not UTF-8.
fn form_decode(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

/// The error of [`LastEventId::parse`]: the id does not have the expected format. As a response, it
/// is `400 Bad Request` with a sentence that quotes the id.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use tower_sse::LastEventId;
///
/// let request = Request::builder().header("Last-Event-ID", "yesterday").body(()).unwrap();
/// let rejection = LastEventId::from_request(&request).parse::<u64>().unwrap_err();
/// assert_eq!(rejection.status(), 400);
/// assert_eq!(rejection.to_string(), r#"the last event id "yesterday" is not one of this stream's; connect without it"#);
/// ```
#[derive(Debug)]
pub struct LastEventIdRejection {
    id: Box<str>,
    source: crate::BoxError,
}

impl LastEventIdRejection {
    /// Returns the status of a response for this error: `400 Bad Request`.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// Converts this error into an [`http::Response`], for tower and hyper: its
    /// [`status`](Self::status), and its message as plain text. In an axum handler, return the error
    /// itself.
    #[must_use]
    pub fn into_http_response(self) -> Response<String> {
        error_response(self.status(), &self)
    }
}

impl fmt::Display for LastEventIdRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the last event id {} is not one of this stream's; connect without it", Shortened(&self.id))
    }
}

impl Error for LastEventIdRejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
