//! The log in a file: it keeps the contract, and every acknowledged event, through crashes,
//! restarts, full disks and damage.

mod child;
mod clock;
mod crashes;
mod damage;
mod epochs;
mod folder;
mod recordings;
mod retention;

use child::Child;
use folder::{Folder, SOON, all, append, closed, event, open, record};
use futures_util::StreamExt;
use std::{
    collections::HashMap,
    fs::{self, File},
    pin::pin,
    sync::Mutex,
    time::Duration,
};
use tokio::time::timeout;
use tower_sse::{
    Event,
    hub::{
        ErrorKind, Hub, Start,
        backend::{Backend, Durability, FileBackend, contract},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_keeps_the_contract() {
    let folder = Folder::new();
    // One process at a time opens a file, so the connections of a check share the log.
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let log =
            || FileBackend::new(folder.path(name)).max_records(max_records as u64).durability(Durability::Process);
        logs.lock().unwrap().entry(name.to_owned()).or_insert_with(log).clone()
    })
    .await;
}

#[tokio::test]
async fn restarted_hub_resumes_clients_without_gap() {
    let folder = Folder::new();
    let mut ids = Vec::new();
    for restart in 0..3 {
        let hub = Hub::builder().file(folder.log()).connect().await.expect("the log opens");
        let topic = hub.topic("news");
        for n in 0..10 {
            ids.push(topic.publish(Event::new(format!("{restart}.{n}"))).await.expect("it is published"));
        }
        for (n, id) in ids.iter().enumerate() {
            let mut news = topic.subscribe(Start::After(id.clone())).await.expect("it subscribes");
            assert_eq!(news.gap(), None, "after {id}");
            let missed = ids.len() - 1 - n;
            let mut received = 0;
            while received < missed {
                received += event(&mut news).await.count();
            }
            assert_eq!(received, missed, "after {id}");
        }
        drop((hub, topic));
        closed(&folder).await;
    }
}

#[tokio::test]
async fn finished_topics_and_states_survive_a_restart() {
    let folder = Folder::new();
    let hub = Hub::builder().file(folder.log()).connect().await.unwrap();
    let state = hub.topic("state").latest_only();
    state.publish(Event::new("old")).await.unwrap();
    state.publish(Event::new("new")).await.unwrap();
    let last = hub.topic("end").publish(Event::new("last")).await.unwrap();
    hub.topic("end").finish().await.unwrap();
    drop((hub, state));
    closed(&folder).await;

    let hub = Hub::builder().file(folder.log()).connect().await.unwrap();
    let mut state = hub.topic("state").subscribe(Start::Earliest).await.unwrap();
    let events = event(&mut state).await;
    assert!(events.as_bytes().ends_with(b"data: new\n\n") && events.count() == 1, "{events:?}");
    let error = hub.topic("end").publish(Event::new("more")).await.expect_err("the topic stays finished");
    assert_eq!(error.kind(), ErrorKind::Finished);
    let mut end = hub.topic("end").subscribe(Start::After(last)).await.unwrap();
    while let Some(item) = timeout(SOON, end.next()).await.expect("the subscription ends") {
        assert!(item.unwrap().as_bytes().starts_with(b"event: hub-cursor"));
    }
}

#[tokio::test]
async fn second_process_gets_an_error_until_the_first_ends() {
    let folder = Folder::new();
    let mut first = Child::start("hold", &folder.log());
    assert_eq!(first.line().as_deref(), Some("open"));
    let error = open(&folder).bounds().await.expect_err("another process has opened it").to_string();
    assert!(error.contains("events.log") && error.contains("another process has opened it"), "{error}");
    first.kill();
    open(&folder).bounds().await.expect("the lock ends with the process");
    closed(&folder).await;

    let one = open(&folder);
    one.bounds().await.expect("it opens");
    let error = open(&folder).bounds().await.expect_err("the same process has opened it").to_string();
    assert!(error.contains("another process has opened it"), "{error}");
    assert!(one.clone().bounds().await.is_ok(), "clones share the log");
}

#[tokio::test]
async fn log_is_locked_without_its_mark() {
    for durability in [Durability::Disk, Durability::Process] {
        let folder = Folder::new();
        let log = |name| FileBackend::new(folder.path(name)).durability(durability);
        let first = log("events.log");
        let last = append(&first, "1").await;
        fs::remove_file(folder.mark()).unwrap();
        fs::hard_link(folder.log(), folder.path("link")).unwrap();
        for name in ["events.log", "link"] {
            let error = log(name).bounds().await.expect_err("it is open").to_string();
            assert!(error.contains("another process has opened it"), "{durability:?}: {error}");
        }
        assert_eq!(append(&first, "2").await, last.next());
    }
}

#[tokio::test]
#[clippy::msrv = "1.90"]
async fn open_waits_for_the_lock_of_the_file() {
    let folder = Folder::new();
    append(&open(&folder), "1").await;
    closed(&folder).await;
    let other = File::open(folder.log()).unwrap();
    other.lock().unwrap();
    let log = open(&folder);
    let mut opened = pin!(log.open());
    let is_pending = timeout(Duration::from_millis(50), &mut opened).await.is_err();
    assert!(is_pending, "the lock may end within a second");
    other.unlock().unwrap();
    opened.await.expect("the lock has ended");
}

#[tokio::test]
async fn open_waits_until_the_log_is_open() {
    let folder = Folder::new();
    let log = open(&folder);
    log.open().await.expect("it opens");
    assert!(folder.mark().exists(), "nothing else was called");
    let error = open(&folder).open().await.expect_err("it is open").to_string();
    assert!(error.contains("another process has opened it"), "{error}");
}

#[tokio::test]
async fn concurrent_publishers_share_commits() {
    const EVENTS: u64 = 512;
    let writes = |publishers: u64| {
        let folder = Folder::new();
        let mut child = Child::start(&format!("writes {publishers} {EVENTS}"), &folder.log());
        let writes: u64 = child.line().expect("a number").parse().expect("a number");
        writes
    };
    let (one, many) = (writes(1), writes(64));
    assert!(one > EVENTS, "each event of a single publisher is written before the next: {one}");
    assert!(many * 4 < one, "64 publishers share commits: {many} writes instead of {one}");
}

#[tokio::test]
async fn dropped_append_is_stored_once_or_not_at_all() {
    let folder = Folder::new();
    let log = open(&folder);
    append(&log, "first").await;
    for n in 0..200 {
        let append = log.append(vec![record(&format!("dropped {n}"))]);
        // Most futures are dropped while the append waits in the queue or is committed.
        let _ended = timeout(Duration::from_micros(n), append).await;
    }
    append(&log, "last").await;
    let records = all(&log).await;
    let mut numbers = Vec::new();
    for (_, record) in &records[1..records.len() - 1] {
        numbers.push(record.strip_prefix("dropped ").expect("a dropped append").parse::<u64>().expect("a number"));
    }
    assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
    assert_eq!(records[records.len() - 1].1, "last");
}
