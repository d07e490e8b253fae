//! Helpers of the tests and benchmarks. They do not depend on the crate under test.

pub mod client;
pub mod descriptors;
pub mod drain;
pub mod listener;
mod pass_on;
pub mod polled;
pub mod ratios;
pub mod respond;
pub mod script;
pub mod server;
#[path = "../../src/test/whatwg.rs"]
pub mod whatwg;
