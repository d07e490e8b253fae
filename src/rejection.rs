//! The response to a request that is over a limit of open streams. A handler can respond in the
//! same way: see `retry_later.rs`.

use crate::{
    Overload,
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

/// A response extension that marks the rejection of a request over a limit of open streams, or a
/// [`RetryLater`](crate::RetryLater). Outer layers do not handle the rejection as an event stream.
/// They only supply the settings, such as the reconnect delay, that the rejecting layer leaves
/// unset.
#[derive(Clone)]
pub(crate) struct Rejected {
    limit: LimitReached,
    settings: Settings,
    head: Head,
    /// Dangling after the body of the rejection was dropped. A middleware may replace the body, and
    /// keep the extensions of the response.
    body: Weak<()>,
}

/// The status of a rejection, and the headers that the rejection sets.
type Head = (StatusCode, [Option<HeaderValue>; 3]);

fn head(status: StatusCode, headers: &HeaderMap) -> Head {
    (status, [RETRY_AFTER, CACHE_CONTROL, CONTENT_TYPE].map(|name| headers.get(name).cloned()))
}

impl Rejected {
    /// Returns the mark of a rejection, or `None` for every other response. If a middleware has
    /// replaced the body and also changed the head, the response is no rejection.
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

/// Replaces the response of the handler by the rejection of a request over a limit of open streams.
/// The layer checks the limit after the handler has responded, because only responses that are
/// event streams count towards the limit. The body of the handler is never polled.
///
/// The headers of the handler are kept, such as its CORS headers, except for the headers that
/// describe its body. Without the CORS headers, an `EventSource` of another origin would not
/// reconnect.
pub(crate) fn reject<B: Body>(
    response: Response<B>,
    limit: LimitReached,
    settings: Settings,
) -> Response<ResponseBody<B>> {
    let delay = settings.reconnect_delay(None);
    let (mut parts, body) = response.into_parts();
    for of_the_body in [CONTENT_LENGTH, CONTENT_ENCODING] {
        parts.headers.remove(of_the_body);
    }
    let bytes = match settings.when_full.unwrap_or_default() {
        Overload::ServiceUnavailable => {
            parts.status = match limit {
                LimitReached::Total => StatusCode::SERVICE_UNAVAILABLE,
                LimitReached::Key => StatusCode::TOO_MANY_REQUESTS,
            };
            let seconds = delay.as_secs_f64().ceil() as u64;
            parts.headers.insert(RETRY_AFTER, seconds.into());
            parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            let text = match limit {
                LimitReached::Total => "the limit of open event streams is reached; try again later",
                LimitReached::Key => "your limit of open event streams is reached; close one, or try again later",
            };
            Bytes::from_static(text.as_bytes())
        }
        Overload::RetryLater => {
            parts.status = StatusCode::OK;
            headers::complete(&mut parts.headers);
            retry_line(delay)
        }
    };
    let token = Arc::new(());
    let rejected = Rejected { limit, settings, head: head(parts.status, &parts.headers), body: Arc::downgrade(&token) };
    parts.extensions.remove::<LayerHandle>();
    parts.extensions.insert(rejected);
    Response::from_parts(parts, ResponseBody::replaced(body, bytes, token))
}

/// Applies `outer`, the settings of an outer layer, to the response of an inner layer that has
/// rejected a request. Settings that the inner layer leaves unset, such as the reconnect delay, are
/// taken from `outer`. The status, headers and body of the rejection are then replaced. If no
/// setting is taken, or if a middleware has changed the status, the body, or a header that the
/// rejection sets, the response is not changed.
pub(crate) fn reject_again<B: Body>(
    mut response: Response<B>,
    mut rejected: Rejected,
    outer: &Settings,
) -> Response<ResponseBody<B>> {
    let is_changed = !rejected.has_body() || !rejected.has_head_of(&response);
    if is_changed || !rejected.settings.inherit(outer) {
        return response.map(ResponseBody::untouched);
    }
    for of_the_rejection in [RETRY_AFTER, CACHE_CONTROL, CONTENT_TYPE] {
        response.headers_mut().remove(of_the_rejection);
    }
    reject(response, rejected.limit, rejected.settings)
}
