//! Delays the error of a body, so that the transport can flush.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

/// The pause before an error is returned. It is long enough for a client that reads to receive what
/// hyper buffers (at most about 400 KiB), and short enough for a client that waits for the end of
/// the stream.
const FLUSH_DELAY: Duration = Duration::from_millis(250);

/// Delays an error of the body, so that the transport can send its buffers first.
///
/// hyper drops its buffers when a body fails. Over HTTP/1, it closes the connection. Over HTTP/2,
/// it resets the stream. Over HTTP/1, hyper flushes the buffers when the body returns `Pending`
/// once. Over HTTP/2, the task of the connection writes them, possibly on another thread. A body
/// cannot observe whether that task has run, even if it yields several times. So the body waits for
/// a fixed time.
#[derive(Default)]
pub(super) enum FlushDelay {
    #[default]
    NotStarted,
    Until(Pin<Box<Sleep>>),
    Over,
}

impl FlushDelay {
    /// Returns ready when the delay is over. The delay begins with the first call.
    ///
    /// Outside of a tokio runtime there is no timer, so the delay is one `Pending`. That is enough
    /// for HTTP/1.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::NotStarted = self {
            if Handle::try_current().is_err() {
                *self = Self::Over;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            *self = Self::Until(Box::pin(sleep(FLUSH_DELAY)));
        }
        if let Self::Until(end) = self {
            ready!(end.as_mut().poll(cx));
            *self = Self::Over;
        }
        Poll::Ready(())
    }
}
