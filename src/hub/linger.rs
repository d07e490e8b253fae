//! Linger: a pause after a write, in which further events gather.

use super::ready_list::ReadyList;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// The pause of one subscription. Its timer is allocated at the first pause.
#[derive(Debug)]
pub(super) struct Linger {
    time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// No event was delivered since the last pause, so the next event is delivered immediately.
    Silent,
    /// Events are delivered. The pause begins when no event is left.
    Delivers,
    Pauses,
}

impl Linger {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, timer: None, phase: Phase::Silent }
    }

    /// Records that an event is delivered.
    pub(super) fn note_delivery(&mut self) {
        self.phase = Phase::Delivers;
    }

    /// Returns whether a pause follows when no event is left.
    pub(super) fn is_next(&self) -> bool {
        matches!(self.phase, Phase::Delivers)
    }

    pub(super) fn begin(&mut self) {
        self.phase = Phase::Pauses;
        match &mut self.timer {
            Some(timer) => timer.set(sleep(self.time)),
            None => self.timer = Some(Box::pin(sleep(self.time))),
        }
    }

    /// Returns ready when there is no pause, or when it is over. The end of a topic ends the pause
    /// early.
    pub(super) fn poll(&mut self, ready: &ReadyList, cx: &mut Context<'_>) -> Poll<()> {
        if let (Phase::Pauses, Some(timer)) = (&self.phase, &mut self.timer) {
            if timer.as_mut().poll(cx).is_pending() && ready.pause(cx.waker()) {
                return Poll::Pending;
            }
            self.phase = Phase::Silent;
        }
        Poll::Ready(())
    }
}
