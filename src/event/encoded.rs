use super::Event;
use crate::BoxError;
use bytes::{Bytes, BytesMut};

/// Bytes that hold whole events, encoded once for any number of clients.
///
/// A clone shares the bytes. It can be made of [`Event`]s only, so it is always a valid piece of an event stream.
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
    /// Not events, but the news why there will be none: an error to a body.
    #[cfg(feature = "hub")]
    cut: Option<crate::hub::Cut>,
}

impl EncodedEvents {
    /// `bytes` holds so many whole events.
    pub(crate) fn from_parts(bytes: Bytes, count: usize) -> Self {
        Self {
            bytes,
            count,
            #[cfg(feature = "hub")]
            cut: None,
        }
    }

    #[cfg(feature = "hub")]
    pub(crate) fn cut(cut: crate::hub::Cut) -> Self {
        Self { cut: Some(cut), ..Self::default() }
    }

    /// What a body makes of it.
    #[inline]
    pub(crate) fn check(self) -> Result<Self, BoxError> {
        #[cfg(feature = "hub")]
        if let Some(cut) = self.cut {
            return Err(cut.into());
        }
        Ok(self)
    }

    /// How many events these are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to hand on: no event, no line without one, and not the news of [`is_lagged`](Self::is_lagged).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        #[cfg(feature = "hub")]
        if self.cut.is_some() {
            return false;
        }
        self.bytes.is_empty()
    }

    /// Whether this is the last item of a [`Subscription`](crate::hub::Subscription) whose client was too slow, under
    /// [`LagPolicy::Disconnect`](crate::hub::LagPolicy::Disconnect): no events, but an error to the response.
    ///
    /// Whoever makes other items of the events has to hand it on, by an error for instance: a stream that merely ends looks
    /// complete.
    #[cfg(feature = "hub")]
    #[must_use]
    pub fn is_lagged(&self) -> bool {
        matches!(self.cut, Some(crate::hub::Cut::Lagged))
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes on the wire, shared.
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

/// Joins events, or what was encoded before, into one piece. The bytes are copied.
impl<T: Into<EncodedEvents>> FromIterator<T> for EncodedEvents {
    fn from_iter<I: IntoIterator<Item = T>>(events: I) -> Self {
        let mut bytes = BytesMut::new();
        let mut joined = Self::default();
        for events in events {
            let events = events.into();
            bytes.extend_from_slice(&events.bytes);
            joined.count += events.count;
            #[cfg(feature = "hub")]
            {
                joined.cut = joined.cut.or(events.cut);
            }
        }
        Self { bytes: bytes.freeze(), ..joined }
    }
}
