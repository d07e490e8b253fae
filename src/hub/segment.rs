//! A part of a log: events one after the other in one piece of memory.

use super::log::Read;
use crate::EncodedEvents;
use bytes::Bytes;
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// Events one after the other, of which the first few may be no longer held.
#[derive(Debug)]
pub(super) struct Segment<B> {
    pub(super) bytes: B,
    pub(super) entries: Vec<Entry>,
    /// How many of the entries are no longer held.
    pub(super) dead: usize,
    /// When the first event was added.
    pub(super) born: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    /// Where it ends in the segment. Of the last one this is not looked at: it ends where the
    /// segment does.
    end: u32,
    /// When it was added: how many milliseconds after the segment was born.
    age: u32,
}

impl<B: AsRef<[u8]>> Segment<B> {
    pub(super) fn new(bytes: B) -> Self {
        Self { bytes, entries: Vec::new(), dead: 0, born: None }
    }

    /// Whether the time can be told by the segment's clock, which goes on for 49 days.
    pub(super) fn takes(&self, now: Instant) -> bool {
        self.born.is_none_or(|born| now.saturating_duration_since(born).as_millis() <= u128::from(u32::MAX))
    }

    /// Notes an event whose bytes are there.
    pub(super) fn note(&mut self, number: u64, end: usize, now: Instant) {
        let born = *self.born.get_or_insert(now);
        let age = now.saturating_duration_since(born).as_millis();
        // The first cannot be reached where the end is looked at, the second not in a segment that
        // takes the time.
        let [end, age] = [end as u128, age].map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        self.entries.push(Entry { number, end, age });
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead == self.entries.len()
    }

    pub(super) fn last(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.number)
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        Some(self.born? + Duration::from_millis(self.entries.get(self.dead)?.age.into()))
    }

    pub(super) fn newest(&self) -> Option<Instant> {
        Some(self.born? + Duration::from_millis(self.entries.last()?.age.into()))
    }

    /// Where an entry begins in the bytes; for their number, where the bytes end.
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

    /// The number and the size of the oldest event that is held, which then is not. There is one.
    pub(super) fn evict_oldest(&mut self) -> (u64, usize) {
        let size = self.start_of(self.dead + 1) - self.start_of(self.dead);
        self.dead += 1;
        (self.entries[self.dead - 1].number, size)
    }

    fn entry_after(&self, after: u64) -> usize {
        // Most are at the end.
        let newest = self.entries.len().saturating_sub(1);
        if newest > self.dead && self.entries[newest - 1].number <= after && self.entries[newest].number > after {
            return newest;
        }
        self.entries.partition_point(|entry| entry.number <= after).max(self.dead)
    }

    pub(super) fn first_after(&self, after: u64) -> Option<u64> {
        self.entries.get(self.entry_after(after)).map(|entry| entry.number)
    }

    pub(super) fn read(&self, after: u64, through: u64, slice: impl FnOnce(&B, Range<usize>) -> Bytes) -> Read {
        let first = self.entry_after(after);
        let end = match self.last() <= through {
            true => self.entries.len(),
            false => self.entries.partition_point(|entry| entry.number <= through),
        };
        if first >= end {
            return Read::Nothing;
        }
        let bytes = slice(&self.bytes, self.start_of(first)..self.start_of(end));
        Read::Events(EncodedEvents::from_parts(bytes, end - first), self.entries[end - 1].number)
    }
}

impl Segment<Vec<u8>> {
    /// Removes what is no longer held.
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
