//! Logs that were replaced: dropped tables, restored backups, and replicas that lack records.

use crate::{
    postgres_hosts::{hanging_host, with_hosts},
    postgres_sql::{data, start},
    unchanged::{append, append_if_unchanged, postgres, record},
};
use e2e::eventually;
use std::{sync::Arc, time::Duration};
use tower_sse::hub::backend::{Backend, Bounds, Position, PostgresBackend};

const SOON: Duration = Duration::from_secs(20);

/// Waits until the server accepts requests of this node again. Returns the bounds.
pub(crate) async fn bounds(log: &PostgresBackend) -> Bounds {
    eventually(SOON, "the node reconnects", async || log.bounds().await.map_err(|error| error.to_string())).await
}

async fn append_each(log: &PostgresBackend, data: impl IntoIterator<Item = u32>) {
    for datum in data {
        append(log, "t", datum).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_table_is_another_epoch() {
    let (store, log) = start().await;
    for statement in
        ["DROP TABLE tower_sse.records", "DROP SEQUENCE tower_sse.positions", "DROP SCHEMA tower_sse CASCADE"]
    {
        append_each(&log, 0..3).await;
        let before = bounds(&log).await;
        store.sql(statement);
        let after = bounds(&log).await;
        assert_ne!(before.epoch, after.epoch, "{statement}");
        let appended = log.append(vec![record("t", 9)]).await.expect("the log exists");
        assert_eq!(appended.epoch, after.epoch, "{statement}");
        assert!(appended.position > after.last, "{statement}");
    }
}

/// Another process has no memory of the log. It also finds the new epoch.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_table_is_another_epoch_for_new_nodes() {
    let (store, log) = start().await;
    append_each(&log, 0..3).await;
    let before = bounds(&log).await;
    store.sql("DROP TABLE tower_sse.records");
    assert_ne!(bounds(&postgres(&store.url())).await.epoch, before.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_records_are_reported_as_evicted() {
    let (store, log) = start().await;
    append_each(&log, 0..5).await;
    let before = bounds(&log).await;
    let evicted = |through| {
        let mut after = before;
        after.evicted_through = through;
        after
    };
    store.sql("DELETE FROM tower_sse.records WHERE position = 3");
    assert_eq!(bounds(&log).await, evicted(Position::new(3)));
    store.sql("SET session_replication_role = replica; DELETE FROM tower_sse.records WHERE position = 4");
    assert_eq!(bounds(&log).await, evicted(Position::new(4)));
    store.sql("TRUNCATE tower_sse.records");
    assert_eq!(bounds(&log).await, evicted(before.last));
    assert!(append(&log, "t", 5).await > before.last);
}

/// The copy has the same system identifier and timeline. The node knows a record that it lacks.
#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_is_another_epoch_for_a_running_node() {
    for is_published_first in [false, true] {
        let (mut store, log) = start().await;
        append_each(&log, 0..3).await;
        store.kill();
        let backup = store.back_up();
        store.restart().await;
        let kept = bounds(&log).await;
        append_each(&log, 3..6).await;
        store.kill();
        store.restore(&backup);
        store.restart().await;
        if is_published_first {
            // The positions of the copy pass the positions that the node knows.
            for n in 0..100 {
                store.sql(&format!("SELECT tower_sse.publish('t', NULL, 'sql {n}')"));
            }
        }
        let restored = bounds(&log).await;
        assert_ne!(restored.epoch, kept.epoch, "the log has lost its newest records");
        let appended = log.append(vec![record("t", 6)]).await.expect("the server runs");
        assert_eq!(appended.epoch, restored.epoch);
        assert_eq!(data(&log).await.len(), if is_published_first { 104 } else { 4 });
    }
}

/// The positions of the copy pass the known positions. The first request after the restore reads
/// the records there.
#[tokio::test(flavor = "multi_thread")]
async fn first_read_of_a_restored_copy_keeps_the_known_record() {
    for is_followed in [false, true] {
        let (mut store, log) = start().await;
        append_each(&log, 0..3).await;
        store.kill();
        let backup = store.back_up();
        store.restart().await;
        let kept = bounds(&log).await;
        append_each(&log, 3..6).await;
        store.kill();
        store.restore(&backup);
        store.restart().await;
        for n in 0..100 {
            store.sql(&format!("SELECT tower_sse.publish('t', NULL, 'sql {n}')"));
        }
        eventually(SOON, "the node finds another log", async || {
            let page = match is_followed {
                true => log.follow(kept.last).await,
                false => log.read(&["t".into()], kept.last).await,
            };
            let error = page.expect_err("the log has lost its newest records").to_string();
            if error.contains("another one") { Ok(()) } else { Err(error) }
        })
        .await;
        assert_ne!(bounds(&log).await.epoch, kept.epoch, "is_followed: {is_followed}");
    }
}

/// The copy has an earlier epoch, and clients may have ids of this epoch.
#[tokio::test(flavor = "multi_thread")]
async fn copy_with_an_earlier_epoch_is_another_epoch() {
    let (mut store, log) = start().await;
    append_each(&log, 0..3).await;
    store.kill();
    let backup = store.back_up();
    store.restart().await;
    let first = bounds(&log).await;
    append_each(&log, 3..6).await;
    store.sql("SELECT tower_sse.new_epoch()");
    append_each(&log, 6..9).await;
    let second = bounds(&log).await;
    let other = postgres(&store.url());
    other.follow(second.evicted_through).await.expect("the server runs");
    store.kill();
    store.restore(&backup);
    store.restart().await;
    let restored = bounds(&log).await;
    assert!(![first.epoch, second.epoch].contains(&restored.epoch), "{first:?} {second:?} {restored:?}");
    // The other node finds the epoch that this node has started.
    assert_eq!(bounds(&other).await, restored);
    assert_eq!(data(&other).await, ["0", "1", "2"]);
}

/// The clock of a promoted replica can be behind.
#[tokio::test(flavor = "multi_thread")]
async fn epoch_is_greater_than_all_known_epochs() {
    let (store, log) = start().await;
    append(&log, "t", 1).await;
    let before = bounds(&log).await;
    let future = before.epoch + (1 << 40);
    store.sql(&format!("UPDATE tower_sse.log SET epoch = {future}"));
    append(&log, "t", 2).await;
    assert_eq!(bounds(&log).await.epoch, future, "another node may have started this epoch");
    store.sql("DROP SCHEMA tower_sse CASCADE");
    let after = bounds(&log).await;
    assert!(after.epoch > future, "{after:?} {future}");
    assert_eq!(bounds(&log).await, after, "the node starts one epoch");
    store.sql("SELECT tower_sse.new_epoch()");
    assert!(bounds(&log).await.epoch > after.epoch);
}

/// The read begins before its node knows the newest records, and reaches the server after the
/// restore.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_read_checks_the_newest_known_record() {
    let (mut store, log) = start().await;
    append_each(&log, 0..3).await;
    store.kill();
    let backup = store.back_up();
    store.restart().await;
    let kept = bounds(&log).await;
    let hanging = hanging_host().await;
    let address = hanging.local_addr().expect("the listener has an address");
    let node = with_hosts(address, store.address()).follower_url(store.url()).expect("the URL is valid");
    let node = Arc::new(node.timeout(Duration::from_secs(60)));
    node.follow(Position::START).await.expect("the server runs");
    let reading = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.read(&["t".into()], kept.last).await }
    });
    let connection = hanging.accept().await.expect("the read connects");
    append_each(&log, 3..6).await;
    let last = bounds(&log).await.last;
    let mut after = kept.last;
    while after < last {
        after = node.follow(after).await.expect("the server runs").through;
    }
    store.kill();
    store.restore(&backup);
    store.restart().await;
    for n in 0..100 {
        store.sql(&format!("SELECT tower_sse.publish('t', NULL, 'sql {n}')"));
    }
    // The read continues with the second host.
    drop(connection);
    let error = reading.await.expect("no panic").expect_err("the log has lost its newest records");
    assert!(error.to_string().contains("another one"), "{error}");
    assert_ne!(bounds(&node).await.epoch, kept.epoch);
}

/// Without a bound request in between: the first request after the restore is an append.
#[tokio::test(flavor = "multi_thread")]
async fn append_to_a_restored_copy_has_another_epoch() {
    let (mut store, log) = start().await;
    append_each(&log, 0..3).await;
    store.kill();
    let backup = store.back_up();
    store.restart().await;
    let kept = bounds(&log).await;
    let since = append(&log, "t", 3).await;
    store.kill();
    store.restore(&backup);
    store.restart().await;
    let appended = eventually(SOON, "the node reconnects", async || {
        log.append(vec![record("t", 4)]).await.map_err(|error| error.to_string())
    })
    .await;
    assert_ne!(appended.epoch, kept.epoch);
    let stale = log.append_if_unchanged(vec![record("u", 5)], kept.epoch, since).await;
    assert_eq!(stale.expect("the server runs"), None, "the epoch is another one");
    assert!(append_if_unchanged(&log, "u", 5, appended.position).await.is_some());
}

/// A restart of the server is no other log.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_keeps_its_epoch() {
    let (mut store, log) = start().await;
    append_each(&log, 0..3).await;
    let before = bounds(&log).await;
    store.kill();
    store.restart().await;
    assert_eq!(bounds(&log).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn dump_of_another_database_is_another_epoch() {
    let (store, log) = start().await;
    append_each(&log, 0..3).await;
    let before = bounds(&log).await;
    // The dump has the epoch, the identity, and the records.
    let other = store.copy_database("restored");
    let restored = postgres(&other);
    let after = bounds(&restored).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(data(&restored).await, ["0", "1", "2"]);
    assert!(append(&restored, "t", 3).await > before.last, "the sequence continues");
}

/// Replication is asynchronous, so the promoted replica lacks the last records.
#[tokio::test(flavor = "multi_thread")]
async fn promoted_replica_is_another_epoch() {
    let (mut primary, log) = start().await;
    append_each(&log, 0..3).await;
    let mut replica = primary.replica().await;
    let hosts = format!("postgres://postgres@{},{}/postgres", primary.address(), replica.address());
    // This node moves to the replica. The node before has not used it.
    let moving = postgres(&hosts);
    let before = bounds(&moving).await;
    eventually(SOON, "the replica has the records", async || {
        let count = replica.sql("SELECT count(*) FROM tower_sse.records");
        if count == "3" { Ok(()) } else { Err(count) }
    })
    .await;
    // These records are lost.
    replica.kill();
    append_each(&moving, 3..6).await;
    primary.kill();
    replica.restart().await;
    let error = moving.bounds().await.expect_err("the replica is read-only").to_string();
    assert!(!error.is_empty());
    replica.sql("SELECT pg_promote()");
    // A node without memory cannot know of the lost records. The timeline is another one.
    let after = bounds(&postgres(&replica.url())).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(bounds(&moving).await.epoch, after.epoch);
    replica.sql("SELECT tower_sse.publish('t', NULL, 'sql')");
    let appended = moving.append(vec![record("t", 7)]).await.expect("the replica accepts writes");
    assert_eq!(appended.epoch, after.epoch);
    assert_eq!(data(&moving).await, ["0", "1", "2", "sql", "7"]);
}

/// Nothing was lost, and no node connects before an application publishes. The next position could
/// have been that of a lost record.
#[tokio::test(flavor = "multi_thread")]
async fn publication_on_a_promoted_replica_starts_the_epoch() {
    let (mut primary, log) = start().await;
    append_each(&log, 0..3).await;
    let before = bounds(&log).await;
    let replica = primary.replica().await;
    primary.kill();
    replica.sql("SELECT pg_promote()");
    let epoch = || replica.sql("SELECT epoch FROM tower_sse.log");
    assert_eq!(epoch(), before.epoch.to_string());
    replica.sql("SELECT tower_sse.publish('t', NULL, 'sql')");
    let after = epoch();
    assert_ne!(after, before.epoch.to_string());
    assert_eq!(bounds(&postgres(&replica.url())).await.epoch.to_string(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_starts_an_epoch() {
    let (store, log) = start().await;
    append_each(&log, 0..3).await;
    let before = bounds(&log).await;
    store.sql("SELECT tower_sse.new_epoch()");
    let after = bounds(&log).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(after.last, before.last);
}

/// The role of the node may not call a function that the owner of the schema may call.
#[tokio::test(flavor = "multi_thread")]
async fn permissions_of_the_caller_start_no_epoch() {
    let (store, log) = start().await;
    let before = bounds(&log).await;
    store.sql(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;
         CREATE ROLE node LOGIN; GRANT USAGE ON SCHEMA tower_sse TO node;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tower_sse TO node;
         GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA tower_sse TO node;
         GRANT UPDATE ON tower_sse.log TO node;
         GRANT ALL ON ALL SEQUENCES IN SCHEMA tower_sse TO node",
    );
    let node = postgres(&store.url_with("node@"));
    append(&node, "t", 1).await;
    store.sql("SELECT tower_sse.publish('t', NULL, '2')");
    append(&node, "t", 3).await;
    assert_eq!(bounds(&node).await.epoch, before.epoch);
    assert_eq!(data(&node).await, ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_inbox_is_created_again() {
    let (store, log) = start().await;
    append(&log, "t", 1).await;
    let before = bounds(&log).await;
    store.sql("DROP TABLE tower_sse.inbox");
    log.bounds().await.expect_err("a table is missing");
    assert_eq!(bounds(&log).await, before, "the log itself is unchanged");
    store.sql("SELECT tower_sse.publish('t', NULL, '2')");
    assert_eq!(data(&log).await, ["1", "2"]);
}
