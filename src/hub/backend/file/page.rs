//! Collects the records of a page, the result of one read of the log, while the database is read.

use super::record::{self, PART};
use crate::hub::backend::{Page, Position, Record, RecordKind};
use bytes::{Bytes, BytesMut};
use std::{collections::HashSet, mem, sync::Arc};

/// A page, the result of one read of the log, is complete when it has this number of records.
const RECORDS: usize = 1000;
/// A page, the result of one read of the log, is complete when this number of records was examined
/// for it, including records of topics that the reader has not requested.
const EXAMINED: usize = 20_000;
/// A page, the result of one read of the log, is complete when its events have this size in bytes.
const BYTES: usize = 1 << 20;

/// A page of the log that is being read: the records that were read so far.
///
/// A damaged or missing record counts as evicted, as if the retention had removed it. A page can
/// report evicted records only at its beginning. So if a damaged record follows records that were
/// already read for the page, the page ends before the damaged record.
pub(super) struct PageReader {
    /// The topics that the reader of the log has requested. If the reader has requested all topics,
    /// these are the topics of the records that were read so far: records of the same topic share
    /// one copy of its name.
    topics: HashSet<Arc<str>>,
    wants_all: bool,
    evicted_through: Position,
    through: Position,
    records: Vec<(Position, Arc<str>, RecordKind, usize)>,
    /// The events of the records that were read for this page (the result of one read of the log),
    /// one after the other.
    events: BytesMut,
    examined: usize,
    /// The bytes of the record that is being read. The database stores a record in several parts.
    /// This field contains the parts that were read so far, one after the other, and the field
    /// `part` counts them.
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

    /// Returns the position of the record to read next: the first position after the records that
    /// were read or skipped for this page, the result of one read of the log.
    pub(super) fn next(&self) -> Position {
        self.through.next()
    }

    /// Returns `true` if no further record is added to this page, the result of one read of the
    /// log: the page is full, or ends before a damaged record.
    pub(super) fn is_complete(&self) -> bool {
        self.ends_at_damage || self.records.len() >= RECORDS || self.examined >= EXAMINED || self.events.len() >= BYTES
    }

    /// Returns `true` if every record of the log up to `last` was read, no record was damaged, and
    /// no record belongs to a topic that the reader has requested.
    pub(super) fn is_without_records(&self, last: Position) -> bool {
        self.records.is_empty() && self.evicted_through == Position::START && self.through == last
    }

    /// Adds the next part of a record to the page. The database stores a record in parts, under the
    /// position of the record and the number of the part.
    pub(super) fn add(&mut self, (position, part): (u64, u32), bytes: &[u8]) {
        let position = Position::new(position);
        if position > self.next() && part == 0 {
            self.skip_through(position.previous());
        }
        if part == 0 {
            self.parts.clear();
            self.part = 0;
        }
        // If a part is missing, the later parts of the record are skipped. The record then counts
        // as damaged.
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

    /// Skips the next records of the log, up to the position `through`, because they are damaged or
    /// missing. If records were already read for this page (the result of one read of the log), the
    /// page ends before the skipped records. Otherwise, the page reports the skipped records as
    /// evicted.
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
