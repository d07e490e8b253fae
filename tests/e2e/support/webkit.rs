//! WebKit, driven by WebKitWebDriver, which starts the MiniBrowser of WebKitGTK.

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
        // A virtual screen has no graphics card.
        .env("WEBKIT_DISABLE_COMPOSITING_MODE", "1")
        // There is no option for a profile. Under automation, WebKit stores only caches.
        .env("HOME", profile)
        .env("TMPDIR", profile)
        .env("XDG_CACHE_HOME", profile)
        .env("XDG_CONFIG_HOME", profile)
        .env("XDG_DATA_HOME", profile);
    // WebKitWebDriver prints nothing, not even its port.
    let (process, port) = driver::start(|| Process::try_start_listening(&mut command));
    Driver::new(process, port, json!({ "proxy": { "proxyType": "direct" } })).with_screen(screen)
}
