//! Checks an implementation of [`Backend`] against the rules of the trait (feature
//! `backend-contract`). Authors of backends call the checks in their tests.
//!
//! The checks can run against a backend in memory as well as against a real server. They take
//! seconds, and do not delete the logs that they create. They use a log only through the trait, so
//! they do not cover two situations, which need tests of their own:
//!
//! - The server is killed, cut off, restored from a backup or replaced.
//! - The log contains records that were written by a program other than a hub.
//!
//! ```
//! use tower_sse::hub::backend::{MemoryBackend, contract};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # use std::{cell::RefCell, collections::HashMap};
//! let logs = RefCell::new(HashMap::new());
//! contract::check(async |name: &str, max_records| {
//!     logs.borrow_mut().entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone()
//! })
//! .await;
//! # }
//! ```

use super::{Appended, Backend, Bounds, Page, Position, Record, RecordKind};
use crate::BoxError;
use std::{collections::BTreeMap, fmt::Write, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};
use tokio::time::{sleep, timeout};

/// The time limit of a `read`, `follow` or `append_if_unchanged` call that does not have to wait
/// for a new record. A check of a backend panics if the call takes longer.
const SOON: Duration = Duration::from_secs(20);
/// The time within which a `follow` call must not return if there is no new record. A call that has
/// not returned by then counts as waiting for a record.
const A_WHILE: Duration = Duration::from_millis(200);
/// The maximum time that `evicted_records_are_reported` waits until the checked backend has evicted
/// records in the background.
const SETTLING: Duration = Duration::from_secs(1);
/// If the bounds of the log (the range of retained positions) have not changed for this time, the
/// check of a backend's retention assumes that the backend has finished evicting records in the
/// background.
const SETTLED: Duration = Duration::from_millis(250);
/// The pause between two calls of `bounds`, which returns the range of retained positions. A
/// backend may evict records in the background. So the check of its retention calls `bounds` until
/// the result does not change any more.
const INTERVAL: Duration = Duration::from_millis(50);
/// The number of records that the log of a check has to retain. Each check tests one rule of the
/// trait `Backend` with a log of its own. It appends fewer records, so the log retains all of them.
/// Only the check of the retention, which needs evicted records, uses another number.
const PLENTY: usize = 100_000;

/// Checks an implementation of [`Backend`] against the rules of the trait. Each check uses a log of
/// its own.
///
/// The first argument of `open` is the name of a log. The second is the approximate number of
/// records that this log has to retain. `open` connects to the log with this name, and creates an
/// empty log if the name is new. A check may call `open` several times with one name: each result
/// stands for another process.
///
/// # Panics
///
/// Panics at the first check that fails. The message says which rule the implementation violates.
pub async fn check<B: Backend>(open: impl AsyncFn(&str, usize) -> B) {
    // The futures of a backend can be large, and each check contains many.
    Box::pin(an_empty_log_ends_where_it_begins(&open("empty", PLENTY).await)).await;
    Box::pin(records_are_read_as_they_were_added(&open("records", PLENTY).await)).await;
    Box::pin(positions_rise(&open("positions", PLENTY).await)).await;
    Box::pin(a_long_log_is_read_in_pages(&open("pages", PLENTY).await)).await;
    Box::pin(dropping_follow_loses_no_record(&open("follow", PLENTY).await)).await;
    Box::pin(all_have_one_order([open("order", PLENTY).await, open("order", PLENTY).await])).await;
    Box::pin(concurrent_appends_share_no_position(async || open("concurrent", PLENTY).await)).await;
    Box::pin(changed_topics_refuse_an_append(&open("unchanged", PLENTY).await)).await;
    Box::pin(one_of_several_concurrent_appends_succeeds(async || open("race", PLENTY).await)).await;
    Box::pin(evicted_records_are_reported(&open("retention", 1000).await, 1000)).await;
}

/// Checks a log without appended records: reading it returns no record. Its eviction watermark
/// (`evicted_through`, the greatest position whose record may have been evicted) equals its last
/// position.
async fn an_empty_log_ends_where_it_begins<B: Backend>(log: &B) {
    let bounds = log.bounds().await.expect("bounds");
    assert_eq!(bounds.evicted_through, bounds.last, "an empty log ends where it begins");
    let page = log.read(&["topic".into()], bounds.last).await.expect("a page");
    assert_eq!(page.epoch, bounds.epoch, "a page has the epoch of the log");
    assert_eq!((page.records, page.through), (Vec::new(), bounds.last), "an empty log has nothing to read");
    assert!(page.evicted_through <= bounds.last, "an empty log has evicted nothing after its end");
}

/// Checks that records are read as they were appended, for topics of any name, every kind of
/// record, and events of any text.
async fn records_are_read_as_they_were_added<B: Backend>(log: &B) {
    let names =
        ["", "a", "a b", "a.b", "*", ">", "a/b", "=41", "ä", "日本語 🦀", "\0", "\r\n", "A", &"long".repeat(50)];
    let long = format!("data: {}\n\n", "long ".repeat(20_000));
    let events =
        ["\n", "data: \n\n", ": comment\n\n", "event: e\ndata: a\ndata: b\n\n", "retry: 7\ndata: 🦀\0\n\n", &long];
    let mut records = Vec::new();
    for name in names {
        let record = |kind, event: &str| Record { topic: name.into(), kind, event: event.to_owned().into() };
        records.extend(events.iter().map(|event| record(RecordKind::Event, event)));
        records.push(record(RecordKind::State, events[1]));
        records.extend([RecordKind::Finish, RecordKind::Remove].map(|kind| record(kind, "")));
    }
    let begin = log.bounds().await.expect("bounds").last;
    for record in &records {
        log.append(vec![record.clone()]).await.expect("it is added");
    }
    let followed = follow(log, begin, records.len()).await;
    let plain: Vec<_> = followed.iter().map(|(_, record)| record.clone()).collect();
    assert_eq!(plain, records, "what is followed is what was added");
    for name in names {
        let topic = Arc::<str>::from(name);
        let expected: Vec<_> = followed.iter().filter(|(_, record)| record.topic == topic).cloned().collect();
        assert_eq!(read(log, &[topic], begin).await, expected, "what is read of {name:?}");
    }
}

/// Checks that the positions of records increase, and that no other record is between the records
/// of one append.
async fn positions_rise<B: Backend>(log: &B) {
    let begin = log.bounds().await.expect("bounds").last;
    let mut before = begin;
    for size in [1, 1, 3, 100, 1] {
        let records: Vec<_> = (0..size).map(|n| record("topic", n)).collect();
        let Appended { epoch, position: last } = log.append(records.clone()).await.expect("they are added");
        assert_eq!(epoch, log.bounds().await.expect("bounds").epoch, "append returns the epoch of the log");
        let added = read(log, &["topic".into()], before).await;
        assert_eq!(added.last().map(|(position, _)| *position), Some(last), "append returns the position of the last");
        assert_eq!(added.iter().map(|(_, record)| record.clone()).collect::<Vec<_>>(), records);
        assert!(added[0].0 > before && added.is_sorted_by(|one, other| one.0 < other.0), "{before}: {added:?}");
        assert_eq!(log.bounds().await.expect("bounds").last, last);
        before = last;
    }
    // Reading can begin at any position, even in the middle of an append.
    let all = follow(log, begin, 106).await;
    for (n, (position, _)) in all.iter().enumerate() {
        assert_eq!(read(log, &["topic".into()], *position).await, all[n + 1..], "after {position}");
    }
    assert_eq!(follow(log, all[50].0, 55).await, all[51..], "followed from the middle of an append");
}

/// Checks that `read` returns a log of 10,000 records in pages. The end of each page has to be
/// after the requested position, even if the page has no record.
async fn a_long_log_is_read_in_pages<B: Backend>(log: &B) {
    let begin = log.bounds().await.expect("bounds").last;
    for batch in 0..50 {
        let topic = ["one", "two", "three"][batch % 3];
        log.append((0..200).map(|n| record(topic, batch * 200 + n)).collect()).await.expect("they are added");
    }
    let all = follow(log, begin, 10_000).await;
    for topics in [&["one"] as &[_], &["three", "one"], &["one", "two", "three"], &["none of them"]] {
        let topics: Vec<Arc<str>> = topics.iter().map(|topic| (*topic).into()).collect();
        let expected: Vec<_> = all.iter().filter(|(_, record)| topics.contains(&record.topic)).cloned().collect();
        assert_eq!(read(log, &topics, begin).await, expected, "{topics:?}");
    }
}

/// Checks that `follow` waits if there is no record, and that dropping its future loses no record.
async fn dropping_follow_loses_no_record<B: Backend>(log: &B) {
    let begin = log.bounds().await.expect("bounds").last;
    assert!(timeout(A_WHILE, log.follow(begin)).await.is_err(), "there is nothing yet, so it waits");
    let mut after = begin;
    let mut followed = Vec::new();
    for n in 0..100 {
        log.append(vec![record("topic", n)]).await.expect("it is added");
        // Both time limits are often too short for a page, so the future is often dropped.
        for patience in [Duration::ZERO, Duration::from_micros(300)] {
            if let Ok(page) = timeout(patience, log.follow(after)).await {
                let page = page.expect("a page");
                after = page.through;
                followed.extend(page.records);
            }
        }
    }
    if followed.len() < 100 {
        followed.extend(follow(log, after, 100 - followed.len()).await);
    }
    assert_eq!(followed, read(log, &["topic".into()], begin).await, "all of them, once and in order");
    assert_eq!(followed.len(), 100);
}

/// Checks that two processes that append at the same time read all records in the same order.
/// `logs` are two connections to one log. The records of one append have to stay together.
async fn all_have_one_order<B: Backend>(logs: [B; 2]) {
    const BATCHES: usize = 100;
    const BATCH: usize = 5;
    let begin = logs[0].bounds().await.expect("bounds").last;
    let add = async |who: usize| {
        let mut positions = Vec::new();
        for batch in 0..BATCHES {
            let records = (0..BATCH).map(|n| record(["one", "two"][who], batch * BATCH + n)).collect();
            positions.push(logs[who].append(records).await.expect("they are added").position);
        }
        positions
    };
    let count = 2 * BATCHES * BATCH;
    let seen = both(follow(&logs[0], begin, count), follow(&logs[1], begin, count));
    let ((one, two), (seen_by_one, seen_by_two)) = both(both(add(0), add(1)), seen).await;
    assert_eq!(seen_by_one, seen_by_two, "both see the same");
    let mut next = BTreeMap::new();
    for batch in seen_by_one.chunks(BATCH) {
        assert!(
            batch.iter().all(|(_, record)| record.topic == batch[0].1.topic),
            "an append is in one piece: {batch:?}"
        );
        for (position, found) in batch {
            let n = next.entry(found.topic.clone()).or_insert(0);
            assert_eq!(*found, record(&found.topic, *n), "at {position}");
            *n += 1;
        }
    }
    let last_of_each = |topic: &str| {
        let batches = seen_by_one.chunks(BATCH).filter(|batch| &*batch[0].1.topic == topic);
        batches.map(|batch| batch[BATCH - 1].0).collect::<Vec<_>>()
    };
    assert_eq!((last_of_each("one"), last_of_each("two")), (one, two), "each is where its append said");
}

/// Checks that concurrent `append` calls of two processes return different positions, and that a
/// process that connects afterwards appends at a greater position. Each call of `open` opens one
/// more connection to the same log.
async fn concurrent_appends_share_no_position<B: Backend>(open: impl AsyncFn() -> B) {
    const ROUNDS: usize = 10;
    const AT_ONCE: usize = 16;
    let logs = [open().await, open().await];
    let Bounds { epoch, last: begin, .. } = logs[0].bounds().await.expect("bounds");
    // A hub calls `bounds` before it appends, so this check does too.
    assert_eq!(logs[1].bounds().await.expect("bounds").epoch, epoch, "both processes find the same log");
    // The number of the last record of each append, by the position that the append returned.
    let mut returned = BTreeMap::new();
    let mut count = 0;
    for _ in 0..ROUNDS {
        let mut appends = Vec::new();
        for n in 0..AT_ONCE {
            let size = 1 + n % 3;
            let records = (count..count + size).map(|n| record("topic", n)).collect();
            count += size;
            let (log, last) = (&logs[n % 2], count - 1);
            appends.push(async move { (log.append(records).await.expect("an append succeeds"), last) });
        }
        for (appended, last) in all(appends).await {
            assert_eq!(appended.epoch, epoch, "append returns the epoch of the log that stored the records");
            let other = returned.insert(appended.position, last);
            assert_eq!(other, None, "two appends returned the position {}", appended.position);
        }
    }
    let late = open().await;
    let bounds = late.bounds().await.expect("bounds");
    assert_eq!(bounds.epoch, epoch, "a process that connects later finds the same log");
    assert!(bounds.last >= *returned.keys().max().expect("appends"), "bounds include all that append has returned");
    let next = late.append(vec![record("topic", count)]).await.expect("an append succeeds");
    assert!(next.position > bounds.last, "{next:?} is a new position after {bounds:?}");
    returned.insert(next.position, count);

    let stored = follow(&logs[0], begin, count + 1).await;
    assert!(stored.is_sorted_by(|one, other| one.0 < other.0), "no two records have the same position");
    let stored: BTreeMap<_, _> = stored.into_iter().collect();
    for (position, n) in returned {
        assert_eq!(stored.get(&position), Some(&record("topic", n)), "append returns the position of its last record");
    }
}

/// Checks that `append_if_unchanged` appends only if the log has the given epoch (the number of one
/// lifetime of the log), and no record of the topic after the given position. Otherwise,
/// `append_if_unchanged` has to append nothing.
async fn changed_topics_refuse_an_append<B: Backend>(log: &B) {
    let Bounds { epoch, last: begin, .. } = log.bounds().await.expect("bounds");
    // The log without the topics of the records that are not appended.
    let mut expected = Vec::new();
    let mut append = async |topic: &str, size: usize, since: Position| {
        let records: Vec<_> = (0..size).map(|n| record(topic, expected.len() + n)).collect();
        expected.extend(records.clone());
        let appended = append_if_unchanged(log, records, epoch, since).await;
        let appended = appended.unwrap_or_else(|| panic!("{topic:?} has not changed since {since}"));
        let bounds = log.bounds().await.expect("bounds");
        let stored = Appended { epoch: bounds.epoch, position: bounds.last };
        assert_eq!(appended, stored, "append_if_unchanged returns the end of the log, which it has moved");
        appended.position
    };
    // The topic has no record.
    let first = append("topic", 1, begin).await;
    // The position is the last record of the topic, and the end of the log.
    let batch = append("topic", 3, first).await;
    // Records of other topics come after the position.
    let mut other = append("other", 1, begin).await;
    for _ in 0..300 {
        other = append("other", 1, other).await;
    }
    append("topic 2", 2, batch).await;
    let last = append("topic", 1, batch).await;
    append("other", 1, other).await;
    // The position is the end of the log, and not of the topic.
    let end = append("topi", 1, begin).await;
    let last_of_topic = append("topic", 2, end).await;
    let end = append("other", 1, end).await;

    let stored = follow(log, begin, expected.len()).await;
    assert_eq!(stored.iter().map(|(_, record)| record.clone()).collect::<Vec<_>>(), expected, "all are in the log");
    // The first record of an append, which is before its position.
    let inner = stored.iter().rev().nth(2).expect("a record").0;
    assert!(inner < last_of_topic && inner > last, "{inner}");
    for (since, epoch, reason) in [
        (begin, epoch, "the topic has records after the position"),
        (first, epoch, "the topic has records after the position"),
        (last, epoch, "the topic has records after the position"),
        (inner, epoch, "the topic has another record of the same append after the position"),
        (last_of_topic, epoch ^ 1, "the log has another epoch"),
        (end, epoch.wrapping_add(1 << 40), "the log has another epoch"),
    ] {
        let refused = append_if_unchanged(log, vec![record("topic", 0), record("topic", 1)], epoch, since).await;
        assert_eq!(refused, None, "append_if_unchanged refuses records if {reason}: {since} in {first} to {end}");
        assert_eq!(log.bounds().await.expect("bounds").last, end, "a refused append stores nothing");
    }
    // A caller that has received no response calls again.
    let records = vec![record("topic", expected.len())];
    expected.extend(records.clone());
    for is_first in [true, false] {
        let appended = append_if_unchanged(log, records.clone(), epoch, last_of_topic).await;
        assert_eq!(appended.is_some(), is_first, "the second of two equal appends is refused");
    }
    let stored = follow(log, begin, expected.len()).await;
    assert_eq!(
        stored.into_iter().map(|(_, record)| record).collect::<Vec<_>>(),
        expected,
        "nothing else is in the log"
    );
}

/// Checks that exactly one of several concurrent `append_if_unchanged` calls with the same topic
/// and position succeeds. Each call of `open` opens one more connection to the same log.
async fn one_of_several_concurrent_appends_succeeds<B: Backend>(open: impl AsyncFn() -> B) {
    const ROUNDS: usize = 20;
    const AT_ONCE: usize = 4;
    const TOPICS: usize = 5;
    let logs = [open().await, open().await];
    let mut count = 0;
    for round in 0..ROUNDS {
        // The first rounds begin with a topic without records.
        let topic = format!("topic {}", round % TOPICS);
        let Bounds { epoch, last: since, .. } = logs[round % 2].bounds().await.expect("bounds");
        let mut appends = Vec::new();
        for n in 0..AT_ONCE {
            let (log, record) = (&logs[n % 2], record(&topic, count));
            count += 1;
            appends.push(async move {
                let appended = append_if_unchanged(log, vec![record.clone()], epoch, since).await;
                appended.map(|appended| (appended.position, record))
            });
        }
        let appended: Vec<_> = all(appends).await.into_iter().flatten().collect();
        assert_eq!(appended.len(), 1, "one of {AT_ONCE} appends after {since} succeeds: {appended:?}");
        assert_eq!(read(&logs[0], &[topic.into()], since).await, appended, "the refused appends store nothing");
    }
}

/// Checks that evicted records are reported to a reader that may have missed them, and to no other
/// reader. `max_records` is the number of records that the log retains, approximately.
async fn evicted_records_are_reported<B: Backend>(log: &B, max_records: usize) {
    let topics = ["topic".into()];
    let begin = log.bounds().await.expect("bounds").last;
    let mut appended = Vec::new();
    // Implementations may retain more records than the limit, so this check appends four times the
    // limit.
    for n in 0..max_records * 4 {
        appended.push(log.append(vec![record("topic", n)]).await.expect("it is added").position);
    }
    let bounds = settled_bounds(log).await;
    let retained = appended.iter().filter(|position| **position > bounds.evicted_through).count();
    assert!((max_records..max_records * 3).contains(&retained), "about {max_records} are retained: {retained}");
    assert_eq!(bounds.last, appended[appended.len() - 1]);
    // Evicted records may have been of any topic.
    let refused = append_if_unchanged(log, vec![record("another", 0)], bounds.epoch, begin).await;
    assert_eq!(refused, None, "append_if_unchanged refuses records if records after the position were evicted");
    let oldest = appended.len() - retained;
    for (after, is_evicted) in [
        (begin, true),
        (appended[0], true),
        (appended[oldest - 2], true),
        // No record is between the newest evicted and the oldest retained record.
        (appended[oldest - 1], false),
        (appended[oldest], false),
        (bounds.last, false),
    ] {
        let first = appended[oldest..].iter().find(|position| **position > after).copied();
        let read = first_record(log, async |after| log.read(&topics, after).await, after).await;
        assert_eq!(read, (is_evicted, first), "an eviction, and the oldest retained record, read after {after}");
        if after < bounds.last {
            let followed = first_record(log, async |after| log.follow(after).await, after).await;
            assert_eq!(followed, (is_evicted, first), "followed after {after}");
        }
    }
}

/// Requests pages after the position `after` until a page has a record, or ends at the end of the
/// log. The first page may only report evicted records. `page` requests a page. Returns whether a
/// page has reported evicted records, and the position of the first record.
async fn first_record<B: Backend>(
    log: &B,
    page: impl AsyncFn(Position) -> Result<Page, BoxError>,
    mut after: Position,
) -> (bool, Option<Position>) {
    let bounds = log.bounds().await.expect("bounds");
    let mut is_evicted = false;
    loop {
        let page = timeout(SOON, page(after)).await.expect("it does not wait").expect("a page");
        assert!(page.evicted_through <= bounds.evicted_through, "a page has no greater watermark than the log");
        is_evicted |= page.evicted_through > after;
        let first = page.records.first().map(|(position, _)| *position);
        if first.is_some() || page.through >= bounds.last {
            return (is_evicted, first);
        }
        assert!(page.through > after, "a page leads on: {page:?} after {after}");
        after = page.through;
    }
}

/// Waits for the backend to evict records in the background, and returns the bounds of the log (the
/// range of retained positions). The wait ends when the bounds have not changed for 250
/// milliseconds ([`SETTLED`]), but at the latest after a second ([`SETTLING`]).
async fn settled_bounds<B: Backend>(log: &B) -> Bounds {
    let mut bounds = log.bounds().await.expect("bounds");
    let (mut waited, mut unchanged) = (Duration::ZERO, Duration::ZERO);
    while unchanged < SETTLED && waited < SETTLING {
        sleep(INTERVAL).await;
        let next = log.bounds().await.expect("bounds");
        unchanged = if next == bounds { unchanged + INTERVAL } else { Duration::ZERO };
        waited += INTERVAL;
        bounds = next;
    }
    bounds
}

/// Polls both futures concurrently until both have completed.
async fn both<A: Future, B: Future>(one: A, other: B) -> (A::Output, B::Output) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let mut done = (None, None);
    poll_fn(|cx| {
        if done.0.is_none() {
            done.0 = ready(one.as_mut().poll(cx));
        }
        if done.1.is_none() {
            done.1 = ready(other.as_mut().poll(cx));
        }
        match (done.0.take(), done.1.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            some => {
                done = some;
                Poll::Pending
            }
        }
    })
    .await
}

/// Polls all futures concurrently until all have completed. The outputs have the order of the
/// futures.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<_> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            *output = ready(future.as_mut().poll(cx));
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn record(topic: &str, n: usize) -> Record {
    let mut event = String::new();
    write!(event, "data: {n}\n\n").expect("a String takes all");
    Record { topic: topic.into(), kind: RecordKind::Event, event: event.into() }
}

async fn append_if_unchanged<B: Backend>(
    log: &B,
    records: Vec<Record>,
    epoch: u64,
    since: Position,
) -> Option<Appended> {
    let append = timeout(SOON, log.append_if_unchanged(records, epoch, since));
    append.await.expect("it does not wait").expect("append_if_unchanged returns no error")
}

/// Reads the records of `topics` from the position `after` to the end of the log, page by page.
async fn read<B: Backend>(log: &B, topics: &[Arc<str>], mut after: Position) -> Vec<(Position, Record)> {
    let Bounds { epoch, last, .. } = log.bounds().await.expect("bounds");
    let mut records = Vec::new();
    while after < last {
        let page = timeout(SOON, log.read(topics, after)).await.expect("it does not wait").expect("a page");
        assert_eq!(page.epoch, epoch, "a page has the epoch of the log");
        assert!(page.evicted_through <= after, "no record after {after} was evicted: {}", page.evicted_through);
        assert!(page.through > after, "a page leads on: {page:?} after {after}");
        assert!(page.records.iter().all(|(position, _)| *position > after && *position <= page.through), "{page:?}");
        after = page.through;
        records.extend(page.records);
    }
    records
}

/// Calls `follow` until exactly `count` records after the position `after` have arrived. Panics if
/// there are more.
async fn follow<B: Backend>(log: &B, mut after: Position, count: usize) -> Vec<(Position, Record)> {
    let epoch = log.bounds().await.expect("bounds").epoch;
    let mut records = Vec::new();
    while records.len() < count {
        let page = timeout(SOON, log.follow(after)).await.expect("there are more").expect("a page");
        assert_eq!(page.epoch, epoch, "a page has the epoch of the log");
        assert!(page.evicted_through <= after, "no record after {after} was evicted: {}", page.evicted_through);
        assert!(page.through > after, "a page leads on: {page:?} after {after}");
        after = page.through;
        records.extend(page.records);
    }
    assert_eq!(records.len(), count, "and no more than there are");
    records
}
