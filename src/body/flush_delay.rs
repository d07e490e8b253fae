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

/// Long enough for hyper's largest buffer, about 400 KiB, to reach a client that reads. Short for a
/// client that waits for the error.
const FLUSH_DELAY: Duration = Duration::from_millis(250);

/// Gives the transport time to send its buffers, before the body fails.
///
/// hyper drops its buffers when a body fails: over HTTP/1 with the connection, over HTTP/2 when it
/// resets the stream. Over HTTP/1 the buffers are flushed when the body is pending once. Over
/// HTTP/2 the task of the connection writes, maybe on another thread. A body cannot see whether
/// that task had its turn, however often it yields, so it waits.
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
    /// Outside of a tokio runtime it is one turn of the executor, which is enough for HTTP/1.
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
