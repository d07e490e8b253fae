//! Events that are ready at the same time become one frame.

use bytes::Bytes;

/// A frame that has this many bytes takes no more events.
const FULL: usize = 16 * 1024;

/// Chunks from this size on are handed on as they are: to copy them would cost more than a frame of their own.
const LARGE: usize = 4 * 1024;

/// What the first copy reserves; it doubles from there.
const FIRST_COPY: usize = 2 * 1024;

/// The frame under way. One chunk alone is never copied.
pub(super) struct Coalesce {
    alone: Bytes,
    joined: Vec<u8>,
}

impl Coalesce {
    pub(super) fn beginning_with(chunk: Bytes) -> Self {
        Self { alone: chunk, joined: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alone.is_empty() && self.joined.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.joined.len() >= FULL || self.alone.len() >= LARGE
    }

    /// Adds a chunk, or gives it back if it has to stand at the beginning of the next frame.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), Bytes> {
        if self.is_empty() {
            self.alone = chunk;
            return Ok(());
        }
        if chunk.len() >= LARGE {
            return Err(chunk);
        }
        if self.joined.is_empty() {
            self.joined.reserve(FIRST_COPY);
            self.joined.extend_from_slice(&std::mem::take(&mut self.alone));
        }
        self.joined.extend_from_slice(&chunk);
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.alone } else { Bytes::from(self.joined) }
    }
}
