//! The server of the crate: what clients receive, and what becomes of their connections.

mod cancellations;
mod closing;
mod common;
mod connections;
mod disconnections;
mod equivalence;
mod framing;
mod header_timeout;
mod http2;
mod keep_alive;
mod listeners;
mod memory;
mod raw_http2;
mod shutdown;
mod shutdown_timeout;
mod silent_http2_clients;
