//! Appends that share a transaction: their order, their results, and their errors.
//!
//! The runtime of these tests has one thread. The task that performs the appends runs when all
//! futures of a `join_all` have been polled, so that all of their appends wait at the same time.

use crate::{
    postgres_operators::a_request_waits,
    postgres_sql::{application, data, start},
    setup::connect,
    unchanged::{postgres, record},
};
use e2e::{Store, StoreKind, eventually};
use futures_util::{
    future::{Either, join_all},
    poll,
};
use std::{
    future::Future,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_sse::{
    BoxError, Event,
    hub::backend::{Backend, Bounds, Position, PostgresBackend},
};

const SOON: Duration = Duration::from_secs(20);

/// Returns the number of records of topics that begin with `topics`, and the number of transactions
/// that have appended them.
async fn counts(client: &tokio_postgres::Client, topics: &str) -> (i64, i64) {
    let count = "SELECT count(*), count(DISTINCT xmin::text) FROM tower_sse.records
        WHERE starts_with(convert_from(topic, 'UTF8'), $1)";
    let row = client.query_one(count, &[&topics]).await.expect("a row");
    (row.get(0), row.get(1))
}

/// Appends records of a topic, under a condition if there is one: the epoch and the position.
fn append<'a>(
    log: &'a PostgresBackend,
    topic: &str,
    data: &[&str],
    condition: Option<(u64, Position)>,
) -> impl Future<Output = Result<Option<Position>, BoxError>> + use<'a> {
    let records = data.iter().map(|data| record(topic, data)).collect();
    match condition {
        None => Either::Left(async { Ok(Some(log.append(records).await?.position)) }),
        Some((epoch, since)) => Either::Right(async move {
            let appended = log.append_if_unchanged(records, epoch, since).await?;
            Ok(appended.map(|appended| appended.position))
        }),
    }
}

#[tokio::test]
async fn recordings_share_transactions() {
    const RECORDINGS: i64 = 200;
    const ROUNDS: i64 = 3;

    let store = Store::start(StoreKind::Postgres, &[]).await;
    let hub = connect(StoreKind::Postgres, &store.url()).await.expect("the hub connects");
    let client = application(&store).await;
    let recordings: Vec<_> = (0..RECORDINGS)
        .map(|n| {
            let (sender, items) = mpsc::unbounded_channel();
            (sender, hub.topic(format!("job-{n}")).record(UnboundedReceiverStream::new(items)).start())
        })
        .collect();
    for round in 1..=ROUNDS {
        for (sender, _) in &recordings {
            sender.send(Event::new(round.to_string())).expect("the recording runs");
        }
        eventually(SOON, "all recordings have published", async || {
            let (records, _) = counts(&client, "job-").await;
            if records == RECORDINGS * round { Ok(()) } else { Err(records) }
        })
        .await;
    }
    let (records, transactions) = counts(&client, "job-").await;
    println!("{records} records in {transactions} transactions");
    assert_eq!(records, RECORDINGS * ROUNDS);
    // Recordings wait until their node has read the log, and some of them continue earlier.
    assert!(transactions <= records / 20, "{transactions} transactions");
}

#[tokio::test]
async fn appends_of_one_transaction_see_earlier_ones() {
    let (store, log) = start().await;
    let Bounds { epoch, last: since, .. } = log.bounds().await.expect("the server runs");
    let unchanged = Some((epoch, since));
    let appended = join_all([
        append(&log, "t", &["0"], None),
        append(&log, "t", &["the topic has a record"], unchanged),
        append(&log, "u", &["1"], unchanged),
        append(&log, "t", &["2", "3"], None),
        append(&log, "u", &["4"], None),
        append(&log, "u", &["the topic has two records"], unchanged),
        append(&log, "v", &["the epoch is another one"], Some((epoch + 1, since))),
        append(&log, "v", &["5", "6"], unchanged),
        append(&log, "v", &["the topic has a record"], unchanged),
        append(&log, "v", &["7"], None),
    ])
    .await;
    let appended: Vec<_> = appended.into_iter().map(|appended| appended.expect("the server responds")).collect();
    let after = |n: u64| Some(Position::new(since.get() + n));
    assert_eq!(
        appended,
        [after(1), None, after(2), after(4), after(5), None, None, after(7), None, after(8)],
        "each append returns the position of its last record"
    );
    assert_eq!(data(&log).await, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let (records, transactions) = counts(&application(&store).await, "").await;
    assert_eq!((records, transactions), (8, 1), "all appends share a transaction");
}

/// A node with late signs of life would be declared dead.
#[tokio::test]
async fn sign_of_life_does_not_wait_behind_other_appends() {
    const APPENDS: usize = 1000;

    let (_store, log) = start().await;
    let Bounds { epoch, last, .. } = log.bounds().await.expect("the server runs");
    let topics: Vec<_> = (0..APPENDS).map(|n| format!("topic-{n}")).collect();
    let backlog = join_all(topics.iter().map(|topic| append(&log, topic, &["x"], Some((epoch, last)))));
    // The futures are polled in this order.
    let (backlog, sign) = tokio::join!(biased; backlog, append(&log, "tower-sse/nodes", &["alive"], None));
    assert_eq!(sign.expect("the server responds"), Some(Position::new(last.get() + 1)));
    assert!(backlog.iter().all(|appended| matches!(appended, Ok(Some(_)))), "{backlog:?}");
}

/// A trigger of the application refuses the records of a topic.
#[tokio::test]
async fn refused_append_does_not_fail_its_neighbours() {
    const APPENDS: usize = 100;

    let (store, log) = start().await;
    store.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no %', convert_from(NEW.event, 'UTF8'); END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON tower_sse.records FOR EACH ROW WHEN (NEW.topic = 'bad')
            EXECUTE FUNCTION refuse()",
    );
    let Bounds { epoch, last, .. } = log.bounds().await.expect("the server runs");
    let is_bad = |n: usize| n == 41 || n == 70;
    let appended = join_all((0..APPENDS).map(|n| {
        let topic = if is_bad(n) { "bad".to_owned() } else { format!("good-{n}") };
        append(&log, &topic, &[&n.to_string()], (n % 2 == 0).then_some((epoch, last)))
    }))
    .await;
    for (n, appended) in appended.into_iter().enumerate() {
        match appended {
            Ok(position) => assert!(!is_bad(n) && position.is_some(), "{n}: {position:?}"),
            Err(error) => assert!(is_bad(n) && error.to_string().contains(&format!("no data: {n}")), "{n}: {error}"),
        }
    }
    let expected: Vec<_> = (0..APPENDS).filter(|n| !is_bad(*n)).map(|n| n.to_string()).collect();
    assert_eq!(data(&log).await, expected, "the others are in their order");
    let (_, transactions) = counts(&application(&store).await, "good-").await;
    println!("{transactions} transactions");
    assert!(transactions <= 20, "only the halves with a refused append are divided: {transactions} transactions");
}

/// Each attempt waits for the lock, so dividing the appends would take the time once for each part.
#[tokio::test]
async fn locked_log_fails_all_appends_after_one_attempt() {
    const TIMEOUT: Duration = Duration::from_secs(4);

    let (store, _) = start().await;
    let log = postgres(&store.url()).timeout(TIMEOUT);
    let Bounds { epoch, last, .. } = log.bounds().await.expect("the server runs");
    let application = application(&store).await;
    let lock = "BEGIN; SELECT tower_sse.publish('t', NULL, 'x'); SET CONSTRAINTS ALL IMMEDIATE";
    application.batch_execute(lock).await.expect("it publishes");
    let begin = Instant::now();
    let topics: Vec<_> = (0..50).map(|n| format!("topic-{n}")).collect();
    let appended = join_all(topics.iter().map(|topic| append(&log, topic, &["x"], Some((epoch, last))))).await;
    for appended in appended {
        let error = appended.expect_err("the log is locked").to_string();
        assert!(error.contains("the log is locked"), "{error}");
    }
    // The server waits for three quarters of the timeout.
    assert!(begin.elapsed() < TIMEOUT * 3 / 2, "{:?}", begin.elapsed());
    application.batch_execute("ROLLBACK").await.expect("it rolls back");
    assert_eq!(data(&log).await, [""; 0], "no append is performed later");
}

/// A thread with a runtime of its own publishes with `block_on`. Then its runtime does not run.
#[test]
fn publisher_whose_runtime_has_stopped_delays_no_other() {
    let runtime = |builder: &mut tokio::runtime::Builder| builder.enable_all().build().expect("a runtime");
    let hub = runtime(tokio::runtime::Builder::new_multi_thread().worker_threads(2));
    let (store, log) = hub.block_on(start());
    let log = Arc::new(log);
    hub.block_on(log.bounds()).expect("the server runs");
    let operator = hub.block_on(application(&store));
    hub.block_on(operator.batch_execute("BEGIN; LOCK TABLE tower_sse.records")).expect("it locks the table");
    let first = Arc::clone(&log);
    let publisher = thread::spawn(move || {
        let own = runtime(&mut tokio::runtime::Builder::new_current_thread());
        own.block_on(first.append(vec![record("t", "first")])).expect("it waits for the lock");
        own
    });
    hub.block_on(a_request_waits(&store));
    let second = Arc::clone(&log);
    let mut second = Box::pin(async move { second.append(vec![record("t", "second")]).await });
    // The first poll adds the append to the queue.
    hub.block_on(async { assert!(poll!(&mut second).is_pending()) });
    hub.block_on(operator.batch_execute("COMMIT")).expect("it commits");
    let _stopped = publisher.join().expect("the append succeeds");
    let second = hub.block_on(async { timeout(SOON, second).await }).expect("it does not wait for the stopped runtime");
    second.expect("the append succeeds");
}
