//! Who comes back, and when.

use crate::{
    in_every_engine,
    page::{self, Page, SOON, message},
    visits::{self, Visits},
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
use tower_sse::{Event, LastEventId, Overload, SseLayer, SseStream};

in_every_engine! {
    what_a_browser_does_after_each_answer_is_in_the_table,
    a_stream_for_which_there_is_no_place_comes_back_only_if_it_is_told_to_retry_later,
    the_time_to_reconnect_is_the_one_that_the_server_has_set,
}

const SHORT: Duration = Duration::from_millis(100);
/// Firefox waits for half a second at least.
const SEVERAL_RECONNECTIONS: Duration = Duration::from_millis(1600);

/// The first answer has a short time to reconnect, and an end. The second is the one that is asked about.
fn second<F, R>(answer: F) -> MethodRouter
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: IntoResponse,
{
    get(async move |last: Option<LastEventId>| -> Response {
        if last.is_some() {
            return answer().into_response();
        }
        let first = tokio_stream::once(Event::new("come back").id(1));
        IntoResponse::into_response(SseStream::new(first).retry(SHORT))
    })
}

fn whole() -> SseStream<impl Stream<Item = Event>> {
    SseStream::new(tokio_stream::once(Event::new("again")))
}

/// A whole event, and a transfer that breaks.
fn broken() -> SseStream<impl Stream<Item = io::Result<Event>>> {
    SseStream::new(tokio_stream::iter([Ok(Event::new("again")), Err(io::Error::other("broken"))]))
}

async fn what_a_browser_does_after_each_answer_is_in_the_table(engine: Engine) {
    const ENDS_IT: [&str; 5] = ["/no-content", "/not-found", "/server-error", "/unavailable", "/other-type"];
    const COMES_BACK: [&str; 2] = ["/end", "/broken"];

    let visits = Visits::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route("/no-content", second(SseStream::stop_reconnecting))
        .route("/not-found", second(|| StatusCode::NOT_FOUND))
        .route("/server-error", second(|| StatusCode::INTERNAL_SERVER_ERROR))
        .route("/unavailable", second(|| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")])))
        .route("/other-type", second(|| "a text"))
        .route("/end", second(whole))
        .route("/broken", second(broken))
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;

    for answer in ENDS_IT {
        page.listen(answer, answer, &[]).await;
    }
    for answer in ENDS_IT {
        page.becomes(answer, "CLOSED").await;
        assert_eq!(page.told(answer).await, [message("message", "1", "come back")], "{answer}");
    }
    let seen = async || ENDS_IT.map(|answer| (answer, visits.count(answer)));
    assert_eq!(seen().await, ENDS_IT.map(|answer| (answer, 2)), "it was asked for once more");
    stays(SEVERAL_RECONNECTIONS, "nobody comes back", seen).await;

    for answer in COMES_BACK {
        page.listen(answer, answer, &[]).await;
    }
    for answer in COMES_BACK {
        eventually(SOON, &format!("it comes back again and again after {answer}"), async || {
            match visits.count(answer) {
                visits if visits > 4 => Ok(()),
                visits => Err(visits),
            }
        })
        .await;
        assert_ne!(page.state(answer).await, "CLOSED", "{answer}");
        let told = page.told(answer).await;
        let again = told.iter().filter(|told| **told == message("message", "1", "again")).count();
        assert!(again >= 3, "what came before {answer} is told: {told:?}");
    }
}

async fn a_stream_for_which_there_is_no_place_comes_back_only_if_it_is_told_to_retry_later(engine: Engine) {
    let forever = || get(async || SseStream::new(tokio_stream::once(Event::new("in")).chain(tokio_stream::pending())));
    let layer = |when_full| {
        let layer = SseLayer::new().max_streams(1).when_full(when_full);
        layer.retry(SHORT).reconnect_jitter(Duration::ZERO)
    };
    let visits = Visits::default();
    let app = Router::new()
        .route("/", get(page::html))
        .route("/unavailable", forever().layer(layer(Overload::ServiceUnavailable)))
        .route("/retry-later", forever().layer(layer(Overload::RetryLater)))
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    for answer in ["/unavailable", "/retry-later"] {
        let first = format!("first {answer}");
        page.listen(&first, answer, &[]).await;
        page.is_told(&first, "that it is in", |told| told.len() == 1).await;
        page.listen(&format!("second {answer}"), answer, &[]).await;
    }

    page.becomes("second /unavailable", "CLOSED").await;
    eventually(SOON, "the other one comes back again and again", async || match visits.count("/retry-later") {
        visits if visits > 3 => Ok(()),
        visits => Err(visits),
    })
    .await;
    assert_eq!(page.told("second /retry-later").await, [], "and is not let in");

    page.close("first /unavailable").await;
    page.close("first /retry-later").await;
    let told = page.is_told("second /retry-later", "something when there is a place", |told| !told.is_empty()).await;
    assert_eq!(told, [message("message", "", "in")]);
    page.becomes("second /retry-later", "OPEN").await;
    stays(SEVERAL_RECONNECTIONS, "the other one does not come back", async || visits.count("/unavailable")).await;
    assert_eq!(visits.count("/unavailable"), 2);
}

/// What each engine makes of a time to reconnect that the server has set, or not.
fn waits(engine: Engine, set: Option<Duration>) -> Duration {
    match engine {
        Engine::Chromium | Engine::WebKit => set.unwrap_or(Duration::from_secs(3)),
        Engine::Firefox => set.unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(500)),
    }
}

async fn the_time_to_reconnect_is_the_one_that_the_server_has_set(engine: Engine) {
    /// As exactly as a timer need be.
    const TOO_EARLY: Duration = Duration::from_millis(20);
    /// Of the shortest of several, as the machine is busy; still far less than to the next of these times, or default.
    const TOO_LATE: Duration = Duration::from_millis(300);

    let times = [None, Some(100), Some(700), Some(1500)].map(|millis| millis.map(Duration::from_millis));
    let visits = Visits::default();
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
    let server = Server::start(app.layer(middleware::from_fn_with_state(visits.clone(), visits::keep)));
    let page = Page::open(engine, &server.url("/")).await;
    for n in 0..times.len() {
        page.listen(&n.to_string(), &format!("/{n}"), &[]).await;
    }

    for (n, time) in times.into_iter().enumerate() {
        // By default it takes long, and one is enough to tell.
        let enough = if time.is_some() { 4 } else { 2 };
        let path = format!("/{n}");
        eventually(SOON, "it comes back", async || match visits.count(&path) {
            visits if visits >= enough => Ok(()),
            visits => Err(visits),
        })
        .await;
        let ends: Vec<_> =
            ends.lock().expect("no holder panics").iter().filter(|end| end.0 == n).map(|end| end.1).collect();
        let visits = visits.to(&path);
        let waited: Vec<_> = visits[1..].iter().zip(&ends).map(|(visit, end)| visit.at - *end).collect();

        let expected = waits(engine, time);
        assert!(waited.iter().all(|waited| *waited + TOO_EARLY >= expected), "too early for {time:?}: {waited:?}");
        let shortest = waited.iter().min().expect("it has come back");
        let too_late = if time.is_some() { TOO_LATE } else { 3 * TOO_LATE };
        assert!(*shortest <= expected + too_late, "too late for {time:?}: {waited:?}");
    }
}
