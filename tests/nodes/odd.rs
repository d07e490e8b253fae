//! Backends that break the contract, and a log that retains nothing.

use super::{data, hub, publish, subscribe};
use std::sync::Arc;
use tower_sse::{
    BoxError, EventId,
    hub::{
        Start,
        backend::{Appended, Backend, Bounds, MemoryBackend, Page, Position, Record, RecordKind},
    },
};

/// Returns the given records, whatever they are.
struct Odd(Vec<(Position, Record)>);

impl Backend for Odd {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        Ok(Bounds::new(7, Position::new(9)))
    }

    async fn append(&self, _: Vec<Record>) -> Result<Appended, BoxError> {
        Ok(Appended::new(0, Position::START))
    }

    async fn append_if_unchanged(&self, _: Vec<Record>, _: u64, _: Position) -> Result<Option<Appended>, BoxError> {
        Ok(None)
    }

    async fn read(&self, _: &[Arc<str>], _: Position) -> Result<Page, BoxError> {
        let mut page = Page::new(7, Position::MAX);
        page.evicted_through = Position::MAX;
        page.records.clone_from(&self.0);
        Ok(page)
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        match after.get() {
            9 => std::future::pending().await,
            _ => {
                let mut page = Page::new(7, Position::new(9));
                page.records.clone_from(&self.0);
                Ok(page)
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn odd_backend_causes_no_panic_or_invalid_event() {
    let record = |position: u64, event: &'static str| (position.into(), Record::new("a", RecordKind::Event, event));
    let records = vec![
        record(0, "data: nowhere\n\n"),
        record(3, "data: 3\n\n"),
        record(2, "data: backwards\n\n"),
        record(3, "data: twice\n\n"),
        record(4, ""),
        record(5, "data: two\n\ndata: events\n\n"),
        record(6, "id: 1\ndata: with an id\n\n"),
        record(7, "data: no end"),
        record(8, "data: \r\n\r\n"),
        record(9, "data: 9\n\n"),
    ];
    let hub = hub(Odd(records)).await;
    assert_eq!(data(&mut subscribe(&hub, "a", Start::Earliest).await), ["3", "9"]);
    data(&mut subscribe(&hub, "a", EventId::new("haaaaaaa-8").unwrap()).await);
}

#[tokio::test]
async fn hub_works_with_memory_backend_retaining_nothing() {
    let hub = hub(MemoryBackend::new(0)).await;
    assert_eq!(publish(&hub, "a", "held by nobody but the node").await.as_str().split('-').count(), 2);
}
