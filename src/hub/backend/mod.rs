//! Logs that outlive the process or that several processes share, and the trait to write another
//! one.
//!
//! `FileBackend` (feature `file`) keeps the log of one process in a file. All other backends connect
//! several processes. A [`Hub`](super::Hub) without a backend is one process. With a backend, the log is in a server,
//! and each process that connects to the server is a node. A node reads each record once, whatever
//! the number of its clients, into topics in its own memory. Clients get the records from there, as
//! from a hub in memory. A client that resumes before the oldest event of the node gets the records
//! in between from the backend, page by page. If the backend has evicted a record in between, the
//! client gets a [`Gap`](super::Gap). See [several nodes](super#several-nodes).

#[cfg(feature = "backend-contract")]
pub mod contract;
#[cfg(feature = "file")]
#[clippy::msrv = "1.90"] // the version that the feature needs
mod file;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(all(any(doc, doctest), feature = "backend-contract"))]
pub mod guide;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod position;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "file")]
pub use file::{Durability, FileBackend};
pub use memory::MemoryBackend;
#[cfg(feature = "nats")]
pub use nats::NatsBackend;
pub use position::Position;
#[cfg(feature = "redis")]
pub use redis::RedisBackend;

use crate::BoxError;
use bytes::Bytes;
use std::sync::Arc;

/// A log that outlives its readers.
///
/// All processes whose [`Hub`](super::Hub)s are [connected](super::Builder::backend) to one log
/// share its topics and events, as if they were one hub. Each record of the log has a [`Position`].
/// Positions begin at 1 and increase, not necessarily by one. All topics share one order.
///
/// # Rules for every implementation
///
/// 1. **Order.** Once a reader can see a record, no record with a smaller position may appear. A
///    page contains every record up to its end. (A sequence in SQL alone does not give this: a
///    transaction with a smaller number can commit later.)
/// 2. **Durability.** After [`append`](Self::append) has returned `Ok`, the records are in the log
///    for as long as its retention allows. They survive the failures that the implementation
///    documents.
/// 3. **Reported eviction.** A record that was in the log and is not retained any more has a
///    position up to and including [`Page::evicted_through`] and [`Bounds::evicted_through`].
/// 4. **No position is used twice.** Two records of one [epoch](Bounds::epoch) never have the same
///    position, even if the first of them was deleted. A log that was deleted and created again, or
///    restored from a backup, or has lost its newest records in a failover, has another epoch
///    before it stores the next record. Otherwise a client could resume in it with an id of the
///    previous log, and miss events.
/// 5. **An id is made of one log.** The hub makes an id from an epoch and a position. [`Appended`],
///    [`Page`] and [`Bounds`] therefore have the epoch of the log that their positions belong to,
///    even if another log replaced it during the call.
/// 6. **Foreign records stop no follower.** Another program may have written a record that the
///    implementation cannot interpret. [`read`](Self::read) and [`follow`](Self::follow) skip such
///    a record: [`Page::through`] passes its position. They neither return an error for it nor
///    panic, nor return the same position again and again. The hub in turn skips a record whose
///    [`event`](Record::event) is not exactly one event.
/// 7. **Cancel safety.** Dropping a future loses no record: the next call returns what the dropped
///    call did not. An append whose future is dropped may or may not have happened.
///
/// [`contract::check`](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/contract/index.html)
/// (feature `backend-contract`) checks the rules that are observable through the trait.
///
/// # Errors
///
/// The backend returns errors, and the hub handles them. The hub counts each error (feature
/// `metrics`). It returns the error of an append to the publisher. It logs the other errors once
/// per outage (feature `tracing`). It retries the requests that its subscriptions need, after at
/// most half a second.
///
/// An implementation repeats a request only if the request cannot take effect twice. It does not
/// wait for a server that is down: a request without a response fails after a few seconds. The hub
/// cancels a request after ten seconds.
///
/// # Implementing a backend
///
/// [`guide`](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/guide/index.html) explains how
/// to choose positions and epochs, and how a hub calls each method. It has a complete example.
pub trait Backend: Send + Sync + 'static {
    /// The format of the ids that the hub makes of positions.
    const ID_FORMAT: IdFormat = IdFormat::Positions;

    /// Returns the epoch of the log, and where the log begins and ends now.
    ///
    /// [`Bounds::last`] is never smaller than a position that any method of this process has
    /// returned before, unless the log has lost its newest records. If the log ends before the
    /// position that the follower has read, the hub ends all its subscriptions and starts again
    /// with the current log.
    fn bounds(&self) -> impl Future<Output = Result<Bounds, BoxError>> + Send;

    /// Appends records, all or none, without other records between them. Returns the epoch of the
    /// log and the position of the last record.
    ///
    /// The epoch and the position belong to the log that stored the records, even if that log
    /// replaced another one during the call. The hub makes the id of the last event from the epoch
    /// and the position. No other append returns the same pair.
    ///
    /// There is at least one record, and all have the same topic and kind. The total size of the
    /// events is not limited by the hub. If the server does not accept this size, `append` returns
    /// an error. The hub passes the events without copying them.
    ///
    /// `Ok` means that the records survive the failures that the implementation documents. If it is
    /// unknown whether the server stored the records, the result is an error. The log may then
    /// contain the records, at most once.
    ///
    /// If one append returns before another begins, on any node, the records of the first come
    /// first.
    fn append(&self, records: Vec<Record>) -> impl Future<Output = Result<Appended, BoxError>> + Send;

    /// Appends records like [`append`](Self::append), but only if their topic has not changed:
    /// returns `None`, and appends no record, if the log has a record of the topic after the
    /// position `since`, or if its epoch is not `epoch`. A record after `since` that was evicted
    /// may have been of the topic, so the result is `None` then, too.
    ///
    /// A recording uses this as a fence: the node that produces and the node that takes over never
    /// both publish. If the response was lost, the hub calls again, and the comparison prevents a
    /// second copy. So the comparison and the append have to be one step in the log, and a request
    /// that arrives late must compare as well. An implementation may return
    /// `None` although no record was appended to the topic, for example if it would have to examine
    /// too many records. The hub then tries again with a later `since`.
    ///
    /// The default implementation reads the topic, and then appends the records. A record that
    /// another node appends between these two steps is not noticed. Every backend of this crate
    /// compares in the log.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::backend::{Backend, Bounds, MemoryBackend, Record, RecordKind};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::BoxError> {
    /// let log = MemoryBackend::new(1000);
    /// let record = |data: &'static str| Record { topic: "news".into(), kind: RecordKind::Event, event: data.into() };
    /// let Bounds { epoch, last, .. } = log.bounds().await?;
    ///
    /// // Two nodes have read the topic up to the same position. One of them appends.
    /// let first = log.append_if_unchanged(vec![record("data: 1\n\n")], epoch, last).await?;
    /// let second = log.append_if_unchanged(vec![record("data: 2\n\n")], epoch, last).await?;
    /// assert!(first.is_some() && second.is_none());
    /// # Ok(()) }
    /// ```
    fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> impl Future<Output = Result<Option<Appended>, BoxError>> + Send {
        async move {
            let Some(topic) = records.first().map(|record| [record.topic.clone()]) else { return Ok(None) };
            let mut after = since;
            loop {
                let bounds = self.bounds().await?;
                if bounds.epoch != epoch {
                    return Ok(None);
                }
                if after >= bounds.last {
                    return self.append(records).await.map(Some);
                }
                let page = self.read(&topic, after).await?;
                if page.epoch != epoch || page.evicted_through > since || !page.records.is_empty() {
                    return Ok(None);
                }
                after = page.through;
            }
        }
    }

    /// Returns one page of the records of these topics that come after a position. A page has about
    /// a thousand records.
    ///
    /// The call does not wait for new records. If the page ends before the log does,
    /// [`Page::through`] is greater than `after`, even if no record of the page is of these topics.
    /// On the last page, `through` is the end of the log. So `through` is smaller than `after` only
    /// if the whole log ends before `after`.
    fn read(&self, topics: &[Arc<str>], after: Position) -> impl Future<Output = Result<Page, BoxError>> + Send;

    /// Returns the next records of all topics after a position, in pages of about a thousand.
    ///
    /// The call waits until there is at least one record, or an evicted range to report. If the log
    /// was replaced by another one, the call does not wait: it returns an error, or a page with the
    /// epoch of the other log. The hub delivers no record of such a page.
    ///
    /// One task calls `follow` in a loop, each time with the end of the previous page. So an
    /// implementation can keep its connection or consumer between calls. Sometimes the hub drops
    /// the future and calls again with the same position.
    fn follow(&self, after: Position) -> impl Future<Output = Result<Page, BoxError>> + Send;
}

/// The format of event ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdFormat {
    /// `<epoch>-<position>`. The epoch is the lower 40 bits of [`Bounds::epoch`] as eight letters
    /// and digits.
    Positions,
    /// `<epoch>-<message>`, for a log of messages that contain several events.
    ///
    /// The last event of a message has the id `<epoch>-<message>`. An event before it has the id
    /// `<epoch>-<message>-<n>`, where `n` is the number of events that follow it in the message.
    /// Each message takes 65,536 positions, and its last event has the last of them.
    Messages,
    /// `<time>-<sequence>`, for a log whose positions are times in milliseconds with a sequence
    /// number of 20 bits. Times are never reused, so the ids contain no epoch.
    Times,
}

impl IdFormat {
    /// The number of positions per message, for [`Messages`](Self::Messages).
    pub(in crate::hub) const MESSAGE: u64 = 1 << 16;

    /// The number of low bits of a position that are the sequence number, in the format
    /// [`Times`](Self::Times).
    pub(in crate::hub) const SEQUENCE_BITS: u32 = 20;

    /// The greatest sequence number, for [`Times`](Self::Times).
    pub(in crate::hub) const MAX_SEQUENCE: u64 = (1 << Self::SEQUENCE_BITS) - 1;
}

/// The result of an append: the epoch of the log, and the position of the last stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The [`Bounds::epoch`] of the log that stored the records.
    pub epoch: u64,
    /// The position of the last record in that log.
    pub position: Position,
}

/// The range of positions that a log retains, and its epoch: a number that changes when another log
/// replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Identifies one lifetime of the log. An earlier or later log under the same name has another
    /// epoch. The ids of events contain 40 bits of it.
    pub epoch: u64,
    /// Eviction watermark: records up to and including this position may have been evicted. Later
    /// records are retained. [`Position::START`] if the log has never evicted a record.
    pub evicted_through: Position,
    /// The position of the last record that the log has stored, evicted or not.
    /// [`Position::START`] if the log has never stored a record.
    pub last: Position,
}

/// One event of a topic, or a record that finishes the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name of the topic: any text.
    pub topic: Arc<str>,
    /// The meaning of the record.
    pub kind: RecordKind,
    /// The wire bytes of the event, without its id. Empty if the record finishes the topic.
    pub event: Bytes,
}

/// The meaning of a [`Record`] for its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordKind {
    /// An event.
    Event,
    /// An event that [replaces](super::Topic::latest_only) the previous event of the topic.
    State,
    /// The topic is [finished](super::Topic::finish).
    Finish,
}

/// A part of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The [`Bounds::epoch`] of the log when the page was read.
    pub epoch: u64,
    /// Eviction watermark, as in [`Bounds::evicted_through`]. The hub reports a gap to a reader if
    /// the watermark is greater than the requested position. Any smaller value has no effect, so an
    /// implementation can return the watermark of the log as it is.
    pub evicted_through: Position,
    /// The retained records with their positions, in rising order.
    pub records: Vec<(Position, Record)>,
    /// The end of the page. Each record up to and including this position is in the page, or was
    /// evicted, or is of a topic that was not requested. Never smaller than `evicted_through`.
    pub through: Position,
}
