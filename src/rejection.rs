//! The response to a request that is over a limit of open streams.

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
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body;

/// A response extension that marks the rejection of a request over a limit of open streams. Outer
/// layers do not handle the rejection as an event stream. They only supply the settings, such as
/// the reconnect delay, that the rejecting layer leaves unset.
#[derive(Clone)]
pub(crate) struct Rejected {
    pub(crate) limit: LimitReached,
    pub(crate) settings: Settings,
}

/// Replaces the response of the handler by the rejection of a request over a limit of open streams.
/// The layer checks the limit after the handler has responded, because only responses that are
/// event streams count towards the limit. The body of the handler is never polled.
///
/// The headers of the handler are kept, such as its CORS headers, except for the headers that
/// describe its body. Without the CORS headers, an `EventSource` of another origin would not
/// reconnect.
pub(crate) fn reject<B: Body>(response: Response<B>, rejected: Rejected) -> Response<ResponseBody<B>> {
    let delay = rejected.settings.reconnect_delay(None);
    let (mut head, body) = response.into_parts();
    for of_the_body in [CONTENT_LENGTH, CONTENT_ENCODING] {
        head.headers.remove(of_the_body);
    }
    let body = match rejected.settings.when_full.unwrap_or_default() {
        Overload::ServiceUnavailable => {
            head.status = match rejected.limit {
                LimitReached::Total => StatusCode::SERVICE_UNAVAILABLE,
                LimitReached::Key => StatusCode::TOO_MANY_REQUESTS,
            };
            let seconds = delay.as_secs_f64().ceil() as u64;
            head.headers.insert(RETRY_AFTER, seconds.into());
            head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            let text = match rejected.limit {
                LimitReached::Total => "the limit of open event streams is reached; try again later",
                LimitReached::Key => "your limit of open event streams is reached; close one, or try again later",
            };
            ResponseBody::replaced(body, Bytes::from_static(text.as_bytes()))
        }
        Overload::RetryLater => {
            head.status = StatusCode::OK;
            headers::complete(&mut head.headers);
            ResponseBody::replaced(body, retry_line(delay))
        }
    };
    head.extensions.remove::<LayerHandle>();
    head.extensions.insert(rejected);
    Response::from_parts(head, body)
}

/// Applies `outer`, the settings of an outer layer, to the response of an inner layer that has
/// rejected a request. Settings that the inner layer leaves unset, such as the reconnect delay, are
/// taken from `outer`. The status, headers and body of the rejection are then replaced. If no
/// setting is taken, the response is not changed.
pub(crate) fn reject_again<B: Body>(
    mut response: Response<B>,
    mut rejected: Rejected,
    outer: &Settings,
) -> Response<ResponseBody<B>> {
    if !rejected.settings.inherit(outer) {
        return response.map(ResponseBody::untouched);
    }
    for of_the_rejection in [RETRY_AFTER, CACHE_CONTROL, CONTENT_TYPE] {
        response.headers_mut().remove(of_the_rejection);
    }
    reject(response, rejected)
}
