use super::Event;
use bytes::{Bytes, BytesMut};
use std::mem;

/// One or more complete events, encoded once for any number of clients.
///
/// A clone shares the bytes with the original. The value is built from [`Event`]s only, so it is
/// always a valid part of an event stream.
///
/// # Examples
///
/// ```
/// use tower_sse::{EncodedEvents, Event, SseStream};
///
/// let greeting: EncodedEvents = [Event::new("hello").id(1), Event::new("world").id(2)].into_iter().collect();
/// assert_eq!(greeting.count(), 2);
/// assert_eq!(greeting.as_bytes(), b"id: 1\ndata: hello\n\nid: 2\ndata: world\n\n");
///
/// let both: EncodedEvents = [greeting.clone(), Event::new("!").into()].into_iter().collect();
/// assert_eq!(both.count(), 3);
///
/// // Each client gets the same bytes.
/// let for_anna = SseStream::new(tokio_stream::once(greeting.clone()));
/// let for_bob = SseStream::new(tokio_stream::once(greeting));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedEvents {
    bytes: Bytes,
    count: usize,
}

impl EncodedEvents {
    /// Creates encoded events from wire bytes that contain `count` complete events.
    pub(crate) fn from_parts(bytes: Bytes, count: usize) -> Self {
        Self { bytes, count }
    }

    /// Returns the number of encoded events in this value.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns `true` if this value has no bytes at all: no event, and no comment or `id` line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the wire bytes of these events, as they are sent to clients.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Converts the events into their wire bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl From<Event> for EncodedEvents {
    #[inline]
    fn from(event: Event) -> Self {
        Self::from_parts(event.encode(), 1)
    }
}

impl From<EncodedEvents> for Bytes {
    /// Converts the events into their wire bytes, without a copy.
    fn from(events: EncodedEvents) -> Self {
        events.bytes
    }
}

impl AsRef<[u8]> for EncodedEvents {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Joins several [`Event`]s or [`EncodedEvents`] into one value, in order. Their bytes are copied.
impl<T: Into<EncodedEvents>> FromIterator<T> for EncodedEvents {
    fn from_iter<I: IntoIterator<Item = T>>(events: I) -> Self {
        let mut joined = Self::default();
        joined.extend(events);
        joined
    }
}

/// Adds [`Event`]s or [`EncodedEvents`] at the end, in order. Their bytes are copied. The earlier
/// bytes are also copied if another value shares them, such as a clone.
impl<T: Into<EncodedEvents>> Extend<T> for EncodedEvents {
    fn extend<I: IntoIterator<Item = T>>(&mut self, events: I) {
        // If the iterator panics, `self` has no events. So its count is always that of its bytes.
        let Self { bytes, mut count } = mem::take(self);
        let mut bytes = BytesMut::from(bytes);
        for events in events {
            let events = events.into();
            bytes.extend_from_slice(&events.bytes);
            count += events.count;
        }
        *self = Self { bytes: bytes.freeze(), count };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extend_appends_events_and_leaves_clones_unchanged() {
        let mut events = EncodedEvents::from(Event::new("a"));
        let clone = events.clone();
        events.extend([Event::new("b"), Event::new("c")]);
        events.extend([clone.clone()]);
        events.extend(Vec::<Event>::new());
        assert_eq!(events.count(), 4);
        assert_eq!(events.as_ref(), b"data: a\n\ndata: b\n\ndata: c\n\ndata: a\n\n");
        assert_eq!((clone.count(), Bytes::from(clone)), (1, Bytes::from("data: a\n\n")));
    }
}
