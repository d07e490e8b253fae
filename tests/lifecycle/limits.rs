//! Limits of open streams, and their permits.

use crate::common::{Summaries, assert_uniform, encoded, has_permit, lifetime, limited, silent, upstream_response};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use std::{
    convert::Infallible,
    future::{self, ready},
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};
use support::{
    polled::Polled,
    respond::{respond, through},
    script::{Script, Step},
    whatwg,
};
use tokio_test::task;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{Event, Overload, SseLayer, SseStream, StopReconnecting};

#[tokio::test]
async fn request_over_limit_gets_503_with_retry_after() {
    let layer = SseLayer::new().max_streams(3).retry(Duration::from_secs(4)).reconnect_jitter(Duration::from_secs(2));
    let open: Vec<_> = (0..3).map(|_| through(&layer, silent().into_http_response())).collect();
    assert!(open.iter().all(|response| response.status() == StatusCode::OK));

    let response = through(&layer, silent().into_http_response());
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((4..=6).contains(&seconds), "{seconds}");
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"the limit of open event streams is reached"), "{text:?}");

    // Open streams are not closed.
    drop(open);
    assert!(has_permit(&layer));
}

#[tokio::test]
async fn by_default_only_event_source_gets_retry_later() {
    let layer = || SseLayer::new().retry(Duration::from_secs(4)).reconnect_jitter(Duration::ZERO);
    let total = layer().max_streams(0);
    let per_key = layer().max_streams_per(0, |parts| Some(parts.method.clone())).when_full(Overload::Auto);
    let cases = [
        (Method::GET, "text/event-stream", true),
        (Method::GET, "Text/Event-Stream;q=0.9, */*;q=0.1, text/html;q=0", true),
        (Method::GET, "application/json, text/event-stream", false),
        (Method::GET, "text/event-stream, text/html;q=0.1", false),
        (Method::GET, "text/event-stream;q=0", false),
        (Method::GET, "*/*", false),
        (Method::GET, "", false),
        (Method::POST, "text/event-stream", false),
    ];
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        for (method, accept, is_retry_later) in &cases {
            let limits = [(&total, StatusCode::SERVICE_UNAVAILABLE), (&per_key, StatusCode::TOO_MANY_REQUESTS)];
            for (layer, status) in limits {
                let request = Request::builder().method(method).version(version).header(header::ACCEPT, *accept);
                let response = respond(layer, request.body(()).unwrap(), silent().into_http_response());
                let expected = if *is_retry_later { StatusCode::OK } else { status };
                assert_eq!(response.status(), expected, "{method} {accept:?} {version:?}");
                assert_eq!(response.headers().contains_key(header::RETRY_AFTER), !is_retry_later);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body == "retry: 4000\n", *is_retry_later, "{body:?}");
            }
        }
    }
}

#[tokio::test]
async fn retry_later_sends_a_reconnect_delay() {
    let layer = SseLayer::new().max_streams(0).when_full(Overload::RetryLater);
    let mut samples = Vec::new();
    for _ in 0..2_000 {
        let response = through(&layer, silent().into_http_response());
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache, no-transform");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let parsed = whatwg::parse(&body);
        assert!(parsed.messages.is_empty() && parsed.comments.is_empty());
        samples.push(parsed.reconnection_time.unwrap().parse().unwrap());
    }
    assert_uniform(&samples, 1_000.0, 6_000.0);
}

#[tokio::test]
async fn rejected_stream_is_not_polled_or_reported() {
    for when_full in [Overload::ServiceUnavailable, Overload::RetryLater] {
        let summaries = Summaries::default();
        let layer = SseLayer::new().max_streams(0).when_full(when_full).on_close(summaries.callback());
        let never = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("a rejected stream was polled") });
        let response = through(&layer, SseStream::new(never).into_http_response());
        response.into_body().collect().await.unwrap();
        assert!(summaries.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn permit_is_released_however_a_stream_ends() {
    let token = CancellationToken::new();
    let layer = limited().shutdown(token.clone()).max_lifetime(Duration::from_secs(10));
    let response = |steps: &[Step]| through(&layer, upstream_response(Script::new(steps.to_vec())));
    let chunk = || Step::chunk("data: a\n\n");

    // The stream finishes or fails, and its body is dropped.
    for steps in [vec![chunk()], vec![chunk(), Step::Fail("broken")]] {
        let mut body = Polled::new(response(&steps));
        body.assert_data("data: a\n\n");
        assert!(!has_permit(&layer));
        let _end = body.poll_in_time().await;
        drop(body);
        assert!(has_permit(&layer));
    }
    // The client disconnects.
    let mut body = Polled::new(response(&[chunk(), Step::Hang]));
    body.assert_data("data: a\n\n");
    assert!(!has_permit(&layer));
    drop(body);
    assert!(has_permit(&layer));
    // The body was never polled.
    for response in [response(&[Step::Hang]).map(|_| ()), through(&layer, silent().into_http_response()).map(|_| ())] {
        assert_eq!(response.status(), StatusCode::OK);
        assert!(has_permit(&layer));
    }
    // The head is dropped first. The body still holds the permit.
    let (head, body) = response(&[Step::Hang]).into_parts();
    drop(head);
    assert!(!has_permit(&layer));
    drop(body);
    assert!(has_permit(&layer));
    // The lifetime of the stream expires.
    let body = Polled::new(response(&[Step::Hang]));
    lifetime(body).await;
    assert!(has_permit(&layer));
    // A shutdown ends the stream.
    let mut body = Polled::new(response(&[Step::Hang]));
    assert!(!has_permit(&layer));
    token.cancel();
    assert!(body.rest().starts_with("retry: "));
    drop(body);
    assert!(has_permit(&layer));
}

#[tokio::test]
async fn panicking_stream_releases_its_permit() {
    let layer = limited();
    let bad = stream::poll_fn(|_| -> Poll<Option<Event>> { panic!("in the stream") });
    let body = through(&layer, SseStream::new(bad).into_http_response()).into_body();
    let polled = tokio::spawn(async move { body.collect().await.map(drop).map_err(drop) }).await;
    assert!(polled.unwrap_err().is_panic());
    assert!(has_permit(&layer));
}

#[tokio::test]
async fn unfinished_handler_holds_no_permit() {
    let layer = limited();
    let waiting =
        layer.layer(service_fn(|_: Request<()>| future::pending::<Result<Response<Full<Bytes>>, Infallible>>()));
    let mut waiting = task::spawn(waiting.oneshot(Request::new(())));
    assert!(waiting.poll().is_pending());
    assert!(has_permit(&layer));
    drop(waiting);

    let panics = async |_: Request<()>| -> Result<Response<Full<Bytes>>, Infallible> { panic!("in the handler") };
    let panics = layer.layer(service_fn(panics)).oneshot(Request::new(()));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    let fails = layer.layer(service_fn(|_: Request<()>| ready(Err::<Response<Full<Bytes>>, _>("failed"))));
    assert!(fails.oneshot(Request::new(())).await.is_err());
    assert!(has_permit(&layer));
}

#[tokio::test]
async fn other_responses_need_no_permit() {
    let layer = SseLayer::new().max_streams(0);
    let head = Request::builder().method(Method::HEAD).header(header::ACCEPT, "text/event-stream").body(()).unwrap();
    let stream = || upstream_response(Full::from("data: a\n\n"));
    assert_eq!(respond(&layer, head, stream()).status(), StatusCode::OK);
    assert_eq!(through(&layer, stream().map(|_| Full::<Bytes>::default())).status(), StatusCode::OK);
    assert_eq!(through(&layer, Response::new(Full::from("{}"))).status(), StatusCode::OK);
    assert_eq!(through(&layer, StopReconnecting.into_http_response()).status(), StatusCode::NO_CONTENT);
    let mut not_modified = stream();
    *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
    assert_eq!(through(&layer, not_modified).status(), StatusCode::NOT_MODIFIED);
    assert_eq!(through(&layer, stream()).status(), StatusCode::SERVICE_UNAVAILABLE);
}

fn from_user(user: &str) -> Request<()> {
    Request::builder().header("user", user).body(()).unwrap()
}

fn per_user(streams: usize) -> SseLayer {
    SseLayer::new().max_streams_per(streams, |parts| parts.headers.get("user").cloned())
}

#[tokio::test]
async fn each_key_has_its_own_limit() {
    let layer = per_user(2);
    let get = |user: &str| respond(&layer, from_user(user), silent().into_http_response());
    let open: Vec<_> = ["anna", "bob", "anna", "bob"].map(get).into();
    assert!(open.iter().all(|response| response.status() == StatusCode::OK));
    for user in ["anna", "bob"] {
        assert_eq!(get(user).status(), StatusCode::TOO_MANY_REQUESTS);
    }
    let carol = get("carol");
    assert_eq!(carol.status(), StatusCode::OK);
    drop(open);
    let again = ["anna", "bob", "anna", "bob"].map(get);
    assert!(again.iter().all(|response| response.status() == StatusCode::OK));
    // A request without a key is not limited.
    let anonymous = || respond(&layer, Request::new(()), silent().into_http_response());
    let many = [anonymous(), anonymous(), anonymous(), anonymous()];
    assert!(many.iter().all(|response| response.status() == StatusCode::OK));
}

#[tokio::test]
async fn rejected_stream_holds_no_permit_of_any_limit() {
    let layer = per_user(1).max_streams(2).max_streams_per(3, |parts| Some(parts.method.clone()));
    let get = |user: &str| respond(&layer, from_user(user), silent().into_http_response());
    let anna = get("anna");
    for _ in 0..10 {
        // The permits of the other limits are released.
        assert_eq!(get("anna").status(), StatusCode::TOO_MANY_REQUESTS);
    }
    let bob = get("bob");
    assert_eq!(bob.status(), StatusCode::OK);
    for _ in 0..10 {
        assert_eq!(get("carol").status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    drop(anna);
    let carol = get("carol");
    assert_eq!(carol.status(), StatusCode::OK);
}

/// The request must not take the last permit of all streams, not even for a moment.
#[tokio::test]
async fn limit_of_key_is_checked_before_total() {
    let key = |parts: &http::request::Parts| parts.headers.get("user").cloned();
    for layer in [per_user(1).max_streams(1), SseLayer::new().max_streams(1).max_streams_per(1, key)] {
        let get = |user: &str| respond(&layer, from_user(user), silent().into_http_response());
        let _open = get("anna");
        assert_eq!(get("anna").status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(get("bob").status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn clones_share_their_limit() {
    let layer = limited();
    // Other settings of a clone do not separate it.
    let clones = [layer.clone(), layer.clone().retry(Duration::from_secs(9)), layer.clone().max_streams(5)];
    for clone in &clones {
        let open = through(clone, silent().into_http_response());
        assert_eq!(open.status(), StatusCode::OK);
        assert!(!has_permit(&layer));
        assert!(clones.iter().all(|clone| !has_permit(clone)));
    }
    let service = layer.layer(service_fn(|_| ready(Ok::<_, Infallible>(silent().into_http_response()))));
    let open = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(open.status(), StatusCode::OK);
    let rejected = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn limits_of_two_layers_both_apply() {
    let (inner, outer) = (SseLayer::new().max_streams(2), SseLayer::new().max_streams(1));
    let get = || through(&outer, through(&inner, silent().into_http_response()));
    let open = get();
    assert_eq!(open.status(), StatusCode::OK);
    // A stream that the outer layer rejects releases the permit of the inner layer when its
    // response is sent.
    let rejected = get();
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(rejected);
    assert!(has_permit(&inner));
    drop(open);
    assert!(has_permit(&outer));
}

#[tokio::test]
async fn outer_layer_ignores_a_rejected_response() {
    let summaries = Summaries::default();
    let inner = SseLayer::new().max_streams(0).when_full(Overload::RetryLater);
    let outer = SseLayer::new().max_streams(0).on_close(summaries.callback());
    let response = through(&outer, through(&inner, silent().into_http_response()));
    assert_eq!(response.status(), StatusCode::OK);
    assert!(Polled::new(response).rest().starts_with("retry: "));
    assert!(summaries.is_empty());
}

#[test]
fn all_permits_are_released_after_100_000_streams() {
    const LIMIT: usize = 8;
    let layer = per_user(LIMIT).max_streams(LIMIT);
    let (opened, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (layer, opened, rejected) = (&layer, &opened, &rejected);
            scope.spawn(move || {
                let mut open = std::collections::VecDeque::new();
                for n in 0..25_000 {
                    let response = respond(layer, from_user(["anna", "bob"][n % 2]), silent().into_http_response());
                    let counter = if response.status() == StatusCode::OK { opened } else { rejected };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let mut body = Polled::new(response);
                    if n % 3 != 0 {
                        let _first = body.poll();
                    }
                    open.push_back(body);
                    // More streams on each thread than its share of the limit.
                    if open.len() > 1 + (n + thread) % 4 {
                        open.pop_front();
                    }
                }
            });
        }
    });
    assert_eq!(opened.load(Ordering::Relaxed) + rejected.load(Ordering::Relaxed), 100_000);
    assert!(opened.load(Ordering::Relaxed) > 1_000);
    assert!(rejected.load(Ordering::Relaxed) > 0, "the threads never reached the limit");
    for user in ["anna", "bob"] {
        let get = || respond(&layer, from_user(user), silent().into_http_response());
        let open: Vec<_> = (0..LIMIT).map(|_| get()).collect();
        assert!(open.iter().all(|response| response.status() == StatusCode::OK));
        assert_eq!(get().status(), StatusCode::TOO_MANY_REQUESTS);
    }
}

#[tokio::test(start_paused = true)]
async fn encoded_stream_holds_a_permit() {
    let layer = limited();
    let mut body = Polled::new(through(&layer, encoded(&[Step::chunk("\x1f"), Step::Fail("broken")])));
    assert!(!has_permit(&layer));
    body.assert_data("\x1f");
    assert_eq!(body.poll(), Poll::Ready(Some(Err("broken".to_owned()))));
    body.assert_end();
    drop(body);
    assert!(has_permit(&layer));
}

#[tokio::test]
async fn rejection_keeps_other_headers() {
    for (when_full, status) in
        [(Overload::ServiceUnavailable, StatusCode::SERVICE_UNAVAILABLE), (Overload::RetryLater, StatusCode::OK)]
    {
        let layer = SseLayer::new().max_streams(0).when_full(when_full);
        // The outer layer does not treat the rejection as a stream.
        let outer = SseLayer::new().without_heartbeat().retry(Duration::from_secs(9));
        let unpolled = [Step::Fail("a rejected stream was polled")];
        for mut response in [encoded(&unpolled), upstream_response(Script::new(unpolled.clone()))] {
            response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, "https://a.example".parse().unwrap());
            let response = through(&outer, through(&layer, response));
            assert_eq!(response.status(), status);
            let headers = response.headers();
            assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
            for name in [header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
                assert!(!headers.contains_key(name));
            }
            let is_stream = headers[header::CONTENT_TYPE] == "text/event-stream";
            assert_eq!(is_stream, when_full == Overload::RetryLater);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.starts_with(b"retry: ") && !body.starts_with(b"retry: 9000"), is_stream, "{body:?}");
        }
    }
    let ours = through(&SseLayer::new().max_streams(0).when_full(Overload::RetryLater), silent().into_http_response());
    let outer = SseLayer::new().max_lifetime(Duration::from_secs(1));
    let body = through(&outer, ours).into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"retry: "));
}
