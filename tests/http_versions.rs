//! Event streams on real connections: the bytes that HTTP/1.0, HTTP/1.1 and HTTP/2 clients receive.

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{Stream, StreamExt};
use http::{
    HeaderMap, Request, StatusCode, Version,
    header::{self, CACHE_CONTROL},
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use support::{
    client::{Answer, Http1, Http2, Protocol, within},
    script::Script,
    server,
};
// In `over_serve`, this is the server of the crate.
use crate::server::{Incoming, serve};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedSender, unbounded_channel},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_sse::{Event, SseLayer, SseStream, StopReconnecting};

/// The source of the event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Upstream,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Ours, Self::Upstream];

    fn response(self, events: impl Stream<Item = Event> + Send + 'static) -> Response {
        match self {
            Self::Ours => SseStream::new(events).into_http_response().map(Body::new),
            Self::Upstream => upstream(Body::from_stream(events.map(|event| Ok::<_, Infallible>(event.encode())))),
        }
    }
}

fn upstream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Returns an app with a stream of two events at `/two`, from either source.
fn two_events(kind: Kind) -> Router {
    let two = move || async move { kind.response(tokio_stream::iter([Event::new("one"), Event::new("two")])) };
    Router::new().route("/two", get(two)).layer(SseLayer::new())
}

/// Returns an app with a stream of the sent items at `/live`, for one request.
fn live(kind: Kind) -> (UnboundedSender<Event>, Router) {
    let (sender, receiver) = unbounded_channel();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let handler = move || async move {
        let receiver = receiver.lock().unwrap().take().expect("one request");
        kind.response(UnboundedReceiverStream::new(receiver))
    };
    (sender, Router::new().route("/live", get(handler)).layer(SseLayer::new()))
}

async fn axum_serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Returns all headers except the date, sorted by name, each with all its values.
fn all_but_the_date(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut all: Vec<_> = headers
        .iter()
        .filter(|(name, _)| *name != header::DATE)
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    all.sort();
    all
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn http_1_1_client_gets_event_stream_headers() {
    for kind in Kind::ALL {
        let bare = serve(two_events(kind)).await;
        for address in [axum_serve(two_events(kind)).await, bare.address] {
            let answer = Protocol::Http1.get(address, "/two", &[]).await;
            assert_eq!((answer.version, answer.status), (Version::HTTP_11, StatusCode::OK));
            assert_eq!(
                all_but_the_date(&answer.headers),
                owned(&[
                    ("cache-control", "no-cache, no-transform"),
                    ("connection", "keep-alive"),
                    ("content-type", "text/event-stream"),
                    ("transfer-encoding", "chunked"),
                    ("x-accel-buffering", "no"),
                ]),
                "{kind:?}"
            );
            assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
        }
    }
}

#[tokio::test]
async fn an_http_2_client_gets_no_connection_header() {
    for kind in Kind::ALL {
        let bare = serve(two_events(kind)).await;
        for address in [axum_serve(two_events(kind)).await, bare.address] {
            let answer = Protocol::Http2.get(address, "/two", &[]).await;
            assert_eq!((answer.version, answer.status), (Version::HTTP_2, StatusCode::OK));
            assert_eq!(
                all_but_the_date(&answer.headers),
                owned(&[
                    ("cache-control", "no-cache, no-transform"),
                    ("content-type", "text/event-stream"),
                    ("x-accel-buffering", "no"),
                ]),
                "{kind:?}"
            );
            assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
        }
    }
}

#[tokio::test]
async fn each_event_arrives_when_it_is_sent() {
    for (protocol, kind) in Protocol::ALL.into_iter().flat_map(|p| Kind::ALL.map(|kind| (p, kind))) {
        let (events, app) = live(kind);
        let address = axum_serve(app).await;
        let mut answer = protocol.get(address, "/live", &[]).await;
        for n in 1..=20 {
            events.send(Event::display(n)).unwrap();
            // The next event is sent when this one has arrived. A server that waits for more would
            // wait for ever.
            answer.read_until(format!("data: {n}\n\n")).await;
        }
        drop(events);
        assert_eq!(answer.complete().await.data().len(), 20, "{protocol:?} {kind:?}");
    }
}

#[tokio::test]
async fn http_1_1_connection_is_reused_after_stream() {
    for kind in Kind::ALL {
        let server = serve(two_events(kind)).await;
        let mut connection = Http1::connect(server.address).await;
        for _ in 0..3 {
            let answer = connection.request("GET /two HTTP/1.1\r\nHost: localhost\r\n\r\n").await.complete().await;
            assert_eq!(answer.data(), ["one", "two"]);
            connection = answer.into_connection();
        }
    }
}

#[tokio::test]
async fn http_1_1_client_can_ask_to_close() {
    for kind in Kind::ALL {
        let server = serve(two_events(kind)).await;
        let request = "GET /two HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n";
        let answer = Http1::connect(server.address).await.request(request).await.complete().await;
        assert_eq!(answer.headers[header::CONNECTION], "close");
        assert_eq!(answer.data(), ["one", "two"]);
        assert!(answer.into_connection().is_closed().await, "{kind:?}");
    }
}

/// Requests without and with the header to keep the connection.
const HTTP_1_0: [&str; 2] = ["GET /two HTTP/1.0\r\n\r\n", "GET /two HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"];

#[tokio::test]
async fn http_1_0_client_reads_every_event_until_close() {
    for (request, kind) in HTTP_1_0.into_iter().flat_map(|request| Kind::ALL.map(|kind| (request, kind))) {
        let bare = serve(two_events(kind)).await;
        for address in [axum_serve(two_events(kind)).await, bare.address] {
            let answer = Http1::connect(address).await.request(request).await;
            assert_eq!((answer.version, answer.status), (Version::HTTP_10, StatusCode::OK));
            assert!(!answer.headers.contains_key(header::TRANSFER_ENCODING), "there is no chunked in HTTP/1.0");
            assert!(!answer.headers.contains_key(header::CONTENT_LENGTH));
            // Without a length, only the close of the connection ends the body.
            let answer = answer.complete().await;
            assert_eq!(answer.text(), "data: one\n\ndata: two\n\n", "{kind:?}");
        }
    }
}

#[tokio::test]
async fn http_1_0_client_gets_no_keep_alive() {
    for kind in Kind::ALL {
        let server = serve(two_events(kind)).await;
        // hyper itself answers `keep-alive` to a client that asks for it, before it closes. The
        // layer is not involved.
        let [request, _] = HTTP_1_0;
        let answer = Http1::connect(server.address).await.request(request).await;
        assert_eq!(answer.headers.get(header::CONNECTION), None);
        assert!(answer.complete().await.into_connection().is_closed().await, "{kind:?}");
    }
}

#[tokio::test]
async fn many_streams_share_an_http_2_connection() {
    const STREAMS: usize = 100;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..STREAMS).map(|_| unbounded_channel()).unzip();
    let receivers = Arc::new(Mutex::new(receivers.into_iter().map(Some).collect::<Vec<_>>()));
    let handler = move |axum::extract::Path(n): axum::extract::Path<usize>| async move {
        let receiver = receivers.lock().unwrap()[n].take().expect("one request each");
        let kind = if n % 2 == 0 { Kind::Ours } else { Kind::Upstream };
        kind.response(UnboundedReceiverStream::new(receiver))
    };
    let server = serve(Router::new().route("/{n}", get(handler)).layer(SseLayer::new())).await;
    let connection = Http2::connect(server.address).await;

    let mut answers: Vec<Answer> = Vec::new();
    for n in 0..STREAMS {
        answers.push(connection.get(&format!("/{n}"), &[]).await);
    }
    for round in 0..3 {
        for (n, sender) in senders.iter().enumerate() {
            sender.send(Event::display(format_args!("{n} {round}"))).unwrap();
        }
        for (n, answer) in answers.iter_mut().enumerate() {
            answer.read_until(format!("data: {n} {round}\n\n")).await;
        }
    }
    drop(senders);
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.complete().await.data(), [0, 1, 2].map(|round| format!("{n} {round}")));
    }
}

#[tokio::test]
async fn head_response_is_unchanged_by_layer() {
    for kind in Kind::ALL {
        let stream = move || async move { kind.response(tokio_stream::pending()) };
        let app = Router::new().route("/", get(stream));
        let plain = serve(app.clone()).await;
        let layered = serve(app.layer(SseLayer::new())).await;
        // The route removes the body of the response of a `get` handler, inside of this layer.
        let inside = serve(Router::new().route("/", get(stream).layer(SseLayer::new()))).await;

        let mut heads = Vec::new();
        for address in [plain.address, layered.address, inside.address] {
            let request = "HEAD / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
            let answer = Http1::connect(address).await.request(request).await;
            heads.push((answer.status, all_but_the_date(&answer.headers)));
            // A body would be read as the next response.
            let again = answer.complete().await.into_connection().request(request).await;
            assert_eq!(again.status, StatusCode::OK);
        }
        assert_eq!(heads[0], heads[1], "{kind:?}");
        assert_eq!(heads[0], heads[2], "{kind:?}");
    }
}

#[tokio::test]
async fn stop_reconnecting_is_204_without_a_body() {
    let app = Router::new().route("/", get(async || StopReconnecting));
    let axums_own = get(async || (StatusCode::NO_CONTENT, [(CACHE_CONTROL, "no-store")]));
    let axums_own = serve(Router::new().route("/", axums_own)).await;
    for app in [app.clone(), app.layer(SseLayer::new())] {
        let server = serve(app).await;
        for protocol in Protocol::ALL {
            let headers = [("accept", "text/event-stream")];
            let answer = protocol.get(server.address, "/", &headers).await;
            assert_eq!(answer.status, StatusCode::NO_CONTENT);
            // axum adds `content-length: 0` to it over HTTP/2.
            let plain = protocol.get(axums_own.address, "/", &headers).await;
            assert_eq!(all_but_the_date(&answer.headers), all_but_the_date(&plain.headers), "{protocol:?}");
            assert_eq!(answer.complete().await.text(), "");
        }
    }
    let without_axum =
        service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(StopReconnecting.into_http_response()));
    let server = serve(SseLayer::new().layer(without_axum)).await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/", &[]).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let headers = all_but_the_date(&answer.headers);
        assert!(headers.len() == 1 && answer.headers[CACHE_CONTROL] == "no-store", "{protocol:?}: {headers:?}");
        assert_eq!(answer.complete().await.text(), "");
    }
}

#[tokio::test]
async fn http_1_1_connection_is_reused_after_stop_reconnecting() {
    let app = Router::new().route("/", get(async || StopReconnecting)).layer(SseLayer::new());
    let server = serve(app).await;
    let mut connection = Http1::connect(server.address).await;
    for _ in 0..3 {
        let answer = connection.request("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        connection = answer.into_connection();
    }
}

#[tokio::test]
async fn a_plain_tower_service_needs_no_axum() {
    let ours = service_fn(async |_: Request<Incoming>| {
        Ok::<_, Infallible>(
            SseStream::new(tokio_stream::iter([Event::new("one"), Event::new("two")])).into_http_response(),
        )
    });
    let server = serve(ServiceBuilder::new().layer(SseLayer::new()).service(ours)).await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/", &[]).await;
        assert_eq!(answer.headers.contains_key(header::CONNECTION), protocol == Protocol::Http1);
        assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
    }

    let upstream = service_fn(async |_: Request<Incoming>| {
        let response = http::Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
        Ok::<_, Infallible>(response.body(Script::of_chunks(["data: o", "ne\n\ndata: two\n\n"])).unwrap())
    });
    let server = serve(ServiceBuilder::new().layer(SseLayer::new()).service(upstream)).await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/", &[]).await;
        assert_eq!(answer.headers["x-accel-buffering"], "no");
        assert_eq!(answer.complete().await.text(), "data: one\n\ndata: two\n\n");
    }
}

#[tokio::test]
async fn disconnect_drops_stream_at_once() {
    for (protocol, kind) in Protocol::ALL.into_iter().flat_map(|p| Kind::ALL.map(|kind| (p, kind))) {
        let (events, app) = live(kind);
        // No heartbeat is sent meanwhile: the server notices the close, not a failed write.
        let server = serve(app).await;
        let mut answer = protocol.get(server.address, "/live", &[]).await;
        events.send(Event::new("one")).unwrap();
        answer.read_until("data: one\n\n").await;
        drop(answer);
        within(&format!("the handler's stream to be dropped ({protocol:?}, {kind:?})"), events.closed()).await;
    }
}

#[tokio::test]
async fn http_2_reset_drops_only_its_stream() {
    for kind in Kind::ALL {
        let (gone, gone_app) = live(kind);
        let (stays, stays_app) = live(kind);
        let server = serve(Router::new().nest("/gone", gone_app).nest("/stays", stays_app)).await;
        let connection = Http2::connect(server.address).await;
        let mut gone_answer = connection.get("/gone/live", &[]).await;
        let mut stays_answer = connection.get("/stays/live", &[]).await;
        for (sender, answer) in [(&gone, &mut gone_answer), (&stays, &mut stays_answer)] {
            sender.send(Event::new("one")).unwrap();
            answer.read_until("data: one\n\n").await;
        }
        drop(gone_answer);
        within("the stream that was reset to be dropped", gone.closed()).await;
        stays.send(Event::new("two")).unwrap();
        stays_answer.read_until("data: two\n\n").await;
    }
}

#[tokio::test]
async fn disconnect_before_first_event_drops_stream() {
    for (protocol, kind) in Protocol::ALL.into_iter().flat_map(|p| Kind::ALL.map(|kind| (p, kind))) {
        let (events, app) = live(kind);
        let server = serve(app).await;
        drop(protocol.get(server.address, "/live", &[]).await);
        within(&format!("the handler's stream to be dropped ({protocol:?}, {kind:?})"), events.closed()).await;
    }
}
