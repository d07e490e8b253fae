//! The topics that were removed, as far as this node has read the log.

use crate::hub::backend::Position;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The removal of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Removal {
    /// The position of the record. Earlier records of the topic are not delivered any more.
    pub(in crate::hub) at: Position,
    /// Eviction watermark of the topic: an event up to this position may have been removed.
    pub(in crate::hub) evicted_through: Position,
}

/// The newest removal of each topic. A removal is forgotten when the log has evicted its record,
/// because it has then evicted all earlier records as well.
#[derive(Default)]
pub(super) struct Removals {
    topics: HashMap<Arc<str>, Removal>,
    /// The topics by the positions of their records.
    order: BTreeMap<Position, Arc<str>>,
}

impl Removals {
    pub(super) fn note(&mut self, topic: &Arc<str>, removal: Removal) {
        // The follower may read a page a second time.
        if self.topics.get(topic).is_some_and(|known| known.at >= removal.at) {
            return;
        }
        if let Some(earlier) = self.topics.insert(topic.clone(), removal) {
            self.order.remove(&earlier.at);
        }
        self.order.insert(removal.at, topic.clone());
    }

    pub(super) fn get(&self, topic: &str) -> Option<Removal> {
        self.topics.get(topic).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Forgets the removals whose records were evicted.
    pub(super) fn forget_through(&mut self, evicted_through: Position) {
        while let Some(first) = self.order.first_entry().filter(|first| *first.key() <= evicted_through) {
            self.topics.remove(&first.remove());
        }
    }
}
