//! The records that nodes append to the log to inform each other about the members of topics: the
//! names that are present in them. The records are in the topic `tower-sse/nodes`.

use super::{MAX_MEMBER_BYTES, MAX_TOPIC_BYTES, Presence};
use crate::{
    Event,
    hub::{
        backend::{Position, Record, RecordKind},
        recording::beat,
        registry::check_reserved,
    },
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc, time::Duration};

/// The approximate maximum size, 64 KiB, of a record about the members of topics. Longer content is
/// split into several records. The size is well below the default limit of NATS, 1 MiB per message.
const MAX_BYTES: usize = 64 << 10;

/// The first bytes of a record about members of topics. These records are in the topic
/// `tower-sse/nodes`. The other records of this topic are signs of life of nodes.
const PREFIX: &[u8] = br#"data: {"presence":"#;

/// A map from the name of each topic to the names of its members (the names present in the topic)
/// on one node.
pub(super) type Members = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

/// A message from one node to the other nodes about presence: the names that are members of topics.
/// Each message is one record in the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// The members that have joined or left topics on the node `author` since its previous record
    /// about members, in the order of these changes. Empty `changes` mean that the node is shut
    /// down, and that this is its last record. Its members then leave after the grace time, unless
    /// they reconnect to another node.
    Changes { author: Author, changes: Vec<(Arc<str>, Presence)> },
    /// All members of topics on the node `author`, or a part of them if there are many. They
    /// replace the members in earlier records of this node.
    Full { author: Author, part: Part },
    /// The node `by` declares the silent node `node` dead, so the members of topics on `node`
    /// leave. A node numbers its records about members, and its signs of life. `number` and `beat`
    /// are the greatest of these numbers of `node` that `by` has read. If the log has greater
    /// numbers of `node` before this message, `node` is alive, and the message has no effect.
    Dead { by: u64, node: u64, number: u64, beat: u64 },
    /// A request for the members of topics on all nodes, from a node that does not know them
    /// because the log has evicted records. Each node that has written records about its members
    /// answers with the list of its members, [`Full`](Self::Full). A node that knows the members on
    /// all nodes also answers with the list of all nodes with members, [`Roster`](Self::Roster).
    /// The asking node recognizes its own request by the random `id`.
    Ask { id: u64 },
    /// The list of all nodes with members (names present in topics): an answer to
    /// [`Ask`](Self::Ask), the request for the members on all nodes. The sender of this list had
    /// read every record of the log up to and including the position `through`. The node that has
    /// asked then waits until each listed node has sent a list of its members, or was declared
    /// dead.
    Roster { through: Position, nodes: Vec<Listed> },
    /// A question of the node `node` to the other nodes: does `topic` exist on them, and how many
    /// subscriptions does it have there? The answers contain the random `id`.
    Question { node: u64, id: u64, topic: Arc<str> },
    /// An answer to the question with this `id`: the topic exists on the node `node`, and has
    /// `subscribers` subscriptions there. Nodes without the topic send no answer.
    Answer { node: u64, id: u64, subscribers: usize },
}

/// Identifies a record of a node about its members (names that are present in topics). `node` has
/// written the record. `lease` is the time of silence after which the other nodes declare the node
/// dead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Author {
    pub(super) node: u64,
    /// The sequence number of this record among the records of its node that report its members.
    /// The number increases with each record, so that readers can ignore a record that arrives
    /// late. If a list of members is split into several records, all of them have the same number.
    pub(super) number: u64,
    pub(super) lease: Duration,
}

/// A part of the list of all members of topics on a node. A list of more than about 64 KiB has
/// several parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Part {
    pub(super) members: Members,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    /// Set if the node has appended no earlier record of its members successfully. The members in
    /// this list have then joined with this list. Without the flag, they may have been present
    /// before.
    pub(super) is_new: bool,
}

/// One node in a [`Message::Roster`], the list of all nodes with members of topics. `lease` is the
/// time of silence after which the other nodes declare the node dead.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Listed {
    pub(super) node: u64,
    pub(super) lease: Duration,
    /// The number of the newest record of the node about its members that the sender of the roster
    /// (the list of nodes with members) has read. 0 if an earlier version of this crate has sent
    /// the roster.
    pub(super) number: u64,
    /// The number of the newest sign of life of the node that the sender of the roster (the list of
    /// nodes with members) has read. 0 if an earlier version of this crate has sent the roster.
    pub(super) beat: u64,
}

/// Splits the list of the members of topics on a node into parts of about 64 KiB each. Each part
/// becomes one record in the log. An empty list becomes one empty part.
pub(super) fn into_parts(members: Members) -> Vec<Part> {
    let mut parts = vec![Part { is_first: true, ..Part::default() }];
    let mut bytes = 0;
    for (topic, members) in members {
        // Each part with members of a topic contains the name of the topic.
        let mut is_new = true;
        for member in members {
            let size = member.len() + 8 + if is_new { topic.len() + 16 } else { 0 };
            bytes += size;
            if bytes > MAX_BYTES {
                parts.push(Part::default());
                bytes = size + topic.len() + 16;
            }
            is_new = false;
            let part = parts.last_mut().into_iter();
            part.for_each(|part| _ = part.members.entry(topic.clone()).or_default().insert(member.clone()));
        }
    }
    parts.last_mut().into_iter().for_each(|last| last.is_last = true);
    parts
}

/// Returns how many joins and leaves of members at the beginning of `changes` fit into one record
/// of about 64 KiB. At least 1, even if the first change is larger.
pub(super) fn fitting(changes: &[(Arc<str>, Presence)]) -> usize {
    let mut bytes = 0;
    let fits = |(topic, change): &(Arc<str>, Presence)| {
        bytes += topic.len() + change.member().len() + 16;
        bytes <= MAX_BYTES
    };
    changes
        .iter()
        .take_while({
            let mut fits = fits;
            move |change| fits(change)
        })
        .count()
        .max(1)
}

/// Returns `true` if a record is a message about the members of topics: it is in the topic
/// `tower-sse/nodes`, and begins with the prefix of these messages. The topic is checked because an
/// event of another topic can have the same bytes.
pub(in crate::hub) fn is_of(record: &Record) -> bool {
    *record.topic == *beat::TOPIC && record.event.starts_with(PREFIX)
}

impl Message {
    pub(super) fn record(&self) -> Record {
        let content = match self {
            Self::Changes { author, changes } => {
                let change = |(topic, change): &(Arc<str>, Presence)| {
                    json!([&**topic, &**change.member(), matches!(change, Presence::Joined { .. })])
                };
                json!({ "author": author.to_json(), "changes": changes.iter().map(change).collect::<Vec<_>>() })
            }
            Self::Full { author, part } => {
                let of_topic = |(topic, members): (&Arc<str>, &BTreeSet<Arc<str>>)| {
                    json!([&**topic, members.iter().map(|member| &**member).collect::<Vec<_>>()])
                };
                json!({
                    "author": author.to_json(),
                    "first": part.is_first,
                    "last": part.is_last,
                    "new": part.is_new,
                    "members": part.members.iter().map(of_topic).collect::<Vec<_>>(),
                })
            }
            Self::Dead { by, node, number, beat } => json!({ "dead": [node, number, beat, by] }),
            Self::Ask { id } => json!({ "ask": id }),
            Self::Roster { through, nodes } => {
                let listed = |it: &Listed| json!([it.node, milliseconds(it.lease), it.number, it.beat]);
                json!({ "through": through.get(), "nodes": nodes.iter().map(listed).collect::<Vec<_>>() })
            }
            Self::Question { node, id, topic } => json!({ "question": [node, id, &**topic] }),
            Self::Answer { node, id, subscribers } => json!({ "answer": [node, id, subscribers] }),
        };
        let text = json!({ "presence": content });
        Record { topic: beat::TOPIC.into(), kind: RecordKind::State, event: Event::display(text).encode() }
    }

    /// Parses a message about the members of topics from a record of the log. Returns `None` if the
    /// record is no such message, or if it has another format, for example because another version
    /// of this crate has written it.
    pub(super) fn parse(record: &Record) -> Option<Self> {
        let is_message = is_of(record) && record.kind == RecordKind::State;
        let text = record.event.strip_prefix(b"data: ").filter(|_| is_message)?;
        let message: Value = serde_json::from_slice(text).ok()?;
        Self::from_json(&message["presence"])
    }

    fn from_json(content: &Value) -> Option<Self> {
        if let Some(changes) = content["changes"].as_array() {
            let change = |value: &Value| {
                let member = parse_member(&value[1])?;
                let is_join = value[2].as_bool()?;
                let change = if is_join { Presence::joined(member) } else { Presence::left(member) };
                Some((parse_topic(&value[0])?, change))
            };
            let changes = changes.iter().map(change).collect::<Option<_>>()?;
            return Some(Self::Changes { author: Author::parse(&content["author"])?, changes });
        }
        if let Some(members) = content["members"].as_array() {
            let of_topic = |value: &Value| {
                let members = value[1].as_array()?.iter().map(parse_member);
                Some((parse_topic(&value[0])?, members.collect::<Option<_>>()?))
            };
            let members = members.iter().map(of_topic).collect::<Option<_>>()?;
            let (is_first, is_last) = (content["first"].as_bool()?, content["last"].as_bool()?);
            let author = Author::parse(&content["author"])?;
            // An earlier version of this crate did not write the flag.
            let is_new = content["new"].as_bool().unwrap_or(author.number == 1);
            return Some(Self::Full { author, part: Part { members, is_first, is_last, is_new } });
        }
        if let Some(id) = content["ask"].as_u64() {
            return Some(Self::Ask { id });
        }
        if let Some(nodes) = content["nodes"].as_array() {
            let listed = |value: &Value| {
                let [number, beat] = [&value[2], &value[3]].map(|value| value.as_u64().unwrap_or_default());
                Some(Listed { node: value[0].as_u64()?, lease: parse_lease(&value[1])?, number, beat })
            };
            let nodes = nodes.iter().map(listed).collect::<Option<_>>()?;
            return Some(Self::Roster { through: Position::new(content["through"].as_u64()?), nodes });
        }
        if let question @ Value::Array(_) = &content["question"] {
            let topic = question[2].as_str()?.into();
            return Some(Self::Question { node: question[0].as_u64()?, id: question[1].as_u64()?, topic });
        }
        if let answer @ Value::Array(_) = &content["answer"] {
            let subscribers = usize::try_from(answer[2].as_u64()?).ok()?;
            return Some(Self::Answer { node: answer[0].as_u64()?, id: answer[1].as_u64()?, subscribers });
        }
        let dead = &content["dead"];
        let [node, number, beat, by] = [0, 1, 2, 3].map(|index| dead[index].as_u64());
        Some(Self::Dead { by: by?, node: node?, number: number?, beat: beat? })
    }
}

impl Author {
    /// Returns `true` if the number of a part of a list of a node's members is up to date. Returns
    /// `false` if a newer record of the node was read before, or if the first part of the list was
    /// not read. `number` is the number of the newest record of the node that was read before. All
    /// parts of a list have the same number, and `is_first` is `true` for the first part.
    pub(super) fn is_new_part(self, is_first: bool, number: u64) -> bool {
        if is_first { self.number > number } else { self.number == number }
    }

    fn to_json(self) -> Value {
        json!([self.node, self.number, milliseconds(self.lease)])
    }

    fn parse(value: &Value) -> Option<Self> {
        Some(Self { node: value[0].as_u64()?, number: value[1].as_u64()?, lease: parse_lease(&value[2])? })
    }
}

/// Parses the name of a topic in a record about members of topics. Returns `None` for a name that
/// is too long. Also returns `None` for a reserved name, because such a topic has no members.
fn parse_topic(value: &Value) -> Option<Arc<str>> {
    let name = value.as_str().filter(|name| name.len() <= MAX_TOPIC_BYTES)?;
    check_reserved(name).ok()?;
    Some(name.into())
}

fn parse_member(value: &Value) -> Option<Arc<str>> {
    value.as_str().filter(|member| member.len() <= MAX_MEMBER_BYTES).map(Into::into)
}

fn milliseconds(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

fn parse_lease(value: &Value) -> Option<Duration> {
    let [shortest, longest] = beat::LEASES;
    Some(Duration::from_millis(value.as_u64()?).clamp(shortest, longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<Message> {
        let author = Author { node: u64::MAX, number: 7, lease: Duration::from_secs(10) };
        let members = Members::from([("a\n\"".into(), BTreeSet::from(["\r\n{}".into(), "".into(), "ü".into()]))]);
        let listed = Listed { node: 8, lease: author.lease, number: u64::MAX, beat: 6 };
        vec![
            Message::Changes {
                author,
                changes: vec![("t".into(), Presence::joined("a")), ("t".into(), Presence::left("\n"))],
            },
            Message::Full { author, part: Part { members, is_first: true, is_last: false, is_new: true } },
            Message::Full { author, part: Part::default() },
            Message::Dead { by: 1, node: 2, number: 3, beat: u64::MAX },
            Message::Ask { id: 5 },
            Message::Roster { through: Position::new(9), nodes: vec![listed] },
            Message::Roster { through: Position::START, nodes: Vec::new() },
            Message::Question { node: 1, id: 2, topic: "x".into() },
            Message::Answer { node: 1, id: 2, subscribers: 3 },
        ]
    }

    #[test]
    fn message_is_parsed_as_it_was_written() {
        for message in messages() {
            let record = message.record();
            assert!(is_of(&record) && *record.topic == *beat::TOPIC);
            assert_eq!(Message::parse(&record), Some(message));
        }
    }

    #[test]
    fn foreign_record_is_no_message() {
        let record = messages()[0].record();
        for text in ["", "7", "[]", "{}", "null", r#"{"ask":"x"}"#, r#"{"dead":[1,2,3]}"#, r#"{"answer":[1,2,-1]}"#] {
            for foreign in [format!("data: {{\"presence\":{text}}}\n\n"), format!("data: {text}\n\n")] {
                let foreign = Record { event: foreign.into(), ..record.clone() };
                assert_eq!(Message::parse(&foreign), None, "{foreign:?}");
            }
        }
        let text = String::from_utf8(record.event.to_vec()).unwrap();
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let cut = Record { event: text[..at].to_owned().into(), ..record.clone() };
            assert!(Message::parse(&cut).is_none_or(|message| message == messages()[0]), "{cut:?}");
        }
    }

    #[test]
    fn parts_of_many_members_have_all_of_them() {
        let of_topic = |topic: &str| (0..10_000).map(|n| format!("{topic} member {n}").into()).collect();
        let members = Members::from([("a".into(), of_topic("a")), ("b".into(), of_topic("b"))]);
        let parts = into_parts(members.clone());
        assert!(parts.len() > 5);
        let mut all = Members::new();
        for (index, part) in parts.iter().enumerate() {
            assert_eq!((part.is_first, part.is_last), (index == 0, index == parts.len() - 1));
            let author = Author { node: u64::MAX, number: u64::MAX, lease: Duration::from_secs(10) };
            assert!(Message::Full { author, part: part.clone() }.record().event.len() < 2 * MAX_BYTES);
            for (topic, members) in &part.members {
                all.entry(topic.clone()).or_default().extend(members.iter().cloned());
            }
        }
        assert_eq!(all, members);
        assert_eq!(into_parts(Members::new()), [Part { is_first: true, is_last: true, ..Part::default() }]);
    }
}
