//! Remembers which topics were removed, as far as the local node has read the log. Removing a topic
//! appends a record to the log, and hides the earlier records of the topic.

use crate::hub::backend::Position;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A removal of a topic: a record that hides the topic's earlier records, as the local node has
/// read it in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Removal {
    /// The position of the removal record in the log. Records of the topic up to this position are
    /// not delivered any more.
    pub(in crate::hub) at: Position,
    /// The events of the topic up to and including this position count as removed or evicted. A
    /// client that has not received all of them gets a gap.
    pub(in crate::hub) evicted_through: Position,
}

/// The newest removal of each topic, with the position of its record in the log. A removal hides
/// the earlier records of its topic. When the log has evicted the record of the removal, it has
/// also evicted these earlier records. The removal is then forgotten, because it hides no record
/// any more.
///
/// At most 100,000 removals are kept, which limits the memory. Beyond that, the oldest removal is
/// forgotten. If the log still retains earlier records of its topic, a replay may deliver them
/// again.
#[derive(Default)]
pub(super) struct Removals {
    topics: HashMap<Arc<str>, Removal>,
    /// The removed topics, sorted by the position of their newest removal record in the log. If
    /// there are too many, the removal with the smallest position is forgotten first.
    order: BTreeMap<Position, Arc<str>>,
}

impl Removals {
    const MAX: usize = 100_000;

    pub(super) fn note(&mut self, topic: &Arc<str>, removal: Removal) {
        // The follower, the task that reads the log, may read a page a second time.
        if self.topics.get(topic).is_some_and(|known| known.at >= removal.at) {
            return;
        }
        if let Some(earlier) = self.topics.insert(topic.clone(), removal) {
            self.order.remove(&earlier.at);
        }
        self.order.insert(removal.at, topic.clone());
        if self.topics.len() > Self::MAX {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.topics.remove(&oldest);
            }
        }
    }

    pub(super) fn get(&self, topic: &str) -> Option<Removal> {
        self.topics.get(topic).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Forgets each removal of a topic whose record in the log is at or before the position
    /// `evicted_through`, because the log has evicted this record. The log has then also evicted
    /// all earlier records of the topic, which the removal has hidden.
    pub(super) fn forget_through(&mut self, evicted_through: Position) {
        while let Some(first) = self.order.first_entry().filter(|first| *first.key() <= evicted_through) {
            self.topics.remove(&first.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(at: usize) -> Removal {
        Removal { at: Position::new(at as u64), evicted_through: Position::new(at as u64 - 1) }
    }

    fn topic(number: usize) -> Arc<str> {
        number.to_string().into()
    }

    #[test]
    fn oldest_removal_is_forgotten_beyond_100_000() {
        let mut removals = Removals::default();
        for number in 1..=Removals::MAX {
            removals.note(&topic(number), removal(number));
        }
        // The first topic is removed again, so the second has the oldest removal.
        removals.note(&topic(1), removal(Removals::MAX + 1));
        assert_eq!(removals.get("2"), Some(removal(2)));
        removals.note(&topic(0), removal(Removals::MAX + 2));
        assert_eq!(removals.get("2"), None);
        assert_eq!(removals.get("1"), Some(removal(Removals::MAX + 1)));
        assert_eq!(removals.get("3"), Some(removal(3)));
        assert_eq!((removals.topics.len(), removals.order.len()), (Removals::MAX, Removals::MAX));
        // The follower may read a page a second time.
        removals.note(&topic(1), removal(1));
        assert_eq!(removals.get("1"), Some(removal(Removals::MAX + 1)));
        removals.forget_through(Position::new(u64::MAX));
        assert!(removals.is_empty() && removals.order.is_empty());
    }
}
