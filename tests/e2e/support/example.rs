//! The examples, as programs.

use crate::process::Process;
use std::{
    collections::HashMap,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
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
    /// Starts an example on a free port, with these arguments after the address.
    ///
    /// # Panics
    ///
    /// If the example does not build, or does not print its address.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name, args)
    }

    /// Starts an example at the address of an earlier one.
    ///
    /// # Panics
    ///
    /// If the example does not build, or does not print its address.
    pub fn start_at(address: SocketAddr, name: &str, args: &[&str]) -> Self {
        Self::start_with(name, &[&[&*address.to_string()], args].concat())
    }

    /// Starts an example with only these arguments.
    ///
    /// # Panics
    ///
    /// If the example does not build, or does not print its address.
    pub fn start_with(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(example_path(name));
        command.args(args);
        let (process, address) = Process::start(&mut command, |line| {
            let (_, url) = line.split_once("http://")?;
            url.split(['/', ' ']).next()?.parse().ok()
        });
        Self { process, address }
    }

    /// Sends SIGTERM, as an init system does before it kills a service.
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    pub fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits until the example exits, and returns its status. Returns `None` after the timeout.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.process.wait_for_exit(timeout)
    }

    /// Returns the address of the example.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Builds an example once, and returns the path of its executable.
///
/// # Panics
///
/// If the example does not build.
pub fn example_path(name: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.get_or_insert_default().entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    // Cargo sets these variables for a test. The build script of ring would see the change, and
    // build ring again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    // An example is a file of the library's package, or a package of its own.
    let package = format!("example-{name}");
    let is_package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name).is_dir();
    let target = if is_package { &package } else { name };
    let targets = if is_package { vec!["--bin", target, "--example", "quickstart"] } else { vec!["--example", target] };
    let build = command
        // With the packages and features of the whole suite, so that cargo builds each library once. The
        // dependencies of tests are among them if cargo builds an example or a test.
        .args(["build", "--workspace", "--all-features"])
        .args(targets)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo is installed");
    assert!(build.status.success(), "{name} does not build:\n{}", String::from_utf8_lossy(&build.stderr));
    let messages = String::from_utf8(build.stdout).expect("cargo writes UTF-8");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut artifacts = messages.filter(|message| message["target"]["name"] == target);
    artifacts.find_map(|message| Some(message["executable"].as_str()?.into())).expect("cargo prints the executable")
}
