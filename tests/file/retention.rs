//! The retention by count, size and age, and the size of the file.

use super::folder::{Folder, SOON, all, all_with_gaps, append, closed, event, fill, open, record};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tower_sse::{
    Event, SseStream,
    hub::{
        GapReason, Hub, Start, Subscription,
        backend::{Backend, Position},
    },
};

#[tokio::test]
async fn newest_records_are_retained_by_count() {
    let folder = Folder::new();
    let log = open(&folder).max_records(100);
    let last = fill(&log, (0..1000).map(|n| n.to_string())).await;
    let records = all(&log).await;
    assert!((100..=101).contains(&records.len()), "{}", records.len());
    assert_eq!(records[records.len() - 1], (last, "999".to_owned()));
    let evicted_through = log.bounds().await.unwrap().evicted_through;
    assert_eq!(evicted_through.next(), records[0].0);
    let page = log.read(&["topic".into()], Position::START).await.unwrap();
    assert_eq!((page.evicted_through, page.records.len()), (evicted_through, records.len()));

    drop(log);
    closed(&folder).await;
    let log = open(&folder).max_records(10);
    append(&log, "1000").await;
    assert_eq!(all(&log).await.len(), 10, "a smaller limit applies to an existing log");
}

#[tokio::test]
async fn newest_records_are_retained_by_size() {
    let folder = Folder::new();
    let log = open(&folder).max_bytes(100_000);
    fill(&log, (0..1000).map(|n| format!("{n} {}", "x".repeat(1000)))).await;
    let records = all(&log).await;
    // A record takes 29 bytes, its topic, and its event.
    let size: usize = records.iter().map(|(_, data)| 29 + "topic".len() + "data: \n\n".len() + data.len()).sum();
    assert!((98_000..=102_000).contains(&size), "{size}");
    append(&log, &"x".repeat(1_000_000)).await;
    assert_eq!(all(&log).await.len(), 1, "the newest record is retained, whatever its size");
    append(&log, "small").await;
    assert_eq!(all(&log).await.len(), 1);
}

#[tokio::test]
async fn old_records_are_removed_without_an_append() {
    let folder = Folder::new();
    let age = Duration::from_secs(1);
    let log = open(&folder).max_age(age);
    let begin = Instant::now();
    let last = fill(&log, (0..3000).map(|n| n.to_string())).await;
    // On a busy machine, records may expire before they are read.
    let (records, _) = all_with_gaps(&log).await;
    assert!(records.len() == 3000 || begin.elapsed() >= age, "{} after {:?}", records.len(), begin.elapsed());
    while log.bounds().await.unwrap().evicted_through < last {
        assert!(begin.elapsed() < SOON, "the records do not expire");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(begin.elapsed() > age / 2, "they do not expire early");
    let page = log.follow(Position::START).await.unwrap();
    assert_eq!((page.evicted_through, page.through, page.records.len()), (last, last, 0));
    assert_eq!(append(&log, "next").await, last.next(), "no position is used twice");
    drop(log);
    closed(&folder).await;

    // The age counts while the log is closed.
    sleep(age * 2).await;
    let begin = Instant::now();
    let log = open(&folder).max_age(age);
    let bounds = log.bounds().await.unwrap();
    assert_eq!(bounds.last, last.next());
    while log.bounds().await.unwrap().evicted_through < bounds.last {
        assert!(begin.elapsed() < SOON, "the record does not expire");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the status of the response.
fn status(subscription: Subscription) -> u16 {
    SseStream::new(subscription).into_http_response().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn finished_topic_is_remembered_for_age_of_backend() {
    let (hour, day) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));
    let folder = Folder::new();
    let hub = Hub::builder().backend(open(&folder).max_age(day)).connect().await.unwrap();
    let topic = hub.topic("job");
    topic.publish(Event::new("done")).await.unwrap();
    topic.finish().await.unwrap();
    // A client of both topics has an id after the end of the job.
    let last = hub.topic("other").publish(Event::new("later")).await.unwrap();
    sleep(day - hour).await;
    assert_eq!(status(topic.subscribe(last).await.unwrap()), 204);
    assert_eq!(status(topic.subscribe(Start::Latest).await.unwrap()), 204);
    sleep(2 * hour + day / 16).await;
    assert_eq!(status(topic.subscribe(Start::Latest).await.unwrap()), 200, "the age of the backend is over");
}

#[tokio::test]
async fn backend_without_age_uses_age_of_hub() {
    let folder = Folder::new();
    let log = open(&folder);
    let hub = Hub::builder().max_age(Duration::from_millis(100)).backend(log.clone()).connect().await.unwrap();
    hub.topic("topic").publish(Event::new("old")).await.unwrap();
    let last = log.bounds().await.unwrap().last;
    let begin = Instant::now();
    while log.bounds().await.unwrap().evicted_through < last {
        assert!(begin.elapsed() < SOON, "the record does not expire");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn slow_client_gets_gap_then_oldest_retained_event() {
    let folder = Folder::new();
    let backend = open(&folder).max_records(100);
    let hub = Hub::builder().max_events(10).backend(backend).connect().await.unwrap();
    let topic = hub.topic("topic");
    let first = topic.publish(Event::new("first")).await.unwrap();
    for n in 0..10 {
        topic.publish_all((0..100).map(|part| Event::new(format!("{n}.{part}")))).await.unwrap();
    }
    let mut returning = topic.subscribe(Start::After(first)).await.unwrap();
    // The hub may read the last evictions only now, so the gap is certain with its event.
    let gap = event(&mut returning).await;
    assert!(String::from_utf8_lossy(gap.as_bytes()).contains("\nevent: gap\n"), "{gap:?}");
    assert_eq!(returning.gap().map(|gap| gap.reason()), Some(GapReason::Evicted));
    let mut received = 0;
    while received < 100 {
        received += event(&mut returning).await.count();
    }
    assert!((100..=101).contains(&received), "{received} of about 100 retained events");
}

#[tokio::test]
async fn file_stays_below_twice_the_retained_records() {
    // The records of an event stream with events of different sizes.
    for (size, max_bytes) in [(128, 2_000_000), (1000, 4_000_000), (3000, 4_000_000), (20_000, 8_000_000)] {
        let folder = Folder::new();
        let log = open(&folder).max_bytes(max_bytes);
        let mut largest = 0;
        for round in 0..60 {
            let records = max_bytes as usize / 10 / size;
            fill(&log, (0..records).map(|n| format!("{round} {n} {}", "x".repeat(size * (n % 3 + 1) / 2)))).await;
            // The blocks on the disk. The database makes the file longer in advance.
            largest = largest.max(fs::metadata(folder.log()).unwrap().blocks() * 512);
        }
        let bounds = log.bounds().await.unwrap();
        assert!(bounds.evicted_through > Position::START);
        println!("events of {size} bytes: {:.2} times {max_bytes}", largest as f64 / max_bytes as f64);
        assert!(largest < 2 * max_bytes, "events of {size} bytes: {largest} bytes for {max_bytes}");
    }
}

#[tokio::test]
async fn unused_space_is_freed_when_the_log_opens() {
    let folder = Folder::new();
    let len = || fs::metadata(folder.log()).unwrap().len();
    let log = open(&folder);
    fill(&log, (0..20_000).map(|n| format!("{n} {}", "x".repeat(1000)))).await;
    drop(log);
    closed(&folder).await;
    assert!(len() > 20_000_000, "{}", len());
    let log = open(&folder).max_records(100);
    append(&log, "evicts").await;
    let begin = Instant::now();
    while log.bounds().await.unwrap().evicted_through < Position::new(19_900) {
        assert!(begin.elapsed() < SOON, "the log does not become shorter");
        sleep(Duration::from_millis(5)).await;
    }
    drop(log);
    closed(&folder).await;
    let log = open(&folder).max_records(100);
    assert_eq!(log.append(vec![record("last")]).await.unwrap().position, Position::new(20_002));
    assert!(all(&log).await.len() >= 100);
    assert!(len() < 5_000_000, "{}", len());
}
