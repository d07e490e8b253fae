//! The calls that get the cursor of a subscription for the response around it. The cursor is the id
//! that a client sends when it reconnects. A response needs the cursor in its preamble, at
//! heartbeats and before an early end.
//!
//! The preamble is the first bytes of a response, or its status 204. A stream determines them
//! before its first item.
//!
//! A response cannot ask a subscription directly, because adapters such as `map` or `merge` hide
//! the subscription inside them. But adapters forward two calls, on the same thread as the
//! response:
//!
//! - Most adapters forward `size_hint`. [`Preamble::of`] calls `size_hint`, and during this call a
//!   stream can [offer](Preamble::offer) its preamble.
//! - All adapters forward `poll_next`. If `size_hint` has reached no subscription, the
//!   subscriptions that [the first poll](Preamble::of_first_poll) reaches offer their preambles. At
//!   a heartbeat and before an early end, a subscription detects [why the response polls
//!   it](purpose_of_poll). If it has delivered all of its events, it yields its newest cursor. At a
//!   shutdown of the hub, which only the subscription notices, it does the same.
//!
//! The first bytes are never an item of the stream. An application may use a subscription as a
//! signal that an event was published, for example in the future of `take_until`. The application
//! would take such an item for the signal.
//!
//! The cursor at a heartbeat or at an end must be an item of `poll_next`. An adapter can hold back
//! events that the subscription has yielded, and the cursor has to follow them.

use bytes::Bytes;
use std::cell::RefCell;
use tokio_stream::Stream;

/// The data that a response sends before the first item of its stream: the first bytes of the body,
/// or the status 204 instead of a body.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    /// The bytes that the response sends before the first item of its stream.
    pub(crate) bytes: Bytes,
    /// Set if the stream has no items and will never have any. The response is then
    /// `204 No Content`.
    pub(crate) is_over: bool,
    /// Set if the stream contains a subscription that has offered its preamble (the first bytes of
    /// the stream) to the body, even an empty one.
    pub(crate) has_subscription: bool,
    /// Set if the client may have an id of an earlier stream. Before the first id of this stream,
    /// an event without an id would make the client forget it (HTML standard, §9.2.6).
    pub(crate) is_returning: bool,
}

/// The call that a response on this thread is currently making to its stream, if the stream has to
/// know why: a call of `size_hint`, or of `poll_next` for a [purpose](Purpose).
#[derive(Default)]
enum Call {
    #[default]
    None,
    /// The response calls `size_hint` to get the preamble of its stream: the bytes to send first,
    /// or the status 204. The vector collects the preambles of all streams that the call reaches.
    /// An adapter such as `merge` passes the call to several streams.
    Asks(Vec<Preamble>),
    /// The response calls `poll_next` of its stream for the first time, to get the first items and
    /// the preamble. The vector collects the preambles of all streams that the call reaches.
    Begins(Vec<Preamble>, Reached),
    /// The response calls `poll_next` of its stream.
    Polls {
        #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only a subscription asks for the purpose"))]
        purpose: Purpose,
        /// The subscriptions that this call and earlier calls have reached.
        reached: Reached,
    },
}

/// The purpose of a call of `poll_next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The next items. A call by other code than a response counts as a call for this purpose, too.
    Items,
    /// The next items of a stream that contains exactly one subscription. If the hub is shut down,
    /// the subscription yields its newest cursor before it ends. Several subscriptions must not do
    /// so, because they have no common cursor.
    ItemsOfOne,
    /// The next items, because a heartbeat is due. A subscription without an item yields its newest
    /// cursor instead.
    Heartbeat,
    /// The newest cursor, because the response ends. A subscription yields no event.
    End,
}

/// The subscriptions that a response has reached when it polled its stream: none, one, or several.
/// Several subscriptions have no common cursor: the newest cursor of one subscription can be after
/// an undelivered event of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached(usize);

impl Reached {
    const NONE: usize = 0;
    /// Several subscriptions. The value 1 cannot be the address of a subscription, because such an
    /// address is aligned.
    pub(crate) const SEVERAL: Self = Self(1);

    /// Returns `true` if the response has reached exactly one subscription.
    pub(crate) fn is_one(self) -> bool {
        self.0 != Self::NONE && self != Self::SEVERAL
    }

    #[cfg(feature = "hub")]
    fn add(&mut self, address: usize) {
        *self = if self.0 == Self::NONE || self.0 == address { Self(address) } else { Self::SEVERAL };
    }
}

thread_local! {
    static CALL: RefCell<Call> = const { RefCell::new(Call::None) };
}

/// A guard that records, in a thread-local variable, which call a response is making to its stream.
/// When the guard is dropped, even during a panic of the stream, it restores the previous value.
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
    /// Returns the preamble of a stream, or of the streams inside adapters such as `map` and
    /// `merge`.
    ///
    /// If the streams inside an adapter offer different first bytes, the result has no first bytes.
    /// The status 204 (`is_over`) is set only if all these streams are over and the upper bound in
    /// the `size_hint` of `stream` is 0.
    pub(crate) fn of(stream: &impl Stream) -> Self {
        let _scope = Scope::enter(Call::Asks(Vec::new()));
        let (_, most) = stream.size_hint();
        let Call::Asks(offers) = CALL.take() else { return Self::default() };
        let preamble = Self::of_all(&offers);
        Self { is_over: preamble.is_over && most == Some(0), ..preamble }
    }

    /// Calls `poll`, which polls the stream of a response for the first time. Returns the preamble
    /// of the streams that the call reaches. Used if [`of`](Self::of) has reached no subscription,
    /// because an adapter did not forward `size_hint`. Adds the subscriptions that the call reaches
    /// to `reached`.
    pub(crate) fn of_first_poll<T>(reached: &mut Reached, poll: impl FnOnce() -> T) -> (T, Self) {
        let _scope = Scope::enter(Call::Begins(Vec::new(), *reached));
        let polled = poll();
        let Call::Begins(offers, all) = CALL.take() else { return (polled, Self::default()) };
        *reached = all;
        (polled, Self::of_all(&offers))
    }

    /// Returns `true` if the client may have an id of an earlier stream, and the first bytes of the
    /// response contain no new id. An event without an id would then make the client forget its id.
    pub(crate) fn has_id_to_keep(&self) -> bool {
        self.is_returning && self.bytes.is_empty()
    }

    /// Returns the common preamble of several streams.
    fn of_all(offers: &[Self]) -> Self {
        let Some(first) = offers.first() else { return Self::default() };
        let is_common = offers.iter().all(|offer| offer.bytes == first.bytes);
        Self {
            bytes: if is_common { first.bytes.clone() } else { Bytes::new() },
            is_over: offers.iter().all(|offer| offer.is_over),
            has_subscription: true,
            is_returning: offers.iter().any(|offer| offer.is_returning),
        }
    }

    /// Offers a preamble (the first bytes of a response, or the status 204) to the response around
    /// the stream. A stream calls this function in its `size_hint` and in its first `poll_next`. A
    /// response calls `size_hint`, or `poll_next` for the first time, to get the preamble, and
    /// adapters forward these calls to the streams inside them. During such a call on this thread,
    /// calls the closure `preamble` to create the preamble, and returns `true`. Otherwise returns
    /// `false` without calling the closure.
    #[cfg(feature = "hub")]
    pub(crate) fn offer(preamble: impl FnOnce() -> Self) -> bool {
        let is_asked = CALL.with_borrow(|call| matches!(call, Call::Asks(_) | Call::Begins(..)));
        if is_asked {
            let preamble = preamble();
            CALL.with_borrow_mut(|call| {
                if let Call::Asks(offers) | Call::Begins(offers, _) = call {
                    offers.push(preamble);
                }
            });
        }
        is_asked
    }
}

/// Calls `poll`, which polls the stream of a response. The subscriptions that the call reaches get
/// `purpose` from `purpose_of_poll`, and are added to `reached`.
pub(crate) fn poll_for<T>(purpose: Purpose, reached: &mut Reached, poll: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(Call::Polls { purpose, reached: *reached });
    let polled = poll();
    CALL.with_borrow(|call| {
        if let Call::Polls { reached: all, .. } = call {
            *reached = *all;
        }
    });
    polled
}

/// Returns the purpose for which a response is currently polling its stream on this thread. A
/// subscription or listener calls this function each time it is polled. `address` is its address in
/// memory, which distinguishes it from others in the same stream.
#[cfg(feature = "hub")]
pub(crate) fn purpose_of_poll(address: usize) -> Purpose {
    CALL.with_borrow_mut(|call| match call {
        Call::Polls { purpose, reached } => {
            reached.add(address);
            if *purpose == Purpose::ItemsOfOne && !reached.is_one() { Purpose::Items } else { *purpose }
        }
        Call::Begins(_, reached) => {
            reached.add(address);
            Purpose::Items
        }
        Call::None | Call::Asks(_) => Purpose::Items,
    })
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    /// If a poll reaches a second subscription, the purpose is no longer `ItemsOfOne`: the cursor
    /// of the second subscription could be after an undelivered event of the first one.
    #[test]
    fn second_subscription_of_a_poll_is_not_the_only_one() {
        let mut reached = Reached::default();
        for (address, purpose) in [(8, Purpose::ItemsOfOne), (16, Purpose::Items), (8, Purpose::Items)] {
            poll_for(Purpose::ItemsOfOne, &mut reached, || assert_eq!(purpose_of_poll(address), purpose));
        }
        assert!(!reached.is_one());
    }
}
