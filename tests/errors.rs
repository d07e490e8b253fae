//! Errors compose: a handler that builds JSON, publishes and subscribes returns one error type.

use axum::{Router, body::Body, extract::State, response::IntoResponse, routing::get};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::{collections::HashMap, error::Error as _, time::Duration};
use tokio_stream::Pending;
use tower::ServiceExt;
use tower_sse::{
    Event, JsonError, LastEventId, RetryLater, SseStream,
    hub::{Error, ErrorKind, Hub, Start, Subscription},
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
async fn temporary_errors_have_the_status_503() {
    let (full, hub) = (Hub::builder().max_topics(0).build(), Hub::new());
    let topic = hub.topic("orders");
    let none: [&str; 0] = [];
    topic.finish().await.unwrap();
    let finished = topic.publish(Event::new("late")).await.map(drop);
    hub.shutdown();
    for (result, kind) in [
        (full.topic("orders").subscribe(Start::Latest).await.map(drop), ErrorKind::TooManyTopics),
        (hub.topic("news").publish(Event::new("late")).await.map(drop), ErrorKind::Shutdown),
        (finished, ErrorKind::Finished),
        (hub.subscribe(none, Start::Latest).await.map(drop), ErrorKind::NoTopics),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind);
        let is_temporary = [ErrorKind::TooManyTopics, ErrorKind::Shutdown].contains(&kind);
        assert_eq!((error.is_temporary(), error.status() == 503), (is_temporary, is_temporary), "{kind:?}");
    }
}

#[tokio::test]
async fn retry_later_is_response_and_error_of_a_handler() {
    let later = || RetryLater::after(Duration::from_secs(1)).jitter(Duration::ZERO);
    let app: Router = Router::new()
        .route("/ok", get(async move || later()))
        .route("/error", get(async move || Err::<SseStream<Pending<Event>>, _>(later())));
    for path in ["/ok", "/error"] {
        let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(text(response).await, "retry: 1000\n");
    }
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

#[tokio::test]
async fn errors_are_the_same_responses_without_axum() {
    let rejection = || {
        let request = Request::builder().header("last-event-id", "seven").body(()).unwrap();
        LastEventId::from_request(&request).parse::<u64>().unwrap_err()
    };
    let json = || Event::json(&value(false)).unwrap_err();
    let hub = || Error::from(json());
    for (plain, in_axum) in [
        (rejection().into_http_response(), rejection().into_response()),
        (json().into_http_response(), json().into_response()),
        (hub().into_http_response(), hub().into_response()),
    ] {
        assert!(plain.status().is_client_error() || plain.status().is_server_error());
        assert_eq!(plain.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!((plain.status(), plain.headers()), (in_axum.status(), in_axum.headers()));
        assert_eq!(plain.into_body(), text(in_axum).await);
    }
    assert_eq!(rejection().into_http_response().body(), &rejection().to_string());
    assert_eq!(hub().into_http_response().headers()["cache-control"], "no-store");
}

#[test]
fn converted_json_error_keeps_its_source() {
    let error = Error::from(Event::json(&value(false)).unwrap_err());
    assert_eq!((error.kind(), error.status()), (ErrorKind::Json, StatusCode::INTERNAL_SERVER_ERROR));
    assert!(error.source().unwrap().is::<JsonError>());
}
