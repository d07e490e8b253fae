//! Errors of a connection to the backend.

use crate::{
    nodes::with_sources,
    setup::{connect, connect_once},
    with_each_store,
};
use e2e::{Store, StoreKind};
use std::time::{Duration, Instant};
use tower_sse::hub::{
    ErrorKind, Hub,
    backend::{NatsBackend, PostgresBackend, RedisBackend},
};

with_each_store! {
    wrong_password_is_an_error_without_the_password,
    unreachable_backend_is_an_error_within_seconds,
    invalid_url_is_an_error,
}

const SOON: Duration = Duration::from_secs(6);

async fn wrong_password_is_an_error_without_the_password(kind: StoreKind) {
    let (arguments, right, wrong, message): (&[&str], _, _, _) = match kind {
        StoreKind::Redis => (&["--requirepass", "secret"], ":secret@", ":guessed@", "authentication failed"),
        StoreKind::Nats => {
            (&["--user", "me", "--pass", "secret"], "me:secret@", "me:guessed@", "authorization violation")
        }
        StoreKind::Postgres => {
            (&[], "postgres:secret@", "postgres:guessed@", "password authentication failed for user")
        }
    };
    let mut store = Store::start(kind, arguments).await;
    if kind == StoreKind::Postgres {
        store.sql("SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD 'secret'");
        let rules = store.folder().join("data/pg_hba.conf");
        std::fs::write(rules, "host all all 127.0.0.1/32 scram-sha-256\n").expect("the file can be written");
        // A server that reloads its rules may still accept connections by the old ones.
        store.kill();
        store.restart().await;
    }
    connect(kind, &store.url_with(right)).await.expect("the password is right");
    let without = match kind {
        StoreKind::Redis => "NOAUTH",
        StoreKind::Nats => message,
        StoreKind::Postgres => "password missing",
    };
    for (user, message) in [(wrong, message), ("", without)] {
        let error = connect(kind, &store.url_with(user)).await.expect_err("the password is wrong");
        let text = with_sources(&error);
        println!("{kind:?}: {text}");
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert!(text.to_lowercase().contains(&message.to_lowercase()), "{text}");
        assert!(!text.contains("guessed"), "the error contains the password: {text}");
    }
}

async fn unreachable_backend_is_an_error_within_seconds(kind: StoreKind) {
    let mut store = Store::start(kind, &[]).await;
    store.signal("STOP");
    let begin = Instant::now();
    let error = connect_once(kind, &store.url(), 1000).await.expect_err("the server is stopped");
    println!("{kind:?}: {}, after {:.1?}", with_sources(&error), begin.elapsed());
    assert_eq!(error.kind(), ErrorKind::Backend);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());

    store.signal("CONT");
    store.kill();
    for url in [store.url(), store.url().replace("127.0.0.1", "nowhere.invalid")] {
        let begin = Instant::now();
        let error = connect_once(kind, &url, 1000).await.expect_err("no server listens");
        println!("{kind:?}: {}, after {:.1?}", with_sources(&error), begin.elapsed());
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
}

async fn invalid_url_is_an_error(kind: StoreKind) {
    for url in ["", "http://127.0.0.1", "127.0.0.1:port", "nats://:port", "redis://["] {
        let backend = match kind {
            StoreKind::Redis => RedisBackend::new(url).map(drop),
            StoreKind::Nats => NatsBackend::new(url).map(drop),
            StoreKind::Postgres => PostgresBackend::new(url).map(drop),
        };
        backend.expect_err(url);
        let connector = match kind {
            StoreKind::Redis => Hub::builder().redis(url),
            StoreKind::Nats => Hub::builder().nats(url),
            StoreKind::Postgres => Hub::builder().postgres(url),
        };
        let error = connector.connect().await.expect_err(url);
        println!("{kind:?}: {url:?}: {}", with_sources(&error));
        assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::InvalidUrl, false), "{url:?}");
    }
}
