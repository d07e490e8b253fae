//! Notices entries that the log has lost.

use super::entry::{self, Part};
use std::collections::{BTreeSet, VecDeque};

/// The maximum number of acknowledged positions that are still to be read. Beyond that the oldest
/// are forgotten.
const ACKNOWLEDGED: usize = 1 << 16;

/// The maximum number of remembered runs of positions that were read. A run has all entries of a
/// millisecond, more or less, so this is longer than an answer takes.
const RUNS: usize = 4096;

/// The number of attempts to mark a loss that may fail because of too many entries to look at.
const ATTEMPTS: u32 = 4;

/// Compares the positions that this process knows with the entries that it reads.
///
/// A master that was replaced may have acknowledged entries that its successor does not have.
/// Readers of the successor cannot see that. Only a process that has read or published these
/// entries knows, and marks the loss in the log.
#[derive(Default)]
pub(super) struct Losses {
    /// All entries after `from` up to `through` were read: those in `runs`.
    from: u64,
    through: u64,
    runs: VecDeque<(u64, u64)>,
    /// Positions that were acknowledged here, and are still to be read.
    acknowledged: BTreeSet<u64>,
    /// The newest lost position that no entry of the log reports yet. 0 if there is none.
    lost: u64,
    attempts: u32,
}

impl Losses {
    /// The next entries to be read are those after this position.
    pub(super) fn begin(&mut self, after: u64) {
        if after != self.through {
            (self.from, self.through) = (after, after);
            self.runs.clear();
        }
    }

    /// Forgets what was known of the old log when another one replaces it. The new log ends here.
    pub(super) fn reset(&mut self, newest: u64) {
        self.acknowledged.retain(|position| *position <= newest);
        (self.lost, self.attempts) = (0, 0);
    }

    /// Notes a position that was acknowledged here. It may have been read already.
    pub(super) fn note_acknowledged(&mut self, position: u64) {
        let was_passed = position <= self.through && !entry::is_far_after(self.through, position >> entry::SEQUENCE);
        if !was_passed {
            self.acknowledged.insert(position);
            if self.acknowledged.len() > ACKNOWLEDGED {
                self.acknowledged.pop_first();
            }
        } else if position > self.from && !self.has_read(position) {
            self.note_missing(position);
        }
    }

    /// Notes the entries that were read after a position. `evicted_through` is the watermark that
    /// the entries report.
    pub(super) fn note_read(&mut self, part: &Part, after: u64, evicted_through: u64) {
        // The entry after a trimmed or deleted one reports the loss to all readers.
        let told = part.previous.unwrap_or(evicted_through);
        if told > self.through {
            self.from = told;
            self.runs.clear();
        }
        for &(first, last) in &part.runs {
            match self.runs.back_mut() {
                Some((_, end)) if first.saturating_sub(*end) <= 1 => *end = last.max(*end),
                _ => self.runs.push_back((first, last)),
            }
        }
        while self.runs.len() > RUNS {
            self.from = self.runs.pop_front().map_or(self.from, |(_, last)| last);
        }
        self.through = part.through;
        while let Some(position) = self.acknowledged.first().copied().filter(|first| *first <= part.through) {
            self.acknowledged.pop_first();
            if position > self.from && !self.has_read(position) {
                self.note_missing(position);
            }
        }
        if part.has_gone_back {
            self.note_missing(after);
        }
        self.note_marked(part.newest_gone);
    }

    /// Notes a position that was in the log and is not there any more.
    pub(super) fn note_missing(&mut self, position: u64) {
        self.lost = self.lost.max(position);
    }

    /// The log says that this position was lost.
    pub(super) fn note_marked(&mut self, position: u64) {
        if position >= self.lost {
            (self.lost, self.attempts) = (0, 0);
        }
    }

    /// Returns the position that is to be marked as lost, if there is one, and whether it is to be
    /// marked whatever else the log has. Counts an attempt.
    pub(super) fn attempt(&mut self) -> Option<(u64, bool)> {
        if self.lost == 0 {
            return None;
        }
        self.attempts += 1;
        Some((self.lost, self.attempts > ATTEMPTS))
    }

    fn has_read(&self, position: u64) -> bool {
        let run = self.runs.partition_point(|(_, last)| *last < position);
        self.runs.get(run).is_some_and(|(first, _)| *first <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(previous: u64, positions: &[u64]) -> Part {
        Part {
            previous: Some(previous),
            through: positions[positions.len() - 1],
            runs: positions.iter().map(|position| (*position, *position)).collect(),
            ..Part::default()
        }
    }

    /// Has read 1 to 3.
    fn losses() -> Losses {
        let mut losses = Losses::default();
        losses.begin(0);
        losses.note_read(&part(0, &[1, 2, 3]), 0, 0);
        losses
    }

    #[test]
    fn acknowledged_positions_that_are_read_are_not_lost() {
        let mut losses = losses();
        for position in [2, 3, 4, 7] {
            losses.note_acknowledged(position);
        }
        losses.note_read(&part(3, &[4, 5, 7]), 3, 0);
        losses.note_acknowledged(5);
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn acknowledged_positions_that_are_not_read_are_lost() {
        let mut before = losses();
        before.note_acknowledged(5);
        before.note_read(&part(3, &[4, 7]), 3, 0);
        assert_eq!(before.attempt(), Some((5, false)));
        let mut afterwards = losses();
        afterwards.note_read(&part(3, &[4, 7]), 3, 0);
        afterwards.note_acknowledged(6);
        assert_eq!(afterwards.attempt(), Some((6, false)));
    }

    #[test]
    fn trimmed_positions_need_no_mark() {
        let mut losses = losses();
        losses.note_acknowledged(5);
        losses.note_read(&part(6, &[7, 8]), 3, 6);
        losses.note_acknowledged(6);
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn a_mark_for_a_newer_position_ends_the_loss() {
        for (newest_gone, is_told) in [(2, false), (3, true), (4, true)] {
            let mut losses = losses();
            let read = Part { has_gone_back: true, newest_gone, ..part(1, &[7]) };
            losses.note_read(&read, 3, 6);
            assert_eq!(losses.attempt().is_none(), is_told, "{newest_gone}");
        }
    }

    #[test]
    fn a_long_log_does_not_prevent_a_mark() {
        let mut losses = losses();
        losses.note_missing(3);
        for _ in 0..ATTEMPTS {
            assert_eq!(losses.attempt(), Some((3, false)));
        }
        assert_eq!(losses.attempt(), Some((3, true)));
        losses.note_marked(2);
        assert_eq!(losses.attempt(), Some((3, true)));
        losses.note_marked(3);
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn a_new_log_forgets_positions_after_its_end() {
        let mut losses = losses();
        losses.note_acknowledged(9);
        losses.note_missing(3);
        losses.reset(2);
        losses.begin(1);
        losses.note_read(&part(1, &[2, 10]), 1, 0);
        assert_eq!(losses.attempt(), None);
    }
}
