//! Errors compose: a handler that builds JSON, publishes and subscribes returns one error type.

use axum::{Router, body::Body, extract::State, middleware, response::IntoResponse, routing::get};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::{collections::HashMap, error::Error as _, time::Duration};
use tokio_stream::Pending;
use tower::ServiceExt;
use tower_sse::{
    Event, JsonError, LastEventId, Overload, RetryLater, SseLayer, SseStream,
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

/// A route whose handler subscribes to a topic of the hub, and returns its error.
fn news(hub: &Hub) -> Router {
    let handler = async |State(hub): State<Hub>, last: LastEventId| hub.topic("news").subscribe(last).await;
    Router::new().route("/", get(handler).post(handler)).with_state(hub.clone())
}

async fn request(app: &Router, method: &str, accept: &str) -> Response<Body> {
    let request = Request::builder().method(method).header("accept", accept).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

const EVENT_STREAM: &str = "text/event-stream";
const FULL: &str = r#"there is no room for the topic "news": the hub has 0 topics, which is its max_topics"#;

fn layer() -> SseLayer {
    SseLayer::new().retry(Duration::from_secs(4)).reconnect_jitter(Duration::ZERO)
}

#[tokio::test]
async fn event_source_reconnects_after_temporary_error_of_hub() {
    let hub = Hub::builder().max_topics(0).build();
    let headers = async |mut response: Response<Body>| {
        response.headers_mut().insert("access-control-allow-origin", "https://a.example".parse().unwrap());
        // It belongs to the status 503.
        response.headers_mut().insert("retry-after", 9.into());
        response
    };
    let app = news(&hub).layer(middleware::map_response(headers)).layer(layer());
    let response = request(&app, "GET", EVENT_STREAM).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(response.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(text(response).await, "retry: 4000\n");

    // The response is the same for other requests, and without a layer.
    let bare = news(&hub);
    for (app, method, accept) in [
        (&app, "GET", "*/*"),
        (&app, "GET", "application/json, text/event-stream"),
        (&app, "POST", EVENT_STREAM),
        (&app, "HEAD", EVENT_STREAM),
        (&bare, "GET", EVENT_STREAM),
    ] {
        let response = request(app, method, accept).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {accept}");
        assert_eq!(text(response).await, if method == "HEAD" { "" } else { FULL }, "{method} {accept}");
    }
}

#[tokio::test]
async fn permanent_or_changed_error_of_hub_stays() {
    let hub = Hub::builder().max_topics(0).build();
    let teapot = async |mut response: Response<Body>| {
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    };
    let app = news(&hub).layer(middleware::map_response(teapot)).layer(layer());
    let response = request(&app, "GET", EVENT_STREAM).await;
    assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::IM_A_TEAPOT, FULL));

    let none = async || Hub::new().subscribe([""; 0], Start::Latest).await;
    let app = Router::new().route("/", get(none)).layer(layer());
    assert_eq!(request(&app, "GET", EVENT_STREAM).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn layers_set_the_response_to_temporary_errors() {
    let hub = Hub::builder().max_topics(0).build();
    let get = async |layers: [SseLayer; 2]| {
        let app = layers.into_iter().fold(news(&hub), |app, layer| app.layer(layer));
        let response = request(&app, "GET", EVENT_STREAM).await;
        (response.status().as_u16(), text(response).await)
    };
    let later = (200, String::from("retry: 4000\n"));
    assert_eq!(get([SseLayer::new(), layer()]).await, later);
    assert_eq!(get([SseLayer::new().when_full(Overload::RetryLater), layer()]).await, later);
    let unavailable = || layer().when_full(Overload::ServiceUnavailable);
    assert_eq!(get([unavailable(), SseLayer::new()]).await, (503, FULL.to_owned()));
    assert_eq!(get([unavailable(), layer().when_full(Overload::RetryLater)]).await, (503, FULL.to_owned()));
    let generic = "the event stream is temporarily unavailable; try again later".to_owned();
    assert_eq!(get([SseLayer::new(), unavailable()]).await, (503, generic));
    assert_eq!(get([layer().when_full(Overload::Auto), unavailable()]).await, later);
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
