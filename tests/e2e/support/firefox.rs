//! Firefox, driven by geckodriver.

use crate::{
    driver::Driver,
    process::{Process, find_installed, installed},
};
use serde_json::json;
use std::{path::Path, process::Command};

pub(crate) fn start(profile: &Path) -> Driver {
    // Debian has no package of geckodriver.
    let geckodriver = find_installed(&["geckodriver"])
        .unwrap_or_else(|| panic!("geckodriver is not installed: `cargo install --locked --debug geckodriver@0.37.1`"));
    let mut command = Command::new(geckodriver);
    // WebDriver BiDi is not used, so its port can be any.
    command.args(["--port=0", "--websocket-port=0", "--profile-root"]).arg(profile);
    // Files outside of the profile.
    command.env("HOME", profile).env("TMPDIR", profile);
    let (process, port) =
        Process::start(&mut command, |line| line.rsplit_once("Listening on 127.0.0.1:")?.1.parse().ok());
    let capabilities = json!({
        "proxy": { "proxyType": "direct" },
        "moz:firefoxOptions": {
            "binary": installed(&["firefox-esr", "firefox"], "firefox-esr"),
            "args": ["-headless"],
            // Only the page may use the network. geckodriver disables other services by itself.
            "prefs": {
                "app.normandy.enabled": false,
                "browser.safebrowsing.malware.enabled": false,
                "browser.safebrowsing.phishing.enabled": false,
                "datareporting.policy.dataSubmissionEnabled": false,
                "dom.push.connection.enabled": false,
                "network.captive-portal-service.enabled": false,
                "network.connectivity-service.enabled": false,
                "services.settings.server": "data:,#",
                "toolkit.telemetry.enabled": false,
            },
        },
    });
    Driver::new(process, port, capabilities)
}
