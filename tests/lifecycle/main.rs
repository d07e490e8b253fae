//! The life of a stream: what ends it, what limits it, and what is reported of it.

mod common;
mod lifetime;
mod limits;
mod reconnect;
mod shutdown;
mod summaries;
mod upstream_shutdown;
