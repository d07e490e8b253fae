//! The idle timer: it determines when a stream has been silent for long enough to need a heartbeat.

use crate::Heartbeat;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Measures the silence of one stream.
///
/// The timer is on the heap. It is allocated when the stream is silent for the first time, so a
/// stream that ends before that never allocates one. A body with a timer on the heap is `Unpin` if
/// its stream is `Unpin`.
#[derive(Debug, Default)]
pub(super) struct IdleTimer {
    timer: Option<Pin<Box<Sleep>>>,
    /// The beginning of the silence. `None` if bytes were sent since the last
    /// [`poll_due`](Self::poll_due).
    silent_since: Option<Instant>,
}

impl IdleTimer {
    /// Ends the silence, because bytes are sent now. This assignment is all that an event costs: it
    /// neither reads the clock nor registers a timer.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.silent_since = None;
    }

    /// Returns ready when the silence has lasted for the interval of the heartbeat. It stays ready
    /// until [`reset`](Self::reset). The body calls it whenever it has no bytes to send.
    pub(super) fn poll_due(&mut self, heartbeat: &Heartbeat, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        // An interval beyond the range of the clock never expires.
        let Some(due) = since.checked_add(heartbeat.interval()) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}
