//! The parts of a node, one process of several that share a log. They are the client, which appends
//! records to the backend and reads old records, and the follower, the task that reads new records.
//!
//! This module depends on the [contract of a backend](super::backend), but not on the topics. The
//! follower delivers records to the topics through the trait [`Node`].

mod client;
mod dyn_backend;
mod follower;
mod removals;
mod single_flight;

pub(super) use client::{BackendClient, EncodedPage, LogEnd, MAX_QUEUED_READS};
pub(super) use dyn_backend::DynBackend;
pub(super) use follower::{Node, connect};
pub(super) use removals::Removal;
pub(super) use single_flight::RunError;
