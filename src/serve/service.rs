//! Converts tower services into services of hyper.

use super::handover::{Framing, Handover, HyperBody, Offer};
use crate::{BoxError, headers, service};
use axum::extract::ConnectInfo;
use axum_core::body::Body as RequestBody;
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode, Version,
    header::{TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// A short name for the trait bounds of a tower service that this server can serve.
pub(super) trait App:
    Service<Request<RequestBody>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> App for S
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// A short name for the trait bounds of the type of a client's address.
pub(super) trait Address: Clone + Send + Sync + 'static {}

impl<A: Clone + Send + Sync + 'static> Address for A {}

/// Converts hyper's request into the request for the application. Adds the address of the client as
/// the extension `ConnectInfo`. `body` converts the body of the request into axum's type.
pub(super) fn with_connect_info<B, A: Address>(
    request: Request<B>,
    address: &A,
    body: impl FnOnce(B) -> RequestBody,
) -> Request<RequestBody> {
    let mut request = request.map(body);
    request.extensions_mut().insert(ConnectInfo(address.clone()));
    request
}

/// The application as hyper's service for an HTTP/1 connection.
pub(super) struct Http1Service<S: App, A> {
    pub(super) service: S,
    pub(super) address: A,
    pub(super) handover: Arc<Handover<S::Body>>,
}

impl<S: App, A: Address> hyper::service::Service<Request<Incoming>> for Http1Service<S, A> {
    type Response = Response<HyperBody<S::Body>>;
    type Error = S::Error;
    type Future = Http1Call<S>;

    fn call(&self, request: Request<Incoming>) -> Http1Call<S> {
        self.handover.set_requested();
        let (facts, request) = Facts::of(request);
        let request = with_connect_info(request, &self.address, |body| body);
        let call = Call::new(self.service.clone(), request);
        Http1Call { call, facts, handover: Arc::clone(&self.handover) }
    }
}

/// The properties of an HTTP/1 request that decide whether this server can take the connection from
/// hyper, to write the response body itself.
#[derive(Debug)]
struct Facts {
    version: Version,
    /// Set if the client asks to close the connection after the response (RFC 9112, §9.6).
    closes: bool,
    /// Set if the request allows this server to take the connection: its method is neither `HEAD`
    /// nor `CONNECT`, and it has no `Upgrade` or `Transfer-Encoding` header.
    is_plain: bool,
    is_connect: bool,
    body: RequestProgress,
}

/// The progress of reading the body of a request: shows whether hyper has read the body to its end.
#[derive(Debug)]
enum RequestProgress {
    Complete,
    Tracked(Arc<AtomicBool>),
}

impl Facts {
    fn of(request: Request<Incoming>) -> (Self, Request<RequestBody>) {
        // If a request has a `Content-Length` beside its `Transfer-Encoding`, the server must close
        // the connection (RFC 9112, §6.1). hyper does so, but it removes the `Content-Length`. So
        // this server cannot know whether it has to close the connection.
        let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let facts = |body| Self {
            version: request.version(),
            closes: headers::has_connection_close(request.headers()),
            is_plain: !matches!(*request.method(), Method::HEAD | Method::CONNECT)
                && !request.headers().contains_key(UPGRADE)
                && !is_chunked,
            is_connect: *request.method() == Method::CONNECT,
            body,
        };
        if request.body().is_end_stream() {
            return (facts(RequestProgress::Complete), request.map(|_| RequestBody::empty()));
        }
        let is_complete = Arc::new(AtomicBool::new(false));
        let facts = facts(RequestProgress::Tracked(Arc::clone(&is_complete)));
        (facts, request.map(|body| RequestBody::new(TrackedBody { body, is_complete })))
    }

    /// Returns the framing of an event stream that this server can take over from hyper, and `None`
    /// for any other response.
    ///
    /// This server does not take over a connection whose request hyper has not read completely. Nor
    /// does it take over a response with a framing of its own: a known length, trailers or transfer
    /// codings. The coding `chunked` is allowed, because this server writes it, too. A response
    /// from an upstream server may have the header `Transfer-Encoding: chunked`, because hyper's
    /// client does not remove it.
    fn framing<B: Body>(&self, response: &Response<B>) -> Option<Framing> {
        let is_request_read = match &self.body {
            RequestProgress::Complete => true,
            RequestProgress::Tracked(is_complete) => is_complete.load(Ordering::Relaxed),
        };
        let is_free = self.is_plain
            && is_request_read
            && service::is_event_stream(response, false)
            && !service::has_known_length(response)
            && !response.headers().contains_key(TRAILER);
        let framing = match (self.version, response.version()) {
            (Version::HTTP_11, Version::HTTP_11 | Version::HTTP_2) => Framing::Chunked,
            (Version::HTTP_10, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2)
            | (Version::HTTP_11, Version::HTTP_10) => Framing::UntilClose,
            _ => return None,
        };
        let mut codings = response.headers().get_all(TRANSFER_ENCODING).into_iter();
        let is_writable = codings
            .next()
            .is_none_or(|coding| framing == Framing::Chunked && coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        (is_free && is_writable && codings.next().is_none()).then_some(framing)
    }
}

/// The body of a request, with a record of whether the body was read to its end.
#[derive(Debug)]
struct TrackedBody {
    body: Incoming,
    is_complete: Arc<AtomicBool>,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.is_complete.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// A future that waits until a service is ready, calls the service, and waits for the response.
    #[project = CallProjection]
    pub(super) enum Call<S: App> {
        Waiting { service: S, request: Option<Request<RequestBody>> },
        Called { #[pin] future: S::Future },
    }
}

impl<S: App> Call<S> {
    pub(super) fn new(service: S, request: Request<RequestBody>) -> Self {
        Self::Waiting { service, request: Some(request) }
    }
}

impl<S: App> Future for Call<S> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let future = match self.as_mut().project() {
                CallProjection::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    match request.take() {
                        Some(request) => service.call(request),
                        None => return Poll::Pending,
                    }
                }
                CallProjection::Called { future } => return future.poll(cx),
            };
            self.set(Self::Called { future });
        }
    }
}

pin_project! {
    /// The future of the response to an HTTP/1 request. For an event stream that this server can
    /// take over from hyper, hyper gets a placeholder body, which is always pending. The real body
    /// is stored until this server takes the connection and writes the body itself.
    pub(super) struct Http1Call<S: App> {
        #[pin]
        call: Call<S>,
        facts: Facts,
        handover: Arc<Handover<S::Body>>,
    }
}

impl<S: App> Future for Http1Call<S> {
    type Output = Result<Response<HyperBody<S::Body>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.call.poll(cx))?;
        let is_tunnel = this.facts.is_connect && response.status().is_success();
        if is_tunnel || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            this.handover.set_upgraded();
        }
        let Some(framing) = this.facts.framing(&response) else {
            return Poll::Ready(Ok(response.map(|body| HyperBody::Whole { body })));
        };
        let keep_alive =
            framing == Framing::Chunked && !this.facts.closes && !headers::has_connection_close(response.headers());
        Poll::Ready(Ok(response.map(|body| this.handover.offer(Offer { body, framing, keep_alive }))))
    }
}
