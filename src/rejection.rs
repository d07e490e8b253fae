//! The responses that replace an event stream: over a limit of open streams, and after a temporary
//! error of a hub. A handler can respond in the same way: see `retry_later.rs`.

use crate::{
    body::{LayerHandle, ResponseBody},
    event::retry_line,
    headers,
    limit::LimitReached,
    settings::Settings,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body;
use std::sync::{Arc, Weak};

/// The reason why a response rejects a request for an event stream.
#[derive(Clone, Copy)]
pub(crate) enum Reason {
    /// A limit of open streams is reached.
    Limit(LimitReached),
    /// A handler has returned a temporary error of a hub ([`TemporaryError`]).
    TemporaryError,
}

impl Reason {
    fn status(self) -> StatusCode {
        match self {
            Self::Limit(LimitReached::Key) => StatusCode::TOO_MANY_REQUESTS,
            Self::Limit(LimitReached::Total) | Self::TemporaryError => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Limit(LimitReached::Total) => "the limit of open event streams is reached; try again later",
            Self::Limit(LimitReached::Key) => {
                "your limit of open event streams is reached; close one, or try again later"
            }
            Self::TemporaryError => "the event stream is temporarily unavailable; try again later",
        }
    }
}

/// A response extension that marks the 503 of a temporary error of a hub, and contains the message
/// of the error. If the request is like that of an `EventSource`, a layer replaces the 503, because
/// an `EventSource` would not reconnect after it.
#[derive(Clone)]
pub(crate) struct TemporaryError(pub(crate) String);

impl TemporaryError {
    /// Returns this extension of a response that reports a temporary error. Returns `None` for
    /// every other response, and if a middleware has changed the status.
    pub(crate) fn of<B>(response: &Response<B>) -> Option<&Self> {
        let mark = response.extensions().get();
        mark.filter(|_| response.status() == StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// A response extension that marks the rejection of a request for a stream, or a
/// [`RetryLater`](crate::RetryLater). Outer layers do not handle the rejection as an event stream.
/// They only supply the settings, such as the reconnect delay, that the rejecting layer leaves
/// unset.
#[derive(Clone)]
pub(crate) struct Rejected {
    reason: Reason,
    settings: Settings,
    head: Head,
    /// A reference that shows whether the body of the rejection still exists. A middleware may
    /// replace the body, and keep the extensions of the response.
    body: Weak<()>,
}

/// The status of a rejection, and the headers that the rejection sets.
type Head = (StatusCode, [Option<HeaderValue>; 3]);

fn head(status: StatusCode, headers: &HeaderMap) -> Head {
    (status, [RETRY_AFTER, CACHE_CONTROL, CONTENT_TYPE].map(|name| headers.get(name).cloned()))
}

impl Rejected {
    /// Returns this extension of a rejection, or `None` for every other response. If a middleware
    /// has replaced the body and also changed the head, the response is no rejection any more.
    pub(crate) fn of<B>(response: &Response<B>) -> Option<Self> {
        let rejected = response.extensions().get::<Self>()?;
        (rejected.has_body() || rejected.has_head_of(response)).then(|| rejected.clone())
    }

    fn has_body(&self) -> bool {
        self.body.strong_count() > 0
    }

    fn has_head_of<B>(&self, response: &Response<B>) -> bool {
        self.head == head(response.status(), response.headers())
    }
}

/// Replaces the response of the handler with the rejection of a request for a stream. The layer
/// checks a limit after the handler has responded, because only responses that are event streams
/// count towards the limit. The body of the handler is never polled.
///
/// The headers of the handler are kept, such as its CORS headers, except for the headers that
/// describe its body. Without the CORS headers, an `EventSource` of another origin would not
/// reconnect.
pub(crate) fn reject<B: Body>(
    response: Response<B>,
    reason: Reason,
    settings: Settings,
    is_from_event_source: bool,
) -> Response<ResponseBody<B>> {
    let delay = settings.reconnect_delay(None);
    let (mut parts, body) = response.into_parts();
    for of_the_body in [CONTENT_LENGTH, CONTENT_ENCODING] {
        parts.headers.remove(of_the_body);
    }
    let bytes = if settings.when_full.unwrap_or_default().is_retry_later(is_from_event_source) {
        parts.status = StatusCode::OK;
        headers::complete(&mut parts.headers);
        retry_line(delay)
    } else {
        parts.status = reason.status();
        let seconds = delay.as_secs_f64().ceil() as u64;
        parts.headers.insert(RETRY_AFTER, seconds.into());
        parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Bytes::from_static(reason.text().as_bytes())
    };
    let token = Arc::new(());
    let rejected =
        Rejected { reason, settings, head: head(parts.status, &parts.headers), body: Arc::downgrade(&token) };
    parts.extensions.remove::<LayerHandle>();
    parts.extensions.insert(rejected);
    Response::from_parts(parts, ResponseBody::replaced(body, bytes, token))
}

/// Replaces an error response or an earlier rejection with a rejection, like [`reject`]. First
/// removes the headers that only the replaced response needs, such as `Retry-After`.
pub(crate) fn reject_instead<B: Body>(
    mut response: Response<B>,
    reason: Reason,
    settings: Settings,
    is_from_event_source: bool,
) -> Response<ResponseBody<B>> {
    for of_the_error in [RETRY_AFTER, CACHE_CONTROL, CONTENT_TYPE] {
        response.headers_mut().remove(of_the_error);
    }
    reject(response, reason, settings, is_from_event_source)
}

/// Applies `outer`, the settings of an outer layer, to the response of an inner layer that has
/// rejected a request. Settings that the inner layer leaves unset, such as the reconnect delay, are
/// taken from `outer`. The status, headers and body of the rejection are then replaced. If no
/// setting is taken, or if a middleware has changed the status, the body, or a header that the
/// rejection sets, the response is not changed.
pub(crate) fn reject_again<B: Body>(
    response: Response<B>,
    mut rejected: Rejected,
    outer: &Settings,
    is_from_event_source: bool,
) -> Response<ResponseBody<B>> {
    let is_changed = !rejected.has_body() || !rejected.has_head_of(&response);
    if is_changed || !rejected.settings.inherit(outer) {
        return response.map(ResponseBody::untouched);
    }
    reject_instead(response, rejected.reason, rejected.settings, is_from_event_source)
}
