//! Several layers around one stream: settings, limits and callbacks.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use support::respond::{respond, through};
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{
    CloseReason, Event, Heartbeat, Overload, RetryLater, SseLayer, SseStream, StreamRegistry, StreamSummary,
};

type BoxedBody = UnsyncBoxBody<Bytes, ()>;

const KINDS: [&str; 2] = ["own", "upstream"];

/// A stream with one event, of this crate or of an upstream server.
fn response(kind: &str) -> Response<BoxedBody> {
    let events = stream::iter([Event::new("a")]);
    let response = SseStream::new(events).into_http_response();
    match kind {
        "own" => boxed(response),
        _ => {
            let mut upstream = Response::new(response.into_body().map_err(drop).boxed_unsync());
            upstream.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            upstream
        }
    }
}

fn boxed<B>(response: Response<B>) -> Response<BoxedBody>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    response.map(|body| body.map_err(drop).boxed_unsync())
}

/// Passes a stream through these layers, from the innermost to the outermost.
fn pass(kind: &str, layers: &[&SseLayer]) -> Response<BoxedBody> {
    layers.iter().fold(response(kind), |response, layer| boxed(through(*layer, response)))
}

/// Passes a response of a middleware through a layer outside of it.
fn pass_on(response: Response<BoxedBody>, outer: &SseLayer) -> Response<BoxedBody> {
    boxed(through(outer, response))
}

async fn text(response: Response<BoxedBody>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn quiet() -> SseLayer {
    SseLayer::new().without_heartbeat()
}

#[tokio::test]
async fn same_layer_twice_counts_once() {
    for kind in KINDS {
        let calls = Arc::new(AtomicUsize::new(0));
        let called = Arc::clone(&calls);
        let layer = quiet().max_streams(1).max_streams_per(1, |parts| Some(parts.method.clone())).on_close(move |_| {
            called.fetch_add(1, Relaxed);
        });
        // A clone shares limits and callback, even if it has other settings as well.
        for outer in [layer.clone(), layer.clone().retry(Duration::from_secs(1))] {
            calls.store(0, Relaxed);
            let held = pass(kind, &[&layer, &outer, &layer]);
            assert_eq!(held.status(), StatusCode::OK, "{kind}");
            let second = pass(kind, &[&layer, &outer]);
            assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS, "{kind}");
            assert_eq!(calls.load(Relaxed), 0);
            drop(held);
            assert_eq!(calls.load(Relaxed), 1, "{kind}");
            let again = pass(kind, &[&outer]);
            assert_eq!(again.status(), StatusCode::OK, "{kind}");
            // The other stream that counts, without the layer inside.
            assert_eq!(pass(kind, &[&layer]).status(), StatusCode::TOO_MANY_REQUESTS);
        }
    }
}

#[tokio::test]
async fn callback_gets_value_of_outermost_request_once() {
    for kind in KINDS {
        let (sender, mut closed) = unbounded_channel();
        let layer = quiet().on_close_with(user, move |user, stream| sender.send((user, stream.reason)).unwrap());
        // A clone shares the callback, even if it has other settings as well.
        for outer in [layer.clone(), layer.clone().retry(Duration::from_secs(1))] {
            // A middleware between the layers replaces the user.
            let inner = boxed(respond(&layer, request(Some("bob")), response(kind)));
            let held = boxed(respond(&outer, request(Some("alice")), inner));
            assert!(closed.is_empty(), "{kind}");
            drop(held);
            assert_eq!(closed.try_recv(), Ok((Some("alice".to_owned()), CloseReason::ClientGone)), "{kind}");
            assert!(closed.is_empty(), "{kind}");
        }
    }
}

#[tokio::test]
async fn callbacks_of_different_layers_get_their_values() {
    for kind in KINDS {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let record = |layer: &'static str| {
            let calls = Arc::clone(&calls);
            move |user: Option<String>, _| calls.lock().unwrap().push((layer, user))
        };
        let inner = quiet().on_close_with(user, |_, _| panic!("replaced")).on_close_with(user, record("inner"));
        let outer = quiet().on_close(|_| panic!("replaced"));
        let outer = outer.on_close_with(user, record("outer with")).on_close({
            let record = record("outer");
            move |summary| record(None, summary)
        });
        let passed = boxed(respond(&inner, request(Some("bob")), response(kind)));
        drop(boxed(respond(&outer, request(Some("alice")), passed)));
        let [bob, alice] = ["bob", "alice"].map(|user| Some(user.to_owned()));
        assert_eq!(*calls.lock().unwrap(), [("inner", bob), ("outer", None), ("outer with", alice)], "{kind}");
    }
}

#[tokio::test]
async fn value_of_unreported_request_is_dropped() {
    let value = Arc::new(());
    let (read, called) = (Arc::clone(&value), Arc::new(AtomicUsize::new(0)));
    let calls = Arc::clone(&called);
    let layer = quiet().on_close_with(move |_| Arc::clone(&read), move |_, _| _ = calls.fetch_add(1, Relaxed));
    let rejects = layer.clone().max_streams(0);
    assert_eq!(pass("own", &[&rejects]).status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(through(&layer, Response::new(String::from("no stream"))).status(), StatusCode::OK);
    let mut head = Request::new(());
    *head.method_mut() = Method::HEAD;
    drop(boxed(respond(&layer, head, response("upstream"))));
    assert_eq!((called.load(Relaxed), Arc::strong_count(&value)), (0, 2));
    let held = pass("own", &[&layer]);
    assert_eq!(Arc::strong_count(&value), 3);
    drop(held);
    assert_eq!((called.load(Relaxed), Arc::strong_count(&value)), (1, 2));
}

/// The inner layer does not see the rejection. For it, the response was never sent.
#[tokio::test]
async fn inner_layer_reports_stream_that_outer_layer_rejects() {
    for (kind, when_full) in
        KINDS.into_iter().flat_map(|kind| [(kind, Overload::ServiceUnavailable), (kind, Overload::RetryLater)])
    {
        let (sender, mut closed) = unbounded_channel();
        let report = move |callback, user: Option<String>, stream: StreamSummary| {
            sender.send((callback, user, stream.reason, stream.events, stream.bytes)).unwrap();
        };
        let [of_inner, of_request, of_outer] = [(); 3].map(|()| report.clone());
        let inner = quiet()
            .max_streams(1)
            .on_close(move |stream| of_inner("inner", None, stream))
            .on_close_with(user, move |user, stream| of_request("request", user, stream));
        let full = quiet().max_streams(0).when_full(when_full);
        // A clone shares the callbacks, also if the clone rejects the request.
        for outer in [
            full.on_close(move |stream| of_outer("outer", None, stream)),
            inner.clone().max_streams(0).when_full(when_full),
        ] {
            // The permit of the inner layer is released each time.
            let passed = boxed(respond(&inner, request(Some("bob")), response(kind)));
            assert_eq!(passed.status(), StatusCode::OK, "{kind}");
            let rejected = boxed(respond(&outer, request(Some("alice")), passed));
            assert!(closed.is_empty(), "{kind}");
            assert!(!text(rejected).await.contains("data"), "{kind}");
            for (callback, user) in [("inner", None), ("request", Some("bob".to_owned()))] {
                assert_eq!(closed.try_recv(), Ok((callback, user, CloseReason::ClientGone, 0, 0)), "{kind}");
            }
            assert!(closed.is_empty(), "{kind}");
        }
    }
}

#[tokio::test]
async fn different_layers_count_each() {
    for kind in KINDS {
        let [inner, outer] = [quiet().max_streams(2), quiet().max_streams(1)];
        let held = pass(kind, &[&inner, &outer]);
        assert_eq!(held.status(), StatusCode::OK);
        assert_eq!(pass(kind, &[&inner, &outer]).status(), StatusCode::SERVICE_UNAVAILABLE);
        let second = pass(kind, &[&inner]);
        assert_eq!(second.status(), StatusCode::OK);
        assert_eq!(pass(kind, &[&inner]).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

fn user(parts: &Parts) -> Option<String> {
    Some(parts.headers.get("user")?.to_str().ok()?.to_owned())
}

fn request(user: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    request.headers_mut().extend(user.map(|user| (HeaderName::from_static("user"), user.parse().unwrap())));
    request
}

/// A user logs out between the authentication of a request, which is between the two layers, and
/// the inner layer.
#[tokio::test]
async fn close_between_layers_with_same_registry_ends_stream() {
    for kind in KINDS {
        let registry = StreamRegistry::new();
        let layer = quiet().register(&registry, user);
        let other = quiet().register(&registry, user);
        for outer in [layer.clone(), layer.clone().retry(Duration::from_secs(1)), other] {
            let route = service_fn(|request: Request<()>| {
                assert_eq!(registry.close(&"alice".to_owned()), 0, "the request is no open stream yet");
                let response = boxed(respond(&layer, request, response(kind)));
                async { Ok::<_, Infallible>(response) }
            });
            let Ok(response) = outer.layer(route).oneshot(request(Some("alice"))).await;
            let text = text(boxed(response)).await;
            assert!(!text.contains("data"), "{kind}: {text:?}");
        }
    }
}

#[tokio::test]
async fn same_layer_twice_keeps_permits_and_registrations_of_outer() {
    for kind in KINDS {
        let registry = StreamRegistry::new();
        let layer = quiet().register(&registry, user).max_streams(9).max_streams_per(1, user);
        // A middleware between the two removes the header.
        let open =
            || boxed(respond(&layer, request(Some("alice")), boxed(respond(&layer, request(None), response(kind)))));
        let held = open();
        assert_eq!((held.status(), open().status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS), "{kind}");
        assert_eq!((registry.count(&"alice".to_owned()), registry.len()), (1, 1));
        drop(held);
        assert!(registry.is_empty());
        let again = open();
        assert_eq!((again.status(), registry.close(&"alice".to_owned())), (StatusCode::OK, 1), "{kind}");
        assert_eq!(text(again).await, "", "{kind}");
    }
}

#[tokio::test]
async fn stream_is_registered_once_under_each_key() {
    let open = |[(inner, inside), (outer, outside)]: [(&SseLayer, &str); 2], kind| {
        let response = boxed(respond(inner, request(Some(inside)), response(kind)));
        boxed(respond(outer, request(Some(outside)), response))
    };
    for kind in KINDS {
        let [users, others] = [StreamRegistry::new(), StreamRegistry::new()];
        let layer = quiet().register(&users, user);
        let with_others = layer.clone().register(&others, |parts| user(parts).filter(|user| user == "alice"));
        let [alice, bob] = ["alice", "bob"].map(str::to_owned);
        // The inner and the outer layer, the keys of their requests, and the numbers of streams of
        // alice, of bob, and in the other registry.
        for (layers, counts) in [
            ([(&layer, "alice"), (&layer, "alice")], [1, 0, 0]),
            ([(&layer, "alice"), (&with_others, "alice")], [1, 0, 1]),
            ([(&with_others, "alice"), (&with_others, "alice")], [1, 0, 1]),
            ([(&layer, "alice"), (&layer, "bob")], [1, 1, 0]),
            ([(&with_others, "alice"), (&with_others, "bob")], [1, 1, 1]),
            ([(&with_others, "bob"), (&layer, "bob")], [0, 1, 0]),
        ] {
            for registry_and_key in [(&users, &alice), (&users, &bob), (&others, &alice)] {
                let stream = open(layers, kind);
                assert_eq!([users.count(&alice), users.count(&bob), others.len()], counts, "{kind}");
                let (registry, key) = registry_and_key;
                let is_closed = registry.close(key) == 1;
                assert_eq!(text(stream).await.is_empty(), is_closed, "{kind}");
                assert!(users.is_empty() && others.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn unset_retry_and_shutdown_event_come_from_outside() {
    for kind in KINDS {
        let token = CancellationToken::new();
        token.cancel();
        let inner = quiet().shutdown(token).max_streams(10);
        let middle = SseLayer::new().retry(Duration::from_secs(2));
        let outer = SseLayer::new()
            .retry(Duration::from_secs(9))
            .reconnect_jitter(Duration::ZERO)
            .shutdown_event(Event::new("bye"));
        let ended = text(pass(kind, &[&inner, &middle, &outer])).await;
        assert_eq!(ended, "retry: 2000\nretry: 2000\ndata: bye\n\n", "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn unset_heartbeat_comes_from_outside() {
    let heartbeat = |comment| SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)).comment(comment));
    let unset = SseLayer::new().retry(Duration::from_secs(1));
    let silence = |layers: &[&SseLayer]| {
        let silent = SseStream::new(stream::once(async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Event::new("a")
        }));
        let response =
            layers.iter().fold(boxed(silent.into_http_response()), |response, layer| boxed(through(*layer, response)));
        text(response)
    };
    let [outer, other] = [heartbeat("outer"), heartbeat("other")];
    assert_eq!(silence(&[&unset, &outer]).await, "retry: 1000\n: outer\ndata: a\n\n");
    assert_eq!(silence(&[&outer, &unset, &other]).await, "retry: 1000\n: outer\ndata: a\n\n");
    assert_eq!(silence(&[&unset, &quiet(), &outer]).await, "retry: 1000\ndata: a\n\n");
}

#[tokio::test]
async fn unset_overload_response_comes_from_outside() {
    for kind in KINDS {
        let inner = SseLayer::new().max_streams(0);
        let outer = SseLayer::new()
            .when_full(Overload::RetryLater)
            .retry(Duration::from_secs(7))
            .reconnect_jitter(Duration::ZERO);
        let rejected = pass(kind, &[&inner, &outer]);
        assert_eq!(rejected.status(), StatusCode::OK);
        assert_eq!(rejected.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(rejected.headers()[header::CACHE_CONTROL], "no-cache, no-transform");
        assert!(!rejected.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(text(rejected).await, "retry: 7000\n");

        // A setting of the inner layer stays.
        let inner = inner.when_full(Overload::ServiceUnavailable);
        let rejected = pass(kind, &[&inner, &outer]);
        assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(rejected.headers()[header::RETRY_AFTER], "7");
    }
}

#[tokio::test]
async fn default_overload_response_gives_way_to_outer_setting() {
    for kind in KINDS {
        let rejected = |layers: [&SseLayer; 2]| {
            layers.into_iter().fold(response(kind), |response, layer| {
                let request = Request::builder().header(header::ACCEPT, "text/event-stream").body(()).unwrap();
                boxed(respond(layer, request, response))
            })
        };
        let inner = SseLayer::new().max_streams(0);
        let outer = SseLayer::new().retry(Duration::from_secs(7)).reconnect_jitter(Duration::ZERO);
        assert_eq!(text(rejected([&inner, &outer])).await, "retry: 7000\n");
        let unavailable = outer.when_full(Overload::ServiceUnavailable);
        let response = rejected([&inner, &unavailable]);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        assert_eq!(text(response).await, "the limit of open event streams is reached; try again later");

        // A setting of the inner layer stays, even if it is the default.
        let inner = inner.when_full(Overload::Auto);
        assert_eq!(text(rejected([&inner, &unavailable])).await, "retry: 7000\n");
    }
}

#[tokio::test]
async fn rejection_that_a_middleware_has_changed_stays() {
    let outer = SseLayer::new().when_full(Overload::RetryLater).retry(Duration::from_secs(7));
    for kind in KINDS {
        for inner in [SseLayer::new().max_streams(0), SseLayer::new().max_streams(0).when_full(Overload::RetryLater)] {
            let rejected = || pass(kind, &[&inner]);
            let replaced = rejected().map(|_| BoxedBody::new(String::from("busy").map_err(|error| match error {})));
            assert!(text(pass_on(replaced, &outer)).await.ends_with("busy"), "{kind}");

            // The limit of the outer layer does not apply to a rejection.
            let full = SseLayer::new().max_streams(0);
            let replaced = rejected().map(|_| BoxedBody::new(String::from("busy").map_err(|error| match error {})));
            assert!(text(pass_on(replaced, &full)).await.ends_with("busy"), "{kind}");

            let mut other_status = rejected();
            *other_status.status_mut() = StatusCode::IM_A_TEAPOT;
            assert_eq!(pass_on(other_status, &outer).status(), StatusCode::IM_A_TEAPOT);

            let mut other_header = rejected();
            other_header.headers_mut().insert(header::CACHE_CONTROL, "no-cache, private".parse().unwrap());
            assert_eq!(pass_on(other_header, &outer).headers()[header::CACHE_CONTROL], "no-cache, private");
        }
    }
}

#[tokio::test]
async fn retry_later_takes_jitter_of_layers_and_no_permit() {
    let registry = StreamRegistry::new();
    let (sender, closed) = unbounded_channel();
    let inner = quiet().max_streams(0).register(&registry, |_| Some(7)).on_close(move |stream| _ = sender.send(stream));
    let outer = quiet().retry(Duration::from_secs(1)).when_full(Overload::ServiceUnavailable);
    let pass = |later: RetryLater, jitter| {
        let outer = outer.clone().reconnect_jitter(jitter);
        let response = boxed(through(&outer, through(&inner, later.into_http_response())));
        assert_eq!((response.status(), registry.len(), closed.len()), (StatusCode::OK, 0, 0));
        text(response)
    };
    let later = RetryLater::after(Duration::from_secs(10));
    assert_eq!(pass(later.clone(), Duration::ZERO).await, "retry: 10000\n");
    assert_eq!(pass(later.jitter(Duration::ZERO), Duration::from_secs(100)).await, "retry: 10000\n");
}

#[tokio::test]
async fn limit_of_a_key_is_429_and_of_all_is_503() {
    let per_key = SseLayer::new().max_streams(2).max_streams_per(1, |parts| Some(parts.method.clone()));
    let held = pass("own", &[&per_key]);
    let rejected = pass("own", &[&per_key]);
    assert_eq!((held.status(), rejected.status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
    assert!(rejected.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(text(rejected).await, "your limit of open event streams is reached; close one, or try again later");
    let total = SseLayer::new().max_streams(0).max_streams_per(1, |parts| Some(parts.method.clone()));
    assert_eq!(pass("own", &[&total]).status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn keys_of_all_kinds_limit_and_none_does_not() {
    fn rejects(layer: &SseLayer) -> bool {
        through(layer, SseStream::new(stream::pending::<Event>()).into_http_response()).status() != StatusCode::OK
    }
    let layer = SseLayer::new();
    assert!(!rejects(&layer.clone().max_streams_per(0, |_| None::<String>)));
    #[derive(Hash)]
    struct Tenant(u32);
    assert!(rejects(&layer.clone().max_streams_per(0, |_| Some(Tenant(7)))));
    assert!(rejects(&layer.clone().max_streams_per(0, |_| Some(("tenant", 7)))));
    assert!(rejects(&layer.clone().max_streams_per(0, |parts| Some(parts.uri.clone()))));
    // A request without a key takes the permits of the other limits.
    let both = layer.max_streams(1).max_streams_per(0, |_: &http::request::Parts| None::<u32>);
    let held = through(&both, SseStream::new(stream::pending::<Event>()).into_http_response());
    assert_eq!(held.status(), StatusCode::OK);
    assert!(rejects(&both));
}

#[tokio::test]
async fn first_retry_varies_if_jitter_is_set() {
    for kind in KINDS {
        let layer = SseLayer::new().retry(Duration::from_secs(2)).reconnect_jitter(Duration::from_secs(3));
        let mut delays = Vec::new();
        for _ in 0..200 {
            let text = text(pass(kind, &[&layer])).await;
            let delay = text.strip_prefix("retry: ").unwrap().split('\n').next().unwrap();
            delays.push(delay.parse::<u64>().unwrap());
        }
        delays.sort_unstable();
        assert!(delays[0] < 2_300 && delays[199] > 4_700, "{kind}: {delays:?}");
        assert!((2_000..=5_000).contains(&delays[0]) && delays[199] <= 5_000, "{kind}: {delays:?}");
        // The delay of the handler varies, too, and without the setting no delay does.
        let own = SseStream::new(stream::empty::<Event>()).retry(Duration::from_secs(9));
        let varied = text(boxed(through(&layer, own.into_http_response()))).await;
        assert!(varied.starts_with("retry: 9") || varied.starts_with("retry: 1"), "{varied}");
        let exact = SseLayer::new().retry(Duration::from_secs(2));
        assert!(text(pass(kind, &[&exact])).await.starts_with("retry: 2000\n"));
    }
}
