//! Server-sent events for the tower ecosystem: a middleware for any event stream, an axum responder
//! and extractor, and publish/subscribe with replay after `Last-Event-ID`.
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//! use std::time::Duration;
//! use tokio_stream::{Stream, StreamExt};
//! use tower_sse::{Event, LastEventId, LastEventIdRejection, SseLayer, SseStream};
//!
//! /// Counts, one number per second. A client that reconnects continues after its last number.
//! async fn count(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, LastEventIdRejection> {
//!     let next = last.parse::<u64>()?.map_or(0, |seen| seen.saturating_add(1));
//!     let events = tokio_stream::iter(next..=u64::MAX).map(|n| Event::display(n).event("count").id(n));
//!     Ok(SseStream::new(events.throttle(Duration::from_secs(1))))
//! }
//!
//! let app: Router = Router::new().route("/count", get(count)).layer(SseLayer::new());
//! # }
//! ```
//!
//! # Data flow
//!
//! ```text
//! Event ──encode──▶ wire bytes ──▶ SseStream (responder) ──▶ SseBody ─┐
//!                                                                     ├─▶ SseLayer ──▶ hyper ──▶ client
//! any other text/event-stream body ───────────────────────────────────┘
//! client's Last-Event-ID ──▶ LastEventId ──▶ Hub / Topic ──▶ Subscription (already wire bytes) ──▶ SseStream
//!                                             ▲     │
//! the hubs of other processes ◀──▶ Backend ───┴─────┘ (a file, Redis, NATS, Postgres; or none: the hub is in memory)
//! ```
//!
//! - [`Event`] is one message. Its [name](EventName) and [id](EventId) are checked types, so text
//!   from users cannot break the format. [`EncodedEvents`] are encoded once for many clients.
//! - [`SseStream`] is a response. Its body, [`SseBody`], joins events that are ready together into
//!   one frame, and sends a [`Heartbeat`] in silence.
//! - [`SseLayer`] is the middleware, also for other frameworks' responders and for upstream streams
//!   behind a proxy. It adds missing headers, keeps compressors away, and puts heartbeats between
//!   the lines. An [`SseStream`] inside the layer takes the settings of the layer, and applies them
//!   in its own body.
//! - [`LastEventId`] is the id that a client sends when it reconnects.
//!   [`StopReconnecting`] is the response that stops it from reconnecting.
//!   [`RetryLater`] is the response after which it reconnects later, for example in an overload.
//! - A [`hub`] has topics with replay, and subscriptions that resume. With a
//!   [backend](hub::backend), [several servers](hub#several-nodes) share one hub.
//!
//! # In production
//!
//! An [`SseLayer`] ends streams in a [graceful shutdown](SseLayer::shutdown) and after their
//! [lifetime](SseLayer::max_lifetime), [limits](SseLayer::max_streams) their number, and
//! [reports](SseLayer::on_close) how each stream ended ([`StreamSummary`]). `ClientTimeout`
//! (feature `socket`) closes the connections of stalled and vanished clients, which no response
//! body can detect.
//!
//! For handlers that return axum's `Sse`, see
//! [`from_axum_sse`](https://docs.rs/tower-sse/latest/tower_sse/from_axum_sse/index.html).
//!
//! # In tests
//!
//! The module [`test`](mod@test) (feature `test-util`) reads the events of a response, with a
//! deadline. It contains the guide to tests of your handlers.
//!
//! # Guarantees
//!
//! Each guarantee names its tests, which are files below `tests/`.
//!
//! 1. For every upstream byte sequence, chunking and heartbeat timing, a parser that follows the
//!    standard dispatches the same events with and without the layer (`layer_is_transparent`). The
//!    exceptions are events that the application sets: a [heartbeat event](Heartbeat::event), the
//!    [shutdown event](SseLayer::shutdown_event), and the last event of
//!    [`close_with`](StreamRegistry::close_with).
//! 2. For every [`Event`] with data or a name, such a parser dispatches exactly one message with
//!    the same fields. For any other event it dispatches none (`events`).
//! 3. Events before an error reach the transport before the error. The error is delayed by up to
//!    250 milliseconds, so that the transport can flush (`sse_stream`, `broken_transfers`).
//! 4. A response that is not an event stream passes the layer unchanged, except for [temporary
//!    errors of a hub](SseLayer::when_full). It passes without an allocation, unless the layer
//!    [registers](SseLayer::register) streams, has [limits](SseLayer::max_streams_per) for several
//!    keys, or [reports](SseLayer::on_close_with) streams with values of their requests (`layer`,
//!    `allocations`, `grpc`).
//! 5. Every event after the cursor (the last id) of a subscriber arrives once and in order, or
//!    missing events are reported as a gap (`hub_model`, `hub_cursors`, `hub_stress`,
//!    `interleavings`; with several nodes `nodes`). With a backend, there are a few
//!    [exceptions](hub#guarantees), which each backend documents.
//! 6. A slow or vanished subscriber costs bounded memory, and does not delay other clients
//!    (`allocations`, `hub_on_the_wire`).
//! 7. A shutdown ends every open stream after the [flush time](SseLayer::flush_time), and with a
//!    reconnect delay. A stream that always has ready items ends after at most 16,384 more
//!    (`lifecycle`, `lifecycle_on_the_wire`). There are three exceptions. An upstream stream in the
//!    middle of an event has 250 milliseconds to complete it, and is then cut off. A stream with a
//!    `Content-Encoding` ends without a delay, also in the middle of an event. A
//!    [finite](SseLayer::finite) stream may continue for the
//!    [drain timeout](SseLayer::drain_timeout). If it ends within this time, it sends no delay.
//! 8. After a [`StreamRegistry`] has closed the streams of a key, nothing that is published later
//!    reaches them (`lifecycle`). After `close_everywhere`, the same holds on all nodes of a hub,
//!    also on a node that reads the log late (`nodes`).
//! 9. Open streams never exceed a limit. Each stream counts until its body is dropped, and is
//!    reported exactly once (`lifecycle`).
//! 10. A panic in an application callback does not abort the process. The other callbacks still
//!     run, and the stream stops counting at its end (`callbacks`).
//! 11. No compressor inside the layer compresses the response to a request whose `Accept` names
//!     `text/event-stream`. A compressor outside the layer does not compress it either if the
//!     compressor honours the content type or `no-transform` (`compression`).
//!
//! # Features
//!
//! | feature | default | purpose | adds |
//! |---|---|---|---|
//! | `axum` | yes | [`SseStream`] as a response, [`LastEventId`] as an extractor | `axum-core` |
//! | `json` | yes | [`Event::json`], [`Event::tagged`], [`SseStream::json`], [`SseStream::tagged`] | `serde_core`, `serde_json` |
//! | `hub` | yes | [`hub`] | `serde_json` |
//! | `file` | no | a [`hub`] whose log is in a file, for restarts without gaps; needs Rust 1.90 | `redb`, `xxhash-rust` |
//! | `redis` | no | a [`hub`] of several servers whose log is in Redis Streams | `redis` |
//! | `redis-tls` | no | the same over TLS, `rediss://` | `tokio-rustls`, `rustls-native-certs` |
//! | `nats` | no | a [`hub`] of several servers whose log is in NATS JetStream | `async-nats` |
//! | `postgres` | no | a [`hub`] of several servers whose log is in Postgres, and publishing in SQL | `tokio-postgres` |
//! | `postgres-tls` | no | the same over TLS, `sslmode=require` | `tokio-rustls`, `rustls-native-certs` |
//! | `durable-streams` | no | [`hub::durable_streams`]: topics for the clients of the Durable Streams protocol | `base64`, `serde_core` |
//! | `backend-contract` | no | tests for your own [`Backend`](hub::backend::Backend) | |
//! | `serve` | no | a server for many long streams, in the place of `axum::serve` | `axum`, `hyper`, `hyper-util` |
//! | `socket` | no | `ClientTimeout`, for stalled and vanished clients | `socket2` |
//! | `metrics` | no | [counters, gauges and histograms](#metrics) | `metrics` |
//! | `test-util` | no | [`test`](mod@test): reads the events of a response in tests | `serde_core`, `serde_json` |
//! | `tracing` | no | a [span](#spans) for each stream | `tracing` |
//! | `utoipa` | no | [`openapi`]: descriptions of event streams in an OpenAPI 3.2 document (Rust 1.88) | `utoipa` |
//!
//! # Metrics
//!
//! With the feature `metrics`, every [`SseStream`] and every upstream event stream that passes an
//! [`SseLayer`] is counted. The application installs a recorder for the
//! [`metrics`](https://docs.rs/metrics) facade.
//!
//! | name | type | unit | labels | counts |
//! |---|---|---|---|---|
//! | `tower_sse_streams_active` | gauge | streams | | open streams |
//! | `tower_sse_streams_closed_total` | counter | streams | `reason` | ended streams, by [reason](CloseReason::as_str) |
//! | `tower_sse_streams_refused_total` | counter | streams | | requests over a [limit](SseLayer::max_streams), and [errors of a hub](SseLayer::when_full) that a layer has replaced |
//! | `tower_sse_stream_duration_seconds` | histogram | seconds | | the duration of each stream, recorded at its end |
//! | `tower_sse_events_sent_total` | counter | events | | events passed to the transport |
//! | `tower_sse_bytes_sent_total` | counter | bytes | | bytes passed to the transport, including heartbeats |
//! | `tower_sse_heartbeats_sent_total` | counter | heartbeats | | heartbeats passed to the transport, and the comment that begins a stream without a ready event |
//! | `tower_sse_hub_gaps_total` | counter | gaps | `reason` | gaps reported by a [`hub`], by [reason](hub::GapReason::as_str) |
//! | `tower_sse_hub_backend_failures_total` | counter | requests | `operation` | failed requests to the backend of a [`hub`]: `publish`, `read` (old events for clients), `bounds` (the first and last position of the log), `follow` (new records for the follower, the task that reads the log) and `evict` (the deletion of old records in Postgres) |
//! | `tower_sse_hub_reads_rejected_total` | counter | reads | | history reads that a [`hub`] rejected because [too many were running or waiting](hub::ErrorKind::Overloaded) |
//!
//! A stream counts from its first poll until its body is dropped. A response that is never sent,
//! such as the response to `HEAD`, does not count. An upstream stream with a `Content-Encoding`
//! counts only if a layer limits it, can end it, or has an `on_close` or `on_close_with` callback.
//! Its events are not counted. The counters are updated once per frame. A metrics recorder counts
//! only the streams that begin after it was installed, so install it first.
//!
//! # Spans
//!
//! With the feature `tracing`, each stream has a span `event_stream` with the target `tower_sse`
//! and the level `INFO`. It is the current span while the stream is polled, and in `on_close`. Its
//! parent is the current span at the creation of the response, usually the span of the request
//! (tower-http's `TraceLayer`, which can also name axum's `MatchedPath`). Its fields:
//!
//! | field | value |
//! |---|---|
//! | `method`, `path` | the request as the outermost [`SseLayer`] sees it, without the query |
//! | the fields of [`StreamSummary`] | the `reason` as its [label](CloseReason::as_str), the `duration` in seconds, and the counts |
//!
//! All fields but the first two are recorded at the end of the stream.
//!
//! # Log events
//!
//! With the feature `tracing`, these events have the target `tower_sse`. The events `stream ended`
//! and `stream failed` are in the span of their stream. So is `gap reported`, if the client was too
//! slow.
//!
//! | event | level | fields | logged |
//! |---|---|---|---|
//! | `stream ended` | `DEBUG` | | at the end of a stream |
//! | `stream failed` | `WARN` | `error` of an [`SseStream`] | for an error of a stream |
//! | `stream refused` | `DEBUG` | `method`, `path`, `error` of a hub | for a request over a [limit](SseLayer::when_full), and for an [error of a hub](SseLayer::when_full) that a layer has replaced |
//! | `callback panicked` | `ERROR` | `callback` | for a panic in a callback of the application, such as `on_close` |
//! | `finished subscription is not answered with 204` … | `WARN` | | if an adapter hides the end of a finished [subscription](hub::Subscription#adapters) |
//! | `close not announced` | `ERROR` | `error` | if the key of a [`StreamRegistry`] does not serialize to JSON, so that other nodes do not close their streams |
//! | `close not announced yet` | `WARN` | `error` | if the hub does not accept an announcement of a [`StreamRegistry`]; once until all are published |
//! | `closes announced` | `INFO` | | when a later attempt has published all these announcements |
//! | `socket options not set` | `WARN` | `error` | if the socket of a connection of `serve` does not accept the options of its `ClientTimeout` |
//! | `shutdown timed out` | `WARN` | `connections` | if the `shutdown_timeout` of `serve` closes this number of connections |
//! | `connection closed: too many cancelled requests` | `WARN` | | if an HTTP/2 client of `serve` cancels too many requests |
//! | `gap reported` | `DEBUG` | `reason`, `topic` | for a [gap](hub#guarantees) that a subscription gets; `topic` is its first topic |
//! | `backend is still opening its log` | `WARN` | `seconds` | if a hub waits longer than five seconds for its backend to open a log |
//! | `backend failed` | `WARN` | `operation`, `error` | for the first failure of an outage |
//! | `backend recovered` | `INFO` | `operation` | at the next successful request of this operation |
//! | `history reads rejected` | `WARN` | `limit` | once, if a hub rejects history reads because [too many run or wait](hub::ErrorKind::Overloaded) |
//! | `history reads accepted` | `INFO` | | for the first read that finds at most half of this limit in use |
//! | `recording of a dead node finished` | `DEBUG` | `topic` | if this node finishes the [recording](hub::Topic::record) of a dead node |
//! | `recordings of a dead node finished` | `WARN` | `recordings` | once, when this node has finished all recordings of that node that it takes over |
//!
//! The operations of a backend are `read` for old events that clients need, `bounds` for the first
//! and last position of the log, `follow` for the task that reads the log, `evict` for the deletion
//! of old records in Postgres, and `recording`. An error of `publish` is returned to the publisher
//! and is not logged. The operation `recording` is for the [recordings](hub::Topic::record) of the
//! node, which are tasks that publish a stream into a topic. Their appends to the log wait during
//! the outage. Such an outage ends when an append succeeds and no recording waits any more.
//!
//! # Runtime
//!
//! Heartbeats, lifetimes, drain timeouts and the delay before an error need tokio's timer. A body
//! that needs the timer panics in a runtime without timers. Outside of any tokio runtime, the error
//! comes without the delay. So a stream without heartbeats ([`SseStream::without_heartbeat`]) and
//! without time limits runs on any executor. A stream has no task. `serve` has one task for each
//! connection, and over HTTP/2 one for each running handler. A [`hub`] has one task that removes
//! expired events. With a backend, it has one more that follows the log, and one for each running
//! history read. A log in a file has one for the replies to publishers. A [`StreamRegistry`] that
//! follows a hub has two, and one more with `fail_closed_after`. Further tasks run while they are
//! needed: to wake many subscribers, for recordings, and for the present
//! [members](hub::Topic::join) of topics.
//!
//! # Scope
//!
//! This crate has no HTTP parser and no client: `serve` leaves requests and heads to hyper. For
//! cross-origin requests, use tower-http's `CorsLayer`. Authentication belongs to the handler.
//!
//! The format is defined by the [HTML standard, "Server-sent events"][standard].
//!
//! [standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
mod axum;
mod body;
mod callback;
mod event;
#[cfg(all(any(doc, doctest), feature = "axum", feature = "hub", feature = "json"))]
pub mod from_axum_sse;
mod headers;
mod heartbeat;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "json")]
mod json;
mod last_event_id;
mod layer;
mod limit;
mod metrics;
#[cfg(feature = "utoipa")]
pub mod openapi;
mod preamble;
mod random;
mod registry;
mod rejection;
mod retry_later;
#[cfg(feature = "serve")]
pub mod serve;
mod service;
mod settings;
#[cfg(feature = "socket")]
mod socket;
mod stream;
mod summary;
#[cfg(feature = "test-util")]
pub mod test;
mod trace;

pub use body::{ResponseBody, SseBody};
pub use event::{
    EncodedEvents, Event, EventId, EventName, FieldError, FieldErrorKind, IntoEventId, IntoEventName, SseItem,
};
pub use heartbeat::Heartbeat;
#[cfg(feature = "json")]
pub use json::{JsonError, JsonEvents, TryJsonEvents};
pub use last_event_id::{LastEventId, LastEventIdRejection};
pub use layer::SseLayer;
pub use limit::Overload;
pub use registry::{RegisteredStream, StreamRegistry};
pub use retry_later::RetryLater;
#[cfg(feature = "serve")]
pub use serve::serve;
pub use service::{ResponseFuture, SseService};
#[cfg(feature = "socket")]
pub use socket::ClientTimeout;
pub use stream::{SseStream, StopReconnecting};
pub use summary::{CloseReason, StreamSummary};

/// A boxed error of any type that is `Send` and `Sync`. It is the same type as `BoxError` in tower
/// and axum.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
