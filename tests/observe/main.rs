//! The metrics, spans and events of the features `metrics` and `tracing`: each row of the tables
//! in the documentation of the crate.

mod hub;
mod recording;
#[cfg(target_os = "linux")]
mod serve;
mod streams;
