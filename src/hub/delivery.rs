//! Delivery of records: adds what this node reads from the log of a backend to the topics of this
//! process.

#[cfg(feature = "durable-streams")]
use super::durable_streams;
use super::{
    backend::{Bounds, Page, Position, Record, RecordKind},
    config::HubConfig,
    core::Core,
    error::Error,
    node::{self, BackendClient, DynBackend, Node, Removal},
    presence,
    recording::{keeper, nodes::Recordings},
    topic_state::{self, EarlyEnd, TopicState},
};
use crate::Event;
use std::sync::Arc;
use tokio::time::Instant;

impl Core {
    /// Creates a hub with this backend. First reads the retained log of the backend into the topics
    /// of the hub, for at most five seconds. After this time, a background task reads the rest.
    /// Returns an error if the backend cannot be reached, or outside of a tokio runtime.
    pub(super) async fn connected(config: HubConfig, backend: Arc<dyn DynBackend>) -> Result<Arc<Self>, Error> {
        let core = Arc::new(Self::new(config, Some(BackendClient::new(backend))));
        if let Some(backend) = &core.backend {
            node::connect(&core, backend).await.map_err(|source| Error::backend("", source))?;
        }
        Ok(core)
    }
}

impl Node for Core {
    /// Switches to another log: to the first log of this node, or to a log that has replaced the
    /// log of the backend. Ends all subscriptions, because their positions are not valid in the
    /// other log. `bounds` has the epoch of the other log (the number that identifies it), its last
    /// position, and its eviction watermark: events up to this position may have been evicted.
    fn reset(self: &Arc<Self>, bounds: &Bounds) {
        self.stream_registries.note_missed();
        let mut registry = self.registry.lock();
        let (topics, count_wakers) = registry.reset(bounds.evicted_through);
        if let Some(backend) = &self.backend {
            self.set_epoch(backend.reset(bounds), bounds.evicted_through);
        }
        #[cfg(feature = "durable-streams")]
        durable_streams::forget_step(self);
        self.recordings.reset(bounds.evicted_through, bounds.last);
        let wakers = self.presence.reset(bounds.evicted_through, bounds.last);
        drop(registry);
        presence::wake(wakers);
        topic_state::end_early(topics, EarlyEnd::Replaced);
        count_wakers.wake();
        self.recordings.announce_again();
        // The other log may have no record that this node would deliver.
        presence::start(self);
        self.backend.as_ref().inspect(|backend| backend.announce_reset(bounds.epoch));
    }

    /// Adds the records of a page, the next part of the backend's log, to the topics of this
    /// process.
    fn deliver(self: &Arc<Self>, page: Page) {
        // A closed stream must not get what was published after the close. So the streams are
        // closed before any part of the page can be read.
        self.stream_registries.note(&page, self.committed());
        let now = Instant::now();
        // Recordings and presence process the records before the position of the page is committed.
        let beats = self.recordings.note(&page);
        #[cfg(feature = "durable-streams")]
        durable_streams::note_step(self, &page);
        self.presence.note(&page, beats);
        keeper::start(self);
        if page.evicted_through > self.committed() {
            self.backend.as_ref().inspect(|backend| backend.advance_evicted(self.epoch(), page.evicted_through));
            self.truncate_through(page.evicted_through, now);
        } else {
            // A watermark after the records that were read can also report a hole in the log. Then
            // the log still has the earlier records, and the removals of their topics count.
            self.backend.as_ref().inspect(|backend| backend.forget_removals(page.evicted_through));
        }
        for run in page.records.chunk_by(|(_, one), (_, other)| one.topic == other.topic) {
            if !run.iter().any(|(_, record)| Recordings::is_own(record)) {
                self.deliver_run(run, now);
            }
        }
        let mut registry = self.registry.lock();
        // After a shutdown of the hub, the topics contain no more events of the page.
        if !registry.is_shut_down {
            registry.last = registry.last.max(page.through);
            self.set_committed(&registry);
        }
        drop(registry);
        self.recordings.note_progress();
        presence::start(self);
        self.backend.as_ref().inspect(|backend| backend.forget_ends(page.through));
    }
}

impl Core {
    /// Adds consecutive records of the backend's log, all of the same topic, to this topic in the
    /// memory of this process. If the topic is new, and the hub already has `max_topics` topics,
    /// skips the records. Later subscribers read them from the backend.
    fn deliver_run(self: &Arc<Self>, run: &[(Position, Record)], now: Instant) {
        let [(_, Record { topic: name, .. }), ..] = run else { return };
        let mut registry = self.registry.lock();
        let Ok(topic) = registry.topic(name, &self.config) else {
            // The limit of topics is reached, so this topic has no subscribers here. Later
            // subscribers read the events from the backend.
            for (position, record) in run {
                registry.note_skipped(name, *position);
                if record.kind == RecordKind::Remove {
                    self.note_removal(name, *position, *position);
                    self.note_removed_with_members(&mut registry, name);
                }
            }
            return;
        };
        let mut contents = topic.lock();
        let epoch = self.epoch();
        let mut is_removed = false;
        for (position, record) in run {
            // No event is delivered twice, even if the backend repeats it.
            if *position <= registry.last {
                continue;
            }
            registry.last = *position;
            if record.kind == RecordKind::Finish {
                contents.finished = Some(now);
                contents.is_removed = false;
                continue;
            }
            if record.kind == RecordKind::Remove {
                self.note_removal(name, *position, contents.log.last().max(contents.log.evicted_through()));
                self.remove_contents(&mut registry, &topic, &mut contents);
                is_removed = true;
                continue;
            }
            // Another program may have written a record that is not an event. Such a record is
            // skipped.
            let Some(event) = Event::from_wire(&record.event) else { continue };
            contents.latest_only |= record.kind == RecordKind::State;
            // An event follows the finish record. Its publisher did not know yet that the topic was
            // finished, and the event was acknowledged. The log decides, so the topic continues on
            // all nodes.
            contents.finished = None;
            contents.is_removed = false;
            self.add(&mut registry, &topic, &mut contents, event.id(epoch.id(*position)), now);
        }
        // A topic that is idle now is dropped before the commit. It can be a removed topic, because
        // the commit lets `remove` return, or a topic that was created for records without an
        // effect.
        let is_unused = is_removed || contents.is_idle(now);
        let is_dropped = is_unused && registry.forget_if_idle(&topic, &mut contents, now);
        if is_removed {
            self.note_removed_with_members(&mut registry, name);
        }
        if is_dropped {
            // No reader waits for a commit of this run.
            return;
        }
        self.commit(registry, &topic, contents, now);
    }

    /// Records that a topic was removed. From now on, reads of old records from the backend leave
    /// out the topic's events before the removal. `at` is the position of the record that removes
    /// the topic. A client that has not received all events of the topic up to `evicted_through`
    /// gets a gap.
    fn note_removal(&self, topic: &Arc<str>, at: Position, evicted_through: Position) {
        if let Some(backend) = &self.backend {
            backend.note_removal(topic, Removal { at, evicted_through });
        }
    }

    /// Removes all events up to and including `through` from this process, because the backend has
    /// evicted them.
    ///
    /// Handles one topic after the other, and unlocks the registry, the table of all topics, in
    /// between. So a client can subscribe before its topic reports the evicted events. If the
    /// client then got a cursor (a position to resume from) after these events, it would miss them
    /// without a gap. `registry.last` limits new cursors, so this position is raised to `through`
    /// only after the last topic.
    fn truncate_through(self: &Arc<Self>, through: Position, now: Instant) {
        let mut registry = self.registry.lock();
        let topics = registry.truncate_through(through);
        for topic in topics {
            let mut contents = topic.lock();
            registry.retained = registry.retained - contents.log.truncate_through(through);
            self.commit(registry, &topic, contents, now);
            registry = self.registry.lock();
        }
        registry.last = registry.last.max(through);
        self.set_committed(&registry);
    }

    /// Marks a topic as finished, because a read of old records from the backend has found the
    /// record that finishes the topic, at the position `end`. The read has covered the log up to
    /// the position `through`, and has found no later record of the topic.
    ///
    /// Has no effect if this process has not read the log up to `end`, knows of an event of the
    /// topic after `through`, or knows that the topic was removed after `end`.
    pub(super) fn note_end(self: &Arc<Self>, topic: &Arc<TopicState>, end: Position, through: Position) {
        let now = Instant::now();
        let registry = self.registry.lock();
        let is_current = registry.topics.get(&topic.name).is_some_and(|there| Arc::ptr_eq(there, topic));
        // If this is `false`, this process has not read all events before the finish record yet.
        let was_read = registry.last >= end;
        let mut contents = topic.lock();
        let is_removed = self.backend.as_ref().is_some_and(|backend| backend.is_removed_after(&topic.name, end));
        let is_open = contents.finished.is_none() && !is_removed;
        if is_current && was_read && is_open && contents.log.ends_at(through) {
            contents.finished = Some(now);
            self.commit(registry, topic, contents, now);
        }
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use crate::hub::backend::MemoryBackend;
    use std::{hint, thread};

    #[tokio::test]
    async fn committed_removal_has_dropped_its_topic() {
        const ROUNDS: u64 = 300;
        let backend = MemoryBackend::new(1);
        let core = Core::connected(HubConfig::DEFAULT, Arc::new(backend)).await.unwrap();
        let epoch = core.backend.as_ref().unwrap().epoch_bits();
        let page = |position: u64, kind| {
            let position = Position::new(position);
            let record = Record { topic: "a".into(), kind, event: Event::new("").encode() };
            Page { epoch, evicted_through: Position::START, records: vec![(position, record)], through: position }
        };
        let mut late = 0;
        for n in 0..ROUNDS {
            core.deliver(page(2 * n + 1, RecordKind::Event));
            let topic = core.registry.lock().topics["a"].clone();
            thread::scope(|scope| {
                scope.spawn(|| core.deliver(page(2 * n + 2, RecordKind::Remove)));
                while core.committed().get() < 2 * n + 2 {
                    hint::spin_loop();
                }
                // Waiting for the lock of the registry would hide most of the late drops.
                late += u64::from(Arc::strong_count(&topic) > 1);
            });
        }
        assert_eq!(late, 0, "rounds of {ROUNDS} in which the hub had the topic after the commit");
    }
}
