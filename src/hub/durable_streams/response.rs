//! Requests and responses of the Durable Streams protocol as HTTP.

use super::{
    content::Page,
    events::Events,
    reading::{ReadError, Rest},
};
use crate::{BoxError, SseBody};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::percent_decode_str;
use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
pub(super) const CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
pub(super) const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
pub(super) const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

pub(super) const TRUE: HeaderValue = HeaderValue::from_static("true");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The mode of a request that reads a topic: a page, a long poll, or an event stream (query
/// parameter `live`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    CatchUp,
    LongPoll,
    Events,
}

/// The query parameters of a request that reads a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query<'a> {
    /// The parameter `offset`, percent-decoded: a position in the topic after which the client
    /// reads, or `-1` or `now`.
    pub(super) offset: Option<Cow<'a, str>>,
    pub(super) mode: Mode,
    pub(super) cursor: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Parses the query of a URL. Ignores unknown parameters. The error is the text of the 400
    /// response.
    pub(super) fn parse(query: &'a str) -> Result<Self, &'static str> {
        let mut parsed = Self { offset: None, mode: Mode::CatchUp, cursor: None };
        let mut has_mode = false;
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy();
            match &*percent_decode_str(name).decode_utf8_lossy() {
                "offset" if parsed.offset.is_some() => return Err("the query has more than one offset"),
                "offset" => parsed.offset = Some(value()),
                "live" if has_mode => return Err("the query has more than one live"),
                "live" => {
                    has_mode = true;
                    parsed.mode = match &*value() {
                        "long-poll" => Mode::LongPoll,
                        "sse" => Mode::Events,
                        _ => return Err("live has to be long-poll or sse"),
                    };
                }
                "cursor" => parsed.cursor = Some(value()),
                _ => {}
            }
        }
        if parsed.mode != Mode::CatchUp && parsed.offset.is_none() {
            return Err("a live read needs an offset; use offset=-1 for the beginning");
        }
        Ok(parsed)
    }
}

/// The body of a response of [`DurableStreams`](super::DurableStreams): a page of events (a part of
/// a topic), an event stream, or the text of an error.
#[must_use]
pub struct StreamBody(Inner);

enum Inner {
    Page(Option<Bytes>),
    /// The empty body of a response to `HEAD`. The response has no `Content-Length`, because that
    /// would have to be the length of the response to `GET` (RFC 9110, §8.6).
    Head,
    Events(Pin<Box<SseBody<Events>>>),
}

impl StreamBody {
    pub(super) fn page(bytes: impl Into<Bytes>) -> Self {
        Self(Inner::Page(Some(bytes.into()).filter(|bytes| !bytes.is_empty())))
    }

    pub(super) fn empty() -> Self {
        Self(Inner::Page(None))
    }

    pub(super) fn head() -> Self {
        Self(Inner::Head)
    }

    pub(super) fn events(body: SseBody<Events>) -> Self {
        Self(Inner::Events(Box::pin(body)))
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Inner::Page(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Head => Poll::Ready(None),
            Inner::Events(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Page(bytes) => bytes.is_none(),
            Inner::Head => false,
            Inner::Events(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Page(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Head => SizeHint::new(),
            Inner::Events(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for StreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Inner::Page(_) => "Page",
            Inner::Head => "Head",
            Inner::Events(_) => "Events",
        };
        f.debug_tuple("StreamBody").field(&format_args!("{kind}")).finish()
    }
}

/// Adds the security headers that every response of the Durable Streams protocol has (§12.7).
pub(super) fn secure(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
}

/// Returns an empty response that no cache stores.
pub(super) fn uncached(status: StatusCode) -> Response<StreamBody> {
    let mut response = Response::new(StreamBody::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}

/// Returns an error response with a text for developers. No cache stores the response.
pub(super) fn error(status: StatusCode, text: impl Into<Bytes>) -> Response<StreamBody> {
    let mut response = uncached(status);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    *response.body_mut() = StreamBody::page(text);
    response
}

pub(super) fn of_error(read: ReadError) -> Response<StreamBody> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match read {
        ReadError::NotFound => error(StatusCode::NOT_FOUND, "there is no such stream"),
        ReadError::Gap => error(
            StatusCode::GONE,
            "events after this offset are not retained any more; begin at offset=-1, the oldest retained event",
        ),
        ReadError::NotBase64 => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "the data of the event after this offset is not base64")
        }
        ReadError::Backend => error(unavailable, "the log cannot be read in time; try again with the same offset"),
        ReadError::Shutdown => error(unavailable, "the server shuts down; another server may answer"),
        ReadError::Subscribe(read) => error(read.status(), read.to_string()),
    }
}

/// Adds the header `Stream-Up-To-Date` if the topic has no events after this response yet, and also
/// `Stream-Closed` if the topic is finished.
pub(super) fn set_rest(headers: &mut HeaderMap, rest: Rest) {
    if rest != Rest::More {
        headers.insert(UP_TO_DATE, TRUE);
    }
    if rest == Rest::Closed {
        headers.insert(CLOSED, TRUE);
    }
}

/// Adds the header `Stream-SSE-Data-Encoding` for event streams whose data is base64 (§5.8 of the
/// Durable Streams protocol).
pub(super) fn set_base64(headers: &mut HeaderMap) {
    headers.insert(DATA_ENCODING, HeaderValue::from_static("base64"));
}

/// Adds a page of events to a response, and an `ETag` that contains `requested`, the offset in the
/// request. If the client has sent this `ETag`, turns the response into a 304.
///
/// `requested` is `None` for a response that no cache stores, which gets no `ETag`.
pub(super) fn page(
    mut response: Response<StreamBody>,
    request: &HeaderMap,
    requested: Option<&str>,
    next: &str,
    page: Page,
    rest: Rest,
) -> Response<StreamBody> {
    if let Some(requested) = requested {
        // The events between two offsets never change. After an eviction, a page from `-1` contains
        // fewer of them. So the two offsets and the number of events identify the page. The tag
        // also contains what follows the page, because a 304 removes no header from the stored
        // response (RFC 9111, §3.2).
        let rest = match rest {
            Rest::More => "",
            Rest::Nothing => ":u",
            Rest::Closed => ":c",
        };
        let etag = format!("\"{requested}:{next}:{}{rest}\"", page.count);
        let is_cached = matches_etag(request, &etag);
        if let Ok(etag) = HeaderValue::try_from(etag) {
            response.headers_mut().insert(ETAG, etag);
        }
        if is_cached {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
    }
    *response.body_mut() = StreamBody::page(page.into_bytes());
    response
}

/// Returns `true` if the request header `If-None-Match` contains this entity tag or is `*`, so that
/// the response can be a 304 (RFC 9110, §13.1.2).
fn matches_etag(request: &HeaderMap, etag: &str) -> bool {
    request.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok()).any(|value| {
        // Tags of this service contain no comma.
        value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_parsed_or_has_a_reason() {
        let query = Query::parse("offset=%2D1&live=long-poll&cursor=7&other=x").unwrap();
        assert_eq!(
            (query.offset.as_deref(), query.mode, query.cursor.as_deref()),
            (Some("-1"), Mode::LongPoll, Some("7"))
        );
        assert_eq!(Query::parse("").unwrap(), Query { offset: None, mode: Mode::CatchUp, cursor: None });
        assert_eq!(Query::parse("offset").unwrap().offset.as_deref(), Some(""));
        for invalid in
            ["offset=1&offset=1", "live=sse", "live=long-poll", "live=&offset=-1", "live=sse&live=sse&offset=-1"]
        {
            assert!(Query::parse(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn entity_tags_are_compared_in_lists() {
        let mut request = HeaderMap::new();
        assert!(!matches_etag(&request, "\"a\""));
        for (value, matches) in [("\"a\"", true), ("\"b\", W/\"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            request.insert(IF_NONE_MATCH, value.parse().unwrap());
            assert_eq!(matches_etag(&request, "\"a\""), matches, "{value}");
        }
    }
}
