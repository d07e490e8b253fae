//! Which types can cross threads and be moved after they were polled: it is a part of the interface, and nobody writes it.

use bytes::Bytes;
use futures_util::stream::Iter;
use http_body_util::Full;
use std::{cell::Cell, fmt::Debug, marker::PhantomPinned, rc::Rc};
use tower_sse::*;

/// Resolves to whether `$Type` has the trait: an inherent constant goes before one of a trait.
macro_rules! has {
    ($Type:ty: $($Bound:tt)+) => {{
        trait Otherwise {
            const _HAS: bool = false;
        }
        impl<T: ?Sized> Otherwise for T {}
        struct Asked<T: ?Sized>(std::marker::PhantomData<T>);
        impl<T: ?Sized + $($Bound)+> Asked<T> {
            const _HAS: bool = true;
        }
        <Asked<$Type>>::_HAS
    }};
}

macro_rules! table {
    ($($Type:ty: $send:ident $sync:ident $unpin:ident;)*) => {$(
        assert_eq!(has!($Type: Send), stringify!($send) == "Send", "{}: Send", stringify!($Type));
        assert_eq!(has!($Type: Sync), stringify!($sync) == "Sync", "{}: Sync", stringify!($Type));
        assert_eq!(has!($Type: Unpin), stringify!($unpin) == "Unpin", "{}: Unpin", stringify!($Type));
        assert!(has!($Type: Debug), "{}: Debug", stringify!($Type));
    )*};
}

type Plain = Iter<std::vec::IntoIter<Event>>;
type Local = Iter<std::iter::Once<Rc<Cell<u8>>>>;

#[test]
fn types_are_send_sync_and_unpin_as_far_as_what_is_in_them() {
    table! {
        Event: Send Sync Unpin;
        EventName: Send Sync Unpin;
        EventId: Send Sync Unpin;
        EncodedEvents: Send Sync Unpin;
        FieldError: Send Sync Unpin;
        JsonError: Send Sync Unpin;
        Heartbeat: Send Sync Unpin;
        LastEventId: Send Sync Unpin;
        Rejection: Send Sync Unpin;
        StopReconnecting: Send Sync Unpin;
        SseStream<Plain>: Send Sync Unpin;
        SseStream<Local>: NotSend NotSync Unpin;
        SseStream<PhantomPinned>: Send Sync NotUnpin;
        SseBody<Plain>: Send Sync Unpin;
        SseStream<Cell<u8>>: Send NotSync Unpin;
        SseBody<Local>: NotSend NotSync Unpin;
        SseBody<PhantomPinned>: Send Sync NotUnpin;
        SseLayer: Send Sync Unpin;
        SseService<u8>: Send Sync Unpin;
        SseService<Rc<u8>>: NotSend NotSync Unpin;
        ResponseFuture<u8>: Send Sync Unpin;
        ResponseFuture<PhantomPinned>: Send Sync NotUnpin;
        ResponseBody<Full<Bytes>>: Send Sync Unpin;
    }
}
