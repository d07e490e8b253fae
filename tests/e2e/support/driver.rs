//! A program that speaks WebDriver, and through which a browser is driven.

use crate::{process::Process, screen::Screen};
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// It ends on drop, and its browser with it.
#[derive(Debug)]
pub(crate) struct Driver {
    // Dropped in this order: the browser ends before its screen.
    _process: Process,
    _screen: Option<Screen>,
    address: SocketAddr,
    capabilities: Map<String, Value>,
}

impl Driver {
    /// One that is running.
    ///
    /// # Panics
    ///
    /// If the capabilities, what is asked for of the browser, are no object.
    pub(crate) fn new(process: Process, port: u16, capabilities: Value) -> Self {
        let Value::Object(capabilities) = capabilities else { panic!("no object: {capabilities}") };
        Self { _process: process, _screen: None, address: SocketAddr::from(([127, 0, 0, 1], port)), capabilities }
    }

    /// The same, with a screen that is kept for as long.
    pub(crate) fn on(self, screen: Screen) -> Self {
        Self { _screen: Some(screen), ..self }
    }

    /// Where a browser is asked for.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What is asked for. A self-signed certificate is as good as any on this machine, and nobody waits for a page for ever.
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        let mut capabilities = self.capabilities.clone();
        capabilities.insert("acceptInsecureCerts".to_owned(), true.into());
        capabilities.insert("timeouts".to_owned(), serde_json::json!({ "pageLoad": 20_000, "script": 20_000 }));
        capabilities
    }
}

/// Starts a driver that takes a port which is free at `::1` or `127.0.0.1`, and ends if it is not free at the other.
///
/// # Panics
///
/// If that happens again and again.
pub(crate) fn start(mut try_start: impl FnMut() -> Result<(Process, u16), String>) -> (Process, u16) {
    for _ in 0..4 {
        if let Ok(started) = try_start() {
            return started;
        }
    }
    try_start().unwrap_or_else(|error| panic!("{error}"))
}
