//! Long jobs with progress bars: one connection tells how far they are and how they end, not a request every second.
//!
//! ```console
//! $ cargo run --example jobs                        # http://127.0.0.1:3000
//! $ cargo run --example jobs 127.0.0.1:0 20         # any free port, a step every 20 milliseconds
//! ```
//!
//! Start some jobs, let one fail, cancel another; reload the page in the middle, open it in a second tab, cut the network.
//! The page counts its requests. There is nothing to be done here: the function `work` pretends, and is what to replace.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header::LOCATION},
    response::{Html, IntoResponse, Result},
    routing::{get, post},
};
use std::{
    collections::HashMap,
    env,
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Semaphore, task::AbortHandle, time::sleep};
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Start, Subscription, Topic},
};

/// How many steps each job has.
const STEPS: u32 = 200;
/// In characters.
const LONGEST_NAME: usize = 60;
/// How many jobs are worked on at once, and how many can be asked for in one request.
const MAX_RUNNING: usize = 8;
const MAX_FOLLOWED: usize = 32;
/// How many jobs are known, and for how long, from their beginning on.
const MAX_KNOWN: usize = 1000;
const KNOWN: Duration = Duration::from_secs(60 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let pace = args.next().unwrap_or_else(|| "60".into());
    if let Err(error) = run(&address, &pace).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, pace: &str) -> Result<(), BoxError> {
    let Ok(pace @ 1..=10_000) = pace.parse() else {
        return Err(format!("a step every {pace:?}? Give milliseconds, from 1 to 10000").into());
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser", listener.local_addr()?);

    let app = Arc::new(App {
        // A topic is kept for so long after its last event, and a job is known for so long after its first.
        hub: Hub::builder().max_age(KNOWN).max_topics(MAX_KNOWN).build(),
        jobs: Mutex::default(),
        room: Arc::new(Semaphore::new(MAX_RUNNING)),
        pace: Duration::from_millis(pace),
    });
    let app = Router::new()
        .route("/", get(Html(include_str!("jobs.html"))))
        .route("/jobs", post(start))
        .route("/jobs/{id}", get(look).delete(cancel))
        .route("/jobs/{ids}/events", get(follow))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(app)
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(axum::serve(listener, app).await?)
}

struct App {
    hub: Hub,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    room: Arc<Semaphore>,
    pace: Duration,
}

struct Job {
    begun: Instant,
    status: Mutex<Status>,
    /// Each event is the whole status and replaces the one before it. So a page that is new or was reloaded needs nothing
    /// but the newest, one that was away is brought up to date by one event, and one that is slow leaves some out.
    topic: Topic,
    worker: Mutex<Option<AbortHandle>>,
}

/// What is known of a job: the data of each of its events, and what somebody gets who polls.
#[derive(Clone, serde::Serialize)]
struct Status {
    id: String,
    name: String,
    /// `progress`, and at the end `done`, `failed` or `cancelled`. Events are called the same.
    state: &'static str,
    done: u32,
    total: u32,
    message: String,
}

#[derive(serde::Deserialize)]
struct Order {
    name: String,
    /// Whether it is to fail, as there is nothing here that could.
    #[serde(default)]
    fails: bool,
}

/// Starts a job, and says where it is to be found. It goes on whether anybody looks or not.
async fn start(State(app): State<Arc<App>>, Json(order): Json<Order>) -> Result<impl IntoResponse> {
    let name = order.name.trim().to_owned();
    let length = name.chars().count();
    if !(1..=LONGEST_NAME).contains(&length) {
        let why = format!("A name has 1 to {LONGEST_NAME} characters, and this one has {length}");
        return Err((StatusCode::BAD_REQUEST, why).into());
    }
    let place = Arc::clone(&app.room).try_acquire_owned().map_err(|_| {
        let why = format!("{MAX_RUNNING} jobs are being worked on, which is the limit. Try again in a while");
        (StatusCode::SERVICE_UNAVAILABLE, why)
    })?;

    // Who knows the id can follow the job and cancel it. Each `RandomState` has random keys.
    let id: String = (0..2).map(|_| format!("{:016x}", RandomState::new().hash_one(&name))).collect();
    let status = Status { id: id.clone(), name, state: "progress", done: 0, total: STEPS, message: String::new() };
    let job = Arc::new(Job {
        begun: Instant::now(),
        status: Mutex::new(status),
        topic: app.hub.topic(format!("jobs/{id}")).latest_only(),
        worker: Mutex::default(),
    });
    // The first event. If the hub has too many topics already, it says so here.
    job.tell(|_| {}).await?;
    let worker = tokio::spawn(work(job.clone(), order.fails, app.pace));
    *job.worker.lock().unwrap() = Some(worker.abort_handle());
    let mut jobs = app.jobs.lock().unwrap();
    jobs.retain(|_, job| job.begun.elapsed() < KNOWN);
    jobs.insert(id.clone(), job.clone());
    drop(jobs);

    tokio::spawn(async move {
        let _until_it_has_ended = place;
        // However it ends, those who follow it are told: also when it panics.
        let (state, message) = match worker.await {
            Ok(Ok(())) => ("done", format!("All {STEPS} steps are done")),
            Ok(Err(error)) => ("failed", error.to_string()),
            Err(error) if error.is_cancelled() => ("cancelled", "Somebody has cancelled it".into()),
            Err(_) => ("failed", "It has panicked".into()),
        };
        let told = job.tell(|status| (status.state, status.message) = (state, message)).await;
        if let Err(error) = told.and(job.topic.finish().await) {
            eprintln!("{:?}: {error}", job.topic);
        }
    });
    Ok((StatusCode::ACCEPTED, [(LOCATION, format!("/jobs/{id}"))], Json(serde_json::json!({ "id": id }))))
}

/// What somebody gets who polls.
async fn look(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Status>> {
    let status = app.job(&id)?.status.lock().unwrap().clone();
    Ok(Json(status))
}

/// How far a job is, or several on one connection: `/jobs/1f…,9c…/events`. Over HTTP/1.1 a browser has six for all tabs.
///
/// It ends with the last of these jobs. Who comes back then with the last id gets `204 No Content`, and stays away.
async fn follow(
    State(app): State<Arc<App>>,
    Path(ids): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>> {
    let ids: Vec<_> = ids.split(',').collect();
    if ids.len() > MAX_FOLLOWED {
        let why = format!("{} jobs are too many at once: name at most {MAX_FOLLOWED}", ids.len());
        return Err((StatusCode::BAD_REQUEST, why).into());
    }
    // Whoever subscribes to a topic makes it, so an id that somebody made up must not get there.
    let mut topics = Vec::new();
    for id in ids {
        topics.push(app.job(id)?.topic.name().to_owned());
    }
    Ok(SseStream::new(app.hub.subscribe(topics, last.or(Start::Earliest)).await?))
}

/// Stops a job. That it has stopped its events tell. For one that has ended already it changes nothing.
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode> {
    if let Some(worker) = &*app.job(&id)?.worker.lock().unwrap() {
        worker.abort();
    }
    Ok(StatusCode::ACCEPTED)
}

impl App {
    fn job(&self, id: &str) -> Result<Arc<Job>, (StatusCode, &'static str)> {
        let job = self.jobs.lock().unwrap().get(id).filter(|job| job.begun.elapsed() < KNOWN).cloned();
        job.ok_or((StatusCode::NOT_FOUND, "There is no such job, or it is no longer known"))
    }
}

impl Job {
    async fn tell(&self, change: impl FnOnce(&mut Status)) -> Result<(), Error> {
        let status = {
            let mut status = self.status.lock().unwrap();
            change(&mut status);
            status.clone()
        };
        let event = Event::json(&status).expect("texts and numbers are JSON").event(status.state);
        self.topic.publish(event).await.map(drop)
    }
}

/// A stand-in for a long job, to be replaced by a real one. It tells of every step: nobody is made slower by that.
async fn work(job: Arc<Job>, fails: bool, pace: Duration) -> Result<(), BoxError> {
    for step in 1..=STEPS {
        sleep(pace).await;
        if fails && step > STEPS * 3 / 5 {
            return Err(format!("Step {step} has failed: the file ends too early").into());
        }
        job.tell(|status| {
            status.done = step;
            status.message = format!("Step {step} of {STEPS}");
        })
        .await?;
    }
    Ok(())
}
