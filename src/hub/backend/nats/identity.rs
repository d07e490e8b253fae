//! Which log the stream holds.
//!
//! Neither the name of a stream nor its configuration identifies a log: a server that has
//! lost its disk, a restored copy and an operator who creates the stream again can all reuse both,
//! and the stream then issues the same sequences again. So what identifies a log is in the log. A
//! *mark* is a message with a random id, and the newest mark names the log. Each node remembers a
//! *witness* besides, a recent message, and checks that it is still where it was wherever a
//! position is used. If it is not, the stream has lost its end or is another one, and the node
//! marks it as a new log.

use super::{
    message::{self, Stored, position},
    stream::{State, Stream},
};
use crate::{BoxError, hub::backend::Position, random};
use async_nats::{HeaderMap, jetstream::message::PublishMessage};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// A larger message is no witness, as each check would fetch all of it.
const MAX_WITNESS_BYTES: usize = 4096;

/// A leader that was just elected may not have applied yet everything that its predecessor had
/// acknowledged. So an end that is too early is looked at so many times more, with a pause before
/// each.
const SETTLING: (usize, Duration) = (5, Duration::from_millis(300));

/// A node renews the mark after this time once it has found a log, unless there are newer messages.
const FIRST_RENEWAL: Duration = Duration::from_secs(2);

/// Pauses in milliseconds before a mark is published again to a stream that does not respond.
///
/// If two nodes create the stream at the same time, the server may answer one of them before the
/// stream has subscribed to its subjects.
const CREATION_PAUSES: [u64; 6] = [10, 20, 40, 80, 160, 320];

/// The header of a mark that names the log that it replaces.
const REPLACES: &str = "Tower-Sse-Replaces";

/// The header of a mark that says which message is the last before it that is no mark.
const LAST_EVENT: &str = "Tower-Sse-Last-Event";

/// The knowledge of a node about the log.
#[derive(Clone, Debug)]
pub(super) struct KnownLog {
    /// The text of its mark.
    pub(super) id: Arc<str>,
    pub(super) epoch: u64,
    /// The sequence of the newest mark that this node has read; 0 if retention had removed it.
    pub(super) mark: u64,
    /// Between this message and the mark are only marks. A mark that begins a log names itself.
    last_event: u64,
    /// The greatest sequence that is known to be in the log, or to have been there.
    pub(super) newest: u64,
    witness: Option<Witness>,
    /// The server removes messages of this age. `None`: never.
    max_age: Option<Duration>,
    /// The time to renew the mark if no message comes, so that the log never loses everything that
    /// identifies it.
    renewal: Instant,
}

/// A message of the log, to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    sequence: u64,
    identity: u64,
}

impl Witness {
    /// A message that was stored with this sequence and published with this id.
    pub(super) fn new(sequence: u64, id: &str, bytes: usize) -> Option<Self> {
        (bytes <= MAX_WITNESS_BYTES).then(|| Self { sequence, identity: message::identity(id) })
    }

    /// `None` for a message that is foreign or large.
    pub(super) fn of(message: &Stored) -> Option<Self> {
        let is_fit = message.log().is_some() && message.payload.len() <= MAX_WITNESS_BYTES;
        let identity = message.identity().filter(|_| is_fit)?;
        Some(Self { sequence: message.sequence, identity })
    }

    fn is(&self, message: &Stored) -> bool {
        message.identity() == Some(self.identity)
    }
}

impl KnownLog {
    /// Returns the position of the newest evicted event, or a greater one before the next event.
    /// Marks are no events.
    pub(super) fn evicted_through(&self, state: &State) -> Position {
        let first = state.first;
        position(match () {
            () if first <= self.mark.saturating_add(1) && first > self.last_event => self.last_event,
            () if first == self.mark => self.mark,
            () => first - 1,
        })
    }

    /// Skips the known marks that follow a position. Returns a position with the same next event.
    pub(super) fn skip_marks(&self, through: Position) -> Position {
        let is_before_marks = through >= position(self.last_event);
        if is_before_marks { through.max(position(self.mark)) } else { through }
    }

    /// Takes note of a newer mark. Returns `false` if that begins another log.
    pub(super) fn accept(&mut self, mark: &Stored) -> bool {
        let mark = Mark::read(mark);
        let is_news = mark.sequence > self.mark;
        let is_same = epoch_of(&mark.id) == self.epoch;
        if is_news && is_same {
            (self.mark, self.last_event) = (mark.sequence, mark.last_event);
        }
        !is_news || is_same
    }
}

/// A message that begins a log, or says that it is still the same.
struct Mark {
    sequence: u64,
    id: Arc<str>,
    /// The id of the log that has lost its end and that this one replaces.
    replaces: Option<Arc<str>>,
    last_event: u64,
}

impl Mark {
    /// Any payload is an id: a mark that another program has written begins a log as well, and
    /// stops no node.
    fn read(message: &Stored) -> Self {
        let last_event = message.header(LAST_EVENT).and_then(|sequence| sequence.parse().ok());
        Self {
            sequence: message.sequence,
            id: String::from_utf8_lossy(&message.payload).into(),
            replaces: message.header(REPLACES).map(Into::into),
            last_event: last_event.unwrap_or(message.sequence),
        }
    }
}

fn epoch_of(id: &str) -> u64 {
    message::fnv(id.as_bytes())
}

/// The result of comparing the stream with the knowledge of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// The stream ends before a message that was in it.
    Shorter,
    /// Another message is where the witness was.
    Different,
}

/// The log that a node follows and publishes to.
#[derive(Default)]
pub(super) struct Identity {
    known: Mutex<Option<KnownLog>>,
    /// Checks of the witness alone.
    witness_checks: SharedCheck<KnownLog>,
    /// Checks of everything.
    checks: SharedCheck<(KnownLog, State)>,
}

impl Identity {
    fn lock(&self) -> MutexGuard<'_, Option<KnownLog>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self) -> Option<KnownLog> {
        self.lock().clone()
    }

    /// Takes note of what a follower knows of the log, and of a witness.
    pub(super) fn note_followed(&self, log: &KnownLog, newest: u64, witness: Option<Witness>) {
        self.note_message(log.epoch, newest, witness);
        let mut known = self.lock();
        if let Some(known) = known.as_mut().filter(|known| known.epoch == log.epoch && known.mark < log.mark) {
            (known.mark, known.last_event) = (log.mark, log.last_event);
        }
    }

    /// Takes note of a message that is in the log, or was.
    pub(super) fn note_message(&self, epoch: u64, newest: u64, witness: Option<Witness>) {
        let mut known = self.lock();
        let Some(known) = known.as_mut().filter(|known| known.epoch == epoch) else { return };
        if known.newest < newest {
            known.newest = newest;
            known.renewal = Instant::now() + known.max_age.unwrap_or_default() / 2;
        }
        if witness.is_some_and(|witness| known.witness.is_none_or(|before| before.sequence < witness.sequence)) {
            known.witness = witness;
        }
    }

    /// Returns the log that the stream is, after a check that began after this call.
    ///
    /// Everything that was in the stream before the call is in that log, unless the stream was
    /// replaced twice since.
    pub(super) async fn check_witness(&self, stream: &Stream<'_>) -> Result<KnownLog, BoxError> {
        let check_witness = async {
            if let Some(known) = self.known() {
                if let Some(witness) = known.witness {
                    let found = stream.get(witness.sequence).await?;
                    if found.is_some_and(|found| witness.is(&found)) {
                        return Ok(known);
                    }
                }
            }
            Ok(self.check(stream).await?.0)
        };
        self.witness_checks.run(check_witness).await
    }

    /// Returns the log that the stream is, and where it begins and ends, after a check that began
    /// after this call. Creates the stream if it does not exist, and marks it as a new log if it is
    /// another log than this node knows.
    pub(super) async fn check(&self, stream: &Stream<'_>) -> Result<(KnownLog, State), BoxError> {
        // It is large, and in several futures.
        self.checks.run(Box::pin(self.find(stream))).await
    }

    async fn find(&self, stream: &Stream<'_>) -> Result<(KnownLog, State), BoxError> {
        // Before the state, so that it cannot be ahead of it.
        let known = self.known();
        let mut state = stream.state_or_create(known.is_some()).await?;
        let Some(known) = known else {
            let known = first(stream, &state).await?;
            state = stream.state_or_create(false).await?;
            return Ok((self.adopt(stream, known, &state).await?, state));
        };
        let mut verdict = compare(stream, &known, &state).await?;
        let (times, pause) = SETTLING;
        for _ in 0..times {
            if verdict != Verdict::Shorter || state.replicas == 1 {
                break;
            }
            sleep(pause).await;
            state = stream.state_or_create(true).await?;
            verdict = compare(stream, &known, &state).await?;
        }
        let mark = last_mark(stream).await?;
        let another = match verdict {
            // An older mark is no news: the known mark may have been deleted.
            Verdict::Same => mark.filter(|mark| mark.sequence > known.mark),
            Verdict::Shorter | Verdict::Different => Some(replace(stream, &known, mark).await?),
        };
        match another {
            Some(mark) if mark.id != known.id || verdict != Verdict::Same => {
                state = stream.state_or_create(true).await?;
                Ok((self.adopt(stream, mark, &state).await?, state))
            }
            mark => {
                let known = self.keep(stream, known, mark, &state).await?;
                Ok((known, state))
            }
        }
    }

    /// Takes the stream for another log than before.
    async fn adopt(&self, stream: &Stream<'_>, mark: Mark, state: &State) -> Result<KnownLog, BoxError> {
        let known = KnownLog {
            epoch: epoch_of(&mark.id),
            id: mark.id,
            mark: mark.sequence,
            last_event: mark.last_event,
            newest: state.last,
            witness: newest(stream, state).await?,
            max_age: state.max_age,
            renewal: Instant::now() + FIRST_RENEWAL.min(state.max_age.unwrap_or_default() / 4),
        };
        *self.lock() = Some(known.clone());
        Ok(known)
    }

    /// Takes the stream for the same log as before.
    async fn keep(
        &self,
        stream: &Stream<'_>,
        known: KnownLog,
        mark: Option<Mark>,
        state: &State,
    ) -> Result<KnownLog, BoxError> {
        if known.witness.is_none_or(|witness| witness.sequence < state.first) {
            let witness = newest(stream, state).await?;
            self.note_message(known.epoch, state.last, witness);
        }

        let is_due = state.max_age.is_some() && known.renewal <= Instant::now();
        if is_due || state.messages == 0 {
            // If there is a newer message by now, that one identifies the log. A stream that is
            // full refuses the mark.
            let last_event = if state.last == known.mark { known.last_event } else { state.last };
            let renewal = mark_message(&format!("renew {} {}", known.id, state.last), &known.id)
                .header(LAST_EVENT, last_event.to_string())
                .expected_last_sequence(state.last);
            let renewed = publish(stream, renewal).await.ok().flatten();
            let mut now = self.lock();
            if let Some(now) = now.as_mut().filter(|now| now.epoch == known.epoch) {
                if let Some(mark) = renewed {
                    (now.mark, now.last_event) = (mark, last_event);
                }
                now.renewal = Instant::now() + state.max_age.unwrap_or_default() / 2;
            }
        }
        let mut now = self.lock();
        let now = now.as_mut().filter(|now| now.epoch == known.epoch).ok_or("the log was replaced meanwhile")?;
        if let Some(mark) = mark.filter(|mark| mark.sequence > now.mark) {
            (now.mark, now.last_event) = (mark.sequence, mark.last_event);
        }
        now.newest = now.newest.max(state.last);
        Ok(now.clone())
    }
}

async fn compare(stream: &Stream<'_>, known: &KnownLog, state: &State) -> Result<Verdict, BoxError> {
    if state.last < known.newest {
        return Ok(Verdict::Shorter);
    }
    let Some(witness) = known.witness.filter(|witness| witness.sequence >= state.first) else {
        return Ok(Verdict::Same);
    };
    Ok(match stream.get(witness.sequence).await? {
        Some(found) if !witness.is(&found) => Verdict::Different,
        // A message that was deleted says nothing.
        _ => Verdict::Same,
    })
}

/// Finds the log of a stream that is new to this node, or begins one.
async fn first(stream: &Stream<'_>, state: &State) -> Result<Mark, BoxError> {
    if let Some(mark) = last_mark(stream).await? {
        return Ok(mark);
    }
    // Where the oldest messages were removed, the mark was, too. Otherwise there never was one: a
    // message that names a log was then published by a node that does not know yet that its log is
    // lost.
    if state.first > 1 && state.messages > 0 {
        if let Some(message) = stream.get(state.last).await? {
            if let Some(id) = message.log() {
                return Ok(Mark { sequence: 0, id: id.into(), replaces: None, last_event: 0 });
            }
        }
    }
    begin(stream, None, 0).await
}

/// Marks the stream as a new log, unless another node has done so for the same reason.
async fn replace(stream: &Stream<'_>, lost: &KnownLog, mark: Option<Mark>) -> Result<Mark, BoxError> {
    match mark {
        Some(mark) if mark.replaces.as_ref() == Some(&lost.id) => Ok(mark),
        mark => begin(stream, Some(&lost.id), mark.map_or(0, |mark| mark.sequence)).await,
    }
}

/// Writes a mark. If another node writes one at the same time, that counts.
async fn begin(stream: &Stream<'_>, replaces: Option<&str>, previous: u64) -> Result<Mark, BoxError> {
    let id = format!("{:016x}", random::bits());
    let mut mark = mark_message(&format!("log {id}"), &id).expected_last_subject_sequence(previous);
    if let Some(replaces) = replaces {
        mark = mark.header(REPLACES, replaces);
    }
    publish(stream, mark).await?;
    last_mark(stream).await?.ok_or_else(|| "the mark of a new log is not in the stream".into())
}

async fn last_mark(stream: &Stream<'_>) -> Result<Option<Mark>, BoxError> {
    let message = stream.last_of(&message::mark_subject(stream.name())).await?;
    Ok(message.as_ref().map(Mark::read))
}

/// Returns the newest message as a witness.
async fn newest(stream: &Stream<'_>, state: &State) -> Result<Option<Witness>, BoxError> {
    if state.messages == 0 {
        return Ok(None);
    }
    Ok(stream.get(state.last).await?.as_ref().and_then(Witness::of))
}

/// Makes a mark of a log, with an id of its own so that the server stores it once.
fn mark_message(message_id: &str, log: &str) -> PublishMessage {
    let mut headers = HeaderMap::new();
    message::set_log(&mut headers, log);
    PublishMessage::build().headers(headers).message_id(message_id).payload(log.to_owned().into())
}

/// Publishes a mark and returns its sequence. `None`: the stream does not end where this was
/// expected.
async fn publish(stream: &Stream<'_>, mark: PublishMessage) -> Result<Option<u64>, BoxError> {
    use async_nats::jetstream::context::PublishErrorKind::{StreamNotFound, WrongLastSequence};

    let context = &stream.link.context;
    let subject = message::mark_subject(stream.name());
    let publish = async || {
        let mut pauses = CREATION_PAUSES.into_iter();
        loop {
            let published = match context.send_publish(subject.clone(), mark.clone()).await {
                Ok(acknowledged) => acknowledged.await,
                Err(error) => Err(error),
            };
            match published {
                Ok(ack) => return Ok(Some(ack.sequence)),
                Err(error) if error.kind() == WrongLastSequence => return Ok(None),
                Err(error) if error.kind() == StreamNotFound => match pauses.next() {
                    Some(pause) => sleep(Duration::from_millis(pause)).await,
                    None => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
    };
    stream.link.request(publish()).await
}

/// Shares a check between all who ask for it at the same time.
///
/// A caller gets the result of a check that began after it asked, so the result is never older than
/// the question.
struct SharedCheck<T> {
    begun: AtomicU64,
    /// The number of the last check that has ended, and its result.
    last: tokio::sync::Mutex<Option<Ended<T>>>,
}

type Ended<T> = (u64, Result<T, Arc<str>>);

impl<T> Default for SharedCheck<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: tokio::sync::Mutex::new(None) }
    }
}

impl<T: Clone> SharedCheck<T> {
    async fn run(&self, check: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let before = self.begun.load(SeqCst);
        let mut last = self.last.lock().await;
        let shared = last.as_ref().filter(|(number, _)| *number > before);
        let result = match shared {
            Some((_, result)) => result.clone(),
            None => {
                let number = self.begun.fetch_add(1, SeqCst) + 1;
                let result = check.await.map_err(|error| Arc::from(error.to_string()));
                *last = Some((number, result.clone()));
                result
            }
        };
        result.map_err(|error| error.to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::time::timeout;

    #[derive(Default)]
    struct Checks {
        shared: SharedCheck<usize>,
        count: AtomicUsize,
    }

    impl Checks {
        async fn run(&self) -> Result<usize, BoxError> {
            let check = async {
                let number = self.count.fetch_add(1, SeqCst);
                sleep(Duration::from_secs(1)).await;
                if number == 2 { Err("the third fails".into()) } else { Ok(number) }
            };
            self.shared.run(check).await
        }
    }

    #[test]
    fn mark_at_the_end_of_the_range_evicts_up_to_the_last_event() {
        let log = KnownLog {
            id: "".into(),
            epoch: 0,
            mark: u64::MAX,
            last_event: 7,
            newest: u64::MAX,
            witness: None,
            max_age: None,
            renewal: Instant::now(),
        };
        let state = State { first: u64::MAX, last: u64::MAX, messages: 1, max_age: None, replicas: 1 };
        assert_eq!(log.evicted_through(&state), position(7));
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_checks_share_a_result_no_older_than_themselves() {
        let checks = Checks::default();
        let later = async {
            sleep(Duration::from_millis(1)).await;
            tokio::join!(checks.run(), checks.run(), checks.run())
        };
        let (first, later) = tokio::join!(checks.run(), later);
        assert_eq!((first.unwrap(), later.0.unwrap(), later.1.unwrap(), later.2.unwrap()), (0, 1, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_or_dropped_check_delays_others_once() {
        let checks = Checks::default();
        let tick = Duration::from_millis(1);
        let (dropped, waiting) = tokio::join!(timeout(tick, checks.run()), async {
            sleep(tick / 2).await;
            checks.run().await
        });
        assert!(dropped.is_err());
        assert_eq!(waiting.unwrap(), 1);
        let (one, other) = tokio::join!(checks.run(), checks.run());
        let other = other.map_err(|error| error.to_string());
        assert_eq!((one.unwrap_err().to_string(), other), ("the third fails".to_owned(), Ok(3)));
    }
}
