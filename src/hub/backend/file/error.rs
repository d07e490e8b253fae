//! Errors of a log in a file.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

/// An error of a log in a file. All publishers whose appends share a failed commit get clones of
/// one error.
#[derive(Clone, Debug)]
pub(super) struct FileError(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    message: String,
    kind: Kind,
}

/// The extent of an error: the request, a page of the database, or the whole database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only the requested operation failed. The database is as it was before the operation.
    Request,
    /// A page of the database is damaged. The database can still be used.
    Damage,
    /// The database cannot be used until it is opened again.
    Database,
}

impl FileError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { message: message.into(), kind }))
    }

    pub(super) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Adds the failed operation and the path of the log to the message.
    pub(super) fn context(&self, operation: &str, path: &Path) -> Self {
        Self::new(self.kind(), format!("cannot {operation} the log {path:?}: {self}"))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for FileError {}

impl<E: Into<redb::Error>> From<E> for FileError {
    fn from(error: E) -> Self {
        let error = error.into();
        let kind = match error {
            redb::Error::Corrupted(_) => Kind::Damage,
            redb::Error::Io(ref error) if error.kind() == io::ErrorKind::InvalidData => Kind::Damage,
            redb::Error::ValueTooLarge(_) => Kind::Request,
            _ => Kind::Database,
        };
        Self::new(kind, error.to_string())
    }
}

/// Calls a function that uses the database, and converts a panic into an error. The database panics
/// when it interprets some damaged pages. In a commit, a second panic can happen while the first
/// unwinds. The second cannot be caught, and aborts the process.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(FileError::new(Kind::Damage, format!("the database panicked: {}", message.unwrap_or("unknown reason"))))
    })
}

/// Returns a function that converts an I/O error into a [`FileError`]. The message of the result
/// contains `operation`, the operation that failed, and the path of the file.
pub(super) fn file_error(operation: &str, path: &Path) -> impl Fn(io::Error) -> FileError {
    move |error| FileError::new(Kind::Database, format!("cannot {operation} the file {path:?}: {error}"))
}
