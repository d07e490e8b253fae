//! Topics for the clients of the [Durable Streams protocol][protocol] (feature `durable-streams`).
//!
//! [`Hub::durable_streams`] returns a tower service that serves the topics of a hub for reading.
//! The clients of the protocol, such as [`@durable-streams/client`][client], read a topic from its
//! beginning or after an offset. They continue with long polls or with an event stream. Long polls
//! work where a network buffers event streams, and a CDN can serve the pages of old events.
//!
//! ```
//! # async fn serve() -> std::io::Result<()> {
//! use axum::Router;
//! use tower_sse::hub::{Hub, durable_streams::Content};
//!
//! let hub = Hub::new();
//! let streams = hub
//!     .durable_streams()
//!     .readable(|topic, _request| topic.starts_with("answers/") || topic == "orders")
//!     .content(|topic| if topic == "orders" { Content::json() } else { Content::text() });
//! let app: Router = Router::new().nest_service("/streams", streams);
//! // GET /streams/answers/42?offset=-1
//! # axum::serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?, app).await }
//! ```
//!
//! # Requests
//!
//! The path of a request, without its first `/`, is the name of the topic. Percent-encoded bytes
//! are decoded. axum's `nest_service` removes its prefix, such as `/streams`, before the service
//! gets the path.
//!
//! | request | response |
//! |---|---|
//! | `HEAD` | the offset at the end of the topic, and whether the topic is finished |
//! | `GET`, also with `offset=-1` | a page of events, from the oldest retained event |
//! | `GET` with an offset | a page of events after the offset |
//! | `GET` with `offset=now` | an empty page with the offset at the end |
//! | `GET` with an offset and `live=long-poll` | a page, or `204` if no event arrives in time |
//! | `GET` with an offset and `live=sse` | an event stream that begins after the offset |
//! | any other method | `405`, because the service only reads |
//!
//! The headers `Stream-Next-Offset`, `Stream-Up-To-Date`, `Stream-Closed` and `Stream-Cursor` are
//! those of the protocol. A [finished](super::Topic::finish) topic is a closed stream. Its clients
//! stop after the last event.
//!
//! # Errors
//!
//! | status | reason |
//! |---|---|
//! | 400 | the offset or the query is malformed, or a live read has no offset |
//! | 404 | the topic does not exist, or is not [readable](DurableStreams::readable) |
//! | 410 | events after the offset are missing: they are not retained any more, or the offset is from another log |
//! | 500 | the data of the next event is not [base64](Content::base64), as the content of the topic requires |
//! | 503 | the hub is shut down, its backend does not respond, the node is more than a second behind the log and does not know the topic, or the hub is at a limit. `Retry-After` is one second |
//!
//! The body of an error is a text for developers. A response to `HEAD` has no body.
//!
//! If a client reads after the offset of an event, and a later event is missing (a
//! [gap](super::Gap) of the hub), the response is 410. In a hub without a backend, the response is
//! 404 instead of 410 if the topic has expired. So no event is lost silently, with the
//! [exceptions](super#guarantees) of the backends. After either status, a client loads the state of
//! the application again, or reads from the offset `-1`. This read begins with the oldest retained
//! event, and does not report earlier events as missing.
//!
//! # Limits
//!
//! - A stream contains the data of events, but not their names and ids. Put the kind of an event
//!   into its data, for example with an internally tagged enum.
//! - A request keeps at most one page in memory. A page has at most
//!   [`page_size`](DurableStreams::page_size) bytes and one more event.
//! - A long poll or event stream counts as a [subscriber](super::Topic::subscribers) of its topic.
//!   A client that polls is not a subscriber between two polls.
//! - A topic does not exist if it has no events and no [subscribers](super::Topic::subscribers),
//!   and is not finished. The filter [`existing`](DurableStreams::existing) makes exceptions, for
//!   example for topics without an event yet. Without an exception, a request does not make a
//!   missing topic exist for other requests, even while the request waits.
//! - In a hub without a backend, a topic does not exist any more after its last event has expired.
//!   The hub remembers up to 10,000 expired topics. A reader that has all events of such a topic
//!   can still wait for its next event, unless the topic was finished or removed. Other readers get
//!   a 404.
//! - Topics whose names begin with `tower-sse/` are internal to this crate and cannot be read.
//!   Neither can the topic `__ds` and topics that begin with `__ds/`, which the protocol reserves.
//! - With a backend, another node can publish an event to a topic before it has read that the topic
//!   is finished. The topic then [continues](super::Topic::finish), but a client that was notified
//!   of the end has stopped.
//! - The service needs a tokio runtime with timers.
//!
//! # With a backend
//!
//! Offsets are the same on all nodes. A node reads events that it does not retain from the backend.
//! A response contains every event whose publication the local node has acknowledged before the
//! request, unless the local node needs more than a second to read these events from the backend. A
//! read from the beginning of a topic that the node does not know can read the whole log of the
//! backend. So [`readable`](DurableStreams::readable) should accept only names that the application
//! has issued. A read after the offset of an event does not check whether such an unknown topic
//! exists. The response is an empty page, or a 410 if events after the offset may have been
//! evicted.
//!
//! In a large log, a search for the next event can take several requests. The response is then an
//! empty page without `Stream-Up-To-Date`. Its offset is the end of the part of the log that was
//! searched.
//!
//! # Caches
//!
//! A page with events can be cached for a minute. A request whose `If-None-Match` has the `ETag` of
//! the page gets a 304. By default, only the cache of the client stores pages
//! (`Cache-Control: private`). With [`shared_caches`](DurableStreams::shared_caches), a CDN stores
//! them, too. The guide `docs/durable-streams.md` describes how.
//!
//! # Shutdown
//!
//! [`Hub::shutdown`](super::Hub::shutdown) ends long polls and event streams, after the events that
//! this process retains. The settings of an [`SseLayer`](crate::SseLayer) around the service apply
//! to its event streams.
//!
//! [`Hub::durable_streams`]: super::Hub::durable_streams
//! [protocol]: https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md
//! [client]: https://www.npmjs.com/package/@durable-streams/client

mod content;
mod cursor;
mod events;
mod offset;
mod reading;
mod response;

use super::{core::Core, handle::Hub, registry::RESERVED};
use crate::{EventId, SseStream};
use content::Page;
use events::Events;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use offset::InvalidOffset;
use percent_encoding::percent_decode_str;
use reading::{Begin, ReadError, Reading, Rest};
pub(super) use reading::{forget_step, note_step};
use response::{Mode, Query};
use std::{
    convert::Infallible,
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_service::Service;

pub use content::Content;
pub use response::StreamBody;

impl Hub {
    /// Returns a service that serves topics for reading, in the Durable Streams protocol.
    ///
    /// Without [`readable`](DurableStreams::readable), no topic can be read: each request gets a
    /// 404. The [module documentation](self) describes requests and responses.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use tower_sse::hub::Hub;
    /// let hub = Hub::new();
    /// let streams = hub.durable_streams().readable(|topic, _request| topic.starts_with("public/"));
    /// let app: Router = Router::new().nest_service("/streams", streams);
    /// ```
    pub fn durable_streams(&self) -> DurableStreams {
        DurableStreams {
            core: self.core().clone(),
            settings: Arc::new(Settings {
                readable: Arc::new(|_, _| false),
                existing: Arc::new(|_| false),
                content: Arc::new(|_| Content::default()),
                page_size: 256 * 1024,
                long_poll: Duration::from_secs(20),
                events: Duration::from_secs(60),
                is_shared: false,
            }),
        }
    }
}

/// A tower service that serves the topics of a hub in the Durable Streams protocol.
/// [`Hub::durable_streams`] creates it.
///
/// The service accepts requests with any body, and ignores the body. Clones share the hub, and have
/// the settings at the time of the clone. If web pages of other origins read topics, put the CORS
/// layer of `tower-http` around the service, and expose the headers of the protocol.
///
/// # Examples
///
/// A read of a whole topic with the protocol, without a server:
///
/// ```
/// use http::Request;
/// use tower::ServiceExt;
/// use tower_sse::{Event, hub::Hub};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::BoxError> {
/// let hub = Hub::new();
/// hub.topic("orders").publish_all([Event::new("{\"id\":1}"), Event::new("{\"id\":2}")]).await?;
/// hub.topic("orders").finish().await?;
///
/// let streams = hub.durable_streams().readable(|topic, _request| topic == "orders");
/// let response = streams.oneshot(Request::get("/orders?offset=-1").body(())?).await?;
/// assert_eq!(response.headers()["stream-closed"], "true");
/// let page = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
/// assert_eq!(page, "[{\"id\":1},{\"id\":2}]");
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct DurableStreams {
    core: Arc<Core>,
    settings: Arc<Settings>,
}

type Filter = dyn Fn(&str, &Parts) -> bool + Send + Sync;

#[derive(Clone)]
struct Settings {
    readable: Arc<Filter>,
    existing: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    content: Arc<dyn Fn(&str) -> Content + Send + Sync>,
    page_size: usize,
    long_poll: Duration,
    events: Duration,
    is_shared: bool,
}

impl DurableStreams {
    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Sets which topics clients can read. Requests for other topics get a 404, whether the topics
    /// exist or not. By default no topic can be read.
    ///
    /// The filter gets the name of the topic and the head of the request, for example with the user
    /// that an authentication layer has put into its extensions. If the result depends on the user,
    /// do not enable [`shared_caches`](Self::shared_caches).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::hub::Hub;
    /// #[derive(Clone)]
    /// struct User(String);
    ///
    /// let streams = Hub::new().durable_streams().readable(|topic, request| {
    ///     let user = request.extensions.get::<User>();
    ///     user.is_some_and(|User(name)| topic.strip_prefix("users/").is_some_and(|rest| rest == name))
    /// });
    /// ```
    pub fn readable(self, filter: impl Fn(&str, &Parts) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.readable = Arc::new(filter))
    }

    /// Sets which topics exist for readers although they have no event yet. By default, a topic
    /// does not exist if it has no events and no subscribers, and is not finished. A read of such a
    /// topic gets a 404. Long polls and event streams that began while the topic did not exist do
    /// not count as its subscribers here.
    ///
    /// Use this filter for topics whose clients can come before the first event, or after the last
    /// event has expired. Such a client gets an empty page, or waits. Reading creates the topic in
    /// the hub, so the topic counts towards [`max_topics`](super::Builder::max_topics) while it is
    /// read. Accept only names that the application has issued.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{collections::HashSet, sync::{Arc, RwLock}};
    /// # use tower_sse::hub::Hub;
    /// let jobs: Arc<RwLock<HashSet<String>>> = Arc::default();
    /// let streams = Hub::new()
    ///     .durable_streams()
    ///     .readable(|topic, _request| topic.starts_with("jobs/"))
    ///     .existing(move |topic| jobs.read().is_ok_and(|jobs| jobs.contains(topic)));
    /// ```
    pub fn existing(self, filter: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.existing = Arc::new(filter))
    }

    /// Sets the [`Content`] of each topic: the format and the content type of its durable stream.
    /// The default is [`Content::json`] for all topics. The result for a topic must not change
    /// while clients or caches read the topic.
    pub fn content(self, content: impl Fn(&str) -> Content + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.content = Arc::new(content))
    }

    /// Sets the size in bytes of a page, the part of a topic that one response (or one `data` event
    /// of an event stream) contains. A page ends after the event that reaches this size, so it can
    /// exceed the size by one event. Default: 256 KiB. Zero counts as one byte.
    pub fn page_size(self, bytes: usize) -> Self {
        self.with(|settings| settings.page_size = bytes.max(1))
    }

    /// Sets the time that a long poll waits for an event. Default: 20 seconds. Proxies and CDNs
    /// must have longer timeouts.
    pub fn long_poll_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.long_poll = time)
    }

    /// Sets the time after which an event stream ends. Clients then reconnect, for example to the
    /// nearest cache. Each stream ends up to a tenth of this time later, at random. Default: 60
    /// seconds, as the Durable Streams protocol recommends.
    pub fn close_events_after(self, time: Duration) -> Self {
        self.with(|settings| settings.events = time)
    }

    /// Allows shared caches such as a CDN to store pages, the responses with events of a topic:
    /// `Cache-Control` is `public` instead of `private`.
    ///
    /// Use this only if all clients that reach the cache may read all topics that
    /// [`readable`](Self::readable) accepts.
    pub fn shared_caches(self) -> Self {
        self.with(|settings| settings.is_shared = true)
    }

    /// Returns the offset of the Durable Streams protocol that a client needs to read the events
    /// after the event with this id. Returns `None` if the id is not of the current log of the hub.
    ///
    /// For example, a web page that was rendered with all events up to the id can read the later
    /// events from this offset on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, hub::Hub};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let hub = Hub::new();
    /// let id = hub.topic("orders").publish(Event::new("1")).await?;
    /// let offset = hub.durable_streams().offset(&id).unwrap();
    /// assert!(offset.ends_with("_00000000000000000001"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn offset(&self, id: &EventId) -> Option<String> {
        let epoch = self.core.epoch();
        Some(offset::format(epoch, epoch.position(id).ok()?))
    }

    /// Returns the topic in the path of a request, or an error status if the method is not
    /// supported or the path has no readable topic.
    fn check(&self, request: &Parts) -> Result<Arc<str>, StatusCode> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let path = request.uri.path();
        let topic = percent_decode_str(path.strip_prefix('/').unwrap_or(path)).decode_utf8();
        match topic {
            Ok(topic)
                if !topic.is_empty()
                    && topic != "__ds"
                    && !topic.starts_with("__ds/")
                    && !topic.starts_with(RESERVED)
                    && (self.settings.readable)(&topic, request) =>
            {
                Ok(topic.into())
            }
            _ => Err(StatusCode::NOT_FOUND),
        }
    }

    async fn respond(self, topic: Arc<str>, request: Parts) -> Response<StreamBody> {
        let response = match request.method {
            Method::HEAD => self.head(&topic).await,
            _ => match Query::parse(request.uri.query().unwrap_or_default()) {
                Ok(query) => self.get(&topic, &query, &request).await,
                Err(text) => return response::error(StatusCode::BAD_REQUEST, text),
            },
        };
        response.unwrap_or_else(response::of_error)
    }

    async fn head(&self, topic: &Arc<str>) -> Result<Response<StreamBody>, ReadError> {
        let mut reading = self.open(topic, Begin::Now, Mode::CatchUp).await?;
        let is_closed = reading.is_closed().await;
        let mut response = response::uncached(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, (self.settings.content)(topic).media_type().clone());
        set_offset(headers, &offset::format(reading.epoch(), reading.position()));
        if is_closed {
            headers.insert(response::CLOSED, response::TRUE);
        }
        Ok(response)
    }

    async fn get(
        &self,
        topic: &Arc<str>,
        query: &Query<'_>,
        request: &Parts,
    ) -> Result<Response<StreamBody>, ReadError> {
        let begin = match query.offset.as_deref() {
            None | Some("-1") => Begin::Oldest,
            Some("now") => Begin::Now,
            Some(text) => {
                if let Some(backend) = &self.core.backend {
                    let is_other = |parsed| matches!(parsed, Err(InvalidOffset::OtherEpoch));
                    backend.await_log(|epoch| !is_other(offset::parse(epoch, text))).await;
                }
                let epoch = self.core.epoch();
                match offset::parse(epoch, text) {
                    Ok(position) => Begin::After(epoch, position),
                    Err(InvalidOffset::Malformed) => {
                        return Ok(response::error(StatusCode::BAD_REQUEST, "the offset is malformed"));
                    }
                    Err(InvalidOffset::OtherEpoch) => return Err(ReadError::Gap),
                }
            }
        };
        let content = (self.settings.content)(topic);
        let Settings { page_size, long_poll, events, .. } = *self.settings;
        let mut reading = self.open(topic, begin, query.mode).await?;
        let (page, rest) = match query.mode {
            Mode::Events => {
                let first = reading.first_part(&content, page_size).await?;
                let is_base64 = content.is_base64_in_events();
                let cursor = query.cursor.as_deref().map(str::to_owned);
                let events = Events::new(reading, first, content, page_size, cursor, events);
                let mut response = SseStream::new(events).into_http_response().map(StreamBody::events);
                if is_base64 {
                    response::set_base64(response.headers_mut());
                }
                return Ok(response);
            }
            Mode::LongPoll => reading.long_poll(&content, page_size, long_poll).await?,
            // The response is an empty page, and its offset stays the end of the topic at `open`,
            // even if events arrive meanwhile.
            Mode::CatchUp if begin == Begin::Now => {
                let rest = if reading.is_closed().await { Rest::Closed } else { Rest::Nothing };
                (Page::new(&content), rest)
            }
            Mode::CatchUp => reading.page(&content, page_size).await?,
        };

        let is_empty = page.count == 0;
        // A 204 means that the client has all events (§5.7 of the Durable Streams protocol), so the
        // response to an unfinished search is an empty page.
        let has_content = query.mode == Mode::CatchUp || !is_empty || rest == Rest::More;
        let mut response = response::uncached(if has_content { StatusCode::OK } else { StatusCode::NO_CONTENT });
        let headers = response.headers_mut();
        let next = offset::format(reading.epoch(), reading.position());
        set_offset(headers, &next);
        response::set_rest(headers, rest);
        if query.mode == Mode::LongPoll && rest != Rest::Closed {
            headers.insert(response::CURSOR, cursor::next(query.cursor.as_deref()).into());
        }
        if !has_content {
            return Ok(response);
        }
        headers.insert(CONTENT_TYPE, content.media_type().clone());
        let requested = (begin != Begin::Now).then(|| query.offset.as_deref().unwrap_or("-1"));
        if requested.is_some() {
            headers.insert(CACHE_CONTROL, self.cache_control(is_empty));
        }
        Ok(response::page(response, &request.headers, requested, &next, page, rest))
    }

    async fn open(&self, topic: &Arc<str>, begin: Begin, mode: Mode) -> Result<Reading, ReadError> {
        Reading::open(&self.core, topic, begin, (self.settings.existing)(topic), mode != Mode::CatchUp).await
    }

    /// Returns the `Cache-Control` header of a page, a response with a part of a topic (§10.1 of
    /// the Durable Streams protocol). A cache must revalidate a page without events for each
    /// request, because an old copy would hide new events and the end of the topic.
    fn cache_control(&self, is_empty: bool) -> HeaderValue {
        HeaderValue::from_static(match (self.settings.is_shared, is_empty) {
            (true, false) => "public, max-age=60, stale-while-revalidate=300",
            (false, false) => "private, max-age=60, stale-while-revalidate=300",
            (true, true) => "public, no-cache",
            (false, true) => "private, no-cache",
        })
    }
}

fn set_offset(headers: &mut http::HeaderMap, offset: &str) {
    if let Ok(offset) = HeaderValue::from_str(offset) {
        headers.insert(response::NEXT_OFFSET, offset);
    }
}

impl<B> Service<Request<B>> for DurableStreams {
    type Response = Response<StreamBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let (request, _) = request.into_parts();
        let is_head = request.method == Method::HEAD;
        let response: Pin<Box<dyn Future<Output = _> + Send>> = match self.check(&request) {
            Ok(topic) => Box::pin(self.clone().respond(topic, request)),
            Err(StatusCode::METHOD_NOT_ALLOWED) => {
                let text = "streams can only be read here";
                Box::pin(ready(response::error(StatusCode::METHOD_NOT_ALLOWED, text)))
            }
            Err(_) => Box::pin(ready(response::of_error(ReadError::NotFound))),
        };
        ResponseFuture { response, is_head }
    }
}

/// The future of a response of [`DurableStreams`], the service that serves topics in the Durable
/// Streams protocol. Its result is never an error.
#[must_use = "a future does nothing until it is polled"]
pub struct ResponseFuture {
    response: Pin<Box<dyn Future<Output = Response<StreamBody>> + Send>>,
    is_head: bool,
}

impl Future for ResponseFuture {
    type Output = Result<Response<StreamBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.response.as_mut().poll(cx).map(|mut response| {
            response::secure(response.headers_mut());
            if self.is_head {
                // A response to `HEAD` has no content, also if it is an error (RFC 9110, §9.3.2).
                // hyper enforces that for HTTP/1 only.
                *response.body_mut() = StreamBody::head();
            }
            Ok(response)
        })
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl fmt::Debug for DurableStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableStreams")
            .field("page_size", &self.settings.page_size)
            .field("long_poll_timeout", &self.settings.long_poll)
            .field("close_events_after", &self.settings.events)
            .field("shared_caches", &self.settings.is_shared)
            .finish_non_exhaustive()
    }
}
