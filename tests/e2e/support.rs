//! What the end-to-end tests share: programs that are started and stopped, a relay to cut the wire in, and waiting.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/client.rs"]
mod client;
#[path = "support/driver.rs"]
mod driver;
#[path = "support/engine.rs"]
mod engine;
#[path = "support/example.rs"]
mod example;
#[path = "support/family.rs"]
mod family;
#[path = "support/firefox.rs"]
mod firefox;
#[path = "support/network.rs"]
mod network;
#[path = "support/port.rs"]
mod port;
#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/screen.rs"]
mod screen;
#[path = "support/screenshot.rs"]
mod screenshot;
#[path = "support/server.rs"]
mod server;
#[path = "support/store.rs"]
pub mod store;
#[path = "support/tls.rs"]
mod tls;
#[path = "support/wait.rs"]
mod wait;
#[path = "support/webkit.rs"]
mod webkit;
#[path = "support/wire.rs"]
mod wire;

pub use browser::{Browser, Window};
pub use client::Client;
pub use engine::Engine;
pub use example::{Example, program};
pub use network::Wire;
pub use port::Port;
pub use process::installed;
pub use proxy::{Model, Program, Proxy};
pub use relay::{Relay, RequestHead};
pub use server::Server;
pub use wait::{eventually, stays};
pub use wire::{Message, create, read, read_until, request, request_until};
