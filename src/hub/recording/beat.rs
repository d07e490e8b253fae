//! The records of the nodes of a hub: each node announces its recordings to the others.

use crate::{
    Event,
    hub::backend::{Record, RecordKind},
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// The topic of these records. No node adds them to its topics.
pub(in crate::hub) const TOPIC: &str = "tower-sse/nodes";

/// The approximate size of the largest record in bytes. NATS accepts 1 MiB by default.
const MAX_BYTES: usize = 64 << 10;

/// The shortest and the longest lease of another node that is accepted.
pub(in crate::hub) const LEASES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3600)];

/// A record of one node for the others.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Beat(Beat),
    /// Stops the recordings of this topic, on whichever node they run.
    Stop(Arc<str>),
}

/// A sign of life, with the whole state of the node. So a node that has missed earlier beats knows
/// everything from this one. A large beat has several parts, one record each.
#[derive(Debug, PartialEq)]
pub(super) struct Beat {
    /// The random number of the node.
    pub(super) node: u64,
    /// The time without another beat after which the node counts as dead.
    pub(super) lease: Duration,
    pub(super) recordings: Vec<Announced>,
    /// The topics of other nodes' recordings that have subscribers on this node.
    pub(super) watching: HashSet<Arc<str>>,
    /// The number of the beat, the same in all parts. It increases.
    pub(super) number: u64,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

impl Beat {
    /// Splits a beat into parts of about [`MAX_BYTES`] each.
    pub(super) fn into_parts(self) -> Vec<Self> {
        let part =
            |is_first| Self { recordings: Vec::new(), watching: HashSet::new(), is_first, is_last: false, ..self };
        let mut parts = vec![part(true)];
        let mut bytes = 0;
        let mut add = |size, insert: &mut dyn FnMut(&mut Self)| {
            bytes += size + 64;
            if bytes > MAX_BYTES {
                parts.push(part(false));
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
}

/// A recording that runs on the node of the beat.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Announced {
    pub(super) topic: Arc<str>,
    /// The random number of the recording.
    pub(super) id: u64,
    /// The wire bytes of the will. Empty if the topic is finished without an event.
    pub(super) will: Bytes,
    /// Set if the recording ends without subscribers.
    pub(super) needs_subscribers: bool,
}

impl Message {
    /// Returns whether the record is of this topic, and so has to be passed to
    /// [`parse`](Self::parse).
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
            }),
        };
        Record { topic: TOPIC.into(), kind: RecordKind::State, event: Event::display(text).encode() }
    }

    /// Parses a record. `None` if another program has written it, or another version of this crate.
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
        }))
    }
}

/// Returns the node and the number of a beat. `None` if the record is not a beat.
pub(in crate::hub) fn sign_of_life(record: &Record) -> Option<(u64, u64)> {
    match Message::parse(record)? {
        Message::Beat(beat) => Some((beat.node, beat.number)),
        Message::Stop(_) => None,
    }
}

impl Announced {
    fn to_json(&self) -> Value {
        json!([&*self.topic, self.id, String::from_utf8_lossy(&self.will), self.needs_subscribers])
    }

    fn parse(value: &Value) -> Option<Self> {
        let will = value[2].as_str()?;
        let is_event = will.is_empty() || Event::from_wire(will.as_bytes()).is_some();
        Some(Self {
            topic: value[0].as_str()?.into(),
            id: value[1].as_u64()?,
            will: Bytes::copy_from_slice(will.as_bytes()),
            needs_subscribers: value[3].as_bool()?,
        })
        .filter(|announced| is_event && *announced.topic != *TOPIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat() -> Beat {
        let announced = |id, will| Announced { topic: "a\nb".into(), id, will, needs_subscribers: id == 1 };
        let will = Event::new("a\nb").event("c").encode();
        Beat {
            node: u64::MAX,
            lease: Duration::from_secs(10),
            recordings: vec![announced(1, Bytes::new()), announced(u64::MAX, will)],
            watching: HashSet::from(["x".into(), "\"".into()]),
            number: 7,
            is_first: true,
            is_last: true,
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
