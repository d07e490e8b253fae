//! Tracks the bytes of an upstream stream (an event stream that an inner service has made without
//! `SseStream`): its lines, its events, and its byte order mark.

use bytes::Bytes;
use memchr::memchr2_iter;

/// Tracks whether an event stream is at the start of a line. Reads only the last byte of each
/// chunk.
#[derive(Clone, Copy)]
pub(super) struct LineTracker {
    last: u8,
}

impl Default for LineTracker {
    /// Creates the line tracker of a new stream, which is at the start of its first line.
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

    /// Returns whether the last byte of the stream was a CR. If the next byte is an LF, the CR and
    /// the LF are one line end.
    pub(super) fn is_after_cr(&self) -> bool {
        self.last == b'\r'
    }
}

/// Counts the complete events of an upstream stream, and tracks whether the current event is
/// incomplete. An upstream stream is made by an inner service without `SseStream`, and a layer
/// forwards it.
///
/// The tracker reads every line, which takes time. So it is used only for streams whose heartbeat
/// is an event, and for streams that have an observer. An observer records a stream for metrics,
/// spans, limits or callbacks, and can end it.
#[derive(Clone, Default)]
pub(super) struct EventTracker {
    /// The number of bytes at the beginning of the stream that match a byte order mark (EF BB BF).
    /// Set to 3 when the mark is complete, or when the stream cannot begin with a mark any more.
    mark: usize,
    line: LineStart,
    /// Set if the last line ended in a CR. If the next byte is an LF, it belongs to that line end,
    /// and is not an empty line.
    after_cr: bool,
    /// Set if the current event has a line that begins with `d`, `e` or `i`, such as `data`,
    /// `event` or `id`. The event is then incomplete until its blank line, and no other event may
    /// be inserted before that. Comments and `retry` lines alone do not make the event incomplete.
    has_fields: bool,
    /// Set if the current event has a `data` line. A client dispatches only events with data.
    has_data: bool,
}

/// The first five bytes of the current line, which are enough to recognise `data:`. A line may
/// arrive in several chunks.
#[derive(Clone, Copy, Default)]
struct LineStart {
    bytes: [u8; 5],
    length: usize,
}

impl LineStart {
    /// Adds the next bytes of the current line to the stored beginning of the line. Only the first
    /// five bytes of a line are stored.
    #[inline]
    fn push(&mut self, part: &[u8]) {
        let part = &part[..part.len().min(self.bytes.len() - self.length)];
        self.bytes[self.length..][..part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    fn first(&self) -> Option<u8> {
        self.bytes[..self.length].first().copied()
    }

    /// Returns whether the current line of the stream is a `data` field. Call this method only at
    /// the end of the line: before that, the bytes `data` could begin a longer field name.
    fn is_data(&self) -> bool {
        matches!(&self.bytes[..self.length], b"data" | b"data:")
    }
}

/// The result of reading one chunk of an event stream: the number of events that end in the chunk,
/// and the offsets where a layer can cut the chunk between events.
#[derive(Default)]
pub(super) struct ChunkEvents {
    /// The number of events that end in this chunk, each with a blank line.
    pub(super) events: u64,
    /// Set if an event with data ends in this chunk. A client dispatches only events with data.
    pub(super) is_visible: bool,
    /// The first and the last offset in this chunk where a layer can end the stream without cutting
    /// an event: after a line end, and outside of an incomplete event. `None` if the chunk has no
    /// such line end. A layer that ends the stream cuts the chunk at the last of these offsets. If
    /// the application has closed the stream through a stream registry, the layer cuts the chunk at
    /// the first offset instead: later events may be newer than the call that closed the stream.
    pub(super) complete_at: Option<(usize, usize)>,
}

impl EventTracker {
    /// Notes that the stream cannot begin with a byte order mark any more, because a layer has sent
    /// other bytes before the stream.
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

    /// Compares the start of `chunk` with the bytes of a byte order mark that are still missing at
    /// the beginning of the stream. Returns the number of bytes of `chunk` that match, or 0 if no
    /// byte of a mark is missing any more. If other bytes follow an incomplete mark, this method
    /// adds the bytes of the incomplete mark to the first line.
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

    /// Returns whether the stream is at the start of a line and has no incomplete event.
    pub(super) fn is_complete(&self) -> bool {
        self.is_at_line_start() && !self.has_fields
    }
}

/// Removes the byte order mark (EF BB BF) of an upstream stream if the layer has sent other bytes
/// before the stream.
///
/// A client ignores the mark only at the very beginning of a response (HTML standard, §9.2.6:
/// streams are decoded by UTF-8 decode). After other bytes, the mark would become a part of a line.
#[derive(Clone, Copy, Default)]
pub(super) enum ByteOrderMark {
    /// No byte was sent to the client yet: neither by the layer, such as a heartbeat, nor by the
    /// stream.
    #[default]
    Undecided,
    /// The start of the upstream stream has not arrived completely. It can begin with a byte order
    /// mark. The layer has already sent bytes, so it removes the mark. The number counts the bytes
    /// of a possible mark that have arrived and are held back until the mark is complete.
    Expected(usize),
    /// The beginning of the stream has passed. From now on, the bytes of a byte order mark are
    /// forwarded like any other bytes.
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

    /// Removes the byte order mark from `chunk`, the next chunk of the stream. If no mark has to be
    /// removed, returns `chunk` unchanged. If the chunk is only a part of the mark, the part is
    /// held back, and the result is empty. If the stream does not begin with a mark, the held-back
    /// bytes are returned in front of the chunk.
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

    /// Returns the bytes of an incomplete byte order mark that were held back, and `None` if there
    /// are none. Called at the end of the stream.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Self::Passed) {
            Self::Expected(seen @ 1..) => Some(Bytes::from_static(&Self::BYTES[..seen])),
            _ => None,
        }
    }
}
