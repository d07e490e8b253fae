use crate::{BoxError, event::Shortened, headers::error_response, rejection::TemporaryError};
use http::{HeaderValue, Response, StatusCode, header::CACHE_CONTROL};
use std::fmt;

/// An error of a hub.
///
/// If an axum handler returns the error, the response has the error's [`status`](Self::status), and
/// its message as the body. Most messages contain the name of the topic. If clients must not see
/// this name, convert the error into a response of your own.
///
/// An `EventSource` does not reconnect after a status such as 503. So if an error [is
/// temporary](Self::is_temporary), an [`SseLayer`](crate::SseLayer) around the handler replaces the
/// response with a [`RetryLater`](crate::RetryLater) if the request is like that of an
/// `EventSource`: see [`when_full`](crate::SseLayer::when_full). Without a layer, the handler has
/// to return the `RetryLater` itself.
///
/// # Examples
///
/// ```
/// # use tower_sse::{Event, hub::{ErrorKind, Hub}};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
/// let answer = Hub::new().topic("answer-42");
/// answer.finish().await?;
/// let error = answer.publish(Event::new("one more thing")).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Finished);
/// assert_eq!(error.to_string(), r#"the topic "answer-42" is finished; publish to another one"#);
/// # Ok(()) }
/// ```
///
/// A handler that builds JSON, publishes and subscribes needs only this error type:
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "json"))] {
/// use axum::extract::State;
/// use tower_sse::{Event, LastEventId, SseStream, hub::{Error, Hub, Subscription}};
///
/// async fn join(State(hub): State<Hub>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
///     let members = hub.topic("members");
///     members.publish(Event::json(&["Anna"])?.event("joined")).await?;
///     Ok(SseStream::new(members.subscribe(last).await?))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(join)).with_state(Hub::new());
/// # }
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// The name that the error is about, depending on `kind`: of a topic, an event, a member or a
    /// stream registry. For `TooManyTopicsInSubscription`, the number of topics in the
    /// subscription, as text. Empty for all other kinds.
    topic: Box<str>,
    limit: usize,
    source: Option<BoxError>,
}

/// The kinds of [`Error`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The topic is [finished](super::Topic::finish) and accepts no more events. 410 Gone.
    Finished,
    /// The topic does not exist, and the hub has as many topics as
    /// [`max_topics`](super::Builder::max_topics) allows. 503 Service Unavailable.
    TooManyTopics,
    /// A subscription was requested for an empty list of topics. 400 Bad Request.
    NoTopics,
    /// The subscription has more topics than
    /// [`max_topics_per_subscription`](super::Builder::max_topics_per_subscription) allows. 400 Bad
    /// Request.
    TooManyTopicsInSubscription,
    /// The published event is named `gap` or `hub-cursor`. Only the hub itself sends events with
    /// these names. 500 Internal Server Error.
    ReservedName,
    /// The name of the topic begins with `tower-sse/`, like the topics that this crate uses itself.
    /// 400 Bad Request.
    ReservedTopic,
    /// The name of a [member](super::Topic::join), which is present in a topic, has more than 256
    /// bytes. 400 Bad Request.
    MemberTooLong,
    /// The name of the topic is too long. A topic with [members](super::Topic::join), names that
    /// are present in it, can have a name of up to 1,024 bytes. The topic of a
    /// [recording](super::Recording::announced), which publishes a stream, can have a name of up to
    /// 16 KiB. 400 Bad Request.
    TopicTooLong,
    /// The name of a [stream registry](crate::StreamRegistry), a table of open streams, has more
    /// than 256 bytes. 500 Internal Server Error.
    RegistryNameTooLong,
    /// A [stream registry](crate::StreamRegistry), a table of open streams, cannot follow the hub
    /// under this name, because a registry of this process already uses the name for this hub. That
    /// can be the same registry. (A registry that follows a hub closes streams on all nodes of the
    /// hub.) 500 Internal Server Error.
    RegistryNameInUse,
    /// [`publish_now`](super::Topic::publish_now) was called for a hub with a backend. The event
    /// was not published. Use [`publish`](super::Topic::publish), which waits for the backend. 500
    /// Internal Server Error.
    NeedsAwait,
    /// The hub is [shut down](super::Hub::shutdown), and accepts no more events. 503 Service
    /// Unavailable.
    ///
    /// Subscribing does not return this error. The new subscription ends immediately with
    /// [`SubscriptionError::Shutdown`].
    Shutdown,
    /// The backend failed, or did not confirm the request. 503 Service Unavailable.
    ///
    /// After this error of `publish`, the events may nevertheless be in the log, but at most once.
    /// The backend may have stored them before its acknowledgement was lost. Subscribers then
    /// receive the events. If the application publishes them again, subscribers may receive them
    /// twice. Where that matters, put a unique key into the data of the event, so that clients can
    /// detect a duplicate. The [`source`](std::error::Error::source) of the error is the error of
    /// the backend.
    Backend,
    /// The URL of the backend's server is not valid. [`connect`](super::Connector::connect) returns
    /// this error at once, and trying again does not help. 500 Internal Server Error.
    ///
    /// The [`source`](std::error::Error::source) of the error describes the invalid part.
    InvalidUrl,
    /// A value for the data of an event does not serialize to JSON, or a value for `Event::tagged`
    /// is not a variant of a tagged enum. 500 Internal Server Error.
    ///
    /// The hub itself does not return this error. Converting a `JsonError` creates it, for handlers
    /// that use `?` with one error type. The [`source`](std::error::Error::source) of the error is
    /// the `JsonError`.
    Json,
    /// The client needs old events from the backend, and too many other reads of old events run or
    /// wait. 503 Service Unavailable.
    ///
    /// A node sends the backend at most 8 such reads at the same time, and up to 1,024 different
    /// reads run or wait. Clients that need the same events share one read. At this limit, a new
    /// subscription that needs one more read gets this error. The client has lost no event: it can
    /// reconnect with the same id (see [`when_full`](crate::SseLayer::when_full) for an
    /// `EventSource`). With a larger retention of the hub, such as
    /// [`max_events`](super::Builder::max_events), fewer clients need the backend.
    ///
    /// Subscribing and [`exists_in_log`](super::Topic::exists_in_log) return this error. An open
    /// subscription that needs old events does not end at this limit. It repeats its read after 200
    /// to 400 ms.
    Overloaded,
}

impl Error {
    pub(super) fn finished(topic: &str) -> Self {
        Self { kind: ErrorKind::Finished, topic: topic.into(), limit: 0, source: None }
    }

    pub(super) fn too_many_topics(topic: &str, limit: usize) -> Self {
        Self { kind: ErrorKind::TooManyTopics, topic: topic.into(), limit, source: None }
    }

    pub(super) fn no_topics() -> Self {
        Self { kind: ErrorKind::NoTopics, topic: "".into(), limit: 0, source: None }
    }

    pub(super) fn too_many_topics_in_subscription(topics: usize, limit: usize) -> Self {
        let topics = topics.to_string().into();
        Self { kind: ErrorKind::TooManyTopicsInSubscription, topic: topics, limit, source: None }
    }

    pub(super) fn reserved_name(name: &str) -> Self {
        Self { kind: ErrorKind::ReservedName, topic: name.into(), limit: 0, source: None }
    }

    pub(super) fn reserved_topic(topic: &str) -> Self {
        Self { kind: ErrorKind::ReservedTopic, topic: topic.into(), limit: 0, source: None }
    }

    pub(super) fn member_too_long(member: &str, limit: usize) -> Self {
        Self { kind: ErrorKind::MemberTooLong, topic: member.into(), limit, source: None }
    }

    pub(super) fn topic_too_long(topic: &str, limit: usize) -> Self {
        Self { kind: ErrorKind::TopicTooLong, topic: topic.into(), limit, source: None }
    }

    #[cfg(feature = "json")]
    pub(super) fn registry_name_too_long(name: &str, limit: usize) -> Self {
        Self { kind: ErrorKind::RegistryNameTooLong, topic: name.into(), limit, source: None }
    }

    #[cfg(feature = "json")]
    pub(super) fn registry_name_in_use(name: &str) -> Self {
        Self { kind: ErrorKind::RegistryNameInUse, topic: name.into(), limit: 0, source: None }
    }

    pub(super) fn needs_await(topic: &str) -> Self {
        Self { kind: ErrorKind::NeedsAwait, topic: topic.into(), limit: 0, source: None }
    }

    pub(super) fn shut_down() -> Self {
        Self { kind: ErrorKind::Shutdown, topic: "".into(), limit: 0, source: None }
    }

    pub(super) fn backend(topic: &str, source: BoxError) -> Self {
        Self { kind: ErrorKind::Backend, topic: topic.into(), limit: 0, source: Some(source) }
    }

    #[cfg(any(feature = "redis", feature = "nats", feature = "postgres"))]
    pub(super) fn invalid_url(source: BoxError) -> Self {
        Self { kind: ErrorKind::InvalidUrl, topic: "".into(), limit: 0, source: Some(source) }
    }

    pub(super) fn overloaded(limit: usize) -> Self {
        Self { kind: ErrorKind::Overloaded, topic: "".into(), limit, source: None }
    }

    /// Returns the cause of this error, such as the error of a backend. If the error has no cause,
    /// returns the error itself.
    pub(super) fn into_source(mut self) -> BoxError {
        self.source.take().unwrap_or_else(|| self.into())
    }

    pub(super) fn is_finished(&self) -> bool {
        self.kind == ErrorKind::Finished
    }

    /// Returns the kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the HTTP status for a response to this error. [`ErrorKind`] lists the status of each
    /// kind.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.kind {
            ErrorKind::Finished => StatusCode::GONE,
            ErrorKind::TooManyTopics | ErrorKind::Shutdown | ErrorKind::Backend | ErrorKind::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorKind::MemberTooLong
            | ErrorKind::NoTopics
            | ErrorKind::ReservedTopic
            | ErrorKind::TooManyTopicsInSubscription
            | ErrorKind::TopicTooLong => StatusCode::BAD_REQUEST,
            ErrorKind::InvalidUrl
            | ErrorKind::Json
            | ErrorKind::NeedsAwait
            | ErrorKind::RegistryNameInUse
            | ErrorKind::RegistryNameTooLong
            | ErrorKind::ReservedName => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns `true` if a client that repeats its request later may succeed, possibly with another
    /// process: for the kinds [`Backend`](ErrorKind::Backend),
    /// [`Overloaded`](ErrorKind::Overloaded), [`Shutdown`](ErrorKind::Shutdown) and
    /// [`TooManyTopics`](ErrorKind::TooManyTopics), which have the [`status`](Self::status) 503.
    ///
    /// See [`when_full`](crate::SseLayer::when_full) for the response that an `EventSource` gets.
    ///
    /// Do not publish again only because an error is temporary. After an error of the kind
    /// `Backend`, the events may be in the log. The cause of such an error can also be permanent,
    /// for example an event that is too large for the backend.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::{Hub, Start};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let full = Hub::builder().max_topics(0).build();
    /// let error = full.topic("news").subscribe(Start::Latest).await.unwrap_err();
    /// assert!(error.is_temporary());
    /// # }
    /// ```
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    /// Converts this error into an [`http::Response`], for tower and hyper: its
    /// [`status`](Self::status), and its message as plain text. In an axum handler, return the
    /// error itself.
    ///
    /// An [`SseLayer`](crate::SseLayer::when_full) recognizes the response to a
    /// [temporary](Self::is_temporary) error by an extension of the response.
    ///
    /// The response has `Cache-Control: no-store`. Without it, a cache could store the status of a
    /// finished topic, because 410 Gone is cacheable by default (RFC 9110, §15.1). But the same
    /// request can succeed later.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::Response;
    /// use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
    /// use tower_sse::{BoxError, LastEventId, SseStream, hub::Hub};
    ///
    /// async fn prices(hub: &Hub, last: LastEventId) -> Response<UnsyncBoxBody<bytes::Bytes, BoxError>> {
    ///     match hub.topic("prices").subscribe(last).await {
    ///         Ok(prices) => SseStream::new(prices).into_http_response().map(|body| body.boxed_unsync()),
    ///         Err(error) => error.into_http_response().map(|body| body.map_err(Into::into).boxed_unsync()),
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn into_http_response(self) -> Response<String> {
        let mut response = error_response(self.status(), &self);
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.is_temporary() {
            let mark = TemporaryError(response.body().clone());
            response.extensions_mut().insert(mark);
        }
        response
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topic = Shortened(&self.topic);
        match self.kind {
            ErrorKind::Finished => write!(f, "the topic {topic} is finished; publish to another one"),
            ErrorKind::TooManyTopics => {
                let limit = self.limit;
                write!(f, "there is no room for the topic {topic}: the hub has {limit} topics, which is its max_topics")
            }
            ErrorKind::Shutdown => f.write_str("the hub is shut down; another server may answer"),
            ErrorKind::NoTopics => f.write_str("a subscription needs at least one topic"),
            ErrorKind::TooManyTopicsInSubscription => {
                let (topics, limit) = (&self.topic, self.limit);
                write!(f, "a subscription may have {limit} topics, and not {topics}: see max_topics_per_subscription")
            }
            ErrorKind::ReservedTopic => {
                write!(f, "topics that begin with `tower-sse/`, such as {topic}, are reserved; choose another topic")
            }
            ErrorKind::MemberTooLong => {
                let (bytes, limit) = (self.topic.len(), self.limit);
                write!(f, "the member {topic} has {bytes} bytes: at most {limit} are allowed")
            }
            ErrorKind::TopicTooLong => {
                let (bytes, limit) = (self.topic.len(), self.limit);
                write!(f, "the topic {topic} has {bytes} bytes: at most {limit} are allowed for this call")
            }
            ErrorKind::RegistryNameTooLong => {
                let (bytes, limit) = (self.topic.len(), self.limit);
                write!(f, "the name {topic} of a stream registry has {bytes} bytes: at most {limit} are allowed")
            }
            ErrorKind::RegistryNameInUse => write!(
                f,
                "a stream registry of this process already follows the hub under the name {topic}; \
                 choose another name in follow_as"
            ),
            ErrorKind::ReservedName => {
                write!(f, "the event name {topic} is reserved for the events of a hub; choose another name")
            }
            ErrorKind::NeedsAwait => {
                write!(f, "publish_now cannot publish to {topic}, because the hub has a backend; await publish instead")
            }
            ErrorKind::InvalidUrl => f.write_str("the URL of the backend is not valid"),
            ErrorKind::Json => f.write_str("an event does not serialize to JSON"),
            ErrorKind::Overloaded => {
                let limit = self.limit;
                write!(
                    f,
                    "the limit of {limit} history reads at the same time is reached; subscribe again later with the same id"
                )
            }
            ErrorKind::Backend if self.topic.is_empty() => f.write_str("the backend cannot be used"),
            ErrorKind::Backend => write!(f, "the backend has not confirmed a write to the topic {topic}"),
        }
    }
}

#[cfg(feature = "json")]
impl From<crate::JsonError> for Error {
    fn from(error: crate::JsonError) -> Self {
        Self { kind: ErrorKind::Json, topic: "".into(), limit: 0, source: Some(error.into()) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_deref()?)
    }
}

/// The errors that end a [`Subscription`](super::Subscription) or a [`Listener`](super::Listener)
/// before its topics are finished.
///
/// After `Lagged`, an [`SseStream`](crate::SseStream) aborts the transfer, unless
/// [`on_error`](crate::SseStream::on_error) sends a last event. After `Shutdown` and `LogReplaced`,
/// the response ends cleanly, with a delay for the reconnect of the client.
///
/// # Examples
///
/// ```
/// # use tower_sse::{LastEventId, SseStream, hub::{Error, Hub, LagPolicy, Subscription, SubscriptionError}};
/// async fn prices(hub: &Hub, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
///     let prices = hub.topic("prices").subscribe(last).await?.lag_policy(LagPolicy::Disconnect);
///     Ok(SseStream::new(prices).on_error(|error| {
///         if let Some(SubscriptionError::Lagged) = error.downcast_ref() {
///             eprintln!("a client is too slow for the prices");
///         }
///         // The transfer breaks, and the client returns with the last id that it received.
///         None
///     }))
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscriptionError {
    /// The subscriber was so slow that its next events were evicted before it received them. A
    /// subscription then ends with this error if its policy is
    /// [`LagPolicy::Disconnect`](super::LagPolicy::Disconnect), or if it is [without control
    /// events](super::Subscription::without_control_events), such as `gap`. A
    /// [`Listener`](super::Listener) always ends with this error.
    Lagged,
    /// The hub was [shut down](super::Hub::shutdown). The subscription has yielded the events that
    /// were published before, as far as this process retains them. The exception is a subscription
    /// that still reads old events from a backend: it ends at once.
    Shutdown,
    /// Another log has replaced the log of the backend, for example because the server was restored
    /// from a backup. A new subscription reads the other log. If it begins after an id of the
    /// replaced log, it has a [gap](super::Gap).
    LogReplaced,
}

impl fmt::Display for SubscriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lagged => "the client was too slow: events that it has not received are not retained any more",
            Self::Shutdown => "the hub is shut down; subscribe again with the last id",
            Self::LogReplaced => "another log has replaced the log of the hub; subscribe again with the last id",
        })
    }
}

impl std::error::Error for SubscriptionError {}
