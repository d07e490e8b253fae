//! The state that all connections of a server share, and the parts of a connection that outlast a
//! request.

use hyper::server::conn::http1;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The state that all connections of a server share.
pub(super) struct Server {
    /// Cancelled when the graceful shutdown begins.
    pub(super) shutdown: CancellationToken,
    pub(super) http1: http1::Builder,
    /// The maximum size of the headers of an HTTP/2 request, in bytes. `None` is hyper's default.
    pub(super) max_header_list_size: Option<u32>,
    /// A guard that is dropped together with this state, by the last connection, and then cancels
    /// its token. At a shutdown, the server waits until this token is cancelled.
    _open: DropGuard,
}

impl Server {
    /// Creates the state that all connections of a server share. `open` is a guard that cancels its
    /// token when the last connection drops this state.
    pub(super) fn new(shutdown: CancellationToken, max_header_list_size: Option<u32>, open: DropGuard) -> Self {
        Self { shutdown, http1: http1::Builder::new(), max_header_list_size, _open: open }
    }
}

/// The connection to a client, the address of the client, and the service for its requests.
pub(super) struct Peer<I, S, A> {
    pub(super) io: I,
    pub(super) service: S,
    pub(super) address: A,
}
