//! The check whether another log is a copy of the log that it has replaced, for example after a
//! failover.

use crate::hub::backend::{Position, RecordKind};
use std::mem;

/// The effects of records of a topic on a recording, a task that publishes a stream into the topic.
/// Records that are older than the recording have no effect, and are not included.
#[derive(Clone, Copy, Default)]
pub(super) struct Ends {
    pub(super) is_finished: bool,
    /// The position of the will in the topic: the event that another node publishes if the node of
    /// the recording dies. `None` if the topic does not contain the will.
    pub(super) will_at: Option<Position>,
    /// Set if an application has requested the recordings of the topic to stop.
    pub(super) is_stopped: bool,
}

impl Ends {
    /// Notes a record of the recording's topic. `will` is the event that another node publishes if
    /// the node of the recording dies. It is empty if the recording has no such event.
    pub(super) fn note(&mut self, position: Position, kind: RecordKind, event: &[u8], will: &[u8]) {
        self.is_finished |= kind == RecordKind::Finish;
        // A record of another program can be empty, like a missing will.
        let is_will = matches!(kind, RecordKind::Event | RecordKind::State) && event == will && !will.is_empty();
        self.will_at = self.will_at.or(is_will.then_some(position));
    }
}

/// A beat (sign of life) of any node, as this node has read it. If another log has the same beat at
/// the same position, it is a copy.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct ReadBeat {
    pub(super) at: Position,
    pub(super) node: u64,
    pub(super) number: u64,
}

/// Recognizes the records of a copied log that are older than a recording, a task that publishes a
/// stream into a topic.
///
/// After another log has replaced the log, this node reads the other log from its beginning. A copy
/// has the wills, the finish records and the requests to stop of earlier recordings of the topic.
/// They must not end the recording a second time. If the other log is no copy, the same records can
/// be from another node that has taken over the recording.
///
/// Two beats (signs of life of nodes) that this node has read decide. If the other log has the same
/// beat at the same position, it is a copy up to this beat, and this node has read all records
/// before the beat already. A copy may lack the newest records, and so the second beat. If it lacks
/// only the first beat, for example because this record is damaged, the second beat decides alone.
#[derive(Default)]
pub(super) struct CopyCheck {
    /// The newest beat (sign of life) of any node that this node had read before the first beat
    /// that lists the recording.
    before: Option<ReadBeat>,
    /// The first beat (sign of life) that lists the recording, as far as this node has read since
    /// it knows the recording. `None` if this node has read no such beat in this log.
    first: Option<ReadBeat>,
    /// The beats that this node has still to find in the other log, the later beat first: `first`,
    /// `before`, or both. Empty if this node has read enough of the log to know how far it is a
    /// copy.
    expected: Vec<ReadBeat>,
    /// The effects of the records that this node has read in the other log before the expected
    /// beats. They apply only if the other log is no copy.
    held: Ends,
}

impl CopyCheck {
    /// Begins the check whether another log, which has replaced the log, is a copy. The other log
    /// retains the records after `after` and up to `last`. `newest` is the newest beat (sign of
    /// life) of any node that this node has read in the replaced log.
    pub(super) fn reset(&mut self, after: Position, last: Position, newest: Option<ReadBeat>) {
        // While the check is open, the effects of the records before `newest` may be held.
        if self.first.is_none() && !self.is_open() {
            self.before = newest;
        }
        let may_be_copied = |beat: &ReadBeat| beat.at > after && beat.at <= last;
        self.before = self.before.filter(may_be_copied);
        self.first = self.first.filter(may_be_copied);
        self.expected = self.first.into_iter().chain(self.before).collect();
        self.held = Ends::default();
    }

    /// Returns `true` while this node does not know yet how far another log is a copy of the log
    /// that it has replaced.
    pub(super) fn is_open(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Returns the last position whose records have no effect yet, because the log may be a copy.
    /// Returns `None` if no record is held back, because this check is not open.
    pub(super) fn held_through(&self) -> Option<Position> {
        self.expected.first().map(|beat| beat.at)
    }

    /// Returns the last position of this log that is known to be a copy of an earlier log. The
    /// caller calls this after the check has ended.
    pub(super) fn copied_through(&self) -> Position {
        self.first.or(self.before).map_or(Position::START, |beat| beat.at)
    }

    /// Returns the `Ends` where the caller notes the records that it reads now, if they may be
    /// copies of old records. Returns `None` if the records take effect at once.
    pub(super) fn held(&mut self) -> Option<&mut Ends> {
        self.is_open().then_some(&mut self.held)
    }

    /// Notes a beat (sign of life) that lists the recording. `newest` is the newest beat of any
    /// node that this node had read before.
    pub(super) fn note_beat(&mut self, beat: ReadBeat, newest: Option<ReadBeat>) {
        if self.first.is_none() && !self.is_open() {
            (self.before, self.first) = (newest, Some(beat));
        }
    }

    /// Notes a beat (sign of life) of any node in another log that has replaced the log. Returns
    /// `true` if the replaced log had this beat, too, and the check expects it. The other log is
    /// then a copy up to this beat, and the records before the beat have no effect.
    pub(super) fn find(&mut self, beat: ReadBeat) -> bool {
        let Some(index) = self.expected.iter().position(|expected| *expected == beat) else { return false };
        self.expected.truncate(index);
        self.held = Ends::default();
        true
    }

    /// Ends the check whether another log is a copy, if this node has read the log up to `through`
    /// and the last expected beat (sign of life) is not at its position. Then the log is a copy
    /// only up to the beat that was found last. Returns the effects of the records after that beat.
    /// Returns `None` if the check does not end now.
    pub(super) fn end(&mut self, through: Position) -> Option<Ends> {
        self.expected.first().filter(|missing| through >= missing.at)?;
        self.before = self.before.filter(|before| !self.expected.contains(before));
        self.first = None;
        self.expected.clear();
        Some(mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(at: u64) -> ReadBeat {
        ReadBeat { at: Position::new(at), node: 1, number: at }
    }

    fn note_finish(check: &mut CopyCheck, at: u64) {
        check.held().expect("the check is open").note(Position::new(at), RecordKind::Finish, b"", b"");
    }

    /// Ends the check if the log was read far enough. Returns `None` if the check has not ended.
    /// Otherwise returns `Some(true)` if a finish record counts, and `Some(false)` if none does.
    fn is_finished(check: &mut CopyCheck, through: u64) -> Option<bool> {
        check.end(Position::new(through)).map(|ends| ends.is_finished)
    }

    /// Returns a check for a recording whose first sign of life is at position 9. The sign of life
    /// before it is at position 5.
    fn check() -> CopyCheck {
        let mut check = CopyCheck::default();
        check.note_beat(beat(9), Some(beat(5)));
        check
    }

    #[test]
    fn end_before_a_missing_beat_counts() {
        let mut check = check();
        check.reset(Position::START, Position::new(20), Some(beat(12)));
        note_finish(&mut check, 3);
        assert_eq!(is_finished(&mut check, 8), None);
        assert_eq!(is_finished(&mut check, 9), Some(true));
        assert_eq!((check.is_open(), check.copied_through()), (false, Position::START));
    }

    #[test]
    fn first_beat_decides_without_the_beat_before() {
        let mut check = check();
        check.reset(Position::START, Position::new(20), Some(beat(12)));
        note_finish(&mut check, 3);
        assert!(check.find(beat(9)));
        assert_eq!(is_finished(&mut check, 20), None);
        assert!(!check.is_open());
    }

    #[test]
    fn copy_may_lack_the_first_beat() {
        for (last, finish) in [(8, None), (20, None), (20, Some(7))] {
            let mut check = check();
            check.reset(Position::START, Position::new(last), Some(beat(12)));
            note_finish(&mut check, 3);
            assert!(check.find(beat(5)));
            assert_eq!(check.is_open(), last == 20);
            if let Some(at) = finish {
                note_finish(&mut check, at);
            }
            assert_eq!(is_finished(&mut check, 8), None);
            assert_eq!(is_finished(&mut check, 20), (last == 20).then_some(finish.is_some()));
        }
    }

    #[test]
    fn open_check_ignores_beats_of_an_unknown_log() {
        let mut check = CopyCheck::default();
        check.reset(Position::START, Position::new(20), Some(beat(5)));
        // The node has read this beat of the second log, and not enough to know that log.
        check.note_beat(beat(2), Some(beat(1)));
        check.reset(Position::START, Position::new(20), Some(beat(2)));
        note_finish(&mut check, 1);
        assert!(!check.find(beat(2)));
        assert_eq!(is_finished(&mut check, 5), Some(true));
    }
}
