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
            let subscription = self.subscribe_here(&names, start.clone(), end.as_ref())?;
            // Otherwise the log was replaced meanwhile.
            if let Some(mut subscription) = subscription {
                subscription.read_first_page().await?;
                return Ok(subscription);
            }
        }
    }

    /// Subscribes to the topics of this process. `end` is the end of the log, which may be after
    /// the events of this process. Returns `None` if `end` belongs to another log.
    fn subscribe_here(
        self: &Arc<Self>,
        names: &[Arc<str>],
        start: Start,
        end: Option<&LogEnd>,
    ) -> Result<Option<Subscription>, Error> {
        let now = Instant::now();
        let mut registry = lock(&self.registry);
        let epoch = self.epoch();
        let (newest, mut is_unsure) = match end {
            Some(end) if end.epoch != epoch => return Ok(None),
            Some(end) => (registry.newest.max(end.last), end.is_unsure),
            None => (registry.newest, false),
        };
        let start = match start {
            Start::After(id) if id.as_bytes().is_empty() => Start::Latest,
            start => start,
        };
        let origin = if start == Start::Latest { Origin::Live } else { Origin::Replay };
        let (base, requested, mut reason) = match start {
            Start::After(id) => match epoch.position(&id) {
                Ok(position) if position <= newest => {
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
            Start::Latest => (newest, None, None),
        };

        registry.check_room(names, &self.config)?;
        // The backend retains the events after this position.
        let lost_for_good = self.backend.as_ref().map_or(Position::MAX, BackendClient::evicted_through);
        let mut is_here = true;
        let mut readers = Vec::with_capacity(names.len());
        let mut point = ResumePoint::START;
        for name in names {
            let topic = registry.topic(name, &self.config)?;
            let mut contents = topic.lock();
            let evicted = contents.log.evict(&self.config.retention, now);
            registry.retained = registry.retained - evicted;
            contents.subscribers += 1;
            let lost = contents.log.evicted_through();
            if lost > base {
                is_here &= lost <= lost_for_good;
                reason = reason.or((is_here && requested.is_some()).then_some(GapReason::Evicted));
            }
            let from = base.max(lost);
            let first = contents.log.first_after(from);
            // The follower has not read the events after the newest position of the registry yet.
            point = point.and(ResumePoint::of(first, registry.newest.max(base)));
            drop(contents);
            readers.push(Reader::new(topic, lost.min(lost_for_good)));
        }
        self.call_janitor(&mut registry, now);
        drop(registry);

        self.joined();
        let mut subscription =
            Subscription::new(self.clone(), epoch, readers, self.config.lag_policy, point.cursor, newest, origin);
        if is_here && !is_unsure {
            subscription.resume(requested, reason, point.first);
        } else {
            subscription.cursor = base;
            subscription.start_replay(requested, reason, is_unsure);
        }
        Ok(Some(subscription))
    }
}
