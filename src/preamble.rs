//! The first bytes of a response, and its 204, which a stream determines before its first item.
//!
//! A response knows only that its stream is a [`Stream`]. Adapters such as `map` or `merge` hide
//! the streams inside them. They forward two calls on the thread of the response:
//!
//! - Most adapters forward `size_hint`. [`Preamble::of`] asks for it, and a stream that has a
//!   preamble [offers](Preamble::offer) it there.
//! - All adapters forward `poll_next`. A stream that was not asked sees that a response
//!   [polls it for the first time](is_first_poll), and yields its first bytes as its first item.

use bytes::Bytes;
use std::cell::RefCell;
use tokio_stream::Stream;

/// The part of a response before the items of its stream.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    /// Sent before everything else.
    pub(crate) bytes: Bytes,
    /// There is nothing to send, now or later: the response is `204 No Content`.
    pub(crate) is_over: bool,
}

/// The call that a response makes to its stream on this thread.
#[derive(Default)]
enum Call {
    #[default]
    None,
    /// It asks for the preamble. These are the offers of the streams inside.
    Asks(Vec<Preamble>),
    /// It polls the stream for the first time.
    PollsFirst,
}

thread_local! {
    static CALL: RefCell<Call> = const { RefCell::new(Call::None) };
}

/// Restores the outer call, also if the stream panics.
struct Scope(Call);

impl Scope {
    fn enter(call: Call) -> Self {
        Self(CALL.replace(call))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CALL.set(std::mem::take(&mut self.0));
    }
}

impl Preamble {
    /// Returns the preamble of a stream, or that of the stream inside of its adapters.
    ///
    /// Several streams have no first bytes together, unless theirs are the same. The response is
    /// over if all of them are, and there is nothing else in the stream.
    pub(crate) fn of(stream: &impl Stream) -> Self {
        let _scope = Scope::enter(Call::Asks(Vec::new()));
        let (_, most) = stream.size_hint();
        let Call::Asks(offers) = CALL.take() else { return Self::default() };
        let is_over = most == Some(0) && !offers.is_empty() && offers.iter().all(|offer| offer.is_over);
        let first = offers.first().map(|offer| offer.bytes.clone());
        let bytes = first.filter(|first| offers.iter().all(|offer| offer.bytes == first)).unwrap_or_default();
        Self { bytes, is_over }
    }

    /// Offers a preamble if a response asks for it. Called by `size_hint`. Returns whether it asks.
    #[cfg(feature = "hub")]
    pub(crate) fn offer(preamble: impl FnOnce() -> Self) -> bool {
        let is_asked = CALL.with_borrow(|call| matches!(call, Call::Asks(_)));
        if is_asked {
            let preamble = preamble();
            CALL.with_borrow_mut(|call| {
                if let Call::Asks(offers) = call {
                    offers.push(preamble);
                }
            });
        }
        is_asked
    }
}

/// Polls the stream of a response for the first time.
pub(crate) fn first_poll<T>(poll: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(Call::PollsFirst);
    poll()
}

/// Returns whether a response polls its stream for the first time.
#[cfg(feature = "hub")]
pub(crate) fn is_first_poll() -> bool {
    CALL.with_borrow(|call| matches!(call, Call::PollsFirst))
}
