//! The log in a file: publishing against the speed of the disk, replay, and the start after a
//! crash.

use crate::{Bench, Log, median, process::Node};
use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

/// The size of an event of 128 bytes of data in the log, with its topic and its head.
const RECORD: usize = 128 + 43;
/// The number of events that are published together.
const TOGETHER: usize = 1000;

/// The folder of the log files. Dropping this value removes the folder and its files.
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn new() -> Result<Self, String> {
        let folder = env::temp_dir().join(format!("tower-sse-cluster-files-{}", process::id()));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }

    pub(crate) fn url(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    /// Prints what the log in a file costs.
    pub(crate) fn file(&mut self) -> Result<(), String> {
        self.file_publishing()?;
        self.file_start()
    }

    fn file_publishing(&mut self) -> Result<(), String> {
        let millis = self.scale.flood.0;
        let title = "publishing to a file";
        println!(
            "\n{title:<28} {:>10} {:>9} {:>9} {:>11} {:>14} {:>6}  target",
            "publishers", "p50, µs", "p99, µs", "events/s", "fdatasync/s", "ratio"
        );
        for (log, name) in [(Log::File, "on disk"), (Log::FileProcess, "with the system")] {
            for publishers in [1_u64, 16, 64] {
                let mut rows = Vec::new();
                for _ in 0..self.scale.times {
                    let stream = self.new_stream();
                    let mut node = Node::start()?;
                    node.call(&self.open(log, &stream, 10_000))?;
                    // The speed of the disk changes, so it is measured before and after.
                    let before = syncs(&self.files.0, publishers as usize * RECORD, millis)?;
                    let [events, nanos, p50, p99] = node.call(&format!("publishers 0 {millis} {publishers}"))?[..]
                    else {
                        return Err("a node has not published".to_owned());
                    };
                    let after = syncs(&self.files.0, publishers as usize * RECORD, millis)?;
                    let rate = events as f64 * 1e9 / nanos as f64;
                    let disk = before.midpoint(after);
                    rows.push([p50 as f64 / 1e3, p99 as f64 / 1e3, rate, disk, rate / disk / publishers as f64]);
                }
                let [p50, p99, rate, disk, ratio] =
                    [0, 1, 2, 3, 4].map(|n| median(rows.iter().map(|row| row[n]).collect()));
                let target = if log == Log::File && publishers == 64 { "≥ 0.5" } else { "" };
                println!(
                    "{name:<28} {publishers:>10} {p50:>9.0} {p99:>9.0} {rate:>11.0} {disk:>14.0} {ratio:>6.2}  {target}"
                );
            }
        }
        Ok(())
    }

    fn file_start(&mut self) -> Result<(), String> {
        println!("\n{:<45} {:>9} {:>12} {:>9}  target", "start of a file log", "events", "median, ms", "MB");
        for events in [self.scale.history, 10 * self.scale.history] {
            let stream = self.new_stream();
            let open = self.open(Log::File, &stream, usize::MAX);
            let mut node = Node::start()?;
            node.call(&open)?;
            node.call(&format!("fill 0 {} {TOGETHER}", events / TOGETHER))?;
            for (case, is_killed) in [("after SIGKILL", true), ("after a clean end", false)] {
                let mut times = Vec::new();
                for _ in 0..self.scale.times {
                    if is_killed {
                        drop(node)
                    } else {
                        node.quit()?
                    }
                    let begin = Instant::now();
                    node = Node::start()?;
                    node.call(&open)?;
                    node.call("first 0")?;
                    times.push(begin.elapsed().as_secs_f64() * 1e3);
                }
                let size = fs::metadata(self.files.0.join(&stream)).map_or(0, |metadata| metadata.len() >> 20);
                let target = if events == 1_000_000 { "≤ 1000" } else { "" };
                let case = format!("process to first subscriber, {case}");
                println!("{case:<45} {events:>9} {:>12.0} {size:>9}  {target}", median(times));
            }
        }
        Ok(())
    }
}

/// Returns the number of times per second that this many bytes are appended to a file and synced.
fn syncs(folder: &Path, bytes: usize, millis: u64) -> Result<f64, String> {
    let path = folder.join("syncs");
    let run = || {
        let mut file = File::create(&path)?;
        let data = vec![b'x'; bytes];
        let (begin, mut syncs) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_millis(millis) {
            file.write_all(&data)?;
            file.sync_data()?;
            syncs += 1;
        }
        Ok(f64::from(syncs) / begin.elapsed().as_secs_f64())
    };
    run().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}
