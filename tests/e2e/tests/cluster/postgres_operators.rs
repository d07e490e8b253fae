//! Records that operators and other programs change: never a silent loss, and no node stops.

use crate::{
    postgres_sql::{application, data, start},
    unchanged::{append, postgres, record},
};
use e2e::{Store, StoreKind, eventually};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tower_sse::hub::backend::{Backend, Position, PostgresBackend};

const SOON: Duration = Duration::from_secs(20);

/// Waits until a server process waits for a lock of another one.
pub(crate) async fn a_request_waits(store: &Store) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually(SOON, "a request waits", async || if store.sql(waiting) == "0" { Err("none") } else { Ok(()) }).await;
}

/// Follows the log to its end. Returns the data of its records, and the missing ranges between them.
async fn all_with_gaps(log: &PostgresBackend) -> (Vec<String>, Vec<[u64; 2]>) {
    let last = log.bounds().await.expect("the server runs").last;
    let (mut after, mut data, mut gaps) = (Position::START, Vec::new(), Vec::new());
    while after < last {
        let page = timeout(SOON, log.follow(after)).await.expect("it does not wait").expect("a page");
        if page.evicted_through > after {
            gaps.push([after.next().get(), page.evicted_through.get()]);
        }
        assert!(page.through > after, "{page:?}");
        after = page.through;
        data.extend(page.records.iter().map(|(_, record)| String::from_utf8_lossy(&record.event).trim().to_owned()));
    }
    (data, gaps)
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_in_an_older_snapshot_is_reported() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let (store, log) = start().await;
        let operator = application(&store).await;
        append(&log, "t", 0).await;
        let begin = format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM tower_sse.records");
        operator.batch_execute(&begin).await.expect("the transaction sees one record");
        append(&log, "t", 1).await;
        let before = log.bounds().await.expect("the server runs");
        operator.batch_execute("TRUNCATE tower_sse.records").await.expect("it is the owner");
        // This node has not read any record.
        let node = postgres(&store.url());
        let reading = tokio::spawn(async move { node.read(&["t".into()], Position::START).await });
        a_request_waits(&store).await;
        operator.batch_execute("COMMIT").await.expect("it commits");
        let page = reading.await.expect("no panic");
        assert!(page.as_ref().map_or(true, |page| page.evicted_through == before.last), "{level}: {page:?}");
        let after = log.bounds().await.expect("the server runs");
        assert_eq!((after.epoch, after.last), (before.epoch, before.last), "{level}");
        assert_eq!(after.evicted_through, before.last, "{level}");
        assert!(append(&log, "t", 2).await > before.last, "{level}");
        assert_eq!(all_with_gaps(&log).await, (vec!["data: 2".to_owned()], vec![[1, before.last.get()]]), "{level}");
    }
}

/// The append waits for the lock of the table, in a snapshot from before the truncation.
#[tokio::test(flavor = "multi_thread")]
async fn append_during_a_truncation_keeps_the_epoch() {
    let (store, log) = start().await;
    append(&log, "t", 0).await;
    let before = log.bounds().await.expect("the server runs");
    let operator = application(&store).await;
    operator.batch_execute("BEGIN; TRUNCATE tower_sse.records").await.expect("it is the owner");
    let appending = tokio::spawn(async move { log.append(vec![record("t", 1)]).await });
    a_request_waits(&store).await;
    operator.batch_execute("COMMIT").await.expect("it commits");
    let appended = appending.await.expect("no panic").expect("the lock has ended");
    assert_eq!((appended.epoch, appended.position), (before.epoch, before.last.next()));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_in_an_older_snapshot_is_reported() {
    let (store, log) = start().await;
    let operator = application(&store).await;
    append(&log, "t", 0).await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tower_sse.records";
    operator.batch_execute(begin).await.expect("the transaction sees one record");
    append(&log, "t", 1).await;
    operator.batch_execute("DELETE FROM tower_sse.records; COMMIT").await.expect("it commits");
    assert_eq!(all_with_gaps(&log).await, (vec!["data: 1".to_owned()], vec![[1, 1]]));
}

/// Records before a deleted one count as evicted. The retention removes them.
#[tokio::test(flavor = "multi_thread")]
async fn records_before_a_deleted_one_are_removed() {
    let (store, log) = start().await;
    for n in 0..10 {
        append(&log, "t", n).await;
    }
    store.sql("DELETE FROM tower_sse.records WHERE position = 5");
    let node = postgres(&store.url()).max_records(1000).max_age(Duration::from_secs(3600));
    for _ in 0..2 {
        for n in 0..250 {
            append(&node, "t", n).await;
        }
    }
    eventually(SOON, "the records are removed", async || {
        let count = store.sql("SELECT count(*) FROM tower_sse.records WHERE position < 6");
        if count == "0" { Ok(()) } else { Err(count) }
    })
    .await;
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.records"), "505");
}

/// A node that finds many old records, for instance because its limit is smaller than before.
///
/// All tasks share one thread, so the request for the bounds is sent before the second batch of the
/// eviction at the latest. The requests of a node run in order.
#[tokio::test]
async fn append_does_not_wait_for_the_eviction_of_many_records() {
    const RECORDS: usize = 50_000;
    const BATCH: u64 = 1000;

    let (store, log) = start().await;
    store.sql(&format!(
        "INSERT INTO tower_sse.records SELECT nextval('tower_sse.positions'), 'e', 't', 'data: x\n\n', now()
         FROM generate_series(1, {RECORDS})"
    ));
    drop(log);
    let log = postgres(&store.url()).max_records(4);
    append(&log, "t", 1).await;
    let evicted = log.bounds().await.expect("the server runs").evicted_through;
    assert!(evicted.get() <= 2 * BATCH, "the append has waited for several batches: {evicted:?}");
    eventually(SOON, "the records are evicted", async || {
        let left = store.sql("SELECT count(*) FROM tower_sse.records").parse::<usize>().expect("a number");
        if left < 10 { Ok(()) } else { Err(left) }
    })
    .await;
}

/// A thousand large records would take longer than the timeout of a request.
#[tokio::test(flavor = "multi_thread")]
async fn eviction_deletes_large_records_in_smaller_batches() {
    let (store, log) = start().await;
    store.sql(
        "INSERT INTO tower_sse.records
         SELECT nextval('tower_sse.positions'), 'e', 't', convert_to(repeat('x', 1048576), 'UTF8'), now()
         FROM generate_series(1, 40)",
    );
    let evict = || store.sql("SELECT tower_sse.evict(1, 1e9, 1000, 8388608)");
    let count = || store.sql("SELECT count(*) FROM tower_sse.records");
    assert_eq!((evict().as_str(), count().as_str()), ("t", "32"));
    drop(log);
    let log = postgres(&store.url()).max_records(4);
    append(&log, "t", 1).await;
    eventually(SOON, "the records are evicted", async || {
        let left = count();
        if left.parse::<u32>().expect("a number") <= 5 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_ends_if_no_record_can_be_deleted() {
    let (store, log) = start().await;
    append(&log, "t", 0).await;
    let evict = || store.sql("SELECT tower_sse.evict(0, 1e9, 1000, 8388608)");
    store.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE DELETE ON tower_sse.records FOR EACH ROW EXECUTE FUNCTION keep()",
    );
    assert_eq!(evict(), "f", "the next batch would delete nothing, either");
    store.sql("DROP TRIGGER keep ON tower_sse.records");
    assert_eq!(evict(), "t");
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.records"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_record_of_another_program_is_a_gap() {
    let (store, log) = start().await;
    let huge = |topic: &str, event: &str| {
        store.sql(&format!(
            "INSERT INTO tower_sse.records
             SELECT nextval('tower_sse.positions'), 'e', convert_to({topic}, 'UTF8'), convert_to({event}, 'UTF8'), now()"
        ));
    };
    append(&log, "t", 0).await;
    huge("'t'", "'data: ' || repeat('x', 20000000)");
    huge("repeat('x', 20000000)", "'data: '");
    append(&log, "t", 1).await;
    append(&log, "other", 2).await;
    huge("repeat('x', 20000000)", "'data: '");
    append(&log, "t", 3).await;
    let expected = ["data: 0", "data: 1", "data: 2", "data: 3"].map(str::to_owned).to_vec();
    assert_eq!(all_with_gaps(&log).await, (expected, vec![[2, 2], [3, 3], [6, 6]]));
    let page = log.read(&["t".into()], Position::new(2)).await.expect("a page");
    assert_eq!((page.evicted_through, page.through), (Position::new(3), Position::new(3)));

    let large = vec![record("t", "x".repeat(16 << 20))];
    let epoch = log.bounds().await.expect("the server runs").epoch;
    for error in [
        log.append(large.clone()).await.expect_err("nodes would skip it").to_string(),
        log.append_if_unchanged(large, epoch, Position::new(7)).await.expect_err("nodes would skip it").to_string(),
    ] {
        assert!(error.contains("too large") && error.contains("16777216"), "{error}");
    }
    append(&log, "t", "x".repeat(15 << 20)).await;
    assert_eq!(log.read(&["t".into()], Position::new(7)).await.expect("a page").records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_continue_after_those_of_other_programs() {
    let (store, log) = start().await;
    append(&log, "t", 0).await;
    store.sql("INSERT INTO tower_sse.records VALUES (1000, 'e', 't', 'data: foreign', now())");
    assert_eq!(append(&log, "t", 1).await, Position::new(1001));
    store.sql("INSERT INTO tower_sse.records VALUES (2000, 'e', 't', 'data: foreign', now())");
    store.sql("SELECT tower_sse.publish('t', NULL, '2')");
    store.sql("SELECT setval('tower_sse.positions', 1)");
    assert_eq!(append(&log, "t", 3).await, Position::new(2002));
    store.sql("TRUNCATE tower_sse.records; SELECT setval('tower_sse.positions', 1)");
    assert_eq!(append(&log, "t", 4).await, Position::new(2003));
    assert_eq!(data(&log).await, ["4"]);
    let greatest = "INSERT INTO tower_sse.records VALUES (9223372036854775807, 'e', 't', 'x', now())";
    let client = application(&store).await;
    client.batch_execute(greatest).await.expect_err("no position would be left");
}

/// `pg_restore --data-only` inserts the row of the log again, while no node runs.
#[tokio::test(flavor = "multi_thread")]
async fn restored_data_in_the_same_tables_is_another_epoch() {
    let (store, log) = start().await;
    append(&log, "t", 0).await;
    store.sql(
        "CREATE TABLE old_log AS SELECT * FROM tower_sse.log; CREATE TABLE old AS SELECT * FROM tower_sse.records",
    );
    append(&log, "t", 1).await;
    let before = log.bounds().await.expect("the server runs");
    drop(log);
    store.sql(
        "TRUNCATE tower_sse.records; DELETE FROM tower_sse.log; INSERT INTO tower_sse.log SELECT * FROM old_log;
         INSERT INTO tower_sse.records SELECT * FROM old; SELECT setval('tower_sse.positions', 1)",
    );
    let log = postgres(&store.url());
    let appended = log.append(vec![record("t", 2)]).await.expect("the server runs");
    assert_ne!(appended.epoch, before.epoch, "its position may be that of the lost record");
}

/// A session that listens in an open transaction fills the queue of notifications. In Postgres 17, the
/// size of the queue is a setting.
#[tokio::test(flavor = "multi_thread")]
async fn full_queue_of_notifications_fails_no_append() {
    let version: u32 = {
        let store = Store::start(StoreKind::Postgres, &[]).await;
        store.sql("SHOW server_version_num").parse().expect("a number")
    };
    if version < 170_000 {
        return println!("Postgres {version}: its queue has 8 GB");
    }
    let store = Store::start(StoreKind::Postgres, &["-c", "max_notify_queue_pages=64"]).await;
    let log = postgres(&store.url());
    append(&log, "t", 0).await;
    let stuck = application(&store).await;
    stuck.batch_execute("LISTEN other").await.expect("it listens");
    stuck.batch_execute("BEGIN; SELECT 1").await.expect("it is in a transaction");
    let filler = application(&store).await;
    let fill = "SELECT pg_notify('other', repeat('x', 7000) || n) FROM generate_series(1, 5) AS n";
    let mut is_full = false;
    for _ in 0..1000 {
        is_full |= filler.batch_execute(fill).await.is_err();
    }
    assert!(is_full, "NOTIFY fails");
    for n in 1..100 {
        append(&log, "t", n).await;
    }
    store.sql("SELECT tower_sse.publish('t', NULL, '100')");
    assert_eq!(data(&log).await.len(), 101);
}

/// A comparison of each record with each topic would take more than ten seconds. The plan must use
/// a hash table in each session, even if the table is larger than the memory for a sort.
#[tokio::test(flavor = "multi_thread")]
async fn read_of_many_topics_takes_a_short_time() {
    let (store, _log) = start().await;
    store.sql("ALTER ROLE postgres SET work_mem = '64kB'");
    store.sql(
        "INSERT INTO tower_sse.records SELECT nextval('tower_sse.positions'), 'e',
            convert_to('topic ' || 1000000 + n, 'UTF8'), 'data: x', now() FROM generate_series(1, 20000) AS n",
    );
    let topics: Vec<Arc<str>> = (1..=300_000).map(|n| format!("topic {}", 1_000_000 + n * 11).into()).collect();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        store.sql(&format!("ALTER ROLE postgres SET plan_cache_mode = '{mode}'"));
        let node = postgres(&store.url()).timeout(Duration::from_secs(10));
        let page = node.read(&topics, Position::START).await.expect("the read ends in time");
        assert_eq!((page.records.len(), page.through), (909, Position::new(10_000)), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_appends_do_not_outrun_the_eviction() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let node = postgres(&store.url()).max_records(1000);
    for round in 0..20 {
        let records = (0..10_000).map(|n| record("t", n)).collect();
        node.append(records).await.expect("the server runs");
        // An append waits for the batch that is running.
        let held: u64 = store.sql("SELECT count(*) FROM tower_sse.records").parse().expect("a number");
        assert!(held <= 4 * 10_000, "{held} records after round {round}");
    }
    let held = async || store.sql("SELECT count(*) FROM tower_sse.records").parse::<u64>().expect("a number");
    eventually(SOON, "the limit holds", async || match held().await {
        0..=1000 => Ok(()),
        held => Err(format!("{held} records")),
    })
    .await;
}
