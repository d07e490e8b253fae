//! Closes a connection from the server's side, in such a way that the client receives the last
//! bytes.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// The maximum time without a byte from the client, while the server waits for the client to close
/// the connection.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// The maximum total time that the server waits for the client to close the connection, if the
/// client keeps sending bytes. For example, an HTTP/2 client that still reads the last bytes sends
/// a WINDOW_UPDATE from time to time.
const MAX_TIME: Duration = Duration::from_secs(30);
/// The maximum number of bytes that the server discards while it waits for the client to close the
/// connection.
const MAX_BYTES: usize = 64 * 1024;

/// Closes a connection in such a way that the client receives the last bytes (RFC 9112, §9.6).
///
/// If a socket has unread bytes when it is closed, the kernel resets the connection. The client
/// then loses bytes that it has not received yet. So the server first shuts down only its own
/// direction. Then it reads until the client closes the connection, or sends nothing for one
/// second. It reads for at most 30 seconds and 64 KiB.
#[derive(Debug, Default)]
pub(super) enum Closing {
    #[default]
    NotStarted,
    Reads {
        left: usize,
        deadline: Pin<Box<Sleep>>,
        /// The upper bound of `deadline`, the time when the server stops waiting for the client to
        /// close the connection. Each read of bytes moves `deadline`, but never beyond this bound.
        latest: Instant,
    },
}

impl Closing {
    /// Shuts down the sending direction, and then reads and discards the bytes of the client.
    /// Returns ready when the connection can be dropped: the client has closed it, it has failed,
    /// or a limit of time or bytes is reached.
    pub(super) fn poll<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::NotStarted = self {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            let latest = Instant::now() + MAX_TIME;
            *self = Self::Reads { left: MAX_BYTES, deadline: Box::pin(sleep(MAX_SILENCE)), latest };
        }
        let Self::Reads { left, deadline, latest } = self else { return Poll::Ready(Ok(())) };
        while *left > 0 {
            let mut bytes = [MaybeUninit::uninit(); 1024];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => return deadline.as_mut().poll(cx).map(Ok),
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len());
                    deadline.as_mut().reset((Instant::now() + MAX_SILENCE).min(*latest));
                }
                // The client has closed its side, or the connection is broken.
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    async fn close(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Duration {
        let (begin, mut closing) = (Instant::now(), Closing::default());
        poll_fn(|cx| closing.poll(io, cx)).await.unwrap();
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn close_waits_for_client_within_limits() {
        let (mut client, mut server) = duplex(4 * MAX_BYTES);
        assert_eq!(close(&mut server).await, MAX_SILENCE, "the client does not close");
        client.write_all(&[0; 2 * MAX_BYTES]).await.unwrap();
        assert_eq!(close(&mut server).await, Duration::ZERO, "the client sends too much");
        let mut rest = [0; MAX_BYTES];
        server.read_exact(&mut rest).await.unwrap();
        client.write_all(&[0; MAX_BYTES / 2]).await.unwrap();
        drop(client);
        assert_eq!(close(&mut server).await, Duration::ZERO, "the client has closed");
        assert_eq!(server.read(&mut rest).await.unwrap(), 0);
    }
    #[tokio::test(start_paused = true)]
    async fn close_waits_longer_for_client_that_sends() {
        let pause = MAX_SILENCE * 9 / 10;
        for parts in [0, 1, 5, 1000] {
            let (mut client, mut server) = duplex(4 * MAX_BYTES);
            let send = async {
                for _ in 0..parts {
                    sleep(pause).await;
                    client.write_all(&[0; 26]).await.unwrap();
                }
            };
            let close = close(&mut server);
            tokio::pin!(send, close);
            let time = tokio::select! {
                time = &mut close => time,
                () = &mut send => close.await,
            };
            let expected = (pause * parts + MAX_SILENCE).min(MAX_TIME);
            assert!(time.abs_diff(expected) < Duration::from_millis(50), "{time:?} after {parts} parts");
        }
    }
}
