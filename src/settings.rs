//! The settings of a layer, and their defaults. Also the last bytes of a stream that a layer or the
//! handler ends: a reconnect delay and a last event.

use crate::{
    Overload, StreamSummary, event::retry_line, heartbeat::HeartbeatSetting, limit::Limit, random,
    registry::Registration,
};
use bytes::Bytes;
use http::request::Parts;
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The settings of an [`SseLayer`](crate::SseLayer), such as its heartbeat and its limits. Most of
/// them are `None` if the layer has not set them.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) heartbeat: HeartbeatSetting,
    pub(crate) retry: Option<Duration>,
    pub(crate) shutdown: Option<CancellationToken>,
    pub(crate) shutdown_event: Option<Bytes>,
    pub(crate) jitter: Option<Duration>,
    pub(crate) max_lifetime: Option<Duration>,
    /// The limits of open streams. The limits per key come before the limits of all streams. A
    /// request over the limit of its key thus never takes, even for a moment, the last permit of
    /// all streams, which another client may need.
    pub(crate) limits: Vec<Limit>,
    pub(crate) when_full: Option<Overload>,
    pub(crate) flush_time: Option<Duration>,
    pub(crate) drain_timeout: Option<Duration>,
    pub(crate) is_finite: bool,
    pub(crate) registrars: Vec<Registrar>,
    pub(crate) on_close: Option<LayerOnClose>,
    pub(crate) on_close_with: Option<OnCloseWith>,
}

/// A callback of a layer that gets the summary of a stream when the stream ends.
pub(crate) type LayerOnClose = Arc<dyn Fn(StreamSummary) + Send + Sync>;

/// The `on_close_with` setting of a layer: a function that reads a value from the head of a
/// request. It returns a callback for the end of the stream of this request, which passes the value
/// to the application.
pub(crate) type OnCloseWith = Arc<dyn Fn(&Parts) -> LayerOnClose + Send + Sync>;

/// A function that registers the stream of a request in a
/// [`StreamRegistry`](crate::StreamRegistry), under the key that it reads from the head of the
/// request. It returns `None` if the request has no key.
pub(crate) type Registrar = Arc<dyn Fn(&Parts) -> Option<Registration> + Send + Sync>;

impl Settings {
    /// The default reconnect delay, one second, of a client whose stream ends at a shutdown, or
    /// whose request is rejected.
    const RETRY: Duration = Duration::from_secs(1);
    /// The default jitter, 5 seconds: the maximum of the random time that is added to the reconnect
    /// delay of a client whose stream ends at a shutdown, or whose request is rejected.
    const JITTER: Duration = Duration::from_secs(5);
    /// The default flush time, 250 milliseconds. Streams continue for this time after a shutdown
    /// has begun.
    const FLUSH_TIME: Duration = Duration::from_millis(250);

    /// Returns whether a layer with these settings needs the head of every request. The layer reads
    /// the keys for its limits and stream registries, and the value of `on_close_with`, from the
    /// head.
    pub(crate) fn reads_head(&self) -> bool {
        !self.limits.is_empty() || !self.registrars.is_empty() || self.on_close_with.is_some()
    }

    pub(crate) fn add_limit(&mut self, limit: Limit) {
        self.limits.push(limit);
        self.limits.sort_by_key(|limit| limit.keyed().is_none());
    }

    /// Copies the values that this layer leaves unset from `outer`, the settings of an outer layer.
    /// Settings that each layer applies by itself, such as limits, are not copied. Returns `true`
    /// if a value was copied.
    pub(crate) fn inherit(&mut self, outer: &Self) -> bool {
        fn fill<T: Clone>(own: &mut Option<T>, outer: &Option<T>) -> bool {
            let is_filled = own.is_none() && outer.is_some();
            if is_filled {
                own.clone_from(outer);
            }
            is_filled
        }
        let has_heartbeat = self.heartbeat.inherit(&outer.heartbeat);
        has_heartbeat
            | fill(&mut self.retry, &outer.retry)
            | fill(&mut self.shutdown_event, &outer.shutdown_event)
            | fill(&mut self.jitter, &outer.jitter)
            | fill(&mut self.when_full, &outer.when_full)
            | fill(&mut self.flush_time, &outer.flush_time)
            | fill(&mut self.drain_timeout, &outer.drain_timeout)
    }

    /// Returns the reconnect delay, with jitter, that is sent at the beginning of a stream. `own`
    /// is the delay that the handler has set. It has precedence over the delay of the layer.
    /// Returns `None` if neither of them has set a delay.
    pub(crate) fn first_retry(&self, own: Option<Duration>) -> Option<Duration> {
        Some(with_jitter(own.or(self.retry)?, self.jitter.unwrap_or_default()))
    }

    /// Returns the reconnect delay, with jitter, of a client whose stream ends at a shutdown, or
    /// whose request is rejected. `own` is the delay that the handler has set. It has
    /// precedence over the delay of the layer. The default is one second.
    pub(crate) fn reconnect_delay(&self, own: Option<Duration>) -> Duration {
        with_jitter(own.or(self.retry).unwrap_or(Self::RETRY), self.jitter.unwrap_or(Self::JITTER))
    }

    pub(crate) fn flush_time(&self) -> Duration {
        self.flush_time.unwrap_or(Self::FLUSH_TIME)
    }

    /// Returns the bytes that a stream sends before its end at a shutdown: a reconnect delay with
    /// jitter, and the shutdown event. `retry` is the delay that the handler has set. It has
    /// precedence over the delay of the layer. The default is one second.
    pub(crate) fn final_bytes(&self, retry: Option<Duration>) -> FinalBytes {
        let event = self.shutdown_event.clone().unwrap_or_default();
        FinalBytes { event, retry: retry_line(self.reconnect_delay(retry)) }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: HeartbeatSetting::Inherit,
            retry: None,
            shutdown: None,
            shutdown_event: None,
            jitter: None,
            max_lifetime: None,
            limits: Vec::new(),
            when_full: None,
            flush_time: None,
            drain_timeout: None,
            is_finite: false,
            registrars: Vec::new(),
            on_close: None,
            on_close_with: None,
        }
    }
}

/// Returns `delay` plus a random time between zero and `jitter`.
fn with_jitter(delay: Duration, jitter: Duration) -> Duration {
    delay.saturating_add(jitter.mul_f64(random::fraction()))
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
            .field("flush_time", &self.flush_time)
            .field("drain_timeout", &self.drain_timeout)
            .field("is_finite", &self.is_finite)
            .field("registries", &self.registrars.len())
            .finish_non_exhaustive()
    }
}

/// The bytes that a stream sends before a layer or the handler ends it: a reconnect delay and a
/// last event. Each of the two can be empty.
#[derive(Default)]
pub(crate) struct FinalBytes {
    /// The last event of the stream, or empty bytes. It is the shutdown event, the event of
    /// `SseStream::end_when`, or the event that a `StreamRegistry` sends to the streams of a key
    /// when it closes them.
    pub(crate) event: Bytes,
    /// The `retry` line with the reconnect delay, or empty bytes. The stream sends it before its
    /// last event. If the stream ends in the middle of another event, between two lines, it sends
    /// this line without the last event: a client accepts the line there.
    pub(crate) retry: Bytes,
}

impl FinalBytes {
    /// Removes the last event if it is the shutdown event. Keeps the events of
    /// `SseStream::end_when` and of a `StreamRegistry`. The last event is the shutdown event if
    /// `retry` is not empty, because a stream that ends for another reason has no reconnect delay
    /// here.
    pub(crate) fn remove_shutdown_event(&mut self) {
        if !self.retry.is_empty() {
            self.event = Bytes::new();
        }
    }

    /// Joins the reconnect delay and the last event, in this order. Some clients, such as undici
    /// and htmx, apply a delay only together with an event that follows the delay.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.event.is_empty() { self.retry } else { [self.retry, self.event].concat().into() }
    }
}
