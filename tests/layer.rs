//! The layer: its choice of responses that are event streams, and its changes to them.

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName,
    },
};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use support::{
    respond::{respond, through},
    script::{Script, Step},
    whatwg,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_sse::{BoxError, Event, Heartbeat, SseBody, SseLayer, SseStream};

fn events() -> http::response::Builder {
    Response::builder().header(CONTENT_TYPE, "text/event-stream")
}

fn eager() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)))
}

/// Returns a stream with a silence of 1.5 times the heartbeat interval of [`eager`].
fn silent_once() -> Script {
    Script::new([Step::chunk("data: a\n\n"), Step::Silence(Duration::from_millis(1500)), Step::chunk("data: b\n\n")])
}

/// Returns a stream that stays silent.
fn waiting() -> Script {
    Script::new([Step::Hang])
}

async fn text<B>(response: Response<B>) -> String
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

const WITH_HEARTBEAT: &str = "data: a\n\n:\ndata: b\n\n";
const WITHOUT_HEARTBEAT: &str = "data: a\n\ndata: b\n\n";

#[tokio::test(start_paused = true)]
async fn content_type_matches_in_any_case_with_parameters() {
    for content_type in ["text/event-stream", "Text/EVENT-Stream", "text/event-stream; charset=utf-8"] {
        let response = Response::builder().header(CONTENT_TYPE, content_type).body(silent_once()).unwrap();
        assert_eq!(text(through(&eager(), response)).await, WITH_HEARTBEAT, "{content_type}");
    }
    for content_type in ["text/event-streams", "text/plain", "application/grpc"] {
        let response = Response::builder().header(CONTENT_TYPE, content_type).body(silent_once()).unwrap();
        assert_eq!(text(through(&eager(), response)).await, WITHOUT_HEARTBEAT, "{content_type}");
    }
}

#[tokio::test(start_paused = true)]
async fn untyped_200_is_stream_if_request_accepts_nothing_else() {
    let accepting = || Request::builder().header(ACCEPT, "text/event-stream, */*;q=0.1").body(()).unwrap();
    let response = respond(&eager(), accepting(), Response::new(silent_once()));
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    assert_eq!(text(response).await, WITH_HEARTBEAT);

    let not_accepted = through(&eager(), Response::new(silent_once()));
    assert!(not_accepted.headers().is_empty());
    assert_eq!(text(not_accepted).await, WITHOUT_HEARTBEAT);

    let mut error = Response::new(silent_once());
    *error.status_mut() = StatusCode::BAD_GATEWAY;
    let error = respond(&eager(), accepting(), error);
    assert!(error.headers().is_empty());
    assert_eq!(text(error).await, WITHOUT_HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn head_204_304_and_ended_bodies_pass_unchanged() {
    let head = Request::builder().method(Method::HEAD).body(()).unwrap();
    let response = respond(&eager(), head, events().header(CONTENT_LENGTH, 18).body(silent_once()).unwrap());
    assert_eq!(response.headers().len(), 2);
    assert_eq!(text(response).await, WITHOUT_HEARTBEAT);

    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let response = events().status(status).body(silent_once()).unwrap();
        let response = through(&eager().retry(Duration::from_secs(1)), response);
        assert_eq!(response.headers().len(), 1);
        assert_eq!(text(response).await, WITHOUT_HEARTBEAT);
    }

    let ended = events().header(CONTENT_LENGTH, 0).body(Empty::<Bytes>::new()).unwrap();
    let response = through(&eager().retry(Duration::from_secs(1)), ended);
    assert_eq!(response.headers().len(), 2);
    assert!(response.body().is_end_stream());
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn other_responses_keep_headers_trailers_and_length() {
    let trailers: HeaderMap =
        [(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))].into_iter().collect();
    let grpc = Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .header(CACHE_CONTROL, "no-cache")
        .body(Script::new([Step::chunk(b"\0\0\0\0\0"), Step::chunk(""), Step::Trailers(trailers.clone())]))
        .unwrap();
    let headers = grpc.headers().clone();
    let mut response = through(&eager(), grpc);
    assert_eq!(response.headers(), &headers);
    let mut frames = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        frames.push(frame.unwrap());
    }
    assert_eq!(frames[0].data_ref().unwrap(), &b"\0\0\0\0\0"[..]);
    assert!(frames[1].data_ref().unwrap().is_empty());
    assert_eq!(frames[2].trailers_ref(), Some(&trailers));
    assert_eq!(frames.len(), 3);

    let plain = Response::new(Full::from("hello"));
    let response = through(&eager(), plain);
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert!(!response.body().is_end_stream());
}

#[tokio::test]
async fn layer_adds_only_missing_headers() {
    let response = events().header(CONTENT_LENGTH, 9999).body(waiting()).unwrap();
    let response = through(&eager(), response);
    let sorted = |headers: &HeaderMap| {
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        headers.sort();
        headers
    };
    let expected = [
        "cache-control: no-cache, no-transform",
        "connection: keep-alive",
        "content-type: text/event-stream",
        "x-accel-buffering: no",
    ];
    assert_eq!(sorted(response.headers()), expected);

    let own = [
        "cache-control: private, no-store, no-transform",
        "connection: close",
        "content-type: text/event-stream;charset=UTF-8",
        "x-accel-buffering: yes",
    ];
    let response = own.iter().fold(Response::builder(), |response, header| {
        let (name, value) = header.split_once(": ").unwrap();
        response.header(name, value)
    });
    let response = through(&eager(), response.body(waiting()).unwrap());
    assert_eq!(sorted(response.headers()), own);
}

#[tokio::test]
async fn no_cache_alone_becomes_no_cache_no_transform() {
    let response = events().header(CACHE_CONTROL, "no-cache").body(waiting()).unwrap();
    let response = through(&eager(), response);
    assert_eq!(response.headers()[CACHE_CONTROL], "no-cache, no-transform");
}

#[tokio::test]
async fn directives_of_several_cache_control_headers_stay() {
    let response = events().header(CACHE_CONTROL, "no-cache").header(CACHE_CONTROL, "private, no-store");
    let response = through(&eager(), response.body(waiting()).unwrap());
    let values: Vec<_> = response.headers().get_all(CACHE_CONTROL).into_iter().collect();
    assert_eq!(values, ["no-cache, private, no-store, no-transform"]);
}

#[tokio::test]
async fn only_http_1_1_gets_connection_header() {
    for (version, expected) in
        [(Version::HTTP_10, false), (Version::HTTP_11, true), (Version::HTTP_2, false), (Version::HTTP_3, false)]
    {
        let request = Request::builder().version(version).body(()).unwrap();
        let response = respond(&eager(), request, events().body(waiting()).unwrap());
        assert_eq!(response.headers().contains_key(CONNECTION), expected, "{version:?}");
    }
}

#[tokio::test]
async fn keep_alive_is_not_set_after_connection_close() {
    for (value, expected) in [("close", false), ("TE, Close", false), ("keep-alive", true), ("closed", true)] {
        let request = Request::builder().version(Version::HTTP_11).header(ACCEPT, "text/event-stream");
        let request = request.header(CONNECTION, value).body(()).unwrap();
        let response = respond(&eager(), request, events().body(waiting()).unwrap());
        assert_eq!(response.headers().contains_key(CONNECTION), expected, "{value}");
    }
}

#[tokio::test]
async fn event_stream_request_asks_handler_for_identity_encoding() {
    let service = SseLayer::new().layer(service_fn(async |request: Request<()>| {
        let encodings = request.headers().get_all(ACCEPT_ENCODING).into_iter().cloned().collect::<Vec<_>>();
        Ok::<_, Infallible>(Response::new(Full::from(format!("{encodings:?}"))))
    }));
    for (accept, expected) in [
        ("text/event-stream", r#"["identity"]"#),
        ("text/html, */*", r#"["gzip", "br"]"#),
        ("text/event-stream;q=0", r#"["gzip", "br"]"#),
    ] {
        let request = Request::builder().header(ACCEPT_ENCODING, "gzip").header(ACCEPT_ENCODING, "br");
        let request = request.header(ACCEPT, accept).body(()).unwrap();
        assert_eq!(text(service.clone().oneshot(request).await.unwrap()).await, expected, "{accept}");
    }
}

#[tokio::test(start_paused = true)]
async fn encoded_body_passes_unchanged_with_its_length() {
    let encoded = |coding: &str| {
        events().header(CONTENT_ENCODING, coding).header(CONTENT_LENGTH, 18).body(silent_once()).unwrap()
    };
    let response = through(&eager().retry(Duration::from_secs(3)), encoded("gzip"));
    assert_eq!(response.headers()[CONTENT_LENGTH], "18");
    assert_eq!(text(response).await, WITHOUT_HEARTBEAT);

    let response = through(&eager(), encoded("identity"));
    assert_eq!(response.headers().get(CONTENT_LENGTH), None);
    assert_eq!(text(response).await, WITH_HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn event_stream_has_unknown_length() {
    let response = through(&eager(), events().body(Full::from("data: a\n\n")).unwrap());
    assert_eq!(response.body().size_hint().exact(), None);
    assert_eq!(text(response).await, "data: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn upstream_error_follows_earlier_data_after_250_ms() {
    let body = Script::new([Step::chunk("data: a\n\n"), Step::Fail("broken")]);
    let response = through(&eager(), events().body(body).unwrap());
    let mut body = tokio_test::task::spawn(response.into_body());
    let mut poll = || body.enter(|cx, body| body.poll_frame(cx)).map_ok(|frame| frame.into_data().unwrap());
    assert!(matches!(poll(), Poll::Ready(Some(Ok(data))) if data == "data: a\n\n"));
    assert!(poll().is_pending());
    // The transport has 250 milliseconds to flush.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(matches!(poll(), Poll::Ready(Some(Err(error))) if error.to_string() == "broken"));
    assert!(matches!(poll(), Poll::Ready(None)));
    assert!(matches!(poll(), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn upstream_error_follows_half_of_an_event() {
    for half in ["data: a\n", "data: ha", "data: a\r", "data: \u{e9}\n\ndat"] {
        let body = Script::new([Step::chunk(half), Step::Fail("broken")]);
        let mut body = through(&eager(), events().body(body).unwrap()).into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), half);
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "broken");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_error_follows_half_of_byte_order_mark() {
    let body = Script::new([Step::silence(2), Step::chunk([0xEF, 0xBB]), Step::Fail("broken")]);
    let mut body = through(&eager(), events().body(body).unwrap()).into_body();
    let mut seen = Vec::new();
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => seen.extend_from_slice(&frame.into_data().unwrap()),
            Err(error) => break error,
        }
    };
    assert!(seen.ends_with(b"\n\xEF\xBB"), "{seen:?}");
    assert_eq!(error.to_string(), "broken");
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn without_heartbeat_layer_adds_nothing_to_silent_stream() {
    let layer = SseLayer::new().without_heartbeat();
    // Four times the default interval.
    let steps = [Step::chunk("data: a\n\n"), Step::silence(60), Step::chunk("data: b\n\n")];
    let response = events().body(Script::new(steps)).unwrap();
    assert_eq!(text(through(&layer, response)).await, WITHOUT_HEARTBEAT);

    let response = own_stream(Duration::from_secs(60)).into_http_response();
    assert_eq!(text(through(&layer, response)).await, "data: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn retry_is_sent_before_upstream_data() {
    let response = events().body(silent_once()).unwrap();
    let response = through(&eager().retry(Duration::from_millis(2500)), response);
    assert_eq!(text(response).await, format!("retry: 2500\n{WITH_HEARTBEAT}"));
}

#[tokio::test(start_paused = true)]
async fn two_layers_send_one_heartbeat_in_upstream_stream() {
    let response = through(&eager(), through(&eager(), events().body(silent_once()).unwrap()));
    assert_eq!(text(response).await, WITH_HEARTBEAT);
}

/// Returns an `SseStream` of one event, a silence and its end.
fn own_stream(
    silence: Duration,
) -> SseStream<impl stream::Stream<Item = Result<Event, io::Error>> + Send + Unpin + 'static> {
    use tokio_stream::StreamExt;
    let pause = Box::pin(tokio::time::sleep(silence));
    let pause = tokio_stream::StreamExt::filter_map(futures_util::FutureExt::into_stream(pause), |()| None);
    SseStream::new(tokio_stream::once(Ok(Event::new("a"))).chain(pause))
}

/// 2.5 times the heartbeat interval of [`eager`].
const A_WHILE: Duration = Duration::from_millis(2500);

#[tokio::test(start_paused = true)]
async fn sse_stream_applies_settings_of_layer() {
    let layer = eager().retry(Duration::from_millis(700));
    let response = through(&layer, own_stream(A_WHILE).into_http_response());
    assert_eq!(response.headers()[CONNECTION], "keep-alive");
    assert_eq!(text(response).await, "retry: 700\ndata: a\n\n:\n:\n");

    // The body may be boxed before it reaches the layer.
    let boxed = own_stream(A_WHILE).into_http_response().map(|body| body.boxed_unsync());
    assert_eq!(text(through(&layer, boxed)).await, "retry: 700\ndata: a\n\n:\n:\n");

    // A middleware may encode the body. The stream inside sends the heartbeats, before the encoder.
    let mut encoded = own_stream(A_WHILE).into_http_response();
    encoded.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("rot26"));
    assert_eq!(text(through(&layer, encoded)).await, "retry: 700\ndata: a\n\n:\n:\n");
}

#[tokio::test(start_paused = true)]
async fn settings_of_handler_win_over_layer() {
    let layer = eager().retry(Duration::from_millis(700));
    let with = |stream: SseStream<_>| through(&layer, stream.into_http_response());

    let slow = own_stream(A_WHILE).heartbeat(Heartbeat::every(Duration::from_secs(2)).comment("own"));
    assert_eq!(text(with(slow)).await, "retry: 700\ndata: a\n\n: own\n");
    assert_eq!(text(with(own_stream(A_WHILE).without_heartbeat())).await, "retry: 700\ndata: a\n\n");
    let own_retry = own_stream(A_WHILE).without_heartbeat().retry(Duration::from_millis(1));
    assert_eq!(text(with(own_retry)).await, "retry: 1\ndata: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn inner_layer_wins_and_inherits_the_rest() {
    let outer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(100))).retry(Duration::from_secs(9));
    let response = through(&outer, through(&eager(), own_stream(A_WHILE).into_http_response()));
    assert_eq!(text(response).await, "retry: 9000\ndata: a\n\n:\n:\n");
}

#[tokio::test(start_paused = true)]
async fn replaced_body_of_sse_stream_is_upstream_stream() {
    let replaced = own_stream(A_WHILE).into_http_response().map(|_| silent_once());
    // A middleware may keep a copy of the extensions.
    let _copy = replaced.extensions().clone();
    assert_eq!(text(through(&eager(), replaced)).await, WITH_HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn retry_keeps_last_event_id_of_client() {
    let layer = SseLayer::new().retry(Duration::from_secs(3));
    let own = SseStream::new(stream::pending::<Event>()).into_http_response();
    let mut own = through(&layer, own).into_body();
    let mut upstream = through(&layer, events().body(waiting()).unwrap()).into_body();
    for first in [own.frame().await.unwrap().unwrap(), upstream.frame().await.unwrap().unwrap()] {
        let seen = whatwg::parse_after("41", first.data_ref().unwrap());
        assert_eq!((seen.reconnection_time.as_deref(), seen.last_event_id.as_str()), (Some("3000"), "41"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_trailers() {
    let steps = [Step::chunk("data: a\n\n"), Step::Trailers(HeaderMap::new()), Step::silence(60)];
    let mut body = through(&eager(), events().body(Script::new(steps)).unwrap()).into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn body_with_held_back_bytes_is_not_ended() {
    let layer = eager().retry(Duration::from_secs(3));
    let body = Script::new([Step::chunk([0xEF, 0xBB])]);
    let mut body = through(&layer, events().body(body).unwrap()).into_body();
    let mut seen = Vec::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!(seen, b"retry: 3000\n\xEF\xBB");
}

#[tokio::test]
async fn chunk_of_10_mib_is_not_copied() {
    let chunk = Bytes::from("data: x\n\n".repeat(10 * 1024 * 1024 / 9));
    let body = Script::new([Step::Chunk(chunk.clone())]);
    let mut body = through(&eager(), events().body(body).unwrap()).into_body();
    let passed = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), chunk.len()));
}

/// tower-http's middleware that responds without the handler requires a body with a default.
#[tokio::test]
async fn response_of_outer_middleware_bypasses_layer() {
    use tower_http::{cors::CorsLayer, timeout::TimeoutLayer};
    let app = axum::Router::new().route("/", axum::routing::get(async || "hello")).layer(
        ServiceBuilder::new()
            .layer(CorsLayer::permissive())
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(9)))
            .layer(eager()),
    );
    let preflight = Request::builder().method(Method::OPTIONS).uri("/").header("access-control-request-method", "GET");
    let response = app.oneshot(preflight.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    assert!(SseBody::<stream::Pending<Event>>::default().is_end_stream());
}

#[tokio::test]
async fn poll_ready_forwards_error_of_inner_service() {
    #[derive(Clone, Debug, Default)]
    struct NotReady {
        is_polled: Arc<AtomicBool>,
    }
    impl Service<Request<()>> for NotReady {
        type Response = Response<Full<Bytes>>;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Self::Response, BoxError>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
            self.is_polled.store(true, Ordering::Relaxed);
            Poll::Ready(Err("not ready".into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("the service is never ready")
        }
    }
    let inner = NotReady::default();
    let mut service = SseLayer::new().layer(inner.clone());
    assert_eq!(service.ready().await.unwrap_err().to_string(), "not ready");
    assert!(inner.is_polled.load(Ordering::Relaxed));
}
