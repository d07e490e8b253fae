//! A page of a log while it is read.

use super::record::{self, PART};
use crate::hub::backend::{Page, Position, Record, RecordKind};
use bytes::{Bytes, BytesMut};
use std::{collections::HashSet, mem, sync::Arc};

/// The number of records in a full page, and of records that are examined for it.
const RECORDS: usize = 1000;
const EXAMINED: usize = 20_000;
/// The size of the events in a full page.
const BYTES: usize = 1 << 20;

/// The part of a page that was read.
///
/// A damaged or missing record counts as evicted, and can only be at the begin of a page: a page
/// with records ends before it.
pub(super) struct PageReader {
    /// The requested topics. Without a request, all topics that were read.
    topics: HashSet<Arc<str>>,
    wants_all: bool,
    evicted_through: Position,
    through: Position,
    records: Vec<(Position, Arc<str>, RecordKind, usize)>,
    /// The events of `records`, one after the other.
    events: BytesMut,
    examined: usize,
    /// The parts of the next record, and their number.
    parts: Vec<u8>,
    part: u32,
    ends_at_damage: bool,
}

impl PageReader {
    pub(super) fn new(topics: Option<&[Arc<str>]>, evicted_through: Position, after: Position) -> Self {
        Self {
            topics: topics.into_iter().flatten().cloned().collect(),
            wants_all: topics.is_none(),
            evicted_through,
            through: after.max(evicted_through),
            records: Vec::new(),
            events: BytesMut::new(),
            examined: 0,
            parts: Vec::new(),
            part: 0,
            ends_at_damage: false,
        }
    }

    /// Returns the first position that was not read.
    pub(super) fn next(&self) -> Position {
        self.through.next()
    }

    /// Returns whether the page has an end.
    pub(super) fn is_complete(&self) -> bool {
        self.ends_at_damage || self.records.len() >= RECORDS || self.examined >= EXAMINED || self.events.len() >= BYTES
    }

    /// Returns whether every record up to `last` was read, and no such record is on the page or
    /// damaged.
    pub(super) fn is_without_records(&self, last: Position) -> bool {
        self.records.is_empty() && self.evicted_through == Position::START && self.through == last
    }

    /// Adds the next part of a record.
    pub(super) fn add(&mut self, (position, part): (u64, u32), bytes: &[u8]) {
        let position = Position::new(position);
        if position > self.next() && part == 0 {
            self.skip_through(position.previous());
        }
        if part == 0 {
            self.parts.clear();
            self.part = 0;
        }
        // A part that does not continue the record is skipped, and so is the record.
        if self.ends_at_damage || position != self.next() || part != self.part {
            return;
        }
        let is_last = bytes.len() < PART;
        if part == 0 && is_last {
            return self.add_value(position, bytes);
        }
        self.parts.extend_from_slice(bytes);
        self.part += 1;
        if is_last {
            let parts = mem::take(&mut self.parts);
            self.add_value(position, &parts);
            self.parts = parts;
        }
    }

    fn add_value(&mut self, position: Position, value: &[u8]) {
        let Some(value) = record::decode(position, value) else { return self.skip_through(position) };
        self.through = position;
        self.examined += 1;
        let Some(kind) = value.kind else { return };
        let topic = match self.topics.get(value.topic) {
            Some(topic) => topic.clone(),
            None if self.wants_all => {
                let topic = Arc::<str>::from(value.topic);
                self.topics.insert(topic.clone());
                topic
            }
            None => return,
        };
        self.events.extend_from_slice(value.event);
        self.records.push((position, topic, kind, value.event.len()));
    }

    /// Skips damaged records up to this position.
    pub(super) fn skip_through(&mut self, through: Position) {
        if self.examined > 0 {
            self.ends_at_damage = true;
        } else if through > self.through {
            (self.through, self.evicted_through) = (through, through);
        }
    }

    pub(super) fn finish(self, epoch: u64) -> Page {
        let mut events = self.events.freeze();
        let record = |(position, topic, kind, len)| {
            // An empty slice keeps no memory of the page.
            let event = if len == 0 { Bytes::new() } else { events.split_to(len) };
            (position, Record { topic, kind, event })
        };
        Page {
            epoch,
            evicted_through: self.evicted_through,
            records: self.records.into_iter().map(record).collect(),
            through: self.through,
        }
    }
}
