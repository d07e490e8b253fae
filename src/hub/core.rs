//! The state that all handles of a hub share: its topics, and the order of its events.
//!
//! There are two kinds of locks: the lock of the registry, the table of all topics, and the lock of
//! each topic. Publishing, subscribing and finishing lock the registry first and then one topic.
//! Reading locks only the topic. An event gets its position and enters its topic while both locks
//! are held. So positions increase in each topic. Events can be read up to the
//! [committed](Core::committed) position, which is raised only after the event is in its topic. No
//! waker is woken, cloned or dropped while a lock is held.

use super::{
    backend::{IdFormat, Position},
    config::HubConfig,
    count_watch::{CountWatch, Wakers},
    gap::GapReason,
    id::Epoch,
    janitor,
    node::BackendClient,
    presence::Presences,
    recording::nodes::Recordings,
    registry::{Registry, SWEEP, is_of_crate},
    search::MAX_SEARCHES,
    stats::Stats,
    stream_registries::{CLOSED_STREAMS, StreamRegistries},
    sync::{AtomicU64, AtomicUsize, Ordering, TurnMutex},
    topic_state::{self, EarlyEnd, TopicState},
    waiters::Ticket,
    wake_queue::WakeQueue,
};
use crate::{metrics, trace};
use std::{mem, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};

/// The time limit for appending the last record of the local node to the log, after a
/// [shutdown](Core::shut_down) of the hub. The record reports the shutdown to the other nodes. So
/// the members (names that are present in topics) that have joined through the local node leave
/// soon. Without the record, they leave only after the lease of the local node: the time without a
/// sign of life after which a node counts as dead.
const LAST_RECORD: Duration = Duration::from_secs(1);

pub(super) struct Core {
    pub(super) config: HubConfig,
    /// Sends the requests of this hub to its backend. `None` for a hub in memory.
    pub(super) backend: Option<Arc<BackendClient>>,
    /// The current epoch, a number that identifies one lifetime of the log. The epoch changes when
    /// another log has replaced the log of the backend, and only while `registry` is locked.
    epoch: AtomicU64,
    pub(super) registry: TurnMutex<Registry>,
    committed: AtomicU64,
    /// The position of the last record before the newest step, in a log whose ids contain times.
    /// Clients of the Durable Streams protocol that wait for events move on to this position, so
    /// that all of them wait at the same one.
    #[cfg(feature = "durable-streams")]
    pub(super) step_end: AtomicU64,
    pub(super) wake_queue: Arc<WakeQueue>,
    pub(super) recordings: Arc<Recordings>,
    /// Wakes the janitor, the task that removes expired events, before the end of its sleep: a
    /// topic has got an event that expires earlier.
    pub(super) earlier_expiry: Arc<Notify>,
    pub(super) presence: Arc<Presences>,
    pub(super) stream_registries: Arc<StreamRegistries>,
    /// The permits for [searches](Core::is_in_log) of the backend's log. A search holds a permit
    /// while it reads, which limits the number of concurrent searches.
    pub(super) searches: Semaphore,
    /// The number of open subscriptions of the application.
    subscriptions: AtomicUsize,
    gaps: AtomicU64,
}

impl Core {
    pub(super) fn new(config: HubConfig, backend: Option<BackendClient>) -> Self {
        let recordings: Arc<Recordings> = Arc::default();
        let presence = Arc::new(Presences::new(recordings.node, &config, backend.is_some()));
        Self {
            config,
            backend: backend.map(Arc::new),
            epoch: AtomicU64::new(Epoch::random().into_bits()),
            registry: TurnMutex::default(),
            committed: AtomicU64::new(0),
            #[cfg(feature = "durable-streams")]
            step_end: AtomicU64::new(0),
            wake_queue: Arc::default(),
            recordings,
            presence,
            stream_registries: Arc::default(),
            searches: Semaphore::new(MAX_SEARCHES),
            earlier_expiry: Arc::default(),
            subscriptions: AtomicUsize::new(0),
            gaps: AtomicU64::new(0),
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        let ids = self.backend.as_ref().map_or(IdFormat::Positions, |backend| backend.id_format());
        Epoch::from_bits(self.epoch.load(Ordering::Relaxed), ids)
    }

    /// Returns the committed position: every event up to and including this position can be read
    /// from its topic.
    pub(super) fn committed(&self) -> Position {
        Position::new(self.committed.load(Ordering::Acquire))
    }

    /// Returns the number of times that this node has begun to follow a log of the backend: once at
    /// its start, and again for each log that replaced the previous log. 0 in a hub without a
    /// backend.
    pub(super) fn resets(&self) -> u64 {
        self.backend.as_ref().map_or(0, |backend| backend.resets())
    }

    /// Returns the position that a subscription should send to its client as the new cursor, the
    /// position after which the client resumes. The result is `cursor`, the current cursor of the
    /// subscription, or the committed position if that is greater. (All events up to the committed
    /// position can be read.) `topic` is any topic of the subscription. `is_unsent` is `true` if
    /// the client may have an older id than `cursor`.
    ///
    /// Returns `None` if the client already has this position, or if the subscription belongs to a
    /// log that was replaced.
    ///
    /// A hub in memory also returns `None` while a client can resume after `cursor` without a gap.
    /// Evictions in other topics cause no gap, because the hub stores an eviction watermark for
    /// each topic: the events of the topic after this position are retained. The hub remembers the
    /// watermarks of up to 10,000 dropped topics. If more topics were dropped, each new topic
    /// begins with one common watermark. A client whose `cursor` is before this watermark would get
    /// a gap although it has missed no event, so it needs a new position.
    pub(super) fn newer_position(
        &self,
        topic: &Arc<TopicState>,
        cursor: Position,
        is_unsent: bool,
    ) -> Option<Position> {
        // The lock is not needed if the log has no new position.
        if !is_unsent && self.committed() <= cursor {
            return None;
        }
        let registry = self.registry.lock();
        // When another log replaces the log, the registry drops all topics under the lock. The
        // position of the other log is not valid with the epoch of the subscription.
        let is_current = registry.topics.get(&topic.name).is_some_and(|current| Arc::ptr_eq(current, topic));
        let ages = self.backend.is_some() || registry.dropped_through() > cursor;
        let position = self.committed().max(cursor);
        (is_current && ages && (position > cursor || is_unsent)).then_some(position)
    }

    /// Switches this hub to another log, which is identified by the number `epoch`. The committed
    /// position becomes `after`: only events up to this position can be read. All retained events
    /// of the other log are later, so no event can be read yet. The caller must hold the lock of
    /// the registry, the table of all topics.
    pub(super) fn set_epoch(&self, epoch: Epoch, after: Position) {
        self.epoch.store(epoch.into_bits(), Ordering::Relaxed);
        self.committed.store(after.get(), Ordering::Release);
    }

    /// Raises the committed position, the limit for reads of subscriptions, to `registry.last`, the
    /// position of the newest event. So all events that were added to topics before become
    /// readable.
    pub(super) fn set_committed(&self, registry: &Registry) {
        self.committed.store(registry.last.get(), Ordering::Release);
    }

    pub(super) fn shut_down(&self) {
        let mut registry = self.registry.lock();
        registry.is_shut_down = true;
        let topics: Vec<_> = registry.topics.values().cloned().collect();
        let count_watches = mem::take(&mut registry.count_watches);
        drop(registry);
        self.backend.as_ref().inspect(|backend| backend.stop());
        self.recordings.shut_down();
        if let Some((record, backend)) = self.presence.shut_down().zip(self.backend.clone()) {
            // The process may end before this append, so nothing depends on it.
            let append = async move { _ = timeout(LAST_RECORD, backend.append_record(record)).await };
            self.backend.as_ref().inspect(|backend| _ = backend.spawn(append));
        }
        topic_state::end_early(topics, EarlyEnd::Shutdown);
        count_watches.into_values().for_each(|watch| watch.end().wake());
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.registry.lock().is_shut_down
    }

    /// Removes a subscription from one of its topics. `ticket` identifies the entry of the
    /// subscription in the topic's queue of waiting readers, if the subscription waits. `is_lookup`
    /// is `true` if the subscription is a lookup: it does not make the topic
    /// [exist](Contents::exists) for other requests.
    pub(super) fn leave(self: &Arc<Self>, topic: &Arc<TopicState>, ticket: &mut Option<Ticket>, is_lookup: bool) {
        let mut contents = topic.lock();
        let waiter = contents.waiters.leave(ticket);
        contents.lookups -= u32::from(is_lookup);
        let subscribers = contents.subscribers - 1;
        let count_wakers = contents.set_subscribers(subscribers);
        let is_last = contents.subscribers == 0;
        let now = Instant::now();
        if is_last {
            contents.left_at = Some(now);
        }
        let is_empty = contents.log.retained().events == 0;
        // The event of a `latest_only` topic begins to age now. If a check of the topic is already
        // scheduled (`due`) before the event expires, that check is enough.
        let expiry = contents.retention.expiry(now).filter(|_| contents.latest_only);
        let is_late = expiry.is_some_and(|expiry| contents.due.is_none_or(|due| due > expiry));
        let needs_check = is_last && (is_empty || is_late);
        // A subscription that was woken, and is dropped instead of polled, wakes others.
        if waiter.is_some() {
            drop(contents);
        } else {
            TopicState::unlock_and_help(contents);
        }
        drop(waiter);
        count_wakers.wake();
        if needs_check {
            let mut registry = self.registry.lock();
            registry.check_left(topic, now);
            self.call_janitor(&mut registry, now);
        }
    }

    /// Adds one to the number of open subscriptions. Subscriptions of the crate itself are not
    /// counted. They are recognized by `topic`, the first topic of the subscription.
    pub(super) fn joined(&self, topic: &str) {
        self.subscriptions.fetch_add(usize::from(!is_of_crate(topic)), Ordering::Relaxed);
    }

    /// Subtracts one from the number of open subscriptions, because a subscription has ended.
    /// `topic` is its first topic.
    pub(super) fn left(&self, topic: &str) {
        self.subscriptions.fetch_sub(usize::from(!is_of_crate(topic)), Ordering::Relaxed);
    }

    /// Counts and logs a gap, a range of missing events, of a subscription. `topic` is the first
    /// topic of the subscription. Gaps in subscriptions of the crate itself are not counted.
    pub(super) fn count_gap(&self, topic: &str, reason: GapReason) {
        if !is_of_crate(topic) {
            metrics::gap(reason.as_str());
            trace::gap(reason.as_str(), topic);
            self.gaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        let mut registry = self.registry.lock();
        if let Some(topic) = registry.topics.get(name).cloned() {
            registry.refresh(&topic, Instant::now());
        }
        registry.exists(name)
    }

    pub(super) fn subscribers(&self, name: &str) -> usize {
        let topic = self.registry.lock().topics.get(name).cloned();
        topic.map_or(0, |topic| topic.lock().subscribers)
    }

    /// Registers a stream that watches the number of subscribers of a topic. Returns the
    /// [`CountWatch`] of the topic, which all such streams share, and the key that identifies the
    /// stream in it.
    pub(super) fn watch_count(&self, name: &Arc<str>) -> (Arc<CountWatch>, u64) {
        let mut registry = self.registry.lock();
        let watch = registry.count_watches.entry(name.clone()).or_default().clone();
        let key = watch.join();
        let mut wakers = Wakers::default();
        if registry.is_shut_down {
            registry.count_watches.remove(name);
            wakers = watch.end();
        } else if let Some(topic) = registry.topics.get(name) {
            let mut contents = topic.lock();
            contents.count_watch = Some(watch.clone());
            wakers = watch.set(contents.subscribers);
        }
        drop(registry);
        wakers.wake();
        (watch, key)
    }

    /// Removes a stream that watches the number of subscribers of a topic. `watch` is the
    /// [`CountWatch`] of the topic, and `key` identifies the stream in it.
    pub(super) fn unwatch_count(&self, name: &Arc<str>, watch: &Arc<CountWatch>, key: u64) {
        let mut registry = self.registry.lock();
        let (waker, is_last) = watch.leave(key);
        if is_last && registry.count_watches.remove(name).is_some() {
            if let Some(topic) = registry.topics.get(name) {
                topic.lock().count_watch = None;
            }
        }
        drop(registry);
        drop(waker);
    }

    pub(super) fn stats(&self) -> Stats {
        let registry = self.registry.lock();
        let of_crate = registry.topics.get(CLOSED_STREAMS);
        let retained = registry.retained - of_crate.map(|topic| topic.lock().log.retained()).unwrap_or_default();
        Stats {
            topics: registry.topics.len() - usize::from(of_crate.is_some()),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            events: retained.events,
            bytes: retained.bytes,
            published: registry.published,
            gaps: self.gaps.load(Ordering::Relaxed),
        }
    }

    /// Removes expired events from the topics whose scheduled removal is due, for at most 64
    /// topics. Returns the time of the next scheduled removal, or `None` if no removal is
    /// scheduled.
    pub(super) fn sweep(&self) -> Option<Instant> {
        let mut registry = self.registry.lock();
        registry.sweep(SWEEP);
        let next = registry.due.first_key_value().map(|((at, _), _)| *at);
        registry.next_sweep = next;
        if next.is_none() {
            registry.janitor = None;
        }
        next
    }

    /// Records that the runtime has no timers, so that the janitor, the task that removes expired
    /// events, cannot run. From now on, publishers and subscribers remove these events.
    pub(super) fn disable_timers(&self) {
        self.registry.lock().is_without_timers = true;
    }

    /// Starts the janitor, the task that removes expired events, if a removal is scheduled and the
    /// task is not running. If the janitor cannot run or is late, this call itself removes the
    /// expired events of up to four topics.
    pub(super) fn call_janitor(self: &Arc<Self>, registry: &mut Registry, now: Instant) {
        let Some((&(due, _), first)) = registry.due.first_key_value() else { return };
        let late = now.saturating_duration_since(due);
        // The janitor is late if its runtime is not being driven, for example a current-thread
        // runtime outside of `block_on`.
        let is_late = !late.is_zero() && late > first.lock().retention.max_age / 16;
        if registry.next_sweep.is_some_and(|next| due < next) {
            // A topic expires before the time until which the janitor sleeps.
            registry.next_sweep = None;
            self.earlier_expiry.notify_one();
        }
        let is_running = registry.janitor.as_ref().is_some_and(|janitor| !janitor.is_finished());
        if !is_running {
            registry.janitor = if registry.is_without_timers { None } else { janitor::spawn(self) };
        }
        if registry.janitor.is_none() || is_late {
            registry.sweep(4);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(janitor) = self.registry.lock().janitor.take() {
            janitor.abort();
        }
        self.backend.as_ref().inspect(|backend| backend.stop());
        self.presence.stop();
        // Wakes the tasks that wait for the follower, so that they end.
        self.recordings.note_progress();
    }
}
