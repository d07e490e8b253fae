//! The retention of a log: which of the oldest records are removed.

use super::store::Tail;
use std::time::Duration;

/// The limits of the retained records, for all topics together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) max_records: u64,
    pub(super) max_bytes: u64,
    /// [`Duration::MAX`] means no limit.
    pub(super) max_age: Duration,
}

/// The maximum number of records over the limit.
const MAX_EXCESS: u64 = 1000;

impl Retention {
    /// Returns whether there are so many records over a limit that some should be removed.
    ///
    /// Removing a few at a time costs less than removing one with each append. So a log has up to
    /// 1/64 more records or bytes than its limit.
    pub(super) fn is_due(&self, tail: &Tail) -> bool {
        tail.records() > 1.max(self.max_records).saturating_add((self.max_records / 64).min(MAX_EXCESS))
            || (tail.bytes() > self.max_bytes.saturating_add(self.max_bytes / 64) && tail.records() > 1)
    }

    /// Returns whether the oldest record is over a limit. The newest record of a log is not.
    pub(super) fn is_excess(&self, tail: &Tail) -> bool {
        tail.records() > 1.max(self.max_records) || (tail.bytes() > self.max_bytes && tail.records() > 1)
    }

    /// Returns whether a record of this time has expired. Times are in milliseconds since 1970.
    pub(super) fn is_expired(&self, time: u64, now: u64) -> bool {
        Duration::from_millis(now.saturating_sub(time)) >= self.max_age
    }

    /// Returns the time until records should be removed for their age, with the oldest record of
    /// this time. `None` means never.
    ///
    /// Records that expire one after the other are removed together, within 1/16 of the age.
    pub(super) fn expires_in(&self, oldest: u64, now: u64) -> Option<Duration> {
        let age = Duration::from_millis(now.saturating_sub(oldest));
        (self.max_age != Duration::MAX).then(|| self.max_age.saturating_add(self.max_age / 16).saturating_sub(age))
    }
}
