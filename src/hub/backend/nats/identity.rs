//! The identity of the log that a JetStream stream holds.
//!
//! Neither the name of a JetStream stream nor its configuration identifies a log. Both stay the
//! same if a server loses its disk, if an old copy of the stream is restored, and if an operator
//! creates the stream again. The stream then issues the same sequences again. So the log itself
//! contains its identity. A *mark* is a message with a random id, and the newest mark names the
//! log.
//!
//! Each node also remembers a *witness*: a recent message and its sequence. Before a node uses a
//! position, it checks that the stream still has the witness at that sequence. If the witness is
//! missing, the stream has lost its newest messages or was replaced. The node then adds a mark,
//! which begins a new log with a new epoch (the number that identifies one lifetime of the log).
//!
//! This quick check fetches the witness from the server, so the witness has to be a small message.
//! But all recent messages of a log may be large. So each node also remembers the latest message of
//! any size, and compares it in complete checks only. A repeated sequence is another sign of a
//! loss, because a log issues no sequence twice: if the stream stores a new message at a sequence
//! that the node has seen before, its log has lost messages.

use super::{
    mark::{self, Mark},
    message::{Nanoseconds, Stored, position},
    shared_check::SharedCheck,
    stream::{State, Stream},
    witness::{self, Witness, Witnesses},
};
use crate::{BoxError, hub::backend::Position};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The number of times that the state of a JetStream stream with replicas is read again if the
/// stream seems to have lost its newest messages, and the pause before each of these reads. A newly
/// elected leader may not have applied all messages yet that its predecessor acknowledged.
const SETTLING: (usize, Duration) = (5, Duration::from_millis(300));

/// The time after which a node tries again to add one more mark, if the stream has not accepted it.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// The time that a node waits, after it has connected, before it adds one more mark (a message that
/// identifies the log). The node adds this mark only if the JetStream stream has a maximum age of
/// messages, because the newest mark may then soon expire. The node waits at most a quarter of the
/// maximum age. If a message of a hub arrives earlier, the mark is due half of the maximum age
/// after this message, because it also identifies the log, in a header.
const FIRST_RENEWAL: Duration = Duration::from_secs(2);

/// The local node's knowledge of the log in the JetStream stream: the id, the newest sequence, the
/// newest mark (the message that identifies the log), and the witnesses (remembered messages).
#[derive(Clone, Debug)]
pub(super) struct KnownLog {
    /// The id of the log. It is the payload, or the hash of the payload, of each mark in the
    /// JetStream stream ([`Mark::read`]).
    pub(super) id: Arc<str>,
    pub(super) epoch: u64,
    /// The ids of the newest lost logs that this log has replaced in the stream, newest first. Each
    /// further mark names them, for nodes that notice a loss late.
    pub(super) replaces: Arc<[Arc<str>]>,
    /// The sequence of the newest mark that the local node has read. 0 if retention had removed
    /// every mark before the local node connected.
    pub(super) mark: u64,
    /// The sequence of the last message before the newest mark that is no mark itself. (A mark is a
    /// message that identifies the log.) If the newest mark begins the log, this is the sequence of
    /// the newest mark.
    pub(super) last_event: u64,
    /// The greatest sequence that the local node has seen in the log, even if the message was
    /// removed since.
    pub(super) newest: u64,
    /// `true` if the stream is known to have lost the newest messages of the log: it has stored a
    /// new message at a sequence that the log had used before, at or below the field `newest`. The
    /// messages that had this sequence or a greater one before are lost, and the next check begins
    /// a new log.
    is_truncated: bool,
    witnesses: Witnesses,
    /// The sequence and the time of the newest message of the JetStream stream ([`State::end`]) at
    /// the last complete check, which found that the stream still holds this log. While the newest
    /// message is the same, checks need not compare remembered messages of more than 4,096 bytes
    /// with the stream again. `None` before the first complete check, or if the server does not
    /// return the time.
    checked_end: Option<(u64, Nanoseconds)>,
    /// The maximum age of messages in the JetStream stream. The server removes older messages.
    /// `None` means no limit.
    max_age: Option<Duration>,
    /// The `duplicate_window` of the JetStream stream: the server detects a message that is sent
    /// twice within this time.
    pub(super) duplicate_window: Duration,
    /// The time when the local node adds one more mark. Without this mark, retention could remove
    /// all marks. Each message of a hub that arrives earlier postpones this time to half of
    /// `max_age` after its arrival, because such a message names the log in a header.
    renewal: Instant,
}

impl KnownLog {
    /// Returns the eviction watermark of this log: events up to this position were evicted, and
    /// later events are retained. `state` is the state of the JetStream stream that holds the log.
    /// Marks, the messages that identify the log, do not count as events.
    pub(super) fn evicted_through(&self, state: &State) -> Position {
        let first = state.first;
        position(match () {
            () if first <= self.mark.saturating_add(1) && first > self.last_event => self.last_event,
            () if first == self.mark => self.mark,
            () => first - 1,
        })
    }

    /// Returns `true` if the newest message of the JetStream stream, according to `state`, is the
    /// same as at the last complete check, which verified that the stream still holds the same log.
    /// In this case, the next check need not fetch remembered messages of more than 4,096 bytes
    /// again.
    fn has_checked(&self, state: &State) -> bool {
        self.checked_end.is_some() && self.checked_end == state.end()
    }

    /// Returns `true` if the stream retains none of the messages that this node remembers to
    /// recognize the log.
    fn has_no_witness(&self, state: &State) -> bool {
        self.witnesses.iter().all(|witness| witness.sequence < state.first)
    }

    /// Skips marks, which contain no event. If only marks are between the position `through` and
    /// the newest mark, returns the position of the newest mark. Otherwise returns `through`.
    pub(super) fn skip_marks(&self, through: Position) -> Position {
        let is_before_marks = through >= position(self.last_event);
        if is_before_marks { through.max(position(self.mark)) } else { through }
    }

    /// Returns `true` if the local node has to add one more mark, so that retention does not remove
    /// all of them.
    fn is_mark_due(&self) -> bool {
        self.max_age.is_some() && self.renewal <= Instant::now()
    }

    /// Handles a mark (a message that identifies the log) that the follower has read. If the mark
    /// has the log id of `self`, and a greater sequence than the newest mark in `self`, this mark
    /// becomes the newest mark in `self`. Returns `true`, unless the mark has a greater sequence
    /// and another log id: the stream then holds another log.
    pub(super) fn accept(&mut self, mark: &Stored) -> bool {
        let mark = Mark::read(mark);
        let is_news = mark.sequence > self.mark;
        let is_same = mark.epoch() == self.epoch;
        if is_news && is_same {
            (self.mark, self.last_event) = (mark.sequence, mark.last_event);
        }
        !is_news || is_same
    }
}

/// The result of comparing a JetStream stream with the log that a node has used so far: the stream
/// holds the same log, has lost its newest messages, or was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// The last sequence of the JetStream stream is smaller than a sequence that the node has seen.
    /// So the stream has lost its newest messages.
    Shorter,
    /// The JetStream stream was replaced, or has stored new messages after a loss: it has another
    /// message at the sequence of a remembered message, or has issued a sequence again that the
    /// node had seen before.
    Different,
}

/// The log that a node reads and publishes to, and the checks that the JetStream stream still has
/// this log.
#[derive(Default)]
pub(super) struct Identity {
    known: Mutex<Option<KnownLog>>,
    /// Runs [`check_witness`](Self::check_witness) once for concurrent callers. This check usually
    /// fetches only two messages from the JetStream stream: the small witness, which is the latest
    /// remembered message of at most 4,096 bytes, and the newest mark.
    witness_checks: SharedCheck<KnownLog>,
    /// Runs the complete [`check`](Self::check) once for concurrent callers. This check compares
    /// the last sequence, the remembered messages and the newest mark of the log with those of the
    /// JetStream stream.
    checks: SharedCheck<(KnownLog, State)>,
}

impl Identity {
    fn lock(&self) -> MutexGuard<'_, Option<KnownLog>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self) -> Option<KnownLog> {
        self.lock().clone()
    }

    /// Returns `true` if the next complete [`check`](Self::check) adds one more mark, a message
    /// that identifies the log.
    pub(super) fn is_mark_due(&self) -> bool {
        self.lock().as_ref().is_some_and(KnownLog::is_mark_due)
    }

    /// Records that the follower, the task that reads new messages, has read the log up to the
    /// sequence `newest`. `log` is the follower's own knowledge of the log: if it contains a newer
    /// mark than `self`, `self` gets this mark. `witnesses` are recent messages for later checks
    /// that the stream still has this log. Has no effect if the node has changed to another log in
    /// the meantime.
    pub(super) fn note_followed(&self, log: &KnownLog, newest: u64, witnesses: Witnesses) {
        self.note_message(log.epoch, newest, witnesses);
        let mut known = self.lock();
        if let Some(known) = known.as_mut().filter(|known| known.epoch == log.epoch && known.mark < log.mark) {
            (known.mark, known.last_event) = (log.mark, log.last_event);
        }
    }

    /// Notes that the log of the local node has a message with the sequence `newest`. `witnesses`
    /// are recent messages that later checks look for: if the JetStream stream still has them, it
    /// was not replaced by another log. Has no effect if the current log of the node has another
    /// epoch (identity) than `epoch`. A `newest` below the known newest sequence is ignored, and so
    /// are witnesses that are older than the remembered ones.
    pub(super) fn note_message(&self, epoch: u64, newest: u64, witnesses: Witnesses) {
        let mut known = self.lock();
        let Some(known) = known.as_mut().filter(|known| known.epoch == epoch) else { return };
        if known.newest < newest {
            known.newest = newest;
            // Messages of other programs are no witnesses, and do not name the log.
            if witnesses.iter().next().is_some() {
                known.renewal = Instant::now() + known.max_age.unwrap_or_default() / 2;
            }
        }
        witnesses.iter().for_each(|witness| known.witnesses.add(witness));
    }

    /// Records that the log of the local node has lost its newest messages: the JetStream stream
    /// has stored a new message at a sequence that the node has seen before. The next check begins
    /// a new log. Has no effect if the current log of the node has another epoch (identity) than
    /// `epoch`.
    pub(super) fn note_truncation(&self, epoch: u64) {
        if let Some(known) = self.lock().as_mut().filter(|known| known.epoch == epoch) {
            known.is_truncated = true;
        }
    }

    /// Returns the current log of the JetStream stream, from a check that begins after this call.
    /// The result is the log that the node has used so far if the stream has no newer mark of
    /// another log, and still has the small witness, a message of at most 4,096 bytes that the
    /// local node remembers. If not, a complete [`check`](Self::check) decides.
    ///
    /// Every message that the stream had before the call belongs to the returned log. This can be
    /// wrong only if the stream is replaced twice during the check.
    pub(super) async fn check_witness(self: &Arc<Self>, stream: &Stream) -> Result<KnownLog, BoxError> {
        let check = || {
            let (identity, stream) = (Arc::clone(self), stream.clone());
            async move {
                match identity.known_by_witness(&stream).await? {
                    Some(known) => Ok(known),
                    None => Ok(identity.check(&stream).await?.0),
                }
            }
        };
        self.witness_checks.run(&stream.link.runtime, check).await
    }

    /// Returns the log that the local node has used so far if the JetStream stream has no newer
    /// mark of another log, and still has the small witness. Otherwise returns `None`.
    async fn known_by_witness(&self, stream: &Stream) -> Result<Option<KnownLog>, BoxError> {
        let Some(known) = self.known().filter(|known| !known.is_truncated) else { return Ok(None) };
        let Some(witness) = known.witnesses.small else { return Ok(None) };
        if !stream.get(witness.sequence).await?.is_some_and(|found| witness.is(&found)) {
            return Ok(None);
        }
        // Another log can begin after the witness.
        let mark = mark::last(stream).await?;
        let is_same = mark.is_none_or(|mark| mark.sequence <= known.mark || mark.id == known.id);
        Ok(is_same.then_some(known))
    }

    /// Checks whether the JetStream stream still holds the log that the local node has used so far.
    /// Returns the current log and the state of the stream. Concurrent callers share a check, which
    /// begins after their calls.
    ///
    /// Creates the stream if it does not exist. If the stream has lost messages of the log, or was
    /// replaced, begins a new log with another epoch in the stream.
    pub(super) async fn check(self: &Arc<Self>, stream: &Stream) -> Result<(KnownLog, State), BoxError> {
        let find = || {
            let (identity, stream) = (Arc::clone(self), stream.clone());
            async move { identity.find(&stream).await }
        };
        self.checks.run(&stream.link.runtime, find).await
    }

    async fn find(&self, stream: &Stream) -> Result<(KnownLog, State), BoxError> {
        // Read the known log before the state of the stream, so that it cannot be newer than that
        // state.
        let known = self.known();
        let mut state = stream.state_or_create(known.is_some()).await?;
        let Some(known) = known else {
            let known = mark::first(stream, &state).await?;
            state = stream.state_or_create(false).await?;
            return Ok((self.adopt(stream, None, known, &state).await?, state));
        };
        let mut verdict = self.compare(stream, &known, &state).await?;
        let (times, pause) = SETTLING;
        for _ in 0..times {
            if verdict != Verdict::Shorter || state.replicas == 1 {
                break;
            }
            sleep(pause).await;
            state = stream.state_or_create(true).await?;
            verdict = self.compare(stream, &known, &state).await?;
        }
        let mark = mark::newest(stream, &state).await?;
        let another = match (verdict, &mark) {
            (Verdict::Same, Some(mark)) if mark.sequence >= known.mark => Some(mark.clone()),
            // The stream retains nothing that the local node remembers, so it has to find out the
            // log like a node that has just connected.
            (Verdict::Same, _) if known.has_no_witness(&state) && !known.has_checked(&state) => {
                mark::named_by_messages(stream, &state).await?
            }
            // An older mark changes nothing: the known mark may have been deleted since.
            (Verdict::Same, _) => None,
            (Verdict::Shorter | Verdict::Different, mark) => Some(mark::replace(stream, &known, mark.as_ref()).await?),
        };
        match another {
            Some(another) if another.id != known.id || verdict != Verdict::Same => {
                state = stream.state_or_create(true).await?;
                Ok((self.adopt(stream, Some(known.epoch), another, &state).await?, state))
            }
            _ => {
                let known = self.keep(stream, known, mark, &state).await?;
                Ok((known, state))
            }
        }
    }

    /// Compares the known log with the JetStream stream: the greatest sequence that the local node
    /// has seen, and the remembered messages.
    async fn compare(&self, stream: &Stream, known: &KnownLog, state: &State) -> Result<Verdict, BoxError> {
        if known.is_truncated {
            return Ok(Verdict::Different);
        }
        if state.last < known.newest {
            return Ok(Verdict::Shorter);
        }
        let Witnesses { small, latest } = known.witnesses;
        let latest = latest.filter(|latest| small.is_none_or(|small| small.sequence != latest.sequence));
        let is_retained = |witness: &Witness| witness.sequence >= state.first;
        let is_checked = known.has_checked(state);
        let is_unknown = |witness: &Witness| !witness.is_last(state) && (witness.is_small || !is_checked);
        for witness in small.into_iter().chain(latest).filter(is_retained).filter(is_unknown) {
            let found = if witness.is_small {
                stream.get(witness.sequence).await?
            } else {
                stream.get_large(witness.sequence).await?
            };
            match found {
                Some(found) if !witness.is(&found) => return Ok(Verdict::Different),
                // The next check need not fetch the message again, unless there is a newer one.
                Some(found) => self.note_message(known.epoch, found.sequence, Witness::of(&found).into()),
                // A missing witness may have been deleted, so it does not prove that the log was
                // replaced.
                None => {}
            }
        }
        Ok(Verdict::Same)
    }

    /// Makes the log that `mark` identifies the current log of the local node. Later checks compare
    /// the stream with this log.
    async fn adopt(
        &self,
        stream: &Stream,
        before: Option<u64>,
        mark: Mark,
        state: &State,
    ) -> Result<KnownLog, BoxError> {
        let known = KnownLog {
            epoch: mark.epoch(),
            id: mark.id,
            replaces: mark.replaces,
            mark: mark.sequence,
            last_event: mark.last_event,
            newest: state.last,
            is_truncated: false,
            witnesses: witness::newest(stream, state).await?.into(),
            checked_end: None,
            max_age: state.max_age,
            duplicate_window: state.duplicate_window,
            renewal: Instant::now() + FIRST_RENEWAL.min(state.max_age.unwrap_or_default() / 4),
        };
        let mut current = self.lock();
        // A check that was paused must not replace the result of a later one.
        if current.as_ref().map(|current| current.epoch) != before {
            return Err("the log was replaced meanwhile".into());
        }
        *current = Some(known.clone());
        Ok(known)
    }

    /// Continues with the log that the local node has used so far. If the stream has removed the
    /// remembered message of at most 4,096 bytes, the node remembers the newest message of the
    /// stream for later checks. Publishes one more mark, a message that identifies the log, if the
    /// stream is empty or if retention could soon remove all marks.
    async fn keep(
        &self,
        stream: &Stream,
        known: KnownLog,
        mark: Option<Mark>,
        state: &State,
    ) -> Result<KnownLog, BoxError> {
        let Witnesses { small, latest } = known.witnesses;
        let is_last_known = latest.is_some_and(|latest| latest.sequence == state.last);
        let is_small_missing = small.is_none_or(|small| small.sequence < state.first);
        if is_small_missing && !is_last_known && !known.has_checked(state) {
            let witness = witness::newest(stream, state).await?;
            self.note_message(known.epoch, state.last, witness.into());
        }

        if known.is_mark_due() || state.messages == 0 {
            // Publishing fails if the stream is full and rejects messages. A later check then tries
            // again.
            let renewed = mark::renew(stream, &known, mark.as_ref(), state).await.ok().flatten();
            let mut now = self.lock();
            if let Some(now) = now.as_mut().filter(|now| now.epoch == known.epoch) {
                // If the new mark gets a sequence that the stream had before, the stream has lost
                // messages.
                if renewed.is_some_and(|(mark, _)| mark <= state.last) {
                    now.is_truncated = true;
                    return Err("the stream has lost messages".into());
                }
                let pause = match renewed {
                    Some(renewed) => {
                        // The follower may have read a newer mark meanwhile.
                        if renewed.0 > now.mark {
                            (now.mark, now.last_event) = renewed;
                        }
                        state.max_age.unwrap_or_default() / 2
                    }
                    None => RENEWAL_PAUSE,
                };
                now.renewal = Instant::now() + pause;
            }
        }
        let mut now = self.lock();
        let now = now.as_mut().filter(|now| now.epoch == known.epoch).ok_or("the log was replaced meanwhile")?;
        now.max_age = state.max_age;
        if let Some(mark) = mark.filter(|mark| mark.sequence > now.mark) {
            (now.mark, now.last_event) = (mark.sequence, mark.last_event);
        }
        now.newest = now.newest.max(state.last);
        now.checked_end = state.end();
        now.duplicate_window = state.duplicate_window;
        Ok(now.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known_log() -> KnownLog {
        KnownLog {
            id: "".into(),
            epoch: 0,
            replaces: [].into(),
            mark: 1,
            last_event: 0,
            newest: 1,
            is_truncated: false,
            witnesses: Witnesses::default(),
            checked_end: None,
            max_age: None,
            duplicate_window: Duration::ZERO,
            renewal: Instant::now(),
        }
    }

    /// Otherwise, retention could remove all messages that name the log.
    #[test]
    fn messages_of_other_programs_do_not_postpone_the_next_mark() {
        let identity = Identity::default();
        let due = Instant::now();
        *identity.lock() = Some(KnownLog { max_age: Some(Duration::from_secs(60)), renewal: due, ..known_log() });
        identity.note_message(0, 2, Witnesses::default());
        assert_eq!(identity.known().unwrap().renewal, due);
        identity.note_message(0, 3, Some(Witness::new(3, "id", 10)).into());
        let known = identity.known().unwrap();
        assert!(known.renewal > due && known.newest == 3);
    }

    #[test]
    fn mark_at_the_end_of_the_range_evicts_up_to_the_last_event() {
        let log = KnownLog { mark: u64::MAX, last_event: 7, newest: u64::MAX, ..known_log() };
        let state = State { first: u64::MAX, last: u64::MAX, messages: 1, ..State::default() };
        assert_eq!(log.evicted_through(&state), position(7));
    }
}
