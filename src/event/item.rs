//! The trait [`SseItem`]: the types that the stream of an `SseStream` can yield.

use super::{EncodedEvents, Event};
use crate::BoxError;

/// An item that the stream of an [`SseStream`](crate::SseStream) can yield: an [`Event`],
/// [`EncodedEvents`], or a `Result` of one of these.
///
/// This trait is sealed: it cannot be implemented outside of this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an item of an `SseStream`",
    label = "this stream's items are not events",
    note = "its items can be `Event`, `EncodedEvents`, or a `Result` of one of these whose error converts to `BoxError`",
    note = "map the stream to `Event`s, or use `SseStream::json` for items that serialize"
)]
pub trait SseItem: sealed::Sealed {
    #[doc(hidden)]
    fn into_events(self) -> Result<EncodedEvents, BoxError>;
}

impl SseItem for Event {
    #[inline]
    fn into_events(self) -> Result<EncodedEvents, BoxError> {
        Ok(self.into())
    }
}

impl SseItem for EncodedEvents {
    #[inline]
    fn into_events(self) -> Result<EncodedEvents, BoxError> {
        Ok(self)
    }
}

impl<E: Into<BoxError>> SseItem for Result<Event, E> {
    #[inline]
    fn into_events(self) -> Result<EncodedEvents, BoxError> {
        self.map(Into::into).map_err(Into::into)
    }
}

impl<E: Into<BoxError>> SseItem for Result<EncodedEvents, E> {
    #[inline]
    fn into_events(self) -> Result<EncodedEvents, BoxError> {
        self.map_err(Into::into)
    }
}

mod sealed {
    use super::{EncodedEvents, Event};

    pub trait Sealed {}

    impl Sealed for Event {}
    impl Sealed for EncodedEvents {}
    impl<E> Sealed for Result<Event, E> {}
    impl<E> Sealed for Result<EncodedEvents, E> {}
}
