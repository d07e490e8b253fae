//! Programs that do not outlive the test.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const TO_START: Duration = Duration::from_secs(20);

/// A running program, killed on drop.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it, and waits for the line of its output in which `find` finds what is to know of it.
    pub(crate) fn start<T>(command: &mut Command, find: impl Fn(&str) -> Option<T>) -> (Self, T) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")));
        let output = process.0.stdout.take().expect("its output is piped");

        let (sender, lines) = mpsc::channel();
        // It goes on reading to the end, as the program would wait when its pipe is full.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _no_longer_waited_for = sender.send(line);
            }
        });
        let begin = Instant::now();
        let mut written = Vec::new();
        loop {
            match lines.recv_timeout(TO_START.saturating_sub(begin.elapsed())) {
                Ok(line) => match find(&line) {
                    Some(value) => return (process, value),
                    None => written.push(line),
                },
                Err(error) => panic!(
                    "{command:?} did not start in {:?}: {error}; it wrote {written:?}, and its error output is above",
                    begin.elapsed()
                ),
            }
        }
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
        let _already_ended = self.0.kill();
        let _nothing_to_do_about_it = self.0.wait();
    }
}

/// Where a program is that the tests cannot do without, and that this Debian package brings.
pub(crate) fn installed(names: &[&str], package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks for programs.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]).collect::<Vec<_>>();
    let found = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    found.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}
