//! The quickstart example, as a user runs it.

use crate::process::Process;
use std::{net::SocketAddr, path::PathBuf, process::Command, sync::LazyLock, time::Duration};

/// A running quickstart server, killed on drop.
#[derive(Debug)]
pub struct Quickstart {
    _process: Process,
    address: SocketAddr,
}

impl Quickstart {
    /// Starts it on a port that is free, with this time between samples.
    pub fn start(every: Duration) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), every)
    }

    /// Starts it where another one was.
    pub fn start_at(address: SocketAddr, every: Duration) -> Self {
        let mut command = Command::new(&*PROGRAM);
        command.args([address.to_string(), every.as_millis().to_string()]);
        let (process, address) = Process::start(&mut command, |line| {
            let (_, url) = line.split_once("http://")?;
            url.split(['/', ' ']).next()?.parse().ok()
        });
        Self { _process: process, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Built once, and where cargo says it has put it.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let build = Command::new(env!("CARGO"))
        .args(["build", "--package=tower-sse", "--example=quickstart", "--message-format=json-render-diagnostics"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(build.status.success(), "the quickstart does not build:\n{}", String::from_utf8_lossy(&build.stderr));
    let messages = String::from_utf8(build.stdout).expect("cargo writes UTF-8");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "quickstart");
    programs.find_map(|message| Some(message["executable"].as_str()?.into())).expect("cargo names what it has built")
});
