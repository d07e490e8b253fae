//! The reasons why streams end, and the summary of a stream.
//!
//! A new field of [`StreamSummary`] needs edits in three source files: here,
//! in `body/observer.rs`, which fills it, and in `trace.rs`, which records it in the span.

use std::{fmt, time::Duration};

/// Describes a stream that has ended. The callbacks of
/// [`SseStream::on_close`](crate::SseStream::on_close),
/// [`SseLayer::on_close`](crate::SseLayer::on_close) and
/// [`SseLayer::on_close_with`](crate::SseLayer::on_close_with) receive it.
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
    /// The reason why the event stream ended, such as an error or a shutdown.
    pub reason: CloseReason,
    /// The time from the creation of the response until the transport dropped the body.
    pub duration: Duration,
    /// The number of events that were handed to the transport. The last event of `end_with` or
    /// `on_error` and the shutdown event count, too. Heartbeats do not count, and neither do the
    /// `hub-cursor` events of a hub subscription, which contain only an id.
    ///
    /// In an event stream that was made without [`SseStream`](crate::SseStream), each blank line
    /// that ends an event counts. If such a stream has a `Content-Encoding`, the number is 0.
    pub events: u64,
    /// The number of bytes of this stream that were handed to the transport, including heartbeats.
    pub bytes: u64,
    /// The number of heartbeats of this stream that were handed to the transport. A stream begins
    /// with a comment if no event is ready. This comment also counts. When a heartbeat is due, a
    /// hub subscription may send a `hub-cursor` event, which contains only the id where the client
    /// resumes. This event and the heartbeat, if it is sent as well, count as one heartbeat.
    pub heartbeats: u64,
}

/// The reason why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The stream ended by itself, and its last event was handed to the transport.
    Finished,
    /// The stream failed with an error or a panic.
    Error,
    /// The transport dropped the body before the end of the stream. The client closed the
    /// connection, or could not be reached.
    ClientGone,
    /// The application has ended the stream, with
    /// [`SseStream::end_when`](crate::SseStream::end_when) or a
    /// [`StreamRegistry`](crate::StreamRegistry).
    Ended,
    /// The [shutdown token](crate::SseLayer::shutdown) of a layer was cancelled, or the hub of the
    /// subscription was shut down.
    Shutdown,
    /// The maximum lifetime of the stream has expired. A [layer](crate::SseLayer::max_lifetime) or
    /// the [handler](crate::SseStream::max_lifetime) has set it.
    MaxLifetime,
    /// The client of a hub subscription was too slow, and the hub
    /// [disconnects](crate::hub::LagPolicy::Disconnect) slow clients.
    Lagged,
    /// Another log has replaced the log of the hub's
    /// [backend](crate::hub::SubscriptionError::LogReplaced).
    LogReplaced,
}

impl CloseReason {
    /// Returns the name of this reason, which metrics use as a label: `finished`, `error`,
    /// `client_gone`, `ended`, `shutdown`, `max_lifetime`, `lagged` or `log_replaced`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Error => "error",
            Self::ClientGone => "client_gone",
            Self::Ended => "ended",
            Self::Shutdown => "shutdown",
            Self::MaxLifetime => "max_lifetime",
            Self::Lagged => "lagged",
            Self::LogReplaced => "log_replaced",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
