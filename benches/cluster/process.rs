//! A handle to the process of a [node](crate::node).

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

pub(crate) const NODE: &str = "--node";

/// A process that is killed on drop.
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

    /// Sends a command. The node executes its commands one after another.
    pub(crate) fn send(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.input, "{command}").map_err(|error| format!("{command}: {error}"))
    }

    /// Waits for the result of the oldest command without a received result.
    pub(crate) fn receive(&mut self) -> Result<Vec<u64>, String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(1..) => Ok(line.split_whitespace().filter_map(|word| word.parse().ok()).collect()),
            _ => Err("a node has ended, with the error above".to_owned()),
        }
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn quit(mut self) -> Result<(), String> {
        self.send("quit")?;
        self.process.wait().map(drop).map_err(|error| format!("a node does not end: {error}"))
    }

    /// Sends a command, and waits for its result.
    pub(crate) fn call(&mut self, command: &str) -> Result<Vec<u64>, String> {
        self.send(command)?;
        self.receive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// Runs a command on all nodes at the same time.
pub(crate) fn all(nodes: &mut [Node], command: &str) -> Result<Vec<Vec<u64>>, String> {
    nodes.iter_mut().try_for_each(|node| node.send(command))?;
    nodes.iter_mut().map(Node::receive).collect()
}
