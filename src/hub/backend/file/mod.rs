//! A log in a file of this machine, in the embedded database `redb`.

mod device;
mod error;
mod mark;
mod page;
mod queue;
mod record;
mod retention;
mod store;
mod writer;

use super::{Appended, Backend, Bounds, Page, Position, Record};
use crate::BoxError;
use error::{FileError, Kind};
use queue::{Append, Queue, Unchanged};
use retention::Retention;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::JoinHandle,
    time::Duration,
};
use store::{Store, Tail};
use tokio::{
    runtime::Handle,
    sync::{OnceCell, oneshot, watch},
    task::spawn_blocking,
};

/// A log in a file of this machine.
#[derive(Clone)]
pub struct FileBackend {
    path: PathBuf,
    retention: Retention,
    durability: Durability,
    log: Arc<OnceCell<Log>>,
}

/// What an acknowledged event of a [`FileBackend`] survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Publishing waits until the event is on the disk (`fdatasync`). The event survives a crash of
    /// the machine. It is the default.
    #[default]
    Disk,
    /// Publishing waits until the operating system has the event. The event survives a crash of the
    /// process. After a crash of the machine, the log has another epoch, and may have lost any of
    /// its events.
    Process,
}

impl FileBackend {
    /// Creates a backend for the log at this path.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            retention: Retention { max_records: 1_000_000, max_bytes: 1 << 30, max_age: Duration::from_secs(60 * 60) },
            durability: Durability::Disk,
            log: Arc::default(),
        }
    }

    /// Sets the number of records that the log retains, for all topics together. Default:
    /// 1,000,000. The log retains up to 1/64 more, at most 1,000 records more.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.retention.max_records = records;
        self
    }

    /// Sets the size of the records that the log retains, for all topics together. Default: 1 GiB.
    /// The log retains up to 1/64 more. The file is larger, see [size](Self#size-of-the-file).
    ///
    /// A record takes 29 bytes, its topic, and its event. The newest record is always retained.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.retention.max_bytes = bytes;
        self
    }

    /// Sets the age at which records are removed. Default: one hour. [`Duration::MAX`] and zero
    /// disable it.
    ///
    /// Records that expire one after the other are removed together, within 1/16 of the age. The
    /// age counts from the append, by the clock of the system, also while no process has opened the
    /// log.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.retention.max_age = if age.is_zero() { Duration::MAX } else { age };
        self
    }

    /// Sets what an acknowledged event survives. Default: [`Durability::Disk`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Returns the log. The first call opens it.
    async fn log(&self) -> Result<&Log, BoxError> {
        let open = || async {
            let Self { path, retention, durability, .. } = self.clone();
            spawn_blocking(move || {
                writer::open(&path, retention, durability).map_err(|error| error.context("open", &path))
            })
            .await?
            .map_err(BoxError::from)
        };
        self.log.get_or_try_init(open).await
    }
}

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").field("path", &self.path).finish_non_exhaustive()
    }
}

/// An open log. Dropping it closes the log.
struct Log {
    shared: Arc<Shared>,
    writer: Option<Writer>,
}

/// The thread of the writer. Dropping it waits for its end.
struct Writer(Option<JoinHandle<()>>);

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread has no result, and reports a panic itself.
        let _ended = self.0.take().map(JoinHandle::join);
    }
}

/// The parts of a log that its readers and its writer share.
struct Shared {
    path: PathBuf,
    /// The database, or the error for which it cannot be used now.
    store: RwLock<Result<Store, FileError>>,
    queue: Queue,
    bounds: watch::Sender<Bounds>,
}

impl Log {
    fn new(shared: Arc<Shared>, writer: JoinHandle<()>) -> Self {
        Self { shared, writer: Some(Writer(Some(writer))) }
    }

    async fn append(&self, records: Vec<Record>, condition: Option<Unchanged>) -> Result<Option<Appended>, BoxError> {
        let (reply, response) = oneshot::channel();
        self.shared.queue.push(Append { records, condition, reply });
        let closed = |_| FileError::new(Kind::Request, "its writer has ended").context("write to", &self.shared.path);
        Ok(response.await.map_err(closed)??)
    }

    async fn page(&self, topics: Option<&[Arc<str>]>, after: Position) -> Result<Page, BoxError> {
        let shared = Arc::clone(&self.shared);
        let topics = topics.map(<[_]>::to_vec);
        Ok(spawn_blocking(move || shared.page(topics.as_deref(), after)).await??)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.queue.close();
        let writer = self.writer.take();
        // The end of the writer takes a few milliseconds. A runtime that shuts down waits for this
        // task, or drops the closure, which waits as well.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(writer))),
            Err(_) => drop(writer),
        }
    }
}

impl Shared {
    fn new(path: &Path, store: Store, tail: &Tail) -> Self {
        let store = RwLock::new(Ok(store));
        Self { path: path.to_owned(), store, queue: Queue::default(), bounds: watch::Sender::new(bounds(tail)) }
    }

    fn store(&self) -> RwLockReadGuard<'_, Result<Store, FileError>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_mut(&self) -> RwLockWriteGuard<'_, Result<Store, FileError>> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the records up to the end of the log visible.
    fn announce(&self, tail: &Tail) {
        self.bounds.send_if_modified(|known| std::mem::replace(known, bounds(tail)) != *known);
    }

    fn page(&self, topics: Option<&[Arc<str>]>, after: Position) -> Result<Page, FileError> {
        // Records after this position are stored, but their mark may not be.
        let last = self.bounds.borrow().last;
        let store = self.store();
        let page = store.as_ref().map_err(FileError::clone)?.page(topics, after, last);
        drop(store);
        page.map_err(|error| {
            self.queue.report(error.clone());
            error.context("read", &self.path)
        })
    }
}

fn bounds(tail: &Tail) -> Bounds {
    Bounds { epoch: tail.epoch, evicted_through: tail.evicted_through, last: tail.last }
}

impl Backend for FileBackend {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        Ok(*self.log().await?.shared.bounds.borrow())
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let appended = self.log().await?.append(records, None).await?;
        appended.ok_or_else(|| "the log has compared records without being asked".into())
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        self.log().await?.append(records, Some(Unchanged { epoch, since })).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.log().await?.page(Some(topics), after).await
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let log = self.log().await?;
        let mut changes = log.shared.bounds.subscribe();
        let Bounds { epoch, last, .. } = *changes.borrow_and_update();
        if last < after {
            return Err("the log ends before the requested position".into());
        }
        let is_due = |bounds: &Bounds| bounds.last > after || bounds.evicted_through > after || bounds.epoch != epoch;
        // The wait cannot fail, because the log owns the sender. The guard is dropped at once.
        drop(changes.wait_for(is_due).await);
        log.page(None, after).await
    }
}
