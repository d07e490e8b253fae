//! Subscribing: computes where a client resumes, and whether it has missed events.

use super::{
    backend::Position,
    core::Core,
    count_watch::Wakers,
    error::{Error, ErrorKind},
    gap::GapReason,
    id::Epoch,
    node::LogEnd,
    publish::SLICE,
    reader::Reader,
    registry::Registry,
    resume::ResumePoint,
    start::Start,
    subscription::{Origin, Subscription},
    topic_state::TopicState,
};
use crate::EventId;
use std::sync::Arc;
use tokio::time::Instant;

/// The topics of a new subscription, and its [`Start`] in each of them: the oldest retained event,
/// live events, or an id after which the client resumes.
struct Topics {
    /// The names of the topics of the subscription, sorted and without duplicates.
    names: Vec<Arc<str>>,
    /// The start position of the subscription in each topic, in the order of `names`. A single
    /// entry applies to all topics.
    starts: Vec<Start>,
    /// `true` if the subscription is a lookup: a request of the Durable Streams protocol that reads
    /// a topic or searches for it. Other requests do not find a topic that only a lookup has
    /// created, because the topic does not [exist](super::topic_state::Contents::exists) for them.
    is_lookup: bool,
}

impl Topics {
    /// Computes the [`Start`] of a new subscription in each of its topics. An entry of `topics` has
    /// a name and, optionally, a `Start` of its own. The argument `start` applies to topics without
    /// a `Start` of their own. But if this argument is [`Start::After`] an id, the client resumes
    /// after the id in all topics, and the topics' own `Start`s are ignored.
    fn new(mut topics: Vec<(Arc<str>, Option<Start>)>, start: Start) -> Self {
        topics.sort_by(|(one, _), (other, _)| one.cmp(other));
        topics.dedup_by(|(name, start), (earlier, earlier_start)| {
            let is_same = name == earlier;
            if is_same && earlier_start.is_none() {
                *earlier_start = start.take();
            }
            is_same
        });
        let start = start.or_latest_if_empty();
        let is_resume = matches!(start, Start::After(_));
        if is_resume || topics.iter().all(|(_, own)| own.is_none()) {
            let names = topics.into_iter().map(|(name, _)| name).collect();
            return Self { names, starts: vec![start], is_lookup: false };
        }
        let (names, mut starts): (Vec<_>, Vec<_>) = topics
            .into_iter()
            .map(|(name, own)| (name, own.map_or_else(|| start.clone(), Start::or_latest_if_empty)))
            .unzip();
        if starts.iter().all(|start| *start == starts[0]) {
            starts.truncate(1);
        }
        Self { names, starts, is_lookup: false }
    }

    /// Returns the ids in the [`Start`]s of the subscription, after which it resumes. Different
    /// topics can have different ids.
    fn ids(&self) -> impl Iterator<Item = &EventId> {
        self.starts.iter().filter_map(|start| match start {
            Start::After(id) => Some(id),
            Start::Earliest | Start::Latest => None,
        })
    }

    /// Returns `true` if at least one of the [ids](Self::ids) after which the subscription resumes
    /// may be from the log that `epoch` identifies. A malformed id counts as an id from any log.
    fn have_id_of(&self, epoch: Epoch) -> bool {
        self.ids().any(|id| !matches!(epoch.position(id), Err(GapReason::OtherEpoch)))
    }

    /// Returns the [`Start`] with the newest id: the id with the greatest position in the log that
    /// `epoch` identifies. If no `Start` has an id of this log, returns any `Start`.
    ///
    /// If this node has not read the log up to the newest id, the id may be after the end of the
    /// log. So the caller then requests the end of the log from the backend.
    fn newest_start(&self, epoch: Epoch) -> &Start {
        let position = |start: &Start| match start {
            Start::After(id) => epoch.position(id).ok(),
            Start::Earliest | Start::Latest => None,
        };
        self.starts.iter().max_by_key(|start| position(start)).unwrap_or(&Start::Latest)
    }
}

/// The position in the log where a subscription begins to deliver events, and what is known about
/// the id of its client. There is one value for all topics of the subscription, or one for each
/// topic if the topics have different starts.
struct Beginning {
    /// The position in the log after which the events of the subscription, or of one of its topics,
    /// are delivered.
    base: Position,
    /// The id in [`Start::After`], after which the client wants events. `None` for
    /// [`Start::Earliest`] and [`Start::Latest`].
    requested: Option<EventId>,
    /// The reason why the id in [`Start::After`] is not valid, for example because it belongs to
    /// another log. The subscription then begins with a gap. `None` if the id is valid, even if
    /// events after it were evicted. Also `None` without an id.
    reason: Option<GapReason>,
    /// `true` if `base`, the position where the subscription begins, may be after the end of the
    /// log. This end is unknown if the backend has not responded to the request for it, or if
    /// another log has replaced the log.
    is_unsure: bool,
}

impl Beginning {
    /// Computes the position where a subscription with the [`Start`] in `start` begins. `last` is
    /// the end of the log, as far as this node knows it. `is_unsure` is `true` if the log may
    /// continue after `last`, because the backend has not confirmed this end.
    fn of(start: &Start, epoch: Epoch, last: Position, is_unsure: bool) -> Self {
        let (base, requested, reason, is_unsure) = match start {
            Start::After(id) => match epoch.position(id) {
                Ok(position) if position <= last => (position, Some(id.clone()), None, false),
                Ok(position) if is_unsure => (position, Some(id.clone()), None, true),
                Ok(_) => (Position::START, Some(id.clone()), Some(GapReason::Ahead), false),
                // The client chooses the length of this id, so the id is shortened.
                Err(reason) => (Position::START, Some(id.clone().shortened()), Some(reason), false),
            },
            Start::Earliest => (Position::START, None, None, false),
            Start::Latest => (last, None, None, false),
        };
        Self { base, requested, reason, is_unsure }
    }
}

/// A subscription while it is created: the topics that it has joined so far, and the position in
/// the log where it resumes.
struct Joined {
    readers: Vec<Reader>,
    point: ResumePoint,
    /// The id after which the client misses events, because neither this process nor the backend
    /// retains them. `None` if no events are missing, or if the subscription does not begin after
    /// an id ([`Start::After`]).
    evicted_after: Option<EventId>,
    needs_no_replay: bool,
    /// The wakers of the streams that report numbers of subscribers to the application. The new
    /// subscription changes these numbers. The caller wakes the streams after it has released the
    /// locks of the hub and of the topics.
    count_wakers: Wakers,
    /// `true` if the topics of the subscription have different [`Start`]s. Then each topic has its
    /// own position after which events are delivered.
    has_own_starts: bool,
    is_lookup: bool,
}

impl Core {
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        topics: Vec<(Arc<str>, Option<Start>)>,
        start: Start,
    ) -> Result<Subscription, Error> {
        self.subscribe_to(Topics::new(topics, start)).await
    }

    /// Subscribes to a topic for a lookup: a request of the Durable Streams protocol that reads the
    /// topic or searches for it. A lookup creates the topic in memory. But other requests do not
    /// find the topic because of the lookup: it does not
    /// [exist](super::topic_state::Contents::exists) for them.
    #[cfg(feature = "durable-streams")]
    pub(super) async fn look_up(self: &Arc<Self>, topic: Arc<str>, start: Start) -> Result<Subscription, Error> {
        self.subscribe_to(Topics { is_lookup: true, ..Topics::new(vec![(topic, None)], start) }).await
    }

    async fn subscribe_to(self: &Arc<Self>, topics: Topics) -> Result<Subscription, Error> {
        let (count, limit) = (topics.names.len(), self.config.max_topics_per_subscription);
        if count > limit {
            return Err(Error::too_many_topics_in_subscription(count, limit));
        }
        if count == 0 {
            return Err(Error::no_topics());
        }
        if let Some(backend) = self.backend.as_ref().filter(|_| topics.ids().next().is_some()) {
            backend.await_log(|epoch| topics.have_id_of(epoch)).await;
        }
        let mut end = None;
        loop {
            if let Some(backend) = &self.backend {
                end = Some(backend.end(self.committed(), topics.newest_start(self.epoch())).await);
            }
            let subscription = match self.subscribe_to_known(&topics, end.as_ref()) {
                // The hub was shut down in the meantime. The next attempt returns a subscription
                // that ends at once.
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

    /// Creates the subscription from what this node knows of the log, without waiting for the
    /// backend. `end` is the end of the backend's log, or `None` without a backend. The ids in the
    /// [`Start`]s are compared with this end, because the log has issued no greater id.
    ///
    /// Returns `Ok(None)` if another log has replaced the log since the caller got `end`. The
    /// caller then gets the end of the new log, and calls this method again. Returns an error if
    /// the hub would have more than `max_topics` topics.
    fn subscribe_to_known(
        self: &Arc<Self>,
        topics: &Topics,
        end: Option<&LogEnd>,
    ) -> Result<Option<Subscription>, Error> {
        self.check_room(&topics.names)?;
        let now = Instant::now();
        let mut registry = self.registry.lock();
        let epoch = self.epoch();
        // The eviction watermark of the backend, as far as this node knows it. `None` in memory.
        let watermark = self.backend.as_ref().map(|backend| backend.evicted_through());
        let (last, is_unsure) = match end {
            Some(end) if end.epoch != epoch => return Ok(None),
            Some(end) => (registry.last.max(end.last).max(watermark.unwrap_or_default()), end.is_unsure),
            None => (registry.last, false),
        };
        let has_own_starts = topics.starts.len() > 1;
        // If the topics have different starts and the backend has not responded, a start after the
        // known end of the log is reported as a gap.
        let is_unsure = is_unsure && !has_own_starts;
        let beginnings: Vec<_> =
            topics.starts.iter().map(|start| Beginning::of(start, epoch, last, is_unsure)).collect();
        let is_unsure = beginnings.iter().any(|beginning| beginning.is_unsure);
        let base = beginnings.iter().map(|beginning| beginning.base).min().unwrap_or(last);
        let origin = if topics.starts == [Start::Latest] { Origin::Live } else { Origin::Replay };
        let is_resume = beginnings.iter().all(|beginning| beginning.requested.is_some());
        let invalid = beginnings.iter().find(|beginning| beginning.reason.is_some());
        let mut reason = invalid.and_then(|beginning| beginning.reason);
        let first_requested = beginnings.iter().filter(|beginning| beginning.requested.is_some());
        let beginning = invalid.or_else(|| first_requested.min_by_key(|beginning| beginning.base));
        let mut requested = beginning.and_then(|beginning| Some((beginning.requested.clone()?, beginning.base)));

        if registry.is_shut_down {
            drop(registry);
            let ended = TopicState::shut_down(topics.names[0].clone());
            self.joined(&ended.name);
            let readers = vec![Reader::new(Arc::new(ended), Position::START)];
            let cursor = if is_unsure { last } else { base };
            let mut subscription =
                Subscription::new(self.clone(), epoch, readers, self.config.lag_policy, cursor, last, origin);
            if is_unsure || has_own_starts {
                // The subscription sends no cursor. So the client keeps its own id, which may be
                // newer, or returns without an id.
                return Ok(Some(subscription.without_control_events()));
            }
            subscription.resume(requested.filter(|_| is_resume || reason.is_some()), reason, None);
            return Ok(Some(subscription));
        }

        // The backend retains the events after this position.
        let evicted_by_backend = watermark.unwrap_or(Position::MAX);
        // The backend has evicted events that the client has not received and this node has not
        // read. The topics of this node do not report them yet, but the page of a replay does.
        let has_missed_unread = watermark.is_some_and(|through| through > base.max(registry.last));
        let mut joined = Joined {
            readers: Vec::with_capacity(topics.names.len()),
            point: ResumePoint { cursor: last, first: None },
            evicted_after: None,
            needs_no_replay: !has_missed_unread,
            count_wakers: Wakers::default(),
            has_own_starts,
            is_lookup: topics.is_lookup,
        };
        let mut result = Ok(());
        for (index, names) in topics.names.chunks(SLICE).enumerate() {
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
            let beginnings = if has_own_starts { &beginnings[index * SLICE..] } else { &beginnings };
            result = self.join(&mut registry, names, beginnings, last, evicted_by_backend, now, &mut joined);
            if result.is_err() {
                break;
            }
        }
        if let Err(error) = result {
            drop(registry);
            self.undo(joined);
            return Err(error);
        }
        if let (Some(id), None) = (joined.evicted_after.take(), reason) {
            (requested, reason) = (Some((id, base)), Some(GapReason::Evicted));
        }
        let Joined { readers, point, needs_no_replay, count_wakers, .. } = joined;
        self.call_janitor(&mut registry, now);
        drop(registry);
        count_wakers.wake();

        self.joined(&topics.names[0]);
        let mut subscription =
            Subscription::new(self.clone(), epoch, readers, self.config.lag_policy, point.cursor, last, origin);
        if needs_no_replay && !is_unsure {
            subscription.resume(requested.filter(|_| is_resume || reason.is_some()), reason, point.first);
        } else {
            for reader in &mut *subscription.readers {
                // The replay reports the removed events.
                reader.gap_reported_through = reader.gap_reported_through.min(evicted_by_backend);
            }
            subscription.cursor = base;
            subscription.start_replay(requested, reason, is_resume, is_unsure);
        }
        Ok(Some(subscription))
    }

    /// Adds a new subscription to the topics `names`: it becomes one of their subscribers, and gets
    /// a reader for each topic in `joined`. Then moves the resume point in `joined` back, if
    /// necessary. The resume point must not be after an undelivered event of these topics, or after
    /// the last event that this node has read.
    ///
    /// The caller passes the topics of the subscription in several parts, and releases the lock of
    /// the registry (the table of all topics) between the parts. `beginnings` has the position
    /// where the subscription begins in each topic: one entry for each name, or a single entry for
    /// all names.
    ///
    /// `last` is the end of the log, as far as this node knows it. Events up to the position
    /// `evicted_by_backend` cannot be read from the backend any more. Without a backend, no event
    /// can be read from a backend, so the caller passes the greatest possible position.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop, which releases the lock between slices")]
    fn join(
        &self,
        registry: &mut Registry,
        names: &[Arc<str>],
        beginnings: &[Beginning],
        last: Position,
        evicted_by_backend: Position,
        now: Instant,
        joined: &mut Joined,
    ) -> Result<(), Error> {
        for (name, beginning) in names.iter().zip(beginnings.iter().cycle()) {
            let base = beginning.base;
            let topic = registry.current_topic(name, &self.config, now)?;
            let removed_through = self.backend.as_ref().map_or(Position::START, |it| it.removed_through(name));
            // The backend may retain removed events, but no client receives them.
            let evicted_by_backend = evicted_by_backend.max(removed_through);
            let mut contents = topic.lock();
            let evicted = contents.evict(now);
            registry.retained = registry.retained - evicted;
            // The limits of the topic may have been set for a subscriber, but not for a lookup.
            if !contents.awaits_event && !joined.is_lookup {
                contents.awaited_until = None;
            }
            contents.lookups += u32::from(joined.is_lookup);
            let subscribers = contents.subscribers + 1;
            joined.count_wakers.add(contents.set_subscribers(subscribers));
            // Events after `last` were published while the registry was not locked. If they were
            // evicted, the subscription has lagged.
            let evicted_through = contents.log.evicted_through().min(last);
            if evicted_through > base {
                joined.needs_no_replay &= evicted_through <= evicted_by_backend;
                if joined.needs_no_replay && joined.evicted_after.is_none() {
                    joined.evicted_after.clone_from(&beginning.requested);
                }
            }
            let first = contents.log.first_after(base.max(evicted_through));
            // This process has not read the events after the last position of the registry yet.
            joined.point = joined.point.and(ResumePoint::of(first, registry.last.max(base)));
            drop(contents);
            let mut reader = Reader::new(topic, evicted_through.min(evicted_by_backend));
            reader.is_lookup = joined.is_lookup;
            if joined.has_own_starts {
                reader.delivered_through = base;
            }
            joined.readers.push(reader);
        }
        Ok(())
    }

    /// Removes a subscription from the topics that it has joined, because subscribing has failed.
    fn undo(self: &Arc<Self>, joined: Joined) {
        for mut reader in joined.readers {
            self.leave(&reader.topic, &mut reader.ticket, reader.is_lookup);
        }
        joined.count_wakers.wake();
    }

    /// Returns an error if the hub would exceed `max_topics` with the topics in `names` that do not
    /// exist yet. Called before the first of these topics is created, so a subscription with too
    /// many topics creates no topic.
    fn check_room(&self, names: &[Arc<str>]) -> Result<(), Error> {
        let mut new_topics = 0;
        for (index, names) in names.chunks(SLICE).enumerate() {
            if index > 0 {
                self.registry.give_way();
            }
            let mut registry = self.registry.lock();
            if registry.is_shut_down {
                return Ok(());
            }
            new_topics = registry.count_new_topics(names, new_topics, &self.config)?;
        }
        Ok(())
    }
}
