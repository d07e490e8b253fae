//! The configuration of heartbeats.

use crate::event::{Event, comment_lines};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Keeps a silent stream alive: sends a comment or an event after each interval without other
/// bytes.
///
/// Proxies and load balancers close silent connections, often after 30 or 60 seconds. The default
/// is a comment every 15 seconds, as the HTML standard advises ([§9.2.7, "Authoring
/// notes"][notes]).
///
/// Heartbeats also show the server that a client is gone. Usually the server detects immediately
/// that a client has closed its connection. In two cases, the server detects that a client is gone
/// only when it writes to the connection: the client has lost its network, or it had sent more
/// bytes after its request on an HTTP/1 connection, such as a second request.
///
/// If a hub has a backend, a heartbeat also delivers the newest cursor of the subscription, the id
/// after which the client resumes, if the cursor has moved. An event with the cursor is sent
/// instead of a heartbeat that is a comment, or before a heartbeat that is an event.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Event, Heartbeat};
///
/// // `:` and a line feed: the smallest there is.
/// let quiet = Heartbeat::every(Duration::from_secs(30));
///
/// // For people who read the wire.
/// let readable = Heartbeat::default().comment("still here");
///
/// // For pages that watch over their connection: comments are invisible to them.
/// let watched = Heartbeat::default().event(Event::default().event("heartbeat"));
/// ```
///
/// # Cost
///
/// A stream has one timer. Sending an event does not touch the timer. If bytes were sent before the
/// timer expires, no heartbeat follows: the timer is set again, to one interval after the last
/// bytes.
///
/// [notes]: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Heartbeat {
    interval: Duration,
    /// The bytes of the heartbeat, or `None` for the default, the empty comment. All streams of a
    /// handler share the bytes through the `Arc`.
    content: Option<Arc<Content>>,
}

/// The bytes of a heartbeat: a comment, and an event if heartbeats are events.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    comment: Bytes,
    event: Option<Bytes>,
}

/// The empty comment: `:` and one LF. It may be sent at any line start, even in the middle of an
/// event. No blank line follows, because a blank line would end the event.
pub(crate) const EMPTY_COMMENT: &[u8] = b":\n";

impl Heartbeat {
    pub(crate) const DEFAULT: Self = Self { interval: Duration::from_secs(15), content: None };

    /// Creates a heartbeat that is sent after each interval of silence, as an empty comment. An
    /// interval below one millisecond counts as one millisecond.
    pub fn every(interval: Duration) -> Self {
        Self { interval: interval.max(Duration::from_millis(1)), ..Self::DEFAULT }
    }

    /// Sets the heartbeat to a comment with this text: one comment line for each line of the text.
    /// Replaces an event that was set with [`event`](Self::event).
    pub fn comment(self, text: impl AsRef<str>) -> Self {
        let content = Content { comment: comment_lines(text.as_ref()), event: None };
        Self { content: Some(Arc::new(content)), ..self }
    }

    /// Sets the heartbeat to an event instead of a comment.
    ///
    /// A page can monitor its connection with this event, because comments are invisible to a page.
    /// The event is sent when the interval has passed since the last event with data. Comments,
    /// checkpoints and other bytes that a page cannot see do not postpone the heartbeat.
    ///
    /// If an upstream stream is silent in the middle of an event, a comment is sent instead. This
    /// comment has the text of an earlier call of [`comment`](Self::comment). Without such a call,
    /// it is empty.
    ///
    /// If clients can resume the stream, begin it with an id, for example an [`Event::checkpoint`].
    /// Otherwise a heartbeat can arrive before the first id. A client that has reconnected then
    /// forgets its last id (HTML standard, §9.2.6). A subscription to a hub begins with an id,
    /// except [without control events](crate::hub::Subscription::without_control_events) and while
    /// its backend does not respond.
    ///
    /// The event is sent without its id. With an id, the client would send the id as its
    /// `Last-Event-ID`, and no client can resume from a heartbeat.
    pub fn event(self, event: Event) -> Self {
        let content = Content { comment: self.bytes(false), event: Some(event.without_id().encode()) };
        Self { content: Some(Arc::new(content)), ..self }
    }

    /// Returns the interval of silence before a heartbeat.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns whether the heartbeat is an event instead of a comment.
    pub(crate) fn is_event(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.event.is_some())
    }

    /// Returns the bytes of a heartbeat. `between_events` is `false` if the stream is in the middle
    /// of an event. The result is then always a comment.
    pub(crate) fn bytes(&self, between_events: bool) -> Bytes {
        match self.content.as_deref() {
            Some(Content { event: Some(event), .. }) if between_events => event.clone(),
            Some(content) => content.comment.clone(),
            None => Bytes::from_static(EMPTY_COMMENT),
        }
    }

    /// Returns the bytes of a heartbeat for a stream whose last byte was a CR. `between_events` is
    /// `false` in the middle of an event, where the heartbeat is always a comment.
    ///
    /// The CR can be the first half of a CRLF, so the next byte of the stream can be an LF. If the
    /// heartbeat ended in LF, a client would read this next LF as a blank line. So the heartbeat
    /// ends in CR. The next LF and this CR are then one line end.
    pub(crate) fn bytes_after_cr(&self, between_events: bool) -> Bytes {
        let mut bytes = Vec::from(self.bytes(between_events));
        if let Some(last) = bytes.last_mut() {
            *last = b'\r';
        }
        bytes.into()
    }
}

/// The heartbeat setting of a handler or of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) enum HeartbeatSetting {
    /// Unset: the heartbeat of the next outer layer applies. If no layer sets a heartbeat, the
    /// default applies.
    #[default]
    Inherit,
    Off,
    On(Heartbeat),
}

impl HeartbeatSetting {
    /// If this heartbeat setting is unset, copies the setting of `outer`, an outer layer. Returns
    /// `true` if this setting has changed.
    pub(crate) fn inherit(&mut self, outer: &Self) -> bool {
        let is_inherited = matches!((&*self, outer), (Self::Inherit, Self::Off | Self::On(_)));
        if is_inherited {
            self.clone_from(outer);
        }
        is_inherited
    }

    /// Returns the heartbeat that is set, or the default if the setting is unset. Returns `None` if
    /// heartbeats are disabled.
    pub(crate) fn heartbeat(&self) -> Option<&Heartbeat> {
        match self {
            Self::Inherit => Some(&DEFAULT_HEARTBEAT),
            Self::Off => None,
            Self::On(heartbeat) => Some(heartbeat),
        }
    }
}

static DEFAULT_HEARTBEAT: Heartbeat = Heartbeat::DEFAULT;

impl Default for Heartbeat {
    /// Returns the default heartbeat: an empty comment after every 15 seconds of silence.
    fn default() -> Self {
        Self::DEFAULT
    }
}
