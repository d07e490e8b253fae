//! The queue of topics with a large audience that is due, and the task that wakes it.

use super::{
    sync::{AtomicU64, Mutex, Ordering, lock},
    topic_state::TopicState,
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The topics whose waiters are due, and that have more of them than the publisher wakes.
///
/// A task wakes them in slices, one topic after the other, and yields in between. It runs on the
/// runtime of the publisher, and ends when the queue is empty. Outside of a runtime, the publisher
/// wakes all waiters. Each reader of the topic also wakes a few others, so the audience does not
/// depend on the runtime of the publisher.
#[derive(Default)]
pub(super) struct WakeQueue {
    queue: Mutex<Queue>,
    /// The number of topics that were ever added.
    added: AtomicU64,
}

#[derive(Default)]
struct Queue {
    topics: VecDeque<Due>,
    /// The time when the task began its last slice, or was started. `None` means that there is no
    /// task.
    active_at: Option<Instant>,
}

struct Due {
    /// The number of topics that were added before.
    number: u64,
    topic: Arc<TopicState>,
}

impl WakeQueue {
    /// The maximum length of the queue. Publishers wait beyond it, and help.
    const MAX: usize = 1024;

    /// The time after which the task does not count as running, for example because its runtime is
    /// not driven. The next publisher then starts another one.
    const STALLED: Duration = Duration::from_millis(10);

    /// The number of batches of one topic that the task wakes before it yields: 512 waiters.
    const BATCHES: usize = if cfg!(tower_sse_loom) { 1 } else { 16 };

    /// Adds a topic whose waiters are due, and returns its number.
    ///
    /// The caller commits the change afterwards. So a subscription that knows the committed
    /// position finds here the topics whose change has not [marked](super::ready_list) it yet.
    pub(super) fn add(&self, topic: &Arc<TopicState>) -> u64 {
        let mut queue = lock(&self.queue);
        let number = self.added.load(Ordering::Relaxed);
        queue.topics.push_back(Due { number, topic: topic.clone() });
        self.added.store(number + 1, Ordering::Release);
        number
    }

    /// Calls `found` for each topic that was added since the last call and still has waiters to
    /// wake.
    pub(super) fn look_through(&self, looked_at: &mut u64, mut found: impl FnMut(&TopicState)) {
        if self.added.load(Ordering::Acquire) == *looked_at {
            return;
        }
        let queue = lock(&self.queue);
        let new = queue.topics.iter().filter(|due| due.number >= *looked_at);
        let topics: Vec<_> = new.map(|due| due.topic.clone()).collect();
        *looked_at = self.added.load(Ordering::Relaxed);
        drop(queue);
        topics.iter().for_each(|topic| found(topic));
    }

    /// Wakes the waiters of the topic that was added with this number. The caller holds no lock.
    pub(super) fn wake(self: &Arc<Self>, number: u64, topic: &TopicState, through: u64, now: Instant) {
        let Some(runtime) = Runtime::current() else {
            topic.wake_through(through);
            lock(&self.queue).topics.retain(|due| due.number != number);
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

    /// Wakes the next slice. Returns `false` if the queue is empty after it.
    fn wake_slice(&self) -> bool {
        let mut queue = lock(&self.queue);
        let Some(next) = queue.topics.front() else {
            queue.active_at = None;
            return false;
        };
        let (number, topic) = (next.number, next.topic.clone());
        queue.active_at = Some(Instant::now());
        drop(queue);
        let has_more = (0..Self::BATCHES).all(|_| topic.wake_batch());
        let mut queue = lock(&self.queue);
        // Another thread may have removed it.
        if let Some(index) = queue.topics.iter().position(|due| due.number == number) {
            let due = queue.topics.remove(index);
            queue.topics.extend(due.filter(|_| has_more));
        }
        let is_empty = queue.topics.is_empty();
        if is_empty {
            queue.active_at = None;
        }
        !is_empty
    }
}

/// The part of the task that wakes the rest if the task is dropped, because its runtime shuts down.
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

/// A thread in place of the task.
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
