//! The bodies of responses with event streams. They join events into frames, and send heartbeats
//! while a stream is silent.

mod end;
mod flush_delay;
mod frame;
mod idle_timer;
mod lines;
mod link;
mod observer;
mod sse;
mod upstream;
mod wake_flag;

pub(crate) use link::{AppliedLayer, LayerHandle, LayerLink};
pub(crate) use sse::Options;

pub use sse::SseBody;
pub use upstream::ResponseBody;
