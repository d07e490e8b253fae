//! The lock of a database file: all kinds of storage lock the file in the same way.

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{fmt, io, ops::Bound};

/// A kind of storage for the database, in a file. By default, each method has the effect of the
/// same method of the file.
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

/// A device whose file is locked while the database is open.
///
/// The database locks the file with methods of [`StorageBackend`] that have a default: the error
/// `Unsupported`, after which the database continues without a lock. So this type alone implements
/// the trait, and a kind of storage cannot forget these methods.
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
    use std::fs::File;

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
}
