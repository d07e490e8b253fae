//! Reads the fields of an [`Event`] back from its wire bytes.

use super::{
    Event,
    encode::{COMMENT, DATA, ID, NAME, RETRY},
};
use std::{borrow::Cow, fmt, time::Duration};

impl Event {
    /// Returns the data of the message that a client dispatches for this event, or `None` if the
    /// client dispatches no message.
    ///
    /// As in a client, each line end of the original text (CRLF, CR or LF) is one LF in the result.
    /// Data of one line is borrowed, and data of several lines is copied.
    ///
    /// A client dispatches an event only if it has a `data` line. An event with a name and no data
    /// is sent with an empty `data` line, so the result is an empty text. An event with neither
    /// data nor a name has the result `None`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// assert_eq!(Event::new("a\r\nb").event_data().as_deref(), Some("a\nb"));
    /// assert_eq!(Event::default().event("close").event_data().as_deref(), Some(""));
    /// assert_eq!(Event::checkpoint(7).event_data(), None);
    /// ```
    #[must_use]
    pub fn event_data(&self) -> Option<Cow<'_, str>> {
        let mut lines = self.lines(DATA);
        let Some(first) = lines.next() else {
            return self.name().map(|_| Cow::Borrowed(""));
        };
        let Some(second) = lines.next() else {
            return Some(Cow::Borrowed(first));
        };
        let mut data = String::with_capacity(self.text().len());
        data.push_str(first);
        for line in std::iter::once(second).chain(lines) {
            data.push('\n');
            data.push_str(line);
        }
        Some(Cow::Owned(data))
    }

    /// Returns the name of this event, or `None` if the event has no name. A client dispatches an
    /// event without a name as `message`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// assert_eq!(Event::new("7").event("created").name(), Some("created"));
    /// assert_eq!(Event::new("7").name(), None);
    /// ```
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.lines(NAME).next()
    }

    /// Returns the id of this event, or `None` if the event has no id. At an event without an id, a
    /// client keeps the id of the previous event.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// assert_eq!(Event::new("order").id(7).event_id(), Some("7"));
    /// assert_eq!(Event::new("order").event_id(), None);
    /// ```
    #[must_use]
    pub fn event_id(&self) -> Option<&str> {
        self.lines(ID).next()
    }

    /// Returns how long a client waits before it reconnects, or `None` if this event does not set
    /// the delay.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_sse::Event;
    /// let delay = Duration::from_secs(10);
    /// assert_eq!(Event::default().retry(delay).event_retry(), Some(delay));
    /// assert_eq!(Event::new("order").event_retry(), None);
    /// ```
    #[must_use]
    pub fn event_retry(&self) -> Option<Duration> {
        // The greatest `Duration` has more milliseconds than a `u64` can hold.
        let milliseconds: u128 = self.retry_digits()?.parse().ok()?;
        let seconds = u64::try_from(milliseconds / 1000).ok()?;
        Some(Duration::from_secs(seconds) + Duration::from_millis((milliseconds % 1000) as u64))
    }

    /// Returns the reconnect delay of this event in milliseconds, as decimal digits, or `None` if
    /// the event has no delay.
    pub(super) fn retry_digits(&self) -> Option<&str> {
        self.lines(RETRY).next()
    }

    /// Returns the values of all lines of the encoded event that begin with `prefix`, such as
    /// `data: `. The values do not contain the prefix.
    fn lines<'a>(&'a self, prefix: &[u8]) -> impl Iterator<Item = &'a str> {
        let prefix = std::str::from_utf8(prefix).unwrap_or_default();
        self.text().split_terminator('\n').filter_map(move |line| line.strip_prefix(prefix))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.wire.as_bytes()).expect("an event is made of text")
    }
}

/// Two events are equal if they have the same data, name, id and reconnect delay, and the same
/// comments in the same order. The fields may have been set in any order. Data is compared as
/// [`event_data`](Event::event_data) returns it.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.wire.as_bytes() == other.wire.as_bytes()
            || (self.event_data() == other.event_data()
                && self.name() == other.name()
                && self.event_id() == other.event_id()
                && self.retry_digits() == other.retry_digits()
                && self.lines(COMMENT).eq(other.lines(COMMENT)))
    }
}

impl Eq for Event {}

/// Formats the data, name, id, reconnect delay and comments of the event. Fields that are not set
/// are left out.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Event");
        if let Some(data) = self.event_data() {
            fields.field("data", &data);
        }
        if let Some(name) = self.name() {
            fields.field("name", &name);
        }
        if let Some(id) = self.event_id() {
            fields.field("id", &id);
        }
        if let Some(retry) = self.retry_digits() {
            fields.field("retry", &format_args!("{retry}ms"));
        }
        for comment in self.lines(COMMENT) {
            fields.field("comment", &comment);
        }
        fields.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_is_read_in_whole_milliseconds() {
        for (set, read) in [
            (Duration::ZERO, Duration::ZERO),
            (Duration::from_micros(1_999), Duration::from_millis(1)),
            (Duration::MAX, Duration::new(u64::MAX, 999_000_000)),
        ] {
            assert_eq!(Event::new("d").retry(set).id(7).event_retry(), Some(read));
        }
        assert_eq!(Event::new("retry: 7").comment("retry: 7").event_retry(), None);
    }

    #[test]
    fn getters_return_what_a_client_dispatches() {
        let event = Event::new("a\r\nb\rc\n").event("e").id("").comment("data: no\nid: 7");
        assert_eq!(event.event_data().as_deref(), Some("a\nb\nc\n"));
        assert_eq!((event.name(), event.event_id()), (Some("e"), Some("")));

        let event = Event::new("event: no\nid: 7\n: no\n");
        assert_eq!(event.event_data().as_deref(), Some("event: no\nid: 7\n: no\n"));
        assert_eq!((event.name(), event.event_id()), (None, None));

        for nothing in [Event::default(), Event::checkpoint(1), Event::default().comment("c")] {
            assert_eq!(nothing.event_data(), None);
        }
        assert!(matches!(Event::new(" one line").event_data(), Some(Cow::Borrowed(" one line"))));
    }

    #[test]
    fn equality_ignores_the_order_of_setters() {
        let one = Event::new("d").event("e").id(1).retry(Duration::from_secs(1)).comment("c");
        let other = Event::default().comment("c").retry(Duration::from_secs(1)).id(1).data("d").event("e");
        assert_eq!(one, other);
        assert_eq!(Event::default().event("e"), Event::default().event("e").data(""));
        assert_eq!(Event::new("a\r\nb"), Event::new("a\nb"));
        for different in [
            one.clone().data("x"),
            one.clone().event("x"),
            one.clone().id(2),
            one.clone().retry(Duration::from_secs(2)),
            one.clone().comment("x"),
        ] {
            assert_ne!(one, different);
        }
        assert_ne!(Event::default(), Event::new(""));
    }

    #[test]
    fn debug_shows_the_fields_that_are_set() {
        let event = Event::new("a\nb").event("e").id(1).retry(Duration::from_secs(1)).comment("c");
        let expected = r#"Event { data: "a\nb", name: "e", id: "1", retry: 1000ms, comment: "c" }"#;
        assert_eq!(format!("{event:?}"), expected);
        assert_eq!(format!("{:?}", Event::default()), "Event");
    }
}
