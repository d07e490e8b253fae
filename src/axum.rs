//! The integration with axum. No other file uses `axum-core`.

use crate::{LastEventId, LastEventIdRejection, RetryLater, SseItem, SseStream, StopReconnecting};
use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::request::Parts;
use std::convert::Infallible;
use tokio_stream::Stream;

impl<S> IntoResponse for SseStream<S>
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::new)
    }
}

impl IntoResponse for StopReconnecting {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::new)
    }
}

impl IntoResponse for RetryLater {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::new)
    }
}

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::from_parts(parts))
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        let last = Self::from_parts(parts);
        Ok(last.id().is_some().then_some(last))
    }
}

impl IntoResponse for LastEventIdRejection {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::from)
    }
}

#[cfg(feature = "json")]
impl IntoResponse for crate::JsonError {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::from)
    }
}

/// Returns a response with the events of this hub subscription: the response of an [`SseStream`]
/// that contains this subscription and has default settings.
#[cfg(feature = "hub")]
impl IntoResponse for crate::hub::Subscription {
    fn into_response(self) -> Response {
        IntoResponse::into_response(SseStream::new(self))
    }
}

#[cfg(feature = "hub")]
impl IntoResponse for crate::hub::Error {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::from)
    }
}
