//! Chromium, driven by chromedriver.

use crate::{
    browser::Window,
    driver::{self, Driver},
    process::{Process, installed},
};
use serde_json::json;
use std::{path::Path, process::Command};

pub(crate) fn start(profile: &Path, window: Window) -> Driver {
    let mut command = Command::new(installed(&["chromedriver"], "chromium-driver"));
    // Files outside of the profile, which chromedriver does not remove when it is killed.
    command.arg("--port=0").env("TMPDIR", profile);
    let port_in = |line: &str| {
        let (_, port) = line.split_once("successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    };
    let (process, port) = driver::start(|| Process::try_start(&mut command, port_in));
    let user_data_dir = format!("--user-data-dir={}", profile.display());
    let mut options = json!({
        "binary": installed(&["chromium", "chromium-browser", "google-chrome"], "chromium"),
        "args": [
            "--headless=new",
            format!("--window-size={},900", Window::Desktop.width()),
            user_data_dir,
            // Containers and CI run as root, and with little shared memory.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            // Only the page may use the network, and no proxy may stand between it and the relay.
            "--disable-quic",
            "--no-proxy-server",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        ],
    });
    if let Window::Phone { width } = window {
        options["mobileEmulation"] =
            json!({ "deviceMetrics": { "width": width, "height": 844, "pixelRatio": 2, "touch": true } });
    }
    Driver::new(process, port, json!({ "goog:chromeOptions": options }))
}
