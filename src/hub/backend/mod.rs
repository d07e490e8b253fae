//! Where a log is kept that several servers share, and what it takes to keep one somewhere else.
//!
//! A [`Hub`](super::Hub) without a backend is one process. With one, the log is in an engine made for it, and every process that
//! is connected to it, a node, follows it: it reads each record once, whatever the number of its clients, into topics of its
//! own, from which they get it as they do in memory. What is no longer held there, a client that comes back gets from the backend,
//! in pages. What the backend does not hold any more either is a [`Gap`](super::Gap). See [several nodes](super#several-nodes).

#[cfg(feature = "backend-contract")]
pub mod contract;
mod erased;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod node;
mod outage;
#[cfg(feature = "redis")]
mod redis;
mod single_flight;

pub use memory::MemoryBackend;
#[cfg(feature = "nats")]
pub use nats::NatsBackend;
#[cfg(feature = "redis")]
pub use redis::RedisBackend;

pub(super) use erased::Erased;
pub(super) use node::{End, MAX_QUEUED_READS, Node, Part};
pub(super) use single_flight::RunError;

use crate::BoxError;
use bytes::Bytes;
use std::sync::Arc;

/// A log that outlives its readers: what a [`Hub`](super::Hub) is [connected](super::Builder::backend) to, so that it is one hub
/// in several processes.
///
/// Its records have positions: numbers that rise, from 1 on and not necessarily by one. There is one order for all topics.
///
/// # What holds of every implementation
///
/// 1. **Order.** A record that can be read is never joined later by one with a smaller position, as seen by any reader. Who reads
///    a page has all that there is up to its end.
/// 2. **Durability.** What [`append`](Self::append) has returned `Ok` for is in the log, for as long as its retention allows, and
///    survives whatever the implementation says it survives.
/// 3. **Loss is told.** What was in the log and is not held any more lies at or before a position that [`Page::lost`] and
///    [`Bounds::lost`] tell.
/// 4. **No position is used twice.** A log that begins anew, or that has lost its newest records and goes on in their place, is
///    another one and has another [epoch](Bounds::epoch). Otherwise a client would go on in it with an id of the one before.
/// 5. **Cancel safety.** To drop any of the futures loses nothing that was not handed out. An append that is dropped may or may
///    not have happened.
///
/// [`contract::check`](https://docs.rs/tower-sse/latest/tower_sse/hub/backend/contract/index.html) (feature `backend-contract`)
/// checks what of that can be seen from outside.
///
/// # Errors
///
/// Any error is the backend's to describe and the hub's to handle: it is logged (feature `tracing`), counted (feature `metrics`),
/// and handed to whoever publishes. An implementation tries again only what cannot happen twice by that, and does not wait for a
/// server that is not there: a request that has no answer is an error after a few seconds, and after ten the hub takes it for
/// one. The hub tries again by itself, as quickly as within half of a second, what it needs for its subscriptions.
///
/// # What a hub does with it
///
/// One task of each hub calls [`follow`](Self::follow), again and again, and [`bounds`](Self::bounds) when it has failed or has
/// been silent for two seconds. [`append`](Self::append) is called by whoever publishes, many at once. [`read`](Self::read) is
/// called for clients whose place is no longer held by the hub itself, at most eight at once, and once for all clients that are
/// at the same place.
///
/// # Examples
///
/// All that it takes. A real one has a server instead of the `Mutex`:
///
/// ```
/// # #[cfg(feature = "backend-contract")] {
/// use std::{collections::HashMap, sync::{Arc, Mutex}};
/// use tokio::sync::watch;
/// use tower_sse::{BoxError, hub::backend::{Appended, Backend, Bounds, Page, Record, contract}};
///
/// /// Records whose positions are their places in a list. The oldest count as lost when there are more than it is to hold.
/// #[derive(Clone)]
/// struct List {
///     records: Arc<Mutex<Vec<Record>>>,
///     newest: watch::Sender<u64>,
///     max_records: u64,
/// }
///
/// impl List {
///     fn new(max_records: usize) -> Self {
///         Self { records: Arc::default(), newest: watch::Sender::new(0), max_records: max_records as u64 }
///     }
///
///     fn page(&self, after: u64, is_asked_for: impl Fn(&Record) -> bool) -> Page {
///         let all = self.records.lock().unwrap();
///         let newest = all.len() as u64;
///         let lost = newest.saturating_sub(self.max_records);
///         let begin = after.max(lost).min(newest);
///         let through = newest.min(begin + 1000);
///         let records = (begin + 1..).zip(all[begin as usize..through as usize].iter().cloned());
///         Page {
///             epoch: 1,
///             lost: if lost > after { lost } else { 0 },
///             records: records.filter(|(_, record)| is_asked_for(record)).collect(),
///             through,
///         }
///     }
/// }
///
/// impl Backend for List {
///     async fn bounds(&self) -> Result<Bounds, BoxError> {
///         let newest = *self.newest.borrow();
///         Ok(Bounds { epoch: 1, lost: newest.saturating_sub(self.max_records), newest })
///     }
///
///     async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
///         let mut all = self.records.lock().unwrap();
///         all.extend(records);
///         let newest = all.len() as u64;
///         self.newest.send_replace(newest);
///         Ok(Appended { epoch: 1, position: newest })
///     }
///
///     async fn read(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
///         Ok(self.page(after, |record| topics.contains(&record.topic)))
///     }
///
///     async fn follow(&self, after: u64) -> Result<Page, BoxError> {
///         self.newest.subscribe().wait_for(|newest| *newest > after).await?;
///         Ok(self.page(after, |_| true))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let logs = Mutex::new(HashMap::new());
/// contract::check(async |name: &str, max_records| {
///     logs.lock().unwrap().entry(name.to_owned()).or_insert_with(|| List::new(max_records)).clone()
/// })
/// .await;
/// # }
/// # main(); }
/// ```
pub trait Backend: Send + Sync + 'static {
    /// How the ids of events are made of their positions.
    const IDS: Ids = Ids::Positions;

    /// Where the log begins and ends now, and which it is.
    ///
    /// It never tells less than this process has been told before, by any of the methods, but for a log that has lost its newest
    /// records: a hub whose reader is further on than the log ends all its subscriptions and begins anew.
    fn bounds(&self) -> impl Future<Output = Result<Bounds, BoxError>> + Send;

    /// Appends records without anything between them, all of them or none. Returns the position of the last record and the epoch
    /// of the log that holds it.
    ///
    /// Both are of one log: the log that stored the records, even if it replaced another one during the call. The hub makes the id
    /// of the last event from them.
    ///
    /// There is at least one, and all are of one topic and one kind. The events are copied by nobody before; together they can be of
    /// any size, and what is more than the server takes is an error. `Ok` is for what survives as the implementation says; if
    /// it cannot be known whether they were added, that is an error, and they may be in the log nevertheless, once.
    ///
    /// What two callers add has the order in which each of them adds it, if one waits for the other.
    fn append(&self, records: Vec<Record>) -> impl Future<Output = Result<Appended, BoxError>> + Send;

    /// The records of these topics after a position, as many as make a page: about a thousand.
    ///
    /// It does not wait for any. A page that ends before the log does has an end that is greater than the position, also if there is
    /// nothing in it that was asked for. One that ends where the log does has that for its end; that is smaller than the position
    /// if the log does not go that far.
    fn read(&self, topics: &[Arc<str>], after: u64) -> impl Future<Output = Result<Page, BoxError>> + Send;

    /// The next records after a position, of all topics, in pages of about a thousand: at least one, so it waits if there is none
    /// yet; or what is lost.
    ///
    /// One task calls it again and again, each time with the end of the page before. So an implementation can keep what it reads
    /// with, a connection or a consumer, from one call to the next. Sometimes the future is dropped and another one is made, for
    /// the same position. A log that was replaced by another is an error or a page of the other's epoch, of which nothing is
    /// delivered, and not the wait for a record.
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

/// Where a log has stored what was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The [`Bounds::epoch`] of the log that stored the records.
    pub epoch: u64,
    /// The position of the last record in that log.
    pub position: u64,
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What tells this log from one that was there before it under the same name, or will be after it. Of this, 40 bits are in the
    /// ids of its events.
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
    /// Of which log it is: its [`Bounds::epoch`] when this was read.
    pub epoch: u64,
    /// Everything up to here is no longer held, and some of it may have come after the position that was asked for; 0 if
    /// nothing of that is lost.
    pub lost: u64,
    /// What is held, with its positions, which rise.
    pub records: Vec<(u64, Record)>,
    /// Everything up to here is in this page or lost, or of topics that were not asked for. It is not smaller than what is lost.
    pub through: u64,
}
