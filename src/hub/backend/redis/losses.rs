//! Notices entries that the log has lost.

use super::{super::Position, entry::DecodedBatch, entry_id};
use std::{
    collections::{BTreeSet, VecDeque},
    mem,
};

/// The maximum number of acknowledged positions that are still to be read. Beyond that the oldest
/// are forgotten.
const MAX_ACKNOWLEDGED: usize = 1 << 16;

/// The maximum number of remembered runs of positions that were read. A run has all entries of a
/// millisecond, more or less, so this is longer than an answer takes.
const MAX_RUNS: usize = 4096;

/// The number of attempts to mark a loss that may fail because of too many entries to look at.
const MAX_ATTEMPTS: u32 = 4;

/// Compares the positions that this process knows with the entries that it reads.
///
/// A master that was replaced may have acknowledged entries that its successor does not have.
/// Readers of the successor cannot see that. Only a process that has read or published these
/// entries knows, and marks the loss in the log.
#[derive(Default)]
pub(super) struct Losses {
    /// All entries after `from` up to `through` were read: those in `runs`.
    from: Position,
    through: Position,
    runs: VecDeque<(Position, Position)>,
    /// Positions that were acknowledged here, and are still to be read.
    acknowledged: BTreeSet<Position>,
    /// The newest lost position that no entry of the log reports yet.
    lost: Option<Position>,
    attempts: u32,
    /// The end of the server's log at the last look, if it was before the newest known position.
    regressed_to: Option<Position>,
}

impl Losses {
    /// The next entries to be read are those after this position.
    pub(super) fn begin(&mut self, after: Position) {
        if after != self.through {
            (self.from, self.through) = (after, after);
            self.runs.clear();
        }
    }

    /// Forgets what was known of the old log when another one replaces it. The new log ends here.
    pub(super) fn reset(&mut self, newest: Position) {
        self.acknowledged.retain(|position| *position <= newest);
        (self.lost, self.attempts) = (None, 0);
    }

    /// Notes a position that was acknowledged here. It may have been read already.
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

    /// Records a batch of entries that was read after a position. `evicted_through` is the eviction
    /// watermark that the batch contains.
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

    /// Notes a position that was in the log and is not there any more.
    pub(super) fn note_missing(&mut self, position: Position) {
        self.lost = self.lost.max(Some(position));
    }

    /// Notes that the log reports the loss of this position.
    pub(super) fn note_marked(&mut self, position: Position) {
        if Some(position) >= self.lost {
            (self.lost, self.attempts) = (None, 0);
        }
    }

    /// Returns the position that is to be marked as lost, if there is one, and whether it is to be
    /// marked whatever else the log has. Counts an attempt.
    pub(super) fn attempt(&mut self) -> Option<(Position, bool)> {
        let lost = self.lost?;
        self.attempts += 1;
        Some((lost, self.attempts > MAX_ATTEMPTS))
    }

    /// Records that the log ends here, before the newest known position, or that it does not.
    /// Returns the end that was recorded before.
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

    /// Has read 1 to 3.
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
