//! A chat with several rooms over one connection, presence, and replay after a lost connection.
//!
//! ```console
//! $ cargo run --features serve --example chat                        # http://127.0.0.1:3000
//! $ cargo run --features serve --example chat 127.0.0.1:0            # any free port
//! ```
//!
//! Open the page in two windows. Cut the network of one window while you write in the other, or
//! restart the server. `/?rooms=lobby,rust` shows only two of the rooms.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{ErrorResponse, Html},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    env,
    process::ExitCode,
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;
use tokio_stream::StreamMap;
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{Hub, Start, Subscription},
};

const ROOMS: [&str; 4] = ["lobby", "rust", "music", "random"];
/// Limits, in characters.
const MAX_NAME_LENGTH: usize = 32;
const MAX_TEXT_LENGTH: usize = 500;

/// The topic for the number of subscribers in each room.
const PRESENCE: &str = "presence";

#[tokio::main]
async fn main() -> ExitCode {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    if let Err(error) = run(&address).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str) -> Result<(), BoxError> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in two windows, or read the wire:\n  curl -N '{url}/events?rooms=lobby,rust'");

    // Each room retains its last 500 messages, for up to an hour.
    let hub = Hub::builder().max_events(500).max_age(Duration::from_secs(60 * 60)).build();
    let app = Router::new()
        .route("/", get(Html(include_str!("chat.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("reconnect.js"))))
        .route("/events", get(events))
        .route("/messages", post(send))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(hub.clone())
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    tokio::select! {
        served = tower_sse::serve(listener, app) => Ok(served?),
        published = publish_presence(&hub) => published,
    }
}

#[derive(Deserialize)]
struct Rooms {
    #[serde(default)]
    rooms: String,
}

/// Streams the messages and the presence of some rooms: `/events?rooms=lobby,rust`.
async fn events(
    State(hub): State<Hub>,
    Query(query): Query<Rooms>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, ErrorResponse> {
    let mut rooms: Vec<_> = query.rooms.split(',').filter(|room| !room.is_empty()).collect();
    check(!rooms.is_empty(), || "no room given: name some, as in /events?rooms=lobby,rust".into())?;
    check(rooms.len() <= ROOMS.len(), || format!("too many rooms ({}): name at most {}", rooms.len(), ROOMS.len()))?;
    for room in &rooms {
        check_room(room)?;
    }
    rooms.push(PRESENCE);
    Ok(SseStream::new(hub.subscribe(rooms, last.or(Start::Earliest)).await?))
}

#[derive(Deserialize, Serialize)]
struct Message {
    room: String,
    name: String,
    text: String,
    /// Unix time in milliseconds, set by the server.
    #[serde(default)]
    time: u64,
}

/// Publishes a message in a room. The author receives it through the event stream,
/// like all other subscribers.
async fn send(State(hub): State<Hub>, Json(mut message): Json<Message>) -> Result<StatusCode, ErrorResponse> {
    check_room(&message.room)?;
    for (field, max_length, what) in
        [(&mut message.name, MAX_NAME_LENGTH, "name"), (&mut message.text, MAX_TEXT_LENGTH, "message")]
    {
        *field = field.trim().into();
        check(!field.is_empty(), || format!("the {what} is empty"))?;
        let length = field.chars().count();
        check(length <= max_length, || {
            format!("the {what} has {length} characters: at most {max_length} are allowed")
        })?;
    }
    message.time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
    let event = Event::json(&message).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    hub.topic(&message.room).publish(event).await?;
    Ok(StatusCode::NO_CONTENT)
}

type Rejection = (StatusCode, String);

fn check_room(room: &str) -> Result<(), Rejection> {
    check(ROOMS.contains(&room), || format!("there is no room {room:?}: choose from {}", ROOMS.join(", ")))
}

fn check(is_valid: bool, reason: impl FnOnce() -> String) -> Result<(), Rejection> {
    if is_valid { Ok(()) } else { Err((StatusCode::BAD_REQUEST, reason())) }
}

/// Publishes the number of subscribers of each room when it changes.
async fn publish_presence(hub: &Hub) -> Result<(), BoxError> {
    // A new client needs only the newest counts.
    let presence = hub.topic(PRESENCE).latest_only();
    let mut changes: StreamMap<_, _> =
        ROOMS.map(|room| (room, hub.topic(room).subscriber_counts())).into_iter().collect();
    let mut counts = BTreeMap::new();
    let mut changed = Vec::new();
    // A client that joins several rooms changes several counts at once.
    while changes.next_many(&mut changed, ROOMS.len()).await > 0 {
        counts.extend(changed.drain(..));
        presence.publish(Event::json(&counts)?.event("presence")).await?;
    }
    Ok(())
}
