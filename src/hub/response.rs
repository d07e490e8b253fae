//! What a response knows of its stream if that is a subscription.

use super::Subscription;
use bytes::Bytes;
use std::any::Any;

/// How a response begins.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    /// Goes before everything else.
    pub(crate) checkpoint: Bytes,
    /// There is nothing to send: a client should not come back.
    pub(crate) is_over: bool,
}

impl Opening {
    pub(crate) fn of<S: 'static>(stream: &S) -> Self {
        let stream: &dyn Any = stream;
        let Some(subscription) = stream.downcast_ref::<Subscription>() else { return Self::default() };
        let checkpoint = subscription.checkpoint().map(|event| event.encode()).unwrap_or_default();
        Self { checkpoint, is_over: subscription.is_finished() }
    }
}
