//! A page of another origin, and tower-http's layer that lets it in.

use crate::{
    in_every_engine,
    page::{self, Page, SOON, message},
    visits::{self, Visits},
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
    a_page_of_another_origin_reads_with_its_cookie_what_the_cors_layer_lets_it_read_and_nothing_else,
}

const LOGIN: &str = "/login";
/// What may be read by the page, with its cookie.
const OPEN: &str = "/open";
/// What may be read by anybody, without a cookie.
const PUBLIC: &str = "/public";
/// Without any CORS.
const CLOSED: &str = "/closed";

/// Says which cookie it has got, and ends.
async fn who_are_you(headers: HeaderMap) -> SseStream<impl Stream<Item = Event>> {
    let cookie = headers.get("cookie").map_or("nobody", |cookie| cookie.to_str().expect("it is ours"));
    SseStream::new(tokio_stream::once(Event::new(cookie).id("größe"))).retry(Duration::from_millis(100))
}

async fn a_page_of_another_origin_reads_with_its_cookie_what_the_cors_layer_lets_it_read_and_nothing_else(
    engine: Engine,
) {
    let pages = Server::start(Router::new().route("/", get(page::html)));
    let origin = HeaderValue::try_from(pages.url("")).expect("it is ASCII");
    let visits = Visits::default();
    let app = Router::new()
        .route(OPEN, get(who_are_you).layer(CorsLayer::new().allow_origin(origin.clone()).allow_credentials(true)))
        .route(PUBLIC, get(who_are_you).layer(CorsLayer::permissive()))
        .route(CLOSED, get(who_are_you))
        .route(LOGIN, get(async || [("set-cookie", "session=42; HttpOnly; SameSite=Strict")]))
        .layer(SseLayer::new())
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url(LOGIN)).await;
    page.go_to(&pages.url("/")).await;

    let with_credentials = json!({ "withCredentials": true });
    page.listen_with("open", &server.url(OPEN), &[], with_credentials.clone()).await;
    let told = page.is_told("open", "twice who it is", |told| told.len() >= 2).await;
    assert_eq!(told[..2], [message("message", "größe", "session=42"), message("message", "größe", "session=42")]);
    page.close("open").await;
    let to_open = visits.to(OPEN);
    assert_eq!(to_open[0].headers.get("origin"), Some(&origin), "it is another origin");
    assert_eq!(to_open[1].last_event_id(), Some("größe".as_bytes()), "it comes back with its id");
    assert!(to_open.iter().all(|visit| visit.method == Method::GET), "and asks for no permission before: {to_open:?}");

    page.listen("public", &server.url(PUBLIC), &[]).await;
    let told = page.is_told("public", "who it is", |told| !told.is_empty()).await;
    assert_eq!(told[0], message("message", "größe", "nobody"), "without credentials there is no cookie");
    page.close("public").await;

    let before = visits.count(PUBLIC);
    page.listen_with("refused", &server.url(PUBLIC), &[], with_credentials.clone()).await;
    page.listen_with("closed", &server.url(CLOSED), &[], with_credentials).await;
    page.listen("closed without credentials", &server.url(CLOSED), &[]).await;
    for refused in ["refused", "closed", "closed without credentials"] {
        page.becomes(refused, "CLOSED").await;
        assert_eq!(page.told(refused).await, [], "{refused}");
    }
    let seen = async || (visits.count(PUBLIC) - before, visits.count(CLOSED));
    eventually(
        SOON,
        "the handlers have been asked",
        async || if seen().await == (1, 2) { Ok(()) } else { Err(seen().await) },
    )
    .await;
    stays(Duration::from_millis(1600), "nobody comes back", seen).await;
}
