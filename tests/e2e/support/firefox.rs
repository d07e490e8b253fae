//! Firefox, by way of geckodriver.

use crate::{
    driver::Driver,
    process::{Process, found, installed},
};
use serde_json::json;
use std::{path::Path, process::Command};

pub(crate) fn start(profile: &Path) -> Driver {
    // Debian has no package of it.
    let geckodriver = found(&["geckodriver"])
        .unwrap_or_else(|| panic!("geckodriver is not installed: `cargo install --locked --debug geckodriver@0.37.1`"));
    let mut command = Command::new(geckodriver);
    // The other port is that of a protocol that is not used: any will do.
    command.args(["--port=0", "--websocket-port=0", "--profile-root"]).arg(profile);
    // What it keeps outside of a profile.
    command.env("HOME", profile).env("TMPDIR", profile);
    let (process, port) =
        Process::start(&mut command, |line| line.rsplit_once("Listening on 127.0.0.1:")?.1.parse().ok());
    let capabilities = json!({
        "proxy": { "proxyType": "direct" },
        "moz:firefoxOptions": {
            "binary": installed(&["firefox-esr", "firefox"], "firefox-esr"),
            "args": ["-headless"],
            // Nothing but the page is to use the network. geckodriver turns off the rest.
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
