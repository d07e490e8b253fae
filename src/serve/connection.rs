//! The task that serves one connection, from its accept to its close.

use super::{
    closing::Closing,
    event_stream::{Ended, EventStream},
    http1::{Http1, Next},
    http2,
    server::{HeaderDeadline, Peer, Server},
    service::{Address, App},
};
use bytes::Bytes;
use pin_project_lite::pin_project;
use std::{
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// The connection preface of HTTP/2: the first bytes of a client that uses HTTP/2 without an
/// upgrade (RFC 9113, §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pin_project! {
    /// A connection from the time when it is accepted until it is closed.
    pub(super) struct Connection<I, S: App, A: Address> {
        #[pin]
        state: State<I, S, A>,
        // Dropped last: `serve` returns when the server of the last connection is dropped, and the
        // bodies of the state must be dropped before.
        server: Arc<Server>,
    }
}

pin_project! {
    /// The states of a connection. Most connections carry an event stream most of the time, so only
    /// the event stream is stored inline. The data of the other states is on the heap, and is freed
    /// at the end of the state.
    #[project = StateProjection]
    #[project_replace = StateReplaced]
    enum State<I, S: App, A: Address> {
        /// The connection waits for the first bytes of a request.
        Idle { peer: Peer<I, S, A>, idle: Box<Idle> },
        Http1 { http1: Box<Http1<I, S, A>> },
        EventStream { peer: Peer<I, S, A>, #[pin] stream: EventStream<S::Body> },
        Http2 { http2: Pin<Box<dyn Future<Output = ()> + Send>> },
        /// The server closes the connection: the last response is complete, or the server shuts
        /// down before the next request. The server waits for the client to close the connection.
        Closing { io: I, closing: Closing },
        Closed,
    }
}

/// The state of a connection that waits for a request.
struct Idle {
    /// The bytes of the next request that this server has read from the connection so far.
    received: Vec<u8>,
    /// Set if the connection has already served a request. Only an HTTP/1 connection waits for a
    /// request again, so its next request is HTTP/1, too.
    is_http1: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The timeout for the head of the connection's first request. `None` if the connection has
    /// already served a request, or if the server has no header timeout.
    header_deadline: Option<HeaderDeadline>,
}

/// The reason why an idle connection stops waiting for a request.
enum Begun {
    Request(Protocol),
    /// The server has to close the connection, because the server shuts down, or the client has
    /// sent no request in time.
    MustClose,
    Disconnected,
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

impl Idle {
    /// Creates the state of a new connection, whose client has sent no request yet.
    fn new(server: &Server) -> Box<Self> {
        let header_deadline = server.header_deadline();
        Box::new(Self { header_deadline, ..Self::waiting(server, &[], false) })
    }

    /// Creates the state of an HTTP/1 connection after an event stream. `received` contains the
    /// first bytes of the next request.
    fn after_stream(server: &Server, received: &[u8]) -> Box<Self> {
        Box::new(Self::waiting(server, received, true))
    }

    fn waiting(server: &Server, received: &[u8], is_http1: bool) -> Self {
        let shutdown = Box::pin(server.shutdown.clone().cancelled_owned());
        Self { received: received.to_vec(), is_http1, shutdown, header_deadline: None }
    }

    /// Reads until the first bytes of a connection show whether the request is HTTP/1 or HTTP/2.
    /// Also returns ready when the server has to close the connection or the client disconnects.
    fn poll<I: AsyncRead + Unpin>(&mut self, io: &mut I, cx: &mut Context<'_>) -> Poll<Begun> {
        loop {
            if let Some(protocol) = self.protocol() {
                return Poll::Ready(Begun::Request(protocol));
            }
            let is_late = self.header_deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
            if is_late || self.shutdown.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Begun::MustClose);
            }
            let mut bytes = [MaybeUninit::uninit(); 2048];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            let is_open = ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer)).is_ok();
            if !is_open || buffer.filled().is_empty() {
                return Poll::Ready(Begun::Disconnected);
            }
            self.received.extend_from_slice(buffer.filled());
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        let compared = self.received.len().min(PREFACE.len());
        if compared == 0 {
            None
        } else if self.is_http1 || self.received[..compared] != PREFACE[..compared] {
            Some(Protocol::Http1)
        } else {
            (compared == PREFACE.len()).then_some(Protocol::Http2)
        }
    }
}

impl<I, S: App, A: Address> Connection<I, S, A> {
    pub(super) fn new(server: Arc<Server>, io: I, address: A, service: S) -> Self {
        let idle = Idle::new(&server);
        Self { server, state: State::Idle { peer: Peer { io, service, address }, idle } }
    }
}

impl<I, S, A> Future for Connection<I, S, A>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Idle { peer, idle } => {
                    let begun = ready!(idle.poll(&mut peer.io, cx));
                    let StateReplaced::Idle { peer, idle } = this.state.as_mut().project_replace(State::Closed) else {
                        return Poll::Ready(());
                    };
                    let received = Bytes::from(idle.received);
                    match begun {
                        Begun::Request(Protocol::Http1) => State::Http1 {
                            http1: Box::new(Http1::new(this.server, peer, received, idle.header_deadline)),
                        },
                        Begun::Request(Protocol::Http2) => {
                            State::Http2 { http2: http2::serve(this.server, peer, received) }
                        }
                        // The connection has sent a response, which the client may not have
                        // received completely.
                        Begun::MustClose if idle.is_http1 => {
                            State::Closing { io: peer.io, closing: Closing::default() }
                        }
                        Begun::MustClose | Begun::Disconnected => return Poll::Ready(()),
                    }
                }
                StateProjection::Http1 { http1 } => match ready!(http1.poll(cx)) {
                    Next::Closed => return Poll::Ready(()),
                    Next::Closing(io, closing) => State::Closing { io, closing },
                    Next::EventStream(peer, stream) => State::EventStream { peer, stream },
                },
                StateProjection::EventStream { peer, stream } => {
                    let must_close = || this.server.shutdown.is_cancelled();
                    let ended = ready!(stream.poll(&mut peer.io, cx, must_close));
                    let StateReplaced::EventStream { peer, .. } = this.state.as_mut().project_replace(State::Closed)
                    else {
                        return Poll::Ready(());
                    };
                    match ended {
                        Ended::KeepAlive(unread) => {
                            State::Idle { peer, idle: Idle::after_stream(this.server, &unread) }
                        }
                        Ended::Close => State::Closing { io: peer.io, closing: Closing::default() },
                        Ended::Disconnected => return Poll::Ready(()),
                    }
                }
                StateProjection::Http2 { http2 } => return http2.as_mut().poll(cx),
                // All bytes are written to the socket, so there is nothing to do about an error.
                StateProjection::Closing { io, closing } => return closing.poll(io, cx).map(drop),
                StateProjection::Closed => return Poll::Ready(()),
            };
            this.state.set(next);
        }
    }
}
