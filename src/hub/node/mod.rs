//! The machinery of a node: the client of its backend, and the follower.
//!
//! It knows the [contract of a backend](super::backend) and not the topics. The follower drives
//! these through the trait [`Node`].

mod client;
mod dyn_backend;
mod follower;
mod outage;
mod single_flight;

pub(super) use client::{BackendClient, EncodedPage, LogEnd, MAX_QUEUED_READS};
pub(super) use dyn_backend::DynBackend;
pub(super) use follower::{Node, connect};
pub(super) use single_flight::RunError;
