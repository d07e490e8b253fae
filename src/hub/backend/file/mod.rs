//! A log in a file of this machine, in the embedded database `redb`.

mod clock;
mod device;
mod error;
mod locked;
mod mark;
mod page;
mod queue;
mod recent;
mod record;
mod replies;
mod retention;
mod store;
#[cfg(test)]
mod test_file;
mod writer;

use super::{Appended, Backend, Bounds, MaxAge, Page, Position, Record};
use crate::BoxError;
use error::{FileError, Kind};
use queue::{Append, Queue, Unchanged};
use recent::Recent;
use replies::ReplyTasks;
use retention::Retention;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::Duration,
};
use store::{Store, Tail};
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, OnceCell, watch},
    task::{JoinHandle, spawn_blocking},
};

/// A log in a file of this machine, which survives the process.
///
/// The file is a database of [`redb`](https://docs.rs/redb), on a local file system. It is opened
/// when the backend is first used, and created if it does not exist. Clones share the log. The
/// feature `file` needs Rust 1.90.
///
/// # What it guarantees
///
/// - **Acknowledged** events are on the disk, or with the operating system: see
///   [`durability`](Self::durability). Publishers that wait at the same time share a commit. No
///   kill of the process loses an acknowledged event.
/// - **Order**: the records of all topics have one order, the order of the commits. One
///   [`publish_all`](crate::hub::Topic::publish_all) is stored as a whole or not at all, with no
///   other event between its events.
/// - **Conditional appends**: [`append_if_unchanged`](Backend::append_if_unchanged) examines the
///   records after the given position. If there are more than 10,000, it appends nothing, and
///   returns `None`.
/// - **Retention**: [`max_records`](Self::max_records), [`max_bytes`](Self::max_bytes) and
///   [`max_age`](Self::max_age), whichever limit is reached first. Each commit removes at most
///   1,000 records more than it appends. A client gets a [gap](crate::hub::Gap) for removed events.
/// - **One process** at a time can use the log. A second process waits for up to a second, and then
///   gets an error. A process that is killed frees the log at once.
///
/// # Restarts, backups and epochs
///
/// After a restart, clients resume without a gap. This includes a process that was killed, and with
/// [`Durability::Disk`] a machine that has crashed.
///
/// The epoch is a number that identifies one lifetime of the log. A log that has lost events must
/// not issue their positions again under the same epoch. So beside the log `events.log` is a second
/// file, the mark `events.log.mark`. It contains the last position, the identity of the log file
/// (its inode, and its time of creation), and the time of its own last change. A new epoch begins,
/// and every returning client gets a gap (`other_epoch`), if
///
/// - the log ends before the position in the mark: it was replaced by an older copy;
/// - the log is another file than the one in the mark: both files were copied or restored, or moved
///   to another file system;
/// - the mark file was modified after the time that it contains: an older mark was copied into the
///   existing file. If the machine has crashed while the log was open, the copy is detected only if
///   the older mark was written more than a minute before it was copied;
/// - the mark is missing, or cannot be read;
/// - the machine has crashed while the log was open with [`Durability::Process`]. On systems other
///   than Linux, a crash of the process counts as a crash of the machine.
///
/// The records stay in the log. While the files cannot be written, such an epoch is not stored, so
/// each start of a process begins another one.
///
/// The following replacements are **not detected**: a restored snapshot of the whole file system or
/// virtual machine, and older copies of both files that are written into the existing files with
/// their old times, as by `cp -p`. After such a restore, delete the mark before the process starts.
///
/// Copy a log only while no process has opened it, or with a snapshot of the file system.
///
/// # Errors
///
/// | | publishing | reading |
/// |---|---|---|
/// | the disk is full | an error until there is space | continues, with the pauses below |
/// | the files cannot be written (permissions, or a read-only file system) | an error | continues |
/// | a record or a page of the database is damaged | continues, unless it needs the page | a gap for the damaged records, and the records after them |
/// | the file is truncated, or the disk cannot read it | an error | an error where the data is missing |
///
/// After a failed commit, the log opens its file again, which verifies the whole file. The
/// verification takes seconds for some hundred megabytes, and readers wait meanwhile. Then a pause
/// begins, which is four times as long as the verification, and at least a second. Publishing
/// returns the same error until the end of the pause. The file is not opened again before that, so
/// readers wait at most a fifth of the time. If a damaged page made the commit fail, the file stays
/// open, and readers do not wait.
///
/// Each record has a checksum, which is compared when the record is read.
///
/// When a log is opened after a crash, the database verifies all of its pages. If a page is
/// damaged, `connect` returns an error. Move the two files away to start with an empty log.
///
/// The database panics on some damaged pages. The backend catches most of these panics, and returns
/// an error or reports a gap. Some damaged pages, such as a page that was replaced by another page
/// of the file, end the process when the next event is published, because a second panic occurs
/// during the first. With `panic = "abort"`, each of these panics ends the process.
///
/// # Size of the file
///
/// The file takes 1.1 to 1.5 times the size of the retained records on the disk, and at least about
/// 100 KB. The length of the file can be greater. If less than about half of the file is in use,
/// the file is made smaller when the log is opened the next time.
///
/// # Opening
///
/// The log is opened when a hub connects, or when the backend is first used. After a crash of the
/// process or of the machine, the database first reads the whole file. `connect` waits until this
/// is done, and logs a warning (feature `tracing`) after five seconds. If the future of `connect`
/// is dropped, for example by a timeout, the verification continues in the background. Connect
/// again with a clone of the backend to wait for the same verification.
///
/// # Resources
///
/// A thread writes, and the blocking threads of tokio read. In each runtime that publishes, one
/// task passes the results of appends to their publishers. The database caches up to 16 MiB. Up to
/// 1 MiB of new records stays in memory until the hub takes them with [`follow`](Backend::follow),
/// so the hub need not read them from the file. One commit takes one `fdatasync`.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use tower_sse::hub::{Hub, backend::{Durability, FileBackend}};
///
/// # async fn connect() -> Result<Hub, tower_sse::hub::Error> {
/// let file = FileBackend::new("/var/lib/shop/events.log")
///     .max_records(100_000)
///     .max_age(Duration::from_secs(24 * 60 * 60))
///     .durability(Durability::Process);
/// let hub = Hub::builder().backend(file).connect().await?;
/// # Ok(hub) }
/// ```
#[derive(Clone)]
pub struct FileBackend {
    path: PathBuf,
    retention: Retention,
    durability: Durability,
    log: Arc<OnceCell<Log>>,
    /// The task that opens the log. If a future that waits for the task is dropped, this field
    /// keeps the task, and the next call waits for the same task.
    opening: Arc<AsyncMutex<Option<Opening>>>,
}

type Opening = JoinHandle<Result<Log, FileError>>;

/// The failures that an acknowledged event of a [`FileBackend`] survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Publishing waits until the event is on the disk (`fdatasync`). The event survives a crash of
    /// the machine. It is the default.
    #[default]
    Disk,
    /// Publishing waits until the operating system has the event. The event survives a crash of the
    /// process. After a crash of the machine, the log may have lost any of its events. So its epoch
    /// (the number that identifies its lifetime) changes, and every returning client gets a gap. If
    /// the crash has damaged the file, the file is renamed with the additional extension
    /// `.damaged`, and the log begins empty.
    Process,
}

impl FileBackend {
    /// Creates a backend for the log at this path. The folder must exist. The file is opened when
    /// the backend is first used.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            retention: Retention { max_records: 1_000_000, max_bytes: 1 << 30, max_age: MaxAge::default() },
            durability: Durability::Disk,
            log: Arc::default(),
            opening: Arc::default(),
        }
    }

    /// Sets the number of records that the log retains, for all topics together. Default:
    /// 1,000,000. The log retains up to 1/64 more, at most 1,000 records more.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.retention.max_records = records;
        self
    }

    /// Sets the total size in bytes of the records that the log retains, for all topics together.
    /// Default: 1 GiB. The log retains up to 1/64 more. The file is larger, see
    /// [size](Self#size-of-the-file).
    ///
    /// A record takes 29 bytes plus the length of its topic and of its event. The newest record is
    /// always retained.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.retention.max_bytes = bytes;
        self
    }

    /// Sets the maximum age of records. Older records are removed. Default: one hour.
    /// [`Duration::MAX`] and zero disable the limit.
    ///
    /// A record may be retained for up to 1/16 of the maximum age longer, so that several expired
    /// records are removed together. The age counts from the append, by the clock of the system,
    /// and also while no process has opened the log.
    ///
    /// A hub whose own [`max_age`](crate::hub::Builder::max_age) is not set takes over this age (at
    /// most a day), if it is limited. Conversely, this backend takes over the age of the hub if it
    /// has none. If both are set, each keeps its own.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.retention.max_age.set(age);
        self
    }

    /// Sets the failures that an acknowledged event survives. Default: [`Durability::Disk`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Returns the open log. The first call opens the log, and concurrent calls wait for it.
    async fn log(&self) -> Result<&Log, BoxError> {
        let open = || async {
            let mut opening = self.opening.lock().await;
            let task = opening.get_or_insert_with(|| {
                let Self { path, retention, durability, .. } = self.clone();
                spawn_blocking(move || {
                    writer::open(&path, retention, durability).map_err(|error| error.context("open", &path))
                })
            });
            let opened = task.await;
            *opening = None;
            opened?.map_err(BoxError::from)
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
    reply_tasks: ReplyTasks,
}

/// The thread that stores the appends of a log. Dropping a `Writer` waits until the thread has
/// ended.
struct Writer(Option<thread::JoinHandle<()>>);

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread has no result, and reports a panic itself.
        let _ended = self.0.take().map(thread::JoinHandle::join);
    }
}

/// The state of an open log that the writer (the thread that stores appends) shares with the
/// readers of the log.
struct Shared {
    path: PathBuf,
    /// The database in the file of the log. If the file cannot be used, this field is the error
    /// that all calls return.
    store: RwLock<Result<Store, FileError>>,
    queue: Queue,
    bounds: watch::Sender<Bounds>,
    recent: Mutex<Recent>,
}

impl Log {
    fn new(shared: Arc<Shared>, writer: thread::JoinHandle<()>) -> Self {
        Self { shared, writer: Some(Writer(Some(writer))), reply_tasks: ReplyTasks::default() }
    }

    async fn append(&self, records: Vec<Record>, condition: Option<Unchanged>) -> Result<Option<Appended>, BoxError> {
        let (publisher, response) = self.reply_tasks.publisher();
        self.shared.queue.push(Append { records, condition, publisher });
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
        let bounds = watch::Sender::new(bounds(tail));
        Self { path: path.to_owned(), store, queue: Queue::default(), bounds, recent: Mutex::default() }
    }

    fn store(&self) -> RwLockReadGuard<'_, Result<Store, FileError>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_mut(&self) -> RwLockWriteGuard<'_, Result<Store, FileError>> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bounds of the log, the range of its positions, for its readers. Readers can then
    /// read the records up to the new end. Waiting `follow` calls notice the new bounds after
    /// [`wake_followers`](Self::wake_followers).
    fn set_bounds(&self, tail: &Tail) {
        self.bounds.send_if_modified(|known| {
            *known = bounds(tail);
            false
        });
    }

    /// Wakes the waiting `follow` calls, which then compare the bounds of the log again.
    fn wake_followers(&self) {
        self.bounds.send_modify(|_| {});
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, topics: Option<&[Arc<str>]>, after: Position) -> Result<Page, FileError> {
        // Records after this position are stored, but their mark may not be.
        let last = self.bounds.borrow().last;
        let store = self.store();
        let page = store.as_ref().map_err(FileError::clone).and_then(|store| store.page(topics, after, last));
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
    fn configured_max_age(&self) -> Option<Duration> {
        self.retention.max_age.0
    }

    fn inherit_max_age(&mut self, age: Duration) {
        self.retention.max_age.inherit(age);
    }

    async fn open(&self) -> Result<(), BoxError> {
        self.log().await.map(drop)
    }

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
        let bounds = *log.shared.bounds.borrow();
        let recent = log.shared.recent().take(after, &bounds);
        match recent {
            Some(page) => Ok(page),
            None => log.page(None, after).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{test_file::TestFile, *};
    use crate::hub::backend::RecordKind;

    /// A commit is visible in the database before it is announced.
    #[tokio::test]
    async fn page_ends_at_announced_position_if_later_records_are_evicted() {
        let file = TestFile::new("announced");
        let backend = FileBackend::new(&file.0).max_records(1);
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event: "data: 1\n\n".into() };
        assert_eq!(backend.append(vec![record; 10]).await.unwrap().position, Position::new(10));
        assert_eq!(backend.bounds().await.unwrap().evicted_through, Position::new(9));
        let store = backend.log().await.unwrap().shared.store();
        let announced = Position::new(3);
        for after in [Position::START, announced] {
            let page = store.as_ref().unwrap().page(None, after, announced).unwrap();
            assert_eq!((page.evicted_through, page.through), (announced, announced), "after {after}");
        }
    }

    #[tokio::test]
    async fn follower_takes_new_records_from_memory() {
        let file = TestFile::new("follow");
        let backend = FileBackend::new(&file.0);
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event: "data: 1\n\n".into() };
        // Records are kept in memory only after the first call of `follow`.
        let first = backend.append(vec![record.clone()]).await.unwrap().position;
        assert_eq!(backend.follow(Position::START).await.unwrap().records.len(), 1);
        backend.append(vec![record.clone()]).await.unwrap();
        let from_memory = backend.follow(first).await.unwrap();
        let from_file = backend.follow(first).await.unwrap();
        assert_eq!(from_memory, from_file);
        let is_same = |page: &Page| page.records[0].1.event.as_ptr() == record.event.as_ptr();
        assert!(is_same(&from_memory) && !is_same(&from_file));
    }
}
