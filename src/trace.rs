//! Spans and events for `tracing`. No other file uses the crate `tracing`. Without the feature, all
//! functions are empty.

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Entered, Parent, Request, Span, callback_panicked, end_hidden, failed, refused};
#[cfg(feature = "tracing")]
pub(crate) use on::{Entered, Parent, Request, Span, callback_panicked, end_hidden, failed, refused};

#[cfg(all(feature = "hub", not(feature = "tracing")))]
pub(crate) use off::{
    backend_failed, backend_opens_slowly, backend_recovered, gap, reads_accepted, reads_rejected, recording_taken_over,
    recordings_taken_over,
};
#[cfg(all(feature = "hub", feature = "tracing"))]
pub(crate) use on::{
    backend_failed, backend_opens_slowly, backend_recovered, gap, reads_accepted, reads_rejected, recording_taken_over,
    recordings_taken_over,
};

#[cfg(all(feature = "serve", not(feature = "tracing")))]
pub(crate) use off::{shutdown_timed_out, socket_options_failed, too_many_cancellations};
#[cfg(all(feature = "serve", feature = "tracing"))]
pub(crate) use on::{shutdown_timed_out, socket_options_failed, too_many_cancellations};

#[cfg(all(feature = "hub", feature = "json", not(feature = "tracing")))]
pub(crate) use off::{announcements_failed, announcements_recovered, close_not_announced};
#[cfg(all(feature = "hub", feature = "json", feature = "tracing"))]
pub(crate) use on::{announcements_failed, announcements_recovered, close_not_announced};

#[cfg(feature = "tracing")]
mod on {
    use crate::{BoxError, StreamSummary};
    use http::{Method, uri::PathAndQuery};
    #[cfg(feature = "hub")]
    use tracing::info;
    use tracing::{Dispatch, Level, debug, error, field::Empty, info_span, span::Id, span_enabled, warn};

    const TARGET: &str = "tower_sse";

    /// The span that was current at the creation of a response, usually the span of its request. It
    /// becomes the parent of the stream's span.
    #[derive(Default)]
    pub(crate) struct Parent(Option<tracing::Span>);

    impl Parent {
        pub(crate) fn current() -> Self {
            Self(Some(tracing::Span::current()).filter(|span| !span.is_none()))
        }
    }

    /// The method and the path of a request, for the span of its stream, and for the log if a limit
    /// rejects the request. They are cloned from the request without copying their text. Contains
    /// `None` if no `tracing` subscriber records the span.
    #[derive(Debug, Default)]
    pub(crate) struct Request(Option<(Method, Option<PathAndQuery>)>);

    impl Request {
        #[inline]
        pub(crate) fn of<B>(request: &http::Request<B>) -> Self {
            if !span_enabled!(target: TARGET, Level::INFO) {
                return Self(None);
            }
            Self(Some((request.method().clone(), request.uri().path_and_query().cloned())))
        }

        fn method(&self) -> Option<&str> {
            self.0.as_ref().map(|(method, _)| method.as_str())
        }

        /// Returns the path without the query, which must not be logged. The query may contain
        /// secrets, because an `EventSource` cannot set headers.
        fn path(&self) -> Option<&str> {
            Some(self.0.as_ref()?.1.as_ref()?.path())
        }
    }

    /// Logs a request that was rejected because a limit of streams was reached, or because of
    /// `error`, the message of a temporary error of a hub.
    pub(crate) fn refused(request: &Request, error: Option<String>) {
        debug!(target: TARGET, method = request.method(), path = request.path(), error, "stream refused");
    }

    /// Logs that a stream has failed. Called while the stream is polled, so that its span is the
    /// current span. `error` is `None` if the type of the error is generic and may not implement
    /// `Display`.
    ///
    /// The client only sees a lost connection, so an operator finds the error only in the log.
    pub(crate) fn failed(error: Option<&BoxError>) {
        let error = error.map(|error| tracing::field::display(error.as_ref()));
        warn!(target: TARGET, error, "stream failed");
    }

    /// Logs a panic in a callback or a waker of the application. `callback` is the name of the
    /// callback in the log.
    pub(crate) fn callback_panicked(callback: &'static str) {
        error!(target: TARGET, callback, "callback panicked");
    }

    /// Logs the beginning of an outage of a hub's backend, when the first request fails.
    /// `operation` is the kind of the request: `follow` (for new events), `read` (for past events),
    /// `bounds` (for the ends of the log), `evict` (for the deletion of old records in Postgres) or
    /// `recording` (an append of a recording, a task that publishes a stream into a topic). During
    /// the outage, subscriptions and recordings wait, and their clients see no error. Failures of
    /// `publish` are not logged, because the publisher gets the error.
    #[cfg(feature = "hub")]
    pub(crate) fn backend_failed(operation: &'static str, error: &BoxError) {
        warn!(target: TARGET, operation, error = %error, "backend failed");
    }

    /// Logs the end of an outage of a hub's backend. `operation` is the kind of the request that
    /// succeeds again: `follow` (for new events), `read` (for past events), `bounds` (for the ends
    /// of the log), `evict` (for the deletion of old records in Postgres) or `recording` (an append
    /// of a recording, a task that publishes a stream into a topic).
    #[cfg(feature = "hub")]
    pub(crate) fn backend_recovered(operation: &'static str) {
        info!(target: TARGET, operation, "backend recovered");
    }

    /// Logs a warning: the backend of a hub needs longer than `time` to open its log of events, and
    /// the call that connects the hub waits for it.
    #[cfg(feature = "hub")]
    pub(crate) fn backend_opens_slowly(time: std::time::Duration) {
        warn!(target: TARGET, seconds = time.as_secs(), "backend is still opening its log");
    }

    /// Logs a warning: all topics of a subscription are finished, but the response is not `204 No
    /// Content`, so an `EventSource` reconnects without end. The cause is an adapter around the
    /// subscription that does not forward `size_hint`: the response calls it to learn that the
    /// subscription is finished.
    pub(crate) fn end_hidden() {
        warn!(target: TARGET, "finished subscription is not answered with 204; use SseStream::map_stream for its adapter");
    }

    /// Logs an error of a stream registry: it has closed the streams of a key, but cannot announce
    /// this to the other nodes, because the key does not serialize to JSON. The other nodes do not
    /// close their streams of this key.
    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn close_not_announced(error: &BoxError) {
        error!(target: TARGET, error = &**error as &(dyn std::error::Error + 'static), "close not announced");
    }

    /// Logs that a [`StreamRegistry`](crate::StreamRegistry) has closed the streams of a key, and
    /// could not announce the key to the other nodes. Until a later attempt succeeds, they do not
    /// close their streams of this key.
    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn announcements_failed(error: &BoxError) {
        warn!(target: TARGET, error = &**error as &(dyn std::error::Error + 'static), "close not announced yet");
    }

    /// Logs that a stream registry has now announced all closed keys whose announcement had failed,
    /// so that the other nodes close their streams of these keys.
    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn announcements_recovered() {
        info!(target: TARGET, "closes announced");
    }

    /// Logs a failure to set the options of a connection's socket.
    #[cfg(feature = "serve")]
    pub(crate) fn socket_options_failed(error: &std::io::Error) {
        warn!(target: TARGET, %error, "socket options not set");
    }

    /// Logs that the timeout of a graceful shutdown closes this number of connections. The shutdown
    /// returns no error, so an operator finds the number only in the log.
    #[cfg(feature = "serve")]
    pub(crate) fn shutdown_timed_out(connections: usize) {
        warn!(target: TARGET, connections, "shutdown timed out");
    }

    /// Logs that the server has closed an HTTP/2 connection, because the client has cancelled too
    /// many requests before their responses.
    #[cfg(feature = "serve")]
    pub(crate) fn too_many_cancellations() {
        warn!(target: TARGET, "connection closed: too many cancelled requests");
    }

    /// Logs that events are missing in a subscription. `topic` is its first topic. A gap that is
    /// reported while the stream is polled is in the span of the stream.
    #[cfg(feature = "hub")]
    pub(crate) fn gap(reason: &'static str, topic: &str) {
        debug!(target: TARGET, reason, topic, "gap reported");
    }

    /// Logs that a hub rejects history reads (requests to the backend for past events), because
    /// `limit` different reads already run or wait. Called only for the first of several rejected
    /// reads.
    #[cfg(feature = "hub")]
    pub(crate) fn reads_rejected(limit: usize) {
        warn!(target: TARGET, limit, "history reads rejected");
    }

    /// Logs that a hub accepts history reads (requests to the backend for past events) again, after
    /// it has rejected some.
    #[cfg(feature = "hub")]
    pub(crate) fn reads_accepted() {
        info!(target: TARGET, "history reads accepted");
    }

    /// Logs that the local node has finished `topic` in place of another node. The other node was
    /// publishing a stream into the topic, and has died, or has stopped its hub, without finishing
    /// the topic.
    #[cfg(feature = "hub")]
    pub(crate) fn recording_taken_over(topic: &str) {
        debug!(target: TARGET, topic, "recording of a dead node finished");
    }

    /// Logs the number of recordings (tasks that publish streams into topics) that the local node
    /// has finished in place of one other node, which has died or has stopped its hub.
    #[cfg(feature = "hub")]
    pub(crate) fn recordings_taken_over(recordings: usize) {
        warn!(target: TARGET, recordings, "recordings of a dead node finished");
    }

    /// The `tracing` span of one event stream.
    pub(crate) struct Span(tracing::Span);

    impl Span {
        /// Returns a span that records nothing.
        pub(crate) fn none() -> Self {
            Self(tracing::Span::none())
        }

        /// Creates the span of a stream, with `parent` as its parent. `requests` contains one entry
        /// for each layer, from the innermost layer to the outermost: the request that the layer
        /// has received. The span shows the outermost of these requests that contains a method and
        /// a path.
        pub(crate) fn begin<'a>(parent: &Parent, requests: impl DoubleEndedIterator<Item = &'a Request>) -> Self {
            let parent = parent.0.as_ref().and_then(tracing::Span::id);
            let request = requests.rev().find(|request| request.0.is_some());
            Self(info_span!(
                target: TARGET,
                parent: parent,
                "event_stream",
                method = request.and_then(Request::method),
                path = request.and_then(Request::path),
                reason = Empty,
                duration = Empty,
                events = Empty,
                bytes = Empty,
                heartbeats = Empty,
            ))
        }

        pub(crate) fn is_on(&self) -> bool {
            !self.0.is_disabled()
        }

        /// Enters the span of the stream until the result is dropped. Drop the result before the
        /// span itself.
        #[inline]
        pub(crate) fn enter(&self) -> Entered {
            Entered(self.0.with_subscriber(|(id, dispatch)| {
                dispatch.enter(id);
                (id.clone(), dispatch.clone())
            }))
        }

        pub(crate) fn ended(&self, summary: &StreamSummary) {
            if !self.is_on() {
                return;
            }
            self.0
                .record("reason", summary.reason.as_str())
                .record("duration", summary.duration.as_secs_f64())
                .record("events", summary.events)
                .record("bytes", summary.bytes)
                .record("heartbeats", summary.heartbeats);
            debug!(target: TARGET, parent: &self.0, "stream ended");
        }
    }

    /// A guard that exits the span when the guard is dropped. Unlike the guard of `tracing`, it
    /// does not borrow the span. So the struct that contains the span can be changed while the span
    /// is entered.
    pub(crate) struct Entered(Option<(Id, Dispatch)>);

    impl Drop for Entered {
        fn drop(&mut self) {
            if let Some((id, dispatch)) = &self.0 {
                dispatch.exit(id);
            }
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use crate::{BoxError, StreamSummary};

    #[derive(Default)]
    pub(crate) struct Parent;

    impl Parent {
        pub(crate) fn current() -> Self {
            Self
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Request;

    impl Request {
        #[inline]
        pub(crate) fn of<B>(_: &http::Request<B>) -> Self {
            Self
        }
    }

    pub(crate) fn refused(_: &Request, _: Option<String>) {}

    pub(crate) fn failed(_: Option<&BoxError>) {}

    pub(crate) fn callback_panicked(_: &'static str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn backend_failed(_: &'static str, _: &BoxError) {}

    #[cfg(feature = "hub")]
    pub(crate) fn backend_recovered(_: &'static str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn backend_opens_slowly(_: std::time::Duration) {}

    pub(crate) fn end_hidden() {}

    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn close_not_announced(_: &BoxError) {}

    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn announcements_failed(_: &BoxError) {}

    #[cfg(all(feature = "hub", feature = "json"))]
    pub(crate) fn announcements_recovered() {}

    #[cfg(feature = "serve")]
    pub(crate) fn socket_options_failed(_: &std::io::Error) {}

    #[cfg(feature = "serve")]
    pub(crate) fn shutdown_timed_out(_: usize) {}

    #[cfg(feature = "serve")]
    pub(crate) fn too_many_cancellations() {}

    #[cfg(feature = "hub")]
    pub(crate) fn gap(_: &'static str, _: &str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn reads_rejected(_: usize) {}

    #[cfg(feature = "hub")]
    pub(crate) fn reads_accepted() {}

    #[cfg(feature = "hub")]
    pub(crate) fn recording_taken_over(_: &str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn recordings_taken_over(_: usize) {}

    pub(crate) struct Span;

    impl Span {
        pub(crate) fn none() -> Self {
            Self
        }

        pub(crate) fn begin<'a>(_: &Parent, _: impl DoubleEndedIterator<Item = &'a Request>) -> Self {
            Self
        }

        pub(crate) fn is_on(&self) -> bool {
            false
        }

        #[inline]
        pub(crate) fn enter(&self) -> Entered {
            Entered
        }

        pub(crate) fn ended(&self, _: &StreamSummary) {}
    }

    pub(crate) struct Entered;
}
