//! The hand-over of an event stream, and of its connection, from hyper.
//!
//! 1. The service keeps the body of an event stream ([`Handover::offer`]), and gives hyper a
//!    placeholder that is always pending.
//! 2. hyper writes the head into its buffer, and polls the placeholder.
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

/// An event stream whose head hyper writes.
#[derive(Debug)]
pub(super) struct Offer<B> {
    pub(super) body: B,
    pub(super) framing: Framing,
    /// Whether the connection stays open after the stream.
    pub(super) keep_alive: bool,
}

/// The framing of a response without a length (RFC 9112, §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    /// Ends with the connection, because the client knows only HTTP/1.0.
    UntilClose,
}

/// The state of a hand-over. Only the task of the connection uses it. It is `Sync` because the task
/// may move to another thread.
#[derive(Debug)]
pub(super) struct Handover<B> {
    stage: AtomicU8,
    offer: Mutex<Option<Offer<B>>>,
    /// Set if the response was a switch to another protocol.
    is_upgraded: AtomicBool,
}

/// No event stream is being handed over, or hyper has not encoded its head yet.
const IDLE: u8 = 0;
/// The head of the event stream is in the buffer of hyper.
const HEAD_ENCODED: u8 = 1;
/// hyper's buffer is empty, and the body is next.
const HEAD_FLUSHED: u8 = 2;

impl<B> Handover<B> {
    pub(super) fn new() -> Self {
        Self { stage: AtomicU8::new(IDLE), offer: Mutex::new(None), is_upgraded: AtomicBool::new(false) }
    }

    /// Keeps an event stream, and returns the body for hyper.
    pub(super) fn offer(self: &Arc<Self>, offer: Offer<B>) -> HyperBody<B> {
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        HyperBody::Placeholder { handover: Arc::clone(self) }
    }

    /// Called whenever hyper polls the placeholder, which may be again after the flush.
    fn head_encoded(&self) {
        if self.stage.load(Ordering::Relaxed) == IDLE {
            self.stage.store(HEAD_ENCODED, Ordering::Relaxed);
        }
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

    /// Returns the event stream when its head is flushed.
    pub(super) fn take(&self) -> Option<Offer<B>> {
        if self.stage.load(Ordering::Relaxed) != HEAD_FLUSHED {
            return None;
        }
        self.stage.store(IDLE, Ordering::Relaxed);
        self.offer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pin_project! {
    /// The body that hyper gets.
    #[project = HyperBodyProjection]
    pub(super) enum HyperBody<B> {
        /// The body of the application.
        Whole { #[pin] body: B },
        /// A body that is pending until the connection is taken.
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
