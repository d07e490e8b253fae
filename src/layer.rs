//! The middleware: any event stream becomes a correct one.

use crate::{
    body::{Adoption, Heartbeat, Offer, ResponseBody, Settings},
    headers,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// A layer that makes every event stream that passes through it a correct one, and leaves every other response alone.
///
/// It works on the responses of axum, tonic and anything else that is a [`Service`] of HTTP requests, whoever made them:
/// an [`SseStream`](crate::SseStream), another framework's responder, a stream that is proxied from another server.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Heartbeat, SseLayer};
///
/// let layer = SseLayer::new()
///     .heartbeat(Heartbeat::every(Duration::from_secs(20)))
///     .retry(Duration::from_secs(3));
///
/// # #[cfg(feature = "axum")] {
/// let app: axum::Router = axum::Router::new().layer(layer.clone());
/// # }
/// # let service = tower::service_fn(async |_: http::Request<()>| Ok::<_, std::io::Error>(http::Response::new(String::new())));
/// let service = tower::ServiceBuilder::new().layer(layer).service(service);
/// # let _: tower_sse::SseService<_> = service;
/// ```
///
/// # Which responses are event streams
///
/// Those whose `Content-Type` is `text/event-stream`, in any case and with any parameters; and those with status 200 and
/// no `Content-Type` to a request whose `Accept` names `text/event-stream`, which then get the header. Answers to `HEAD`,
/// the statuses 204 and 304, and bodies that are already at their end are left alone.
///
/// # What it does to them
///
/// - **Headers.** What the handler has set wins; what is missing is added: `Content-Type: text/event-stream`,
///   `Cache-Control: no-cache, no-transform` (a bare `no-cache` is completed to it), `X-Accel-Buffering: no`, and on
///   HTTP/1.1 `Connection: keep-alive`, unless a request that names `text/event-stream` asks to close. The content type is written in lower case.
///   `Content-Length` goes, since heartbeats change the length.
/// - **Heartbeats** after each interval of silence: see [`Heartbeat`]. They are put between the lines of a stream, never
///   into one, so a client dispatches exactly the events that it would without the layer (and the heartbeats, if these are
///   events).
/// - **An [`SseStream`](crate::SseStream)** takes the settings over into its own body; what the handler has set on it
///   explicitly wins. So there is never a second heartbeat, even with several layers: the innermost one decides.
///
/// # Compression
///
/// A compressor holds events back until it has enough of them, so it is kept out on both sides. A request whose
/// `Accept` names `text/event-stream` (`*/*` does not) is passed on with `Accept-Encoding: identity`, for the compressors inside of the layer. This holds
/// even if the answer then turns out to be something else, such as JSON: correct beats small. Compressors outside of the
/// layer see a content type they know and `no-transform`. One that is told to compress everything will do so; tower-http's
/// still delivers each event when it is sent.
///
/// An event stream that already has a `Content-Encoding` is passed through without heartbeats, which would corrupt it.
#[derive(Clone, Debug)]
#[must_use]
pub struct SseLayer {
    settings: Arc<Settings>,
}

impl SseLayer {
    /// A layer with the default heartbeat, an empty comment after 15 seconds of silence, and nothing else set.
    pub fn new() -> Self {
        Self { settings: Arc::new(Settings { heartbeat: Some(Heartbeat::default()), retry: None }) }
    }

    /// Keeps the streams alive in this way.
    pub fn heartbeat(self, heartbeat: Heartbeat) -> Self {
        self.with(|settings| settings.heartbeat = Some(heartbeat))
    }

    /// Sends no heartbeats, but for the streams whose handler has set one.
    ///
    /// A client that closes its connection is noticed all the same. One that vanishes is noticed only when the server writes
    /// to it, so its stream is then held for as long as it is silent.
    pub fn without_heartbeat(self) -> Self {
        self.with(|settings| settings.heartbeat = None)
    }

    /// Tells the clients first how long to wait before they reconnect, in whole milliseconds. Without it they use their own
    /// default, some seconds.
    pub fn retry(self, delay: Duration) -> Self {
        self.with(|settings| settings.retry = Some(delay))
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl Default for SseLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for SseLayer {
    type Service = SseService<S>;

    fn layer(&self, inner: S) -> SseService<S> {
        SseService { inner, settings: Arc::clone(&self.settings) }
    }
}

/// The service that an [`SseLayer`] makes.
#[derive(Clone, Debug)]
pub struct SseService<S> {
    inner: S,
    settings: Arc<Settings>,
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
        let accepts = headers::accepts_event_stream(request.headers());
        if accepts {
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let is_head = request.method() == Method::HEAD;
        let keeps_connection = may_keep_connection(&request, accepts);
        let inner = self.inner.call(request);
        ResponseFuture { inner, settings: Arc::clone(&self.settings), keeps_connection, accepts, is_head }
    }
}

pin_project! {
    /// The response future of an [`SseService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        settings: Arc<Settings>,
        keeps_connection: bool,
        accepts: bool,
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
            if *this.is_head || !is_event_stream(&response, *this.accepts) {
                response.map(ResponseBody::untouched)
            } else {
                make_correct(response, *this.keeps_connection, this.settings)
            }
        })
    }
}

/// What the layer does to an event stream. Out of the way of the responses that are none.
#[inline(never)]
fn make_correct<B: Body>(
    mut response: Response<B>,
    keeps_connection: bool,
    settings: &Arc<Settings>,
) -> Response<ResponseBody<B>> {
    let is_taken_over = hand_over(settings, &response);
    let headers = response.headers_mut();
    headers::complete(headers);
    if keeps_connection {
        headers.entry(CONNECTION).or_insert(HeaderValue::from_static("keep-alive"));
    }
    if is_encoded(headers) && !is_taken_over {
        return response.map(ResponseBody::untouched);
    }
    headers.remove(CONTENT_LENGTH);
    if is_taken_over {
        return response.map(ResponseBody::untouched);
    }
    let adoption = Adoption::default();
    response.extensions_mut().insert(adoption.offer());
    response.map(|body| ResponseBody::event_stream(body, Arc::clone(settings), adoption))
}

/// Whether the response may say `Connection: keep-alive`.
///
/// In HTTP/2 that is illegal (RFC 9113, §8.2.2), and in HTTP/1.0 untrue, where the end of a body without a length is the
/// close (RFC 9112, §6.3). Whether the client asks to close is looked at where it asks for an event stream, as an
/// `EventSource` does: other requests pay nothing for it.
fn may_keep_connection<B>(request: &Request<B>, accepts: bool) -> bool {
    request.version() == Version::HTTP_11 && !(accepts && headers::asks_to_close(request.headers()))
}

fn is_event_stream<B: Body>(response: &Response<B>, accepts: bool) -> bool {
    let is_of_type = match response.headers().get(CONTENT_TYPE) {
        Some(value) => headers::is_event_stream(value),
        None => accepts && response.status() == StatusCode::OK,
    };
    is_of_type
        && !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && !response.body().is_end_stream()
}

/// Whether bytes that are put into the body would corrupt it.
fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Gives the settings to a body that is an event stream of ours, or already wrapped. Answers whether there was one.
fn hand_over<B>(settings: &Arc<Settings>, response: &Response<B>) -> bool {
    response.extensions().get::<Offer>().is_some_and(|offer| offer.settle(settings))
}
