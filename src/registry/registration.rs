//! The registration of one stream in a stream registry, the set of open streams by key. Also the
//! state that the body of a registered stream uses without locking the registry, such as whether
//! the stream is closed.

use crate::callback::contain_panic;
use bytes::Bytes;
use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::Waker,
};

/// The number of registered streams whose state one [`Block`] contains. A `u32` in the block has
/// one bit for each of these streams. The bit is set when the stream is closed.
pub(super) const BLOCK: usize = 32;

/// The index of a stream in its stream registry, valid until the registration of the stream is
/// dropped. Stores the number of the stream (from zero) plus one. The stored value is never zero,
/// so an `Option<Index>` takes no more memory than an `Index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Index(NonZeroU32);

impl Index {
    /// Returns the index of the stream in slot `slot` (0 to 31) of the block with the number
    /// `block`. A block is a group of 32 streams. Returns `None` if the number of the stream
    /// exceeds the limit of about 4 billion streams.
    pub(super) fn new(block: usize, slot: usize) -> Option<Self> {
        let number = block.checked_mul(BLOCK)?.checked_add(slot)?.checked_add(1)?;
        NonZeroU32::new(u32::try_from(number).ok()?).map(Self)
    }

    fn number(self) -> usize {
        self.0.get() as usize - 1
    }

    pub(super) fn block(self) -> usize {
        self.number() / BLOCK
    }

    pub(super) fn slot(self) -> usize {
        self.number() % BLOCK
    }
}

/// The state of 32 streams of a stream registry, which their bodies use without locking the
/// registry. A registration locks the registry only to remove its stream, to get the event that a
/// closed stream still sends, and to compare its key with the key of another registration.
pub(super) struct Block {
    registry: Arc<dyn AnyRegistry>,
    number: u32,
    /// One bit for each of the 32 streams of this block, which is set when the stream is closed. A
    /// bit changes only while the registry is locked. Before a bit is set, the event that the
    /// stream sends before its end is stored in the registry. So a task that finds the bit set also
    /// finds the event.
    closed: AtomicU32,
    /// The wakers of the 32 streams of this block: for each stream, the waker of the task that last
    /// polled it. Closing a stream wakes its task.
    wakers: Mutex<[Option<Waker>; BLOCK]>,
    counts: [Counts; BLOCK],
}

/// The numbers of events and bytes that one registered stream has sent.
#[derive(Default)]
struct Counts {
    events: AtomicU64,
    bytes: AtomicU64,
}

/// A registry whose type of keys is erased, so that the bodies of streams need not know the type.
pub(super) trait AnyRegistry: Send + Sync {
    /// Removes the stream with this index from the stream registry. Called when the registration of
    /// the stream is dropped.
    fn remove(&self, index: Index);

    /// Notes that the request of the stream with this index has got its response. From now on, the
    /// stream counts as open, unless it is closed.
    fn open(&self, index: Index);

    /// Returns the event that a closed stream still sends before it ends, or empty bytes for no
    /// event.
    fn closing_event(&self, index: Index) -> Bytes;

    /// Returns whether the streams with these two indices have the same key. If several layers
    /// register one stream under one key, the stream gets several indices, and only one of its
    /// registrations is kept.
    fn has_same_key(&self, index: Index, other: Index) -> bool;
}

impl Block {
    pub(super) fn new(registry: Arc<dyn AnyRegistry>, number: u32) -> Self {
        Self {
            registry,
            number,
            closed: AtomicU32::new(0),
            wakers: Mutex::default(),
            counts: std::array::from_fn(|_| Counts::default()),
        }
    }

    pub(super) fn is_closed(&self, slot: usize) -> bool {
        self.closed.load(Acquire) & (1 << slot) != 0
    }

    /// Marks the stream in slot `slot` (0 to 31) as closed. Returns the waker of the task that
    /// polls the stream. The caller unlocks the stream registry, and then wakes this task.
    pub(super) fn close(&self, slot: usize) -> Option<Waker> {
        self.closed.fetch_or(1 << slot, Release);
        self.wakers()[slot].take()
    }

    /// Resets the state of a removed stream in slot `slot` (0 to 31), so that a new stream can use
    /// the slot. Returns the waker of the removed stream. The caller unlocks the stream registry,
    /// and then drops the waker.
    pub(super) fn reset(&self, slot: usize) -> Option<Waker> {
        self.closed.fetch_and(!(1 << slot), Release);
        self.counts[slot].events.store(0, Relaxed);
        self.counts[slot].bytes.store(0, Relaxed);
        self.wakers()[slot].take()
    }

    /// Returns the numbers of events and bytes that the stream in slot `slot` (0 to 31) has sent.
    pub(super) fn counts(&self, slot: usize) -> (u64, u64) {
        let Counts { events, bytes } = &self.counts[slot];
        (events.load(Relaxed), bytes.load(Relaxed))
    }

    fn wakers(&self) -> MutexGuard<'_, [Option<Waker>; BLOCK]> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registration of one stream in a stream registry, under a key such as a user. It begins with
/// the request for the stream. Dropping the registration removes the stream from the registry.
pub(crate) struct Registration {
    block: Arc<Block>,
    slot: u32,
}

impl Registration {
    pub(super) fn new(block: Arc<Block>, slot: usize) -> Self {
        Self { block, slot: slot as u32 }
    }

    fn slot(&self) -> usize {
        self.slot as usize
    }

    fn index(&self) -> Option<Index> {
        Index::new(self.block.number as usize, self.slot())
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.block.is_closed(self.slot())
    }

    /// Notes that the response to the registered request is an event stream. Before this call, the
    /// request can be closed, but does not count as an open stream.
    pub(crate) fn open(&self) {
        self.index().into_iter().for_each(|index| self.block.registry.open(index));
    }

    /// Returns whether both registrations have the same key in the same registry. This detects a
    /// stream that several layers have registered under one key, because such a stream counts once.
    /// Returns `false` if comparing the keys panics.
    pub(crate) fn has_same_key(&self, other: &Self) -> bool {
        let (registry, of_other) = (&self.block.registry, &other.block.registry);
        if !Arc::ptr_eq(registry, of_other) {
            return false;
        }
        let mut is_same = false;
        let indices = self.index().zip(other.index());
        let compare = || is_same = indices.is_some_and(|(index, other)| registry.has_same_key(index, other));
        contain_panic("key of a registry", compare);
        is_same
    }

    /// Stores the waker of the task that polls this stream. If the stream registry closes the
    /// stream, it wakes this task. The caller then checks whether the stream is closed, because it
    /// may have been closed before the waker was stored.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        // Wakers are cloned and dropped without a lock, because that runs code of the application.
        let waker = waker.clone();
        let replaced = self.block.wakers()[self.slot()].replace(waker);
        drop(replaced);
    }

    /// Returns the event that a closed stream still sends before it ends, or empty bytes for no
    /// event. Returns `None` if the stream is not closed.
    #[inline]
    pub(crate) fn closing_event(&self) -> Option<Bytes> {
        if !self.is_closed() {
            return None;
        }
        self.index().map(|index| self.block.registry.closing_event(index))
    }

    /// Sets the total number of events and bytes that the stream has sent so far. Only the body of
    /// the stream may call this: concurrent calls would overwrite each other.
    #[inline]
    pub(crate) fn record(&self, events: u64, bytes: u64) {
        let counts = &self.block.counts[self.slot()];
        counts.events.store(events, Relaxed);
        counts.bytes.store(bytes, Relaxed);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Hashing and dropping keys runs code of the application.
        let remove = || self.index().into_iter().for_each(|index| self.block.registry.remove(index));
        contain_panic("key of a registry", remove);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}
