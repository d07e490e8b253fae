//! What a hub does with what it reads in the log of its backend.

use super::{
    Error,
    backend::{Bounds, Erased, Node, Page, Record, RecordKind},
    core::{Core, Limits},
    cursor::Epoch,
    registry::Registry,
    sync::{MutexGuard, lock},
    topic_state::TopicState,
};
use crate::Event;
use std::sync::Arc;
use tokio::time::Instant;

impl Core {
    /// A hub that has read all that the backend holds, as far as its topics hold it.
    pub(super) async fn connected(limits: Limits, backend: Arc<dyn Erased>) -> Result<Arc<Self>, Error> {
        let refused = |source| Error::backend("", source);
        let bounds = backend.bounds().await.map_err(refused)?;
        let node = Node::new(Arc::clone(&backend), &bounds);
        let core = Arc::new(Self::new(limits, Some(node)));
        core.begin_anew(&bounds);
        let mut after = bounds.lost;
        while after < bounds.newest {
            let page = backend.follow(after).await.map_err(refused)?;
            after = page.through;
            core.deliver(page);
        }
        if let Some(node) = &core.node {
            node.follow(Arc::downgrade(&core), after, bounds.epoch);
        }
        Ok(core)
    }

    /// The log is another one than before. Whoever reads has to come again: its place is none in this one.
    pub(super) fn begin_anew(&self, bounds: &Bounds) {
        let mut registry = lock(&self.registry);
        let topics = registry.begin_anew(bounds.lost);
        if let Some(node) = &self.node {
            node.begin(bounds);
            self.set_epoch(Epoch::of(bounds.epoch, node.backend.ids()), bounds.lost);
        }
        drop(registry);
        cut(topics);
    }

    /// Adds what follows in the log.
    pub(super) fn deliver(self: &Arc<Self>, page: Page) {
        let now = Instant::now();
        if page.lost > self.committed() {
            self.node.as_ref().inspect(|node| node.is_lost(page.lost));
            self.lose(page.lost, now);
        }
        for run in page.records.chunk_by(|(_, one), (_, other)| one.topic == other.topic) {
            self.deliver_run(run, now);
        }
        let mut registry = lock(&self.registry);
        registry.newest = registry.newest.max(page.through);
        self.set_committed(&registry);
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
            // In the log it came after the end.
            if contents.finished.is_some() {
                break;
            }
            registry.newest = *position;
            contents.latest_only |= record.kind == RecordKind::State;
            match (record.kind, Event::from_wire(&record.event)) {
                (RecordKind::Finish, _) => contents.finished = Some(now),
                (_, Some(event)) => self.add(&mut registry, &mut contents, event.id(epoch.id(*position)), now),
                // Somebody else has written into the log what is no event.
                (_, None) => registry.held = registry.held - contents.log.lose(*position),
            }
        }
        self.commit(registry, &topic, contents, now);
    }

    /// Nothing up to here is held any more, by anybody.
    fn lose(self: &Arc<Self>, through: u64, now: Instant) {
        let mut registry = lock(&self.registry);
        registry.newest = through;
        let topics = registry.lose(through);
        for topic in topics {
            let mut contents = topic.lock();
            registry.held = registry.held - contents.log.lose(through);
            self.commit(registry, &topic, contents, now);
            registry = lock(&self.registry);
        }
        self.set_committed(&registry);
    }

    /// The backend says so of a topic of which that is not known here any more.
    pub(super) fn is_finished(self: &Arc<Self>, topic: &Arc<TopicState>) {
        let now = Instant::now();
        let registry = lock(&self.registry);
        let mut contents = topic.lock();
        contents.finished.get_or_insert(now);
        self.commit(registry, topic, contents, now);
    }

    /// Whether there is a reason why this cannot be published, as far as that is known here.
    pub(super) fn can_publish(&self, name: &Arc<str>) -> Result<(), Error> {
        let registry: MutexGuard<'_, Registry> = lock(&self.registry);
        if registry.is_shut_down {
            return Err(Error::shut_down());
        }
        registry.has_room_for(std::slice::from_ref(name), &self.limits)?;
        match registry.topics.get(name).cloned() {
            Some(topic) if topic.lock().finished.is_some() => Err(Error::finished(name)),
            _ => Ok(()),
        }
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
