//! Lost connections and restarts: a page resumes, or receives a gap.

use crate::{
    in_every_engine,
    page::{self, Page, message},
    requests::{self, Requests},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{Html, IntoResponse},
    routing::get,
};
use e2e::{Engine, Message, Server, eventually};
use std::time::Duration;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Start, Subscription, Topic},
};

in_every_engine! {
    server_restart_is_a_gap_then_new_events,
    retained_events_resume_without_gap_or_repetition,
    cursor_resumes_a_page_before_its_first_event,
    page_code_of_the_guide_survives_503_during_a_deploy,
    page_code_of_the_guide_stops_at_a_refusal,
}

const FEED: &str = "/feed";
/// The page code of the guide waits longer after each attempt.
const PATIENCE: Duration = Duration::from_secs(60);
/// Several attempts to reconnect fail in this time.
const DOWN: Duration = Duration::from_millis(1200);

async fn feed(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last.or(Start::Earliest)).await?))
}

fn app(topic: &Topic, requests: &Requests, shutdown: &CancellationToken) -> Router {
    let layer = SseLayer::new().retry(Duration::from_millis(200)).shutdown(shutdown.clone());
    Router::new()
        .route("/", get(page::html))
        .route(FEED, get(feed))
        .with_state(topic.clone())
        .layer(layer.reconnect_jitter(Duration::ZERO))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record))
}

async fn publish(topic: &Topic, data: &str) -> String {
    topic.publish(Event::new(data)).await.expect("the publication succeeds").as_str().to_owned()
}

async fn server_restart_is_a_gap_then_new_events(engine: Engine) {
    let topic = Hub::new().topic("feed");
    let shutdown = CancellationToken::new();
    let server = Server::start(app(&topic, &Requests::default(), &shutdown));
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("feed", FEED, &["gap"]).await;
    let [one, two] = [publish(&topic, "one").await, publish(&topic, "two").await];
    let before = [message("message", &one, "one"), message("message", &two, "two")];
    assert_eq!(page.wait_for_events("feed", "both events", |received| received.len() >= 2).await, before);

    shutdown.cancel();
    page.wait_for_ready_state("feed", "CONNECTING").await;
    publish(&topic, "no client receives this").await;
    let port = server.stop().await;
    sleep(DOWN).await;
    let topic = Hub::new().topic("feed");
    let three = publish(&topic, "three").await;
    let requests = Requests::default();
    let _server = Server::start_at(port, app(&topic, &requests, &CancellationToken::new()));
    page.wait_for_events("feed", "an event of the new server", |received| received.len() >= 4).await;
    let four = publish(&topic, "four").await;

    let received = page.wait_for_events("feed", "all events", |received| received.len() >= 5).await;
    let (gap, received) = (received[2].clone(), [&received[..2], &received[3..]].concat());
    let after = [message("message", &three, "three"), message("message", &four, "four")];
    assert_eq!(received, [before, after].concat(), "without the gap {gap:?}");
    let data: serde_json::Value = serde_json::from_str(&gap.data).expect("the data is JSON");
    assert_eq!(gap.kind, "gap");
    assert_eq!(data, serde_json::json!({ "reason": "other_epoch", "requested": two, "resumed": three }));
    let requests = requests.to(FEED);
    assert_eq!(requests.len(), 1, "the page reconnects once");
    assert_eq!(requests[0].last_event_id(), Some(two.as_bytes()));
}

async fn retained_events_resume_without_gap_or_repetition(engine: Engine) {
    let topic = Hub::new().topic("feed");
    let requests = Requests::default();
    let mut server = Server::start(app(&topic, &requests, &CancellationToken::new()));
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("feed", FEED, &["gap"]).await;
    let stop = CancellationToken::new();
    let publisher = tokio::spawn(publish_until(stop.clone(), topic.clone()));

    for _ in 0..2 {
        let before = page.received("feed").await.len();
        page.wait_for_events("feed", "20 more events", |received| received.len() >= before + 20).await;
        let port = server.stop().await;
        page.wait_for_ready_state("feed", "CONNECTING").await;
        sleep(DOWN).await;
        server = Server::start_at(port, app(&topic, &requests, &CancellationToken::new()));
        page.wait_for_ready_state("feed", "OPEN").await;
    }
    stop.cancel();
    let published = publisher.await.expect("the publication succeeds");
    let received = page.wait_for_events("feed", "the last event", |received| received.last() == published.last()).await;
    assert_eq!(received, published);
    assert_eq!(requests.count(FEED), 3, "the page reconnects once after each cut");
}

/// Publishes so fast that events fall between the replay and the live events.
async fn publish_until(stop: CancellationToken, topic: Topic) -> Vec<Message> {
    let mut interval = interval(Duration::from_millis(5));
    let mut published = Vec::new();
    while !stop.is_cancelled() {
        interval.tick().await;
        let data = published.len().to_string();
        let id = publish(&topic, &data).await;
        published.push(message("message", &id, &data));
    }
    published
}

async fn cursor_resumes_a_page_before_its_first_event(engine: Engine) {
    /// A new client gets live events, beginning with its first connection.
    async fn news(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
        Ok(SseStream::new(topic.subscribe(last).await?))
    }

    let topic = Hub::new().topic("news");
    let requests = Requests::default();
    let app = || {
        Router::new()
            .route("/", get(page::html))
            .route(FEED, get(news))
            .with_state(topic.clone())
            .layer(SseLayer::new().retry(Duration::from_millis(200)))
            .layer(middleware::from_fn_with_state(requests.clone(), requests::record))
    };
    let before = publish(&topic, "before the page").await;
    let server = Server::start(app());
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("news", FEED, &["gap"]).await;
    page.wait_for_ready_state("news", "OPEN").await;

    let port = server.stop().await;
    page.wait_for_ready_state("news", "CONNECTING").await;
    let [one, two] = [publish(&topic, "one").await, publish(&topic, "two").await];
    let _server = Server::start_at(port, app());
    page.wait_for_ready_state("news", "OPEN").await;
    let three = publish(&topic, "three").await;

    let received = page
        .wait_for_events("news", "the last event", |received| received.iter().any(|message| message.data == "three"))
        .await;
    let [one, two] = [message("message", &one, "one"), message("message", &two, "two")];
    assert_eq!(received, [one, two, message("message", &three, "three")], "a new client gets no earlier event");
    let ids: Vec<_> = requests.to(FEED).iter().map(|request| request.last_event_id().map(<[u8]>::to_vec)).collect();
    assert_eq!(ids, [None, Some(before.into_bytes())], "the page reconnects with its first cursor");
}

/// A page with the code of `docs/clients.md`. `shown` has the data of its events and its states.
fn page_of_the_guide() -> Router<Topic> {
    let guide = include_str!("../../../../docs/clients.md");
    let code = guide.split_once("```html").expect("the guide has page code").1;
    let code = code.split_once("```").expect("the code ends").0.replace(" });</script>", " }, state);</script>");
    let html = format!(
        "<!doctype html><meta charset=utf-8><link rel=icon href=data:,><script>
        window.shown = []; const show = (data) => shown.push(data); const state = (state) => show('(' + state + ')');
        </script>{code}"
    );
    let script = include_str!("../../../../examples/reconnect.js");
    Router::new()
        .route("/", get(Html(html)))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], script)))
        .route("/events", get(feed))
}

/// Waits until the page has shown this last.
async fn wait_for_last_shown(page: &Page, last: &str) -> Vec<String> {
    eventually(PATIENCE, last, async || {
        let shown: Vec<String> = serde_json::from_value(page.eval("shown").await).expect("it is a list");
        if shown.last().is_some_and(|shown| shown == last) { Ok(shown) } else { Err(shown) }
    })
    .await
}

/// A proxy without a running server answers 503, which closes an `EventSource` for good.
async fn page_code_of_the_guide_survives_503_during_a_deploy(engine: Engine) {
    let topic = Hub::new().topic("news");
    let app = |requests: &Requests| {
        page_of_the_guide()
            .with_state(topic.clone())
            .layer(SseLayer::new().retry(Duration::from_millis(200)))
            .layer(middleware::from_fn_with_state(requests.clone(), requests::record))
    };
    let server = Server::start(app(&Requests::default()));
    let page = Page::open(engine, &server.url("/")).await;
    publish(&topic, "one").await;
    wait_for_last_shown(&page, "one").await;

    let port = server.stop().await;
    publish(&topic, "two").await;
    let requests = Requests::default();
    let unavailable = Router::new()
        .route("/events", get(StatusCode::SERVICE_UNAVAILABLE))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let proxy = Server::start_at(port, unavailable);
    // The first request is of the `EventSource`, and the page asks for the status again and again.
    eventually(PATIENCE, "three requests", async || match requests.count("/events") {
        count @ 0..=2 => Err(count),
        more => Ok(more),
    })
    .await;
    let port = proxy.stop().await;
    let requests = Requests::default();
    let _server = Server::start_at(port, app(&requests));
    let shown = wait_for_last_shown(&page, "two").await;
    let data: Vec<_> = shown.iter().filter(|shown| !shown.starts_with('(')).collect();
    assert_eq!(data, ["one", "two"], "the page resumes: {shown:?}");

    // The topic ends, the `EventSource` gets 204, and the page stops.
    topic.finish().await.expect("the topic is finished");
    wait_for_last_shown(&page, "(finished)").await;
    let count = requests.count("/events");
    sleep(2 * DOWN).await;
    assert_eq!(requests.count("/events"), count);
}

/// A status that a later request would get as well ends the stream.
async fn page_code_of_the_guide_stops_at_a_refusal(engine: Engine) {
    let requests = Requests::default();
    let app = page_of_the_guide().with_state(Hub::new().topic("news"));
    let refuse = async |request: Request, next: Next| match request.uri().path() {
        "/events" => StatusCode::UNAUTHORIZED.into_response(),
        _ => next.run(request).await,
    };
    let app = app
        .layer(middleware::from_fn(refuse))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let server = Server::start(app);
    let page = Page::open(engine, &server.url("/")).await;
    let shown = wait_for_last_shown(&page, "(refused)").await;
    assert_eq!(shown, ["(connecting)", "(reconnecting)", "(refused)"]);
    sleep(2 * DOWN).await;
    assert_eq!(requests.count("/events"), 2, "the request of the `EventSource`, and one for the status");
}
