//! The calls through which a response gets the cursor of a hub subscription in its stream. The
//! cursor is the id that a client sends when it reconnects. A response needs the cursor in its
//! preamble, at heartbeats, and at an early end, such as at a shutdown of the server.
//!
//! The preamble is the first bytes of a response, or its status 204. A subscription determines its
//! preamble before its first item.
//!
//! A response cannot ask a subscription directly, because adapters such as `map` or `merge` hide
//! the subscription inside them. But adapters forward two calls, on the same thread as the
//! response. A call *reaches* a subscription if all adapters around the subscription forward the
//! call:
//!
//! - Most adapters forward `size_hint`. [`Preamble::of`] calls `size_hint`, and during this call a
//!   subscription can [offer](Preamble::offer) its preamble. If the call reaches no subscription,
//!   [the first poll](Preamble::of_first_poll) asks for the preamble.
//! - All adapters forward `poll_next`. At a heartbeat and at an early end, a subscription detects
//!   [why the response polls it](purpose_of_poll). If the subscription has delivered all of its
//!   events, it yields its newest cursor. The subscription also yields this cursor at a shutdown of
//!   the hub, which the response itself does not notice.
//!
//! The first bytes are never an item of the stream, because adapters treat each item as an event.
//! For example, an application can end a stream with `take_until` at the first item of a
//! subscription. An item with only the cursor would end the stream although no event was published.
//!
//! The cursor at a heartbeat or at an end must be an item of `poll_next`. An adapter can hold back
//! events that the subscription has yielded, and the client must get these events before the
//! cursor.

use bytes::Bytes;
use std::{
    cell::RefCell,
    sync::atomic::{AtomicU32, Ordering},
};
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
    /// Set if a hub subscription inside the stream has made this preamble, even if `bytes` is
    /// empty. The response then does not need to ask for a preamble again in the first poll of the
    /// stream.
    pub(crate) has_subscription: bool,
    /// Set if the client may have an id of an earlier stream. An event without an id, before the
    /// first id of this stream, would make the client forget its id (HTML standard, §9.2.6).
    pub(crate) is_returning: bool,
}

/// The call that a response is currently making to its stream on this thread. The subscriptions
/// inside the stream read this value to detect why they are called: for the first bytes of the
/// response, or for a [purpose](Purpose) such as a heartbeat. `None` if there is no such call.
#[derive(Default)]
enum Call {
    #[default]
    None,
    /// The response calls `size_hint` to get its preamble: its first bytes, or its status 204. Each
    /// subscription that the call reaches adds a preamble to the vector. An adapter such as `merge`
    /// forwards the call to several streams.
    Asks(Vec<Preamble>),
    /// The response polls its stream for the first time, to get the first items, and the preamble
    /// that is sent before them. Each subscription that the poll reaches adds a preamble to the
    /// vector.
    Begins(Vec<Preamble>, Reached),
    /// The response calls `poll_next` of its stream, for a purpose such as a heartbeat.
    Polls {
        #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only a subscription asks for the purpose"))]
        purpose: Purpose,
        /// The hub subscriptions and hub listeners inside the stream that this poll and earlier
        /// polls have reached.
        reached: Reached,
    },
}

/// The reason why a response polls its stream, such as a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The response polls for the next items of its stream. A subscription assumes this purpose,
    /// too, if other code polls it, such as a task of the application.
    Items,
    /// The response polls for the next items of a stream that contains exactly one subscription. If
    /// the hub is shut down, the subscription yields its newest cursor (the id where the client
    /// resumes) before it ends. Several subscriptions must not do so, because they have no common
    /// cursor.
    ItemsOfOne,
    /// The response polls again because a heartbeat is due. A subscription without an item then
    /// yields its newest cursor: the id where the client resumes.
    Heartbeat,
    /// The flush time of a shutdown is over, and the response polls for the last items of its
    /// stream. A subscription then does not linger (pause after a write to gather further events).
    /// After a shutdown of the hub, a subscription is pending instead of ended, so that the
    /// response can still ask for its newest cursor: the id where the client resumes.
    LastItems,
    /// The response ends its stream early, such as at a shutdown of the server, and polls for the
    /// newest cursor: the id where the client resumes. A subscription yields only its cursor, and
    /// no event.
    End,
}

/// The number of hub subscriptions and hub listeners that a response has polled inside its stream:
/// none, one, or several. Several have no common cursor (the id where a client resumes): the newest
/// cursor of one can be after an undelivered event of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    response: ResponseNumber,
    count: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    None,
    One,
    Several,
}

/// A number that identifies a response. A hub subscription stores the number of the response that
/// has polled it last, so that this response counts the subscription only once. The address of the
/// subscription could not identify it, because an adapter may move it in memory.
///
/// The number of a response is greater than 0. It repeats after 255 responses, to save memory in
/// the subscriptions. This matters only if a subscription moves from one response to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseNumber(u8);

impl Reached {
    /// Creates the count of a new response, which has polled no subscription yet.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % u32::from(u8::MAX) + 1;
        Self { response: ResponseNumber(number as u8), count: Count::None }
    }

    /// Returns `true` if the response has polled exactly one hub subscription or hub listener so
    /// far.
    pub(crate) fn is_one(self) -> bool {
        self.count == Count::One
    }

    /// Sets the count to several subscriptions, so that the response asks for no cursor (the id
    /// where the client resumes).
    pub(crate) fn set_several(&mut self) {
        self.count = Count::Several;
    }

    /// Counts a hub subscription that the response has polled. Has no effect if `polled_by`, which
    /// belongs to the subscription, shows that this response has counted it before.
    #[cfg(feature = "hub")]
    fn add(&mut self, polled_by: &mut ResponseNumber) {
        if *polled_by != self.response {
            *polled_by = self.response;
            self.count = if self.count == Count::None { Count::One } else { Count::Several };
        }
    }
}

thread_local! {
    static CALL: RefCell<Call> = const { RefCell::new(Call::None) };
}

/// A guard that records, in a thread-local variable, which [`Call`] a response is making to its
/// stream. When the guard is dropped, even during a panic of the stream, it restores the previous
/// value.
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
    /// Returns the preamble of a response with this stream: the bytes to send first, or the status
    /// 204. The subscriptions to hubs determine the preamble, also inside adapters such as `map`
    /// and `merge`.
    ///
    /// If several subscriptions offer different first bytes, the result has no first bytes. The
    /// status 204 (`is_over`) is set only if the topics of all subscriptions are finished and their
    /// events delivered, and if the upper bound in the `size_hint` of `stream` is 0.
    pub(crate) fn of(stream: &impl Stream) -> Self {
        let _scope = Scope::enter(Call::Asks(Vec::new()));
        let (_, most) = stream.size_hint();
        let Call::Asks(offers) = CALL.take() else { return Self::default() };
        let preamble = Self::of_all(&offers);
        Self { is_over: preamble.is_over && most == Some(0), ..preamble }
    }

    /// Calls `poll`, which polls the stream of a response for the first time. Returns its result,
    /// and the preamble (the bytes to send before the first item) of the subscriptions inside the
    /// stream. Used if [`of`](Self::of) has reached no subscription, for example because an adapter
    /// does not forward `size_hint`. Adds the polled hub subscriptions and hub listeners to
    /// `reached`.
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

    /// Returns the preamble (the first bytes, or the status 204) of a response whose stream
    /// contains several subscriptions, from the preambles of these subscriptions.
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

    /// Offers the preamble of a subscription (the first bytes of a response, or the status 204) to
    /// the response around the subscription. A subscription calls this function in its `size_hint`
    /// and in its first `poll_next`. If a response on this thread currently wants the preamble of
    /// its stream, this function calls the closure `preamble`, stores the result for the response,
    /// and returns `true`. Otherwise it returns `false`, and does not call the closure.
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

/// Calls `poll`, a closure that polls the stream of a response. During this call, the subscriptions
/// inside the stream can read the purpose of the poll, such as a heartbeat, with `purpose_of_poll`.
/// Adds the polled hub subscriptions and hub listeners to `reached`.
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

/// Returns why a response is currently polling its stream on this thread: for the next items,
/// because a heartbeat is due, or for the newest cursor before the response ends early. A hub
/// subscription or hub listener calls this function each time it is polled. `polled_by` belongs to
/// the caller, and becomes the number of the response.
#[cfg(feature = "hub")]
pub(crate) fn purpose_of_poll(polled_by: &mut ResponseNumber) -> Purpose {
    CALL.with_borrow_mut(|call| match call {
        Call::Polls { purpose, reached } => {
            reached.add(polled_by);
            if *purpose == Purpose::ItemsOfOne && !reached.is_one() { Purpose::Items } else { *purpose }
        }
        Call::Begins(_, reached) => {
            reached.add(polled_by);
            Purpose::Items
        }
        Call::None | Call::Asks(_) => Purpose::Items,
    })
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    /// Checks that [`purpose_of_poll`] returns `Items` instead of `ItemsOfOne` after a response has
    /// polled a second subscription in its stream. At a shutdown of the hub, the subscriptions then
    /// yield no cursor: the cursor of the second subscription could be after an undelivered event
    /// of the first one.
    #[test]
    fn second_subscription_of_a_poll_is_not_the_only_one() {
        let mut reached = Reached::new();
        let mut polled_by = [ResponseNumber::default(); 2];
        for (n, purpose) in [(0, Purpose::ItemsOfOne), (1, Purpose::Items), (0, Purpose::Items)] {
            poll_for(Purpose::ItemsOfOne, &mut reached, || {
                assert_eq!(purpose_of_poll(&mut polled_by[n]), purpose);
            });
        }
        assert!(!reached.is_one());
    }

    #[test]
    fn subscription_that_moves_to_another_response_counts_there() {
        let mut polled_by = ResponseNumber::default();
        for _ in 0..2 {
            let mut reached = Reached::new();
            for _ in 0..2 {
                poll_for(Purpose::Heartbeat, &mut reached, || purpose_of_poll(&mut polled_by));
                assert!(reached.is_one());
            }
        }
    }
}
