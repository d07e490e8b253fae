//! The contract of a backend holds of the backend in memory, and rejects a log that breaks it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::task::yield_now;
use tower_sse::{
    BoxError,
    hub::backend::{Appended, Backend, Bounds, MemoryBackend, Page, Position, Record, contract},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_backend_keeps_the_contract_on_four_threads() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().unwrap();
        logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone()
    })
    .await;
}

/// A log whose appends return the position of the newest record that this connection has stored.
#[derive(Clone)]
struct Repeats {
    log: MemoryBackend,
    newest: Arc<Mutex<Option<Appended>>>,
}

impl Backend for Repeats {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.log.bounds().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let appended = self.log.append(records).await?;
        *self.newest.lock().unwrap() = Some(appended);
        yield_now().await;
        self.newest.lock().unwrap().ok_or_else(|| "it was set above".into())
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.log.read(topics, after).await
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        self.log.follow(after).await
    }
}

#[tokio::test]
#[should_panic(expected = "two appends returned the position")]
async fn contract_rejects_positions_that_are_returned_twice() {
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let mut logs = logs.lock().unwrap();
        let log = logs.entry(name.to_owned()).or_insert_with(|| MemoryBackend::new(max_records)).clone();
        Repeats { log, newest: Arc::default() }
    })
    .await;
}
