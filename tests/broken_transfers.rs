//! Guarantee: events before an error reach a client that reads, over HTTP/1.1 and HTTP/2. Then the
//! client sees that the transfer is broken.

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::StreamExt;
use http::{Method, header};
use std::{future, io};
use support::{
    client::{Http2, Protocol},
    script::{Script, Step},
    server,
};
// In `over_serve`, this is the server of the crate.
use crate::server::serve;
use tower_sse::{Event, SseLayer, SseStream};

/// The source of the event stream.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ours,
    Upstream,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Ours, Self::Upstream];
}

fn upstream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// The state of a stream before its error.
#[derive(Clone, Copy, Debug)]
enum Before {
    /// All events and the error are ready at once.
    AllReady,
    /// The runtime runs other tasks between the last event and the error.
    AYield,
}

/// Three events, then an error.
fn failing(kind: Kind, before: Before) -> Response {
    let events = tokio_stream::iter([Event::new("one"), Event::new("two"), Event::new("three")]);
    let error = futures_util::stream::once(async move {
        if let Before::AYield = before {
            tokio::task::yield_now().await;
        }
        Err(io::Error::other("broken"))
    });
    let all = events.map(Ok).chain(error);
    match (kind, before) {
        (Kind::Ours, _) => SseStream::new(all).into_http_response().map(Body::new),
        (Kind::Upstream, Before::AllReady) => {
            let chunks = ["data: one\n\n", "data: two\n\nda", "ta: three\n\n"].map(Step::chunk);
            upstream(Body::new(Script::new(chunks.into_iter().chain([Step::Fail("broken")]))))
        }
        (Kind::Upstream, Before::AYield) => upstream(Body::from_stream(all.map(|event| event.map(Event::encode)))),
    }
}

/// The number of attempts, because a race is lost only sometimes.
const TRANSFERS: usize = 200;

/// Returns the number of transfers that lost an event.
async fn losses(protocol: Protocol, kind: Kind, before: Before) -> usize {
    let app = Router::new()
        .route("/", get(move || async move { failing(kind, before) }))
        .route("/fine", get(async || "fine"))
        .layer(SseLayer::new());
    let server = serve(app).await;
    let shared = Http2::connect(server.address).await;

    let transfer = async |n: usize| {
        let answer = match protocol {
            Protocol::Http1 => Ok(protocol.get(server.address, "/", &[]).await),
            // On a new connection, and on a used one.
            Protocol::Http2 => {
                let connection =
                    if n.is_multiple_of(2) { shared.clone() } else { Http2::connect(server.address).await };
                connection.request(Method::GET, "/", &[], "").await
            }
        };
        match answer {
            // Reset before its head was sent.
            Err(_) => Vec::new(),
            Ok(mut answer) => {
                let end = answer.end().await;
                assert!(end.is_err(), "{protocol:?} {kind:?} {before:?}: a broken transfer looked complete");
                answer.data()
            }
        }
    };
    let transfers = futures_util::stream::iter((0..TRANSFERS).map(transfer)).buffer_unordered(20);
    let lost = transfers.filter(|data| future::ready(data != &["one", "two", "three"])).count().await;
    // A failed stream is reset. Its connection stays open.
    assert_eq!(shared.get("/fine", &[]).await.complete().await.text(), "fine");
    lost
}

async fn assert_that_none_loses_an_event(protocol: Protocol) {
    let mut losses_of = Vec::new();
    for kind in Kind::ALL {
        for before in [Before::AllReady, Before::AYield] {
            losses_of.push((kind, before, losses(protocol, kind, before).await));
        }
    }
    assert!(losses_of.iter().all(|&(.., lost)| lost == 0), "lost, of {TRANSFERS} transfers each: {losses_of:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn error_breaks_http_1_1_transfer_after_all_events() {
    assert_that_none_loses_an_event(Protocol::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn error_resets_http_2_stream_after_all_events() {
    assert_that_none_loses_an_event(Protocol::Http2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn long_replay_arrives_before_error() {
    const EVENTS: usize = 300;
    for kind in Kind::ALL {
        let handler = move || async move {
            let events =
                tokio_stream::iter(0..EVENTS).map(|n| Event::display(format_args!("{n} {}", "x".repeat(1_000))));
            let events = events.map(Ok).chain(tokio_stream::once(Err(io::Error::other("broken"))));
            match kind {
                Kind::Ours => SseStream::new(events).into_http_response().map(Body::new),
                Kind::Upstream => upstream(Body::from_stream(events.map(|event| event.map(|event| event.encode())))),
            }
        };
        let server = serve(Router::new().route("/", get(handler)).layer(SseLayer::new())).await;
        for protocol in Protocol::ALL {
            let transfer = async |_| {
                let mut answer = protocol.get(server.address, "/", &[]).await;
                assert!(answer.end().await.is_err());
                answer.data().len()
            };
            let transfers = futures_util::stream::iter((0..20).map(transfer)).buffer_unordered(4);
            let events: Vec<_> = transfers.collect().await;
            assert_eq!(events, [EVENTS; 20], "{protocol:?} {kind:?}");
        }
    }
}

#[tokio::test]
async fn on_error_event_ends_stream_cleanly() {
    let handler = async || {
        let events = tokio_stream::iter([Ok(Event::new("one")), Err(io::Error::other("model gone"))]);
        SseStream::new(events).on_error(|error| Some(Event::display(error).event("error")))
    };
    let app = Router::new().route("/", get(handler));
    for app in [app.clone(), app.layer(SseLayer::new())] {
        let server = serve(app).await;
        for protocol in Protocol::ALL {
            let answer = protocol.get(server.address, "/", &[]).await.complete().await;
            assert_eq!(answer.text(), "data: one\n\nevent: error\ndata: model gone\n\n");
        }
    }
}
