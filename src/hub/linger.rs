//! The pause that a subscription makes after it has written events to its client, called linger.
//! Events that arrive during the pause are written together.

use super::ready_list::ReadyList;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// The pauses that a subscription makes after it has written events to its client. Events that
/// arrive during a pause are delivered together. The timer is allocated at the first pause.
#[derive(Debug)]
pub(super) struct Linger {
    time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The subscription has delivered no event since its last pause after a write. So it delivers
    /// the next event immediately.
    Silent,
    /// The subscription has delivered events since its last pause. As soon as it has no further
    /// event to deliver, it pauses again, to deliver the events of the pause together.
    Delivers,
    Pauses,
}

impl Linger {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, timer: None, phase: Phase::Silent }
    }

    /// Records that the subscription has delivered an event to its client. The subscription then
    /// pauses as soon as it has no further event to deliver.
    pub(super) fn note_delivery(&mut self) {
        self.phase = Phase::Delivers;
    }

    /// Returns `true` if the subscription has delivered an event since its last pause. It then
    /// pauses again as soon as it has no further event to deliver, to collect the events of the
    /// pause.
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

    /// Ends the pause. The subscription delivers its events without a further pause.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Silent;
    }

    /// Waits for the end of the subscription's pause after a write. Returns `Ready` when the pause
    /// is over, or if no pause is running. A pause ends early when a topic is finished or the hub
    /// is shut down. `ready`, the list of the subscription's changed topics, reports these two
    /// cases.
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
