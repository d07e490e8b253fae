//! What is sent when nothing else is, and when.

use crate::event::{Event, comment_lines};
use bytes::Bytes;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// What keeps a silent stream alive: a comment, or an event, after each full interval in which nothing was sent.
///
/// Proxies and load balancers close connections that are silent, often after 30 or 60 seconds. And while a client that
/// closes its connection is noticed at once, one that vanishes (its network is gone) is noticed only when the server writes
/// to it. The HTML standard advises a comment every 15 seconds or so ([§9.2.7,
/// "Authoring notes"][notes]), which is the default.
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
/// A stream has one timer, which is not touched by the events that are sent: it is set anew when it has run down, to
/// where the silence has really begun.
///
/// [notes]: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
#[derive(Clone, Debug)]
#[must_use]
pub struct Heartbeat {
    every: Duration,
    comment: Bytes,
    event: Option<Bytes>,
}

/// `:` and one LF, legal at any line start, also in the middle of an event; a blank line there would end the event early.
const EMPTY_COMMENT: &[u8] = b":\n";

impl Heartbeat {
    pub(super) const DEFAULT: Self =
        Self { every: Duration::from_secs(15), comment: Bytes::from_static(EMPTY_COMMENT), event: None };

    /// A heartbeat after each interval of silence. The shortest is a millisecond.
    pub fn every(interval: Duration) -> Self {
        Self { every: interval.max(Duration::from_millis(1)), ..Self::DEFAULT }
    }

    /// Sends this text as the comment, on as many comment lines as it has lines. It replaces an event that was set before.
    pub fn comment(self, text: impl AsRef<str>) -> Self {
        Self { comment: comment_lines(text.as_ref()), event: None, ..self }
    }

    /// Sends an event instead of a comment.
    ///
    /// A stream of another framework that is silent in the middle of an event gets the comment, which is legal there: the
    /// one that was set before, or the empty one.
    ///
    /// By the letter of the standard (§9.2.6), an event that reaches a client before this stream has given it an id makes a
    /// client that has come back forget the id it had. A stream that is resumed should begin with one: an
    /// [`Event::checkpoint`] will do.
    ///
    /// An id that the event has is left out: a heartbeat is no place to come back to, and the client would send it as its
    /// `Last-Event-ID`.
    pub fn event(self, event: Event) -> Self {
        Self { event: Some(event.without_id().encode()), ..self }
    }

    /// What is sent; `between_events` is false in the middle of one.
    pub(super) fn bytes(&self, between_events: bool) -> Bytes {
        match &self.event {
            Some(event) if between_events => event.clone(),
            _ => self.comment.clone(),
        }
    }
}

impl Default for Heartbeat {
    /// An empty comment after every 15 seconds of silence.
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The first byte of a stream that has no event yet, so that proxies pass the response on.
pub(super) fn first_byte() -> Bytes {
    Bytes::from_static(EMPTY_COMMENT)
}

/// The timer of one stream.
///
/// It is allocated when the stream is silent for the first time, so a body is `Unpin` if what is in it is, and a stream that
/// is over before that never has one.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    timer: Option<Pin<Box<Sleep>>>,
    /// When the silence began. `None`: something was sent since it was last asked.
    silent_since: Option<Instant>,
}

impl Pulse {
    /// Something was sent. This is all that an event costs.
    #[inline]
    pub(super) fn sent(&mut self) {
        self.silent_since = None;
    }

    /// To be asked when there is nothing to send: ready when the silence has lasted for the heartbeat's interval.
    ///
    /// It stays ready until [`sent`](Self::sent).
    pub(super) fn poll_due(&mut self, heartbeat: &Heartbeat, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        // An interval beyond the end of time is no heartbeat.
        let Some(due) = since.checked_add(heartbeat.every) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}
