//! Appends to a topic that has not changed: concurrent callers, lost responses and late requests.

use crate::{nats_wire::NatsWire, with_each_store};
use e2e::{Store, StoreKind, Wire, eventually};
use futures_util::future::join_all;
use std::{
    fmt::Display,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tower_sse::hub::backend::{
    Backend, Bounds, NatsBackend, Position, PostgresBackend, Record, RecordKind, RedisBackend,
};

const SOON: Duration = Duration::from_secs(20);

/// A request timeout that a busy machine does not exceed. One sync of its disk can take seconds.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);

/// The default of the request timeout, for tests in which requests get no response.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

with_each_store!(concurrent_callers_count_without_repetition, callers_count_without_repetition_during_faults);

pub(crate) fn redis(url: &str) -> RedisBackend {
    RedisBackend::new(url).expect("the URL is valid").timeout(PATIENT)
}

pub(crate) fn nats(url: &str) -> NatsBackend {
    NatsBackend::new(url).expect("the URL is valid").timeout(PATIENT)
}

pub(crate) fn postgres(url: &str) -> PostgresBackend {
    PostgresBackend::new(url).expect("the URL is valid").timeout(PATIENT)
}

pub(crate) fn record(topic: &str, data: impl Display) -> Record {
    Record::new(topic, RecordKind::Event, format!("data: {data}\n\n"))
}

/// Appends a record without a condition, and returns its position.
pub(crate) async fn append<B: Backend>(log: &B, topic: &str, data: impl Display) -> Position {
    log.append(vec![record(topic, data)]).await.expect("the server responds").position
}

/// Appends a record if the topic has not changed, and returns its position.
pub(crate) async fn append_if_unchanged<B: Backend>(
    log: &B,
    topic: &str,
    data: impl Display,
    since: Position,
) -> Option<Position> {
    let epoch = log.bounds().await.expect("the server responds").epoch;
    let appended = log.append_if_unchanged(vec![record(topic, data)], epoch, since).await;
    appended.expect("the server responds").map(|appended| appended.position)
}

/// Returns the data of all retained records of a topic.
pub(crate) async fn read<B: Backend>(log: &B, topic: &str) -> Vec<String> {
    read_with_positions(log, topic).await.into_iter().map(|(_, data)| data).collect()
}

/// Repeats requests that fail: the timeout of a log under test can be short for a busy machine.
async fn read_with_positions<B: Backend>(log: &B, topic: &str) -> Vec<(Position, String)> {
    let mut after = Position::START;
    let mut records = Vec::new();
    while after < eventually(SOON, "the server responds", async || log.bounds().await).await.last {
        let page = eventually(SOON, "a page", async || log.read(&[topic.into()], after).await).await;
        records.extend(page.records.into_iter().map(|(position, record)| {
            let event = String::from_utf8_lossy(&record.event).into_owned();
            (position, event.trim().trim_start_matches("data: ").to_owned())
        }));
        after = page.through;
    }
    records
}

/// An append of a number after a position.
#[derive(Debug)]
struct Counted {
    since: Position,
    position: Position,
    number: usize,
}

/// Reads the last number of a topic and appends the next number, until the topic has `end` numbers.
/// Continues after errors. Returns what this caller has appended, and the number of errors.
async fn count<B: Backend>(
    log: &B,
    Bounds { epoch, last: begin, .. }: Bounds,
    end: impl Fn() -> usize,
) -> (Vec<Counted>, usize) {
    let (mut since, mut number, mut errors) = (begin, 0, 0);
    let mut counted = Vec::new();
    loop {
        let Ok(page) = log.read(&["count".into()], since).await else {
            errors += 1;
            sleep(Duration::from_millis(1)).await;
            continue;
        };
        number += page.records.len();
        since = page.through;
        if number >= end() {
            return (counted, errors);
        }
        match log.append_if_unchanged(vec![record("count", number)], epoch, since).await {
            Ok(appended) => {
                counted.extend(appended.map(|appended| Counted { since, position: appended.position, number }));
            }
            Err(_) => errors += 1,
        }
    }
}

/// Callers of two processes count together, while another topic has records. Returns the number of
/// errors.
pub(crate) async fn count_together<B: Backend>(logs: &[B; 2], callers: usize, end: impl Fn() -> usize) -> usize {
    // The connection may already have a fault.
    let bounds = eventually(SOON, "the server responds", async || logs[0].bounds().await).await;
    let is_over = AtomicBool::new(false);
    let noise = async {
        let mut noise = 0;
        while !is_over.load(Relaxed) {
            noise += usize::from(logs[0].append(vec![record("noise", noise)]).await.is_ok());
            sleep(Duration::from_millis(2)).await;
        }
        noise
    };
    let counting = async {
        let begin = Instant::now();
        let counted = join_all((0..callers).map(|n| count(&logs[n % 2], bounds, &end))).await;
        is_over.store(true, Relaxed);
        (counted, begin.elapsed())
    };
    let both = timeout(6 * SOON, async { tokio::join!(counting, noise) }).await;
    let ((counted, elapsed), noise) = both.expect("the callers count to the end");
    let errors = counted.iter().map(|(_, errors)| errors).sum();
    let mut counted: Vec<_> = counted.into_iter().flat_map(|(counted, _)| counted).collect();
    let stored = read_with_positions(&logs[1], "count").await;
    println!("{} numbers and {noise} other records in {elapsed:?}, {errors} errors", stored.len());
    assert!(stored.len() >= end());
    counted.sort_unstable_by_key(|counted| counted.position);
    for pair in counted.windows(2) {
        assert!(pair[0].position <= pair[1].since, "another record is between the two positions: {pair:?}");
    }
    for (position, number) in counted.iter().map(|counted| (counted.position, counted.number.to_string())) {
        assert!(stored.contains(&(position, number)), "the log has what the callers have appended: {position}");
    }
    // Appends whose responses were lost are in the log as well.
    assert!(counted.len() + errors >= stored.len(), "each record is of one append");
    let expected = (0..stored.len()).map(|number| number.to_string());
    assert!(stored.iter().map(|(_, number)| number.clone()).eq(expected), "each number is in the log once: {stored:?}");
    errors
}

async fn concurrent_callers_count_without_repetition(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let errors = match kind {
        StoreKind::Redis => count_together(&[(); 2].map(|()| redis(&store.url())), 6, || 300).await,
        StoreKind::Nats => count_together(&[(); 2].map(|()| nats(&store.url())), 6, || 300).await,
        StoreKind::Postgres => count_together(&[(); 2].map(|()| postgres(&store.url())), 6, || 300).await,
    };
    assert_eq!(errors, 0);
}

async fn callers_count_without_repetition_during_faults(kind: StoreKind) {
    const ROUNDS: usize = 9;
    const TIMEOUT: Duration = Duration::from_millis(600);

    let mut store = Store::start(kind, &[]).await;
    let wire = Wire::to(store.address()).await;
    let urls = [store.url(), store.url_through(&wire)];
    // The callers count until the faults are over, and ten more numbers.
    let end = AtomicUsize::new(usize::MAX);
    let faults = async {
        for round in 0..ROUNDS {
            sleep(Duration::from_millis(300)).await;
            match round % 3 {
                0 => wire.silence_responses(),
                1 => wire.cut(),
                _ => {
                    store.kill();
                    store.restart().await;
                }
            }
            sleep(TIMEOUT).await;
            wire.mend();
        }
        end.store(records_of_count(kind, &urls[0]).await + 10, Relaxed);
    };
    let counting = async {
        let end = || end.load(Relaxed);
        match kind {
            StoreKind::Redis => count_together(&[0, 1].map(|n| redis(&urls[n]).timeout(TIMEOUT)), 6, end).await,
            StoreKind::Nats => count_together(&[0, 1].map(|n| nats(&urls[n]).timeout(TIMEOUT)), 6, end).await,
            StoreKind::Postgres => count_together(&[0, 1].map(|n| postgres(&urls[n]).timeout(TIMEOUT)), 6, end).await,
        }
    };
    let (errors, ()) = tokio::join!(counting, faults);
    assert!(errors >= ROUNDS, "the callers noticed {errors} errors");
}

/// Returns the number of records of the topic that is counted.
async fn records_of_count(kind: StoreKind, url: &str) -> usize {
    match kind {
        StoreKind::Redis => read(&redis(url), "count").await.len(),
        StoreKind::Nats => read(&nats(url), "count").await.len(),
        StoreKind::Postgres => read(&postgres(url), "count").await.len(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_stores_one_copy_if_the_response_is_lost() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (near, far) = (redis(&store.url()), redis(&store.url_through(&wire)).timeout(DEFAULT_TIMEOUT));
    let Bounds { epoch, last, .. } = far.bounds().await.expect("the server responds");
    // The server has loaded the script after this.
    let since = append_if_unchanged(&far, "news", 0, last).await.expect("the topic has no record");
    wire.silence_responses();
    let lost = far.append_if_unchanged(vec![record("news", 1)], epoch, since).await;
    lost.expect_err("the response is lost");
    wire.mend();
    assert_eq!(append_if_unchanged(&far, "news", 1, since).await, None, "the first call has appended");
    assert_eq!(read(&near, "news").await, ["0", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_refuses_a_request_that_arrives_late() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (near, far) = (redis(&store.url()), redis(&store.url_through(&wire)).timeout(DEFAULT_TIMEOUT));
    let Bounds { epoch, last, .. } = far.bounds().await.expect("the server responds");
    let since = append_if_unchanged(&far, "news", 0, last).await.expect("the topic has no record");
    wire.silence();
    let late = far.append_if_unchanged(vec![record("news", "late")], epoch, since).await;
    late.expect_err("the request does not arrive");
    append_if_unchanged(&near, "news", "taken over", since).await.expect("the topic has no newer record");
    wire.mend();
    assert_eq!(append_if_unchanged(&far, "news", "late", since).await, None);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(read(&near, "news").await, ["0", "taken over"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_repeats_a_message_and_stores_one_copy() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    assert_one_copy_if_acknowledgement_is_lost(&nats(&store.url()), nats(&wire.url()), &wire).await;
}

/// The acknowledgement of the first attempt is lost. The second attempt is equal.
pub(crate) async fn assert_one_copy_if_acknowledgement_is_lost(near: &NatsBackend, far: NatsBackend, wire: &NatsWire) {
    let since = far.bounds().await.expect("the server responds").last;
    for is_first in [true, false] {
        wire.lose_acknowledgements(1);
        let since = if is_first { since } else { append(near, "news", "other").await };
        let appended = append_if_unchanged(&far, "news", "mine", since).await;
        assert_eq!(wire.acknowledgements_to_lose(), 0, "the acknowledgement is lost");
        let last = near.bounds().await.expect("the server responds").last;
        assert_eq!(appended, Some(last), "the first attempt has stored it");
    }
    assert_eq!(read(near, "news").await, ["mine", "other", "mine"]);
    // Another record of the topic comes before the second attempt.
    let since = near.bounds().await.expect("the server responds").last;
    wire.lose_acknowledgements(1);
    let after_loss = async {
        while wire.acknowledgements_to_lose() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        append(near, "news", "another").await
    };
    let (appended, another) = tokio::join!(append_if_unchanged(&far, "news", "again", since), after_loss);
    let appended = appended.expect("the first attempt has stored it");
    assert!(appended > since && appended < another, "{since} {appended} {another}");
    assert_eq!(read(near, "news").await, ["mine", "other", "mine", "again", "another"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_refuses_both_attempts_of_a_late_message() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let (near, far) = (nats(&store.url()), nats(&wire.url()).timeout(Duration::from_secs(4)));
    far.bounds().await.expect("the server responds");
    let since = append(&near, "news", "before").await;
    wire.hold(true);
    let take_over = async {
        while wire.held() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        let appended = append_if_unchanged(&near, "news", "taken over", since).await;
        // The first attempt takes half of the timeout.
        sleep(Duration::from_millis(2500)).await;
        wire.hold(false);
        appended
    };
    let (late, taken_over) = tokio::join!(append_if_unchanged(&far, "news", "late", since), take_over);
    assert!(late.is_none() && taken_over.is_some(), "{late:?} {taken_over:?}");
    assert_eq!(read(&near, "news").await, ["before", "taken over"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_refuses_a_message_that_arrives_late() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let wire = NatsWire::to(store.address()).await;
    let (near, far) = (nats(&store.url()), nats(&wire.url()).timeout(DEFAULT_TIMEOUT));
    let Bounds { epoch, last, .. } = far.bounds().await.expect("the server responds");
    near.bounds().await.expect("the server responds");
    for since in [last, append(&near, "news", "before").await] {
        wire.hold(true);
        let topic = if since == last { "new" } else { "news" };
        far.append_if_unchanged(vec![record(topic, "late")], epoch, since).await.expect_err("it does not arrive");
        assert!(wire.held() > 0, "the message is held");
        append_if_unchanged(&near, topic, "taken over", since).await.expect("the topic has no newer record");
        wire.hold(false);
        let result = timeout(SOON, async {
            loop {
                match far.append_if_unchanged(vec![record(topic, "late")], epoch, since).await {
                    Ok(result) => return result,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        });
        assert_eq!(result.await.expect("the client reconnects"), None);
    }
    sleep(Duration::from_millis(300)).await;
    assert_eq!(read(&near, "new").await, ["taken over"]);
    assert_eq!(read(&near, "news").await, ["before", "taken over"]);
}
