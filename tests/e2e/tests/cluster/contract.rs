//! The contract that every backend keeps.

use e2e::{Store, StoreKind};
use std::{collections::HashMap, sync::Mutex, time::Duration};
use tower_sse::hub::backend::{MemoryBackend, NatsBackend, PostgresBackend, RedisBackend, contract};

/// The contract does not say how fast a server responds, and the default of two seconds is short
/// for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().expect("no holder panics");
        logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_contract() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    contract::check(async |name: &str, max_records| {
        let log = RedisBackend::new(store.url()).expect("the URL is valid").max_records(max_records as u64);
        log.stream(name).timeout(TIMEOUT)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_keeps_the_contract() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    contract::check(async |name: &str, max_records| {
        let log = NatsBackend::new(store.url()).expect("the URL is valid").max_messages(max_records as u32);
        log.stream(name).timeout(TIMEOUT)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let store = Store::start(StoreKind::Postgres, &[]).await;
    contract::check(async |name: &str, max_records| {
        let log = PostgresBackend::new(store.url()).expect("the URL is valid").max_records(max_records as u64);
        log.schema(name).expect("the name is valid").timeout(TIMEOUT)
    })
    .await;
}
