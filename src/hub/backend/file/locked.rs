//! The lock of a database file, the same for every kind of storage [`Device`].

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Bound,
};

/// The length in bytes of the magic number at the beginning of each `redb` file. If the creation of
/// the database was interrupted, these bytes are still zero.
const MAGIC: usize = 9;
/// The maximum length in bytes of a database file whose creation was interrupted. Such a file
/// begins with zeros, and is emptied before it is opened. A longer file may contain records, so it
/// is never emptied.
const MAX_NEW: u64 = 8 << 20;

/// A storage device for the database `redb`. Each implementation contains a [`FileBackend`], which
/// is the storage of `redb` in a file, and can replace some methods of it. The default
/// implementation of each method calls the method of the `FileBackend` with the same name.
pub(super) trait Device: fmt::Debug + Send + Sync + 'static {
    /// Set if the file is open for reading only. The operating system then refuses an exclusive
    /// lock, so the file gets a shared lock.
    const IS_READ_ONLY: bool = false;

    fn file(&self) -> &FileBackend;

    fn len(&self) -> io::Result<u64> {
        self.file().len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file().read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file().set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file().write(offset, data)
    }
}

/// Storage that locks its file while the database is open.
///
/// The database calls the lock methods of [`StorageBackend`]. The default implementations of these
/// methods return the error `Unsupported`, and the database then continues without a lock. To
/// prevent this, only `Locked` implements `StorageBackend`, with all lock methods. Each kind of
/// storage implements only [`Device`], which has no lock methods.
#[derive(Debug)]
pub(super) struct Locked<D>(pub(super) D);

impl<D: Device> StorageBackend for Locked<D> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.file().close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if D::IS_READ_ONLY {
            return self.try_lock_shared_range(start, end);
        }
        self.0.file().try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file().try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if D::IS_READ_ONLY {
            return self.lock_shared_range(start, end);
        }
        self.0.file().lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file().lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file().unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file().query_lock_range(start, end)
    }
}

/// Empties a database file if its creation was interrupted, and leaves any other file unchanged.
/// Returns `false` without a change if the file is locked: another process may be creating the
/// database. Returns `true` otherwise.
pub(super) fn reset_unfinished(file: &mut File, device: &FileBackend) -> io::Result<bool> {
    let is_locked = match device.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
        Ok(true) => true,
        Ok(false) => return Ok(false),
        // The system has no locks, so the database opens the file without a lock, too.
        Err(BackendError::Unsupported) => false,
        Err(error) => return Err(error.into()),
    };
    let len = file.metadata()?.len();
    if (1..=MAX_NEW).contains(&len) {
        let mut begin = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(MAGIC as u64).read_to_end(&mut begin)?;
        if begin.iter().all(|byte| *byte == 0) {
            file.set_len(0)?;
        }
    }
    if is_locked {
        // The database takes locks of its own, which must not overlap with this lock on Windows.
        device.unlock_range(Bound::Unbounded, Bound::Unbounded)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            device::{Allocated, ReadOnly, Unsynced},
            test_file::TestFile,
        },
        *,
    };
    use redb::{Database, DatabaseError};

    fn open<D: Device>(file: File, device: impl FnOnce(FileBackend) -> D) -> Result<Database, DatabaseError> {
        Database::builder().create_with_backend(Locked(device(FileBackend::new(file).unwrap())))
    }

    #[test]
    fn each_device_locks_its_file() {
        let file = TestFile::new("locked");
        let allocated = || open(file.open(false), Allocated::new);
        let unsynced = || open(file.open(false), Unsynced);
        let read_only = || open(file.open(true), |file| ReadOnly::new(file).unwrap());
        let is_locked = |opened| matches!(opened, Err(DatabaseError::DatabaseAlreadyOpen));

        for open in [&allocated as &dyn Fn() -> _, &unsynced] {
            let database = open().unwrap();
            assert!(is_locked(allocated()) && is_locked(unsynced()) && is_locked(read_only()));
            drop(database);
        }
        let database = read_only().expect("a shared lock needs no permission to write");
        assert!(is_locked(allocated()) && is_locked(unsynced()));
        assert!(read_only().is_ok(), "the lock is shared");
        drop(database);
        assert!(unsynced().is_ok(), "the lock ends with the database");
    }

    #[test]
    fn file_of_another_process_is_not_emptied() {
        let file = TestFile::new("unfinished");
        let device = || FileBackend::new(file.open(false)).unwrap();
        let len = || file.open(true).metadata().unwrap().len();
        // The beginning of the file is zero while the database is created.
        file.open(false).set_len(4096).unwrap();
        let other = device();
        assert!(other.try_lock_range(Bound::Unbounded, Bound::Unbounded).unwrap());
        let reset = || {
            let mut file = file.open(false);
            let device = FileBackend::new(file.try_clone().unwrap()).unwrap();
            reset_unfinished(&mut file, &device).unwrap()
        };
        assert!(!reset());
        assert_eq!(len(), 4096);
        drop(other);
        assert!(reset());
        assert_eq!(len(), 0);
        assert!(reset(), "the lock has ended");
    }
}
