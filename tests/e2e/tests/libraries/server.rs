//! A server that answers each visit of a scenario, and records the visits.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, Uri, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use e2e::Server;
use futures_util::{Stream, StreamExt, stream};
use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    future::pending,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Event, EventId, EventName, LastEventId, SseLayer, SseStream,
    hub::{Hub, Start, Subscription},
};

/// The reconnect delay that the server sends. It differs from the delay that any library has by
/// itself.
const RETRY: Duration = Duration::from_secs(2);
/// The delay for scenarios that do not measure it.
const SHORT_RETRY: Duration = Duration::from_millis(200);

/// An event by its type and data.
pub type Sent = (&'static str, String);

/// A request: its `Last-Event-ID`, and when it arrived.
#[derive(Clone, Debug)]
pub struct Visit {
    pub last_event_id: Option<String>,
    pub at: Instant,
}

pub struct Lab {
    server: Server,
    state: Shared,
}

#[derive(Clone)]
struct Shared {
    /// The events of every scenario. The last one ends the reading.
    answer: Arc<[Sent]>,
    visits: Arc<Mutex<HashMap<String, Vec<Visit>>>>,
    shutdown: CancellationToken,
}

impl Lab {
    pub fn start(answer: Vec<Sent>) -> Self {
        let state = Shared { answer: answer.into(), visits: Arc::default(), shutdown: CancellationToken::new() };
        // Without `retry`, the layer sends one second at a shutdown, and no delay before.
        let shutting_down = SseLayer::new()
            .reconnect_jitter(Duration::ZERO)
            .shutdown(state.shutdown.clone())
            .shutdown_event(Event::new("restart").event(EventName::new("shutdown").expect("a name of one line")));
        let app = Router::new()
            .route("/shutdown/{*rest}", any(until_shutdown))
            .layer(shutting_down)
            .route_layer(from_fn_with_state(state.clone(), after_shutdown))
            .merge(
                Router::new()
                    .route("/layer/{scenario}/{*rest}", any(through_layer))
                    .layer(SseLayer::new().retry(SHORT_RETRY)),
            )
            .route("/retry/{*rest}", any(retry))
            .route("/raw/{scenario}/{*rest}", any(raw))
            .route("/pages/{page}", get(page))
            .route("/packages/{*path}", get(package))
            .layer(from_fn_with_state(state.clone(), record))
            .with_state(state.clone());
        Self { server: Server::start(app), state }
    }

    /// The URL of a scenario.
    pub fn url(&self, scenario: &str) -> String {
        self.server.url(&format!("/{scenario}/x"))
    }

    /// The URL of a page in `tests/e2e/clients` that reads a scenario.
    pub fn page(&self, page: &str, scenario: &str) -> String {
        self.server.url(&format!("/pages/{page}?url=/{scenario}/x"))
    }

    /// The visits of a scenario so far.
    pub fn visits(&self, scenario: &str) -> Vec<Visit> {
        let path = format!("/{scenario}/x");
        let visits = self.state.visits.lock().expect("no holder panics");
        let of_scenario = visits.iter().find(|(visited, _)| visited.starts_with(&path));
        of_scenario.map(|(_, visits)| visits.clone()).unwrap_or_default()
    }
}

impl Shared {
    /// The number of visits so far of the path, this one included.
    fn visit(&self, uri: &Uri) -> usize {
        self.visits.lock().expect("no holder panics").get(uri.path()).map_or(0, Vec::len)
    }

    fn first(&self) -> Event {
        event(&self.answer[0]).id(EventId::new("1").expect("it is one line"))
    }

    /// All events after the first one.
    fn rest(&self) -> Response {
        body(wire(&self.answer[1..], "\n"))
    }
}

async fn record(State(state): State<Shared>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let id = headers.get("last-event-id").map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let visit = Visit { last_event_id: id, at: Instant::now() };
    let path = request.uri().path().to_owned();
    state.visits.lock().expect("no holder panics").entry(path).or_default().push(visit);
    next.run(request).await
}

/// The first event, and then a shutdown.
async fn until_shutdown(State(state): State<Shared>) -> impl IntoResponse {
    let first = state.first();
    let then = stream::once(async move {
        state.shutdown.cancel();
        pending().await
    });
    SseStream::new(stream::iter([first]).chain(then))
}

async fn after_shutdown(State(state): State<Shared>, request: Request, next: Next) -> Response {
    if state.visit(request.uri()) > 1 { state.rest() } else { next.run(request).await }
}

/// The first event and a reconnect delay in the same event.
async fn retry(State(state): State<Shared>, uri: Uri) -> Response {
    if state.visit(&uri) > 1 {
        return state.rest();
    }
    body(format!("id: 1\nretry: {}\n{}", RETRY.as_millis(), wire(&state.answer[..1], "\n")))
}

async fn through_layer(State(state): State<Shared>, Path((scenario, _)): Path<(String, String)>, uri: Uri) -> Response {
    let from_hub = async |last: Option<&str>, with_control_events: bool| {
        let topic = Hub::new().topic("answer");
        let last = last.map(|id| LastEventId::from(EventId::new(id).expect("it is one line")));
        let subscription: Subscription = match last {
            Some(last) => topic.subscribe(last).await,
            None => topic.subscribe(Start::Latest).await,
        }
        .expect("there is room");
        for sent in &*state.answer {
            topic.publish(event(sent)).await.expect("there is room");
        }
        topic.finish().await.expect("it exists");
        if with_control_events {
            return subscription.into_response();
        }
        subscription.without_control_events().into_response()
    };
    let visit = state.visit(&uri);
    match &*scenario {
        "hub" | "hub-cursor" | "gap" if visit > 1 => StatusCode::GONE.into_response(),
        "hub" => from_hub(None, false).await,
        "hub-cursor" => from_hub(None, true).await,
        "gap" => from_hub(Some("of-another-log"), true).await,
        "end" | "broken" | "204" if visit == 1 => {
            let first = stream::iter([Ok(state.first())]);
            let broken = stream::iter((scenario == "broken").then(|| Err(io::Error::other("broken"))));
            SseStream::new(first.chain(broken)).into_response()
        }
        "204" if visit <= 3 => StatusCode::NO_CONTENT.into_response(),
        "end" | "broken" | "204" => state.rest(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Bytes that no layer changes.
async fn raw(State(state): State<Shared>, Path((scenario, _)): Path<(String, String)>, uri: Uri) -> Response {
    let visit = state.visit(&uri);
    let answer = |end: &str| wire(&state.answer, end);
    let then_end = |lines: &str| body(format!("{lines}{}", wire(&[("end", "end".to_owned())], "\n")));
    match &*scenario {
        "half" if visit == 2 => state.rest(),
        _ if visit > 1 => StatusCode::GONE.into_response(),
        "lf" => body(answer("\n")),
        "crlf" => body(answer("\r\n")),
        "cr" => body(answer("\r")),
        "charset" => ([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], answer("\n")).into_response(),
        "bytes" => body(Body::from_stream(one_by_one(answer("\n")))),
        "heartbeats" => body(format!(":\n\n{}", answer("\n:\n"))),
        "half" => {
            let retry = SHORT_RETRY.as_millis();
            body(format!("retry: {retry}\n\nid: 1\n{}id: 2\ndata: half\n", wire(&state.answer[..1], "\n")))
        }
        "separators" => then_end("data: 1\u{2028}2\u{2029}3\u{85}4\u{b}5\u{c}6\u{1c}7\n\n"),
        "spaces" => then_end("data:   before and after  \n\n"),
        "empty-data" => then_end("data:\n\n"),
        "empty-first-line" => then_end("data:\ndata: x\n\n"),
        "id-alone" => then_end("id: 7\n\n"),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn event((kind, data): &Sent) -> Event {
    match *kind {
        "message" => Event::new(data),
        _ => Event::new(data).event(EventName::new(kind).expect("a name of one line")),
    }
}

/// The events with these line ends.
fn wire(events: &[Sent], end: &str) -> String {
    let mut wire = String::new();
    for (kind, data) in events {
        let name = (*kind != "message").then(|| format!("event: {kind}"));
        let lines = data.split('\n').map(|line| format!("data: {line}"));
        wire.extend(name.into_iter().chain(lines).chain([String::new()]).map(|line| line + end));
    }
    wire
}

fn body(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "text/event-stream")], body.into()).into_response()
}

fn one_by_one(text: String) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::iter(text.into_bytes().into_iter().map(|byte| Ok(Bytes::from(vec![byte]))))
}

async fn page(Path(name): Path<String>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/html")], fs::read(script(&name)).expect("the page is there"))
}

async fn package(Path(path): Path<String>) -> impl IntoResponse {
    let file = installed(&format!("node/node_modules/{path}"));
    ([(CONTENT_TYPE, "text/javascript")], fs::read(file).expect("the package has the file"))
}

/// A file in `tests/e2e/clients`.
pub fn script(name: &str) -> PathBuf {
    let folder = if name.ends_with(".py") { "python" } else { "node" };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(folder).join(name)
}

/// A file that `tests/e2e/clients/install` has put into cargo's target folder.
pub fn installed(path: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients").join(path);
    assert!(file.exists(), "{} does not exist: run scripts/test, which installs it", file.display());
    file
}
