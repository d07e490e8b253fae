//! A chat with several rooms over one connection, the people in each room, and replay after a lost
//! connection.
//!
//! ```console
//! $ cargo run -p tower-sse --features serve --example chat                        # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --features serve --example chat 127.0.0.1:0            # any free port
//! ```
//!
//! Open the page in two windows. Cut the network of one window while you write in the other, or
//! restart the server. `/?rooms=lobby,rust` shows only two of the rooms.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{ErrorResponse, Html, IntoResponse},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    env,
    process::ExitCode,
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{self, Hub, Presence, Start},
};

const ROOMS: [&str; 4] = ["lobby", "rust", "music", "random"];
/// Limits, in characters.
const MAX_NAME_LENGTH: usize = 32;
const MAX_TEXT_LENGTH: usize = 500;

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
    println!("Open {url} in two windows, or read the wire:\n  curl -N '{url}/events?rooms=lobby,rust&name=curl'");

    // Each room retains its last 500 messages and changes of members, for up to an hour.
    let hub = Hub::builder()
        .max_events(500)
        .max_age(Duration::from_secs(60 * 60))
        .presence_grace(Duration::from_secs(3))
        .presence_events(|room, change| match change {
            Presence::Joined { member, .. } => Some(Event::json(&json!([room, member])).ok()?.event("joined")),
            Presence::Left { member, .. } => Some(Event::json(&json!([room, member])).ok()?.event("left")),
            _ => None,
        })
        .build();
    let app = Router::new()
        .route("/", get(Html(include_str!("chat.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("reconnect.js"))))
        .route("/events", get(events))
        .route("/messages", post(send))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(hub)
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(tower_sse::serve(listener, app).await?)
}

#[derive(Deserialize)]
struct Visit {
    #[serde(default)]
    rooms: String,
    #[serde(default)]
    name: String,
}

/// Streams the messages and the members of some rooms: `/events?rooms=lobby,rust&name=Ann`. The
/// client is a member of these rooms as long as it reads the stream. The first event has all
/// members, and further events have the changes.
async fn events(
    State(hub): State<Hub>,
    Query(query): Query<Visit>,
    last: LastEventId,
) -> Result<impl IntoResponse, ErrorResponse> {
    let rooms: Vec<_> = query.rooms.split(',').filter(|room| !room.is_empty()).collect();
    check(!rooms.is_empty(), || "no room given: name some, as in /events?rooms=lobby,rust".into())?;
    check(rooms.len() <= ROOMS.len(), || format!("too many rooms ({}): name at most {}", rooms.len(), ROOMS.len()))?;
    for room in &rooms {
        check_room(room)?;
    }
    let name = check_text(&query.name, "name", MAX_NAME_LENGTH)?;
    let mut events = hub.subscribe(&rooms, last.or(Start::Earliest)).await?.begin_with_cursor();
    let mut members = BTreeMap::new();
    for room in rooms {
        let topic = hub.topic(room);
        events = topic.join(name, events)?;
        members.insert(room, topic.members().await?);
    }
    let members = Event::json(&members).map_err(hub::Error::from)?.event("members");
    Ok(SseStream::new(tokio_stream::once(Ok(members.into())).chain(events)).into_response())
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
    message.name = check_text(&message.name, "name", MAX_NAME_LENGTH)?.into();
    message.text = check_text(&message.text, "message", MAX_TEXT_LENGTH)?.into();
    message.time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
    let event = Event::json(&message).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    hub.topic(&message.room).publish(event).await?;
    Ok(StatusCode::NO_CONTENT)
}

type Rejection = (StatusCode, String);

fn check_room(room: &str) -> Result<(), Rejection> {
    check(ROOMS.contains(&room), || format!("there is no room {room:?}: choose from {}", ROOMS.join(", ")))
}

/// Returns the text without spaces around it.
fn check_text<'a>(text: &'a str, what: &str, max_length: usize) -> Result<&'a str, Rejection> {
    let text = text.trim();
    check(!text.is_empty(), || format!("the {what} is empty"))?;
    let length = text.chars().count();
    check(length <= max_length, || format!("the {what} has {length} characters: at most {max_length} are allowed"))?;
    Ok(text)
}

fn check(is_valid: bool, reason: impl FnOnce() -> String) -> Result<(), Rejection> {
    if is_valid { Ok(()) } else { Err((StatusCode::BAD_REQUEST, reason())) }
}
