//! The preamble: the first bytes of a response, or its status 204. A stream determines them before
//! its first item.
//!
//! A response knows only that its stream is a [`Stream`]. Adapters such as `map` or `merge` hide
//! the streams inside them. But adapters forward two calls, on the same thread as the response:
//!
//! - Most adapters forward `size_hint`. [`Preamble::of`] calls `size_hint`, and during this call a
//!   stream can [offer](Preamble::offer) its preamble.
//! - All adapters forward `poll_next`. A stream whose `size_hint` was not called detects that a
//!   response [polls it for the first time](is_first_poll), and yields the first bytes as its first
//!   item.

use bytes::Bytes;
use std::cell::RefCell;
use tokio_stream::Stream;

/// The first bytes of a response's body, before the items of its stream, and whether the response
/// is a 204 instead.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    /// The bytes that are sent before the first item.
    pub(crate) bytes: Bytes,
    /// Set if the stream has no items, now or later. The response is then `204 No Content`.
    pub(crate) is_over: bool,
}

/// The call that a response is making to its stream on this thread.
#[derive(Default)]
enum Call {
    #[default]
    None,
    /// The response asks for the preamble. The vector collects the offers of the streams inside the
    /// adapters.
    Asks(Vec<Preamble>),
    /// The response is polling the stream for the first time.
    PollsFirst,
}

thread_local! {
    static CALL: RefCell<Call> = const { RefCell::new(Call::None) };
}

/// A guard that restores the previous value of the thread-local call when it is dropped, even if
/// the stream panics.
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
    /// Returns the preamble of a stream, or of the streams inside its adapters.
    ///
    /// If the preambles of several merged streams differ in their first bytes, the result has no
    /// first bytes. The result is over only if all of the streams are over and the adapters add no
    /// item.
    pub(crate) fn of(stream: &impl Stream) -> Self {
        let _scope = Scope::enter(Call::Asks(Vec::new()));
        let (_, most) = stream.size_hint();
        let Call::Asks(offers) = CALL.take() else { return Self::default() };
        let is_over = most == Some(0) && !offers.is_empty() && offers.iter().all(|offer| offer.is_over);
        let first = offers.first().map(|offer| offer.bytes.clone());
        let bytes = first.filter(|first| offers.iter().all(|offer| offer.bytes == first)).unwrap_or_default();
        Self { bytes, is_over }
    }

    /// Offers a preamble if a response is asking for it, and returns whether a response is asking.
    /// Streams call this in `size_hint`.
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
