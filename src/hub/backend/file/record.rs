//! Records as values of the database.
//!
//! A value is a checksum (8 bytes), the time of the append in milliseconds since 1970 (8), the size
//! of all values of the log up to this one (8), the kind of the record, such as event or finish
//! (1), the length of the topic (4), the topic, and the event. Numbers are little-endian.
//!
//! A value is stored in parts, because the sizes of pages of the database are powers of two: a
//! value of 4.1 KiB would take a page of 8 KiB. The key of a part is the position of the record and
//! the number of the part. A record ends with the first part that is shorter than [`PART`].

use crate::hub::backend::{Position, RecordKind};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The size in bytes of the fields before the topic in the database value of a record: checksum,
/// time, total size, kind, and length of the topic.
const HEAD: usize = 29;

/// The size in bytes of the parts in which the database stores a value (one record of the log). The
/// last part is shorter. Eight parts fill a page of the database.
pub(super) const PART: usize = 480;

/// A decoded value of the database: one record of the log.
#[derive(Debug, PartialEq)]
pub(super) struct Value<'a> {
    /// The time of the append, in milliseconds since 1970.
    pub(super) time: u64,
    /// The size in bytes of all values that the log has ever stored, up to and including this
    /// value. The difference between the totals of two values is the size of the values after the
    /// first value, up to and including the second value.
    pub(super) total: u64,
    /// The kind of the record, such as an event or the end of its topic. `None` if a later version
    /// of this crate has written a kind that this version does not know.
    pub(super) kind: Option<RecordKind>,
    pub(super) topic: &'a str,
    pub(super) event: &'a [u8],
}

/// Returns the size in bytes of the database value that stores a record with this topic and this
/// event.
pub(super) fn size(topic: &str, event: &[u8]) -> usize {
    HEAD + topic.len() + event.len()
}

/// Writes the value of a record to `buffer`.
pub(super) fn encode(buffer: &mut Vec<u8>, position: Position, value: &Value<'_>) {
    buffer.clear();
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&value.time.to_le_bytes());
    buffer.extend_from_slice(&value.total.to_le_bytes());
    buffer.push(match value.kind {
        Some(RecordKind::Event) => 0,
        Some(RecordKind::State) => 1,
        Some(RecordKind::Finish) => 2,
        Some(RecordKind::Remove) => 3,
        None => u8::MAX,
    });
    // A longer topic is refused before.
    buffer.extend_from_slice(&u32::try_from(value.topic.len()).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(value.topic.as_bytes());
    buffer.extend_from_slice(value.event);
    let checksum = checksum(position, &buffer[8..]);
    buffer[..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Splits a database value into the parts that are stored, and numbers the parts from 0.
pub(super) fn parts(value: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    // A value of full parts ends with an empty part.
    let end = value.len().is_multiple_of(PART).then_some(&[][..]);
    (0..).zip(value.chunks(PART).chain(end))
}

/// Decodes a database value, which contains the record at `position`. Returns `None` if the value
/// is damaged, or was written for another position.
pub(super) fn decode(position: Position, bytes: &[u8]) -> Option<Value<'_>> {
    let (expected, rest) = bytes.split_first_chunk()?;
    if checksum(position, rest) != u64::from_le_bytes(*expected) {
        return None;
    }
    let (time, rest) = rest.split_first_chunk()?;
    let (total, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (topic, event) = rest.split_at_checked(u32::from_le_bytes(*length).try_into().ok()?)?;
    Some(Value {
        time: u64::from_le_bytes(*time),
        total: u64::from_le_bytes(*total),
        kind: match kind {
            0 => Some(RecordKind::Event),
            1 => Some(RecordKind::State),
            2 => Some(RecordKind::Finish),
            3 => Some(RecordKind::Remove),
            _ => None,
        },
        topic: str::from_utf8(topic).ok()?,
        event,
    })
}

fn checksum(position: Position, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, position.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_value_end_with_a_shorter_one() {
        for len in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART - 1] {
            let value: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let parts: Vec<_> = parts(&value).collect();
            assert!(parts.iter().enumerate().all(|(n, (number, _))| n == *number as usize));
            let (last, full) = parts.split_last().unwrap();
            assert!(last.1.len() < PART && full.iter().all(|(_, part)| part.len() == PART), "{len}");
            assert_eq!(parts.iter().flat_map(|(_, part)| *part).copied().collect::<Vec<_>>(), value);
        }
    }

    #[test]
    fn each_changed_byte_is_detected() {
        let value = Value { time: 7, total: 8, kind: Some(RecordKind::State), topic: "ä", event: b"data: 1\n\n" };
        let mut bytes = Vec::new();
        encode(&mut bytes, Position::new(3), &value);
        assert_eq!(bytes.len(), size(value.topic, value.event));
        assert_eq!(decode(Position::new(3), &bytes), Some(value));
        assert_eq!(decode(Position::new(4), &bytes), None, "it is the value of another position");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(Position::new(3), &damaged), None, "byte {at}");
            assert_eq!(decode(Position::new(3), &bytes[..at]), None, "{at} bytes");
        }
    }
}
