//! Long jobs with progress bars. One event stream replaces a request every second.
//!
//! ```console
//! $ cargo run -p tower-sse --features serve,file --example jobs                   # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --features serve,file --example jobs 127.0.0.1:0 20    # any free port, a step every 20 milliseconds
//! $ cargo run -p tower-sse --features serve,file --example jobs 127.0.0.1:3000 60 jobs.log    # keeps its jobs in a file
//! ```
//!
//! Start some jobs, let one fail, and cancel another. Reload the page in the middle, open it in a
//! second tab, or cut the network. The page counts its requests. The function `work` only simulates
//! a job: replace it with a real one.
//!
//! With a file, the jobs survive the process. Kill it in the middle of a job and start it again:
//! the page reconnects, and the job continues after the last step that it has published. A real job
//! needs steps that may be repeated, because a step can be done and not yet published. The jobs do
//! not use `Topic::record`, because a graceful shutdown ends recordings.

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
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::sleep,
};
use tokio_stream::StreamExt;
use tower_sse::{
    BoxError, Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Published, Start, Subscription, Topic},
};

/// The number of steps of each job.
const STEPS: u32 = 200;
/// The limit for a name, in characters.
const MAX_NAME_LENGTH: usize = 60;
/// Limits for jobs that run at the same time, and for jobs in one event stream.
const MAX_RUNNING: usize = 8;
const MAX_FOLLOWED: usize = 32;
/// Limits for the jobs that the server remembers: their number, and the time since their start.
const MAX_JOBS: usize = 1000;
const RETENTION: Duration = Duration::from_secs(60 * 60);
/// The topic with an event for each job.
const ORDERS: &str = "jobs";

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let pace = args.next().unwrap_or_else(|| "60".into());
    let file = args.next();
    if let Err(error) = run(&address, &pace, file.as_deref()).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, pace: &str, file: Option<&str>) -> Result<(), BoxError> {
    let Ok(pace @ 1..=10_000) = pace.parse() else {
        return Err(format!("invalid time of a step {pace:?}: give milliseconds from 1 to 10000").into());
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser", listener.local_addr()?);

    // A topic outlives its job: it is retained for this time after its last event, and a job only
    // after its first. One more topic has the orders.
    let hub = Hub::builder().max_age(RETENTION).max_topics(MAX_JOBS + 1).max_topics_per_subscription(MAX_JOBS + 1);
    let app = Arc::new(App {
        hub: match file {
            Some(path) => hub.file(path).connect().await?,
            None => hub.build(),
        },
        jobs: Mutex::default(),
        permits: Arc::new(Semaphore::new(MAX_RUNNING)),
        pace: Duration::from_millis(pace),
    });
    app.restore().await?;
    let app = Router::new()
        .route("/", get(Html(include_str!("jobs.html"))))
        .route("/jobs", post(start))
        .route("/jobs/{id}", get(status).delete(cancel))
        .route("/jobs/{ids}/events", get(events))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(app)
        .layer(SseLayer::new().retry(Duration::from_secs(1)));
    Ok(tower_sse::serve(listener, app).await?)
}

struct App {
    hub: Hub,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    permits: Arc<Semaphore>,
    pace: Duration,
}

struct Job {
    order: Order,
    status: Mutex<Status>,
    /// Each event is the whole status, and replaces the event before. So one event is enough for a
    /// page that is new or reconnects, and a slow page skips events.
    topic: Topic,
    worker: Mutex<Option<AbortHandle>>,
}

/// An event of [`ORDERS`]: the part of a job that does not change.
#[derive(Clone, serde::Deserialize, serde::Serialize)]
struct Order {
    id: String,
    /// Makes the simulated job fail.
    fails: bool,
    /// The start of the job, in seconds since 1970.
    started: u64,
}

/// The status of a job: the data of its events, and the response to a client that polls.
#[derive(Clone, serde::Deserialize, serde::Serialize)]
struct Status {
    id: String,
    name: String,
    /// `progress`, and at the end `done`, `failed` or `cancelled`. Also the name of the event.
    state: JobState,
    done: u32,
    total: u32,
    message: String,
}

#[derive(Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum JobState {
    Progress,
    Done,
    Failed,
    Cancelled,
}

#[derive(serde::Deserialize)]
struct JobRequest {
    name: String,
    /// Makes the simulated job fail.
    #[serde(default)]
    fails: bool,
}

/// Starts a job, and returns its location. The job does not depend on a connection.
async fn start(State(app): State<Arc<App>>, Json(request): Json<JobRequest>) -> Result<impl IntoResponse> {
    let name = request.name.trim().to_owned();
    let length = name.chars().count();
    if !(1..=MAX_NAME_LENGTH).contains(&length) {
        let reason = format!("A name needs 1 to {MAX_NAME_LENGTH} characters, but this one has {length}");
        return Err((StatusCode::BAD_REQUEST, reason).into());
    }
    let permit = Arc::clone(&app.permits).try_acquire_owned().map_err(|_| {
        let reason = format!("{MAX_RUNNING} jobs are running, which is the limit. Try again later");
        (StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;

    // The id must be unguessable: with it, a client can follow the job and cancel it. Each
    // `RandomState` has random keys.
    let id: String = (0..2).map(|_| format!("{:016x}", RandomState::new().hash_one(&name))).collect();
    let order = Order { id: id.clone(), fails: request.fails, started: now() };
    let status =
        Status { id: id.clone(), name, state: JobState::Progress, done: 0, total: STEPS, message: String::new() };
    let job = app.new_job(order, status);
    // The first events. Publishing them fails if the hub has too many topics.
    let order = Event::json(&job.order).expect("strings and numbers serialize");
    app.hub.topic(ORDERS).publish(order).await?;
    job.update(|_| {}).await?;
    app.jobs.lock().unwrap().retain(|_, job| !job.is_expired());
    app.run(job, permit);
    Ok((StatusCode::ACCEPTED, [(LOCATION, format!("/jobs/{id}"))], Json(serde_json::json!({ "id": id }))))
}

/// Returns the status to a client that polls.
async fn status(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Status>> {
    let status = app.job(&id)?.status.lock().unwrap().clone();
    Ok(Json(status))
}

/// Streams the status of one or more jobs over one connection: `/jobs/1f…,9c…/events`. Over
/// HTTP/1.1, a browser has only six connections to a server for all tabs.
///
/// The stream ends with the last of these jobs. A client that reconnects with the last id then gets
/// `204 No Content`, which ends the reconnections.
async fn events(
    State(app): State<Arc<App>>,
    Path(ids): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>> {
    let ids: Vec<_> = ids.split(',').collect();
    if ids.len() > MAX_FOLLOWED {
        let reason = format!("Too many jobs ({}): name at most {MAX_FOLLOWED}", ids.len());
        return Err((StatusCode::BAD_REQUEST, reason).into());
    }
    // Subscribing creates the topic, so check ids from clients first.
    let mut topics = Vec::new();
    for id in ids {
        topics.push(app.job(id)?.topic.name().to_owned());
    }
    Ok(SseStream::new(app.hub.subscribe(topics, last.or(Start::Earliest)).await?))
}

/// Cancels a job. Its events report when it has ended. Has no effect on a job that has ended.
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode> {
    if let Some(worker) = &*app.job(&id)?.worker.lock().unwrap() {
        worker.abort();
    }
    Ok(StatusCode::ACCEPTED)
}

impl App {
    fn job(&self, id: &str) -> Result<Arc<Job>, (StatusCode, &'static str)> {
        let job = self.jobs.lock().unwrap().get(id).filter(|job| !job.is_expired()).cloned();
        job.ok_or((StatusCode::NOT_FOUND, "There is no such job, or it has expired"))
    }

    fn new_job(&self, order: Order, status: Status) -> Arc<Job> {
        let topic = self.hub.topic(format!("jobs/{}", order.id)).latest_only();
        Arc::new(Job { order, status: Mutex::new(status), topic, worker: Mutex::default() })
    }

    /// Runs a job in the background, from its next step.
    fn run(&self, job: Arc<Job>, permit: OwnedSemaphorePermit) {
        let worker = tokio::spawn(work(job.clone(), self.pace));
        *job.worker.lock().unwrap() = Some(worker.abort_handle());
        self.jobs.lock().unwrap().insert(job.order.id.clone(), job.clone());
        tokio::spawn(async move {
            let _permit_until_the_end = permit;
            // Subscribers learn of every end, also of a panic.
            let (state, message) = match worker.await {
                Ok(Ok(())) => (JobState::Done, format!("All {STEPS} steps are done")),
                Ok(Err(error)) => (JobState::Failed, error.to_string()),
                Err(error) if error.is_cancelled() => (JobState::Cancelled, "The job was cancelled".into()),
                Err(_) => (JobState::Failed, "The job panicked".into()),
            };
            let published = job.update(|status| (status.state, status.message) = (state, message)).await;
            if let Err(error) = published.and(job.topic.finish().await) {
                eprintln!("{:?}: {error}", job.topic);
            }
        });
    }

    /// Restores the jobs of an earlier process from the log, and continues the unfinished jobs.
    async fn restore(&self) -> Result<(), BoxError> {
        let mut orders = HashMap::new();
        for published in self.past([ORDERS.to_owned()]).await? {
            let order: Order = serde_json::from_str(&published.event.event_data().unwrap_or_default())?;
            orders.insert(format!("jobs/{}", order.id), order);
        }
        if orders.is_empty() {
            return Ok(());
        }
        // The last event of each topic is the status.
        let mut latest = HashMap::new();
        for published in self.past(orders.keys().cloned()).await? {
            latest.insert(published.topic.to_string(), published.event);
        }
        for (topic, event) in latest {
            let Some(order) = orders.remove(&topic) else { continue };
            let status: Status = serde_json::from_str(&event.event_data().unwrap_or_default())?;
            let has_ended = status.state != JobState::Progress;
            let job = self.new_job(order, status);
            if has_ended {
                // The process may have ended between the last event and the end of the topic.
                let _finished_already = job.topic.finish().await;
                self.jobs.lock().unwrap().insert(job.order.id.clone(), job);
            } else {
                self.run(job, Arc::clone(&self.permits).acquire_owned().await?);
            }
        }
        Ok(())
    }

    /// Returns the events of these topics until now.
    async fn past(&self, topics: impl IntoIterator<Item = String>) -> Result<Vec<Published>, BoxError> {
        Ok(self.hub.read(topics, Start::Earliest).await?.collect::<Result<_, _>>().await?)
    }
}

/// Returns the time in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Job {
    fn is_expired(&self) -> bool {
        Duration::from_secs(now().saturating_sub(self.order.started)) >= RETENTION
    }

    /// Changes the status, and publishes it.
    async fn update(&self, change: impl FnOnce(&mut Status)) -> Result<(), Error> {
        let status = {
            let mut status = self.status.lock().unwrap();
            change(&mut status);
            status.clone()
        };
        let name = match status.state {
            JobState::Progress => "progress",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        };
        let event = Event::json(&status).expect("strings and numbers serialize").event(name);
        self.topic.publish(event).await.map(drop)
    }
}

/// Simulates a long job. It publishes every step, because slow clients delay neither the job nor
/// other clients.
async fn work(job: Arc<Job>, pace: Duration) -> Result<(), BoxError> {
    let done = job.status.lock().unwrap().done;
    for step in done + 1..=STEPS {
        sleep(pace).await;
        if job.order.fails && step > STEPS * 3 / 5 {
            return Err(format!("Step {step} failed: the file ends too early").into());
        }
        job.update(|status| {
            status.done = step;
            status.message = format!("Step {step} of {STEPS}");
        })
        .await?;
    }
    Ok(())
}
