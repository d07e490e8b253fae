//! What is granted to the transport before a body fails.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

/// Long for what hyper buffers at most, some 400 KiB, to reach a client that reads; short for one that is to learn of an
/// error.
const LENGTH: Duration = Duration::from_millis(250);

/// The time for the transport to send what it has, before it is told of an error.
///
/// hyper drops what it has buffered when a body fails: over HTTP/1 with the connection, over HTTP/2 when it resets the
/// stream. Over HTTP/1 a body that is pending once has been flushed. Over HTTP/2 it is another task, the connection's,
/// that writes, maybe on another thread; a body cannot tell whether it had its turn, however often it yields, but it can
/// give it time.
#[derive(Default)]
pub(super) enum Grace {
    #[default]
    NotGranted,
    Until(Pin<Box<Sleep>>),
    Over,
}

impl Grace {
    /// Ready when it is over. It begins with the first call.
    ///
    /// Where there is no tokio runtime it is one turn of the executor, which is what HTTP/1 needs.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::NotGranted = self {
            if Handle::try_current().is_err() {
                *self = Self::Over;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            *self = Self::Until(Box::pin(sleep(LENGTH)));
        }
        if let Self::Until(end) = self {
            ready!(end.as_mut().poll(cx));
            *self = Self::Over;
        }
        Poll::Ready(())
    }
}
