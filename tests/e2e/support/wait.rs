//! Waiting for a condition, and checking that nothing changes.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Calls `look` until it returns `Ok`, and returns that value. An `Err` holds the current state.
///
/// # Panics
///
/// When the time is up. The message contains `what`, and the last state.
pub async fn eventually<T, E: Debug>(within: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begin = Instant::now();
    loop {
        let seen = match look().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(begin.elapsed() < within, "not within {within:?}: {what}; the last state: {seen:?}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Asserts that `look` returns the same value for all of this time.
///
/// # Panics
///
/// As soon as a value differs from the first value.
pub async fn stays<T: Debug + PartialEq>(throughout: Duration, what: &str, mut look: impl AsyncFnMut() -> T) {
    let begin = Instant::now();
    let first = look().await;
    while begin.elapsed() < throughout {
        sleep(POLL_INTERVAL).await;
        let now = look().await;
        assert_eq!(now, first, "{what}: changed after {:?}", begin.elapsed());
    }
}
