//! The limit on open file descriptors. The soft limit is often 1024.

/// Raises the soft limit of this process, and of the processes that it starts, to at least `count`.
///
/// # Panics
///
/// If the hard limit is smaller.
#[cfg(unix)]
pub fn allow_descriptors(count: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::sync::{Mutex, PoisonError};

    /// Without this lock, another test could set a smaller limit between the two calls.
    static LOCK: Mutex<()> = Mutex::new(());
    let _alone = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    if soft < count {
        assert!(
            hard >= count,
            "this test needs {count} file descriptors, and the hard limit is {hard}: run `ulimit -n {count}` as root"
        );
        setrlimit(Resource::RLIMIT_NOFILE, count, hard).expect("the soft limit can be raised");
    }
}

/// Does nothing, because there is no such limit.
#[cfg(not(unix))]
pub fn allow_descriptors(_count: u64) {}
