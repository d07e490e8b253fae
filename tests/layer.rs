//! What the layer does to which responses.

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
    script::{Script, Step},
    whatwg,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_sse::{BoxError, Event, Heartbeat, ResponseBody, SseBody, SseLayer, SseStream};

/// What the layer makes of this response to this request.
async fn through<B>(layer: SseLayer, request: Request<()>, response: Response<B>) -> Response<ResponseBody<B>>
where
    B: Body<Data = Bytes>,
{
    let mut response = Some(response);
    let service = layer.layer(service_fn(|_| {
        let response = response.take().expect("one request");
        async { Ok::<_, Infallible>(response) }
    }));
    service.oneshot(request).await.unwrap()
}

fn events() -> http::response::Builder {
    Response::builder().header(CONTENT_TYPE, "text/event-stream")
}

fn eager() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)))
}

/// A stream that is silent for a moment longer than a heartbeat of [`eager`].
fn silent_once() -> Script {
    Script::new([Step::chunk("data: a\n\n"), Step::Silence(Duration::from_millis(1500)), Step::chunk("data: b\n\n")])
}

/// A stream that has nothing to say yet.
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
const WITHOUT: &str = "data: a\n\ndata: b\n\n";

#[tokio::test(start_paused = true)]
async fn a_response_of_the_type_is_an_event_stream_in_any_case_and_with_parameters() {
    for content_type in ["text/event-stream", "Text/EVENT-Stream", "text/event-stream; charset=utf-8"] {
        let response = Response::builder().header(CONTENT_TYPE, content_type).body(silent_once()).unwrap();
        assert_eq!(text(through(eager(), Request::new(()), response).await).await, WITH_HEARTBEAT, "{content_type}");
    }
    for content_type in ["text/event-streams", "text/plain", "application/grpc"] {
        let response = Response::builder().header(CONTENT_TYPE, content_type).body(silent_once()).unwrap();
        assert_eq!(text(through(eager(), Request::new(()), response).await).await, WITHOUT, "{content_type}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_200_without_a_type_is_one_if_the_request_asked_for_it() {
    let asked = || Request::builder().header(ACCEPT, "application/json, text/event-stream").body(()).unwrap();
    let response = through(eager(), asked(), Response::new(silent_once())).await;
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    assert_eq!(text(response).await, WITH_HEARTBEAT);

    let not_asked = through(eager(), Request::new(()), Response::new(silent_once())).await;
    assert!(not_asked.headers().is_empty());
    assert_eq!(text(not_asked).await, WITHOUT);

    let mut error = Response::new(silent_once());
    *error.status_mut() = StatusCode::BAD_GATEWAY;
    let error = through(eager(), asked(), error).await;
    assert!(error.headers().is_empty());
    assert_eq!(text(error).await, WITHOUT);
}

#[tokio::test(start_paused = true)]
async fn head_204_304_and_bodies_at_their_end_are_let_alone() {
    let head = Request::builder().method(Method::HEAD).body(()).unwrap();
    let response = through(eager(), head, events().header(CONTENT_LENGTH, 18).body(silent_once()).unwrap()).await;
    assert_eq!(response.headers().len(), 2);
    assert_eq!(text(response).await, WITHOUT);

    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let response = events().status(status).body(silent_once()).unwrap();
        let response = through(eager().retry(Duration::from_secs(1)), Request::new(()), response).await;
        assert_eq!(response.headers().len(), 1);
        assert_eq!(text(response).await, WITHOUT);
    }

    let at_its_end = events().header(CONTENT_LENGTH, 0).body(Empty::<Bytes>::new()).unwrap();
    let response = through(eager().retry(Duration::from_secs(1)), Request::new(()), at_its_end).await;
    assert_eq!(response.headers().len(), 2);
    assert!(response.body().is_end_stream());
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn every_other_response_passes_untouched_with_its_trailers_and_its_length() {
    let trailers: HeaderMap =
        [(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))].into_iter().collect();
    let grpc = Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .header(CACHE_CONTROL, "no-cache")
        .body(Script::new([Step::chunk(b"\0\0\0\0\0"), Step::chunk(""), Step::Trailers(trailers.clone())]))
        .unwrap();
    let headers = grpc.headers().clone();
    let mut response = through(eager(), Request::new(()), grpc).await;
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
    let response = through(eager(), Request::new(()), plain).await;
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert!(!response.body().is_end_stream());
}

#[tokio::test]
async fn missing_headers_are_added_and_what_the_handler_set_wins() {
    let response = events().header(CONTENT_LENGTH, 9999).body(waiting()).unwrap();
    let response = through(eager(), Request::new(()), response).await;
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
        "cache-control: private, no-store",
        "connection: close",
        "content-type: text/event-stream;charset=UTF-8",
        "x-accel-buffering: yes",
    ];
    let response = own.iter().fold(Response::builder(), |response, header| {
        let (name, value) = header.split_once(": ").unwrap();
        response.header(name, value)
    });
    let response = through(eager(), Request::new(()), response.body(waiting()).unwrap()).await;
    assert_eq!(sorted(response.headers()), own);
}

#[tokio::test]
async fn the_bare_no_cache_of_other_responders_is_completed() {
    let response = events().header(CACHE_CONTROL, "no-cache").body(waiting()).unwrap();
    let response = through(eager(), Request::new(()), response).await;
    assert_eq!(response.headers()[CACHE_CONTROL], "no-cache, no-transform");
}

#[tokio::test]
async fn no_directive_of_the_handler_is_lost_where_it_stands_in_several_headers() {
    let response = events().header(CACHE_CONTROL, "no-cache").header(CACHE_CONTROL, "private, no-store");
    let response = through(eager(), Request::new(()), response.body(waiting()).unwrap()).await;
    let values: Vec<_> = response.headers().get_all(CACHE_CONTROL).into_iter().collect();
    assert_eq!(values, ["no-cache", "private, no-store"]);
}

#[tokio::test]
async fn the_connection_header_is_for_http_1_1_only() {
    for (version, expected) in
        [(Version::HTTP_10, false), (Version::HTTP_11, true), (Version::HTTP_2, false), (Version::HTTP_3, false)]
    {
        let request = Request::builder().version(version).body(()).unwrap();
        let response = through(eager(), request, events().body(waiting()).unwrap()).await;
        assert_eq!(response.headers().contains_key(CONNECTION), expected, "{version:?}");
    }
}

#[tokio::test]
async fn no_connection_is_kept_that_the_client_asks_to_close() {
    for (value, expected) in [("close", false), ("TE, Close", false), ("keep-alive", true), ("closed", true)] {
        let request = Request::builder().version(Version::HTTP_11).header(ACCEPT, "text/event-stream");
        let request = request.header(CONNECTION, value).body(()).unwrap();
        let response = through(eager(), request, events().body(waiting()).unwrap()).await;
        assert_eq!(response.headers().contains_key(CONNECTION), expected, "{value}");
    }
}

#[tokio::test]
async fn a_request_for_an_event_stream_is_passed_on_as_one_that_wants_no_compression() {
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
async fn an_encoded_body_passes_as_it_is_and_keeps_its_length() {
    let encoded = |coding: &str| {
        events().header(CONTENT_ENCODING, coding).header(CONTENT_LENGTH, 18).body(silent_once()).unwrap()
    };
    let response = through(eager().retry(Duration::from_secs(3)), Request::new(()), encoded("gzip")).await;
    assert_eq!(response.headers()[CONTENT_LENGTH], "18");
    assert_eq!(text(response).await, WITHOUT);

    let response = through(eager(), Request::new(()), encoded("identity")).await;
    assert_eq!(response.headers().get(CONTENT_LENGTH), None);
    assert_eq!(text(response).await, WITH_HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn the_length_of_an_event_stream_is_unknown() {
    let response = through(eager(), Request::new(()), events().body(Full::from("data: a\n\n")).unwrap()).await;
    assert_eq!(response.body().size_hint().exact(), None);
    assert_eq!(text(response).await, "data: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_an_upstream_stream_comes_after_what_came_before_it() {
    let body = Script::new([Step::chunk("data: a\n\n"), Step::Fail("broken")]);
    let response = through(eager(), Request::new(()), events().body(body).unwrap()).await;
    let mut body = tokio_test::task::spawn(response.into_body());
    let mut poll = || body.enter(|cx, body| body.poll_frame(cx)).map_ok(|frame| frame.into_data().unwrap());
    assert!(matches!(poll(), Poll::Ready(Some(Ok(data))) if data == "data: a\n\n"));
    assert!(poll().is_pending());
    // The transport has a quarter of a second to flush.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(matches!(poll(), Poll::Ready(Some(Err(error))) if error.to_string() == "broken"));
    assert!(matches!(poll(), Poll::Ready(None)));
    assert!(matches!(poll(), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn an_error_in_the_middle_of_an_event_comes_after_its_first_half() {
    for half in ["data: a\n", "data: ha", "data: a\r", "data: \u{e9}\n\ndat"] {
        let body = Script::new([Step::chunk(half), Step::Fail("broken")]);
        let mut body = through(eager(), Request::new(()), events().body(body).unwrap()).await.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), half);
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "broken");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_an_upstream_stream_does_not_swallow_half_a_byte_order_mark() {
    let body = Script::new([Step::silence(2), Step::chunk([0xEF, 0xBB]), Step::Fail("broken")]);
    let mut body = through(eager(), Request::new(()), events().body(body).unwrap()).await.into_body();
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
async fn without_heartbeat_the_layer_adds_nothing_to_a_silent_stream() {
    let layer = SseLayer::new().without_heartbeat();
    // Four times the default interval.
    let steps = [Step::chunk("data: a\n\n"), Step::silence(60), Step::chunk("data: b\n\n")];
    let response = events().body(Script::new(steps)).unwrap();
    assert_eq!(text(through(layer.clone(), Request::new(()), response).await).await, WITHOUT);

    let response = own_stream(Duration::from_secs(60)).into_http_response();
    assert_eq!(text(through(layer, Request::new(()), response).await).await, "data: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn the_reconnection_time_goes_before_an_upstream_stream() {
    let response = events().body(silent_once()).unwrap();
    let response = through(eager().retry(Duration::from_millis(2500)), Request::new(()), response).await;
    assert_eq!(text(response).await, format!("retry: 2500\n{WITH_HEARTBEAT}"));
}

#[tokio::test(start_paused = true)]
async fn two_layers_put_one_heartbeat_into_an_upstream_stream() {
    let service = ServiceBuilder::new()
        .layer(eager())
        .layer(eager())
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(events().body(silent_once()).unwrap())));
    assert_eq!(text(service.oneshot(Request::new(())).await.unwrap()).await, WITH_HEARTBEAT);
}

/// An `SseStream` of one event that is silent for a while and then ends.
fn own_stream(
    silence: Duration,
) -> SseStream<impl stream::Stream<Item = Result<Event, io::Error>> + Send + Unpin + 'static> {
    use tokio_stream::StreamExt;
    let pause = Box::pin(tokio::time::sleep(silence));
    let pause = tokio_stream::StreamExt::filter_map(futures_util::FutureExt::into_stream(pause), |()| None);
    SseStream::new(tokio_stream::once(Ok(Event::new("a"))).chain(pause))
}

/// Two heartbeats of [`eager`], and a half.
const A_WHILE: Duration = Duration::from_millis(2500);

#[tokio::test(start_paused = true)]
async fn an_sse_stream_takes_the_layers_settings_over_instead_of_being_wrapped() {
    let layer = eager().retry(Duration::from_millis(700));
    let response = through(layer.clone(), Request::new(()), own_stream(A_WHILE).into_http_response()).await;
    assert_eq!(response.headers()[CONNECTION], "keep-alive");
    assert_eq!(text(response).await, "retry: 700\ndata: a\n\n:\n:\n");

    // Also when it was boxed on the way.
    let boxed = own_stream(A_WHILE).into_http_response().map(|body| body.boxed_unsync());
    assert_eq!(text(through(layer.clone(), Request::new(()), boxed).await).await, "retry: 700\ndata: a\n\n:\n:\n");

    // And when somebody encoded it: it is the stream inside that beats, before the encoder.
    let mut encoded = own_stream(A_WHILE).into_http_response();
    encoded.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("rot26"));
    assert_eq!(text(through(layer, Request::new(()), encoded).await).await, "retry: 700\ndata: a\n\n:\n:\n");
}

#[tokio::test(start_paused = true)]
async fn what_the_handler_set_on_its_stream_wins_over_the_layer() {
    let layer = eager().retry(Duration::from_millis(700));
    let with = |stream: SseStream<_>| through(layer.clone(), Request::new(()), stream.into_http_response());

    let slow = own_stream(A_WHILE).heartbeat(Heartbeat::every(Duration::from_secs(2)).comment("own"));
    assert_eq!(text(with(slow).await).await, "retry: 700\ndata: a\n\n: own\n");
    assert_eq!(text(with(own_stream(A_WHILE).without_heartbeat()).await).await, "retry: 700\ndata: a\n\n");
    let own_retry = own_stream(A_WHILE).without_heartbeat().retry(Duration::from_millis(1));
    assert_eq!(text(with(own_retry).await).await, "retry: 1\ndata: a\n\n");
}

#[tokio::test(start_paused = true)]
async fn of_two_layers_the_inner_one_settles_an_sse_stream() {
    let outer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(100))).retry(Duration::from_secs(9));
    let service = ServiceBuilder::new()
        .layer(outer)
        .layer(eager())
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(own_stream(A_WHILE).into_http_response())));
    assert_eq!(text(service.oneshot(Request::new(())).await.unwrap()).await, "data: a\n\n:\n:\n");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_put_in_the_place_of_an_sse_stream_is_an_upstream_one() {
    let replaced = own_stream(A_WHILE).into_http_response().map(|_| silent_once());
    // Also where somebody keeps a copy of what the response carried.
    let _copy = replaced.extensions().clone();
    assert_eq!(text(through(eager(), Request::new(()), replaced).await).await, WITH_HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn the_reconnection_time_does_not_make_a_client_that_comes_back_forget_its_id() {
    let layer = SseLayer::new().retry(Duration::from_secs(3));
    let own = SseStream::new(stream::pending::<Event>()).into_http_response();
    let mut own = through(layer.clone(), Request::new(()), own).await.into_body();
    let mut upstream = through(layer, Request::new(()), events().body(waiting()).unwrap()).await.into_body();
    for first in [own.frame().await.unwrap().unwrap(), upstream.frame().await.unwrap().unwrap()] {
        let seen = whatwg::parse_after("41", first.data_ref().unwrap());
        assert_eq!((seen.reconnection_time.as_deref(), seen.last_event_id.as_str()), (Some("3000"), "41"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_trailers() {
    let steps = [Step::chunk("data: a\n\n"), Step::Trailers(HeaderMap::new()), Step::silence(60)];
    let mut body = through(eager(), Request::new(()), events().body(Script::new(steps)).unwrap()).await.into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_body_is_not_at_its_end_while_something_of_it_is_kept_back() {
    let layer = eager().retry(Duration::from_secs(3));
    let body = Script::new([Step::chunk([0xEF, 0xBB])]);
    let mut body = through(layer, Request::new(()), events().body(body).unwrap()).await.into_body();
    let mut seen = Vec::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!(seen, b"retry: 3000\n\xEF\xBB");
}

#[tokio::test]
async fn a_chunk_of_ten_mebibytes_passes_uncopied() {
    let chunk = Bytes::from("data: x\n\n".repeat(10 * 1024 * 1024 / 9));
    let body = Script::new([Step::Chunk(chunk.clone())]);
    let mut body = through(eager(), Request::new(()), events().body(body).unwrap()).await.into_body();
    let passed = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), chunk.len()));
}

/// tower-http's middleware that answers by itself asks for a body that has a default.
#[tokio::test]
async fn middleware_that_answers_by_itself_goes_around_the_layer() {
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
async fn readiness_and_its_errors_are_those_of_the_service_inside() {
    #[derive(Clone, Debug, Default)]
    struct Picky {
        asked: Arc<AtomicBool>,
    }
    impl Service<Request<()>> for Picky {
        type Response = Response<Full<Bytes>>;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Self::Response, BoxError>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
            self.asked.store(true, Ordering::Relaxed);
            Poll::Ready(Err("not today".into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it was not ready")
        }
    }
    let picky = Picky::default();
    let mut service = SseLayer::new().layer(picky.clone());
    assert_eq!(service.ready().await.unwrap_err().to_string(), "not today");
    assert!(picky.asked.load(Ordering::Relaxed));
}
