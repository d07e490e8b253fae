//! The limit of requests that an HTTP/2 client cancels before their responses.
//!
//! A client may have many requests open at the same time, but a request that it cancels no longer
//! counts. Without a further limit, a client that sends requests and cancels them at once starts
//! any number of handlers ("rapid reset", CVE-2023-44487). h2 only counts the cancelled requests
//! that hyper has not accepted yet. This server reads few bytes before hyper accepts their
//! requests, so h2 does not find enough of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The minimum of the limit: 100 cancelled requests per second. Otherwise, a connection that may
/// have only few open requests could cancel hardly any.
const MIN_LIMIT: u32 = 100;

/// The period of the limit of cancelled requests. In each period, a client may cancel as many
/// requests as it may have open at the same time. At once, it may cancel twice as many.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts the requests of an HTTP/2 connection that the client has cancelled before their
/// responses. The counter is atomic because an `Arc` shares it. Only the task of the connection
/// uses it.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancelled(Arc<AtomicU32>);

impl Cancelled {
    pub(super) fn add_request(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The rate limit of the requests that an HTTP/2 client cancels (generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Cancellations {
    cancelled: Cancelled,
    /// The time between two cancelled requests if the client cancels at the maximum rate.
    interval: Duration,
    /// The time when the client may again cancel the maximum number of requests at once. Each
    /// cancelled request moves this time into the future by `interval`.
    even_at: Instant,
}

impl Cancellations {
    /// Creates the limit of cancelled requests for a connection with at most `max_streams` open
    /// requests. The client may cancel `max_streams` requests per second, or 100 if that is more.
    /// At once, it may cancel twice as many.
    pub(super) fn new(max_streams: u32) -> Self {
        Self { cancelled: Cancelled::default(), interval: PERIOD / max_streams.max(MIN_LIMIT), even_at: Instant::now() }
    }

    pub(super) fn cancelled(&self) -> Cancelled {
        self.cancelled.clone()
    }

    /// Counts the requests that the client has cancelled since the previous call. Returns whether
    /// the client has exceeded the limit.
    pub(super) fn are_too_many(&mut self) -> bool {
        let cancelled = self.cancelled.0.swap(0, Ordering::Relaxed);
        if cancelled == 0 {
            return false;
        }
        let now = Instant::now();
        self.even_at = self.even_at.max(now) + self.interval * cancelled;
        self.even_at > now + 2 * PERIOD
    }
}
