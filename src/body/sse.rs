//! The body of our own streams.

use super::{
    Adoption, Heartbeat,
    frame::Coalesce,
    grace::Grace,
    heartbeat::{Pulse, first_byte},
    life::{Life, OnClose, reason_of},
};
use crate::{
    BoxError, CloseReason, Event, SseItem, event::retry_line, lifecycle::Settings, preamble::first_poll, trace,
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
    #[project = Parts]
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
        let begun = begin(this.options, this.adoption);
        let opening = begun.is_some();
        if let Some(life) = begun {
            *this.life = life;
        }
        let _entered = this.life.as_ref().map(|life| life.enter());
        let held = std::mem::take(this.held);
        let first = if opening { this.first_lines(held) } else { held };
        let mut frame = Filling {
            frame: Coalesce::beginning_with(first),
            events: this.life.as_mut().map_or(0, |life| std::mem::take(&mut life.held_events)),
        };

        this.end_from_outside(&mut frame, cx);
        this.is_polled(true);
        let next = if opening { first_poll(|| this.fill(&mut frame, cx)) } else { this.fill(&mut frame, cx) };
        this.is_polled(false);

        let is_over = this.stream.is_none() && this.held.is_empty();
        if !frame.frame.is_empty() {
            this.pulse.sent();
            let bytes = frame.frame.into_bytes();
            if let Some(life) = this.life {
                life.sends(frame.events, bytes.len());
                if is_over && this.failure.is_none() {
                    life.is_over();
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
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
        if next.is_ready() {
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

/// The frame under way, and how many events are in it.
struct Filling {
    frame: Coalesce,
    events: u64,
}

impl<S> Parts<'_, S> {
    /// The reconnection time, if the handler or else the layer has set one, and what the stream begins with. In this order: some
    /// clients read the time as a part of the event that follows, and nowhere else.
    fn first_lines(&self, lines: Bytes) -> Bytes {
        match self.retry().or_else(|| self.adoption.settings()?.retry) {
            Some(retry) if lines.is_empty() => retry_line(retry),
            Some(retry) => [retry_line(retry), lines].concat().into(),
            None => lines,
        }
    }

    /// What the handler has set.
    fn retry(&self) -> Option<Duration> {
        self.options.as_ref()?.retry
    }

    /// Ends the stream with its last words, if its time is up.
    fn end_from_outside(&mut self, frame: &mut Filling, cx: &mut Context<'_>) {
        let retry = self.retry();
        let (Some(life), true) = (&mut self.life, self.stream.is_some()) else { return };
        if let Poll::Ready(last_words) = life.poll_end(retry, cx) {
            self.stream.set(None);
            let events = u64::from(!last_words.farewell.is_empty());
            self.add(frame, last_words.into_bytes(), events);
        }
    }

    /// Adds a chunk to the frame. If it has to wait for the next one there is no room for more.
    #[inline]
    fn add(&mut self, frame: &mut Filling, chunk: Bytes, events: u64) {
        match frame.frame.push(chunk) {
            Ok(()) => frame.events += events,
            Err(too_much) => {
                *self.held = too_much;
                if let Some(life) = self.life {
                    life.held_events = events;
                }
            }
        }
    }

    /// Notes how the stream ends.
    fn ends(&mut self, reason: CloseReason) {
        if let Some(life) = self.life {
            life.ends(reason);
        }
    }

    /// Notes that the stream is polled, so that its end is known if it panics.
    fn is_polled(&mut self, is_polled: bool) {
        if let Some(life) = self.life {
            life.is_polled = is_polled;
        }
    }
}

impl<S> Parts<'_, S>
where
    S: Stream,
    S::Item: SseItem,
{
    /// Takes what is ready of the stream, as far as it fits. Pending if the stream is.
    #[inline]
    fn fill(&mut self, frame: &mut Filling, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..MAX_READY {
            if frame.frame.is_full() || !self.held.is_empty() {
                break;
            }
            let Some(stream) = self.stream.as_mut().as_pin_mut() else { break };
            match ready!(stream.poll_next(cx)).map(SseItem::into_events) {
                Some(Ok(events)) => {
                    let count = events.count() as u64;
                    self.add(frame, events.into_bytes(), count);
                }
                Some(Err(error)) => self.fail(frame, error),
                None => {
                    self.stream.set(None);
                    self.ends(CloseReason::Finished);
                    if let Some(last) = self.options.as_mut().and_then(|options| options.end_with.take()) {
                        self.add(frame, last.encode(), 1);
                    }
                }
            }
        }
        Poll::Ready(())
    }

    /// What an error of the stream is to the client: an end in any case.
    #[cold]
    fn fail(&mut self, frame: &mut Filling, error: BoxError) {
        self.stream.set(None);
        let reason = reason_of(&error);
        self.ends(reason);
        if reason == CloseReason::Shutdown {
            // Of its hub: when to come back.
            let delay = match self.adoption.settings() {
                Some(settings) => settings.retry_later(self.retry()),
                None => Settings::default().retry_later(self.retry()),
            };
            return self.add(frame, retry_line(delay), 0);
        }
        // That a client is too slow is no failure.
        if reason == CloseReason::Error {
            trace::failed(Some(&error));
        }
        let on_error = self.options.as_mut().and_then(|options| take_unlocked(&mut options.on_error));
        match on_error.and_then(|on_error| on_error(&error)) {
            Some(event) => self.add(frame, event.encode(), 1),
            None => *self.failure = Some(Box::new(Failure { error, grace: Grace::default() })),
        }
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
