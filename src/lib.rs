//! Server-sent events for the tower ecosystem: a middleware that makes any event stream a correct
//! one, an axum responder and extractor that let a handler return a plain stream, and a hub from
//! which a client that comes back gets what it missed.
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//! use std::time::Duration;
//! use tokio_stream::{Stream, StreamExt};
//! use tower_sse::{Event, LastEventId, LastEventIdRejection, SseLayer, SseStream};
//!
//! /// Counts, one number a second. A client that comes back goes on where it was.
//! async fn count(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, LastEventIdRejection> {
//!     let next = last.parse::<u64>()?.map_or(0, |seen| seen.saturating_add(1));
//!     let events = tokio_stream::iter(next..).map(|n| Event::display(n).event("count").id(n));
//!     Ok(SseStream::new(events.throttle(Duration::from_secs(1))))
//! }
//!
//! let app: Router = Router::new().route("/count", get(count)).layer(SseLayer::new());
//! # }
//! ```
//!
//! # The way of an event
//!
//! ```text
//! Event ──encode──▶ wire bytes ──▶ SseStream (responder) ──▶ SseBody ─┐
//!                                                                     ├─▶ SseLayer ──▶ hyper ──▶ client
//! any other text/event-stream body ───────────────────────────────────┘
//! client's Last-Event-ID ──▶ LastEventId ──▶ Hub / Topic ──▶ Subscription (already wire bytes) ──▶ SseStream
//!                                             ▲     │
//! the hubs of other processes ◀──▶ Backend ───┴─────┘ (Redis, NATS, or none: then the hub is in memory)
//! ```
//!
//! - [`Event`] is what is said. Its [name](EventName) and its [id](EventId) are types of their own,
//!   so that no text that a user typed can break the format. [`EncodedEvents`] are events that are
//!   encoded once for many clients.
//! - [`SseStream`] is what a handler returns. Its body, [`SseBody`], joins events that are ready at
//!   the same time into one frame, and sends a [`Heartbeat`] when there are none.
//! - [`SseLayer`] is for everything else: another framework's responder, a stream that is proxied
//!   from another server. It adds the headers that are missing, keeps compressors away, and puts
//!   heartbeats between the lines. An [`SseStream`] inside takes over its settings.
//! - [`LastEventId`] is where a client left off, and [`SseStream::stop_reconnecting`] is how it is
//!   told to stay away.
//! - A [`hub`] is for events that many clients get, and that those who come back get later: topics
//!   to publish to, with a history, and subscriptions that go on where a client was. With a
//!   [backend](hub::backend) it is one hub for [several servers](hub#several-nodes).
//!
//! # In operation
//!
//! An [`SseLayer`] ends streams at a [shutdown](SseLayer::shutdown) and when their
//! [time](SseLayer::max_lifetime) is up, lets no more of them in than
//! [there may be](SseLayer::max_streams), and [tells](SseLayer::on_close) how each of them was
//! ([`StreamSummary`]). What no body can see, a client that does not read or has vanished,
//! `ClientTimeout` (feature `socket`) ends.
//!
//! Who has handlers that return axum's `Sse` finds what becomes of each of its methods in
//! [`from_axum_sse`](https://docs.rs/tower-sse/latest/tower_sse/from_axum_sse/index.html).
//!
//! # Guarantees
//!
//! Each of them is a test; the names are those of the files under `tests/`.
//!
//! 1. For every byte sequence of an upstream event stream, however it is cut into chunks and
//!    wherever heartbeats fall, a parser that follows the standard dispatches exactly the same
//!    events with and without the layer, but for heartbeats that are events
//!    (`layer_is_transparent`).
//! 2. For every [`Event`] that has data or a name, a parser that follows the standard dispatches
//!    exactly one message with the same fields; for every other one, none (`events`).
//! 3. What was yielded before an error goes to the transport before the error, which then has 250
//!    milliseconds to flush it (`sse_stream`, `broken_transfers`).
//! 4. A response that is not an event stream passes the layer as it is, without an allocation
//!    (`layer`, `allocations`, `grpc`).
//! 5. Every event that a subscriber to a hub is entitled to arrives once and in order, or a gap is
//!    told (`hub_model`, `hub_cursors`, `hub_stress`, `interleavings`; for hubs of several servers
//!    `nodes`).
//! 6. A subscriber that is slow or has vanished costs bounded memory, and nobody else any time
//!    (`allocations`, `hub_on_the_wire`).
//! 7. A shutdown ends every open stream within one poll, idle or busy, with a whole event and the
//!    time to come back (`lifecycle`, `lifecycle_on_the_wire`). An upstream stream that is in the
//!    middle of an event has 250 milliseconds for it.
//! 8. No more streams are open than there may be, and every place is free again however a stream
//!    ends; how it did is told exactly once (`lifecycle`).
//! 9. No compressor inside of the layer compresses the answer to a request whose `Accept` names
//!    `text/event-stream`, and none outside does that honours the content type or `no-transform`
//!    (`compression`).
//!
//! # Features
//!
//! | feature | default | what it is for | what it adds |
//! |---|---|---|---|
//! | `axum` | yes | [`SseStream`] as a response, [`LastEventId`] as an extractor | `axum-core` |
//! | `json` | yes | [`Event::json`], [`SseStream::json`], [`SseStream::try_json`] | `serde_core`, `serde_json` |
//! | `hub` | yes | [`hub`] | `serde_json` |
//! | `redis` | no | a [`hub`] of several servers whose log is in Redis Streams | `redis` |
//! | `redis-tls` | no | the same over TLS, `rediss://` | `tokio-rustls`, `rustls-native-certs` |
//! | `nats` | no | a [`hub`] of several servers whose log is in NATS JetStream | `async-nats` |
//! | `backend-contract` | no | checks for whoever writes a [`Backend`](hub::backend::Backend) | |
//! | `socket` | no | `ClientTimeout`, for clients that do not read or have vanished | `socket2` |
//! | `metrics` | no | [counts](#metrics) of what streams do | `metrics` |
//! | `tracing` | no | a [span](#spans) for each stream | `tracing` |
//!
//! # Metrics
//!
//! With the feature `metrics`, every [`SseStream`] and every upstream event stream that passes an
//! [`SseLayer`] is counted, with whatever recorder the application has installed for the
//! [`metrics`](https://docs.rs/metrics) facade.
//!
//! | name | type | unit | labels | what it is |
//! |---|---|---|---|---|
//! | `tower_sse_streams_active` | gauge | streams | | that are open |
//! | `tower_sse_streams_closed_total` | counter | streams | `reason` | that have ended, by [how](CloseReason::as_str) |
//! | `tower_sse_streams_refused_total` | counter | streams | | for which there was no [place](SseLayer::max_streams) |
//! | `tower_sse_stream_duration_seconds` | histogram | seconds | | for which each was open, told at its end |
//! | `tower_sse_events_sent_total` | counter | events | | handed to the transport |
//! | `tower_sse_bytes_sent_total` | counter | bytes | | handed to the transport, heartbeats included |
//! | `tower_sse_heartbeats_sent_total` | counter | heartbeats | | handed to the transport, first bytes included |
//! | `tower_sse_hub_gaps_total` | counter | gaps | `reason` | that a [`hub`] has told, by [why](hub::GapReason::as_str) |
//! | `tower_sse_hub_backend_failures_total` | counter | requests | `operation` | that the backend of a [`hub`] did not do: `publish`, `read` and `bounds` for clients, `follow` for the reader |
//! | `tower_sse_hub_reads_rejected_total` | counter | reads | | of the history that a [`hub`] rejected because [too many were waiting](hub::ErrorKind::Overloaded) |
//!
//! A stream counts from its first poll until its body is dropped. A response that is never sent,
//! such as the response to `HEAD`, does not count. An encoded upstream stream counts if a layer
//! ends, limits or observes it, and has no events. Recording happens once per frame. A metrics
//! recorder counts only the streams that begin after it was installed, so install it first.
//!
//! # Spans
//!
//! With the feature `tracing`, each stream has a span, `event_stream`, of the target `tower_sse`
//! and the level `INFO`. It is the current span whenever the stream is polled, and in `on_close`.
//! Its parent is the span in which the response was made, which is the request's where there is
//! one: that of tower-http's `TraceLayer`, say, which can also name axum's `MatchedPath`. Its
//! fields:
//!
//! | field | what it is |
//! |---|---|
//! | `method`, `path` | of the request, as the outermost [`SseLayer`] sees it; without the query |
//! | the fields of [`StreamSummary`] | the `reason` as its [label](CloseReason::as_str), the `duration` in seconds, and the counts |
//!
//! All fields but the first two are recorded at the end, with the event `stream ended` (`DEBUG`).
//! An error of a stream is the event `stream failed` (`WARN`), with the field `error` if the stream
//! is an [`SseStream`]. A request over a [limit](SseLayer::when_full) is the event `stream refused`
//! (`DEBUG`).
//!
//! A hub with a backend logs the first failure of an outage as the event `backend failed` (`WARN`),
//! with the fields `operation` and `error`. It logs the end of the outage as `backend recovered`
//! (`INFO`), with `operation`. The operation is `read` or `bounds` for requests on behalf of
//! clients, and `follow` for the task that reads the log. The next successful request of the same
//! operation ends the outage. An error of `publish` is returned to the publisher and is not logged.
//!
//! A hub that rejects history reads because [too many are waiting](hub::ErrorKind::Overloaded) logs
//! `history reads rejected` (`WARN`) once, with `limit`. It logs `history reads accepted` (`INFO`)
//! with the first read that finds at most half of the limit in use.
//!
//! # Runtime
//!
//! Heartbeats, and the pause before an error, need tokio's timer: a body that needs it panics in a
//! runtime that has none enabled. Outside of any tokio runtime it does so for a heartbeat only;
//! [`SseStream::without_heartbeat`] runs on any executor. No task is spawned for a stream; a
//! [`hub`] has one task of its own, and with a backend one that follows its log, and one for each
//! page that is read for clients.
//!
//! # What it does not do
//!
//! It is no server and no client. Cross-origin requests are tower-http's `CorsLayer`'s,
//! authentication is the handler's.
//!
//! The format is that of the [HTML standard, "Server-sent events"][standard].
//!
//! [standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
mod axum;
mod body;
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
mod preamble;
mod random;
mod settings;
#[cfg(feature = "socket")]
mod socket;
mod stream;
mod summary;
mod trace;

pub use body::{ResponseBody, SseBody};
pub use event::{
    EncodedEvents, Event, EventId, EventName, FieldError, FieldErrorKind, IntoEventId, IntoEventName, SseItem,
};
pub use heartbeat::Heartbeat;
#[cfg(feature = "json")]
pub use json::{JsonError, JsonEvents, TryJsonEvents};
pub use last_event_id::{LastEventId, LastEventIdRejection};
pub use layer::{ResponseFuture, SseLayer, SseService};
pub use limit::Overload;
#[cfg(feature = "socket")]
pub use socket::ClientTimeout;
pub use stream::{SseStream, StopReconnecting};
pub use summary::{CloseReason, StreamSummary};

/// Compiles the code of the README and of the guides.
#[cfg(all(doctest, feature = "axum", feature = "hub", feature = "redis", feature = "socket"))]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/several-nodes.md")]
#[doc = include_str!("../docs/production.md")]
struct Guides;

/// Any error, boxed as tower and axum box it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
