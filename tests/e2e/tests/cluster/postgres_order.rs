//! The order of positions, while transactions of applications are open.

use crate::{
    checker::{Checker, Load},
    nodes::{Node, Parser},
    postgres_sql::{application, data, start},
    setup::{connect, two_hubs},
    unchanged::{DEFAULT_TIMEOUT, append, append_if_unchanged, postgres},
};
use e2e::{Store, StoreKind};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tower_sse::hub::{
    Hub, Start,
    backend::{Backend, Position},
};

const SOON: Duration = Duration::from_secs(20);

/// Appends are not delayed while a transaction is open that has published. Its event comes when it
/// commits, after the events that were published meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn open_transaction_delays_no_other_event_and_loses_none() {
    const OPEN: Duration = Duration::from_secs(10);

    let store = Store::start(StoreKind::Postgres, &[]).await;
    let hubs = two_hubs(StoreKind::Postgres, &store.url()).await;
    let mut checker = Checker::new(StoreKind::Postgres);
    checker.follow(&[Node::from(&hubs[0]), Node::from(&hubs[1])], 370, Parser::Standard).await;
    checker.follow(&[Node::from(&hubs[1])], usize::MAX, Parser::Fast).await;
    let mut orders = hubs[1].topic("orders").subscribe(Start::Latest).await.expect("the hub runs");
    checker.publish(&hubs[0], Load { pause: Duration::from_millis(20), ..Load::SINGLE });
    checker.publish(&hubs[1], Load { pause: Duration::from_millis(20), ..Load::SINGLE });
    checker.wait_for_more_acknowledged(20).await;

    let mut application = application(&store).await;
    let transaction = application.transaction().await.expect("a transaction");
    transaction.batch_execute("SELECT tower_sse.publish('orders', NULL, 'late')").await.expect("it publishes");
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < OPEN {
        let before = Instant::now();
        checker.wait_for_delivery_to_all().await;
        longest = longest.max(before.elapsed());
        let none = timeout(Duration::ZERO, orders.next()).await;
        assert!(none.is_err(), "the transaction has not committed: {none:?}");
    }
    println!("the longest time without an event is {longest:?} during the open transaction");
    // The machine may be busy. An event that waited for the transaction would take longer.
    assert!(longest < OPEN / 2, "{longest:?}");
    transaction.commit().await.expect("it commits");
    let committed = Instant::now();
    let batch = timeout(SOON, orders.next()).await.expect("it arrives").expect("the stream goes on");
    println!("delivered {:?} after the commit: {batch:?}", committed.elapsed());
    let report = checker.check(&hubs[0], "a transaction is open for 10 s").await;
    report.assert_nothing_missed(100);
}

/// Many transactions commit in another order than they publish, and none is skipped.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_transactions_of_any_length_lose_no_event() {
    const APPLICATIONS: usize = 8;
    const TRANSACTIONS: usize = 60;

    let (store, log) = start().await;
    let mut tasks = Vec::new();
    for n in 0..APPLICATIONS {
        let mut application = application(&store).await;
        tasks.push(tokio::spawn(async move {
            for number in 0..TRANSACTIONS {
                let transaction = application.transaction().await.expect("a transaction");
                for part in 0..3 {
                    let datum = format!("{n}/{number}/{part}");
                    let publish = "SELECT tower_sse.publish('t', NULL, $1)";
                    transaction.execute(publish, &[&datum]).await.expect("it publishes");
                    sleep(Duration::from_millis(((n * 7 + number * 13 + part * 5) % 11) as u64)).await;
                }
                if number % 5 == 4 {
                    transaction.rollback().await.expect("it rolls back");
                } else {
                    transaction.commit().await.expect("it commits");
                }
            }
        }));
    }
    // Nodes append at the same time.
    // The disk of a busy machine can be slow, and the lock is granted in the order of the requests.
    let node = postgres(&store.url()).timeout(SOON);
    let mut appended = 0;
    let follower = postgres(&store.url()).timeout(SOON);
    let (mut after, mut followed) = (Position::START, Vec::new());
    while tasks.iter().any(|task| !task.is_finished()) {
        append(&node, "other", appended).await;
        appended += 1;
        let page = follower.follow(after).await.expect("a page");
        assert!(page.records.iter().all(|(position, _)| *position > after), "{page:?} after {after}");
        after = page.through;
        followed.extend(page.records);
    }
    for task in tasks {
        task.await.expect("no application panics");
    }
    let last = log.bounds().await.expect("the server runs").last;
    while after < last {
        let page = follower.follow(after).await.expect("a page");
        after = page.through;
        followed.extend(page.records);
    }
    let followed: Vec<_> = followed
        .iter()
        .map(|(_, record)| String::from_utf8_lossy(&record.event).trim().replace("data: ", ""))
        .collect();
    assert_eq!(followed, data(&log).await, "a follower reads the log as it is");
    let numbers: Vec<_> = followed.iter().filter(|datum| datum.contains('/')).collect();
    for n in 0..APPLICATIONS {
        let expected = (0..TRANSACTIONS).filter(|number| number % 5 < 4);
        let expected: Vec<_> =
            expected.flat_map(|number| (0..3).map(move |part| format!("{n}/{number}/{part}"))).collect();
        let own: Vec<_> =
            numbers.iter().filter(|datum| datum.starts_with(&format!("{n}/"))).map(|s| (**s).clone()).collect();
        assert_eq!(own, expected, "the events of an application are in order");
    }
    for transaction in numbers.chunks(3) {
        let first = transaction[0].rsplit_once('/').expect("three numbers").0;
        assert!(transaction.iter().all(|datum| datum.starts_with(first)), "they are contiguous: {transaction:?}");
    }
    assert_eq!(followed.len(), appended + APPLICATIONS * TRANSACTIONS * 4 / 5 * 3);
}

/// A transaction that uses `SET CONSTRAINTS` holds the lock of the log. Appends fail with an error
/// that says so, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn early_lock_of_a_transaction_is_an_error_of_appends() {
    let (store, log) = start().await;
    // Appends wait for the lock for most of their timeout.
    let log = log.timeout(DEFAULT_TIMEOUT);
    let since = append(&log, "t", 1).await;
    let application = application(&store).await;
    let early = "BEGIN; SELECT tower_sse.publish('t', NULL, '2'); SET CONSTRAINTS ALL IMMEDIATE";
    application.batch_execute(early).await.expect("it publishes");
    let record = crate::unchanged::record("t", 3);
    let error = log.append(vec![record]).await.expect_err("the log is locked").to_string();
    assert!(error.contains("SET CONSTRAINTS"), "{error}");
    application.batch_execute("COMMIT").await.expect("it commits");
    assert_eq!(append_if_unchanged(&log, "t", 4, since).await, None, "the transaction has published");
    append(&log, "t", 5).await;
    assert_eq!(data(&log).await, ["1", "2", "5"]);
}

/// Several nodes create the schema at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_create_one_log() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let starts = (0..8).map(|_| {
        let url = store.url();
        tokio::spawn(async move { connect(StoreKind::Postgres, &url).await.expect("the hub connects") })
    });
    let mut hubs: Vec<Hub> = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        hubs.push(start.await.expect("no task panics"));
    }
    let mut news = hubs[7].topic("t").subscribe(Start::Latest).await.expect("the hub runs");
    hubs[0].topic("t").publish(tower_sse::Event::new("x")).await.expect("the hub publishes");
    timeout(SOON, news.next()).await.expect("it arrives").expect("the stream goes on").expect("no error");
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.log"), "1");
}
