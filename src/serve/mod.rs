//! A server for axum routers and tower services with many long event streams.
//!
//! [`serve`] takes the place of `axum::serve`. It has the same listeners, and serves HTTP/1.0,
//! HTTP/1.1 and HTTP/2 with prior knowledge (RFC 9113, §3.3), also after a TLS handshake with ALPN.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use tokio_util::sync::CancellationToken;
//! use tower_sse::{Event, SseLayer, SseStream};
//!
//! async fn events() -> SseStream<impl tokio_stream::Stream<Item = Event>> {
//!     SseStream::new(tokio_stream::once(Event::new("hello")))
//! }
//!
//! # async fn run() -> std::io::Result<()> {
//! let shutdown = CancellationToken::new();
//! let app = Router::new()
//!     .route("/events", get(events))
//!     .layer(SseLayer::new().shutdown(shutdown.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! tower_sse::serve(listener, app).with_graceful_shutdown(shutdown).await
//! # }
//! ```
//!
//! # Differences from `axum::serve`
//!
//! - An idle event stream over HTTP/1 has no buffers. It needs about 1.3 KB instead of 20 KB.
//! - Over HTTP/2, the response bodies of a connection run in the task of the connection. So the
//!   bytes that they send at the same time leave in one write of up to 64 KiB. Handlers run in
//!   tasks of their own, on all cores.
//! - TCP connections have `TCP_NODELAY` and a [`ClientTimeout`].
//! - A connection that sends no request is closed after a [`header_timeout`](Serve::header_timeout)
//!   of 30 seconds. Over HTTP/2, the timeout applies only to the connection preface.
//! - Handlers can extract `ConnectInfo<L::Addr>`, the address of the client. [`serve`] takes the
//!   service itself, without axum's `into_make_service_with_connect_info`.
//! - The service can be any tower service with a response body of `Bytes`, and can fail. A failure
//!   closes the connection (HTTP/1) or resets the stream (HTTP/2).
//! - A response to `HEAD` has no content over HTTP/2, even if the service returns a body.
//! - A graceful shutdown can have a [time limit](Serve::shutdown_timeout). Over HTTP/2, the [number
//!   of streams](Serve::max_concurrent_streams) of a connection can be set, and clients can get
//!   [keep-alive pings](Serve::http2_keep_alive).
//! - A client that disconnects during an event stream is noticed at once, even if it has sent more
//!   bytes after its request. Over HTTP/1, this is so while [this server
//!   writes](#event-streams-over-http1) the stream. While hyper serves the connection, for example
//!   until the handler responds, the disconnection of a client that has sent more bytes is noticed
//!   only at the next write.
//!
//! # Event streams over HTTP/1
//!
//! hyper reads all requests and writes all heads. When the head of an event stream is flushed, the
//! server takes the connection from hyper and writes the body itself. It polls the body that the
//! outermost layer returns, so layers outside of the handler apply. After the last chunk, hyper
//! serves the connection again.
//!
//! An event stream is a response with the status 200 and the content type `text/event-stream`. In
//! the following cases, hyper keeps the connection and writes the body of the event stream itself:
//!
//! - the body of the request is not read to its end when the handler responds;
//! - the request has the method `CONNECT`, or an `Upgrade` or `Transfer-Encoding` header;
//! - the response has a known length, a `Trailer` header, or a `Transfer-Encoding` header other
//!   than `chunked`.
//!
//! | limit | value | beyond it |
//! |---|---|---|
//! | one write | 256 frames, or 256 KiB plus the rest of a frame | the next write, after other tasks |
//! | bytes that wait for a slow client | one write | the body is not polled |
//! | bytes that the client sends after its request, until the stream ends | 16 KiB | all are discarded, and the connection closes after the stream |
//!
//! A client that closes only its own direction counts as disconnected, as in hyper. If a body
//! fails, the frames before the error are sent, and the connection closes without the last chunk. A
//! body that panics closes its connection (HTTP/1) or resets its stream (HTTP/2).
//!
//! # Limits of HTTP/2 connections
//!
//! | limit | value | beyond it |
//! |---|---|---|
//! | open requests | 200, or [`max_concurrent_streams`](Serve::max_concurrent_streams) | a further request is reset with `REFUSED_STREAM` |
//! | requests that the client cancels before their responses begin | per second the limit of open requests, or 100 if that is larger; at once twice as many | the connection is closed |
//! | bytes of a stream that wait for the client | 64 KiB, and up to three frames of the body or 16 KiB | the body of the stream is not polled |
//! | refused requests, and streams with protocol errors | 1,024 | h2 closes the connection (`ENHANCE_YOUR_CALM`) |
//!
//! A cancelled request is not an open request any more. Without the second limit, a client that
//! sends requests and cancels them at once would start any number of handlers ([rapid
//! reset](https://nvd.nist.gov/vuln/detail/CVE-2023-44487)). The end of an event stream is not
//! counted, however many clients of a proxy disconnect.
//!
//! # The end of a connection
//!
//! If the server closes a connection after a response, it first shuts down its own direction. Then
//! it reads and discards what the client sends, until the client closes the connection, or sends
//! nothing for one second. It reads for at most 30 seconds and 64 KiB. If the server closed a
//! connection with unread bytes of the client, the system would discard the end of the response
//! (RFC 9112, §9.6). The time limits need a runtime with timers.
//!
//! # TLS
//!
//! TLS is a `Listener` whose `Io` is a TLS stream, as for `axum::serve`. Set
//! [`ClientTimeout`] on the sockets of such a listener, because [`serve`] cannot see them.

mod cancellations;
mod chunks;
mod closing;
mod connection;
mod cork;
mod event_stream;
mod frames;
mod handover;
mod http1;
mod http2;
mod io;
mod scratch;
mod server;
mod service;
mod shutdown;
mod streams;
mod tasks;

use self::{connection::Connection, server::Server, tasks::Tasks};
use crate::{BoxError, ClientTimeout, trace};
use axum::serve::Listener;
use axum_core::body::Body as RequestBody;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
pub use shutdown::ShutdownSignal;
use std::{
    any::Any,
    fmt,
    future::poll_fn,
    io as std_io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// The default of [`Serve::header_timeout`], the time limit for the first request of a connection:
/// 30 seconds.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves an axum `Router`, or any other tower service, on a listener.
///
/// The server runs while it is awaited. Without
/// [`with_graceful_shutdown`](Serve::with_graceful_shutdown), it never returns. When the future of
/// the server is dropped, the connections of the server shut down gracefully, within the
/// [`shutdown_timeout`](Serve::shutdown_timeout) if it is set.
///
/// The [`Listener`] handles the errors of accepting a connection. axum's listeners log them, and
/// try again after one second if the process has too many open files.
///
/// See the [module](self) for examples and limits.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S>
where
    L: Listener,
{
    Serve {
        listener,
        service,
        client_timeout: Some(ClientTimeout::default()),
        header_timeout: Some(HEADER_TIMEOUT),
        http2: http2::Config::default(),
        signal: None,
        shutdown_timeout: None,
    }
}

/// A server that is not running yet. [`serve`] creates it, and `.await` runs it.
///
/// # Examples
///
/// Settings of a server with many long streams. Here, the shutdown begins at once:
///
/// ```
/// use axum::{Router, routing::get};
/// use std::time::Duration;
/// use tokio::net::TcpListener;
/// use tokio_util::sync::CancellationToken;
/// use tower_sse::{Event, SseLayer, SseStream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let shutdown = CancellationToken::new();
/// // Streams that are `finite` have 20 seconds after the signal, and other streams 250 ms.
/// let layer = SseLayer::new().shutdown(shutdown.clone()).drain_timeout(Duration::from_secs(20));
/// let events = async || SseStream::new(tokio_stream::once(Event::new("hello")));
/// let app = Router::new().route("/events", get(events)).layer(layer);
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let server = tower_sse::serve(listener, app)
///     .with_graceful_shutdown(shutdown.clone())
///     // All connections are closed 25 seconds after the signal.
///     .shutdown_timeout(Duration::from_secs(25))
///     .max_concurrent_streams(500)
///     .http2_keep_alive(Duration::from_secs(30), Duration::from_secs(20));
/// shutdown.cancel();
/// server.await
/// # }
/// ```
#[must_use = "a server runs only while it is awaited"]
pub struct Serve<L, S> {
    listener: L,
    service: S,
    client_timeout: Option<ClientTimeout>,
    header_timeout: Option<Duration>,
    http2: http2::Config,
    signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    shutdown_timeout: Option<Duration>,
}

impl<L: Listener, S> Serve<L, S> {
    /// Begins a graceful shutdown when the signal completes: a `CancellationToken` that is
    /// cancelled, or a future.
    ///
    /// The server accepts no more connections, and closes connections that have no request in
    /// progress. A request is in progress when the server has received its whole head. The server
    /// returns when all responses are complete. An event stream is complete when its body ends, so
    /// also set [`SseLayer::shutdown`](crate::SseLayer::shutdown). A client that does not read
    /// delays the return of the server until the [`ClientTimeout`] closes its connection.
    ///
    /// An HTTP/2 client learns of the shutdown from a `GOAWAY`, and has to acknowledge a `PING`.
    /// If it has no open streams and does not answer, the server closes the connection after about
    /// one second without a byte in either direction. There are these exceptions:
    ///
    /// - If a client never enlarges its flow-control window for the rest of a response, or sends
    ///   requests and never acknowledges the `PING`, the server waits for it without a time limit.
    ///   Set a [`shutdown_timeout`](Self::shutdown_timeout).
    /// - If a client sends a part of a frame and then nothing for one second, for example because
    ///   the network has lost a packet, the server drops the connection. A response that h2 has not
    ///   sent completely is then incomplete.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
    /// tower_sse::serve(listener, app)
    ///     .with_graceful_shutdown(async {
    ///         tokio::signal::ctrl_c().await.ok();
    ///     })
    ///     .await
    /// # }
    /// ```
    pub fn with_graceful_shutdown<M>(mut self, signal: impl ShutdownSignal<M>) -> Self {
        self.signal = Some(Box::pin(signal.wait()));
        self
    }

    /// Sets the timeout for clients that do not read or have vanished. Default: 30 seconds.
    ///
    /// The timeout applies to TCP connections. It sets the keep-alive options and `TCP_NODELAY`,
    /// and on Linux also `TCP_USER_TIMEOUT` and `TCP_NOTSENT_LOWAT`. If the listener has set these
    /// options, for example with axum's `tap_io`, their values are replaced.
    pub fn client_timeout(mut self, timeout: ClientTimeout) -> Self {
        self.client_timeout = Some(timeout);
        self
    }

    /// Sets no timeout for clients that do not read or have vanished. The timeouts of the operating
    /// system or of the listener apply. `TCP_NODELAY` is still set.
    pub fn without_client_timeout(mut self) -> Self {
        self.client_timeout = None;
        self
    }

    /// Sets the maximum size of the headers of an HTTP/2 request, in bytes. Default: 16 KiB. A
    /// request over this limit gets the status 431. If a request is over four times this limit, h2
    /// closes the whole connection with all its streams (`ENHANCE_YOUR_CALM`).
    ///
    /// The size counts the names and values of all headers, and 32 bytes more per header (RFC 9113,
    /// §6.5.2). The method and the URI with its query count as headers. Raise the limit if clients
    /// list hundreds of topics in a query. A URI has at most 64 KiB in any case. HTTP/1 is not
    /// affected: its requests can have a head of up to 408 KiB.
    pub fn max_header_list_size(mut self, bytes: u32) -> Self {
        self.http2.max_header_list_size = Some(bytes);
        self
    }

    /// Sets the time that a new connection has to send the head of its first request. Default: 30
    /// seconds. Then the server closes the connection without a response.
    ///
    /// The time begins when the connection is accepted. It limits connections that send nothing,
    /// and connections that send only a part of a head. Over HTTP/2, the connection preface counts
    /// as the head. The body of a request, the handler and later requests have no limit here. So a
    /// connection that has served a request can stay idle for any time, as proxies and clients with
    /// a pool of connections expect.
    ///
    /// # Panics
    ///
    /// With a header timeout, the server panics in a runtime without timers.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = Some(timeout);
        self
    }

    /// Removes the time limit for the first request of a connection, which is 30 seconds by
    /// default. `axum::serve` has no such limit either.
    pub fn without_header_timeout(mut self) -> Self {
        self.header_timeout = None;
        self
    }

    /// Sets the maximum number of streams that a client can have open at the same time over one
    /// HTTP/2 connection (`SETTINGS_MAX_CONCURRENT_STREAMS`, RFC 9113, §5.1.2). Default: 200.
    ///
    /// The [limit of cancelled requests](self#limits-of-http2-connections) follows this number. Set
    /// a larger one if the connections of a proxy or of a gRPC client end because many calls reach
    /// their deadlines.
    ///
    /// A request is open until its response has ended, so each event stream counts. A client that
    /// knows the limit delays further requests, or opens another connection. If a client does not
    /// respect the limit, its request is reset with `REFUSED_STREAM`, and the client can safely
    /// repeat it. RFC 9113 recommends at least 100 streams. All tabs of a browser share one
    /// connection, and so do many clients of a proxy that sends their requests over HTTP/2. With
    /// zero, each HTTP/2 request is refused. HTTP/1 is not affected: a connection has one request
    /// at a time.
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.http2.max_concurrent_streams = streams;
        self
    }

    /// Sends a ping to each HTTP/2 client after every `interval`, and closes the connection if the
    /// client does not answer within `timeout`. Default: no pings.
    ///
    /// TCP keep-alive and the [`ClientTimeout`] detect a client whose system does not answer. A
    /// ping (RFC 9113, §6.7) also detects a client whose program hangs or is stopped. Pings are
    /// sent even if the connection has no streams. The interval begins with the last request, the
    /// last part of a request body, or the last answer to a ping. Events that the server sends do
    /// not postpone a ping. HTTP/1 has no pings.
    ///
    /// All streams of the connection end, as if the client had closed it. The client gets a
    /// `GOAWAY`, and has one more second to close the connection, or longer if it continues to
    /// send. If the client also does not read, the server drops the connection after `interval`
    /// plus `timeout` without a written byte. A ping waits behind the bytes that the client has not
    /// read yet. So choose a `timeout` that is long enough for slow clients. An interval below one
    /// millisecond counts as one millisecond, and times over a year count as a year.
    ///
    /// See [`Serve`] for an example.
    ///
    /// # Panics
    ///
    /// With pings, the task of an HTTP/2 connection panics in a runtime without timers.
    pub fn http2_keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.http2.keep_alive = Some(http2::KeepAlive::new(interval, timeout));
        self
    }

    /// Sets the time after which a graceful shutdown closes the connections that are still open.
    /// Then the server returns `Ok`. Default: no time limit.
    ///
    /// The time begins with the signal of [`with_graceful_shutdown`](Self::with_graceful_shutdown),
    /// or when the future of the server is dropped. The timeout closes all connections: with event
    /// streams, with incomplete requests or responses, with handlers that have not responded, and
    /// with clients that do not read. If all connections end earlier, the server returns earlier.
    ///
    /// Handlers and bodies are dropped. The server returns after the last of them is dropped, so a
    /// handler that blocks its thread delays the return. A client gets an incomplete response. An
    /// `EventSource` reconnects with its last event id. [`on_close`](crate::SseLayer::on_close)
    /// reports the streams as [`ClientGone`](crate::CloseReason::ClientGone). With the feature
    /// `tracing`, the server logs the number of connections that the timeout closes.
    ///
    /// # Relation to the timeouts of a layer
    ///
    /// A [shutdown](crate::SseLayer::shutdown) of an [`SseLayer`](crate::SseLayer) ends event
    /// streams in an orderly way, with a reconnect delay and a shutdown event. The layer does so
    /// after its [`flush_time`](crate::SseLayer::flush_time) of 250 milliseconds, or for finite
    /// streams after its [`drain_timeout`](crate::SseLayer::drain_timeout). A stream that
    /// `shutdown_timeout` closes gets neither. So set `shutdown_timeout` to some seconds more than
    /// the longer of these times. In the seconds between, clients receive the last bytes.
    ///
    /// # Upgraded connections
    ///
    /// A connection that was upgraded over HTTP/1, such as a WebSocket, belongs to the application:
    /// the server neither waits for it nor closes it. Over HTTP/2, an upgraded stream is a part of
    /// its connection, so the server waits for it until the timeout.
    ///
    /// See [`Serve`] for an example. The timeout needs about 60 bytes for each connection.
    ///
    /// # Panics
    ///
    /// In a runtime without timers, the task of the timeout panics, and no connection is closed.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = Some(timeout);
        self
    }

    /// Returns the local address of the listener.
    ///
    /// # Errors
    ///
    /// Returns the error of the listener.
    pub fn local_addr(&self) -> std_io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

impl<L, S, B> Serve<L, S>
where
    L: Listener<Addr: Clone + Sync + 'static>,
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    async fn run(self) {
        let Self { mut listener, service, client_timeout, header_timeout, http2, mut signal, shutdown_timeout } = self;
        let shutdown = CancellationToken::new();
        let all_closed = CancellationToken::new();
        let open = all_closed.clone().drop_guard();
        let server = Arc::new(Server::new(shutdown.clone(), http2, header_timeout, open));
        let tasks = Tasks::new(shutdown_timeout, &shutdown, &all_closed);
        // If this future is dropped, the connections shut down gracefully, as with axum.
        let stop = shutdown.drop_guard();
        while let Some((mut io, address)) = accept(&mut listener, signal.as_mut(), &tasks).await {
            prepare(&mut io, client_timeout);
            tasks.spawn(Connection::new(Arc::clone(&server), io, address, service.clone()));
        }
        drop((stop, listener, server));
        all_closed.cancelled().await;
    }
}

/// Waits for the next connection. Meanwhile, removes the tasks of closed connections from the list
/// in `tasks`. Returns `None` if the shutdown signal completes first.
async fn accept<L: Listener>(
    listener: &mut L,
    mut signal: Option<&mut Pin<Box<dyn Future<Output = ()> + Send>>>,
    tasks: &Tasks,
) -> Option<(L::Io, L::Addr)> {
    let mut accepted = pin!(listener.accept());
    poll_fn(|cx| {
        if let Some(signal) = &mut signal {
            if signal.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
        }
        tasks.poll_ended(cx);
        accepted.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Sets `TCP_NODELAY` and the options of `client_timeout` on a TCP socket, and logs a failure.
/// Without `client_timeout`, sets only `TCP_NODELAY`. Connections of other types, such as Unix
/// sockets, are not changed.
fn prepare<I: 'static>(io: &mut I, client_timeout: Option<ClientTimeout>) {
    if let Some(tcp) = (io as &mut dyn Any).downcast_mut::<TcpStream>() {
        // The connection works without the options. On some systems, they also fail if the client
        // has disconnected already.
        let set = match client_timeout {
            Some(timeout) => timeout.apply(tcp),
            None => tcp.set_nodelay(true),
        };
        if let Err(error) = set {
            trace::socket_options_failed(&error);
        }
    }
}

impl<L, S, B> IntoFuture for Serve<L, S>
where
    L: Listener<Addr: Clone + Sync + 'static>,
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = std_io::Result<()>;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture { running: Box::pin(self.run()) }
    }
}

impl<L: fmt::Debug, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("client_timeout", &self.client_timeout)
            .field("header_timeout", &self.header_timeout)
            .field("http2", &self.http2)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish_non_exhaustive()
    }
}

/// The future of a running server. `.await` on a [`Serve`] creates it.
#[must_use = "a server runs only while it is awaited"]
pub struct ServeFuture {
    running: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for ServeFuture {
    type Output = std_io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std_io::Result<()>> {
        self.running.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for ServeFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeFuture").finish_non_exhaustive()
    }
}
