//! The format of records in NATS messages. Each message contains the records of one append: their
//! topic is the subject, their kind, such as event or finish, is a header, and their events are the
//! payload.

use crate::{
    BoxError,
    hub::backend::{IdFormat, Page, Position, Record, RecordKind, fnv::fnv},
};
use async_nats::{
    HeaderMap, Subject,
    header::{IntoHeaderName, NATS_MESSAGE_ID},
    jetstream::{self, message::StreamMessage},
};
use bytes::Bytes;
use std::{borrow::Cow, sync::Arc};

/// The maximum number of events in one NATS message. Each message takes this number of positions in
/// the log, even if it contains fewer events.
pub(super) const EVENTS: u64 = IdFormat::MESSAGE;

/// The maximum length of a NATS subject in bytes. A NATS server closes the connection of a client
/// that sends a protocol line of more than 4,096 bytes. This line contains the subject.
const MAX_SUBJECT_BYTES: usize = 2048;

const KIND: &str = "Tower-Sse-Kind";
const LOG: &str = "Tower-Sse-Log";

/// Returns the position of the last event in the NATS message with this sequence. Each message
/// takes 65,536 positions ([`EVENTS`]). Its last event has the greatest of these positions.
pub(super) fn position(sequence: u64) -> Position {
    sequence.saturating_mul(EVENTS).into()
}

/// Returns the sequence of the NATS message whose last event has this position. If no message ends
/// at `position`, returns the sequence of the last message that ends before it. The result is 0 if
/// even the first message ends after it.
pub(super) fn sequence(position: Position) -> u64 {
    position.get() / EVENTS
}

/// Returns the sequence of the NATS message that contains the first event after `position`.
pub(super) fn sequence_after(position: Position) -> u64 {
    position.get() / EVENTS + 1
}

/// Returns the NATS subject of a topic, whose name can contain any characters. The subject begins
/// with `stream`, the name of the JetStream stream. Returns `None` if the subject would be longer
/// than [`MAX_SUBJECT_BYTES`].
pub(super) fn subject(stream: &str, topic: &str) -> Option<String> {
    let mut subject = String::with_capacity(stream.len() + topic.len() + 2);
    subject.push_str(stream);
    subject.push('.');
    for byte in topic.bytes() {
        match byte {
            _ if is_plain(byte) => subject.push(byte.into()),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
                subject.extend(['=', digit(byte >> 4), digit(byte)]);
            }
        }
    }
    // A topic with an empty name needs a non-empty subject token.
    subject.push('=');
    (subject.len() <= MAX_SUBJECT_BYTES).then_some(subject)
}

/// Returns `true` if the subject of a topic contains this byte of the topic's name without an
/// escape.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'/')
}

/// Returns the name of the topic that has this NATS subject. Returns `None` if `subject` is not the
/// subject of a topic in the JetStream stream with the name `stream`. Another program may have
/// written the subject in another way. No read of the topic would find such a message.
pub(super) fn topic(stream: &str, subject: &str) -> Option<Arc<str>> {
    if subject.len() > MAX_SUBJECT_BYTES {
        return None;
    }
    let mut rest = subject.strip_prefix(stream)?.strip_prefix('.')?.strip_suffix('=')?;
    let mut topic = Vec::with_capacity(rest.len());
    while let Some((plain, escaped)) = rest.split_once('=') {
        topic.extend_from_slice(plain.as_bytes());
        let (hex, after) = escaped.split_at_checked(2)?;
        let is_upper = |digit: u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
        let byte = u8::from_str_radix(hex, 16).ok().filter(|byte| hex.bytes().all(is_upper) && !is_plain(*byte))?;
        if !plain.bytes().all(is_plain) {
            return None;
        }
        topic.push(byte);
        rest = after;
    }
    topic.extend_from_slice(rest.as_bytes());
    rest.bytes().all(is_plain).then_some(())?;
    String::from_utf8(topic).ok().map(Into::into)
}

/// Returns the subject of the marks. A mark is a message that identifies the log in a JetStream
/// stream. No topic has this subject, because the subjects of topics end with `=`.
pub(super) fn mark_subject(stream: &str) -> String {
    format!("{stream}._log")
}

/// Sets the header of a NATS message that contains the kind of its records: events that replace all
/// earlier events of their topic, the end of a topic, or the removal of a topic. Plain events have
/// no such header.
pub(super) fn set_kind(headers: &mut HeaderMap, kind: RecordKind) {
    match kind {
        RecordKind::Event => {}
        RecordKind::State => headers.insert(KIND, "state"),
        RecordKind::Finish => headers.insert(KIND, "finish"),
        RecordKind::Remove => headers.insert(KIND, "remove"),
    }
}

/// Sets the header of a NATS message that contains the id of the publisher's log. If another log
/// has replaced this log and the publisher does not know that yet, this is the id of the old log.
pub(super) fn set_log(headers: &mut HeaderMap, id: &str) {
    headers.insert(LOG, id);
}

/// A time as a number of nanoseconds since 1970.
pub(super) type Nanoseconds = i128;

/// A message that a JetStream stream has stored.
pub(super) struct Stored {
    pub(super) subject: Subject,
    pub(super) sequence: u64,
    /// The time when the JetStream stream has stored the message.
    pub(super) time: Nanoseconds,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
}

impl Stored {
    /// Creates a stand-in for a message that the stream has stored, but whose headers or payload
    /// the client library cannot decode. The stand-in has no events, like a message of a program
    /// other than a hub.
    pub(super) fn unreadable(subject: Subject, sequence: u64, time: Nanoseconds) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(KIND, "unreadable");
        Self { subject, sequence, time, headers: Some(headers), payload: Bytes::new() }
    }

    pub(super) fn header(&self, name: impl IntoHeaderName) -> Option<&str> {
        Some(self.headers.as_ref()?.get(name)?.as_str())
    }

    /// Returns the id of the log, which a hub writes into a header of each message. Returns `None`
    /// for a message of a program other than a hub.
    pub(super) fn log(&self) -> Option<&str> {
        self.header(LOG)
    }

    /// Returns a hash of the message id, the header `Nats-Msg-Id` of this message. Returns `None`
    /// if the message has no id. The hash distinguishes this message from another message that has
    /// the same sequence in another log.
    pub(super) fn identity(&self) -> Option<u64> {
        self.header(NATS_MESSAGE_ID).map(identity)
    }
}

/// Computes a hash from the id that the publisher has given a NATS message. The hash distinguishes
/// messages that have the same sequence in different logs.
pub(super) fn identity(id: &str) -> u64 {
    fnv(id)
}

impl From<StreamMessage> for Stored {
    fn from(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, headers, payload, time, .. } = message;
        Self { subject, sequence, time: time.unix_timestamp_nanos(), headers: Some(headers), payload }
    }
}

/// A message that a NATS consumer has delivered.
pub(super) struct Delivered {
    pub(super) stored: Stored,
    /// The number of messages that the NATS consumer has delivered so far, including this message.
    pub(super) number: u64,
    /// The number of messages that the NATS consumer still has to deliver after this message.
    pub(super) pending: u64,
}

impl TryFrom<jetstream::Message> for Delivered {
    type Error = BoxError;

    fn try_from(message: jetstream::Message) -> Result<Self, BoxError> {
        let info = message.info()?;
        let (number, pending, sequence) = (info.consumer_sequence, info.pending, info.stream_sequence);
        let time = info.published.unix_timestamp_nanos();
        let async_nats::Message { subject, headers, payload, .. } = message.message;
        Ok(Self { stored: Stored { subject, sequence, time, headers, payload }, number, pending })
    }
}

/// Returns the payload of a NATS message with these records: the bytes of their events, one after
/// the other.
pub(super) fn join(records: &[Record]) -> Bytes {
    match records {
        [only] => only.event.clone(),
        many => many.iter().map(|record| &*record.event).collect::<Vec<_>>().concat().into(),
    }
}

/// Splits the payload of a NATS message into its events. Each event ends with a blank line, and
/// contains no other blank line. The result for an empty payload is one empty event, because a
/// message that finishes or removes a topic has no payload.
fn split(payload: &Bytes) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut start = 0;
    while start < payload.len() {
        // An event may consist of a blank line alone.
        let end = match payload[start] {
            b'\n' => start + 1,
            _ => memchr::memmem::find(&payload[start..], b"\n\n").map_or(payload.len(), |at| start + at + 2),
        };
        events.push(payload.slice(start..end));
        start = end;
    }
    if events.is_empty() {
        // A record that finishes or removes a topic has an empty payload.
        events.push(Bytes::new());
    }
    events
}

/// Appends the events of a NATS message to `page`, but only events after the position `after`.
/// `stream` is the name of the JetStream stream. Afterwards the page ends at the position of the
/// message, even if no event was appended. A message whose subject is not that of a topic, or whose
/// kind is unknown, has no events.
pub(super) fn add(page: &mut Page, after: Position, stream: &str, message: &Stored) {
    let last = position(message.sequence);
    page.through = last;
    let Some(topic) = topic(stream, &message.subject) else { return };
    let kind = match message.header(KIND) {
        None => RecordKind::Event,
        Some("state") => RecordKind::State,
        Some("finish") => RecordKind::Finish,
        Some("remove") => RecordKind::Remove,
        Some(_) => return,
    };
    let mut events = split(&message.payload);
    events.truncate(EVENTS as usize);
    // `split` returns at least one event.
    let first = last.get().saturating_sub(events.len() as u64 - 1);
    let positions = (first..=last.get()).map(Position::new);
    let records = positions.zip(events).filter(|(position, _)| *position > after);
    page.records.extend(records.map(|(position, event)| (position, Record { topic: topic.clone(), kind, event })));
}

/// Returns an error text if one NATS message of at most `max_payload` bytes cannot contain these
/// records. Returns `None` if it can.
pub(super) fn refusal(records: &[Record], max_payload: usize) -> Option<Cow<'static, str>> {
    /// The number of bytes that are reserved for the headers of a NATS message. Headers count
    /// towards `max_payload`, the server's limit for the size of a message.
    const HEADERS: usize = 256;
    let [first, ..] = records else { return Some("there is nothing to add".into()) };
    if records.iter().any(|record| record.topic != first.topic || record.kind != first.kind) {
        return Some("records of several topics or kinds cannot be added together to a log in NATS".into());
    }
    if records.len() as u64 > EVENTS {
        return Some(format!("{} events cannot be added together; {EVENTS} can", records.len()).into());
    }
    let bytes = records.iter().map(|record| record.event.len()).sum::<usize>() + HEADERS;
    (bytes > max_payload).then(|| {
        format!(
            "what is published together is one message of {bytes} bytes, and the NATS server takes {max_payload}: \
             publish less at once, or set its max_payload"
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;
    use arbtest::{
        arbitrary::{self, Unstructured},
        arbtest,
    };

    /// Generates a text of at most `chars` characters. Many of them are ASCII.
    fn text(u: &mut Unstructured<'_>, chars: usize) -> arbitrary::Result<String> {
        let mut text = String::new();
        for _ in 0..u.int_in_range(0..=chars)? {
            text.push(if u.arbitrary()? { char::from(u.int_in_range(0..=127_u8)?) } else { u.arbitrary()? });
        }
        Ok(text)
    }

    #[test]
    fn any_topic_is_a_subject_of_one_valid_token_and_is_read_back() {
        arbtest(|u| {
            let name = text(u, 150)?;
            let subject = subject("shop", &name).expect("it is not too long");
            let token = subject.strip_prefix("shop.").expect("it begins with the stream");
            assert!(!token.is_empty());
            assert!(token.bytes().all(|b| b.is_ascii_graphic() && !b".*>".contains(&b)), "{token}");
            assert_eq!(&*topic("shop", &subject).expect("it is one"), &name);
            Ok(())
        });
    }

    #[test]
    fn two_topics_are_never_one_subject() {
        arbtest(|u| {
            let (one, other) = (text(u, 6)?, text(u, 6)?);
            assert_eq!(one == other, subject("s", &one) == subject("s", &other));
            Ok(())
        });
    }

    /// The subjects of the same topic in another spelling. No read of the topic would find them.
    #[test]
    fn subject_in_another_spelling_is_no_topic() {
        assert_eq!(topic("shop", "shop.user=2E42=").as_deref(), Some("user.42"));
        for subject in ["shop.user.42=", "shop.user=2e42=", "shop.=+F=", "shop.=75ser=", "shop.a.b=2Ec=", "shop.user=2"]
        {
            assert_eq!(topic("shop", subject), None, "{subject}");
        }
        let longest = "x".repeat(MAX_SUBJECT_BYTES - "shop.=".len());
        assert!(topic("shop", &format!("shop.{longest}=")).is_some());
        assert_eq!(topic("shop", &format!("shop.{longest}x=")), None);
    }

    #[test]
    fn whatever_the_subject_is_it_is_a_topic_or_none() {
        arbtest(|u| {
            let mut text = String::from(*u.choose(&["", "shop."])?);
            for _ in 0..u.int_in_range(0..=12)? {
                text.push(char::from(*u.choose(b"==0123456789ABCDEFGabcxyz.+")?));
            }
            text.push_str(u.choose(&["", "="])?);
            if let Some(name) = topic("shop", &text) {
                assert_eq!(subject("shop", &name).unwrap(), text, "a topic has only one subject");
            }
            Ok(())
        });
    }

    #[test]
    fn what_is_joined_is_split_into_the_same_events() {
        arbtest(|u| {
            let mut records = Vec::new();
            for _ in 0..u.int_in_range(1..=39)? {
                let event = if u.arbitrary()? { Event::new(text(u, 20)?) } else { Event::default() };
                let event = if u.arbitrary()? { event.comment(text(u, 20)?) } else { event };
                records.push(Record { topic: "t".into(), kind: RecordKind::Event, event: event.encode() });
            }
            let events: Vec<_> = records.iter().map(|record| record.event.clone()).collect();
            assert_eq!(split(&join(&records)), events);
            Ok(())
        });
    }

    #[test]
    fn splitting_a_payload_loses_no_byte() {
        arbtest(|u| {
            let length = u.int_in_range(0..=39)?;
            let payload = (0..length).map(|_| u.choose(b"a\n\r: ").copied()).collect::<Result<Bytes, _>>()?;
            assert_eq!(split(&payload).concat(), payload);
            Ok(())
        });
    }

    #[test]
    fn positions_rise_and_identify_their_message() {
        arbtest(|u| {
            let (sequence, count) = (u.int_in_range(1..=(1_u64 << 40) - 1)?, u.int_in_range(1..=39_u64)?);
            let page = read(sequence, count as usize, Position::START);
            assert_eq!(page.records.len() as u64, count);
            assert_eq!(page.through, position(sequence));
            assert_eq!(page.records.last().expect("one").0, page.through);
            for (n, (at, _)) in page.records.iter().enumerate() {
                assert!(*at > position(sequence - 1));
                // A read after an event that is not the last of its message returns the rest of the
                // message, without duplicates.
                let rest = read(sequence, count as usize, *at);
                assert_eq!(&rest.records[..], &page.records[n + 1..]);
                assert_eq!(sequence_after(*at), sequence + u64::from(n as u64 + 1 == count));
            }
            Ok(())
        });
    }

    fn message(sequence: u64, subject: &str, headers: Option<HeaderMap>, payload: Bytes) -> Stored {
        Stored { subject: subject.into(), sequence, time: 0, headers, payload }
    }

    fn read(sequence: u64, count: usize, after: Position) -> Page {
        let mut page = Page::default();
        add(&mut page, after, "s", &message(sequence, "s.t=", None, "data: x\n\n".repeat(count).into()));
        page
    }

    #[test]
    fn foreign_messages_are_skipped() {
        let other = HeaderMap::from_iter([("Tower-Sse-Kind".parse().unwrap(), "of another version".parse().unwrap())]);
        let event = || Bytes::from_static(b"data: x\n\n");
        for (message, records) in [
            (message(7, "s.t=", None, event()), 1),
            (message(7, "s.t", None, event()), 0),
            (message(7, "s.=4=", None, event()), 0),
            (message(7, "s.=FF=", None, event()), 0),
            (message(7, "other.t=", None, event()), 0),
            (message(7, "s.t=", Some(other), event()), 0),
            (message(7, "s.t=", None, "\n".repeat(70_000).into()), EVENTS as usize),
        ] {
            let mut page = Page::default();
            add(&mut page, Position::START, "s", &message);
            assert_eq!((page.records.len(), page.through), (records, position(7)), "{:?}", message.subject);
            assert!(page.records.iter().all(|(at, _)| *at > position(6)), "{:?}", message.subject);
        }
    }

    #[test]
    fn records_that_are_no_message_are_an_error() {
        let record = |topic: &str, bytes: usize| Record {
            topic: topic.into(),
            kind: RecordKind::Event,
            event: vec![b'x'; bytes].into(),
        };
        assert_eq!(refusal(&[record("a", 700), record("a", 44)], 1000), None);
        for (records, part) in [
            (vec![], "nothing"),
            (vec![record("a", 700), record("a", 45)], "one message of 1001 bytes, and the NATS server takes 1000"),
            (vec![record("a", 1), record("b", 1)], "several topics"),
            (vec![record("a", 0); 65_537], "65537 events"),
        ] {
            let refusal = refusal(&records, 1000).expect("it cannot be one");
            assert!(refusal.contains(part), "{refusal}");
        }
    }

    #[test]
    fn positions_do_not_overflow_at_both_ends() {
        let positions =
            |sequence| read(sequence, 2, Position::START).records.iter().map(|(at, _)| at.get()).collect::<Vec<_>>();
        for sequence in [1 << 48, u64::MAX] {
            assert_eq!(positions(sequence), [u64::MAX - 1, u64::MAX]);
        }
        // Sequences of a server begin at 1.
        assert_eq!(positions(0), [0; 0]);
    }

    #[test]
    fn long_topic_name_has_no_subject() {
        assert!(subject("s", &"x".repeat(2045)).is_some());
        assert_eq!(subject("s", &"x".repeat(2046)), None);
        assert_eq!(subject("s", &" ".repeat(700)), None);
    }
}
