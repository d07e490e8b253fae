//! Access to the decoder of messages, for the fuzz targets only.

use super::{
    super::{Page, Position, Record},
    message::{self, Stored},
};
pub use async_nats::HeaderMap;
use async_nats::{HeaderName, HeaderValue};
use bytes::Bytes;

/// Returns the subject of a topic in a stream with this name, or `None` if the subject is too long.
pub fn subject(stream: &str, topic: &str) -> Option<String> {
    message::subject(stream, topic)
}

/// Returns the headers and the payload of the message that contains these records. Panics if there
/// is no record.
pub fn write(records: &[Record]) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    message::set_kind(&mut headers, records[0].kind);
    (headers, message::join(records))
}

/// Returns a header map of these names and values. Fields with an invalid name or value are left
/// out.
pub fn headers<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let valid = fields.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
    HeaderMap::from_iter(valid.map(|field: (HeaderName, HeaderValue)| field))
}

/// Decodes one message of the stream as a page of records. The page contains the records that come
/// after the position `after`.
pub fn read(
    stream: &str,
    subject: &str,
    sequence: u64,
    headers: Option<HeaderMap>,
    payload: Bytes,
    after: Position,
) -> Page {
    let message = Stored { subject: subject.into(), sequence, headers, payload };
    let _does_not_panic = (message.log(), message.identity());
    let mut page = Page::default();
    message::add(&mut page, after, stream, &message);
    page
}
