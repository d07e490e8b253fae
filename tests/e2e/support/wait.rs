//! Waiting for what must happen, and watching for what must not.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Looks until there is an `Ok`, and returns it. `Err` says what there is instead.
///
/// # Panics
///
/// When the time is up: with what was waited for, and what there was at the last look.
pub async fn eventually<T, E: Debug>(within: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begin = Instant::now();
    loop {
        let seen = match look().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(begin.elapsed() < within, "{within:?} have passed, and not yet: {what}. At the last look: {seen:?}");
        sleep(BETWEEN_LOOKS).await;
    }
}

/// Looks for all of the time, and each look must give the same as the first.
///
/// # Panics
///
/// As soon as one does not.
pub async fn stays<T: Debug + PartialEq>(throughout: Duration, what: &str, mut look: impl AsyncFnMut() -> T) {
    let begin = Instant::now();
    let first = look().await;
    while begin.elapsed() < throughout {
        sleep(BETWEEN_LOOKS).await;
        let now = look().await;
        assert_eq!(now, first, "after {:?} no longer: {what}", begin.elapsed());
    }
}
