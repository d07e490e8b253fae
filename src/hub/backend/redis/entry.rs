//! Decoding of the entries of a Redis stream: each entry is a position and a record.

use super::entry_id::{self, OVERFLOW_SEQUENCE, TOO_LATE, expect_position};
use crate::{
    BoxError,
    hub::backend::{Position, Record, RecordKind},
};
use bytes::Bytes;
use redis::Value;
use std::sync::Arc;

/// Returns the name of the field that contains the event in an entry of the Redis stream. The kind
/// of the record determines the name: `e` for an event, `s` for an event that replaces the previous
/// one, `f` for the end of a topic, and `r` for its removal.
pub(super) fn name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Event => "e",
        RecordKind::State => "s",
        RecordKind::Finish => "f",
        RecordKind::Remove => "r",
    }
}

fn kind(name: &[u8]) -> Option<RecordKind> {
    match name {
        b"e" => Some(RecordKind::Event),
        b"s" => Some(RecordKind::State),
        b"f" => Some(RecordKind::Finish),
        b"r" => Some(RecordKind::Remove),
        _ => None,
    }
}

/// One decoded entry of the Redis stream.
pub(super) struct Entry {
    pub(super) position: Position,
    /// The position of the preceding entry. A hub writes it into the entry, or leaves it out if the
    /// two positions are consecutive. The decoder then computes it. `None` if other software than a
    /// hub has added this entry without a position. Also `None` if this entry was deleted during
    /// the read, because Redis then returns no contents of it.
    pub(super) previous: Option<Position>,
    /// The position that a reader must have reached to report no gap at this entry. `None` if this
    /// entry reports no loss of entries. A reader reports a gap if it has read the log only up to a
    /// smaller position, and this entry is the next that it reads.
    ///
    /// In an entry with a record, this is the newest lost position that the hub knew when it added
    /// the entry. In a mark, an entry that only reports a loss, this is the position directly
    /// before the mark. There is no entry at this position, so every reader reports a gap at a
    /// mark.
    lost_for_readers_before: Option<Position>,
    /// The position of the newest lost entry that this entry reports. `None` if this entry reports
    /// no loss. This position equals `lost_for_readers_before`, except in a mark, an entry that
    /// only reports a loss.
    newest_lost: Option<Position>,
    record: Option<(RecordKind, Bytes)>,
    bytes: usize,
}

impl Entry {
    /// Returns the eviction watermark of a log whose oldest retained entry is this entry. All
    /// entries up to this watermark were removed.
    pub(super) fn evicted_through(&self) -> Position {
        self.previous.unwrap_or(self.position.previous())
    }
}

/// Decodes an entry of the Redis stream. Calls `wants` with the topic of the entry. If `wants`
/// returns `false`, the record of the entry is not decoded.
fn entry(value: Value, mut wants: impl FnMut(&str) -> bool) -> Result<Entry, BoxError> {
    let Value::Array(parts) = value else { return Err(not_a_stream()) };
    let mut parts = parts.into_iter();
    let (Some(Value::BulkString(id)), Some(fields)) = (parts.next(), parts.next()) else { return Err(not_a_stream()) };
    let position = expect_position(&id)?;
    // Redis returns an entry without fields if the entry was deleted during the command.
    let Value::Array(fields) = fields else {
        return Ok(Entry {
            position,
            previous: None,
            lost_for_readers_before: None,
            newest_lost: None,
            record: None,
            bytes: 0,
        });
    };
    let (mut previous, mut lost, mut mark) = (None, None, None);
    let (mut has_topic, mut is_wanted, mut record, mut bytes) = (false, false, None, id.len());
    let mut fields = fields.into_iter();
    while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) = (fields.next(), fields.next()) {
        bytes += name.len() + value.len();
        match &*name {
            // These fields name earlier entries. A later position would move the readers forward
            // past entries that they have not read. Only other software writes such values, so they
            // are ignored.
            b"p" => previous = entry_id::position(&value).filter(|previous| *previous < position),
            b"l" => lost = entry_id::position(&value).filter(|lost| *lost < position),
            b"g" => mark = entry_id::position(&value).filter(|lost| *lost < position),
            b"t" => {
                let topic = std::str::from_utf8(&value);
                has_topic = topic.is_ok();
                is_wanted = topic.is_ok_and(&mut wants);
            }
            _ => record = record.or(kind(&name).map(|kind| (kind, Bytes::from(value)))),
        }
    }
    let is_ours = has_topic && record.is_some() && position != TOO_LATE;
    if is_ours && previous.is_none() && position.get() & OVERFLOW_SEQUENCE != 0 {
        previous = Some(position.previous());
    }
    // The first entry after a failover reports the loss to readers whose cursor is before the lost
    // entries. A mark is an entry without a topic. It reports the loss to all readers.
    let is_mark = !has_topic && previous.is_some() && mark.is_some();
    let (lost_for_readers_before, newest_lost) = match is_mark {
        true => (Some(position.previous()), mark),
        false if is_ours => (lost, lost),
        false => (None, None),
    };
    let record = record.filter(|_| is_ours && is_wanted);
    Ok(Entry { position, previous, lost_for_readers_before, newest_lost, record, bytes })
}

/// Decodes the first of these entries of the Redis stream, but not the record that it contains.
/// Returns `None` if there is no entry.
pub(super) fn first(entries: Vec<Value>) -> Result<Option<Entry>, BoxError> {
    entries.into_iter().next().map(|value| entry(value, |_| false)).transpose()
}

/// Returns the undecoded entries in a response to `XREAD` of one stream, in the format RESP2 or
/// RESP3. A response without entries is an empty list.
pub(super) fn stream_entries(answer: Value) -> Result<Vec<Value>, BoxError> {
    let entries = match answer {
        Value::Nil => return Ok(Vec::new()),
        Value::Map(streams) => streams.into_iter().next().map(|(_, entries)| entries),
        Value::Array(streams) => match streams.into_iter().next() {
            Some(Value::Array(stream)) => stream.into_iter().nth(1),
            _ => None,
        },
        _ => None,
    };
    match entries {
        Some(Value::Array(entries)) => Ok(entries),
        _ => Err(not_a_stream()),
    }
}

fn not_a_stream() -> BoxError {
    "the answer of the server is none of a stream".into()
}

/// The decoded contents of consecutive entries of the Redis stream that one read has returned.
#[derive(Default)]
pub(super) struct DecodedBatch {
    /// The eviction watermark: entries up to this position were evicted or lost before the reader
    /// of this batch got them. `None` if the reader has missed no entry.
    pub(super) evicted_through: Option<Position>,
    pub(super) records: Vec<(Position, Record)>,
    /// The position of the last entry of the batch. If the batch is empty, this is the position of
    /// the entry that the reader has read last.
    pub(super) through: Position,
    /// `true` if the first entry of the batch does not show the position of its predecessor, unlike
    /// the entries of a hub. Either other software has added this entry, or Redis has returned it
    /// without its contents, because it was deleted during the read.
    pub(super) begins_with_foreign_entry: bool,
    /// The position of the predecessor of the first entry of the batch. `None` if it is unknown
    /// (see `begins_with_foreign_entry`).
    pub(super) previous: Option<Position>,
    /// `true` if the log has lost the last entry that the reader has read, because a failover has
    /// lost the newest entries of the log. The first entry of the batch shows this: the position of
    /// its predecessor is smaller than the position of this last entry.
    pub(super) has_gone_back: bool,
    /// The position of the newest lost entry that the entries of the batch report. After a failover
    /// has lost entries, a hub writes this position into an entry that it adds. `None` if no entry
    /// of the batch reports a loss.
    pub(super) newest_lost: Option<Position>,
    /// The positions of all entries of the batch, as ranges of consecutive positions: each pair is
    /// the first and the last position of a range. The detection of lost entries uses them: an
    /// entry that this process has added is lost if the batch has passed its position, and no range
    /// contains it.
    pub(super) runs: Vec<(Position, Position)>,
    pub(super) entries: usize,
    /// The size in bytes of the largest entry in this batch.
    pub(super) largest: usize,
}

/// Decodes the entries of a Redis stream that one read has returned, for a reader that has read the
/// log up to the position `after`. Calls `topic` with the topic name of each entry. `topic` returns
/// the name as a shared string, or `None` if the records of the topic are not wanted.
///
/// Each entry of a hub shows the position of its predecessor. A batch can report missing entries
/// only before its first entry. So the batch ends where entries are missing or are reported as
/// lost. The next read begins with the entry after them, and reports them. Entries of other
/// software add no record to the batch.
pub(super) fn decode(
    entries: Vec<Value>,
    after: Position,
    mut topic: impl FnMut(&str) -> Option<Arc<str>>,
) -> Result<DecodedBatch, BoxError> {
    let records = Vec::with_capacity(entries.len());
    let mut batch = DecodedBatch { records, through: after, ..DecodedBatch::default() };
    for value in entries {
        let mut name = None;
        let entry = match entry(value, |text| {
            name = topic(text);
            name.is_some()
        }) {
            Ok(entry) => entry,
            Err(error) if batch.entries == 0 => return Err(error),
            // The entries before the invalid entry can be read.
            Err(_) => break,
        };
        let through = batch.through;
        let is_next =
            entry.previous.is_none_or(|previous| previous == through) && entry.lost_for_readers_before <= Some(through);
        match batch.entries {
            0 => {
                batch.begins_with_foreign_entry = entry.previous.is_none();
                batch.previous = entry.previous;
                batch.has_gone_back = has_gone_back(after, &entry);
                batch.evicted_through = evicted_through(after, &entry);
            }
            _ if !is_next => break,
            _ => {}
        }
        batch.entries += 1;
        batch.largest = batch.largest.max(entry.bytes);
        batch.newest_lost = batch.newest_lost.max(entry.newest_lost);
        match batch.runs.last_mut() {
            Some((_, last)) if entry.position <= last.next() => *last = entry.position.max(*last),
            _ => batch.runs.push((entry.position, entry.position)),
        }
        // Entries of other software at the end of a millisecond can share one position.
        batch.through = entry.position.max(batch.through);
        if let (Some((kind, event)), Some(topic)) = (entry.record, name) {
            batch.records.push((entry.position, Record { topic, kind, event }));
        }
    }
    Ok(batch)
}

/// Returns the eviction watermark for a reader that has read the log up to the position `after`,
/// and gets the entry `next` now. The reader may have missed entries up to this watermark, because
/// they were evicted or lost. Returns `None` if the reader has missed no entry.
fn evicted_through(after: Position, next: &Entry) -> Option<Position> {
    match next.previous {
        _ if next.lost_for_readers_before > Some(after) => Some(next.position.previous()),
        Some(previous) if previous > after => Some(previous),
        // The log may have lost more entries than this reader has read.
        _ if has_gone_back(after, next) => Some(next.position.previous()),
        _ => None,
    }
}

/// Returns `true` if a failover has lost the newest entries of the log, including the entry at
/// `after`, the last position that the reader has read. The entry `next`, which the reader gets
/// now, shows this: its predecessor is before `after`. Returns `false` if `after` is directly
/// before `next`, because no entry can be missing between them.
fn has_gone_back(after: Position, next: &Entry) -> bool {
    next.previous.is_some_and(|previous| previous < after) && after < next.position.previous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::{
        arbitrary::{self, Unstructured},
        arbtest,
    };
    use entry_id::{SEQUENCE_BITS, id, position};

    fn at(ms: u64, sequence: u64) -> Position {
        Position::new(ms << SEQUENCE_BITS | sequence)
    }

    fn bulk(bytes: impl Into<Vec<u8>>) -> Value {
        Value::BulkString(bytes.into())
    }

    fn value(id: String, fields: &[(&str, &str)]) -> Value {
        let fields = fields.iter().flat_map(|(name, value)| [bulk(*name), bulk(*value)]);
        Value::Array(vec![bulk(id), Value::Array(fields.collect())])
    }

    fn all(name: &str) -> Option<Arc<str>> {
        Some(name.into())
    }

    /// Generates a random Redis stream: the position of each entry, with `true` if a hub has
    /// written the entry, and `false` if other software has.
    fn stream(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<(Position, bool)>> {
        let mut at = 1_000_000_u64 << SEQUENCE_BITS;
        let mut stream = Vec::new();
        for _ in 0..u.int_in_range(1..=49)? {
            at = if u.arbitrary()? {
                at + 1
            } else {
                let ms = u.int_in_range(1..=4)?;
                ((at >> SEQUENCE_BITS) + ms) << SEQUENCE_BITS | u.int_in_range(0..=OVERFLOW_SEQUENCE - 1)?
            };
            at += u64::from(at & OVERFLOW_SEQUENCE == OVERFLOW_SEQUENCE);
            stream.push((Position::new(at), u.arbitrary()?));
        }
        Ok(stream)
    }

    /// Returns a position before the first entry of a Redis stream that a test has generated.
    fn before(stream: &[(Position, bool)]) -> Position {
        Position::new(stream[0].0.get() - 10)
    }

    fn values(stream: &[(Position, bool)]) -> Vec<Value> {
        let mut previous = before(stream);
        let mut values = Vec::new();
        for (at, is_ours) in stream {
            let before = id(previous);
            values.push(match is_ours {
                false => value(id(*at), &[("some", "thing")]),
                true if *at == previous.next() && at.get() & OVERFLOW_SEQUENCE != 0 => {
                    value(id(*at), &[("t", "a"), ("e", "b")])
                }
                true => value(id(*at), &[("p", &before), ("t", "a"), ("e", "b")]),
            });
            previous = *at;
        }
        values
    }

    #[test]
    fn stream_is_read_from_every_position_without_loss() {
        arbtest(|u| {
            let (stream, pages) = (stream(u)?, u.int_in_range(1..=9)?);
            for begin in 0..stream.len() {
                let mut after = stream[begin].0;
                let mut read = Vec::new();
                for page in values(&stream)[begin + 1..].chunks(pages) {
                    let batch = decode(page.to_vec(), after, all).unwrap();
                    assert_eq!(batch.evicted_through, None);
                    assert_eq!(batch.entries, page.len());
                    after = batch.through;
                    read.extend(batch.records.into_iter().map(|(position, _)| position));
                }
                let expected: Vec<_> =
                    stream[begin + 1..].iter().filter(|(_, is_ours)| *is_ours).map(|(position, _)| *position).collect();
                assert_eq!(read, expected);
                assert_eq!(after, stream[stream.len() - 1].0);
            }
            Ok(())
        });
    }

    #[test]
    fn deleted_entries_are_reported_by_the_next_entry() {
        arbtest(|u| {
            let mut stream = stream(u)?;
            if stream.len() < 3 {
                return Ok(());
            }
            let from = u.int_in_range(1..=stream.len() - 2)?;
            let until = (from + u.int_in_range(1..=4)?).min(stream.len() - 1);
            stream[until].1 = true;
            let mut values = values(&stream);
            values.drain(from..until);
            // Read the entries before the gap, then the entries after the gap.
            let first = decode(values[..from].to_vec(), before(&stream), all).unwrap();
            assert_eq!(first.through, stream[from - 1].0);
            let whole = decode(values.clone(), before(&stream), all).unwrap();
            assert_eq!(whole.through, stream[from - 1].0, "it ends where something is missing");
            let rest = decode(values[from..].to_vec(), first.through, all).unwrap();
            assert_eq!(rest.evicted_through, Some(stream[until - 1].0));
            Ok(())
        });
    }

    #[test]
    fn missing_entries_are_reported() {
        let next = |previous: &str| value("7-0".into(), &[("p", previous), ("t", "a"), ("e", "b")]);
        let after_loss = || value("7-0".into(), &[("p", "4-0"), ("l", "6-0"), ("t", "a"), ("e", "b")]);
        for after in [3, 4, 5, 6] {
            let after = at(after, 0);
            let evicted_through = decode(vec![after_loss()], after, all).unwrap().evicted_through;
            assert!(evicted_through > Some(after), "entries from 4-0 to 6-0 are lost");
        }
        let before_loss = value("4-0".into(), &[("p", "3-0"), ("t", "a"), ("e", "b")]);
        let whole = decode(vec![before_loss, after_loss()], at(3, 0), all).unwrap();
        assert_eq!((whole.through, whole.evicted_through), (at(4, 0), None), "a page ends before the loss");
        let lost = |after: &str, previous: &str| {
            decode(vec![next(previous)], position(after.as_bytes()).unwrap(), all).unwrap().evicted_through
        };
        assert_eq!(lost("5-0", "5-0"), None);
        assert_eq!(lost("5-0", "6-0"), Some(at(6, 0)), "it was trimmed");
        assert_eq!(lost("6-0", "5-0"), Some(at(7, 0).previous()), "the log has gone back");
        assert_eq!(lost(&id(at(7, 0).previous()), "5-0"), None, "nothing is between");
    }

    #[test]
    fn foreign_entries_are_skipped_or_an_error() {
        for fields in [
            &[][..],
            &[("t", "a")],
            &[("e", "a")],
            &[("p", "x"), ("k", "e")],
            &[("t", "a"), ("", "")],
            &[("E", "a"), ("T", "b")],
        ] {
            let batch = decode(vec![value("7-3".into(), fields)], at(0, 1), all).unwrap();
            assert_eq!((batch.entries, batch.records.len(), batch.evicted_through), (1, 0, None), "{fields:?}");
            assert!(batch.begins_with_foreign_entry);
        }
        for answer in [Value::Int(1), Value::Array(vec![bulk("7-0")]), value("x".into(), &[])] {
            assert!(decode(vec![answer], at(0, 1), all).is_err());
        }
        // The entries before the invalid entry can be read.
        let entries = vec![value("7-3".into(), &[("t", "a"), ("f", "")]), value("x".into(), &[])];
        let batch = decode(entries, at(7, 2), all).unwrap();
        assert_eq!((batch.entries, batch.through), (1, at(7, 3)));
        assert_eq!(batch.records[0].1.kind, RecordKind::Finish);
    }

    #[test]
    fn ids_too_late_for_a_position_are_passed() {
        let far = ["17592186044416-0", "99999999999999-7", "18446744073709551615-18446744073709551615"];
        let entries: Vec<_> = far.iter().map(|id| value((*id).to_owned(), &[("t", "a"), ("e", "b")])).collect();
        let read = decode(entries.clone(), at(0, 1), all).unwrap();
        assert_eq!((read.entries, read.records.len(), read.through), (3, 0, TOO_LATE));
        assert_eq!(decode(entries, TOO_LATE, all).unwrap().evicted_through, None);
        assert_eq!(id(TOO_LATE), far[2], "no entry is after it");
    }

    #[test]
    fn foreign_fields_do_not_move_the_reader() {
        for fields in
            [&[("p", "99999999999999-0")][..], &[("p", "8-0"), ("g", "9-0")], &[("l", "6-0")], &[("g", "6-0")]]
        {
            let read = decode(vec![value("7-3".into(), fields)], at(0, 1), all).unwrap();
            assert_eq!((read.evicted_through, read.newest_lost, read.through), (None, None, at(7, 3)), "{fields:?}");
        }
    }

    #[test]
    fn mark_reports_a_loss_to_every_reader() {
        let before = || value("7-4".into(), &[("p", "5-0"), ("t", "a"), ("e", "b")]);
        let mark = || value("7-6".into(), &[("p", "7-4"), ("g", "6-0")]);
        let at = |id: &str| position(id.as_bytes()).unwrap();
        for after in ["5-0", "6-0", "7-4"] {
            let read = decode(vec![mark()], at(after), all).unwrap();
            assert_eq!(
                (read.evicted_through, read.through, read.newest_lost),
                (Some(at("7-5")), at("7-6"), Some(at("6-0"))),
                "{after}"
            );
        }
        assert_eq!(decode(vec![mark()], at("7-5"), all).unwrap().evicted_through, None, "a reader after the loss");
        let read = decode(vec![before(), mark()], at("5-0"), all).unwrap();
        assert_eq!((read.evicted_through, read.through), (None, at("7-4")), "a page ends before a mark");
    }
}
