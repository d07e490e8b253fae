//! Access to Postgres: TLS, and pools of connections.

use crate::{
    nodes::with_sources,
    postgres_sql::{application, data},
    redis::SOON,
    setup::certificates,
    unchanged::{append, append_if_unchanged, postgres, read, record},
};
use e2e::{Pool, Store, StoreKind, Wire, eventually};
use std::time::{Duration, Instant};
use tower_sse::hub::backend::{Backend, Position, PostgresBackend};

#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_certificates_of_server_and_client() {
    let folder = certificates("DNS:localhost");
    let path = |name: &str| folder.path().join(name).to_str().expect("the path is UTF-8").to_owned();
    let mut store = Store::start(StoreKind::Postgres, &[]).await;
    store.add_certificates(&folder);
    store.sql("ALTER SYSTEM SET ssl = on");
    store.sql("ALTER SYSTEM SET ssl_ca_file = 'ca.pem'");
    // The name of the client in its certificate is `client`.
    store.sql("CREATE ROLE client SUPERUSER LOGIN");
    let rules = "hostssl all client all cert\nhost all postgres all trust\n";
    std::fs::write(store.folder().join("data/pg_hba.conf"), rules).expect("the file can be written");
    store.kill();
    store.restart().await;

    let port = store.address().port();
    let url = |host: &str, mode: &str| format!("postgres://client@{host}:{port}/postgres?{mode}");
    let tls = |host: &str| PostgresBackend::new(url(host, "sslmode=verify-full")).expect("the URL is valid");
    let known = tls("localhost").root_certificates(path("ca.pem"));
    let known = known.client_certificate(path("client.pem"), path("client.key"));
    append(&known, "t", 1).await;
    assert_eq!(data(&known).await, ["1"]);
    let used = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'client'";
    assert_eq!(store.sql(used), "2", "both connections are encrypted");

    for (backend, reason) in [
        (tls("localhost"), "UnknownIssuer"),
        (tls("localhost").root_certificates(path("client.pem")), "UnknownIssuer"),
        (tls("localhost").root_certificates(path("nowhere.pem")), "nowhere.pem: No such file"),
        (tls("localhost").root_certificates(path("ca.pem")), "requires a valid client certificate"),
        (tls("127.0.0.1").root_certificates(path("ca.pem")), "not valid for name"),
        (PostgresBackend::new(url("localhost", "sslmode=disable")).expect("the URL is valid"), "no pg_hba.conf entry"),
    ] {
        let error = backend.bounds().await.expect_err("the connection is refused");
        let error = with_sources(&*error);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

/// All requests go through a pool in transaction mode, except those of the follower.
#[tokio::test(flavor = "multi_thread")]
async fn pool_in_transaction_mode_serves_all_requests_but_the_follower() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let pool = Pool::start(&store).await;
    let pooled = || postgres(&pool.url());
    let nodes = [(); 3].map(|()| pooled().follower_url(store.url()).expect("the URL is valid"));
    let since = append(&nodes[0], "t", 0).await;
    // More requests at the same time than the pool has connections.
    let mut appends = Vec::new();
    for n in 1..100 {
        let log = pooled();
        appends.push(tokio::spawn(async move { append(&log, "t", n).await }));
    }
    for append in appends {
        append.await.expect("the append succeeds");
    }
    for node in &nodes {
        assert_eq!(append_if_unchanged(node, "t", "late", since).await, None);
        assert_eq!(read(node, "t").await.len(), 100);
        assert_eq!(data(node).await.len(), 100);
    }
    let epoch = nodes[0].bounds().await.expect("the pool runs").epoch;
    assert_eq!(nodes[1].bounds().await.expect("the pool runs").epoch, epoch);
    // The notification arrives on the connection that does not use the pool.
    let mut delays = Vec::new();
    while delays.last().is_none_or(|delay| *delay >= Duration::from_millis(900)) {
        // A busy machine may delay a record.
        assert!(delays.len() < 5, "the follower waits for its interval: {delays:?}");
        let last = nodes[1].bounds().await.expect("the pool runs").last;
        delays.push(delay_of_follower(&nodes[1], &nodes[2], last).await);
    }
}

/// Returns the time until the follower of a node has the record that another node appends.
async fn delay_of_follower(node: &PostgresBackend, other: &PostgresBackend, last: Position) -> Duration {
    let follow = async {
        let page = node.follow(last).await.expect("a page");
        assert_eq!(page.records.len(), 1);
        Instant::now()
    };
    let append = async {
        // The follower waits for a notification by then, at the begin of its interval.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let appended = other.append(vec![record("t", "new")]).await;
        appended.expect("the server runs");
        Instant::now()
    };
    let (followed, appended) = tokio::join!(follow, append);
    followed.saturating_duration_since(appended)
}

/// Without another URL for the follower, no notification arrives. The follower reads at an
/// interval.
#[tokio::test(flavor = "multi_thread")]
async fn follower_without_notifications_reads_at_an_interval() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    let pool = Pool::start(&store).await;
    let node = postgres(&pool.url());
    let mut after = node.bounds().await.expect("the pool runs").last;
    let application = application(&store).await;
    for n in 0..5 {
        application.batch_execute("SELECT tower_sse.publish('t', NULL, 'x')").await.expect("it publishes");
        let begin = Instant::now();
        while after < Position::new(n + 1) {
            after = node.follow(after).await.expect("a page").through;
        }
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
}

/// The connection of the follower needs more than twice the timeout for the record.
#[tokio::test(flavor = "multi_thread")]
async fn follower_reads_large_record_over_slow_connection() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const BYTES: usize = 4 << 20;

    let store = Store::start(StoreKind::Postgres, &[]).await;
    let last = append(&postgres(&store.url()), "t", "x".repeat(BYTES)).await;
    let wire = Wire::to(store.address()).await;
    wire.slow_down(2 << 20);
    let node =
        postgres(&store.url()).timeout(TIMEOUT).follower_url(store.url_through(&wire)).expect("the URL is valid");
    let page = eventually(SOON, "the record is read", async || node.follow(Position::START).await).await;
    assert_eq!((page.records.len(), page.through), (1, last));
}
