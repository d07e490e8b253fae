//! Delays the error of a body, so that the transport can flush the frames before the error.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

/// The pause before a body returns its error. In this time, a client that keeps reading can receive
/// what hyper has buffered, which is at most about 400 KiB. For such a client, a longer pause would
/// only delay the end of the response.
const FLUSH_DELAY: Duration = Duration::from_millis(250);

/// A pause before a body returns its error, so that hyper can write its buffered frames first.
///
/// When a body fails, hyper discards the frames that it has not written. It closes the HTTP/1
/// connection or resets the HTTP/2 stream. An HTTP/1 connection is flushed as soon as the body
/// returns `Pending` once. An HTTP/2 connection is written by another task, and a body cannot
/// observe when that task has run. So the pause is a fixed time.
#[derive(Default)]
pub(super) enum FlushDelay {
    #[default]
    NotStarted,
    Until(Pin<Box<Sleep>>),
    Over,
}

impl FlushDelay {
    /// Returns ready when the pause before an error is over. The pause begins with the first call.
    /// It gives hyper time to write the frames that it has buffered.
    ///
    /// Outside of a tokio runtime there is no timer. There, the first call returns `Pending` and
    /// wakes the task, and the second call is ready. This is enough for HTTP/1: hyper flushes the
    /// connection as soon as the body returns `Pending`.
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
