//! [`SseStream`], the response of server-sent events that a handler returns.

use crate::{
    BoxError, Event, Heartbeat, SseItem, StreamSummary,
    body::{LayerLink, Options, SseBody},
    headers,
    heartbeat::HeartbeatSetting,
    preamble::Preamble,
};
use http::{HeaderValue, Response, StatusCode, header::CACHE_CONTROL};
use std::{fmt, sync::Mutex, time::Duration};
use tokio::time::Instant;
use tokio_stream::Stream;

/// A response of server-sent events, made of a plain stream.
///
/// The items of the stream are [`Event`]s, [`EncodedEvents`](crate::EncodedEvents), or `Result`s of
/// these. [`SseStream::json`] accepts a stream of values that serialize to JSON, and
/// [`SseStream::try_json`] accepts a stream of `Result`s of such values. An `SseStream` is an axum
/// response (feature `axum`). For tower and hyper, [`into_http_response`](Self::into_http_response)
/// converts it into an [`http::Response`].
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get};
/// use std::time::Duration;
/// use tokio_stream::{Stream, StreamExt, wrappers::IntervalStream};
/// use tower_sse::{Event, SseStream};
///
/// async fn ticks() -> SseStream<impl Stream<Item = Event>> {
///     let seconds = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
///     let mut count = 0_u64;
///     SseStream::new(seconds.map(move |_| {
///         count += 1;
///         Event::display(count).event("tick").id(count)
///     }))
/// }
///
/// let app: Router = Router::new().route("/ticks", get(ticks));
/// # }
/// ```
///
/// # Default behavior
///
/// Without any layer, the response has the status 200 and the headers `Content-Type`,
/// `Cache-Control` and `X-Accel-Buffering`. The first byte is sent immediately (a comment if there
/// is no event yet). A [`Heartbeat`] follows after every 15 seconds of silence. Only the
/// [`SseLayer`](crate::SseLayer) sets `Connection`, because it knows the HTTP version.
///
/// Events that are ready at the same time are sent as one frame. So a stream that is always ready
/// and needs a long time for each item should yield to the runtime between its items.
///
/// # When the stream ends
///
/// An `EventSource` treats the end of a response like a lost connection and reconnects. It sends
/// the last id that it has received in the header `Last-Event-ID`. To end the stream for good, send
/// an event that makes the page close its `EventSource` ([`end_with`](Self::end_with)). If a client
/// reconnects nevertheless, respond with [`StopReconnecting`]. For a client that should try again
/// later, respond with [`RetryLater`](crate::RetryLater).
///
/// # Different streams from one handler
///
/// `SseStream<impl Stream>` is a single type, but two branches of a handler often have streams of
/// different types. Set the options of each response, and then convert each response with axum's
/// `into_response`:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// # fn tokens() -> impl Stream<Item = Event> + Send { tokio_stream::empty() }
/// use axum::response::{IntoResponse, Response};
/// use tokio_stream::Stream;
/// use tower_sse::{Event, SseStream};
///
/// async fn answer(cached: Option<String>) -> Response {
///     match cached {
///         Some(text) => SseStream::new(tokio_stream::once(Event::new(text))).into_response(),
///         None => SseStream::new(tokens()).finite().into_response(),
///     }
/// }
/// # drop(answer(None));
/// # }
/// ```
///
/// To apply the same options to all branches, box their streams instead. A
/// `Pin<Box<dyn Stream<Item = Event> + Send>>` is a stream of events, too.
#[must_use = "a stream does nothing until it is returned as a response"]
pub struct SseStream<S> {
    stream: S,
    /// The settings that the handler has made for this stream, such as a heartbeat. They are boxed
    /// because most handlers set nothing.
    options: Option<Box<Options>>,
    preamble: Preamble,
}

impl<S> SseStream<S> {
    /// Creates a response from a stream of events.
    ///
    /// The response of a [`Subscription`](crate::hub::Subscription) to a hub begins with an event
    /// that contains the cursor: the id where the client resumes. If all topics of the subscription
    /// are finished and the client has received all events, the response is `204 No Content`
    /// instead. Adapters such as `map` or `merge`
    /// [keep the cursor and the 204](crate::hub::Subscription#adapters).
    pub fn new(stream: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        Self { preamble: Preamble::of(&stream), stream, options: None }
    }

    /// Replaces the stream by the stream that `f` returns, for example the same stream inside an
    /// adapter.
    ///
    /// The settings of the response are kept. If the old stream is a
    /// [`Subscription`](crate::hub::Subscription) to a hub, the response still begins with the
    /// event that contains the cursor, the id where the client resumes. The response is still
    /// `204 No Content` if all topics of the subscription are finished and the client has received
    /// all events. Neither depends on the stream that `f` returns.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "hub")] {
    /// use futures_util::StreamExt;
    /// use tower_sse::{SseStream, hub::Subscription};
    ///
    /// fn until_logout(news: Subscription, logout: impl Future<Output = ()> + Send + 'static) {
    ///     let response = SseStream::new(news).map_stream(|news| news.take_until(logout));
    /// }
    /// # }
    /// ```
    pub fn map_stream<T>(self, f: impl FnOnce(S) -> T) -> SseStream<T>
    where
        T: Stream + Send + 'static,
        T::Item: SseItem,
    {
        SseStream { stream: f(self.stream), options: self.options, preamble: self.preamble }
    }

    /// Sets the heartbeat of this stream, which overrides the heartbeat of layers. The default is a
    /// comment after 15 seconds of silence.
    pub fn heartbeat(self, heartbeat: Heartbeat) -> Self {
        self.with(|options| options.heartbeat = HeartbeatSetting::On(heartbeat))
    }

    /// Disables the heartbeat of this stream, including the heartbeat of layers, and the comment
    /// that is otherwise sent before the first event. A delay of [`retry`](Self::retry) is still
    /// sent immediately, and so is the cursor of a subscription to a hub: the id where the client
    /// resumes.
    ///
    /// The server still notices most clients that close their connection. It notices two kinds of
    /// clients only when a write fails, and keeps their silent streams until then. The first kind
    /// has lost its network. The second kind has sent more bytes after its request on an HTTP/1
    /// connection, and then closed the connection. The server of the feature `serve` usually
    /// notices the second kind at once.
    pub fn without_heartbeat(self) -> Self {
        self.with(|options| options.heartbeat = HeartbeatSetting::Off)
    }

    /// Sets the reconnect delay that the stream sends first, in whole milliseconds. It overrides
    /// the delay of layers.
    ///
    /// By default, clients use their own delay of some seconds.
    pub fn retry(self, delay: Duration) -> Self {
        self.with(|options| options.rare().retry = Some(delay))
    }

    /// Sets the last event, which is sent if the stream ends by itself and without an error.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream};
    /// # let steps = tokio_stream::empty::<Event>();
    /// // In the page: source.addEventListener("close", () => source.close());
    /// SseStream::new(steps).end_with(Event::default().event("close"))
    /// # ;
    /// ```
    pub fn end_with(self, event: Event) -> Self {
        self.with(|options| options.rare().end_with = Some(event))
    }

    /// Maps an error of the stream to a final event, followed by a clean end of the response. If
    /// `f` returns `None`, the body fails and the transfer is aborted. That is also the default
    /// without `on_error`.
    ///
    /// All events before the error are sent first. Before an abort, the transport has 250
    /// milliseconds to flush them, because hyper drops its buffers when a body fails. `f` is also
    /// the place to log the error.
    ///
    /// An `EventSource` reconnects after an abort and also after a clean end. It sends its request
    /// again, without limit, so the handler calls the database or the model again. To prevent this,
    /// let the page close its `EventSource` when it receives the final event.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream};
    /// # let tokens = tokio_stream::iter([Ok(Event::new("Hel")), Err(std::io::Error::other("model gone"))]);
    /// SseStream::new(tokens).on_error(|error| {
    ///     eprintln!("answer cut short: {error}");
    ///     Some(Event::display(error).event("error"))
    /// })
    /// # ;
    /// ```
    pub fn on_error(self, f: impl FnOnce(&BoxError) -> Option<Event> + Send + 'static) -> Self {
        self.with(|options| options.rare().on_error = Mutex::new(Some(Box::new(f))))
    }

    /// Calls `f` exactly once, when the body of the response is dropped: after the end of the
    /// stream, when the client is gone, or when the response was never sent. This includes the
    /// `204 No Content` of a finished subscription, with the reason `Finished`.
    ///
    /// `f` runs on the thread that drops the body, so it should return quickly. If `f` panics, the
    /// panic is caught, and the callbacks of [`SseLayer::on_close`](crate::SseLayer::on_close)
    /// still run. A second call replaces `f`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream};
    /// # let tokens = tokio_stream::empty::<Event>();
    /// SseStream::new(tokens).on_close(|summary| {
    ///     println!("{} after {:?}: {} events", summary.reason, summary.duration, summary.events);
    /// })
    /// # ;
    /// ```
    pub fn on_close(self, f: impl FnOnce(StreamSummary) + Send + 'static) -> Self {
        self.with(|options| options.rare().end().on_close = Some((Instant::now(), Box::new(f))))
    }

    /// Ends the stream when this future completes. If the future returns an event, the stream sends
    /// that event before the end.
    ///
    /// Events that the stream has already returned are sent first. The event of
    /// [`end_with`](Self::end_with) is not sent. The [reason](crate::CloseReason) of the end is
    /// `Ended`. A second call of this method replaces the future.
    ///
    /// To end all streams of a user, use a [`StreamRegistry`](crate::StreamRegistry).
    ///
    /// # Examples
    ///
    /// The stream ends when the access token of the client expires:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_sse::{Event, SseStream};
    /// # let news = tokio_stream::pending::<Event>();
    /// # let expires_in = Duration::from_secs(900);
    /// SseStream::new(news).end_when(async move {
    ///     tokio::time::sleep(expires_in).await;
    ///     Some(Event::new("").event("token-expired"))
    /// })
    /// # ;
    /// ```
    pub fn end_when(self, future: impl Future<Output = Option<Event>> + Send + 'static) -> Self {
        self.with(|options| options.rare().end().end_when = Some(Box::pin(future)))
    }

    /// Ends the stream after exactly this time, without jitter. The time begins when the body is
    /// first polled. Clients reconnect by themselves.
    ///
    /// A layer can set a [lifetime](crate::SseLayer::max_lifetime) for all of its streams, with a
    /// jitter. If the layer and the handler both set a lifetime, the shorter one applies.
    pub fn max_lifetime(self, time: Duration) -> Self {
        self.with(|options| options.rare().end().max_lifetime = Some(time))
    }

    /// Declares that the stream ends by itself after a limited time, for example the answer of a
    /// language model. At a shutdown, the stream may then continue for the
    /// [drain timeout](crate::SseLayer::drain_timeout) of the layer. If it ends within this time,
    /// the client gets neither a reconnect delay nor the shutdown event.
    pub fn finite(self) -> Self {
        self.with(|options| options.rare().end().is_finite = true)
    }

    /// Converts this value into an [`http::Response`], for tower and hyper. In an axum handler,
    /// return the `SseStream` itself, or call axum's `into_response`, which boxes the body.
    ///
    /// A middleware that puts the body into a new response should keep the extensions of the old
    /// response. An [`SseLayer`](crate::SseLayer) needs them to recognize the body and the settings
    /// of the handler.
    ///
    /// # Examples
    ///
    /// A service for hyper, without any framework:
    ///
    /// ```
    /// use http::{Request, Response};
    /// use std::convert::Infallible;
    /// use tokio_stream::Iter;
    /// use tower_sse::{Event, SseBody, SseStream};
    ///
    /// type Events = Iter<std::array::IntoIter<Event, 2>>;
    ///
    /// let service = tower::service_fn(async |_: Request<()>| -> Result<Response<SseBody<Events>>, Infallible> {
    ///     let events = tokio_stream::iter([Event::new("hello"), Event::new("world")]);
    ///     Ok(SseStream::new(events).into_http_response())
    /// });
    /// # let _ = service;
    /// ```
    #[must_use]
    pub fn into_http_response(self) -> Response<SseBody<S>> {
        if self.preamble.is_over {
            return no_content(SseBody::ended(self.options));
        }
        let (link, handle) = LayerLink::open();
        let body = SseBody::new(self.stream, self.options, link).beginning_with(self.preamble);
        let mut response = Response::new(body);
        headers::complete(response.headers_mut());
        response.extensions_mut().insert(handle);
        response
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(self.options.get_or_insert_default());
        self
    }
}

impl<S> fmt::Debug for SseStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseStream").finish_non_exhaustive()
    }
}

/// The response for a client that should not reconnect: `204 No Content`, which caches do not
/// store.
///
/// An `EventSource` that receives it stops (HTML standard, §9.2.1). The page gets an `error` event,
/// and the `readyState` is `CLOSED`.
///
/// # Examples
///
/// ```
/// use tokio_stream::Stream;
/// use tower_sse::{Event, LastEventId, SseStream, StopReconnecting};
///
/// async fn progress(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, StopReconnecting> {
///     if last.as_str() == Some("done") {
///         return Err(StopReconnecting);
///     }
///     Ok(SseStream::new(tokio_stream::once(Event::new("100 %").id("done"))))
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "it does nothing until it is returned as a response"]
pub struct StopReconnecting;

impl StopReconnecting {
    /// Converts this value into an [`http::Response`], for tower and hyper. In an axum handler,
    /// return the value itself.
    #[must_use]
    pub fn into_http_response(self) -> Response<String> {
        no_content(String::new())
    }
}

/// Creates a `204 No Content` response that caches must not store. A cache could otherwise return
/// it to a client that has received nothing yet, because a 204 is cacheable by default (RFC 9110
/// section 15.1).
fn no_content<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
