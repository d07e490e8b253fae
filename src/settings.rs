//! The settings of a layer, their defaults, and what they make of the end of a stream.

use crate::{Heartbeat, Overload, StreamSummary, event::retry_line, limit::Limit, random};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The settings of an [`SseLayer`](crate::SseLayer).
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
    /// The default reconnect delay, and the default jitter of clients that are disconnected
    /// together.
    const RETRY: Duration = Duration::from_secs(1);
    const JITTER: Duration = Duration::from_secs(5);

    /// Returns the reconnect delay, with jitter, of a client that is disconnected along with
    /// others.
    pub(crate) fn reconnect_delay(&self, own: Option<Duration>) -> Duration {
        own.or(self.retry).unwrap_or(Self::RETRY).saturating_add(self.jitter.mul_f64(random::fraction()))
    }

    /// Returns the final bytes of a stream at a shutdown.
    pub(crate) fn final_bytes(&self, retry: Option<Duration>) -> FinalBytes {
        FinalBytes { event: self.shutdown_event.clone(), retry: retry_line(self.reconnect_delay(retry)) }
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

/// The bytes that a stream sends before it is ended by a layer. Both parts can be empty.
#[derive(Default)]
pub(crate) struct FinalBytes {
    /// The shutdown event.
    pub(crate) event: Bytes,
    /// The line with the reconnect delay. It is legal in the middle of an event.
    pub(crate) retry: Bytes,
}

impl FinalBytes {
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.event.is_empty() { self.retry } else { [self.event, self.retry].concat().into() }
    }
}
