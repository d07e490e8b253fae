//! The protocols of clients that exist already, each over an event stream. A client that loses its
//! connection continues with the same answer where its protocol allows it.
//!
//! ```console
//! $ cargo run -p tower-sse --features serve --example protocols                       # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --features serve --example protocols 127.0.0.1:0 20        # any free port, a word every 20 milliseconds
//! $ npm install htmx.org@4 && cargo run -p tower-sse --features serve --example protocols 127.0.0.1:3000 60 node_modules
//! ```
//!
//! | path | protocol | client |
//! |---|---|---|
//! | `/api/chat` | UI message stream v1 of the Vercel AI SDK | `useChat` of `ai` |
//! | `/v1/chat/completions` | OpenAI chat completions | `openai`, for Node and Python |
//! | `/v1/responses` | OpenAI responses, with resume | `openai`, for Node and Python |
//! | `/graphql/stream` | GraphQL over SSE, distinct connections mode | `graphql-sse` |
//! | `/`, `/words` | HTML in events | `htmx.org` 4 with `hx-sse`, from the folder of npm packages |
//!
//! `tests/e2e/tests/protocols.rs` runs each of these clients. The function `model` only simulates a
//! model: replace it with the client of a real one.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{Html, IntoResponse, Response, Result},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    env,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tower_sse::{
    BoxError, Event, EventName, JsonError, LastEventId, SseLayer, SseStream, StopReconnecting,
    hub::{Hub, Outcome, Start, Topic},
};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    let arg = |i: usize, default| args.get(i).map_or(default, String::as_str);
    if let Err(error) = run(arg(0, "127.0.0.1:3000"), arg(1, "60"), arg(2, "node_modules")).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, pace: &str, packages: &str) -> Result<(), BoxError> {
    let Ok(pace @ 1..=10_000) = pace.parse() else {
        return Err(format!("invalid time of a word {pace:?}: give milliseconds from 1 to 10000").into());
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Point a client at http://{}", listener.local_addr()?);
    let app = Arc::new(App {
        hub: Hub::builder().max_topics(1000).build(),
        chats: Mutex::default(),
        pace: Duration::from_millis(pace),
        packages: packages.into(),
    });
    let app = Router::new()
        .route("/api/chat", post(ai::chat))
        .route("/api/chat/{id}/stream", get(ai::resume))
        .route("/v1/chat/completions", post(completions::create))
        .route("/v1/chat/completions/{id}", get(completions::retrieve))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve))
        .route("/graphql/stream", post(graphql::subscribe))
        .route("/", get(Html(include_str!("protocols.html"))))
        .route("/words", get(html::words))
        .route("/packages/{file}", get(html::package))
        .with_state(app)
        .layer(SseLayer::new());
    Ok(tower_sse::serve(listener, app).await?)
}

struct App {
    hub: Hub,
    /// The answer of each chat that is being written, or was written last.
    chats: Mutex<HashMap<String, Topic>>,
    pace: Duration,
    /// The folder of npm packages.
    packages: PathBuf,
}

impl App {
    /// Records an answer in a new topic. It does not depend on the connection of a client.
    fn record<S>(&self, id: &str, events: S, stopped: Event) -> Topic
    where
        S: Stream<Item = Result<Event, JsonError>> + Send + 'static,
    {
        let topic = self.hub.topic(format!("answers/{id}"));
        topic
            .record(events)
            .abandon_after(Duration::from_secs(30))
            .time_limit(Duration::from_secs(20 * 60))
            .on_stop(move |_: Outcome| Some(stopped))
            .start();
        topic
    }

    /// Simulates a language model.
    fn model(&self, prompt: &str) -> impl Stream<Item = String> + Send + use<> {
        let answer = format!("You asked: {prompt}\nThis  answer has two lines, and 日本 🦀.");
        let words: Vec<_> = answer.split_inclusive(' ').map(str::to_owned).collect();
        tokio_stream::iter(words).throttle(self.pace)
    }
}

/// Streams an answer from its first event. A listener has no events `hub-cursor` and `gap`, which
/// these clients would reject.
async fn read(app: &App, answer: &Topic, skip: usize) -> Result<Response> {
    let events = app.hub.listen([answer.name()], Start::Earliest).await?;
    let rest = events.map(|published| published.map(|published| published.event)).skip(skip);
    Ok(SseStream::new(rest).finite().into_response())
}

/// Streams the rest of an answer to a client that has received some events before.
async fn resume(app: &App, id: &str, received: usize) -> Result<Response> {
    let answer = app.hub.topic(format!("answers/{id}"));
    // Subscribing creates the topic, so check ids from clients first.
    if !answer.exists() {
        return Err((StatusCode::NOT_FOUND, "There is no such answer, or it has expired").into());
    }
    read(app, &answer, received).await
}

/// An unguessable id: with it, a client can read the answer.
fn new_id(prefix: &str) -> String {
    // Each `RandomState` has random keys.
    let half = || RandomState::new().hash_one(prefix);
    format!("{prefix}{:016x}{:016x}", half(), half())
}

/// The text of a message, which is a string or a list of parts with a `text`.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// `useChat` sends `POST /api/chat`. With `resume: true`, it sends `GET /api/chat/{id}/stream` when
/// the page loads, and expects 204 if no answer is being written.
/// <https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol>
mod ai {
    use super::*;

    #[derive(Deserialize)]
    pub(super) struct Chat {
        id: String,
        messages: Vec<Value>,
    }

    pub(super) async fn chat(State(app): State<Arc<App>>, Json(chat): Json<Chat>) -> Result<Response> {
        let Some(message) = chat.messages.last() else {
            return Err((StatusCode::BAD_REQUEST, "A chat needs a message").into());
        };
        let part = |part: Value| Event::json(&part);
        let begin = [json!({ "type": "start" }), json!({ "type": "text-start", "id": "text" })];
        let words = app.model(&text_of(&message["parts"]));
        let deltas = words.map(|word| json!({ "type": "text-delta", "id": "text", "delta": word }));
        let end = [json!({ "type": "text-end", "id": "text" }), json!({ "type": "finish" })];
        let parts = tokio_stream::iter(begin).chain(deltas).chain(tokio_stream::iter(end)).map(part);
        let done = tokio_stream::once(Ok(Event::new("[DONE]")));

        let id = new_id("chat-");
        let stopped = Event::display(json!({ "type": "abort" }));
        let answer = app.record(&id, parts.chain(done), stopped);
        app.chats.lock().expect("no code panics while it is locked").insert(chat.id, answer.clone());
        stream(&app, &answer).await
    }

    pub(super) async fn resume(State(app): State<Arc<App>>, Path(chat): Path<String>) -> Result<Response> {
        let answer = app.chats.lock().expect("no code panics while it is locked").get(&chat).cloned();
        let Some(answer) = answer.filter(Topic::exists) else {
            return Ok(StopReconnecting.into_response());
        };
        // A subscription to the end of a finished topic is over: the page has the whole answer.
        if answer.subscribe(Start::Latest).await?.is_finished() {
            return Ok(StopReconnecting.into_response());
        }
        stream(&app, &answer).await
    }

    async fn stream(app: &App, answer: &Topic) -> Result<Response> {
        Ok(([("x-vercel-ai-ui-message-stream", "v1")], read(app, answer, 0).await?).into_response())
    }
}

/// Each chunk has the id of the completion. With it and the number of chunks that it has, a client
/// gets the rest: `GET /v1/chat/completions/{id}?starting_after=7`. This path is an extension.
/// <https://platform.openai.com/docs/api-reference/chat-streaming>
mod completions {
    use super::*;

    #[derive(Deserialize)]
    pub(super) struct Request {
        model: String,
        messages: Vec<Value>,
        #[serde(default)]
        stream: bool,
    }

    pub(super) async fn create(State(app): State<Arc<App>>, Json(request): Json<Request>) -> Result<Response> {
        let Some(message) = request.messages.last().filter(|_| request.stream) else {
            let message = "This server only streams, and needs a message";
            return Err((StatusCode::BAD_REQUEST, Json(json!({ "error": { "message": message } }))).into());
        };
        let id = new_id("chatcmpl-");
        let chunk = {
            let id = id.clone();
            move |delta: Value, finish_reason: Option<&str>| {
                Event::json(&json!({
                    "id": id, "object": "chat.completion.chunk", "created": 0, "model": request.model,
                    "choices": [{ "index": 0, "delta": delta, "finish_reason": finish_reason }],
                }))
            }
        };
        let last = [chunk(json!({}), Some("stop")), Ok(Event::new("[DONE]"))];
        let stopped = chunk(json!({}), Some("length")).expect("it serializes");
        let words = app.model(&text_of(&message["content"]));
        let chunks = words.map(move |word| chunk(json!({ "role": "assistant", "content": word }), None));
        let answer = app.record(&id, chunks.chain(tokio_stream::iter(last)), stopped);
        read(&app, &answer, 0).await
    }

    #[derive(Deserialize)]
    pub(super) struct Rest {
        starting_after: usize,
    }

    /// `starting_after` is the number of chunks that the client has received.
    pub(super) async fn retrieve(
        State(app): State<Arc<App>>,
        Path(id): Path<String>,
        Query(rest): Query<Rest>,
    ) -> Result<Response> {
        resume(&app, &id, rest.starting_after).await
    }
}

/// Each event has a sequence number. `responses.retrieve(id, { stream: true, starting_after: 7 })`
/// continues after the event with this number.
/// <https://platform.openai.com/docs/guides/background#streaming-a-background-response>
mod responses {
    use super::*;

    #[derive(Deserialize)]
    pub(super) struct Request {
        model: String,
        input: Value,
    }

    pub(super) async fn create(State(app): State<Arc<App>>, Json(request): Json<Request>) -> Result<Response> {
        let prompt = match &request.input {
            Value::Array(messages) => messages.last().map(|message| text_of(&message["content"])).unwrap_or_default(),
            input => text_of(input),
        };
        let id = new_id("resp_");
        let response = |status| json!({ "id": id, "object": "response", "model": request.model, "status": status });
        let delta = |word| json!({ "item_id": "text", "output_index": 0, "content_index": 0, "delta": word });
        let created = ("response.created", json!({ "response": response("in_progress") }));
        let completed = ("response.completed", json!({ "response": response("completed") }));
        let stopped = json!({ "type": "response.incomplete", "response": response("incomplete") });
        let deltas = app.model(&prompt).map(move |word| ("response.output_text.delta", delta(word)));
        let events = tokio_stream::once(created).chain(deltas).chain(tokio_stream::once(completed));

        let mut sequence_number = 0;
        let events = events.map(move |(kind, mut event)| {
            // The protocol repeats the name of the event in its data.
            event["type"] = kind.into();
            event["sequence_number"] = sequence_number.into();
            sequence_number += 1;
            Ok(Event::json(&event)?.event(EventName::from_static(kind)))
        });
        let answer = app.record(&id, events, Event::display(stopped).event("response.incomplete"));
        read(&app, &answer, 0).await
    }

    #[derive(Deserialize)]
    pub(super) struct Rest {
        starting_after: Option<usize>,
    }

    pub(super) async fn retrieve(
        State(app): State<Arc<App>>,
        Path(id): Path<String>,
        Query(rest): Query<Rest>,
    ) -> Result<Response> {
        resume(&app, &id, rest.starting_after.map_or(0, |number| number.saturating_add(1))).await
    }
}

/// `SseStream::tagged` writes the two events of the protocol.
/// <https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md>
mod graphql {
    use super::*;

    #[derive(serde::Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Message {
        Next { data: Value },
        Complete,
    }

    #[derive(Deserialize)]
    pub(super) struct Operation {
        query: String,
    }

    /// Replace this function by `schema.execute_stream` of async-graphql, for example.
    pub(super) async fn subscribe(State(app): State<Arc<App>>, Json(operation): Json<Operation>) -> impl IntoResponse {
        let words = app.model(&operation.query);
        let results = words.map(|word| Message::Next { data: json!({ "word": word }) });
        SseStream::tagged(results.chain(tokio_stream::once(Message::Complete)))
    }
}

/// htmx 4 appends the HTML of each message to an element. After a lost connection, it sends the
/// last id. <https://four.htmx.org/docs/extensions/hx-sse>
mod html {
    use super::*;
    use axum::http::header::CONTENT_TYPE;

    pub(super) async fn words(State(app): State<Arc<App>>, last: LastEventId) -> Result<impl IntoResponse> {
        let next = last.parse::<usize>()?.map_or(0, |received| received.saturating_add(1));
        // Escape words that contain text of a user.
        let words = app.model("What is new?").map(number()).skip(next);
        let events = words.map(|(n, word)| Event::new(format!("<span>{word}</span>")).id(n));
        Ok(SseStream::new(events).end_with(Event::new("the answer is complete").event("end")))
    }

    /// Numbers words from 0.
    fn number() -> impl FnMut(String) -> (usize, String) {
        let mut next = 0..;
        move |word| (next.next().unwrap_or_default(), word)
    }

    pub(super) async fn package(State(app): State<Arc<App>>, Path(file): Path<String>) -> Result<impl IntoResponse> {
        let path = match &*file {
            "htmx.js" => "htmx.org/dist/htmx.js",
            "hx-sse.js" => "htmx.org/dist/ext/hx-sse.js",
            _ => return Err(StatusCode::NOT_FOUND.into()),
        };
        let script = tokio::fs::read(app.packages.join(path)).await.map_err(|error| {
            (StatusCode::NOT_FOUND, format!("{path}: {error}\nRun npm install htmx.org@4, and give its node_modules"))
        })?;
        Ok(([(CONTENT_TYPE, "text/javascript")], script))
    }
}
