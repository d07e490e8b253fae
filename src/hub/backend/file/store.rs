//! The database of a log in a file: opens the database, and reads pages of records.

use super::{
    Durability,
    device::{Allocated, ReadOnly, Unsynced},
    error::{FileError, Kind, file_error, guarded},
    locked::{Locked, reset_unfinished},
    mark::is_read_only,
    page::PageReader,
    record,
};
use crate::hub::backend::{Page, Position};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    backends::FileBackend,
};
use std::{
    fs::{File, OpenOptions},
    ops::RangeInclusive,
    path::Path,
    slice,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

/// The table of the records. Each row is a part of a record. The key is the position of the record
/// and the number of the part.
pub(super) const RECORDS: TableDefinition<'static, (u64, u32), &[u8]> = TableDefinition::new("records");
/// The table of the numbers that describe the log, such as its epoch, which identifies one lifetime
/// of the log. The key of each number is its name.
pub(super) const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

/// The key of the version of the database format, in the table [`NUMBERS`]. The other keys of this
/// table are [`EPOCH`], [`EVICTED_THROUGH`] and [`EVICTED_BYTES`].
pub(super) const FORMAT: &str = "format";
pub(super) const EPOCH: &str = "epoch";
pub(super) const EVICTED_THROUGH: &str = "evicted_through";
pub(super) const EVICTED_BYTES: &str = "evicted_bytes";

/// The number of the database format that this version of the crate writes.
pub(super) const FORMAT_VERSION: u64 = 1;

/// The memory that the database uses as its cache, in bytes. The operating system caches the file,
/// too.
const CACHE: usize = 16 << 20;

/// The maximum time that opening a log waits until another process has closed it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The open database of a log that is stored in a file.
pub(super) struct Store {
    pub(super) database: Database,
    /// The error that appends return if the file of the database or its mark (a small file with the
    /// state of the log) cannot be written. `None` if the log can be written.
    pub(super) read_only: Option<FileError>,
}

/// The state of the log in the database: its epoch (the number that identifies one lifetime of the
/// log), the range of the positions of its records, and their total size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) epoch: u64,
    pub(super) evicted_through: Position,
    pub(super) last: Position,
    /// The size in bytes of all records that the log has ever stored. `evicted_bytes` is the size
    /// of the evicted records alone.
    pub(super) total_bytes: u64,
    pub(super) evicted_bytes: u64,
}

impl Tail {
    /// Returns the number of retained records.
    pub(super) fn records(&self) -> u64 {
        self.last.get() - self.evicted_through.get()
    }

    /// Returns the size of the retained records in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.evicted_bytes)
    }
}

/// Calls `lock`, which tries to lock a file, again and again until it returns a value. Returns an
/// error after a second ([`LOCK_TIMEOUT`]).
pub(super) fn locked<T>(mut lock: impl FnMut() -> Result<Option<T>, FileError>) -> Result<T, FileError> {
    let begin = Instant::now();
    loop {
        if let Some(locked) = lock()? {
            return Ok(locked);
        }
        if begin.elapsed() > LOCK_TIMEOUT {
            let message = "another process has opened it, or another backend in this process; only one of them can use it at a time";
            return Err(FileError::new(Kind::Database, message));
        }
        sleep(Duration::from_millis(10));
    }
}

impl Store {
    /// Opens the database of a log, and returns it with a handle of its file. A missing file is
    /// created if `is_created` is set, and is an error otherwise.
    pub(super) fn open(path: &Path, durability: Durability, is_created: bool) -> Result<(Self, File), FileError> {
        locked(|| Self::try_open(path, durability, is_created))
    }

    fn try_open(path: &Path, durability: Durability, is_created: bool) -> Result<Option<(Self, File)>, FileError> {
        let write = OpenOptions::new().read(true).write(true).create(is_created).truncate(false).open(path);
        let (mut file, read_only) = match write {
            Ok(file) => (file, None),
            Err(error) if is_read_only(&error) => match File::open(path) {
                Ok(file) => (file, Some(FileError::new(Kind::Request, format!("it can only be read: {error}")))),
                Err(_) => return Err(file_error("open", path)(error)),
            },
            Err(error) => return Err(file_error("open", path)(error)),
        };
        let second = file.try_clone().map_err(file_error("open", path))?;
        let device = FileBackend::new(file.try_clone().map_err(file_error("open", path))?)?;
        if read_only.is_none() && !reset_unfinished(&mut file, &device).map_err(file_error("read", path))? {
            return Ok(None);
        }
        drop(file);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let database = guarded(|| {
            let created = match (&read_only, durability) {
                (Some(_), _) => builder.create_with_backend(Locked(ReadOnly::new(device).map_err(redb::Error::Io)?)),
                (None, Durability::Disk) => builder.create_with_backend(Locked(Allocated::new(device))),
                (None, Durability::Process) => builder.create_with_backend(Locked(Unsynced(device))),
            };
            match created {
                Err(DatabaseError::DatabaseAlreadyOpen) => Ok(None),
                created => Ok(Some(created?)),
            }
        })?;
        Ok(database.map(|database| (Self { database, read_only }, second)))
    }

    /// Returns the epoch, the positions and the size of the log, or `None` if the database is new.
    pub(super) fn tail(&self) -> Result<Option<Tail>, FileError> {
        guarded(|| self.read_tail())
    }

    fn read_tail(&self) -> Result<Option<Tail>, FileError> {
        let transaction = self.database.begin_read()?;
        let numbers = match transaction.open_table(NUMBERS) {
            // A new database has no table.
            Err(TableError::TableDoesNotExist(_)) if transaction.list_tables()?.next().is_none() => return Ok(None),
            numbers => numbers?,
        };
        let number = |name| Ok::<_, FileError>(numbers.get(name)?.map(|number| number.value()));
        match number(FORMAT)? {
            Some(FORMAT_VERSION) => {}
            Some(format) => {
                let message = format!("it has the format {format}, which needs a newer version of tower-sse");
                return Err(FileError::new(Kind::Database, message));
            }
            None => return Err(damaged("it has no format")),
        }
        let evicted_through = number(EVICTED_THROUGH)?.unwrap_or(0).into();
        let evicted_bytes = number(EVICTED_BYTES)?.unwrap_or(0);
        let epoch = number(EPOCH)?.ok_or_else(|| damaged("it has no epoch"))?;
        let mut tail =
            Tail { epoch, evicted_through, last: evicted_through, total_bytes: evicted_bytes, evicted_bytes };
        let records = transaction.open_table(RECORDS)?;
        if let Some((key, _)) = records.last()? {
            let position = key.value().0;
            // If the last records are damaged, their sizes are missing in the total.
            let total = newest_total(&records)?.unwrap_or_default();
            (tail.last, tail.total_bytes) = (tail.last.max(position.into()), total.max(evicted_bytes));
        }
        Ok(Some(tail))
    }

    /// Reads a page, at most 1,000 records of `topics`. The records come after the position
    /// `after`, up to and including the position `last`. If `topics` is `None`, reads the records
    /// of all topics.
    pub(super) fn page(&self, topics: Option<&[Arc<str>]>, after: Position, last: Position) -> Result<Page, FileError> {
        let snapshot = self.snapshot()?;
        // A commit may have evicted records that it has appended after `last`. The page must still
        // end at `last`.
        let evicted_through = snapshot.evicted_through.min(last);
        if after >= last {
            return Ok(Page { epoch: snapshot.epoch, evicted_through, through: last, ..Page::default() });
        }
        let mut page = PageReader::new(topics, evicted_through, after);
        while page.next() <= last && !page.is_complete() {
            match snapshot.read(last, &mut page) {
                Err(error) if error.kind() == Kind::Database => return Err(error),
                Ok(()) => {}
                Err(_) => {
                    // After a panic, the database may be unable to read any page.
                    self.snapshot()?;
                    let first = snapshot.first_readable(page.next(), last);
                    page.skip_through(first.map_or(last, Position::previous));
                }
            }
        }
        Ok(page.finish(snapshot.epoch))
    }

    /// Returns `true` if every record after `since` up to `last` can be read, and no such record
    /// belongs to the topic.
    pub(super) fn is_without_records(
        &self,
        topic: &Arc<str>,
        since: Position,
        last: Position,
    ) -> Result<bool, FileError> {
        if since == last {
            return Ok(true);
        }
        let snapshot = self.snapshot()?;
        let mut page = PageReader::new(Some(slice::from_ref(topic)), Position::START, since);
        guarded(|| {
            for entry in snapshot.records.range(keys(since.next(), last))? {
                let (key, part) = entry?;
                page.add(key.value(), part.value());
            }
            Ok(())
        })?;
        Ok(page.is_without_records(last))
    }

    fn snapshot(&self) -> Result<Snapshot, FileError> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let numbers = transaction.open_table(NUMBERS)?;
            let number = |name| Ok::<_, FileError>(numbers.get(name)?.map_or(0, |number| number.value()));
            Ok(Snapshot {
                epoch: number(EPOCH)?,
                evicted_through: number(EVICTED_THROUGH)?.into(),
                records: transaction.open_table(RECORDS)?,
            })
        })
    }
}

/// Returns the size in bytes of all records that the log has ever stored. Each record contains this
/// size up to itself, so the size is read from the newest undamaged record. Returns `None` if all
/// records are damaged.
fn newest_total(records: &ReadOnlyTable<(u64, u32), &'static [u8]>) -> Result<Option<u64>, FileError> {
    let mut parts = Vec::new();
    for entry in records.iter()?.rev() {
        let (key, part) = entry?;
        let (position, number) = key.value();
        parts.push(part.value().to_vec());
        if number > 0 {
            continue;
        }
        parts.reverse();
        if let Some(value) = record::decode(position.into(), &parts.concat()) {
            return Ok(Some(value.total));
        }
        parts.clear();
    }
    Ok(None)
}

/// Returns the error for a database with invalid contents.
pub(super) fn damaged(message: impl Into<String>) -> FileError {
    FileError::new(Kind::Damage, message)
}

/// Returns the range of the database keys of the records from `first` to `last`. The database
/// stores a record in parts, and each part has its own key.
pub(super) fn keys(first: Position, last: Position) -> RangeInclusive<(u64, u32)> {
    (first.get(), 0)..=(last.get(), u32::MAX)
}

/// The contents of the database at one moment: later commits do not change them.
struct Snapshot {
    epoch: u64,
    evicted_through: Position,
    records: ReadOnlyTable<(u64, u32), &'static [u8]>,
}

impl Snapshot {
    /// Reads records from the database into `page` until the page is complete or the position
    /// `last` is reached. A page is complete when it has reached the limits of its size, or when a
    /// damaged record follows its records.
    fn read(&self, last: Position, page: &mut PageReader) -> Result<(), FileError> {
        guarded(|| {
            for entry in self.records.range(keys(page.next(), last))? {
                let (key, part) = entry?;
                page.add(key.value(), part.value());
                if page.is_complete() {
                    return Ok(());
                }
            }
            if page.next() <= last {
                page.skip_through(last);
            }
            Ok(())
        })
    }

    /// Finds the end of a damaged part of the log that begins at `next`. Returns the first position
    /// after the damage, up to `last`, whose record can be read. Returns `None` if there is no such
    /// position.
    fn first_readable(&self, next: Position, last: Position) -> Option<Position> {
        let probe = |from: u64| {
            let first = guarded(|| Ok(self.records.range(keys(from.into(), last))?.next().transpose()?));
            first.ok().flatten().map(|(key, _)| key.value().0)
        };
        // The damaged part is usually one page of the database, with some dozens of records.
        let (mut bad, mut step) = (next.get(), 1);
        let mut good = loop {
            let from = bad.saturating_add(step);
            if from > last.get() {
                return None;
            }
            match probe(from) {
                Some(first) => break first,
                None => (bad, step) = (from, step * 2),
            }
        };
        while bad + 1 < good {
            let middle = bad.midpoint(good);
            match probe(middle) {
                Some(first) if first < good => good = first,
                Some(_) | None => bad = middle,
            }
        }
        Some(good.into())
    }
}
