//! What the end-to-end tests share: programs that are started and stopped, a relay to cut the wire in, and waiting.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/example.rs"]
mod example;
#[path = "support/process.rs"]
mod process;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/wait.rs"]
mod wait;
#[path = "support/wire.rs"]
mod wire;

pub use browser::{Browser, Window};
pub use example::Example;
pub use relay::{Relay, RequestHead};
pub use wait::{eventually, stays};
pub use wire::{Message, read, read_until};
