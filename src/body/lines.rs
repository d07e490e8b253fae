//! Where a stream is that is known by its bytes alone: in which line, in which event, and whether it has begun.

use bytes::Bytes;
use memchr::memchr2_iter;

/// Where in the stream's lines the bytes that were passed on end.
///
/// Only the end of each chunk is looked at. A CR may be the first half of a CRLF, so a line is known to have ended when
/// its LF was there.
#[derive(Clone, Copy)]
pub(super) struct LineTracker {
    /// The last three bytes, oldest first. A stream begins as if it came after a blank line.
    last: [u8; 3],
}

impl Default for LineTracker {
    fn default() -> Self {
        Self { last: *b"\n\n\n" }
    }
}

impl LineTracker {
    #[inline]
    pub(super) fn passed(&mut self, chunk: &[u8]) {
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

    /// Whether the line that has just ended was blank.
    pub(super) fn is_between_events(&self) -> bool {
        matches!(self.last, [_, b'\n', b'\n'] | [b'\n' | b'\r', b'\r', b'\n'])
    }
}

/// Which events have passed, and whether there is one under way. It looks at every line, so it is for the streams of which
/// that has to be known.
#[derive(Clone, Default)]
pub(super) struct EventTracker {
    /// How much of a byte order mark the stream has begun with.
    mark: usize,
    /// What the line under way begins with.
    line: Option<u8>,
    /// The last line ended in a CR, to which an LF belongs that comes next.
    after_cr: bool,
    /// There are lines for which a client waits for a blank one.
    has_fields: bool,
}

/// What there was in a chunk.
#[derive(Default)]
pub(super) struct Passed {
    /// Blank lines that end an event.
    pub(super) events: u64,
    /// The end of the last line after which no event is under way.
    pub(super) complete_up_to: Option<usize>,
}

impl EventTracker {
    /// There is no byte order mark to expect any more.
    pub(super) fn expects_no_mark(&mut self) {
        self.mark = ByteOrderMark::BYTES.len();
    }

    pub(super) fn pass(&mut self, chunk: &[u8]) -> Passed {
        let mut passed = Passed::default();
        let mut start = self.pass_mark(chunk);
        for end in memchr2_iter(b'\n', b'\r', chunk) {
            match self.line.take().or(chunk[start..end].first().copied()) {
                None if self.after_cr && chunk[end] == b'\n' => {}
                None => passed.events += u64::from(std::mem::take(&mut self.has_fields)),
                // `data`, `event` and `id`. A comment is nothing to wait for, and neither is `retry`, which counts at once.
                Some(b'd' | b'e' | b'i') => self.has_fields = true,
                Some(_) => {}
            }
            self.after_cr = chunk[end] == b'\r';
            start = end + 1;
            if !self.has_fields {
                passed.complete_up_to = Some(start);
            }
        }
        self.line = self.line.or(chunk.get(start).copied());
        passed
    }

    /// Answers how much of the chunk belongs to a byte order mark.
    pub(super) fn pass_mark(&mut self, chunk: &[u8]) -> usize {
        let missing = &ByteOrderMark::BYTES[self.mark..];
        let found = missing.iter().zip(chunk).take_while(|(a, b)| a == b).count();
        self.mark += found;
        if found < missing.len() && found < chunk.len() {
            // There is none, and what looked like one is how the first line begins.
            self.line = (self.mark > 0).then_some(ByteOrderMark::BYTES[0]);
            self.mark = ByteOrderMark::BYTES.len();
        }
        found
    }

    pub(super) fn is_at_line_start(&self) -> bool {
        self.line.is_none() && matches!(self.mark, 0 | 3)
    }

    /// Whether the stream can end here, and no event is cut by that.
    pub(super) fn are_complete(&self) -> bool {
        self.is_at_line_start() && !self.has_fields
    }
}

/// A byte order mark is no part of the events, but only at the very beginning of the stream (HTML standard, §9.2.6:
/// streams are decoded by UTF-8 decode). Behind something that was put before it, it has to go.
#[derive(Clone, Copy, Default)]
pub(super) enum ByteOrderMark {
    /// Nothing was sent, and nothing put first.
    #[default]
    Undecided,
    /// Something was put first, and of the mark this many bytes came; they are kept back.
    Expected(usize),
    /// The stream has begun.
    Passed,
}

impl ByteOrderMark {
    const BYTES: &[u8; 3] = b"\xEF\xBB\xBF";

    pub(super) fn something_goes_first(&mut self) {
        if let Self::Undecided = self {
            *self = Self::Expected(0);
        }
    }

    pub(super) fn is_expected(self) -> bool {
        matches!(self, Self::Expected(_))
    }

    /// What of a chunk can be passed on. To be asked while a mark is expected.
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

    /// What was kept back of a mark that did not become whole before the end.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Self::Passed) {
            Self::Expected(seen @ 1..) => Some(Bytes::from_static(&Self::BYTES[..seen])),
            _ => None,
        }
    }
}
