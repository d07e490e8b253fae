//! The end of an event stream: its reason, its last items, and its final bytes.

use super::{
    FrameBuilder, Held, Projection,
    items::MAX_ITEMS_PER_TURN,
    options::{rare, take_unlocked},
};
use crate::{
    BoxError, CloseReason, EncodedEvents, SseItem,
    body::{end::End, flush_delay::FlushDelay, wake_flag::WakeFlag},
    preamble::{Purpose, poll_for},
    trace,
};
use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::task::coop::has_budget_remaining;
use tokio_stream::Stream;

/// The maximum number of polls that take the last items of a stream, after the flush time of a
/// layer's shutdown, or after the shutdown of a hub. One poll takes up to 64 items for a frame of
/// 16 KiB, or one larger item. So a stream that is always ready ends, too.
const MAX_LAST_POLLS: u16 = 256;

impl<S> Projection<'_, S>
where
    S: Stream,
    S::Item: SseItem,
{
    /// Ends the stream if a condition of a layer or of the handler requires it now, such as a
    /// maximum lifetime. At a shutdown, the stream continues while it has items that are ready. A
    /// stream that begins after the shutdown ends without a poll.
    pub(super) fn apply_end(&mut self, is_first: bool, frame: &mut FrameBuilder, cx: &mut Context<'_>) {
        if !self.observation.is_on() || self.stream.is_none() {
            return;
        }
        match self.observation.poll_end(cx) {
            Poll::Pending => {}
            Poll::Ready(End::Shutdown) if !is_first => _ = self.last_polls.get_or_insert(MAX_LAST_POLLS),
            Poll::Ready(end) => self.end(end, frame, cx),
        }
    }

    /// Ends the response early: drops the stream, and adds the final bytes, such as a reconnect
    /// delay and a last event, to the frame.
    pub(super) fn end(&mut self, end: End, frame: &mut FrameBuilder, cx: &mut Context<'_>) {
        let cursor = self.last_cursor(cx);
        self.stream.set(None);
        self.add_final_bytes(cursor, end, frame);
    }

    /// Adds the final bytes of a stream that ends early to the frame: first `last` (a last event,
    /// or the newest id of a hub subscription), and then a reconnect delay and a shutdown event, if
    /// they are set.
    pub(super) fn add_final_bytes(&mut self, last: EncodedEvents, end: End, frame: &mut FrameBuilder) {
        let mut final_bytes = self.observation.end(end, self.retry());
        if *self.has_id_to_keep {
            final_bytes.remove_shutdown_event();
        }
        let events = last.count() as u64 + u64::from(!final_bytes.event.is_empty());
        let (last, bytes) = (last.into_bytes(), final_bytes.into_bytes());
        let chunk = if last.is_empty() { bytes } else { [last, bytes].concat().into() };
        self.add(frame, chunk, events);
    }

    /// Adds the last ready items of the stream to the frame, like [`fill`](Self::fill). Called
    /// after the flush time of a layer's shutdown, or after the shutdown of a hub. Ends the stream
    /// when no further item is ready, or after 256 polls.
    #[cold]
    pub(super) fn fill_with_last_items(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) -> Poll<()> {
        if *self.items_in_turn >= MAX_ITEMS_PER_TURN {
            return Poll::Ready(());
        }
        let polls = self.last_polls.unwrap_or_default();
        if polls > 0 {
            *self.last_polls = Some(polls - 1);
            let flag = WakeFlag::new(cx.waker());
            let waker = Waker::from(Arc::clone(&flag));
            let mut reached = *self.reached;
            let fill = || self.fill(frame, &mut Context::from_waker(&waker));
            let filled = poll_for(Purpose::LastItems, &mut reached, fill);
            // The same rule as in `fill_for_items`.
            if !*self.was_pending || self.reached.is_one() {
                *self.reached = reached;
            }
            if filled.is_ready() {
                return filled;
            }
            // A stream may have further items if it has woken its task, or has spent the budget
            // that tokio gives to a task.
            if flag.is_woken() || !has_budget_remaining() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            *self.was_pending = true;
        } else {
            // The newest cursor could be after an item that the stream has not yielded.
            self.reached.set_several();
        }
        self.end(End::Shutdown, frame, cx);
        Poll::Pending
    }

    /// Returns the newest cursor of a hub subscription: the id that the client sends when it
    /// reconnects. It becomes a part of the last frame of a stream that ends early. With an older
    /// id, the client may get a gap on another node: the log may have evicted the id's position.
    /// The method polls the stream for the cursor, and discards any other item, because the
    /// response ends. Returns no bytes if there is no newer cursor.
    #[cold]
    pub(super) fn last_cursor(&mut self, cx: &mut Context<'_>) -> EncodedEvents {
        let none = EncodedEvents::default();
        if !self.has_cursor() {
            return none;
        }
        let Some(stream) = self.stream.as_mut().as_pin_mut() else { return none };
        let polled = poll_for(Purpose::End, self.reached, || stream.poll_next(cx));
        let Poll::Ready(Some(item)) = polled else { return none };
        match item.into_events() {
            // An item without bytes is from another stream, and has no id.
            Ok(cursor) if cursor.count() == 0 && !cursor.as_bytes().is_empty() => {
                *self.has_id_to_keep = false;
                cursor
            }
            _ => none,
        }
    }

    /// Ends the response because the stream has returned `error`.
    ///
    /// If the log of a hub was replaced, the response ends with a reconnect delay and without an
    /// error. If a hub was shut down, the response ends in the same way, but first sends the items
    /// that are ready: the stream can merge several subscriptions.
    ///
    /// Any other error is passed to the `on_error` closure of the handler, which can return a last
    /// event. Without such an event, the body fails with the error. During the shutdown of a layer,
    /// the body does not fail: the stream may fail because of the same shutdown.
    #[cold]
    pub(super) fn fail(&mut self, frame: &mut FrameBuilder, error: BoxError) {
        let reason = reason_of(&error);
        if reason == CloseReason::Shutdown {
            *self.is_hub_shut_down = true;
            self.last_polls.get_or_insert(MAX_LAST_POLLS);
            return;
        }
        self.stream.set(None);
        let is_shutting_down = self.observation.is_shutting_down();
        let is_failure = reason != CloseReason::LogReplaced;
        if !is_failure && !is_shutting_down {
            // The client resumes after the delay.
            self.observation.set_reason(reason);
            let retry = self.observation.last_retry_line(self.retry());
            return self.add(frame, retry, 0);
        }
        // A client that was too slow (`Lagged`) is not a failure, and is not logged.
        if reason == CloseReason::Error {
            trace::failed(Some(&error));
        }
        let on_error = rare(self.options).and_then(|options| take_unlocked(&mut options.on_error));
        let on_error = on_error.filter(|_| is_failure);
        let last = on_error.and_then(|on_error| on_error(&error));
        if is_shutting_down {
            return self.add_final_bytes(last.map(Into::into).unwrap_or_default(), End::Shutdown, frame);
        }
        self.observation.set_reason(reason);
        match last {
            Some(event) => self.add(frame, event.encode(), 1),
            None => *self.held = Some(Box::new(Held::Failure { error, delay: FlushDelay::default() })),
        }
    }
}

/// Returns the close reason of a stream that ends with this error. The errors of a hub subscription
/// have the reasons `Lagged`, `Shutdown` and `LogReplaced`. All other errors have the reason
/// `Error`.
fn reason_of(error: &BoxError) -> CloseReason {
    #[cfg(feature = "hub")]
    if let Some(error) = error.downcast_ref() {
        return match error {
            crate::hub::SubscriptionError::Lagged => CloseReason::Lagged,
            crate::hub::SubscriptionError::Shutdown => CloseReason::Shutdown,
            crate::hub::SubscriptionError::LogReplaced => CloseReason::LogReplaced,
        };
    }
    let _any_other = error;
    CloseReason::Error
}
