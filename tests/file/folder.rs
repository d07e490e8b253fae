//! Folders for the files of a test, and helpers for the log in one.

use futures_util::StreamExt;
use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tower_sse::{
    EncodedEvents,
    hub::{
        Subscription,
        backend::{Backend, Durability, FileBackend, Position, Record, RecordKind},
    },
};

/// The time limit for everything that has to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A new folder. Dropping it removes it with its files.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tower-sse-file-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the folder can be created");
        Self(path)
    }

    /// Returns the path of a file in the folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("events.log")
    }

    pub(crate) fn mark(&self) -> PathBuf {
        self.path("events.log.mark")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// Returns the log in the folder, which does not wait for the disk.
pub(crate) fn open(folder: &Folder) -> FileBackend {
    FileBackend::new(folder.log()).durability(Durability::Process)
}

/// Waits until a log whose handles were dropped is closed.
#[clippy::msrv = "1.90"]
pub(crate) async fn closed(folder: &Folder) {
    let mark = File::open(folder.mark()).expect("there is a mark");
    let begin = Instant::now();
    while mark.try_lock().is_err() {
        assert!(begin.elapsed() < SOON, "the log is still open");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(condition: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < SOON, "the condition does not hold");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn record(data: &str) -> Record {
    Record::new("topic", RecordKind::Event, format!("data: {data}\n\n"))
}

pub(crate) async fn append(log: &FileBackend, data: &str) -> Position {
    log.append(vec![record(data)]).await.expect("it is appended").position
}

/// Appends records in batches, and returns the position of the last one.
pub(crate) async fn fill(log: &FileBackend, data: impl Iterator<Item = String>) -> Position {
    let records: Vec<_> = data.map(|data| record(&data)).collect();
    let mut last = Position::START;
    for batch in records.chunks(500) {
        last = log.append(batch.to_vec()).await.expect("they are appended").position;
    }
    last
}

/// Returns the data of all retained records.
pub(crate) async fn all(log: &FileBackend) -> Vec<(Position, String)> {
    let (records, gaps) = all_with_gaps(log).await;
    assert_eq!(gaps, [], "nothing is missing");
    records
}

/// Returns the data of all retained records, and the missing ranges between them.
pub(crate) async fn all_with_gaps(log: &FileBackend) -> (Vec<(Position, String)>, Vec<(Position, Position)>) {
    let bounds = log.bounds().await.expect("bounds");
    let mut after = bounds.evicted_through;
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    while after < bounds.last {
        let page = timeout(SOON, log.follow(after)).await.expect("it does not wait").expect("a page");
        assert!(page.through > after, "a page leads on: {page:?}");
        if page.evicted_through > after {
            gaps.push((after.next(), page.evicted_through));
        }
        for (position, record) in page.records {
            let event = String::from_utf8(record.event.to_vec()).expect("text");
            let data = event.strip_prefix("data: ").and_then(|event| event.strip_suffix("\n\n"));
            records.push((position, data.expect("an event").to_owned()));
        }
        after = page.through;
    }
    (records, gaps)
}

/// Returns the next item of a subscription that is not the cursor.
pub(crate) async fn event(subscription: &mut Subscription) -> EncodedEvents {
    loop {
        let next = timeout(SOON, subscription.next()).await.expect("an event").expect("no end").expect("no error");
        if !next.as_bytes().starts_with(b"event: hub-cursor") {
            return next;
        }
    }
}
