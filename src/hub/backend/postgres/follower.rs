//! The connection of the follower, the task that reads new records. On this connection, the
//! follower waits for Postgres notifications, and reads the records.

use super::{
    Log,
    connection::Connection,
    error::RequestError,
    page::{PageQuery, Wanted},
};
use crate::{
    BoxError,
    hub::backend::{Page, Position},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// The Postgres setting `application_name` of the connection of the follower, the task that reads
/// new records. A name in the URL replaces it.
const FOLLOW: &str = "tower-sse-follow";

/// The time without a Postgres notification after which the follower, the task that reads new
/// records, looks for records nevertheless. A notification may get lost, for example in a pool of
/// connections. At this interval, the follower also checks whether an eviction by age is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Log {
    /// Waits until the log has records after the position `after`, and returns the next page of the
    /// log.
    pub(super) async fn next_page(self: &Arc<Self>, after: Position) -> Result<Page, BoxError> {
        // The connection stays in the slot, so dropping this future does not close it.
        let mut slot = self.follower.lock().await;
        let page = self.next_page_on(&mut slot, after).await;
        if page.is_err() {
            *slot = None;
        }
        page
    }

    async fn next_page_on(self: &Arc<Self>, slot: &mut Option<Connection>, after: Position) -> Result<Page, BoxError> {
        if slot.as_ref().is_none_or(Connection::has_ended) {
            *slot = Some(self.listen().await?);
        }
        let Some(connection) = slot else { return Err("there is no connection".into()) };
        loop {
            let query = PageQuery::new(self, Wanted::All, after);
            let rows =
                connection.query(&self.what(), &self.sql.page, &query.parameters(), self.settings.timeout).await?;
            let page = query.decode(self, &rows)?;
            if !page.is_current || page.last < after {
                return Err(self.is_replaced().into());
            }
            if page.page.through > after || page.page.evicted_through > after {
                let bytes = page.page.records.iter().map(|(_, record)| record.event.len()).sum();
                self.note_new(page.count, bytes);
                self.evict_by_age();
                return Ok(page.page);
            }
            if timeout(POLL_INTERVAL, connection.notified()).await.is_err() {
                self.evict_by_age();
            }
        }
    }

    /// Opens the connection of the follower, the task that reads new records, and executes `LISTEN`
    /// on the connection. The follower reads the log only after `LISTEN`, so that it misses no
    /// notification.
    async fn listen(&self) -> Result<Connection, RequestError> {
        let settings = &self.settings;
        let server = settings.follower.as_ref().unwrap_or(&settings.server);
        let connection = server.connect(FOLLOW, &settings.schema, settings.timeout).await?;
        let listen = settings.schema.sql("LISTEN \"{channel}\"");
        let listening = timeout(settings.timeout, connection.client.batch_execute(&listen)).await;
        match listening {
            Ok(listening) => listening.map_err(|source| RequestError::new(&self.what(), &source))?,
            Err(_) => return Err(RequestError::broken(format!("{} does not answer", self.what()))),
        }
        Ok(connection)
    }
}
