//! A temporary file for the unit tests of the backend that stores a log in a file.

use super::mark::beside;
use std::{
    env,
    fs::{self, File, OpenOptions},
    path::PathBuf,
    process,
};

/// The path of a file for unit tests, in the folder for temporary files. Dropping this value
/// removes the file, and its mark: the small file that a log has beside its database.
pub(super) struct TestFile(pub(super) PathBuf);

impl TestFile {
    /// Creates an empty file in the folder for temporary files. `name` becomes a part of the file
    /// name, so each test needs another name.
    pub(super) fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("tower-sse-{name}-{}", process::id()));
        File::create(&path).unwrap();
        Self(path)
    }

    /// Opens the file for reading, and for writing unless `is_read_only` is set.
    pub(super) fn open(&self, is_read_only: bool) -> File {
        OpenOptions::new().read(true).write(!is_read_only).open(&self.0).unwrap()
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
        let _not_every_test_opens_a_log = fs::remove_file(beside(&self.0, ".mark"));
    }
}
