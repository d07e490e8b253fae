//! Subscribing: where a client resumes, and what it has missed.

use super::{
    backend::Position,
    core::Core,
    error::Error,
    gap::GapReason,
    node::{BackendClient, LogEnd},
    reader::Reader,
    resume::ResumePoint,
    start::Start,
    subscription::{Origin, Subscription},
    sync::lock,
};
use std::sync::Arc;
use tokio::time::Instant;

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
            let subscription = self.subscribe_to_known(&names, start.clone(), end.as_ref())?;
            // Otherwise the log was replaced meanwhile.
            if let Some(mut subscription) = subscription {
                subscription.read_first_page().await?;
                return Ok(subscription);
            }
        }
    }

    /// Subscribes to the topics of this process. `end` is the end of the log, which may be after
    /// the events of this process. Returns `None` if `end` belongs to another log.
    fn subscribe_to_known(
        self: &Arc<Self>,
        names: &[Arc<str>],
        start: Start,
        end: Option<&LogEnd>,
    ) -> Result<Option<Subscription>, Error> {
        let now = Instant::now();
        let mut registry = lock(&self.registry);
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
                    (Position::START, Some(id), Some(reason))
                }
            },
            Start::Earliest => (Position::START, None, None),
            Start::Latest => (last, None, None),
        };

        registry.check_topic_limit(names, &self.config)?;
        // The backend retains the events after this position.
        let evicted_by_backend = self.backend.as_ref().map_or(Position::MAX, BackendClient::evicted_through);
        let mut needs_no_replay = true;
        let mut readers = Vec::with_capacity(names.len());
        let mut point = ResumePoint::START;
        for name in names {
            let topic = registry.topic(name, &self.config)?;
            let mut contents = topic.lock();
            let evicted = contents.evict(&self.config.retention, now);
            registry.retained = registry.retained - evicted;
            contents.subscribers += 1;
            let evicted_through = contents.log.evicted_through();
            if evicted_through > base {
                needs_no_replay &= evicted_through <= evicted_by_backend;
                reason = reason.or((needs_no_replay && requested.is_some()).then_some(GapReason::Evicted));
            }
            let from = base.max(evicted_through);
            let first = contents.log.first_after(from);
            // The follower has not read the events after the last position of the registry yet.
            point = point.and(ResumePoint::of(first, registry.last.max(base)));
            drop(contents);
            readers.push(Reader::new(topic, evicted_through.min(evicted_by_backend)));
        }
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
}
