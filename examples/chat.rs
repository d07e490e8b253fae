//! A chat: many rooms over one connection, who is here, and nothing missed when the connection was lost.
//!
//! ```console
//! $ cargo run --example chat                        # http://127.0.0.1:3000
//! $ cargo run --example chat 127.0.0.1:0            # any free port
//! ```
//!
//! Open it in two windows. Cut the network of one, or stop the server and start it again, while the other writes.
//! `/?rooms=lobby,rust` is in two rooms only.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
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
use tokio::{net::TcpListener, time::sleep};
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{Hub, Start, Subscription},
};

const ROOMS: [&str; 4] = ["lobby", "rust", "music", "random"];
/// In characters.
const LONGEST_NAME: usize = 32;
const LONGEST_TEXT: usize = 500;

/// How many are in each room, beside the rooms themselves.
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

    // A room is remembered for an hour, and by newcomers for its last 500 messages.
    let hub = Hub::builder().max_events(500).max_age(Duration::from_secs(60 * 60)).build();
    let app = Router::new()
        .route("/", get(Html(include_str!("chat.html"))))
        .route("/events", get(listen))
        .route("/messages", post(say))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(hub.clone())
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    tokio::select! {
        served = axum::serve(listener, app).into_future() => Ok(served?),
        counted = count(&hub) => counted,
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    rooms: String,
}

/// The messages of some rooms, and who is there: `/events?rooms=lobby,rust`.
async fn listen(
    State(hub): State<Hub>,
    Query(choice): Query<Choice>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, ErrorResponse> {
    let mut rooms: Vec<_> = choice.rooms.split(',').filter(|room| !room.is_empty()).collect();
    check(!rooms.is_empty(), || "name a room or more, as in /events?rooms=lobby,rust".into())?;
    check(rooms.len() <= ROOMS.len(), || format!("{} rooms are too many: name at most {}", rooms.len(), ROOMS.len()))?;
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
    /// Unix time in milliseconds, by the clock of the server.
    #[serde(default)]
    time: u64,
}

/// Says something in a room. Who says it gets it as all the others do, by the connection.
async fn say(State(hub): State<Hub>, Json(mut message): Json<Message>) -> Result<StatusCode, ErrorResponse> {
    check_room(&message.room)?;
    for (field, longest, what) in
        [(&mut message.name, LONGEST_NAME, "name"), (&mut message.text, LONGEST_TEXT, "message")]
    {
        *field = field.trim().into();
        check(!field.is_empty(), || format!("the {what} is empty"))?;
        let length = field.chars().count();
        check(length <= longest, || format!("the {what} has {length} characters, and at most {longest} are allowed"))?;
    }
    message.time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
    let event = Event::json(&message).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    hub.topic(&message.room).publish(event).await?;
    Ok(StatusCode::NO_CONTENT)
}

type Refusal = (StatusCode, String);

fn check_room(room: &str) -> Result<(), Refusal> {
    check(ROOMS.contains(&room), || format!("there is no room {room:?}, but {}", ROOMS.join(", ")))
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err((StatusCode::BAD_REQUEST, otherwise())) }
}

/// Looks twice a second how many are in each room, and tells everybody when that has changed.
async fn count(hub: &Hub) -> Result<(), BoxError> {
    // Who comes gets the newest count, and not how it came about.
    let presence = hub.topic(PRESENCE).latest_only();
    let mut told = BTreeMap::new();
    loop {
        let here = BTreeMap::from(ROOMS.map(|room| (room, hub.topic(room).subscribers())));
        if here != told {
            presence.publish(Event::json(&here)?.event("presence")).await?;
            told = here;
        }
        sleep(Duration::from_millis(500)).await;
    }
}
