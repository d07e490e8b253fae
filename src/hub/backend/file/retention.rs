//! The retention of a log: which of the oldest records are removed.

use super::store::Tail;
use crate::hub::backend::MaxAge;
use std::time::Duration;

/// The limits of the retained records, for all topics together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) max_records: u64,
    pub(super) max_bytes: u64,
    /// The maximum age of a record, if it was set. [`Duration::MAX`] means no limit.
    pub(super) max_age: MaxAge,
}

/// The maximum excess of a log: the number of records that it can have over its limit before its
/// oldest records are removed.
const MAX_EXCESS: u64 = 1000;

impl Retention {
    /// Returns `true` if the log is so far over a limit of records or bytes that its oldest records
    /// should be removed.
    ///
    /// Removing a few records at a time costs less than removing one record with each append. So a
    /// log has up to 1/64 more records or bytes than its limit.
    pub(super) fn is_due(&self, tail: &Tail) -> bool {
        tail.records() > 1.max(self.max_records).saturating_add((self.max_records / 64).min(MAX_EXCESS))
            || (tail.bytes() > self.max_bytes.saturating_add(self.max_bytes / 64) && tail.records() > 1)
    }

    /// Returns `true` if the log has more records or bytes than its limits, so that its oldest
    /// record has to be removed. The last record of a log is never removed for this reason.
    pub(super) fn is_excess(&self, tail: &Tail) -> bool {
        tail.records() > 1.max(self.max_records) || (tail.bytes() > self.max_bytes && tail.records() > 1)
    }

    /// Returns `true` if a record that was appended at `time` is over the maximum age. Times are in
    /// milliseconds since 1970.
    pub(super) fn is_expired(&self, time: u64, now: u64) -> bool {
        Duration::from_millis(now.saturating_sub(time)) >= self.max_age.get()
    }

    /// Returns how long the writer, the thread that stores appends, can wait until it has to remove
    /// expired records, or `None` if records do not expire. `oldest` is the time when the oldest
    /// record was appended, and `now` is the current time, both in milliseconds since 1970.
    ///
    /// The writer waits until the oldest record has exceeded the maximum age by 1/16, so that it
    /// removes several expired records together.
    pub(super) fn expires_in(&self, oldest: u64, now: u64) -> Option<Duration> {
        let age = Duration::from_millis(now.saturating_sub(oldest));
        let max_age = self.max_age.get();
        (max_age != Duration::MAX).then(|| max_age.saturating_add(max_age / 16).saturating_sub(age))
    }
}
