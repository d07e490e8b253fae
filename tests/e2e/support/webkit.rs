//! WebKit, by way of WebKitWebDriver, which starts the MiniBrowser that comes with the library.

use crate::{
    driver::{self, Driver},
    process::{Process, installed},
    screen::Screen,
};
use serde_json::json;
use std::{path::Path, process::Command};

pub(crate) fn start(profile: &Path) -> Driver {
    let screen = Screen::start();
    let mut command = Command::new(installed(&["WebKitWebDriver"], "webkit2gtk-driver"));
    command
        .arg("--port=0")
        .env("DISPLAY", screen.display())
        .env("GDK_BACKEND", "x11")
        // Such a screen has no graphics card.
        .env("WEBKIT_DISABLE_COMPOSITING_MODE", "1")
        // There is no option for a profile, and by automation it keeps none but caches.
        .env("HOME", profile)
        .env("TMPDIR", profile)
        .env("XDG_CACHE_HOME", profile)
        .env("XDG_CONFIG_HOME", profile)
        .env("XDG_DATA_HOME", profile);
    // It says nothing, also not on which port it listens.
    let (process, port) = driver::start(|| Process::try_start_listening(&mut command));
    Driver::new(process, port, json!({ "proxy": { "proxyType": "direct" } })).on(screen)
}
