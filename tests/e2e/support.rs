//! Shared helpers of the end-to-end tests: programs, browsers, faulty networks, and waiting.

#[path = "support/accessibility.rs"]
mod accessibility;
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
#[path = "support/firefox.rs"]
mod firefox;
#[path = "support/http.rs"]
mod http;
#[path = "support/page.rs"]
mod page;
#[path = "support/port.rs"]
mod port;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/process.rs"]
mod process;
#[path = "support/process_tree.rs"]
mod process_tree;
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
mod store;
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
pub use example::{Example, example_path};
pub use http::{Message, create, read, read_until, request, request_until};
pub use page::Page;
pub use port::Port;
pub use postgres::Pool;
pub use process::installed;
pub use proxy::{Proxy, ProxyConfig, ProxyKind};
pub use relay::{Relay, RequestHead};
pub use server::Server;
pub use store::{Store, StoreKind};
pub use wait::{eventually, stays};
pub use wire::Wire;
