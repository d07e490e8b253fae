//! A virtual screen for a browser that has no headless mode.

use crate::process::{Process, installed};
use std::{process::Command, time::Duration};

/// A running Xvfb. Dropping it ends Xvfb.
#[derive(Debug)]
pub(crate) struct Screen {
    xvfb: Process,
    display: String,
}

impl Screen {
    /// Starts Xvfb. It chooses a free display, and prints its number.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(installed(&["Xvfb"], "xvfb"));
        command.args(["-displayfd", "1", "-nolisten", "tcp", "-screen", "0", "1280x900x24"]);
        let (xvfb, number) = Process::start(&mut command, |line| line.parse::<u32>().ok());
        Self { xvfb, display: format!(":{number}") }
    }

    /// Returns the value of `DISPLAY` for programs on this screen.
    pub(crate) fn display(&self) -> &str {
        &self.display
    }
}

impl Drop for Screen {
    /// Sends SIGTERM first: SIGKILL would leave the lock file of the display behind.
    fn drop(&mut self) {
        self.xvfb.signal("TERM");
        self.xvfb.wait_for_exit(Duration::from_secs(5));
    }
}
