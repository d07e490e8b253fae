//! [`SseLayer`], the middleware that adds headers, heartbeats, limits and a shutdown to any event
//! stream. Its service is in `service.rs`.

use crate::{
    Event, Heartbeat, Overload, SseService, StreamRegistry, StreamSummary,
    heartbeat::HeartbeatSetting,
    limit::Limit,
    settings::{LayerOnClose, Settings},
};
use http::request::Parts;
use std::{
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;

/// Completes event streams: adds headers and heartbeats, and applies a shutdown and limits. Other
/// responses pass unchanged, except for [temporary errors of a hub](Self::when_full).
///
/// The layer works with axum, tonic and every other [`Service`](tower_service::Service) of HTTP
/// requests, and with event streams from any source: an [`SseStream`](crate::SseStream), another
/// framework's responder, or an upstream server behind a proxy.
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
/// A response is an event stream if its status is 200 and its `Content-Type` is
/// `text/event-stream`, in upper or lower case and with any parameters. A client ignores the body
/// of a response with another status (HTML standard, §9.2.2).
///
/// A response without a `Content-Type` is an event stream under three conditions. Its status is
/// 200, its length is not known, and `text/event-stream` is the only concrete media type that the
/// request accepts. The layer then adds the content type and `Vary: Accept`.
///
/// Responses to `HEAD`, and bodies that are already at their end, pass unchanged.
///
/// # What the layer does
///
/// - **Headers.** The layer adds missing headers, and keeps the values that the handler has set:
///   `Content-Type: text/event-stream`, `Cache-Control: no-cache, no-transform` and
///   `X-Accel-Buffering: no`. If the handler has set other directives of `Cache-Control`, the layer
///   adds `no-transform` to them. The content type is written in lower case. `Content-Length` is
///   removed, since heartbeats change the length.
/// - **`Connection: keep-alive`** is added on HTTP/1.1, unless the client asks to close the
///   connection or the [shutdown](Self::shutdown) of this layer has begun. A layer cannot see
///   whether the server closes the connection for another reason, such as its own graceful
///   shutdown. If a response has both `keep-alive` and `close`, `close` applies (RFC 9112, §9.3).
/// - **Heartbeats** follow each interval of silence: see [`Heartbeat`]. They are sent between the
///   lines of a stream, so a client dispatches the same events as without the layer. A stream that
///   stops in the middle of a line gets none. If the heartbeat is an event, the client dispatches
///   the heartbeats as well.
/// - **An [`SseStream`](crate::SseStream)** applies the settings of the layer in its own body. The
///   settings of its handler have precedence. Several layers never add a second heartbeat: the
///   heartbeat of the innermost layer applies.
///
/// # Compression
///
/// A compressor delays events until it has enough bytes, so the layer disables compressors on both
/// sides:
///
/// - *Inside*: a request whose `Accept` header contains `text/event-stream` is passed on with
///   `Accept-Encoding: identity`, so the response is not compressed. This also applies if the
///   response is something else, such as JSON. A range such as `*/*`, which curl and `fetch` send
///   by default, does not count as `text/event-stream`. tower-http's default predicate does not
///   compress event streams for such requests either.
/// - *Outside*: the response has a content type that compressors recognize as a stream, and
///   `no-transform`. A compressor that is configured to compress every response ignores both.
///   tower-http's compressor still delivers each event when it is sent.
///
/// An event stream with a `Content-Encoding` passes without heartbeats, because added bytes would
/// corrupt it. The values `identity` and `none` and an empty value do not count as encodings. A
/// [shutdown](Self::shutdown) or the [maximum lifetime](Self::max_lifetime) may end such a stream
/// in the middle of an event, and without a shutdown event or a reconnect delay.
///
/// # Timeouts
///
/// tower-http's `TimeoutLayer` and tower's `Timeout` limit the time until the handler has returned
/// its response. They do not end a stream, and can be inside or outside of this layer. Choose a
/// timeout that is longer than a handler can take. For example,
/// [subscribing](crate::hub::Topic::subscribe) to a hub with a backend can take about 14
/// seconds. After a timeout, the status of the response is not 200, so an `EventSource` does not
/// reconnect.
///
/// Timeouts of the body do end streams. The transfer is aborted, and clients reconnect without a
/// reconnect delay from the server.
///
/// - `ResponseBodyTimeoutLayer` limits the time between two frames. Heartbeats are frames, so put
///   it outside of this layer, with a timeout that is longer than the interval of heartbeats.
/// - `ResponseBodyDeadlineLayer` limits the whole duration. Use
///   [`max_lifetime`](Self::max_lifetime) instead, which ends a stream after its current event and
///   varies the time.
#[derive(Clone, Debug)]
#[must_use]
pub struct SseLayer {
    settings: Arc<Settings>,
}

impl SseLayer {
    /// Creates a layer with the default heartbeat, an empty comment after 15 seconds of silence.
    /// All other settings are unset.
    pub fn new() -> Self {
        Self { settings: Arc::default() }
    }

    /// Sets the heartbeat of streams whose handler sets no heartbeat.
    pub fn heartbeat(self, heartbeat: Heartbeat) -> Self {
        self.with(|settings| settings.heartbeat = HeartbeatSetting::On(heartbeat))
    }

    /// Disables the heartbeat of streams whose handler sets no heartbeat.
    ///
    /// The server still notices most clients that close their connection. It notices two kinds of
    /// clients only when a write to them fails. Their streams stay open while there is nothing to
    /// write. The first kind has lost its network. The second kind has sent further bytes after its
    /// request on an HTTP/1 connection: while such bytes wait, hyper does not notice that the
    /// connection closes.
    pub fn without_heartbeat(self) -> Self {
        self.with(|settings| settings.heartbeat = HeartbeatSetting::Off)
    }

    /// Sets the reconnect delay that each stream sends first, in whole milliseconds. The delay that
    /// a handler sets has precedence. By default, no delay is sent, and clients use their own delay
    /// of some seconds.
    pub fn retry(self, delay: Duration) -> Self {
        self.with(|settings| settings.retry = Some(delay))
    }

    /// Ends every stream when the token is cancelled. Streams continue for the
    /// [flush time](Self::flush_time), 250 milliseconds, so that clients get the last published
    /// events. After that, an [`SseStream`](crate::SseStream) still sends the items that are ready,
    /// for example to a client that is behind: at most 256 frames, each with up to 64 items and
    /// 16 KiB, or with one larger item. A stream whose body is first polled after the shutdown ends
    /// without any item.
    ///
    /// Before its end, the stream sends a reconnect delay with [jitter](Self::reconnect_jitter) and
    /// the [shutdown event](Self::shutdown_event). Because all streams end, the graceful shutdown
    /// of axum and hyper, which waits for every response, completes by itself.
    ///
    /// A stream that is not an [`SseStream`](crate::SseStream), for example of another framework or
    /// a proxied server, may be in the middle of an event. It then has another 250 milliseconds to
    /// complete the event. After that, the event is cut off, and the client discards the incomplete
    /// event.
    ///
    /// If the handler's stream ends or fails after the token is cancelled, for example because the
    /// handler uses the same token, the client gets the reconnect delay and the shutdown event,
    /// too, instead of an aborted response or the event of
    /// [`end_with`](crate::SseStream::end_with). This does not hold for
    /// [finite](crate::SseStream::finite) streams.
    ///
    /// With several layers, the stream ends when the token of any layer is cancelled.
    ///
    /// If a client stops reading and the buffers of its connection are full, its response stays
    /// open. The response then blocks the graceful shutdown until the connection breaks. A client
    /// that reads slowly delays it until the client has read the last items. Put a timeout on the
    /// graceful shutdown.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use axum::Router;
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::SseLayer;
    ///
    /// # async fn serve(app: Router, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    /// let shutdown = CancellationToken::new();
    /// let app = app.layer(SseLayer::new().shutdown(shutdown.clone()));
    /// axum::serve(listener, app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         shutdown.cancel();
    ///     })
    ///     .await
    /// # }
    /// ```
    pub fn shutdown(self, token: CancellationToken) -> Self {
        self.with(|settings| settings.shutdown = Some(token))
    }

    /// Sets how long streams continue after a [shutdown](Self::shutdown), so that clients get the
    /// last events. An event that was published before the shutdown may still be in a log, a
    /// channel or a database query. Default: 250 milliseconds. With zero, a stream ends as soon as
    /// it has no item that is ready.
    ///
    /// Finite streams have the [drain timeout](Self::drain_timeout) instead, if it is set.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::SseLayer;
    ///
    /// // Slow queries: a stream gets a second for the last one.
    /// let layer = SseLayer::new().flush_time(Duration::from_secs(1)).shutdown(CancellationToken::new());
    /// ```
    pub fn flush_time(self, time: Duration) -> Self {
        self.with(|settings| settings.flush_time = Some(time))
    }

    /// Sends this event before the end of a stream at a [shutdown](Self::shutdown), so that pages
    /// know the reason.
    ///
    /// The event is sent without its id, because no client can resume from the shutdown event. A
    /// stream that is not an [`SseStream`](crate::SseStream) and cannot complete its current event
    /// ends without the shutdown event.
    ///
    /// If clients can resume the stream, begin it with an id, for example an [`Event::checkpoint`].
    /// Otherwise the shutdown event can arrive before the first id of a stream. A client that has
    /// reconnected then forgets the last id of its previous stream (HTML standard, §9.2.6).
    /// Chromium and Firefox keep the id in this case.
    ///
    /// A stream that begins after the shutdown is not polled, so its checkpoint is not sent, and
    /// the shutdown event is its only event. There are two exceptions. A subscription to a hub also
    /// sends its first id. A [finite](crate::SseStream::finite) stream continues for the
    /// [drain timeout](Self::drain_timeout), if set.
    ///
    /// Most streams of a hub begin with an id. Those that begin with a gap event or a snapshot, and
    /// those [without control events](crate::hub::Subscription::without_control_events), have no id
    /// before their first event. If such a stream ends before its first event, a client that may
    /// have an id gets the reconnect delay without the shutdown event. Only the subscription knows
    /// whether the client may have an id. So the event is left out only if the response could ask
    /// the subscription: through `size_hint`, if all adapters around the subscription forward
    /// `size_hint`, or in a poll before the shutdown. A [listener](crate::hub::Hub::listen) is not
    /// asked, so its stream always sends the event. The last events of
    /// [`end_when`](crate::SseStream::end_when) and of a [`StreamRegistry`] are always sent.
    ///
    /// # Examples
    ///
    /// A page shows that the server restarts. Without the event, it cannot distinguish the restart
    /// from a network failure:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tower_sse::{SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let news = || async { SseStream::new(tokio_stream::pending::<Event>()) };
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::{Event, SseLayer};
    ///
    /// // In the page: source.addEventListener("restart", () => show("The server restarts …"));
    /// let shutdown = CancellationToken::new();
    /// let layer = SseLayer::new().shutdown(shutdown.clone()).shutdown_event(Event::new("").event("restart"));
    /// let app: Router = Router::new().route("/news", get(news)).layer(layer);
    ///
    /// let mut events = test::get(app, "/news").await;
    /// shutdown.cancel();
    /// assert_eq!(events.rest().await, [Event::new("").event("restart")]);
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn shutdown_event(self, event: Event) -> Self {
        self.with(|settings| settings.shutdown_event = Some(event.without_id().encode()))
    }

    /// Adds a random time of up to `jitter` to reconnect delays. So clients that are disconnected
    /// together do not all reconnect at the same time.
    ///
    /// - At a [shutdown](Self::shutdown), and in an [`Overload::RetryLater`] response, a client
    ///   gets the delay of [`retry`](Self::retry) plus the random time. The delay is one second if
    ///   `retry` is not set. By default, the random time here is up to five seconds. The same
    ///   random time is added to the delay of the response [`RetryLater`](crate::RetryLater).
    /// - At the beginning of each stream, a client gets the delay of [`retry`](Self::retry) plus
    ///   the random time. This spreads the clients that a crash disconnects. By default, there is
    ///   no random time here.
    ///
    /// A client keeps the last delay that it received. If `retry` is not set on the next stream of
    /// the client, the client keeps the delay of the shutdown or rejection.
    ///
    /// # Examples
    ///
    /// After a deploy, 20,000 clients return within a minute, and not all in the same second:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let news = || async { SseStream::new(tokio_stream::pending::<Event>()) };
    /// use std::time::Duration;
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::SseLayer;
    ///
    /// let shutdown = CancellationToken::new();
    /// let layer = SseLayer::new()
    ///     .shutdown(shutdown.clone())
    ///     .retry(Duration::from_secs(2))
    ///     .reconnect_jitter(Duration::from_secs(60));
    /// let app: Router = Router::new().route("/news", get(news)).layer(layer);
    ///
    /// let mut events = test::get(app, "/news").await;
    /// shutdown.cancel();
    /// events.rest().await;
    /// let delay = events.retry().unwrap();
    /// assert!(delay >= Duration::from_secs(2) && delay <= Duration::from_secs(62));
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn reconnect_jitter(self, jitter: Duration) -> Self {
        self.with(|settings| settings.jitter = Some(jitter))
    }

    /// Ends each stream after this time, which varies at random by up to 10 % in both directions. A
    /// stream first finishes its current event. An upstream stream has 250 milliseconds for this.
    /// Clients then reconnect by themselves, possibly to another server, and authenticate again.
    /// The stream sends no last event: a client of a language model may take its end for the end of
    /// the answer.
    ///
    /// With several layers, the shortest lifetime applies.
    ///
    /// # Examples
    ///
    /// The handler authenticates each request. With a maximum lifetime, a user who has lost a
    /// permission loses the stream, too, after 11 minutes at the latest:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// # let news = || async { SseStream::new(tokio_stream::pending::<Event>()) };
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    /// use tower_sse::SseLayer;
    ///
    /// let layer = SseLayer::new().max_lifetime(Duration::from_secs(10 * 60));
    /// let app: Router = Router::new().route("/news", get(news)).layer(layer);
    ///
    /// // In a test with paused time:
    /// let begin = Instant::now();
    /// let mut events = test::get(app, "/news").await.deadline(Duration::from_secs(15 * 60));
    /// assert!(events.next().await.is_none());
    /// assert!((9 * 60..=11 * 60).contains(&begin.elapsed().as_secs()));
    /// # }
    /// # main();
    /// # }
    /// ```
    ///
    /// [`StreamRegistry::close`] ends the streams of a user immediately.
    pub fn max_lifetime(self, time: Duration) -> Self {
        self.with(|settings| settings.max_lifetime = Some(time))
    }

    /// Limits the number of streams that are open at the same time. Open streams are never closed
    /// to admit a new one.
    ///
    /// Clones of the layer and of its services share the limit. A response counts from the time
    /// when the handler returns it until its body is dropped. So the handler also runs for requests
    /// over the limit. [`when_full`](Self::when_full) sets the response for these requests.
    pub fn max_streams(self, streams: usize) -> Self {
        self.with(|settings| settings.add_limit(Limit::of_all(streams)))
    }

    /// Limits the number of streams that are open at the same time per key: an address, a user, a
    /// tenant.
    ///
    /// `key` reads the key from the head of every request. If it returns `None`, the request is not
    /// limited. The layer stores no key, only its hash with a random seed. So clients cannot choose
    /// keys that collide. If this setting is combined with [`max_streams`](Self::max_streams) or
    /// called several times, a stream has to be within all limits.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::extract::ConnectInfo;
    /// use std::net::SocketAddr;
    /// use tower_sse::SseLayer;
    ///
    /// // With `into_make_service_with_connect_info`, which puts the address into the extensions.
    /// let layer = SseLayer::new().max_streams(10_000).max_streams_per(20, |parts| {
    ///     parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
    /// });
    /// ```
    pub fn max_streams_per<K: Hash>(
        self,
        streams: usize,
        key: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.add_limit(Limit::per(streams, key)))
    }

    /// Sets the response for requests over a stream limit. The default is [`Overload::Auto`]: an
    /// `EventSource` reconnects later, and other clients get a status.
    ///
    /// # Temporary errors of a hub
    ///
    /// A response to a `hub::Error` that is temporary, such as an outage of its backend, is a 503,
    /// which stops an `EventSource` for good. The layer replaces this response with that of
    /// [`Overload::RetryLater`] if the request is a `GET` whose `Accept` header names
    /// `text/event-stream` and no other media type. With [`Overload::ServiceUnavailable`], the
    /// response stays. An inner layer that is set to a variant has precedence.
    ///
    /// # Examples
    ///
    /// The handler returns the error of the hub. The hub is full, and the `EventSource` reconnects
    /// after 30 to 60 seconds:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "hub"))] {
    /// use axum::{Router, body::Body, extract::State, http::Request, routing::get};
    /// use std::time::Duration;
    /// use tower::ServiceExt;
    /// use tower_sse::{LastEventId, SseLayer, hub::{Error, Hub, Subscription}};
    ///
    /// async fn news(State(hub): State<Hub>, last: LastEventId) -> Result<Subscription, Error> {
    ///     hub.topic("news").subscribe(last).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let hub = Hub::builder().max_topics(0).build();
    /// let half_a_minute = Duration::from_secs(30);
    /// let layer = SseLayer::new().retry(half_a_minute).reconnect_jitter(half_a_minute);
    /// let app = Router::new().route("/news", get(news)).layer(layer).with_state(hub);
    ///
    /// for (accept, status) in [("text/event-stream", 200), ("*/*", 503)] {
    ///     let request = Request::get("/news").header("accept", accept).body(Body::empty()).unwrap();
    ///     assert_eq!(app.clone().oneshot(request).await.unwrap().status(), status);
    /// }
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn when_full(self, answer: Overload) -> Self {
        self.with(|settings| settings.when_full = Some(answer))
    }

    /// Registers each stream under the key of its request, so that the application can
    /// [end the streams of a key](StreamRegistry). If `key` returns `None`, the request is not
    /// registered.
    ///
    /// The key is read from the head of every request, before the inner service sees the request.
    /// The registry can close the request from then on. It counts an
    /// [open stream](StreamRegistry#open-streams) from the moment when an event stream passes this
    /// layer.
    ///
    /// The stream stays registered until its body is dropped. Then it is removed from the registry
    /// before the [`on_close`](Self::on_close) callbacks run. So the number of the streams of a key
    /// is 0 in the callback of the last open stream. A request of the same key that is still in its
    /// handler does not count. So mark a user as present when the stream is polled for the first
    /// time, and not in the handler.
    ///
    /// If several layers register a stream under the same key, the stream counts once. While the
    /// response passes one of the outer layers, it can count twice for a moment. It also counts
    /// twice if one layer registers it twice, or if a middleware between the layers polls the body
    /// before it returns the response.
    ///
    /// # Examples
    ///
    /// The layer is around the whole router, so a request is registered before its handler checks
    /// the token. [This order](StreamRegistry#guarantee) matters when a token is revoked at the
    /// same time.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, body::Body, http::Request, routing::get};
    /// # use tower::ServiceExt;
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let news = || async { SseStream::new(tokio_stream::pending::<Event>()) };
    /// use tower_sse::{SseLayer, StreamRegistry};
    ///
    /// let streams = StreamRegistry::<String>::new();
    /// let layer = SseLayer::new().register(&streams, |request| {
    ///     let token = request.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
    ///     Some(token.to_owned())
    /// });
    /// let app: Router = Router::new().route("/news", get(news)).layer(layer);
    ///
    /// let request = Request::get("/news").header("Authorization", "Bearer t7").body(Body::empty()).unwrap();
    /// let mut events = test::events(app.oneshot(request).await.unwrap());
    /// let token = "t7".to_owned();
    /// assert_eq!(streams.count(&token), 1);
    ///
    /// // After the token was revoked:
    /// streams.close(&token);
    /// assert!(events.next().await.is_none());
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn register<K>(
        self,
        registry: &StreamRegistry<K>,
        key: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    ) -> Self
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        let registry = registry.clone();
        let register = move |parts: &Parts| key(parts).and_then(|key| registry.register(key));
        self.with(|settings| settings.registrars.push(Arc::new(register)))
    }

    /// Sets the time that a [`finite`](crate::SseStream::finite) stream may continue after a
    /// [shutdown](Self::shutdown), instead of the [flush time](Self::flush_time). A handler, or a
    /// [layer](Self::finite) for all its streams, declares that a stream is finite if it ends by
    /// itself. A stream that has not ended within this time ends like every other stream. A stream
    /// that ends by itself within this time sends neither a reconnect delay nor the shutdown event.
    ///
    /// A finite stream that begins after the shutdown also gets this time.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::{Event, SseLayer, SseStream};
    ///
    /// let shutdown = CancellationToken::new();
    /// let layer = SseLayer::new().shutdown(shutdown).drain_timeout(Duration::from_secs(30));
    /// // In a handler behind this layer:
    /// # let tokens = tokio_stream::empty::<Event>();
    /// let answer = SseStream::new(tokens).finite();
    /// ```
    pub fn drain_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.drain_timeout = Some(time))
    }

    /// Declares that all streams behind this layer end by themselves, like
    /// [`SseStream::finite`](crate::SseStream::finite). At a [shutdown](Self::shutdown), they may
    /// continue for the [drain timeout](Self::drain_timeout). A proxy needs this for the answers of
    /// a language model: the handler of a proxied stream cannot declare it. The guide
    /// `docs/gateways.md` has further advice for proxies.
    ///
    /// # Examples
    ///
    /// Answers may continue for 30 seconds, and other streams end after the flush time:
    ///
    /// ```
    /// use axum::{Router, routing::{get, post}};
    /// use std::time::Duration;
    /// use tokio_util::sync::CancellationToken;
    /// use tower_sse::SseLayer;
    /// # async fn proxy() {}
    /// # async fn news() {}
    ///
    /// let stop = CancellationToken::new();
    /// let app: Router = Router::new()
    ///     .route("/v1/chat", post(proxy).layer(SseLayer::new().finite()))
    ///     .route("/news", get(news))
    ///     .layer(SseLayer::new().shutdown(stop).drain_timeout(Duration::from_secs(30)));
    /// ```
    pub fn finite(self) -> Self {
        self.with(|settings| settings.is_finite = true)
    }

    /// Calls `f` exactly once with the summary of each stream, when the body of the stream is
    /// dropped: after its end, when the client is gone, or when the response was never sent.
    /// Requests that a limit of this layer rejects are not reported, and neither are responses that
    /// are not event streams, such as the `204 No Content` of a finished subscription. A stream
    /// that a layer outside of this one rejects is reported as
    /// [`ClientGone`](crate::CloseReason::ClientGone), without bytes.
    ///
    /// `f` does not know the request. To account streams per user or API key, use
    /// [`on_close_with`](Self::on_close_with). If the callback needs a value of the handler, such
    /// as a topic, use [`SseStream::on_close`](crate::SseStream::on_close) in the handler. An
    /// upstream stream has no such callback, unless the handler decodes it into an `SseStream`.
    ///
    /// `f` runs on the thread that drops the body, so it should return quickly. It runs after the
    /// callback of the handler. If `f` panics, the panic is caught, and the other callbacks still
    /// run.
    ///
    /// A second call replaces `f`. With several layers, the callbacks of all layers run, from the
    /// innermost to the outermost. Clones of a layer share a callback, which runs once per stream.
    ///
    /// # Examples
    ///
    /// The callback sends the summary to another task or thread, which writes it to a database:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tokio_stream::StreamExt;
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let hello = || tokio_stream::once(Event::new("hello")).chain(tokio_stream::pending());
    /// # let news = move || async move { SseStream::new(hello()) };
    /// use tokio::sync::mpsc;
    /// use tower_sse::{CloseReason, SseLayer};
    ///
    /// let (sender, mut closed) = mpsc::unbounded_channel();
    /// let layer = SseLayer::new().on_close(move |stream| _ = sender.send(stream));
    /// let app: Router = Router::new().route("/news", get(news)).layer(layer);
    ///
    /// let mut events = test::get(app, "/news").await;
    /// events.next().await;
    /// drop(events); // The client leaves.
    /// let stream = closed.recv().await.unwrap();
    /// assert_eq!((stream.reason, stream.events), (CloseReason::ClientGone, 1));
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn on_close(self, f: impl Fn(StreamSummary) + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.on_close = Some(Arc::new(f)))
    }

    /// Calls `f` exactly once with the summary of each stream, like [`on_close`](Self::on_close),
    /// and with a value of its request. A gateway can account its streams per API key in this way,
    /// also upstream streams that pass unchanged.
    ///
    /// `read` reads the value from the head of every request, before the inner service sees the
    /// request. So each request costs an allocation, also if its response is not an event stream.
    /// The stream keeps the value until its end. A clone of a header value can keep the memory of
    /// the whole head alive, so convert it into a `String` or a number. If the stream is not
    /// reported, for example because a limit of this layer rejects the request, the value is
    /// dropped.
    ///
    /// A second call replaces `read` and `f`. The callback of [`on_close`](Self::on_close) is
    /// independent, and runs before `f`. If a stream passes a layer and a clone of the layer, `f`
    /// is called once, with the value that the outer of the two has read.
    ///
    /// # Examples
    ///
    /// The layer adds up the bytes of the streams of each API key:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, body::Body, http::Request, http::header::CONTENT_TYPE, routing::get};
    /// # use tower::ServiceExt;
    /// # use tower_sse::test;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use std::{collections::HashMap, sync::{Arc, Mutex}};
    /// use tower_sse::SseLayer;
    ///
    /// let bytes = Arc::new(Mutex::new(HashMap::<String, u64>::new()));
    /// let sum = Arc::clone(&bytes);
    /// let layer = SseLayer::new().on_close_with(
    ///     |request| Some(request.headers.get("x-api-key")?.to_str().ok()?.to_owned()),
    ///     move |key, stream| *sum.lock().unwrap().entry(key.unwrap_or_default()).or_default() += stream.bytes,
    /// );
    /// // A proxy returns the headers and the body of an upstream response.
    /// let proxy = async || ([(CONTENT_TYPE, "text/event-stream")], "data: hello\n\n");
    /// let app: Router = Router::new().route("/news", get(proxy)).layer(layer);
    ///
    /// let request = Request::get("/news").header("X-Api-Key", "k7").body(Body::empty()).unwrap();
    /// test::events(app.oneshot(request).await.unwrap()).rest().await;
    /// assert_eq!(bytes.lock().unwrap()["k7"], 13);
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn on_close_with<T: Send + 'static>(
        self,
        read: impl Fn(&Parts) -> T + Send + Sync + 'static,
        f: impl Fn(T, StreamSummary) + Send + Sync + 'static,
    ) -> Self {
        let f = Arc::new(f);
        let on_close_with = move |parts: &Parts| -> LayerOnClose {
            let (f, value) = (Arc::clone(&f), Mutex::new(Some(read(parts))));
            Arc::new(move |summary| {
                let value = value.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(value) = value {
                    f(value, summary);
                }
            })
        };
        self.with(|settings| settings.on_close_with = Some(Arc::new(on_close_with)))
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
        SseService::new(inner, Arc::clone(&self.settings))
    }
}
