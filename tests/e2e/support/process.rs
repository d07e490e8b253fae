//! Programs that do not outlive the test.

use crate::process_tree;
use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running program. Dropping it kills the program and all its descendants.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts the program without input. The command decides where the output goes.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Starts the program, and returns a channel of its output lines.
    pub(crate) fn spawn_piped(command: &mut Command) -> (Self, mpsc::Receiver<String>) {
        let mut process = Self::spawn(command.stdout(Stdio::piped()));
        let output = process.0.stdout.take().expect("its output is piped");

        let (sender, lines) = mpsc::channel();
        // The thread reads to the end, because a full pipe would block the program.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _receiver_is_dropped = sender.send(line);
            }
        });
        (process, lines)
    }

    /// Starts the program, and waits until `find` returns a value for a line of its output.
    pub(crate) fn start<T>(command: &mut Command, find: impl Fn(&str) -> Option<T>) -> (Self, T) {
        Self::try_start(command, find).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Does the same as [`start`](Self::start), and returns an error that contains the output.
    pub(crate) fn try_start<T>(command: &mut Command, find: impl Fn(&str) -> Option<T>) -> Result<(Self, T), String> {
        let (process, lines) = Self::spawn_piped(command);
        let begin = Instant::now();
        let mut output = Vec::new();
        loop {
            match lines.recv_timeout(START_TIMEOUT.saturating_sub(begin.elapsed())) {
                Ok(line) => match find(&line) {
                    Some(value) => return Ok((process, value)),
                    None => output.push(line),
                },
                Err(error) => {
                    return Err(format!(
                        "{command:?} did not start within {:?}: {error}; its output is {output:?}, \
                         and its error output is above",
                        begin.elapsed()
                    ));
                }
            }
        }
    }

    /// Returns the exit status if the program has exited.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("it is a child of this process")
    }

    /// Starts a program that does not print its port, and waits until it listens on one.
    pub(crate) fn try_start_listening(command: &mut Command) -> Result<(Self, u16), String> {
        let mut process = Self::spawn(command.stdout(Stdio::null()));
        let begin = Instant::now();
        while begin.elapsed() < START_TIMEOUT {
            if let Some(port) = listening_port(process.0.id()) {
                return Ok((process, port));
            }
            if let Some(status) = process.exit_status() {
                return Err(format!("{command:?} exited with {status}; its error output is above"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{command:?} does not listen after {:?}; its error output is above", begin.elapsed()))
    }

    /// Sends a signal, by name.
    ///
    /// Runs `kill`, because the standard library can safely send no signal but SIGKILL. After a
    /// SIGSTOP, waits until every thread of the process has stopped: on a busy machine, a thread
    /// can still handle requests after `kill` has returned.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new(installed(&["kill"], "procps")).args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send SIG{name}");
        let begin = Instant::now();
        while name == "STOP" && self.has_running_thread() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the process does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGSTOP or SIGCONT to the program and all its descendants.
    pub(crate) fn signal_tree(&self, name: &str) {
        process_tree::signal_all(self.0.id(), name);
    }

    /// Returns the ids of the program and its descendants. The first one is that of the program.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let id = self.0.id();
        let others = process_tree::ids(id).into_iter().filter(|other| *other != id);
        std::iter::once(id).chain(others).collect()
    }

    /// Returns whether a thread of the process has not stopped.
    fn has_running_thread(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).into_iter().flatten().flatten();
        // The state follows the name of the program in parentheses, see proc(5).
        threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok())
            .any(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('T')))
    }

    /// Waits until the program exits, and returns its status. Returns `None` after the timeout.
    pub(crate) fn wait_for_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < timeout {
            if let Some(status) = self.0.try_wait().expect("it is a child of this process") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After the program has exited, its id may belong to another process.
        if let Ok(None) = self.0.try_wait() {
            process_tree::kill(self.0.id());
        }
        let _already_ended = self.0.kill();
        let _nothing_to_do_about_it = self.0.wait();
    }
}

/// Returns the port of 127.0.0.1 that a process listens on. Reads `/proc`.
fn listening_port(process: u32) -> Option<u16> {
    const LISTEN: &str = "0A";
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    let inode = |target: PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let sockets: Vec<_> = targets.filter_map(inode).collect();
    fs::read_to_string("/proc/net/tcp").ok()?.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, state, ..] = *fields else { return None };
        let is_own = sockets.iter().any(|socket| socket == fields.get(9).copied().unwrap_or_default());
        let port = local.strip_prefix("0100007F:")?;
        if state == LISTEN && is_own { u16::from_str_radix(port, 16).ok() } else { None }
    })
}

/// Returns the path of a required program: the first of these names that is installed.
///
/// # Panics
///
/// If none of the programs is installed. The message names the Debian package.
pub fn installed(names: &[&str], package: &str) -> PathBuf {
    find_installed(names).unwrap_or_else(|| {
        panic!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}

/// Returns the path of the first of these programs that is installed.
pub(crate) fn find_installed(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian installs servers in a folder that only root has in its PATH, and each version of
    // Postgres in a folder of its own.
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.file_name()));
    let postgres = versions.into_iter().map(|version| version.path().join("bin"));
    // The binaries of another version of Postgres: see scripts/postgres-versions.
    let chosen = env::var_os("TOWER_SSE_POSTGRES_BIN").map(PathBuf::from);
    let folders: Vec<_> =
        chosen.into_iter().chain(postgres).chain(env::split_paths(&path)).chain(["/usr/sbin".into()]).collect();
    let mut files = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.find(|file| file.is_file())
}
