//! The items of a subscription: encoded events, and the topics that they belong to.

use crate::{EncodedEvents, Event, EventId};
use bytes::Bytes;
use memchr::{memchr, memmem};
use std::sync::Arc;

/// Events of a subscription, in the order of the log.
pub(super) struct Item {
    pub(super) events: EncodedEvents,
    pub(super) topics: Topics,
}

/// The topics of the events of an [`Item`].
pub(super) enum Topics {
    /// No topic: the hub itself sends the events.
    Hub,
    /// The topic of the reader with this index.
    Reader(u32),
    /// Several topics, from a page of the backend.
    Runs(Runs),
}

/// The topics of consecutive events, each with its number of events.
pub(super) type Runs = Arc<[(Arc<str>, usize)]>;

impl Item {
    /// Creates an item of the hub itself.
    pub(super) fn of_hub(events: impl Into<EncodedEvents>) -> Self {
        Self { events: events.into(), topics: Topics::Hub }
    }
}

/// Returns the topic of each event.
pub(super) fn topics(runs: &Runs) -> impl Iterator<Item = &Arc<str>> {
    runs.iter().flat_map(|(topic, count)| std::iter::repeat_n(topic, *count))
}

/// Returns the runs of these topics.
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

/// Removes the first event from the encoded events of a log. Returns its id and its other lines.
pub(super) fn split_first(events: &mut Bytes) -> Option<(EventId, Bytes)> {
    // The log puts the id into the first line, and the only blank line of an event is its last.
    let id_end = memchr(b'\n', events)?;
    let end = id_end + memmem::find(&events[id_end..], b"\n\n")? + 2;
    let event = events.split_to(end);
    let id = std::str::from_utf8(event[..id_end].strip_prefix(b"id: ")?).ok()?;
    Some((EventId::new(id).ok()?, event.slice(id_end + 1..)))
}

/// Decodes the first of these events, and removes it from them.
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
