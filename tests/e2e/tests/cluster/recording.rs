//! Recordings whose node is killed or paused, or whose log loses events, with real servers.

use crate::{processes::Process, redis::Client, setup::two_hubs, with_each_store};
use e2e::{Store, StoreKind, eventually, request};
use std::{
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    sync::mpsc::{self, UnboundedSender},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};
use tower_sse::{
    Event,
    hub::{Hub, Outcome, Recording, Start},
};

with_each_store! {
    recordings_of_a_killed_node_end_after_the_lease,
    recordings_of_a_paused_node_get_nothing_after_their_end,
}

/// The lease of the `cluster` example.
const LEASE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(20);
/// The number of recordings in each round.
const JOBS: usize = 10;

/// Returns the number of rounds. `ROUNDS=20` makes 200 recordings.
fn rounds() -> usize {
    env::var("ROUNDS").map_or(2, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

/// Starts recordings on a node, and waits until each of them has published some events.
async fn start(node: SocketAddr, other: SocketAddr, round: usize) -> Vec<String> {
    let jobs: Vec<_> = (0..JOBS).map(|job| format!("{round}-{job}")).collect();
    let body = jobs.join("\n");
    let length = body.len();
    let response = request(node, &format!("POST /jobs HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")).await;
    assert!(response.starts_with("HTTP/1.0 200"), "{response}");
    for job in &jobs {
        eventually(SOON, "the other node has the recording", async || {
            let response = request(other, &format!("HEAD /jobs/{job} HTTP/1.0\r\n\r\n")).await;
            if response.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(response) }
        })
        .await;
    }
    // A random moment between two signs of life.
    sleep(Duration::from_millis((round * 173 % 1500) as u64)).await;
    jobs
}

/// Reads a topic to its end on a node. Returns the names and the data of its events.
async fn read(node: SocketAddr, job: &str) -> Vec<String> {
    let response = request(node, &format!("GET /jobs/{job} HTTP/1.0\r\n\r\n")).await;
    let (_, body) = response.split_once("\r\n\r\n").expect("it is a response");
    let events = whatwg::parse(body.as_bytes()).messages.into_iter();
    let events = events.filter(|event| event.r#type != "hub-cursor");
    events.map(|event| format!("{} {}", event.r#type, event.data)).collect()
}

/// Asserts that a topic has the events of its recording in order, and then the will.
fn assert_interrupted(job: &str, events: &[String]) {
    let steps = events.len().saturating_sub(1);
    let mut expected: Vec<_> = (0..steps).map(|step| format!("step {step}")).collect();
    expected.push("interrupted ".to_owned());
    assert_eq!(events, expected, "{job}");
}

/// Waits until all topics are finished. Returns the time since `begin` of each.
async fn wait_for_ends(node: SocketAddr, jobs: &[String], begin: Instant) -> Vec<Duration> {
    let mut readers = JoinSet::new();
    for job in jobs {
        let job = job.clone();
        readers.spawn(async move {
            let events = read(node, &job).await;
            assert_interrupted(&job, &events);
            begin.elapsed()
        });
    }
    readers.join_all().await
}

async fn recordings_of_a_killed_node_end_after_the_lease(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    // The third process competes with the second one.
    let mut processes = [Process::start(&store), Process::start(&store), Process::start(&store)];
    let other = processes[1].address();
    let (mut times, mut slowest) = (Vec::new(), Vec::new());
    for round in 0..rounds() {
        let jobs = start(processes[0].address(), other, round).await;
        let begin = Instant::now();
        processes[0].kill();
        let ends = wait_for_ends(other, &jobs, begin).await;
        slowest.extend(ends.iter().max().copied());
        times.extend(ends);
        processes[0].restart();
        for job in &jobs {
            assert_interrupted(job, &read(processes[0].address(), job).await);
        }
    }
    times.sort_unstable();
    let [median, most] = [times[times.len() / 2], times[times.len() - 1]];
    println!("{kind:?}: {} recordings end {median:?} after the kill in the median, {most:?} at most", times.len());
    // It is the lease and 0.1 s, if the machine has time for these processes in one of the rounds.
    assert!(slowest.iter().min() <= Some(&(LEASE * 3)), "{slowest:?}");
}

async fn recordings_of_a_paused_node_get_nothing_after_their_end(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let [paused, other] = [processes[0].address(), processes[1].address()];
    for round in 0..rounds() {
        let jobs = start(paused, other, round).await;
        processes[0].signal("STOP");
        wait_for_ends(other, &jobs, Instant::now()).await;
        processes[0].signal("CONT");
        sleep(LEASE).await;
        for job in &jobs {
            assert_interrupted(job, &read(paused, job).await);
            assert_interrupted(job, &read(other, job).await);
        }
    }
}

/// Starts a recording on the first node, with a client on the second one, in a log that a crash of
/// the server loses from the second event on. Both nodes have read the second event then: without
/// that, the first node could publish it again after the crash.
async fn record(hubs: &[Hub; 2], store: &Store) -> (UnboundedSender<Event>, Recording, Client) {
    let (sender, items) = mpsc::unbounded_channel();
    let recorder = hubs[0].topic("job").record(UnboundedReceiverStream::new(items)).lease(LEASE);
    let recording = recorder.will(Event::new("will")).end_with(Event::new("end")).start();
    let mut own_client = Client::of(&hubs[0].topic("job"), Start::Earliest).await;
    let mut client = Client::of(&hubs[1].topic("job"), Start::Earliest).await;
    for step in ["0", "1"] {
        sender.send(Event::new(step)).expect("the recording runs");
        own_client.assert_next(step).await;
        client.assert_next(step).await;
        if step == "0" {
            assert!(store.redis("SAVE").await.starts_with("+OK"));
        }
    }
    (sender, recording, client)
}

/// Asserts that the topic of a recording is finished on all nodes, without a last event.
async fn assert_finished_without_event(hubs: &[Hub; 2], recording: &Recording, mut client: Client) {
    assert_eq!(timeout(SOON, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(client.next().await.0, "gap");
    let last = timeout(SOON, client.subscription.next()).await.expect("the stream ends");
    assert!(last.is_none(), "an event follows the gap: {last:?}");
    sleep(LEASE * 3).await;
    for hub in hubs {
        let mut client = Client::of(&hub.topic("job"), Start::Earliest).await;
        while let Some(events) = timeout(SOON, client.subscription.next()).await.expect("the stream ends") {
            let events = String::from_utf8(events.expect("no error").as_bytes().to_vec()).expect("it is UTF-8");
            assert!(!events.contains("data: will") && !events.contains("data: end"), "{events}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_end_when_redis_is_flushed() {
    for _ in 0..rounds() {
        let store = Store::start(StoreKind::Redis, &["--appendonly", "no"]).await;
        let hubs = two_hubs(StoreKind::Redis, &store.url()).await;
        let (sender, recording, client) = record(&hubs, &store).await;
        assert!(store.redis("FLUSHALL").await.starts_with("+OK"));
        let _is_running = sender.send(Event::new("2"));
        assert_finished_without_event(&hubs, &recording, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_end_when_redis_restarts_without_newest_events() {
    for _ in 0..rounds() {
        let mut store = Store::start(StoreKind::Redis, &["--appendonly", "no"]).await;
        let hubs = two_hubs(StoreKind::Redis, &store.url()).await;
        let (sender, recording, client) = record(&hubs, &store).await;
        store.kill();
        store.restart().await;
        let _is_running = sender.send(Event::new("2"));
        assert_finished_without_event(&hubs, &recording, client).await;
    }
}
