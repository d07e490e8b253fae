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

/// The response to a request over a stream limit: see
/// [`SseLayer::when_full`](crate::SseLayer::when_full).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Overload, SseLayer};
///
/// // A public page. Browsers over the limit reconnect after 30 to 60 seconds.
/// let layer = SseLayer::new()
///     .max_streams(10_000)
///     .when_full(Overload::RetryLater)
///     .retry(Duration::from_secs(30))
///     .reconnect_jitter(Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overload {
    /// `503 Service Unavailable` with `Retry-After`. Load balancers see the overload. An
    /// `EventSource` does not reconnect by itself.
    #[default]
    ServiceUnavailable,
    /// A stream that sends a reconnect delay and ends. An `EventSource` reconnects after the delay.
    RetryLater,
}

/// The keys of a request, one for each limit that has keys.
///
/// The usual single key needs no allocation. That matters because the keys are taken from every
/// request, and most requests are not for streams.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    first: Option<u64>,
    others: Box<[u64]>,
}

impl Keys {
    /// Reads the keys, in the order of the limits that have keys.
    pub(crate) fn of(parts: &Parts, limits: &[Limit]) -> Self {
        let mut keys = limits.iter().filter_map(|limit| limit.key(parts));
        Self { first: keys.next(), others: keys.collect() }
    }

    /// Acquires a permit of each limit, or returns `None` if one of the limits is reached.
    pub(crate) fn acquire(&self, limits: &[Limit]) -> Option<Vec<Permit>> {
        let mut keys = self.first.iter().chain(&self.others);
        limits.iter().map(|limit| limit.try_acquire(&mut keys)).collect()
    }
}

/// A limit of the streams that are open at the same time: of all streams, or per key.
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
    key: Box<dyn Fn(&Parts) -> u64 + Send + Sync>,
    /// The number of open streams by the hash of their key. The hash has a random seed, so that
    /// clients cannot choose keys that collide.
    in_use: Mutex<HashMap<u64, usize>>,
}

impl Limit {
    pub(crate) fn of_all(max: usize) -> Self {
        Self::All(Arc::new(Slots { max, in_use: AtomicUsize::new(0) }))
    }

    pub(crate) fn per<K: Hash>(max: usize, key: impl Fn(&Parts) -> K + Send + Sync + 'static) -> Self {
        let hasher = RandomState::new();
        let key = Box::new(move |parts: &Parts| hasher.hash_one(key(parts)));
        Self::Per(Arc::new(KeyedSlots { max, key, in_use: Mutex::default() }))
    }

    /// Returns the key of a request, if this limit has keys.
    fn key(&self, parts: &Parts) -> Option<u64> {
        match self {
            Self::All(_) => None,
            Self::Per(slots) => Some((slots.key)(parts)),
        }
    }

    /// Acquires a permit, unless the limit is reached. A limit that has keys takes the next one of
    /// `keys`.
    fn try_acquire<'a>(&self, keys: &mut impl Iterator<Item = &'a u64>) -> Option<Permit> {
        match self {
            Self::All(slots) => {
                let one_more = |in_use| (in_use < slots.max).then_some(in_use + 1);
                slots.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
                Some(Permit::All(Arc::clone(slots)))
            }
            Self::Per(slots) => {
                let key = *keys.next()?;
                let mut in_use = slots.in_use.lock().unwrap_or_else(PoisonError::into_inner);
                let count = in_use.get(&key).copied().unwrap_or(0);
                if count >= slots.max {
                    return None;
                }
                in_use.insert(key, count + 1);
                Some(Permit::Per(Arc::clone(slots), key))
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

/// The permit of one stream, released when it is dropped.
pub(crate) enum Permit {
    All(Arc<Slots>),
    Per(Arc<KeyedSlots>, u64),
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
        let limit = Limit::per(2, |parts| parts.uri.clone());
        let Limit::Per(slots) = &limit else { panic!("it has keys") };
        let acquire = |n: usize| {
            let (parts, ()) = Request::builder().uri(format!("/{n}")).body(()).unwrap().into_parts();
            limit.try_acquire(&mut [limit.key(&parts).unwrap()].iter())
        };
        for n in 0..10_000 {
            let [first, second] = [acquire(n), acquire(n)];
            assert!(first.is_some() && second.is_some());
            // A rejected request stores nothing either.
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
        let limit = Limit::per(0, |_| ());
        assert!(limit.try_acquire(&mut [7].iter()).is_none());
        let Limit::Per(slots) = limit else { panic!("it has keys") };
        assert!(slots.in_use.lock().unwrap().is_empty());
    }
}
