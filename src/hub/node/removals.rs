//! The removals of topics that this node has read in the log. Removing a topic appends a record,
//! and hides the earlier records of the topic.

use crate::hub::backend::Position;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A removal of a topic, which this node has read in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Removal {
    /// The position of the removal record in the log. Records of the topic up to this position are
    /// not delivered any more.
    pub(in crate::hub) at: Position,
    /// Eviction watermark of the topic: events of the topic up to and including this position may
    /// be missing.
    pub(in crate::hub) evicted_through: Position,
}

/// The newest removal of each topic. A removal is forgotten when the log has evicted its record.
/// The log has then evicted all earlier records of the topic as well, so nothing has to be hidden.
#[derive(Default)]
pub(super) struct Removals {
    topics: HashMap<Arc<str>, Removal>,
    /// The same topics, by the position of their removal record. The removal with the smallest
    /// position is forgotten first.
    order: BTreeMap<Position, Arc<str>>,
}

impl Removals {
    pub(super) fn note(&mut self, topic: &Arc<str>, removal: Removal) {
        // The follower, the task that reads the log, may read a page a second time.
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

    /// Forgets the removals whose records the log has evicted: those at positions up to and
    /// including `evicted_through`.
    pub(super) fn forget_through(&mut self, evicted_through: Position) {
        while let Some(first) = self.order.first_entry().filter(|first| *first.key() <= evicted_through) {
            self.topics.remove(&first.remove());
        }
    }
}
