//! The three engines that there are.

use crate::{browser::Window, chromium, driver::Driver, firefox, webkit};
use std::path::Path;

/// What is inside of a browser, and reads event streams in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// That of Chromium, also in Chrome, Edge and Opera.
    Chromium,
    /// That of Firefox.
    Firefox,
    /// That of WebKitGTK's MiniBrowser, also in Safari, there with another network library.
    WebKit,
}

impl Engine {
    /// Starts what drives it. Only Chromium can be a phone.
    pub(crate) fn start(self, profile: &Path, window: Window) -> Driver {
        match self {
            Self::Chromium => chromium::start(profile, window),
            Self::Firefox => firefox::start(profile),
            Self::WebKit => webkit::start(profile),
        }
    }
}
