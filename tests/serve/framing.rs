//! The framing of responses, in each version of HTTP/1.

use crate::common::{Running, event_stream};
use axum::{
    Router,
    body::Body,
    response::IntoResponse,
    routing::{any, get},
};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use support::{
    client::{Http1, Protocol},
    script::{Script, Step},
};
use tower_http::compression::CompressionLayer;
use tower_sse::{Event, SseLayer, SseStream};

fn two_events() -> Script {
    Script::of_chunks(["data: one\n\n", "data: two\n\n"])
}

fn app() -> Router {
    Router::new()
        .route("/two", any(async || event_stream(two_events())))
        .route("/chunked", any(async || ([(header::TRANSFER_ENCODING, "chunked")], event_stream(two_events()))))
        .route("/empty", get(async || event_stream(Script::new([Step::chunk("")]))))
        .route("/plain", get(async || "plain"))
}

#[tokio::test]
async fn http_1_1_stream_is_chunked_and_keeps_connection() {
    let server = Running::new(app()).await;
    let mut connection = Http1::connect(server.address).await;
    for _ in 0..3 {
        for (path, body) in [
            ("/two", "data: one\n\ndata: two\n\n"),
            ("/chunked", "data: one\n\ndata: two\n\n"),
            ("/plain", "plain"),
            ("/empty", ""),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = connection.request(request).await;
            assert_eq!((answer.version, answer.status), (Version::HTTP_11, StatusCode::OK));
            assert!(answer.headers.contains_key(header::DATE));
            assert_eq!(answer.headers.contains_key(header::TRANSFER_ENCODING), path != "/plain");
            let answer = answer.complete().await;
            assert_eq!(answer.text(), body);
            connection = answer.into_connection();
        }
    }
}

#[tokio::test]
async fn http_1_0_stream_ends_with_connection() {
    let server = Running::new(app()).await;
    for (path, field) in [("/two", ""), ("/two", "Connection: keep-alive\r\n"), ("/chunked", "")] {
        let request = format!("GET {path} HTTP/1.0\r\n{field}\r\n");
        let answer = Http1::connect(server.address).await.request(request).await;
        assert_eq!(answer.version, Version::HTTP_10);
        assert!(!answer.headers.contains_key(header::TRANSFER_ENCODING));
        assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
    }
}

#[tokio::test]
async fn response_of_version_1_0_ends_with_connection() {
    let http_1_0 = async || {
        let mut response = event_stream(two_events());
        *response.version_mut() = Version::HTTP_10;
        response
    };
    let server = Running::new(Router::new().route("/", get(http_1_0))).await;
    let answer = Protocol::Http1.get(server.address, "/", &[]).await;
    assert!(!answer.headers.contains_key(header::TRANSFER_ENCODING));
    assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn connection_closes_after_stream_if_either_side_asks() {
    let closing = async || ([(header::CONNECTION, "close")], event_stream(two_events())).into_response();
    let server = Running::new(app().route("/closing", get(closing))).await;
    for (path, fields) in [
        ("/two", &[("Connection", "close")][..]),
        ("/two", &[("Connection", "x\", close")]),
        ("/two", &[("Connection", "keep-alive"), ("Connection", "x, Close")]),
        ("/closing", &[]),
    ] {
        let answer = Protocol::Http1.get(server.address, path, fields).await;
        assert_eq!(answer.headers[header::CONNECTION], "close");
        let answer = answer.complete().await;
        assert_eq!(answer.text(), "data: one\n\ndata: two\n\n");
        assert!(answer.into_connection().is_closed().await, "{path}");
    }
}

#[tokio::test]
async fn head_request_gets_no_body() {
    let server = Running::new(app()).await;
    let connection = Http1::connect(server.address).await;
    let answer = connection.request("HEAD /two HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
    let connection = answer.complete().await.into_connection();
    let answer = connection.request("GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(answer.complete().await.text(), "plain");
}

#[tokio::test]
async fn stream_of_known_length_keeps_its_length() {
    let known = async || ([(header::CONTENT_TYPE, "text/event-stream")], Body::from("data: one\n\n"));
    let declared = async || {
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CONTENT_LENGTH, "22")];
        (headers, Body::new(two_events()))
    };
    let server = Running::new(Router::new().route("/known", get(known)).route("/declared", get(declared))).await;
    for (path, length) in [("/known", 11), ("/declared", 22)] {
        let answer = Protocol::Http1.get(server.address, path, &[]).await;
        assert_eq!(answer.headers[header::CONTENT_LENGTH], HeaderValue::from(length));
        assert_eq!(answer.complete().await.body.len(), length);
    }
}

#[tokio::test]
async fn announced_trailers_are_sent_and_others_are_not() {
    let with_trailers = || {
        let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("x"))]);
        event_stream(Script::new([Step::chunk("data: one\n\n"), Step::Trailers(trailers)]))
    };
    let announced = async move || ([(header::TRAILER, "etag")], with_trailers());
    let silent = async move || with_trailers();
    let server = Running::new(Router::new().route("/announced", get(announced)).route("/silent", get(silent))).await;
    for (path, end) in [("/announced", "0\r\netag: x\r\n\r\n"), ("/silent", "\r\n0\r\n\r\n")] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n");
        let response = crate::connections::exchange(server.address, &request).await;
        assert!(response.ends_with(end), "{response:?}");
    }
}

#[tokio::test]
async fn layers_outside_of_handler_apply_to_stream() {
    let events = async || SseStream::new(tokio_stream::iter(["one", "two"].map(Event::new)));
    let app = Router::new().route("/", get(events)).layer(SseLayer::new());
    let compress = CompressionLayer::new().compress_when(|_, _, _: &_, _: &_| true);
    let server = Running::new(app.layer(compress)).await;
    let answer = Protocol::Http1.get(server.address, "/", &[("Accept-Encoding", "gzip")]).await.complete().await;
    assert_eq!(answer.headers[header::CONTENT_ENCODING], "gzip");
    assert_eq!(answer.body[..2], [0x1f, 0x8b], "{:?}", answer.body);
}
