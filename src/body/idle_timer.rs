//! The idle timer: it determines when a stream has been silent for long enough to need a heartbeat.

use crate::Heartbeat;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Measures how long a stream has sent nothing, to find out when a heartbeat is due.
///
/// The tokio timer is allocated on the heap when the stream first waits. A stream that never waits
/// allocates no timer. Because the timer is on the heap, it does not make the body `!Unpin`.
#[derive(Debug, Default)]
pub(super) struct IdleTimer {
    timer: Option<Pin<Box<Sleep>>>,
    /// The time when the current silence of the stream began: the first call of
    /// [`poll_due`](Self::poll_due) after the last bytes were sent. `None` if `poll_due` was not
    /// called since the last bytes.
    silent_since: Option<Instant>,
}

impl IdleTimer {
    /// Records that the stream sends bytes now, which postpones the next heartbeat. Only clears a
    /// field: the method neither reads the clock nor registers a timer.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.silent_since = None;
    }

    /// Returns ready when the stream has been silent for the interval of `heartbeat`, and stays
    /// ready until [`reset`](Self::reset). The silence begins with the first call after a `reset`.
    /// If the end of the interval is beyond the range of the clock, never returns ready.
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
