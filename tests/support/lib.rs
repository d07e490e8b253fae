//! What the tests and benchmarks share. It does not know the crate under test.

pub mod client;
pub mod drain;
pub mod ratios;
pub mod script;
pub mod server;
pub mod whatwg;
