//! A page of another origin, and the CORS layer of tower-http.

use crate::{
    in_every_engine,
    page::{self, Page, SOON, message},
    requests::{self, Requests},
};
use axum::{
    Router,
    http::{HeaderMap, HeaderValue, Method},
    middleware,
    routing::get,
};
use e2e::{Engine, Server, eventually, stays};
use serde_json::json;
use std::time::Duration;
use tokio_stream::Stream;
use tower_http::cors::CorsLayer;
use tower_sse::{Event, SseLayer, SseStream};

in_every_engine! {
    cors_layer_decides_which_streams_a_page_reads,
}

const LOGIN: &str = "/login";
/// The page may read this stream, with its cookie.
const OPEN: &str = "/open";
/// Every origin may read this stream, without a cookie.
const PUBLIC: &str = "/public";
/// This stream has no CORS headers.
const CLOSED: &str = "/closed";

/// Sends the cookie of the request, and ends.
async fn cookie_stream(headers: HeaderMap) -> SseStream<impl Stream<Item = Event>> {
    let cookie = headers.get("cookie").map_or("none", |cookie| cookie.to_str().expect("the cookie is ASCII"));
    SseStream::new(tokio_stream::once(Event::new(cookie).id("größe"))).retry(Duration::from_millis(100))
}

async fn cors_layer_decides_which_streams_a_page_reads(engine: Engine) {
    let pages = Server::start(Router::new().route("/", get(page::html)));
    let origin = HeaderValue::try_from(pages.url("")).expect("the origin is ASCII");
    let requests = Requests::default();
    let app = Router::new()
        .route(OPEN, get(cookie_stream).layer(CorsLayer::new().allow_origin(origin.clone()).allow_credentials(true)))
        .route(PUBLIC, get(cookie_stream).layer(CorsLayer::permissive()))
        .route(CLOSED, get(cookie_stream))
        .route(LOGIN, get(async || [("set-cookie", "session=42; HttpOnly; SameSite=Strict")]))
        .layer(SseLayer::new())
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url(LOGIN)).await;
    page.go_to(&pages.url("/")).await;

    let with_credentials = json!({ "withCredentials": true });
    page.listen_with("open", &server.url(OPEN), &[], with_credentials.clone()).await;
    let received = page.wait_for_events("open", "the cookie twice", |received| received.len() >= 2).await;
    assert_eq!(received[..2], [message("message", "größe", "session=42"), message("message", "größe", "session=42")]);
    page.close("open").await;
    let to_open = requests.to(OPEN);
    assert_eq!(to_open[0].headers.get("origin"), Some(&origin), "the request is cross-origin");
    assert_eq!(to_open[1].last_event_id(), Some("größe".as_bytes()), "it reconnects with its id");
    assert!(to_open.iter().all(|request| request.method == Method::GET), "the browser sends no preflight: {to_open:?}");

    page.listen("public", &server.url(PUBLIC), &[]).await;
    let received = page.wait_for_events("public", "the cookie", |received| !received.is_empty()).await;
    assert_eq!(received[0], message("message", "größe", "none"), "the browser sends no cookie without credentials");
    page.close("public").await;

    let before = requests.count(PUBLIC);
    page.listen_with("rejected", &server.url(PUBLIC), &[], with_credentials.clone()).await;
    page.listen_with("closed", &server.url(CLOSED), &[], with_credentials).await;
    page.listen("closed without credentials", &server.url(CLOSED), &[]).await;
    for rejected in ["rejected", "closed", "closed without credentials"] {
        page.wait_for_ready_state(rejected, "CLOSED").await;
        assert_eq!(page.received(rejected).await, [], "{rejected}");
    }
    let seen = async || (requests.count(PUBLIC) - before, requests.count(CLOSED));
    eventually(
        SOON,
        "the handlers have been called",
        async || if seen().await == (1, 2) { Ok(()) } else { Err(seen().await) },
    )
    .await;
    stays(Duration::from_millis(1600), "no EventSource reconnects", seen).await;
}
