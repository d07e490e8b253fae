//! Bodies: where events become frames, and where silence is filled.

mod adoption;
mod foreign;
mod frame;
mod grace;
mod heartbeat;
mod life;
mod lines;
mod sse;

pub(crate) use adoption::{Adoption, Offer};
pub use foreign::ResponseBody;
pub use heartbeat::Heartbeat;
pub(crate) use sse::Options;
pub use sse::SseBody;
