//! An HTTP/2 connection, whose streams run in the task of the connection.

use super::{
    cancellations::{Cancellations, Cancelled},
    cork::{Cork, Corked},
    io::Rewound,
    server::{Peer, Server},
    service::{Address, App, Call, with_connect_info},
    streams::{Spawner, Streams},
};
use crate::{BoxError, trace};
use axum_core::body::Body as RequestBody;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::http2::{Builder, Connection},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// The settings of the HTTP/2 connections of a server: limits, and keep-alive pings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    /// The maximum size of the headers of a request, in bytes. `None` is hyper's default.
    pub(super) max_header_list_size: Option<u32>,
    /// The maximum number of streams that a client can have open at the same time on a connection.
    pub(super) max_concurrent_streams: u32,
    pub(super) keep_alive: Option<KeepAlive>,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_header_list_size: None, max_concurrent_streams: 200, keep_alive: None }
    }
}

/// The interval of the keep-alive pings that the server sends, and the timeout for their answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive {
    interval: Duration,
    timeout: Duration,
}

impl KeepAlive {
    /// The minimum interval of keep-alive pings. With an interval of zero, pings would follow each
    /// other without a pause.
    const MIN_INTERVAL: Duration = Duration::from_millis(1);
    /// The maximum interval and timeout of keep-alive pings: a year. hyper adds these times to an
    /// `Instant`, which panics if the sum is too large.
    const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    pub(super) fn new(interval: Duration, timeout: Duration) -> Self {
        let interval = interval.clamp(Self::MIN_INTERVAL, Self::MAX_TIME);
        Self { interval, timeout: timeout.min(Self::MAX_TIME) }
    }
}

impl Config {
    fn apply(self, builder: &mut Builder<Spawner>) {
        let Self { max_header_list_size, max_concurrent_streams, keep_alive } = self;
        builder.max_send_buf_size(MAX_SEND_BUFFER).max_concurrent_streams(max_concurrent_streams);
        if let Some(size) = max_header_list_size {
            builder.max_header_list_size(size);
        }
        if let Some(KeepAlive { interval, timeout }) = keep_alive {
            builder.timer(TokioTimer::new()).keep_alive_interval(interval).keep_alive_timeout(timeout);
        }
    }
}

/// Serves an HTTP/2 connection until it is closed. `front` contains the first bytes of the client,
/// which were read to detect the protocol.
pub(super) fn serve<I, S, A>(
    server: &Arc<Server>,
    peer: Peer<I, S, A>,
    front: Bytes,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    let Peer { io, service, address } = peer;
    let streams = Streams::new();
    let mut builder = Builder::new(streams.spawner());
    // As with `axum::serve`, for WebSocket over HTTP/2 (RFC 8441).
    builder.enable_connect_protocol();
    server.http2.apply(&mut builder);
    let cancellations = Cancellations::new(server.http2.max_concurrent_streams);
    let cancelled = cancellations.cancelled();
    let service = Http2Service { service, address, server: Arc::clone(server), cancelled };
    let cork = Cork::default();
    let io = Corked::new(Rewound::new(io, front), cork.clone());
    let connection = Connected {
        connection: builder.serve_connection(TokioIo::new(io), service),
        shutdown: Some(Box::pin(server.shutdown.clone().cancelled_owned())),
        cork,
        read_limit: MIN_READ,
        cancellations,
    };
    let stall = server.http2.keep_alive.map(Stall::new);
    Box::pin(Http2 { connection, streams, last_ping: LastPing::default(), stall })
}

/// An HTTP/2 connection and its streams, which one task polls.
///
/// If each stream had a task of its own, it would wake the task of the connection, which would then
/// write the frames of this stream alone. In one task, all ready streams are polled first, and then
/// their frames leave in one write.
struct Http2<I, S: App, A: Address> {
    connection: Connected<I, S, A>,
    streams: Streams,
    last_ping: LastPing,
    /// The timer that drops the connection of a client that does not read. `None` if the server
    /// sends no keep-alive pings.
    stall: Option<Stall>,
}

/// The part of an HTTP/2 connection that hyper drives. It does not include the futures of the
/// streams, which this server polls itself.
struct Connected<I, S: App, A: Address> {
    connection: Connection<TokioIo<Corked<I>>, Http2Service<S, A>, Spawner>,
    /// A future that completes when the server shuts down. `None` after it has completed.
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    cork: Cork,
    /// The number of bytes that hyper may read in one poll of the connection. If hyper has read all
    /// of them and no new request has arrived, the number doubles, up to [`MAX_READ`] (256 KiB). A
    /// new request resets the number to [`MIN_READ`] (512 bytes).
    read_limit: usize,
    cancellations: Cancellations,
}

/// The maximum number of bytes that h2 buffers for one stream while the client does not read. The
/// last buffered frame may exceed this limit. With hyper's default of 400 KiB, a client with 200
/// streams could take 80 MB.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// The number of bytes that hyper may read from an HTTP/2 connection in one poll while requests
/// arrive. A small number saves memory: h2 uses 248 bytes for each request that it has read and
/// hyper has not accepted yet.
const MIN_READ: usize = 512;
/// The maximum number of bytes that hyper may read from an HTTP/2 connection in one poll. The
/// number of allowed bytes begins at 512, and doubles up to this maximum while the client sends
/// request bodies and no new request.
const MAX_READ: usize = 256 * 1024;

/// The maximum number of times that the task of an HTTP/2 connection polls the connection and its
/// streams before other tasks run.
const ROUNDS: usize = 4;

/// The time limit of a silence in a graceful shutdown. If no stream is open and no byte has moved
/// in either direction for this time, the server no longer waits until the client acknowledges h2's
/// PING.
const MAX_SILENCE: Duration = Duration::from_secs(1);

impl<I, S, A> Future for Http2<I, S, A>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll_rounds(cx).is_ready() {
            return Poll::Ready(());
        }
        let Self { connection, streams, last_ping, stall } = &mut *self;
        if stall.as_mut().is_some_and(|stall| stall.poll(&connection.cork, cx).is_ready()) {
            return Poll::Ready(());
        }
        match connection.shutdown {
            Some(_) => Poll::Pending,
            None => last_ping.poll(&connection.cork, streams, cx),
        }
    }
}

impl<I, S, A> Http2<I, S, A>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    /// Polls the connection and its streams until they all wait, at most four times. Returns ready
    /// when the connection is closed.
    fn poll_rounds(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connection, streams, .. } = self;
        for _ in 0..ROUNDS {
            let mut is_over = false;
            streams.poll_ready(|streams| {
                if let Some(waker) = streams.take_connection().filter(|_| !is_over) {
                    connection.cork.set(true);
                    is_over = connection.poll_write(&mut Context::from_waker(&waker)).is_ready();
                    connection.cork.set(false);
                    // The connection has to be polled again, to read and to send the gathered
                    // bytes.
                    streams.wake_connection();
                }
            });
            if is_over {
                return Poll::Ready(());
            }
            if let Some(waker) = streams.take_connection() {
                if connection.poll(streams, &mut Context::from_waker(&waker)).is_ready() {
                    return Poll::Ready(());
                }
            }
            if streams.wait(cx.waker()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I, S, A> Connected<I, S, A>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    /// Polls hyper without letting it read from the client. In this poll, hyper takes the frames
    /// that the polled streams have produced. If hyper also accepted requests here, their number
    /// would grow faster than the number of polled streams.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.cork.begin_turn(0);
        Pin::new(&mut self.connection).poll(cx).map(|_| ())
    }

    fn poll(&mut self, streams: &Streams, cx: &mut Context<'_>) -> Poll<()> {
        if self.cancellations.are_too_many() {
            trace::too_many_cancellations();
            return Poll::Ready(());
        }
        if self.shutdown.as_mut().is_some_and(|shutdown| shutdown.as_mut().poll(cx).is_ready()) {
            self.shutdown = None;
            Pin::new(&mut self.connection).graceful_shutdown();
        }
        // An error of one connection has no receiver: the client sees the end of the connection.
        self.cork.begin_turn(self.read_limit);
        let polled = Pin::new(&mut self.connection).poll(cx).map(|_| ());
        if streams.has_begun() {
            self.read_limit = MIN_READ;
        } else if self.cork.is_used_up() {
            self.read_limit = (2 * self.read_limit).min(MAX_READ);
        }
        polled
    }
}

/// The time limit for a client that does not read, if the server sends keep-alive pings.
///
/// If a client does not answer a ping, hyper ends the streams of the connection, and tries to send
/// a GOAWAY without a time limit. So a client that does not read would keep its connection. The
/// server therefore drops a connection whose socket accepts no byte for the interval plus the
/// timeout of the pings.
struct Stall {
    limit: Duration,
    /// The timer of this limit. `None` while no bytes wait for the socket.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(KeepAlive { interval, timeout }: KeepAlive) -> Self {
        Self { limit: interval + timeout, timer: None }
    }

    /// Returns ready if the connection has to be dropped, because the client has read no byte for
    /// the interval plus the timeout of the keep-alive pings.
    fn poll(&mut self, cork: &Cork, cx: &mut Context<'_>) -> Poll<()> {
        let has_written = cork.take_written();
        if !cork.is_blocked() {
            self.timer = None;
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if has_written {
            timer.set(sleep(self.limit));
        }
        timer.as_mut().poll(cx)
    }
}

/// The state of the last PING, which h2 sends after its GOAWAY in a graceful shutdown.
///
/// h2 accepts requests until the client has acknowledged this PING. Then h2 sends a second GOAWAY
/// with the last request (RFC 9113, §6.8), and closes the connection when all streams are complete.
/// h2 has no time limit for the acknowledgement. So if no stream is open and no byte has moved in
/// either direction for a second, the server acknowledges the PING in place of the client. h2 then
/// sends the bytes that it still has of ended streams, as far as the client accepts them, and
/// closes the connection. While the socket is full, the server does not do so: a slow client
/// acknowledges the PING when it has read it.
#[derive(Default)]
enum LastPing {
    /// The server does not limit the time for the acknowledgement of the PING, because the
    /// connection has open streams, or no graceful shutdown has begun.
    #[default]
    Waiting,
    /// In a graceful shutdown, the connection has no open streams. If no byte is read or written
    /// until this time, the server acknowledges h2's PING in place of the client.
    Silent(Pin<Box<Sleep>>),
    /// The client has acknowledged the PING of the graceful shutdown. Or the server has done so in
    /// place of a silent client: it inserts the acknowledgement into the bytes that hyper reads.
    Answered,
}

impl LastPing {
    /// Acknowledges the PING of a graceful shutdown in place of a silent client. Called only during
    /// the shutdown. Returns ready if the connection has to be dropped: no stream is open, the
    /// client has sent only a part of a frame or header block, and no byte has moved for a second.
    /// An acknowledgement can only follow the end of this frame or block.
    fn poll(&mut self, cork: &Cork, streams: &Streams, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Answered => return Poll::Pending,
            // h2 closes the connection because the client has answered.
            _ if cork.is_closing() => {
                *self = Self::Answered;
                return Poll::Pending;
            }
            _ if !streams.is_empty() => {
                *self = Self::Waiting;
                return Poll::Pending;
            }
            Self::Waiting => {
                cork.take_moved();
                *self = Self::Silent(Box::pin(sleep(MAX_SILENCE)));
            }
            Self::Silent(deadline) if cork.take_moved() => deadline.as_mut().reset(Instant::now() + MAX_SILENCE),
            Self::Silent(_) => {}
        }
        let Self::Silent(deadline) = self else { return Poll::Pending };
        loop {
            ready!(deadline.as_mut().poll(cx));
            // A client that reads slowly acknowledges the PING when it has read all bytes before it.
            if !cork.is_blocked() {
                if cork.is_within_frame() {
                    return Poll::Ready(());
                }
                cork.answer_ping();
                streams.wake_connection();
                *self = Self::Answered;
                return Poll::Pending;
            }
            deadline.as_mut().reset(Instant::now() + MAX_SILENCE);
        }
    }
}

/// The application as hyper's service for an HTTP/2 connection.
///
/// Each call runs in a task of its own. A connection from a proxy carries the requests of many
/// clients, and their handlers have to run on all cores.
struct Http2Service<S, A> {
    service: S,
    address: A,
    server: Arc<Server>,
    cancelled: Cancelled,
}

impl<S: App, A: Address> hyper::service::Service<Request<Incoming>> for Http2Service<S, A> {
    type Response = Response<Http2Body<S::Body>>;
    type Error = BoxError;
    type Future = Http2Call<S::Body>;

    fn call(&self, request: Request<Incoming>) -> Http2Call<S::Body> {
        let has_content = *request.method() != Method::HEAD;
        let request = with_connect_info(request, &self.address, RequestBody::new);
        let call = Call::new(self.service.clone(), request);
        // The server is dropped last: after its last owner, `serve` returns.
        let call = (call, Arc::clone(&self.server));
        let task = tokio::spawn(async move {
            let (call, server) = call;
            let body = |body| if has_content { Http2Body::Whole { body } } else { Http2Body::Empty };
            let response = call.await.map(|response| response.map(body)).map_err(Into::into);
            (response, server)
        });
        Http2Call { task, cancelled: Some(self.cancelled.clone()) }
    }
}

/// The future of the response to an HTTP/2 request. hyper drops it when the client resets the
/// stream, which cancels the call of the service. Another thread may still poll or drop the call at
/// that time.
struct Http2Call<B> {
    task: JoinHandle<CallOutput<B>>,
    /// Counts this call if the client cancels it. `None` after the call has returned its result.
    cancelled: Option<Cancelled>,
}

/// The output of the task that calls the application for an HTTP/2 request: the response, and the
/// shared state of the server. A shutdown waits until the state is dropped, so it is dropped after
/// the response.
type CallOutput<B> = (Result<Response<Http2Body<B>>, BoxError>, Arc<Server>);

impl<B> Future for Http2Call<B> {
    type Output = Result<Response<Http2Body<B>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = ready!(Pin::new(&mut self.task).poll(cx));
        self.cancelled = None;
        // A panic in the service ends the stream.
        Poll::Ready(ended.map_or_else(|panic| Err(panic.into()), |(response, _server)| response))
    }
}

impl<B> Drop for Http2Call<B> {
    fn drop(&mut self) {
        if let Some(cancelled) = &self.cancelled {
            cancelled.add_request();
        }
        self.task.abort();
    }
}

pin_project! {
    /// The body that hyper gets for a response: the body of the application, or no content after a
    /// `HEAD` request.
    #[project = Http2BodyProjection]
    enum Http2Body<B> {
        Whole { #[pin] body: B },
        /// The body of a response to `HEAD`, which has no content (RFC 9110, §9.3.2). hyper ignores
        /// the body of the application over HTTP/1, but sends it over HTTP/2.
        Empty,
    }
}

impl<B: Body<Data = Bytes>> Body for Http2Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            Http2BodyProjection::Whole { body } => body.poll_frame(cx),
            Http2BodyProjection::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { body } => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { body } => body.size_hint(),
            Self::Empty => SizeHint::default(),
        }
    }
}
