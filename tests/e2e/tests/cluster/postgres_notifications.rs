//! Notifications of Postgres, which contain the newest records of the log.

use crate::{
    postgres_sql::{application, data, records, start},
    unchanged::{append, postgres, record},
};
use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;
use tower_sse::hub::backend::{Backend, Position, PostgresBackend, Record};

const SOON: Duration = Duration::from_secs(20);

/// Follows the log from the position `after` to `last` or further. Moves `after` to the end.
async fn follow(log: &PostgresBackend, after: &mut Position, last: Position) -> Vec<Record> {
    let mut records = Vec::new();
    while *after < last {
        let page = timeout(SOON, log.follow(*after)).await.expect("it does not wait").expect("a page");
        assert!(page.evicted_through <= *after, "{page:?} after {after}");
        assert!(page.records.iter().all(|(at, _)| at > after && *at <= page.through), "{page:?} after {after}");
        *after = page.through;
        records.extend(page.records.into_iter().map(|(_, record)| record));
    }
    records
}

/// A follower reads the log when it connects, and then once a second.
#[tokio::test(flavor = "multi_thread")]
async fn follower_reads_no_record_that_is_in_a_notification() {
    const EVENTS: usize = 100;

    let (store, log) = start().await;
    store.sql(
        "CREATE SEQUENCE tower_sse.reads;
         DO $$ BEGIN
             EXECUTE replace(pg_get_functiondef('tower_sse.page'::regproc), 'BEGIN',
                 'BEGIN PERFORM nextval(''tower_sse.reads'');');
         END $$",
    );
    let application = application(&store).await;
    let mut last = append(&log, "t", "first").await;
    follow(&log, &mut { Position::START }, last).await;
    let (begin, mut events, mut reads) = (Instant::now(), 0, 0);
    while reads < 3 || events < EVENTS {
        assert!(begin.elapsed() < SOON, "{reads} reads in {:?}", begin.elapsed());
        let publish = format!("SELECT tower_sse.publish('t', NULL, '{events}')");
        let (followed, published) = tokio::join!(log.follow(last), application.batch_execute(&publish));
        published.expect("it publishes");
        let page = followed.expect("a page");
        assert_eq!(page.records, [(last.next(), record("t", events))]);
        (last, events) = (page.through, events + 1);
        let row = application.query_one("SELECT last_value FROM tower_sse.reads", &[]).await.expect("a row");
        reads = row.get::<_, i64>(0);
    }
    println!("{reads} reads for {events} events in {:?}", begin.elapsed());
    assert!(reads <= 3 + begin.elapsed().as_secs() as i64, "{reads} reads in {:?}", begin.elapsed());
}

/// The requests of a node go to a promoted server, and its follower still has a connection to the
/// earlier one.
#[tokio::test(flavor = "multi_thread")]
async fn follower_leaves_a_server_with_an_earlier_epoch() {
    let (earlier, _) = start().await;
    let (later, _) = start().await;
    let node = postgres(&later.url()).follower_url(earlier.url()).expect("the URL is valid");
    earlier.sql("SELECT tower_sse.publish('t', NULL, '1')");
    let page = node.follow(Position::START).await.expect("a page");
    append(&node, "t", "later").await;
    earlier.sql("SELECT tower_sse.publish('t', NULL, '2')");
    let page = node.follow(page.through).await;
    page.expect_err("it is another log");
}

/// Equal notifications of a transaction are sent once. Otherwise, a transaction with many records
/// could fill the queue of the server.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_notification_of_a_transaction_contains_records() {
    let (store, log) = start().await;
    append(&log, "t", 0).await;
    let channel = store.sql("SELECT name FROM tower_sse.channel");
    let received = store.sql(&format!(
        "LISTEN \"{channel}\"; BEGIN; SET CONSTRAINTS ALL IMMEDIATE;
         SELECT tower_sse.publish('t', NULL, 'many') FROM generate_series(1, 100); COMMIT;"
    ));
    println!("{received}");
    assert_eq!(received.matches("Asynchronous notification").count(), 2);
    assert_eq!(received.matches(" e ").count(), 1);
}

/// Transactions of all sizes and isolation levels. Some of them are rolled back, and some publish
/// events that are too large for a notification, so that the follower has to read the log.
#[tokio::test(flavor = "multi_thread")]
async fn follower_receives_each_record_once_and_in_order() {
    const APPLICATIONS: usize = 4;
    const TRANSACTIONS: usize = 150;
    const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    const SIZES: [usize; 4] = [3, 900, 5500, 20_000];

    let (store, log) = start().await;
    let follower = postgres(&store.url()).timeout(SOON);
    let mut tasks = Vec::new();
    for n in 0..APPLICATIONS {
        let application = application(&store).await;
        tasks.push(tokio::spawn(async move {
            for number in 0..TRANSACTIONS {
                let choice = n * 7 + number * 13;
                let size = SIZES[choice % 11 / 3];
                let last = if choice % 5 == 0 { 20 } else { choice % 3 };
                let statements = format!(
                    "BEGIN ISOLATION LEVEL {};
                     SELECT tower_sse.publish('topic ' || n % 2, NULL, '{n}/{number}/' || n || repeat('x', {size}))
                     FROM generate_series(0, {last}) AS n;
                     SAVEPOINT before; SELECT tower_sse.publish('none', NULL, 'rolled back'); ROLLBACK TO before;
                     {}",
                    LEVELS[choice % 3],
                    if choice % 7 == 0 { "ROLLBACK" } else { "COMMIT" },
                );
                application.batch_execute(&statements).await.expect("it publishes");
            }
        }));
    }
    let (mut after, mut followed, mut appended) = (Position::START, Vec::new(), 0);
    while tasks.iter().any(|task| !task.is_finished()) {
        let last = append(&log, "node", appended).await;
        appended += 1;
        followed.extend(follow(&follower, &mut after, last).await);
    }
    for task in tasks {
        task.await.expect("no application panics");
    }
    let last = log.bounds().await.expect("the server runs").last;
    followed.extend(follow(&follower, &mut after, last).await);
    let expected = records(&log).await;
    println!("{} records, {appended} of them of a node", expected.len());
    assert_eq!(followed.len(), expected.len());
    assert!(followed == expected, "the follower has received other records, or in another order");
    assert!(expected.iter().all(|record| &*record.topic != "none"));
}

/// Other roles can send and receive notifications on each channel whose name they know.
#[tokio::test(flavor = "multi_thread")]
async fn roles_that_may_publish_do_not_learn_the_channel() {
    let (store, log) = start().await;
    let last = append(&log, "t", 1).await;
    follow(&log, &mut { Position::START }, last).await;
    store.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA tower_sse TO app; GRANT pg_monitor TO app");
    let channel = store.sql("SELECT name FROM tower_sse.channel");
    assert_eq!(channel.len(), 32, "{channel:?}");
    let url = store.url_with("app@");
    let (app, mut connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("it may connect");
    let notices = Arc::<Mutex<Vec<String>>>::default();
    let received = notices.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                let detail = notice.detail().unwrap_or_default();
                received.lock().expect("no panic").push(format!("{}\n{detail}", notice.message()));
            }
        }
    });
    for (statement, subject) in [
        ("SELECT name FROM tower_sse.channel", "table channel"),
        ("SELECT tower_sse.listen()", "function listen"),
        ("SELECT tower_sse.notify()", "function notify"),
        ("SELECT tower_sse.notify_of(1)", "function notify_of"),
    ] {
        let error = app.batch_execute(statement).await.expect_err("it has no permission");
        let error = error.as_db_error().expect("the server responds").message().to_owned();
        assert_eq!(error, format!("permission denied for {subject}"));
    }
    // Settings that make the server report statements to the client.
    app.batch_execute(
        "SET trace_notify = on; SET debug_print_plan = on; SET client_min_messages = debug5;
         SELECT tower_sse.publish('t', NULL, '2')",
    )
    .await
    .expect("it may publish");
    let notices = notices.lock().expect("no panic").join("\n");
    assert!(notices.contains("plan"), "{notices}");
    let bytes = channel.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(" ");
    assert!(!notices.contains(&channel) && !notices.contains(&bytes), "{notices}");
    let activity = app.query("SELECT query FROM pg_stat_activity", &[]).await.expect("it may read the activity");
    let queries: Vec<Option<String>> = activity.iter().map(|row| row.get(0)).collect();
    assert!(queries.iter().flatten().any(|query| query.contains("page")), "{queries:?}");
    assert!(!queries.iter().flatten().any(|query| query.contains(&channel)), "{queries:?}");
}

/// A superuser knows the channel.
#[tokio::test(flavor = "multi_thread")]
async fn notifications_of_other_programs_lose_no_record() {
    let (store, log) = start().await;
    let mut last = append(&log, "t", 1).await;
    follow(&log, &mut { Position::START }, last).await;
    let channel = store.sql("SELECT name FROM tower_sse.channel");
    for (n, payload) in ["", "?", "1 2 3", "1 0 0\n9 e 0 dA== eA==", "1 0 0\n9"].into_iter().enumerate() {
        store.sql(&format!("NOTIFY \"{channel}\", '{payload}'; SELECT tower_sse.publish('t', NULL, '{n}')"));
    }
    let end = log.bounds().await.expect("the server runs").last;
    let followed = follow(&log, &mut last, end).await;
    assert_eq!(followed, (0..5).map(|n| record("t", n)).collect::<Vec<_>>());
}

/// Another program inserts a record without a notification. The loss of a notification has the same
/// effect.
#[tokio::test(flavor = "multi_thread")]
async fn record_without_a_notification_is_read_before_later_ones() {
    let (store, log) = start().await;
    let mut last = append(&log, "t", 1).await;
    follow(&log, &mut { Position::START }, last).await;
    store.sql(
        "INSERT INTO tower_sse.records
         SELECT nextval('tower_sse.positions'), 'e', 't', convert_to(E'data: 2\n\n', 'UTF8'), now()",
    );
    store.sql("SELECT tower_sse.publish('t', NULL, '3')");
    let end = log.bounds().await.expect("the server runs").last;
    assert_eq!(follow(&log, &mut last, end).await, [record("t", 2), record("t", 3)]);
}

/// Nodes that listen to the earlier channel read the log once a second.
#[tokio::test(flavor = "multi_thread")]
async fn missing_channel_is_chosen_again() {
    let (store, log) = start().await;
    append(&log, "t", 1).await;
    let before = log.bounds().await.expect("the server runs");
    store.sql("DELETE FROM tower_sse.channel");
    store.sql("SELECT tower_sse.publish('t', NULL, '2')");
    store.sql("DELETE FROM tower_sse.channel");
    assert_eq!(data(&postgres(&store.url())).await, ["1", "2"]);
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.channel"), "1");
    store.sql("DROP TABLE tower_sse.channel");
    log.bounds().await.expect_err("a table is missing");
    assert_eq!(log.bounds().await.expect("the server runs").epoch, before.epoch);
    store.sql("SELECT tower_sse.publish('t', NULL, '3')");
    assert_eq!(data(&log).await, ["1", "2", "3"]);
}
