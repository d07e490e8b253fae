//! Updates of the schema from an older version.

use crate::{
    postgres_epochs::bounds,
    postgres_sql::{application, data, start},
    unchanged::{append, postgres},
};
use e2e::{Store, StoreKind};
use tower_sse::hub::backend::{Backend, Position, PostgresBackend};

/// Marks the schema as older, so that the next node updates it.
const OLDER_VERSION: &str = "DELETE FROM tower_sse.version; INSERT INTO tower_sse.version VALUES (1)";

/// A node of the older version continues until it connects again.
#[tokio::test(flavor = "multi_thread")]
async fn schema_of_an_older_version_is_updated() {
    let (store, log) = start().await;
    append(&log, "t", 1).await;
    let before = bounds(&log).await;
    let is_old = "SELECT prosrc LIKE '%an older version%' FROM pg_proc WHERE proname = 'page'";
    let version = store.sql("SELECT max(version) FROM tower_sse.version");
    store.sql(OLDER_VERSION);
    store.sql(
        "DO $$ BEGIN
             EXECUTE replace(pg_get_functiondef('tower_sse.page'::regproc), 'BEGIN', 'BEGIN -- an older version');
         END $$",
    );
    assert_eq!(store.sql(is_old), "t");
    let updating = postgres(&store.url());
    append(&updating, "t", 2).await;
    assert_eq!(store.sql(is_old), "f");
    assert_eq!(store.sql("SELECT max(version) FROM tower_sse.version"), version);
    append(&log, "t", 3).await;
    assert_eq!(bounds(&log).await.epoch, before.epoch);
    assert_eq!(data(&updating).await, ["1", "2", "3"]);
}

/// The update holds the lock of the log. A transaction that has published waits for this lock, so
/// the update must not wait for a lock of this transaction.
#[tokio::test(flavor = "multi_thread")]
async fn schema_is_updated_during_open_transactions() {
    let (store, log) = start().await;
    for (action, statement) in [
        ("published", "SELECT tower_sse.publish('t', NULL, 'committed after the update')"),
        // This mode conflicts with more modes than that of pg_dump.
        (
            "locked the tables",
            "LOCK TABLE tower_sse.log, tower_sse.records, tower_sse.inbox, tower_sse.version IN ROW EXCLUSIVE MODE",
        ),
    ] {
        store.sql(OLDER_VERSION);
        let mut application = application(&store).await;
        let open = application.transaction().await.expect("a transaction");
        open.batch_execute(statement).await.expect("the statement is valid");
        let updated = postgres(&store.url()).bounds().await;
        updated.unwrap_or_else(|error| panic!("a transaction has {action}: {error}"));
        open.commit().await.expect("the transaction has no conflict");
    }
    assert_eq!(data(&log).await, ["committed after the update"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_update_restores_missing_and_disabled_triggers() {
    let (store, log) = start().await;
    let enabled = "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'A' AND NOT tgisinternal";
    assert_eq!(store.sql(enabled), "4");
    store.sql(
        "DROP TRIGGER note_deleted ON tower_sse.records;
         ALTER TABLE tower_sse.log DISABLE TRIGGER choose_epoch;
         ALTER TABLE tower_sse.inbox ENABLE TRIGGER move_to_log",
    );
    store.sql(OLDER_VERSION);
    bounds(&postgres(&store.url())).await;
    assert_eq!(store.sql(enabled), "4");
    store.sql("SELECT tower_sse.publish('t', NULL, '1')");
    assert_eq!(data(&log).await, ["1"]);
}

/// The superuser runs the update, so it owns the functions that the older version lacks.
#[tokio::test(flavor = "multi_thread")]
async fn schema_update_keeps_the_permissions_of_nodes() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    store.sql("CREATE ROLE owner LOGIN; CREATE SCHEMA tower_sse AUTHORIZATION owner");
    let owner = postgres(&store.url_with("owner@"));
    bounds(&owner).await;
    store.sql(
        "CREATE ROLE \"Node\" LOGIN; GRANT USAGE ON SCHEMA tower_sse TO \"Node\";
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tower_sse TO \"Node\";
         GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA tower_sse TO \"Node\";
         GRANT UPDATE ON tower_sse.log TO \"Node\";
         GRANT ALL ON ALL SEQUENCES IN SCHEMA tower_sse TO \"Node\";
         CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA tower_sse TO app;
         DROP FUNCTION tower_sse.new_epoch_after, tower_sse.listen, tower_sse.notify_of;
         DROP TABLE tower_sse.channel",
    );
    store.sql(OLDER_VERSION);
    let superuser = postgres(&store.url());
    let mut epoch = bounds(&superuser).await.epoch;
    // Each of them finds another log, as after a failover.
    let node = postgres(&store.url_with("Node@"));
    for (what, log) in [("the owner", Some(&owner)), ("a node", Some(&node)), ("a publication", None)] {
        store.sql("UPDATE tower_sse.log SET identity = 'another'");
        match log {
            Some(log) => drop(bounds(log).await),
            None => drop(store.sql("SET ROLE app; SELECT tower_sse.publish('t', NULL, '1')")),
        }
        let before = std::mem::replace(&mut epoch, bounds(&superuser).await.epoch);
        assert!(epoch > before, "{what} starts an epoch");
    }
    assert_eq!(store.sql("SELECT has_function_privilege('app', 'tower_sse.new_epoch_after(bigint)', 'EXECUTE')"), "f");
    for of_others in [
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'tower_sse'::regnamespace AND relowner <> 'owner'::regrole",
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'tower_sse'::regnamespace AND proowner <> 'owner'::regrole",
    ] {
        assert_eq!(store.sql(of_others), "0", "{of_others}");
    }
    let last = append(&node, "t", 2).await;
    assert_eq!(node.follow(Position::START).await.expect("a page").through, last);
}

/// A migration creates the schema and a trigger that publishes, before any node runs.
#[tokio::test(flavor = "multi_thread")]
async fn schema_of_a_migration_is_used_by_nodes() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let migration = PostgresBackend::schema_sql("tower_sse").expect("the name is valid");
    let database = store.sql("SELECT current_database()");
    store.sql(&format!("CREATE ROLE migrator LOGIN; GRANT ALL ON DATABASE \"{database}\" TO migrator"));
    store.sql(&format!("SET ROLE migrator; {migration}"));
    store.sql(
        "CREATE ROLE node LOGIN; GRANT USAGE ON SCHEMA tower_sse TO node;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tower_sse TO node;
         GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA tower_sse TO node;
         GRANT UPDATE ON tower_sse.log TO node;
         GRANT ALL ON ALL SEQUENCES IN SCHEMA tower_sse TO node;
         CREATE TABLE orders (id int);
         CREATE FUNCTION publish_order() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM tower_sse.publish('t', NULL, NEW.id::text); RETURN NULL; END $$;
         CREATE TRIGGER publish_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION publish_order()",
    );
    store.sql("INSERT INTO orders VALUES (1)");
    let node = postgres(&store.url_with("node@"));
    let before = bounds(&node).await;
    append(&node, "t", 2).await;
    // Running the migration again changes nothing.
    store.sql(&format!("SET ROLE migrator; {migration}"));
    append(&node, "t", 3).await;
    assert_eq!(bounds(&postgres(&store.url())).await.epoch, before.epoch);
    assert_eq!(data(&node).await, ["1", "2", "3"]);
    let owned = "SELECT count(DISTINCT relowner) FROM pg_class WHERE relnamespace = 'tower_sse'::regnamespace";
    assert_eq!(store.sql(owned), "1", "the nodes have created nothing");
}

/// An application may keep its own functions in the schema, such as `public`.
#[tokio::test(flavor = "multi_thread")]
async fn schema_keeps_permissions_of_other_functions() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    store.sql(
        "CREATE FUNCTION public.slug(text) RETURNS text LANGUAGE sql AS 'SELECT lower($1)';
         CREATE FUNCTION public.notify(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
    );
    let log = postgres(&store.url()).schema("public").expect("the name is valid");
    bounds(&log).await;
    let of_everyone = "SELECT string_agg(oid::regprocedure::text, ' ' ORDER BY proname) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND has_function_privilege('pg_monitor', oid, 'EXECUTE')";
    assert_eq!(store.sql(of_everyone), "notify(text) publish(text,text,text) slug(text)");
}

/// The functions of a newer version would be replaced otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn migration_of_an_older_version_is_an_error() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let migration = PostgresBackend::schema_sql("tower_sse").expect("the name is valid");
    store.sql(&migration);
    store.sql("INSERT INTO tower_sse.version VALUES (1000)");
    let found = format!(
        "DO $test$ BEGIN EXECUTE $migration$ {migration} $migration$; RAISE EXCEPTION 'it has run';
         EXCEPTION WHEN raise_exception THEN CREATE TABLE found AS SELECT SQLERRM AS error; END $test$"
    );
    store.sql(&found);
    let error = store.sql("SELECT error FROM found");
    assert!(error.contains("has a newer version than"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_of_a_newer_version_is_an_error() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    postgres(&store.url()).bounds().await.expect("the server runs");
    store.sql("INSERT INTO tower_sse.version VALUES (1000)");
    let error = postgres(&store.url()).bounds().await.expect_err("the version is unknown").to_string();
    assert!(error.contains("1000") && error.contains("update"), "{error}");
}
