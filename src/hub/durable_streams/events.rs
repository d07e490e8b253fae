//! The mode `live=sse` of the Durable Streams protocol: a topic as an event stream (§5.8).

use super::{
    content::{Content, Page},
    cursor, offset,
    reading::{Fill, Reading},
};
use crate::{EncodedEvents, Event, random};
use bytes::Bytes;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

/// The event stream of one client in the Durable Streams protocol: `data` events with the data of
/// the topic, each followed by a `control` event with the next offset.
pub(super) struct Events {
    reading: Reading,
    /// The first part of the event stream, which was read before the response began. `None` if the
    /// backend has not returned this part in time, and after the part was sent.
    first: Option<(Page, Fill)>,
    content: Content,
    page_size: usize,
    /// The query parameter `cursor`: a number of the Durable Streams protocol that keeps caches
    /// from repeating a response, not a position of the log.
    cursor: Option<String>,
    /// The timer that ends this event stream after some time, by default 60 to 66 seconds. The
    /// client then reconnects, and a cache can join its request with equal requests of other
    /// clients.
    lifetime: Pin<Box<Sleep>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Events of the topic may be missing at the client: no `control` event has been sent yet, or
    /// the last `control` event has not reported that the client is up to date.
    Behind,
    /// The last `control` event has notified the client that it has all events of the topic so far.
    UpToDate,
    Ended,
}

impl Events {
    /// Creates an event stream that begins with `first`, a part of the topic that was already read.
    /// The stream ends after `lifetime`, or up to a tenth later, so that not all clients reconnect
    /// at the same time.
    pub(super) fn new(
        reading: Reading,
        first: Option<(Page, Fill)>,
        content: Content,
        page_size: usize,
        cursor: Option<String>,
        lifetime: Duration,
    ) -> Self {
        let jitter = (lifetime / 10).mul_f64(random::fraction());
        let lifetime = Box::pin(sleep(lifetime.saturating_add(jitter)));
        Self { reading, first, content, page_size, cursor, lifetime, state: State::Behind }
    }

    /// Returns the next events of the Durable Streams protocol: a `data` event with the data of
    /// `page`, and then a `control` event with the next offset. If the page has no data, returns
    /// only the `control` event.
    fn item(&self, page: Page, is_up_to_date: bool, is_closed: bool) -> EncodedEvents {
        let data = (page.count > 0).then(|| Event::new(self.content.data_of_event(&page.into_bytes())).event("data"));
        let mut control = serde_json::Map::new();
        let position = offset::format(self.reading.epoch(), self.reading.position());
        control.insert("streamNextOffset".into(), position.into());
        if is_closed {
            control.insert("streamClosed".into(), true.into());
        } else {
            control.insert("streamCursor".into(), cursor::next(self.cursor.as_deref()).to_string().into());
        }
        if is_up_to_date {
            control.insert("upToDate".into(), true.into());
        }
        let control = Event::display(serde_json::Value::Object(control)).event("control");
        let count = usize::from(data.is_some()) + 1;
        let events: EncodedEvents = data.into_iter().chain([control]).collect();
        EncodedEvents::from_parts(without_optional_spaces(events.as_bytes()), count)
    }
}

/// Removes the space after `data:`, which the HTML standard makes optional. The reference server of
/// the Durable Streams protocol sends no such space, and the conformance tests of the protocol
/// expect none. If the data itself begins with a space, both spaces stay, because clients remove
/// the first space.
fn without_optional_spaces(events: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(events.len());
    for line in events.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_prefix(b"data: ") {
            Some(value) if !value.starts_with(b" ") => {
                bytes.extend_from_slice(b"data:");
                bytes.extend_from_slice(value);
            }
            _ => bytes.extend_from_slice(line),
        }
    }
    bytes.into()
}

impl Stream for Events {
    type Item = EncodedEvents;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EncodedEvents>> {
        let this = self.get_mut();
        if this.state == State::Ended {
            return Poll::Ready(None);
        }
        let is_over = this.lifetime.as_mut().poll(cx).is_ready();
        let before = this.reading.position();
        let (page, fill) = match this.first.take() {
            Some((page, fill)) => (page, Ok(fill)),
            None => this.reading.part(&this.content, this.page_size, cx),
        };
        let has_moved = page.count > 0 || this.reading.position() != before;
        let (is_up_to_date, is_closed) = match fill {
            Ok(Fill::Full) => (false, false),
            Ok(Fill::AwaitsBackend) if page.count > 0 => (false, false),
            Ok(Fill::Waits) if has_moved || this.state == State::Behind => (true, false),
            Ok(Fill::Closed) => (true, true),
            // The next request of the client continues the search.
            Ok(Fill::AwaitsBackend) if is_over && this.reading.skip() => (false, false),
            Ok(Fill::Waits | Fill::AwaitsBackend) if !is_over => return Poll::Pending,
            // The client reconnects. After an error, the response to its next request reports the
            // error.
            Ok(Fill::Waits | Fill::AwaitsBackend) | Err(_) => {
                this.state = State::Ended;
                return Poll::Ready(None);
            }
        };
        this.state = match (is_closed || is_over, is_up_to_date) {
            (true, _) => State::Ended,
            (false, true) => State::UpToDate,
            (false, false) => State::Behind,
        };
        Poll::Ready(Some(this.item(page, is_up_to_date, is_closed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::arbtest;

    /// Splits lines into fields and values, as in the HTML standard, "Interpreting an event
    /// stream".
    fn fields(events: &str) -> Vec<(&str, &str)> {
        let field = |line| {
            let (name, value) = str::split_once(line, ':').unwrap_or((line, ""));
            (name, value.strip_prefix(' ').unwrap_or(value))
        };
        events.split('\n').map(field).collect()
    }

    #[test]
    fn removed_spaces_change_no_field() {
        arbtest(|u| {
            let mut data = String::new();
            for _ in 0..u.int_in_range(0..=20)? {
                data += u.choose(&[" ", "data: ", "data:", "a", "b", "\n"])?;
            }
            let with: EncodedEvents = Event::new(data).event("data").into();
            let without = without_optional_spaces(with.as_bytes());
            let [with, without] =
                [with.as_bytes(), without.as_ref()].map(|it| std::str::from_utf8(it).expect("it is text"));
            assert_eq!(fields(with), fields(without));
            Ok(())
        });
    }

    #[test]
    fn space_stays_before_a_space() {
        let events: EncodedEvents = Event::new("a\n b\n").event("data").into();
        assert_eq!(without_optional_spaces(events.as_bytes()), "event: data\ndata:a\ndata:  b\ndata:\n\n");
    }
}
