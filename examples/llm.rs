//! The answer of a language model, word by word. After a lost connection or a reload, the page
//! continues with the same answer.
//!
//! ```console
//! $ cargo run -p tower-sse --features serve --example llm                         # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --features serve --example llm 127.0.0.1:0 20          # any free port, a word every 20 milliseconds
//! $ cargo run -p tower-sse --features serve --example llm 127.0.0.1:0 20 5        # generation stops after 5 seconds without a reader
//! ```
//!
//! The function `model` only simulates a model: replace it with the client of a real one.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{Html, IntoResponse, Result},
    routing::{get, post},
};
use std::{
    env,
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{
    BoxError, Event, JsonError, LastEventId, SseLayer, SseStream,
    hub::{Hub, Outcome, Start, Subscription},
};

/// The maximum number of characters of a prompt, and of tokens of an answer.
const MAX_PROMPT: usize = 2000;
const MAX_TOKENS: usize = 4000;
/// Limits for answers that are generated at the same time, and for answers that the server
/// remembers.
const MAX_GENERATING: usize = 16;
const MAX_ANSWERS: usize = 1000;
/// Limits for the time of a generation, and for the age of an answer that can still be read.
const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);
const RETENTION: Duration = Duration::from_secs(60 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    let arg = |i: usize, default| args.get(i).map_or(default, String::as_str);
    if let Err(error) = run(arg(0, "127.0.0.1:3000"), arg(1, "60"), arg(2, "30")).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, pace: &str, patience: &str) -> Result<(), BoxError> {
    let Ok(pace @ 1..=10_000) = pace.parse() else {
        return Err(format!("invalid time of a word {pace:?}: give milliseconds from 1 to 10000").into());
    };
    let Ok(patience @ 1..=3600) = patience.parse() else {
        return Err(format!("invalid time without a reader {patience:?}: give seconds from 1 to 3600").into());
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser", listener.local_addr()?);

    let app = Arc::new(App {
        // The hub retains whole answers.
        hub: Hub::builder().max_events(MAX_TOKENS + 2).max_age(RETENTION).max_topics(MAX_ANSWERS).build(),
        permits: Arc::new(Semaphore::new(MAX_GENERATING)),
        pace: Duration::from_millis(pace),
        patience: Duration::from_secs(patience),
    });
    let app = Router::new()
        .route("/", get(Html(include_str!("llm.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("reconnect.js"))))
        .route("/answers", post(ask))
        .route("/answers/{id}", get(read))
        .with_state(app)
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(tower_sse::serve(listener, app).await?)
}

struct App {
    hub: Hub,
    permits: Arc<Semaphore>,
    pace: Duration,
    patience: Duration,
}

#[derive(serde::Deserialize)]
struct Question {
    prompt: String,
}

/// Starts an answer. The generation does not depend on the connection of the client.
async fn ask(State(app): State<Arc<App>>, Json(Question { prompt }): Json<Question>) -> Result<impl IntoResponse> {
    let length = prompt.trim().chars().count();
    if !(1..=MAX_PROMPT).contains(&length) {
        let reason = format!("A prompt needs 1 to {MAX_PROMPT} characters, but this one has {length}");
        return Err((StatusCode::BAD_REQUEST, reason).into());
    }
    let permit = Arc::clone(&app.permits).try_acquire_owned().map_err(|_| {
        let reason = format!("{MAX_GENERATING} answers are being generated, which is the limit. Try again later");
        (StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;

    // The id must be unguessable: with it, a client can read the answer. Each `RandomState` has
    // random keys.
    let id: String = (0..2).map(|_| format!("{:016x}", RandomState::new().hash_one(&prompt))).collect();
    let answer = app.hub.topic(format!("answer/{id}"));
    // The first event is the prompt, for a page that knows only the id. Publishing it fails if the
    // hub has too many topics. There is no `await` before `start`: if the client left during it,
    // the topic would have a prompt and never end. With a backend, `publish_now` returns an error:
    // put the prompt into the stream instead, as in docs/recordings.md.
    answer.publish_now(Event::json(&prompt).expect("a string serializes").event("prompt"))?;
    // A client may leave. The answer is generated as long as some client reads it, or returns soon.
    answer
        .record(model(&prompt, app.pace, permit))
        .abandon_after(app.patience)
        .time_limit(TIME_LIMIT)
        .on_error(|error| Some(Event::display(error).event("failed")))
        .on_stop(|outcome| Some(reason(outcome)))
        // With one of these events, the page knows that it must not reconnect.
        .end_with(Event::new("[DONE]").event("done"))
        .start();
    Ok((StatusCode::CREATED, [(LOCATION, format!("/answers/{id}"))], Json(serde_json::json!({ "id": id }))))
}

/// Streams an answer. A new client gets the whole answer, and a client that reconnects gets the
/// rest.
async fn read(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>> {
    let answer = app.hub.topic(format!("answer/{id}"));
    // Subscribing creates the topic, so check ids from clients first.
    if !answer.exists() {
        return Err((StatusCode::NOT_FOUND, "There is no such answer, or it has expired").into());
    }
    Ok(SseStream::new(answer.subscribe(last.or(Start::Earliest)).await?))
}

fn reason(outcome: Outcome) -> Event {
    match outcome {
        Outcome::Abandoned => Event::new("No client was reading").event("abandoned"),
        Outcome::TimedOut => Event::new("The model took too long").event("failed"),
        _ => Event::new("The answer was stopped").event("failed"),
    }
}

/// Simulates a language model. It gives the same answer to every prompt.
fn model(
    prompt: &str,
    pace: Duration,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, JsonError>> + Send + use<> {
    let subject: String = prompt.trim().chars().take(60).collect();
    let answer = ANSWER.replace("{}", &subject);
    // JSON preserves spaces and line ends.
    let words: Vec<_> = answer.split_inclusive(' ').take(MAX_TOKENS).map(|word| Event::json(&word)).collect();
    tokio_stream::iter(words).throttle(pace).map(move |word| {
        let _permit_until_the_end = &permit;
        word
    })
}

const ANSWER: &str = r#"You asked about “{}”. This page has no real model, so this text explains what happens to a model's answer on its way to you.

Every word of this text is an event of a topic. The server keeps the topic, and the connection does not: close this tab, and the server continues to generate the answer. Open the tab again, and you read the answer from its first word. A second tab, or another device with the same address, reads the same answer at the same time, and no reader slows the generation down.

When the connection is lost, the browser reconnects by itself, and sends the id of the last event that it received:

    GET /answers/4f1c… HTTP/1.1
    Last-Event-ID: fzk2m5qa-407

The server continues with the event after that one. So nothing is missing, and nothing arrives twice – not a word, not a <b>tag</b>, not one of the four  spaces before the lines above.

If no client reads for a while, the generation stops, because tokens cost money. And when the answer is complete, an event says so. The page then closes its connection, and does not reconnect, because there is nothing more to read about “{}”.
"#;
