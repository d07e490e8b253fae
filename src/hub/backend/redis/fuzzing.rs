//! Access to the functions that convert Redis entries and entry ids, for fuzz targets only.

use super::{
    super::{Page, Position, RecordKind},
    entry, entry_id,
};
use crate::BoxError;
pub use redis::Value;

/// Returns the position of a Redis entry id, or `None` if the text is not an entry id.
pub fn position(id: &[u8]) -> Option<Position> {
    entry_id::position(id)
}

/// Returns the greatest Redis entry id with this position. Several ids share a position if their
/// numbers are too great for it.
pub fn id(position: Position) -> String {
    entry_id::id(position)
}

/// Returns the name of the field with the event, in the Redis entry of a record of this kind.
pub fn name(kind: RecordKind) -> &'static str {
    entry::name(kind)
}

/// Decodes a response to `XREAD` as a page, for a reader that has read the log up to `after`. The
/// page has the records of all topics.
pub fn read(answer: Value, after: Position) -> Result<Page, BoxError> {
    let batch = entry::decode(entry::stream_entries(answer)?, after, |topic| Some(topic.into()))?;
    let evicted_through = batch.evicted_through.unwrap_or_default();
    Ok(Page { epoch: 0, evicted_through, records: batch.records, through: batch.through })
}

/// Returns the eviction watermark of a log: entries up to and including this position were removed.
/// `answer` is a response to `XREAD` that begins with the oldest entry of the log. Returns `None`
/// if the response has no entry.
pub fn evicted_through(answer: Value) -> Result<Option<Position>, BoxError> {
    Ok(entry::first(entry::stream_entries(answer)?)?.map(|entry| entry.evicted_through()))
}
