//! The wrappers around the socket of a connection, through which hyper reads and writes.

use super::{closing::Closing, handover::Handover};
use bytes::{Buf, Bytes};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose first bytes were already read, for example to detect the protocol. Reading
/// first returns these bytes, `front`. Shutting down ends the direction to the client, and then
/// waits for the client to close the connection, within the limits of [`Closing`].
#[derive(Debug)]
pub(super) struct Rewound<I> {
    pub(super) io: I,
    pub(super) front: Bytes,
    pub(super) closing: Closing,
}

impl<I> Rewound<I> {
    pub(super) fn new(io: I, front: Bytes) -> Self {
        Self { io, front, closing: Closing::default() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Rewound<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.front.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.front.len().min(buffer.remaining());
        buffer.put_slice(&self.front[..length]);
        self.front.advance(length);
        if self.front.is_empty() {
            self.front = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Rewound<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, closing, .. } = &mut *self;
        closing.poll(io, cx)
    }
}

/// A connection that reports each complete flush of hyper to its [`Handover`], the state of handing
/// an event stream from hyper to this server. After the flush of an event stream's head, this
/// server can take the connection from hyper.
#[derive(Debug)]
pub(super) struct Watched<I, B> {
    pub(super) io: Rewound<I>,
    pub(super) handover: Arc<Handover<B>>,
}

impl<I: AsyncRead + Unpin, B> AsyncRead for Watched<I, B> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, B> AsyncWrite for Watched<I, B> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Flushes the connection, and reports the flush to the [`Handover`]. hyper flushes only after
    /// it has written its whole buffer. So hyper has nothing left to write when this server takes
    /// the connection.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.handover.flushed();
        Poll::Ready(Ok(()))
    }

    /// Shuts down the connection, and then discards the bytes of the client until the client closes
    /// it. After an upgrade to another protocol, discards nothing, because that protocol may read
    /// after its shutdown.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.handover.is_upgraded() {
            true => Pin::new(&mut self.io.io).poll_shutdown(cx),
            false => Pin::new(&mut self.io).poll_shutdown(cx),
        }
    }
}
