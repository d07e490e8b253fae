//! Encoding: the only code that writes the wire bytes of events.
//!
//! An event is stored as its wire bytes, at the end of a buffer. Usually, the data is set first: it
//! is written once, behind reserved space. The fields are then written into this space, so the long
//! data is not moved. If the data is set after the fields, the fields are moved instead. So the
//! fields always precede the data. The buffer is full to its last byte, so it becomes [`Bytes`]
//! without a second allocation.
//!
//! Small events are stored in a buffer, too. Inside the event value, they would need no allocation,
//! but by measurement, moving the larger value costs more than the allocation.

use bytes::{Buf, BufMut, Bytes};
use memchr::{memchr, memchr_iter, memchr2, memchr2_iter, memmem};
use std::time::Duration;

pub(super) const DATA: &[u8; 6] = b"data: ";
pub(super) const NAME: &[u8; 7] = b"event: ";
pub(super) const ID: &[u8; 4] = b"id: ";
pub(super) const RETRY: &[u8; 7] = b"retry: ";
pub(super) const COMMENT: &[u8; 2] = b": ";

/// The number of bytes that are reserved in front of an event's data for fields that are set later.
/// 64 bytes are enough for an id, a name and a `retry` of usual length. Longer fields enlarge the
/// buffer.
const ROOM_FOR_FIELDS: usize = 64;

/// The minimum number of bytes that are reserved when an id, a name or `retry` is set before the
/// data. All fields of the event, including the data, share these bytes. Longer data enlarges the
/// buffer.
const ROOM_FOR_DATA: usize = 256;

/// The wire bytes of one event, including its blank line.
#[derive(Clone, Default)]
pub(super) struct Wire {
    /// The reserved space for fields that are set later, followed by the event. The bytes of the
    /// event, as they are sent, begin at the index `start`. If the buffer is empty, the event has
    /// no field, and is sent as a single LF.
    buffer: Vec<u8>,
    start: usize,
}

impl Wire {
    pub(super) fn as_bytes(&self) -> &[u8] {
        if self.buffer.is_empty() { b"\n" } else { &self.buffer[self.start..] }
    }

    #[inline]
    pub(super) fn into_bytes(self) -> Bytes {
        if self.buffer.is_empty() {
            return Bytes::from_static(b"\n");
        }
        let mut bytes = Bytes::from(self.buffer);
        bytes.advance(self.start);
        bytes
    }

    /// Parses the bytes of one complete event that this crate has encoded without an id. Returns
    /// `None` for other bytes.
    ///
    /// Valid bytes are lines that begin with `data: `, `event: `, `retry: ` or `: ` and end in LF,
    /// and then one blank line.
    #[cfg(feature = "hub")]
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let lines = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let fields: [&[u8]; 4] = [DATA, NAME, RETRY, COMMENT];
        let is_field =
            |line: &str| line.ends_with('\n') && fields.iter().any(|field| line.as_bytes().starts_with(field));
        if lines.contains('\r') || !lines.split_inclusive('\n').all(is_field) {
            return None;
        }
        let mut buffer = Vec::with_capacity(ROOM_FOR_FIELDS + bytes.len());
        buffer.extend_from_slice(&[0; ROOM_FOR_FIELDS]);
        buffer.extend_from_slice(bytes);
        Some(Self { buffer, start: ROOM_FOR_FIELDS })
    }

    /// Creates an event with one field. `prefix` is the name of the field with its colon and space.
    /// Each line of `text` becomes one field line.
    pub(super) fn new<const N: usize>(prefix: &'static [u8; N], text: &[u8]) -> Self {
        let lines = Lines::of(prefix, text);
        let mut buffer = Vec::with_capacity(ROOM_FOR_FIELDS + lines.len() + 1);
        buffer.extend_from_slice(&[0; ROOM_FOR_FIELDS]);
        lines.write(&mut buffer);
        buffer.push(b'\n');
        Self { buffer, start: ROOM_FOR_FIELDS }
    }

    /// Inserts the line `prefix` + `value` before the other lines of the event. The caller must
    /// pass a `value` without line ends.
    #[inline]
    pub(super) fn prepend<const N: usize>(mut self, prefix: &'static [u8; N], value: &[u8]) -> Self {
        let length = N + value.len() + 1;
        if self.start < length {
            self = self.make_room(length);
        }
        self.start = put_line_at_end(&mut self.buffer[..self.start], prefix, value);
        self
    }

    /// Adds a field at the end of the event, before the blank line. Each line of `text` becomes one
    /// line that begins with `prefix`.
    pub(super) fn append<const N: usize>(mut self, prefix: &'static [u8; N], text: &[u8]) -> Self {
        if self.buffer.is_empty() {
            return Self::new(prefix, text);
        }
        let lines = Lines::of(prefix, text);
        let length = lines.len();
        if self.start < length {
            self = self.make_room(length);
        }
        let blank = self.buffer.len() - 1;
        self.buffer.copy_within(self.start..blank, self.start - length);
        self.start -= length;
        lines.write(&mut &mut self.buffer[blank - length..blank]);
        self
    }

    /// Removes every line of the event that begins with `prefix`.
    #[cold]
    pub(super) fn remove(self, prefix: &[u8]) -> Self {
        let lines = self.as_bytes().split_inclusive(|&byte| byte == b'\n');
        let kept = lines.filter(|line| !line.starts_with(prefix)).flatten().copied().collect();
        Self { buffer: kept, start: 0 }
    }

    /// Enlarges the reserved space in front of the event, where further fields are written, to at
    /// least `length` bytes.
    #[cold]
    fn make_room(mut self, length: usize) -> Self {
        if self.buffer.is_empty() {
            let room = length.max(ROOM_FOR_DATA);
            self.buffer = vec![0; room + 1];
            self.buffer[room] = b'\n';
            self.start = room;
        } else {
            // The old bytes become a part of the reserved space, and a copy of them follows it.
            let end = self.buffer.len();
            self.buffer.reserve_exact(length + end - self.start);
            self.buffer.resize(end + length, 0);
            self.buffer.extend_from_within(self.start..end);
            self.start = end + length;
        }
        self
    }
}

/// Writes the line `prefix` + `value` at the end of `room`, the reserved space in front of an
/// event. Returns the index of the line's first byte. Panics if `room` is too small, so the caller
/// first makes sure that the line fits.
fn put_line_at_end<const N: usize>(room: &mut [u8], prefix: &'static [u8; N], value: &[u8]) -> usize {
    let start = room.len() - (N + value.len() + 1);
    let (name, rest) = room[start..].split_at_mut(N);
    let (text, line_end) = rest.split_at_mut(value.len());
    name.copy_from_slice(prefix);
    text.copy_from_slice(value);
    line_end.copy_from_slice(b"\n");
    start
}

/// Returns a `retry` line with this reconnect delay, without a blank line after it.
///
/// At a blank line, a client sets its last event id to the last id in the current response (HTML
/// standard, §9.2.6). A client that has just reconnected has received no id in the current
/// response. So a blank line would make it lose the id of the earlier response.
pub(crate) fn retry_line(delay: Duration) -> Bytes {
    let mut line = Vec::new();
    Lines::of(RETRY, itoa::Buffer::new().format(delay.as_millis()).as_bytes()).write(&mut line);
    Bytes::from(line)
}

/// Returns the text as comment lines, without a blank line after them. So the comment may be sent
/// in the middle of an event: a blank line would end the event.
pub(crate) fn comment_lines(text: &str) -> Bytes {
    let mut lines = Vec::new();
    Lines::of(COMMENT, text.as_bytes()).write(&mut lines);
    Bytes::from(lines)
}

/// Returns whether a client dispatches at least one of these encoded events.
///
/// A client dispatches only events with a `data` line. Encoding adds an empty `data` line to an
/// event that has a name and no data. The function searches for `data:` without a space, because
/// the events of Durable Streams have no space after the colon.
pub(crate) fn is_visible(events: &[u8]) -> bool {
    events.starts_with(b"data:") || memmem::find(events, b"\ndata:").is_some()
}

/// A text that becomes several lines of one field, such as `data`: one field line for each line of
/// the text. CRLF, CR and LF each end a line.
struct Lines<'a, const N: usize> {
    prefix: &'static [u8; N],
    text: &'a [u8],
    /// The number of LFs in the text, including those of CRLF pairs.
    lf: usize,
    /// The number of CRs in the text, including those of CRLF pairs.
    cr: usize,
    /// The number of CRLF pairs in the text. Each pair is one line end.
    crlf: usize,
}

impl<'a, const N: usize> Lines<'a, N> {
    fn of(prefix: &'static [u8; N], text: &'a [u8]) -> Self {
        let mut lines = Self { prefix, text, lf: 0, cr: 0, crlf: 0 };
        if let Some(first) = memchr2(b'\n', b'\r', text) {
            let rest = &text[first..];
            lines.lf = memchr_iter(b'\n', rest).count();
            if let Some(first) = memchr(b'\r', rest) {
                let rest = &rest[first..];
                lines.cr = memchr_iter(b'\r', rest).count();
                lines.crlf = memmem::find_iter(rest, b"\r\n").count();
            }
        }
        lines
    }

    /// Returns the number of bytes that the field lines of this text take: exactly as many as
    /// [`write`](Self::write) writes.
    fn len(&self) -> usize {
        let breaks = self.lf + self.cr - self.crlf;
        self.text.len() - self.lf - self.cr + (breaks + 1) * (N + 1)
    }

    fn write(&self, out: &mut impl BufMut) {
        let mut start = 0;
        out.put_slice(self.prefix);
        if self.cr > 0 {
            for end in memchr2_iter(b'\n', b'\r', self.text) {
                // This is the LF of a CRLF. Its CR has already ended the line.
                if end > 0 && &self.text[end - 1..=end] == b"\r\n" {
                    start = end + 1;
                    continue;
                }
                out.put_slice(&self.text[start..end]);
                out.put_u8(b'\n');
                out.put_slice(self.prefix);
                start = end + 1;
            }
        } else if self.lf > 0 {
            for end in memchr_iter(b'\n', self.text) {
                out.put_slice(&self.text[start..=end]);
                out.put_slice(self.prefix);
                start = end + 1;
            }
        }
        out.put_slice(&self.text[start..]);
        out.put_u8(b'\n');
    }
}
