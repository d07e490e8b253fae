//! The hand-over of an event stream and its connection from hyper to this server.
//!
//! 1. The service keeps the body of an event stream ([`Handover::offer`]), and gives hyper a
//!    placeholder that is always pending.
//! 2. hyper writes the head of the response into its buffer, and polls the placeholder.
//! 3. hyper flushes the connection. From now on the connection can be taken ([`Handover::take`]).

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

/// An event stream that hyper begins and this server continues: hyper writes the head of the
/// response, and this server writes the body.
#[derive(Debug)]
pub(super) struct Offer<B> {
    pub(super) body: B,
    pub(super) framing: Framing,
    /// Set if the connection stays open for another request after the event stream.
    pub(super) keep_alive: bool,
}

/// The framing of a response body without a length (RFC 9112, §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    /// The body ends when the server closes the connection, because the request or the response has
    /// the version HTTP/1.0.
    UntilClose,
}

/// The state of a hand-over: hyper writes the head of an event stream, and then this server takes
/// over the connection from hyper. Only the task of the connection uses this state. It must be
/// `Sync` because several parts of the task share it in an `Arc`, and the task may move to another
/// thread.
#[derive(Debug)]
pub(super) struct Handover<B> {
    stage: AtomicU8,
    offer: Mutex<Option<Offer<B>>>,
    /// Set once hyper has received the complete head of a request on this connection.
    has_request: AtomicBool,
    /// Set if the response has switched the connection to another protocol, such as WebSocket.
    is_upgraded: AtomicBool,
}

/// The first stage of a hand-over: hyper has not encoded the head of an event stream whose body
/// this server will write. Either there is no such stream, or hyper has not yet polled the
/// placeholder, the pending body that hyper gets instead.
const IDLE: u8 = 0;
/// The second stage of a hand-over: hyper has written the head of the event stream into its buffer,
/// which is not flushed yet.
const HEAD_ENCODED: u8 = 1;
/// The last stage of a hand-over: hyper has flushed the head of the event stream. So this server
/// can take the connection from hyper, and write the body of the stream itself.
const HEAD_FLUSHED: u8 = 2;

impl<B> Handover<B> {
    pub(super) fn new() -> Self {
        Self {
            stage: AtomicU8::new(IDLE),
            offer: Mutex::new(None),
            has_request: AtomicBool::new(false),
            is_upgraded: AtomicBool::new(false),
        }
    }

    /// Stores an event stream until hyper has sent the head of the response. This server then
    /// writes the body. Returns a placeholder for hyper: a body that is always pending.
    pub(super) fn offer(self: &Arc<Self>, offer: Offer<B>) -> HyperBody<B> {
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        HyperBody::Placeholder { handover: Arc::clone(self) }
    }

    /// Records that hyper has encoded the head of an event stream whose body this server will
    /// write. Called whenever hyper polls the placeholder. hyper polls a body only after it has
    /// encoded the head. Calls after the first have no effect.
    fn head_encoded(&self) {
        if self.stage.load(Ordering::Relaxed) == IDLE {
            self.stage.store(HEAD_ENCODED, Ordering::Relaxed);
        }
    }

    /// Records that hyper has received the complete head of a request.
    pub(super) fn set_requested(&self) {
        self.has_request.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_request(&self) -> bool {
        self.has_request.load(Ordering::Relaxed)
    }

    pub(super) fn set_upgraded(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Ordering::Relaxed)
    }

    pub(super) fn flushed(&self) {
        if self.stage.load(Ordering::Relaxed) == HEAD_ENCODED {
            self.stage.store(HEAD_FLUSHED, Ordering::Relaxed);
        }
    }

    /// Takes the event stream that [`offer`](Self::offer) has stored, so that this server writes
    /// its body. Returns `None` until hyper has flushed the head of the response.
    pub(super) fn take(&self) -> Option<Offer<B>> {
        if self.stage.load(Ordering::Relaxed) != HEAD_FLUSHED {
            return None;
        }
        self.stage.store(IDLE, Ordering::Relaxed);
        self.offer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pin_project! {
    /// The body that hyper gets for a response. It is the body of the application, or a placeholder
    /// if this server, and not hyper, writes the body of an event stream.
    #[project = HyperBodyProjection]
    pub(super) enum HyperBody<B> {
        /// The response body of the application, which hyper writes to the connection.
        Whole { #[pin] body: B },
        /// A placeholder for the body of an event stream. It is always pending. hyper polls it
        /// until this server takes the connection from hyper.
        Placeholder { handover: Arc<Handover<B>> },
    }
}

impl<B: Body<Data = Bytes>> Body for HyperBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            HyperBodyProjection::Whole { body } => body.poll_frame(cx),
            // hyper polls a body only after it has encoded the head. No waker is needed: the same
            // task takes the connection.
            HyperBodyProjection::Placeholder { handover } => {
                handover.head_encoded();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { body } => body.is_end_stream(),
            Self::Placeholder { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { body } => body.size_hint(),
            Self::Placeholder { .. } => SizeHint::default(),
        }
    }
}
