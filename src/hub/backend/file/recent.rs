//! The newest records of the log in memory, so that the follower of a hub, the task that reads new
//! records, need not read them from the file.

use crate::hub::backend::{Bounds, Page, Position, Record};
use std::mem;

/// The maximum number of records that a log keeps in memory for its follower. One read of the file
/// returns about this number of records, too.
const MAX_RECORDS: usize = 1000;

/// The maximum total size in bytes of the records that a log keeps in memory for its follower.
const MAX_BYTES: u64 = 1 << 20;

/// The records of the last commits, in memory until the first reader takes them. Other readers read
/// the file. If the records exceed [`MAX_RECORDS`] or [`MAX_BYTES`] earlier, they are dropped, and
/// all readers read the file.
#[derive(Default)]
pub(super) struct Recent {
    /// Set while new records are kept in memory: from the first `take` call of a reader until the
    /// records exceed a limit. A log without readers keeps no records.
    is_followed: bool,
    epoch: u64,
    /// The position before the first record in memory.
    after: Position,
    /// The position of the newest record that was added. Memory contains all records of the log
    /// whose positions are greater than the field `after`, up to and including this position.
    through: Position,
    records: Vec<(Position, Record)>,
    bytes: u64,
}

impl Recent {
    /// Adds the records of a commit, which directly follow the position `after` in the log. `bytes`
    /// is their size. If the records in memory do not end at `after`, first forgets them. If the
    /// records exceed the limits, forgets all of them.
    pub(super) fn add(&mut self, epoch: u64, after: Position, commit: Vec<(Position, Record)>, bytes: u64) {
        let Some(through) = commit.last().map(|(position, _)| *position).filter(|_| self.is_followed) else { return };
        let fits = |records: usize, bytes: u64| records <= MAX_RECORDS && bytes <= MAX_BYTES;
        let continues = (self.epoch, self.through) == (epoch, after);
        if !continues {
            *self = Self { is_followed: true, epoch, after, ..Self::default() };
        }
        if fits(self.records.len() + commit.len(), self.bytes + bytes) {
            self.records.extend(commit);
            self.bytes += bytes;
            self.through = through;
        } else {
            *self = Self::default();
        }
    }

    /// Returns the records after the position `after` as one page, and removes all records from
    /// memory. Returns `None`, and removes nothing, if memory lacks some of these records, or if
    /// `bounds`, the range that readers may read, excludes some of these records.
    pub(super) fn take(&mut self, after: Position, bounds: &Bounds) -> Option<Page> {
        self.is_followed = true;
        let is_complete = self.epoch == bounds.epoch && (self.after..self.through).contains(&after);
        if !is_complete || self.through > bounds.last || bounds.evicted_through > after {
            return None;
        }
        let mut records = mem::take(&mut self.records);
        records.retain(|(position, _)| *position > after);
        (self.after, self.bytes) = (self.through, 0);
        let Bounds { epoch, evicted_through, .. } = *bounds;
        Some(Page { epoch, evicted_through, records, through: self.through })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::RecordKind;

    fn commit(positions: std::ops::RangeInclusive<u64>) -> Vec<(Position, Record)> {
        let record = Record { topic: "news".into(), kind: RecordKind::Event, event: "data: 1\n\n".into() };
        positions.map(|position| (position.into(), record.clone())).collect()
    }

    fn bounds(evicted_through: u64, last: u64) -> Bounds {
        Bounds { epoch: 7, evicted_through: evicted_through.into(), last: last.into() }
    }

    /// Creates an empty [`Recent`] (the newest records of the log, in memory), and calls its `take`
    /// once, as a reader does. From this call on, the [`Recent`] keeps the records of commits.
    fn followed() -> Recent {
        let mut recent = Recent::default();
        assert_eq!(recent.take(Position::START, &bounds(0, 0)), None);
        recent
    }

    fn taken(recent: &mut Recent, after: u64, bounds: &Bounds) -> Option<Vec<u64>> {
        let page = recent.take(after.into(), bounds)?;
        let positions: Vec<_> = page.records.iter().map(|(position, _)| position.get()).collect();
        assert_eq!((page.epoch, page.evicted_through), (7, bounds.evicted_through));
        assert_eq!(positions.last().copied(), Some(page.through.get()), "the page ends with its last record");
        Some(positions)
    }

    #[test]
    fn first_reader_takes_records_of_all_commits() {
        let mut recent = followed();
        recent.add(7, 4.into(), commit(5..=6), 100);
        recent.add(7, 6.into(), commit(7..=9), 100);
        assert_eq!(taken(&mut recent, 3, &bounds(0, 9)), None, "4 is not in memory");
        assert_eq!(taken(&mut recent, 6, &bounds(2, 9)), Some(vec![7, 8, 9]));
        assert_eq!(taken(&mut recent, 6, &bounds(2, 9)), None);
        recent.add(7, 9.into(), commit(10..=10), 100);
        assert_eq!(taken(&mut recent, 9, &bounds(2, 10)), Some(vec![10]));
    }

    #[test]
    fn page_has_every_record_that_is_announced_and_not_evicted() {
        let mut recent = followed();
        recent.add(7, 4.into(), commit(5..=6), 100);
        assert_eq!(taken(&mut recent, 4, &bounds(0, 5)), None, "6 is not announced");
        assert_eq!(taken(&mut recent, 4, &bounds(5, 6)), None, "5 is evicted");
        assert_eq!(taken(&mut recent, 4, &Bounds { epoch: 8, ..bounds(0, 6) }), None, "another epoch");
        recent.add(7, 7.into(), commit(8..=8), 100);
        assert_eq!(taken(&mut recent, 4, &bounds(0, 8)), None, "7 is missing");
        assert_eq!(taken(&mut recent, 7, &bounds(0, 8)), Some(vec![8]));
    }

    #[test]
    fn memory_is_limited() {
        let mut recent = followed();
        recent.add(7, 0.into(), commit(1..=1000), MAX_BYTES);
        assert_eq!(recent.records.len(), 1000);
        recent.add(7, 1000.into(), commit(1001..=1001), 0);
        assert!(recent.records.is_empty());
        recent.add(7, 1001.into(), commit(1002..=1002), 100);
        assert!(recent.records.is_empty(), "no reader has asked since the limit");
        assert_eq!(taken(&mut recent, 1001, &bounds(0, 1002)), None);
        recent.add(7, 1002.into(), commit(1003..=1003), MAX_BYTES);
        assert_eq!(taken(&mut recent, 1002, &bounds(0, 1003)), Some(vec![1003]));
        recent.add(7, 1003.into(), commit(1004..=1004), MAX_BYTES + 1);
        assert!(recent.records.is_empty());
    }
}
