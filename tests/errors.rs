//! Errors compose: a handler that builds JSON, publishes and subscribes returns one error type.

use axum::{Router, body::Body, extract::State, routing::get};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::{collections::HashMap, error::Error as _};
use tower::ServiceExt;
use tower_sse::{
    Event, JsonError, LastEventId, SseStream,
    hub::{Error, ErrorKind, Hub, Subscription},
};

/// Serializes only without a map key that is no string.
fn value(is_json: bool) -> HashMap<Option<[u8; 2]>, u32> {
    if is_json { HashMap::new() } else { HashMap::from([(Some([1, 2]), 3)]) }
}

async fn respond(hub: &Hub, is_json: bool) -> Response<Body> {
    let handler = move |State(hub): State<Hub>, last: LastEventId| async move {
        let topic = hub.topic("orders");
        topic.publish(Event::json(&value(is_json))?.event("created")).await?;
        Ok::<SseStream<Subscription>, Error>(SseStream::new(topic.subscribe(last).await?))
    };
    let app = Router::new().route("/", get(handler)).with_state(hub.clone());
    app.oneshot(Request::new(Body::empty())).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn handler_uses_hub_error_for_json_and_hub() {
    let hub = Hub::new();
    assert_eq!(respond(&hub, true).await.status(), StatusCode::OK);

    let response = respond(&hub, false).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text(response).await, "an event does not serialize to JSON");

    hub.topic("orders").finish().await.unwrap();
    let response = respond(&hub, true).await;
    assert_eq!(response.status(), StatusCode::GONE);
    // A cache would otherwise return the error to clients with other ids.
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn json_error_is_a_response() {
    let handler = async || {
        let event = Event::json(&value(false))?;
        Ok::<_, JsonError>(SseStream::new(tokio_stream::once(event)))
    };
    let app: Router = Router::new().route("/", get(handler));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text(response).await.contains("does not serialize to JSON"));
}

#[test]
fn converted_json_error_keeps_its_source() {
    let error = Error::from(Event::json(&value(false)).unwrap_err());
    assert_eq!((error.kind(), error.status()), (ErrorKind::Json, StatusCode::INTERNAL_SERVER_ERROR));
    assert!(error.source().unwrap().is::<JsonError>());
}
