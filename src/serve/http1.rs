//! An HTTP/1 connection while hyper serves it.

use super::{
    closing::Closing,
    event_stream::EventStream,
    handover::Handover,
    io::{Rewound, Watched},
    server::{HeaderDeadline, Peer, Server},
    service::{Address, App, Http1Service},
};
use bytes::Bytes;
use hyper::server::conn::http1::UpgradeableConnection;
use hyper_util::rt::TokioIo;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::WaitForCancellationFutureOwned;

type HyperConnection<I, S, A> = UpgradeableConnection<TokioIo<Watched<I, <S as App>::Body>>, Http1Service<S, A>>;

/// An HTTP/1 connection while hyper serves it: from the first byte of a request until an event
/// stream begins.
pub(super) struct Http1<I, S: App, A: Address> {
    /// The connection as hyper serves it. `None` after this server has taken the connection from
    /// hyper, to write an event stream or to close the connection.
    connection: Option<HyperConnection<I, S, A>>,
    handover: Arc<Handover<S::Body>>,
    /// A future that completes when the server shuts down. `None` after it has completed.
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The timeout for the head of the connection's first request. `None` if hyper has received
    /// this head, or if the server has no header timeout.
    header_deadline: Option<HeaderDeadline>,
}

/// The result when hyper stops serving an HTTP/1 connection. The connection is already closed, or
/// this server has to close it, or this server continues it with an event stream.
pub(super) enum Next<I, S: App, A> {
    Closed,
    Closing(I, Closing),
    EventStream(Peer<I, S, A>, EventStream<S::Body>),
}

impl<I, S, A> Http1<I, S, A>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    /// Creates a connection that hyper serves. `front` contains the first bytes of the request,
    /// which were already read. `header_deadline` limits the time until the head is complete.
    pub(super) fn new(
        server: &Server,
        peer: Peer<I, S, A>,
        front: Bytes,
        header_deadline: Option<HeaderDeadline>,
    ) -> Self {
        let Peer { io, service, address } = peer;
        let handover = Arc::new(Handover::new());
        let io = Watched { io: Rewound::new(io, front), handover: Arc::clone(&handover) };
        let service = Http1Service { service, address, handover: Arc::clone(&handover) };
        let connection = server.http1.serve_connection(TokioIo::new(io), service).with_upgrades();
        let shutdown = Box::pin(server.shutdown.clone().cancelled_owned());
        Self { connection: Some(connection), handover, shutdown: Some(shutdown), header_deadline }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next<I, S, A>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Next::Closed) };
        if self.shutdown.as_mut().is_some_and(|shutdown| shutdown.as_mut().poll(cx).is_ready()) {
            self.shutdown = None;
            if !self.handover.has_request() {
                return Poll::Ready(self.close());
            }
            Pin::new(&mut *connection).graceful_shutdown();
        }
        // An error of one connection has no receiver: the client sees the end of the connection.
        if Pin::new(connection).poll(cx).is_ready() {
            return Poll::Ready(Next::Closed);
        }
        if self.handover.has_request() {
            self.header_deadline = None;
        } else if self.header_deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(self.close());
        }
        let Some(offer) = self.handover.take() else { return Poll::Pending };
        let Some(parts) = self.connection.take().and_then(UpgradeableConnection::into_parts) else {
            return Poll::Ready(Next::Closed);
        };
        let Rewound { io, front, .. } = parts.io.into_inner().io;
        let Http1Service { service, address, .. } = parts.service;
        let stream = EventStream::new(offer, [&parts.read_buf, &front]);
        Poll::Ready(Next::EventStream(Peer { io, service, address }, stream))
    }

    /// Takes the connection from hyper, so that this server closes it. Called if hyper has not
    /// received a complete head of a request when the server shuts down or the header timeout
    /// expires. hyper's own graceful shutdown would wait for the rest of the head without a time
    /// limit.
    fn close(&mut self) -> Next<I, S, A> {
        let Some(parts) = self.connection.take().and_then(UpgradeableConnection::into_parts) else {
            return Next::Closed;
        };
        let Rewound { io, closing, .. } = parts.io.into_inner().io;
        Next::Closing(io, closing)
    }
}
