//! Appends to the log in a NATS stream: publishes the records as one message, and finds out the
//! epoch (the identity) of the log that has stored the message. (The stream can contain another log
//! at any time, for example if an operator has created the stream again.)

use super::{
    NatsBackend,
    identity::KnownLog,
    link::{Link, next_output},
    message::{self, position},
    stream::{Stream, is_refusal},
    witness::Witness,
};
use crate::{
    BoxError,
    hub::backend::{Appended, Position, Record},
    random,
};
use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        publish::PublishAck,
    },
};
use std::{error::Error as _, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The first version of nats-server that reliably compares the last sequence of a subject with the
/// expected one, even if the stream has several replicas. Earlier versions compare it when the
/// leader receives the message. Such a leader can accept two messages with the same expected
/// sequence before it has stored the first.
const COMPARES_SUBJECTS: (i64, i64, i64) = (2, 9, 21);

/// The condition of an append: the log has the epoch `epoch`, and its topic has no record after the
/// position `since`. The epoch identifies one lifetime of the log.
#[derive(Clone, Copy)]
pub(super) struct Unchanged {
    pub(super) epoch: u64,
    pub(super) since: Position,
}

/// A NATS message that is to be published. Its random `id` is the message id: the NATS server uses
/// this id to detect duplicates.
struct NewMessage {
    subject: String,
    id: String,
    message: PublishMessage,
}

/// The state that the log must have when the NATS server stores the message of a conditional
/// append. Otherwise the server refuses to store the message.
struct Expected {
    log: KnownLog,
    /// The required sequence of the last message of the topic's subject. If the last message has
    /// another sequence, the server refuses the append. 0 if the subject must have no message.
    subject: u64,
    /// The required sequence of the last message of the whole stream. If the last message has
    /// another sequence, the server refuses the append. `None` if the server can compare the last
    /// sequence of a single subject: the append then only requires the sequence in the field
    /// `subject`.
    stream: Option<u64>,
}

/// The response of the NATS server to a published message.
enum Published {
    /// The server has stored the message. The number is the sequence of the message in the stream.
    Stored(u64),
    /// The NATS server refused the message, because the last sequence is not the sequence that the
    /// message expects. If `is_certain` is `false`, an earlier attempt to publish the message got
    /// no response, and may have stored the message.
    Refused { is_certain: bool },
}

impl NatsBackend {
    /// Appends records as one message of the NATS stream, and returns the epoch of the log and the
    /// position of the last record. Returns `None`, and appends nothing, if the log has another
    /// epoch than `condition`, or if the topic may have a record after the position in `condition`.
    /// Without a condition, the result is never `None`.
    pub(super) async fn store(
        &self,
        records: &[Record],
        condition: Option<Unchanged>,
    ) -> Result<Option<Appended>, BoxError> {
        let link = self.link().await?;
        if let Some(refusal) = message::refusal(records, link.client.server_info().max_payload) {
            return Err(refusal.into());
        }
        let Some(Record { topic, kind, .. }) = records.first() else { return Err("there is nothing to add".into()) };
        let subject = message::subject(&self.config.name, topic);
        let subject = subject.ok_or("the name of the topic is too long for a subject of NATS")?;
        let stream = self.stream_over(&link);
        // The caller may have the epoch of a newer log from another process.
        let has_epoch = |log: &KnownLog| condition.is_none_or(|condition| condition.epoch == log.epoch);
        let before = match self.identity.known().filter(has_epoch) {
            Some(known) => known,
            None => self.identity.check(&stream).await?.0,
        };
        let id = format!("{:016x}{:016x}", random::bits(), random::bits());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, &*id);
        message::set_log(&mut headers, &before.id);
        message::set_kind(&mut headers, *kind);
        let payload = message::join(records);
        let bytes = payload.len();
        let message = PublishMessage::build().headers(headers).payload(payload);
        let new = NewMessage { subject, id, message };
        let confirmation = self.confirmations.expect(&new.id);
        let published = match condition {
            None => match self.publish(&link, &new.subject, &new.message, Some(before.duplicate_window)).await? {
                Published::Stored(sequence) => Some((before, sequence)),
                Published::Refused { .. } => None,
            },
            // The future of a conditional append is boxed, so that the future of a plain append
            // stays small.
            Some(condition) => Box::pin(self.publish_if_unchanged(&stream, &new, condition)).await?,
        };
        let Some((before, sequence)) = published else { return Ok(None) };
        // The stream may have been replaced before it stored the message. A sequence that was
        // issued before proves that the stream has lost messages.
        let is_truncated = sequence <= before.newest;
        if is_truncated {
            self.identity.note_truncation(before.epoch);
        }
        let epoch = match confirmation.epoch().await {
            Some(epoch) if !is_truncated => epoch,
            _ if !is_truncated && self.identity.check_witness(&stream).await?.epoch == before.epoch => before.epoch,
            _ => self.log_of(&stream, sequence, &new.id).await?,
        };
        self.identity.note_message(epoch, sequence, Some(Witness::new(sequence, &new.id, bytes)).into());
        if condition.is_some_and(|condition| condition.epoch != epoch) {
            return Err("the stream was replaced meanwhile by another log, which has stored it".into());
        }
        Ok(Some(Appended { epoch, position: position(sequence) }))
    }

    /// Publishes the message `new` if `condition` holds: the log has a certain epoch, and no record
    /// of the topic after a certain position. Returns the log that the stream held directly before
    /// the publication, and the sequence of the stored message. Returns `None` if the condition
    /// does not hold.
    ///
    /// If the stream has several replicas, servers before 2.9.21 cannot reliably compare the
    /// sequence of the last message of one topic. For such a server, the message also expects the
    /// last sequence of the whole stream. So the server also refuses the message if another topic
    /// has a new message. The function tries again after such a refusal, but returns an error if
    /// the request timeout of the backend has passed.
    async fn publish_if_unchanged(
        &self,
        stream: &Stream,
        new: &NewMessage,
        condition: Unchanged,
    ) -> Result<Option<(KnownLog, u64)>, BoxError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let Some(expected) = self.expected(stream, &new.subject, condition).await? else { return Ok(None) };
            let mut message = new.message.clone().expected_last_subject_sequence(expected.subject);
            if let Some(last) = expected.stream {
                message = message.expected_last_sequence(last);
            }
            // The expected sequence prevents a second copy, so the window does not matter.
            match self.publish(&stream.link, &new.subject, &message, None).await? {
                Published::Stored(sequence) => return Ok(Some((expected.log, sequence))),
                Published::Refused { is_certain: false } => {
                    let sequence = stored_by_earlier_attempt(stream, new, expected.subject).await?;
                    return Ok(sequence.map(|sequence| (expected.log, sequence)));
                }
                Published::Refused { is_certain: true } if expected.stream.is_none() => return Ok(None),
                // The refusal may be due to a message of another topic.
                Published::Refused { is_certain: true } if Instant::now() < deadline => {}
                Published::Refused { is_certain: true } => {
                    return Err("other topics have messages all the time, and nats-server before 2.9.21 cannot \
                         compare one topic in a stream with several replicas"
                        .into());
                }
            }
        }
    }

    /// Returns the state that the log must still have when the NATS server stores the message of an
    /// append with a condition (that its topic is unchanged). Returns `None` if `condition` does
    /// not hold. Also returns `None` if messages after the position `since` of the condition were
    /// removed from the stream, because they may have been of the topic. `subject` is the NATS
    /// subject of the topic.
    async fn expected(
        &self,
        stream: &Stream,
        subject: &str,
        condition: Unchanged,
    ) -> Result<Option<Expected>, BoxError> {
        // The newest message is read first. The state, which is read after it, then shows whether a
        // newer message of the subject was removed. The epoch shows that both are of this log.
        let last = stream.last_of(subject).await?.map_or(0, |message| message.sequence);
        if position(last) > condition.since {
            return Ok(None);
        }
        let (state, holes) = stream.state_with_holes().await?;
        let log = self.identity.check_witness(stream).await?;
        let has_hole = holes.last().is_some_and(|hole| position(*hole) > condition.since);
        if log.epoch != condition.epoch || has_hole || log.evicted_through(&state) > condition.since {
            return Ok(None);
        }
        let (major, minor, patch) = COMPARES_SUBJECTS;
        let compares_subjects = state.replicas <= 1 || stream.link.client.is_server_compatible(major, minor, patch);
        Ok(Some(Expected { log, subject: last, stream: (!compares_subjects).then_some(state.last) }))
    }

    /// Publishes a message to the NATS server. Sends the message again if there is no response
    /// within half of the request timeout, or if the connection is lost, and still accepts a
    /// response to an earlier copy. The server detects the duplicate by the message id. Returns an
    /// error if the whole request timeout passes without a response.
    ///
    /// The stream detects duplicates only within the time `window`. The message is sent again only
    /// within the first half of this time, because the last copy also takes time to arrive. If
    /// `window` is `None`, the message can be sent again until the request timeout.
    async fn publish(
        &self,
        link: &Link,
        subject: &str,
        message: &PublishMessage,
        window: Option<Duration>,
    ) -> Result<Published, BoxError> {
        let begin = Instant::now();
        let deadline = begin + self.timeout;
        let can_repeat_at = |time: Instant| window.is_none_or(|window| time.duration_since(begin) < window / 2);
        link.soon(async {
            let mut is_certain = true;
            let mut attempts = Vec::new();
            loop {
                let mut losses = link.losses();
                attempts.push(Box::pin(async {
                    link.context.send_publish(subject.to_owned(), message.clone()).await?.await
                }));
                // An attempt gets at most half of the time, so that there is time for a second
                // attempt. The request may be lost, for example with the cluster server that
                // received it.
                let patience = (deadline - self.timeout / 2).max(Instant::now() + self.timeout / 8).min(deadline);
                // The last attempt ends with the request timeout, which `soon` measures. An attempt
                // that ended at the same time would be followed by further ones in the same poll.
                let can_repeat = patience < deadline && can_repeat_at(patience);
                let patience = if can_repeat { patience } else { deadline + self.timeout };
                let response = async {
                    loop {
                        match next_output(&mut attempts).await {
                            // The servers of a cluster are still storing an earlier copy. Its
                            // response arrives later, or that of the next copy.
                            Ok(ack) if ack.sequence == 0 => {}
                            Err(error) if is_in_process(&error) => {}
                            response => return response,
                        }
                        is_certain = false;
                    }
                };
                let response = timeout_at(patience, losses.unless_lost(response)).await;
                match response {
                    Ok(Ok(Ok(ack))) => return Ok(Published::Stored(self.stored(ack)?)),
                    Ok(Ok(Err(error))) if is_refusal(&error) => return Ok(Published::Refused { is_certain }),
                    Ok(Ok(Err(error))) if !is_unsure(&error) => {
                        return Err(match is_certain {
                            true => error.into(),
                            false => format!(
                                "it is unknown whether the stream has stored it: the response to the first copy was \
                                 lost or late, and the next copy has failed: {error}"
                            )
                            .into(),
                        });
                    }
                    Ok(Err(_is_lost)) if can_repeat_at(Instant::now()) => losses.reconnected().await,
                    Ok(Err(_) | Ok(Err(_))) | Err(_) => {}
                }
                is_certain = false;
                if let Some(window) = window.filter(|_| !can_repeat_at(Instant::now())) {
                    return Err(format!(
                        "the response was lost, and the stream detects duplicates only for {window:?}, so the message \
                         was not sent again: set its duplicate_window to {:?} or more",
                        self.timeout * 4
                    )
                    .into());
                }
            }
        })
        .await
    }

    fn stored(&self, ack: PublishAck) -> Result<u64, BoxError> {
        if ack.stream == self.config.name {
            return Ok(ack.sequence);
        }
        Err(format!("it was stored in another stream, {:?}, which has the same subjects", ack.stream).into())
    }

    /// Returns the epoch (the identity) of the log that has stored a message. `sequence` is the
    /// sequence of the message in the NATS stream, and `id` is its message id. Returns an error if
    /// the stream does not have this message.
    async fn log_of(&self, stream: &Stream, sequence: u64, id: &str) -> Result<u64, BoxError> {
        let mut epoch = self.identity.check_witness(stream).await?.epoch;
        loop {
            let found = stream.get(sequence).await?;
            if found.and_then(|found| found.identity()) != Some(message::identity(id)) {
                return Err("the stream has lost it, or was replaced meanwhile".into());
            }
            let now = self.identity.check_witness(stream).await?.epoch;
            if now == epoch {
                return Ok(now);
            }
            epoch = now;
        }
    }
}

/// Returns the sequence of the NATS message `new` if an earlier attempt to publish it was
/// successful. Called when the server has refused a later attempt because of the expected sequence:
/// the server may compare this sequence before it detects that the message is a duplicate.
///
/// `before` is the sequence of the last message of the subject before the first attempt. If an
/// attempt was successful, `new` is the next message of the subject after `before`. Returns `None`
/// if the next message is another one, and an error if the stream has no next message.
async fn stored_by_earlier_attempt(stream: &Stream, new: &NewMessage, before: u64) -> Result<Option<u64>, BoxError> {
    // Both attempts have the same expected sequence, so no other message of the subject is between
    // `before` and this message.
    match stream.next_of(&new.subject, before.saturating_add(1)).await? {
        Some(next) if next.identity() == Some(message::identity(&new.id)) => Ok(Some(next.sequence)),
        Some(_) => Ok(None),
        None => Err("it is unknown whether the stream has stored it: the topic has changed, and its new messages \
                     are missing"
            .into()),
    }
}

/// Returns `true` if the servers of a cluster are still storing an earlier copy of the message. The
/// code is that of nats-server 2.11 or newer. Earlier versions respond with the sequence 0.
fn is_in_process(error: &PublishError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    source.is_some_and(|source| source.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
}

/// Returns `true` if the NATS server may have stored the message in spite of this error. The caller
/// then sends the message again, and the server ignores a duplicate.
fn is_unsure(error: &PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe)
}
