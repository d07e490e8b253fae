//! Logs that outlive the process or that several processes share: the backends of this crate, and
//! the trait [`Backend`] for further backends.
//!
//! `FileBackend` (feature `file`) keeps the log of one process in a file, and [`MemoryBackend`] is
//! for tests. All other backends connect several processes. A [`Hub`](super::Hub) without a backend
//! is one process. With a backend, the log is in a server, and each process that connects to the
//! server is a node. A node reads each record once, whatever the number of its clients, into topics
//! in its own memory. Clients get the records from there, as from a hub in memory. If a client
//! resumes before the oldest event in this memory, the node reads the records in between from the
//! backend, page by page. If the backend has evicted one of these records, the client gets a
//! [`Gap`](super::Gap). See [several nodes](super#several-nodes).

#[cfg(feature = "backend-contract")]
pub mod contract;
#[cfg(all(test, any(feature = "nats", feature = "redis")))]
mod ended_runtime;
#[cfg(feature = "file")]
#[clippy::msrv = "1.90"] // the version that the feature needs
mod file;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod fnv;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(all(any(doc, doctest), feature = "backend-contract"))]
pub mod guide;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod position;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "nats", feature = "redis"))]
mod shared_connection;
#[cfg(any(feature = "postgres-tls", feature = "redis-tls"))]
mod tls;

#[cfg(feature = "file")]
pub use file::{Durability, FileBackend};
pub use memory::MemoryBackend;
#[cfg(feature = "nats")]
pub use nats::NatsBackend;
pub use position::Position;
#[cfg(feature = "postgres")]
pub use postgres::PostgresBackend;
#[cfg(feature = "redis")]
pub use redis::RedisBackend;

use crate::BoxError;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// The maximum age of the records of a backend of this crate. Without a setting, it is that of the
/// hub.
#[cfg(any(feature = "file", feature = "nats", feature = "postgres", feature = "redis"))]
#[derive(Clone, Copy, Debug, Default)]
struct MaxAge(Option<Duration>);

#[cfg(any(feature = "file", feature = "nats", feature = "postgres", feature = "redis"))]
impl MaxAge {
    /// Sets the age. Zero means that the age is not limited, and becomes [`Duration::MAX`].
    fn set(&mut self, age: Duration) {
        self.0 = Some(if age.is_zero() { Duration::MAX } else { age });
    }

    /// Sets the age to that of the hub, unless it is set.
    fn inherit(&mut self, age: Duration) {
        self.0.get_or_insert(age);
    }

    fn get(self) -> Duration {
        self.0.unwrap_or(DEFAULT_MAX_AGE)
    }
}

/// The maximum age of the events of a hub, and of the records of each backend of this crate, if
/// neither the hub nor its backend sets an age.
pub(in crate::hub) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// A log of events outside of the hub. Usually the log is in a server, several processes share it,
/// and it outlives each of them.
///
/// All processes whose [`Hub`](super::Hub)s are [connected](super::Builder::backend) to one log
/// share its topics and events, as if they were one hub. The log consists of records. A record is
/// one event of a topic, or finishes or removes a topic. Each record has a [`Position`]. Positions
/// begin at 1 and increase, not necessarily by one. All topics share one order.
///
/// # Rules for every implementation
///
/// 1. **Order.** Once a reader can see a record, no record with a smaller position may appear. A
///    [`Page`] contains every retained record of the requested topics up to its end. (A sequence in
///    SQL alone does not give this: a transaction with a smaller number can commit later.)
/// 2. **Durability.** After [`append`](Self::append) has returned `Ok`, the records are in the log
///    for as long as its retention allows. They survive the failures that the implementation
///    documents.
/// 3. **Reported eviction.** A record that was in the log and is not retained any more was evicted.
///    Its position is at most [`Page::evicted_through`] and [`Bounds::evicted_through`].
/// 4. **No position is used twice.** The [epoch](Bounds::epoch) is a number that identifies one
///    lifetime of a log. Two records of one epoch never have the same position, even if the first
///    record was deleted. The epoch changes when a log is created again, is restored from a backup,
///    or has lost its newest records in a failover. It changes before the next record is stored.
///    Otherwise a client could resume in the log with an id of the previous log, and miss events.
/// 5. **Epoch and position belong together.** The hub makes the id of an event from an epoch and a
///    position. [`Appended`], [`Page`] and [`Bounds`] therefore contain the epoch of the log that
///    has their positions. This also applies if another log replaced that log during the call.
/// 6. **Foreign records stop no reader.** A program other than a hub may have written a record that
///    the implementation cannot interpret. [`read`](Self::read) and [`follow`](Self::follow) skip
///    such a record, and [`Page::through`] reaches or passes its position. They return no error for
///    it, do not panic, and do not return the same position again and again. The hub in turn skips
///    a record of the kind [`Event`](RecordKind::Event) or [`State`](RecordKind::State) whose field
///    [`event`](Record::event) does not contain exactly one event. Such a record has no effect on
///    its topic.
/// 7. **Cancel safety.** Dropping a future of `read` or `follow` loses no record: another call with
///    the same position returns the same records. An append whose future is dropped may or may not
///    have happened.
///
/// [`contract::check`](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/contract/index.html)
/// (feature `backend-contract`) checks the rules that are observable through the trait.
///
/// # Errors
///
/// The backend returns errors, and the hub handles them. The hub counts each error (feature
/// `metrics`). It returns the error of an append to the publisher. It logs the other errors once
/// per outage (feature `tracing`). It repeats failed reads that its subscriptions need, after at
/// most half a second.
///
/// An implementation repeats a request only if the request cannot take effect twice. The
/// implementation does not wait for a server that is down: a request without a response fails after
/// a few seconds. The hub cancels a request after ten seconds, except [`open`](Self::open).
///
/// # Implementing a backend
///
/// [`guide`](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/guide/index.html) explains how
/// to choose positions and epochs, and how a hub calls each method. It has a complete example.
pub trait Backend: Send + Sync + 'static {
    /// The format of the event ids that the hub makes from positions of this log. Default:
    /// [`IdFormat::Positions`], which is `<epoch>-<position>`. The epoch is a number that
    /// identifies one lifetime of the log.
    const ID_FORMAT: IdFormat = IdFormat::Positions;

    /// Returns the maximum age of the records of this log, if it was set. Default: `None`.
    ///
    /// A hub without a [`max_age`](super::Builder::max_age) takes over the maximum age of its
    /// backend when it connects, but at most a day. It then knows for this time that a topic is
    /// finished. The hub does not take over an age that is not limited (zero or [`Duration::MAX`]),
    /// because its topics would never expire. In that case, and with `None`, the maximum age of the
    /// hub is one hour.
    fn configured_max_age(&self) -> Option<Duration> {
        None
    }

    /// Sets the maximum age of records to that of the hub, unless the maximum age of this log was
    /// set. [`Duration::MAX`] means that the age is not limited. The default does nothing.
    ///
    /// A hub whose [`max_age`](super::Builder::max_age) is set calls this method once, when it
    /// connects, before [`open`](Self::open). Implement it for a log that removes old records. A
    /// log that was used before, for example through a clone, need not apply the age.
    fn inherit_max_age(&mut self, age: Duration) {
        let _ = age;
    }

    /// Opens the log, and waits until it can be used.
    ///
    /// A hub calls this method when it connects, before every method except
    /// [`configured_max_age`](Self::configured_max_age) and [`inherit_max_age`](Self::inherit_max_age), and without a
    /// time limit. Implement it for a log that can take longer to open than the ten seconds of the
    /// other methods, such as a file that is verified after a crash. The default does nothing.
    ///
    /// # Errors
    ///
    /// If the log cannot be opened. [`connect`](super::Connector::connect) returns the error.
    fn open(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// Returns the epoch of the log, its eviction watermark (records up to this position may have
    /// been evicted), and its last position at the moment. The epoch is a number that identifies
    /// one lifetime of the log.
    ///
    /// [`Bounds::last`] is at least as great as every position that the methods of this backend
    /// have returned before in this process, except if the log has lost its newest records. The hub
    /// notices such a loss through its follower, the task that reads the log with
    /// [`follow`](Self::follow). If the log ends before the position that the follower has reached,
    /// the hub ends all its subscriptions, and starts again with the current log.
    fn bounds(&self) -> impl Future<Output = Result<Bounds, BoxError>> + Send;

    /// Appends all of these records, without other records between them, or none. Returns the epoch
    /// of the log and the position of the last record. The epoch is a number that identifies one
    /// lifetime of the log.
    ///
    /// The epoch and the position belong to the log that stored the records, even if that log
    /// replaced another log during the call. The hub makes the id of the last event from both
    /// numbers. No other append returns the same pair.
    ///
    /// `records` contains at least one record, and all have the same topic and the same
    /// [`RecordKind`], such as event or finish. The total size of the events is not limited by the
    /// hub. If the server does not accept this size, `append` returns an error. The hub passes the
    /// events without copying them.
    ///
    /// `Ok` means that the records survive the failures that the implementation documents. If it is
    /// unknown whether the server stored the records, the result is an error. In that case the log
    /// contains the records once, or not at all.
    ///
    /// If one append returns before another begins, on any process, the records of the first append
    /// come first.
    fn append(&self, records: Vec<Record>) -> impl Future<Output = Result<Appended, BoxError>> + Send;

    /// Appends records like [`append`](Self::append), but only if the topic of the records has not
    /// changed. Returns `None`, and appends nothing, in these cases:
    ///
    /// - the log has a record of this topic after the position `since`;
    /// - a record after `since` was evicted, because it may have been of this topic;
    /// - the epoch of the log, a number that identifies one lifetime of the log, is not `epoch`.
    ///
    /// The hub uses this as a fence: the process that publishes to a topic and the process that
    /// takes over never both publish. If the response to an append was lost, the hub calls again
    /// with the same arguments. The comparison then prevents a second copy. So the comparison and
    /// the append have to be one step in the log. A request that reaches the server late must
    /// compare as well.
    ///
    /// An implementation may return `None` although the topic has no new record, for example if it
    /// would have to examine too many records. The hub then tries again with a later `since`.
    ///
    /// A call of [`read`](Self::read) and a call of `append` are two steps: another process, or
    /// another task, can append in between. The
    /// [guide](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/guide/index.html) lists what
    /// one step is in common servers.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::backend::{Backend, Bounds, MemoryBackend, Record, RecordKind};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::BoxError> {
    /// let log = MemoryBackend::new(1000);
    /// let record = |data: &'static str| Record::new("news", RecordKind::Event, data);
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
    ) -> impl Future<Output = Result<Option<Appended>, BoxError>> + Send;

    /// Returns one page of the records of `topics` that come after the position `after`. A page has
    /// about a thousand records.
    ///
    /// The call does not wait for new records. The page is complete up to the position
    /// [`Page::through`]. If the page ends before the log does, `through` is greater than `after`,
    /// even if the page has no record. On the last page, `through` is the end of the log. So
    /// `through` is smaller than `after` only if the whole log ends before `after`.
    fn read(&self, topics: &[Arc<str>], after: Position) -> impl Future<Output = Result<Page, BoxError>> + Send;

    /// Returns the next records of all topics after the position `after`, as a page of up to about
    /// a thousand records.
    ///
    /// The call waits until there is at least one record, or until there are evicted records to
    /// report as a gap. If another log replaced the log, the call does not wait. It returns an
    /// error, or a page with the epoch (the identity) of the other log. The hub delivers no record
    /// of such a page.
    ///
    /// One task of the hub calls `follow` in a loop, each time with [`Page::through`] of the
    /// previous page as `after`. So an implementation can keep its connection or consumer between
    /// calls. Sometimes the hub drops the future and calls again with the same position.
    fn follow(&self, after: Position) -> impl Future<Output = Result<Page, BoxError>> + Send;
}

/// The format of event ids. A hub makes the id of an event from its position and, in most formats,
/// the epoch. The epoch is a number that identifies one lifetime of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdFormat {
    /// Ids of the form `<epoch>-<position>`. The epoch, which identifies one lifetime of the log,
    /// is the lower 40 bits of [`Bounds::epoch`], written as eight letters and digits.
    Positions,
    /// Ids of the form `<epoch>-<message>`, for a log of messages that contain several events.
    /// `<message>` is the number of the message.
    ///
    /// The last event of a message has the id `<epoch>-<message>`. An earlier event of the message
    /// has the id `<epoch>-<message>-<n>`, where `n` is the number of events that follow it in the
    /// message. Each message takes 65,536 [`Position`]s of the log, one for each event that it
    /// could contain. Its last event has the greatest of these positions.
    Messages,
    /// Ids of the form `<time>-<sequence>`, for a log whose positions contain a time in
    /// milliseconds and, in their lowest 20 bits, a sequence number. The times are never reused,
    /// even if the log is deleted and created again. So these ids need no epoch.
    Times,
}

impl IdFormat {
    /// The number of positions that the format [`Messages`](Self::Messages) reserves for each
    /// message of the log. A message contains at most this number of events, and each event has its
    /// own position.
    pub(in crate::hub) const MESSAGE: u64 = 1 << 16;

    /// The number of low bits of a position that contain the sequence number, in the format
    /// [`Times`](Self::Times). The sequence number distinguishes positions whose other bits contain
    /// the same time.
    pub(in crate::hub) const SEQUENCE_BITS: u32 = 20;

    /// The greatest sequence number in the format [`Times`](Self::Times).
    pub(in crate::hub) const MAX_SEQUENCE: u64 = (1 << Self::SEQUENCE_BITS) - 1;
}

/// The result of an append: the epoch of the log that stored the records, and the position of the
/// last record. The epoch identifies one lifetime of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The [`Bounds::epoch`] of the log that stored the records. It identifies one lifetime of the
    /// log.
    pub epoch: u64,
    /// The position of the last record of the append. It is a position of the log that the field
    /// [`epoch`](Self::epoch) identifies.
    pub position: Position,
}

impl Appended {
    /// Creates the result of an append to the log with this epoch. `position` is that of the last
    /// record.
    #[must_use]
    pub const fn new(epoch: u64, position: Position) -> Self {
        Self { epoch, position }
    }
}

/// The range of positions that a log retains at the moment, and the epoch of the log: a number that
/// identifies one lifetime of the log, and changes when another log replaces this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Identifies one lifetime of the log. An earlier or later log under the same name has another
    /// epoch. The ids of events contain the lower 40 bits of the epoch, except in the format
    /// [`IdFormat::Times`].
    pub epoch: u64,
    /// Eviction watermark: records up to and including this position may have been evicted (removed
    /// by retention). Later records are retained. [`Position::START`] if the log has never evicted
    /// a record.
    pub evicted_through: Position,
    /// The position of the last record that the log has stored, evicted or not.
    /// [`Position::START`] if the log has never stored a record.
    pub last: Position,
}

impl Bounds {
    /// Creates the bounds of a log with this epoch and this last position, which has not evicted a
    /// record. For other logs, set [`evicted_through`](Self::evicted_through), too. Otherwise
    /// evicted events are lost without a gap.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::backend::{Bounds, Position};
    ///
    /// let mut bounds = Bounds::new(0xd6fb3cee01, Position::new(100));
    /// assert_eq!(bounds.evicted_through, Position::START);
    /// bounds.evicted_through = Position::new(40);
    /// ```
    #[must_use]
    pub const fn new(epoch: u64, last: Position) -> Self {
        Self { epoch, evicted_through: Position::START, last }
    }
}

/// One entry of the log: an event of a topic, or the statement that a topic is finished or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The name of the topic. It can be any text, also an empty one.
    pub topic: Arc<str>,
    /// Says whether the record is an event, an event that replaces the previous one, or the end or
    /// the removal of the topic.
    pub kind: RecordKind,
    /// The wire bytes of the event (such as `data: 1`), without an `id` line, up to and including
    /// the blank line at its end. Empty if the record finishes or removes the topic.
    pub event: Bytes,
}

impl Record {
    /// Creates a record of a topic. `event` are the wire bytes of its event, including the blank
    /// line at the end.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::backend::{Record, RecordKind};
    ///
    /// let event = Record::new("news", RecordKind::Event, "data: 1\n\n");
    /// let finish = Record::new("news", RecordKind::Finish, "");
    /// assert_eq!(event.topic, finish.topic);
    /// ```
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, kind: RecordKind, event: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), kind, event: event.into() }
    }
}

/// The effect of a [`Record`] on its topic: an event, an event that replaces the previous one, the
/// end of the topic, or its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordKind {
    /// The record is an event.
    Event,
    /// The record is an event that [replaces](super::Topic::latest_only) the previous event of the
    /// topic.
    State,
    /// The record [finishes](super::Topic::finish) the topic, and contains no event.
    Finish,
    /// The topic is [removed](super::Topic::remove): the hub does not deliver the records of the
    /// topic before this record any more. The log may retain them.
    Remove,
}

/// A part of the log: consecutive records, or those of the requested topics, in the order of their
/// positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The [`Bounds::epoch`] of the log when the page was read. It identifies one lifetime of the
    /// log.
    pub epoch: u64,
    /// Eviction watermark: records of the log up to and including this position may have been
    /// evicted (removed by retention). The hub reports a gap to a reader if the watermark is
    /// greater than the position after which the reader asked for records. A watermark that is not
    /// greater has no effect. So an implementation can always return the watermark of the whole
    /// log.
    pub evicted_through: Position,
    /// The retained records that this read of the log returns, with their positions, in rising
    /// order.
    pub records: Vec<(Position, Record)>,
    /// The position where the page ends. Each record after the requested position, up to and
    /// including this position, is in the field [`records`](Self::records), was evicted, or is of a
    /// topic that was not requested. Never smaller than [`evicted_through`](Self::evicted_through).
    pub through: Position,
}

impl Page {
    /// Creates a page of the log with this epoch. The page ends at `through`, has no records yet,
    /// and reports no eviction. Add the [`records`](Self::records), and set
    /// [`evicted_through`](Self::evicted_through) if the log evicts records. Otherwise evicted
    /// events are lost without a gap.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::backend::{Page, Position, Record, RecordKind};
    ///
    /// let mut page = Page::new(0xd6fb3cee01, Position::new(42));
    /// page.evicted_through = Position::new(40);
    /// page.records.push((Position::new(41), Record::new("news", RecordKind::Event, "data: 1\n\n")));
    /// ```
    #[must_use]
    pub const fn new(epoch: u64, through: Position) -> Self {
        Self { epoch, evicted_through: Position::START, records: Vec::new(), through }
    }
}

#[cfg(all(test, any(feature = "file", feature = "nats", feature = "postgres", feature = "redis")))]
mod tests {
    use super::*;

    /// Checks that a backend takes over the maximum age of a hub only if its own age is not set.
    fn check<B: Backend>(new: impl Fn() -> B, max_age: impl Fn(B, Duration) -> B) {
        let (hour, day) = (DEFAULT_MAX_AGE, DEFAULT_MAX_AGE * 24);
        for (set, expected) in [(None, day), (Some(hour), hour), (Some(Duration::ZERO), Duration::MAX)] {
            let mut log = set.map_or_else(&new, |age| max_age(new(), age));
            assert_eq!(log.configured_max_age(), set.map(|_| expected));
            log.inherit_max_age(day);
            assert_eq!(log.configured_max_age(), Some(expected), "{set:?} is set");
        }
    }

    #[test]
    fn backend_takes_over_age_unless_it_has_one() {
        #[cfg(feature = "file")]
        check(|| FileBackend::new("events.log"), FileBackend::max_age);
        #[cfg(feature = "nats")]
        check(|| NatsBackend::new("nats://host").unwrap(), NatsBackend::max_age);
        #[cfg(feature = "postgres")]
        check(|| PostgresBackend::new("postgres://host").unwrap(), PostgresBackend::max_age);
        #[cfg(feature = "redis")]
        check(|| RedisBackend::new("redis://host").unwrap(), RedisBackend::max_age);
    }
}
