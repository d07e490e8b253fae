//! The streams that are registered in a stream registry, in blocks of 32, and a hash table that
//! finds the streams with a key, such as a user.

use super::registration::{AnyRegistry, BLOCK, Block, Index, Registration};
use bytes::Bytes;
use hashbrown::HashTable;
use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
};

/// The streams that are registered in a stream registry. Each stream has a key, such as a user. A
/// stream is registered with its request, and is open from its response until it is closed or
/// removed. The streams with the same key that are not closed form a linked list, and a hash table
/// contains the first stream of each list.
///
/// A closed stream is in no list, so it is not found by its key. Its index is given to another
/// stream only after its registration is dropped. So a registration never refers to a newer stream.
///
/// Hashing, comparing and cloning keys runs code of the application, which may panic. So each
/// method runs this code before it changes anything, except [`remove`](Self::remove), which catches
/// the panic.
pub(super) struct Streams<K> {
    blocks: Vec<Option<Slots<K>>>,
    /// The indices in `blocks` of the blocks that have room for another stream, because they have
    /// fewer than 32. Includes the indices of the entries that are `None`, which stand for empty
    /// blocks.
    with_room: BTreeSet<usize>,
    /// A hash table with one entry for each key that has streams that are not closed: the first
    /// stream in the linked list of the streams with this key.
    first: HashTable<Index>,
    /// The events that closed streams send before their end, by the indices of the streams. A
    /// stream without such an event has no entry.
    closing_events: BTreeMap<Index, Bytes>,
    /// The number of open streams in this registry. Requests without a response do not count.
    /// Closed streams do not count either, although they stay registered until their registrations
    /// are dropped.
    open: usize,
}

/// A [`Block`] of 32 streams, and the part of their state that is accessed only while the stream
/// registry is locked, such as their keys.
struct Slots<K> {
    block: Arc<Block>,
    streams: Box<[Option<Stream<K>>; BLOCK]>,
    /// The time when each stream was registered, in ticks of 10 milliseconds since the registry was
    /// created.
    began: Box<[u32; BLOCK]>,
    /// The number of streams in this block, which are the entries of `streams` that are `Some`.
    used: usize,
    /// One bit for each stream, which is set when its request has got a response. A stream with
    /// this bit is open until it is closed.
    has_response: u32,
}

/// A stream that is registered under a key in a stream registry. The registry may have closed it
/// already.
struct Stream<K> {
    key: K,
    /// The next stream in the linked list of the streams with the same key. The last stream of the
    /// list contains its own index.
    next: Index,
    /// The previous stream in the linked list of the streams with the same key. `None` for the
    /// first stream.
    previous: Option<Index>,
}

impl<K> Stream<K> {
    fn after(&self, own: Index) -> Option<Index> {
        (self.next != own).then_some(self.next)
    }
}

/// A snapshot of one open stream in a stream registry: its key (such as a user), the time when it
/// was registered, and the numbers of events and bytes that it has sent so far.
pub(super) struct Snapshot<'a, K> {
    pub(super) key: &'a K,
    pub(super) began: u32,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// The values that a removed stream leaves, such as its key and its waker. Dropping them runs code
/// of the application, so the caller unlocks the registry before it drops them.
pub(super) struct Removed<K> {
    _stream: Option<Stream<K>>,
    _waker: Option<Waker>,
    _closing_event: Option<Bytes>,
    _block: Option<Slots<K>>,
}

impl<K> Default for Streams<K> {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            with_room: BTreeSet::new(),
            first: HashTable::new(),
            closing_events: BTreeMap::new(),
            open: 0,
        }
    }
}

impl<K> Streams<K> {
    /// Returns the number of open streams in this registry.
    pub(super) fn len(&self) -> usize {
        self.open
    }

    /// Returns the number of open streams that are registered under `key` (such as a user). `hash`
    /// is the hash of `key`.
    pub(super) fn count(&self, key: &K, hash: u64) -> usize
    where
        K: Eq,
    {
        let first = self.first.find(hash, |first| self.has_key(*first, key)).copied();
        self.list(first).filter(|index| self.is_open(*index)).count()
    }

    /// Adds a stream with the key `key` to the registry. The stream is not open yet, because its
    /// request has no response: [`open`](Self::open) opens it. `hash` is the hash of `key`.
    /// `hash_of` computes the hashes of other keys, in case the table of keys has to grow. Returns
    /// `None` if the registry has 4 billion streams.
    pub(super) fn add(
        &mut self,
        key: K,
        hash: u64,
        hash_of: impl Fn(&K) -> u64,
        registry: Arc<dyn AnyRegistry>,
        began: u32,
    ) -> Option<Registration>
    where
        K: Eq,
    {
        let next = self.first.find(hash, |first| self.has_key(*first, &key)).copied();
        if next.is_none() {
            self.reserve_key(hash_of);
        }
        let number = self.with_room.first().copied().unwrap_or(self.blocks.len());
        let slot = self.blocks.get(number).and_then(Option::as_ref).map_or(0, Slots::first_free);
        let index = Index::new(number, slot)?;
        if number == self.blocks.len() {
            if self.blocks.len() == self.blocks.capacity() {
                // Doubling would leave up to half of the memory unused.
                self.blocks.reserve_exact(4 + self.blocks.len() / 4);
            }
            self.blocks.push(None);
            self.with_room.insert(number);
        }
        let slots = self.blocks[number].get_or_insert_with(|| Slots::new(registry, number));
        slots.streams[slot] = Some(Stream { key, next: next.unwrap_or(index), previous: None });
        slots.began[slot] = began;
        slots.used += 1;
        if slots.used == BLOCK {
            self.with_room.remove(&number);
        }
        let registration = Registration::new(Arc::clone(&slots.block), slot);
        match next {
            Some(next) => {
                self.stream_mut(next).into_iter().for_each(|next| next.previous = Some(index));
                let first = self.first.find_mut(hash, |first| *first == next);
                first.into_iter().for_each(|first| *first = index);
            }
            None => {
                // `reserve_key` has reserved memory, so no hash is computed.
                self.first.insert_unique(hash, index, |_| hash);
            }
        }
        Some(registration)
    }

    /// Notes that the request of a registered stream has got its response. From now on, the stream
    /// counts as open, unless it was closed before.
    pub(super) fn open(&mut self, index: Index) {
        let Some(slots) = self.blocks.get_mut(index.block()).and_then(Option::as_mut) else { return };
        if !slots.is_open(index.slot()) {
            slots.has_response |= 1 << index.slot();
            self.open += usize::from(slots.is_open(index.slot()));
        }
    }

    /// Closes the streams that are registered under `key`, including requests without a response.
    /// Each stream sends `event` before its end, unless `event` is empty. Returns the number of
    /// streams that were open, and the wakers of their tasks. The caller first unlocks the
    /// registry, and then wakes the tasks.
    pub(super) fn close(&mut self, key: &K, hash: u64, event: &Bytes) -> (usize, Vec<Waker>)
    where
        K: Eq,
    {
        let Self { first, blocks, .. } = self;
        let Ok(entry) = first.find_entry(hash, |first| stream(blocks, *first).is_some_and(|it| it.key == *key)) else {
            return (0, Vec::new());
        };
        let (first, _) = entry.remove();
        let closed: Vec<_> = self.list(Some(first)).collect();
        if !event.is_empty() {
            self.closing_events.extend(closed.iter().map(|index| (*index, event.clone())));
        }
        let open = closed.iter().filter(|index| self.is_open(**index)).count();
        self.open -= open;
        let blocks = &self.blocks;
        let wakers = closed.iter().filter_map(|index| blocks[index.block()].as_ref()?.block.close(index.slot()));
        (open, wakers.collect())
    }

    /// Closes all streams of this registry, including requests without a response. They send no
    /// event before their end. Returns the wakers of their tasks. The caller first unlocks the
    /// registry, and then wakes the tasks.
    pub(super) fn close_all(&mut self) -> Vec<Waker> {
        self.first.clear();
        self.open = 0;
        let all = self.blocks.iter().flatten();
        all.flat_map(|slots| slots.unclosed().filter_map(|slot| slots.block.close(slot))).collect()
    }

    /// Returns the event that the closed stream sends as its last event: the event that the
    /// application passed to `close_with`. Returns empty bytes if the stream was closed without an
    /// event.
    pub(super) fn closing_event(&self, index: Index) -> Bytes {
        self.closing_events.get(&index).cloned().unwrap_or_default()
    }

    /// Removes a stream, closed or not, from this registry. Called when the registration of the
    /// stream is dropped.
    pub(super) fn remove(&mut self, index: Index, hash_of: impl Fn(&K) -> u64) -> Removed<K> {
        let slots = self.blocks.get(index.block()).and_then(Option::as_ref);
        if let Some(slots) = slots.filter(|slots| !slots.block.is_closed(index.slot())) {
            self.open -= usize::from(slots.is_open(index.slot()));
            self.unlink(index, &hash_of);
        }
        let mut removed =
            Removed { _stream: None, _waker: None, _closing_event: self.closing_events.remove(&index), _block: None };
        if let Some(slots) = self.blocks.get_mut(index.block()).and_then(Option::as_mut) {
            removed._stream = slots.streams[index.slot()].take();
            removed._waker = slots.block.reset(index.slot());
            slots.used -= 1;
            slots.has_response &= !(1 << index.slot());
            self.with_room.insert(index.block());
            if slots.used == 0 {
                removed._block = self.blocks[index.block()].take();
            }
        }
        while let Some(None) = self.blocks.last() {
            self.blocks.pop();
            self.with_room.remove(&self.blocks.len());
        }
        if self.blocks.capacity() / 8 > self.blocks.len() {
            self.blocks.shrink_to(2 * self.blocks.len());
        }
        if self.first.num_buckets() / 16 > self.first.len() {
            // After a panic, the table stays as it is.
            let _panicked = catch_unwind(AssertUnwindSafe(|| self.rebuild_table(&hash_of)));
        }
        removed
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Snapshot<'_, K>> {
        self.blocks.iter().flatten().flat_map(|slots| {
            (0..BLOCK).filter(|slot| slots.is_open(*slot)).filter_map(|slot| {
                let (events, bytes) = slots.block.counts(slot);
                Some(Snapshot { key: &slots.streams[slot].as_ref()?.key, began: slots.began[slot], events, bytes })
            })
        })
    }

    /// Removes a stream that is not closed from the linked list of the streams with the same key.
    fn unlink(&mut self, index: Index, hash_of: impl Fn(&K) -> u64) {
        let Some((previous, next)) = self.stream(index).map(|stream| (stream.previous, stream.after(index))) else {
            return;
        };
        if let Some(next) = next {
            self.stream_mut(next).into_iter().for_each(|next| next.previous = previous);
        }
        if let Some(previous) = previous {
            let after = next.unwrap_or(previous);
            self.stream_mut(previous).into_iter().for_each(|previous| previous.next = after);
            return;
        }
        let Self { blocks, first, .. } = self;
        let hash = || stream(blocks, index).map(|stream| hash_of(&stream.key));
        let hash = catch_unwind(AssertUnwindSafe(hash)).unwrap_or_default();
        let entry = hash.and_then(|hash| first.find_entry(hash, |first| *first == index).ok());
        match (entry, next) {
            (Some(mut entry), Some(next)) => *entry.get_mut() = next,
            (Some(entry), None) => drop(entry.remove()),
            // The hash of the key has changed, or hashing the key panics.
            (None, Some(next)) => first.iter_mut().filter(|first| **first == index).for_each(|first| *first = next),
            (None, None) => first.retain(|first| *first != index),
        }
    }

    /// Makes room for another key in the hash table `first`, which contains the first stream of
    /// each key.
    fn reserve_key(&mut self, hash_of: impl Fn(&K) -> u64) {
        if self.first.len() == self.first.capacity() {
            self.rebuild_table(hash_of);
        }
    }

    /// Replaces the hash table `first` (the first stream of each key) by a table of a suitable
    /// size: with room for half as many further keys as it has now.
    ///
    /// `HashTable::reserve` and `HashTable::shrink_to` would lose entries if hashing a key panics.
    /// This method builds another table instead, so a panic changes nothing.
    fn rebuild_table(&mut self, hash_of: impl Fn(&K) -> u64) {
        let mut table = HashTable::with_capacity(4 + self.first.len() / 2 * 3);
        for first in &self.first {
            if let Some(stream) = self.stream(*first) {
                let hash = hash_of(&stream.key);
                table.insert_unique(hash, *first, |_| hash);
            }
        }
        self.first = table;
    }

    fn has_key(&self, index: Index, key: &K) -> bool
    where
        K: Eq,
    {
        self.stream(index).is_some_and(|stream| stream.key == *key)
    }

    /// Returns whether two registered streams have the same key.
    pub(super) fn has_same_key(&self, index: Index, other: Index) -> bool
    where
        K: Eq,
    {
        self.stream(other).is_some_and(|other| self.has_key(index, &other.key))
    }

    fn is_open(&self, index: Index) -> bool {
        let slots = self.blocks.get(index.block()).and_then(Option::as_ref);
        slots.is_some_and(|slots| slots.is_open(index.slot()))
    }

    /// Returns the indices of the streams in a linked list of streams with the same key. `first` is
    /// the first stream, or `None` if the list is empty.
    fn list(&self, first: Option<Index>) -> impl Iterator<Item = Index> {
        std::iter::successors(first, |index| self.stream(*index)?.after(*index))
    }

    fn stream(&self, index: Index) -> Option<&Stream<K>> {
        stream(&self.blocks, index)
    }

    fn stream_mut(&mut self, index: Index) -> Option<&mut Stream<K>> {
        self.blocks.get_mut(index.block())?.as_mut()?.streams[index.slot()].as_mut()
    }
}

fn stream<K>(blocks: &[Option<Slots<K>>], index: Index) -> Option<&Stream<K>> {
    blocks.get(index.block())?.as_ref()?.streams[index.slot()].as_ref()
}

impl<K> Slots<K> {
    fn new(registry: Arc<dyn AnyRegistry>, number: usize) -> Self {
        Self {
            // `Index::new` has accepted this number, so it fits into a `u32`.
            block: Arc::new(Block::new(registry, number as u32)),
            streams: Box::new(std::array::from_fn(|_| None)),
            began: Box::new([0; BLOCK]),
            used: 0,
            has_response: 0,
        }
    }

    fn first_free(&self) -> usize {
        self.streams.iter().position(Option::is_none).unwrap_or(BLOCK)
    }

    /// Returns the slots (0 to 31) of the streams of this block that are not closed. Includes
    /// streams whose requests have no response yet.
    fn unclosed(&self) -> impl Iterator<Item = usize> {
        (0..BLOCK).filter(|slot| self.streams[*slot].is_some() && !self.block.is_closed(*slot))
    }

    /// Returns `true` if the request of the stream in this slot has got its response, and the
    /// stream is not closed.
    fn is_open(&self, slot: usize) -> bool {
        self.has_response & (1 << slot) != 0 && !self.block.is_closed(slot)
    }
}
