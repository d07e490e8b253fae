//! gRPC and event streams on one port, under one layer. The calls are the same bytes as without the
//! layer.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use http::{HeaderMap, Method, StatusCode, header};
use std::{net::SocketAddr, time::Duration};
use support::{
    client::{Answer, Http2, Protocol, within},
    script::{Script, Step},
    server::serve,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower_sse::{Event, Heartbeat, SseLayer, SseStream};

/// The service that `Watch` requests.
const WATCHED: &str = "watched";

fn layer() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_millis(50)))
}

/// Returns the health service of tonic, and silent event streams at `/ours` and `/upstream`.
fn routes(health: &HealthReporter) -> Routes {
    let ours = async || SseStream::new(tokio_stream::pending::<Event>());
    let upstream =
        async || ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(Script::new([Step::Hang]))).into_response();
    let events = Router::new().route("/ours", get(ours)).route("/upstream", get(upstream));
    let health = HealthService::from_health_reporter(health.clone());
    Routes::from(events).add_service(HealthServer::new(health))
}

/// A message with its length prefix.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A `HealthCheckRequest`: field 1 is the name of the service.
fn health_check_request(service: &str) -> Vec<u8> {
    message(&[&[0x0A, u8::try_from(service.len()).unwrap()], service.as_bytes()].concat())
}

/// A `HealthCheckResponse`: field 1 is the status.
fn health_check_response(status: ServingStatus) -> Vec<u8> {
    message(&[0x08, status as u8])
}

async fn call(connection: &Http2, method: &str, service: &str) -> Answer {
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let path = format!("/grpc.health.v1.Health/{method}");
    connection.request(Method::POST, &path, &headers, health_check_request(service)).await.expect("a response")
}

/// Returns the whole response except its date.
#[derive(Debug, PartialEq, Eq)]
struct Bytes {
    status: StatusCode,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<Vec<(String, Vec<u8>)>>,
}

impl Bytes {
    async fn of(answer: Answer) -> Self {
        let answer = answer.complete().await;
        Self {
            status: answer.status,
            headers: sorted(&answer.headers),
            trailers: answer.trailers.as_ref().map(sorted),
            body: answer.body,
        }
    }

    fn trailer(&self, name: &str) -> Option<&str> {
        let (_, value) = self.trailers.iter().flatten().find(|(trailer, _)| trailer == name)?;
        std::str::from_utf8(value).ok()
    }
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let fields = headers.iter().filter(|(name, _)| *name != header::DATE);
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    fields.sort();
    fields
}

/// Returns the responses to all kinds of calls: unary, failing, unknown method, and streaming.
///
/// The heartbeats of another server measure the time.
async fn calls(address: SocketAddr, clock: SocketAddr, health: &mut HealthReporter) -> Vec<Bytes> {
    health.set_service_status(WATCHED, ServingStatus::Serving).await;
    let connection = Http2::connect(address).await;
    let mut answers = vec![
        Bytes::of(call(&connection, "Check", WATCHED).await).await,
        Bytes::of(call(&connection, "Check", "nobody").await).await,
        Bytes::of(call(&connection, "NoSuchMethod", WATCHED).await).await,
    ];

    let mut watch = call(&connection, "Watch", WATCHED).await;
    let mut expected = health_check_response(ServingStatus::Serving);
    watch.read_until(&expected).await;
    // It is silent for three heartbeat intervals, so it would contain heartbeats if the layer sent
    // them.
    Protocol::Http2.get(clock, "/ours", &[]).await.read_until(":\n:\n:\n:\n").await;
    health.set_service_status(WATCHED, ServingStatus::NotServing).await;
    expected.extend(health_check_response(ServingStatus::NotServing));
    watch.read_until(&expected).await;
    health.clear_service_status(WATCHED).await;
    answers.push(Bytes::of(watch).await);
    answers
}

async fn assert_calls_are_unchanged(plain: SocketAddr, layered: SocketAddr, health: &mut HealthReporter) {
    let with = within("the calls with the layer", calls(layered, layered, health)).await;
    let without = within("the calls without the layer", calls(plain, layered, health)).await;
    assert_eq!(with, without);

    let [check, unknown, no_method, watch] = &with[..] else { panic!("four calls") };
    assert_eq!(check.body, health_check_response(ServingStatus::Serving));
    assert_eq!(check.trailer("grpc-status"), Some("0"));
    // A response of trailers only has them in its head.
    for (answer, status) in [(unknown, "5"), (no_method, "12")] {
        assert!(answer.headers.contains(&("grpc-status".to_owned(), status.into())), "{answer:?}");
    }
    assert!(watch.body.starts_with(&health_check_response(ServingStatus::Serving)));
    assert_eq!(watch.trailer("grpc-status"), Some("0"));
}

/// Calls and streams at the same time, and on the same connection.
async fn assert_event_streams_have_heartbeats(address: SocketAddr, protocols: &[Protocol]) {
    for protocol in protocols {
        for path in ["/ours", "/upstream"] {
            let mut answer = protocol.get(address, path, &[]).await;
            assert_eq!(answer.headers[header::CACHE_CONTROL], "no-cache, no-transform");
            answer.read_until(":\n:\n:\n:\n").await;
        }
    }

    let connection = Http2::connect(address).await;
    let mut events = connection.get("/upstream", &[]).await;
    events.read_until(":\n").await;
    let check = Bytes::of(call(&connection, "Check", "").await).await;
    assert_eq!(check.trailer("grpc-status"), Some("0"));
    events.read_until(":\n:\n:\n").await;
}

/// The server of tonic itself.
async fn incoming() -> (SocketAddr, TcpListenerStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), TcpListenerStream::new(listener))
}

#[tokio::test]
async fn layer_of_tonic_server_keeps_calls_unchanged() {
    let mut health = HealthReporter::new();
    let (plain, sockets) = incoming().await;
    let mut server = tonic::transport::Server::builder();
    tokio::spawn(server.add_routes(routes(&health)).serve_with_incoming(sockets));
    let (layered, sockets) = incoming().await;
    let mut server = tonic::transport::Server::builder().layer(layer());
    tokio::spawn(server.add_routes(routes(&health)).serve_with_incoming(sockets));

    assert_calls_are_unchanged(plain, layered, &mut health).await;
    // HTTP/1 is off by default there.
    assert_event_streams_have_heartbeats(layered, &[Protocol::Http2]).await;
}

#[tokio::test]
async fn layer_of_axum_router_keeps_calls_unchanged() {
    let mut health = HealthReporter::new();
    let plain = serve(routes(&health).into_axum_router()).await;
    let layered = serve(routes(&health).into_axum_router().layer(layer())).await;

    assert_calls_are_unchanged(plain.address, layered.address, &mut health).await;
    assert_event_streams_have_heartbeats(layered.address, &Protocol::ALL).await;
}
