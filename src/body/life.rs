//! What ends a stream from outside, and what is told when it has ended. Only for streams of which somebody wants to know.

use crate::{
    BoxError,
    lifecycle::{CloseReason, LastWords, Passage, Permit, Settings, StreamSummary},
    metrics, random, trace,
};
use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

pub(super) type OnClose = Box<dyn FnOnce(StreamSummary) + Send>;

/// What happens to a stream from its response to its end, which is when this is dropped.
pub(super) struct Life {
    began: Instant,
    ends: Vec<End>,
    events: u64,
    bytes: u64,
    heartbeats: u64,
    /// Events that wait for the next frame.
    pub(super) held_events: u64,
    /// How it ends, once that is clear, and whether all that goes before the end was handed out.
    reason: CloseReason,
    is_over: bool,
    /// It is being polled. What is left so has panicked.
    pub(super) is_polled: bool,
    /// A mutex that is never locked: it makes a body `Sync` whose stream is.
    own: Mutex<Option<OnClose>>,
    layers: Vec<Arc<Settings>>,
    permits: Vec<Permit>,
    span: trace::Span,
    counts: metrics::Stream,
}

enum End {
    Shutdown(Pin<Box<WaitForCancellationFutureOwned>>, Arc<Settings>),
    /// The timer is made when it is asked for the first time: one that never is may be dropped outside of any runtime.
    MaxLifetime(Duration, Option<Pin<Box<Sleep>>>),
}

impl Life {
    /// Of a stream that has passed these layers, and that the transport asks for now. `None` if there is nothing to do for
    /// it.
    pub(super) fn begin(
        own: Option<(Instant, OnClose)>,
        parent: &trace::Parent,
        passages: &mut [Passage],
    ) -> Option<Box<Self>> {
        let span = trace::Span::begin(parent, passages.iter().map(|passage| &passage.request));
        Self::new(own, passages, span, metrics::Stream::begin())
    }

    /// Of a stream that the transport has let go of without asking for it: it was none, but those who wait for its end are
    /// told.
    pub(super) fn unasked(own: Option<(Instant, OnClose)>, passages: &mut [Passage]) -> Option<Box<Self>> {
        Self::new(own, passages, trace::Span::none(), metrics::Stream::none())
    }

    fn new(
        own: Option<(Instant, OnClose)>,
        passages: &mut [Passage],
        span: trace::Span,
        counts: metrics::Stream,
    ) -> Option<Box<Self>> {
        let is_of_interest = passages.iter().any(Passage::is_of_interest);
        if own.is_none() && !span.is_on() && !counts.is_on() && !is_of_interest {
            return None;
        }
        let began = own.as_ref().map(|(at, _)| *at);
        let began = began.or_else(|| passages.iter().find_map(|passage| passage.at)).unwrap_or_else(Instant::now);
        let mut life = Self {
            began,
            ends: Vec::new(),
            events: 0,
            bytes: 0,
            heartbeats: 0,
            held_events: 0,
            reason: CloseReason::ClientGone,
            is_over: false,
            is_polled: false,
            own: Mutex::new(own.map(|(_, on_close)| on_close)),
            layers: Vec::new(),
            permits: Vec::new(),
            span,
            counts,
        };
        for passage in passages {
            let settings = &passage.settings;
            if let Some(token) = &settings.shutdown {
                // A token of its own: it is asked at every poll, and one that all streams ask is a lock they contend for.
                let token = token.child_token();
                life.ends.push(End::Shutdown(Box::pin(token.cancelled_owned()), Arc::clone(settings)));
            }
            if let Some(max) = settings.max_lifetime {
                life.ends.push(End::MaxLifetime(around(max), None));
            }
            if settings.on_close.is_some() {
                life.layers.push(Arc::clone(settings));
            }
            life.permits.append(&mut passage.permits);
        }
        Some(Box::new(life))
    }

    /// Ready when the stream is to end now: with what it says last.
    pub(super) fn poll_end(&mut self, retry: Option<Duration>, cx: &mut Context<'_>) -> Poll<LastWords> {
        for end in &mut self.ends {
            match end {
                End::Shutdown(shutdown, settings) => {
                    if shutdown.as_mut().poll(cx).is_ready() {
                        let last_words = settings.last_words(retry);
                        self.ends(CloseReason::Shutdown);
                        return Poll::Ready(last_words);
                    }
                }
                End::MaxLifetime(time, timer) => {
                    let timer = timer.get_or_insert_with(|| Box::pin(sleep(*time)));
                    if timer.as_mut().poll(cx).is_ready() {
                        self.ends(CloseReason::MaxLifetime);
                        return Poll::Ready(LastWords::default());
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Its span is the current one until what this returns is dropped.
    #[inline]
    pub(super) fn enter(&self) -> trace::Entered {
        self.span.enter()
    }

    /// So much goes to the transport now.
    #[inline]
    pub(super) fn sends(&mut self, events: u64, bytes: usize) {
        self.events += events;
        self.bytes += bytes as u64;
        self.counts.sent(events, bytes as u64);
    }

    /// Something of what goes there now is a heartbeat.
    pub(super) fn beats(&mut self) {
        self.heartbeats += 1;
        self.counts.beat();
    }

    /// It ends in this way, when all that goes before was handed out.
    pub(super) fn ends(&mut self, reason: CloseReason) {
        self.reason = reason;
        // Nothing else ends it any more.
        self.ends = Vec::new();
    }

    /// All that goes before the end was handed out.
    pub(super) fn is_over(&mut self) {
        self.is_over = true;
        if self.reason == CloseReason::ClientGone {
            self.reason = CloseReason::Finished;
        }
    }
}

/// How a stream ends with this error.
pub(super) fn reason_of(error: &BoxError) -> CloseReason {
    #[cfg(feature = "hub")]
    if let Some(error) = error.downcast_ref() {
        return match error {
            crate::hub::SubscriptionError::Lagged => CloseReason::Lagged,
            crate::hub::SubscriptionError::Shutdown => CloseReason::Shutdown,
        };
    }
    let _any_other = error;
    CloseReason::Error
}

/// A time within 10 % of this one, so that streams that began together do not end together.
fn around(time: Duration) -> Duration {
    let seconds = time.as_secs_f64() * (0.9 + 0.2 * random::part());
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Drop for Life {
    fn drop(&mut self) {
        let reason = match self.is_over {
            true => self.reason,
            false if self.is_polled => CloseReason::Error,
            false => CloseReason::ClientGone,
        };
        let summary = StreamSummary {
            reason,
            duration: self.began.elapsed(),
            events: self.events,
            bytes: self.bytes,
            heartbeats: self.heartbeats,
        };
        // Before anybody is told, so that whoever is told finds the place free.
        drop(mem::take(&mut self.permits));
        self.counts.ended(&summary);
        self.span.ended(&summary);
        let _entered = self.span.enter();
        let _after_its_own = Tell(&self.layers, &summary);
        if let Some(on_close) = self.own.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            on_close(summary.clone());
        }
    }
}

/// Tells these layers when it is dropped: also if what is told before them panics.
struct Tell<'a>(&'a [Arc<Settings>], &'a StreamSummary);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        let Some((settings, outer)) = self.0.split_first() else { return };
        let _after_it = Tell(outer, self.1);
        if let Some(on_close) = &settings.on_close {
            on_close(self.1.clone());
        }
    }
}
