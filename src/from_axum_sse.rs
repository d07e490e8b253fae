//! Migration from [`axum::response::sse`], method by method. This module has no items.
//!
//! This handler for axum:
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
//! is this handler for tower-sse:
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
//! Handlers can migrate one by one. An [`SseLayer`] around the router completes the streams of
//! handlers that still return `Sse`: headers, heartbeats, protection from compressors, shutdown,
//! limits. The layer then sends the heartbeats, so remove the `keep_alive` of these handlers.
//!
//! # The response
//!
//! | axum | tower-sse | difference |
//! |---|---|---|
//! | `Sse::new(stream)` | [`SseStream::new`] | The items can be [`Event`]s as well as `Result`s of them, so there is no `Infallible` to name. Events that are ready together are one frame. Two more headers disable compressors and the buffers of proxies. |
//! | `Sse::new(stream.map(json))` | [`SseStream::json`], [`SseStream::try_json`] | The items of the stream are values that serialize (`json`), or `Result`s of such values (`try_json`). |
//! | an `Err` in the stream | the same, or [`on_error`](SseStream::on_error) | axum and tower-sse abort the transfer, tower-sse only after all earlier events were sent. `on_error` can instead send a final event and end cleanly. |
//! | `.keep_alive(KeepAlive::default())` | nothing | Heartbeats are enabled by default, and do not change the type of the response. |
//! | no `keep_alive` | [`without_heartbeat`](SseStream::without_heartbeat) | |
//! | `KeepAlive::interval` | [`Heartbeat::every`] | |
//! | `KeepAlive::text` | [`Heartbeat::comment`] | A line end in the text begins another comment line, and causes no panic. |
//! | `KeepAlive::event` | [`Heartbeat::event`] | An id of the event is removed, because a client that reconnects would send it as its `Last-Event-ID`. |
//! | | [`retry`](SseStream::retry), [`end_with`](SseStream::end_with), [`on_close`](SseStream::on_close), [`StopReconnecting`] | The reconnect delay, a final event, a summary of the stream, and the response `204 No Content`, after which a client does not reconnect. |
//!
//! # The event
//!
//! | axum | tower-sse | difference |
//! |---|---|---|
//! | `Event::default().data(text)` | [`Event::new`], [`data`](Event::data) | An empty text is dispatched as an empty message. axum writes no `data` line for it, so browsers discard the event. CRLF is one line end. A second call replaces the data and does not panic. |
//! | `json_data(value)?` | [`Event::json`] | The error is a [`JsonError`] instead of an `axum::Error`. `Event::json` creates the event, so set name and id afterwards. A line end in a `RawValue` does not split the data. |
//! | `into_data_writer()`, `write!`, `into_event()` | [`Event::display`] with `format_args!(..)` | The value is formatted without an intermediate `String`. |
//! | `event(name)` | [`event("literal")`](Event::event), `event(EventName::new(text)?)` | Text with a line end is an error and not a panic. Unchecked text does not compile ([`EventName`]). |
//! | `id(text)` | `id("literal")`, [`id(number)`](Event::id), `id(EventId::new(text)?)` | The same, and NUL is an error, too ([`EventId`]). |
//! | `retry(duration)` | [`retry`](Event::retry) | The same. For a whole stream, set it on the [stream](SseStream::retry) or the [layer](SseLayer::retry). |
//! | `comment(text)` | [`comment`](Event::comment) | The text may contain line ends. A line end begins another comment line. |
//! | `Event::DEFAULT_KEEP_ALIVE` | [`Heartbeat::default`] | The default heartbeat is a comment line without a blank line, so it may be sent in the middle of an event. |
//! | | [`Event::checkpoint`] | An event with an id alone, which changes the `Last-Event-ID` of the client, and dispatches no message. |
//!
//! # Code around the response
//!
//! | by hand | tower-sse |
//! |---|---|
//! | `headers.get("last-event-id")` and `to_str`, which rejects non-ASCII text | [`LastEventId`], which accepts a header in UTF-8, and also reads the query of the URI |
//! | a `broadcast` channel, `BroadcastStream`, and code for lagging receivers | a [`Hub`](crate::hub::Hub), with replay for clients that reconnect |
//! | a guard in the stream, which is dropped when the client disconnects | [`on_close`](SseStream::on_close) |
//! | `take_until(shutdown)` in each handler | [`SseLayer::shutdown`] |
//!
//! [`axum::response::sse`]: https://docs.rs/axum/latest/axum/response/sse/index.html

#[cfg(doc)]
use crate::{Event, EventId, EventName, Heartbeat, JsonError, LastEventId, SseLayer, SseStream, StopReconnecting};
