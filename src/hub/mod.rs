//! Publish/subscribe with replay: clients that reconnect get the events that they missed.
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
//! A hub is one ordered log of events. A topic is a label of events, and ids increase across all
//! topics. So one `Last-Event-ID` is enough for [any number of topics](Hub::subscribe) on one
//! connection. A client that has received an id has received every earlier event of its topics, or
//! a report of a gap. The [guarantees](#guarantees) list the exceptions.
//!
//! An event is encoded once, when it is published. A [`Subscription`] is a cursor, not a queue: the
//! topics retain the events, and subscribers at the same position share the same memory. The only
//! cost of a slow client is its cursor. Replayed and live events are one sequence.
//!
//! Ids are opaque. In a hub without a backend they are `<epoch>-<number>` with a random epoch, so
//! the hub recognizes an id from before a restart and reports a gap for it. With a backend, an
//! event has the same id [on all nodes](#several-nodes) and after a restart of any node.
//!
//! # Where a client resumes
//!
//! | the client sends | the client receives |
//! |---|---|
//! | no id, or an empty id | live events ([`Start::Latest`]), or all retained events if the handler subscribes with `last.or(Start::Earliest)` |
//! | the newest id | live events |
//! | the id of a retained event | the events after it |
//! | the id immediately before the oldest retained event | all retained events; nothing is missing |
//! | an older id | a gap (`evicted`), then all retained events |
//! | the id of an event of another topic | the later events of its own topics, after a gap (`evicted`) if some events are no longer retained |
//! | an id greater than any that was issued | a gap (`ahead`), then all retained events |
//! | an id of another epoch: from before a restart, or of another hub | a gap (`other_epoch`), then all retained events |
//! | anything else, such as `7` or `yesterday` | a gap (`malformed`), then all retained events |
//! | the id of the last event of a finished topic, or a newer id | `204 No Content`, which stops an `EventSource` |
//! | no id, for a finished topic and with [`Start::Latest`] | `204 No Content` |
//! | any other id, for a finished topic | the same as for an unfinished topic; the stream ends after the last event |
//! | any valid id, for a topic that was created again after all of its events had expired | the events after the id, after a gap (`evicted`) if events after the id have expired |
//!
//! For the last row, the hub remembers up to 10,000 expired topics. Beyond this number, the hub may
//! report the gap of that row although no event is missing.
//!
//! The stream of each client begins with the client's cursor, as an event of type `hub-cursor` with
//! empty data. So the client has an id before the first event. (An id without an event is not
//! enough. Firefox ignores it, and WebKit applies it with the next event that has data.) See
//! [`begin_with_cursor`](Subscription::begin_with_cursor) and
//! [`without_control_events`](Subscription::without_control_events). In a hub with a backend, a
//! client whose topics are quiet gets [further `hub-cursor` events](#several-nodes). In a hub
//! without a backend, clients get further `hub-cursor` events only after more than 10,000 topics
//! have expired.
//!
//! In a subscription to several topics, the table applies to each topic separately, but one gap is
//! reported for all topics together. For clients without an id, each topic can have [its own
//! start](Hub::subscribe). An id grants no access: a client receives the topics that the handler
//! chooses.
//!
//! # Gaps
//!
//! Missing events are reported as a [`Gap`]: to the handler before it responds, and to the client
//! as an event of type `gap` before the events that follow. With a backend, there are a few
//! [exceptions](#guarantees). A client that falls behind the retention of its topics gets a gap as
//! well, or is [disconnected](LagPolicy::Disconnect). A client that loses its connection before it
//! has caught up may get the same gap twice. The names `gap` and `hub-cursor` are reserved:
//! publishing them is an [error](ErrorKind::ReservedName).
//!
//! In a topic that is a [state](Topic::latest_only), an event replaces the previous event. The
//! replaced event is not a gap. A client that is slower than the updates of several such topics
//! receives the newest events of these topics [in turn](Topic::latest_only).
//!
//! # Consumers in Rust
//!
//! [`Hub::listen`] returns a stream of decoded events with their topics, for workers, WebSocket
//! bridges and filters per client. The stream of [`Hub::read`] ends after the events that the log
//! contains now. [`Topic::listen`] and [`Topic::read`] do the same for one topic.
//!
//! # What a hub does not have
//!
//! - **A list of topics.** [`Hub::stats`] returns only their number. Keep the names in the
//!   application. [`Topic::exists`] checks one name.
//! - **Subscriptions to patterns**, such as `orders/*`. Name up to 1,000 topics in one
//!   [subscription](Hub::subscribe), or publish all events of the kind to one topic. A
//!   [listener](Hub::listen) can filter the events of this topic for each client.
//! - **Other topics for an open stream.** The topics of a subscription do not change. To add or to
//!   revoke a topic, end the stream with [`SseStream::end_when`](crate::SseStream::end_when) or
//!   with [`StreamRegistry::close`](crate::StreamRegistry::close). The client reconnects, and the
//!   handler subscribes it to the topics that it may read now. The client's id applies to all of
//!   these topics, so the client gets no event of an added topic from before this id.
//!
//! # Snapshots for late clients
//!
//! A client that needs a state before the first event can
//! [begin with a snapshot](Subscription::begin_with) of one or several events.
//!
//! # Retention
//!
//! Each topic retains its newest events within [`max_events`](Builder::max_events),
//! [`max_bytes`](Builder::max_bytes) and [`max_age`](Builder::max_age). [`Topic::retention`] sets
//! other limits for one topic. One task per hub frees expired events and drops expired topics. It
//! runs on the tokio runtime of the first publisher. If that runtime has no timers, tokio panics in
//! this task once, and the task ends. In that case, and outside of any runtime, publishers and
//! subscribers remove expired events instead. [`Topic::remove`] frees a topic immediately.
//!
//! # Costs
//!
//! - `publish` wakes up to 32 subscribers itself. A task on the runtime of the publisher wakes the
//!   others, and other tasks have their turn in between. Outside of a runtime, `publish` wakes all
//!   subscribers.
//! - The cost of delivering an event does not depend on the number of topics of the subscription.
//!   The first read of a subscription looks for events in all of its topics, 256 topics per poll.
//! - A topic with frequent events costs less if its subscriptions
//!   [wait for more events](Subscription::linger) after a write to the client.
//!
//! # Several nodes
//!
//! Behind a load balancer, a client may reconnect to another process. [`Builder::backend`] connects
//! the hubs of all processes to one log, in Redis, in NATS, in Postgres, or in any other
//! [backend](backend::Backend). Each process is a node: one task reads the log, and the node
//! retains the newest events as a hub without a backend does. Clients that resume after one of
//! these events cause no request to the backend.
//!
//! | | in memory | `RedisBackend` (feature `redis`) | `NatsBackend` (feature `nats`) |
//! |---|---|---|---|
//! | a published event is stored | in the memory of the process | in the stream of the server | in the stream, on a majority of the servers that store it |
//! | ids | `<epoch>-<number>` | `<milliseconds>-<number>`, the ids of the stream | `<epoch>-<number>`, with the sequence number of the NATS message; `<epoch>-<number>-<n>` for an event before the last one of its message |
//! | order | one for all topics | one for all topics and nodes | one for all topics and nodes |
//! | retention | per topic, by the settings of the hub | for all topics together, by the settings of the backend; and on each node by those of the hub | as for Redis |
//! | after a restart of the node | nothing is left | everything is left | everything is left |
//! | a `publish` that the server does not answer | cannot happen | an error; the event may be in the log, once | an error; the event may be in the log, once |
//!
//! `PostgresBackend` (feature `postgres`) has one order for all topics, nodes and transactions, and
//! ids of the form `<epoch>-<number>`. When `publish` succeeds, the event is committed.
//! Applications can also publish with SQL, in their own transactions.
//!
//! The documentation of each backend has its further guarantees, above all which events a failover
//! can lose.
//!
//! `FileBackend` (feature `file`) is for one process. Its log is in a file, so that clients resume
//! after a restart without a gap. The following points apply to all backends, also to
//! `FileBackend`.
//!
//! - **While the backend is down**, `publish` and `finish` return [errors](ErrorKind::Backend).
//!   Subscriptions stay open with heartbeats. New clients receive the events that the node retains,
//!   and wait for the other events. [`Subscription::gap`] cannot report a gap yet, so the client
//!   gets it as an event later. The node continues within a second after the outage.
//! - **Many returning clients** share the reads of old events. A node sends the backend at most 8
//!   reads at a time, and up to 1,024 different reads run or wait. If a subscription needs a
//!   further read, subscribing returns an [error](ErrorKind::Overloaded). A waiting read is not
//!   sent if all of its clients have left.
//! - **A node can be behind** the log, and so behind another node. A client can reconnect to the
//!   slower node with an id that this node has not read yet. The client then resumes after this id,
//!   and receives no event twice. If the node knows that the log has evicted events after the id,
//!   the client gets the gap at once.
//! - **A topic** becomes [finished](Topic::finish), a [state](Topic::latest_only) or
//!   [existing](Topic::exists) on a node when the node reads the record of this change in the log.
//!   [`Topic::exists_in_log`] also finds topics that the node has not read, or has forgotten.
//! - **A gap** is reported if the backend may have evicted an event of the client's topics. A
//!   backend tracks eviction for the whole log, not per topic. So a client that was away for longer
//!   than the backend's retention always gets a gap, even if its topics had no events.
//! - **The cursor of a quiet client** follows the log. If the topics of a connected client have no
//!   events, but other topics have, the next heartbeat contains a `hub-cursor` event with the
//!   newest position, in place of the comment. The client gets the same event when the hub, a layer
//!   or the handler ends its stream early. So the id of a connected client stays within the
//!   backend's retention, and the client moves to another node without a gap. The retention must be
//!   longer than the interval of heartbeats. A stream without heartbeats gets the event only at its
//!   early end. A response with several subscriptions or with a [listener](Hub::listen), and
//!   clients [without control events](Subscription::without_control_events), never get it.
//! - **A replaced log**, which was deleted and created again, or restored from a backup, ends all
//!   subscriptions with [`SubscriptionError::LogReplaced`]. Returning clients get a gap
//!   (`other_epoch` or `ahead`). The ids of Redis contain no epoch. So with Redis, subscriptions
//!   stay open, and their clients get a gap (`lagged`). Returning clients get a gap (`evicted`, or
//!   `ahead` for an id that is too new).
//!
//! # Guarantees
//!
//! The tests are `tests/hub*.rs`, and `tests/nodes` for several nodes.
//!
//! 1. Every event after the cursor of a subscriber arrives once and in order, or a gap is reported.
//! 2. An event becomes visible only after every event with a smaller id.
//! 3. Publishing never waits for a subscriber, and does not allocate per subscriber.
//! 4. A slow or vanished client costs bounded memory, and does not delay other clients.
//! 5. The id of a gap, a snapshot or a `hub-cursor` event is a log position. Every event of the
//!    client's topics up to this position was delivered or reported as missing.
//!
//! With a backend, the guarantees are the same as long as the backend keeps its events, or evicts
//! them by its retention. If a server or a file loses events in another way, the backend usually
//! detects the loss, and clients get a gap. A loss that the backend does not detect is not
//! reported. The backends document these exceptions:
//!
//! - [`RedisBackend`](backend::RedisBackend#what-it-reports-as-a-gap): a loss in a failover,
//!   restart or restore, if all processes that have read or published the lost events have ended,
//!   or have no permission to write to the server. After a failover, a client can also get later
//!   events before it gets the gap.
//! - [`NatsBackend`](backend::NatsBackend#what-it-guarantees): a loss of messages, if all nodes
//!   that have read or published them have stopped before.
//! - [`PostgresBackend`](backend::PostgresBackend#what-it-reports-as-a-gap): a loss while no node
//!   runs, because an older copy replaces the data, or because a crash loses commits
//!   (`synchronous_commit = off`). Also a failover that loses commits, if nodes cannot call
//!   `pg_control_system` and `pg_walfile_name`, which show the failover.
//! - [`FileBackend`](backend::FileBackend#restarts-backups-and-epochs): a restored snapshot of the
//!   whole file system, and copies that keep the old times of the files.

pub mod backend;
mod builder;
mod config;
mod core;
mod count_watch;
mod delivery;
#[cfg(feature = "durable-streams")]
pub mod durable_streams;
mod error;
mod finish;
mod gap;
mod handle;
mod id;
mod item;
mod janitor;
mod linger;
mod listener;
mod log;
mod merge;
mod node;
mod outage;
mod presence;
mod publish;
mod reader;
mod readers;
mod ready_list;
mod recording;
mod registry;
mod replay;
mod resume;
mod retention;
mod search;
mod segment;
mod start;
mod stats;
mod stream_registries;
mod subscribe;
mod subscriber_counts;
mod subscription;
mod sync;
mod topic;
mod topic_state;
mod waiters;
mod wake_queue;

pub use builder::{Builder, Connector};
pub use error::{Error, ErrorKind, SubscriptionError};
pub use gap::{Gap, GapReason, LagPolicy};
pub use handle::Hub;
pub use listener::{Listener, Published};
pub use presence::{Presence, PresenceStream};
pub use recording::{Outcome, Recorder, Recording};
pub use retention::Retention;
pub use start::{IntoTopicStart, Start};
pub use stats::Stats;
#[cfg(feature = "json")]
pub(crate) use stream_registries::{Announcements, CLOSED_STREAMS, RegistryName};
pub use subscriber_counts::SubscriberCounts;
pub use subscription::Subscription;
pub use topic::Topic;
