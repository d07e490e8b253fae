//! Access to the functions of the NATS backend that encode and decode messages, for the fuzz
//! targets only.

use super::{
    super::{Page, Position, Record},
    message::{self, Stored},
};
pub use async_nats::HeaderMap;
use async_nats::{HeaderName, HeaderValue};
use bytes::Bytes;

/// Returns the subject of a topic in the NATS stream with the name `stream`. Returns `None` if the
/// subject is too long.
pub fn subject(stream: &str, topic: &str) -> Option<String> {
    message::subject(stream, topic)
}

/// Returns the headers and the payload of the NATS message that stores these records. Panics if
/// `records` is empty.
pub fn write(records: &[Record]) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    message::set_kind(&mut headers, records[0].kind);
    (headers, message::join(records))
}

/// Creates the headers of a NATS message from names and values. A header with an invalid name or
/// value is left out.
pub fn headers<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let valid = fields.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
    HeaderMap::from_iter(valid.map(|field: (HeaderName, HeaderValue)| field))
}

/// Decodes one message of a NATS stream. Returns a `Page` with the records of the message that come
/// after the position `after`.
pub fn read(
    stream: &str,
    subject: &str,
    sequence: u64,
    headers: Option<HeaderMap>,
    payload: Bytes,
    after: Position,
) -> Page {
    let message = Stored { subject: subject.into(), sequence, time: 0, headers, payload };
    let _does_not_panic = (message.log(), message.identity());
    let mut page = Page::default();
    message::add(&mut page, after, stream, &message);
    page
}
