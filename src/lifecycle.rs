//! How streams end, what is told of it, and how many there can be.

use crate::{body::Heartbeat, event::retry_line, random, trace};
use bytes::Bytes;
use http::request::Parts;
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a stream was, once it is over: see [`SseStream::on_close`](crate::SseStream::on_close) and
/// [`SseLayer::on_close`](crate::SseLayer::on_close).
///
/// # Examples
///
/// ```
/// use tower_sse::{CloseReason, SseLayer};
///
/// let layer = SseLayer::new().on_close(|stream| match stream.reason {
///     CloseReason::Error => eprintln!("a stream failed after {} events", stream.events),
///     CloseReason::ClientGone if stream.events == 0 => eprintln!("nobody waited {:?} for an event", stream.duration),
///     _ => {}
/// });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// How it ended.
    pub reason: CloseReason,
    /// How long it was open: from its response to the moment at which the transport let go of it.
    pub duration: Duration,
    /// How many events were handed to the transport, the last one of `end_with`, `on_error` or a shutdown event included. Heartbeats
    /// are not among them, nor is the place with which the stream of a hub begins. Of a foreign stream these are
    /// the blank lines that end one; of one that is encoded there are none.
    pub events: u64,
    /// How many bytes were handed to the transport, heartbeats included.
    pub bytes: u64,
    /// How many heartbeats there were among these bytes, with the first byte of a stream that has no event yet.
    pub heartbeats: u64,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// By itself: its last event was handed to the transport.
    Finished,
    /// With an error of its own, or with a panic.
    Error,
    /// The transport let go of it before its end: the client has closed the connection, or could not be reached.
    ClientGone,
    /// The [token](crate::SseLayer::shutdown) was cancelled, or the hub of its subscription was shut down.
    Shutdown,
    /// Its [time](crate::SseLayer::max_lifetime) was up.
    MaxLifetime,
    /// The client was too slow for its subscription to a hub, which [disconnects](crate::hub::LagPolicy::Disconnect) such
    /// clients.
    Lagged,
}

impl CloseReason {
    /// As a label of a metric: `finished`, `error`, `client_gone`, `shutdown`, `max_lifetime` or `lagged`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Error => "error",
            Self::ClientGone => "client_gone",
            Self::Shutdown => "shutdown",
            Self::MaxLifetime => "max_lifetime",
            Self::Lagged => "lagged",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a client is answered that would be one too many: see [`SseLayer::when_full`](crate::SseLayer::when_full).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Overload, SseLayer};
///
/// // A public page, where nobody is to look at a dead stream: those who are too many come back in 30 to 60 seconds.
/// let layer = SseLayer::new()
///     .max_streams(10_000)
///     .when_full(Overload::RetryLater)
///     .retry(Duration::from_secs(30))
///     .reconnect_jitter(Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overload {
    /// `503 Service Unavailable` with `Retry-After`: honest to load balancers, and final to an `EventSource`, which does not
    /// come back after it by itself.
    #[default]
    ServiceUnavailable,
    /// A stream that says when to reconnect, and ends: an `EventSource` comes back then.
    RetryLater,
}

/// What a layer sets for the streams that pass through it.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) retry: Option<Duration>,
    pub(crate) shutdown: Option<CancellationToken>,
    pub(crate) shutdown_event: Bytes,
    pub(crate) jitter: Duration,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) when_full: Overload,
    pub(crate) on_close: Option<Arc<dyn Fn(StreamSummary) + Send + Sync>>,
}

impl Settings {
    /// The default reconnect delay, and the default jitter of clients that are disconnected together.
    const RETRY: Duration = Duration::from_secs(1);
    const JITTER: Duration = Duration::from_secs(5);

    /// When a client is to come back that is sent away now, with others.
    pub(crate) fn retry_later(&self, own: Option<Duration>) -> Duration {
        own.or(self.retry).unwrap_or(Self::RETRY).saturating_add(self.jitter.mul_f64(random::part()))
    }

    /// What a stream says last before a shutdown.
    pub(crate) fn last_words(&self, retry: Option<Duration>) -> LastWords {
        LastWords { shutdown_event: self.shutdown_event.clone(), retry: retry_line(self.retry_later(retry)) }
    }

    /// The places that a stream takes, or `None` if one of them is taken.
    pub(crate) fn admit(&self, keys: &Keys) -> Option<Vec<Permit>> {
        let mut keys = keys.first.iter().chain(&keys.others);
        self.limits.iter().map(|limit| limit.take(&mut keys)).collect()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Some(Heartbeat::default()),
            retry: None,
            shutdown: None,
            shutdown_event: Bytes::new(),
            jitter: Self::JITTER,
            max_lifetime: None,
            limits: Vec::new(),
            when_full: Overload::default(),
            on_close: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("heartbeat", &self.heartbeat)
            .field("retry", &self.retry)
            .field("shutdown", &self.shutdown.is_some())
            .field("max_lifetime", &self.max_lifetime)
            .field("limits", &self.limits)
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
    }
}

/// What goes out before an end from outside. Empty where there is nothing to say.
#[derive(Default)]
pub(crate) struct LastWords {
    /// An event.
    pub(crate) shutdown_event: Bytes,
    /// A line, which can stand in the middle of an event, too.
    pub(crate) retry: Bytes,
}

impl LastWords {
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.shutdown_event.is_empty() { self.retry } else { [self.shutdown_event, self.retry].concat().into() }
    }
}

/// By which keys a request's stream is counted.
///
/// One is usual, and kept without an allocation: every request has it, and most are not for streams.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    first: Option<u64>,
    others: Box<[u64]>,
}

impl Keys {
    /// In the order of the limits that have keys.
    pub(crate) fn of(parts: &Parts, limits: &[Limit]) -> Self {
        let mut keys = limits.iter().filter_map(|limit| limit.key(parts));
        Self { first: keys.next(), others: keys.collect() }
    }
}

/// A number of streams that can be open at the same time: of all, or of each key.
#[derive(Clone)]
pub(crate) enum Limit {
    All(Arc<Places>),
    Per(Arc<KeyedPlaces>),
}

pub(crate) struct Places {
    max: usize,
    taken: AtomicUsize,
}

pub(crate) struct KeyedPlaces {
    max: usize,
    key: Box<dyn Fn(&Parts) -> u64 + Send + Sync>,
    /// By the hash of the key, with keys of the hash that nobody knows.
    taken: Mutex<HashMap<u64, usize>>,
}

impl Limit {
    pub(crate) fn of_all(max: usize) -> Self {
        Self::All(Arc::new(Places { max, taken: AtomicUsize::new(0) }))
    }

    pub(crate) fn per<K: Hash>(max: usize, key: impl Fn(&Parts) -> K + Send + Sync + 'static) -> Self {
        let hasher = RandomState::new();
        let key = Box::new(move |parts: &Parts| hasher.hash_one(key(parts)));
        Self::Per(Arc::new(KeyedPlaces { max, key, taken: Mutex::default() }))
    }

    /// The key of a request, if this has keys.
    fn key(&self, parts: &Parts) -> Option<u64> {
        match self {
            Self::All(_) => None,
            Self::Per(places) => Some((places.key)(parts)),
        }
    }

    /// A place, if there is one. Those with keys take theirs from `keys`.
    fn take<'a>(&self, keys: &mut impl Iterator<Item = &'a u64>) -> Option<Permit> {
        match self {
            Self::All(places) => {
                let one_more = |taken| (taken < places.max).then_some(taken + 1);
                places.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
                Some(Permit::All(Arc::clone(places)))
            }
            Self::Per(places) => {
                let key = *keys.next()?;
                let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
                let count = taken.get(&key).copied().unwrap_or(0);
                if count >= places.max {
                    return None;
                }
                taken.insert(key, count + 1);
                Some(Permit::Per(Arc::clone(places), key))
            }
        }
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(places) => f.debug_tuple("All").field(&places.max).finish(),
            Self::Per(places) => f.debug_tuple("Per").field(&places.max).finish(),
        }
    }
}

/// The place of one stream, free again when this is dropped.
pub(crate) enum Permit {
    All(Arc<Places>),
    Per(Arc<KeyedPlaces>, u64),
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self {
            Self::All(places) => {
                places.taken.fetch_sub(1, Ordering::Relaxed);
            }
            Self::Per(places, key) => {
                let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
                match taken.get_mut(key) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => {
                        taken.remove(key);
                    }
                }
            }
        }
    }
}

/// A layer through which a stream has passed.
pub(crate) struct Passage {
    pub(crate) settings: Arc<Settings>,
    pub(crate) permits: Vec<Permit>,
    pub(crate) request: trace::Request,
    /// When that was. `None` where nobody will ask.
    pub(crate) at: Option<Instant>,
}

impl Passage {
    pub(crate) fn through(settings: &Arc<Settings>, permits: Vec<Permit>, request: trace::Request) -> Self {
        let at = settings.on_close.is_some().then(Instant::now);
        Self { settings: Arc::clone(settings), permits, request, at }
    }

    /// Whether the layer wants to end the stream, or to know when it has ended.
    pub(crate) fn is_of_interest(&self) -> bool {
        let Settings { shutdown, max_lifetime, on_close, .. } = &*self.settings;
        shutdown.is_some() || max_lifetime.is_some() || on_close.is_some() || !self.permits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_key_that_has_no_stream_any_more_takes_no_memory() {
        let limit = Limit::per(2, |parts| parts.uri.clone());
        let Limit::Per(places) = &limit else { panic!("it has keys") };
        let take = |n: usize| {
            let (parts, ()) = Request::builder().uri(format!("/{n}")).body(()).unwrap().into_parts();
            limit.take(&mut [limit.key(&parts).unwrap()].iter())
        };
        for n in 0..10_000 {
            let [first, second] = [take(n), take(n)];
            assert!(first.is_some() && second.is_some());
            // One that is refused leaves nothing behind either.
            assert!(take(n).is_none());
            drop(first);
            assert_eq!(places.taken.lock().unwrap().len(), 1);
            drop(second);
            assert!(places.taken.lock().unwrap().is_empty());
        }
        assert!(places.taken.lock().unwrap().capacity() < 100);
    }

    #[test]
    fn places_for_nobody_leave_no_key_behind() {
        let limit = Limit::per(0, |_| ());
        assert!(limit.take(&mut [7].iter()).is_none());
        let Limit::Per(places) = limit else { panic!("it has keys") };
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
