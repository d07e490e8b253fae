//! gRPC and an event stream on one port: the health of some services, as gRPC clients watch it, and as a page does.
//!
//! ```console
//! $ cargo run --example tonic                                     # http://127.0.0.1:3000
//! $ cargo run --example tonic 127.0.0.1:0                         # any free port
//! $ cargo run --example tonic 127.0.0.1:3000 watch payments       # a gRPC client of that server
//! ```
//!
//! Let the client watch, open the page, and press its buttons: both are told of the same changes. Browsers come by
//! HTTP/1.1, gRPC clients by HTTP/2, to the same address. Another client for it is
//! `grpc_health_probe -addr=127.0.0.1:3000 -service=payments`.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
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
    let ran = match args[..] {
        [] => serve("127.0.0.1:3000").await,
        [address] => serve(address).await,
        [address, "watch", service] => watch(address, service).await,
        _ => Err("Give an address to listen on, or one of such a server, `watch` and the name of a service".into()),
    };
    if let Err(error) = ran {
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
    println!("Open http://{address} in a browser, and watch a service by gRPC:");
    println!("  cargo run --example tonic {address} watch {}", SERVICES[0]);

    let health = HealthReporter::new();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let pages = Router::new()
        .route("/", get(Html(include_str!("tonic.html"))))
        .route("/events", get(events))
        .route("/services/{name}", put(set))
        .with_state(health.clone());
    let calls = Routes::new(HealthServer::new(HealthService::from_health_reporter(health)));
    // Around both. Calls pass it as they are, with their trailers: only event streams are its business.
    let app = calls.into_axum_router().merge(pages).layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(axum::serve(listener, app).await?)
}

/// What a gRPC client gets from `Watch`, of all services at once: how they are, and then each change. It is a state and
/// has no history: who comes back is told how it is now, and of what was in between nothing is needed. So there are no
/// ids.
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

/// Changes the one state that both are told of.
async fn set(
    State(health): State<HealthReporter>,
    Path(service): Path<String>,
    Json(change): Json<Change>,
) -> Result<StatusCode, (StatusCode, String)> {
    if !SERVICES.contains(&&*service) {
        let why = format!("there is no service {service:?}, but {}", SERVICES.join(", "));
        return Err((StatusCode::NOT_FOUND, why));
    }
    let status = if change.serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status(service, status).await;
    Ok(StatusCode::NO_CONTENT)
}

/// As a gRPC client of such a server: prints each change, until it is stopped.
async fn watch(address: &str, service: &str) -> Result<(), BoxError> {
    let mut client = HealthClient::new(Endpoint::new(format!("http://{address}"))?.connect().await?);
    let mut changes = client.watch(HealthCheckRequest { service: service.into() }).await?.into_inner();
    while let Some(change) = changes.message().await? {
        println!("{service}: {}", name(&change));
    }
    Ok(())
}

/// As it is in the protocol: `SERVING`, `NOT_SERVING`.
fn name(change: &HealthCheckResponse) -> &'static str {
    change.status().as_str_name()
}
