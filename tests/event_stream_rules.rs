//! The responses that the layer completes as event streams, and the headers that it adds.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use std::convert::Infallible;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{ResponseBody, SseLayer};

type Body = BoxBody<Bytes, Infallible>;

/// A body of unknown length.
fn streamed(text: &'static str) -> Body {
    let frame = http_body::Frame::data(Bytes::from_static(text.as_bytes()));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter([Ok(frame)])))
}

fn complete(text: &'static str) -> Body {
    BodyExt::boxed(Full::from(text))
}

/// Sends a request through the layer to a handler with this response.
async fn pass(layer: &SseLayer, request: &[(&str, &str)], response: Response<Body>) -> Response<ResponseBody<Body>> {
    let response = std::sync::Mutex::new(Some(response));
    let handler = service_fn(move |_: Request<Empty<Bytes>>| {
        let response = response.lock().unwrap().take().expect("one request");
        async { Ok::<_, Infallible>(response) }
    });
    let mut message = Request::builder().version(Version::HTTP_11);
    for (name, value) in request {
        message = message.header(*name, *value);
    }
    layer.layer(handler).oneshot(message.body(Empty::new()).unwrap()).await.unwrap()
}

fn event_stream() -> Response<Body> {
    let mut response = Response::new(streamed("data: 1\n\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
    response
}

async fn text(response: Response<ResponseBody<Body>>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// The layer adds `retry` to event streams, and to no other response.
fn layer() -> SseLayer {
    SseLayer::new().retry(std::time::Duration::from_secs(1)).max_streams(1)
}

#[tokio::test]
async fn only_status_200_is_an_event_stream() {
    for status in [201, 205, 206, 301, 304, 400, 401, 404, 429, 500, 503] {
        let layer = layer();
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut response = event_stream();
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            *response.body_mut() = complete(r#"{"error":"no"}"#);
            response.headers_mut().insert(header::CONTENT_LENGTH, 14.into());
            let headers = response.headers().clone();
            let response = pass(&layer, &[("accept", "text/event-stream")], response).await;
            assert_eq!((response.status().as_u16(), response.headers()), (status, &headers));
            held.push(response);
        }
        // Neither of them has taken the permit.
        for response in held {
            assert_eq!(text(response).await, r#"{"error":"no"}"#, "{status}");
        }
        let response = pass(&layer, &[], event_stream()).await;
        assert_eq!(text(response).await, "retry: 1000\ndata: 1\n\n");
    }
}

#[tokio::test]
async fn content_type_is_assumed_if_nothing_else_is_accepted() {
    for (accept, is_assumed) in [
        ("text/event-stream", true),
        ("text/event-stream, */*;q=0.1", true),
        ("text/event-stream, application/json;q=0", true),
        // As MCP clients send it.
        ("application/json, text/event-stream", false),
        ("*/*", false),
    ] {
        let response = pass(&layer(), &[("accept", accept)], Response::new(streamed("data: 1\n\n"))).await;
        if is_assumed {
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream", "{accept}");
            assert_eq!(response.headers()[header::VARY], "Accept");
            assert_eq!(text(response).await, "retry: 1000\ndata: 1\n\n");
        } else {
            assert_eq!(response.headers(), &HeaderMap::new(), "{accept}");
            assert_eq!(text(response).await, "data: 1\n\n");
        }
    }
}

#[tokio::test]
async fn body_of_known_length_is_not_assumed_to_be_a_stream() {
    let request = [("accept", "text/event-stream")];
    let response = pass(&layer(), &request, Response::new(complete("ok"))).await;
    assert_eq!(response.headers(), &HeaderMap::new());
    assert_eq!(text(response).await, "ok");
    let mut response = Response::new(streamed("ok"));
    response.headers_mut().insert(header::CONTENT_LENGTH, 2.into());
    let response = pass(&layer(), &request, response).await;
    assert_eq!(response.headers().len(), 1);
    assert_eq!(text(response).await, "ok");
}

#[tokio::test]
async fn vary_names_accept_once() {
    for (given, expected) in [
        (&[][..], &["Accept"][..]),
        (&["Origin"], &["Origin", "Accept"]),
        (&["origin, ACCEPT"], &["origin, ACCEPT"]),
        (&["*"], &["*"]),
    ] {
        let mut response = Response::new(streamed("data: 1\n\n"));
        for value in given {
            response.headers_mut().append(header::VARY, value.parse().unwrap());
        }
        let response = pass(&layer(), &[("accept", "text/event-stream")], response).await;
        assert_eq!(response.headers().get_all(header::VARY).iter().collect::<Vec<_>>(), expected);
        // With a content type, the response does not depend on `Accept`.
        let response = pass(&layer(), &[("accept", "text/event-stream")], event_stream()).await;
        assert!(!response.headers().contains_key(header::VARY));
    }
}

#[tokio::test]
async fn no_transform_is_added_to_cache_control() {
    for (given, expected) in [
        ("no-store", "no-store, no-transform"),
        (
            "no-cache, no-store, max-age=0, must-revalidate",
            "no-cache, no-store, max-age=0, must-revalidate, no-transform",
        ),
        ("private, no-transform", "private, no-transform"),
    ] {
        let mut response = event_stream();
        response.headers_mut().insert(header::CACHE_CONTROL, given.parse().unwrap());
        let response = pass(&layer(), &[], response).await;
        assert_eq!(response.headers()[header::CACHE_CONTROL], expected);
    }
}

#[tokio::test]
async fn content_encoding_none_is_no_encoding() {
    for (encoding, is_encoded) in [("none", false), ("identity, none", false), ("", false), ("gzip", true)] {
        let mut response = event_stream();
        response.headers_mut().insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        let response = pass(&layer(), &[], response).await;
        assert_eq!(response.headers()[header::CONTENT_ENCODING], encoding);
        let expected = if is_encoded { "data: 1\n\n" } else { "retry: 1000\ndata: 1\n\n" };
        assert_eq!(text(response).await, expected, "{encoding}");
    }
}

#[tokio::test]
async fn keep_alive_is_not_sent_if_the_client_closes() {
    for (request, is_kept) in [
        (&[][..], true),
        (&[("connection", "keep-alive")], true),
        (&[("connection", "close")], false),
        (&[("connection", "TE, Close")], false),
        (&[("accept", "*/*"), ("connection", "close")], false),
        (&[("accept", "text/event-stream"), ("connection", "close")], false),
    ] {
        let response = pass(&layer(), request, event_stream()).await;
        assert_eq!(response.headers().contains_key(header::CONNECTION), is_kept, "{request:?}");
    }
}

#[tokio::test]
async fn keep_alive_is_not_sent_during_a_shutdown() {
    let shutdown = CancellationToken::new();
    let layer = layer().shutdown(shutdown.clone());
    let response = pass(&layer, &[], event_stream()).await;
    assert_eq!(response.headers()[header::CONNECTION], "keep-alive");
    drop(response);
    shutdown.cancel();
    let response = pass(&layer, &[], event_stream()).await;
    assert!(!response.headers().contains_key(header::CONNECTION));
}
