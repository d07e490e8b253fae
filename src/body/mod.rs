//! Bodies: where events become frames, and where silence is filled.

mod adoption;
mod foreign;
mod frame;
mod grace;
mod heartbeat;
mod sse;

pub(crate) use adoption::{Adoption, Offer, Settings};
pub use foreign::ResponseBody;
pub use heartbeat::Heartbeat;
pub(crate) use sse::Options;
pub use sse::SseBody;
