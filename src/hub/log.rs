//! The log of one topic: its retained events as wire bytes. Any number of subscriptions read the
//! log, each from its own position.
//!
//! A log consists of segments: blocks of memory of up to 16 KiB, each with consecutive events. So
//! the next events of a reader are one slice of memory. An event of 4 KiB or more has a segment of
//! its own. A full segment is sealed: readers share its slices without a copy. The last segment is
//! open and still grows. A slice of the open segment is copied once, and the copy is cached for
//! other readers at the same position.

use super::{backend::Position, segment::Segment};
use crate::{EncodedEvents, Event};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    mem,
    ops::{Add, Sub},
    time::Duration,
};
use tokio::time::Instant;

/// The maximum size in bytes of a segment with several events. A segment is a block of memory with
/// consecutive events. An [`SseBody`](crate::SseBody) ends a frame at the same size.
const SEGMENT: usize = 16 * 1024;

/// The minimum size in bytes of a large event. A large event gets a block of memory of its own, and
/// its bytes are never copied.
const LARGE: usize = 4 * 1024;

/// The number of unused bytes, in addition to the size of the retained events, that the open
/// segment may have. The open segment is the block of memory that takes new events. Evicted events
/// leave unused bytes at its beginning. Above this limit, the retained events are moved to the
/// beginning.
const SLACK: usize = 512;

/// The limits for the events that a topic retains. An event is evicted when it exceeds any of them.
/// The newest event is evicted only by its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) max_events: usize,
    pub(super) max_bytes: usize,
    pub(super) max_age: Duration,
}

impl Limits {
    /// Returns the expiry time of an event that was added at `then`. Returns `None` if the event
    /// never expires.
    pub(super) fn expiry(&self, then: Instant) -> Option<Instant> {
        then.checked_add(self.max_age)
    }

    /// Returns the maximum size in bytes of a segment with several events: a quarter of
    /// `max_bytes`, but at most 16 KiB. A full segment is freed when all of its events are evicted,
    /// so small segments keep the memory of a log close to `max_bytes`.
    fn segment(&self) -> usize {
        (self.max_bytes / 4).min(SEGMENT)
    }
}

/// A number of events, and their total size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Add for Amount {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { events: self.events + more.events, bytes: self.bytes + more.bytes }
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self { events: self.events - less.events, bytes: self.bytes - less.bytes }
    }
}

/// The result of reading the log of a topic after a cursor, the last position that the reader has
/// read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The next events after the cursor, and the position of the last of these events.
    Events(EncodedEvents, Position),
    /// No event follows the cursor yet.
    Nothing,
    /// At least one event that the reader has not read yet was evicted, so the reader has to report
    /// a gap.
    Evicted,
}

#[derive(Debug)]
pub(super) struct Log {
    sealed: VecDeque<Segment<Bytes>>,
    open: Segment<Vec<u8>>,
    /// The result of the last read of the open segment, the block of memory that takes new events.
    /// It contains a copy of the events, which readers at the same position share.
    cached_read: Option<Box<CachedRead>>,
    retained: Amount,
    last: Position,
    evicted_through: Position,
}

#[derive(Debug)]
struct CachedRead {
    /// A reader can use the cached events if its cursor is at this position or later, but before
    /// `first`. Its next event is then the first cached event, which is at the position `first`.
    after: Position,
    first: Position,
    last: Position,
    events: EncodedEvents,
}

impl Log {
    /// Creates an empty log for a topic whose events up to and including `evicted_through` may have
    /// been evicted.
    pub(super) fn new(evicted_through: Position) -> Self {
        Self {
            sealed: VecDeque::new(),
            open: Segment::new(Vec::new()),
            cached_read: None,
            retained: Amount::default(),
            last: Position::START,
            evicted_through,
        }
    }

    /// Returns the number of the topic's retained events, and their total size in bytes.
    pub(super) fn retained(&self) -> Amount {
        self.retained
    }

    /// Returns the eviction watermark: events up to and including this position may have been
    /// evicted.
    pub(super) fn evicted_through(&self) -> Position {
        self.evicted_through
    }

    /// Returns the position of the first retained event after `after`, or `None` if there is no
    /// such event.
    pub(super) fn first_after(&self, after: Position) -> Option<Position> {
        if self.last <= after {
            return None;
        }
        match self.sealed_after(after) {
            Some(segment) => segment.first_after(after),
            None => self.open.first_after(after),
        }
    }

    pub(super) fn last(&self) -> Position {
        self.last
    }

    /// Returns `true` if the topic has no event after the position `after`. Evicted events count as
    /// well.
    pub(super) fn ends_at(&self, after: Position) -> bool {
        self.last.max(self.evicted_through) <= after
    }

    /// Returns the time when the oldest retained event was added, or `None` if no event is
    /// retained.
    pub(super) fn oldest_time(&self) -> Option<Instant> {
        self.sealed.front().map_or_else(|| self.open.oldest_time(), Segment::oldest_time)
    }

    /// Adds an event at `position`, which must be greater than the positions of all earlier events.
    /// Evicts nothing: `limits` only determines the size of the memory blocks for events.
    pub(super) fn push(&mut self, position: Position, event: Event, limits: &Limits, now: Instant) {
        let size = event.as_bytes().len();
        let segment = limits.segment();
        if size >= LARGE {
            self.seal();
            let mut alone = Segment::new(event.encode());
            alone.note(position, size, now);
            self.sealed.push_back(alone);
        } else {
            if self.open.bytes.len() + size > segment || !self.open.takes(now) {
                self.seal();
            }
            if self.open.entries.is_empty() && self.sealed.back().is_some_and(|last| last.entries.len() > 1) {
                // The previous segment was filled, so this segment will probably be filled as well.
                // Allocate all of it at once.
                self.open.bytes.reserve_exact(segment.max(size));
            }
            self.open.bytes.extend_from_slice(event.as_bytes());
            let end = self.open.bytes.len();
            self.open.note(position, end, now);
        }
        self.last = position;
        self.retained.events += 1;
        self.retained.bytes += size;
    }

    /// Evicts the oldest events until `max_events` and `max_bytes` are met, but never the newest
    /// event. Returns the number and the size of the evicted events.
    pub(super) fn evict_excess(&mut self, limits: &Limits) -> Amount {
        let before = self.retained;
        let too_much = |retained: Amount| {
            retained.events > 1 && (retained.events > limits.max_events || retained.bytes > limits.max_bytes)
        };
        while too_much(self.retained) {
            self.evict_oldest();
        }
        before - self.retained
    }

    /// Evicts all events that exceed the limits at time `now`, by number, by bytes or by age.
    /// Returns the number and the size of the evicted events.
    pub(super) fn evict(&mut self, limits: &Limits, now: Instant) -> Amount {
        let before = self.retained;
        self.evict_excess(limits);
        let is_too_old = |then| limits.expiry(then).is_some_and(|expiry| expiry <= now);
        while self.sealed.front().and_then(Segment::newest_time).is_some_and(is_too_old) {
            self.evict_segment();
        }
        while self.oldest_time().is_some_and(is_too_old) {
            self.evict_oldest();
        }
        before - self.retained
    }

    /// Removes all events except the newest event, which has replaced them. Replaced events do not
    /// count as evicted, so no gap is reported for them.
    pub(super) fn replace(&mut self) {
        let evicted_through = self.evicted_through;
        while self.retained.events > 1 {
            self.evict_oldest();
        }
        // The eviction watermark does not change, so a cached read would still return the replaced
        // events.
        self.cached_read = None;
        self.evicted_through = evicted_through;
    }

    /// Removes all events of the topic, and returns their number and their size in bytes. From now
    /// on, events up to and including `through` count as evicted.
    pub(super) fn truncate_through(&mut self, through: Position) -> Amount {
        mem::replace(self, Self::new(through)).retained
    }

    /// Evicts all events of the oldest sealed segment, a full block of memory.
    fn evict_segment(&mut self) {
        if let Some(segment) = self.sealed.pop_front() {
            self.evicted_through = segment.last();
            self.retained.events -= segment.entries.len() - segment.dead;
            self.retained.bytes -= segment.live_bytes();
        }
    }

    fn evict_oldest(&mut self) {
        let (position, size) = match self.sealed.front_mut() {
            Some(segment) => {
                let evicted = segment.evict_oldest();
                if segment.is_dead() {
                    self.sealed.pop_front();
                }
                evicted
            }
            None => {
                let evicted = self.open.evict_oldest();
                if self.open.is_dead() {
                    self.open = Segment::new(Vec::new());
                    self.cached_read = None;
                }
                evicted
            }
        };
        self.evicted_through = position;
        self.retained.events -= 1;
        self.retained.bytes -= size;
        if self.open.dead_bytes() > self.open.live_bytes() + SLACK {
            self.open.compact();
        }
    }

    /// Returns the next events of the topic after the position `after` and up to `through`. The
    /// result is one slice of memory, so it may contain only the first of these events.
    ///
    /// Returns [`Read::Evicted`] if events after `after` were evicted. Evicted events up to
    /// `gap_reported_through` do not count, because the client already knows that they are missing.
    pub(super) fn read(&mut self, after: Position, gap_reported_through: Position, through: Position) -> Read {
        let after = after.max(gap_reported_through);
        if self.evicted_through > after {
            return Read::Evicted;
        }
        if self.last <= after {
            return Read::Nothing;
        }
        match self.sealed_after(after) {
            Some(segment) => segment.read(after, through, |bytes, range| bytes.slice(range)),
            None => self.read_open(after, through),
        }
    }

    /// Returns the full segment that contains the first event after `after`. Returns `None` if this
    /// event is in the open segment, which takes new events, or does not exist.
    fn sealed_after(&self, after: Position) -> Option<&Segment<Bytes>> {
        if self.sealed.back()?.last() <= after {
            return None;
        }
        self.sealed.get(self.sealed.partition_point(|segment| segment.last() <= after))
    }

    fn read_open(&mut self, after: Position, through: Position) -> Read {
        if let Some(cached_read) = &self.cached_read {
            if cached_read.after <= after && after < cached_read.first && cached_read.last == self.last.min(through) {
                return Read::Events(cached_read.events.clone(), cached_read.last);
            }
        }
        let read = self.open.read(after, through, |bytes, range| Bytes::copy_from_slice(&bytes[range]));
        if let Read::Events(events, last) = &read {
            let first = self.open.first_after(after).unwrap_or(*last);
            let read = CachedRead { after, first, last: *last, events: events.clone() };
            match &mut self.cached_read {
                Some(cached_read) => **cached_read = read,
                none => *none = Some(Box::new(read)),
            }
        }
        read
    }

    fn seal(&mut self) {
        self.cached_read = None;
        let mut full = mem::replace(&mut self.open, Segment::new(Vec::new()));
        if full.entries.is_empty() {
            return;
        }
        full.compact();
        full.bytes.shrink_to_fit();
        full.entries.shrink_to_fit();
        self.sealed.push_back(Segment { bytes: full.bytes.into(), entries: full.entries, dead: 0, born: full.born });
    }
}
