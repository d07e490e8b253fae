//! The parts of a connection that exist in all of its states.

use hyper::server::conn::http1;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The state that all connections of a server share.
pub(super) struct Server {
    /// Cancelled when the graceful shutdown begins.
    pub(super) shutdown: CancellationToken,
    pub(super) http1: http1::Builder,
    /// Cancels a token when the last connection drops this state. The server waits for that token.
    _open: DropGuard,
}

impl Server {
    /// Creates the state. `open` cancels its token when it is dropped, which happens after the last
    /// connection has ended.
    pub(super) fn new(shutdown: CancellationToken, open: DropGuard) -> Self {
        Self { shutdown, http1: http1::Builder::new(), _open: open }
    }
}

/// The connection to a client, and the service for its requests.
pub(super) struct Peer<I, S, A> {
    pub(super) io: I,
    pub(super) service: S,
    pub(super) address: A,
}
