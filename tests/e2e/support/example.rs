//! The examples, as a user runs them.

use crate::process::Process;
use std::{
    collections::HashMap,
    env,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// A running example, killed on drop.
#[derive(Debug)]
pub struct Example {
    process: Process,
    address: SocketAddr,
}

impl Example {
    /// Starts it on a port that is free, with these arguments after the address.
    ///
    /// # Panics
    ///
    /// If it does not build, or does not print where it listens.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name, args)
    }

    /// Starts it where another one was.
    ///
    /// # Panics
    ///
    /// If it does not build, or does not print where it listens.
    pub fn start_at(address: SocketAddr, name: &str, args: &[&str]) -> Self {
        Self::start_with(name, &[&[&*address.to_string()], args].concat())
    }

    /// Starts it with nothing but these arguments.
    ///
    /// # Panics
    ///
    /// If it does not build, or does not print where it listens.
    pub fn start_with(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program(name));
        command.args(args);
        let (process, address) = Process::start(&mut command, |line| {
            let (_, url) = line.split_once("http://")?;
            url.split(['/', ' ']).next()?.parse().ok()
        });
        Self { process, address }
    }

    /// Asks it to end, as an init system does before it kills: SIGTERM.
    ///
    /// # Panics
    ///
    /// If it cannot be asked.
    pub fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Sends it this signal: `STOP` and `CONT`.
    ///
    /// # Panics
    ///
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for it to end by itself. `None` if it does not in this time.
    pub fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        self.process.ended_within(time)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Where the program of an example is: built once, and where cargo says it has put it.
///
/// # Panics
///
/// If it does not build.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.get_or_insert_default().entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    // What cargo tells a test of its package: ring is built anew where that is another one than the last time.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    let build = command
        // With the features with which the whole suite is built, so that it is built once.
        .args(["build", "--package=tower-sse", "--all-features", "--example", name])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(build.status.success(), "{name} does not build:\n{}", String::from_utf8_lossy(&build.stderr));
    let messages = String::from_utf8(build.stdout).expect("cargo writes UTF-8");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == name);
    programs.find_map(|message| Some(message["executable"].as_str()?.into())).expect("cargo names what it has built")
}
