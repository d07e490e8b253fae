//! How streams end: at a shutdown, at a limit or by themselves, and what is reported.

mod common;
mod lifetime;
mod limits;
mod reconnect;
mod shutdown;
mod summaries;
mod upstream_shutdown;
