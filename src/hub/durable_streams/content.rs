//! The format of a durable stream: how it encodes the data of the events of a topic.

use crate::Event;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use serde_core::de::IgnoredAny;

/// The format and the content type of a durable stream: how it encodes the data of the events of a
/// topic.
///
/// A durable stream contains only the data of events, not their names and ids. An event without
/// data, such as [`Event::checkpoint`], adds nothing to the stream.
///
/// | format | content type | the stream contains |
/// |---|---|---|
/// | [`json`](Self::json) | `application/json` | one JSON value for each event; each response is an array of these values |
/// | [`text`](Self::text) | `text/plain; charset=utf-8` | the data of all events without separators, such as the tokens of an answer |
/// | [`lines`](Self::lines) | `application/x-ndjson` | the data of each event, followed by a line feed |
/// | [`base64`](Self::base64) | `application/octet-stream` | the bytes that the data of each event encodes |
///
/// # Examples
///
/// ```
/// use http::HeaderValue;
/// use tower_sse::hub::durable_streams::Content;
///
/// let images = Content::base64().content_type(HeaderValue::from_static("image/png"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Content {
    encoding: Encoding,
    content_type: HeaderValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    Text,
    Lines,
    Base64,
}

/// The error for an event whose data is not base64, in a durable stream of the format
/// [`Content::base64`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotBase64;

impl Content {
    fn new(encoding: Encoding, content_type: &'static str) -> Self {
        Self { encoding, content_type: HeaderValue::from_static(content_type) }
    }

    /// A stream of JSON values in the Durable Streams protocol, one for each event. Each response
    /// is a JSON array of such values.
    ///
    /// Data that is not JSON, such as `[DONE]`, becomes a JSON string with the same text.
    pub fn json() -> Self {
        Self::new(Encoding::Json, "application/json")
    }

    /// A stream of text in the Durable Streams protocol: the data of all events, without
    /// separators.
    pub fn text() -> Self {
        Self::new(Encoding::Text, "text/plain; charset=utf-8")
    }

    /// A stream of text in the Durable Streams protocol: the data of each event, followed by a line
    /// feed, for example NDJSON.
    pub fn lines() -> Self {
        Self::new(Encoding::Lines, "application/x-ndjson")
    }

    /// A stream of bytes in the Durable Streams protocol. The data of each event is standard base64
    /// with padding (RFC 4648, §4). White space at the ends of the data is ignored.
    ///
    /// If the data of an event is not base64, reading the stream fails with 500 at this event, and
    /// later events cannot be read. No event is skipped silently.
    pub fn base64() -> Self {
        Self::new(Encoding::Base64, "application/octet-stream")
    }

    /// Sets the content type of the durable stream, which replaces the content type of its format.
    ///
    /// In the mode `live=sse`, the Durable Streams protocol sends streams of the types `text/*` and
    /// `application/json` as text, and all other streams as base64. If a [`base64`](Self::base64)
    /// stream gets the type `text/*` or `application/json`, each of its events must be complete
    /// UTF-8 without carriage returns. In the mode `live=sse`, bytes that are not UTF-8 are
    /// replaced with U+FFFD, and each carriage return becomes a line feed.
    pub fn content_type(mut self, content_type: HeaderValue) -> Self {
        self.content_type = content_type;
        self
    }

    pub(super) fn media_type(&self) -> &HeaderValue {
        &self.content_type
    }

    /// Returns `true` if the mode `live=sse` sends this content as base64 (§5.8 of the Durable
    /// Streams protocol). It does so for all content types except `text/*` and `application/json`.
    pub(super) fn is_base64_in_events(&self) -> bool {
        let essence = self.content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        let essence = essence.trim_ascii().to_ascii_lowercase();
        !essence.starts_with(b"text/") && essence != b"application/json"
    }

    /// Returns the bytes of a page, a part of a durable stream, as the data of a `data` event in
    /// the mode `live=sse`. The result is base64, except for texts and JSON. In these, bytes that
    /// are not UTF-8 are replaced with U+FFFD.
    pub(super) fn data_of_event(&self, page: &[u8]) -> String {
        match self.is_base64_in_events() {
            true => STANDARD.encode(page),
            false => String::from_utf8_lossy(page).into_owned(),
        }
    }
}

/// The default format of a durable stream is [`json`](Self::json).
impl Default for Content {
    fn default() -> Self {
        Self::json()
    }
}

/// A page: the data of the events in one response of a durable stream, or in one `data` event of
/// its mode `live=sse`.
#[derive(Debug)]
pub(super) struct Page {
    encoding: Encoding,
    bytes: Vec<u8>,
    /// The number of events whose data is in this page.
    pub(super) count: usize,
}

impl Page {
    pub(super) fn new(content: &Content) -> Self {
        Self { encoding: content.encoding, bytes: Vec::new(), count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the data of an event to this page, a part of a durable stream. Has no effect if the
    /// event has no data. Returns an error if the format of the stream is base64, and the data is
    /// not.
    pub(super) fn push(&mut self, event: &Event) -> Result<(), NotBase64> {
        let Some(data) = event.event_data() else { return Ok(()) };
        match self.encoding {
            Encoding::Json => {
                self.bytes.push(if self.bytes.is_empty() { b'[' } else { b',' });
                if serde_json::from_str::<IgnoredAny>(&data).is_ok() {
                    self.bytes.extend_from_slice(data.trim_ascii().as_bytes());
                } else {
                    let text = serde_json::Value::String(data.into_owned());
                    self.bytes.extend_from_slice(text.to_string().as_bytes());
                }
            }
            Encoding::Text => self.bytes.extend_from_slice(data.as_bytes()),
            Encoding::Lines => {
                self.bytes.extend_from_slice(data.as_bytes());
                self.bytes.push(b'\n');
            }
            Encoding::Base64 => {
                let before = self.bytes.len();
                if STANDARD.decode_vec(data.trim_ascii().as_bytes(), &mut self.bytes).is_err() {
                    // A failed decoding may leave bytes in the buffer.
                    self.bytes.truncate(before);
                    return Err(NotBase64);
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Returns the bytes of this page, a part of a durable stream. A page of JSON is an array, even
    /// if it has no event.
    pub(super) fn into_bytes(mut self) -> Bytes {
        if self.encoding == Encoding::Json {
            if self.bytes.is_empty() {
                self.bytes.push(b'[');
            }
            self.bytes.push(b']');
        }
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(content: &Content, data: &[&str]) -> Bytes {
        let mut page = Page::new(content);
        for data in data {
            page.push(&Event::new(*data)).unwrap();
        }
        page.push(&Event::checkpoint(7)).unwrap();
        assert_eq!(page.count, data.len());
        page.into_bytes()
    }

    #[test]
    fn pages_have_the_format_of_their_content() {
        assert_eq!(page(&Content::json(), &[]), "[]");
        assert_eq!(page(&Content::json(), &["{\"a\":1}", " [1, 2]\n", "7"]), "[{\"a\":1},[1, 2],7]");
        assert_eq!(page(&Content::text(), &["Hello", " ", "you\n"]), "Hello you\n");
        assert_eq!(page(&Content::lines(), &["1", "2"]), "1\n2\n");
        assert_eq!(page(&Content::base64(), &["AP8=", "", "AQ==\n"]), &[0, 255, 1][..]);
    }

    #[test]
    fn data_that_is_not_json_becomes_a_string() {
        let page = page(&Content::json(), &["[DONE]", "a\n\"b\"", "", "1 2", "NaN"]);
        let values: Vec<String> = serde_json::from_slice(&page).unwrap();
        assert_eq!(values, ["[DONE]", "a\n\"b\"", "", "1 2", "NaN"]);
    }

    #[test]
    fn deeply_nested_json_stays_json() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(page(&Content::json(), &[&deep]), format!("[{deep}]"));
    }

    #[test]
    fn data_that_is_not_base64_is_an_error_and_changes_nothing() {
        let mut page = Page::new(&Content::base64());
        page.push(&Event::new("AQ==")).unwrap();
        assert_eq!(page.push(&Event::new("AQ")), Err(NotBase64));
        assert_eq!(page.push(&Event::new("no base64!")), Err(NotBase64));
        assert_eq!((page.count, page.into_bytes()), (1, Bytes::from_static(&[1])));
    }

    #[test]
    fn only_texts_and_json_are_text_in_event_streams() {
        let of = |content_type| Content::text().content_type(HeaderValue::from_static(content_type));
        for text in ["text/plain", "TEXT/html; charset=utf-8", "application/json", "Application/JSON ; charset=utf-8"] {
            assert!(!of(text).is_base64_in_events(), "{text}");
        }
        for binary in ["application/octet-stream", "application/x-ndjson", "application/json+x", "image/png", ""] {
            assert!(of(binary).is_base64_in_events(), "{binary}");
        }
        assert_eq!(Content::base64().data_of_event(&[0, 255]), "AP8=");
        assert_eq!(Content::text().data_of_event("é".as_bytes()), "é");
    }
}
