//! Event streams and the compressors of tower-http on real connections: which of them the layer
//! disables.

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response, sse},
    routing::get,
};
use futures_util::{Stream, StreamExt};
use http::{Extensions, HeaderMap, StatusCode, Version, header};
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{
    client::{Answer, Protocol, within},
    script::{Script, Step},
    server::serve,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{ServiceExt, service_fn};
use tower_http::{
    compression::{CompressionLayer, predicate::SizeAbove},
    decompression::Decompression,
};
use tower_sse::{Event, Heartbeat, SseLayer, SseStream};

const CODINGS: [&str; 4] = ["gzip", "br", "zstd", "gzip, br, zstd"];

/// The source of the event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    AxumsOwn,
    Upstream,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Ours, Self::AxumsOwn, Self::Upstream];

    fn response(self, data: impl Stream<Item = String> + Send + 'static) -> Response {
        match self {
            Self::Ours => SseStream::new(data.map(Event::new)).into_http_response().map(Body::new),
            Self::AxumsOwn => {
                sse::Sse::new(data.map(|data| Ok::<_, Infallible>(sse::Event::default().data(data)))).into_response()
            }
            Self::Upstream => {
                let chunks = data.map(|data| Ok::<_, Infallible>(format!("data: {data}\n\n")));
                ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(chunks)).into_response()
            }
        }
    }
}

/// Returns an app with a stream of the sent items at `/live`, for one request.
fn live(kind: Kind) -> (UnboundedSender<String>, Router) {
    let (sender, receiver) = unbounded_channel();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let handler = move || async move {
        let receiver = receiver.lock().unwrap().take().expect("one request");
        kind.response(UnboundedReceiverStream::new(receiver))
    };
    (sender, Router::new().route("/live", get(handler)))
}

/// A predicate of tower-http that compresses everything.
fn everything(_: StatusCode, _: Version, _: &HeaderMap, _: &Extensions) -> bool {
    true
}

/// Sends the request of an `EventSource`.
async fn ask(protocol: Protocol, app: Router, codings: &str) -> Answer {
    let server = serve(app).await;
    protocol.get(server.address, "/live", &[("accept", "text/event-stream"), ("accept-encoding", codings)]).await
}

/// Asserts that the stream arrives uncompressed, event by event.
async fn assert_not_compressed(around: impl Fn(Router) -> Router) {
    for protocol in Protocol::ALL {
        for (kind, codings) in Kind::ALL.into_iter().flat_map(|kind| CODINGS.map(|codings| (kind, codings))) {
            let (events, app) = live(kind);
            let mut answer = ask(protocol, around(app), codings).await;
            assert_eq!(answer.headers.get(header::CONTENT_ENCODING), None, "{kind:?} {codings}");
            for n in 1..=3 {
                events.send(n.to_string()).unwrap();
                answer.read_until(format!("data: {n}\n\n")).await;
            }
            drop(events);
            assert_eq!(answer.complete().await.data(), ["1", "2", "3"], "{kind:?} {codings}");
        }
    }
}

/// `*/*` does not announce that the response will be an event stream.
#[tokio::test]
async fn inner_compressor_is_disabled_only_if_accept_names_stream() {
    let (events, app) = live(Kind::Ours);
    drop(events);
    let app = app.layer(CompressionLayer::new().compress_when(everything)).layer(SseLayer::new());
    let server = serve(app).await;
    let request = [("accept", "*/*"), ("accept-encoding", "gzip")];
    let answer = Protocol::Http1.get(server.address, "/live", &request).await;
    assert_eq!(answer.headers[header::CONTENT_ENCODING], "gzip");
}

#[tokio::test]
async fn inner_compressor_is_disabled() {
    assert_not_compressed(|app| app.layer(CompressionLayer::new()).layer(SseLayer::new())).await;
}

#[tokio::test]
async fn outer_compressor_is_disabled() {
    assert_not_compressed(|app| app.layer(SseLayer::new()).layer(CompressionLayer::new())).await;
}

#[tokio::test]
async fn inner_compressor_of_everything_is_disabled() {
    let compressor = CompressionLayer::new().compress_when(everything);
    assert_not_compressed(|app| app.layer(compressor.clone()).layer(SseLayer::new())).await;
}

#[tokio::test]
async fn inner_compressor_by_size_is_disabled() {
    let compressor = CompressionLayer::new().compress_when(SizeAbove::new(0));
    assert_not_compressed(|app| app.layer(compressor.clone()).layer(SseLayer::new())).await;
}

/// Decodes the content of a response as it arrives. The decoders poll bodies after their end.
async fn decoded(answer: Answer) -> Body {
    let mut response = Response::new(());
    *response.headers_mut() = answer.headers.clone();
    let response = response.map(|()| Body::from_stream(answer.into_pieces().fuse()));
    let response = Mutex::new(Some(response));
    let service = service_fn(async |_: http::Request<()>| {
        Ok::<_, Infallible>(response.lock().unwrap().take().expect("one request"))
    });
    let response = Decompression::new(service).oneshot(http::Request::new(())).await.unwrap();
    Body::new(response.into_body())
}

/// The layer cannot prevent these: the compressors read neither the content type nor the cache
/// control of a response.
async fn assert_compressed_and_yet_timely(around: impl Fn(Router) -> Router) {
    for (kind, coding) in Kind::ALL.into_iter().flat_map(|kind| ["gzip", "br", "zstd"].map(|coding| (kind, coding))) {
        let (events, app) = live(kind);
        let answer = ask(Protocol::Http2, around(app), coding).await;
        assert_eq!(answer.headers[header::CONTENT_ENCODING], coding, "{kind:?}");
        let mut body = decoded(answer).await;
        let mut text = String::new();
        for n in 1..=3 {
            events.send(n.to_string()).unwrap();
            let event = format!("data: {n}\n\n");
            while !text.contains(&event) {
                let frame = within(&format!("{event:?} of {kind:?} as {coding}"), body.frame()).await;
                let data = frame.expect("an open stream").unwrap().into_data().unwrap();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
        drop(events);
        text.push_str(std::str::from_utf8(&within("the end", body.collect()).await.unwrap().to_bytes()).unwrap());
        assert_eq!(support::whatwg::parse(text.as_bytes()).messages.len(), 3, "{kind:?} {coding}: {text:?}");
    }
}

#[tokio::test]
async fn outer_compressor_of_everything_delivers_each_event() {
    let compressor = CompressionLayer::new().compress_when(everything);
    assert_compressed_and_yet_timely(|app| app.layer(SseLayer::new()).layer(compressor.clone())).await;
}

#[tokio::test]
async fn outer_compressor_by_size_delivers_each_event() {
    let compressor = CompressionLayer::new().compress_when(SizeAbove::new(0));
    assert_compressed_and_yet_timely(|app| app.layer(SseLayer::new()).layer(compressor.clone())).await;
}

#[tokio::test]
async fn content_encoding_identity_disables_compressors_and_keeps_heartbeats() {
    let identity = async |mut response: Response| {
        response.headers_mut().insert(header::CONTENT_ENCODING, "identity".parse().unwrap());
        response
    };
    for kind in Kind::ALL {
        let (events, app) = live(kind);
        let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(20)));
        let app = app.layer(axum::middleware::map_response(identity)).layer(layer);
        let app = app.layer(CompressionLayer::new().compress_when(everything));
        let mut answer = ask(Protocol::Http1, app, "gzip, br, zstd").await;
        assert_eq!(answer.headers[header::CONTENT_ENCODING], "identity");
        events.send("one".to_owned()).unwrap();
        answer.read_until("data: one\n\n:\n:\n").await;
    }
}

#[tokio::test]
async fn outer_compressor_knows_content_type_in_upper_case() {
    let handler = async || {
        // Fused, because the compressors poll bodies after their end.
        let body = tokio_stream::iter(["data: one\n\n", "data: two\n\n"].map(Ok::<_, Infallible>)).fuse();
        ([(header::CONTENT_TYPE, "Text/Event-Stream; charset=utf-8")], Body::from_stream(body))
    };
    let app = Router::new().route("/live", get(handler));

    let without = ask(Protocol::Http1, app.clone().layer(CompressionLayer::new()), "gzip").await;
    assert_eq!(without.headers[header::CONTENT_ENCODING], "gzip", "there is nothing to fix any more");

    let answer = ask(Protocol::Http1, app.layer(SseLayer::new()).layer(CompressionLayer::new()), "gzip").await;
    assert_eq!(answer.headers.get(header::CONTENT_ENCODING), None);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream; charset=utf-8");
    assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn json_is_compressed_unless_accept_names_stream() {
    let json = format!("[{}1]", "1,".repeat(1_000));
    let handler = {
        let json = json.clone();
        async move || ([(header::CONTENT_TYPE, "application/json")], json)
    };
    let app = Router::new().route("/", get(handler));
    let inside = app.clone().layer(CompressionLayer::new()).layer(SseLayer::new());
    let outside = app.layer(SseLayer::new()).layer(CompressionLayer::new());

    for (app, accept, expected) in [
        (&inside, "application/json", true),
        (&inside, "*/*", true),
        // The layer cannot know the response, so it disables compression for any response.
        (&inside, "application/json, text/event-stream", false),
        (&outside, "application/json", true),
        (&outside, "application/json, text/event-stream", true),
    ] {
        let server = serve(app.clone()).await;
        let headers = [("accept", accept), ("accept-encoding", "gzip")];
        let answer = Protocol::Http1.get(server.address, "/", &headers).await;
        assert_eq!(answer.headers.contains_key(header::CONTENT_ENCODING), expected, "{accept}");
        let body = within("the body", decoded(answer).await.collect()).await.unwrap().to_bytes();
        assert_eq!(body, json, "{accept}");
    }
}

/// The output of `gzip` for two events.
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\x4b\x49\x2c\x49\xb4\x52\xc8\xcf\x4b\xe5\xe2\x4a\x01\
    \x33\x4b\xca\xf3\xb9\xb8\x00\xa2\x0d\x4a\x3f\x16\x00\x00\x00";

#[tokio::test]
async fn encoded_event_stream_passes_unchanged_with_length() {
    let handler = async || {
        // Before the first byte, heartbeats would be legal in a stream without an encoding.
        let steps = [Step::Silence(Duration::from_millis(50)), Step::chunk(GZIP)];
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream".to_owned()),
            (header::CONTENT_ENCODING, "gzip".to_owned()),
            (header::CONTENT_LENGTH, GZIP.len().to_string()),
        ];
        (headers, Body::new(Script::new(steps)))
    };
    let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(5)));
    let compressor = CompressionLayer::new().compress_when(everything);
    let app = Router::new().route("/live", get(handler)).layer(compressor.clone()).layer(layer).layer(compressor);
    for protocol in Protocol::ALL {
        let answer = ask(protocol, app.clone(), "gzip").await;
        assert_eq!(answer.headers[header::CONTENT_ENCODING], "gzip");
        assert_eq!(answer.headers[header::CONTENT_LENGTH], GZIP.len().to_string());
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-cache, no-transform");
        assert_eq!(answer.complete().await.body, GZIP);

        let answer = ask(protocol, app.clone(), "gzip").await;
        let body = within("the body", decoded(answer).await.collect()).await.unwrap().to_bytes();
        assert_eq!(body, "data: one\n\ndata: two\n\n");
    }
}
