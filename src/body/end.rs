//! The conditions that end a response stream early, such as a shutdown or a maximum lifetime.

use crate::{Event, random, registry::Registration, settings::Settings};
use bytes::Bytes;
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The future that a handler passes to [`SseStream::end_when`](crate::SseStream::end_when). When
/// the future completes, the stream sends the event that the future returns, if any, and ends.
pub(crate) type EndFuture = Pin<Box<dyn Future<Output = Option<Event>> + Send>>;

/// A condition that ends a response stream early, with its timer or future: a shutdown, a maximum
/// lifetime, or the `end_when` future of the handler.
pub(super) enum EndSignal {
    Shutdown(Pin<Box<WaitForCancellationFutureOwned>>, Arc<Settings>),
    /// The shutdown of a layer has begun. The stream still continues for the time in the
    /// `Lifetime`: the flush time of the layer, or the drain timeout if the stream ends by itself.
    /// The `Settings` are those of the layer.
    Drain(Lifetime, Arc<Settings>),
    /// The shutdown of a layer ends the stream now: the flush time or the drain timeout is over, or
    /// the shutdown began before the stream. The `Settings` are those of the layer.
    ShutDown(Arc<Settings>),
    MaxLifetime(Lifetime),
    /// The handler's `end_when` future, whose completion ends the stream. The mutex is never
    /// locked: it makes the body `Sync` although the future is not.
    When(Mutex<EndFuture>),
}

/// The reason why a stream ends early, with the last event if the application ends the stream.
pub(super) enum End {
    /// A layer is shut down, and its flush time or drain timeout is over. Or the hub of the stream
    /// is shut down. The stream first sends the items that are ready.
    Shutdown,
    /// The stream has reached its maximum lifetime.
    MaxLifetime,
    /// The application ends the stream, through the handler's `end_when` or a stream registry. The
    /// stream sends these bytes, an event, before its end. They are empty if there is no such
    /// event.
    Requested(Bytes),
}

/// A time after which a stream ends, and its timer. The timer is created at the first poll, because
/// creating a timer outside of a tokio runtime panics.
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
    /// open streams by key. The result is the event to send before the end of the response, or
    /// empty bytes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
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
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    }
}

impl EndSignal {
    /// Creates the condition for the shutdown of a layer, which ends a stream. If the shutdown has
    /// already begun, the stream has no flush time.
    pub(super) fn of_shutdown(shutdown: &CancellationToken, settings: &Arc<Settings>, is_finite: bool) -> Self {
        let settings = Arc::clone(settings);
        if shutdown.is_cancelled() && !(is_finite && settings.drain_timeout.is_some()) {
            return Self::ShutDown(settings);
        }
        // Each stream gets a child token. Every poll locks its token, and the lock of a shared
        // token would be contended.
        Self::Shutdown(Box::pin(shutdown.child_token().cancelled_owned()), settings)
    }

    /// Returns ready when this condition ends the stream. A shutdown ends the stream after the
    /// layer's flush time. If the handler or a layer has declared that the stream ends by itself
    /// (`is_finite`), the drain timeout takes the place of the flush time.
    pub(super) fn poll(&mut self, is_finite: bool, cx: &mut Context<'_>) -> Poll<End> {
        match self {
            Self::Shutdown(shutdown, settings) => {
                ready!(shutdown.as_mut().poll(cx));
                let settings = Arc::clone(settings);
                let time = settings.drain_timeout.filter(|_| is_finite).unwrap_or_else(|| settings.flush_time());
                *self = match time {
                    Duration::ZERO => Self::ShutDown(settings),
                    time => Self::Drain(Lifetime::exactly(time), settings),
                };
                self.poll(is_finite, cx)
            }
            Self::Drain(timer, settings) => {
                ready!(timer.poll(cx));
                *self = Self::ShutDown(Arc::clone(settings));
                Poll::Ready(End::Shutdown)
            }
            Self::ShutDown(_) => Poll::Ready(End::Shutdown),
            Self::MaxLifetime(timer) => timer.poll(cx).map(|()| End::MaxLifetime),
            Self::When(future) => {
                let future = future.get_mut().unwrap_or_else(PoisonError::into_inner);
                let event = ready!(future.as_mut().poll(cx));
                Poll::Ready(End::Requested(event.map(Event::encode).unwrap_or_default()))
            }
        }
    }

    /// Returns the settings of the layer if its shutdown has begun, even if no poll of the stream
    /// has noticed the shutdown yet.
    pub(super) fn shut_down_by(&self) -> Option<&Settings> {
        match self {
            Self::Shutdown(_, settings) => {
                Some(&**settings).filter(|it| it.shutdown.as_ref().is_some_and(CancellationToken::is_cancelled))
            }
            Self::Drain(_, settings) | Self::ShutDown(settings) => Some(settings),
            Self::MaxLifetime(_) | Self::When(_) => None,
        }
    }

    /// Returns `true` if this condition is the shutdown of a layer, and the stream gets no more
    /// time.
    pub(super) fn is_shut_down(&self) -> bool {
        matches!(self, Self::ShutDown(_))
    }
}
