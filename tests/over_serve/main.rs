//! The tests with real connections again, over the server of the crate.
//!
//! Each of these files is also a test of its own, over hyper. There, `crate::server` is
//! `support::server`.

#![allow(unused_imports, reason = "each file imports `support::server` for its own test")]

mod server;

#[path = "../broken_transfers.rs"]
mod broken_transfers;
#[path = "../callbacks.rs"]
mod callbacks;
#[path = "../http_versions.rs"]
mod http_versions;
#[path = "../hub_on_the_wire.rs"]
mod hub_on_the_wire;
#[path = "../last_event_id_on_the_wire.rs"]
mod last_event_id_on_the_wire;
#[path = "../lifecycle_on_the_wire.rs"]
mod lifecycle_on_the_wire;
#[path = "../upstream_streams.rs"]
mod upstream_streams;
