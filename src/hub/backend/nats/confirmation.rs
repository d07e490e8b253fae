//! Confirms published messages when the follower of the local node, the task that reads the NATS
//! stream, receives them.
//!
//! Another log can replace the log in the stream at any time, so a publisher has to verify which
//! log has stored its message. A message that the follower has received is in the log that the
//! follower reads. The publisher then needs no request to the server.

use super::message::{self, Stored};
use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// The maximum time that a publisher waits, after the NATS server's acknowledgement, until the
/// local node reads the message back from the stream. The log in the stream may have been replaced,
/// and the acknowledgement does not say which log has stored the message. After this time, the
/// publisher sends the server a request to check which log the stream holds.
const FOLLOWER_TIMEOUT: Duration = Duration::from_millis(5);

/// The published messages whose publishers wait for a confirmation. A message is confirmed when the
/// follower has received it from the NATS stream.
#[derive(Default)]
pub(super) struct Confirmations {
    pending: Mutex<HashMap<u64, oneshot::Sender<u64>>>,
    /// `true` while the follower receives new messages through a NATS consumer. While this field is
    /// `false`, publishers do not wait for the follower.
    is_following: AtomicBool,
}

/// Waits until the follower, the task that reads the NATS stream, receives one particular message
/// that this node has published. Dropping this value ends the wait.
pub(super) struct Pending<'a> {
    confirmations: &'a Confirmations,
    identity: u64,
    epoch: oneshot::Receiver<u64>,
}

impl Confirmations {
    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<u64>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a NATS message before it is published. `id` is the message id. The returned value
    /// waits until the follower receives the message.
    pub(super) fn expect(&self, id: &str) -> Pending<'_> {
        let (identity, (sender, epoch)) = (message::identity(id), oneshot::channel());
        self.pending().insert(identity, sender);
        Pending { confirmations: self, identity, epoch }
    }

    /// Sends `epoch` to the publisher of the NATS message `message` if the publisher waits for it.
    /// The follower calls this method when it has received the message. `epoch` identifies the log
    /// that has stored the message.
    pub(super) fn received(&self, epoch: u64, message: &Stored) {
        let mut pending = self.pending();
        if pending.is_empty() {
            return;
        }
        let sender = message.identity().and_then(|identity| pending.remove(&identity));
        drop(pending);
        if let Some(sender) = sender {
            // Sending fails if the publisher does not wait any more, which is no error.
            let _result = sender.send(epoch);
        }
    }

    /// Sets whether the follower receives new messages through a consumer. Without a consumer, the
    /// follower may receive a published message late. The publisher then does not wait until the
    /// follower has received the message.
    pub(super) fn set_following(&self, is_following: bool) {
        self.is_following.store(is_following, Relaxed);
    }
}

impl Pending<'_> {
    /// Returns the epoch (the identity) of the log that has stored the published message. Returns
    /// `None` if the follower does not receive the message within 5 milliseconds
    /// ([`FOLLOWER_TIMEOUT`]).
    ///
    /// Does not wait if the follower has no NATS consumer.
    pub(super) async fn epoch(mut self) -> Option<u64> {
        if !self.confirmations.is_following.load(Relaxed) {
            return self.epoch.try_recv().ok();
        }
        timeout(FOLLOWER_TIMEOUT, &mut self.epoch).await.ok()?.ok()
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.confirmations.pending().remove(&self.identity);
    }
}
