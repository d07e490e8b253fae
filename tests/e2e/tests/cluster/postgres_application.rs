//! An application that publishes in its own transactions, and the clients of a hub.

use crate::{
    postgres_sql::application,
    setup::{connect, two_hubs},
};
use e2e::{Store, StoreKind};
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tower_sse::hub::{Hub, Start, Subscription};

const SOON: Duration = Duration::from_secs(20);

async fn subscribe(hub: &Hub, topic: &str) -> Subscription {
    hub.topic(topic).subscribe(Start::Latest).await.expect("the hub runs")
}

/// Returns the wire bytes of the next event.
async fn next(events: &mut Subscription) -> String {
    let item = timeout(SOON, events.next()).await.expect("an event arrives").expect("the stream goes on");
    let bytes: Vec<u8> = item.expect("no error").into_bytes().to_vec();
    String::from_utf8(bytes).expect("events are UTF-8")
}

/// An order is inserted, and subscribers see it.
#[tokio::test(flavor = "multi_thread")]
async fn trigger_on_a_table_publishes_its_rows() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let hubs = two_hubs(StoreKind::Postgres, &store.url()).await;
    let mut events = subscribe(&hubs[1], "orders").await;
    store.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, item text NOT NULL);
         CREATE FUNCTION publish_order() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM tower_sse.publish('orders', 'created', row_to_json(NEW)::text);
             RETURN NULL;
         END $$;
         CREATE TRIGGER publish_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION publish_order()",
    );
    // The first one is rolled back.
    store.sql("BEGIN; INSERT INTO orders VALUES (1, 'lamp'); ROLLBACK; INSERT INTO orders VALUES (2, 'chair')");
    let event = next(&mut events).await;
    assert!(event.contains("event: created\ndata: {\"id\":2,\"item\":\"chair\"}\n"), "{event}");
}

/// The transaction of an application decides whether its event exists. See `docs/several-nodes.md`.
#[tokio::test(flavor = "multi_thread")]
async fn transaction_of_sqlx_publishes_if_it_commits() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let hub = connect(StoreKind::Postgres, &store.url()).await.expect("the server runs");
    let mut events = subscribe(&hub, "orders").await;
    let mut application = PgConnection::connect(&store.url()).await.expect("the server runs");
    for (id, is_committed) in [(1, false), (2, true)] {
        let mut transaction = application.begin().await.expect("a transaction");
        let publish = sqlx::query("SELECT tower_sse.publish($1, $2, $3)");
        let publish = publish.bind("orders").bind("created").bind(format!("{{\"id\":{id}}}"));
        publish.execute(&mut *transaction).await.expect("it publishes");
        if is_committed {
            transaction.commit().await.expect("it commits");
        } else {
            transaction.rollback().await.expect("it rolls back");
        }
    }
    let event = next(&mut events).await;
    assert!(event.contains("event: created\ndata: {\"id\":2}\n"), "{event}");
}

/// Publishing is a statement for any library. `tokio-postgres` prepares it, as `sqlx` does.
#[tokio::test(flavor = "multi_thread")]
async fn commit_on_another_connection_is_delivered() {
    const ROUNDS: usize = 200;

    let store = Store::start(StoreKind::Postgres, &[]).await;
    let hub = connect(StoreKind::Postgres, &store.url()).await.expect("the server runs");
    let mut events = subscribe(&hub, "orders").await;
    let mut application = application(&store).await;
    let publish = application.prepare("SELECT tower_sse.publish($1, $2, $3)").await.expect("it is prepared");
    let (mut from_begin, mut from_end) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let transaction = application.transaction().await.expect("a transaction");
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&"orders", &None::<&str>, &n.to_string()];
        transaction.execute(&publish, &parameters).await.expect("it publishes");
        let begin = Instant::now();
        let (committed, event) = tokio::join!(
            async {
                transaction.commit().await.expect("it commits");
                begin.elapsed()
            },
            async {
                let event = next(&mut events).await;
                (begin.elapsed(), event)
            }
        );
        assert!(event.1.ends_with(&format!("data: {n}\n\n")), "{event:?}");
        from_begin.push(event.0);
        from_end.push(event.0.saturating_sub(committed));
    }
    from_begin.sort_unstable();
    from_end.sort_unstable();
    println!(
        "delivered {:?} after the begin and {:?} after the end of the commit, in the median",
        from_begin[ROUNDS / 2],
        from_end[ROUNDS / 2]
    );
    assert!(from_end[ROUNDS / 2] < Duration::from_millis(500), "the notification wakes the follower");
}
