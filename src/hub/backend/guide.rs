//! Implementing a backend: what a log needs, how a hub calls it, how to test it.
//!
//! Read the rules of [`Backend`] first. This page explains how to implement them.
//!
//! # What a log must provide
//!
//! | a hub needs | for example |
//! |---|---|
//! | one order of all records; new records appear only at the end | a Redis stream, one partition of Kafka, one table |
//! | appending several records as one | a transaction, a script, a batch in one message |
//! | reading from any retained position | an index by position |
//! | waiting for new records | a blocking read, a consumer, `LISTEN`; at worst a short poll |
//! | the greatest evicted position | the first offset, or a stored watermark |
//! | an identity that changes if the log is replaced | the id of a topic, or random bits in the log |
//!
//! One log contains all topics. Do not make a log per topic: one id resumes all topics of a client,
//! so the records of all topics need one order.
//!
//! # Positions and epochs
//!
//! - If the records of a log are numbered from 0, add 1 to get a position, because
//!   [`Position::START`] (0) is before the first record.
//! - Numbers may be skipped. Records must become visible in the order of their positions. In SQL, a
//!   sequence gives a number before the commit, so a smaller number can appear later. Let the
//!   transaction take one lock before it takes its numbers, and release the lock with its commit.
//! - Each record has its own position, also inside a batch. For messages that contain several
//!   events, [`IdFormat::Messages`] reserves 65,536 positions per message. Otherwise keep the
//!   default, [`IdFormat::Positions`].
//! - The epoch, which identifies one lifetime of the log, is a `u64` of random bits, made when the
//!   log is created, and stored in the log. The ids of events contain 40 bits of the epoch, except
//!   those of [`IdFormat::Times`].
//! - The epoch of a returned value belongs to its positions. Read the epoch and the positions in
//!   one step, or compare the epoch before and after.
//! - A log that is restored from a backup has its old epoch, and issues positions again that were
//!   used already. The epoch has to change then: automatically if the system can detect the
//!   restore, otherwise by a documented step of the operator.
//!
//! # Watermarks
//!
//! A page is the result of one read of the log. The field `evicted_through` of
//! [`Page`](super::Page) and of [`Bounds`](super::Bounds) is the eviction watermark: records up to
//! this position may be missing. Return the greatest evicted position, or the position before the
//! oldest retained record. A greater value reports gaps that do not exist. A smaller value loses
//! events silently.
//!
//! Eviction can happen during a read. So read the watermark after the records, or together with
//! them. The watermark then covers the records that were evicted in between.
//!
//! The field `through` of a page is its end: the page is complete up to this position. It is at
//! least the watermark. A page without a record of its topics still moves `through` forward;
//! otherwise the hub requests the same page again. On the last page, `through` is the end of the
//! log.
//!
//! # Appending to an unchanged topic
//!
//! With [`append_if_unchanged`](Backend::append_if_unchanged), one of several nodes becomes the
//! publisher of a topic. So the comparison and the append have to be one step in the log. A call of
//! `read` and a call of `append` are two steps. Another process, or another task of the same
//! process, can append in between, and two nodes then publish to the topic.
//!
//! | a log in | one step is, for example |
//! |---|---|
//! | the memory of one process | one lock that is held during the comparison and the append |
//! | SQL | one transaction that takes the lock of the log, and inserts unless the topic has a newer record |
//! | a server with scripts | one script, as in Redis |
//! | a server with conditional writes | a write with the expected last number of the topic, as in NATS |
//!
//! - The caller knows the topic up to the position `since`. Later records that were evicted or
//!   deleted may have been of the topic. Return `None` in this case.
//! - If many other records come after `since`, the comparison can stop and return `None`. The hub
//!   then calls with a later `since`. [`contract::check`] has about 300 such records.
//! - If the implementation sends a request again within one call, the server may already have
//!   stored the records of the first request. The topic has then changed. Find out whether the new
//!   records of the topic are those of the first request before you return `None`. If that is
//!   unknown, return an error.
//!
//! # How a hub calls a backend
//!
//! The follower is the task of a hub that reads the whole log. A node (a process with a hub)
//! *records* a topic if it publishes a stream of the application into the topic. If this node dies,
//! another node takes over: it publishes the [will](crate::hub::Recorder::will) of the recording
//! (an event for this case), if there is one, and finishes the topic.
//!
//! | method | caller | concurrency | after an error |
//! |---|---|---|---|
//! | [`inherit_max_age`](Backend::inherit_max_age), [`configured_max_age`](Backend::configured_max_age) | when a hub connects, before `open`, and the first only if the hub has a `max_age` | one | |
//! | [`open`](Backend::open) | once, when a hub connects, after the methods above and before all others | one | `connect` returns it |
//! | [`bounds`](Backend::bounds) | when a hub connects; the follower after an error, and after two seconds without a record; when a client resumes at a position that the node does not know; for recordings and [members](crate::hub::Topic::members), to learn how far the node has to read the log first, or whether the backend responds | at most two | the follower repeats it after at most 400 ms |
//! | [`follow`](Backend::follow) | the follower, with the end of the previous page | one | `bounds`, then again from the same position |
//! | [`append`](Backend::append) | publishers | any number | the publisher gets it; no retry |
//! | [`append_if_unchanged`](Backend::append_if_unchanged) | the node that records a topic, and nodes that want to take over | any number | the hub calls again with the same records and position |
//! | [`read`](Backend::read) | a client that resumes before the oldest event in the memory of the node | 8 at a time; up to 1,024 different reads run or wait; identical reads share one call | again after 200 to 400 ms |
//!
//! - A log that removes records by their age implements `max_age` and `inherit_max_age`, so that
//!   users set the age once. A backend that wraps another passes both calls on.
//! - When a hub connects, it calls `bounds` and then `follow` from `evicted_through`, until it has
//!   read the whole log, but for at most five seconds. The follower then reads the rest of the log.
//! - The follower compares `bounds` with its position. If three comparisons in a row, two seconds
//!   apart, show newer records while `follow` returns no page, the hub drops the future and calls
//!   `follow` again. Each time this happens, the required number of comparisons doubles.
//! - If the epoch differs, or the log ends before the position of the follower, the hub ends all
//!   subscriptions and starts again with the current log.
//! - Every call except `open` and `follow` has a time limit of ten seconds. The backend needs
//!   shorter limits of its own, so that its errors can name the cause.
//! - A publisher can drop its future, and with it the future of `append`. The futures of `read` and
//!   `bounds` run in tasks of their own, so a client that leaves does not interrupt them.
//!
//! # Example
//!
//! A complete backend. A real implementation has a server instead of the `Mutex`:
//!
//! ```
//! use std::{collections::HashMap, sync::{Arc, Mutex, MutexGuard}};
//! use tokio::sync::watch;
//! use tower_sse::{BoxError, hub::backend::{Appended, Backend, Bounds, Page, Position, Record, contract}};
//!
//! /// A record at index `n` of the list has the position `n + 1`. Only the newest `max_records` count as retained.
//! #[derive(Clone)]
//! struct List {
//!     records: Arc<Mutex<Vec<Record>>>,
//!     last: watch::Sender<Position>,
//!     max_records: u64,
//! }
//!
//! impl List {
//!     fn new(max_records: usize) -> Self {
//!         Self { records: Arc::default(), last: watch::Sender::new(Position::START), max_records: max_records as u64 }
//!     }
//!
//!     fn append_to(&self, mut all: MutexGuard<'_, Vec<Record>>, records: Vec<Record>) -> Appended {
//!         all.extend(records);
//!         let last = Position::new(all.len() as u64);
//!         self.last.send_replace(last);
//!         Appended::new(1, last)
//!     }
//!
//!     fn page(&self, after: Position, is_wanted: impl Fn(&Record) -> bool) -> Page {
//!         let all = self.records.lock().unwrap();
//!         let last = all.len() as u64;
//!         let evicted_through = last.saturating_sub(self.max_records);
//!         let begin = after.get().max(evicted_through).min(last);
//!         let through = last.min(begin + 1000);
//!         let positions = (begin + 1..).map(Position::new);
//!         let records = positions.zip(all[begin as usize..through as usize].iter().cloned());
//!         let mut page = Page::new(1, through.into());
//!         page.evicted_through = evicted_through.into();
//!         page.records = records.filter(|(_, record)| is_wanted(record)).collect();
//!         page
//!     }
//! }
//!
//! impl Backend for List {
//!     async fn bounds(&self) -> Result<Bounds, BoxError> {
//!         let last = *self.last.borrow();
//!         let mut bounds = Bounds::new(1, last);
//!         bounds.evicted_through = last.get().saturating_sub(self.max_records).into();
//!         Ok(bounds)
//!     }
//!
//!     async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
//!         Ok(self.append_to(self.records.lock().unwrap(), records))
//!     }
//!
//!     async fn append_if_unchanged(
//!         &self,
//!         records: Vec<Record>,
//!         epoch: u64,
//!         since: Position,
//!     ) -> Result<Option<Appended>, BoxError> {
//!         // The lock is held until the records are appended.
//!         let all = self.records.lock().unwrap();
//!         let evicted_through = (all.len() as u64).saturating_sub(self.max_records);
//!         let mut newer = all.iter().skip(since.get() as usize);
//!         if epoch != 1 || since.get() < evicted_through || newer.any(|record| record.topic == records[0].topic) {
//!             return Ok(None);
//!         }
//!         Ok(Some(self.append_to(all, records)))
//!     }
//!
//!     async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
//!         Ok(self.page(after, |record| topics.contains(&record.topic)))
//!     }
//!
//!     async fn follow(&self, after: Position) -> Result<Page, BoxError> {
//!         // The guard that `wait_for` returns is dropped at the semicolon. If it lived on, `page` could
//!         // wait for `append`, and `append` for the guard.
//!         self.last.subscribe().wait_for(|last| *last > after).await?;
//!         Ok(self.page(after, |_| true))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let logs = Mutex::new(HashMap::new());
//! contract::check(async |name: &str, max_records| {
//!     logs.lock().unwrap().entry(name.to_owned()).or_insert_with(|| List::new(max_records)).clone()
//! })
//! .await;
//! # }
//! ```
//!
//! # Tests
//!
//! [`contract::check`] (feature `backend-contract`) runs as in the example, against a real server
//! too. It tests one healthy log through the trait. Add tests for the rest:
//!
//! | case | expected |
//! |---|---|
//! | the server stops, and starts again | calls return errors within seconds; afterwards each acknowledged record is read once |
//! | the connection hangs without an error | the same |
//! | the log is deleted and created again | another epoch, before the first record |
//! | the log is restored from an older copy | another epoch, before the next record |
//! | a failover loses the newest records | another epoch, or a limitation that the backend documents |
//! | a program other than a hub writes a record | `read` and `follow` skip it, and return the records after it |
//! | a record is larger than the server accepts | `append` returns an error, and stores none of its records |
//! | the future of `follow` is dropped at any time | the next call returns the same records |
//! | the response to `append_if_unchanged` is lost, and the hub repeats the call | `None`, and one copy of the records |
//! | a request of `append_if_unchanged` arrives after another node has appended | nothing is stored |
//!
//! # Documentation for users
//!
//! Document these points for your backend. [`MemoryBackend`] does so in a sentence, backends with a
//! server in a page:
//!
//! 1. where a record is when `append` returns `Ok`: in memory, on disk, on how many servers;
//! 2. which failures can lose such a record, and whether a gap reports the loss;
//! 3. the retention: its unit, its default, and whether it is exact;
//! 4. the limits: size of a batch, length of a topic name, number of topics;
//! 5. how many connections a node has, and which permissions it needs;
//! 6. the time limits, and which requests are sent again.
//!
//! # Mistakes to avoid
//!
//! - An append that is retried after a timeout, without an identity that lets the server detect the
//!   duplicate. The records are then in the log twice.
//! - A page whose `through` is its last record, although the page has skipped later records of
//!   other programs. The follower then does not get past those records.
//! - A lock that is held while `follow` waits. The append that would wake it waits for the lock.
//! - A `follow` that returns an empty page immediately instead of waiting. The follower then never
//!   sleeps.
//! - `bounds` from a replica that lags. After an error, the follower compares `bounds` with its
//!   position. The log then seems to have lost its newest records, so the hub ends all
//!   subscriptions.
//! - A topic name in a key or subject without escaping. Names are any text, also empty, with spaces
//!   or NUL.

use super::{Backend, IdFormat, MemoryBackend, Position, contract};
