//! The conditions that end a response stream early, such as a shutdown or a maximum lifetime.

use crate::{CloseReason, Event, random, registry::Registration, settings::FinalBytes, settings::Settings};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// The future that a handler passes to [`SseStream::end_when`](crate::SseStream::end_when). When
/// the future completes, the stream sends the event that the future returns, if any, and ends.
pub(crate) type EndFuture = Pin<Box<dyn Future<Output = Option<Event>> + Send>>;

/// A condition that ends a response stream early: a shutdown, a maximum lifetime, or the `end_when`
/// future of the handler.
pub(super) enum EndSignal {
    Shutdown(Pin<Box<WaitForCancellationFutureOwned>>, Arc<Settings>),
    /// The shutdown of a layer has begun, but the stream may continue for the drain timeout,
    /// because the handler has declared that the stream ends by itself. The `Lifetime` is this
    /// timeout: when it is over, the stream is ended. The `Settings` are those of the layer.
    Drain(Lifetime, Arc<Settings>),
    /// The shutdown of a layer ends the stream now. The `Settings` are those of the layer.
    ShutDown(Arc<Settings>),
    MaxLifetime(Lifetime),
    /// The handler's `end_when` future, whose completion ends the stream. The mutex is never
    /// locked: it makes the body `Sync` although the future is not.
    When(Mutex<EndFuture>),
}

/// The way in which a stream ends early.
pub(super) enum End {
    /// A layer is shut down. The stream first sends the events that are ready.
    Shutdown,
    /// The stream sends these bytes, and no further event.
    Now(CloseReason, FinalBytes),
}

/// A time span after which a stream ends, and the timer that measures it. The timer is created at
/// the first poll, because creating a timer outside of a tokio runtime panics.
pub(super) struct Lifetime {
    time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Lifetime {
    pub(super) fn exactly(time: Duration) -> Self {
        Self { time, timer: None }
    }

    /// Creates a lifetime of random length, between 90 % and 110 % of `time`. So streams that began
    /// together do not end together.
    pub(super) fn with_jitter(time: Duration) -> Self {
        let seconds = time.as_secs_f64() * (0.9 + 0.2 * random::fraction());
        Self::exactly(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.time)));
        timer.as_mut().poll(cx)
    }
}

/// The registrations of one stream in [`StreamRegistry`](crate::StreamRegistry)s, the sets of
/// streams by key, such as a user. A registry can close each stream that is registered in it.
pub(super) struct Registrations {
    list: List,
    /// A copy of the waker that the stream registries wake when they close the stream. If the next
    /// poll has the same waker, the body does not pass the waker to the registries again. `None`
    /// before the first poll of the body.
    waker: Option<Waker>,
}

/// The registrations of one stream in stream registries. Most streams are in a single registry. The
/// variant `One` stores their registration without allocating a `Vec`.
enum List {
    One(Registration),
    Several(Vec<Registration>),
}

impl Registrations {
    pub(super) fn new(mut registrations: Vec<Registration>) -> Self {
        let list = match (registrations.len(), registrations.pop()) {
            (1, Some(only)) => List::One(only),
            (_, last) => {
                registrations.extend(last);
                List::Several(registrations)
            }
        };
        Self { list, waker: None }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[Registration] {
        match &self.list {
            List::One(only) => std::slice::from_ref(only),
            List::Several(registrations) => registrations,
        }
    }

    /// Returns ready when the application has closed the stream through a stream registry, a set of
    /// open streams by key. The result is the bytes to send before the end of the response.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<FinalBytes> {
        if self.as_slice().is_empty() {
            return Poll::Pending;
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.as_slice().iter().for_each(|registration| registration.set_waker(cx.waker()));
            self.waker = Some(cx.waker().clone());
        }
        // Looks for a closed registration after the waker was stored. So a call that closes the
        // stream in the meantime is not missed.
        match self.as_slice().iter().find_map(Registration::closing_event) {
            Some(event) => Poll::Ready(FinalBytes { event, ..FinalBytes::default() }),
            None => Poll::Pending,
        }
    }
}

impl EndSignal {
    /// Returns ready when the stream has to end. If the handler has declared that the stream ends
    /// by itself (`is_finite`), a shutdown ends the stream only after the layer's drain timeout.
    /// Without a drain timeout, the shutdown ends the stream at once.
    pub(super) fn poll(&mut self, is_finite: bool, cx: &mut Context<'_>) -> Poll<End> {
        match self {
            Self::Shutdown(shutdown, settings) => {
                ready!(shutdown.as_mut().poll(cx));
                let settings = Arc::clone(settings);
                *self = match settings.drain_timeout.filter(|_| is_finite) {
                    Some(time) => Self::Drain(Lifetime::exactly(time), settings),
                    None => Self::ShutDown(settings),
                };
                self.poll(is_finite, cx)
            }
            Self::Drain(timer, settings) => {
                ready!(timer.poll(cx));
                *self = Self::ShutDown(Arc::clone(settings));
                Poll::Ready(End::Shutdown)
            }
            Self::ShutDown(_) => Poll::Ready(End::Shutdown),
            Self::MaxLifetime(timer) => {
                timer.poll(cx).map(|()| End::Now(CloseReason::MaxLifetime, FinalBytes::default()))
            }
            Self::When(future) => {
                let future = future.get_mut().unwrap_or_else(PoisonError::into_inner);
                future.as_mut().poll(cx).map(|event| {
                    let event = event.map(Event::encode).unwrap_or_default();
                    End::Now(CloseReason::Ended, FinalBytes { event, ..FinalBytes::default() })
                })
            }
        }
    }

    /// Returns the settings of the layer whose shutdown ends the stream. `None` if this is not the
    /// signal of such a layer.
    pub(super) fn shut_down_by(&self) -> Option<&Settings> {
        match self {
            Self::ShutDown(settings) => Some(settings),
            _ => None,
        }
    }
}
