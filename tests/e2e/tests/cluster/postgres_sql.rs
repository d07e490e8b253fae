//! `tower_sse.publish` in SQL: its format, its errors, and its transactions.

use crate::{redis::SOON, unchanged::postgres};
use e2e::{Store, StoreKind, eventually};
use tower_sse::{
    Event, EventName,
    hub::backend::{Backend, Position, PostgresBackend, Record, RecordKind},
};

/// Starts a server with a log.
pub(crate) async fn start() -> (Store, PostgresBackend) {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let log = postgres(&store.url());
    // Creates the schema.
    log.bounds().await.expect("the server runs");
    (store, log)
}

/// Connects an application, which is no node.
pub(crate) async fn application(store: &Store) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&store.url(), tokio_postgres::NoTls).await.expect("the server runs");
    tokio::spawn(connection);
    client
}

/// Returns all records of the log.
pub(crate) async fn records(log: &PostgresBackend) -> Vec<Record> {
    let (mut after, mut records) = (Position::START, Vec::new());
    while after < log.bounds().await.expect("the server runs").last {
        let page = log.follow(after).await.expect("a page");
        records.extend(page.records.into_iter().map(|(_, record)| record));
        after = page.through;
    }
    records
}

/// Returns the data of all records of the log.
pub(crate) async fn data(log: &PostgresBackend) -> Vec<String> {
    let records = records(log).await;
    let data = records.iter().map(|record| String::from_utf8_lossy(&record.event).trim().replace("data: ", ""));
    data.collect()
}

/// Creates texts of line ends, field names, and characters of several lengths.
fn texts() -> Vec<String> {
    const PARTS: [&str; 12] =
        ["", "\r", "\n", "\r\n", "data: ", ":", " ", "a", "ä", "🦀\u{2028}", "'; DROP TABLE", "\\n\u{85}%_"];
    // A linear congruential generator with a full period.
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize
    };
    let mut texts: Vec<_> = PARTS.iter().map(|text| (*text).to_owned()).collect();
    texts.extend((0..1000).map(|_| (0..next() % 9).map(|_| PARTS[next() % PARTS.len()]).collect::<String>()));
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_writes_the_same_bytes_as_the_crate() {
    let (store, log) = start().await;
    let mut application = application(&store).await;
    let texts = texts();
    let mut expected = Vec::new();
    let (mut valid, mut invalid) = (0, 0);
    let mut transaction = application.transaction().await.expect("a transaction");
    for (n, data) in texts.iter().enumerate() {
        let topic = &texts[texts.len() - 1 - n];
        let name = (n % 3 > 0).then(|| texts[(n * 7 + 3) % texts.len()].as_str());
        // A savepoint, because an error ends the transaction.
        let savepoint = transaction.transaction().await.expect("a savepoint");
        let published = savepoint.execute("SELECT tower_sse.publish($1, $2, $3)", &[topic, &name, data]).await;
        match name.map(EventName::new).transpose() {
            Ok(name) => {
                published.expect("the event is valid");
                savepoint.commit().await.expect("the savepoint is released");
                let event = Event::new(data);
                let event = if let Some(name) = name { event.event(name) } else { event };
                expected.push(Record::new(&**topic, RecordKind::Event, event.encode()));
                valid += 1;
            }
            Err(_) => {
                published.expect_err("the name has a line break");
                invalid += 1;
            }
        }
    }
    transaction.commit().await.expect("the transaction commits");
    assert_eq!(records(&log).await, expected);
    println!("{valid} events are equal, {invalid} names are errors");
    assert!(valid > 300 && invalid > 300, "{valid} {invalid}");
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.inbox"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_rejects_reserved_names_and_null() {
    let (store, log) = start().await;
    let application = application(&store).await;
    let cases = [
        (Some("a"), Some("gap"), Some("x"), "reserved"),
        (Some("a"), Some("hub-cursor"), Some("x"), "reserved"),
        (Some("tower-sse/nodes"), None, Some("x"), "reserved"),
        (Some("tower-sse/closed-streams"), None, Some("x"), "reserved"),
        (Some("a"), Some(""), Some("x"), "empty"),
        (Some("a"), Some("b\nc"), Some("x"), "line break"),
        (Some("a"), Some("b\r"), Some("x"), "line break"),
        (None, None, Some("x"), "NULL"),
        (Some("a"), None, None, "NULL"),
    ];
    for (topic, name, data, message) in cases {
        let published = application.execute("SELECT tower_sse.publish($1, $2, $3)", &[&topic, &name, &data]).await;
        let error = published.expect_err("the event is invalid");
        let error = error.as_db_error().expect("the server responds").message().to_owned();
        assert!(error.contains(message), "{topic:?} {name:?} {data:?}: {error}");
    }
    assert_eq!(records(&log).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_exists_exactly_if_its_transaction_commits() {
    let (store, log) = start().await;
    // Each text is one transaction, except for the last two.
    for statements in [
        "SELECT tower_sse.publish('t', NULL, 'one')",
        "BEGIN; SELECT tower_sse.publish('t', NULL, 'no'); ROLLBACK",
        "BEGIN; SELECT tower_sse.publish('t', NULL, 'two'); SAVEPOINT a; SELECT tower_sse.publish('t', NULL, 'no');
            ROLLBACK TO a; SELECT tower_sse.publish('t', NULL, 'three'); COMMIT",
        "BEGIN; SAVEPOINT a; SELECT tower_sse.publish('t', NULL, 'no'); ROLLBACK TO a;
            SELECT tower_sse.publish('t', NULL, 'four'); COMMIT",
        "BEGIN; SAVEPOINT a; SELECT tower_sse.publish('t', NULL, 'five'); RELEASE a;
            SELECT tower_sse.publish('t', NULL, 'six'); COMMIT",
        // The trigger runs before the commit.
        "BEGIN; SELECT tower_sse.publish('t', NULL, 'seven'); SET CONSTRAINTS ALL IMMEDIATE;
            SELECT tower_sse.publish('t', NULL, 'eight'); SELECT tower_sse.publish('t', NULL, 'nine'); COMMIT",
        "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; SELECT tower_sse.publish('t', NULL, 'ten'); SAVEPOINT a;
            SET CONSTRAINTS ALL DEFERRED; SELECT tower_sse.publish('t', NULL, 'no');
            SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO a; SELECT tower_sse.publish('t', NULL, 'eleven'); COMMIT",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT tower_sse.publish('t', NULL, 'twelve'); COMMIT",
        "SET session_replication_role = replica; SELECT tower_sse.publish('t', NULL, 'thirteen')",
        "SELECT tower_sse.publish('t', NULL, 'fourteen'); SELECT tower_sse.publish('t', NULL, 'fifteen')",
    ] {
        store.sql(statements);
    }
    let numbers = [
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen",
    ];
    assert_eq!(data(&log).await, numbers);
    assert_eq!(store.sql("SELECT count(*) FROM tower_sse.inbox"), "0");
}

/// The commit of a distributed transaction would hold the lock of the log for any time.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_cannot_publish() {
    let store = Store::start(StoreKind::Postgres, &["-c", "max_prepared_transactions=5"]).await;
    let log = postgres(&store.url());
    log.bounds().await.expect("the server runs");
    let application = application(&store).await;
    let prepared =
        application.batch_execute("BEGIN; SELECT tower_sse.publish('t', NULL, 'x'); PREPARE TRANSACTION 'x'").await;
    let error = prepared.expect_err("it cannot be prepared");
    assert!(error.as_db_error().expect("the server responds").message().contains("PREPARE"), "{error:?}");
    assert_eq!(records(&log).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn role_with_usage_can_publish_and_nothing_else() {
    let (store, log) = start().await;
    store.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA tower_sse TO app");
    let url = store.url_with("app@");
    let (application, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("it may connect");
    tokio::spawn(connection);
    application.batch_execute("SELECT tower_sse.publish('t', NULL, 'mine')").await.expect("it may publish");
    for (statement, subject) in [
        ("SELECT * FROM tower_sse.records", "table records"),
        ("SELECT tower_sse.new_epoch()", "function new_epoch"),
        ("DELETE FROM tower_sse.inbox", "table inbox"),
    ] {
        let error = application.batch_execute(statement).await.expect_err("it has no permission");
        let error = error.as_db_error().expect("the server responds").message().to_owned();
        assert_eq!(error, format!("permission denied for {subject}"));
    }
    // It cannot be a node, and the error says why.
    let error = postgres(&url).bounds().await.expect_err("it has no permission").to_string();
    assert!(error.contains("permission denied"), "{error}");
    assert_eq!(data(&log).await, ["mine"]);
}

/// A node needs no permission to create the schema if the database has it.
#[tokio::test(flavor = "multi_thread")]
async fn node_needs_few_permissions_if_the_schema_exists() {
    let (store, log) = start().await;
    store.sql(
        "CREATE ROLE node LOGIN; GRANT USAGE ON SCHEMA tower_sse TO node;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tower_sse TO node;
         GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA tower_sse TO node;
         GRANT UPDATE ON tower_sse.log TO node;
         GRANT ALL ON ALL SEQUENCES IN SCHEMA tower_sse TO node",
    );
    let node = postgres(&store.url_with("node@"));
    let record = Record::new("t", RecordKind::Event, "data: x\n\n");
    let appended = node.append(vec![record.clone()]).await.expect("it may append");
    let page = node.follow(Position::START).await.expect("it may follow");
    assert_eq!(page.records, [(appended.position, record)]);
    assert_eq!(log.bounds().await.expect("the server runs").epoch, appended.epoch);
}

/// An operator has created the schema for the role, which may not create another one.
#[tokio::test(flavor = "multi_thread")]
async fn node_creates_its_tables_in_an_existing_schema() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    store.sql("CREATE ROLE node LOGIN; CREATE SCHEMA tower_sse AUTHORIZATION node");
    let node = postgres(&store.url_with("node@"));
    let record = Record::new("t", RecordKind::Event, "data: x\n\n");
    node.append(vec![record]).await.expect("it owns the schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_rejects_large_events_and_accepts_any_collation() {
    let (store, log) = start().await;
    let client = application(&store).await;
    let large = client.execute("SELECT tower_sse.publish('a', NULL, repeat('a', 1048576))", &[]).await;
    let error = large.expect_err("the event is too large");
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("at most 1048576 bytes")), "{error:?}");
    client.execute("SELECT tower_sse.publish('a', NULL, repeat('a', 1048575))", &[]).await.expect("it is not");
    let setup = "CREATE COLLATION ignoring_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE orders (name text COLLATE ignoring_case); INSERT INTO orders VALUES ('books')";
    client.batch_execute(setup).await.expect("the server has ICU");
    client.execute("SELECT tower_sse.publish(name, name, name) FROM orders", &[]).await.expect("any collation works");
    assert_eq!(data(&log).await[1..], ["event: books\nbooks"]);
}

/// After VACUUM has emptied the inbox, a sequential scan would be cheapest. It would make the two
/// transactions conflict.
#[tokio::test(flavor = "multi_thread")]
async fn serializable_transactions_that_publish_do_not_conflict() {
    let (store, log) = start().await;
    let (mut one, mut other) = (application(&store).await, application(&store).await);
    one.execute("SELECT tower_sse.publish('a', NULL, '0')", &[]).await.expect("it is valid");
    one.batch_execute("VACUUM tower_sse.inbox").await.expect("no transaction is open");
    let level = tokio_postgres::IsolationLevel::Serializable;
    let first = one.build_transaction().isolation_level(level).start().await.expect("a transaction");
    let second = other.build_transaction().isolation_level(level).start().await.expect("a transaction");
    first.execute("SELECT tower_sse.publish('a', NULL, '1')", &[]).await.expect("it is valid");
    second.execute("SELECT tower_sse.publish('b', NULL, '2')", &[]).await.expect("it is valid");
    first.commit().await.expect("the first transaction commits");
    second.commit().await.expect("the transactions have no data in common");
    assert_eq!(data(&log).await, ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_other_schemas_are_not_called() {
    let (store, log) = start().await;
    let client = application(&store).await;
    let planted = r#"CREATE FUNCTION public.cardinality("char"[]) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'called'; END $$"#;
    client.batch_execute(planted).await.expect("the role may create functions");
    let record = Record::new("a", RecordKind::Event, "data: 1\n\n");
    log.append(vec![record]).await.expect("the planted function is not called");
}

/// An operator can lock the table for a long time. The requests of nodes then fail in the server,
/// too. Otherwise each attempt would leave a server process that waits for the lock.
#[tokio::test(flavor = "multi_thread")]
async fn locked_table_leaves_no_waiting_server_processes() {
    let (store, log) = start().await;
    let (mut operator, observer) = (application(&store).await, application(&store).await);
    let lock = operator.transaction().await.expect("a transaction");
    lock.batch_execute("LOCK TABLE tower_sse.records").await.expect("the table can be locked");
    for _ in 0..3 {
        log.follow(Position::START).await.expect_err("the table is locked");
        log.bounds().await.expect_err("the table is locked");
    }
    let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually(SOON, "no server process waits for the lock", async || {
        let waiting: i64 = observer.query_one(count, &[]).await.expect("a count").get(0);
        if waiting == 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
    lock.rollback().await.expect("the lock is released");
    log.bounds().await.expect("the log can be used again");
}
