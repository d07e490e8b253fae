//! Compiles the code of the README, of the guides, and of documentation with heavy dependencies.

#![cfg(all(doctest, feature = "guides"))]

#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/several-nodes.md")]
#[doc = include_str!("../docs/choosing-a-log.md")]
#[doc = include_str!("../docs/production.md")]
#[doc = include_str!("../docs/recordings.md")]
#[doc = include_str!("../docs/presence.md")]
#[doc = include_str!("../docs/authentication.md")]
#[doc = include_str!("../docs/durable-streams.md")]
#[doc = include_str!("../docs/rates-and-filters.md")]
#[doc = include_str!("../docs/testing.md")]
#[doc = include_str!("../docs/migrating-from-axum.md")]
#[doc = include_str!("../docs/gateways.md")]
#[doc = include_str!("../docs/own-history.md")]
struct Guides;

#[doc = include_str!("../src/socket/tonic.md")]
struct ClientTimeout;
