//! The log of one topic: its last events as wire bytes, read by any number of cursors.
//!
//! Events stand one after the other in segments of 16 KiB at most, so that whatever a cursor is given next is one piece of
//! memory. A segment that is full is sealed: from then on it is shared, and a piece of it costs no copy. Of the open one, which
//! still grows, a piece is copied when it is asked for, and kept for those who ask for the same.

use super::segment::Segment;
use crate::{EncodedEvents, Event};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    mem,
    ops::{Add, Sub},
    time::Duration,
};
use tokio::time::Instant;

/// A segment takes no event that would make it longer than this. As long as a frame of an [`SseBody`](crate::SseBody).
const SEGMENT: usize = 16 * 1024;

/// An event from this size on is a segment of its own, and never copied.
const LARGE: usize = 4 * 1024;

/// How much that is no longer held an open segment may keep before it is moved together.
const SLACK: usize = 512;

/// How much a topic holds: as much as all of these allow, but at least its newest event until that is too old.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) max_events: usize,
    pub(super) max_bytes: usize,
    pub(super) max_age: Duration,
}

impl Retention {
    /// When something that happened then is too old. `None`: not before the end of time.
    pub(super) fn expiry(&self, then: Instant) -> Option<Instant> {
        then.checked_add(self.max_age)
    }

    /// So that a small log does not keep much more than it holds.
    fn segment(&self) -> usize {
        (self.max_bytes / 4).min(SEGMENT)
    }
}

/// A number of events, and of their bytes.
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

/// What a cursor gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The events that follow, or the first of them, and the number of the last of these.
    Events(EncodedEvents, u64),
    /// There is none yet.
    Nothing,
    /// Some of those that follow are no longer held.
    Lost,
}

#[derive(Debug)]
pub(super) struct Log {
    sealed: VecDeque<Segment<Bytes>>,
    open: Segment<Vec<u8>>,
    /// What was last read of the open segment.
    joined: Option<Box<Joined>>,
    held: Amount,
    newest: u64,
    lost: u64,
}

#[derive(Debug)]
struct Joined {
    /// Who is at the number before its first event or later, but before that event, is at its place.
    after: u64,
    first: u64,
    last: u64,
    events: EncodedEvents,
}

impl Log {
    /// An empty log of which everything up to this number is lost.
    pub(super) fn new(lost: u64) -> Self {
        Self {
            sealed: VecDeque::new(),
            open: Segment::new(Vec::new()),
            joined: None,
            held: Amount::default(),
            newest: 0,
            lost,
        }
    }

    /// What is held.
    pub(super) fn held(&self) -> Amount {
        self.held
    }

    /// The number of the newest event that is not held any more, or a greater one that is smaller than any that is held.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// The number of the oldest event that is held among those after this one.
    pub(super) fn first_after(&self, after: u64) -> Option<u64> {
        if self.newest <= after {
            return None;
        }
        match self.sealed_after(after) {
            Some(segment) => segment.first_after(after),
            None => self.open.first_after(after),
        }
    }

    /// The number of the newest event.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether nothing follows this one, held or lost.
    pub(super) fn ends_at(&self, after: u64) -> bool {
        self.newest.max(self.lost) <= after
    }

    /// When the oldest event that is held was added.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.sealed.front().map_or_else(|| self.open.oldest(), Segment::oldest)
    }

    /// Adds an event, whose id says the same number. Numbers rise.
    pub(super) fn push(&mut self, number: u64, event: Event, retention: &Retention, now: Instant) {
        let size = event.as_bytes().len();
        let segment = retention.segment();
        if size >= LARGE {
            self.seal();
            let mut alone = Segment::new(event.encode());
            alone.note(number, size, now);
            self.sealed.push_back(alone);
        } else {
            if self.open.bytes.len() + size > segment || !self.open.takes(now) {
                self.seal();
            }
            if self.open.entries.is_empty() && self.sealed.back().is_some_and(|last| last.entries.len() > 1) {
                // A busy topic, and not a large event: this one will be filled, too.
                self.open.bytes.reserve_exact(segment.max(size));
            }
            self.open.bytes.extend_from_slice(event.as_bytes());
            let end = self.open.bytes.len();
            self.open.note(number, end, now);
        }
        self.newest = number;
        self.held.events += 1;
        self.held.bytes += size;
    }

    /// Lets go of what is too much or too old. Returns how much that was.
    pub(super) fn evict(&mut self, retention: &Retention, now: Instant) -> Amount {
        let before = self.held;
        let too_much =
            |held: Amount| held.events > 1 && (held.events > retention.max_events || held.bytes > retention.max_bytes);
        while too_much(self.held) {
            self.evict_oldest();
        }
        let is_too_old = |then| retention.expiry(then).is_some_and(|expiry| expiry <= now);
        while self.sealed.front().and_then(Segment::newest).is_some_and(is_too_old) {
            self.evict_segment();
        }
        while self.oldest().is_some_and(is_too_old) {
            self.evict_oldest();
        }
        before - self.held
    }

    /// Lets go of all but the newest, which stands for those before it: they are not lost.
    pub(super) fn replace(&mut self) {
        let lost = self.lost;
        while self.held.events > 1 {
            self.evict_oldest();
        }
        // As they are not lost, nothing else keeps a reader from what was joined of them.
        self.joined = None;
        self.lost = lost;
    }

    /// Removes all events, and regards everything up to this number as evicted. Returns the amount
    /// that was retained.
    pub(super) fn truncate_through(&mut self, through: u64) -> Amount {
        mem::replace(self, Self::new(through)).held
    }

    /// All of the oldest segment, which is sealed.
    fn evict_segment(&mut self) {
        if let Some(segment) = self.sealed.pop_front() {
            self.lost = segment.last();
            self.held.events -= segment.entries.len() - segment.dead;
            self.held.bytes -= segment.live_bytes();
        }
    }

    fn evict_oldest(&mut self) {
        let (number, size) = match self.sealed.front_mut() {
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
                    self.joined = None;
                }
                evicted
            }
        };
        self.lost = number;
        self.held.events -= 1;
        self.held.bytes -= size;
        if self.open.dead_bytes() > self.open.live_bytes() + SLACK {
            self.open.compact();
        }
    }

    /// What follows `after`, in one piece, and nothing beyond `through`. What is lost up to `told` is not counted as lost.
    pub(super) fn read(&mut self, after: u64, told: u64, through: u64) -> Read {
        let after = after.max(told);
        if self.lost > after {
            return Read::Lost;
        }
        if self.newest <= after {
            return Read::Nothing;
        }
        match self.sealed_after(after) {
            Some(segment) => segment.read(after, through, |bytes, range| bytes.slice(range)),
            None => self.read_open(after, through),
        }
    }

    /// The segment with the event that follows, if it is not the open one, where most readers are.
    fn sealed_after(&self, after: u64) -> Option<&Segment<Bytes>> {
        if self.sealed.back()?.last() <= after {
            return None;
        }
        self.sealed.get(self.sealed.partition_point(|segment| segment.last() <= after))
    }

    fn read_open(&mut self, after: u64, through: u64) -> Read {
        if let Some(joined) = &self.joined {
            if joined.after <= after && after < joined.first && joined.last == self.newest.min(through) {
                return Read::Events(joined.events.clone(), joined.last);
            }
        }
        let read = self.open.read(after, through, |bytes, range| Bytes::copy_from_slice(&bytes[range]));
        if let Read::Events(events, last) = &read {
            let first = self.open.first_after(after).unwrap_or(*last);
            self.joined = Some(Box::new(Joined { after, first, last: *last, events: events.clone() }));
        }
        read
    }

    fn seal(&mut self) {
        self.joined = None;
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
