//! Marks, the messages of a JetStream stream that identify its log: reading, finding and publishing
//! them.

use super::{
    identity::KnownLog,
    message::{self, Stored},
    stream::{State, Stream, is_refusal},
};
use crate::{BoxError, hub::backend::fnv::fnv, random};
use async_nats::{HeaderMap, jetstream::message::PublishMessage};
use std::{iter, sync::Arc, time::Duration};
use tokio::time::sleep;

/// The pauses in milliseconds before a mark is published again because no JetStream stream has
/// accepted it.
///
/// If two nodes create the stream at the same time, the server may respond before the stream can
/// receive messages.
const CREATION_PAUSES: [u64; 6] = [10, 20, 40, 80, 160, 320];

/// The maximum length of the id of a log in bytes.
const MAX_ID_BYTES: usize = 1024;

/// The headers with the ids of lost logs. If a log replaces a lost log, each mark of the new log
/// names the newest logs that were lost in this stream, newest first. A node that still knows an
/// older log begins a new log, and all nodes then change to it.
///
/// Each id has a header of its own, because `async_nats` keeps only one of several values in some
/// responses.
const REPLACES: [&str; 4] =
    ["Tower-Sse-Replaces", "Tower-Sse-Replaces-2", "Tower-Sse-Replaces-3", "Tower-Sse-Replaces-4"];

/// The header of a mark with the sequence of the last event before the mark, which is no event
/// itself. The value is [`PRECEDING`] if the mark was added while other messages arrived. The first
/// mark of a log does not have this header. Nor does a mark that an earlier version of this crate
/// has added while other messages arrived.
const LAST_EVENT: &str = "Tower-Sse-Last-Event";

/// The value of the header [`LAST_EVENT`] for a mark that directly follows an event or a message of
/// another program. The node that adds such a mark does not know the sequence of that message.
const PRECEDING: &str = "preceding";

/// A decoded mark: a message that begins a log, or that repeats the id of the log before retention
/// removes the earlier marks.
#[derive(Clone)]
pub(super) struct Mark {
    pub(super) sequence: u64,
    pub(super) id: Arc<str>,
    /// The ids of up to 4 lost logs that the log of this mark replaces, newest first. A node may
    /// notice a loss late, when there are further marks or another log was lost.
    pub(super) replaces: Arc<[Arc<str>]>,
    pub(super) last_event: u64,
}

impl Mark {
    /// Decodes a mark, a message whose payload is the id of the log that it begins or continues. A
    /// program other than a hub can also begin a log, with any payload: if the payload cannot be an
    /// id, the id is the hash of the payload.
    pub(super) fn read(message: &Stored) -> Self {
        let last_event = message.header(LAST_EVENT).and_then(|last_event| match last_event {
            PRECEDING => message.sequence.checked_sub(1),
            sequence => sequence.parse().ok(),
        });
        let payload = String::from_utf8_lossy(&message.payload);
        // Each message has the id in a header. A line break would make the header unreadable, and a
        // space at an end of the value is removed.
        let is_printable = payload.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let is_id = (1..=MAX_ID_BYTES).contains(&payload.len()) && is_printable && payload.trim() == payload;
        Self {
            sequence: message.sequence,
            id: if is_id { payload.into() } else { format!("{:016x}", fnv(&payload)).into() },
            replaces: REPLACES.into_iter().map_while(|name| message.header(name)).map(Into::into).collect(),
            last_event: last_event.unwrap_or(message.sequence),
        }
    }

    /// Returns the epoch of the log that this mark identifies.
    pub(super) fn epoch(&self) -> u64 {
        fnv(&self.id)
    }
}

/// Returns the mark (the message that identifies the log) of a JetStream stream that the local node
/// has not used yet. If retention has removed all marks, returns an unpublished mark with the log
/// id from a header of another message. If the stream has no log, begins one, and returns its mark.
pub(super) async fn first(stream: &Stream, state: &State) -> Result<Mark, BoxError> {
    if let Some(mark) = newest(stream, state).await? {
        return Ok(mark);
    }
    match named_by_messages(stream, state).await? {
        Some(mark) => Ok(mark),
        None => begin(stream, &[], 0).await,
    }
}

/// The maximum number of messages, from the oldest one on, that [`named_by_messages`] examines to
/// find the id of the log. Messages of other programs do not name the log.
const MAX_EXAMINED: usize = 32;

/// Returns an unpublished mark for a JetStream stream without marks. Its log id is from a header of
/// one of the 32 oldest messages, or of the newest message. Returns `None` if none of these
/// messages names a log. Also returns `None` if the first message of the stream was never removed.
/// Such a stream never had a mark. If its messages name a log, this log was in an earlier stream
/// with the same name, and is lost.
pub(super) async fn named_by_messages(stream: &Stream, state: &State) -> Result<Option<Mark>, BoxError> {
    // If the oldest messages were removed, the mark was probably removed with them. If no message
    // was removed, the stream never had a mark. A message that names a log then comes from a node
    // that does not know yet that its log is lost.
    if state.first == 1 || state.messages == 0 {
        return Ok(None);
    }
    // A node that does not know this log yet may just have published the newest message. So the
    // newest message counts only if the older ones are from programs other than a hub.
    let oldest = (state.first..state.last).take(MAX_EXAMINED);
    for sequence in oldest.chain([state.last]) {
        let message = stream.get(sequence).await?;
        if let Some(id) = message.as_ref().and_then(Stored::log) {
            return Ok(Some(Mark { sequence: 0, id: id.into(), replaces: [].into(), last_event: 0 }));
        }
    }
    Ok(None)
}

/// The maximum number of attempts to begin a new log while other nodes add marks of the lost log.
const MAX_ATTEMPTS: usize = 5;

/// Returns the mark of the log that replaces the lost log `known`. `mark` is the newest mark in the JetStream stream. If no other node has begun the new
/// log yet, this function begins it.
pub(super) async fn replace(stream: &Stream, known: &KnownLog, mark: Option<&Mark>) -> Result<Mark, BoxError> {
    if let Some(mark) = mark.filter(|mark| mark.replaces.contains(&known.id)) {
        return Ok(mark.clone());
    }
    let replaced: Vec<_> = iter::once(&known.id).chain(&*known.replaces).take(REPLACES.len()).cloned().collect();
    let mut previous = mark.map_or(0, |mark| mark.sequence);
    for _ in 0..MAX_ATTEMPTS {
        let mark = begin(stream, &replaced, previous).await?;
        if !replaced.contains(&mark.id) {
            return Ok(mark);
        }
        // A node that has not noticed the loss has added a mark of the lost log meanwhile. The lost
        // log must not continue, because it would issue the lost sequences again.
        previous = mark.sequence;
    }
    Err(format!("a new log could not begin: in {MAX_ATTEMPTS} attempts, other nodes added marks of the lost log first")
        .into())
}

/// Begins a new log: publishes a mark, and returns the newest mark of the JetStream stream.
/// `replaces` contains the ids of lost logs. `previous` is the sequence of the newest mark so far,
/// or 0.
///
/// If two nodes begin a log at the same time, the stream stores only the first mark. Both nodes
/// then use that mark.
async fn begin(stream: &Stream, replaces: &[Arc<str>], previous: u64) -> Result<Mark, BoxError> {
    let id = format!("{:016x}", random::bits());
    let mark = mark_message(&format!("log {id}"), &id, replaces).expected_last_subject_sequence(previous);
    publish(stream, mark).await?;
    last(stream).await?.ok_or_else(|| {
        format!(
            "the server has stored a message in the stream {:?} and does not return it, as if the stream was created \
             while the files of its predecessor were removed; delete the stream, and create it a few seconds later",
            stream.name(),
        )
        .into()
    })
}

/// Adds one more mark of the log `known` to the JetStream stream. `mark` is the newest mark of the
/// stream, which was read after the state `state` of the stream. Returns the sequence of the added
/// mark, or of a newer one of another node, and that of the last event before it. Returns `None` if
/// the server has refused the mark.
pub(super) async fn renew(
    stream: &Stream,
    known: &KnownLog,
    mark: Option<&Mark>,
    state: &State,
) -> Result<Option<(u64, u64)>, BoxError> {
    let newest = mark.map_or((0, 0), |mark| (mark.sequence, mark.last_event));
    if newest.0 > state.last {
        // Another node has added this mark.
        return Ok(Some(newest));
    }
    let last_event = last_event(state.last, [newest, (known.mark, known.last_event)]);
    let id = &known.id;
    let renewal = mark_message(&format!("renew {id} {}", state.last), id, &known.replaces)
        .header(LAST_EVENT, last_event.to_string())
        .expected_last_sequence(state.last);
    if let Some(sequence) = publish(stream, renewal).await? {
        return Ok(Some((sequence, last_event)));
    }
    // Usually, there is a newer message by now. If messages arrive all the time, no mark can expect
    // to be the next message. The server refuses the mark if the newer message is a mark. So the
    // message before the mark is no mark. Servers before 2.9.21 may accept it if the stream is
    // replicated, and a gap can then be reported that is none.
    let renewal = mark_message(&format!("renew {id} after {}", newest.0), id, &known.replaces)
        .header(LAST_EVENT, PRECEDING)
        .expected_last_subject_sequence(newest.0);
    Ok(publish(stream, renewal).await?.map(|sequence| (sequence, sequence.saturating_sub(1))))
}

/// Returns the sequence of the last event before `last`, the newest message of the JetStream
/// stream, or of `last` itself. `marks` contains the sequences of two marks, each with the sequence
/// of the last event before the mark.
fn last_event(last: u64, marks: [(u64, u64); 2]) -> u64 {
    marks.into_iter().find(|(mark, _)| *mark == last).map_or(last, |(_, last_event)| last_event)
}

/// Returns the newest mark of the JetStream stream, or `None` if the stream has no mark. `state` is
/// the state of the stream.
///
/// nats-server 2.9 crashes if it is asked for a message of a stream that is being created. Such a
/// stream is still empty, so this function sends no request if the stream has no message according
/// to `state`.
pub(super) async fn newest(stream: &Stream, state: &State) -> Result<Option<Mark>, BoxError> {
    if state.messages == 0 { Ok(None) } else { last(stream).await }
}

/// Returns the newest mark of the JetStream stream, or `None` if the stream has no mark. Sends a
/// request even if the stream may be empty: see [`newest`].
pub(super) async fn last(stream: &Stream) -> Result<Option<Mark>, BoxError> {
    let message = stream.last_of(&message::mark_subject(stream.name())).await?;
    Ok(message.as_ref().map(Mark::read))
}

/// Creates a mark. Its payload is `log`, the id of the log, which has replaced the lost logs
/// `replaces`. The server uses `message_id` to detect a mark that is sent twice.
fn mark_message(message_id: &str, log: &str, replaces: &[Arc<str>]) -> PublishMessage {
    let mut headers = HeaderMap::new();
    message::set_log(&mut headers, log);
    REPLACES.into_iter().zip(replaces).for_each(|(name, lost)| headers.insert(name, &**lost));
    PublishMessage::build().headers(headers).message_id(message_id).payload(log.to_owned().into())
}

/// Publishes a mark, a message that identifies the log, and returns its sequence. `mark` requires a
/// certain last sequence: that of the newest mark or of the newest message of the stream. If the
/// stream has another last sequence when `mark` arrives, the server refuses `mark`, and this
/// function returns `None`. It also returns `None` if the server has received `mark` before.
async fn publish(stream: &Stream, mark: PublishMessage) -> Result<Option<u64>, BoxError> {
    use async_nats::jetstream::context::PublishErrorKind::StreamNotFound;

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
                // A duplicate is an earlier mark, which may be removed since.
                Ok(ack) => return Ok((!ack.duplicate).then_some(ack.sequence)),
                Err(error) if is_refusal(&error) => return Ok(None),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(sequence: u64, headers: Option<HeaderMap>, payload: &str) -> Stored {
        Stored { subject: "log._log".into(), sequence, time: 0, headers, payload: payload.to_owned().into() }
    }

    #[test]
    fn payload_of_a_mark_is_the_id_if_a_header_can_contain_it() {
        let [longest, too_long] = [1024, 1025].map(|length| "x".repeat(length));
        for (payload, is_id) in [
            ("0123456789abcdef", true),
            ("restored on Monday", true),
            ("!~", true),
            (&*longest, true),
            (&*too_long, false),
            ("", false),
            (" ", false),
            (" restored", false),
            ("restored ", false),
            ("restored\ton Monday", false),
            ("restored\non Monday", false),
            ("restored\r\n", false),
            ("\u{7f}", false),
            ("für", false),
        ] {
            let mark = Mark::read(&stored(1, None, payload));
            assert_eq!(*mark.id == *payload, is_id, "{payload:?}");
        }
    }

    #[test]
    fn last_event_is_not_one_of_several_marks() {
        // Another node has added the mark 9.
        for (last, expected) in [(9, 5), (7, 5), (8, 8), (10, 10)] {
            assert_eq!(last_event(last, [(9, 5), (7, 5)]), expected);
        }
        // The known mark 7 was removed, and the stream has no mark.
        assert_eq!(last_event(7, [(0, 0), (7, 5)]), 5);
    }

    #[test]
    fn mark_names_the_event_directly_before_it() {
        for (value, expected) in [("3", 3), ("preceding", 8), ("another version", 9)] {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_EVENT, value);
            assert_eq!(Mark::read(&stored(9, Some(headers), "id")).last_event, expected, "{value}");
        }
        assert_eq!(Mark::read(&stored(9, None, "id")).last_event, 9);
    }
}
