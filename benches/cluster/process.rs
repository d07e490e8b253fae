//! A [node](crate::node) as whoever has started it sees it.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

pub(crate) const NODE: &str = "--node";

/// Killed on drop.
pub(crate) struct Node {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    pub(crate) fn start() -> Result<Self, String> {
        let cannot_start = |error| format!("cannot start a node: {error}");
        let mut command = Command::new(env::current_exe().map_err(cannot_start)?);
        command.arg(NODE).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(cannot_start)?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (input, output) = pipes.ok_or("a node has no pipes")?;
        Ok(Self { process, input, output: BufReader::new(output) })
    }

    /// What it is to do. It does one after the other.
    pub(crate) fn tell(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.input, "{command}").map_err(|error| format!("{command}: {error}"))
    }

    /// The answer to what it was told first, of what it has not answered yet.
    pub(crate) fn answer(&mut self) -> Result<Vec<u64>, String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(1..) => Ok(line.split_whitespace().filter_map(|word| word.parse().ok()).collect()),
            _ => Err("a node has ended; why is above".to_owned()),
        }
    }

    pub(crate) fn ask(&mut self, command: &str) -> Result<Vec<u64>, String> {
        self.tell(command)?;
        self.answer()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _nothing_to_do_about_it = self.process.wait();
    }
}

/// Has all of them do the same at the same time.
pub(crate) fn all(nodes: &mut [Node], command: &str) -> Result<Vec<Vec<u64>>, String> {
    nodes.iter_mut().try_for_each(|node| node.tell(command))?;
    nodes.iter_mut().map(Node::answer).collect()
}
