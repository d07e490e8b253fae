//! Processes that are killed at any moment lose no acknowledged record.

use super::{
    child::{BATCH, Child, PUBLISHERS},
    folder::{Folder, all, append, closed, eventually, fill, open},
};
use std::{
    env, fs,
    hash::{BuildHasher, RandomState},
    iter,
    thread::sleep,
    time::Duration,
};
use tower_sse::hub::backend::{Backend, FileBackend, Position};

/// The number of kills. More find rarer faults: `ROUNDS=1000`.
fn rounds() -> u64 {
    env::var("ROUNDS").map_or(12, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_record_on_disk() {
    kill("disk", rounds()).await;
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_record_of_process() {
    kill("process", rounds()).await;
}

/// A log with much unused space is compacted when it is opened.
#[tokio::test]
async fn kill_9_during_compaction_loses_no_record() {
    const RETAINED: u64 = 2000;

    let template = Folder::new();
    fill(&open(&template), (0..20_000).map(|n| format!("{n} {}", "x".repeat(1000)))).await;
    closed(&template).await;
    let log = open(&template).max_records(RETAINED);
    append(&log, "evicts").await;
    // The log retains up to 1/64 more.
    let retained = async || log.bounds().await.map(|bounds| bounds.last.get() - bounds.evicted_through.get()).unwrap();
    eventually(async || retained().await <= RETAINED + RETAINED / 64).await;
    let expected = all(&log).await;
    drop(log);
    closed(&template).await;
    let len = |folder: &Folder| fs::metadata(folder.log()).unwrap().len();
    let mut compacting = 0;
    for round in 0..rounds() {
        let folder = Folder::new();
        fs::copy(template.log(), folder.log()).unwrap();
        fs::copy(template.mark(), folder.mark()).unwrap();
        let mut child = Child::start("hold", &folder.log());
        let random = RandomState::new().hash_one(round);
        // Every other process is killed after the compaction has begun to shorten the file.
        if round % 2 == 0 {
            eventually(async || len(&folder) < len(&template)).await;
            sleep(Duration::from_micros(random % 10_000));
        } else {
            sleep(Duration::from_micros(random % 150_000));
        }
        child.kill();
        let has_begun = len(&folder) < len(&template);
        compacting += u64::from(has_begun && child.line().is_none());
        let log = open(&folder);
        assert_eq!(all(&log).await, expected, "round {round}");
        append(&log, "next").await;
    }
    println!("{} kills, {compacting} of them during the compaction, after it had shortened the file", rounds());
    assert!(compacting > 0, "no process was killed during its compaction");
}

async fn kill(durability: &str, rounds: u64) {
    let mut folder = Folder::new();
    let mut known = None;
    let mut acknowledged = 0;
    for round in 0..rounds {
        // Every few rounds, a process is killed while it creates the log.
        if round % 6 == 5 {
            folder = Folder::new();
            known = None;
        }
        let mut child = Child::start(&format!("publish {round} {durability}"), &folder.log());
        let mut lines = Vec::new();
        // Every other process is killed after some appends, however busy the machine is. The others
        // may be killed while they open the log.
        if round % 2 == 0 {
            lines.extend((0..PUBLISHERS).map(|_| child.line().expect("an append is acknowledged")));
        }
        // An idle machine needs about 20 milliseconds until the first append.
        sleep(Duration::from_micros(RandomState::new().hash_one(round) % 120_000));
        child.kill();
        lines.extend(iter::from_fn(|| child.line()));
        let mut acks = [None; PUBLISHERS];
        for line in lines {
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
            acks[numbers[0] as usize] = Some((numbers[1], Position::new(numbers[2])));
            acknowledged += 1;
        }
        if !fs::exists(folder.log()).expect("a folder") {
            assert_eq!(acks, [None; PUBLISHERS]);
            continue;
        }
        known = Some(check(&open(&folder), round, acks, known).await);
        closed(&folder).await;
    }
    println!("{durability}: {rounds} kills, {acknowledged} acknowledged appends");
}

/// Checks the records of one round. Returns the epoch and the last position.
async fn check(
    log: &FileBackend,
    round: u64,
    acks: [Option<(u64, Position)>; PUBLISHERS],
    known: Option<(u64, Position)>,
) -> (u64, Position) {
    let bounds = log.bounds().await.expect("the log opens after a kill");
    if let Some((epoch, last)) = known {
        assert_eq!(bounds.epoch, epoch, "a kill begins no new epoch");
        assert!(bounds.last >= last, "{bounds:?} after {last}");
    }
    let records = all(log).await;
    for (publisher, ack) in acks.into_iter().enumerate() {
        let size = if publisher == PUBLISHERS - 1 { BATCH } else { 1 };
        let prefix = format!("{round} {publisher} ");
        let stored: Vec<_> = records.iter().filter_map(|(at, data)| Some((at, data.strip_prefix(&prefix)?))).collect();
        assert_eq!(stored.len() % size, 0, "a batch is stored as a whole");
        let first = stored.first().map_or(0, |(_, data)| data.split(' ').next().unwrap().parse().unwrap());
        for (index, (_, data)) in stored.iter().enumerate() {
            assert_eq!(*data, format!("{} {}", first + index / size, index % size), "once and in order");
        }
        let Some((n, position)) = ack else { continue };
        let found = stored.iter().rposition(|(_, data)| *data == format!("{n} {}", size - 1));
        let found = found.unwrap_or_else(|| panic!("append {n} of publisher {publisher} is lost: {stored:?}"));
        assert_eq!(*stored[found].0, position, "it has the acknowledged position");
        assert!(stored.len() - 1 - found <= size, "at most one append was not acknowledged");
        assert!(first == 0 || bounds.evicted_through > Position::START, "the first records are missing");
    }
    (bounds.epoch, bounds.last)
}
