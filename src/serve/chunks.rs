//! The bytes of an event stream on the wire: frames that are gathered into one write, and the rest
//! of a write that the socket did not accept.

use super::{handover::Framing, scratch};
use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// The number of gathered bytes that makes a write to the socket full. A full write gets no more
/// frames. Frames are never split, so a write can be larger.
const MAX_WRITE: usize = 256 * 1024;
/// The number of gathered frames that makes a write to the socket full, even if they have few
/// bytes. Gathering many small frames also takes time.
const MAX_FRAMES: usize = 256;
/// The minimum size, in bytes, of a body frame that is written as a separate buffer of a vectored
/// write. Smaller frames are copied into one buffer, which costs less than several buffers. Without
/// vectored writes, all frames are copied.
const SHARED_FRAME: usize = 4 * 1024;
/// The maximum number of buffers in one vectored write (`writev`) to the socket.
const MAX_SLICES: usize = 64;
/// The end of a chunked body without trailers (RFC 9112, §7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The frames that are gathered for one write to the socket, with the chunk sizes of a chunked
/// body.
pub(super) struct Gathered {
    framing: Framing,
    /// The bytes that are copied for this write: the chunk sizes, and the small frames. The buffer
    /// is borrowed from the current thread. Dropping this [`Gathered`] gives the buffer back, and
    /// the thread reuses it for its next write.
    copied: Vec<u8>,
    /// The large frames, which are not copied, each with an offset in `copied`. The bytes of
    /// `copied` up to the offset are written first, then the frame, and then the remaining bytes of
    /// `copied`.
    shared: Vec<(usize, Bytes)>,
    length: usize,
    frames: usize,
    can_share: bool,
}

impl Gathered {
    /// Creates a write without frames. `can_share` is `true` if the connection supports vectored
    /// writes. Large frames are then not copied.
    pub(super) fn new(framing: Framing, can_share: bool) -> Self {
        Self { framing, copied: scratch::take(), shared: Vec::new(), length: 0, frames: 0, can_share }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns whether this write is full, so that the gathered frames must be written before more
    /// frames are added. A write is full from 256 KiB or 256 frames on.
    pub(super) fn is_full(&self) -> bool {
        self.length >= MAX_WRITE || self.frames >= MAX_FRAMES
    }

    /// Adds a frame of the body to this write to the socket. An empty frame adds no bytes, because
    /// in a chunked body a chunk of size 0 would end the body.
    pub(super) fn push(&mut self, frame: Bytes) {
        if frame.is_empty() {
            self.frames += 1;
            return;
        }
        let before = self.copied.len();
        let is_chunked = self.framing == Framing::Chunked;
        if is_chunked {
            push_chunk_size(&mut self.copied, frame.len());
        }
        if self.can_share && frame.len() >= SHARED_FRAME {
            self.length += frame.len();
            self.shared.push((self.copied.len(), frame));
        } else {
            self.copied.extend_from_slice(&frame);
        }
        if is_chunked {
            self.copied.extend_from_slice(b"\r\n");
        }
        self.length += self.copied.len() - before;
        self.frames += 1;
    }

    /// Adds the last chunk to this write if the body is chunked. The last chunk ends the body.
    pub(super) fn end(&mut self) {
        if self.framing == Framing::Chunked {
            self.copied.extend_from_slice(LAST_CHUNK);
            self.length += LAST_CHUNK.len();
        }
    }

    /// Writes the gathered bytes. Returns `None` if all bytes were written. Returns the rest if the
    /// connection currently accepts no more bytes.
    pub(super) fn write<I: AsyncWrite + Unpin>(
        &self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> io::Result<Option<Box<Unsent>>> {
        let mut written = 0;
        while written < self.length {
            let write = if self.shared.is_empty() {
                Pin::new(&mut *io).poll_write(cx, &self.copied[written..])
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let mut used = 0;
                self.pieces(written, |piece, _| {
                    if used < MAX_SLICES {
                        slices[used] = IoSlice::new(piece);
                        used += 1;
                    }
                });
                Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used])
            };
            match write {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(length)) => written += length,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Some(self.rest(written))),
            }
        }
        Ok(None)
    }

    fn rest(&self, written: usize) -> Box<Unsent> {
        let mut pieces = VecDeque::new();
        self.pieces(written, |piece, shared| {
            pieces.push_back(shared.map_or_else(|| Bytes::copy_from_slice(piece), |frame| frame.slice_ref(piece)));
        });
        Box::new(Unsent { pieces })
    }

    /// Calls `f` with each contiguous part of the gathered bytes, in order. Skips the first `skip`
    /// bytes, which are already written. The second argument of `f` is the large frame that
    /// contains the part, or `None` if the part is in `copied`, the buffer of small frames.
    fn pieces<'a>(&'a self, mut skip: usize, mut f: impl FnMut(&'a [u8], Option<&'a Bytes>)) {
        let mut visit = |piece: &'a [u8], frame| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if skipped < piece.len() {
                f(&piece[skipped..], frame);
            }
        };
        let mut start = 0;
        for (place, frame) in &self.shared {
            visit(&self.copied[start..*place], None);
            visit(frame, Some(frame));
            start = *place;
        }
        visit(&self.copied[start..], None);
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        scratch::put_back(std::mem::take(&mut self.copied));
    }
}

/// Appends the line with the size of a chunk: hexadecimal digits in upper case, as in hyper, and a
/// CRLF.
fn push_chunk_size(buffer: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        buffer.push(DIGITS[(size >> (4 * digit)) & 0xf]);
    }
    buffer.extend_from_slice(b"\r\n");
}

/// The bytes of an event stream that the socket of the client has not accepted yet. Exists only
/// while the client reads too slowly.
#[derive(Debug)]
pub(super) struct Unsent {
    pieces: VecDeque<Bytes>,
}

impl Unsent {
    /// Writes the unsent bytes to the socket. Returns ready when all of them are written, or when
    /// the connection fails.
    pub(super) fn poll_write<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(first) = self.pieces.front() {
            let mut written = if self.pieces.len() == 1 || !io.is_write_vectored() {
                ready!(Pin::new(&mut *io).poll_write(cx, first))?
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let used = self.pieces.len().min(MAX_SLICES);
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            while let Some(first) = self.pieces.front_mut().filter(|_| written > 0) {
                let of_first = written.min(first.len());
                first.advance(of_first);
                written -= of_first;
                if first.is_empty() {
                    self.pieces.pop_front();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_size_is_written_in_hexadecimal() {
        for (size, expected) in [(1, "1\r\n"), (15, "F\r\n"), (16, "10\r\n"), (0xABC, "ABC\r\n"), (65_536, "10000\r\n")]
        {
            let mut buffer = Vec::new();
            push_chunk_size(&mut buffer, size);
            assert_eq!(buffer, expected.as_bytes());
        }
    }
}
