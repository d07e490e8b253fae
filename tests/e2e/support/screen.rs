//! A screen that nobody looks at, for a browser that does not run without one.

use crate::process::{Process, installed};
use std::{process::Command, time::Duration};

/// It is gone on drop.
#[derive(Debug)]
pub(crate) struct Screen {
    xvfb: Process,
    display: String,
}

impl Screen {
    /// On a display that is free: Xvfb looks for one, and says which.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(installed(&["Xvfb"], "xvfb"));
        command.args(["-displayfd", "1", "-nolisten", "tcp", "-screen", "0", "1280x900x24"]);
        let (xvfb, number) = Process::start(&mut command, |line| line.parse::<u32>().ok());
        Self { xvfb, display: format!(":{number}") }
    }

    /// What `DISPLAY` is for programs that are to be on it.
    pub(crate) fn display(&self) -> &str {
        &self.display
    }
}

impl Drop for Screen {
    /// Killed, it would leave the lock of its display behind.
    fn drop(&mut self) {
        self.xvfb.signal("TERM");
        self.xvfb.ended_within(Duration::from_secs(5));
    }
}
