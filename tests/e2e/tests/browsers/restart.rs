//! A feed is resumed where the page was, or the page is told that it cannot be.

use crate::{
    in_every_engine,
    page::{self, Page, message},
    visits::{self, Visits},
};
use axum::{Router, extract::State, middleware, routing::get};
use e2e::{Engine, Message, Server};
use std::time::Duration;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Start, Subscription, Topic},
};

in_every_engine! {
    after_a_restart_of_the_server_the_page_is_told_of_the_gap_and_gets_what_the_new_server_has,
    after_a_cut_that_the_history_survives_nothing_is_missed_nothing_comes_twice_and_there_is_no_gap,
    what_is_published_during_a_cut_arrives_even_if_nothing_was_sent_before_it,
}

const FEED: &str = "/feed";
/// Several attempts to reconnect are refused in this time.
const DOWN: Duration = Duration::from_millis(1200);

async fn feed(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last.or(Start::Earliest)).await?))
}

fn app(topic: &Topic, visits: &Visits, shutdown: &CancellationToken) -> Router {
    let layer = SseLayer::new().retry(Duration::from_millis(200)).shutdown(shutdown.clone());
    Router::new()
        .route("/", get(page::html))
        .route(FEED, get(feed))
        .with_state(topic.clone())
        .layer(layer.reconnect_jitter(Duration::ZERO))
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep))
}

async fn publish(topic: &Topic, data: &str) -> String {
    topic.publish(Event::new(data)).await.expect("there is room").as_str().to_owned()
}

async fn after_a_restart_of_the_server_the_page_is_told_of_the_gap_and_gets_what_the_new_server_has(engine: Engine) {
    let topic = Hub::new().topic("feed");
    let shutdown = CancellationToken::new();
    let server = Server::start(app(&topic, &Visits::default(), &shutdown));
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("feed", FEED, &["gap"]).await;
    let [one, two] = [publish(&topic, "one").await, publish(&topic, "two").await];
    let before = [message("message", &one, "one"), message("message", &two, "two")];
    assert_eq!(page.is_told("feed", "both", |told| told.len() >= 2).await, before);

    shutdown.cancel();
    page.becomes("feed", "CONNECTING").await;
    publish(&topic, "nobody gets this").await;
    let port = server.stop().await;
    sleep(DOWN).await;
    let topic = Hub::new().topic("feed");
    let three = publish(&topic, "three").await;
    let visits = Visits::default();
    let _server = Server::start_at(port, app(&topic, &visits, &CancellationToken::new()));
    page.is_told("feed", "what the new server has", |told| told.len() >= 4).await;
    let four = publish(&topic, "four").await;

    let told = page.is_told("feed", "all", |told| told.len() >= 5).await;
    let (gap, told) = (told[2].clone(), [&told[..2], &told[3..]].concat());
    let after = [message("message", &three, "three"), message("message", &four, "four")];
    assert_eq!(told, [before, after].concat(), "but for {gap:?}");
    let why: serde_json::Value = serde_json::from_str(&gap.data).expect("the data is JSON");
    assert_eq!(gap.kind, "gap");
    assert_eq!(why, serde_json::json!({ "reason": "other_epoch", "requested": two, "resumed": three }));
    let visits = visits.to(FEED);
    assert_eq!(visits.len(), 1, "one connection is enough");
    assert_eq!(visits[0].last_event_id(), Some(two.as_bytes()));
}

async fn after_a_cut_that_the_history_survives_nothing_is_missed_nothing_comes_twice_and_there_is_no_gap(
    engine: Engine,
) {
    let topic = Hub::new().topic("feed");
    let visits = Visits::default();
    let mut server = Server::start(app(&topic, &visits, &CancellationToken::new()));
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("feed", FEED, &["gap"]).await;
    let enough = CancellationToken::new();
    let publishes = tokio::spawn(publish_until(enough.clone(), topic.clone()));

    for _ in 0..2 {
        let before = page.told("feed").await.len();
        page.is_told("feed", "more", |told| told.len() >= before + 20).await;
        let port = server.stop().await;
        page.becomes("feed", "CONNECTING").await;
        sleep(DOWN).await;
        server = Server::start_at(port, app(&topic, &visits, &CancellationToken::new()));
        page.becomes("feed", "OPEN").await;
    }
    enough.cancel();
    let published = publishes.await.expect("there is room");
    let told = page.is_told("feed", "the last one", |told| told.last() == published.last()).await;
    assert_eq!(told, published);
    assert_eq!(visits.count(FEED), 3, "one connection for each time");
}

/// Fast, so that there are some between what is replayed and what is live.
async fn publish_until(enough: CancellationToken, topic: Topic) -> Vec<Message> {
    let mut often = interval(Duration::from_millis(5));
    let mut published = Vec::new();
    while !enough.is_cancelled() {
        often.tick().await;
        let data = published.len().to_string();
        let id = publish(&topic, &data).await;
        published.push(message("message", &id, &data));
    }
    published
}

async fn what_is_published_during_a_cut_arrives_even_if_nothing_was_sent_before_it(engine: Engine) {
    /// A newcomer gets what is published from now on: from its first connection on, not from the one that lasted.
    async fn news(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
        Ok(SseStream::new(topic.subscribe(last).await?))
    }

    let topic = Hub::new().topic("news");
    let visits = Visits::default();
    let app = || {
        Router::new()
            .route("/", get(page::html))
            .route(FEED, get(news))
            .with_state(topic.clone())
            .layer(SseLayer::new().retry(Duration::from_millis(200)))
            .layer(middleware::from_fn_with_state(visits.clone(), visits::keep))
    };
    let before = publish(&topic, "before anybody came").await;
    let server = Server::start(app());
    let page = Page::open(engine, &server.url("/")).await;
    page.listen("news", FEED, &["gap"]).await;
    page.becomes("news", "OPEN").await;

    let port = server.stop().await;
    page.becomes("news", "CONNECTING").await;
    let [one, two] = [publish(&topic, "one").await, publish(&topic, "two").await];
    let _server = Server::start_at(port, app());
    page.becomes("news", "OPEN").await;
    let three = publish(&topic, "three").await;

    let told = page.is_told("news", "the last one", |told| told.iter().any(|told| told.data == "three")).await;
    let [one, two] = [message("message", &one, "one"), message("message", &two, "two")];
    assert_eq!(told, [one, two, message("message", &three, "three")], "a newcomer gets nothing of before");
    let ids: Vec<_> = visits.to(FEED).iter().map(|visit| visit.last_event_id().map(<[u8]>::to_vec)).collect();
    assert_eq!(ids, [None, Some(before.into_bytes())], "it came back with the place where it began");
}
