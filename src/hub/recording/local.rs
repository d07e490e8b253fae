//! A recording of this node: a task that publishes a stream into a topic. This module decides from
//! the records of the log whether an append of the recording has succeeded, and whether the
//! recording has to end.

use super::{
    beat::Announced,
    copy::{CopyCheck, Ends, ReadBeat},
    outage::{Appends, Outage},
    outcome::Outcome,
};
use crate::hub::backend::{Position, Record, RecordKind};
use bytes::Bytes;
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// A recording of this node: a task that publishes a stream into a topic.
pub(in crate::hub) struct Local {
    pub(super) announced: Announced,
    pub(super) lease: Duration,
    /// The requested outcome of this recording, such as [`Outcome::Stopped`] if the application has
    /// stopped the recording. `None` if nothing has requested the end of the recording.
    pub(super) stop: watch::Sender<Option<Outcome>>,
    /// The state of this recording's announcement to the other nodes: whether an attempt has
    /// succeeded, and how many have failed.
    pub(super) announcement: watch::Sender<Announcement>,
    /// The tracker of the appends to the backend's log by this recording. It notes which appends
    /// fail and succeed, so that the beginning and the end of each outage of the backend are logged
    /// once.
    pub(super) appends: Appends,
    state: Mutex<LocalState>,
}

/// The state of the announcement of a recording of this node. The announcement is a record in the
/// log that informs the other nodes of the recording and of its will. If this node dies, another
/// node publishes the will as the last event of the topic.
#[derive(Clone, Default)]
pub(super) struct Announcement {
    /// Set once this node has announced this recording to the other nodes. If this node dies after
    /// that, another node publishes the will, the last event of the recording, and finishes its
    /// topic.
    pub(super) is_done: bool,
    /// Set once this node has announced this recording in any log, also in a log that was replaced.
    was_done: bool,
    /// The number of failed attempts to announce this recording to the other nodes.
    pub(super) failures: u64,
    /// The error of the last failed attempt to announce this recording to the other nodes.
    pub(super) error: Arc<str>,
}

#[derive(Default)]
struct LocalState {
    /// Set while this recording waits to append: the backend does not respond or refuses a single
    /// record, the log has unread records of the topic, or this node still checks whether another
    /// log is a copy. A request to end the recording, such as a stop by the application, then does
    /// not wait for the append, which the backend may never accept.
    is_retrying: bool,
    /// The end of the log, as far as this node knew it, when this recording was started. A request
    /// to stop the recordings of the topic is a record in the log. If the request is not after this
    /// position, it was meant for an earlier recording, and is ignored.
    started_at: Position,
    /// Set if the topic was already finished when this recording was started. This node may read
    /// that only after the start. The newest record of the topic from before the start decides.
    /// Earlier records of the topic do not concern this recording.
    was_finished: bool,
    /// The position of the last record that this recording is known to have appended to the log. A
    /// later record of its topic is either from an append in progress, or from another publisher or
    /// node. So only later records are examined: they may finish the topic, or may be the will,
    /// which another node publishes if it considers this node dead.
    appended: Position,
    /// A log that has replaced another one can contain copies of earlier records of this recording,
    /// up to this position. So a record up to this position that is equal to a record of the
    /// current append is not from this append.
    earlier_through: Position,
    /// The last position of the current log when this node began to read it. Only set if the
    /// current log has replaced another log.
    last_at_reset: Position,
    /// Set if this recording must publish nothing more. The reason is that its topic is finished,
    /// that its topic has a name that recordings cannot use, or that the hub is shut down.
    has_ended: bool,
    /// Set if the hub is shut down.
    is_shut_down: bool,
    /// Set if this recording must publish no further event, and only finishes its topic. The reason
    /// is that another node has considered this node dead and has published the will of the
    /// recording. The flag is also set if this may have happened in a part of the log that was lost
    /// or evicted before this node has read it.
    is_silenced: bool,
    /// The records of the topic that this node has read from the log since this recording began its
    /// current append. If the append gets no response, these records show whether it has succeeded.
    /// `None` if no append is in progress.
    seen: Option<Vec<(Position, RecordKind, Bytes)>>,
    /// Recognizes the records that are older than this recording in another log that has replaced
    /// the log. Such records do not end the recording.
    check: CopyCheck,
}

impl Local {
    pub(super) fn new(announced: Announced, lease: Duration, outage: &Arc<Outage>) -> Self {
        Self {
            announced,
            lease,
            stop: watch::Sender::new(None),
            announcement: watch::Sender::default(),
            appends: Appends::new(outage),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LocalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the end of the log, as far as this node knows it, when this recording starts.
    pub(super) fn note_start(&self, position: Position) {
        self.lock().started_at = position;
    }

    /// Handles a request to stop the recordings of the topic, which is at `position` in the log.
    /// Ignores a request from before the start of this recording: it was meant for an earlier
    /// recording.
    pub(super) fn note_stop(&self, position: Position) {
        let mut state = self.lock();
        if state.started_at >= position {
            return;
        }
        if let Some(held) = state.check.held() {
            held.is_stopped = true;
            return;
        }
        drop(state);
        self.stop(Outcome::Stopped);
    }

    /// Notes a sign of life of this node that lists this recording. `newest` is the newest sign of
    /// life of any node that this node had read before. Both later show whether a log that replaces
    /// this log is a copy.
    pub(super) fn note_beat(&self, beat: ReadBeat, newest: Option<ReadBeat>) {
        self.lock().check.note_beat(beat, newest);
    }

    /// Notes a sign of life of any node in another log that has replaced the log. If the replaced
    /// log had the same sign of life at the same position, the other log is a copy up to there.
    pub(super) fn find(&self, beat: ReadBeat) {
        self.lock().check.find(beat);
    }

    /// Returns `true` while this node does not know yet whether the records that it reads in
    /// another log, which has replaced the log, are older than this recording. The recording then
    /// appends nothing.
    pub(super) fn is_checking(&self) -> bool {
        self.lock().check.is_open()
    }

    /// Applies the records of another log that may end this recording. This node has held their
    /// effects back, because the log may be a copy with old records. It applies them when it has
    /// read enough of the log to know that they are not copied. Also ends this recording if its
    /// topic was already finished at the start, and this node had not read that yet. `through` is
    /// the last position of the log that this node has read. Returns `true` if neither of these
    /// checks is left.
    pub(super) fn end_checks(&self, through: Position) -> bool {
        let mut state = self.lock();
        let has_read_start = through >= state.started_at;
        state.has_ended |= has_read_start && state.was_finished;
        let ends = state.check.end(through);
        if let Some(ends) = ends {
            // The later records that were noted so far are of the earlier log.
            let copied_through = state.check.copied_through();
            state.seen.iter_mut().for_each(|seen| seen.retain(|(at, ..)| *at <= copied_through));
            state.apply(ends);
        }
        let is_done = has_read_start && !state.check.is_open();
        let is_over = state.has_ended || state.is_silenced;
        drop(state);
        if is_over {
            self.stop(Outcome::Interrupted);
        } else if ends.is_some_and(|ends| ends.is_stopped) {
            self.stop(Outcome::Stopped);
        }
        is_done
    }

    /// Returns the greatest position of the log that this node knew when the recording was started.
    pub(super) fn started_at(&self) -> Position {
        self.lock().started_at
    }

    /// Returns the last position of the log that this node has searched for the end of this
    /// recording. `read` is the last position that this node has read. The result is smaller if
    /// records of the topic are still to be examined: an append has no response yet, or the log may
    /// be a copy.
    pub(super) fn examined_through(&self, read: Position) -> Position {
        let state = self.lock();
        if state.check.is_open() {
            return Position::START;
        }
        let unexamined = state.seen.as_ref().and_then(|seen| seen.first());
        unexamined.map_or(read, |(at, ..)| at.previous().min(read))
    }

    /// Marks this recording as ended: it publishes nothing more. The caller then calls
    /// [`end`](Self::end), which also ends its task.
    pub(super) fn note_end(&self) {
        self.lock().has_ended = true;
    }

    /// Requests this recording to end with this outcome. Has no effect if an end was requested
    /// earlier.
    pub(super) fn stop(&self, outcome: Outcome) {
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            *stop = stop.or(Some(outcome));
            is_first
        });
    }

    /// Ends this recording immediately. The recording publishes no last event, and does not finish
    /// its topic.
    pub(in crate::hub) fn end(&self) {
        self.lock().has_ended = true;
        self.stop(Outcome::Interrupted);
    }

    /// Ends this recording in the same way as [`end`](Self::end): immediately and without a last
    /// event. Also remembers that the reason is the shutdown of the hub.
    pub(super) fn shut_down(&self) {
        self.lock().is_shut_down = true;
        self.end();
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.lock().is_shut_down
    }

    /// Notes that the records up to and including `through` were lost before this node has read all
    /// of them. If the recording was started when this node did not know `through` yet, it finishes
    /// its topic and ends, without publishing a further event.
    pub(super) fn note_loss(&self, through: Position) {
        let mut state = self.lock();
        if state.started_at >= through {
            // The lost records may have removed the topic after its end.
            state.was_finished = false;
            return;
        }
        state.is_silenced = true;
        drop(state);
        self.stop(Outcome::Interrupted);
    }

    pub(super) fn is_announced(&self) -> bool {
        self.announcement.borrow().is_done
    }

    /// Returns `true` if this recording was announced to the other nodes, also if another log has
    /// replaced the log since.
    pub(super) fn was_announced(&self) -> bool {
        self.announcement.borrow().was_done
    }

    pub(super) fn note_unannounced(&self) {
        self.announcement.send_if_modified(|announcement| mem::take(&mut announcement.is_done));
    }

    pub(super) fn note_announced(&self) {
        self.announcement.send_if_modified(|announcement| {
            announcement.was_done = true;
            !mem::replace(&mut announcement.is_done, true)
        });
    }

    /// Notes a failed attempt to announce this recording to the other nodes. Has no effect if an
    /// earlier attempt has succeeded.
    pub(super) fn note_not_announced(&self, error: &Arc<str>) {
        self.announcement.send_if_modified(|announcement| {
            if !announcement.is_done {
                announcement.failures += 1;
                announcement.error = error.clone();
            }
            !announcement.is_done
        });
    }

    pub(super) fn is_retrying(&self) -> bool {
        self.lock().is_retrying
    }

    pub(super) fn note_retry(&self) {
        self.lock().is_retrying = true;
    }

    /// Notes that the log now contains further records of the current append by this recording. The
    /// recording then no longer counts as retrying. So a request to end the recording waits for the
    /// append again. Such a request does not wait during a retry.
    pub(super) fn note_progress(&self) {
        self.lock().is_retrying = false;
    }

    pub(super) fn note(&self, position: Position, record: &Record) {
        let mut state = self.lock();
        if position <= state.appended {
            return;
        }
        if position <= state.started_at {
            state.was_finished = record.kind == RecordKind::Finish;
            return;
        }
        if let Some(held) = state.check.held() {
            held.note(position, record.kind, &record.event, &self.announced.will);
        } else if let Some(seen) = &mut state.seen {
            seen.push((position, record.kind, record.event.clone()));
        } else {
            state.note_foreign(position, record.kind, &record.event, &self.announced.will);
            let is_over = state.has_ended || state.is_silenced;
            drop(state);
            if is_over {
                self.stop(Outcome::Interrupted);
            }
        }
    }

    /// Notes that another log has replaced the log. The other log retains the records after `after`
    /// and up to `last`, and may be a copy. The records of a copy keep their positions. `newest` is
    /// the newest sign of life of any node that this node has read in the replaced log.
    pub(super) fn reset(&self, after: Position, last: Position, newest: Option<ReadBeat>) {
        let mut state = self.lock();
        state.earlier_through = state.earlier_through.max(state.appended).max(state.started_at).min(last);
        state.last_at_reset = last;
        state.appended = Position::START;
        (state.started_at, state.was_finished) = (Position::START, false);
        state.check.reset(after, last, newest);
        // A copy has the same records before the expected signs of life. This node does not note
        // them a second time.
        let held_through = state.check.held_through().unwrap_or(Position::START);
        if let Some(seen) = &mut state.seen {
            seen.retain(|(at, ..)| *at < held_through);
        }
    }

    /// Prepares an append to the log by this recording. From now on, the records of its topic that
    /// this node reads are kept, to detect whether the append has succeeded.
    pub(super) fn begin_append(&self) {
        let mut state = self.lock();
        state.is_retrying = false;
        // The previous append may have been given up, so its records were not examined yet.
        for (at, kind, event) in state.seen.take().into_iter().flatten() {
            state.note_foreign(at, kind, &event, &self.announced.will);
        }
        state.seen = Some(Vec::new());
    }

    /// Returns `true` if the log already contains `records`, from an earlier attempt of this
    /// recording that got no response. Returns `false` if the caller has to append them.
    /// `is_unsure` is `true` if at least one earlier attempt got no response. `may_continue` is
    /// `true` if one of these attempts also contained further records. Records that follow
    /// `records` in the log may then be from that attempt. Without such an attempt, they are from
    /// another publisher: if they finish the topic, for example, this recording ends.
    ///
    /// Returns `None` if the caller must not append `records`: the topic is finished, the hub is
    /// shut down, or another node has published the recording's will, the event for the death of
    /// this node. A will that may be in a part of the log that this node could not read counts as
    /// published, too. After a will, the recording still finishes the topic. So the result is
    /// `false` for the record that finishes the topic, or `None` if the log already contains that
    /// record.
    pub(super) fn has_appended(&self, records: &[Record], is_unsure: bool, may_continue: bool) -> Option<bool> {
        let mut state = self.lock();
        // The records of an append may be in two pages, so those of all attempts are kept.
        let seen = state.seen.take().unwrap_or_default();
        let is_same = |(seen, record): (&(Position, RecordKind, Bytes), &Record)| {
            (seen.1, &seen.2) == (record.kind, &record.event)
        };
        let is_own = |window: &[(Position, RecordKind, Bytes)]| {
            window[0].0 > state.earlier_through && window.iter().zip(records).all(is_same)
        };
        let own = seen.windows(records.len()).position(|window| is_unsure && is_own(window));
        for (at, kind, event) in &seen[..own.unwrap_or(seen.len())] {
            state.note_foreign(*at, *kind, event, &self.announced.will);
        }
        let is_finish = records.iter().all(|record| record.kind == RecordKind::Finish);
        let last = own.map(|own| seen[own + records.len() - 1].0);
        // Only the records after an append without a response can be its own.
        state.seen = Some(if is_unsure { seen } else { Vec::new() });
        if let Some(last) = last {
            if may_continue {
                // The records after `last` may be from the same attempt.
                state.appended = state.appended.max(last);
                state.seen.iter_mut().for_each(|seen| seen.retain(|(at, ..)| *at > last));
            } else {
                state.complete_append(last, &self.announced.will);
            }
            // Another node may have finished the topic, with the will.
            return (!is_finish || !state.is_silenced).then_some(true);
        }
        (!state.has_ended && (is_finish || !state.is_silenced)).then_some(false)
    }

    /// Notes that an append to the log by this recording has succeeded. `position` is the position
    /// of the last appended record.
    pub(super) fn note_appended(&self, position: Position) {
        self.lock().complete_append(position, &self.announced.will);
    }

    /// Notes that an append by this recording has succeeded in a log that was replaced since.
    /// `position` is the position of the last appended record. If the new log is a copy, it can
    /// have the appended records, too.
    pub(super) fn note_appended_earlier(&self, position: Position) {
        let mut state = self.lock();
        let before = state.earlier_through;
        state.earlier_through = before.max(position.min(state.last_at_reset));
        for (at, kind, event) in state.seen.take().into_iter().flatten() {
            if at > before {
                state.note_foreign(at, kind, &event, &self.announced.will);
            }
        }
    }

    /// Returns `true` if this recording may publish no further event, and only finishes its topic.
    /// The reason is that another node has published the will of the recording, the event for the
    /// death of this node. The result is also `true` if this may have happened in a part of the log
    /// that this node could not read.
    pub(super) fn is_silenced(&self) -> bool {
        self.lock().is_silenced
    }

    /// Returns `true` if this recording must append nothing more to the log. The reason is that its
    /// topic is finished, that its topic has a name that recordings cannot use, or that the hub is
    /// shut down.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Returns `true` if this recording must publish no further event. The reason is that its topic
    /// is finished or has an invalid name, that the hub is shut down, or that another node has
    /// published the will of the recording. The result is also `true` if a will may be in a part of
    /// the log that this node could not read.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.has_ended || state.is_silenced
    }
}

impl LocalState {
    /// Handles a record of the topic that this recording has not appended itself. If the record
    /// finishes the topic, the recording must publish nothing more. If the event of the record is
    /// equal to `will`, the recording must publish no further event, and only finishes the topic.
    /// `will` is the event that another node publishes if it considers this node dead.
    fn note_foreign(&mut self, position: Position, kind: RecordKind, event: &Bytes, will: &Bytes) {
        let mut ends = Ends::default();
        ends.note(position, kind, event, will);
        self.apply(ends);
    }

    fn apply(&mut self, ends: Ends) {
        self.has_ended |= ends.is_finished;
        self.is_silenced |= ends.will_at.is_some();
    }

    fn complete_append(&mut self, position: Position, will: &Bytes) {
        self.appended = self.appended.max(position);
        for (at, kind, event) in self.seen.take().into_iter().flatten() {
            if at > position {
                self.note_foreign(at, kind, &event, will);
            }
        }
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use std::slice;

    fn recording() -> Local {
        let announced =
            Announced { topic: "t".into(), id: 1, will: "will".into(), needs_subscribers: false, latest_only: false };
        Local::new(announced, Duration::from_secs(3), &Arc::default())
    }

    fn record(kind: RecordKind, event: &'static str) -> Record {
        Record { topic: "t".into(), kind, event: event.into() }
    }

    /// Makes `local` read `record` at position 11, and then its first sign of life at position 12.
    /// `number` is the number of the sign of life.
    fn note_both(local: &Local, record: &Record, number: u64) {
        local.note(Position::new(11), record);
        let beat = ReadBeat { at: Position::new(12), node: 1, number };
        local.find(beat);
        local.note_beat(beat, None);
    }

    /// Tests which records count if another log replaces the log during an append. In a copy, the
    /// record before the first sign of life still counts, although it is read twice. In a log that
    /// is no copy, only the record of that log counts.
    #[test]
    fn earlier_record_counts_in_copy_and_in_other_log() {
        let (finish, event) = (record(RecordKind::Finish, ""), record(RecordKind::Event, "x"));
        for (noted, expected) in [(&finish, None), (&event, Some(true))] {
            let local = recording();
            local.begin_append();
            note_both(&local, noted, 1);
            local.reset(Position::START, Position::new(12), None);
            note_both(&local, noted, 1);
            assert!(!local.is_checking());
            assert_eq!(local.has_appended(slice::from_ref(&event), true, false), expected, "{noted:?} in a copy");
        }
        for (noted, expected) in [(&finish, None), (&event, Some(false))] {
            let local = recording();
            local.begin_append();
            note_both(&local, &event, 1);
            local.reset(Position::START, Position::new(12), None);
            note_both(&local, noted, 2);
            assert!(local.is_checking());
            assert!(local.end_checks(Position::new(12)));
            assert_eq!(local.has_appended(slice::from_ref(&event), true, false), expected, "{noted:?} in another log");
        }
    }

    #[test]
    fn record_during_an_append_counts_after_a_late_response() {
        // A log that is no copy can have another record at the position of the response.
        for (finish, expected) in [(Some(10), true), (Some(21), true), (None, false)] {
            let local = recording();
            local.begin_append();
            local.reset(Position::START, Position::new(20), None);
            if finish != Some(10) {
                local.note(Position::new(10), &record(RecordKind::Event, "x"));
            }
            if let Some(at) = finish {
                local.note(Position::new(at), &record(RecordKind::Finish, ""));
            }
            local.note_appended_earlier(Position::new(10));
            assert_eq!(local.has_ended(), expected, "{finish:?}");
        }
    }
}
