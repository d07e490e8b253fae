//! The position within an upstream stream: its line, its event, and its byte order mark.

use bytes::Bytes;
use memchr::memchr2_iter;

/// Tracks the position within the lines of a stream.
///
/// The tracker reads only the end of each chunk. A CR may be the first half of a CRLF. So a line
/// has certainly ended only after an LF.
#[derive(Clone, Copy)]
pub(super) struct LineTracker {
    /// The last three bytes, oldest first. Initially they are the bytes after a blank line.
    last: [u8; 3],
}

impl Default for LineTracker {
    fn default() -> Self {
        Self { last: *b"\n\n\n" }
    }
}

impl LineTracker {
    #[inline]
    pub(super) fn record(&mut self, chunk: &[u8]) {
        let [_, b, c] = self.last;
        self.last = match *chunk {
            [.., x, y, z] => [x, y, z],
            [y, z] => [c, y, z],
            [z] => [b, c, z],
            [] => return,
        };
    }

    pub(super) fn is_at_line_start(&self) -> bool {
        self.last[2] == b'\n'
    }

    /// Returns whether the last line was blank.
    pub(super) fn is_between_events(&self) -> bool {
        matches!(self.last, [_, b'\n', b'\n'] | [b'\n' | b'\r', b'\r', b'\n'])
    }
}

/// Counts the events of an upstream stream, and tracks whether its current event is incomplete.
///
/// The tracker reads the start of every line, so it is used only for streams that are recorded.
#[derive(Clone, Default)]
pub(super) struct EventTracker {
    /// The number of bytes of a byte order mark that were seen at the beginning of the stream.
    mark: usize,
    /// The first byte of the current line.
    line_start: Option<u8>,
    /// Set if the last line ended in a CR. An LF that follows belongs to the same line end.
    after_cr: bool,
    /// Set if the current event has fields, so that a client waits for its blank line.
    has_fields: bool,
}

/// The complete events in a chunk.
#[derive(Default)]
pub(super) struct ChunkEvents {
    /// The number of blank lines that end an event.
    pub(super) events: u64,
    /// The offset after the last line in the chunk that leaves no event incomplete.
    pub(super) complete_up_to: Option<usize>,
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
            match self.line_start.take().or(chunk[start..end].first().copied()) {
                None if self.after_cr && chunk[end] == b'\n' => {}
                None => recorded.events += u64::from(std::mem::take(&mut self.has_fields)),
                // `data`, `event` and `id`. A client ignores comments, and applies `retry`
                // immediately, so these lines need no blank line.
                Some(b'd' | b'e' | b'i') => self.has_fields = true,
                Some(_) => {}
            }
            self.after_cr = chunk[end] == b'\r';
            start = end + 1;
            if !self.has_fields {
                recorded.complete_up_to = Some(start);
            }
        }
        self.line_start = self.line_start.or(chunk.get(start).copied());
        recorded
    }

    /// Returns the number of bytes of the chunk that belong to a byte order mark.
    fn record_mark(&mut self, chunk: &[u8]) -> usize {
        let missing = &ByteOrderMark::BYTES[self.mark..];
        let found = missing.iter().zip(chunk).take_while(|(a, b)| a == b).count();
        self.mark += found;
        if found < missing.len() && found < chunk.len() {
            // The bytes are not a byte order mark, so they begin the first line.
            self.line_start = (self.mark > 0).then_some(ByteOrderMark::BYTES[0]);
            self.mark = ByteOrderMark::BYTES.len();
        }
        found
    }

    pub(super) fn is_at_line_start(&self) -> bool {
        self.line_start.is_none() && matches!(self.mark, 0 | 3)
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

    /// Returns the bytes that were held back, if the stream ends after an incomplete mark.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Self::Passed) {
            Self::Expected(seen @ 1..) => Some(Bytes::from_static(&Self::BYTES[..seen])),
            _ => None,
        }
    }
}
