//! An event stream whose connection has left hyper.

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

/// The number of bytes that are kept while a stream runs, such as a pipelined request.
const MAX_UNREAD: usize = 16 * 1024;
/// The number of reads in one poll, so that a client that sends all the time does not keep the
/// thread busy.
const MAX_READS: usize = 8;

pin_project! {
    /// Polls the body of a response, and writes it.
    pub(super) struct EventStream<B> {
        #[pin]
        body: Option<B>,
        output: Output,
        input: Input,
    }
}

/// The state of a connection for the direction from the server to the client.
#[derive(Debug)]
struct Output {
    /// The bytes that are ready and not written yet, because the socket was full. They are written
    /// before the next frame of the body is polled.
    unsent: Option<Box<Unsent>>,
    /// Whether bytes were written and the connection was not flushed.
    is_dirty: bool,
    framing: Framing,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The body may have more frames.
    Open,
    /// The body is complete. What follows is the end of the connection, or the next request.
    Complete,
    /// The body has failed. The client notices, because the last chunk is missing.
    Failed,
}

/// The direction from the client to the server.
#[derive(Debug)]
struct Input {
    /// The bytes of the next request.
    unread: Option<Box<BytesMut>>,
    /// Whether the connection takes another request after the stream.
    keep_alive: bool,
}

/// What becomes of the connection after the stream.
#[derive(Debug)]
pub(super) enum Ended {
    /// The next request follows, with these bytes of it.
    KeepAlive(Bytes),
    /// The stream is over and completely written, and the server closes the connection.
    Close,
    /// The client has closed the connection, the connection is broken, or it is dropped.
    Disconnected,
}

/// The client has disconnected, or the connection is broken.
struct Disconnected;

impl From<io::Error> for Disconnected {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl<B> EventStream<B> {
    /// `unread` are bytes of the client that follow its request.
    pub(super) fn new(offer: Offer<B>, unread: BytesMut) -> Self {
        let unread = Some(unread).filter(|unread| !unread.is_empty()).map(Box::new);
        Self {
            body: Some(offer.body),
            output: Output { unsent: None, is_dirty: false, framing: offer.framing, phase: Phase::Open },
            input: Input { unread, keep_alive: offer.keep_alive },
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> EventStream<B> {
    /// Polls the stream to its end. `must_close` tells whether the server shuts down.
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

    /// Writes the frames of the body. The body is not polled while the client does not read.
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

/// Polls the body for the frames of one write. Returns whether the body is pending.
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
    /// Writes the bytes that the client has not accepted yet.
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
    /// Reads what the client sends, so that its disconnection is noticed.
    ///
    /// A client that closes only its own direction has disconnected, as in hyper.
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

    /// Keeps bytes of the next request. Over the limit, the connection closes after the stream, and
    /// the bytes are discarded. Not to read them would hide the end of the connection.
    fn keep(&mut self, bytes: &[u8]) {
        if !self.keep_alive {
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
