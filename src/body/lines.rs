//! The position within an upstream stream: its line, its event, and its byte order mark.

use bytes::Bytes;
use memchr::memchr2_iter;

/// Tracks whether a stream is at the start of a line. Reads only the last byte of each chunk.
#[derive(Clone, Copy)]
pub(super) struct LineTracker {
    last: u8,
}

impl Default for LineTracker {
    /// Starts a stream as if a line had just ended.
    fn default() -> Self {
        Self { last: b'\n' }
    }
}

impl LineTracker {
    #[inline]
    pub(super) fn record(&mut self, chunk: &[u8]) {
        self.last = chunk.last().copied().unwrap_or(self.last);
    }

    pub(super) fn is_at_line_start(&self) -> bool {
        matches!(self.last, b'\n' | b'\r')
    }

    /// Returns whether the last line ended in a CR. If the next byte is an LF, it belongs to the
    /// same line end.
    pub(super) fn is_after_cr(&self) -> bool {
        self.last == b'\r'
    }
}

/// Counts the events of an upstream stream (a stream of an inner service whose bytes a layer passes
/// on), and tracks whether its current event is incomplete.
///
/// It reads every line. So it is used only for streams whose events a layer counts, and for streams
/// whose heartbeat is an event.
#[derive(Clone, Default)]
pub(super) struct EventTracker {
    /// The number of bytes of a byte order mark that were seen at the beginning of the stream.
    mark: usize,
    line: LineStart,
    /// Set if the last line ended in a CR. An LF that follows belongs to the same line end.
    after_cr: bool,
    /// Set if the current event has fields, so that a client waits for its blank line.
    has_fields: bool,
    /// Set if the current event has data, so that a client dispatches it.
    has_data: bool,
}

/// The first bytes of the current line. A chunk may end within them.
#[derive(Clone, Copy, Default)]
struct LineStart {
    bytes: [u8; 5],
    length: usize,
}

impl LineStart {
    /// Appends the next part of the line.
    #[inline]
    fn push(&mut self, part: &[u8]) {
        let part = &part[..part.len().min(self.bytes.len() - self.length)];
        self.bytes[self.length..][..part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    fn first(&self) -> Option<u8> {
        self.bytes[..self.length].first().copied()
    }

    /// Returns whether the line is a `data` field. Call it only at the end of a line.
    fn is_data(&self) -> bool {
        matches!(&self.bytes[..self.length], b"data" | b"data:")
    }
}

/// The complete events in a chunk.
#[derive(Default)]
pub(super) struct ChunkEvents {
    /// The number of blank lines that end an event.
    pub(super) events: u64,
    /// At least one of these events has data, so a client dispatches it.
    pub(super) is_visible: bool,
    /// The offsets in the chunk after the first and after the last line end that leaves no event
    /// incomplete. `None` if there is no such line end in the chunk.
    pub(super) complete_at: Option<(usize, usize)>,
}

impl EventTracker {
    /// Stops expecting a byte order mark.
    pub(super) fn skip_mark(&mut self) {
        self.mark = ByteOrderMark::BYTES.len();
    }

    pub(super) fn record(&mut self, chunk: &[u8]) -> ChunkEvents {
        let mut recorded = ChunkEvents::default();
        let mut start = self.record_mark(chunk);
        for end in memchr2_iter(b'\n', b'\r', chunk) {
            let mut line = std::mem::take(&mut self.line);
            line.push(&chunk[start..end]);
            match line.first() {
                None if self.after_cr && chunk[end] == b'\n' => {}
                None => {
                    recorded.events += u64::from(std::mem::take(&mut self.has_fields));
                    recorded.is_visible |= std::mem::take(&mut self.has_data);
                }
                // `data`, `event` and `id`. A client ignores comments, and applies `retry`
                // immediately, so these lines need no blank line.
                Some(b'd' | b'e' | b'i') => {
                    self.has_fields = true;
                    self.has_data |= line.is_data();
                }
                Some(_) => {}
            }
            self.after_cr = chunk[end] == b'\r';
            start = end + 1;
            if !self.has_fields {
                let first = recorded.complete_at.map_or(start, |(first, _)| first);
                recorded.complete_at = Some((first, start));
            }
        }
        self.line.push(&chunk[start..]);
        recorded
    }

    /// Returns the number of bytes of the chunk that belong to a byte order mark.
    fn record_mark(&mut self, chunk: &[u8]) -> usize {
        let missing = &ByteOrderMark::BYTES[self.mark..];
        let found = missing.iter().zip(chunk).take_while(|(a, b)| a == b).count();
        self.mark += found;
        if found < missing.len() && found < chunk.len() {
            // The bytes are not a byte order mark, so they begin the first line.
            self.line.push(&ByteOrderMark::BYTES[..self.mark]);
            self.mark = ByteOrderMark::BYTES.len();
        }
        found
    }

    pub(super) fn is_at_line_start(&self) -> bool {
        self.line.length == 0 && matches!(self.mark, 0 | 3)
    }

    /// Returns whether the stream could end at this point without an incomplete event.
    pub(super) fn is_complete(&self) -> bool {
        self.is_at_line_start() && !self.has_fields
    }
}

/// Removes the byte order mark of an upstream stream if the layer sends other bytes before it.
///
/// A client ignores the mark only at the very beginning of the response (HTML standard, §9.2.6:
/// streams are decoded by UTF-8 decode). Elsewhere the mark would become a part of the first line.
#[derive(Clone, Copy, Default)]
pub(super) enum ByteOrderMark {
    /// No byte was sent yet.
    #[default]
    Undecided,
    /// The layer has sent bytes before the stream. This many bytes of a possible mark have arrived
    /// and are held back.
    Expected(usize),
    /// The beginning of the stream has passed, so no mark is expected.
    Passed,
}

impl ByteOrderMark {
    const BYTES: &[u8; 3] = b"\xEF\xBB\xBF";

    pub(super) fn expect(&mut self) {
        if let Self::Undecided = self {
            *self = Self::Expected(0);
        }
    }

    pub(super) fn is_expected(self) -> bool {
        matches!(self, Self::Expected(_))
    }

    /// Removes the mark, or a part of it, from the beginning of a chunk. Has an effect only while a
    /// mark is expected.
    pub(super) fn strip(&mut self, chunk: Bytes) -> Bytes {
        let Self::Expected(seen) = *self else { return chunk };
        let (before, missing) = Self::BYTES.split_at(seen);
        if chunk.starts_with(missing) {
            *self = Self::Passed;
            chunk.slice(missing.len()..)
        } else if missing.starts_with(&chunk) {
            *self = Self::Expected(seen + chunk.len());
            Bytes::new()
        } else {
            *self = Self::Passed;
            Bytes::from([before, &chunk].concat())
        }
    }

    /// Returns the bytes that were held back, if the stream ends in the middle of a possible byte
    /// order mark.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Self::Passed) {
            Self::Expected(seen @ 1..) => Some(Bytes::from_static(&Self::BYTES[..seen])),
            _ => None,
        }
    }
}
