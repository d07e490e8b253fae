//! The queue of changed topics that have many waiting readers, and the task that wakes these
//! readers.

use super::{
    sync::{AtomicU64, Mutex, Ordering, lock},
    topic_state::TopicState,
};
use std::{collections::VecDeque, ptr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The topics that have changed and have more than 32 waiting readers. The publisher wakes the
/// first 32 readers of a topic itself. A task on the runtime of the publisher wakes the remaining
/// readers, up to 512 of one topic before it yields.
///
/// Outside of a runtime, the publisher wakes all readers. If the task does not run, reading from a
/// topic also wakes a few of its waiting readers.
#[derive(Default)]
pub(super) struct WakeQueue {
    queue: Mutex<Queue>,
    /// The number of additions to this queue so far. Adding a queued topic again counts, too.
    /// Additions are numbered from 0, so this is the number of the next addition. Subscriptions to
    /// several topics compare these numbers to find topics that were added since they last looked.
    added: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// The changed topics whose waiting readers still have to be woken, each topic once. The number
    /// of a topic's last addition to this queue is stored in the topic itself, in
    /// [`TopicState::queue_number`].
    topics: VecDeque<Arc<TopicState>>,
    /// The time when the task that wakes waiting readers last made progress: when it was started,
    /// or when it last began with a topic in the queue. `None` if the task is not running.
    active_at: Option<Instant>,
}

impl WakeQueue {
    /// The maximum number of topics in the queue of topics whose readers have to be woken. A
    /// publisher that exceeds this number wakes readers of the queued topics itself, until the
    /// queue is short enough.
    const MAX: usize = 1024;

    /// The time without progress after which the task that wakes readers counts as stopped, for
    /// example because its runtime is not driven. The task makes progress when it begins with a
    /// topic in the queue. After this time, the next publisher starts another task.
    const STALLED: Duration = Duration::from_millis(10);

    /// The number of batches of readers that the task wakes for one topic before it yields to other
    /// tasks. A batch has up to 32 waiting readers, so the task yields after up to 512 readers.
    const BATCHES: usize = if cfg!(tower_sse_loom) { 1 } else { 16 };

    /// Adds a changed topic whose waiting readers have to be woken. Returns the number of this
    /// addition. A topic that is already in the queue only gets the new number.
    ///
    /// The caller calls this method before it makes the log position of the change visible. So a
    /// subscription to several topics that sees this position also finds the changed topic. The
    /// topic is in this queue until it is in the subscription's own list of changed topics.
    pub(super) fn add(&self, topic: &Arc<TopicState>) -> u64 {
        let mut queue = lock(&self.queue);
        let number = self.added.load(Ordering::Relaxed);
        if topic.queue_number.get().is_none() {
            queue.topics.push_back(topic.clone());
        }
        topic.queue_number.set(Some(number));
        self.added.store(number + 1, Ordering::Release);
        number
    }

    /// Calls `found` for each queued topic that was added, or added again, since the caller's
    /// previous call. The caller is a subscription to several topics that looks for changed topics.
    /// It keeps the number `looked_at` between its calls, and this method updates this number: the
    /// number of the first addition that the caller has not seen.
    pub(super) fn look_through(&self, looked_at: &mut u64, mut found: impl FnMut(&TopicState)) {
        if self.added.load(Ordering::Acquire) == *looked_at {
            return;
        }
        let queue = lock(&self.queue);
        let is_new = |topic: &&Arc<TopicState>| topic.queue_number.get().is_some_and(|number| number >= *looked_at);
        let topics: Vec<_> = queue.topics.iter().filter(is_new).cloned().collect();
        *looked_at = self.added.load(Ordering::Relaxed);
        drop(queue);
        topics.iter().for_each(|topic| found(topic));
    }

    /// Ensures that the readers that wait for a change of `topic` are woken. Starts the task that
    /// wakes readers if the task is not running. `number` is the number that [`add`](Self::add) has
    /// returned for this change. Only readers that waited before the change have to be woken: their
    /// entries in the topic's own queue of waiting readers have smaller numbers than `through`.
    ///
    /// Outside of a tokio runtime, this method itself wakes these readers. It then removes the
    /// topic from this queue, unless the topic was added again.
    ///
    /// In a runtime, if more than 1,024 topics are queued, this method also wakes readers of queued
    /// topics, until the queue is short enough. The caller must hold no lock.
    pub(super) fn wake(self: &Arc<Self>, number: u64, topic: &TopicState, through: u64, now: Instant) {
        let Some(runtime) = Runtime::current() else {
            topic.wake_through(through);
            lock(&self.queue).remove(topic, Some(number));
            return;
        };
        let mut queue = lock(&self.queue);
        // Under loom, every run has to be the same.
        let is_stalled = |since| !cfg!(tower_sse_loom) && now.saturating_duration_since(since) > Self::STALLED;
        let is_running = queue.active_at.is_some_and(|since| !is_stalled(since));
        if !is_running {
            queue.active_at = Some(now);
        }
        let mut excess = queue.topics.len().saturating_sub(Self::MAX);
        drop(queue);
        if !is_running {
            runtime.spawn(Running { queue: self.clone(), has_ended: false });
        }
        while excess > 0 && self.wake_slice() {
            excess = lock(&self.queue).topics.len().saturating_sub(Self::MAX);
        }
    }

    /// Wakes up to 512 waiting readers of the first topic in the queue. Then removes this topic, or
    /// moves it to the end of the queue if more of its readers have to be woken. Returns `false` if
    /// the queue is empty afterwards.
    fn wake_slice(&self) -> bool {
        let mut queue = lock(&self.queue);
        let Some(topic) = queue.topics.front().cloned() else {
            queue.active_at = None;
            return false;
        };
        let number = topic.queue_number.get();
        queue.active_at = Some(Instant::now());
        drop(queue);
        let has_more = (0..Self::BATCHES).all(|_| topic.wake_batch());
        let mut queue = lock(&self.queue);
        if has_more || !queue.remove(&topic, number) {
            queue.move_to_end(&topic);
        }
        let is_empty = queue.topics.is_empty();
        if is_empty {
            queue.active_at = None;
        }
        !is_empty
    }
}

impl Queue {
    /// Removes a topic from the queue of topics whose readers have to be woken. Leaves the topic in
    /// the queue if it was added again, so that the number of its last addition differs from
    /// `number`. Returns `true` if the topic is not in the queue any more, also if another thread
    /// has removed it.
    fn remove(&mut self, topic: &TopicState, number: Option<u64>) -> bool {
        if topic.queue_number.get() == number {
            topic.queue_number.set(None);
            let index = self.index(topic);
            index.map(|index| self.topics.remove(index));
        }
        topic.queue_number.get().is_none()
    }

    fn move_to_end(&mut self, topic: &TopicState) {
        // Another thread may have removed the topic.
        if let Some(index) = self.index(topic) {
            let topic = self.topics.remove(index);
            self.topics.extend(topic);
        }
    }

    fn index(&self, topic: &TopicState) -> Option<usize> {
        self.topics.iter().position(|queued| ptr::eq(&**queued, topic))
    }
}

/// A guard inside the task that wakes the readers of the topics in the wake queue. If the runtime
/// shuts down and drops the task, dropping this guard wakes all remaining readers.
struct Running {
    queue: Arc<WakeQueue>,
    has_ended: bool,
}

impl Running {
    fn wake_slice(&mut self) -> bool {
        self.has_ended = !self.queue.wake_slice();
        !self.has_ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        while !self.has_ended && self.wake_slice() {}
    }
}

#[cfg(not(tower_sse_loom))]
struct Runtime(tokio::runtime::Handle);

#[cfg(not(tower_sse_loom))]
impl Runtime {
    fn current() -> Option<Self> {
        tokio::runtime::Handle::try_current().ok().map(Self)
    }

    fn spawn(self, mut running: Running) {
        self.0.spawn(async move {
            while running.wake_slice() {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// A substitute for the tokio runtime in tests with loom: starts a thread in place of a task.
#[cfg(tower_sse_loom)]
struct Runtime;

#[cfg(tower_sse_loom)]
impl Runtime {
    fn current() -> Option<Self> {
        Some(Self)
    }

    fn spawn(self, mut running: Running) {
        loom::thread::spawn(move || while running.wake_slice() {});
    }
}
