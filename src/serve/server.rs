//! The state that all connections of a server share, and the parts of a connection that outlast a
//! request.

use super::http2;
use hyper::server::conn::http1;
use std::{pin::Pin, time::Duration};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The state that all connections of a server share: the settings, and the signal of the shutdown.
pub(super) struct Server {
    /// Cancelled when the graceful shutdown begins.
    pub(super) shutdown: CancellationToken,
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Config,
    /// The maximum time from the accept of a connection until the head of its first request is
    /// complete. `None` for no limit.
    header_timeout: Option<Duration>,
    /// A guard that cancels a token when the last connection or HTTP/2 handler drops this shared
    /// state. At a shutdown, the server waits for this token.
    _open: DropGuard,
}

impl Server {
    /// Creates the state that all connections share. The guard `open` cancels its token when the
    /// state is dropped. At a shutdown, the server waits for this token.
    pub(super) fn new(
        shutdown: CancellationToken,
        http2: http2::Config,
        header_timeout: Option<Duration>,
        open: DropGuard,
    ) -> Self {
        Self { shutdown, http1: http1::Builder::new(), http2, header_timeout, _open: open }
    }

    /// Starts the timer of a newly accepted connection: a future that completes after the header
    /// timeout. Returns `None` if the server has no header timeout.
    pub(super) fn header_deadline(&self) -> Option<HeaderDeadline> {
        self.header_timeout.map(|time| Box::pin(sleep(time)))
    }
}

/// A timer that expires when the server closes a connection whose client has not sent the complete
/// head of its first request.
pub(super) type HeaderDeadline = Pin<Box<Sleep>>;

/// The connection to a client, the address of the client, and the service for its requests.
pub(super) struct Peer<I, S, A> {
    pub(super) io: I,
    pub(super) service: S,
    pub(super) address: A,
}
