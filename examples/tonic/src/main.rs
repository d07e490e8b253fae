//! gRPC and an event stream on one port. gRPC clients and a page both watch the health of some
//! services.
//!
//! ```console
//! $ cargo run -p example-tonic                                     # http://127.0.0.1:3000
//! $ cargo run -p example-tonic 127.0.0.1:0                         # any free port
//! $ cargo run -p example-tonic 127.0.0.1:3000 watch payments       # a gRPC client of that server
//! ```
//!
//! Start the gRPC client, open the page, and press its buttons: both show the same changes.
//! Browsers use HTTP/1.1, and gRPC clients use HTTP/2, on the same port. Another gRPC client is
//! `grpc_health_probe -addr=127.0.0.1:3000 -service=payments`.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::Html,
    routing::{get, put},
};
use std::{env, process::ExitCode, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt, StreamMap};
use tonic::{Request, service::Routes, transport::Endpoint};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_client::HealthClient,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};
use tower_sse::{BoxError, Event, SseLayer, SseStream};

const SERVICES: [&str; 3] = ["payments", "inventory", "search"];

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        [] => serve("127.0.0.1:3000").await,
        [address] => serve(address).await,
        [address, "watch", service] => watch(address, service).await,
        _ => Err("usage: tonic [ADDRESS], or tonic ADDRESS watch SERVICE".into()),
    };
    if let Err(error) = result {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn serve(address: &str) -> Result<(), BoxError> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let address = listener.local_addr()?;
    println!("Open http://{address} in a browser, and watch a service through gRPC:");
    println!("  cargo run -p example-tonic {address} watch {}", SERVICES[0]);

    let health = HealthReporter::new();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let pages = Router::new()
        .route("/", get(Html(include_str!("../tonic.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("../../reconnect.js"))))
        .route("/events", get(events))
        .route("/services/{name}", put(set))
        .with_state(health.clone());
    let calls = Routes::new(HealthServer::new(HealthService::from_health_reporter(health)));
    // The layer is around both routers. gRPC calls pass it unchanged, with their trailers.
    let app = calls.into_axum_router().merge(pages).layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(tower_sse::serve(listener, app).await?)
}

/// Streams what a gRPC client gets from `Watch`, for all services: the current status, and then
/// each change.
///
/// The events have no ids, because a client that reconnects needs only the current status.
async fn events(
    State(health): State<HealthReporter>,
) -> Result<SseStream<impl Stream<Item = Result<Event, BoxError>>>, StatusCode> {
    let health = HealthService::from_health_reporter(health);
    let mut watched = StreamMap::new();
    for service in SERVICES {
        let request = Request::new(HealthCheckRequest { service: service.into() });
        let response = health.watch(request).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        watched.insert(service, response.into_inner());
    }
    Ok(SseStream::new(watched.map(|(service, changed)| {
        let change = serde_json::json!({ "service": service, "status": name(&changed?) });
        Ok(Event::json(&change)?.event("health"))
    })))
}

#[derive(serde::Deserialize)]
struct Change {
    serving: bool,
}

/// Sets the status of a service, for gRPC clients and pages.
async fn set(
    State(health): State<HealthReporter>,
    Path(service): Path<String>,
    Json(change): Json<Change>,
) -> Result<StatusCode, (StatusCode, String)> {
    if !SERVICES.contains(&&*service) {
        let reason = format!("there is no service {service:?}: choose from {}", SERVICES.join(", "));
        return Err((StatusCode::NOT_FOUND, reason));
    }
    let status = if change.serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status(service, status).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Prints each change of a service, as a gRPC client.
async fn watch(address: &str, service: &str) -> Result<(), BoxError> {
    let mut client = HealthClient::new(Endpoint::new(format!("http://{address}"))?.connect().await?);
    let mut changes = client.watch(HealthCheckRequest { service: service.into() }).await?.into_inner();
    while let Some(change) = changes.message().await? {
        println!("{service}: {}", name(&change));
    }
    Ok(())
}

/// Returns the name in the protocol: `SERVING` or `NOT_SERVING`.
fn name(change: &HealthCheckResponse) -> &'static str {
    change.status().as_str_name()
}
