//! [`SseService`], the service that an [`SseLayer`](crate::SseLayer) creates. It decides which
//! responses are event streams, and which body each of them gets.

use crate::{
    body::{AppliedLayer, LayerHandle, LayerLink, ResponseBody},
    headers,
    limit::{Keys, Limit},
    metrics,
    registry::Registration,
    rejection::{Reason, Rejected, TemporaryError, reject, reject_again, reject_instead},
    settings::{LayerOnClose, Settings},
    trace,
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body;
use pin_project_lite::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// The service that an [`SseLayer`](crate::SseLayer) creates. It passes requests to the inner
/// service, and applies the layer to responses that are event streams.
#[derive(Clone, Debug)]
pub struct SseService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> SseService<S> {
    pub(crate) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }

    /// Returns a reference to the inner service.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower::Layer;
    /// use tower_sse::SseLayer;
    ///
    /// let mut service = SseLayer::new().layer("inner");
    /// assert_eq!(*service.get_ref(), "inner");
    /// *service.get_mut() = "other";
    /// assert_eq!(service.into_inner(), "other");
    /// ```
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    #[must_use]
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Removes the layer, and returns the inner service.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SseService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> ResponseFuture<S::Future> {
        let accepts = headers::is_event_stream_accepted(request.headers());
        if accepts {
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let assumes = accepts && headers::is_only_event_stream_accepted(request.headers());
        let is_head = request.method() == Method::HEAD;
        let is_from_event_source = assumes && request.method() == Method::GET;
        let keep_connection = can_keep_connection(&request);
        let noted = trace::Request::of(&request);
        let mut head = ReadHead::default();
        if self.settings.reads_head() {
            (request, head) = ReadHead::of(request, &self.settings);
        }
        let inner = self.inner.call(request);
        let settings = Arc::clone(&self.settings);
        ResponseFuture { inner, settings, head, noted, keep_connection, assumes, is_from_event_source, is_head }
    }
}

/// The values that a layer reads from the head of a request before it passes the request to the
/// inner service.
#[derive(Default)]
struct ReadHead {
    /// The keys of the request for the limits per key, such as the address of its client.
    keys: Keys,
    registrations: Vec<Registration>,
    /// The callback that `on_close_with` has created for this request. It contains the value that
    /// was read from the request.
    on_close: Option<LayerOnClose>,
}

impl ReadHead {
    fn of<B>(request: Request<B>, settings: &Settings) -> (Request<B>, Self) {
        let (head, body) = request.into_parts();
        let read = Self {
            keys: Keys::of(&head, &settings.limits),
            registrations: settings.registrars.iter().filter_map(|registrar| registrar(&head)).collect(),
            on_close: settings.on_close_with.as_ref().map(|with| with(&head)),
        };
        (Request::from_parts(head, body), read)
    }
}

impl fmt::Debug for ReadHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHead")
            .field("keys", &self.keys)
            .field("registrations", &self.registrations)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response future of an [`SseService`]. When the inner service has responded, it applies
    /// the layer to the response.
    #[derive(Debug)]
    #[must_use = "a future does nothing until it is polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        settings: Arc<Settings>,
        head: ReadHead,
        noted: trace::Request,
        keep_connection: bool,
        // Set if a response without a content type counts as an event stream.
        assumes: bool,
        // Set if the request is like that of an `EventSource`: a `GET` that only accepts an event
        // stream.
        is_from_event_source: bool,
        is_head: bool,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.inner.poll(cx).map_ok(|response| {
            if let Some(rejected) = Rejected::of(&response) {
                reject_again(response, rejected, this.settings, *this.is_from_event_source)
            } else if *this.is_from_event_source && TemporaryError::of(&response).is_some() {
                handle_error(response, this.settings, this.noted)
            } else if *this.is_head || !is_event_stream(&response, *this.assumes) {
                response.map(ResponseBody::untouched)
            } else {
                let (head, request) = (mem::take(this.head), mem::take(this.noted));
                let is_from_event_source = *this.is_from_event_source;
                make_correct(response, *this.keep_connection, is_from_event_source, this.settings, head, request)
            }
        })
    }
}

/// Handles a temporary error of a hub that a handler has returned to a request like that of an
/// `EventSource`. Replaces the response with a stream that makes the client reconnect later. If the
/// layer is set to respond with a status, the response stays.
#[inline(never)]
fn handle_error<B: Body>(
    mut response: Response<B>,
    settings: &Settings,
    request: &trace::Request,
) -> Response<ResponseBody<B>> {
    // Outer layers leave the response unchanged, because the setting of an inner layer has
    // precedence.
    let error = response.extensions_mut().remove::<TemporaryError>();
    if !settings.when_full.unwrap_or_default().is_retry_later(true) {
        return response.map(ResponseBody::untouched);
    }
    trace::refused(request, error.map(|TemporaryError(message)| message));
    metrics::refused();
    reject_instead(response, Reason::TemporaryError, settings.clone(), true)
}

/// Applies the settings of a layer to an event stream, or rejects the response if a limit on open
/// streams is reached. `keep_connection` is set if the response may have `Connection: keep-alive`.
/// Not inlined, because most responses are not event streams.
#[inline(never)]
fn make_correct<B: Body>(
    mut response: Response<B>,
    keep_connection: bool,
    is_from_event_source: bool,
    settings: &Arc<Settings>,
    head: ReadHead,
    request: trace::Request,
) -> Response<ResponseBody<B>> {
    let handle = response.extensions().get::<LayerHandle>().filter(|handle| handle.is_open()).cloned();
    let is_held = |limit: &Limit| handle.as_ref().is_some_and(|handle| handle.holds_permit_of(limit));
    let permits = match head.keys.acquire(&settings.limits, is_held) {
        Ok(permits) => permits,
        Err(limit) => {
            trace::refused(&request, None);
            metrics::refused();
            return reject(response, Reason::Limit(limit), Settings::clone(settings), is_from_event_source);
        }
    };
    // An inner layer may have opened a registration with the same key. It is removed only after
    // this, so that the number of open streams of the key is not 0 in between.
    head.registrations.iter().for_each(Registration::open);
    let mut layer = AppliedLayer::new(settings, permits, head.registrations, head.on_close, request);
    let is_shut_down = settings.shutdown.as_ref().is_some_and(CancellationToken::is_cancelled);
    let headers = response.headers_mut();
    if !headers.contains_key(CONTENT_TYPE) {
        headers::vary_by_accept(headers);
    }
    headers::complete(headers);
    if keep_connection && !is_shut_down {
        headers.entry(CONNECTION).or_insert(HeaderValue::from_static("keep-alive"));
    }
    if let Some(handle) = handle {
        match handle.attach(layer) {
            // The body is that of an `SseStream`, or an inner layer already handles it.
            None => {
                headers.remove(CONTENT_LENGTH);
                return response.map(ResponseBody::untouched);
            }
            Some(returned) => layer = returned,
        }
    }
    let is_encoded = headers::is_encoded(headers);
    if is_encoded && !layer.is_observed() {
        return response.map(|body| ResponseBody::encoded(body, LayerLink::closed()));
    }
    headers.remove(CONTENT_LENGTH);
    let (link, handle) = LayerLink::open();
    // The link is open, because the body was not polled yet.
    let _none = handle.attach(layer);
    response.extensions_mut().insert(handle);
    response.map(|body| match is_encoded {
        true => ResponseBody::encoded(body, link),
        false => ResponseBody::event_stream(body, link),
    })
}

/// Returns whether the response to this request may have the header `Connection: keep-alive`. The
/// header is allowed in HTTP/1.1, unless the client asks to close the connection.
///
/// In HTTP/2, the header is illegal (RFC 9113, §8.2.2). In HTTP/1.0, the header would be wrong,
/// because a body without a length ends with the connection (RFC 9112, §6.3).
fn can_keep_connection<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11 && !headers::has_connection_close(request.headers())
}

/// Returns whether a client interprets the response as an event stream. A client does so only if
/// the status is 200 (HTML standard, §9.2.2). A body that is already at its end does not count.
///
/// `assumes` is true if the client accepts only event streams. Then a response without a content
/// type also counts as an event stream if its length is unknown. A body of known length is
/// complete, so it is not a stream.
pub(crate) fn is_event_stream<B: Body>(response: &Response<B>, assumes: bool) -> bool {
    let is_of_type = match response.headers().get(CONTENT_TYPE) {
        Some(value) => headers::is_event_stream(value),
        None => assumes && !has_known_length(response),
    };
    is_of_type && response.status() == StatusCode::OK && !response.body().is_end_stream()
}

pub(crate) fn has_known_length<B: Body>(response: &Response<B>) -> bool {
    response.headers().contains_key(CONTENT_LENGTH) || response.body().size_hint().exact().is_some()
}
