//! Confirmation of published messages by the follower of the same node.
//!
//! A message that the follower has received is in the log that it follows. So the publisher needs
//! no further request to verify which log has stored the message.

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

/// The maximum time that a publisher waits for the follower (the task that reads the log) to
/// receive its message, after the server has acknowledged it. After that, the publisher asks the
/// server which log has the message.
const FOLLOWER_TIMEOUT: Duration = Duration::from_millis(5);

/// The published messages whose publishers wait for a confirmation: the follower receives the
/// message, which proves which log has stored it. The server's acknowledgement does not name the
/// log.
#[derive(Default)]
pub(super) struct Confirmations {
    pending: Mutex<HashMap<u64, oneshot::Sender<u64>>>,
    /// Set while a follower receives the messages that are published.
    is_following: AtomicBool,
}

/// One message that waits for its confirmation.
pub(super) struct Pending<'a> {
    confirmations: &'a Confirmations,
    identity: u64,
    epoch: oneshot::Receiver<u64>,
}

impl Confirmations {
    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<u64>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a message that will be published with this id. The returned handle waits for the
    /// confirmation.
    pub(super) fn expect(&self, id: &str) -> Pending<'_> {
        let (identity, (sender, epoch)) = (message::identity(id), oneshot::channel());
        self.pending().insert(identity, sender);
        Pending { confirmations: self, identity, epoch }
    }

    /// Confirms a message that the follower has received from the log with this epoch, if its
    /// publisher waits for that.
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

    /// Sets whether a follower receives the messages that are published.
    pub(super) fn set_following(&self, is_following: bool) {
        self.is_following.store(is_following, Relaxed);
    }
}

impl Pending<'_> {
    /// Returns the epoch of the log that has the message, if the follower receives the message
    /// within [`FOLLOWER_TIMEOUT`].
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
