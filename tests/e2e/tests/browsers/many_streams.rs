//! How many streams one browser has open at the same time.

use crate::{
    in_every_engine,
    page::{self, Page, SOON},
    visits::{self, Visits},
};
use axum::{Router, http::Version, middleware, routing::get};
use e2e::{Engine, Server, eventually, stays};
use std::time::Duration;
use tokio_stream::StreamExt;
use tower_sse::{Event, SseStream};

in_every_engine! {
    over_http_1_the_seventh_stream_waits_until_one_of_six_is_closed,
    over_http_2_fifty_streams_are_open_at_once,
}

const FEED: &str = "/feed";

/// Streams that stay open.
fn app(visits: &Visits) -> Router {
    let feed = async || SseStream::new(tokio_stream::once(Event::new("in")).chain(tokio_stream::pending()));
    Router::new()
        .route("/", get(page::html))
        .route(FEED, get(feed))
        .layer(middleware::from_fn_with_state(visits.clone(), visits::keep))
}

async fn listen(page: &Page, streams: usize) -> Vec<String> {
    let names: Vec<_> = (1..=streams).map(|n| n.to_string()).collect();
    for name in &names {
        page.listen(name, FEED, &[]).await;
    }
    names
}

async fn over_http_1_the_seventh_stream_waits_until_one_of_six_is_closed(engine: Engine) {
    let visits = Visits::default();
    let server = Server::start(app(&visits));
    let page = Page::open(engine, &server.url("/")).await;

    let names = listen(&page, 7).await;
    let (seventh, six) = names.split_last().expect("there are seven");
    for name in six {
        page.is_told(name, "that it is in", |told| told.len() == 1).await;
    }
    let seen = async || (visits.count(FEED), page.state(seventh).await);
    stays(Duration::from_secs(1), "it waits", seen).await;
    assert_eq!(seen().await, (6, "CONNECTING"));

    page.close(&six[2]).await;
    page.is_told(seventh, "that it is in", |told| told.len() == 1).await;
    assert_eq!(seen().await, (7, "OPEN"));
    assert!(visits.to(FEED).iter().all(|visit| visit.version == Version::HTTP_11));
}

async fn over_http_2_fifty_streams_are_open_at_once(engine: Engine) {
    const STREAMS: usize = 50;
    let visits = Visits::default();
    let server = Server::start_with_tls(app(&visits));
    let page = Page::open(engine, &server.url("/")).await;

    let names = listen(&page, STREAMS).await;
    let all_are_open = format!("{}.every((name) => told[name].length === 1)", serde_json::json!(names));
    eventually(SOON, "each is told that it is in", async || match page.eval(&all_are_open).await {
        all if all == true => Ok(()),
        all => Err(all),
    })
    .await;
    for name in &names {
        assert_eq!(page.state(name).await, "OPEN", "{name}");
    }
    let visits = visits.to(FEED);
    assert_eq!(visits.len(), STREAMS, "each is there once");
    assert!(visits.iter().all(|visit| visit.version == Version::HTTP_2));
    // Chromium opens one more beforehand, and does not use it.
    assert!(server.connections() <= 2, "they share a connection");
}
