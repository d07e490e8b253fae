//! The timer of silence.

use crate::Heartbeat;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Measures the silence of one stream.
///
/// The timer is allocated when the stream is silent for the first time. So a stream that ends
/// before that never has a timer, and a body is `Unpin` if its stream is.
#[derive(Debug, Default)]
pub(super) struct IdleTimer {
    timer: Option<Pin<Box<Sleep>>>,
    /// The beginning of the silence. `None` if bytes were sent since the last
    /// [`poll_due`](Self::poll_due).
    silent_since: Option<Instant>,
}

impl IdleTimer {
    /// Ends the silence: bytes are sent now. This is all that an event costs.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.silent_since = None;
    }

    /// Returns ready when the silence has lasted for the interval of the heartbeat, and then until
    /// [`reset`](Self::reset). Called whenever there is nothing to send.
    pub(super) fn poll_due(&mut self, heartbeat: &Heartbeat, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        // An interval that exceeds the clock's range never ends.
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
