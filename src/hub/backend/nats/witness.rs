//! Witnesses: recent messages that a node remembers. If the JetStream stream still has them, it
//! still holds the same log.

use super::{
    message::{self, Nanoseconds, Stored},
    stream::{State, Stream},
};
use crate::BoxError;

/// The maximum payload size in bytes of the witness of quick checks. A witness is a recent message
/// that a node remembers to recognize the log. A quick check fetches this message from the server,
/// to verify that the stream still has it.
const MAX_WITNESS_BYTES: usize = 4096;

/// A recent message that identifies the log: the node checks that the JetStream stream still has
/// this message at this sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) sequence: u64,
    identity: u64,
    pub(super) is_small: bool,
    /// The time when the JetStream stream stored this message. `None` if the local node has
    /// published the message and has not read it back yet.
    time: Option<Nanoseconds>,
}

impl Witness {
    /// Creates a witness from the sequence, the message id and the payload size of a published
    /// message.
    pub(super) fn new(sequence: u64, id: &str, bytes: usize) -> Self {
        Self { sequence, identity: message::identity(id), is_small: bytes <= MAX_WITNESS_BYTES, time: None }
    }

    /// Creates a witness, a message that this node remembers to recognize the log, from a stored
    /// message. Returns `None` if a program other than a hub has published the message.
    pub(super) fn of(message: &Stored) -> Option<Self> {
        let identity = message.identity().filter(|_| message.log().is_some())?;
        let is_small = message.payload.len() <= MAX_WITNESS_BYTES;
        Some(Self { sequence: message.sequence, identity, is_small, time: Some(message.time) })
    }

    pub(super) fn is(&self, message: &Stored) -> bool {
        message.identity() == Some(self.identity)
    }

    /// Returns `true` if this remembered message is the newest message of the JetStream stream: the
    /// last sequence and time in `state` are those of this message. A check that the stream still
    /// has the message then need not fetch it.
    pub(super) fn is_last(&self, state: &State) -> bool {
        self.sequence == state.last && self.time.is_some() && self.time == state.last_time
    }
}

/// The messages that a node remembers to recognize the log: if the JetStream stream still has them,
/// it still holds the same log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Witnesses {
    /// The latest remembered message of at most 4,096 bytes ([`MAX_WITNESS_BYTES`]). Quick checks
    /// that the stream still holds the same log fetch only this message from the server.
    pub(super) small: Option<Witness>,
    /// The latest remembered message of any size. Only complete checks that the stream still holds
    /// the same log look for this message. Quick checks look only for the message in the field
    /// `small`.
    pub(super) latest: Option<Witness>,
}

impl Witnesses {
    /// Adds a message to the remembered messages. Has no effect if the remembered messages are
    /// newer.
    pub(super) fn add(&mut self, witness: Witness) {
        if witness.is_small && self.small.is_none_or(|small| small.sequence < witness.sequence) {
            self.small = Some(witness);
        }
        let is_later = |latest: Witness| {
            // The witness of a published message gets its time when the message is read.
            let is_read = latest.identity == witness.identity && witness.time.is_some();
            latest.sequence < witness.sequence || latest.sequence == witness.sequence && is_read
        };
        if self.latest.is_none_or(is_later) {
            self.latest = Some(witness);
        }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Witness> {
        self.small.into_iter().chain(self.latest)
    }
}

impl From<Option<Witness>> for Witnesses {
    fn from(witness: Option<Witness>) -> Self {
        let mut witnesses = Self::default();
        witness.into_iter().for_each(|witness| witnesses.add(witness));
        witnesses
    }
}

/// Returns the newest message of the JetStream stream as a witness, a remembered message that
/// identifies the log in later checks. Returns `None` if the stream is empty, or if the message is
/// from a program other than a hub.
pub(super) async fn newest(stream: &Stream, state: &State) -> Result<Option<Witness>, BoxError> {
    if state.messages == 0 {
        return Ok(None);
    }
    Ok(stream.get(state.last).await?.as_ref().and_then(Witness::of))
}
