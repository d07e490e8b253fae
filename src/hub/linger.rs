//! The linger of a subscription: a pause after each write, so that the next write can carry several
//! events.

use super::ready_list::ReadyList;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// The pauses of a subscription after its writes. Events that arrive during a pause are delivered
/// together. The timer is allocated at the first pause.
#[derive(Debug)]
pub(super) struct Linger {
    time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The subscription has delivered no event since its last pause, so it delivers the next event
    /// immediately.
    Silent,
    /// The subscription has delivered events since its last pause. The next pause begins when it
    /// has no further event.
    Delivers,
    Pauses,
}

impl Linger {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, timer: None, phase: Phase::Silent }
    }

    /// Records that the subscription has delivered an event to its client. As soon as the
    /// subscription has no further event, it has to begin a pause.
    pub(super) fn note_delivery(&mut self) {
        self.phase = Phase::Delivers;
    }

    /// Returns `true` if the subscription has to begin a pause as soon as it has no further event:
    /// it has delivered an event since its last pause.
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

    /// Returns `Ready` if no pause of the subscription is running, or when the pause is over. A
    /// pause ends early when a topic is finished or the hub is shut down. `ready` is the list of
    /// the topics that have changed, and reports such an end.
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
