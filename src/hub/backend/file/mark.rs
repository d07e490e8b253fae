//! The mark file of a log: a small file beside the database with the state of the log. When the log
//! is opened, the mark file shows whether the database was replaced by a copy, or has lost records.

use super::error::{FileError, file_error};
use crate::hub::backend::Position;
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    mem,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The first line of a mark file, with the version of its format.
const TITLE: &str = "tower-sse mark 1";

/// The maximum difference in milliseconds between the time in a mark file and the modification time
/// of this file. A greater difference shows that an older mark file was copied over this file.
///
/// A write of a mark file has two steps: it writes the current time with the other contents, and
/// then sets the modification time of the file to this time. If the process is killed between the
/// two steps, the modification time is the time of the first step, which is a little later than the
/// time in the mark file.
const MAX_DELAY_MS: u64 = 20;

/// The maximum difference in milliseconds between the time in a mark file and the modification time
/// of this file, if the machine has crashed. A greater difference shows that an older mark file was
/// copied over this file. The maximum is greater than [`MAX_DELAY_MS`], which applies without a
/// crash. The reason is that after a crash, the disk may have the modification time of one write,
/// but the contents of an earlier write.
const MAX_DELAY_AFTER_CRASH_MS: u64 = 60_000;

/// The contents of a mark file: the state of the log when the mark file was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// The epoch of the log: the number that identifies one lifetime of the log.
    pub(super) epoch: u64,
    /// The last position that the log has stored. This position is written to the mark file before
    /// the records up to this position are acknowledged. So no acknowledged record has a greater
    /// position.
    pub(super) last: Position,
    /// The time when this state of the log was written to the mark file, in milliseconds since
    /// 1970.
    time: u64,
    /// Identifies the database file of the log in its file system.
    file: FileId,
    /// Identifies the boot of the machine (one run of its operating system) during which this state
    /// of the log was written. `None` if the log was closed properly.
    boot: Option<u128>,
    /// Set if the log was open with `Durability::Process` when this state was written. A crash of
    /// the machine may then lose records.
    is_lost_with_machine: bool,
}

/// Identifies a file in its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    inode: u64,
    /// The time when the file with this `FileId` was created, in nanoseconds since 1970. 0 if the
    /// time is unknown.
    created: u128,
}

impl FileId {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let file = file.metadata()?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&file);
        #[cfg(not(unix))]
        let inode = 0;
        let created = file.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self { inode, created: created.map_or(0, |time| time.as_nanos()) })
    }
}

/// The reason why the log in the database is not the log that the mark file describes. The log then
/// gets a new epoch, the number that identifies one lifetime of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replaced {
    /// The mark file did not exist, or its contents cannot be decoded.
    NoMark,
    /// The epoch, the number that identifies one lifetime of the log, differs between the database
    /// and the mark file.
    OtherEpoch,
    /// The last position of the log is smaller than the last position in the mark file. So the log
    /// has lost records, for example because an older copy has replaced the database.
    Shorter,
    /// The mark file contains the inode and the creation time of another database file, because
    /// both files were copied, or moved to another file system. Or an older mark file was copied
    /// over the mark file.
    Copied,
    /// The machine has crashed while the log was open with `Durability::Process`, so the log may
    /// have lost records.
    MachineCrash,
}

impl Contents {
    /// Returns this state of the log as the text of the mark file. All such texts have the same
    /// length, so a write replaces the whole earlier text.
    fn encode(&self) -> String {
        let Self { epoch, last, time, file, boot, is_lost_with_machine } = self;
        let mut text = String::new();
        let _infallible = write!(
            text,
            "{TITLE}\nepoch {epoch:016x}\nlast {:020}\ntime {time:020}\ninode {:020}\ncreated {:039}\nboot {:032x}\n\
             unsynced {}\n",
            last.get(),
            file.inode,
            file.created,
            boot.unwrap_or(0),
            u8::from(*is_lost_with_machine)
        );
        text
    }

    /// Returns `true` if the machine has crashed since this state of the log was written to the
    /// mark file: the machine has restarted, and the log was not closed properly before. On systems
    /// other than Linux, each restart of the process counts as a restart of the machine.
    fn is_after_crash(&self) -> bool {
        self.boot.is_some_and(|boot| Some(boot) != boot_id())
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(TITLE)?.strip_prefix('\n')?.lines();
        let mut next = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        Some(Self {
            epoch: u64::from_str_radix(next("epoch")?, 16).ok()?,
            last: next("last")?.parse::<u64>().ok()?.into(),
            time: next("time")?.parse().ok()?,
            file: FileId { inode: next("inode")?.parse().ok()?, created: next("created")?.parse().ok()? },
            boot: Some(u128::from_str_radix(next("boot")?, 16).ok()?).filter(|boot| *boot != 0),
            is_lost_with_machine: next("unsynced")? == "1",
        })
    }
}

/// The open mark file of a log: a small file beside the database with the state of the log. The
/// process that has opened the log holds the lock of the mark file.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    /// The file handle that holds the lock of the mark file. `None` if the handle `file` holds the
    /// lock. There are two handles if the mark file was first opened for reading only, and later
    /// for writing: `file` is the later one.
    locked: Option<File>,
    is_read_only: bool,
    contents: Contents,
    /// The state of the log that the mark file contained when it was opened. Also the time of the
    /// last change of the file before it was opened, in milliseconds since 1970. `None` if the mark
    /// file was new or could not be decoded.
    found: Option<(Contents, u64)>,
}

impl Mark {
    /// Opens and locks the mark file of a log. Creates the file if it does not exist. Returns
    /// `None` if the file is already locked, usually by another process.
    ///
    /// If the process has no permission to write, an existing mark file is opened for reading.
    pub(super) fn open(log: &Path) -> Result<Option<Self>, FileError> {
        let path = beside(log, ".mark");
        let write = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let (file, is_read_only) = match write {
            Err(error) if is_read_only(&error) => (File::open(&path), true),
            file => (file, false),
        };
        let mut file = file.map_err(file_error("open", &path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                return Err(file_error("lock", &path)(error));
            }
            _ => {}
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(file_error("read", &path))?;
        let changed = file.metadata().and_then(|metadata| metadata.modified()).map_or(0, milliseconds);
        let contents = str::from_utf8(&text).ok().and_then(Contents::decode);
        let none = Contents {
            epoch: 0,
            last: Position::START,
            time: 0,
            file: FileId { inode: 0, created: 0 },
            boot: None,
            is_lost_with_machine: false,
        };
        let found = contents.map(|contents| (contents, changed));
        Ok(Some(Self { path, file, locked: None, is_read_only, contents: none, found }))
    }

    /// If the mark file could only be opened for reading, tries again to open it for writing. If
    /// this fails, or if the path of the mark file now leads to another file, the mark file stays
    /// open for reading.
    pub(super) fn reopen(&mut self) {
        if !self.is_read_only {
            return;
        }
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&self.path) else { return };
        let is_same = FileId::of(&file).ok().zip(FileId::of(&self.file).ok()).is_some_and(|(one, other)| one == other);
        if is_same {
            self.locked = Some(mem::replace(&mut self.file, file));
            self.is_read_only = false;
        }
    }

    /// Compares the log in the database with the state of the log in the mark file. Returns `None`
    /// if the mark file describes the log in the database, and otherwise the reason why it does
    /// not. `epoch` and `last` are the epoch and the last position in the database. `file` is the
    /// inode and the creation time of the database file.
    pub(super) fn compare(&self, epoch: u64, last: Position, file: FileId) -> Option<Replaced> {
        let Some((found, changed)) = &self.found else { return Some(Replaced::NoMark) };
        let max_delay = if found.is_after_crash() { MAX_DELAY_AFTER_CRASH_MS } else { MAX_DELAY_MS };
        if found.epoch != epoch {
            Some(Replaced::OtherEpoch)
        } else if last < found.last {
            Some(Replaced::Shorter)
        } else if found.file != file || changed.saturating_sub(found.time) > max_delay {
            Some(Replaced::Copied)
        } else if self.is_after_machine_crash() {
            Some(Replaced::MachineCrash)
        } else {
            None
        }
    }

    /// Returns `true` if the machine has crashed while the log was open with `Durability::Process`.
    /// The log may then have lost records.
    pub(super) fn is_after_machine_crash(&self) -> bool {
        self.found.as_ref().is_some_and(|(found, _)| found.is_lost_with_machine && found.is_after_crash())
    }

    /// Writes the state of an open log to the mark file, and waits until it is on the disk. Set
    /// `is_lost_with_machine` if a crash of the machine may lose records of the log. After such a
    /// crash, the log then begins a new epoch: the number that identifies its lifetime changes.
    pub(super) fn begin(
        &mut self,
        epoch: u64,
        last: Position,
        file: &File,
        is_lost_with_machine: bool,
    ) -> Result<(), FileError> {
        let file = FileId::of(file).map_err(file_error("read", &self.path))?;
        // If the boots of the machine cannot be distinguished, any restart may follow a crash.
        let boot = Some(boot_id().unwrap_or(u128::MAX));
        self.contents = Contents { epoch, last, time: 0, file, boot, is_lost_with_machine };
        self.write()?;
        self.sync()?;
        // A new file is on the disk when its folder is.
        if let Some(Ok(folder)) = self.path.parent().map(File::open) {
            let _unsupported_by_some_systems = folder.sync_all();
        }
        Ok(())
    }

    /// Writes `last`, the last position of the log, to the mark file, without waiting for the disk.
    pub(super) fn advance(&mut self, last: Position) -> Result<(), FileError> {
        self.contents.last = last;
        self.write()
    }

    /// Records in the mark file that the log was closed properly. Waits until the mark file is on
    /// the disk. Call this method only when all records of the log are on the disk.
    pub(super) fn end(&mut self) -> Result<(), FileError> {
        (self.contents.boot, self.contents.is_lost_with_machine) = (None, false);
        self.write()?;
        self.sync()
    }

    fn write(&mut self) -> Result<(), FileError> {
        self.contents.time = milliseconds(SystemTime::now());
        let text = self.contents.encode();
        let write = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(text.as_bytes()));
        write.map_err(file_error("write", &self.path))?;
        // A later copy into this file changes the modification time, which `compare` detects.
        // Setting the time fails if the file belongs to another user. The file then keeps the time
        // of the write, which is nearly the same.
        let _not_permitted = self.file.set_modified(UNIX_EPOCH + Duration::from_millis(self.contents.time));
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(file_error("write", &self.path))
    }
}

/// Returns the path of a file beside a log: the path of the log with `extension`, such as `.mark`,
/// appended to it.
pub(super) fn beside(log: &Path, extension: &str) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(extension);
    path.into()
}

/// Returns `true` if an attempt to open a file for writing has failed because the file can only be
/// read. `error` is the error of this attempt.
pub(super) fn is_read_only(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Converts a time to milliseconds since 1970.
pub(super) fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis().try_into().unwrap_or(u64::MAX))
}

/// Returns a number that identifies the current boot of the machine. Returns `None` on systems
/// other than Linux.
fn boot_id() -> Option<u128> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&id.trim().replace('-', ""), 16).ok()
}
