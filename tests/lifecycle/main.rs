//! The end of streams: shutdown, lifetime, limits, reconnect delays, and summaries.

mod common;
mod end_when;
mod flush_time;
mod last_items;
mod lifetime;
mod limits;
mod reconnect;
mod registry;
mod shutdown;
mod summaries;
mod upstream_shutdown;
