//! The writer: a thread that stores appends, several in one commit, and applies the retention.

use super::{
    Durability, Log, Shared,
    error::{FileError, Kind, file_error, guarded},
    mark::{FileId, Mark, beside, milliseconds},
    queue::{Append, Batch, Unchanged, Work},
    record::{self, PART, Value},
    replies,
    retention::Retention,
    store::{
        EPOCH, EVICTED_BYTES, EVICTED_THROUGH, FORMAT, FORMAT_VERSION, NUMBERS, RECORDS, Store, Tail, damaged, keys,
        locked,
    },
};
use crate::{
    hub::backend::{Appended, Position, Record},
    random,
};
use redb::{ReadableTable, Table, WriteTransaction};
use std::{
    collections::HashSet,
    fs::{self, File},
    iter, mem,
    path::{Path, PathBuf, absolute},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

/// The number of records that a commit may evict in addition to the number that it appends. For
/// example, a commit that appends 5 records evicts at most 1,005.
const EVICTIONS: u64 = 1000;

/// The maximum number of records that are examined for a conditional append. Its condition is that
/// no record of the topic follows a certain position. If the log has more records than this number
/// after the position, the append stores nothing.
const MAX_COMPARED: u64 = 10_000;

/// The minimum pause after a failure of the log. During the pause, the writer does not open the
/// database again, unless a commit fails. After a failed commit, all appends during the pause
/// return the error of that commit.
const PAUSE: Duration = Duration::from_secs(1);

/// The minimum pause after the database was opened again, as a multiple of the time that the
/// opening took. During the pause, only a failed commit makes the writer open the database once
/// more. Readers wait only while the database is being opened. The pause is at least four times as
/// long, so readers wait at most a fifth of the time (a third if commits also fail).
const PAUSE_FACTOR: u32 = 4;

/// The maximum interval between two checks of whether the oldest record of the log has expired.
const MAX_AGE_INTERVAL: Duration = Duration::from_secs(60);

/// A database file is compacted only if it is longer than twice the size of its records plus this
/// number of bytes.
const SMALL: u64 = 4 << 20;

/// The maximum time that the writer waits for further appends to share a commit.
const MAX_WINDOW: Duration = Duration::from_micros(500);

pub(super) struct Writer {
    shared: Arc<Shared>,
    retention: Retention,
    durability: Durability,
    file: File,
    mark: Mark,
    tail: Tail,
    /// The epoch and the last position in the file when it was last opened, if it could only be
    /// read. If a new epoch began at that time, it is in `tail` only, because the file could not
    /// store it.
    found: Option<(u64, Position)>,
    /// The time when the oldest retained record was appended, in milliseconds since 1970. It
    /// decides when the writer has to remove expired records. `None` if the time is unknown.
    oldest: Option<u64>,
    /// The error of the last failed commit. Until `pause_end`, all appends return this error,
    /// and are not tried. `None` if appends can be tried.
    refusal: Option<FileError>,
    /// The end of the pause after the last failure of the log. Before this time, the writer opens
    /// the database again only after a failed commit. It does not if a reader reports a failure, or
    /// if an append arrives while the file can only be read.
    pause_end: Instant,
    /// The number of appends in the last commit, and the time that the commit took. They decide how
    /// long the next commit waits for further appends.
    last_commit: (usize, Duration),
}

type Records<'a> = Table<'a, (u64, u32), &'static [u8]>;

/// The outcome of a transaction: the new state of the log, and the last position of each append.
/// The position is `None` if the condition of the append does not hold.
struct Stored {
    tail: Tail,
    oldest: Option<u64>,
    positions: Vec<Option<Position>>,
}

impl Writer {
    pub(super) fn run(mut self) {
        loop {
            let (expected, time) = self.last_commit;
            // Publishers that waited for the last commit will probably publish again. Without this
            // pause, the first of them would have a commit of its own.
            let pause = if expected > 1 { (time / 2).min(MAX_WINDOW) } else { Duration::ZERO };
            let window = Instant::now() + pause;
            match self.shared.queue.take(self.deadline(), expected, window) {
                Work::Appends(batch) => self.append(batch, window),
                Work::Idle => self.append(Batch::default(), Instant::now()),
                // Several readers may have reported the same failure.
                Work::Failure(error) if !self.is_paused() => self.reopen(&error),
                Work::Failure(_) => {}
                Work::Close => break,
            }
        }
        self.close();
    }

    /// Returns the error for appends if the log cannot be written, and `None` if it can. If it
    /// cannot be written, and the pause after the last failure has ended, the function first opens
    /// the database again. It then returns `None` if the log has become writable.
    fn refused(&mut self) -> Option<FileError> {
        if self.is_paused() && self.refusal.is_some() {
            return self.refusal.clone();
        }
        self.refusal = None;
        // The error of the last attempt to open the database, or of a file that can only be read.
        let error = match &*self.shared.store() {
            Ok(store) => store.read_only.clone()?.context("write to", &self.shared.path),
            Err(error) => error.clone(),
        };
        if !self.is_paused() {
            self.reopen(&error);
        }
        // The file can be written again.
        if self.is_writable() { None } else { Some(error) }
    }

    fn is_paused(&self) -> bool {
        Instant::now() < self.pause_end
    }

    fn is_writable(&self) -> bool {
        matches!(&*self.shared.store(), Ok(store) if store.read_only.is_none())
    }

    /// Returns the time when the writer has to apply the retention, even if no append arrives.
    /// Returns `None` if the log is empty or cannot be written, or if it is within its limits and
    /// records do not expire.
    fn deadline(&self) -> Option<Instant> {
        if !self.is_writable() || self.tail.records() == 0 {
            return None;
        }
        let now = milliseconds(SystemTime::now());
        let pause = match self.retention.is_due(&self.tail) {
            true => Duration::ZERO,
            false => self.retention.expires_in(self.oldest.unwrap_or(0), now)?,
        };
        // The clock of the machine may be set to another time meanwhile.
        let due = Instant::now() + pause.min(MAX_AGE_INTERVAL);
        Some(if self.refusal.is_some() { due.max(self.pause_end) } else { due })
    }

    /// Stores the appends of `batch` with one commit, and applies the retention. Further appends
    /// can join the batch until the deadline `window`. `batch` is empty if only the retention is
    /// due.
    fn append(&mut self, mut batch: Batch, window: Instant) {
        // The futures of some appends may have been dropped while they waited.
        batch.appends.retain(|append| !append.publisher.has_left());
        if let Some(error) = self.refused() {
            return refuse(batch.appends, &error);
        }
        let stored = self.store(&mut batch, window);
        let mut appends = batch.appends;
        match stored {
            Ok((stored, time)) => {
                self.last_commit = (appends.len(), time);
                let before = mem::replace(&mut self.tail, stored.tail);
                self.oldest = stored.oldest;
                let stored_appends =
                    appends.iter_mut().zip(&stored.positions).filter(|(_, position)| position.is_some());
                let records = stored_appends.flat_map(|(append, _)| mem::take(&mut append.records));
                self.keep(&before, records.collect());
                self.shared.set_bounds(&self.tail);
                let epoch = self.tail.epoch;
                let outcomes = stored
                    .positions
                    .into_iter()
                    .map(|position| Ok(position.map(|position| Appended { epoch, position })));
                let clocks = replies::send(appends.into_iter().map(|append| append.publisher).zip(outcomes));
                // The publishers come first: while the follower delivers these records, they
                // publish the next ones.
                self.shared.wake_followers();
                drop(clocks);
            }
            Err(error) => {
                let error = error.context("write to", &self.shared.path);
                self.reopen(&error);
                self.refusal = Some(error.clone());
                refuse(appends, &error);
            }
        }
    }

    /// Keeps the records of a commit in memory for the follower of the hub, the task that reads new
    /// records. `before` is the state of the log before the commit.
    fn keep(&self, before: &Tail, records: Vec<Record>) {
        let positions = iter::successors(Some(before.last.next()), |position| Some(position.next()));
        let bytes = self.tail.total_bytes - before.total_bytes;
        self.shared.recent().add(self.tail.epoch, before.last, positions.zip(records).collect(), bytes);
    }

    /// Stores appends and applies the retention in one transaction, and returns the time that its
    /// commit took. A transaction that changes nothing is not committed.
    fn store(&mut self, batch: &mut Batch, window: Instant) -> Result<(Stored, Duration), FileError> {
        let (stored, time) = {
            let store = self.shared.store();
            let store = store.as_ref().map_err(FileError::clone)?;
            let is_unchanged = |append: &Append| self.is_unchanged(store, append);
            let unchanged: Vec<_> = batch.appends.iter().map(is_unchanged).collect::<Result<_, _>>()?;
            guarded(|| {
                let transaction = store.database.begin_write()?;
                let stored = self.change(&transaction, batch, &unchanged, window)?;
                let begin = Instant::now();
                if stored.tail == self.tail {
                    transaction.abort()?
                } else {
                    transaction.commit()?
                }
                Ok((stored, begin.elapsed()))
            })?
        };
        if stored.tail.last != self.tail.last {
            self.mark.advance(stored.tail.last)?;
        }
        Ok((stored, time))
    }

    /// Returns `true` if the append has no condition, or if the log in the database fulfils it. The
    /// condition requires that the log was not replaced, and has no record of the append's topic
    /// after a certain position.
    ///
    /// This method reads the database before the write transaction begins. Inside the transaction,
    /// a damaged page would make all appends of the transaction fail.
    fn is_unchanged(&self, store: &Store, append: &Append) -> Result<bool, FileError> {
        let Some(Unchanged { epoch, since }) = append.condition else { return Ok(true) };
        let Some(first) = append.records.first() else { return Ok(false) };
        let Tail { last, evicted_through, .. } = self.tail;
        if epoch != self.tail.epoch || !(evicted_through..=last).contains(&since) {
            return Ok(false);
        }
        if last.get() - since.get() > MAX_COMPARED {
            return Ok(false);
        }
        match store.is_without_records(&first.topic, since, last) {
            // The damaged record may have belonged to the topic. Readers get a gap for it, and then
            // compare with a later position.
            Err(error) if error.kind() == Kind::Damage => Ok(false),
            is_unchanged => is_unchanged,
        }
    }

    /// Makes the changes of one transaction: appends records, and evicts the oldest records if the
    /// retention requires it. `unchanged[n]` is the result of `is_unchanged` for append `n` of
    /// `batch`. Further appends can join the batch until the deadline `window`. So the writer
    /// already stores the first appends while other publishers prepare theirs.
    fn change(
        &self,
        transaction: &WriteTransaction,
        batch: &mut Batch,
        unchanged: &[bool],
        window: Instant,
    ) -> Result<Stored, FileError> {
        let mut records = transaction.open_table(RECORDS)?;
        let (mut tail, mut oldest) = (self.tail, self.oldest);
        let now = milliseconds(SystemTime::now());
        let mut positions = Vec::with_capacity(batch.appends.len().max(self.last_commit.0));
        let mut buffer = Vec::new();
        // Later appends of the batch have no condition.
        let has_conditions = batch.appends.iter().any(|append| append.condition.is_some());
        let mut changed_topics = HashSet::new();
        loop {
            for (n, append) in batch.appends.iter().enumerate().skip(positions.len()) {
                if has_conditions {
                    let mut topics = append.records.iter().map(|record| &record.topic);
                    let mut is_unchanged = || unchanged[n] && topics.all(|topic| !changed_topics.contains(topic));
                    if append.condition.is_some() && !is_unchanged() {
                        positions.push(None);
                        continue;
                    }
                    changed_topics.extend(append.records.iter().map(|record| Arc::clone(&record.topic)));
                }
                for record in &append.records {
                    tail.last = tail.last.next();
                    tail.total_bytes += record::size(&record.topic, &record.event) as u64;
                    let value = Value {
                        time: now,
                        total: tail.total_bytes,
                        kind: Some(record.kind),
                        topic: &record.topic,
                        event: &record.event,
                    };
                    record::encode(&mut buffer, tail.last, &value);
                    for (part, bytes) in record::parts(&buffer) {
                        records.insert((tail.last.get(), part), bytes)?;
                    }
                }
                positions.push(Some(tail.last));
            }
            if !self.shared.queue.take_more(batch, self.last_commit.0, window) {
                break;
            }
        }
        let appended = tail.last.get() - self.tail.last.get();
        let limit = EVICTIONS + appended;
        let is_old = self.retention.expires_in(oldest.unwrap_or(0), now) == Some(Duration::ZERO);
        if tail.records() > 0 && (is_old || self.retention.is_due(&tail)) {
            self.evict(&mut records, &mut tail, &mut oldest, now, limit)?;
            drop(records);
            if tail.evicted_through != self.tail.evicted_through {
                let mut numbers = transaction.open_table(NUMBERS)?;
                numbers.insert(EVICTED_THROUGH, tail.evicted_through.get())?;
                numbers.insert(EVICTED_BYTES, tail.evicted_bytes)?;
            }
        }
        Ok(Stored { tail, oldest, positions })
    }

    /// Removes the oldest records, which exceed the limits of the retention, but at most `limit`
    /// records. Missing (damaged) records before the oldest retained record count as evicted, but
    /// not towards `limit`.
    fn evict(
        &self,
        records: &mut Records<'_>,
        tail: &mut Tail,
        oldest: &mut Option<u64>,
        now: u64,
        limit: u64,
    ) -> Result<(), FileError> {
        let begin = tail.evicted_through;
        *oldest = None;
        let (mut removed, mut oldest_retained) = (0, None);
        for entry in records.range(keys(begin.next(), tail.last))? {
            let (key, bytes) = entry?;
            let (position, part) = key.value();
            if part > 0 {
                continue;
            }
            let position = Position::new(position);
            // The time of a damaged record is unknown, so it is removed with the record before it.
            let head = time_and_begin(records, position, bytes.value())?;
            let head = head.filter(|(_, begin)| (tail.evicted_bytes..=tail.total_bytes).contains(begin));
            let is_expired = head.is_none_or(|(time, _)| self.retention.is_expired(time, now));
            *oldest = head.map(|(time, _)| time).or(*oldest);
            // The size of a damaged record is known from the next undamaged one.
            tail.evicted_bytes = head.map_or(tail.evicted_bytes, |(_, begin)| begin);
            tail.evicted_through = position.previous();
            if !(is_expired || self.retention.is_excess(tail)) || removed == limit {
                oldest_retained = Some(position);
                break;
            }
            removed += 1;
        }
        if oldest_retained.is_none() {
            (tail.evicted_through, tail.evicted_bytes, *oldest) = (tail.last, tail.total_bytes, None);
        }
        if tail.evicted_through > begin {
            records.retain_in(keys(Position::START, tail.evicted_through), |_, _| false)?;
        }
        Ok(())
    }

    /// Handles the failure `error` of the database. After a damaged page, an open database stays
    /// open, because its other pages can still be read. After any other failure, this method closes
    /// the database and opens it again immediately: after an I/O error, for example, the database
    /// cannot even be read. Then a pause begins. Before the pause ends, only a failed commit makes
    /// the writer call this method again.
    fn reopen(&mut self, error: &FileError) {
        let begin = Instant::now();
        self.refusal = None;
        // Opening a database with a damaged page fails if the database was not closed properly. But
        // its other pages can be read as long as it is open.
        let is_open = self.shared.store().is_ok();
        if error.kind() != Kind::Damage || !is_open {
            self.replace_store(error);
        }
        self.pause_end = pause_end(begin, Instant::now());
    }

    /// Closes the database, and opens it again. Meanwhile, readers wait.
    fn replace_store(&mut self, error: &FileError) {
        let shared = Arc::clone(&self.shared);
        // Opening verifies the whole file, which takes seconds for some hundred megabytes. Readers
        // have to wait for it: the earlier database cannot be read, and the lock of the file
        // excludes a second database.
        let mut store = shared.store_mut();
        *store = Err(error.clone());
        // If the file was moved away, it must not be created again: the records would be missing.
        let opened = open_store(&shared.path, self.durability, false).and_then(|(mut opened, file, found)| {
            let found = found.ok_or_else(|| damaged("it is empty"))?;
            let is_shorter = found.epoch != self.tail.epoch || found.last < self.tail.last;
            // A file that can only be read does not keep the epoch that has begun. Another epoch
            // after each reopening would end all subscriptions each time.
            let was_found = (found.epoch, found.last);
            let is_unchanged = self.found == Some(was_found) && found.last == self.tail.last;
            let epoch = if is_unchanged { self.tail.epoch } else { random::bits() };
            let tail = if is_shorter { store_epoch(&opened, epoch, found)? } else { found };
            self.mark.reopen();
            begin_mark(&mut self.mark, &mut opened, &file, &tail, self.durability);
            self.found = opened.read_only.is_some().then_some(was_found);
            (self.tail, self.oldest, self.file) = (tail, None, file);
            Ok(opened)
        });
        *store = opened.map_err(|error| error.context("open", &shared.path));
        drop(store);
        shared.set_bounds(&self.tail);
        shared.wake_followers();
    }

    /// Closes the database. Later reads return an error.
    fn close(&mut self) {
        let is_writable = self.is_writable();
        let closed = FileError::new(Kind::Request, "it is closed").context("read", &self.shared.path);
        *self.shared.store_mut() = Err(closed);
        // At the next start, the mark shows that the machine did not crash. So the data is synced
        // first.
        if is_writable && self.file.sync_all().is_ok() {
            let _without_the_mark_a_new_epoch_begins = self.mark.end();
        }
    }
}

/// Returns the time of the append, in milliseconds since 1970, and the size in bytes of all values
/// that the log has stored before this value. `first` is the first part of the value of the record
/// at `position`. Returns `None` if the record is damaged.
///
/// Both numbers are in the first part, but the checksum covers all parts. With a wrong size, the
/// retention would remove undamaged records. With a wrong time, it would keep expired ones.
fn time_and_begin(records: &Records<'_>, position: Position, first: &[u8]) -> Result<Option<(u64, u64)>, FileError> {
    let decode = |value: &[u8]| {
        let decoded = record::decode(position, value)?;
        Some((decoded.time, decoded.total.saturating_sub(value.len() as u64)))
    };
    if first.len() < PART {
        return Ok(decode(first));
    }
    let mut value = Vec::new();
    for entry in records.range(keys(position, position))? {
        value.extend_from_slice(entry?.1.value());
    }
    Ok(decode(&value))
}

/// Sends `error` to the publishers of these appends.
fn refuse(appends: Vec<Append>, error: &FileError) {
    drop(replies::send(appends.into_iter().map(|append| (append.publisher, Err(error.clone())))));
}

/// Returns the time until which the database is not opened once more. This pause lasts four times
/// ([`PAUSE_FACTOR`]) as long as the last opening, and at least one second ([`PAUSE`]). `begin` and
/// `end` are the times when the last opening began and ended.
fn pause_end(begin: Instant, end: Instant) -> Instant {
    end + PAUSE.max((end - begin) * PAUSE_FACTOR)
}

/// Opens a log in a file, and starts its writer.
pub(super) fn open(path: &Path, retention: Retention, durability: Durability) -> Result<Log, FileError> {
    let path = &resolved(path);
    let mut mark = locked(|| Mark::open(path))?;
    let (mut store, mut file, found) = match open_store(path, durability, true) {
        // Such a crash may destroy the file, because it was not synced.
        Err(error) if error.kind() == Kind::Damage && mark.is_after_machine_crash() => {
            fs::rename(path, beside(path, ".damaged")).map_err(file_error("rename", path))?;
            open_store(path, durability, true)?
        }
        opened => opened?,
    };
    let id = FileId::of(&file).map_err(file_error("read", path))?;
    let tail = match found {
        Some(found) if mark.compare(found.epoch, found.last, id).is_none() => found,
        found => store_epoch(&store, random::bits(), found.unwrap_or_default())?,
    };
    begin_mark(&mut mark, &mut store, &file, &tail, durability);
    if store.read_only.is_none() {
        // If compacting fails, for example while the disk is full, the log can still be used.
        if compact(&mut store, &file, &tail).is_err() {
            drop(store);
            (store, file, _) = open_store(path, durability, true)?;
        }
    }
    let found = found.filter(|_| store.read_only.is_some()).map(|found| (found.epoch, found.last));
    let shared = Arc::new(Shared::new(path, store, &tail));
    let writer = Writer {
        shared: Arc::clone(&shared),
        retention,
        durability,
        file,
        mark,
        tail,
        found,
        oldest: None,
        refusal: None,
        pause_end: Instant::now(),
        last_commit: (0, Duration::ZERO),
    };
    let thread = thread::Builder::new().name("tower-sse-file".to_owned()).spawn(move || writer.run());
    let thread = thread.map_err(|error| FileError::new(Kind::Request, format!("cannot start a thread: {error}")))?;
    Ok(Log::new(shared, thread))
}

/// Returns the absolute path of the database file, with symbolic links to the file resolved. The
/// mark, a small file with the state of the log, is beside the database file itself. So every link
/// to the database file leads to the same mark. A relative path would lead to another file after a
/// change of the current folder.
fn resolved(path: &Path) -> PathBuf {
    const MAX_LINKS: usize = 40;

    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().map_or(target.clone(), |folder| folder.join(&target));
    }
    absolute(&path).unwrap_or(path)
}

/// Writes the mark of an open log, a small file beside the database with the state of the log. If
/// the write fails, the log can only be read.
fn begin_mark(mark: &mut Mark, store: &mut Store, file: &File, tail: &Tail, durability: Durability) {
    if store.read_only.is_none() {
        let begun = mark.begin(tail.epoch, tail.last, file, durability == Durability::Process);
        store.read_only = begun.err();
    }
}

/// Opens the database of a log. Returns the database, a handle of its file, and the epoch,
/// positions and size of the log, which are `None` if the database is new.
fn open_store(path: &Path, durability: Durability, is_created: bool) -> Result<(Store, File, Option<Tail>), FileError> {
    let (store, file) = Store::open(path, durability, is_created)?;
    let tail = store.tail()?;
    Ok((store, file, tail))
}

/// Stores another epoch of the log, the number that identifies one lifetime of the log. The records
/// of the log stay, and new records get later positions. If the file can only be read, the epoch is
/// kept in memory only.
fn store_epoch(store: &Store, epoch: u64, tail: Tail) -> Result<Tail, FileError> {
    let tail = Tail { epoch, ..tail };
    guarded(|| {
        let transaction = store.database.begin_write()?;
        transaction.open_table(RECORDS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert(FORMAT, FORMAT_VERSION)?;
        numbers.insert(EPOCH, tail.epoch)?;
        drop(numbers);
        Ok(transaction.commit()?)
    })?;
    Ok(tail)
}

/// Makes the database file of a log smaller if most of it is unused.
fn compact(store: &mut Store, file: &File, tail: &Tail) -> Result<(), FileError> {
    let used = tail.bytes();
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    if len > 2 * used + SMALL {
        guarded(|| Ok(store.database.compact().map(drop)?))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{FileBackend, test_file::TestFile},
        *,
    };
    use crate::hub::backend::{Backend, RecordKind};
    use tokio::time::timeout;

    /// Changes the records of a log whose backend was dropped.
    fn change_records(file: &TestFile, change: impl FnOnce(&mut Records<'_>)) {
        // The first database is closed in a task.
        let mut attempts = 0..20;
        let store = loop {
            match Store::open(&file.0, Durability::Process, false) {
                Ok((store, _)) => break store,
                Err(error) => assert!(attempts.next().is_some(), "{error}"),
            }
        };
        let transaction = store.database.begin_write().unwrap();
        change(&mut transaction.open_table(RECORDS).unwrap());
        transaction.commit().unwrap();
    }

    /// One commit removes fewer records than are missing before the oldest one.
    #[tokio::test]
    async fn retention_removes_records_after_many_missing_ones() {
        let file = TestFile::new("missing");
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event: "data: 1\n\n".into() };
        let backend = FileBackend::new(&file.0).durability(Durability::Process);
        let last = backend.append(vec![record; 2000]).await.unwrap().position;
        drop(backend);
        change_records(&file, |records| records.retain(|(position, _), _| position > 1500).unwrap());
        let backend = FileBackend::new(&file.0).max_age(Duration::from_millis(1));
        let mut bounds = backend.log().await.unwrap().shared.bounds.subscribe();
        let removed = bounds.wait_for(|bounds| bounds.evicted_through == last);
        timeout(Duration::from_secs(10), removed).await.expect("the records are removed").unwrap();
    }

    /// A record of several parts is damaged in the part that has its time and its size.
    #[tokio::test]
    async fn damaged_time_or_size_does_not_change_retention() {
        for is_time in [true, false] {
            let file = TestFile::new("head");
            let event = format!("data: {}\n\n", "x".repeat(PART)).into();
            let record = Record { topic: "news".into(), kind: RecordKind::Event, event };
            let backend = FileBackend::new(&file.0).durability(Durability::Process);
            let last = backend.append(vec![record; 100]).await.unwrap().position;
            drop(backend);
            change_records(&file, |records| {
                let part = |position: u64| records.get((position, 0)).unwrap().unwrap().value().to_vec();
                let mut damaged = part(5);
                if is_time {
                    damaged[8..16].fill(u8::MAX);
                } else {
                    damaged[16..24].copy_from_slice(&part(last.get())[16..24]);
                }
                records.insert((5, 0), &damaged[..]).unwrap();
            });
            let backend = FileBackend::new(&file.0);
            let (backend, expected) = match is_time {
                true => (backend.max_age(Duration::from_millis(1)), last),
                false => (backend.max_records(50), Position::new(50)),
            };
            let mut bounds = backend.log().await.unwrap().shared.bounds.subscribe();
            let removed = bounds.wait_for(|bounds| bounds.evicted_through >= expected);
            let removed = timeout(Duration::from_secs(10), removed).await.expect("records are removed").unwrap();
            assert_eq!(removed.evicted_through, expected);
        }
    }

    /// The size in the first part is right, and the payload in the second part is damaged.
    #[tokio::test]
    async fn damaged_payload_evicts_no_further_record() {
        let file = TestFile::new("payload");
        let event: bytes::Bytes = format!("data: {}\n\n", "x".repeat(PART)).into();
        let size = record::size("news", &event) as u64;
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event };
        let backend = FileBackend::new(&file.0).durability(Durability::Process);
        backend.append(vec![record; 100]).await.unwrap();
        drop(backend);
        change_records(&file, |records| {
            let mut damaged = records.get((5, 1)).unwrap().unwrap().value().to_vec();
            damaged[3] ^= 1;
            records.insert((5, 1), &damaged[..]).unwrap();
        });
        let backend = FileBackend::new(&file.0).max_bytes(size * 95);
        let mut bounds = backend.log().await.unwrap().shared.bounds.subscribe();
        let removed = bounds.wait_for(|bounds| bounds.evicted_through >= Position::new(5));
        let removed = timeout(Duration::from_secs(10), removed).await.expect("records are removed").unwrap();
        assert_eq!(removed.evicted_through, Position::new(5));
    }

    #[test]
    fn pause_is_longer_than_the_reopening() {
        let begin = Instant::now();
        for (milliseconds, pause) in [(0, 1_000), (100, 1_000), (250, 1_000), (3_000, 12_000)] {
            let end = begin + Duration::from_millis(milliseconds);
            assert_eq!(pause_end(begin, end), end + Duration::from_millis(pause), "after {milliseconds} ms");
        }
    }
}
