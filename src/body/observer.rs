//! Records the life of a stream (its counters, its tracing span, the reason of its end), and ends
//! the stream when a layer requests it.
//!
//! There are two kinds of bodies: the body of an `SseStream`, and the body of a response that
//! passed a layer. [`poll_observed`] runs each poll of both, and both contain an [`Observation`],
//! which stores the observer of the stream. The observer counts the bytes of the frames itself. A
//! frame does not show how many events and heartbeats it contains, or why the stream ends. The body
//! reports these to the observer.

use super::{
    end::{End, EndFuture, EndSignal, Lifetime, Registrations},
    link::{AppliedLayer, LayerLink},
};
use crate::{
    callback::contain_panic,
    event::retry_line,
    limit::Permit,
    metrics,
    registry::Registration,
    settings::{FinalBytes, LayerOnClose, Settings},
    summary::{CloseReason, StreamSummary},
    trace,
};
use bytes::Bytes;
use http_body::Frame;
use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// The result of a body's `poll_frame` when it is ready: a frame, an error, or `None` at the end.
pub(super) type NextFrame<E> = Option<Result<Frame<Bytes>, E>>;

/// The `on_close` callback of a handler, and the time when the handler set it. The stream duration
/// that the callback gets is measured from this time.
pub(crate) type OnClose = (Instant, Callback);

type Callback = Box<dyn FnOnce(StreamSummary) + Send>;

/// The settings that a handler has made for the end of its stream: conditions that end the stream,
/// such as a maximum lifetime, and the `on_close` callback.
#[derive(Default)]
pub(crate) struct HandlerEnd {
    pub(crate) on_close: Option<OnClose>,
    pub(crate) end_when: Option<EndFuture>,
    pub(crate) max_lifetime: Option<Duration>,
    /// Set if the handler has declared that the stream ends by itself. At a shutdown, such a stream
    /// may continue for the drain timeout of the layer.
    pub(crate) is_finite: bool,
}

/// A body whose first poll, frames and end are recorded for metrics, spans, limits and `on_close`.
pub(super) trait ObservedBody {
    type Error;

    fn observation(&mut self) -> &mut Observation;

    /// Takes the handler's `on_close` callback and settings for the end of the stream out of the
    /// body. Called once, at the beginning of the first poll. The default implementation is for
    /// bodies without such settings.
    fn take_handler_end(&mut self) -> HandlerEnd {
        HandlerEnd::default()
    }

    /// Produces the next frame of the body. `is_first` is set only in the first poll of the body.
    fn poll_next(&mut self, is_first: bool, cx: &mut Context<'_>) -> Poll<NextFrame<Self::Error>>;

    /// Returns whether the body has returned its last frame.
    fn is_over(&self) -> bool;
}

/// Polls a body for its next frame within the tracing span of the stream, and counts the bytes of
/// the frame. The first poll collects the settings of the layers that the response has passed
/// through. If a layer, the handler, a span or a metric needs an observer, the first poll also
/// creates it.
#[inline]
pub(super) fn poll_observed<B: ObservedBody>(body: &mut B, cx: &mut Context<'_>) -> Poll<NextFrame<B::Error>> {
    let is_first = body.observation().link.is_open();
    if is_first {
        let handler = body.take_handler_end();
        body.observation().begin(handler);
    }
    let _entered = body.observation().observer.as_mut().map(|observer| observer.enter());
    let polled = body.poll_next(is_first, cx);
    if body.observation().is_on() {
        let is_over = match &polled {
            Poll::Pending => false,
            // Nothing follows trailers. hyper drops the body after them, without another poll.
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || body.is_over(),
            Poll::Ready(_) => true,
        };
        if let Some(observer) = &mut body.observation().observer {
            observer.leave(&polled, is_over);
        }
    }
    polled
}

/// The state that each body of an event stream keeps for the layers around the body: a link,
/// through which the layers attach their settings, and an observer, which counts events and bytes,
/// and can end the stream.
pub(super) struct Observation {
    link: LayerLink,
    /// The observer of the stream. `None` before the first poll of the body, and if no layer,
    /// handler, span or metric needs an observer.
    observer: Option<Box<StreamObserver>>,
}

impl Observation {
    pub(super) fn new(link: LayerLink) -> Self {
        Self { link, observer: None }
    }

    /// Creates the observation of an empty body, which has no stream. The observation keeps the
    /// `on_close` callback of the handler, and calls it with the reason `Finished` when the body is
    /// dropped. An example is the body of a response with the status 204, whose stream was already
    /// over when the response was created. Metrics and spans do not count an empty body as a
    /// stream.
    pub(super) fn finished(handler: HandlerEnd) -> Self {
        let mut observer = StreamObserver::new(handler, Vec::new(), trace::Span::none(), metrics::Stream::none());
        if let Some(observer) = &mut observer {
            observer.set_reason(CloseReason::Finished);
            observer.progress = Progress::Over;
        }
        Self { link: LayerLink::closed(), observer }
    }

    fn begin(&mut self, handler: HandlerEnd) {
        if let Some((parent, layers)) = self.link.close() {
            let span = trace::Span::begin(&parent, layers.iter().map(|layer| &layer.request));
            self.observer = StreamObserver::new(handler, layers, span, metrics::Stream::begin());
        }
    }

    /// Returns the observer of a body that is dropped before its first poll. When the caller drops
    /// the observer, the `on_close` callbacks run. Returns `None` if the body was polled, or if
    /// neither the handler nor a layer needs an observer. Metrics and spans do not count a body
    /// that was never polled.
    ///
    /// The closure `handler` returns the settings that the application's handler has made for the
    /// end of the stream, including its `on_close` callback.
    pub(super) fn close_unpolled(&mut self, handler: impl FnOnce() -> HandlerEnd) -> Option<Box<StreamObserver>> {
        let (_, layers) = self.link.close()?;
        StreamObserver::new(handler(), layers, trace::Span::none(), metrics::Stream::none())
    }

    /// Returns the merged settings of all layers around the body. `None` before the first poll of
    /// the body, and if there are no layers.
    pub(super) fn settings(&self) -> Option<&Settings> {
        self.link.settings()
    }

    /// Returns `true` if no layer has attached settings to the body, and no layer can still do so.
    /// Then no layer can end or observe the stream.
    pub(super) fn is_without_layers(&self) -> bool {
        self.link.is_closed_without_layers()
    }

    /// Returns whether the stream has an observer, which counts its events and can end it.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.observer.is_some()
    }

    /// Returns ready when a layer or the handler ends the stream. The body then calls
    /// [`end`](Self::end), at a shutdown possibly in a later poll.
    #[inline]
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match &mut self.observer {
            Some(observer) => observer.poll_end(cx),
            None => Poll::Pending,
        }
    }

    /// Returns the `retry` line with the reconnect delay of a client whose stream ends early: the
    /// handler's delay `retry`, or else the layer's delay, or else one second.
    pub(super) fn last_retry_line(&self, retry: Option<Duration>) -> Bytes {
        retry_line(match self.settings() {
            Some(settings) => settings.reconnect_delay(retry),
            None => Settings::default().reconnect_delay(retry),
        })
    }

    /// Records the reason of an early end, and returns the bytes to send before it. At the shutdown
    /// of a layer or of a hub, these bytes contain the [reconnect delay](Self::last_retry_line).
    pub(super) fn end(&mut self, end: End, retry: Option<Duration>) -> FinalBytes {
        let is_shutdown = matches!(end, End::Shutdown);
        let final_bytes = self.observer.as_mut().map(|observer| observer.end(end, retry)).unwrap_or_default();
        if is_shutdown && final_bytes.retry.is_empty() {
            // No layer is shut down, but a hub.
            return FinalBytes { retry: self.last_retry_line(retry), ..final_bytes };
        }
        final_bytes
    }

    /// Returns whether the shutdown of a layer has begun, and the handler or a layer has not
    /// declared that the stream ends by itself (is finite). In this case, an end of the stream
    /// counts as an end by the shutdown.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| observer.is_shutting_down())
    }

    /// Returns whether the stream is in a [`StreamRegistry`](crate::StreamRegistry), which can
    /// close it.
    #[inline]
    pub(super) fn is_registered(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| !observer.registrations.as_slice().is_empty())
    }

    /// Returns whether the application has closed the stream through a stream registry, a set of
    /// open streams by key. The body then discards the events that it has taken from its stream in
    /// the current poll: they may be newer than the call that closed the stream.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| observer.is_closed())
    }

    /// Sets the reason that is reported when the stream ends. If the client disconnects before the
    /// last frame, `ClientGone` is reported instead.
    pub(super) fn set_reason(&mut self, reason: CloseReason) {
        if let Some(observer) = &mut self.observer {
            observer.set_reason(reason);
        }
    }

    /// Adds `events`, the number of events in the frame that the current poll returns, to the event
    /// count of the stream.
    #[inline]
    pub(super) fn record_events(&mut self, events: u64) {
        if let Some(observer) = &mut self.observer {
            observer.record_events(events);
        }
    }

    /// Adds one to the heartbeat count of the stream. The frame that the current poll returns
    /// contains the heartbeat.
    pub(super) fn record_heartbeat(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.heartbeats += 1;
            observer.counts.heartbeat_sent();
        }
    }

    /// Stores the number of events in a chunk that does not fit into the current frame, and that
    /// the body keeps for its next frame. These events are counted when that frame is returned.
    pub(super) fn defer_events(&mut self, events: u64) {
        if let Some(observer) = &mut self.observer {
            observer.deferred_events = events;
        }
    }

    /// Returns the number of events in the chunk that begins the current frame. The previous poll
    /// has kept this chunk, because it did not fit into the previous frame. Returns 0 without such
    /// a chunk. Resets the stored number to 0.
    #[inline]
    pub(super) fn take_deferred_events(&mut self) -> u64 {
        self.observer.as_mut().map_or(0, |observer| mem::take(&mut observer.deferred_events))
    }
}

/// Runs the `on_close` callbacks of the layers when a body is dropped before its first poll. Has no
/// effect in the body of an `SseStream`, whose own `drop` has already run the callbacks of the
/// layers and of the handler.
impl Drop for Observation {
    fn drop(&mut self) {
        drop(self.close_unpolled(HandlerEnd::default));
    }
}

/// Records the events, bytes and heartbeats of one stream, and the reason of its end. When it is
/// dropped, it reports the stream to metrics, spans and `on_close` callbacks.
pub(super) struct StreamObserver {
    began: Instant,
    events: u64,
    bytes: u64,
    heartbeats: u64,
    /// The number of events in a chunk that the body keeps for its next frame. The field `events`,
    /// the event count of the stream, does not include these events yet.
    deferred_events: u64,
    /// The reason why the stream ends. `None` until the reason is known.
    reason: Option<CloseReason>,
    progress: Progress,
    end_signals: Vec<EndSignal>,
    registrations: Registrations,
    /// Set if the handler or a layer has declared that the stream ends by itself. At a shutdown,
    /// the stream may then continue for the drain timeout of the layer.
    is_finite: bool,
    /// The `on_close` callback of the handler. The mutex is never locked: it makes the body `Sync`
    /// although the callback is not `Sync`.
    on_close: Mutex<Option<Callback>>,
    /// The `on_close` callbacks of the layers. A callback that several layers share is in the list
    /// once.
    layers: Box<[LayerOnClose]>,
    permits: Box<[Permit]>,
    span: trace::Span,
    counts: metrics::Stream,
}

/// The state of a stream between and during the polls of its body. When the body is dropped, this
/// state shows why: the client has disconnected, a poll has panicked, or the stream is over.
#[derive(Clone, Copy, PartialEq)]
enum Progress {
    /// The body waits for its next poll. If the body is dropped in this state, the client has
    /// disconnected.
    Waiting,
    /// The body is being polled. If the body is dropped in this state, the poll has panicked.
    Polling,
    /// The stream is over: the body has returned its last frame, or its end (`None`), or its error.
    Over,
}

impl StreamObserver {
    /// Creates the observer of a stream. `layers` are the layers that the response has passed
    /// through, from the innermost to the outermost. Returns `None` if no layer, handler, span or
    /// metric needs an observer.
    fn new(
        handler: HandlerEnd,
        layers: Vec<AppliedLayer>,
        span: trace::Span,
        counts: metrics::Stream,
    ) -> Option<Box<Self>> {
        let is_observed = layers.iter().any(AppliedLayer::is_observed);
        let HandlerEnd { on_close, end_when, max_lifetime, is_finite } = handler;
        let is_finite = is_finite || layers.iter().any(|layer| layer.settings.is_finite);
        let is_ended = end_when.is_some() || max_lifetime.is_some();
        if on_close.is_none() && !is_ended && !span.is_on() && !counts.is_on() && !is_observed {
            return None;
        }
        let began = on_close.as_ref().map(|(at, _)| *at);
        let began = began.or_else(|| layers.iter().find_map(|layer| layer.at)).unwrap_or_else(Instant::now);
        let mut end_signals = Vec::new();
        end_signals.extend(end_when.map(|future| EndSignal::When(Mutex::new(future))));
        end_signals.extend(max_lifetime.map(|time| EndSignal::MaxLifetime(Lifetime::exactly(time))));
        let (mut callbacks, mut permits, mut registrations) = (Vec::new(), Vec::new(), Vec::new());
        for mut layer in layers {
            let settings = &layer.settings;
            if let Some(token) = &settings.shutdown {
                end_signals.push(EndSignal::of_shutdown(token, settings, is_finite));
            }
            if let Some(max) = settings.max_lifetime {
                end_signals.push(EndSignal::MaxLifetime(Lifetime::with_jitter(max)));
            }
            if let Some(on_close) = settings.on_close.as_ref().filter(|on_close| !contains(&callbacks, on_close)) {
                callbacks.push(Arc::clone(on_close));
            }
            callbacks.extend(layer.on_close.take());
            permits.append(&mut layer.permits);
            registrations.append(&mut layer.registrations);
        }
        // Most streams have one of each, and a `Vec` reserves the memory of four.
        end_signals.shrink_to_fit();
        Some(Box::new(Self {
            began,
            events: 0,
            bytes: 0,
            heartbeats: 0,
            deferred_events: 0,
            reason: None,
            progress: Progress::Waiting,
            end_signals,
            registrations: Registrations::new(registrations),
            is_finite,
            on_close: Mutex::new(on_close.map(|(_, callback)| callback)),
            layers: callbacks.into_boxed_slice(),
            permits: permits.into_boxed_slice(),
            span,
            counts,
        }))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(event) = self.registrations.poll(cx) {
            return Poll::Ready(End::Requested(event));
        }
        let mut end = Poll::Pending;
        for signal in &mut self.end_signals {
            match signal.poll(self.is_finite, cx) {
                Poll::Pending => {}
                // After a shutdown, last items are sent. So the other ends have precedence.
                Poll::Ready(End::Shutdown) if end.is_ready() => {}
                Poll::Ready(End::Requested(event)) => return Poll::Ready(End::Requested(event)),
                ready => end = ready,
            }
        }
        end
    }

    fn end(&mut self, end: End, retry: Option<Duration>) -> FinalBytes {
        // If several layers are shut down, the layer that ends the stream has precedence.
        let mut signals = self.end_signals.iter().filter(|signal| signal.is_shut_down()).chain(&self.end_signals);
        let (reason, final_bytes) = match (end, signals.find_map(EndSignal::shut_down_by)) {
            (End::Requested(event), _) => (CloseReason::Ended, FinalBytes { event, ..FinalBytes::default() }),
            // A lifetime can end during a shutdown.
            (_, Some(settings)) => (CloseReason::Shutdown, settings.final_bytes(retry)),
            (End::MaxLifetime, None) => (CloseReason::MaxLifetime, FinalBytes::default()),
            (End::Shutdown, None) => (CloseReason::Shutdown, FinalBytes::default()),
        };
        self.set_reason(reason);
        final_bytes
    }

    fn is_shutting_down(&self) -> bool {
        !self.is_finite && self.end_signals.iter().any(|signal| signal.shut_down_by().is_some())
    }

    /// Returns whether a [`StreamRegistry`](crate::StreamRegistry) has closed the stream.
    fn is_closed(&self) -> bool {
        self.registrations.as_slice().iter().any(Registration::is_closed)
    }

    fn set_reason(&mut self, reason: CloseReason) {
        self.reason = Some(reason);
        // The reason of the end is final, so the signals of the layers are not needed any more.
        self.end_signals = Vec::new();
    }

    #[inline]
    fn record_events(&mut self, events: u64) {
        self.events += events;
        self.counts.events_sent(events);
    }

    /// Begins a poll: notes that the stream is being polled, and enters its tracing span until the
    /// returned value is dropped.
    #[inline]
    fn enter(&mut self) -> trace::Entered {
        if self.progress == Progress::Waiting {
            self.progress = Progress::Polling;
        }
        self.span.enter()
    }

    /// Ends a poll: records the number of bytes in its frame, and the end of the stream if
    /// `is_over` is set.
    #[inline]
    fn leave<E>(&mut self, polled: &Poll<NextFrame<E>>, is_over: bool) {
        if let Poll::Ready(Some(Ok(frame))) = polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.bytes += bytes;
            self.counts.bytes_sent(bytes);
            for registration in self.registrations.as_slice() {
                registration.record(self.events, self.bytes);
            }
        }
        if is_over {
            self.progress = Progress::Over;
        } else if self.progress == Progress::Polling {
            self.progress = Progress::Waiting;
        }
    }
}

/// Returns whether `callbacks`, the `on_close` callbacks of the layers of a stream, already contain
/// `on_close`. Clones of a layer share one callback, which runs once for each stream.
fn contains(callbacks: &[LayerOnClose], on_close: &LayerOnClose) -> bool {
    callbacks.iter().any(|other| Arc::ptr_eq(other, on_close))
}

impl Drop for StreamObserver {
    fn drop(&mut self) {
        let reason = match self.progress {
            Progress::Over => self.reason.unwrap_or(CloseReason::Finished),
            Progress::Polling => CloseReason::Error,
            Progress::Waiting => CloseReason::ClientGone,
        };
        let summary = StreamSummary {
            reason,
            duration: self.began.elapsed(),
            events: self.events,
            bytes: self.bytes,
            heartbeats: self.heartbeats,
        };
        // The stream releases its permits and leaves its registries before the callbacks run. So a
        // callback can find that this was the last stream of a user.
        drop(mem::take(&mut self.permits));
        self.registrations = Registrations::new(Vec::new());
        contain_panic("metrics observer", || self.counts.ended(&summary));
        contain_panic("tracing subscriber", || self.span.ended(&summary));
        let _entered = self.span.enter();
        if let Some(on_close) = self.on_close.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            contain_panic("on_close", || on_close(summary.clone()));
        }
        for on_close in &self.layers {
            contain_panic("on_close", || on_close(summary.clone()));
        }
    }
}
