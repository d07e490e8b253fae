//! Several nodes with one log in Redis, NATS or Postgres. An event that is published on one node
//! arrives on all nodes, and a client can resume on any node.
//!
//! ```console
//! $ cargo run -p example-cluster -- --redis redis://127.0.0.1:6379
//! $ cargo run -p example-cluster -- --nats nats://127.0.0.1:4222
//! $ cargo run -p example-cluster -- --postgres postgres://me:secret@127.0.0.1/shop
//! ```
//!
//! This starts two nodes, at 127.0.0.1:3000 and 127.0.0.1:3001. Each node has its own hub, as two
//! processes would. Open the page of one node, and stop the node on the page. The page reconnects
//! to the other node, and receives the events that were published in between. Restart Redis or
//! NATS, too.
//!
//! A job runs on one node, and its events can be read on every node. If the process of the node is
//! killed, another node ends the job:
//!
//! ```console
//! $ curl --data copy http://127.0.0.1:3000/jobs
//! $ curl -N http://127.0.0.1:3001/jobs/copy
//! ```
//!
//! A client can be a member of a room. All nodes have the same members, and the room gets an event
//! when one joins or leaves:
//!
//! ```console
//! $ curl -N 'http://127.0.0.1:3000/rooms/lobby?member=anna'
//! $ curl http://127.0.0.1:3001/rooms/lobby/members
//! ```
//!
//! With addresses, the program starts a node at each of them. `--others` names the nodes of other
//! processes, for the page:
//!
//! ```console
//! $ cargo run -p example-cluster -- --redis redis://127.0.0.1 127.0.0.1:3000 --others 127.0.0.1:3001
//! $ cargo run -p example-cluster -- --redis redis://127.0.0.1 127.0.0.1:3001 --others 127.0.0.1:3000
//! ```

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{ErrorResponse, Html, Result},
    routing::{get, post},
};
use serde::Deserialize;
use std::{env, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tower_http::cors::CorsLayer;
use tower_sse::{
    BoxError, Event, Heartbeat, LastEventId, SseLayer, SseStream,
    hub::{Hub, Presence, Recording, Start, Subscription},
};

const USAGE: &str = "Give the URL of the log: --redis redis://127.0.0.1:6379, --nats nats://127.0.0.1:4222, \
     or --postgres postgres://user:password@127.0.0.1/database";
/// The downtime of a stopped node.
const DOWNTIME: Duration = Duration::from_secs(5);
/// The time after which another node ends the jobs of a node that was killed, and its members begin
/// to leave. The default is longer.
const LEASE: Duration = Duration::from_secs(2);
/// The time for a member to reconnect. The default is longer.
const GRACE: Duration = Duration::from_secs(1);
/// The number of steps of a job, and the time for each.
const STEPS: u32 = 1000;
const STEP: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = run(env::args().skip(1).collect()).await {
        eprintln!("{error}");
        let mut source = error.source();
        while let Some(error) = source {
            eprintln!("  {error}");
            source = error.source();
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(args: Vec<String>) -> Result<(), BoxError> {
    let [backend, url, addresses @ ..] = &args[..] else { return Err(USAGE.into()) };
    let mut parts = addresses.splitn(2, |arg| arg == "--others");
    let (own, others) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let default = ["127.0.0.1:3000".to_owned(), "127.0.0.1:3001".to_owned()];
    let own = if own.is_empty() { &default } else { own };
    let mut listeners = Vec::new();
    for address in own {
        listeners.push(TcpListener::bind(address).await.map_err(|error| {
            format!(
                "cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port"
            )
        })?);
    }
    let mut nodes = Vec::new();
    for listener in &listeners {
        nodes.push(listener.local_addr()?);
    }
    for other in others {
        nodes.push(other.parse().map_err(|error| format!("invalid address of a node {other:?}: {error}"))?);
    }
    let nodes: Arc<[_]> = nodes.into();
    let mut servers = JoinSet::new();
    for listener in listeners {
        let builder = Hub::builder().max_events(1000).presence_lease(LEASE).presence_grace(GRACE).presence_events(
            |_room, change| match change {
                Presence::Joined { member, .. } => Some(Event::new(member).event("joined")),
                Presence::Left { member, .. } => Some(Event::new(member).event("left")),
                _ => None,
            },
        );
        let hub = match &**backend {
            "--redis" => builder.redis(url).connect().await?,
            "--nats" => builder.nats(url).connect().await?,
            "--postgres" => builder.postgres(url).connect().await?,
            _ => return Err(USAGE.into()),
        };
        println!("Open http://{} in a browser", listener.local_addr()?);
        servers.spawn(serve(listener, hub, nodes.clone()));
    }
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

#[derive(Clone)]
struct Node {
    hub: Hub,
    /// The addresses of all nodes, for the page.
    nodes: Arc<[SocketAddr]>,
    stop: CancellationToken,
}

/// Serves until the node is stopped, and again after the downtime, as a process manager would.
async fn serve(mut listener: TcpListener, hub: Hub, nodes: Arc<[SocketAddr]>) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    loop {
        let stop = CancellationToken::new();
        let streams = SseLayer::new()
            .retry(Duration::from_millis(500))
            .heartbeat(Heartbeat::every(Duration::from_secs(5)))
            .shutdown(stop.clone());
        let app = Router::new()
            .route("/", get(Html(include_str!("../cluster.html"))))
            .route("/nodes", get(async |State(node): State<Node>| Json(node.nodes.to_vec())))
            .route("/events", get(events))
            .route("/publish", post(publish))
            .route("/jobs", post(start_jobs))
            .route("/jobs/{name}", get(job))
            .route("/rooms/{room}", get(room))
            .route("/rooms/{room}/members", get(members))
            .route("/stop", post(async |State(node): State<Node>| node.stop.cancel()))
            .with_state(Node { hub: hub.clone(), nodes: nodes.clone(), stop: stop.clone() })
            // The page of one node reconnects to the other node, which is another origin.
            .layer(CorsLayer::permissive())
            .layer(streams);
        tower_sse::serve(listener, app).with_graceful_shutdown(stop).await?;
        sleep(DOWNTIME).await;
        listener = TcpListener::bind(address).await?;
    }
}

/// Streams the events of all nodes. An outage of the log delays events, and loses none.
async fn events(State(node): State<Node>, last: LastEventId) -> Result<SseStream<Subscription>> {
    Ok(SseStream::new(node.hub.topic("news").subscribe(last).await?))
}

/// Publishes each line as an event, in one batch. Returns the id of the last event when the log has
/// stored the batch, and an error if it may not have.
async fn publish(State(node): State<Node>, lines: String) -> Result<String, ErrorResponse> {
    let id = node.hub.topic("news").publish_all(lines.lines().map(Event::new)).await?;
    Ok(id.ok_or((StatusCode::BAD_REQUEST, "nothing to publish: the body is empty"))?.to_string())
}

/// Starts a job for each line of the body, which is its name. The jobs run on this node. After the
/// response, another node ends the jobs if this node dies.
async fn start_jobs(State(node): State<Node>, names: String) -> Result<(), ErrorResponse> {
    let start = |name: &str| {
        let steps = tokio_stream::iter(0..STEPS).throttle(STEP);
        node.hub
            .topic(format!("jobs/{name}"))
            .record(steps.map(|step| Event::display(step).event("step")))
            .end_with(Event::default().event("done"))
            .will(Event::default().event("interrupted"))
            .lease(LEASE)
            .start()
    };
    let jobs: Vec<_> = names.lines().map(start).collect();
    for job in &jobs {
        if let Err(error) = job.announced().await {
            // The client has to send its request again.
            jobs.iter().for_each(Recording::stop);
            return Err(error.into());
        }
    }
    Ok(())
}

/// Streams the events of a job, which may run on another node.
async fn job(
    State(node): State<Node>,
    Path(name): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, ErrorResponse> {
    let job = node.hub.topic(format!("jobs/{name}"));
    // This node may not have read the events of the job yet, or may not retain them any more. The
    // first event of a job that has just started may not be in the log yet, and a 404 ends an
    // `EventSource` for good.
    let deadline = Instant::now() + Duration::from_secs(1);
    while !job.exists_in_log().await? {
        if Instant::now() >= deadline {
            return Err((StatusCode::NOT_FOUND, "there is no such job, or it has expired").into());
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(SseStream::new(job.subscribe(last.or(Start::Earliest)).await?))
}

#[derive(Deserialize)]
struct Member {
    member: String,
}

/// Streams the events of a room. The client is a member of the room as long as it reads them.
async fn room(
    State(node): State<Node>,
    Path(room): Path<String>,
    Query(Member { member }): Query<Member>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, ErrorResponse> {
    let room = node.hub.topic(format!("rooms/{room}"));
    Ok(SseStream::new(room.join(member, room.subscribe(last.or(Start::Earliest)).await?)?))
}

/// Returns the members of a room on all nodes.
async fn members(State(node): State<Node>, Path(room): Path<String>) -> Result<Json<Vec<Arc<str>>>, ErrorResponse> {
    Ok(Json(node.hub.topic(format!("rooms/{room}")).members().await?))
}
