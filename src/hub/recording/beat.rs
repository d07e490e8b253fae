//! The records that the nodes of a hub append to the log to inform each other about their
//! recordings, the tasks that publish streams into topics.

use crate::{
    Event,
    hub::backend::{Position, Record, RecordKind},
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// The topic of the log that nodes use to inform each other about recordings and about members
/// (names that are present in topics). Nodes read its records, but do not retain them as events of
/// a topic.
pub(in crate::hub) const TOPIC: &str = "tower-sse/nodes";

/// The approximate maximum size in bytes of a record that contains a sign of life of a node. A
/// larger sign of life is split into several records. NATS accepts messages of up to 1 MiB by
/// default.
const MAX_BYTES: usize = 64 << 10;

/// The minimum and the maximum of a lease: the silence after which other nodes consider a node
/// dead. A received lease outside of this range is set to the nearer limit.
pub(in crate::hub) const LEASES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3600)];

/// A message about recordings, from one node to the other nodes of the hub. Each message is a
/// record in the log.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Beat(Beat),
    /// Requests every node to stop its recordings of this topic, the tasks that publish streams
    /// into the topic.
    Stop(Arc<str>),
}

/// A beat: a sign of life of a node, with all recordings of the node. Each beat replaces the
/// earlier beats of the node. A large beat is split into parts, and each part is one record.
///
/// When a recording begins between two such beats, the node reports it in an
/// [addition](Self::is_addition). This is a beat that lists only what is new, and does not replace
/// the earlier beats.
#[derive(Debug, PartialEq)]
pub(super) struct Beat {
    /// The random number that identifies the node that sends this sign of life.
    pub(super) node: u64,
    /// The lease of the node that sends this sign of life: if other nodes read no further sign of
    /// life of that node for this time, they consider it dead.
    pub(super) lease: Duration,
    pub(super) recordings: Vec<Announced>,
    /// The topics that have subscribers on the node that sends this sign of life, and into which
    /// other nodes publish recordings. The other nodes then do not end these recordings for lack of
    /// subscribers.
    pub(super) watching: HashSet<Arc<str>>,
    /// The number of this sign of life. It increases with each sign of life of a node, so that
    /// readers can ignore a sign of life that arrives late. All parts of one sign of life have the
    /// same number.
    pub(super) number: u64,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    /// The number of this part in its sign of life, beginning with 0. It shows whether a part is
    /// missing. `None` if an earlier version of this crate has written the part.
    pub(super) index: Option<u64>,
    /// Set if this sign of life is an addition: it lists only recordings, and topics with
    /// subscribers, that are new since the last sign of life. The lists in earlier signs of life
    /// stay valid. If the flag is not set, the lists of this sign of life replace the earlier
    /// lists. If an addition has several parts, each part takes effect as soon as it is read.
    pub(super) is_addition: bool,
    /// The last position of the log that the sender of this sign of life had read when it collected
    /// its recordings. Up to this position, the log does not contain the end of a listed recording.
    /// `None` if an earlier version of this crate has written the sign of life. May also be `None`
    /// if the sign of life lists nothing.
    pub(super) read_through: Option<Position>,
}

impl Beat {
    /// Splits the beat, a sign of life, into parts of about 64 KiB. Each part is appended to the
    /// log as one record.
    pub(super) fn into_parts(self) -> Vec<Self> {
        let part = |index: usize| {
            let (recordings, watching) = (Vec::new(), HashSet::new());
            Self { recordings, watching, is_first: index == 0, is_last: false, index: Some(index as u64), ..self }
        };
        let mut parts = vec![part(0)];
        let mut bytes = 0;
        let mut add = |size, insert: &mut dyn FnMut(&mut Self)| {
            bytes += size + 64;
            if bytes > MAX_BYTES {
                parts.push(part(parts.len()));
                bytes = size + 64;
            }
            parts.last_mut().into_iter().for_each(insert);
        };
        for announced in &self.recordings {
            let size = announced.topic.len() + announced.will.len();
            add(size, &mut |part| part.recordings.push(announced.clone()));
        }
        for topic in &self.watching {
            add(topic.len(), &mut |part| part.watching.extend([topic.clone()]));
        }
        parts.last_mut().into_iter().for_each(|last| last.is_last = true);
        parts
    }

    /// Returns `true` if this part of a sign of life follows the part `previous` directly, or if
    /// this is unknown because an earlier version of this crate has written the parts.
    pub(super) fn follows(&self, previous: &Self) -> bool {
        self.index.is_none_or(|index| previous.index.and_then(|index| index.checked_add(1)) == Some(index))
    }
}

/// A running recording, a task that publishes a stream into a topic, as its node announces it to
/// the other nodes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Announced {
    pub(super) topic: Arc<str>,
    /// The random number that identifies this recording.
    pub(super) id: u64,
    /// The wire bytes of the will: the event that another node publishes if the node of this
    /// recording dies. Without a will, this field is empty, and the other node only finishes the
    /// topic.
    pub(super) will: Bytes,
    /// Set if this recording ends after some time without subscribers. Other nodes then report in
    /// their signs of life if they have subscribers of the topic.
    pub(super) needs_subscribers: bool,
    /// Set if each event of this recording replaces the previous event of the topic.
    pub(super) latest_only: bool,
}

impl Message {
    /// Returns `true` if `record` is a message from node to node, and not an event of the
    /// application: it is in the topic `tower-sse/nodes`.
    pub(super) fn is_of(record: &Record) -> bool {
        *record.topic == *TOPIC
    }

    pub(super) fn record(&self) -> Record {
        let text = match self {
            Self::Stop(topic) => json!({ "stop": &**topic }),
            Self::Beat(beat) => json!({
                "node": beat.node,
                "lease": u64::try_from(beat.lease.as_millis()).unwrap_or(u64::MAX),
                "recordings": beat.recordings.iter().map(Announced::to_json).collect::<Vec<_>>(),
                "watching": beat.watching.iter().map(|topic| &**topic).collect::<Vec<_>>(),
                "beat": beat.number,
                "first": beat.is_first,
                "last": beat.is_last,
                "part": beat.index,
                "addition": beat.is_addition,
                "read": beat.read_through.map(Position::get),
            }),
        };
        Record { topic: TOPIC.into(), kind: RecordKind::State, event: Event::display(text).encode() }
    }

    /// Parses a message about recordings from a record of another node. Returns `None` if the
    /// record has another format, for example because another version of this crate wrote it.
    pub(super) fn parse(record: &Record) -> Option<Self> {
        let text = record.event.strip_prefix(b"data: ").filter(|_| record.kind == RecordKind::State)?;
        let message: Value = serde_json::from_slice(text).ok()?;
        if let Some(topic) = message["stop"].as_str() {
            return Some(Self::Stop(topic.into()));
        }
        let [shortest, longest] = LEASES;
        Some(Self::Beat(Beat {
            node: message["node"].as_u64()?,
            lease: Duration::from_millis(message["lease"].as_u64()?).clamp(shortest, longest),
            recordings: message["recordings"].as_array()?.iter().map(Announced::parse).collect::<Option<_>>()?,
            watching: message["watching"].as_array()?.iter().filter_map(|topic| Some(topic.as_str()?.into())).collect(),
            number: message["beat"].as_u64()?,
            is_first: message["first"].as_bool()?,
            is_last: message["last"].as_bool()?,
            // These three are absent in the beats of earlier versions.
            index: message["part"].as_u64(),
            is_addition: message["addition"].as_bool().unwrap_or_default(),
            read_through: message["read"].as_u64().map(Position::new),
        }))
    }
}

/// The beats (signs of life of nodes) in one page, a part of the log. Each entry has the position
/// of the beat in the log, the node of the beat, and its sequence number, `Beat::number`.
pub(in crate::hub) type Beats = Vec<(Position, u64, u64)>;

impl Announced {
    /// Returns the kind of the log records that contain the events of this recording. The kind is
    /// `State` if each event replaces the previous event of the topic, and otherwise `Event`.
    pub(super) fn kind(&self) -> RecordKind {
        if self.latest_only { RecordKind::State } else { RecordKind::Event }
    }

    fn to_json(&self) -> Value {
        let will = String::from_utf8_lossy(&self.will);
        json!([&*self.topic, self.id, will, self.needs_subscribers, self.latest_only])
    }

    fn parse(value: &Value) -> Option<Self> {
        let will = value[2].as_str()?;
        let is_event = will.is_empty() || Event::from_wire(will.as_bytes()).is_some();
        Some(Self {
            topic: value[0].as_str()?.into(),
            id: value[1].as_u64()?,
            will: Bytes::copy_from_slice(will.as_bytes()),
            needs_subscribers: value[3].as_bool()?,
            latest_only: value[4].as_bool().unwrap_or_default(),
        })
        .filter(|announced| is_event && *announced.topic != *TOPIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat() -> Beat {
        let announced =
            |id, will| Announced { topic: "a\nb".into(), id, will, needs_subscribers: id == 1, latest_only: id == 1 };
        let will = Event::new("a\nb").event("c").encode();
        Beat {
            node: u64::MAX,
            lease: Duration::from_secs(10),
            recordings: vec![announced(1, Bytes::new()), announced(u64::MAX, will)],
            watching: HashSet::from(["x".into(), "\"".into()]),
            number: 7,
            is_first: true,
            is_last: true,
            index: Some(0),
            is_addition: true,
            read_through: Some(Position::new(u64::MAX)),
        }
    }

    #[test]
    fn parts_of_a_large_beat_have_all_of_it() {
        let Beat { recordings, .. } = beat();
        let recordings: Vec<_> = recordings.into_iter().cycle().take(5000).collect();
        let watching: HashSet<Arc<str>> = (0..5000).map(|n| format!("topic {n}").into()).collect();
        let parts = Beat { recordings: recordings.clone(), watching: watching.clone(), ..beat() }.into_parts();
        assert!(parts.len() > 5);
        let (first, last) = (&parts[0], &parts[parts.len() - 1]);
        assert!(first.is_first && !first.is_last && last.is_last && !last.is_first);
        assert_eq!(parts.iter().flat_map(|part| part.recordings.clone()).collect::<Vec<_>>(), recordings);
        assert_eq!(parts.iter().flat_map(|part| part.watching.clone()).collect::<HashSet<_>>(), watching);
        for part in parts {
            assert!(Message::Beat(part).record().event.len() < 2 * MAX_BYTES);
        }
        assert_eq!(beat().into_parts(), [beat()]);
    }

    #[test]
    fn message_is_parsed_as_it_was_written() {
        for message in [Message::Beat(beat()), Message::Stop("\r\n{}".into())] {
            let record = message.record();
            assert!(Message::is_of(&record));
            assert_eq!(Message::parse(&record), Some(message));
        }
    }

    #[test]
    fn foreign_record_is_no_message() {
        let record = Message::Beat(beat()).record();
        for text in ["", "data: ", "data: {}\n\n", "data: []\n\n", "data: {\"stop\":7}\n\n", "event: x\ndata: 7\n\n"] {
            let foreign = Record { event: Bytes::from_static(text.as_bytes()), ..record.clone() };
            assert_eq!(Message::parse(&foreign), None, "{text:?}");
        }
        // A will that is not an event would be published as it is.
        let wire = String::from_utf8(record.event.to_vec()).unwrap();
        let bad = wire.replace("event: c", "evil: c");
        assert_ne!(wire, bad);
        assert_eq!(Message::parse(&Record { event: bad.into(), ..record }), None);
    }
}
