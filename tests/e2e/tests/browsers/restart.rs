//! Lost connections and restarts: a page resumes, or receives a gap.

use crate::{
    in_every_engine,
    page::{self, Page, message},
    requests::{self, Requests},
};
use axum::{Router, extract::State, http::StatusCode, middleware, response::Html, routing::get};
use e2e::{Engine, Message, Server, eventually};
use serde_json::json;
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
}

const FEED: &str = "/feed";
/// The page code of the guide waits for up to 6 seconds before each attempt.
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

/// A proxy without a running server answers 503, which closes an `EventSource` for good.
async fn page_code_of_the_guide_survives_503_during_a_deploy(engine: Engine) {
    let guide = include_str!("../../../../docs/production.md");
    let code = guide.split_once("```js").expect("the guide has page code").1;
    let code = code.split_once("```").expect("the code ends").0;
    let html = format!(
        "<!doctype html><meta charset=utf-8><link rel=icon href=data:,>
        <script>window.shown = []; const show = (data) => shown.push(data);{code}</script>"
    );
    let topic = Hub::new().topic("news");
    let app = || {
        Router::new()
            .route("/", get(Html(html.clone())))
            .route("/events", get(feed))
            .with_state(topic.clone())
            .layer(SseLayer::new().retry(Duration::from_millis(200)))
    };
    let server = Server::start(app());
    let page = Page::open(engine, &server.url("/")).await;
    let shown_is = async |expected: serde_json::Value| {
        let shown = page.eval("shown").await;
        if shown == expected { Ok(()) } else { Err(shown) }
    };
    publish(&topic, "one").await;
    eventually(PATIENCE, "the first event", async || shown_is(json!(["one"])).await).await;

    let port = server.stop().await;
    publish(&topic, "two").await;
    let requests = Requests::default();
    let unavailable = Router::new()
        .route("/events", get(StatusCode::SERVICE_UNAVAILABLE))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record));
    let proxy = Server::start_at(port, unavailable);
    // The second request is of another `EventSource`, which the page has created.
    eventually(PATIENCE, "two requests", async || match requests.count("/events") {
        0 | 1 => Err(requests.count("/events")),
        more => Ok(more),
    })
    .await;
    let port = proxy.stop().await;
    let _server = Server::start_at(port, app());
    eventually(PATIENCE, "the event that the page has missed", async || shown_is(json!(["one", "two"])).await).await;
}
