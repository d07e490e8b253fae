//! A WebDriver server, such as chromedriver.

use crate::{process::Process, screen::Screen};
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// A running WebDriver server. Dropping it ends the server and its browser.
#[derive(Debug)]
pub(crate) struct Driver {
    // Dropped in this order: the browser ends before its screen.
    _process: Process,
    _screen: Option<Screen>,
    address: SocketAddr,
    capabilities: Map<String, Value>,
}

impl Driver {
    /// Creates the handle of a WebDriver server that listens on this port.
    ///
    /// # Panics
    ///
    /// If the capabilities are not a JSON object.
    pub(crate) fn new(process: Process, port: u16, capabilities: Value) -> Self {
        let Value::Object(capabilities) = capabilities else { panic!("not a JSON object: {capabilities}") };
        Self { _process: process, _screen: None, address: SocketAddr::from(([127, 0, 0, 1], port)), capabilities }
    }

    /// Keeps this screen until the browser has ended.
    pub(crate) fn with_screen(self, screen: Screen) -> Self {
        Self { _screen: Some(screen), ..self }
    }

    /// Returns the URL for new WebDriver sessions.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the capabilities to request. The browser accepts self-signed certificates, and
    /// loading a page or running a script fails after 20 seconds.
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        let mut capabilities = self.capabilities.clone();
        capabilities.insert("acceptInsecureCerts".to_owned(), true.into());
        capabilities.insert("timeouts".to_owned(), serde_json::json!({ "pageLoad": 20_000, "script": 20_000 }));
        capabilities
    }
}

/// Starts a driver, and tries again up to four times.
///
/// A driver chooses a port that is free on one of `::1` and `127.0.0.1`, and exits if the same port
/// is taken on the other.
///
/// # Panics
///
/// If the last attempt fails.
pub(crate) fn start(mut try_start: impl FnMut() -> Result<(Process, u16), String>) -> (Process, u16) {
    for _ in 0..4 {
        if let Ok(started) = try_start() {
            return started;
        }
    }
    try_start().unwrap_or_else(|error| panic!("{error}"))
}
