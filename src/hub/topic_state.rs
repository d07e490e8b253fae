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
    /// The number of changes of this topic so far, such as events and its finish. By this counter,
    /// a subscription detects a change without locking the topic.
    version: AtomicU64,
    /// The number of the topic's last addition to the [wake queue](super::wake_queue), the queue of
    /// changed topics with many waiting readers. A subscription to several topics uses these
    /// numbers to find the topics that were added since it last looked.
    pub(super) queue_number: QueueNumber,
    contents: Mutex<Contents>,
}

/// The number that a topic got when it was last added to the wake queue, the queue of changed
/// topics with many waiting readers. The queue numbers its additions from zero. `None` if the topic
/// is not in the queue.
///
/// The number is read and written only while the queue is locked, so relaxed accesses are enough.
/// For the same reason, loom need not examine these accesses, so the number is an atomic of `std`
/// even in loom tests.
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
    /// The subscriptions to this topic that pause after each write to their client, to deliver the
    /// events of the pause together. When the topic is finished or the hub is shut down, the topic
    /// wakes these subscriptions, which ends their pauses. `None` if there is no such subscription.
    /// The box saves memory then.
    lingering: Option<Box<Lingering>>,
    pub(super) finished: Option<Instant>,
    pub(super) subscribers: usize,
    /// The number of subscribers that are lookups: requests of the Durable Streams protocol that
    /// read the topic or search for it. Other requests do not find a topic that has only lookups,
    /// because it does not [exist](Self::exists) for them.
    pub(super) lookups: u32,
    /// Passes each new number of subscribers to the [`SubscriberCounts`](super::SubscriberCounts)
    /// streams of this topic. `None` if there is no such stream.
    pub(super) count_watch: Option<Arc<CountWatch>>,
    /// The time when the last subscriber of the topic left. `None` if the topic has never lost its
    /// last subscriber. The event of a `latest_only` topic does not expire while the topic has
    /// subscribers. Afterwards, its age counts from this time.
    pub(super) left_at: Option<Instant>,
    /// `true` if each event of the topic replaces the previous event.
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
    /// `true` if a publisher has set the retention limits of this topic, and its event has not
    /// arrived yet. The topic is then kept until the time in
    /// [`awaited_until`](Self::awaited_until), even if a subscriber comes and leaves meanwhile.
    pub(super) awaits_event: bool,
    /// The reason why the subscriptions of the topic end although the topic is not finished: a
    /// shutdown of the hub, or a replaced log. Otherwise `None`.
    pub(super) early_end: Option<EarlyEnd>,
    /// `true` if the topic was finished, and the application has then removed the topic. The hub
    /// forgets that the topic is finished when its last subscriber leaves. A later event or a later
    /// finish of the topic resets this field to `false`.
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

    /// Creates a substitute topic for a new subscription to a hub that is already shut down. The
    /// subscription ends immediately, because the topic has ended. The hub does not list this
    /// topic.
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

    /// Makes a change of the topic visible to its readers (each reads the topic for one
    /// subscription). Moves up to 32 of the waiting readers into `change`, which the caller wakes
    /// after it has released all locks. If more readers wait, sets [`Change::rest`]. The caller
    /// must ensure that these readers are woken, too.
    ///
    /// Some subscriptions pause after each write to their client, to deliver later events together.
    /// If the topic is finished or the hub is shut down, also ends these pauses. Such a
    /// subscription is woken like a waiting reader.
    pub(super) fn changed(&self, contents: &mut Contents, change: &mut Change) {
        self.version.fetch_add(1, Ordering::Release);
        let through = contents.waiters.make_due();
        if contents.finished.is_some() || contents.early_end.is_some() {
            contents.lingering.as_mut().into_iter().for_each(|lingering| lingering.end());
        }
        contents.take_due(&mut change.first);
        change.rest = contents.has_due().then_some(through);
    }

    /// Wakes the readers that waited when the topic changed: their entries in the topic's queue of
    /// waiting readers have smaller numbers than `through`. Readers with greater numbers began to
    /// wait after this change. If the topic is finished or the hub is shut down, also ends the
    /// pauses of the subscriptions that pause after each write to their client.
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

    /// Wakes up to 32 of the readers that still have to be woken because the topic has changed
    /// since they began to wait. Returns `true` if more readers have to be woken.
    pub(super) fn wake_batch(&self) -> bool {
        let mut contents = self.lock();
        let mut batch = Batch::<BATCH>::new();
        contents.take_due(&mut batch);
        let has_more = contents.has_due();
        drop(contents);
        batch.wake();
        has_more
    }

    /// Unlocks a topic. If the topic has changed and some of its waiting readers were not woken
    /// yet, also wakes up to four of them. A reader reads the topic for one subscription.
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

/// The maximum number of waiting readers that another reader of the same topic wakes when it reads
/// or leaves the topic. (A reader reads one topic for one subscription.) It wakes only readers that
/// were not woken yet although the topic has changed.
const HELP: usize = if cfg!(tower_sse_loom) { 1 } else { 4 };

/// The waiting readers that have to be woken after a change of a topic. A `Change` is large, so it
/// is never moved: functions fill it and wake its readers through a reference.
#[must_use]
pub(super) struct Change {
    first: Batch<BATCH>,
    /// `Some` if more readers than the 32 in `first` have to be woken after the change. The entries
    /// of these further readers in the topic's queue of waiting readers have smaller numbers than
    /// this value.
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
    /// Registers a subscription that pauses after each write to its client, so that the end of the
    /// topic ends a pause. `list` is the ready list of the subscription: the list of its changed
    /// topics. If `list` was already registered, returns the replaced `Arc`, which the caller drops
    /// after it has unlocked the topic.
    pub(super) fn add_lingering(&mut self, list: &Arc<ReadyList>) -> Option<Arc<ReadyList>> {
        self.lingering.get_or_insert_default().lists.insert(key(list), list.clone())
    }

    /// Unregisters a subscription that pauses after each write to its client. `list` is the ready
    /// list of the subscription: the list of its changed topics. If `list` was registered, returns
    /// the stored `Arc`, which the caller drops after it has unlocked the topic.
    pub(super) fn remove_lingering(&mut self, list: &Arc<ReadyList>) -> Option<Arc<ReadyList>> {
        let removed = self.lingering.as_mut()?.lists.remove(&key(list));
        self.lingering.take_if(|lingering| lingering.lists.is_empty());
        removed
    }

    fn has_pauses_to_end(&self) -> bool {
        self.lingering.as_ref().is_some_and(|lingering| lingering.ends_from.is_some())
    }

    /// Returns `true` if readers of the topic still have to be woken after a change. Also returns
    /// `true` after the end of the topic, while [`take_due`](Self::take_due) still has to end
    /// pauses that subscriptions make after a write.
    #[inline]
    fn has_due(&self) -> bool {
        self.waiters.has_due() || self.has_pauses_to_end()
    }

    /// Fills `batch`, which must be empty, with up to `N` wakers to wake after a change of the
    /// topic. They are the wakers of waiting readers, which leave the queue of waiting readers. If
    /// the topic is finished or the hub is shut down, also ends the pauses of subscriptions that
    /// pause after each write to their client, and adds their wakers.
    fn take_due<const N: usize>(&mut self, batch: &mut Batch<N>) {
        self.waiters.take_due(batch);
        self.lingering.as_mut().into_iter().for_each(|lingering| lingering.end_pauses(batch));
    }

    /// Returns the time when the age of the topic's oldest event began to count. The event expires
    /// when the maximum age has passed since this time. Returns `None` if the topic has no event.
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

    /// Returns `true` if the topic exists for the application: it has events, is finished, or has
    /// subscribers other than [`lookups`](Self::lookups). Also returns `true` if its retention
    /// limits were just set, because an event or a subscriber usually follows.
    ///
    /// A lookup is a request of the Durable Streams protocol that reads the topic or searches for
    /// it. It subscribes to the topic, and so creates the topic in memory. Other lookups must not
    /// find this topic.
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
    /// no event expires and the topic is not finished, or if the maximum age is unlimited.
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

/// The subscriptions to one topic that pause after each write to their client. A published event
/// does not wake a subscription during its pause, but the end of the topic does. It wakes the
/// subscription through its ready list, the list of its changed topics.
#[derive(Default)]
struct Lingering {
    /// The ready list (the list of changed topics) of each subscription that pauses after a write.
    /// The key is the address of the list in memory, which identifies the list.
    lists: BTreeMap<usize, Arc<ReadyList>>,
    /// The key in `lists` of the next subscription whose pause [`end_pauses`](Self::end_pauses) has
    /// to end. It ends the pauses in the order of the keys. `None` if no pause has to be ended.
    ends_from: Option<usize>,
}

impl Lingering {
    /// Records that all subscriptions in `lists` must end their pauses after writes to their
    /// clients, because the topic is finished or the hub is shut down.
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

/// Ends all subscriptions to `topics` although the topics are not finished, and wakes the
/// subscriptions that wait. `reason` is a shutdown of the hub, or a replaced log. The caller must
/// hold no lock.
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
