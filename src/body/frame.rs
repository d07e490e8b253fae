//! Joins events that are ready at the same time into one frame.

use bytes::Bytes;

/// A frame of this many bytes takes no more events.
const FULL_FRAME: usize = 16 * 1024;

/// Chunks from this size on are never copied: the copy would cost more than a frame of their own.
const LARGE_CHUNK: usize = 4 * 1024;

/// The capacity that the first copy reserves. It doubles from there.
const FIRST_CAPACITY: usize = 2 * 1024;

/// The bytes of the frame that is being built. A single chunk is never copied.
pub(super) struct FrameBuffer {
    alone: Bytes,
    joined: Vec<u8>,
}

impl FrameBuffer {
    pub(super) fn beginning_with(chunk: Bytes) -> Self {
        Self { alone: chunk, joined: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alone.is_empty() && self.joined.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.joined.len() >= FULL_FRAME || self.alone.len() >= LARGE_CHUNK
    }

    /// Adds a chunk, or returns it if it has to begin the next frame.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), Bytes> {
        if self.is_empty() {
            self.alone = chunk;
            return Ok(());
        }
        if chunk.len() >= LARGE_CHUNK {
            return Err(chunk);
        }
        if self.joined.is_empty() {
            self.joined.reserve(FIRST_CAPACITY);
            self.joined.extend_from_slice(&std::mem::take(&mut self.alone));
        }
        self.joined.extend_from_slice(&chunk);
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.alone } else { Bytes::from(self.joined) }
    }
}
