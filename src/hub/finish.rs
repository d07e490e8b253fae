//! Finishing and removing topics.

use super::{
    backend::{Appended, Position},
    core::Core,
    error::Error,
    registry::{Registry, check_reserved},
    topic_state::{Contents, TopicState},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// The maximum time that [`Core::remove`] waits until the local node has read the record of the
/// removal in the log of the backend.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    /// Finishes a topic: it accepts no more events. A topic that is already finished is finished
    /// again only if it was removed since. Otherwise this method has no effect on it.
    pub(super) async fn finish(self: &Arc<Self>, name: &Arc<str>) -> Result<(), Error> {
        let Some(backend) = &self.backend else { return self.finish_in_memory(name, || true) };
        match self.check_publish(name) {
            // The log has a removal after the finish record, so it needs a new finish record.
            Err(error) if error.is_finished() && (self.is_removed(name) || backend.has_unread_removal(name)) => {}
            Err(error) if error.is_finished() => return Ok(()),
            other => other?,
        }
        backend.finish(name).await
    }

    /// Finishes a topic in a hub without a backend: its subscriptions end after its last event.
    /// Calls `is_allowed` while the registry (the table of all topics) is locked. If `is_allowed`
    /// returns `false`, changes nothing and returns an error.
    pub(super) fn finish_in_memory(
        self: &Arc<Self>,
        name: &Arc<str>,
        is_allowed: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let mut registry = self.registry.lock();
        if !is_allowed() {
            return Err(Error::finished(name));
        }
        let topic = registry.current_topic(name, &self.config, now)?;
        let mut contents = topic.lock();
        if contents.finished.is_some() && !contents.is_removed {
            return Ok(());
        }
        contents.finished = Some(now);
        contents.is_removed = false;
        // A subscriber that is woken can remove the topic, and publish to it again or start a new
        // recording of it. So presence learns of the finish before the commit, and the recordings
        // that end are found before it.
        self.presence.note_finished(name);
        let recordings = self.recordings.note_finished(name);
        self.commit(registry, &topic, contents, now);
        self.presence.forget_finished();
        recordings.iter().for_each(|recording| recording.end());
        Ok(())
    }

    /// Returns `true` if the local node knows that the topic is finished. If another node has
    /// finished the topic, returns `false` until the local node has read that in the log.
    pub(super) fn is_finished(&self, name: &str) -> bool {
        if self.backend.as_ref().is_some_and(|backend| backend.is_finished(name)) {
            return true;
        }
        let mut registry = self.registry.lock();
        let topic = registry.topics.get(name).cloned();
        let Some(topic) = topic.filter(|topic| topic.lock().finished.is_some()) else { return false };
        registry.refresh(&topic, Instant::now());
        registry.topics.get(name).is_some_and(|topic| topic.lock().finished.is_some())
    }

    /// Returns `true` if the topic was finished and then removed, and still has subscribers. Such a
    /// topic counts as finished until its last subscriber leaves. The local node then forgets that
    /// the topic is finished.
    fn is_removed(&self, name: &str) -> bool {
        self.registry.lock().topics.get(name).is_some_and(|topic| topic.lock().is_removed)
    }

    /// Removes a topic. With a backend, waits until the local node has read the record of the
    /// removal in the log, for at most 10 seconds.
    pub(super) async fn remove(self: &Arc<Self>, name: &Arc<str>) -> Result<(), Error> {
        check_reserved(name)?;
        let Some(backend) = &self.backend else {
            self.remove_in_memory(name);
            return Ok(());
        };
        if self.is_shut_down() {
            return Err(Error::shut_down());
        }
        let Appended { epoch, position } = backend.remove(name).await?;
        let has_read = || self.committed() >= position || backend.epoch_bits() != epoch || self.is_shut_down();
        let _elapsed = timeout(REMOVE_TIMEOUT, self.recordings.progressed(has_read)).await;
        Ok(())
    }

    /// Removes all events of a topic from the log in memory. The topic also loses its own retention
    /// and the setting `latest_only`.
    ///
    /// Wakes no subscription to the topic: a subscription that waits has already read all of these
    /// events.
    fn remove_in_memory(&self, name: &Arc<str>) {
        let now = Instant::now();
        let mut registry = self.registry.lock();
        if let Some(topic) = registry.topics.get(name).cloned() {
            let mut contents = topic.lock();
            self.remove_contents(&mut registry, &topic, &mut contents);
            registry.note_removed(name, contents.log.evicted_through());
            registry.forget_if_idle(&topic, &mut contents, now);
        } else {
            registry.note_removed(name, Position::START);
        }
        self.note_removed_with_members(&mut registry, name);
    }

    /// Remembers that a topic was removed while it had members (names that are present in it), or
    /// unpublished events about joins and leaves. The hub then publishes no further leaves to this
    /// topic, because such an event would create the topic again. Has no effect if the hub does not
    /// publish joins and leaves as events, or still has the topic because of its subscribers.
    pub(super) fn note_removed_with_members(&self, registry: &mut Registry, name: &Arc<str>) {
        if self.presence.has_events_to_come(name) {
            registry.note_removed_with_members(name);
        }
    }

    /// Removes the events and the settings of a topic. The caller then drops the topic if it has no
    /// subscribers.
    pub(super) fn remove_contents(&self, registry: &mut Registry, topic: &Arc<TopicState>, contents: &mut Contents) {
        // The own limits of the topic are removed, too. The next event expires under the limits of
        // the hub.
        registry.unschedule(topic, contents);
        let last = contents.log.last().max(contents.log.evicted_through());
        registry.retained = registry.retained - contents.log.truncate_through(last);
        contents.latest_only = false;
        contents.retention = registry.limits(&self.config);
        (contents.awaited_until, contents.awaits_event) = (None, false);
        // A finished topic stays finished until its open subscriptions have ended. Then the hub
        // drops it.
        contents.is_removed = contents.finished.is_some();
    }

    /// Returns `true` if the topic is in the memory of the local node, and the node
    /// [knows](Contents::knows_end) whether the topic is finished.
    #[cfg(feature = "durable-streams")]
    pub(super) fn knows_end(&self, name: &str) -> bool {
        self.registry.lock().topics.get(name).is_some_and(|topic| topic.lock().knows_end())
    }

    /// Returns `true` if the application has removed the topic while it had members, and the topic
    /// was not created again.
    pub(super) fn is_removed_with_members(&self, name: &Arc<str>) -> bool {
        self.registry.lock().is_removed_with_members(name)
    }
}
