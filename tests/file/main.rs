//! The log in a file: it keeps the contract, and every acknowledged event, through crashes,
//! restarts, full disks and damage.

mod folder;

use folder::Folder;
use std::{collections::HashMap, sync::Mutex, time::Duration};
use tower_sse::hub::backend::{Durability, FileBackend, contract};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_keeps_the_contract() {
    let folder = Folder::new();
    // One process at a time opens a file, so the connections of a check share the log.
    let logs = Mutex::new(HashMap::new());
    contract::check(async |name: &str, max_records| {
        let open = || FileBackend::new(folder.path(name)).max_records(max_records as u64).durability(Durability::Process);
        logs.lock().unwrap().entry(name.to_owned()).or_insert_with(open).clone()
    })
    .await;
}
