//! The items that a subscription yields. Each item is a list of encoded events, together with the
//! name of each event's topic.

use crate::{EncodedEvents, Event, EventId};
use bytes::Bytes;
use memchr::{memchr, memmem};
use std::sync::Arc;

/// Events that a subscription yields together, in the order of the log.
pub(super) struct Item {
    pub(super) events: EncodedEvents,
    pub(super) topics: Topics,
}

/// The topics that the events of an [`Item`] belong to: no topic, one topic, or several topics.
pub(super) enum Topics {
    /// No topic, because the hub itself sends the events.
    Hub,
    /// All events of the item belong to the topic with this index in the subscription's list of
    /// topics.
    Reader(u32),
    /// The events were read from the backend, and can belong to several topics.
    Runs(Runs),
}

/// The topics of a sequence of events, in the order of the events. Each entry has a topic and the
/// number of consecutive events of this topic.
pub(super) type Runs = Arc<[(Arc<str>, usize)]>;

impl Item {
    /// Creates an item with events that the hub itself sends, such as `gap`, which reports missing
    /// events.
    pub(super) fn of_hub(events: impl Into<EncodedEvents>) -> Self {
        Self { events: events.into(), topics: Topics::Hub }
    }
}

/// Returns the topic of each event in a sequence. Each entry of `runs` has a topic and the number
/// of consecutive events of this topic.
pub(super) fn topics(runs: &Runs) -> impl Iterator<Item = &Arc<str>> {
    runs.iter().flat_map(|(topic, count)| std::iter::repeat_n(topic, *count))
}

/// Groups a sequence of events: consecutive events of one topic become one entry, with the topic
/// and the number of these events. `topics` has the topic of each event.
pub(super) fn runs(topics: impl IntoIterator<Item = Arc<str>>) -> Runs {
    let mut runs: Vec<(Arc<str>, usize)> = Vec::new();
    for topic in topics {
        match runs.last_mut() {
            Some((last, count)) if *last == topic => *count += 1,
            _ => runs.push((topic, 1)),
        }
    }
    runs.into()
}

/// Removes the first event from `events`, the wire bytes of events that were read from the hub.
/// Returns the id of the event, and its wire bytes without the `id` line. Returns `None` if no
/// complete event is left. An event without an id is removed, and the result is `None`, too.
pub(super) fn split_first(events: &mut Bytes) -> Option<(EventId, Bytes)> {
    // The log puts the id into the first line, and the only blank line of an event is its last.
    let id_end = memchr(b'\n', events)?;
    let end = id_end + memmem::find(&events[id_end..], b"\n\n")? + 2;
    let event = events.split_to(end);
    let id = std::str::from_utf8(event[..id_end].strip_prefix(b"id: ")?).ok()?;
    Some((EventId::new(id).ok()?, event.slice(id_end + 1..)))
}

/// Removes the first event from `events`, the wire bytes of events that were read from the hub.
/// Returns the id of the event, and the decoded event without the id. Returns `None` if no complete
/// event is left. An event that is invalid or has no id is removed, and the result is `None`, too.
pub(super) fn decode_first(events: &mut Bytes) -> Option<(EventId, Event)> {
    let (id, lines) = split_first(events)?;
    Some((id, Event::from_wire(&lines)?.with_fields()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_split_at_their_blank_lines() {
        let events = [
            Event::new("a\n\nb").event("n").id(1),
            Event::default().id(2),
            Event::new("").id(3),
            Event::default().comment("c").retry(std::time::Duration::from_secs(1)).id(4),
            Event::new("id: 7\n\n").id(5),
        ];
        let encoded: EncodedEvents = events.iter().cloned().collect();
        let mut bytes = encoded.into_bytes();
        for event in events {
            let (id, decoded) = decode_first(&mut bytes).unwrap();
            assert_eq!(decoded.event_id(), None);
            assert_eq!(decoded.id(id), event);
        }
        assert!(bytes.is_empty() && decode_first(&mut bytes).is_none());
    }

    #[test]
    fn runs_are_the_topics_of_the_events() {
        let names: Vec<Arc<str>> = ["a", "a", "b", "a"].map(Arc::from).into();
        let runs = runs(names.iter().cloned());
        assert_eq!(runs.len(), 3);
        assert!(topics(&runs).eq(&names));
    }
}
