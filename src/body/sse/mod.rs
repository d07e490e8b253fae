//! The body of an [`SseStream`](crate::SseStream).

mod ending;
mod items;
mod options;

use super::{
    LayerLink,
    flush_delay::FlushDelay,
    frame::FrameBuffer,
    idle_timer::IdleTimer,
    observer::{HandlerEnd, NextFrame, Observation, ObservedBody, poll_observed},
};
use crate::{
    BoxError, Heartbeat, SseItem,
    event::{is_visible, retry_line},
    heartbeat::EMPTY_COMMENT,
    preamble::{Preamble, Reached},
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use items::MAX_ITEMS_PER_TURN;
use options::{heartbeat, take_end};
use pin_project_lite::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio_stream::Stream;

pub(crate) use options::Options;

/// A chunk of bytes or an error of the stream that the body keeps for later, because it has to
/// return another frame first.
enum Held {
    /// A chunk of bytes for the beginning of the next frame. It did not fit into the previous
    /// frame, or it is the beginning of the response.
    Chunk(Bytes),
    /// The error of the stream. The body returns it after all earlier frames and after `delay`, in
    /// which the transport can flush these frames.
    Failure { error: BoxError, delay: FlushDelay },
}

pin_project! {
    #[project = Projection]
    /// The body of an [`SseStream`](crate::SseStream)'s response: an [`http_body::Body`] of event
    /// stream bytes.
    ///
    /// Events that are ready at the same time become one frame of up to about 16 KiB. An event that
    /// is ready alone becomes a frame immediately. An item of 4 KiB or more is not joined with
    /// other items, and no event is ever split. The body ends when the stream ends, and never polls
    /// the stream again after that. Dropping the body drops the stream.
    ///
    /// If the stream is ready for 64 items in a row, the body returns `Pending` once, so that other
    /// tasks of the thread can run.
    ///
    /// # Errors
    ///
    /// Returns the error of the stream. The frames before the error are returned first. Then the
    /// error is delayed by 250 milliseconds, so that the transport can flush these frames.
    /// [`SseStream::on_error`](crate::SseStream::on_error) can replace the error with a clean end.
    ///
    /// # Panics
    ///
    /// Panics if the body needs a timer and the tokio runtime has no timers enabled. Heartbeats,
    /// maximum lifetimes, shutdowns and the delay before an error need a timer. Outside of any
    /// tokio runtime, the error comes without the delay, and the other timers panic.
    #[must_use = "a body does nothing until it is polled"]
    pub struct SseBody<S> {
        #[pin]
        stream: Option<S>,
        idle_timer: IdleTimer,
        options: Option<Box<Options>>,
        held: Option<Box<Held>>,
        // The number of items that were taken from the stream since the body was last pending.
        items_in_turn: u32,
        // Whether the heartbeat is an event. Known after the first poll.
        has_event_heartbeat: bool,
        // Whether a subscription to a hub has offered the first bytes of the response before the
        // first poll. Otherwise, the first poll asks the subscriptions that it reaches for them.
        has_preamble: bool,
        // Whether the client may have an id, and the first bytes of the response contain none. The
        // stream contains a subscription to a hub, whose first event has an id.
        has_id_to_keep: bool,
        // The subscriptions to hubs that the stream contains, as far as the body has reached them.
        // If there is exactly one, the body gets its newest cursor at heartbeats and before an
        // early end.
        reached: Reached,
        // Whether the stream was pending once. Until then, it may contain subscriptions that it has
        // not polled yet: a frame that is full ends a poll of the body early.
        was_pending: bool,
        // The number of remaining polls for last items. `None` until the flush time of a shutdown
        // is over, or the stream has reported the shutdown of a hub.
        last_polls: Option<u16>,
        // Whether the stream has reported the shutdown of a hub.
        is_hub_shut_down: bool,
        observation: Observation,
    }

    impl<S> PinnedDrop for SseBody<S> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let options = this.options;
            let observer = this.observation.close_unpolled(|| take_end(options));
            // Drop the stream before the observer, as after a poll, so that `on_close` runs after
            // the stream was dropped.
            if observer.is_some() {
                this.stream.set(None);
            }
            drop(observer);
        }
    }
}

impl<S> SseBody<S> {
    pub(crate) fn new(stream: S, options: Option<Box<Options>>, link: LayerLink) -> Self {
        Self {
            stream: Some(stream),
            idle_timer: IdleTimer::default(),
            options,
            held: None,
            items_in_turn: 0,
            has_event_heartbeat: false,
            has_preamble: false,
            has_id_to_keep: false,
            reached: Reached::new(),
            was_pending: false,
            last_polls: None,
            is_hub_shut_down: false,
            observation: Observation::new(link),
        }
    }

    /// Makes the body begin with the bytes of `preamble`, before the first item of the stream. For
    /// example, these bytes contain an id that the client sends back if it reconnects before the
    /// first item.
    pub(crate) fn beginning_with(mut self, preamble: Preamble) -> Self {
        self.has_preamble = preamble.has_subscription;
        self.has_id_to_keep = preamble.has_id_to_keep();
        let lines = preamble.bytes;
        self.held = (!lines.is_empty()).then(|| Box::new(Held::Chunk(lines)));
        self
    }

    /// Creates a body that has no stream and is already at its end. When it is dropped, the
    /// `on_close` callback in `options` is called.
    pub(crate) fn ended(mut options: Option<Box<Options>>) -> Self {
        Self {
            stream: None,
            idle_timer: IdleTimer::default(),
            observation: Observation::finished(take_end(&mut options)),
            options: None,
            held: None,
            items_in_turn: 0,
            has_event_heartbeat: false,
            has_preamble: false,
            has_id_to_keep: false,
            reached: Reached::new(),
            was_pending: false,
            last_polls: None,
            is_hub_shut_down: false,
        }
    }
}

/// Creates an empty body. Some tower-http middleware creates its responses with a default body.
impl<S> Default for SseBody<S> {
    fn default() -> Self {
        Self::ended(None)
    }
}

impl<S> Body for SseBody<S>
where
    S: Stream,
    S::Item: SseItem,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        poll_observed(&mut self.project(), cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl<S> ObservedBody for Projection<'_, S>
where
    S: Stream,
    S::Item: SseItem,
{
    type Error = BoxError;

    #[inline]
    fn observation(&mut self) -> &mut Observation {
        self.observation
    }

    fn take_handler_end(&mut self) -> HandlerEnd {
        take_end(self.options)
    }

    fn poll_next(&mut self, is_first: bool, cx: &mut Context<'_>) -> Poll<NextFrame<BoxError>> {
        let held = self.take_chunk();
        let beginning = if is_first { self.preamble(held) } else { held };
        let had_its_turn = *self.items_in_turn >= MAX_ITEMS_PER_TURN;
        if is_first {
            *self.has_event_heartbeat = heartbeat(self.options, self.observation).is_some_and(Heartbeat::is_event);
        }
        let has_event_heartbeat = *self.has_event_heartbeat;
        let deferred_events = self.observation.take_deferred_events();
        let begin_frame = |beginning: Bytes| FrameBuilder {
            is_visible: !has_event_heartbeat || is_visible(&beginning),
            buffer: FrameBuffer::beginning_with(beginning),
            events: deferred_events,
        };
        let beginning_length = beginning.len();
        let mut beginning_if_closed = self.observation.is_registered().then(|| beginning.clone());
        let mut frame = begin_frame(beginning);

        self.apply_end(is_first, &mut frame, cx);
        let was_open = self.stream.is_some();
        let was_ending = self.last_polls.is_some();
        let mut filled = if was_open && was_ending {
            self.fill_with_last_items(&mut frame, cx)
        } else if is_first && !*self.has_preamble {
            let (filled, lines) = self.fill_first(&mut frame, cx);
            if !lines.is_empty() {
                // The beginning is only the `retry` line, because no first bytes were offered
                // before.
                frame.insert(beginning_length, &lines);
                if let Some(beginning) = &mut beginning_if_closed {
                    *beginning = [&beginning[..], &lines].concat().into();
                }
            }
            filled
        } else {
            self.fill_for_items(&mut frame, cx)
        };
        let has_begun_to_end = !was_ending && self.last_polls.is_some();
        if has_begun_to_end && filled.is_pending() && self.stream.is_some() {
            filled = self.fill_with_last_items(&mut frame, cx);
        }

        let (mut due, mut is_cursor) = (None, false);
        if filled.is_pending() {
            *self.items_in_turn = 0;
            *self.was_pending = true;
            if self.has_cursor() && !is_first && frame.buffer.is_empty() {
                due = self.poll_heartbeat(cx);
                if due == Some(Poll::Ready(())) {
                    (filled, is_cursor) = self.ask_for_cursor(&mut frame, cx);
                }
            }
        }
        if let Some(beginning) = beginning_if_closed {
            if was_open && self.observation.is_closed() {
                // A registry has closed the stream during this poll. The items that were taken from
                // the stream may have been published after the close, so they are discarded.
                *self.held = None;
                self.observation.defer_events(0);
                // The stream is not asked for its cursor, which may be after the discarded items.
                self.reached.set_several();
                is_cursor = false;
                frame = begin_frame(beginning);
                if let Poll::Ready(end) = self.observation.poll_end(cx) {
                    self.end(end, &mut frame, cx);
                }
            }
        }

        if !frame.buffer.is_empty() {
            if is_cursor {
                self.add_heartbeat_to_cursor(&mut frame);
            } else if frame.is_visible {
                self.idle_timer.reset();
            } else {
                self.add_due_heartbeat(&mut frame, cx);
            }
            self.observation.record_events(frame.events);
            return Poll::Ready(Some(Ok(Frame::data(frame.buffer.into_bytes()))));
        }
        if let Some(Held::Failure { delay, .. }) = self.held.as_deref_mut() {
            ready!(delay.poll(cx));
        }
        if self.stream.is_none() {
            return Poll::Ready(self.take_failure().map(Err));
        }
        if filled.is_ready() {
            // The turn is over, or only empty chunks were ready.
            *self.items_in_turn = 0;
            cx.waker().wake_by_ref();
            if had_its_turn {
                return Poll::Pending;
            }
        }
        let Some(heartbeat) = heartbeat(self.options, self.observation) else { return Poll::Pending };
        let bytes = if is_first {
            // The stream has no event yet. Send a first byte, so that proxies forward the response.
            Bytes::from_static(EMPTY_COMMENT)
        } else {
            ready!(due.unwrap_or_else(|| self.idle_timer.poll_due(heartbeat, cx)));
            heartbeat.bytes(true)
        };
        // The transport polls again immediately, and that poll starts the timer.
        self.idle_timer.reset();
        self.observation.record_heartbeat();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_over(&self) -> bool {
        self.stream.is_none() && self.held.is_none()
    }
}

/// The frame of bytes that the current poll of the body builds, and the number of events in this
/// frame.
struct FrameBuilder {
    buffer: FrameBuffer,
    events: u64,
    /// Set if the frame postpones the next heartbeat. If heartbeats are comments, any bytes
    /// postpone them. If heartbeats are events, only an event that a client dispatches postpones
    /// them.
    is_visible: bool,
}

impl FrameBuilder {
    /// Inserts the field lines `lines` into the body frame, after its first `position` bytes.
    #[cold]
    fn insert(&mut self, position: usize, lines: &Bytes) {
        self.is_visible |= is_visible(lines);
        let bytes = mem::replace(&mut self.buffer, FrameBuffer::beginning_with(Bytes::new())).into_bytes();
        let (before, after) = bytes.split_at(position);
        self.buffer = FrameBuffer::beginning_with([before, lines, after].concat().into());
    }
}

impl<S> Projection<'_, S> {
    /// Takes the chunk of bytes that the body has kept for the beginning of the current frame: a
    /// chunk that did not fit into the previous frame, or the first bytes of the response. Returns
    /// empty bytes if the body has kept no chunk.
    #[inline]
    fn take_chunk(&mut self) -> Bytes {
        match self.held.take_if(|held| matches!(**held, Held::Chunk(_))).map(|held| *held) {
            Some(Held::Chunk(chunk)) => chunk,
            _ => Bytes::new(),
        }
    }

    fn take_failure(&mut self) -> Option<BoxError> {
        match *self.held.take()? {
            Held::Failure { error, .. } => Some(error),
            Held::Chunk(_) => None,
        }
    }

    /// Returns the first bytes of the response: the reconnect delay as a `retry` line, if a delay
    /// is set, and then `lines`, such as an event with an id. The handler's delay has precedence
    /// over the layer's. The `retry` line comes before `lines`, because some clients apply a delay
    /// only when an event follows.
    fn preamble(&self, lines: Bytes) -> Bytes {
        let retry = match self.observation.settings() {
            Some(settings) => settings.first_retry(self.retry()),
            None => self.retry(),
        };
        match retry {
            Some(retry) if lines.is_empty() => retry_line(retry),
            Some(retry) => [retry_line(retry), lines].concat().into(),
            None => lines,
        }
    }

    /// Returns the reconnect delay that the handler has set for its stream, or `None` if it has set
    /// no delay.
    fn retry(&self) -> Option<Duration> {
        self.options.as_ref()?.rare.as_ref()?.retry
    }

    /// Returns `Some(Poll::Ready(()))` if a heartbeat is due, `Some(Poll::Pending)` if no heartbeat
    /// is due yet, and `None` if heartbeats are disabled.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        let heartbeat = heartbeat(self.options, self.observation)?;
        Some(self.idle_timer.poll_due(heartbeat, cx))
    }

    /// Completes a frame that contains only the cursor of a hub subscription: the id that the
    /// client sends when it reconnects. The frame is sent because a heartbeat is due. The cursor
    /// replaces a heartbeat that is a comment. A heartbeat that is an event is added after the
    /// cursor, because a script in the browser waits for this event.
    #[cold]
    fn add_heartbeat_to_cursor(&mut self, frame: &mut FrameBuilder) {
        self.idle_timer.reset();
        self.observation.record_heartbeat();
        let heartbeat = heartbeat(self.options, self.observation).filter(|heartbeat| heartbeat.is_event());
        if let Some(bytes) = heartbeat.map(|heartbeat| heartbeat.bytes(true)) {
            self.add(frame, bytes, 0);
        }
    }

    /// Adds a heartbeat to the frame if a heartbeat is due. Called only if heartbeats are events,
    /// and the frame does not postpone them because it contains no event that a client dispatches.
    #[cold]
    fn add_due_heartbeat(&mut self, frame: &mut FrameBuilder, cx: &mut Context<'_>) {
        let Some(heartbeat) = heartbeat(self.options, self.observation) else { return };
        if self.stream.is_none() || self.held.is_some() || self.idle_timer.poll_due(heartbeat, cx).is_pending() {
            return;
        }
        self.idle_timer.reset();
        let bytes = heartbeat.bytes(true);
        self.observation.record_heartbeat();
        self.add(frame, bytes, 0);
    }

    /// Adds a chunk that contains `events` complete events to the frame. If the chunk does not fit,
    /// the body keeps the chunk for the next frame.
    #[inline]
    fn add(&mut self, frame: &mut FrameBuilder, chunk: Bytes, events: u64) {
        if !frame.is_visible {
            frame.is_visible = is_visible(&chunk);
        }
        match frame.buffer.push(chunk) {
            Ok(()) => frame.events += events,
            Err(chunk) => {
                *self.held = Some(Box::new(Held::Chunk(chunk)));
                self.observation.defer_events(events);
            }
        }
    }
}

impl<S> fmt::Debug for SseBody<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseBody").field("ended", &self.stream.is_none()).finish_non_exhaustive()
    }
}
