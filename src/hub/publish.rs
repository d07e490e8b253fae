//! Publishing: the checks of a publisher, and the events that it adds to the log in memory.

use super::{
    backend::RecordKind,
    core::Core,
    error::Error,
    registry::{Registry, is_of_crate},
    retention::Retention,
    sync::MutexGuard,
    topic_state::{Change, Contents, TopicState},
};
use crate::{Event, EventId};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The maximum number of events that a publisher adds, or of topics that a new subscription joins,
/// before the lock of the registry (the table of all topics) is released. Processing 1,000 of them
/// takes about 0.2 ms.
pub(super) const SLICE: usize = 1_000;

/// The time that the hub keeps a topic without events and subscribers after retention limits were
/// set for it. A publisher sets the limits, and then appends its event to the log of the backend.
/// The limits must still be there when the event arrives in this process. So this time is longer
/// than the default timeout of a request to a backend.
const UNUSED: Duration = Duration::from_secs(60);

impl Core {
    /// Publishes events to a topic, and returns the id of the last event. With `latest_only`, each
    /// event replaces the previous events of the topic. Each event gets its position in the log as
    /// its id.
    pub(super) async fn publish(
        self: &Arc<Self>,
        name: &Arc<str>,
        latest_only: bool,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Option<EventId>, Error> {
        let Some(backend) = &self.backend else {
            return self.publish_in_memory(name, latest_only, events, |_| true);
        };
        self.check_publish(name)?;
        backend.publish(name, if latest_only { RecordKind::State } else { RecordKind::Event }, events).await
    }

    /// Publishes one event to the log in memory, and returns its id. Returns an error if the hub
    /// has a backend.
    pub(super) fn publish_now(
        self: &Arc<Self>,
        name: &Arc<str>,
        latest_only: bool,
        event: Event,
    ) -> Result<Option<EventId>, Error> {
        match self.backend {
            Some(_) => Err(Error::needs_await(name)),
            None => self.publish_in_memory(name, latest_only, [event], |_| true),
        }
    }

    /// Appends events to the log in memory, in slices of 1,000 events. Between the slices, other
    /// publishers can lock the log. Returns the id of the last event. Calls `is_allowed` before
    /// each slice, while the registry (the table of all topics) is locked. If `is_allowed` returns
    /// `false`, publishes no further event and returns an error.
    pub(super) fn publish_in_memory(
        self: &Arc<Self>,
        name: &Arc<str>,
        latest_only: bool,
        events: impl IntoIterator<Item = Event>,
        is_allowed: impl Fn(&Registry) -> bool,
    ) -> Result<Option<EventId>, Error> {
        let mut events = events.into_iter().peekable();
        loop {
            let last_id = self.publish_slice(name, latest_only, events.by_ref().take(SLICE), &is_allowed)?;
            if events.peek().is_none() {
                return Ok(last_id);
            }
            self.registry.give_way();
        }
    }

    /// Appends events to the log in memory, without releasing the lock between them. Returns the id
    /// of the last event.
    fn publish_slice(
        self: &Arc<Self>,
        name: &Arc<str>,
        latest_only: bool,
        events: impl IntoIterator<Item = Event>,
        is_allowed: impl Fn(&Registry) -> bool,
    ) -> Result<Option<EventId>, Error> {
        let now = Instant::now();
        let mut registry = self.registry.lock();
        if !is_allowed(&registry) {
            return Err(Error::finished(name));
        }
        let mut topic = registry.topic(name, &self.config)?;
        let mut contents = topic.lock();
        if contents.finished.is_some() {
            drop(contents);
            topic = registry.renew(&topic, &self.config, now)?;
            contents = topic.lock();
            if contents.finished.is_some() {
                return Err(Error::finished(name));
            }
        }
        contents.latest_only |= latest_only;
        let epoch = self.epoch();
        let was_empty = contents.log.retained().events == 0;
        let mut last_id = None;
        for event in events {
            registry.last = registry.last.next();
            let id = epoch.id(registry.last);
            self.add(&mut registry, &topic, &mut contents, event.id(id.clone()), now);
            last_id = Some(id);
        }
        // A finished topic accepts events again only after it was dropped with all of its events.
        if was_empty && last_id.is_some() {
            self.presence.note_reopened(name);
        }
        self.commit(registry, &topic, contents, now);
        Ok(last_id)
    }

    /// Adds an event to `contents`, the events and settings of `topic`, and evicts events that
    /// exceed the retention. The caller must have increased `registry.last`, which becomes the
    /// position of the event, and must have put the id of this position into the event.
    pub(super) fn add(
        &self,
        registry: &mut Registry,
        topic: &TopicState,
        contents: &mut Contents,
        event: Event,
        now: Instant,
    ) {
        let before = contents.log.retained();
        contents.log.push(registry.last, event, &contents.retention, now);
        (contents.awaited_until, contents.awaits_event) = (None, false);
        if contents.latest_only {
            contents.log.replace();
        }
        contents.evict(now);
        registry.retained = registry.retained + contents.log.retained() - before;
        registry.published += u64::from(!is_of_crate(&topic.name));
    }

    /// Sets the retention limits of a topic, and evicts the events that exceed them. Creates the
    /// topic if it does not exist. The caller then publishes to the topic or subscribes to it.
    /// Until then, but for at most 60 seconds ([`UNUSED`]), the hub keeps the topic and its limits,
    /// even without events and subscribers.
    ///
    /// `awaits_event` is `true` if the caller publishes. The topic is then kept for its event, even
    /// if a subscriber comes and leaves before the event arrives. Calls `is_allowed` while the
    /// registry (the table of all topics) is locked. If `is_allowed` returns `false`, changes
    /// nothing and returns an error.
    pub(super) fn set_retention(
        self: &Arc<Self>,
        name: &Arc<str>,
        retention: Retention,
        awaits_event: bool,
        is_allowed: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let limits = retention.limits(&self.config.retention);
        let now = Instant::now();
        let mut registry = self.registry.lock();
        if !is_allowed() {
            return Err(Error::finished(name));
        }
        let topic = registry.current_topic(name, &self.config, now)?;
        let mut contents = topic.lock();
        if *contents.retention != limits {
            contents.retention =
                if limits == self.config.retention { registry.limits(&self.config) } else { Arc::new(limits) };
            registry.retained = registry.retained - contents.evict(now);
            // A removal of expired events may be scheduled under the old limits.
            registry.unschedule(&topic, &mut contents);
        }
        // The limits have to wait for the event of a slow backend. If no event follows, the topic
        // is dropped, however long its events would be retained.
        contents.awaited_until = now.checked_add(UNUSED).filter(|_| contents.finished.is_none());
        contents.awaits_event |= awaits_event;
        let due = contents.expiry().or(contents.awaited_until);
        registry.schedule(&topic, &mut contents, due);
        drop(contents);
        self.call_janitor(&mut registry, now);
        Ok(())
    }

    /// Returns an error if publishing to the topic must fail: after a shutdown, if the topic is new
    /// and the hub already has `max_topics` topics, or if the local node knows that the topic is
    /// finished. The caller has checked that the name of the topic is not reserved.
    pub(super) fn check_publish(&self, name: &Arc<str>) -> Result<(), Error> {
        let mut registry = self.registry.lock();
        if registry.is_shut_down {
            return Err(Error::shut_down());
        }
        registry.check_topic_limit(std::slice::from_ref(name), &self.config)?;
        drop(registry);
        if self.is_finished(name) { Err(Error::finished(name)) } else { Ok(()) }
    }

    /// Makes a change of a topic visible to its readers (each reads the topic for one
    /// subscription). Then unlocks the topic and the registry, the table of all topics, and wakes
    /// up to 32 waiting readers. The task of the [wake queue](WakeQueue) wakes the remaining
    /// readers.
    pub(super) fn commit(
        self: &Arc<Self>,
        mut registry: MutexGuard<'_, Registry>,
        topic: &Arc<TopicState>,
        mut contents: MutexGuard<'_, Contents>,
        now: Instant,
    ) {
        let due = contents.retention.expiry(now);
        registry.schedule(topic, &mut contents, due);
        let mut change = Change::new();
        topic.changed(&mut contents, &mut change);
        let rest = change.rest.map(|through| (self.wake_queue.add(topic), through));
        self.set_committed(&registry);
        drop(contents);
        self.call_janitor(&mut registry, now);
        drop(registry);
        change.wake();
        if let Some((number, through)) = rest {
            self.wake_queue.wake(number, topic, through, now);
        }
    }
}
