//! The number of streams that a browser keeps open at the same time.

use crate::{
    in_every_engine,
    page::{self, Page, SOON},
    requests::{self, Requests},
};
use axum::{Router, http::Version, middleware, routing::get};
use e2e::{Engine, Server, eventually, stays};
use std::time::Duration;
use tokio_stream::StreamExt;
use tower_sse::{Event, SseStream};

in_every_engine! {
    seventh_stream_over_http_1_waits,
    http_2_allows_fifty_streams_on_one_connection,
}

const FEED: &str = "/feed";

/// Serves streams that stay open.
fn app(requests: &Requests) -> Router {
    let feed = async || SseStream::new(tokio_stream::once(Event::new("hello")).chain(tokio_stream::pending()));
    Router::new()
        .route("/", get(page::html))
        .route(FEED, get(feed))
        .layer(middleware::from_fn_with_state(requests.clone(), requests::record))
}

async fn listen(page: &Page, streams: usize) -> Vec<String> {
    let names: Vec<_> = (1..=streams).map(|n| n.to_string()).collect();
    for name in &names {
        page.listen(name, FEED, &[]).await;
    }
    names
}

async fn seventh_stream_over_http_1_waits(engine: Engine) {
    let requests = Requests::default();
    let server = Server::start(app(&requests));
    let page = Page::open(engine, &server.url("/")).await;

    let names = listen(&page, 7).await;
    let (seventh, six) = names.split_last().expect("there are seven names");
    for name in six {
        page.wait_for_events(name, "its event", |received| received.len() == 1).await;
    }
    let seen = async || (requests.count(FEED), page.ready_state(seventh).await);
    stays(Duration::from_secs(1), "the seventh stream waits", seen).await;
    assert_eq!(seen().await, (6, "CONNECTING"));

    page.close(&six[2]).await;
    page.wait_for_events(seventh, "its event", |received| received.len() == 1).await;
    assert_eq!(seen().await, (7, "OPEN"));
    assert!(requests.to(FEED).iter().all(|request| request.version == Version::HTTP_11));
}

async fn http_2_allows_fifty_streams_on_one_connection(engine: Engine) {
    const STREAMS: usize = 50;
    let requests = Requests::default();
    let server = Server::start_with_tls(app(&requests));
    let page = Page::open(engine, &server.url("/")).await;

    let names = listen(&page, STREAMS).await;
    let all_are_open = format!("{}.every((name) => received[name].length === 1)", serde_json::json!(names));
    eventually(SOON, "each stream has an event", async || match page.eval(&all_are_open).await {
        all if all == true => Ok(()),
        all => Err(all),
    })
    .await;
    for name in &names {
        assert_eq!(page.ready_state(name).await, "OPEN", "{name}");
    }
    let requests = requests.to(FEED);
    assert_eq!(requests.len(), STREAMS, "each stream is one request");
    assert!(requests.iter().all(|request| request.version == Version::HTTP_2));
    // Chromium opens a second connection in advance, and does not use it.
    assert!(server.connections() <= 2, "the streams share a connection");
}
