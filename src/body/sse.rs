//! The body of our own streams.

use super::{
    Adoption, Heartbeat,
    frame::Coalesce,
    grace::Grace,
    heartbeat::{Pulse, first_byte},
    life::{Life, OnClose, reason_of},
};
use crate::{
    BoxError, CloseReason, Event, SseItem,
    event::retry_line,
    lifecycle::{LastWords, Settings},
    trace,
};
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
use tokio::time::Instant;
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
    /// And when it was set.
    pub(crate) on_close: Mutex<Option<(Instant, OnClose)>>,
}

impl Options {
    fn take_on_close(&mut self) -> Option<(Instant, OnClose)> {
        take_unlocked(&mut self.on_close)
    }
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
    /// When it needs a timer, for a heartbeat, for a lifetime or before an error, in a tokio runtime that has none enabled.
    /// Outside of any runtime, when it needs one for a heartbeat or for a lifetime.
    pub struct SseBody<S> {
        #[pin]
        stream: Option<S>,
        pulse: Pulse,
        options: Option<Box<Options>>,
        adoption: Adoption,
        // The beginning of the next frame.
        held: Bytes,
        failure: Option<Box<Failure>>,
        life: Option<Box<Life>>,
    }

    impl<S> PinnedDrop for SseBody<S> {
        fn drop(this: Pin<&mut Self>) {
            // One that was never polled has a life, too.
            let mut this = this.project();
            if let Some((_, passages)) = this.adoption.close() {
                let life = Life::unasked(this.options.as_mut().and_then(|options| options.take_on_close()), passages);
                // As of one that was polled: whoever is told finds that the stream is gone.
                this.stream.set(None);
                drop(life);
            }
        }
    }
}

/// The life of a body, if it begins now and is of interest.
fn begin(options: &mut Option<Box<Options>>, adoption: &mut Adoption) -> Option<Option<Box<Life>>> {
    let (parent, passages) = adoption.close()?;
    Some(Life::begin(options.as_mut().and_then(|options| options.take_on_close()), &parent, passages))
}

impl<S> SseBody<S> {
    pub(crate) fn new(stream: S, options: Option<Box<Options>>, adoption: Adoption) -> Self {
        Self {
            stream: Some(stream),
            pulse: Pulse::default(),
            options,
            adoption,
            held: Bytes::new(),
            failure: None,
            life: None,
        }
    }

    /// Begins with these lines, whether or not there is an event yet.
    #[cfg(feature = "hub")]
    pub(crate) fn beginning_with(mut self, lines: Bytes) -> Self {
        self.held = lines;
        self
    }

    /// A body without a stream, which is at its end.
    pub(crate) fn ended() -> Self {
        Self {
            stream: None,
            pulse: Pulse::default(),
            options: None,
            adoption: Adoption::Closed(None),
            held: Bytes::new(),
            failure: None,
            life: None,
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
        let begun = begin(this.options, this.adoption);
        let opening = begun.is_some();
        if let Some(life) = begun {
            *this.life = life;
        }
        let _entered = this.life.as_ref().map(|life| life.enter());
        let held = std::mem::take(this.held);
        let first = if opening { first_lines(this.options, this.adoption, held) } else { held };
        let mut frame = Coalesce::beginning_with(first);
        let mut events = this.life.as_mut().map_or(0, |life| std::mem::take(&mut life.held_events));

        if this.stream.is_some() {
            if let Some(last_words) = poll_end(this.life, this.options, cx) {
                this.stream.set(None);
                let count = u64::from(!last_words.farewell.is_empty());
                match frame.push(last_words.into_bytes()) {
                    Ok(()) => events += count,
                    Err(too_much) => {
                        *this.held = too_much;
                        if let Some(life) = this.life {
                            life.held_events = count;
                        }
                    }
                }
            }
        }
        is_polled(this.life, true);
        for _ in 0..MAX_READY {
            if frame.is_full() {
                break;
            }
            let Some(stream) = this.stream.as_mut().as_pin_mut() else { break };
            let (chunk, count) = match stream.poll_next(cx) {
                Poll::Ready(Some(item)) => match item.into_events() {
                    Ok(events) => {
                        let count = events.count();
                        (events.into_bytes(), count)
                    }
                    Err(error) => {
                        this.stream.set(None);
                        let reason = reason_of(&error);
                        // That a client is too slow is no failure, and a shutdown neither.
                        if reason == CloseReason::Error {
                            trace::failed(Some(&error));
                        }
                        ends(this.life, reason);
                        if reason == CloseReason::Shutdown {
                            if let Err(too_much) = frame.push(retry_later(this.options, this.adoption)) {
                                *this.held = too_much;
                            }
                            break;
                        }
                        let on_error = this.options.as_mut().and_then(|options| take_unlocked(&mut options.on_error));
                        match on_error.and_then(|on_error| on_error(&error)) {
                            Some(event) => (event.encode(), 1),
                            None => {
                                *this.failure = Some(Box::new(Failure { error, grace: Grace::default() }));
                                break;
                            }
                        }
                    }
                },
                Poll::Ready(None) => {
                    this.stream.set(None);
                    ends(this.life, CloseReason::Finished);
                    match this.options.as_mut().and_then(|options| options.end_with.take()) {
                        Some(event) => (event.encode(), 1),
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
                if let Some(life) = this.life {
                    life.held_events = count as u64;
                }
                break;
            }
            events += count as u64;
        }
        is_polled(this.life, false);

        let is_over = this.stream.is_none() && this.held.is_empty();
        if !frame.is_empty() {
            this.pulse.sent();
            let frame = frame.into_bytes();
            if let Some(life) = this.life {
                life.sends(events, frame.len());
                if is_over && this.failure.is_none() {
                    life.is_over();
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if let Some(failure) = this.failure {
            ready!(failure.grace.poll(cx));
        }
        if is_over {
            if let Some(life) = this.life {
                life.is_over();
            }
            return Poll::Ready(this.failure.take().map(|failure| Err(failure.error)));
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
        if let Some(life) = this.life {
            life.sends(0, beat.len());
            life.beats();
        }
        Poll::Ready(Some(Ok(Frame::data(beat))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.held.is_empty() && self.failure.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// What the stream says last, if it is ended from outside now.
fn poll_end(life: &mut Option<Box<Life>>, options: &Option<Box<Options>>, cx: &mut Context<'_>) -> Option<LastWords> {
    let own = options.as_ref().and_then(|options| options.retry);
    match life.as_mut()?.poll_end(own, cx) {
        Poll::Ready(last_words) => Some(last_words),
        Poll::Pending => None,
    }
}

/// When to come back after the shutdown of a hub.
fn retry_later(options: &Option<Box<Options>>, adoption: &Adoption) -> Bytes {
    let own = options.as_ref().and_then(|options| options.retry);
    let delay = match adoption.settings() {
        Some(settings) => settings.retry_later(own),
        None => Settings::default().retry_later(own),
    };
    retry_line(delay)
}

fn is_polled(life: &mut Option<Box<Life>>, is_polled: bool) {
    if let Some(life) = life {
        life.is_polled = is_polled;
    }
}

fn ends(life: &mut Option<Box<Life>>, reason: CloseReason) {
    if let Some(life) = life {
        life.ends(reason);
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
