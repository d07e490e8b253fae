//! Reconnections: after which responses, and when.

use crate::{
    in_every_engine,
    page::{self, Page, SOON, message},
    requests::{self, Requests},
};
use axum::{
    Router,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use e2e::{Engine, Server, eventually, stays};
use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{Event, LastEventId, Overload, SseLayer, SseStream, StopReconnecting};

in_every_engine! {
    response_decides_whether_a_browser_reconnects,
    service_unavailable_stops_reconnects_over_the_limit,
    retry_sets_the_reconnection_time,
}

const SHORT: Duration = Duration::from_millis(100);
/// Firefox waits for at least half a second.
const SEVERAL_RECONNECTIONS: Duration = Duration::from_millis(1600);

/// Responds to the first request with a short reconnection time, and to the second with `answer`.
fn second<F, R>(answer: F) -> MethodRouter
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: IntoResponse,
{
    get(async move |last: Option<LastEventId>| -> Response {
        if last.is_some() {
            return answer().into_response();
        }
        let first = tokio_stream::once(Event::new("reconnect").id(1));
        IntoResponse::into_response(SseStream::new(first).retry(SHORT))
    })
}

/// A response that ends after an event.
fn whole() -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(tokio_stream::once(Event::new("again")))
}

/// A response that breaks after an event.
fn broken() -> SseStream<impl Stream<Item = io::Result<Event>>> {
    SseStream::new(tokio_stream::iter([Ok(Event::new("again")), Err(io::Error::other("broken"))]))
}

async fn response_decides_whether_a_browser_reconnects(engine: Engine) {
    const NO_RECONNECTION: [&str; 5] = ["/no-content", "/not-found", "/server-error", "/unavailable", "/other-type"];
    const RECONNECTION: [&str; 2] = ["/end", "/broken"];

    let requests = Requests::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route("/no-content", second(|| StopReconnecting))
        .route("/not-found", second(|| StatusCode::NOT_FOUND))
        .route("/server-error", second(|| StatusCode::INTERNAL_SERVER_ERROR))
        .route("/unavailable", second(|| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")])))
        .route("/other-type", second(|| "a text"))
        .route("/end", second(whole))
        .route("/broken", second(broken))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;

    for answer in NO_RECONNECTION {
        page.listen(answer, answer, &[]).await;
    }
    for answer in NO_RECONNECTION {
        page.wait_for_ready_state(answer, "CLOSED").await;
        assert_eq!(page.received(answer).await, [message("message", "1", "reconnect")], "{answer}");
    }
    let seen = async || NO_RECONNECTION.map(|answer| (answer, requests.count(answer)));
    assert_eq!(seen().await, NO_RECONNECTION.map(|answer| (answer, 2)), "each sent one more request");
    stays(SEVERAL_RECONNECTIONS, "no EventSource reconnects", seen).await;

    for answer in RECONNECTION {
        page.listen(answer, answer, &[]).await;
    }
    for answer in RECONNECTION {
        eventually(SOON, &format!("it reconnects repeatedly after {answer}"), async || match requests.count(answer) {
            requests if requests > 4 => Ok(()),
            requests => Err(requests),
        })
        .await;
        assert_ne!(page.ready_state(answer).await, "CLOSED", "{answer}");
        let received = page.received(answer).await;
        let again = received.iter().filter(|event| **event == message("message", "1", "again")).count();
        assert!(again >= 3, "the event before {answer} arrives: {received:?}");
    }
}

async fn service_unavailable_stops_reconnects_over_the_limit(engine: Engine) {
    let forever =
        || get(async || SseStream::new(tokio_stream::once(Event::new("hello")).chain(tokio_stream::pending())));
    let layer = |when_full| {
        let layer = SseLayer::new().max_streams(1).when_full(when_full);
        layer.retry(SHORT).reconnect_jitter(Duration::ZERO)
    };
    let requests = Requests::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route("/unavailable", forever().layer(layer(Overload::ServiceUnavailable)))
        .route("/default", forever().layer(layer(Overload::default())))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    for answer in ["/unavailable", "/default"] {
        let first = format!("first {answer}");
        page.listen(&first, answer, &[]).await;
        page.wait_for_events(&first, "its event", |received| received.len() == 1).await;
        page.listen(&format!("second {answer}"), answer, &[]).await;
    }

    page.wait_for_ready_state("second /unavailable", "CLOSED").await;
    eventually(SOON, "the stream with the default reconnects repeatedly", async || match requests.count("/default") {
        requests if requests > 3 => Ok(()),
        requests => Err(requests),
    })
    .await;
    assert_eq!(page.received("second /default").await, [], "it is rejected each time");

    page.close("first /unavailable").await;
    page.close("first /default").await;
    let received = page
        .wait_for_events("second /default", "its event when a permit is free", |received| !received.is_empty())
        .await;
    assert_eq!(received, [message("message", "", "hello")]);
    page.wait_for_ready_state("second /default", "OPEN").await;
    stays(SEVERAL_RECONNECTIONS, "the stream with ServiceUnavailable does not reconnect", async || {
        requests.count("/unavailable")
    })
    .await;
    assert_eq!(requests.count("/unavailable"), 2);
}

/// Returns the reconnection time of an engine for the `retry` of a server.
fn reconnection_time(engine: Engine, set: Option<Duration>) -> Duration {
    match engine {
        Engine::Chromium | Engine::WebKit => set.unwrap_or(Duration::from_secs(3)),
        Engine::Firefox => set.unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(500)),
    }
}

async fn retry_sets_the_reconnection_time(engine: Engine) {
    /// The precision of a timer.
    const TOO_EARLY: Duration = Duration::from_millis(20);
    /// The limit for the shortest of several delays, because the machine is busy. The `retry`
    /// values and the defaults differ by more.
    const TOO_LATE: Duration = Duration::from_millis(300);

    let times = [None, Some(100), Some(700), Some(1500)].map(|millis| millis.map(Duration::from_millis));
    let requests = Requests::default();
    let ends = Arc::new(Mutex::new(Vec::new()));
    let mut app = Router::new().route("/", get(page::html));
    for (n, time) in times.into_iter().enumerate() {
        let ends = Arc::clone(&ends);
        let answer = async move || {
            let stream = whole().on_close(move |_| ends.lock().expect("no holder panics").push((n, Instant::now())));
            if let Some(time) = time { stream.retry(time) } else { stream }
        };
        app = app.route(&format!("/{n}"), get(answer));
    }
    let server = Server::start(app.layer(middleware::from_fn_with_state(requests.clone(), requests::record)));
    let page = Page::open(engine, &server.url("/")).await;
    for n in 0..times.len() {
        page.listen(&n.to_string(), &format!("/{n}"), &[]).await;
    }

    for (n, time) in times.into_iter().enumerate() {
        // The default is long, so one reconnection is enough.
        let enough = if time.is_some() { 4 } else { 2 };
        let path = format!("/{n}");
        eventually(SOON, "it reconnects", async || match requests.count(&path) {
            requests if requests >= enough => Ok(()),
            requests => Err(requests),
        })
        .await;
        let ends: Vec<_> =
            ends.lock().expect("no holder panics").iter().filter(|end| end.0 == n).map(|end| end.1).collect();
        let requests = requests.to(&path);
        let waited: Vec<_> = requests[1..].iter().zip(&ends).map(|(request, end)| request.at - *end).collect();

        let expected = reconnection_time(engine, time);
        assert!(waited.iter().all(|waited| *waited + TOO_EARLY >= expected), "too early for {time:?}: {waited:?}");
        let shortest = waited.iter().min().expect("it has reconnected");
        // There is only one delay of the default time.
        let too_late = if time.is_some() { TOO_LATE } else { Duration::from_secs(5) };
        assert!(*shortest <= expected + too_late, "too late for {time:?}: {waited:?}");
    }
}
