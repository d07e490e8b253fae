//! A hub: topics that are published to, and clients that come back to where they were.
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, extract::State, routing::{get, post}};
//! use tower_sse::{Event, LastEventId, hub::{Error, Hub, Subscription}};
//!
//! async fn say(State(hub): State<Hub>, text: String) -> Result<(), Error> {
//!     hub.topic("lobby").publish(Event::new(text)).await?;
//!     Ok(())
//! }
//!
//! async fn listen(State(hub): State<Hub>, last: LastEventId) -> Result<Subscription, Error> {
//!     hub.topic("lobby").subscribe(last).await
//! }
//!
//! let app: Router = Router::new().route("/", get(listen)).route("/", post(say)).with_state(Hub::new());
//! # }
//! ```
//!
//! # One log
//!
//! A hub is one ordered log, and a topic is a label in it: ids rise across all topics. So one
//! `Last-Event-ID` is enough for [any number of topics](Hub::subscribe) on one connection, and a
//! client that holds an id has, or was told that it missed, all that came before it in its topics.
//!
//! An event is encoded once, when it is published. A [`Subscription`] is a cursor, not a queue:
//! what a client has not got yet is not kept for it, but by the topics for everybody. Who is at the
//! same place gets the same memory, and a client that is slow or gone costs nothing but its cursor.
//! History and what is live are one sequence, without a seam between them.
//!
//! Ids are opaque. In memory they are `<epoch>-<number>`, where the epoch is random: after a
//! restart the ids of before are known not to be ours. With a backend they are the same
//! [on all nodes](#several-nodes) and after a restart of any.
//!
//! # Where a client goes on
//!
//! | the client sends | it gets |
//! |---|---|
//! | no id, or an empty one | what is published from now on ([`Start::Latest`]), or what the handler says: `last.or(Start::Earliest)` |
//! | the newest id | what is published from now on |
//! | an id that is held, the oldest too | what follows it |
//! | the last one before the oldest that is held | all that is held: nothing is missing |
//! | an older one | a gap (`evicted`), then all that is held |
//! | an id of an event of another topic | what followed that event in its own topics, with a gap (`evicted`) if some of it is no longer held |
//! | one that is greater than any that was issued | a gap (`ahead`), then all that is held |
//! | an id of another epoch: of before a restart, or of another hub | a gap (`other_epoch`), then all that is held |
//! | anything else: `7`, `yesterday` | a gap (`malformed`), then all that is held |
//! | the last id of a finished topic, or none and wants what comes from now on | `204 No Content`: an `EventSource` stays away |
//! | another id of a finished topic | the same as if it were not finished, and then the end |
//! | an id of a topic that was dropped for its age and made anew | what follows it; a gap (`evicted`) first, if events after it were lost, or if so many topics were dropped since (10,000) that it is no longer known |
//!
//! So that a new client has an id before the first event, its stream begins with the place in the
//! log where it came: an event of type `hub-cursor` with empty data, which is of no interest to a
//! page. (Firefox and WebKit take no id from less.) See
//! [`begin_with_cursor`](Subscription::begin_with_cursor), and
//! [`without_cursor`](Subscription::without_cursor).
//!
//! With many topics each row holds for each of them, and one gap is told for all. A place in the
//! log grants nothing: a client gets the topics that the handler asks for, whatever its id points
//! to.
//!
//! # Gaps
//!
//! What cannot be had any more is never passed over in silence: there is a [`Gap`] then, for the
//! handler before it answers, and for the client as an event of type `gap` before those that
//! follow. A client that is slower than what its topics hold gets one too, or is
//! [disconnected](LagPolicy::Disconnect). One that loses its connection again before it has caught
//! up may be told twice. The names `gap` and `hub-cursor` are the hub's: give them to no event of
//! yours.
//!
//! A topic that is a [state](Topic::latest_only) loses nothing when an event replaces the one
//! before it.
//!
//! # Late joiners
//!
//! A client that needs a state before it can make use of events
//! [begins with a snapshot](Subscription::begin_with).
//!
//! # What is held, and for how long
//!
//! Each topic holds its last events, as many as all of [`max_events`](Builder::max_events),
//! [`max_bytes`](Builder::max_bytes) and [`max_age`](Builder::max_age) allow. Time passes without
//! traffic: one task for each hub, on the runtime of whoever published first, gives back the memory
//! of what is too old, and drops topics that are. It panics, once, if that runtime has no timers;
//! then, and outside of any runtime, those who publish and subscribe do its work.
//!
//! # Several nodes
//!
//! Behind a load balancer a client comes back to another process. [`Builder::backend`] makes one
//! hub of them: its log is in Redis, NATS or [whatever](backend::Backend) keeps one, and each
//! process, a node, follows it and holds its newest events as a hub in memory does. Whoever is up
//! to date, or asks for what a node still holds, costs the backend nothing: it has one reader for
//! each process, whatever the number of clients.
//!
//! | | in memory | `RedisBackend` (feature `redis`) | `NatsBackend` (feature `nats`) |
//! |---|---|---|---|
//! | published is | in this process | in the stream of the server | acknowledged by the stream, on as many servers as it has replicas |
//! | ids | `<epoch>-<number>` | `<milliseconds>-<number>`, those of the stream | `<epoch>-<number>`, that of the stream; an event in the middle of a `publish_all` has one more number |
//! | order | one, of all topics | one, of all topics and nodes | one, of all topics and nodes |
//! | held | for each topic, by the hub's limits | for all topics together, by the backend's; and on each node by the hub's | as for Redis |
//! | after a restart of the node | nothing | everything | everything |
//! | a `publish` without an answer | does not happen | an error; it may have happened, once | an error; it may have happened, once |
//!
//! What holds of each of them beyond that is said by the backend: what a failover may lose above
//! all.
//!
//! - **While the backend is down**, `publish` and `finish` are [errors](ErrorKind::Backend).
//!   Subscriptions stay open, on heartbeats, and those who come get what the node holds; for what
//!   it does not they wait, and [`Subscription::gap`] does not know yet whether there is one: the
//!   client gets it as an event. When the backend is back, the node goes on after what it has read
//!   last, within a second.
//! - **Many returning clients** share history reads. A node sends the backend at most 8 reads at a
//!   time, and up to 1,024 different reads run or wait. Subscribing returns an
//!   [error](ErrorKind::Overloaded) for one more. A read whose clients have all left is not sent.
//! - **A node can be behind** the log, and so behind another node, by as much as it takes to read
//!   it. A client that comes back to it with a newer id goes on after that id: it gets nothing
//!   twice. What was published on a node before somebody subscribes there is not new to them.
//! - **A topic** is [finished](Topic::finish), [a state](Topic::latest_only), or
//!   [there](Topic::exists) on a node as soon as that has read so. What is published between is not
//!   lost: see there.
//! - **A gap** is told if what the backend no longer holds may have had something for the client:
//!   that is known for all topics together, so a client that was away for longer than the backend's
//!   retention is told whatever its topics were.
//! - **Another log** under the same name, one that was deleted and made anew, or a backup that was
//!   restored, ends all subscriptions. Who comes back has a gap (`other_epoch`, or `ahead`).
//!
//! # Guarantees
//!
//! Tested in `tests/hub*.rs`, and for several nodes in `tests/nodes`. They are the same with a
//! backend as without one.
//!
//! 1. Every event after a subscriber's place arrives once and in the order of the hub, or a gap is
//!    told.
//! 2. No event can be seen before every one with a smaller id can be.
//! 3. To publish never waits for a subscriber, and allocates nothing for each of them.
//! 4. A client that is slow or has vanished costs bounded memory, and nobody else any time.
//! 5. The events that the hub makes itself, gaps, snapshots and checkpoints, have no id but a place
//!    in the log to which all before it was handed out or told as missing.

pub mod backend;
mod builder;
mod config;
mod core;
mod delivery;
mod error;
mod gap;
mod handle;
mod id;
mod janitor;
mod log;
mod node;
mod reader;
mod registry;
mod replay;
mod resume;
mod segment;
mod start;
mod stats;
mod subscribe;
mod subscription;
mod sync;
mod topic;
mod topic_state;
mod waiters;

pub use builder::{Builder, Connector};
pub use error::{Error, ErrorKind, SubscriptionError};
pub use gap::{Gap, GapReason, LagPolicy};
pub use handle::Hub;
pub use start::Start;
pub use stats::Stats;
pub use subscription::Subscription;
pub use topic::Topic;
