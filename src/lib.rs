//! Server-sent events for the tower ecosystem.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
mod axum;
mod body;
mod event;
mod headers;
#[cfg(feature = "json")]
mod json;
mod last_event_id;
mod layer;
mod stream;

pub use body::{Heartbeat, ResponseBody, SseBody};
pub use event::{EncodedEvents, Event, EventId, EventName, FieldError, FieldErrorKind};
#[cfg(feature = "json")]
pub use json::{JsonError, JsonEvents};
pub use last_event_id::{LastEventId, Rejection};
pub use layer::{ResponseFuture, SseLayer, SseService};
pub use stream::{SseItem, SseStream, StopReconnecting};

/// Any error, as tower and axum box it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
