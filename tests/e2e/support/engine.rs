//! The three browser engines.

use crate::{browser::Window, chromium, driver::Driver, firefox, webkit};
use std::path::Path;

/// A browser engine. Each engine has its own implementation of `EventSource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The engine of Chromium, Chrome, Edge and Opera.
    Chromium,
    /// The engine of Firefox.
    Firefox,
    /// The engine of WebKitGTK's MiniBrowser. Safari uses it with another network library.
    WebKit,
}

impl Engine {
    /// Starts the WebDriver server of this engine. Only Chromium uses the window: the other engines
    /// cannot emulate a phone.
    pub(crate) fn start(self, profile: &Path, window: Window) -> Driver {
        match self {
            Self::Chromium => chromium::start(profile, window),
            Self::Firefox => firefox::start(profile),
            Self::WebKit => webkit::start(profile),
        }
    }
}
