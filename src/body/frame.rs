//! Joins events that are ready at the same time into one frame of the response body.

use bytes::Bytes;

/// A frame of joined events is full when it has at least this size, in bytes. A full frame accepts
/// no more events.
const FULL_FRAME: usize = 16 * 1024;

/// A chunk of at least this size, in bytes, is not joined with other chunks: it makes an empty
/// frame full, and a frame with other chunks does not accept it. Copying such a chunk would cost
/// more than a separate frame.
const LARGE_CHUNK: usize = 4 * 1024;

/// The initial capacity in bytes of the buffer that joins chunks. The buffer grows when it is full.
const FIRST_CAPACITY: usize = 2 * 1024;

/// The bytes of the frame that is being built. The first chunk is stored without a copy. When a
/// second chunk is added, all chunks of the frame are copied into one buffer.
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

    /// Adds a chunk, such as the bytes of an event, to the frame. An empty frame accepts any chunk,
    /// and is full after a chunk of 4 KiB or more. A frame that already has bytes does not accept a
    /// chunk of this size, and a full frame accepts no chunk. The chunk is then returned as `Err`,
    /// and the caller begins the next frame with it.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), Bytes> {
        if self.is_empty() {
            self.alone = chunk;
            return Ok(());
        }
        if chunk.len() >= LARGE_CHUNK || (self.is_full() && !chunk.is_empty()) {
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
