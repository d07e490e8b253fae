//! The answer of a language model, word by word: who loses the connection or reloads the page reads on in the same answer.
//!
//! ```console
//! $ cargo run --example llm                         # http://127.0.0.1:3000
//! $ cargo run --example llm 127.0.0.1:0 20          # any free port, a word every 20 milliseconds
//! $ cargo run --example llm 127.0.0.1:0 20 5        # nobody has listened for 5 seconds: it stops writing
//! ```
//!
//! There is no model in it: the function `model` makes the answer up, and is what to replace.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header::LOCATION},
    response::{Html, IntoResponse, Result},
    routing::{get, post},
};
use std::{
    collections::HashMap,
    env,
    hash::{BuildHasher, RandomState},
    pin::pin,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{Hub, Start, Subscription, Topic},
};

/// How many characters a prompt can have, and how many tokens an answer.
const MAX_PROMPT: usize = 2000;
const MAX_TOKENS: usize = 4000;
/// How many answers are written at once, and how many can be read.
const MAX_WRITTEN: usize = 16;
const MAX_READABLE: usize = 1000;
/// How long the writing of an answer can take, and from its beginning on, for how long it can be read.
const TO_WRITE: Duration = Duration::from_secs(20 * 60);
const READABLE: Duration = Duration::from_secs(60 * 60);

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
        return Err(format!("a word every {pace:?}? Give milliseconds, from 1 to 10000").into());
    };
    let Ok(patience @ 1..=3600) = patience.parse() else {
        return Err(format!("stop when nobody has listened for {patience:?}? Give seconds, from 1 to 3600").into());
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser", listener.local_addr()?);

    // An answer that can be read can be read from its beginning: the hub holds all of it, and a little longer than that.
    let age = READABLE + Duration::from_secs(60);
    let app = Arc::new(App {
        hub: Hub::builder().max_events(MAX_TOKENS + 2).max_age(age).max_topics(MAX_READABLE).build(),
        answers: Mutex::default(),
        room: Arc::new(Semaphore::new(MAX_WRITTEN)),
        pace: Duration::from_millis(pace),
        patience: Duration::from_secs(patience),
    });
    let app = Router::new()
        .route("/", get(Html(include_str!("llm.html"))))
        .route("/answers", post(ask))
        .route("/answers/{id}", get(read))
        .with_state(app)
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(axum::serve(listener, app).await?)
}

struct App {
    hub: Hub,
    /// Those that can be read, and when they were begun.
    answers: Mutex<HashMap<String, (Instant, Topic)>>,
    room: Arc<Semaphore>,
    pace: Duration,
    patience: Duration,
}

#[derive(serde::Deserialize)]
struct Question {
    prompt: String,
}

/// Begins an answer, which is then written whether the one who asked stays connected or not.
async fn ask(State(app): State<Arc<App>>, Json(Question { prompt }): Json<Question>) -> Result<impl IntoResponse> {
    let length = prompt.trim().chars().count();
    if !(1..=MAX_PROMPT).contains(&length) {
        let why = format!("A prompt has 1 to {MAX_PROMPT} characters, and this one has {length}");
        return Err((StatusCode::BAD_REQUEST, why).into());
    }
    let place = Arc::clone(&app.room).try_acquire_owned().map_err(|_| {
        let why = format!("{MAX_WRITTEN} answers are being written, which is the limit. Try again in a while");
        (StatusCode::SERVICE_UNAVAILABLE, why)
    })?;

    // Who knows the id can read the answer. Each `RandomState` has random keys.
    let id: String = (0..2).map(|_| format!("{:016x}", RandomState::new().hash_one(&prompt))).collect();
    let topic = app.hub.topic(format!("answer/{id}"));
    let begun = Instant::now();
    // The first event, for a page that knows nothing but the id. If the hub has too many topics already, it says so here.
    topic.publish(Event::json(&prompt).expect("text is JSON").event("prompt")).await?;
    let mut answers = app.answers.lock().unwrap();
    answers.retain(|_, (begun, _)| begun.elapsed() < READABLE);
    answers.insert(id.clone(), (begun, topic.clone()));
    drop(answers);

    tokio::spawn(async move {
        let _until_it_is_written = place;
        if let Err(error) = write(&app, &topic, &prompt).await {
            eprintln!("{topic:?}: {error}");
        }
    });
    Ok((StatusCode::CREATED, [(LOCATION, format!("/answers/{id}"))], Json(serde_json::json!({ "id": id }))))
}

/// All of an answer for a client that is new, and what is missing for one that comes back.
async fn read(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>> {
    // Whoever subscribes to a topic makes it, so an id that somebody made up must not get there.
    let answer = app.answers.lock().unwrap().get(&id).filter(|(begun, _)| begun.elapsed() < READABLE).cloned();
    let (_, topic) = answer.ok_or((StatusCode::NOT_FOUND, "There is no such answer, or it is no longer kept"))?;
    Ok(SseStream::new(topic.subscribe(last.or(Start::Earliest)).await?))
}

/// Publishes what the model says, and then why there is no more of it, so that a page knows not to come back.
async fn write(app: &App, topic: &Topic, prompt: &str) -> Result<(), BoxError> {
    let publish_all = async {
        let mut tokens = pin!(model(prompt, app.pace).take(MAX_TOKENS));
        while let Some(token) = tokens.next().await {
            // As JSON, spaces and line ends stay what they are.
            topic.publish(Event::json(&token?)?).await?;
        }
        Ok::<_, BoxError>(())
    };
    let end = tokio::select! {
        published = publish_all => match published {
            Ok(()) => Event::new("[DONE]").event("done"),
            Err(error) => Event::display(error).event("failed"),
        },
        () = nobody_listens(topic, app.patience) => Event::new("Nobody was listening").event("abandoned"),
        () = sleep(TO_WRITE) => Event::new("The model took too long").event("failed"),
    };
    topic.publish(end).await?;
    Ok(topic.finish().await?)
}

/// Waits until nobody has been listening for this long. A page that reconnects or is reloaded is away for a moment only.
async fn nobody_listens(topic: &Topic, patience: Duration) {
    let mut heard = Instant::now();
    while heard.elapsed() < patience {
        if topic.subscribers() > 0 {
            heard = Instant::now();
        }
        sleep(patience / 20).await;
    }
}

/// A stand-in for a language model, to be replaced by the client of a real one: it tells the same about every prompt.
fn model(prompt: &str, pace: Duration) -> impl Stream<Item = Result<String, BoxError>> + Send + use<> {
    let subject: String = prompt.trim().chars().take(60).collect();
    let answer = ANSWER.replace("{}", &subject);
    let words: Vec<_> = answer.split_inclusive(' ').map(|word| Ok(word.to_owned())).collect();
    tokio_stream::iter(words).throttle(pace)
}

const ANSWER: &str = r#"You ask about “{}”. There is no model behind this page, so here is what a model's answer goes through instead.

Every word that you see is an event of a topic. The topic is kept by the server, not by the connection: close this tab, and the answer goes on being written; open it again, and you read it from its first word. A second tab, or another device with the same address, reads the same answer at the same time, and none of them makes the writing slower.

When the connection is lost, the browser comes back by itself and says which event it saw last:

    GET /answers/4f1c… HTTP/1.1
    Last-Event-ID: fzk2m5qa-407

The server goes on with the one after it. So nothing is missing here, and nothing is here twice – not a word, not a <b>tag</b>, not one of the four  spaces before the lines above.

If nobody listens for a while, the writing stops: words cost money. And when the answer is complete, an event says so. The page closes its connection then, and does not come back, as there is nothing more to say about “{}”.
"#;
