//! The machinery of a node: the client of its backend, and the follower.
//!
//! This module uses the [contract of a backend](super::backend) and does not know the topics. The
//! follower delivers records to the topics through the trait [`Node`].

mod client;
mod dyn_backend;
mod follower;
mod outage;
mod removals;
mod single_flight;

pub(super) use client::{BackendClient, EncodedPage, LogEnd, MAX_QUEUED_READS};
pub(super) use dyn_backend::DynBackend;
pub(super) use follower::{Node, connect};
pub(super) use removals::Removal;
pub(super) use single_flight::RunError;
