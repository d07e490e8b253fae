//! Private notifications: login, replay of what is unread, logout in all tabs, and expiring
//! sessions.
//!
//! ```console
//! $ cargo run -p example-account                       # http://127.0.0.1:3000
//! $ cargo run -p example-account 127.0.0.1:0 20        # any free port; sessions end after 20 seconds
//! ```
//!
//! Log in as two users in two browsers, and send notifications. Open a second tab, and log out in
//! either tab. The page and its API have different ports, so they are different origins: the
//! requests of the page need CORS with credentials.

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header, request::Parts},
    response::{ErrorResponse, Html, IntoResponse},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    env,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep_until},
};
use tower_http::cors::CorsLayer;
use tower_sse::{
    BoxError, Event, EventId, LastEventId, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start, Subscription},
};

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
    let lifetime = env::args().nth(2).unwrap_or_else(|| "3600".into());
    let lifetime = lifetime.parse().map_err(|_| format!("{lifetime:?} is not the lifetime of a session in seconds"))?;
    let pages = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let api = TcpListener::bind((pages.local_addr()?.ip(), 0)).await?;
    let [page_url, api_url] = [pages.local_addr()?, api.local_addr()?].map(|address| format!("http://{address}"));
    println!("Open {page_url} in two browsers; the API is {api_url}");

    let accounts = Accounts {
        hub: Hub::new(),
        streams: StreamRegistry::new(),
        sessions: Arc::default(),
        read: Arc::default(),
        lifetime: Duration::from_secs(lifetime),
    };
    // The layer registers a request under its session before the handler checks the session. So no
    // stream survives a logout, see `StreamRegistry`.
    let events =
        SseLayer::new().retry(Duration::from_secs(1)).register(&accounts.streams, |head| session(&head.headers));
    let cors = CorsLayer::new()
        .allow_origin([page_url.parse()?])
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, HeaderName::from_static("last-event-id")]);
    let app = Router::new()
        .route("/events", get(notifications).layer(events))
        .route("/me", get(async |User(name)| name))
        .route("/login", post(log_in))
        .route("/logout", post(log_out))
        .route("/notify", post(notify))
        .route("/read", post(mark_read))
        .layer(cors)
        .with_state(accounts);
    let page = include_str!("../account.html").replace("{api}", &api_url);
    let page = Router::new()
        .route("/", get(async || Html(page)))
        .route("/reconnect.js", get(([(header::CONTENT_TYPE, "text/javascript")], include_str!("../../reconnect.js"))));
    tokio::try_join!(tower_sse::serve(api, app).into_future(), tower_sse::serve(pages, page).into_future())?;
    Ok(())
}

#[derive(Clone)]
struct Accounts {
    hub: Hub,
    /// The open streams of each session.
    streams: StreamRegistry<String>,
    /// The sessions by their ids.
    sessions: Arc<Mutex<HashMap<String, Session>>>,
    /// The last notification that each user has read.
    read: Arc<Mutex<HashMap<String, EventId>>>,
    lifetime: Duration,
}

#[derive(Clone)]
struct Session {
    user: String,
    expires: Instant,
}

impl Accounts {
    /// Returns the session of a request, if it is valid.
    fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&session(headers)?).filter(|session| session.expires > Instant::now()).cloned()
    }

    fn topic(&self, user: &str) -> tower_sse::hub::Topic {
        self.hub.topic(format!("notifications/{user}"))
    }
}

/// Returns the id of the session in the cookie.
fn session(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?.split("; ");
    cookies.filter_map(|cookie| cookie.strip_prefix("session=")).next().map(str::to_owned)
}

/// The user who is logged in. A request without a valid session is rejected with 401.
struct User(String);

impl FromRequestParts<Accounts> for User {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, accounts: &Accounts) -> Result<Self, Self::Rejection> {
        let session = accounts.session(&parts.headers).ok_or((StatusCode::UNAUTHORIZED, "log in first"))?;
        Ok(Self(session.user))
    }
}

/// Streams the notifications of the user. A new page gets the unread notifications.
async fn notifications(
    State(accounts): State<Accounts>,
    headers: HeaderMap,
    last: LastEventId,
) -> Result<SseStream<Subscription>, ErrorResponse> {
    let Session { user, expires } = accounts.session(&headers).ok_or((StatusCode::UNAUTHORIZED, "log in first"))?;
    let read = accounts.read.lock().unwrap_or_else(PoisonError::into_inner).get(&user).cloned();
    let unread = read.map_or(Start::Earliest, Start::After);
    let subscription = accounts.topic(&user).subscribe(last.or(unread)).await?;
    Ok(SseStream::new(subscription).end_when(async move {
        sleep_until(expires).await;
        Some(Event::new("").event("expired"))
    }))
}

async fn log_in(State(accounts): State<Accounts>, name: String) -> Result<impl IntoResponse, ErrorResponse> {
    let user = check(&name, "name", MAX_NAME_LENGTH)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let id = format!("{:032x}", u128::from_le_bytes(id));
    let session = Session { user, expires: Instant::now() + accounts.lifetime };
    accounts.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), session);
    // Over HTTPS, add `Secure`.
    Ok(([(header::SET_COOKIE, format!("session={id}; HttpOnly; SameSite=Lax; Path=/"))], StatusCode::NO_CONTENT))
}

/// Ends the session, and all of its streams.
async fn log_out(State(accounts): State<Accounts>, headers: HeaderMap) -> StatusCode {
    if let Some(id) = session(&headers) {
        accounts.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        accounts.streams.close_with(&id, Event::new("").event("logout"));
    }
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Outgoing {
    to: String,
    text: String,
}

#[derive(Serialize)]
struct Notification {
    from: String,
    text: String,
}

async fn notify(
    State(accounts): State<Accounts>,
    User(from): User,
    Json(Outgoing { to, text }): Json<Outgoing>,
) -> Result<StatusCode, ErrorResponse> {
    let to = check(&to, "name", MAX_NAME_LENGTH)?;
    let text = check(&text, "text", MAX_TEXT_LENGTH)?;
    let event = Event::json(&Notification { from, text }).map_err(tower_sse::hub::Error::from)?;
    accounts.topic(&to).publish(event).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Records the id of the last notification that the user has read.
async fn mark_read(
    State(accounts): State<Accounts>,
    User(user): User,
    id: String,
) -> Result<StatusCode, ErrorResponse> {
    let id = EventId::new(id).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    accounts.read.lock().unwrap_or_else(PoisonError::into_inner).insert(user, id);
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a trimmed text, or the reason why it is refused.
fn check(text: &str, what: &str, max_length: usize) -> Result<String, (StatusCode, String)> {
    let (text, length) = (text.trim(), text.trim().chars().count());
    if (1..=max_length).contains(&length) {
        return Ok(text.to_owned());
    }
    Err((StatusCode::BAD_REQUEST, format!("the {what} has {length} characters: it needs 1 to {max_length}")))
}
