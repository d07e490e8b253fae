use super::log::Limits;
use std::time::Duration;

/// The limits for the events that one [`Topic`](super::Topic::retention) retains.
///
/// A limit that is not set here has the value from the settings of the hub. A limit that is set
/// here may be smaller or greater than the limit of the hub.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::hub::Retention;
///
/// // The last 10 events of the last minute.
/// let short = Retention::new().max_events(10).max_age(Duration::from_secs(60));
/// assert_ne!(short, Retention::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct Retention {
    max_events: Option<usize>,
    max_bytes: Option<usize>,
    max_age: Option<Duration>,
}

impl Retention {
    /// Creates a `Retention` that sets no limit itself, so that all limits of the hub apply.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of events that the topic retains. When the limit is exceeded, the
    /// oldest events are evicted. The newest event is always retained until it expires, even if the
    /// limit is 0. Default: [`Builder::max_events`](super::Builder::max_events).
    pub fn max_events(mut self, events: usize) -> Self {
        self.max_events = Some(events);
        self
    }

    /// Sets the maximum total size of the events that the topic retains, in bytes on the wire. When
    /// the limit is exceeded, the oldest events are evicted. The newest event is always retained
    /// until it expires, even if it alone is larger than the limit. Default:
    /// [`Builder::max_bytes`](super::Builder::max_bytes).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Sets how long events are retained, and how long the hub remembers that the topic is
    /// finished. [`Duration::MAX`] and zero disable expiry. Default:
    /// [`Builder::max_age`](super::Builder::max_age).
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(if age.is_zero() { Duration::MAX } else { age });
        self
    }

    /// Returns the limits of a topic with this retention. Limits that are not set here are taken
    /// from `hub`.
    pub(super) fn limits(self, hub: &Limits) -> Limits {
        Limits {
            max_events: self.max_events.unwrap_or(hub.max_events),
            max_bytes: self.max_bytes.unwrap_or(hub.max_bytes),
            max_age: self.max_age.unwrap_or(hub.max_age),
        }
    }
}
