//! The cursor of the Durable Streams protocol: a number in each live response, which the client
//! repeats in its next request. So a cache does not answer that request with the same response
//! (§10.1 of the protocol). This cursor is not a position of the log.

use crate::random;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time when the first interval of 20 seconds begins: October 9, 2024, 00:00 UTC, in seconds
/// since 1970. The cursor of the Durable Streams protocol is the number of the current interval.
const FIRST_INTERVAL: u64 = 1_728_432_000;

/// The length in seconds of an interval. The cursor of the Durable Streams protocol is the number
/// of the current interval.
const INTERVAL: u64 = 20;

/// The maximum of a random number that makes a new cursor of the Durable Streams protocol greater
/// than the cursor of the client. Normally, the new cursor is the number of the current interval of
/// 20 seconds. If the client's cursor is not smaller, the new cursor is the client's cursor plus
/// the random number. The maximum is 180, the number of intervals in one hour.
const MAX_JITTER: u64 = 60 * 60 / INTERVAL;

/// Returns the cursor of a response in the Durable Streams protocol: the number of the current
/// interval of 20 seconds. The result must be greater than `requested`, the cursor in the request
/// of the client. So if `requested` is not smaller than the current interval, returns `requested`
/// plus a random number from 1 to 180. Ignores a `requested` that is not a number or is too large.
pub(super) fn next(requested: Option<&str>) -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    after(since_1970.saturating_sub(FIRST_INTERVAL) / INTERVAL, requested)
}

fn after(current: u64, requested: Option<&str>) -> u64 {
    let requested = requested.and_then(|cursor| cursor.parse::<u64>().ok());
    let jitter = 1 + (random::fraction() * MAX_JITTER as f64) as u64;
    match requested.filter(|requested| *requested >= current) {
        Some(requested) => requested.checked_add(jitter).unwrap_or(current),
        None => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_greater_than_that_of_the_client() {
        for _ in 0..1_000 {
            assert_eq!(after(1_000, None), 1_000);
            assert_eq!(after(1_000, Some("999")), 1_000);
            assert!((1_001..=1_180).contains(&after(1_000, Some("1000"))));
            assert!((2_001..=2_180).contains(&after(1_000, Some("2000"))));
        }
        for text in ["", "x", "-1", "99999999999999999999", "18446744073709551615"] {
            assert_eq!(after(1_000, Some(text)), 1_000, "{text:?}");
        }
    }
}
