//! Limits of open streams, and the response to a request over a limit.

use http::request::Parts;
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Selects the response to a request over a limit of open streams, such as a reconnect delay or a
/// status: see [`SseLayer::when_full`](crate::SseLayer::when_full).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::SseLayer;
///
/// // A public page. Browsers over the limit reconnect after 30 to 60 seconds.
/// let layer = SseLayer::new()
///     .max_streams(10_000)
///     .retry(Duration::from_secs(30))
///     .reconnect_jitter(Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overload {
    /// Responds with [`RetryLater`](Self::RetryLater) to a `GET` whose `Accept` header names
    /// `text/event-stream` and no other media type. Responds to all other requests with
    /// [`ServiceUnavailable`](Self::ServiceUnavailable). Ranges such as `*/*` and types with `q=0`
    /// do not count as other media types.
    ///
    /// An `EventSource` sends this header, and a status such as 503 stops it for good (HTML
    /// standard, §9.2.2).
    ///
    /// | client | `Accept` | gets | what it does |
    /// |---|---|---|---|
    /// | `EventSource` in Chromium, Firefox, WebKit, `undici`; `eventsource` (Node) | `text/event-stream` | `RetryLater` | reconnects |
    /// | MCP: the `GET` of the TypeScript SDK for messages of the server | `text/event-stream` | `RetryLater` | reconnects; it would not after a status |
    /// | `@microsoft/fetch-event-source`, by default | `text/event-stream` | `RetryLater` | reconnects if its `onclose` throws, and otherwise stops, as after every end of a stream |
    /// | SSE libraries that do not reconnect, such as `httpx-sse` for Python | `text/event-stream` | `RetryLater` | sees an empty stream; if that looks like a complete answer, set `ServiceUnavailable` |
    /// | MCP: calls; SDKs of language models | any, with `POST` | a status | reports the error, or repeats the request |
    /// | `fetch`, `curl`, health checks, without a header of their own | `*/*` | a status | sees the overload |
    ///
    /// A proxy does not see the overload in a `RetryLater`. If a load balancer repeats requests at
    /// another server after a 503, use [`ServiceUnavailable`](Self::ServiceUnavailable).
    #[default]
    Auto,
    /// `503 Service Unavailable`, or `429 Too Many Requests` over a [limit per
    /// key](crate::SseLayer::max_streams_per) such as a user, with `Retry-After`. An `EventSource`
    /// does not reconnect by itself after either status.
    ///
    /// A 503 lets load balancers detect the overload. A 429 does not make them eject the server:
    /// one client with too many streams is not a problem of the server.
    ServiceUnavailable,
    /// A stream that sends a reconnect delay and ends. An `EventSource` reconnects after the delay.
    /// A handler can respond in the same way, with the response [`RetryLater`](crate::RetryLater).
    RetryLater,
}

impl Overload {
    /// Returns whether the response is the stream of [`RetryLater`](Self::RetryLater), and not a
    /// status. `is_from_event_source` is set for a request like that of an `EventSource`.
    pub(crate) fn is_retry_later(self, is_from_event_source: bool) -> bool {
        match self {
            Self::Auto => is_from_event_source,
            Self::ServiceUnavailable => false,
            Self::RetryLater => true,
        }
    }
}

/// The keys of a request for the stream limits that count per key, in the order of these limits.
///
/// A single key, which is usual, needs no allocation: the keys are computed for every request, and
/// most requests are not for streams.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    first: Key,
    others: Box<[Key]>,
}

/// The hash of the key that a request has for one limit, such as the hash of the client's address.
/// `None` if the limit does not apply to the request. The hash has a random seed, so that clients
/// cannot choose keys that collide.
type Key = Option<u64>;

/// The limit that a request has reached: on all open streams, or on those of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitReached {
    /// The limit of the number of all open streams is reached.
    Total,
    /// The limit of open streams of one key, such as an address or a user, is reached.
    Key,
}

impl Keys {
    /// Reads the keys of a request, such as the client's address: one key for each of `limits` that
    /// counts streams per key, in the same order.
    pub(crate) fn of(parts: &Parts, limits: &[Limit]) -> Self {
        let mut keys = limits.iter().filter_map(Limit::keyed).map(|slots| (slots.key)(parts));
        Self { first: keys.next().unwrap_or_default(), others: keys.collect() }
    }

    /// Acquires one permit for each limit that applies to the request. Skips a limit if `is_held`
    /// returns `true` for it, because an inner layer already holds its permit. If a limit is
    /// reached, returns the kind of the limit, and releases the permits that were already acquired.
    pub(crate) fn acquire(
        &self,
        limits: &[Limit],
        is_held: impl Fn(&Limit) -> bool,
    ) -> Result<Vec<Permit>, LimitReached> {
        let mut keys = std::iter::once(&self.first).chain(&self.others);
        let mut permits = Vec::new();
        for limit in limits {
            let key = limit.keyed().and_then(|_| *keys.next()?);
            if !is_held(limit) {
                permits.extend(limit.try_acquire(key)?);
            }
        }
        Ok(permits)
    }
}

/// A limit of the number of streams that are open at the same time: of all streams together, or of
/// the streams of each key, such as a user or a client's address.
#[derive(Clone)]
pub(crate) enum Limit {
    All(Arc<Slots>),
    Per(Arc<KeyedSlots>),
}

pub(crate) struct Slots {
    max: usize,
    in_use: AtomicUsize,
}

pub(crate) struct KeyedSlots {
    max: usize,
    key: Box<dyn Fn(&Parts) -> Key + Send + Sync>,
    /// The number of open streams of each key, such as a user or a client's address. The map is
    /// indexed by the hash of the key.
    in_use: Mutex<HashMap<u64, usize>>,
}

impl Limit {
    pub(crate) fn of_all(max: usize) -> Self {
        Self::All(Arc::new(Slots { max, in_use: AtomicUsize::new(0) }))
    }

    pub(crate) fn per<K: Hash>(max: usize, key: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static) -> Self {
        let hasher = RandomState::new();
        let key = Box::new(move |parts: &Parts| key(parts).map(|key| hasher.hash_one(key)));
        Self::Per(Arc::new(KeyedSlots { max, key, in_use: Mutex::default() }))
    }

    /// Returns the state of a limit that counts streams per key: the number of streams of each key,
    /// and the function that reads the key of a request. Returns `None` for a limit of all streams
    /// together.
    pub(crate) fn keyed(&self) -> Option<&KeyedSlots> {
        match self {
            Self::All(_) => None,
            Self::Per(slots) => Some(slots),
        }
    }

    /// Acquires a permit for one stream. Returns `Ok(None)` if the limit counts streams per key,
    /// such as a user, and `key` is `None`. Returns `Err` if the limit is reached.
    fn try_acquire(&self, key: Key) -> Result<Option<Permit>, LimitReached> {
        match self {
            Self::All(slots) => {
                let one_more = |in_use| (in_use < slots.max).then_some(in_use + 1);
                let acquired = slots.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
                acquired.map(|_| Some(Permit::All(Arc::clone(slots)))).map_err(|_| LimitReached::Total)
            }
            Self::Per(slots) => {
                let Some(key) = key else { return Ok(None) };
                let mut in_use = slots.in_use.lock().unwrap_or_else(PoisonError::into_inner);
                let count = in_use.get(&key).copied().unwrap_or(0);
                if count >= slots.max {
                    return Err(LimitReached::Key);
                }
                in_use.insert(key, count + 1);
                Ok(Some(Permit::Per(Arc::clone(slots), key)))
            }
        }
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(slots) => f.debug_tuple("All").field(&slots.max).finish(),
            Self::Per(slots) => f.debug_tuple("Per").field(&slots.max).finish(),
        }
    }
}

/// A permit for one open stream under a limit. Dropping the permit allows another stream to begin.
pub(crate) enum Permit {
    All(Arc<Slots>),
    Per(Arc<KeyedSlots>, u64),
}

impl Permit {
    /// Returns whether this is a permit of `limit`. A limit and its clones count as one limit.
    pub(crate) fn is_of(&self, limit: &Limit) -> bool {
        match (self, limit) {
            (Self::All(slots), Limit::All(of)) => Arc::ptr_eq(slots, of),
            (Self::Per(slots, _), Limit::Per(of)) => Arc::ptr_eq(slots, of),
            _ => false,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self {
            Self::All(slots) => {
                slots.in_use.fetch_sub(1, Ordering::Relaxed);
            }
            Self::Per(slots, key) => {
                let mut in_use = slots.in_use.lock().unwrap_or_else(PoisonError::into_inner);
                match in_use.get_mut(key) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => {
                        in_use.remove(key);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn key_without_streams_takes_no_memory() {
        let limit = Limit::per(2, |parts| Some(parts.uri.clone()));
        let slots = limit.keyed().unwrap();
        let acquire = |n: usize| {
            let (parts, ()) = Request::builder().uri(format!("/{n}")).body(()).unwrap().into_parts();
            limit.try_acquire((slots.key)(&parts)).ok().flatten()
        };
        for n in 0..10_000 {
            let [first, second] = [acquire(n), acquire(n)];
            assert!(first.is_some() && second.is_some());
            // A rejected request leaves no entry behind either.
            assert!(acquire(n).is_none());
            drop(first);
            assert_eq!(slots.in_use.lock().unwrap().len(), 1);
            drop(second);
            assert!(slots.in_use.lock().unwrap().is_empty());
        }
        assert!(slots.in_use.lock().unwrap().capacity() < 100);
    }

    #[test]
    fn limit_of_zero_stores_no_key() {
        let limit = Limit::per(0, |_| Some(()));
        assert_eq!(limit.try_acquire(Some(7)).err(), Some(LimitReached::Key));
        let slots = limit.keyed().unwrap();
        assert!(slots.in_use.lock().unwrap().is_empty());
    }
}
