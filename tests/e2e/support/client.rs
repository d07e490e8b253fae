//! Clients that are other programs.

use crate::process::Process;
use std::{
    process::{Command, ExitStatus},
    sync::mpsc::Receiver,
    time::Duration,
};

/// A running program that reads an event stream and prints what it receives. Killed on drop.
#[derive(Debug)]
pub struct Client {
    process: Process,
    output: Receiver<String>,
    lines: Vec<String>,
}

impl Client {
    /// Starts the program.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let (process, output) = Process::spawn_piped(command);
        Self { process, output, lines: Vec::new() }
    }

    /// Returns the lines that the program has printed until now.
    pub fn lines(&mut self) -> &[String] {
        self.lines.extend(self.output.try_iter());
        &self.lines
    }

    /// Waits until the program exits, and returns its status. Returns `None` after the timeout.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let status = self.process.wait_for_exit(timeout)?;
        // The last lines may still be in the channel.
        self.lines.extend(self.output.iter());
        Some(status)
    }
}
