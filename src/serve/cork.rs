//! The socket of an HTTP/2 connection. It limits what hyper reads in one poll, and can gather
//! several writes into one.
//!
//! h2 has a list of the requests that it has read and hyper has not accepted yet, and a list of the
//! frames that are not written yet. The memory of these lists never shrinks. To keep the first list
//! short, the socket lets hyper read only few bytes before hyper accepts their requests. To keep
//! the second list short, hyper is polled after every few streams, and writes their frames into the
//! buffer of the socket. The buffer then leaves in one write.

use super::{frames::Frames, io::Rewound, scratch};
use bytes::Bytes;
use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The limit of the bytes that an HTTP/2 connection gathers for one write. From this number on, the
/// gathered bytes are sent before more bytes are added.
const MAX_GATHERED: usize = 64 * 1024;

/// The acknowledgement of the PING that h2 sends after the first GOAWAY of a graceful shutdown: a
/// PING frame with the flag ACK (RFC 9113, §6.7) and the payload of h2, which is always the same.
const PING_ACK: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0\x0b\x7b\xa2\xf0\x8b\x9b\xfe\x54";

/// Controls the socket of an HTTP/2 connection: how many bytes hyper reads in one poll, and whether
/// the socket gathers several writes of hyper into one. In a graceful shutdown, the `Cork` can also
/// acknowledge h2's PING in place of a client that does not answer. Only the task of the connection
/// uses the `Cork`. Its fields are atomic because an `Arc` shares them, and the task may move to
/// another thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Cork(Arc<Turn>);

#[derive(Debug, Default)]
struct Turn {
    is_corked: AtomicBool,
    /// The number of bytes that hyper may still read in its current poll of the connection. At
    /// zero, hyper's reads are pending until the next poll.
    readable: AtomicUsize,
    /// Set while hyper has read a part of a frame or of a header block from the client, and not its
    /// end.
    is_within_frame: AtomicBool,
    /// Set while bytes wait to be written because the client reads too slowly, so the socket is
    /// full.
    is_blocked: AtomicBool,
    /// Set if bytes were read or written since the last call of `Cork::take_moved`, which clears
    /// the flag. In a graceful shutdown, the flag shows whether the connection is silent.
    has_moved: AtomicBool,
    /// Set if bytes were written since the last call of `Cork::take_written`, which clears the
    /// flag.
    has_written: AtomicBool,
    /// Set if hyper has to read a [`PING_ACK`] (the answer to a PING) before the next frame of the
    /// client. This wrapper of the socket inserts it, because the client has not answered.
    answers_ping: AtomicBool,
    /// Set when hyper has written its last byte to the HTTP/2 connection and begins to close it.
    is_closing: AtomicBool,
}

impl Cork {
    /// Allows hyper to read this number of bytes in its next poll of the connection.
    pub(super) fn begin_turn(&self, readable: usize) {
        self.0.readable.store(readable, Ordering::Relaxed);
    }

    /// Returns whether hyper has read all bytes that [`begin_turn`](Self::begin_turn) has allowed.
    pub(super) fn is_used_up(&self) -> bool {
        self.0.readable.load(Ordering::Relaxed) == 0
    }

    /// Sets whether the socket gathers what hyper writes. If `is_corked` is `true`, the socket
    /// gathers the writes from now on. If it is `false`, the next flush sends the gathered bytes.
    pub(super) fn set(&self, is_corked: bool) {
        self.0.is_corked.store(is_corked, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.is_corked.load(Ordering::Relaxed)
    }

    /// Inserts an acknowledgement of the last PING of the graceful shutdown into the bytes that
    /// hyper reads, because the client does not answer. If hyper has read only a part of a frame or
    /// header block, the acknowledgement follows the end of this frame or block.
    pub(super) fn answer_ping(&self) {
        self.0.answers_ping.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client has sent a part of a frame or of a header block, and not its end.
    pub(super) fn is_within_frame(&self) -> bool {
        self.0.is_within_frame.load(Ordering::Relaxed)
    }

    /// Returns whether bytes wait to be written because the socket is full: the client does not
    /// read.
    pub(super) fn is_blocked(&self) -> bool {
        self.0.is_blocked.load(Ordering::Relaxed)
    }

    /// Returns whether bytes were read from or written to the socket since the previous call.
    /// Resets this flag.
    pub(super) fn take_moved(&self) -> bool {
        self.0.has_moved.swap(false, Ordering::Relaxed)
    }

    /// Returns whether bytes were written to the socket since the previous call. Resets this flag.
    pub(super) fn take_written(&self) -> bool {
        self.0.has_written.swap(false, Ordering::Relaxed)
    }

    /// Returns whether hyper has written its last byte and begun to close the connection.
    pub(super) fn is_closing(&self) -> bool {
        self.0.is_closing.load(Ordering::Relaxed)
    }

    /// Notes the result of a write to the socket: whether the socket accepts more bytes, and
    /// whether bytes were written.
    fn record_write(&self, written: &Poll<io::Result<usize>>) {
        self.0.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.0.has_moved.store(true, Ordering::Relaxed);
            self.0.has_written.store(true, Ordering::Relaxed);
        }
    }

    /// Notes the result of a flush of the socket: whether the socket accepts more bytes.
    fn record_flush(&self, flushed: &Poll<io::Result<()>>) {
        self.0.is_blocked.store(flushed.is_pending(), Ordering::Relaxed);
    }

    /// Notes that bytes of the client were read, and whether they end within a frame. `frames` is
    /// the position in the client's HTTP/2 frames after these bytes.
    fn record_read(&self, frames: &Frames) {
        self.0.is_within_frame.store(frames.is_within_frame(), Ordering::Relaxed);
        self.0.has_moved.store(true, Ordering::Relaxed);
    }
}

/// The socket of an HTTP/2 connection. After [`Cork::set(true)`](Cork::set), the socket gathers in
/// a buffer what hyper writes. After `Cork::set(false)`, the next flush sends the buffer.
#[derive(Debug)]
pub(super) struct Corked<I> {
    io: Rewound<I>,
    cork: Cork,
    /// The bytes that hyper has written and that are not written to the socket yet. An empty buffer
    /// takes no memory.
    gathered: Vec<u8>,
    /// The position of hyper in the HTTP/2 frames of the client. It shows whether hyper has read
    /// only a part of a frame or of a header block.
    frames: Frames,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Corked<I> {
    pub(super) fn new(io: Rewound<I>, cork: Cork) -> Self {
        Self { io, cork, gathered: Vec::new(), frames: Frames::default() }
    }

    /// Writes the gathered bytes to the socket. Bytes that the socket does not accept stay
    /// gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let sent = loop {
            if written == self.gathered.len() {
                break Poll::Ready(Ok(()));
            }
            let sent = Pin::new(&mut self.io).poll_write(cx, &self.gathered[written..]);
            self.cork.record_write(&sent);
            match sent {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => written += length,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        // A slow client does not keep a large buffer of the thread. If some bytes were sent, or the
        // buffer is more than twice as large as its content, only a copy of the rest is kept.
        if written > 0 || self.gathered.capacity() > 2 * self.gathered.len() {
            let rest = self.gathered[written..].to_vec();
            scratch::put_back(mem::replace(&mut self.gathered, rest));
        }
        sent
    }

    /// Returns `true` if the bytes that hyper writes next have to be added to the buffer. This is
    /// so after [`Cork::set(true)`](Cork::set), and also while the buffer contains earlier bytes,
    /// which the new bytes must not overtake. If the buffer contains 64 KiB or more, this method
    /// first writes the buffer to the socket.
    fn poll_gathers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.gathered.len() >= MAX_GATHERED {
            ready!(self.poll_send(cx))?;
        }
        // Bytes must not overtake gathered bytes that are not sent yet, so they are gathered as
        // well.
        let gathers = self.cork.is_set() || !self.gathered.is_empty();
        if gathers && self.gathered.is_empty() {
            self.gathered = scratch::take();
        }
        Poll::Ready(Ok(gathers))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let readable = self.cork.0.readable.load(Ordering::Relaxed);
        if readable == 0 {
            // The task polls the connection again at once, with a new number of readable bytes.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Self { io, cork, frames, .. } = &mut *self;
        // Bytes in `front` would be read first, and they may end within a frame.
        if cork.0.answers_ping.load(Ordering::Relaxed) && !frames.is_within_frame() && io.front.is_empty() {
            cork.0.answers_ping.store(false, Ordering::Relaxed);
            io.front = Bytes::from_static(PING_ACK);
        }
        let size = readable.min(buffer.remaining());
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(size));
        ready!(Pin::new(io).poll_read(cx, &mut limited))?;
        let read = limited.filled().len();
        if read > 0 {
            frames.advance(limited.filled());
            cork.record_read(frames);
        }
        buffer.advance(read);
        self.cork.0.readable.store(readable - read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_gathers(cx))? {
            let written = Pin::new(&mut self.io).poll_write(cx, bytes);
            self.cork.record_write(&written);
            return written;
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_gathers(cx))? {
            let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
            self.cork.record_write(&written);
            return written;
        }
        slices.iter().for_each(|slice| self.gathered.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cork.is_set() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx))?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.cork.record_flush(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.cork.0.is_closing.store(true, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn gathered_writes_reach_slow_client_in_order() {
        let (mut client, server) = duplex(1000);
        let cork = Cork::default();
        let mut io = Corked::new(Rewound::new(server, Bytes::new()), cork.clone());
        let sent: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        cork.set(true);
        let write = async {
            for chunk in sent.chunks(700) {
                io.write_all(chunk).await.unwrap();
                assert!(io.gathered.len() < MAX_GATHERED + 700);
            }
            cork.set(false);
            io.flush().await.unwrap();
        };
        let read = async {
            let mut received = vec![0; sent.len()];
            client.read_exact(&mut received).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(write, read);
        assert!(received == sent);
        assert_eq!(io.gathered.capacity(), 0, "an idle connection has no buffer");
    }

    #[tokio::test]
    async fn reads_end_with_turn() {
        let (mut client, server) = duplex(1000);
        let cork = Cork::default();
        let mut io = Corked::new(Rewound::new(server, Bytes::new()), cork.clone());
        client.write_all(&[7; 500]).await.unwrap();
        cork.begin_turn(300);
        let mut read = Vec::new();
        while !cork.is_used_up() {
            io.read_buf(&mut read).await.unwrap();
        }
        assert_eq!(read.len(), 300);
        cork.begin_turn(300);
        io.read_exact(&mut [0; 200]).await.unwrap();
        assert!(!cork.is_used_up());
    }
}
