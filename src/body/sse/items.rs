//! Polls the stream of a handler: for its items, for the first bytes of a response, and for the
//! cursor (the newest id) of a subscription to a hub.

use super::{FrameBuilder, Projection, options::rare};
use crate::{
    CloseReason, EncodedEvents, SseItem,
    body::end::End,
    preamble::{Preamble, Purpose, poll_for},
    trace,
};
use bytes::Bytes;
use std::task::{Context, Poll, ready};
use tokio_stream::Stream;

/// The maximum number of items that the body takes in a row from a stream that is always ready.
/// Then the body returns `Pending` once, so that other tasks of the thread can run.
///
/// Without this limit, hyper polls a body that is always ready until the socket is full or tokio's
/// cooperative budget of the task is spent. That can be more than 100 frames of 1,000 small events
/// each.
pub(super) const MAX_ITEMS_PER_TURN: u32 = 64;

impl<S> Projection<'_, S>
where
    S: Stream,
    S::Item: SseItem,
{
    /// Adds ready items of the stream to the frame, like [`fill`](Self::fill). Also records which
    /// hub subscriptions inside the stream are polled, because the body sends a cursor (the newest
    /// id) only for a single subscription. When the stream is first pending, it has usually polled
    /// all of its subscriptions. If there is no subscription then, or there are several, the method
    /// stops recording, and no cursor is ever sent.
    #[inline]
    pub(super) fn fill_for_items(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) -> Poll<()> {
        if *self.was_pending && !self.reached.is_one() {
            return self.fill(frame, cx);
        }
        let mut reached = *self.reached;
        let purpose = if self.has_cursor() { Purpose::ItemsOfOne } else { Purpose::Items };
        let filled = poll_for(purpose, &mut reached, || self.fill(frame, cx));
        *self.reached = reached;
        filled
    }

    /// Polls the stream for the first time, and adds its ready items to the frame, like
    /// [`fill`](Self::fill). Also returns the bytes that the hub subscriptions in the stream offer
    /// for the beginning of the response, such as an event with an id. The caller inserts these
    /// bytes before the items.
    pub(super) fn fill_first(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) -> (Poll<()>, Bytes) {
        // An item of this poll clears the field.
        *self.has_id_to_keep = true;
        let mut reached = *self.reached;
        let (filled, preamble) = Preamble::of_first_poll(&mut reached, || self.fill(frame, cx));
        *self.reached = reached;
        if preamble.is_over {
            trace::end_hidden();
        }
        *self.has_id_to_keep &= preamble.has_id_to_keep();
        (filled, preamble.bytes)
    }

    /// Adds ready items of the stream to the frame of the current poll. Returns `Pending` if the
    /// stream is pending. Returns ready if the frame is full, if the stream has ended, or if the
    /// stream was ready for 64 items in a row.
    #[inline]
    pub(super) fn fill(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) -> Poll<()> {
        while *self.items_in_turn < MAX_ITEMS_PER_TURN {
            if frame.buffer.is_full() || self.held.is_some() {
                break;
            }
            let Some(stream) = self.stream.as_mut().as_pin_mut() else { break };
            *self.items_in_turn += 1;
            let item = ready!(stream.poll_next(cx));
            self.take(item, frame);
        }
        Poll::Ready(())
    }

    /// Adds an item of the stream to the frame, or at the end of the stream (`None`), the final
    /// event that the handler has set.
    #[inline]
    pub(super) fn take(&mut self, item: Option<S::Item>, frame: &mut FrameBuilder) {
        match item.map(SseItem::into_events) {
            Some(Ok(events)) => {
                let count = events.count() as u64;
                *self.has_id_to_keep &= events.is_empty();
                self.add(frame, events.into_bytes(), count);
            }
            Some(Err(error)) => self.fail(frame, error),
            // The application may end its stream because of the same shutdown.
            None if self.observation.is_shutting_down() || *self.is_hub_shut_down => {
                self.stream.set(None);
                self.add_final_bytes(EncodedEvents::default(), End::Shutdown, frame);
            }
            None => {
                self.stream.set(None);
                self.observation.set_reason(CloseReason::Finished);
                if let Some(last) = rare(self.options).and_then(|options| options.end_with.take()) {
                    self.add(frame, last.encode(), 1);
                }
            }
        }
    }

    /// Polls the stream again for the newest cursor of its hub subscription: the id that the client
    /// sends when it reconnects. Called when a heartbeat is due and the stream was pending, because
    /// the cursor is sent together with a due heartbeat, or in its place. The caller must pass an
    /// empty frame. Returns whether the stream is now ready or pending, and whether the frame
    /// contains only a cursor. (The stream may have returned an event instead.)
    #[cold]
    pub(super) fn ask_for_cursor(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) -> (Poll<()>, bool) {
        let Some(stream) = self.stream.as_mut().as_pin_mut() else { return (Poll::Ready(()), false) };
        let polled = poll_for(Purpose::Heartbeat, self.reached, || stream.poll_next(cx));
        let Poll::Ready(item) = polled else { return (Poll::Pending, false) };
        self.take(item, frame);
        // A cursor counts as zero events. The stream may also have yielded an event meanwhile.
        let is_cursor = !frame.buffer.is_empty() && frame.events == 0 && self.stream.is_some();
        (Poll::Ready(()), is_cursor)
    }

    /// Returns `true` if the stream contains exactly one subscription to a hub, so that the body
    /// can send the newest id (cursor) of this subscription.
    pub(super) fn has_cursor(&self) -> bool {
        *self.was_pending && self.reached.is_one()
    }
}
