//! The first bytes of a response, and its 204: what a stream says before it is polled.
//!
//! A response knows of its stream only that it is a [`Stream`]. Adapters such as `map` or `merge` hide
//! the streams inside of them, but they forward `size_hint`. So [`Preamble::of`] asks the stream for
//! its size, and a stream that has a preamble [offers](Preamble::offer) it where it is asked.

use bytes::Bytes;
use std::cell::RefCell;
use tokio_stream::Stream;

/// What a response sends before its stream is polled.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    /// Sent before everything else.
    pub(crate) bytes: Bytes,
    /// There is nothing to send, now or later: the response is `204 No Content`.
    pub(crate) is_over: bool,
}

thread_local! {
    /// The preambles of the streams inside of the one that is asked. `None`: no stream is asked now.
    static OFFERS: RefCell<Option<Vec<Preamble>>> = const { RefCell::new(None) };
}

/// Restores the offers of an outer question, also if `size_hint` panics.
struct Asking(Option<Vec<Preamble>>);

impl Drop for Asking {
    fn drop(&mut self) {
        OFFERS.set(self.0.take());
    }
}

impl Preamble {
    /// Returns the preamble of a stream, or that of the stream inside of its adapters.
    ///
    /// Several streams have no first bytes together, unless theirs are the same. The response is over
    /// if all of them are, and there is nothing else in the stream.
    pub(crate) fn of(stream: &impl Stream) -> Self {
        let outer = Asking(OFFERS.replace(Some(Vec::new())));
        let (_, most) = stream.size_hint();
        let offers = OFFERS.take().unwrap_or_default();
        drop(outer);
        let is_over = most == Some(0) && !offers.is_empty() && offers.iter().all(|offer| offer.is_over);
        let first = offers.first().map(|offer| offer.bytes.clone());
        let bytes = first.filter(|first| offers.iter().all(|offer| offer.bytes == first)).unwrap_or_default();
        Self { bytes, is_over }
    }

    /// Offers a preamble if a response asks for it. Called by `size_hint`.
    #[cfg(feature = "hub")]
    pub(crate) fn offer(preamble: impl FnOnce() -> Self) {
        let is_asked = OFFERS.with_borrow(Option::is_some);
        if is_asked {
            let preamble = preamble();
            OFFERS.with_borrow_mut(|offers| offers.as_mut().map(|offers| offers.push(preamble)));
        }
    }
}
