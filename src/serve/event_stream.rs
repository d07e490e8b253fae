//! An event stream over HTTP/1 that this server writes itself, after it has taken the connection
//! from hyper.

use super::{
    chunks::{Gathered, Unsent},
    handover::{Framing, Offer},
};
use crate::BoxError;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use pin_project_lite::pin_project;
use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The maximum number of bytes from the client that are kept while its event stream runs, such as a
/// pipelined request. Includes the bytes after the request that hyper read before this server took
/// the connection. If the client sends more, all of these bytes are discarded, and the connection
/// closes after the stream.
const MAX_UNREAD: usize = 16 * 1024;
/// The maximum number of reads from the client in one poll of an event stream. After these reads,
/// other tasks run, even if the client sends all the time.
const MAX_READS: usize = 8;

pin_project! {
    /// Polls the body of an event stream, and writes its frames to the connection.
    pub(super) struct EventStream<B> {
        #[pin]
        body: Option<B>,
        output: Output,
        input: Input,
    }
}

/// The sending side of an event stream: the framing of its body, and the bytes that are not yet
/// written to the connection or not yet flushed.
#[derive(Debug)]
struct Output {
    /// The bytes that the socket has not accepted because it was full. They are written before the
    /// body is polled again.
    unsent: Option<Box<Unsent>>,
    /// Set if bytes were written since the last flush of the connection.
    is_dirty: bool,
    framing: Framing,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The body of the event stream has neither ended nor failed, so it may have more frames.
    Open,
    /// The body of the event stream has ended without an error. When its last bytes are written,
    /// the connection closes, or waits for the next request.
    Complete,
    /// The body of the event stream has failed. The last chunk of a chunked body is not sent, so
    /// that the client notices the failure.
    Failed,
}

/// The input of a connection during an event stream: the bytes that the client sends meanwhile.
#[derive(Debug)]
struct Input {
    /// The bytes of the next request, which arrived while the stream was running.
    unread: Option<Box<BytesMut>>,
    /// Set if the connection stays open for another request after the event stream.
    keep_alive: bool,
}

/// The state of a connection after its event stream has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The connection waits for the next request. Contains the bytes of that request that have
    /// already arrived. They can be empty.
    KeepAlive(Bytes),
    /// All frames of the body, up to its end or its error, are written. The server closes the
    /// connection.
    Close,
    /// The connection is dropped at once: the client has closed it, it is broken, or a body without
    /// chunked framing has failed.
    Disconnected,
}

/// The error of a connection that is broken, or that the client has closed.
struct Disconnected;

impl From<io::Error> for Disconnected {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl<B> EventStream<B> {
    /// Creates the event stream of a connection that this server has taken over from hyper. `offer`
    /// contains the body of the response and its framing. `unread` contains the bytes that the
    /// client has sent after its request: first the bytes that hyper has read, and then the bytes
    /// that it has not read yet.
    pub(super) fn new(offer: Offer<B>, unread: [&[u8]; 2]) -> Self {
        let mut input = Input { unread: None, keep_alive: offer.keep_alive };
        unread.into_iter().for_each(|bytes| input.keep(bytes));
        Self {
            body: Some(offer.body),
            output: Output { unsent: None, is_dirty: false, framing: offer.framing, phase: Phase::Open },
            input,
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> EventStream<B> {
    /// Writes the stream to the connection, and reads from the connection to notice a
    /// disconnection. Returns ready when the stream is over, with the resulting state of the
    /// connection. If `must_close` returns `true`, the server is shutting down, and the connection
    /// is not kept for another request.
    pub(super) fn poll<I: AsyncRead + AsyncWrite + Unpin>(
        mut self: Pin<&mut Self>,
        io: &mut I,
        cx: &mut Context<'_>,
        must_close: impl FnOnce() -> bool,
    ) -> Poll<Ended> {
        let written = self.as_mut().poll_body(io, cx);
        let this = self.project();
        let has_failed = this.output.phase == Phase::Failed;
        match written {
            Poll::Ready(Err(Disconnected)) => Poll::Ready(Ended::Disconnected),
            Poll::Ready(Ok(())) if this.input.keep_alive && !has_failed && !must_close() => {
                let unread = this.input.unread.take().map_or_else(Bytes::new, |unread| unread.freeze());
                Poll::Ready(Ended::KeepAlive(unread))
            }
            // Without chunks, only a TLS connection shows that the body is incomplete: it ends
            // without the message that a shutdown sends.
            Poll::Ready(Ok(())) if has_failed && this.output.framing == Framing::UntilClose => {
                Poll::Ready(Ended::Disconnected)
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ended::Close),
            // A client that disconnects is noticed here, also while its socket is full.
            Poll::Pending => match this.input.poll_read(io, cx) {
                Ok(()) => Poll::Pending,
                Err(Disconnected) => Poll::Ready(Ended::Disconnected),
            },
        }
    }

    /// Polls the body of the event stream and writes its frames to the connection. While bytes wait
    /// for a slow client, the body is not polled. Returns ready when the body has ended or failed
    /// and all its bytes are written. Returns an error if the client has disconnected.
    fn poll_body<I: AsyncWrite + Unpin>(
        self: Pin<&mut Self>,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Disconnected>> {
        let mut this = self.project();
        ready!(this.output.poll_flush(io, cx))?;
        if this.output.phase == Phase::Open {
            let mut gathered = Gathered::new(this.output.framing, io.is_write_vectored());
            let is_body_pending = gather(&mut gathered, this.body.as_mut(), &mut this.output.phase, cx);
            if this.output.phase != Phase::Open {
                this.body.set(None);
            }
            if !gathered.is_empty() {
                this.output.unsent = gathered.write(io, cx)?;
                this.output.is_dirty = true;
                drop(gathered);
                ready!(this.output.poll_flush(io, cx))?;
            }
            if this.output.phase == Phase::Open {
                if !is_body_pending {
                    // Other tasks of the thread are next, however fast the body and the client are.
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Polls the body for frames and adds them to `gathered`, until the body is pending, ends or fails,
/// or until one write is full (256 KiB or 256 frames). Updates `phase` if the body ends or fails.
/// Returns `true` if the body is pending.
fn gather<B: Body<Data = Bytes>>(
    gathered: &mut Gathered,
    mut body: Pin<&mut Option<B>>,
    phase: &mut Phase,
    cx: &mut Context<'_>,
) -> bool {
    let Some(mut body) = body.as_mut().as_pin_mut() else { return false };
    while !gathered.is_full() {
        match body.as_mut().poll_frame(cx) {
            Poll::Pending => return true,
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    gathered.push(data);
                    if !body.is_end_stream() {
                        continue;
                    }
                    *phase = Phase::Complete;
                }
                // Trailers end a body. hyper would not send them, because the response did not
                // announce any.
                Err(frame) if frame.is_trailers() => *phase = Phase::Complete,
                Err(_unknown) => continue,
            },
            Poll::Ready(None) => *phase = Phase::Complete,
            Poll::Ready(Some(Err(_))) => *phase = Phase::Failed,
        }
        if *phase == Phase::Complete {
            gathered.end();
        }
        return false;
    }
    false
}

impl Output {
    /// Writes the bytes that the socket did not accept before, and then flushes the connection.
    /// Returns an error if the client has disconnected.
    fn poll_flush<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Disconnected>> {
        if let Some(unsent) = &mut self.unsent {
            ready!(unsent.poll_write(io, cx))?;
            self.unsent = None;
        }
        if self.is_dirty {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl Input {
    /// Reads the bytes that the client sends during the event stream, and keeps bytes of the next
    /// request. Returns an error if the client has disconnected. After eight reads, wakes the task
    /// and returns, so that other tasks run before the next read.
    ///
    /// A client that closes only the write half of its connection counts as disconnected, as in
    /// hyper.
    fn poll_read<I: AsyncRead + Unpin>(&mut self, io: &mut I, cx: &mut Context<'_>) -> Result<(), Disconnected> {
        for _ in 0..MAX_READS {
            let mut bytes = [MaybeUninit::uninit(); 1024];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            if buffer.filled().is_empty() {
                return Err(Disconnected);
            }
            self.keep(buffer.filled());
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Keeps bytes of the next request, up to 16 KiB, until the event stream ends. Over this limit,
    /// all of these bytes are discarded, and the connection closes after the stream. If the
    /// connection closes anyway, keeps nothing. The server continues to read, because only a read
    /// shows that the client has disconnected.
    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || !self.keep_alive {
            return;
        }
        let unread = self.unread.get_or_insert_default();
        if unread.len() + bytes.len() > MAX_UNREAD {
            self.keep_alive = false;
            self.unread = None;
        } else {
            unread.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(keep_alive: bool, unread: [&[u8]; 2]) -> Input {
        EventStream::new(Offer { body: (), framing: Framing::Chunked, keep_alive }, unread).input
    }

    #[test]
    fn limit_applies_to_bytes_that_hyper_has_read() {
        let (half, more) = (&[b'x'; MAX_UNREAD / 2][..], &[b'x'; MAX_UNREAD / 2 + 1][..]);
        for (unread, kept) in [([half, half], Some(MAX_UNREAD)), ([half, more], None), ([&[], &[]], None)] {
            let input = input(true, unread);
            assert_eq!(input.unread.map(|unread| unread.len()), kept);
            assert_eq!(input.keep_alive, unread[1].len() <= half.len());
        }
    }

    #[test]
    fn closing_connection_keeps_no_unread_bytes() {
        let mut input = input(false, [b"junk", b"more"]);
        input.keep(b"even more");
        assert!(input.unread.is_none());
    }
}
