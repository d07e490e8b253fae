//! The state of one topic of a hub: its retained events, and the readers that wait for its next
//! change. A reader reads one topic for one subscription.

use super::{
    SubscriptionError,
    backend::Position,
    config::HubConfig,
    count_watch::{CountWatch, Wakers},
    log::{Amount, Limits, Log},
    ready_list::ReadyList,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock},
    waiters::{Batch, Waiters},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64 as StdAtomicU64},
};
use tokio::time::Instant;

pub(super) struct TopicState {
    pub(super) name: Arc<str>,
    /// A counter that each change of the topic increments. With this counter, a subscription
    /// detects a change without locking the topic.
    version: AtomicU64,
    /// The number of the topic's last addition to the [wake queue](super::wake_queue), the queue of
    /// changed topics with many waiting readers. By these numbers, a subscription to several topics
    /// finds the additions since it last looked.
    pub(super) queue_number: QueueNumber,
    contents: Mutex<Contents>,
}

/// The number that a topic got when it was last added to the wake queue, the queue of changed
/// topics with many waiting readers. The queue numbers its additions from zero. `None` if the topic
/// is not in the queue.
///
/// The number is read and written only while the queue is locked, so relaxed accesses are enough.
/// For the same reason, loom need not examine them, and the number is an atomic of `std` in loom
/// tests, too.
#[derive(Default)]
pub(super) struct QueueNumber {
    /// The number of the topic's last addition to the wake queue, plus one. 0 means that the topic
    /// is not in the queue.
    number: StdAtomicU64,
}

impl QueueNumber {
    pub(super) fn get(&self) -> Option<u64> {
        self.number.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(super) fn set(&self, number: Option<u64>) {
        self.number.store(number.map_or(0, |number| number + 1), Ordering::Relaxed);
    }
}

/// The reason why the subscriptions of a topic end although the topic is not finished.
/// `Replaced` has precedence over `Shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EarlyEnd {
    /// The hub was shut down. Subscriptions deliver the remaining events of the topic first.
    Shutdown,
    /// Another log has replaced the log of the backend. Subscriptions deliver no more events,
    /// because the ids of these events are not valid in the other log.
    Replaced,
}

impl From<EarlyEnd> for SubscriptionError {
    fn from(end: EarlyEnd) -> Self {
        match end {
            EarlyEnd::Shutdown => Self::Shutdown,
            EarlyEnd::Replaced => Self::LogReplaced,
        }
    }
}

pub(super) struct Contents {
    pub(super) log: Log,
    /// The retention limits of this topic: limits of its own, or those from the settings of the
    /// hub. Several topics can share one `Arc` with equal limits, but each topic is limited
    /// separately.
    pub(super) retention: Arc<Limits>,
    pub(super) waiters: Waiters,
    /// The subscriptions that pause after each write to their client, so that the events of the
    /// pause are delivered together. When the topic is finished or the hub is shut down, the topic
    /// wakes these subscriptions, which ends their pauses. `None` without such a subscription,
    /// which saves memory.
    lingering: Option<Box<Lingering>>,
    pub(super) finished: Option<Instant>,
    pub(super) subscribers: usize,
    /// The number of subscribers that are lookups: requests of the Durable Streams protocol that
    /// read the topic or search for it. Lookups alone do not make the topic [exist](Self::exists),
    /// so other requests do not find it.
    pub(super) lookups: u32,
    /// Passes each new number of subscribers to the [`SubscriberCounts`](super::SubscriberCounts)
    /// streams of this topic. `None` if there is no such stream.
    pub(super) count_watch: Option<Arc<CountWatch>>,
    /// The last time when the topic lost its last subscriber. `None` if that has never happened.
    /// The event of a `latest_only` topic does not expire while the topic has subscribers, so the
    /// age of this event counts from this time.
    pub(super) left_at: Option<Instant>,
    /// Set if each event of the topic replaces the previous event.
    pub(super) latest_only: bool,
    /// The time when the hub removes the expired events of this topic, or the topic itself. `None`
    /// if the hub has scheduled no time.
    pub(super) due: Option<Instant>,
    /// The time until which the topic and its retention limits are kept, even if the topic has
    /// neither events nor subscribers. It is 60 seconds after the limits were set, which happens
    /// just before a publication or a subscription. `None` if no limits were set, if the event or
    /// the subscriber has arrived since, or if the topic was already
    /// [finished](super::Topic::finish).
    pub(super) awaited_until: Option<Instant>,
    /// Set if a publisher has set the retention limits of this topic, and the event that it
    /// publishes has not arrived yet. The topic is then kept until the time in
    /// [`awaited_until`](Self::awaited_until), even if a subscriber comes and leaves meanwhile.
    pub(super) awaits_event: bool,
    /// Set when the subscriptions of the topic end although the topic is not finished.
    pub(super) early_end: Option<EarlyEnd>,
    /// Set if the application has removed the topic after the topic was finished. The hub then
    /// forgets that the topic is finished when its last subscriber leaves. A later event or finish
    /// record in the log clears this field.
    pub(super) is_removed: bool,
}

impl TopicState {
    pub(super) fn new(name: Arc<str>, evicted_through: Position, retention: Arc<Limits>) -> Self {
        let contents = Contents {
            log: Log::new(evicted_through),
            retention,
            waiters: Waiters::default(),
            lingering: None,
            finished: None,
            subscribers: 0,
            lookups: 0,
            count_watch: None,
            left_at: None,
            latest_only: false,
            due: None,
            awaited_until: None,
            awaits_event: false,
            early_end: None,
            is_removed: false,
        };
        Self { name, version: AtomicU64::new(0), queue_number: QueueNumber::default(), contents: Mutex::new(contents) }
    }

    /// Creates a topic for a subscription to a hub that is shut down, so that the subscription ends
    /// immediately. The topic is not one of the hub's topics.
    pub(super) fn shut_down(name: Arc<str>) -> Self {
        let topic = Self::new(name, Position::START, Arc::new(HubConfig::DEFAULT.retention));
        let mut contents = topic.lock();
        (contents.subscribers, contents.early_end) = (1, Some(EarlyEnd::Shutdown));
        drop(contents);
        topic
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Makes a change of the topic visible to its readers. Moves up to 32 of the waiting readers
    /// into `change`. The caller wakes the readers in `change` after it has released all locks. If
    /// further readers wait, sets [`Change::rest`], and the caller ensures that they are woken,
    /// too.
    ///
    /// If the topic is finished or the hub is shut down, also ends the pauses of the subscriptions
    /// that pause after each write to their client. Such a subscription is then woken like a
    /// waiting reader.
    pub(super) fn changed(&self, contents: &mut Contents, change: &mut Change) {
        self.version.fetch_add(1, Ordering::Release);
        let through = contents.waiters.make_due();
        if contents.finished.is_some() || contents.early_end.is_some() {
            contents.lingering.as_mut().into_iter().for_each(|lingering| lingering.end());
        }
        contents.take_due(&mut change.first);
        change.rest = contents.has_due().then_some(through);
    }

    /// Wakes the readers of the topic that have to be woken because of a change: the readers whose
    /// entry in the queue of waiting readers has a smaller number than `through`. The other readers
    /// began to wait after this change. If the topic is finished or the hub is shut down, also ends
    /// the pauses of the subscriptions that pause after each write to their client.
    pub(super) fn wake_through(&self, through: u64) {
        loop {
            let mut contents = self.lock();
            if !contents.waiters.has_due_before(through) && !contents.has_pauses_to_end() {
                return;
            }
            let mut batch = Batch::<BATCH>::new();
            contents.take_due(&mut batch);
            drop(contents);
            batch.wake();
        }
    }

    /// Wakes up to 32 of the readers of the topic that have to be woken because the topic has
    /// changed since they began to wait. Returns `true` if more readers of the topic have to be
    /// woken.
    pub(super) fn wake_batch(&self) -> bool {
        let mut contents = self.lock();
        let mut batch = Batch::<BATCH>::new();
        contents.take_due(&mut batch);
        let has_more = contents.has_due();
        drop(contents);
        batch.wake();
        has_more
    }

    /// Unlocks the contents of a topic. If the topic has changed and some of its waiting readers
    /// were not woken yet, wakes up to four of them. A reader reads the topic for one subscription.
    ///
    /// Each reader that reads or leaves the topic calls this function. So the waiting readers are
    /// woken even if the task of the [wake queue](super::wake_queue), which should wake them, does
    /// not run.
    #[inline]
    pub(super) fn unlock_and_help(mut contents: MutexGuard<'_, Contents>) {
        if contents.has_due() {
            let mut batch = Batch::<HELP>::new();
            contents.take_due(&mut batch);
            drop(contents);
            batch.wake();
        }
    }
}

/// The maximum number of waiting readers that a publisher wakes itself after a change of a topic.
/// The task of the [wake queue](super::wake_queue) wakes the remaining readers, also in batches of
/// this size.
pub(super) const BATCH: usize = if cfg!(tower_sse_loom) { 1 } else { 32 };

/// The maximum number of waiting readers of a topic that another reader of the topic wakes. (A
/// reader reads one topic for one subscription.) The reader wakes them only if the topic has
/// changed and they were not woken yet.
const HELP: usize = if cfg!(tower_sse_loom) { 1 } else { 4 };

/// The waiting readers to wake after a change of a topic. A `Change` is large, so it is never
/// moved: functions fill it and wake its readers through a reference.
#[must_use]
pub(super) struct Change {
    first: Batch<BATCH>,
    /// Set if more than the 32 readers in `first` have to be woken after the change of the topic.
    /// The others have entries with smaller numbers than this value in the topic's queue of waiting
    /// readers.
    pub(super) rest: Option<u64>,
}

impl Change {
    pub(super) const fn new() -> Self {
        Self { first: Batch::new(), rest: None }
    }

    /// Wakes up to 32 readers that wait for the change of the topic. The caller must hold no lock.
    pub(super) fn wake(&mut self) {
        self.first.wake();
    }
}

impl Contents {
    /// Adds `list`, the ready list of a subscription that pauses after each write to its client.
    /// The end of the topic then ends the pause. If `list` was already added, returns the replaced
    /// `Arc`, which the caller drops after it has unlocked the topic.
    pub(super) fn add_lingering(&mut self, list: &Arc<ReadyList>) -> Option<Arc<ReadyList>> {
        self.lingering.get_or_insert_default().lists.insert(key(list), list.clone())
    }

    /// Removes `list`, the ready list of a subscription that pauses after each write to its client.
    /// If `list` was added before, returns the stored `Arc`, which the caller drops after it has
    /// unlocked the topic.
    pub(super) fn remove_lingering(&mut self, list: &Arc<ReadyList>) -> Option<Arc<ReadyList>> {
        let removed = self.lingering.as_mut()?.lists.remove(&key(list));
        self.lingering.take_if(|lingering| lingering.lists.is_empty());
        removed
    }

    fn has_pauses_to_end(&self) -> bool {
        self.lingering.as_ref().is_some_and(|lingering| lingering.ends_from.is_some())
    }

    /// Returns `true` if readers still have to be woken after a change of the topic. Also returns
    /// `true` if the topic is finished or the hub is shut down, and [`take_due`](Self::take_due)
    /// still has to end pauses of subscriptions.
    #[inline]
    fn has_due(&self) -> bool {
        self.waiters.has_due() || self.has_pauses_to_end()
    }

    /// Removes from the queue of waiting readers up to `N` readers that have to be woken. If the
    /// topic is finished or the hub is shut down, also ends the pauses of the subscriptions that
    /// pause after each write to their client. Adds the wakers of the readers and of these
    /// subscriptions to `batch`, which must be empty. Together, the batch has at most `N` wakers.
    fn take_due<const N: usize>(&mut self, batch: &mut Batch<N>) {
        self.waiters.take_due(batch);
        self.lingering.as_mut().into_iter().for_each(|lingering| lingering.end_pauses(batch));
    }

    /// Returns the start of the age of the topic's oldest event. The caller adds the maximum age to
    /// this time, and gets the time when the event expires. Returns `None` if the topic has no
    /// event.
    ///
    /// The event of a `latest_only` topic does not expire while the topic has subscribers, so the
    /// result is then `None`. Without subscribers, the age of this event begins when the last
    /// subscriber has left, or when the event was added, whichever is later.
    pub(super) fn ages_since(&self) -> Option<Instant> {
        let oldest = self.log.oldest_time()?;
        match self.latest_only {
            false => Some(oldest),
            true if self.subscribers > 0 => None,
            true => Some(self.left_at.map_or(oldest, |left_at| left_at.max(oldest))),
        }
    }

    /// Returns `true` if the topic exists: it has events, is finished, or has subscribers other
    /// than [`lookups`](Self::lookups). Also returns `true` if its limits were just set for an
    /// event or a subscriber that follows.
    ///
    /// A lookup subscribes to the topic, and so creates it in memory. For other lookups, this topic
    /// must not exist.
    pub(super) fn exists(&self) -> bool {
        self.subscribers > self.lookups as usize
            || self.log.retained().events > 0
            || self.finished.is_some()
            || self.awaited_until.is_some()
    }

    /// Returns the position of the newest event that the topic has had in this process.
    pub(super) fn newest(&self) -> Position {
        self.log.last().max(self.log.evicted_through())
    }

    /// Returns `true` if this process knows whether the topic is finished. Returns `false` if the
    /// hub may have dropped the topic from memory earlier, and the topic has had no event since it
    /// was created again. The backend may then retain a record that finishes the topic.
    #[cfg(feature = "durable-streams")]
    pub(super) fn knows_end(&self) -> bool {
        self.finished.is_some() || self.log.last() > Position::START || self.log.evicted_through() == Position::START
    }

    /// Sets the number of subscribers of the topic. Returns the wakers of the streams that watch
    /// this number. The caller wakes them after it has released all locks.
    pub(super) fn set_subscribers(&mut self, subscribers: usize) -> Wakers {
        self.subscribers = subscribers;
        self.count_watch.as_ref().map(|watch| watch.set(subscribers)).unwrap_or_default()
    }

    /// Evicts the events of the topic that exceed its retention limits at the time `now`. Returns
    /// the number and the size of the evicted events.
    pub(super) fn evict(&mut self, now: Instant) -> Amount {
        let expiry = self.ages_since().and_then(|since| self.retention.expiry(since));
        if self.latest_only && expiry.is_none_or(|expiry| expiry > now) {
            return self.log.evict_excess(&self.retention);
        }
        self.log.evict(&self.retention, now)
    }

    /// Returns the time when the topic's oldest event expires. If the topic has no event that
    /// expires, returns the time when the hub forgets that the topic is finished. Returns `None` if
    /// neither will happen.
    pub(super) fn expiry(&self) -> Option<Instant> {
        self.ages_since().or(self.finished).and_then(|since| self.retention.expiry(since))
    }

    /// Returns `true` if the topic can be dropped: it has no subscribers and no events, and the hub
    /// need not remember that the topic is finished. The hub remembers a finished topic for the
    /// maximum age of the topic's retention, unless the application has removed the topic. A topic
    /// whose limits were just set is not dropped either: for up to 60 seconds, it is kept for the
    /// event or the subscriber that usually follows.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let is_remembered =
            |finished| !self.is_removed && self.retention.expiry(finished).is_none_or(|expiry| expiry > now);
        self.subscribers == 0
            && self.log.retained().events == 0
            && !self.finished.is_some_and(is_remembered)
            && (self.finished.is_some() || self.awaited_until.is_none_or(|until| until <= now))
    }
}

/// The ready lists of the subscriptions that pause after each write to their client. A ready list
/// contains the changed topics of one subscription. A published event does not wake a subscription
/// during its pause, but the end of the topic does, through the ready list.
#[derive(Default)]
struct Lingering {
    /// The ready list (the list of changed topics) of each subscription that pauses after a write.
    /// The key is the address of the list in memory, which identifies the list.
    lists: BTreeMap<usize, Arc<ReadyList>>,
    /// Set while [`end_pauses`](Self::end_pauses) still has to end the pauses of some subscriptions
    /// in `lists`. It ends the pauses in the order of the keys in `lists`. The value is the next
    /// key.
    ends_from: Option<usize>,
}

impl Lingering {
    /// Records that the subscriptions that pause after each write to their client must end their
    /// pauses, because the topic is finished or the hub is shut down.
    /// [`end_pauses`](Self::end_pauses) then ends the pauses in batches.
    fn end(&mut self) {
        self.ends_from = self.lists.first_key_value().map(|(key, _)| *key);
    }

    /// Ends pauses of the subscriptions in `lists`, if [`end`](Self::end) has requested that. Ends
    /// as many pauses as `batch` has room for, and adds the wakers of these subscriptions to
    /// `batch`.
    fn end_pauses<const N: usize>(&mut self, batch: &mut Batch<N>) {
        let Some(from) = self.ends_from else { return };
        let mut lists = self.lists.range(from..);
        // The number of lists is limited, too, because a list may have no waker.
        for (_, list) in lists.by_ref().take(N - batch.len()) {
            list.end_pause().into_iter().for_each(|waker| batch.push(waker));
        }
        self.ends_from = lists.next().map(|(key, _)| *key);
    }
}

fn key(list: &Arc<ReadyList>) -> usize {
    Arc::as_ptr(list).addr()
}

/// Ends all subscriptions to the given topics for this reason, and wakes the subscriptions that
/// wait. The caller must hold no lock.
pub(super) fn end_early(mut topics: Vec<Arc<TopicState>>, reason: EarlyEnd) {
    // The order is fixed because `tests/interleavings` needs deterministic runs.
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    for topic in topics {
        let mut contents = topic.lock();
        contents.early_end = contents.early_end.max(Some(reason));
        let mut change = Change::new();
        topic.changed(&mut contents, &mut change);
        drop(contents);
        change.wake();
        change.rest.inspect(|through| topic.wake_through(*through));
    }
}
