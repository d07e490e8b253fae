//! The streams of an HTTP/2 connection, which run in the task of the connection.
//!
//! The streams are a set of futures with a queue of the futures that are ready. The waker of the
//! connection itself uses this queue, too. If a future is woken while the task runs, the same poll
//! of the task usually polls the future again, without a detour through tokio's scheduler.

use crate::callback::contain_panic;
use std::{
    future::poll_fn,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The number of HTTP/2 streams that are polled before the connection itself is polled, which takes
/// their frames. A larger number would need more memory: h2 uses 624 bytes for each frame that
/// waits for the connection.
const SLICE: usize = 4;

/// The index that stands for the HTTP/2 connection itself among the indices of its ready streams.
const CONNECTION: u32 = u32::MAX;

/// The streams of one HTTP/2 connection, which run in the task of the connection.
pub(super) struct Streams {
    slots: Vec<Option<Slot>>,
    /// The free slots for new streams: the indices of the entries of `slots` that contain no
    /// stream.
    free: Vec<u32>,
    queue: Arc<Queue>,
    connection: Arc<Woken>,
    /// The indices of the streams that are being polled. The list is stored here so that its memory
    /// is reused.
    polling: Vec<u32>,
}

struct Slot {
    stream: Stream,
    woken: Arc<Woken>,
}

/// The queue of an HTTP/2 connection: its streams that are ready to be polled, the readiness of the
/// connection itself, and new streams that hyper has begun.
#[derive(Default)]
struct Queue(Mutex<Ready>);

#[derive(Default)]
struct Ready {
    streams: Vec<u32>,
    is_connection_ready: bool,
    spawned: Vec<Stream>,
    /// The waker of the task of the HTTP/2 connection. `None` while that task runs: before the task
    /// waits again, it looks into the queue of ready streams itself.
    task: Option<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waker of one HTTP/2 stream, or of the connection itself. Waking marks the stream or the
/// connection as ready, and wakes the task that polls the connection and all its streams.
struct Woken {
    index: u32,
    is_queued: AtomicBool,
    queue: Arc<Queue>,
}

impl Woken {
    fn new(index: u32, queue: &Arc<Queue>) -> Arc<Self> {
        Arc::new(Self { index, is_queued: AtomicBool::new(false), queue: Arc::clone(queue) })
    }

    /// Records that a stream, or the connection itself, has left the queue of ready streams. Called
    /// before the stream or the connection is polled.
    ///
    /// If a wake-up finds `is_queued` still set, it does not queue the stream again. The poll that
    /// follows must then see everything that happened before this wake-up. So this method clears
    /// `is_queued` with a swap: its read synchronizes with the write of the wake-up. A plain store
    /// would not synchronize with this write, because a store reads nothing.
    fn dequeued(&self) {
        self.is_queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut ready = self.queue.lock();
        match self.index {
            CONNECTION => ready.is_connection_ready = true,
            stream => ready.streams.push(stream),
        }
        let task = ready.task.take();
        drop(ready);
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// The executor that hyper uses for the streams of an HTTP/2 connection. It spawns no tasks, but
/// collects the streams in the queue of the connection.
#[derive(Clone)]
pub(super) struct Spawner(Arc<Queue>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, stream: F) {
        self.0.lock().spawned.push(Box::pin(stream));
    }
}

impl Streams {
    pub(super) fn new() -> Self {
        let queue = Arc::new(Queue::default());
        let connection = Woken::new(CONNECTION, &queue);
        queue.lock().is_connection_ready = true;
        Self { slots: Vec::new(), free: Vec::new(), queue, connection, polling: Vec::new() }
    }

    pub(super) fn spawner(&self) -> Spawner {
        Spawner(Arc::clone(&self.queue))
    }

    /// Returns the waker for the next poll of hyper's HTTP/2 connection. Each stream has its own
    /// waker. Returns `None` if the connection was not woken since its last poll.
    pub(super) fn take_connection(&self) -> Option<Waker> {
        let is_ready = mem::take(&mut self.queue.lock().is_connection_ready);
        is_ready.then(|| {
            self.connection.dequeued();
            Waker::from(Arc::clone(&self.connection))
        })
    }

    /// Returns whether the queue of the connection contains HTTP/2 streams that hyper has begun and
    /// that were not polled yet.
    pub(super) fn has_begun(&self) -> bool {
        !self.queue.lock().spawned.is_empty()
    }

    /// Returns whether all streams of the HTTP/2 connection have ended. Their last bytes may not be
    /// sent yet: h2 may still wait until the client accepts more.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len() && !self.has_begun()
    }

    /// Marks the HTTP/2 connection itself as ready, in contrast to its streams, so that it is
    /// polled again.
    pub(super) fn wake_connection(&self) {
        self.connection.wake_by_ref();
    }

    /// Polls each ready stream of the connection once. After every four streams, calls `between` if
    /// more streams are ready. `between` polls the connection, which takes the frames of these four
    /// streams.
    pub(super) fn poll_ready(&mut self, mut between: impl FnMut(&Self)) {
        let mut polling = mem::take(&mut self.polling);
        let mut ready = self.queue.lock();
        mem::swap(&mut polling, &mut ready.streams);
        let spawned = mem::take(&mut ready.spawned);
        drop(ready);
        for stream in spawned {
            polling.push(self.insert(stream));
        }
        for (number, slice) in polling.chunks(SLICE).enumerate() {
            if number > 0 {
                between(self);
            }
            self.poll_slice(slice);
        }
        polling.clear();
        self.polling = polling;
    }

    /// Polls the streams with these indices once, without tokio's cooperative budget. The budget
    /// belongs to the task, so all streams together would use it up after 128 operations. The
    /// HTTP/2 window and the buffer of the connection already limit each stream.
    fn poll_slice(&mut self, indices: &[u32]) {
        let all = poll_fn(|_| {
            indices.iter().for_each(|&index| self.poll_stream(index));
            Poll::Ready(())
        });
        let all = pin!(tokio::task::coop::unconstrained(all));
        let _always_ready = all.poll(&mut Context::from_waker(Waker::noop()));
    }

    fn poll_stream(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let Some(Slot { stream, woken }) = slot else { return };
        woken.dequeued();
        let waker = Waker::from(Arc::clone(woken));
        // A panic ends the stream and not the connection, as if the stream had a task of its own.
        // The panic hook has reported it.
        let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll(&mut Context::from_waker(&waker))));
        if !matches!(polled, Ok(Poll::Pending)) {
            let ended = slot.take();
            contain_panic("body", || drop(ended));
            self.free.push(index);
        }
    }

    fn insert(&mut self, stream: Stream) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[index as usize] = Some(Slot { stream, woken: Woken::new(index, &self.queue) });
        index
    }

    /// Returns whether the task of the connection can wait, because no stream is ready, and neither
    /// is the connection itself. In this case, stores `task`, which is woken when a stream or the
    /// connection becomes ready.
    pub(super) fn wait(&self, task: &Waker) -> bool {
        let mut ready = self.queue.lock();
        let can_wait = ready.streams.is_empty() && ready.spawned.is_empty() && !ready.is_connection_ready;
        if can_wait {
            ready.task = Some(task.clone());
        }
        can_wait
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Streams have clones of the executor, so streams in the queue would keep each other alive.
        let spawned = mem::take(&mut self.queue.lock().spawned);
        spawned.into_iter().for_each(|stream| contain_panic("body", || drop(stream)));
        self.slots.drain(..).for_each(|slot| contain_panic("body", || drop(slot)));
    }
}
