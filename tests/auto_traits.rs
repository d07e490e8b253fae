//! The auto traits and the common traits of public types: which types can cross threads, be moved
//! after a poll, and be cloned. They are a part of the API. The compiler checks them.

use bytes::Bytes;
use futures_util::stream::{Iter, Pending};
use http_body_util::Full;
use static_assertions::{assert_impl_all, assert_not_impl_any};
use std::{cell::Cell, fmt::Debug, hash::Hash, marker::PhantomPinned, rc::Rc};
use tower_sse::*;

type Plain = Iter<std::vec::IntoIter<Event>>;

assert_impl_all!(Event: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(EventName: Send, Sync, Unpin, Clone, Debug, Eq, Hash);
assert_impl_all!(EventId: Send, Sync, Unpin, Clone, Debug, Eq, Hash);
assert_not_impl_any!(EventId: From<&'static str>, PartialOrd);
assert_not_impl_any!(EventName: From<&'static str>);
assert_impl_all!(EncodedEvents: Send, Sync, Unpin, Clone, Debug, Eq, Default);
assert_impl_all!(FieldError: Send, Sync, Unpin, Clone, Eq, std::error::Error);
assert_impl_all!(FieldErrorKind: Send, Sync, Unpin, Copy, Debug, Eq, Hash);
assert_impl_all!(LastEventIdRejection: Send, Sync, Unpin, std::error::Error);
assert_impl_all!(Heartbeat: Send, Sync, Unpin, Clone, Debug, Eq, Default);
assert_impl_all!(LastEventId: Send, Sync, Unpin, Clone, Debug, Eq, Default);
assert_impl_all!(StopReconnecting: Send, Sync, Unpin, Copy, Debug);
assert_impl_all!(RetryLater: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(SseLayer: Send, Sync, Unpin, Clone, Debug, Default);
assert_impl_all!(Overload: Send, Sync, Unpin, Copy, Debug, Eq, Hash, Default);
assert_impl_all!(StreamSummary: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(CloseReason: Send, Sync, Unpin, Copy, Debug, Eq, Hash);
assert_impl_all!(StreamRegistry<String>: Send, Sync, Unpin, Clone, Debug, Default);
assert_impl_all!(RegisteredStream<String>: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(ClientTimeout: Send, Sync, Unpin, Copy, Debug, Eq, Default);
assert_impl_all!(serve::Serve<tokio::net::TcpListener, axum::Router>: Send, Unpin, Debug);
assert_impl_all!(serve::ServeFuture: Send, Unpin, Debug);
assert_impl_all!(test::EventReader: Send, Unpin, Debug);
assert_impl_all!(test::ReceivedEvent: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(openapi::TaggedEvents<Rc<u8>>: Send, Sync, Unpin);
assert_impl_all!(openapi::SubscriptionEvents<Rc<u8>>: Send, Sync, Unpin);

// These are the types inside.
assert_impl_all!(SseStream<Plain>: Send, Sync, Unpin, Debug);
assert_impl_all!(SseBody<Plain>: Send, Sync, Unpin, Debug);
assert_impl_all!(SseService<Plain>: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(ResponseFuture<Plain>: Send, Sync, Unpin, Debug);
assert_impl_all!(ResponseBody<Full<Bytes>>: Send, Sync, Unpin, Debug);
assert_impl_all!(SseStream<Pending<Cell<u8>>>: Send);
assert_impl_all!(SseBody<Cell<u8>>: Send);
assert_not_impl_any!(SseStream<Cell<u8>>: Sync);
assert_not_impl_any!(SseBody<Cell<u8>>: Sync);
assert_not_impl_any!(SseStream<Rc<u8>>: Send, Sync);
assert_not_impl_any!(SseBody<Rc<u8>>: Send, Sync);
assert_not_impl_any!(SseService<Rc<u8>>: Send, Sync);
assert_not_impl_any!(ResponseFuture<Rc<u8>>: Send, Sync);
assert_not_impl_any!(SseBody<PhantomPinned>: Unpin);
assert_not_impl_any!(ResponseFuture<PhantomPinned>: Unpin);

assert_impl_all!(JsonError: Send, Sync, Unpin, std::error::Error);
assert_impl_all!(JsonEvents<Iter<std::vec::IntoIter<u8>>>: Send, Sync, Unpin, Debug);
assert_impl_all!(TryJsonEvents<Iter<std::vec::IntoIter<Result<u8, BoxError>>>>: Send, Sync, Unpin, Debug);
assert_impl_all!(SseStream<TryJsonEvents<Iter<std::vec::IntoIter<Result<u8, BoxError>>>>>: Send, Sync, Unpin, Debug);

assert_impl_all!(hub::Hub: Send, Sync, Unpin, Clone, Debug, Default);
assert_impl_all!(hub::Topic: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::Builder: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::Connector: Send, Unpin, Debug);
assert_impl_all!(hub::Recorder: Send, Unpin, Debug);
assert_impl_all!(hub::Recording: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::Outcome: Send, Sync, Unpin, Copy, Debug, Eq, Hash);
assert_impl_all!(hub::PresenceStream: Send, Sync, Unpin, Debug);
assert_impl_all!(hub::Presence: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(hub::Retention: Send, Sync, Unpin, Copy, Debug, Eq, Hash, Default);
assert_impl_all!(hub::Stats: Send, Sync, Unpin, Copy, Debug, Eq, Default);
assert_impl_all!(hub::LagPolicy: Send, Sync, Unpin, Copy, Debug, Eq, Hash, Default);
assert_impl_all!(hub::GapReason: Send, Sync, Unpin, Copy, Debug, Eq, Hash);
assert_impl_all!(hub::ErrorKind: Send, Sync, Unpin, Copy, Debug, Eq, Hash);
assert_impl_all!(hub::backend::FileBackend: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::backend::MemoryBackend: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::backend::Position: Send, Sync, Unpin, Copy, Debug, Ord, Hash);
assert_impl_all!(hub::backend::Record: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::backend::Page: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::Subscription: Send, Sync, Unpin, Debug);
assert_impl_all!(hub::Listener: Send, Sync, Unpin, Debug);
assert_impl_all!(hub::Published: Send, Sync, Unpin, Clone, Debug, Eq);
assert_impl_all!(hub::SubscriberCounts: Send, Sync, Unpin, Debug);
assert_impl_all!(hub::Gap: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(hub::Start: Send, Sync, Unpin, Clone, Debug, Eq, Default);
assert_impl_all!(hub::Error: Send, Sync, Unpin, std::error::Error);
assert_impl_all!(hub::SubscriptionError: Send, Sync, Unpin, Clone, std::error::Error);
assert_impl_all!(SseBody<hub::Subscription>: Send, Sync, Unpin, Debug);

mod durable_streams {
    use super::*;
    use tower_sse::hub::durable_streams::{Content, DurableStreams, ResponseFuture, StreamBody};

    assert_impl_all!(DurableStreams: Send, Sync, Unpin, Clone, Debug);
    assert_impl_all!(Content: Send, Sync, Unpin, Clone, Debug, Eq, Default);
    assert_impl_all!(StreamBody: Send, Sync, Unpin, Debug);
    assert_impl_all!(ResponseFuture: Send, Unpin, Debug);
}
