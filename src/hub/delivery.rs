//! What a hub does with what it reads in the log of its backend.

use super::{
    Error,
    backend::{Bounds, Erased, Node, Page, Record, RecordKind},
    core::{Core, Limits},
    registry::Registry,
    sync::{MutexGuard, lock},
    topic_state::TopicState,
};
use crate::Event;
use std::sync::Arc;
use tokio::time::Instant;

impl Core {
    /// A hub that has read what the backend holds, as far as its topics hold it.
    pub(super) async fn connected(limits: Limits, backend: Arc<dyn Erased>) -> Result<Arc<Self>, Error> {
        let core = Arc::new(Self::new(limits, Some(Node::new(backend))));
        if let Some(node) = &core.node {
            node.connect(&core).await.map_err(|source| Error::backend("", source))?;
        }
        Ok(core)
    }

    /// The log is another one than before. Whoever reads has to come again: its place is none in this one.
    pub(super) fn begin_anew(&self, bounds: &Bounds) {
        let mut registry = lock(&self.registry);
        let topics = registry.begin_anew(bounds.evicted_through);
        if let Some(node) = &self.node {
            self.set_epoch(node.begin_anew(bounds), bounds.evicted_through);
        }
        drop(registry);
        cut(topics);
    }

    /// Adds what follows in the log.
    pub(super) fn deliver(self: &Arc<Self>, page: Page) {
        let now = Instant::now();
        if page.evicted_through > self.committed() {
            self.node.as_ref().inspect(|node| node.advance_evicted(self.epoch(), page.evicted_through));
            self.lose(page.evicted_through, now);
        }
        for run in page.records.chunk_by(|(_, one), (_, other)| one.topic == other.topic) {
            self.deliver_run(run, now);
        }
        let mut registry = lock(&self.registry);
        registry.newest = registry.newest.max(page.through);
        self.set_committed(&registry);
        drop(registry);
        self.node.as_ref().inspect(|node| node.was_read(page.through));
    }

    /// Adds records of one topic.
    fn deliver_run(self: &Arc<Self>, run: &[(u64, Record)], now: Instant) {
        let [(_, Record { topic: name, .. }), ..] = run else { return };
        let mut registry = lock(&self.registry);
        let Ok(topic) = registry.topic(name, &self.limits) else {
            // There is no room for one more topic, so nobody is subscribed; who will be can have it from the backend.
            run.iter().for_each(|(position, _)| registry.is_not_here(name, *position));
            return;
        };
        let mut contents = topic.lock();
        let epoch = self.epoch();
        for (position, record) in run {
            // Whatever a backend says, nothing comes twice.
            if *position <= registry.newest {
                continue;
            }
            registry.newest = *position;
            contents.latest_only |= record.kind == RecordKind::State;
            if record.kind == RecordKind::Finish {
                contents.finished = Some(now);
                continue;
            }
            // Somebody else may have written into the log what is no event.
            let Some(event) = Event::from_wire(&record.event) else { continue };
            // Who has published this did not know yet that the topic was finished, and was told that it is in the log. So it goes
            // on, on all nodes: what the log says does not depend on who reads it, and when.
            contents.finished = None;
            self.add(&mut registry, &mut contents, event.id(epoch.id(*position)), now);
        }
        self.commit(registry, &topic, contents, now);
    }

    /// Nothing up to here is held any more, by anybody.
    fn lose(self: &Arc<Self>, through: u64, now: Instant) {
        let mut registry = lock(&self.registry);
        registry.newest = registry.newest.max(through);
        let topics = registry.lose(through);
        for topic in topics {
            let mut contents = topic.lock();
            registry.held = registry.held - contents.log.lose(through);
            self.commit(registry, &topic, contents, now);
            registry = lock(&self.registry);
        }
        self.set_committed(&registry);
    }

    /// What the backend says of a topic of which that is not known here any more: where it has ended, and up to where there is
    /// nothing after that.
    pub(super) fn has_ended(self: &Arc<Self>, topic: &Arc<TopicState>, end: u64, through: u64) {
        let now = Instant::now();
        let registry = lock(&self.registry);
        let is_there = registry.topics.get(&topic.name).is_some_and(|there| Arc::ptr_eq(there, topic));
        // Otherwise it is still to be read, and not all that comes before it is here.
        let was_read = registry.newest >= end;
        let mut contents = topic.lock();
        if is_there && was_read && contents.finished.is_none() && contents.log.ends_at(through) {
            contents.finished = Some(now);
            self.commit(registry, topic, contents, now);
        }
    }

    /// Whether there is a reason why this cannot be published, as far as that is known here.
    pub(super) fn can_publish(&self, name: &Arc<str>) -> Result<(), Error> {
        let registry: MutexGuard<'_, Registry> = lock(&self.registry);
        if registry.is_shut_down {
            return Err(Error::shut_down());
        }
        registry.has_room_for(std::slice::from_ref(name), &self.limits)?;
        let topic = registry.topics.get(name).cloned();
        drop(registry);
        let is_finished_here = self.node.as_ref().is_some_and(|node| node.is_finished(name));
        if is_finished_here || topic.is_some_and(|topic| topic.lock().finished.is_some()) {
            return Err(Error::finished(name));
        }
        Ok(())
    }
}

/// Ends the subscriptions of these topics.
pub(super) fn cut(mut topics: Vec<Arc<TopicState>>) {
    // In the same order each time, which is what `tests/interleavings` needs.
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    for topic in topics {
        let mut contents = topic.lock();
        contents.is_shut_down = true;
        let wakers = topic.changed(&mut contents);
        drop(contents);
        topic.wake(wakers);
    }
}
