//! The check whether another log is a copy of the log that it has replaced, for example after a
//! failover.

use crate::hub::backend::{Position, RecordKind};

/// The effects on a recording of those records of its topic that are not older.
#[derive(Clone, Copy, Default)]
pub(super) struct Ends {
    pub(super) is_finished: bool,
    /// Set if the topic has the will: the event that another node publishes if the recording's node
    /// dies.
    pub(super) has_will: bool,
    /// Set if an application has requested the recordings of the topic to stop.
    pub(super) is_stopped: bool,
}

impl Ends {
    /// Notes a record of the recording's topic. `will` is the will of the recording, or empty.
    pub(super) fn note(&mut self, kind: RecordKind, event: &[u8], will: &[u8]) {
        self.is_finished |= kind == RecordKind::Finish;
        // A record of another program can be empty, like a missing will.
        let is_will = matches!(kind, RecordKind::Event | RecordKind::State) && event == will;
        self.has_will |= is_will && !will.is_empty();
    }
}

/// Recognizes the records of a copied log that are older than a recording.
///
/// After another log has replaced the log, this node reads the other log from its beginning. A copy
/// has the wills, the finish records and the requests to stop of earlier recordings of the topic.
/// They must not end the recording a second time. If the other log is no copy, the same records can
/// be from another node that has taken over the recording.
///
/// The first sign of life (beat) that this node has read with the recording decides.
/// If the other log has the same beat at the same position, it is a copy up to this beat, and this
/// node has read all records before the beat already.
#[derive(Default)]
pub(super) struct CopyCheck {
    /// The position and the number of the first beat of the recording's node that this node has
    /// read since it knows the recording. `None` if this node has read no such beat in this log.
    first_beat: Option<(Position, u64)>,
    /// The effects of the records before the position of `first_beat` if the other log is no copy.
    /// `None` if this node has read the log up to this position.
    held: Option<Ends>,
}

impl CopyCheck {
    /// Begins to read another log, whose retained records are after `after` and up to `last`.
    pub(super) fn reset(&mut self, after: Position, last: Position) {
        self.first_beat = self.first_beat.filter(|(at, _)| *at > after && *at <= last);
        self.held = self.first_beat.map(|_| Ends::default());
    }

    /// Returns `true` until this node has read the other log up to the first beat.
    pub(super) fn is_open(&self) -> bool {
        self.held.is_some()
    }

    /// Returns the position of the first beat while the check is open.
    pub(super) fn first_beat(&self) -> Option<Position> {
        self.held.and(self.first_beat).map(|(at, _)| at)
    }

    /// Returns where to note the records that this node reads now, if they may be copies.
    pub(super) fn held(&mut self) -> Option<&mut Ends> {
        self.held.as_mut()
    }

    /// Notes a beat of the recording's node with this position and this number.
    pub(super) fn note_beat(&mut self, position: Position, number: u64) {
        if *self.first_beat.get_or_insert((position, number)) == (position, number) {
            self.held = None;
        }
    }

    /// Ends the check if this node has read the log up to `through`, and has not found the first
    /// beat at its position. The log is then no copy. Returns the effects of the noted records.
    pub(super) fn end(&mut self, through: Position) -> Option<Ends> {
        let (at, _) = self.first_beat?;
        let ends = self.held.take_if(|_| through >= at)?;
        self.first_beat = None;
        Some(ends)
    }
}
