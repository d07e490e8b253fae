//! Subscribing: computes where a client resumes, and whether it has missed events.

use super::{
    backend::Position,
    core::{Core, SLICE},
    error::{Error, ErrorKind},
    gap::GapReason,
    node::{BackendClient, LogEnd},
    reader::Reader,
    registry::Registry,
    resume::ResumePoint,
    start::Start,
    subscription::{Origin, Subscription},
    topic_state::TopicState,
};
use std::sync::Arc;
use tokio::time::Instant;

/// The topics that a new subscription has joined, and where it resumes in them.
struct Joined {
    readers: Vec<Reader>,
    point: ResumePoint,
    /// Set if events that followed the requested id are lost: neither this node nor the backend
    /// retains them.
    is_evicted: bool,
    needs_no_replay: bool,
}

impl Core {
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        mut names: Vec<Arc<str>>,
        start: Start,
    ) -> Result<Subscription, Error> {
        names.sort_unstable();
        names.dedup();
        let limit = self.config.max_topics_per_subscription;
        if names.len() > limit {
            return Err(Error::too_many_topics_in_subscription(names.len(), limit));
        }
        if names.is_empty() {
            return Err(Error::no_topics());
        }
        let mut end = None;
        loop {
            if let Some(backend) = &self.backend {
                end = Some(backend.end(self.committed(), &start).await);
            }
            let subscription = match self.subscribe_to_known(&names, start.clone(), end.as_ref()) {
                // The hub was shut down in the meantime.
                Err(error) if error.kind() == ErrorKind::Shutdown => continue,
                subscription => subscription?,
            };
            // `None` means that the log was replaced in the meantime, so the loop tries again.
            if let Some(mut subscription) = subscription {
                subscription.read_first_page().await?;
                return Ok(subscription);
            }
        }
    }

    /// Subscribes to the topics of this process. `end` is the known end of the log, which may be
    /// after the last event that this process has read. Returns `None` if `end` belongs to another
    /// log.
    fn subscribe_to_known(
        self: &Arc<Self>,
        names: &[Arc<str>],
        start: Start,
        end: Option<&LogEnd>,
    ) -> Result<Option<Subscription>, Error> {
        self.check_room(names)?;
        let now = Instant::now();
        let mut registry = self.registry.lock();
        let epoch = self.epoch();
        let (last, mut is_unsure) = match end {
            Some(end) if end.epoch != epoch => return Ok(None),
            Some(end) => (registry.last.max(end.last), end.is_unsure),
            None => (registry.last, false),
        };
        let start = match start {
            Start::After(id) if id.as_bytes().is_empty() => Start::Latest,
            start => start,
        };
        let origin = if start == Start::Latest { Origin::Live } else { Origin::Replay };
        let (base, requested, mut reason) = match start {
            Start::After(id) => match epoch.position(&id) {
                Ok(position) if position <= last => {
                    is_unsure = false;
                    (position, Some(id), None)
                }
                Ok(position) if is_unsure => (position, Some(id), None),
                Ok(_) => (Position::START, Some(id), Some(GapReason::Ahead)),
                Err(reason) => {
                    is_unsure = false;
                    // The client chooses the length.
                    (Position::START, Some(id.shortened()), Some(reason))
                }
            },
            Start::Earliest => (Position::START, None, None),
            Start::Latest => (last, None, None),
        };

        if registry.is_shut_down {
            drop(registry);
            self.joined();
            let readers = vec![Reader::new(Arc::new(TopicState::shut_down()), Position::START)];
            let cursor = if is_unsure { last } else { base };
            let mut subscription =
                Subscription::new(self.clone(), epoch, readers, self.config.lag_policy, cursor, last, origin);
            if is_unsure {
                // The client keeps its id, which may be newer.
                return Ok(Some(subscription.without_control_events()));
            }
            subscription.resume(requested, reason, None);
            return Ok(Some(subscription));
        }

        // The eviction watermark of the backend: it retains the events after this position.
        let evicted_by_backend = self.backend.as_ref().map_or(Position::MAX, BackendClient::evicted_through);
        let mut joined = Joined {
            readers: Vec::with_capacity(names.len()),
            point: ResumePoint { cursor: last, first: None },
            is_evicted: false,
            needs_no_replay: true,
        };
        let mut result = Ok(());
        for (index, names) in names.chunks(SLICE).enumerate() {
            if index > 0 {
                drop(registry);
                self.registry.give_way();
                registry = self.registry.lock();
            }
            if self.epoch() != epoch {
                drop(registry);
                self.undo(joined);
                return Ok(None);
            }
            result = self.join(&mut registry, names, base, last, evicted_by_backend, now, &mut joined);
            if result.is_err() {
                break;
            }
        }
        if let Err(error) = result {
            drop(registry);
            self.undo(joined);
            return Err(error);
        }
        if joined.is_evicted && requested.is_some() {
            reason = reason.or(Some(GapReason::Evicted));
        }
        let Joined { readers, point, needs_no_replay, .. } = joined;
        self.call_janitor(&mut registry, now);
        drop(registry);

        self.joined();
        let mut subscription =
            Subscription::new(self.clone(), epoch, readers, self.config.lag_policy, point.cursor, last, origin);
        if needs_no_replay && !is_unsure {
            subscription.resume(requested, reason, point.first);
        } else {
            subscription.cursor = base;
            subscription.start_replay(requested, reason, is_unsure);
        }
        Ok(Some(subscription))
    }

    /// Adds a subscriber to one slice of the topics that it subscribes to.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop, which releases the lock between slices")]
    fn join(
        &self,
        registry: &mut Registry,
        names: &[Arc<str>],
        base: Position,
        last: Position,
        evicted_by_backend: Position,
        now: Instant,
        joined: &mut Joined,
    ) -> Result<(), Error> {
        for name in names {
            let topic = registry.topic(name, &self.config)?;
            let mut contents = topic.lock();
            let evicted = contents.evict(&self.config.retention, now);
            registry.retained = registry.retained - evicted;
            contents.subscribers += 1;
            // Events after `last` were published while the registry was not locked. If they were
            // evicted, the subscription has lagged.
            let evicted_through = contents.log.evicted_through().min(last);
            if evicted_through > base {
                joined.needs_no_replay &= evicted_through <= evicted_by_backend;
                joined.is_evicted |= joined.needs_no_replay;
            }
            let first = contents.log.first_after(base.max(evicted_through));
            // The follower has not read the events after the last position of the registry yet.
            joined.point = joined.point.and(ResumePoint::of(first, registry.last.max(base)));
            drop(contents);
            joined.readers.push(Reader::new(topic, evicted_through.min(evicted_by_backend)));
        }
        Ok(())
    }

    /// Removes a subscriber from the topics that it has joined.
    fn undo(self: &Arc<Self>, joined: Joined) {
        for mut reader in joined.readers {
            self.leave(&reader.topic, &mut reader.ticket);
        }
    }

    /// Returns an error if the hub has no room for these topics. So a subscription to too many topics
    /// creates none of them.
    fn check_room(&self, names: &[Arc<str>]) -> Result<(), Error> {
        let mut new_topics = 0;
        for names in names.chunks(SLICE) {
            let registry = self.registry.lock();
            if registry.is_shut_down {
                return Ok(());
            }
            new_topics = registry.count_new_topics(names, new_topics, &self.config)?;
            drop(registry);
            self.registry.give_way();
        }
        Ok(())
    }
}
