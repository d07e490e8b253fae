//! Processes that tests start and kill: this executable again, with a task in its environment.

use super::folder::{SOON, all_with_gaps, record};
use futures_util::{StreamExt, stream};
use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{self, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::time::sleep;
use tower_sse::{
    Event,
    hub::{
        Hub,
        backend::{Backend, Durability, FileBackend},
    },
};

const TASK: &str = "TOWER_SSE_TEST_TASK";
const LOG: &str = "TOWER_SSE_TEST_LOG";
/// The begin of the lines that a child prints, among those of the test harness.
const PREFIX: &str = "child: ";

/// A process with a task. Dropping it kills it.
pub(crate) struct Child {
    process: process::Child,
    lines: BufReader<ChildStdout>,
}

impl Child {
    pub(crate) fn start(task: &str, log: &Path) -> Self {
        Self::start_as(Command::new(env::current_exe().expect("this executable")), task, log)
    }

    /// Starts the child with a command that executes its arguments.
    pub(crate) fn start_as(mut command: Command, task: &str, log: &Path) -> Self {
        command.args(["--exact", "child::run", "--ignored", "--nocapture"]).env(TASK, task).env(LOG, log);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the process starts");
        let lines = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, lines }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the next line that the child prints, or `None` after its end.
    pub(crate) fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("a line") == 0 {
                return None;
            }
            // The harness does not end its line before the test begins.
            if let Some((_, line)) = line.trim_end_matches('\n').split_once(PREFIX) {
                return Some(line.to_owned());
            }
        }
    }

    /// Kills the process with `SIGKILL`.
    pub(crate) fn kill(&mut self) {
        let _already_ended = self.process.kill();
        self.process.wait().expect("the process ends");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn print(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // The line is one write, so it is printed as a whole or not at all.
    out.write_all(format!("{PREFIX}{line}\n").as_bytes()).expect("the parent reads");
    out.flush().expect("the parent reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "other tests run it in a process of its own"]
async fn run() {
    let task = env::var(TASK).expect("a task");
    let log = env::var(LOG).expect("the path of a log");
    let words: Vec<_> = task.split(' ').collect();
    let durability = if words.contains(&"process") { Durability::Process } else { Durability::Disk };
    let log = FileBackend::new(log).durability(durability);
    match words[0] {
        "hold" => {
            log.bounds().await.expect("it opens");
            print("open");
            sleep(10 * SOON).await;
        }
        // Publishes until the process is killed, and prints each acknowledged record.
        "publish" => publish(&log.max_records(10_000), words[1]).await,
        "writes" => writes(&log, words[1].parse().unwrap(), words[2].parse().unwrap()).await,
        "fill" => fill(&log).await,
        "read" => read(&log).await,
        "epochs" => epochs(&log).await,
        "record" => record_stream(log, words[1]).await,
        _ => panic!("unknown task {task:?}"),
    }
}

/// The number of publishers in the task `publish`, and of records in a batch of the last publisher.
pub(crate) const PUBLISHERS: usize = 8;
pub(crate) const BATCH: usize = 3;

async fn publish(log: &FileBackend, round: &str) {
    let publisher = async |publisher: usize| {
        for n in 0.. {
            let size = if publisher == PUBLISHERS - 1 { BATCH } else { 1 };
            let records = (0..size).map(|part| record(&format!("{round} {publisher} {n} {part}"))).collect();
            let position = log.append(records).await.expect("it is appended").position;
            print(format!("{publisher} {n} {position}"));
        }
    };
    stream::iter(0..PUBLISHERS).for_each_concurrent(None, publisher).await;
}

/// Appends events, and prints the number of writes that this took, from Linux's `/proc`.
async fn writes(log: &FileBackend, publishers: usize, events: usize) {
    let writes = || {
        let io = fs::read_to_string("/proc/self/io").expect("Linux");
        let line = io.lines().find_map(|line| line.strip_prefix("syscw: "));
        line.expect("the number of writes").parse::<u64>().expect("a number")
    };
    log.bounds().await.expect("it opens");
    let before = writes();
    let append = async |n: usize| {
        log.append(vec![record(&n.to_string())]).await.expect("it is appended");
    };
    stream::iter(0..events).for_each_concurrent(publishers, append).await;
    print(writes() - before);
}

/// Appends events until this fails, then reads them, and appends again until this succeeds.
async fn fill(log: &FileBackend) {
    let mut appended = 0_usize;
    let error = loop {
        match log.append(vec![record(&format!("{appended} {}", "x".repeat(10_000)))]).await {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    print(error);
    let (records, gaps) = all_with_gaps(log).await;
    let is_complete =
        records.iter().take(appended).enumerate().all(|(n, (_, data))| data.starts_with(&format!("{n} ")));
    print(format!("{appended} {} {} {}", records.len(), gaps.len(), is_complete));
    while log.append(vec![record("the end")]).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    let (records, _) = all_with_gaps(log).await;
    print(format!("{} {}", records.len(), records[records.len() - 1].1));
}

/// Publishes a prompt, and starts a recording whose stream is silent. Prints a line when the
/// recording is announced.
async fn record_stream(log: FileBackend, topic: &str) {
    let hub = Hub::builder().backend(log).connect().await.expect("the log opens");
    let topic = hub.topic(topic);
    topic.publish(Event::new("prompt")).await.expect("it is published");
    let silence = tokio_stream::pending::<Event>();
    let recording = topic.record(silence).will(Event::new("will")).lease(Duration::from_millis(300)).start();
    recording.announced().await.expect("it is announced");
    print("announced");
    sleep(10 * SOON).await;
}

/// Reads all events, and appends one.
async fn read(log: &FileBackend) {
    let (records, gaps) = all_with_gaps(log).await;
    print(format!("{} {}", records.len(), gaps.len()));
    loop {
        match log.append(vec![record("one more")]).await {
            Ok(_) => return print("appended"),
            Err(error) => print(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// Appends an event until this succeeds, and prints the epoch of the log before and after each
/// attempt.
async fn epochs(log: &FileBackend) {
    let mut is_appended = false;
    loop {
        let epoch = log.bounds().await.expect("the log can be read").epoch;
        print(format!("{is_appended} {epoch}"));
        if is_appended {
            return;
        }
        is_appended = log.append(vec![record("one more")]).await.is_ok();
        sleep(Duration::from_millis(50)).await;
    }
}
