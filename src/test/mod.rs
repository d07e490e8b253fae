//! Utilities for the tests of handlers: a reader for the event stream of a response.
//!
//! - [`get`] and [`resume`] call a router or another service in the process of the test, without a
//!   socket. [`resume`] sends a `Last-Event-ID`.
//! - [`events`] reads any [`http::Response`]: of a service, of hyper, or of reqwest.
//!
//! The reader interprets the stream as the HTML standard specifies for an `EventSource`. Each call
//! has a deadline, 5 seconds by default, so that a test fails instead of waiting forever. In a test
//! with paused time ([`tokio::time::pause`]), the clock advances while all tasks wait. So a
//! heartbeat after 15 seconds arrives immediately.
//!
//! In this example, the second line calls the handler, and the third line reads its first event:
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! # use axum::{Router, routing::get};
//! # use tower_sse::{Event, SseStream, test};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let numbers = || async { SseStream::new(tokio_stream::iter([Event::new("7").event("count").id(1)])) };
//! let app: Router = Router::new().route("/numbers", get(numbers));
//! let mut events = test::get(app, "/numbers").await;
//! assert_eq!(events.next().await.unwrap(), Event::new("7").event("count").id(1));
//! # }
//! # main();
//! # }
//! ```
//!
// `tests/guides.rs` compiles the code of the guide.
#![cfg_attr(
    all(feature = "axum", feature = "hub", feature = "serve", not(doctest)),
    doc = include_str!("../../docs/testing.md")
)]

mod reader;
mod received;
#[allow(dead_code, unreachable_pub, missing_docs, reason = "also compiled for the tests of this crate")]
mod whatwg;

pub use reader::EventReader;
pub use received::ReceivedEvent;

use bytes::Bytes;
use http::{
    Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body::Body;
use std::{fmt, future::poll_fn, panic::Location, time::Duration};
use tokio::time::timeout;
use tower_service::Service;

/// The maximum time that a test waits for a response, and by default for each event, before it
/// panics.
const DEADLINE: Duration = Duration::from_secs(5);

/// Returns a reader for the event stream of a response. The reader interprets the stream as an
/// `EventSource` does.
///
/// The response can come from a router or service in this process, without a socket, or from any
/// client whose response is an [`http::Response`] with a body: hyper's `Response<Incoming>`, or
/// reqwest's response after `http::Response::from`.
///
/// # Panics
///
/// Panics if a client would not interpret the response as an event stream: if its status is not 200
/// or its `Content-Type` is not `text/event-stream` (HTML standard, §9.2.2).
///
/// # Examples
///
/// A request with a token:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use tower::ServiceExt;
/// use tower_sse::{Event, SseStream, test};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let events = || async { SseStream::new(tokio_stream::iter([Event::new("7").event("count").id(1)])) };
/// let app = Router::new().route("/events", get(events));
///
/// let request = Request::get("/events").header("Authorization", "Bearer …").body(Body::empty()).unwrap();
/// let mut events = test::events(app.oneshot(request).await.unwrap());
/// assert_eq!(events.next().await.unwrap().json::<u32>(), 7);
/// # }
/// # main();
/// # }
/// ```
#[track_caller]
pub fn events<B>(response: Response<B>) -> EventReader
where
    B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
{
    if let Err(reason) = check(&response) {
        panic!("{reason}");
    }
    EventReader::new(response.into_body(), DEADLINE)
}

/// Checks that a client accepts the response as an event stream: its status is 200, and its
/// `Content-Type` is `text/event-stream`. The error is the reason why a client does not accept the
/// response.
fn check<B>(response: &Response<B>) -> Result<(), String> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("a client accepts an event stream only with status 200, and not with {status}"));
    }
    let content_type = response.headers().get(CONTENT_TYPE);
    if !content_type.is_some_and(crate::headers::is_event_stream) {
        return Err(format!("the content type is {content_type:?}, not text/event-stream"));
    }
    Ok(())
}

/// Sends `GET uri` to a router or another service in this process, and returns a reader for the
/// event stream of the response.
///
/// The service must handle requests with a `String` as the body, as every axum router does. For
/// other methods, headers and request bodies, call the service yourself and pass its response to
/// [`events`].
///
/// # Panics
///
/// Panics if the service does not respond within 5 seconds, if the service returns an error, if
/// `uri` is not valid, or if the response is not an event stream (see [`events`]).
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// # use axum::{Router, routing::get};
/// # use tower_sse::{Event, SseStream, test};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let events = || async { SseStream::new(tokio_stream::iter([Event::new("7")])) };
/// # let app: Router = Router::new().route("/events", get(events));
/// let mut events = test::get(app, "/events").await;
/// assert_eq!(events.collect(1).await, [Event::new("7")]);
/// # }
/// # main();
/// # }
/// ```
#[track_caller]
pub fn get<S, B>(service: S, uri: &str) -> impl Future<Output = EventReader> + use<S, B>
where
    S: Service<Request<String>, Response = Response<B>, Error: fmt::Debug>,
    B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
{
    call(service, Request::get(uri).header(ACCEPT, "text/event-stream"), Location::caller())
}

/// Sends `GET uri` with the header `Last-Event-ID: last_event_id`, like a client that reconnects.
/// Everything else is as in [`get`].
///
/// To reconnect after an earlier response, pass the [`last_event_id`](EventReader::last_event_id)
/// of its reader.
///
/// # Panics
///
/// Panics if `last_event_id` is not valid in a header, and in the same cases as [`get`].
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get};
/// use tower_sse::{Event, LastEventId, LastEventIdRejection, SseStream, test};
/// use tokio_stream::Stream;
///
/// async fn count(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, LastEventIdRejection> {
///     let next = last.parse::<u64>()?.map_or(0, |seen| seen.saturating_add(1));
///     Ok(SseStream::new(tokio_stream::iter(next..=u64::MAX).map(|n| Event::display(n).id(n))))
/// }
/// # use tokio_stream::StreamExt;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let app: Router = Router::new().route("/count", get(count));
/// let mut events = test::resume(app, "/count", "41").await;
/// assert_eq!(events.collect(2).await, [Event::new("42").id(42), Event::new("43").id(43)]);
/// # }
/// # main();
/// # }
/// ```
#[track_caller]
pub fn resume<S, B>(service: S, uri: &str, last_event_id: &str) -> impl Future<Output = EventReader> + use<S, B>
where
    S: Service<Request<String>, Response = Response<B>, Error: fmt::Debug>,
    B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
{
    let request = Request::get(uri).header(ACCEPT, "text/event-stream").header("Last-Event-ID", last_event_id);
    let (reader, id) = (call(service, request, Location::caller()), last_event_id.to_owned());
    async move { reader.await.resumed_after(&id) }
}

async fn call<S, B>(mut service: S, request: http::request::Builder, caller: &Location<'_>) -> EventReader
where
    S: Service<Request<String>, Response = Response<B>, Error: fmt::Debug>,
    B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
{
    let request = request.body(String::new()).unwrap_or_else(|error| panic!("{error}, at {caller}"));
    let response = async {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    match timeout(DEADLINE, response).await {
        Ok(Ok(response)) => match check(&response) {
            Ok(()) => events(response),
            Err(reason) => panic!("{reason}, at {caller}"),
        },
        Ok(Err(error)) => panic!("the service has failed: {error:?}, at {caller}"),
        Err(_elapsed) => panic!("no response within {DEADLINE:?}, at {caller}"),
    }
}
