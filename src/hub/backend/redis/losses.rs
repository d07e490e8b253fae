//! Detection of lost entries of a Redis stream: entries that this process has published or read,
//! and that the stream does not have any more.

use super::{super::Position, entry::DecodedBatch, entry_id};
use std::{
    collections::{BTreeSet, VecDeque},
    mem,
};

/// The maximum number of acknowledged entries whose positions this process remembers until it reads
/// the entries from the log. An entry is acknowledged if this process has added it, and the server
/// has confirmed this. Beyond the maximum, the process forgets the smallest positions, and cannot
/// detect a loss of their entries.
const MAX_ACKNOWLEDGED: usize = 1 << 16;

/// The maximum number of ranges of positions that this process has read and remembers. If there are
/// more, the oldest range is forgotten. When the server acknowledges an append, the ranges show
/// whether this process has already read the new entry. One range usually contains all entries of
/// one millisecond, so 4,096 ranges cover at least 4 seconds. An append waits for its
/// acknowledgement for at most 2 seconds by default, so the range of its entry is still remembered.
const MAX_RUNS: usize = 4096;

/// The number of failed attempts to report a loss of entries after which a process does not wait
/// for a complete search. Before a process adds a mark, an entry that reports the loss, it searches
/// the log for a mark of another process that reports the same loss. If there are too many entries
/// to search, the attempt fails, and the process tries again later. After this number of failed
/// attempts, it adds the mark in spite of an incomplete search.
const MAX_ATTEMPTS: u32 = 4;

/// Detects lost entries: compares the positions that this process has published or read with the
/// entries of the log.
///
/// After a failover, the new master may not have entries that the old master had acknowledged. A
/// process that reads only from the new master cannot see this loss. A process that has published
/// or read these entries knows of it. That process adds a mark to the log, an entry that reports
/// the loss to all readers.
#[derive(Default)]
pub(super) struct Losses {
    /// The part of the log that this process has read: all entries after the position `from` and up
    /// to `through`. `runs` contains the positions of these entries, as ranges of consecutive
    /// positions.
    from: Position,
    through: Position,
    runs: VecDeque<(Position, Position)>,
    /// The positions of entries that this process has added and the server has acknowledged, but
    /// that this process has not read from the log yet.
    acknowledged: BTreeSet<Position>,
    /// The position of the newest entry that the log has lost, until this process has read an entry
    /// that reports this loss. A process that detects a loss adds such an entry to the log. `None`
    /// if there is no loss to report.
    lost: Option<Position>,
    /// The position of the mark, an entry that reports the loss of the entry `lost`. `None` if
    /// there is no mark, or if the log has lost the mark, too. [`attempt`](Self::attempt) forgets a
    /// mark after this process has read past its position without finding it.
    marked: Option<Position>,
    attempts: u32,
    /// The end of the log at the last check, if it was before the last position that this process
    /// had read. `None` if the log did not end before that position.
    regressed_to: Option<Position>,
}

impl Losses {
    /// Sets the position after which this process reads the log next. If its previous read ended at
    /// another position, also forgets which entries this process has read, because the next entries
    /// do not directly follow them.
    pub(super) fn begin(&mut self, after: Position) {
        if after != self.through {
            (self.from, self.through) = (after, after);
            self.runs.clear();
            self.regressed_to = None;
        }
    }

    /// Forgets all detected losses of entries, because another log has replaced the log. Also
    /// forgets the acknowledged entries of this process after `newest`, the end of the new log.
    pub(super) fn reset(&mut self, newest: Position) {
        self.acknowledged.retain(|position| *position <= newest);
        self.forget_lost();
    }

    /// Records the position of an entry that this process has added and the server has
    /// acknowledged. If this process has already read past this position without finding the entry,
    /// the entry counts as lost.
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

    /// Records the entries that this process has read after the position `after`. An entry that
    /// this process has added, and that the server has acknowledged, counts as lost if the read has
    /// passed its position without finding it. Entries up to `evicted_through`, the eviction
    /// watermark of the read, do not count, because retention may have evicted them.
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
        // The log has continued after the cursor since the last check.
        self.regressed_to = None;
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
            self.note_reported(reported);
        }
    }

    /// Notes that the Redis stream has lost the entry with this position. The caller of
    /// [`attempt`](Self::attempt) then adds an entry to the stream that reports this loss to all
    /// readers.
    pub(super) fn note_missing(&mut self, position: Position) {
        self.lost = self.lost.max(Some(position));
    }

    /// Notes that this process has read an entry of the log that reports a loss of other entries.
    /// `position` is the position of the newest lost entry that it reports.
    fn note_reported(&mut self, position: Position) {
        if Some(position) >= self.lost {
            self.forget_lost();
        }
    }

    fn forget_lost(&mut self) {
        (self.lost, self.marked, self.attempts) = (None, None, 0);
    }

    /// Stores the position of a mark, an entry in the log that reports the loss of other entries.
    /// Until this process has read up to the mark, [`attempt`](Self::attempt) returns `None`, so
    /// that its caller adds no second mark.
    pub(super) fn note_marked(&mut self, mark: Position) {
        (self.marked, self.attempts) = (Some(mark), 0);
    }

    /// Returns the position of the mark, the entry that reports the loss of other entries. Returns
    /// `None` if there is no such mark, or if this process has already read it.
    pub(super) fn unread_mark(&self) -> Option<Position> {
        self.marked.filter(|mark| self.through < *mark)
    }

    /// Notes that the log ends at the position `newest`. If the mark, the entry that reports the
    /// loss of other entries, is after this end, the log has lost the mark, too. The loss is then
    /// not reported any more, and needs a new mark.
    pub(super) fn note_end(&mut self, newest: Position) {
        self.marked = self.marked.filter(|mark| *mark <= newest);
    }

    /// Returns the position of the newest lost entry, if its loss has to be reported, and counts an
    /// attempt to report it. The caller then searches the log for a mark (an entry that reports the
    /// loss) of another process. If there is no such mark, the caller adds a mark. If the log has
    /// too many entries for this search, the caller adds the mark only if the `bool` is `true`:
    /// after four attempts ([`MAX_ATTEMPTS`]).
    ///
    /// Returns `None` if no loss has to be reported, or if a mark was added and this process has
    /// not read up to it yet. If this process has read past the mark's position without finding the
    /// mark, the log has lost the mark, and this call is a new attempt.
    pub(super) fn attempt(&mut self) -> Option<(Position, bool)> {
        let lost = self.lost?;
        self.marked = self.unread_mark();
        if self.marked.is_some() {
            return None;
        }
        self.attempts += 1;
        Some((lost, self.attempts > MAX_ATTEMPTS))
    }

    /// Stores the result of a check for lost entries, and returns the result of the previous check.
    ///
    /// A result is the end of the log, if the log ends before the last position that this process
    /// has read: the log has then lost its newest entries. Otherwise it is `None`. If the end is
    /// later than at the previous check, other processes append at positions that this process has
    /// already passed. This process would miss their entries.
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

    /// A test fixture: returns a detector of lost entries that has read the entries at the
    /// positions 1 to 3.
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
        losses.note_reported(at(2));
        assert_eq!(losses.attempt(), Some((at(3), true)));
        losses.note_reported(at(3));
        assert_eq!(losses.attempt(), None);
    }

    #[test]
    fn unread_mark_is_not_added_again() {
        let mut losses = losses();
        losses.note_missing(at(3));
        assert_eq!(losses.attempt(), Some((at(3), false)));
        losses.note_marked(at(9));
        for page in 4..=8 {
            losses.note_end(at(9));
            assert_eq!((losses.attempt(), losses.unread_mark()), (None, Some(at(9))));
            losses.note_read(&batch(page - 1, &[page]), at(page - 1), None);
        }
        losses.note_read(&DecodedBatch { newest_lost: Some(at(3)), ..batch(8, &[9]) }, at(8), None);
        assert_eq!((losses.attempt(), losses.unread_mark()), (None, None));
    }

    #[test]
    fn mark_that_was_passed_unread_is_added_again() {
        let mut losses = losses();
        losses.note_missing(at(3));
        losses.note_marked(at(5));
        losses.note_read(&batch(3, &[4, 6]), at(3), None);
        assert_eq!(losses.attempt(), Some((at(3), false)));
    }

    #[test]
    fn mark_after_the_end_of_the_log_is_added_again() {
        let mut losses = losses();
        losses.note_missing(at(3));
        losses.note_marked(at(9));
        losses.begin(at(2));
        assert_eq!(losses.attempt(), None);
        losses.note_end(at(8));
        assert_eq!(losses.attempt(), Some((at(3), false)));
        losses.note_marked(at(10));
        losses.reset(at(4));
        losses.note_missing(at(2));
        assert_eq!(losses.attempt(), Some((at(2), false)));
    }

    /// A check that finds the end of the log before the last read position stores this end. If the
    /// next check finds a later end before that position, other processes append there. A read
    /// between the checks would make this conclusion wrong: the log had grown past that position,
    /// and has lost entries again. So a read forgets the stored end.
    #[test]
    fn end_of_the_log_before_a_read_is_forgotten() {
        let mut losses = losses();
        assert_eq!(losses.replace_regressed_to(Some(at(1))), None);
        assert_eq!(losses.replace_regressed_to(Some(at(2))), Some(at(1)));
        losses.note_read(&batch(2, &[4]), at(3), None);
        assert_eq!(losses.replace_regressed_to(Some(at(3))), None);
        losses.begin(at(1));
        assert_eq!(losses.replace_regressed_to(None), None);
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
