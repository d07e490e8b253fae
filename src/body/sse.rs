//! The body of our own streams.

use super::{
    Adoption, Heartbeat,
    frame::Coalesce,
    grace::Grace,
    heartbeat::{Pulse, first_byte},
};
use crate::{BoxError, Event, SseItem, event::retry_line};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio_stream::Stream;

type OnError = Box<dyn FnOnce(&BoxError) -> Option<Event> + Send>;

/// What a handler has set for its stream.
#[derive(Default)]
pub(crate) struct Options {
    /// `Some(None)` is: none at all.
    pub(crate) heartbeat: Option<Option<Heartbeat>>,
    pub(crate) retry: Option<Duration>,
    pub(crate) end_with: Option<Event>,
    /// A mutex that is never locked: it makes a body `Sync` whose stream is, so that it can be boxed as such.
    pub(crate) on_error: Mutex<Option<OnError>>,
}

fn take_unlocked<T>(mutex: &mut Mutex<Option<T>>) -> Option<T> {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner).take()
}

/// What the stream ended with, once everything before it is on its way.
struct Failure {
    error: BoxError,
    grace: Grace,
}

/// How many items are taken from a stream in one poll, however small they are.
const MAX_READY: usize = 1024;

static DEFAULT_HEARTBEAT: Heartbeat = Heartbeat::DEFAULT;

pin_project! {
    /// The body of an [`SseStream`](crate::SseStream)'s response: an [`http_body::Body`] of event stream bytes.
    ///
    /// Events that are ready at the same time become one frame, of up to about 16 KiB and 1024 items; an event that is ready
    /// alone is a frame at once. Events of 4 KiB or more are not copied into a frame with others, and none is ever split. The
    /// body ends when the stream ends, and never polls the stream again after that. Dropping it drops the stream.
    ///
    /// # Errors
    ///
    /// An error of the stream ends the body, after what came before it was passed on and the transport had 250 milliseconds
    /// to flush it; see [`SseStream::on_error`](crate::SseStream::on_error) for another end.
    ///
    /// # Panics
    ///
    /// When it needs a timer, for a heartbeat or before an error, in a tokio runtime that has none enabled. Outside of any
    /// runtime, when it needs one for a heartbeat.
    pub struct SseBody<S> {
        #[pin]
        stream: Option<S>,
        pulse: Pulse,
        options: Option<Box<Options>>,
        adoption: Adoption,
        // The beginning of the next frame.
        held: Bytes,
        failure: Option<Box<Failure>>,
        opened: bool,
    }
}

impl<S> SseBody<S> {
    pub(crate) fn new(stream: S, options: Option<Box<Options>>, adoption: Adoption) -> Self {
        Self { stream: Some(stream), options, adoption, ..Self::ended() }
    }

    /// Begins with these lines, whether or not there is an event yet.
    #[cfg(feature = "hub")]
    pub(crate) fn beginning_with(self, lines: Bytes) -> Self {
        Self { held: lines, ..self }
    }

    /// A body without a stream, which is at its end.
    pub(crate) fn ended() -> Self {
        Self {
            stream: None,
            pulse: Pulse::default(),
            options: None,
            adoption: Adoption::default(),
            held: Bytes::new(),
            failure: None,
            opened: false,
        }
    }
}

/// At its end, as tower-http's middleware needs it for answers of their own.
impl<S> Default for SseBody<S> {
    fn default() -> Self {
        Self::ended()
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
        let mut this = self.project();
        let mut stream_is_pending = false;
        let opening = !std::mem::replace(this.opened, true);
        let held = std::mem::take(this.held);
        let first = if opening { first_lines(this.options, this.adoption, held) } else { held };
        let mut frame = Coalesce::beginning_with(first);

        for _ in 0..MAX_READY {
            if frame.is_full() {
                break;
            }
            let Some(stream) = this.stream.as_mut().as_pin_mut() else { break };
            let chunk = match stream.poll_next(cx) {
                Poll::Ready(Some(item)) => match item.into_events() {
                    Ok(events) => events.into_bytes(),
                    Err(error) => {
                        this.stream.set(None);
                        let on_error = this.options.as_mut().and_then(|options| take_unlocked(&mut options.on_error));
                        match on_error.and_then(|on_error| on_error(&error)) {
                            Some(event) => event.encode(),
                            None => {
                                *this.failure = Some(Box::new(Failure { error, grace: Grace::default() }));
                                break;
                            }
                        }
                    }
                },
                Poll::Ready(None) => {
                    this.stream.set(None);
                    match this.options.as_mut().and_then(|options| options.end_with.take()) {
                        Some(event) => event.encode(),
                        None => break,
                    }
                }
                Poll::Pending => {
                    stream_is_pending = true;
                    break;
                }
            };
            if let Err(too_much) = frame.push(chunk) {
                *this.held = too_much;
                break;
            }
        }

        if !frame.is_empty() {
            this.pulse.sent();
            return Poll::Ready(Some(Ok(Frame::data(frame.into_bytes()))));
        }
        if let Some(failure) = this.failure {
            ready!(failure.grace.poll(cx));
            return Poll::Ready(this.failure.take().map(|failure| Err(failure.error)));
        }
        if this.stream.is_none() {
            return Poll::Ready(None);
        }
        if !stream_is_pending {
            // Nothing but empty chunks: let others have their turn.
            cx.waker().wake_by_ref();
        }
        let Some(heartbeat) = heartbeat(this.options, this.adoption) else { return Poll::Pending };
        let beat = if opening {
            first_byte()
        } else {
            ready!(this.pulse.poll_due(heartbeat, cx));
            heartbeat.bytes(true)
        };
        // Asked for its next frame at once, the body then sets its timer.
        this.pulse.sent();
        Poll::Ready(Some(Ok(Frame::data(beat))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.held.is_empty() && self.failure.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// The reconnection time, if the handler or else the layer has set one, and what the stream begins with.
fn first_lines(options: &Option<Box<Options>>, adoption: &Adoption, lines: Bytes) -> Bytes {
    let own = options.as_ref().and_then(|options| options.retry);
    match own.or_else(|| adoption.settings()?.retry) {
        Some(retry) if lines.is_empty() => retry_line(retry),
        Some(retry) => [retry_line(retry), lines].concat().into(),
        None => lines,
    }
}

/// What the handler has set wins over what the layer has.
fn heartbeat<'a>(options: &'a Option<Box<Options>>, adoption: &'a Adoption) -> Option<&'a Heartbeat> {
    match (options.as_ref().and_then(|options| options.heartbeat.as_ref()), adoption.settings()) {
        (Some(own), _) => own.as_ref(),
        (None, Some(settings)) => settings.heartbeat.as_ref(),
        (None, None) => Some(&DEFAULT_HEARTBEAT),
    }
}

impl<S> fmt::Debug for SseBody<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseBody").field("ended", &self.stream.is_none()).finish_non_exhaustive()
    }
}
