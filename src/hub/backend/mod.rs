//! Where a log is kept that several servers share, and what it takes to keep one somewhere else.
//!
//! A [`Hub`](super::Hub) without a backend is one process. With one, the log is in an engine made for it, and every process that
//! is connected to it, a node, follows it: it reads each record once, whatever the number of its clients, into topics of its
//! own, from which they get it as they do in memory. What is no longer held there, a client that comes back gets from the backend,
//! in pages. What the backend does not hold any more either is a [`Gap`](super::Gap).

#[cfg(feature = "backend-contract")]
pub mod contract;
mod erased;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod node;
#[cfg(feature = "redis")]
mod redis;

pub use memory::MemoryBackend;
#[cfg(feature = "nats")]
pub use nats::NatsBackend;
#[cfg(feature = "redis")]
pub use redis::RedisBackend;

pub(super) use erased::{BoxFuture, Erased};
pub(super) use node::Node;

use crate::BoxError;
use bytes::Bytes;
use std::sync::Arc;

/// A log that outlives its readers.
///
/// Its records have positions: numbers that rise, not necessarily by one. There is one order for all topics. A
/// [`Hub`](super::Hub) is [connected](super::Builder::connect) to it.
///
/// # What holds of every implementation
///
/// 1. **Order.** A record that can be read is never joined later by one with a smaller position, as seen by any
///    reader.
/// 2. **Durability.** What [`append`](Self::append) has returned `Ok` for is in the log, for as long as its retention allows, and
///    survives whatever the implementation says it survives.
/// 3. **Loss is told.** What was in the log and is not held any more lies at or before a position that
///    [`Page::lost`] and [`Bounds::lost`] tell.
/// 4. **Cancel safety.** To drop any of the futures loses nothing that was not handed out. An append that is dropped
///    may or may not have happened.
///
/// An error is anything that is worth to be logged. Whoever calls decides when to try again: an implementation does not
/// wait for a server that is not there.
pub trait Backend: Send + Sync + 'static {
    /// How the ids of events are made of their positions.
    const IDS: Ids = Ids::Positions;

    /// Where the log begins and ends now.
    fn bounds(&self) -> impl Future<Output = Result<Bounds, BoxError>> + Send;

    /// Adds records that follow each other immediately, all of them or none, and returns the position of the last.
    ///
    /// There is at least one.
    fn append(&self, records: Vec<Record>) -> impl Future<Output = Result<u64, BoxError>> + Send;

    /// The records of these topics after a position, as many as make a page.
    ///
    /// It does not wait for any: if there are none the page is empty, and ends where the log does.
    fn read(&self, topics: &[Arc<str>], after: u64) -> impl Future<Output = Result<Page, BoxError>> + Send;

    /// The next records after a position, of all topics: at least one, so it waits if there is none yet; or what is lost.
    ///
    /// One task calls it again and again, each time with the end of the page before. So an implementation can keep what it reads
    /// with, a connection or a consumer, from one call to the next.
    fn follow(&self, after: u64) -> impl Future<Output = Result<Page, BoxError>> + Send;
}

/// How the ids of events are made of their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ids {
    /// `<epoch>-<position>`, where the epoch is eight letters and digits that stand for 40 bits of [`Bounds::epoch`].
    Positions,
    /// `<epoch>-<message>`, for a log of messages that hold several events: 65,536 positions are of one message, and the last event of
    /// a message has the last of them. An event that others follow in its message is `<epoch>-<message>-<how many>`.
    Messages,
    /// `<time>-<sequence>`, for a log whose positions are times, in milliseconds, with a sequence number of 20 bits. They do not
    /// begin anew, so the ids do not say an epoch.
    Times,
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What tells this log from one that was there before it under the same name, or will be after it. Its positions begin anew.
    pub epoch: u64,
    /// Everything up to here is no longer held; 0 if everything is.
    pub lost: u64,
    /// The position of the newest record; 0 if there never was one.
    pub newest: u64,
}

/// One event of one topic, or the end of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name of the topic, any text.
    pub topic: Arc<str>,
    /// What happened there.
    pub kind: RecordKind,
    /// The event as it is on the wire, but for its id, which is its position; empty at the end of a topic.
    pub event: Bytes,
}

/// What a [`Record`] says of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordKind {
    /// An event.
    Event,
    /// An event that [replaces](super::Topic::latest_only) the one before it.
    State,
    /// The topic is [finished](super::Topic::finish).
    Finish,
}

/// A part of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Everything up to here is no longer held, and some of it may have come after the position that was asked for; 0 if
    /// nothing of that is lost.
    pub lost: u64,
    /// What is held, with its positions, which rise.
    pub records: Vec<(u64, Record)>,
    /// Everything up to here is in this page or lost, or of topics that were not asked for.
    pub through: u64,
}
