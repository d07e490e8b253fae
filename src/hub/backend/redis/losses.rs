//! Detection of lost entries: positions that this process has published or read, and that the log
//! does not have any more.

use super::{super::Position, entry::DecodedBatch, entry_id};
use std::{
    collections::{BTreeSet, VecDeque},
    mem,
};

/// The maximum number of positions that Redis has acknowledged and the follower has not read yet.
/// Beyond this limit, the oldest positions are dropped, and their loss is not detected.
const MAX_ACKNOWLEDGED: usize = 1 << 16;

/// The maximum number of remembered runs of positions that the follower has read. A run usually
/// contains all entries of one millisecond, so 4,096 runs cover at least 4 seconds. That is longer
/// than an append waits for its response.
const MAX_RUNS: usize = 4096;

/// The number of attempts to add a mark (an entry that reports a loss) only after a complete search
/// for the same mark of another node. Such an attempt fails if there are too many entries to
/// search. After these attempts, the mark is added without a complete search.
const MAX_ATTEMPTS: u32 = 4;

/// Compares the positions that this process has published or read with the entries of the log.
///
/// After a failover, the old master may have acknowledged entries that the new master does not
/// have. A reader of the new master cannot see this loss. Only a process that has read or published
/// these entries knows of it, and adds a mark to the log.
#[derive(Default)]
pub(super) struct Losses {
    /// The follower has read all entries after `from` and up to `through`. Their positions are in
    /// `runs`.
    from: Position,
    through: Position,
    runs: VecDeque<(Position, Position)>,
    /// The positions that the server has acknowledged to this process, and that the follower has
    /// not read yet.
    acknowledged: BTreeSet<Position>,
    /// The newest lost position that no entry of the log reports yet. `None` if there is no such
    /// loss.
    lost: Option<Position>,
    attempts: u32,
    /// The end of the log at the last check, if it was before the follower's cursor.
    regressed_to: Option<Position>,
}

impl Losses {
    /// Sets the cursor of the follower: the next entries that it reads are after this position.
    pub(super) fn begin(&mut self, after: Position) {
        if after != self.through {
            (self.from, self.through) = (after, after);
            self.runs.clear();
        }
    }

    /// Forgets the old log after another log has replaced it. `newest` is the end of the new log.
    pub(super) fn reset(&mut self, newest: Position) {
        self.acknowledged.retain(|position| *position <= newest);
        (self.lost, self.attempts) = (None, 0);
    }

    /// Records a position that the server has acknowledged to this process. The follower may
    /// already have read it.
    pub(super) fn note_acknowledged(&mut self, position: Position) {
        let was_passed = position <= self.through && !entry_id::is_far_ahead(self.through, entry_id::ms(position));
        if !was_passed {
            self.acknowledged.insert(position);
            if self.acknowledged.len() > MAX_ACKNOWLEDGED {
                self.acknowledged.pop_first();
            }
        } else if position > self.from && !self.has_read(position) {
            self.note_missing(position);
        }
    }

    /// Records a batch of entries that the follower has read after a position. `evicted_through` is
    /// the eviction watermark of this batch.
    pub(super) fn note_read(&mut self, batch: &DecodedBatch, after: Position, evicted_through: Option<Position>) {
        // The entry after a trimmed or deleted one reports the loss to all readers.
        if let Some(reported) = batch.previous.or(evicted_through).filter(|reported| *reported > self.through) {
            self.from = reported;
            self.runs.clear();
        }
        for &(first, last) in &batch.runs {
            match self.runs.back_mut() {
                Some((_, end)) if first <= end.next() => *end = last.max(*end),
                _ => self.runs.push_back((first, last)),
            }
        }
        while self.runs.len() > MAX_RUNS {
            self.from = self.runs.pop_front().map_or(self.from, |(_, last)| last);
        }
        self.through = batch.through;
        while let Some(position) = self.acknowledged.first().copied().filter(|first| *first <= batch.through) {
            self.acknowledged.pop_first();
            if position > self.from && !self.has_read(position) {
                self.note_missing(position);
            }
        }
        if batch.has_gone_back {
            self.note_missing(after);
        }
        if let Some(reported) = batch.newest_lost {
            self.note_marked(reported);
        }
    }

    /// Records the loss of a position that was in the log.
    pub(super) fn note_missing(&mut self, position: Position) {
        self.lost = self.lost.max(Some(position));
    }

    /// Records that the log itself now reports all losses up to this position.
    pub(super) fn note_marked(&mut self, position: Position) {
        if Some(position) >= self.lost {
            (self.lost, self.attempts) = (None, 0);
        }
    }

    /// Returns the lost position to mark, if there is one, and counts an attempt. The flag is
    /// `true` if the mark has to be added even without a complete search for another node's mark.
    pub(super) fn attempt(&mut self) -> Option<(Position, bool)> {
        let lost = self.lost?;
        self.attempts += 1;
        Some((lost, self.attempts > MAX_ATTEMPTS))
    }

    /// Records the end of the log if the end is before the follower's cursor, or `None` if it is
    /// not. Returns the value that was recorded before.
    pub(super) fn replace_regressed_to(&mut self, regressed_to: Option<Position>) -> Option<Position> {
        mem::replace(&mut self.regressed_to, regressed_to)
    }

    fn has_read(&self, position: Position) -> bool {
        let run = self.runs.partition_point(|(_, last)| *last < position);
        self.runs.get(run).is_some_and(|(first, _)| *first <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Position {
        number.into()
    }

    fn batch(previous: u64, positions: &[u64]) -> DecodedBatch {
        DecodedBatch {
            previous: Some(at(previous)),
            through: at(positions[positions.len() - 1]),
            runs: positions.iter().map(|position| (at(*position), at(*position))).collect(),
            ..DecodedBatch::default()
        }
    }

    /// Creates the state of a follower that has read the positions 1 to 3.
    fn losses() -> Losses {
        let mut losses = Losses::default();
        losses.begin(at(0));
        losses.note_read(&batch(0, &[1, 2, 3]), at(0), None);
        losses
    }

    #[test]
    fn acknowledged_positions_that_are_read_are_not_lost() {
        let mut losses = losses();
        for position in [2, 3, 4, 7] {
            losses.note_acknowledged(at(position));
        }
        losses.note_read(&batch(3, &[4, 5, 7]), at(3), None);
        losses.note_acknowledged(at(5));
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn acknowledged_positions_that_are_not_read_are_lost() {
        let mut before = losses();
        before.note_acknowledged(at(5));
        before.note_read(&batch(3, &[4, 7]), at(3), None);
        assert_eq!(before.attempt(), Some((at(5), false)));
        let mut afterwards = losses();
        afterwards.note_read(&batch(3, &[4, 7]), at(3), None);
        afterwards.note_acknowledged(at(6));
        assert_eq!(afterwards.attempt(), Some((at(6), false)));
    }

    #[test]
    fn trimmed_positions_need_no_mark() {
        let mut losses = losses();
        losses.note_acknowledged(at(5));
        losses.note_read(&batch(6, &[7, 8]), at(3), Some(at(6)));
        losses.note_acknowledged(at(6));
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn a_mark_for_a_newer_position_ends_the_loss() {
        for (newest_lost, is_reported) in [(2, false), (3, true), (4, true)] {
            let mut losses = losses();
            let read = DecodedBatch { has_gone_back: true, newest_lost: Some(at(newest_lost)), ..batch(1, &[7]) };
            losses.note_read(&read, at(3), Some(at(6)));
            assert_eq!(losses.attempt().is_none(), is_reported, "{newest_lost}");
        }
    }

    #[test]
    fn a_long_log_does_not_prevent_a_mark() {
        let mut losses = losses();
        losses.note_missing(at(3));
        for _ in 0..MAX_ATTEMPTS {
            assert_eq!(losses.attempt(), Some((at(3), false)));
        }
        assert_eq!(losses.attempt(), Some((at(3), true)));
        losses.note_marked(at(2));
        assert_eq!(losses.attempt(), Some((at(3), true)));
        losses.note_marked(at(3));
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn a_new_log_forgets_positions_after_its_end() {
        let mut losses = losses();
        losses.note_acknowledged(at(9));
        losses.note_missing(at(3));
        losses.reset(at(2));
        losses.begin(at(1));
        losses.note_read(&batch(1, &[2, 10]), at(1), None);
        assert_eq!(losses.attempt(), None);
    }
}
