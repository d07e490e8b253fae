//! For those who come from [`axum::response::sse`]: what becomes of each of its methods. This
//! module has no items.
//!
//! A handler that was
//!
//! ```
//! use axum::response::sse::{Event, KeepAlive, Sse};
//! use std::{convert::Infallible, time::Duration};
//! use tokio_stream::{Stream, StreamExt};
//!
//! # fn prices() -> impl Stream<Item = (u64, String)> + Send + 'static { tokio_stream::empty() }
//! async fn feed() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
//!     let events = prices().map(|(n, price)| Ok(Event::default().event("price").id(n.to_string()).data(price)));
//!     Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(20)))
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(feed));
//! ```
//!
//! becomes
//!
//! ```
//! use std::time::Duration;
//! use tokio_stream::{Stream, StreamExt};
//! use tower_sse::{Event, Heartbeat, SseStream};
//!
//! # fn prices() -> impl Stream<Item = (u64, String)> + Send + 'static { tokio_stream::empty() }
//! async fn feed() -> SseStream<impl Stream<Item = Event>> {
//!     let events = prices().map(|(n, price)| Event::new(price).event("price").id(n));
//!     SseStream::new(events).heartbeat(Heartbeat::every(Duration::from_secs(20)))
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(feed));
//! ```
//!
//! Nothing has to change at once. An [`SseLayer`] around the router makes the streams of the
//! handlers that still return `Sse` correct: headers, heartbeats, compressors kept away, shutdown,
//! limits. Their `keep_alive` can go then.
//!
//! # The response
//!
//! | axum | tower-sse | what is different |
//! |---|---|---|
//! | `Sse::new(stream)` | [`SseStream::new`] | The items can be [`Event`]s as well as `Result`s of them, so there is no `Infallible` to name. Events that are ready together are one frame. Two more headers keep compressors and the buffers of proxies away. |
//! | `Sse::new(stream.map(json))` | [`SseStream::json`], [`SseStream::try_json`] | Take values that serialize, and `Result`s of these. |
//! | an `Err` in the stream | the same, or [`on_error`](SseStream::on_error) | Both break the transfer; what was yielded before goes out first. `on_error` makes a last event and a clean end of it. |
//! | `.keep_alive(KeepAlive::default())` | nothing | It is the default. The type of the response does not change by it. |
//! | no `keep_alive` | [`without_heartbeat`](SseStream::without_heartbeat) | |
//! | `KeepAlive::interval` | [`Heartbeat::every`] | |
//! | `KeepAlive::text` | [`Heartbeat::comment`] | A line end makes another comment line, and no panic. |
//! | `KeepAlive::event` | [`Heartbeat::event`] | Its id, if it has one, is left out: it would be where the client comes back to. |
//! | | [`retry`](SseStream::retry), [`end_with`](SseStream::end_with), [`on_close`](SseStream::on_close), [`stop_reconnecting`](SseStream::stop_reconnecting) | When to come back, the last event, how it was, and the 204. |
//!
//! # The event
//!
//! | axum | tower-sse | what is different |
//! |---|---|---|
//! | `Event::default().data(text)` | [`Event::new`], [`data`](Event::data) | The empty text is dispatched as an empty message; without a `data` line browsers drop the event. CR and LF together are one line end. Called again it replaces, and does not panic. |
//! | `json_data(value)?` | [`Event::json`] | Begins an event; name and id are set afterwards. A line end in a `RawValue` is no line of data. |
//! | `into_data_writer()`, `write!`, `into_event()` | [`Event::display`] with `format_args!(..)` | Written into the event, without a `String` between. |
//! | `event(name)` | [`event("literal")`](Event::event), `event(EventName::new(text)?)` | Text of run time is an error if it has a line end, and no panic; forgotten checks do not compile ([`EventName`]). |
//! | `id(text)` | `id("literal")`, [`id(number)`](Event::id), `id(EventId::new(text)?)` | The same, for NUL as well ([`EventId`]). |
//! | `retry(duration)` | [`retry`](Event::retry) | The same. For all of a stream say it [there](SseStream::retry), or at the [layer](SseLayer::retry). |
//! | `comment(text)` | [`comment`](Event::comment) | Any text; a line end makes another comment line. |
//! | `Event::DEFAULT_KEEP_ALIVE` | [`Heartbeat::default`] | A comment line without a blank line, which can stand in the middle of an event. |
//! | | [`Event::checkpoint`] | Moves the client's `Last-Event-ID` and dispatches nothing. |
//!
//! # Around it
//!
//! | by hand | tower-sse |
//! |---|---|
//! | `headers.get("last-event-id")` and `to_str`, which refuses what is not ASCII | [`LastEventId`], which reads UTF-8 and the query |
//! | a `broadcast` channel, `BroadcastStream`, and what to do when it lags | a [`Hub`](crate::hub::Hub), with a history for those who come back |
//! | a guard in the stream, dropped when the client is gone | [`on_close`](SseStream::on_close) |
//! | `take_until(shutdown)` in each handler | [`SseLayer::shutdown`] |
//!
//! [`axum::response::sse`]: https://docs.rs/axum/latest/axum/response/sse/index.html

#[cfg(doc)]
use crate::{Event, EventId, EventName, Heartbeat, LastEventId, SseLayer, SseStream};
