//! Records as values of the database.
//!
//! The key of a record is its position. The value is a checksum (8 bytes), the time of the append
//! in milliseconds since 1970 (8), the size of all values of the log up to this one (8), the kind
//! (1), the length of the topic (4), the topic, and the event. Numbers are little-endian.

use crate::hub::backend::{Position, RecordKind};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The size of a value without its topic and its event.
const HEAD: usize = 29;

/// A decoded value.
#[derive(Debug, PartialEq)]
pub(super) struct Value<'a> {
    /// The time of the append, in milliseconds since 1970.
    pub(super) time: u64,
    /// The size of all values that the log has ever stored, up to and including this one.
    pub(super) total: u64,
    /// `None` if the value is of a later version of this crate.
    pub(super) kind: Option<RecordKind>,
    pub(super) topic: &'a str,
    pub(super) event: &'a [u8],
}

/// Returns the size of the value of a record.
pub(super) fn size(topic: &str, event: &[u8]) -> usize {
    HEAD + topic.len() + event.len()
}

/// Appends the value of a record to `buffer`.
pub(super) fn encode(buffer: &mut Vec<u8>, position: Position, value: &Value<'_>) {
    let begin = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&value.time.to_le_bytes());
    buffer.extend_from_slice(&value.total.to_le_bytes());
    buffer.push(match value.kind {
        Some(RecordKind::Event) => 0,
        Some(RecordKind::State) => 1,
        Some(RecordKind::Finish) => 2,
        None => u8::MAX,
    });
    // A longer topic is refused before.
    buffer.extend_from_slice(&u32::try_from(value.topic.len()).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(value.topic.as_bytes());
    buffer.extend_from_slice(value.event);
    let checksum = checksum(position, &buffer[begin + 8..]);
    buffer[begin..begin + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// Decodes a value. Returns `None` if it is damaged, or belongs to another position.
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
