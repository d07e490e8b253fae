//! Upstream streams under the layer, on real connections: axum's own streams, proxied streams, and
//! handwritten streams.

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response, sse},
    routing::get,
};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, Version, header};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{
    client::{Answer, Protocol, within},
    script::{Script, Step},
    server, whatwg,
};
// In `over_serve`, this is the server of the crate.
use crate::server::serve;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_sse::{Event, Heartbeat, SseLayer, SseStream};

/// Sends heartbeats often enough for a test.
fn fast() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(5)))
}

/// Returns a function for a handler that returns `value` to its only request.
fn once<T>(value: T) -> impl Fn() -> T + Clone {
    let value = Arc::new(Mutex::new(Some(value)));
    move || value.lock().unwrap().take().expect("one request")
}

fn events(receiver: UnboundedReceiver<&'static str>) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    UnboundedReceiverStream::new(receiver).map(|data| Ok(sse::Event::default().data(data)))
}

fn event_stream(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], body.into()).into_response()
}

/// Returns a body whose chunks come from a channel.
fn chunks(receiver: UnboundedReceiver<&'static str>) -> Body {
    Body::from_stream(UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>))
}

fn script(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::new(Script::new(steps))
}

/// Checks that the headers of an event stream are present, and no header is duplicated.
fn assert_headers(answer: &Answer) {
    for (name, expected) in [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(answer.headers.get_all(name).into_iter().collect::<Vec<_>>(), [expected], "{name}");
    }
    for name in answer.headers.keys() {
        assert_eq!(answer.headers.get_all(name).into_iter().count(), 1, "{name}");
    }
    assert!(!answer.headers.contains_key(header::CONTENT_LENGTH));
    // hyper joins several values of this header on one line, and removes it from HTTP/2 responses.
    let connection = answer.headers.get(header::CONNECTION).map(HeaderValue::as_bytes);
    assert_eq!(connection, (answer.version == Version::HTTP_11).then_some(&b"keep-alive"[..]));
}

#[tokio::test]
async fn axum_sse_gets_headers_and_heartbeats_of_layer() {
    for protocol in Protocol::ALL {
        let (sender, receiver) = unbounded_channel();
        let response = once(sse::Sse::new(events(receiver)));
        let app = Router::new().route("/", get(async move || response())).layer(fast());
        let server = serve(app).await;

        let mut answer = protocol.get(server.address, "/", &[]).await;
        assert_headers(&answer);
        answer.read_until(":\n:\n").await;
        sender.send("one").unwrap();
        answer.read_until("data: one\n\n:\n:\n").await;
        drop(sender);
        assert_eq!(answer.complete().await.data(), ["one"]);
    }
}

#[tokio::test]
async fn axum_keep_alive_replaces_heartbeats_of_layer() {
    for protocol in Protocol::ALL {
        let (sender, receiver) = unbounded_channel();
        let keep_alive = sse::KeepAlive::new().interval(Duration::from_millis(5)).text("axum");
        let response = once(sse::Sse::new(events(receiver)).keep_alive(keep_alive));
        // The layer's interval passes several times, but its idle timer measures silence only.
        let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(300)).comment("layer"));
        let app = Router::new().route("/", get(async move || response())).layer(layer);
        let server = serve(app).await;

        let mut answer = protocol.get(server.address, "/", &[]).await;
        assert_headers(&answer);
        while whatwg::parse(&answer.body).comments.len() < 100 {
            assert_eq!(answer.more().await, Ok(true));
        }
        sender.send("one").unwrap();
        drop(sender);
        let answer = answer.complete().await;
        assert_eq!(answer.data(), ["one"]);
        assert!(!answer.text().contains("layer"), "{}", answer.text());
    }
}

/// Returns a handler that proxies another server: its status, headers and body.
fn proxy(upstream: std::net::SocketAddr) -> Router {
    let handler = async move |State(client): State<reqwest::Client>| {
        let answer = client.get(format!("http://{upstream}/")).send().await.expect("a response of the upstream");
        http::Response::<reqwest::Body>::from(answer).map(Body::new)
    };
    Router::new().route("/", get(handler)).with_state(reqwest::Client::builder().no_proxy().build().unwrap())
}

#[tokio::test]
async fn proxied_stream_has_immediate_events_and_heartbeats() {
    for protocol in Protocol::ALL {
        let (sender, receiver) = unbounded_channel();
        let response = once(sse::Sse::new(events(receiver)));
        let upstream = serve(Router::new().route("/", get(async move || response()))).await;
        let server = serve(proxy(upstream.address).layer(fast())).await;

        let mut answer = protocol.get(server.address, "/", &[]).await;
        assert_headers(&answer);
        for (data, bytes) in [("one", "data: one\n\n"), ("two", "data: two\n\n")] {
            sender.send(data).unwrap();
            answer.read_until(format!("{bytes}:\n:\n")).await;
        }
        drop(sender);
        assert_eq!(answer.complete().await.data(), ["one", "two"]);
    }
}

#[tokio::test]
async fn length_and_connection_of_upstream_are_replaced() {
    const TEXT: &str = "data: one\n\ndata: two\n\n";
    // The upstream can have a layer of its own, which sets `Connection`.
    for (protocol, has_layer) in Protocol::ALL.into_iter().flat_map(|p| [(p, false), (p, true)]) {
        let (sender, receiver) = unbounded_channel();
        let body = once(chunks(receiver));
        let handler = async move || ([(header::CONTENT_LENGTH, TEXT.len())], event_stream(body()));
        let upstream = Router::new().route("/", get(handler));
        let upstream = serve(if has_layer { upstream.layer(SseLayer::new()) } else { upstream }).await;
        let server = serve(proxy(upstream.address).layer(fast())).await;

        let mut answer = protocol.get(server.address, "/", &[]).await;
        assert_headers(&answer);
        sender.send(&TEXT[..11]).unwrap();
        answer.read_until("data: one\n\n:\n:\n").await;
        sender.send(&TEXT[11..]).unwrap();
        drop(sender);
        assert_eq!(answer.complete().await.data(), ["one", "two"]);
    }
}

#[tokio::test]
async fn disconnecting_client_ends_the_upstream_stream() {
    for protocol in Protocol::ALL {
        let (sender, receiver) = unbounded_channel();
        let response = once(sse::Sse::new(events(receiver)));
        let upstream = serve(Router::new().route("/", get(async move || response()))).await;
        let server = serve(proxy(upstream.address).layer(SseLayer::new())).await;

        let mut answer = protocol.get(server.address, "/", &[]).await;
        sender.send("one").unwrap();
        answer.read_until("data: one\n\n").await;
        drop(answer);
        within("the stream of the upstream to be dropped", sender.closed()).await;
    }
}

#[tokio::test]
async fn broken_upstream_breaks_proxied_stream_after_its_events() {
    let handler =
        async || event_stream(script([Step::chunk("data: one\n\n"), Step::chunk("data: tw"), Step::Fail("x")]));
    // The layer of the upstream delays the error, so that its events are flushed first.
    let upstream = serve(Router::new().route("/", get(handler)).layer(SseLayer::new())).await;
    for protocol in Protocol::ALL {
        let server = serve(proxy(upstream.address).layer(SseLayer::new())).await;
        let mut answer = protocol.get(server.address, "/", &[]).await;
        assert!(answer.end().await.is_err());
        assert_eq!(answer.text(), "data: one\n\ndata: tw");
    }
}

#[tokio::test]
async fn stream_of_single_bytes_keeps_its_events() {
    let text =
        "\u{feff}: hello\r\ndata: one\r\rid: 7\r\nevent: wide\r\ndata: né 日本 🦀\r\n\r\n:\n\ndata:\ndata: two\n\n";
    let handler = async || {
        // Each silence is longer than the heartbeat interval.
        event_stream(script(
            text.bytes().flat_map(|byte| [Step::chunk([byte]), Step::Silence(Duration::from_millis(3))]),
        ))
    };
    let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(1)).comment("alive"));
    let server = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/", &[]).await.complete().await;
        let (mut with, without) = (whatwg::parse(&answer.body), whatwg::parse(text.as_bytes()));
        assert_eq!(without.messages.len(), 3);
        assert!(with.comments.iter().any(|comment| comment == " alive"), "the layer sent no heartbeats");
        with.comments.retain(|comment| comment != " alive");
        assert_eq!(with, without, "{protocol:?}");
    }
}

#[tokio::test]
async fn wrong_content_length_of_handler_is_removed() {
    let ours = async || {
        let events = tokio_stream::iter([Event::new("one"), Event::new("two")]);
        ([(header::CONTENT_LENGTH, "5")], SseStream::new(events))
    };
    let upstream = async || {
        let body = script([Step::chunk("data: one\n\n"), Step::chunk("data: two\n\n")]);
        ([(header::CONTENT_LENGTH, "5")], event_stream(body))
    };
    let app = Router::new().route("/ours", get(ours)).route("/upstream", get(upstream));
    for layer in [SseLayer::new(), SseLayer::new().without_heartbeat()] {
        let server = serve(app.clone().layer(layer)).await;
        for (protocol, path) in Protocol::ALL.into_iter().flat_map(|p| ["/ours", "/upstream"].map(|path| (p, path))) {
            let answer = protocol.get(server.address, path, &[]).await;
            assert_headers(&answer);
            assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n", "{protocol:?} {path}");
        }
    }
}

#[tokio::test]
async fn untyped_body_is_stream_if_client_accepts_it() {
    for protocol in Protocol::ALL {
        // A bare body has no type. axum adds a type to texts and bytes.
        let (sender, receiver) = unbounded_channel();
        let response = once(Response::new(chunks(receiver)));
        let server = serve(Router::new().route("/", get(async move || response())).layer(fast())).await;
        let mut answer = protocol.get(server.address, "/", &[("accept", "text/event-stream")]).await;
        assert_headers(&answer);
        sender.send("data: one\n\n").unwrap();
        answer.read_until("data: one\n\n:\n:\n").await;

        let handler = async || Response::new(script([Step::chunk("data: one\n\n")]));
        let server = serve(Router::new().route("/", get(handler)).layer(fast())).await;
        let answer = protocol.get(server.address, "/", &[("accept", "*/*")]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!answer.headers.contains_key(header::CONTENT_TYPE));
        assert!(!answer.headers.contains_key(header::CACHE_CONTROL));
        assert_eq!(answer.complete().await.text(), "data: one\n\n");
    }
}
