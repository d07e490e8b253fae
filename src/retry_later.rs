//! [`RetryLater`], a response that makes clients reconnect later.

use crate::{
    Overload,
    body::ResponseBody,
    rejection::{Reason, reject},
    settings::Settings,
};
use http::Response;
use std::time::Duration;

/// A response that makes a client reconnect later: an event stream that sends a reconnect delay,
/// and ends.
///
/// Return it for a failure that is temporary, such as an overload. An `EventSource` reconnects
/// after the delay, with the last id that it has received. After a status such as 503, it would not
/// reconnect (HTML standard, §9.2.2). The response does not show the reason, so a load balancer
/// does not notice the overload, and neither does a page.
///
/// An axum handler returns it as `Ok` or as `Err`. [`into_http_response`](Self::into_http_response)
/// converts it for tower and hyper. To stop a client from reconnecting instead, use
/// [`StopReconnecting`](crate::StopReconnecting).
///
/// An [`SseLayer`](crate::SseLayer) responds in the same way to an `EventSource` over a limit, or
/// after a temporary error of a hub: see [`Overload`]. Like that response, a `RetryLater` does not
/// count as a stream: layers neither limit nor register nor report it.
///
/// # Examples
///
/// All clients of a hub return after 10 to 15 seconds if the hub has too many topics, or its
/// backend does not respond. With an [`SseLayer`](crate::SseLayer::when_full) around it, the
/// handler can return the error itself instead. Then an `EventSource` returns after the delay of
/// the layer:
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "hub"))] {
/// use axum::{extract::State, response::Result};
/// use std::time::Duration;
/// use tower_sse::{LastEventId, RetryLater, hub::{Hub, Subscription}};
///
/// async fn orders(State(hub): State<Hub>, last: LastEventId) -> Result<Subscription> {
///     hub.topic("orders").subscribe(last).await.map_err(|error| match error.is_temporary() {
///         true => RetryLater::after(Duration::from_secs(10)).into(),
///         false => error.into(),
///     })
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let hub = Hub::builder().max_topics(0).build();
/// # let response = axum::response::IntoResponse::into_response(orders(State(hub), LastEventId::default()).await);
/// # assert_eq!(response.status(), 200);
/// # }
/// # main();
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is returned as a response"]
pub struct RetryLater {
    delay: Duration,
    jitter: Option<Duration>,
}

impl RetryLater {
    /// Creates a response after which the client reconnects after `delay`, in whole milliseconds,
    /// plus a random time of up to the [jitter](Self::jitter). So clients that are rejected
    /// together do not all reconnect at the same time.
    pub fn after(delay: Duration) -> Self {
        Self { delay, jitter: None }
    }

    /// Sets the maximum of the random time that is added to the delay. The default is the
    /// [jitter](crate::SseLayer::reconnect_jitter) of the layer around the handler, or otherwise five
    /// seconds.
    pub fn jitter(self, jitter: Duration) -> Self {
        Self { jitter: Some(jitter), ..self }
    }

    /// Converts this value into an [`http::Response`], for tower and hyper. In an axum handler,
    /// return the value itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_sse::RetryLater;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let later = RetryLater::after(Duration::from_secs(10)).jitter(Duration::ZERO);
    /// let response = later.into_http_response();
    /// assert_eq!(response.status(), 200);
    /// assert_eq!(response.headers()["content-type"], "text/event-stream");
    /// # use http_body_util::BodyExt;
    /// let body = response.into_body().collect().await.unwrap().to_bytes();
    /// assert_eq!(body, "retry: 10000\n");
    /// # }
    /// ```
    #[must_use]
    pub fn into_http_response(self) -> Response<ResponseBody<String>> {
        // The mark of a rejection makes layers supply their jitter, and count no stream.
        let (retry, when_full) = (Some(self.delay), Some(Overload::RetryLater));
        let settings = Settings { retry, jitter: self.jitter, when_full, ..Settings::default() };
        reject(Response::new(String::new()), Reason::TemporaryError, settings, true)
    }
}
