//! Joins events that are ready at the same time into one frame.

use bytes::Bytes;

/// The minimum size in bytes of a full frame. A full frame accepts no more events.
const FULL_FRAME: usize = 16 * 1024;

/// The minimum size in bytes of a chunk that is never copied. The copy would cost more than a
/// separate frame.
const LARGE_CHUNK: usize = 4 * 1024;

/// The capacity in bytes that the first copy reserves. The buffer doubles when it is full.
const FIRST_CAPACITY: usize = 2 * 1024;

/// The bytes of the frame that is being built. If the frame has only one chunk, the chunk is not
/// copied.
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

    /// Adds a chunk to the frame. Returns the chunk as an error if it has to begin the next frame.
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
