//! Programs that do not outlive the test.

use crate::family;
use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const TO_START: Duration = Duration::from_secs(20);

/// A running program, killed on drop with all that it has started.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it. It has no input, and its output is where the command says.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Starts it. What it writes comes line by line.
    pub(crate) fn spawn_read(command: &mut Command) -> (Self, mpsc::Receiver<String>) {
        let mut process = Self::spawn(command.stdout(Stdio::piped()));
        let output = process.0.stdout.take().expect("its output is piped");

        let (sender, lines) = mpsc::channel();
        // It goes on reading to the end, as the program would wait when its pipe is full.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _no_longer_waited_for = sender.send(line);
            }
        });
        (process, lines)
    }

    /// Starts it, and waits for the line of its output in which `find` finds what is to know of it.
    pub(crate) fn start<T>(command: &mut Command, find: impl Fn(&str) -> Option<T>) -> (Self, T) {
        Self::try_start(command, find).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, for a program that may do better the next time. The error says what it wrote.
    pub(crate) fn try_start<T>(command: &mut Command, find: impl Fn(&str) -> Option<T>) -> Result<(Self, T), String> {
        let (process, lines) = Self::spawn_read(command);
        let begin = Instant::now();
        let mut written = Vec::new();
        loop {
            match lines.recv_timeout(TO_START.saturating_sub(begin.elapsed())) {
                Ok(line) => match find(&line) {
                    Some(value) => return Ok((process, value)),
                    None => written.push(line),
                },
                Err(error) => {
                    return Err(format!(
                        "{command:?} did not start in {:?}: {error}; it wrote {written:?}, and its error output is above",
                        begin.elapsed()
                    ));
                }
            }
        }
    }

    /// Starts it, and waits until it listens on a port: for a program that does not say on which.
    pub(crate) fn try_start_listening(command: &mut Command) -> Result<(Self, u16), String> {
        let mut process = Self::spawn(command.stdout(Stdio::null()));
        let begin = Instant::now();
        while begin.elapsed() < TO_START {
            if let Some(port) = listens_on(process.0.id()) {
                return Ok((process, port));
            }
            if let Some(status) = process.0.try_wait().expect("it is a child of this process") {
                return Err(format!("{command:?} has ended, {status}; its error output is above"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{command:?} does not listen after {:?}; its error output is above", begin.elapsed()))
    }

    /// Sends it this signal.
    ///
    /// By the program for that: the standard library has no safe way to send another one than SIGKILL.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new(installed(&["kill"], "procps")).args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{name} cannot be sent");
    }

    /// Waits for it to end by itself, but not for long.
    pub(crate) fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < time {
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
        // The id of one that has ended may be another's by now.
        if let Ok(None) = self.0.try_wait() {
            family::kill(self.0.id());
        }
        let _already_ended = self.0.kill();
        let _nothing_to_do_about_it = self.0.wait();
    }
}

/// The first port on which a process listens at 127.0.0.1, from what Linux tells of it.
fn listens_on(process: u32) -> Option<u16> {
    const LISTENS: &str = "0A";
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    let inode = |target: PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let sockets: Vec<_> = targets.filter_map(inode).collect();
    fs::read_to_string("/proc/net/tcp").ok()?.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, state, ..] = *fields else { return None };
        let is_its_own = sockets.iter().any(|socket| socket == fields.get(9).copied().unwrap_or_default());
        let port = local.strip_prefix("0100007F:")?;
        if state == LISTENS && is_its_own { u16::from_str_radix(port, 16).ok() } else { None }
    })
}

/// Where a program is that the tests cannot do without, and that this Debian package brings.
///
/// # Panics
///
/// If it is nowhere.
pub fn installed(names: &[&str], package: &str) -> PathBuf {
    found(names).unwrap_or_else(|| {
        panic!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}

/// Where the first of these programs is.
pub(crate) fn found(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks for programs.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]).collect::<Vec<_>>();
    let mut files = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.find(|file| file.is_file())
}
