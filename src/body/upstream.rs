//! The body of a response that passed through an `SseLayer`. The layer can add heartbeats to the
//! body, and can end it.

use super::{
    LayerLink,
    end::End,
    flush_delay::FlushDelay,
    idle_timer::IdleTimer,
    lines::{ByteOrderMark, EventTracker, LineTracker},
    observer::{NextFrame, Observation, ObservedBody, poll_observed},
};
use crate::{CloseReason, Heartbeat, event::retry_line, settings::FinalBytes, trace};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// The time that an upstream stream (a body of an inner service) has to complete its current event
/// after a layer has ended the stream. After this time, the response ends in the middle of the
/// event.
const COMPLETION_TIMEOUT: Duration = Duration::from_millis(250);

pin_project! {
    /// The body of a response that passed through an [`SseService`](crate::SseService), and of a
    /// [`RetryLater`](crate::RetryLater).
    ///
    /// An *upstream event stream* is an event stream that the inner service has made without
    /// [`SseStream`](crate::SseStream), for example the response of another server. This body adds
    /// heartbeats between the lines of such a stream, unless the response has a `Content-Encoding`.
    /// Layers can end the stream, after which the inner body is not polled again. Bodies of other
    /// responses pass unchanged.
    ///
    /// # Errors
    ///
    /// Returns the errors of the inner body. Without a `Content-Encoding`, the error of an upstream
    /// event stream is delayed by 250 milliseconds. So the transport can flush the frames before
    /// the error.
    ///
    /// # Panics
    ///
    /// Panics if an upstream event stream needs a timer and the tokio runtime has no timers
    /// enabled. Heartbeats, maximum lifetimes, shutdowns and the delay before an error need a
    /// timer. Outside of any tokio runtime, the error comes without the delay, and the other timers
    /// panic.
    #[must_use = "a body does nothing until it is polled"]
    pub struct ResponseBody<B>
    where
        B: Body,
    {
        #[pin]
        body: B,
        // Boxed to keep the body of other responses small.
        treatment: Option<Box<Treatment<B::Error>>>,
    }
}

impl<B: Body> ResponseBody<B> {
    /// Wraps the body of a response that passes the layer unchanged.
    pub(crate) fn untouched(body: B) -> Self {
        Self { body, treatment: None }
    }

    /// Wraps the body of an event stream that the inner service has made without `SseStream`. Until
    /// the new body is first polled, the layers around it attach their settings through `link`.
    pub(crate) fn event_stream(body: B, link: LayerLink) -> Self {
        Self::treated(body, Treatment::Stream(PassthroughStream::new(link)))
    }

    /// Wraps the body of an event stream that already has a `Content-Encoding`, such as a
    /// compressed stream. Layers attach their settings through `link`. They can end and observe the
    /// stream, but cannot add bytes, because these bytes would not be encoded. If `link` is closed,
    /// no layer can end the stream early. So the new body has the length and the size hint of
    /// `body`.
    pub(crate) fn encoded(body: B, link: LayerLink) -> Self {
        Self::treated(body, Treatment::Encoded(EncodedStream { observation: Observation::new(link), is_ended: false }))
    }

    /// Creates a body that sends `bytes` instead of `body`, which is never polled. Used for
    /// requests that a stream limit rejects, and for `RetryLater`. The new body keeps `token` until
    /// it is dropped.
    pub(crate) fn replaced(body: B, bytes: Bytes, token: Arc<()>) -> Self {
        Self::treated(body, Treatment::Replaced { bytes, _token: token })
    }

    fn treated(body: B, treatment: Treatment<B::Error>) -> Self {
        Self { body, treatment: Some(Box::new(treatment)) }
    }
}

/// Wraps the default body of the inner service, which passes unchanged. Some tower-http middleware
/// creates its responses with a default body.
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
        match this.treatment {
            None => this.body.poll_frame(cx),
            Some(treatment) => treatment.poll_frame(this.body, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.treatment {
            None => self.body.is_end_stream(),
            Some(treatment) => treatment.is_over(&self.body),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.treatment {
            None => self.body.size_hint(),
            Some(treatment) => treatment.size_hint(&self.body),
        }
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("body", &self.body)
            .field("is_event_stream", &self.treatment.is_some())
            .finish()
    }
}

/// The changes that a layer makes to the body of a response. A body that passes unchanged has no
/// `Treatment`.
#[expect(clippy::large_enum_variant, reason = "the enum is boxed, and most treated bodies are the largest variant")]
enum Treatment<E> {
    Stream(PassthroughStream<E>),
    Encoded(EncodedStream),
    /// The bytes that are sent instead of the inner body, for example because a stream limit has
    /// rejected the request. The token shows outer layers that the body still exists.
    Replaced {
        bytes: Bytes,
        _token: Arc<()>,
    },
}

impl<E> Treatment<E> {
    // Not inlined, because most responses only pass through.
    #[inline(never)]
    fn poll_frame<B>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<NextFrame<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        match self {
            Self::Stream(stream) => poll_observed(&mut Upstream { stream, body }, cx),
            Self::Encoded(stream) => poll_observed(&mut Upstream { stream, body }, cx),
            Self::Replaced { bytes, .. } if bytes.is_empty() => Poll::Ready(None),
            Self::Replaced { bytes, .. } => Poll::Ready(Some(Ok(Frame::data(mem::take(bytes))))),
        }
    }

    fn is_over<B: Body<Error = E>>(&self, body: &B) -> bool {
        match self {
            Self::Stream(stream) => stream.is_over(body),
            Self::Encoded(stream) => stream.is_ended || body.is_end_stream(),
            Self::Replaced { bytes, .. } => bytes.is_empty(),
        }
    }

    fn size_hint<B: Body<Error = E>>(&self, body: &B) -> SizeHint {
        match self {
            Self::Encoded(stream) if stream.observation.is_without_layers() => body.size_hint(),
            // Heartbeats change the length, and so does a layer that ends the stream.
            Self::Stream(_) | Self::Encoded(_) => SizeHint::default(),
            Self::Replaced { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// An event stream of an inner service during one poll. Contains the inner body, whose bytes the
/// layer forwards, and the state that the layer keeps for the stream.
struct Upstream<'a, S, B> {
    stream: &'a mut S,
    body: Pin<&'a mut B>,
}

/// An event stream with a `Content-Encoding`, such as a compressed stream. Layers can end the
/// stream, but cannot add bytes, because these bytes would not be encoded.
struct EncodedStream {
    observation: Observation,
    is_ended: bool,
}

impl<B> ObservedBody for Upstream<'_, EncodedStream, B>
where
    B: Body<Data = Bytes>,
{
    type Error = B::Error;

    fn observation(&mut self) -> &mut Observation {
        &mut self.stream.observation
    }

    fn poll_next(&mut self, _is_first: bool, cx: &mut Context<'_>) -> Poll<NextFrame<B::Error>> {
        let stream = &mut *self.stream;
        if !stream.is_ended {
            stream.is_ended = poll_final_bytes(&mut stream.observation, cx).is_ready();
        }
        if stream.is_ended {
            return Poll::Ready(None);
        }
        let outcome = ready!(poll_nonempty(self.body.as_mut(), cx));
        if stream.observation.is_closed() {
            // A registry has closed the stream during this poll.
            stream.is_ended = poll_final_bytes(&mut stream.observation, cx).is_ready();
            return Poll::Ready(None);
        }
        stream.is_ended = !matches!(outcome, Some(Ok(_)));
        match outcome {
            Some(Err(_)) => record_failure(&mut stream.observation),
            None if stream.observation.is_shutting_down() => {
                let _cannot_be_encoded = stream.observation.end(End::Shutdown, None);
            }
            _ => {}
        }
        Poll::Ready(outcome)
    }

    fn is_over(&self) -> bool {
        self.stream.is_ended || self.body.is_end_stream()
    }
}

/// The maximum number of empty frames of an inner body that are skipped in one poll. Then the outer
/// body returns `Pending` once, so that other tasks can run.
const MAX_EMPTY_FRAMES: usize = 64;

/// Polls a body until it returns a frame that is not empty, an error or its end. Returns `Pending`
/// after 64 empty frames, and wakes the task.
///
/// Empty frames are skipped because an HTTP/2 server would send each of them as an empty DATA
/// frame. Node.js closes an HTTP/2 session after 1,000 empty DATA frames.
#[inline]
fn poll_nonempty<B: Body<Data = Bytes>>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<NextFrame<B::Error>> {
    for _ in 0..MAX_EMPTY_FRAMES {
        let polled = body.as_mut().poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            _ => return polled,
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Returns ready when a layer ends the stream of an inner service. The result is the bytes to send
/// before the end. A shutdown ends such a stream after its current event, without waiting for
/// further events.
fn poll_final_bytes(observation: &mut Observation, cx: &mut Context<'_>) -> Poll<FinalBytes> {
    observation.poll_end(cx).map(|end| observation.end(end, None))
}

/// Sets the close reason of the stream to `Error`, and logs that the inner body has failed.
fn record_failure(observation: &mut Observation) {
    observation.set_reason(CloseReason::Error);
    trace::failed(None);
}

/// An event stream that the inner service has made without `SseStream`. The layer sees only its
/// bytes.
struct PassthroughStream<E> {
    /// Before the first poll of the body, collects the settings of the layers: an outer layer only
    /// attaches its settings here, and does not wrap the body again. Then contains the observer,
    /// which counts events and bytes, and can end the stream.
    observation: Observation,
    /// The timer for heartbeats that are comments. It measures the time since the last byte of the
    /// stream.
    idle_timer: IdleTimer,
    /// The state of heartbeats that are events. `None` if heartbeats are comments.
    event_heartbeat: Option<Box<EventHeartbeat>>,
    /// The reconnect delay as a `retry` line, which is sent before the first byte of the stream.
    /// Empty after that, and if no delay is set.
    preamble: Bytes,
    lines: LineTracker,
    byte_order_mark: ByteOrderMark,
    /// Counts the events of the stream, and tracks whether the stream is in the middle of an event.
    /// Used only if an observer records the stream, for example for metrics, or if heartbeats are
    /// sent as events: in the middle of another event, a heartbeat must be a comment.
    events: EventTracker,
    phase: Phase<E>,
}

/// The state of heartbeats that are sent as events instead of comments.
#[derive(Default)]
struct EventHeartbeat {
    /// The timer for heartbeats that are events. It measures the time since the last event with
    /// data, or the last heartbeat. A client dispatches only events with data.
    timer: IdleTimer,
    /// Set if the last chunk of the stream has not completed an event with data, for example
    /// because it contained only comments. The next poll then checks whether a heartbeat is due
    /// before it polls the stream. Without this check, a stream of comments that is always ready
    /// would suppress the heartbeat events, which JavaScript in a browser waits for.
    is_invisible: bool,
}

/// The phase of an event stream that a layer forwards from an inner service.
enum Phase<E> {
    /// The stream is running: neither the inner body nor a layer has ended it. Its data is
    /// forwarded, with heartbeats between the lines. In the middle of an event, each heartbeat is a
    /// comment.
    Open,
    /// A layer ends the stream. The rest of the current event is forwarded before the end, for at
    /// most 250 milliseconds.
    Draining(Draining),
    /// The inner body has returned trailers, an error or its end, which is kept as `outcome`.
    /// Before `outcome` is returned, the bytes of an incomplete byte order mark that were held back
    /// are sent. An error is also delayed by `delay`, so that the transport can flush the frames
    /// before it.
    Held { outcome: NextFrame<E>, delay: FlushDelay },
    /// The trailers of the inner body were returned. Only the end of the inner body can follow.
    Trailers,
    /// The response has ended. The inner body is not polled again.
    Ended,
}

/// The state of a stream that a layer ends, while the stream completes its current event.
struct Draining {
    final_bytes: FinalBytes,
    /// The timer that limits the wait for the rest of the current event. When the timer expires,
    /// the response ends in the middle of the event. `None` until a poll first finds the event
    /// incomplete.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> ObservedBody for Upstream<'_, PassthroughStream<B::Error>, B>
where
    B: Body<Data = Bytes>,
{
    type Error = B::Error;

    fn observation(&mut self) -> &mut Observation {
        &mut self.stream.observation
    }

    fn poll_next(&mut self, is_first: bool, cx: &mut Context<'_>) -> Poll<NextFrame<B::Error>> {
        let stream = &mut *self.stream;
        if is_first {
            if let Some(settings) = stream.observation.settings() {
                stream.preamble = settings.first_retry(None).map(retry_line).unwrap_or_default();
                let is_event = settings.heartbeat.heartbeat().is_some_and(Heartbeat::is_event);
                stream.event_heartbeat = is_event.then(Box::default);
            }
        }
        stream.poll_next(self.body.as_mut(), cx)
    }

    fn is_over(&self) -> bool {
        self.stream.is_over(&*self.body)
    }
}

impl<E> PassthroughStream<E> {
    fn new(link: LayerLink) -> Self {
        Self {
            observation: Observation::new(link),
            idle_timer: IdleTimer::default(),
            event_heartbeat: None,
            preamble: Bytes::new(),
            lines: LineTracker::default(),
            byte_order_mark: ByteOrderMark::default(),
            events: EventTracker::default(),
            phase: Phase::Open,
        }
    }

    fn poll_next<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<NextFrame<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        if !self.preamble.is_empty() {
            self.expect_byte_order_mark();
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.preamble)))));
        }
        match self.phase {
            Phase::Open | Phase::Draining(_) if self.observation.is_on() => {
                if let Poll::Ready(end) = self.poll_end(cx) {
                    return Poll::Ready(end);
                }
            }
            Phase::Open | Phase::Draining(_) | Phase::Trailers => {}
            Phase::Held { .. } => return self.poll_held(cx),
            Phase::Ended => return Poll::Ready(None),
        }
        if self.event_heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.is_invisible) {
            // A stream of comments may always be ready, so that the heartbeat at the end of this
            // method is never reached.
            if let Poll::Ready(heartbeat) = self.poll_heartbeat(cx) {
                return Poll::Ready(heartbeat);
            }
        }
        let polled = poll_nonempty(body.as_mut(), cx);
        if matches!((&self.phase, &polled), (Phase::Open, Poll::Ready(_))) && self.observation.is_closed() {
            // A registry has closed the stream during this poll. Of the data, only the rest of an
            // incomplete event is sent.
            if let Poll::Ready(end) = self.poll_end(cx) {
                return Poll::Ready(end);
            }
        }
        let is_draining = matches!(self.phase, Phase::Draining(_));
        match polled {
            // The frame is borrowed here, because moving it would be most of the cost of this path.
            Poll::Ready(Some(Ok(ref frame)))
                if frame.is_data() && !is_draining && !self.byte_order_mark.is_expected() =>
            {
                if let Some(data) = frame.data_ref() {
                    self.record_data(data);
                }
                return polled;
            }
            // The upstream stream ends by itself before its current event is complete.
            Poll::Ready(None) if is_draining => return Poll::Ready(self.end()),
            Poll::Ready(outcome) => return self.pass(outcome, body, cx),
            Poll::Pending => {}
        }
        self.poll_heartbeat(cx)
    }

    /// Returns a heartbeat when it is due and the stream is at the start of a line. In the middle
    /// of an event, the heartbeat is a comment, even if heartbeats are usually events.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<NextFrame<E>> {
        let Some(heartbeat) = self.observation.settings().and_then(|settings| settings.heartbeat.heartbeat()) else {
            return Poll::Pending;
        };
        if matches!(self.phase, Phase::Trailers) || !self.lines.is_at_line_start() {
            return Poll::Pending;
        }
        let event_heartbeat = self.event_heartbeat.as_mut().filter(|_| self.events.is_complete());
        let is_event = event_heartbeat.is_some();
        if let Some(event_heartbeat) = event_heartbeat {
            ready!(event_heartbeat.timer.poll_due(heartbeat, cx));
            event_heartbeat.timer.reset();
        } else {
            ready!(self.idle_timer.poll_due(heartbeat, cx));
        }
        self.idle_timer.reset();
        let bytes = match self.lines.is_after_cr() {
            true => heartbeat.bytes_after_cr(is_event),
            false => heartbeat.bytes(is_event),
        };
        if let Some(event_heartbeat) = &mut self.event_heartbeat {
            event_heartbeat.is_invisible = false;
        }
        self.expect_byte_order_mark();
        self.observation.record_heartbeat();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    /// Polls the layers for an early end of the stream. Returns ready when a layer has ended the
    /// stream and the current event is complete. An incomplete event delays the end by at most 250
    /// milliseconds. The result is a frame with the final bytes, or `None` if there are no final
    /// bytes.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<NextFrame<E>> {
        if let Phase::Open = self.phase {
            let final_bytes = ready!(poll_final_bytes(&mut self.observation, cx));
            self.phase = Phase::Draining(Draining { final_bytes, deadline: None });
        }
        if !self.events.is_complete() {
            let Phase::Draining(draining) = &mut self.phase else { return Poll::Pending };
            let deadline = draining.deadline.get_or_insert_with(|| Box::pin(sleep(COMPLETION_TIMEOUT)));
            ready!(deadline.as_mut().poll(cx));
        }
        Poll::Ready(self.end())
    }

    /// Returns the last frame of a stream that a layer ends: a reconnect delay and a final event,
    /// if they are set. In the middle of an event, the final event is omitted: a client would take
    /// the lines of the final event for lines of the incomplete event. In the middle of a line, the
    /// reconnect delay is omitted, too. Returns `None` if no bytes are left to send.
    fn end(&mut self) -> NextFrame<E> {
        // The held bytes of an incomplete byte order mark are discarded.
        self.byte_order_mark = ByteOrderMark::Passed;
        let Phase::Draining(Draining { mut final_bytes, .. }) = mem::replace(&mut self.phase, Phase::Ended) else {
            return None;
        };
        if !self.events.is_complete() {
            // The client discards the incomplete event (HTML standard, §9.2.6).
            final_bytes.event = Bytes::new();
            if !self.events.is_at_line_start() {
                final_bytes.retry = Bytes::new();
            }
        }
        self.observation.record_events(u64::from(!final_bytes.event.is_empty()));
        let bytes = final_bytes.into_bytes();
        (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
    }

    /// Handles a result of the inner body (`outcome`) that cannot simply be forwarded, and returns
    /// the next frame. Examples are data that may begin with a byte order mark, data of a stream
    /// that a layer ends, trailers, an error, and the end of the body. If the data is only a part
    /// of a byte order mark, this method polls `body` again.
    fn pass<B>(&mut self, outcome: NextFrame<E>, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<NextFrame<E>>
    where
        B: Body<Data = Bytes, Error = E>,
    {
        let outcome = match outcome.map(|result| result.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                let mut data = self.byte_order_mark.strip(data);
                if data.is_empty() {
                    // The chunk was a part of the mark.
                    return self.poll_next(body, cx);
                }
                if let Phase::Draining(_) = self.phase {
                    let complete = self.events.clone().record(&data).complete_at;
                    // Whole events that were read before a shutdown are sent. If a registry has
                    // closed the stream, they may have been published after the call that closed
                    // it.
                    let is_closed = self.observation.is_closed();
                    let end = complete.map(|(first, last)| if is_closed { first } else { last });
                    data.truncate(end.unwrap_or(data.len()));
                }
                self.record_data(&data);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Ok(Err(trailers))) => Some(Ok(trailers)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        // The application may end its stream because of the same shutdown. An error within an event
        // is passed on.
        let is_end = !matches!(outcome, Some(Err(_))) || self.events.is_complete();
        if matches!(self.phase, Phase::Open) && is_end && self.observation.is_shutting_down() {
            let final_bytes = self.observation.end(End::Shutdown, None);
            self.phase = Phase::Draining(Draining { final_bytes, deadline: None });
            if let Some(Err(_)) | None = outcome {
                outcome.inspect(|_| trace::failed(None));
                return Poll::Ready(self.end());
            }
        }
        let last = match (&self.phase, &outcome) {
            // The trailers follow the final bytes.
            (Phase::Draining(_), Some(Ok(_))) => self.end(),
            _ => self.byte_order_mark.release().map(|rest| Ok(Frame::data(rest))),
        };
        self.phase = Phase::Held { outcome, delay: FlushDelay::default() };
        if last.is_some() { Poll::Ready(last) } else { self.poll_held(cx) }
    }

    /// Returns the outcome of the inner body that was kept: trailers, an error or the end. An error
    /// is returned only after a delay, so that the transport can flush the frames before it.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<NextFrame<E>> {
        if let Phase::Held { outcome: Some(Err(_)), delay } = &mut self.phase {
            ready!(delay.poll(cx));
            record_failure(&mut self.observation);
        }
        let Phase::Held { outcome, .. } = mem::replace(&mut self.phase, Phase::Ended) else {
            return Poll::Ready(None);
        };
        if let Some(Ok(_)) = outcome {
            self.phase = Phase::Trailers;
        }
        Poll::Ready(outcome)
    }

    /// Records that the layer sends bytes before the first byte of the stream. If the stream begins
    /// with a byte order mark, the mark is then removed, because clients accept it only as the
    /// first bytes of a response.
    fn expect_byte_order_mark(&mut self) {
        if let ByteOrderMark::Undecided = self.byte_order_mark {
            // The first mark is removed. A second mark would be a part of the first line.
            self.events.skip_mark();
        }
        self.byte_order_mark.expect();
    }

    /// Returns whether the body has returned its last frame.
    fn is_over<B: Body<Error = E>>(&self, body: &B) -> bool {
        if !self.preamble.is_empty() || matches!(self.byte_order_mark, ByteOrderMark::Expected(1..)) {
            return false;
        }
        match self.phase {
            // The final bytes of a shutdown follow the end of the body.
            Phase::Open => body.is_end_stream() && !self.observation.is_shutting_down(),
            Phase::Trailers => body.is_end_stream(),
            Phase::Draining(_) | Phase::Held { .. } => false,
            Phase::Ended => true,
        }
    }

    /// Updates the state of the stream for `data`, which is forwarded to the client: the position
    /// within a line, the number of events, and the heartbeat timers.
    fn record_data(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.byte_order_mark = ByteOrderMark::Passed;
        self.lines.record(data);
        self.idle_timer.reset();
        if self.observation.is_on() || self.event_heartbeat.is_some() {
            let observed = self.events.record(data);
            self.observation.record_events(observed.events);
            if let Some(event_heartbeat) = &mut self.event_heartbeat {
                event_heartbeat.is_invisible = !observed.is_visible;
                if observed.is_visible {
                    event_heartbeat.timer.reset();
                }
            }
        }
    }
}
