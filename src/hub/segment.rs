//! A segment: consecutive events of a topic in one contiguous buffer.

use super::{backend::Position, log::Read};
use crate::EncodedEvents;
use bytes::Bytes;
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// A buffer with the wire bytes of consecutive events of one topic. The bytes of evicted events
/// stay at the beginning of the buffer until the buffer is compacted or dropped.
#[derive(Debug)]
pub(super) struct Segment<B> {
    pub(super) bytes: B,
    pub(super) entries: Vec<Entry>,
    /// The number of evicted events at the beginning of this segment. Their entries and bytes are
    /// still there.
    pub(super) dead: usize,
    /// The time when the first event was added to this segment. `None` for an empty segment.
    pub(super) born: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Entry {
    position: Position,
    /// The offset where the bytes of this event end in its segment, a buffer with consecutive
    /// events. Not used for the last event, because the last event ends with the segment.
    end: u32,
    /// The number of milliseconds between the addition of the segment's first event and the
    /// addition of this event.
    age: u32,
}

impl<B: AsRef<[u8]>> Segment<B> {
    pub(super) fn new(bytes: B) -> Self {
        Self { bytes, entries: Vec::new(), dead: 0, born: None }
    }

    /// Returns `true` if the times in this segment can represent an event that is published at time
    /// `now`. The first event of the segment must be at most 49 days older, because times within a
    /// segment are stored as `u32` milliseconds.
    pub(super) fn takes(&self, now: Instant) -> bool {
        self.born.is_none_or(|born| now.saturating_duration_since(born).as_millis() <= u128::from(u32::MAX))
    }

    /// Adds the position and the time of an event to this segment. The bytes of the event are
    /// already in the buffer, and end at the offset `end`.
    pub(super) fn note(&mut self, position: Position, end: usize, now: Instant) {
        let born = *self.born.get_or_insert(now);
        let age = now.saturating_duration_since(born).as_millis();
        // The conversions cannot overflow: an open segment is small, and `takes` has checked the
        // time.
        let [end, age] = [end as u128, age].map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        self.entries.push(Entry { position, end, age });
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead == self.entries.len()
    }

    pub(super) fn last(&self) -> Position {
        self.entries.last().map_or(Position::START, |entry| entry.position)
    }

    pub(super) fn oldest_time(&self) -> Option<Instant> {
        Some(self.born? + Duration::from_millis(self.entries.get(self.dead)?.age.into()))
    }

    pub(super) fn newest_time(&self) -> Option<Instant> {
        Some(self.born? + Duration::from_millis(self.entries.last()?.age.into()))
    }

    /// Returns the offset in this segment where the event with this index begins. For an index
    /// equal to the number of events, returns the length of the segment.
    fn start_of(&self, entry: usize) -> usize {
        match entry.checked_sub(1) {
            None => 0,
            Some(_) if entry == self.entries.len() => self.bytes.as_ref().len(),
            Some(before) => self.entries[before].end as usize,
        }
    }

    pub(super) fn dead_bytes(&self) -> usize {
        self.start_of(self.dead)
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.bytes.as_ref().len() - self.dead_bytes()
    }

    /// Evicts the oldest event that this segment still retains. Returns its position and its size
    /// in bytes. Panics if all events of the segment are evicted.
    pub(super) fn evict_oldest(&mut self) -> (Position, usize) {
        let size = self.start_of(self.dead + 1) - self.start_of(self.dead);
        self.dead += 1;
        (self.entries[self.dead - 1].position, size)
    }

    fn entry_after(&self, after: Position) -> usize {
        // Most readers are at the end of the segment, so the newest entry is checked first.
        let newest_index = self.entries.len().saturating_sub(1);
        if newest_index > self.dead
            && self.entries[newest_index - 1].position <= after
            && self.entries[newest_index].position > after
        {
            return newest_index;
        }
        self.entries.partition_point(|entry| entry.position <= after).max(self.dead)
    }

    pub(super) fn first_after(&self, after: Position) -> Option<Position> {
        self.entries.get(self.entry_after(after)).map(|entry| entry.position)
    }

    pub(super) fn read(
        &self,
        after: Position,
        through: Position,
        slice: impl FnOnce(&B, Range<usize>) -> Bytes,
    ) -> Read {
        let first = self.entry_after(after);
        let end = match self.last() <= through {
            true => self.entries.len(),
            false => self.entries.partition_point(|entry| entry.position <= through),
        };
        if first >= end {
            return Read::Nothing;
        }
        let bytes = slice(&self.bytes, self.start_of(first)..self.start_of(end));
        Read::Events(EncodedEvents::from_parts(bytes, end - first), self.entries[end - 1].position)
    }
}

impl Segment<Vec<u8>> {
    /// Removes the bytes of the evicted events from the buffer of this segment, and moves the
    /// retained events to its beginning.
    pub(super) fn compact(&mut self) {
        let start = self.dead_bytes();
        self.bytes.drain(..start);
        self.entries.drain(..self.dead);
        self.dead = 0;
        for entry in &mut self.entries {
            entry.end -= start as u32;
        }
    }
}
