//! The body of a response that passed through the layer.

use super::{
    Adoption,
    grace::Grace,
    heartbeat::Pulse,
    life::Life,
    lines::{ByteOrderMark, EventTracker, LineTracker},
};
use crate::{CloseReason, event::retry_line, lifecycle::LastWords, trace};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// How long a stream that is ended from outside has to complete the event it is in.
const TO_COMPLETE: Duration = Duration::from_millis(250);

pin_project! {
    /// The body of a response that passed through an [`SseService`](crate::SseService).
    ///
    /// Everything but a foreign event stream passes as it is, and so does a foreign event stream that is encoded, up to its
    /// end from outside. Into every other one heartbeats are put, between its lines, and the body inside is never polled again
    /// after its end.
    ///
    /// # Errors
    ///
    /// Those of the body inside. Those of a foreign event stream come after what was passed on before them, when the
    /// transport had 250 milliseconds to flush it.
    ///
    /// # Panics
    ///
    /// A foreign event stream, when it needs a timer, for a heartbeat, for its end from outside or before an error, in a tokio
    /// runtime that has none enabled. Outside of any runtime, when it needs one for a heartbeat or for its end from outside.
    pub struct ResponseBody<B>
    where
        B: Body,
    {
        #[pin]
        body: B,
        // Apart, so that the other responses do not carry it.
        stream: Option<Box<ForeignStream<B::Error>>>,
    }
}

impl<B: Body> ResponseBody<B> {
    pub(crate) fn untouched(body: B) -> Self {
        Self { body, stream: None }
    }

    pub(crate) fn event_stream(body: B, adoption: Adoption) -> Self {
        let stream = ForeignStream {
            adoption,
            life: None,
            pulse: Pulse::default(),
            opening: Bytes::new(),
            lines: LineTracker::default(),
            byte_order_mark: ByteOrderMark::default(),
            held: None,
            closing: None,
            ended: false,
            data_ended: false,
            grace: Grace::default(),
            events: EventTracker::default(),
            events_passed: 0,
            is_encoded: false,
        };
        Self { body, stream: Some(Box::new(stream)) }
    }

    /// A stream into which nothing can be put. All that is done to it is to end it, and to tell of it.
    pub(crate) fn encoded(body: B, adoption: Adoption) -> Self {
        let mut this = Self::event_stream(body, adoption);
        if let Some(stream) = &mut this.stream {
            stream.is_encoded = true;
        }
        this
    }

    /// Only these bytes. The body inside is not polled.
    pub(crate) fn instead(body: B, bytes: Bytes) -> Self {
        let mut this = Self::event_stream(body, Adoption::Closed(None));
        if let Some(stream) = &mut this.stream {
            stream.opening = bytes;
            stream.ended = true;
            stream.data_ended = true;
        }
        this
    }
}

/// As tower-http's middleware needs it for answers of their own.
impl<B: Body + Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::untouched(B::default())
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        match this.stream {
            None => this.body.poll_frame(cx),
            Some(stream) => stream.poll_frame(this.body, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.stream {
            None => self.body.is_end_stream(),
            Some(stream) => !stream.keeps_something_back() && (stream.ended || self.body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.stream {
            None => self.body.size_hint(),
            // Heartbeats change the length.
            Some(_) => SizeHint::default(),
        }
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("body", &self.body)
            .field("is_event_stream", &self.stream.is_some())
            .finish()
    }
}

/// What a body's `poll_frame` is ready with.
type Outcome<E> = Option<Result<Frame<Bytes>, E>>;

/// What the layer does to an event stream it knows nothing of but its bytes.
struct ForeignStream<E> {
    /// Also tells an outer layer that this stream is taken care of.
    adoption: Adoption,
    life: Option<Box<Life>>,
    pulse: Pulse,
    /// Goes first.
    opening: Bytes,
    lines: LineTracker,
    byte_order_mark: ByteOrderMark,
    /// What the body was ready with, when something else has to go before it.
    held: Option<Outcome<E>>,
    /// It is ended from outside, as soon as no event is cut by that.
    closing: Option<Closing>,
    /// The body inside is not polled again.
    ended: bool,
    /// Trailers came, or an error, or the end: no heartbeat may follow.
    data_ended: bool,
    grace: Grace,
    /// Told of what passes where the stream has a life.
    events: EventTracker,
    /// How many events are in the frame that goes to the transport next.
    events_passed: u64,
    /// Its bytes are not those of events.
    is_encoded: bool,
}

/// One that was never polled has a life, too.
impl<E> Drop for ForeignStream<E> {
    fn drop(&mut self) {
        if let Some((_, passages)) = self.adoption.close() {
            drop(Life::unasked(None, passages));
        }
    }
}

/// The end of a stream that is ended from outside.
struct Closing {
    last_words: LastWords,
    /// When it ends in any case. Set where there is something to wait for.
    at_the_latest: Option<Pin<Box<Sleep>>>,
}

impl<E> ForeignStream<E> {
    // Out of the way of the responses that only pass through.
    #[inline(never)]
    fn poll_frame<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Outcome<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        if let Some((parent, passages)) = self.adoption.close() {
            self.life = Life::begin(None, &parent, passages);
            if let Some(retry) = self.adoption.settings().and_then(|settings| settings.retry) {
                self.opening = if self.is_encoded { Bytes::new() } else { retry_line(retry) };
            }
        }
        let _entered = self.life.as_ref().map(|life| life.enter());
        if let Some(life) = &mut self.life {
            life.is_polled = true;
        }
        let polled =
            if self.is_encoded { self.poll_encoded(body.as_mut(), cx) } else { self.poll_next(body.as_mut(), cx) };
        if let Poll::Ready(Some(Err(_))) = polled {
            trace::failed(None);
        }
        if self.life.is_some() {
            let is_over = !self.keeps_something_back() && (self.ended || body.is_end_stream());
            self.note(&polled, is_over);
        }
        polled
    }

    /// Tells the life of the stream what goes to the transport now.
    fn note(&mut self, polled: &Poll<Outcome<E>>, is_over: bool) {
        let Some(life) = &mut self.life else { return };
        life.is_polled = false;
        let Poll::Ready(outcome) = polled else { return };
        match outcome {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                life.sends(std::mem::take(&mut self.events_passed), bytes);
            }
            Some(Err(_)) => life.ends(CloseReason::Error),
            None => {}
        }
        if is_over || !matches!(outcome, Some(Ok(_))) {
            life.is_over();
        }
    }

    fn poll_encoded<B>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Outcome<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        if let (Some(life), false) = (&mut self.life, self.ended) {
            self.ended = life.poll_end(None, cx).is_ready();
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let outcome = ready!(body.poll_frame(cx));
        self.ended = !matches!(outcome, Some(Ok(_)));
        Poll::Ready(outcome)
    }

    fn poll_next<B>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Outcome<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        if !self.opening.is_empty() {
            self.something_goes_first();
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.opening)))));
        }
        if self.life.is_some() && !self.data_ended {
            if let Poll::Ready(end) = self.poll_end(cx) {
                return Poll::Ready(end);
            }
        }
        let polled = match self.held.take() {
            Some(held) => Poll::Ready(held),
            None if self.ended => Poll::Ready(None),
            None => body.poll_frame(cx),
        };
        match polled {
            // The frame is looked at and not taken apart: its size is what this path costs.
            Poll::Ready(Some(Ok(ref frame)))
                if !self.byte_order_mark.is_expected() && frame.is_data() && self.closing.is_none() =>
            {
                if let Some(data) = frame.data_ref() {
                    self.pass(data);
                }
                return polled;
            }
            // It ends by itself, in the middle of the event that it was to complete.
            Poll::Ready(None) if self.closing.is_some() && !self.data_ended => {
                return Poll::Ready(self.end_from_outside());
            }
            Poll::Ready(outcome) => return self.pass_with_mark(outcome, cx),
            Poll::Pending => {}
        }

        let Some(heartbeat) = self.adoption.settings().and_then(|settings| settings.heartbeat.as_ref()) else {
            return Poll::Pending;
        };
        if self.data_ended || !self.lines.is_at_line_start() {
            return Poll::Pending;
        }
        ready!(self.pulse.poll_due(heartbeat, cx));
        self.pulse.sent();
        let beat = heartbeat.bytes(self.lines.is_between_events());
        self.something_goes_first();
        if let Some(life) = &mut self.life {
            life.beats();
        }
        Poll::Ready(Some(Ok(Frame::data(beat))))
    }

    /// Ready when the stream is ended from outside, and no event is cut by that, or when it cannot be waited for the rest of
    /// the one under way.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<E>> {
        if self.closing.is_none() {
            let Some(life) = &mut self.life else { return Poll::Pending };
            let last_words = ready!(life.poll_end(None, cx));
            self.closing = Some(Closing { last_words, at_the_latest: None });
        }
        if !self.events.are_complete() {
            let Some(closing) = &mut self.closing else { return Poll::Pending };
            let at_the_latest = closing.at_the_latest.get_or_insert_with(|| Box::pin(sleep(TO_COMPLETE)));
            ready!(at_the_latest.as_mut().poll(cx));
        }
        Poll::Ready(self.end_from_outside())
    }

    /// Says what can be said where the stream is.
    fn end_from_outside(&mut self) -> Outcome<E> {
        self.ended = true;
        self.data_ended = true;
        // What was kept back of one is not sent after the end.
        self.byte_order_mark = ByteOrderMark::Passed;
        let mut last_words = self.closing.take()?.last_words;
        if !self.events.are_complete() {
            // What the client has of the event it discards (HTML standard, §9.2.6).
            last_words.shutdown_event = Bytes::new();
            if !self.events.is_at_line_start() {
                last_words.retry = Bytes::new();
            }
        }
        self.events_passed += u64::from(!last_words.shutdown_event.is_empty());
        let last_words = last_words.into_bytes();
        (!last_words.is_empty()).then(|| Ok(Frame::data(last_words)))
    }

    /// What is not plain data, or comes where a byte order mark may stand.
    fn pass_with_mark(&mut self, outcome: Outcome<E>, cx: &mut Context<'_>) -> Poll<Outcome<E>> {
        let outcome = match outcome.map(|result| result.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                let mut data = self.byte_order_mark.strip(data);
                if self.closing.is_some() {
                    let ends_at = self.events.clone().pass(&data).complete_up_to;
                    data.truncate(ends_at.unwrap_or(data.len()));
                }
                self.pass(&data);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Ok(Err(trailers))) => Some(Ok(trailers)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        self.ended = !matches!(outcome, Some(Ok(_)));
        self.data_ended = true;
        if let Some(rest) = self.byte_order_mark.release() {
            self.held = Some(outcome);
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        if let Some(Err(_)) = outcome {
            if self.grace.poll(cx).is_pending() {
                self.held = Some(outcome);
                return Poll::Pending;
            }
        }
        Poll::Ready(outcome)
    }

    fn something_goes_first(&mut self) {
        if let ByteOrderMark::Undecided = self.byte_order_mark {
            // One is taken away. A second one would be a part of the first line.
            self.events.expects_no_mark();
        }
        self.byte_order_mark.something_goes_first();
    }

    fn keeps_something_back(&self) -> bool {
        !self.opening.is_empty()
            || self.held.is_some()
            || matches!(self.byte_order_mark, ByteOrderMark::Expected(1..))
            // The last words.
            || (self.closing.is_some() && !self.data_ended)
    }

    fn pass(&mut self, data: &[u8]) {
        if !data.is_empty() {
            self.byte_order_mark = ByteOrderMark::Passed;
            self.lines.passed(data);
            self.pulse.sent();
            if self.life.is_some() {
                self.events_passed += self.events.pass(data).events;
            }
        }
    }
}
