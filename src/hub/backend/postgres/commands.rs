//! The connection to Postgres that all requests of this process share, except those of the
//! follower, the task that reads new records.

use super::{Log, connection::Connection, error::RequestError};
use std::{sync::Arc, time::Instant};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// The Postgres setting `application_name` of the connection that all requests of this process
/// share. The follower, the task that reads new records, has another connection. A name in the URL
/// replaces this name.
const COMMANDS: &str = "tower-sse-commands";

/// The connection to Postgres that all requests of this process share, except those of the
/// follower, the task that reads new records.
#[derive(Default)]
pub(super) struct Commands {
    connection: Option<Arc<Connection>>,
    /// The time and the error of the last failed attempt to connect to Postgres. A caller that has
    /// waited for this attempt returns the same error.
    last_failure: Option<(Instant, RequestError)>,
}

impl Log {
    /// Sends a query on `connection`, the connection that all requests of this process share. If
    /// the connection cannot be used after an error, the next request opens a new connection.
    ///
    /// Each query contains the newest record that this process knows, and the server checks that
    /// the log still has this record. So call [`shared_connection`](Self::shared_connection) first,
    /// which may wait for a connection, and then [`known`](Self::known). In the other order, the
    /// process can read newer records during the wait, and the server does not check them.
    pub(super) async fn query(
        &self,
        connection: &Arc<Connection>,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, RequestError> {
        let rows = connection.query(&self.what(), sql, parameters, self.settings.timeout).await;
        if rows.as_ref().is_err_and(RequestError::breaks_connection) {
            let mut commands = self.commands.lock().await;
            // Another caller may have replaced the connection already.
            if commands.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
                commands.connection = None;
            }
        }
        rows
    }

    /// Returns the connection to Postgres that all requests of this process share, and opens it if
    /// there is none. Only the follower, the task that reads new records, has a connection of its
    /// own.
    pub(super) async fn shared_connection(&self) -> Result<Arc<Connection>, RequestError> {
        let begin = Instant::now();
        let mut commands = self.commands.lock().await;
        if let Some(connection) = commands.connection.as_ref().filter(|connection| !connection.has_ended()) {
            return Ok(Arc::clone(connection));
        }
        // The attempt of another caller failed while this caller waited for the lock. This caller
        // returns the same error and does not try again.
        if let Some((at, failed)) = &commands.last_failure {
            if *at >= begin {
                return Err(failed.clone());
            }
        }
        commands.connection = None;
        match self.settings.server.connect(COMMANDS, &self.settings.schema, self.settings.timeout).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                commands.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(failed) => {
                commands.last_failure = Some((Instant::now(), failed.clone()));
                Err(failed)
            }
        }
    }
}
