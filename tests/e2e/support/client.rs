//! Other programs that read event streams.

use crate::process::Process;
use std::{
    process::{Command, ExitStatus},
    sync::mpsc::Receiver,
    time::Duration,
};

/// A running program that reads an event stream and writes what it gets, killed on drop.
#[derive(Debug)]
pub struct Client {
    process: Process,
    output: Receiver<String>,
    lines: Vec<String>,
}

impl Client {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let (process, output) = Process::spawn_read(command);
        Self { process, output, lines: Vec::new() }
    }

    /// What it has written so far.
    pub fn lines(&mut self) -> &[String] {
        self.lines.extend(self.output.try_iter());
        &self.lines
    }

    /// Waits for it to end by itself, and returns how it did. `None` if it does not in this time.
    pub fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let status = self.process.ended_within(time)?;
        // What it wrote last may still be on its way here.
        self.lines.extend(self.output.iter());
        Some(status)
    }
}
