//! Errors of connections and requests to Postgres.

use super::schema;
use std::{error::Error, fmt, sync::Arc};
use tokio_postgres::error::SqlState;

/// A failed request to Postgres, or a failed connection attempt. It can be cloned, because all
/// appends that share a failed transaction return the same error.
#[derive(Clone, Debug)]
pub(super) struct RequestError {
    text: Arc<str>,
    /// `true` if the connection cannot be used after this error, so that the next request needs a
    /// new connection.
    breaks_connection: bool,
    /// `true` if another transaction locked the log, or a table of it, for longer than the
    /// `lock_timeout`.
    is_locked: bool,
}

impl RequestError {
    pub(super) fn new(what: &str, source: &tokio_postgres::Error) -> Self {
        let text = match source.as_db_error() {
            Some(error) => {
                let hint = match error.code() {
                    // A transaction holds the lock from the first of its deferred triggers to the
                    // end of its commit.
                    &SqlState::LOCK_NOT_AVAILABLE => Some(
                        "the log is locked by a transaction that has published, and whose commit has not ended; \
                         SET CONSTRAINTS ... IMMEDIATE before the commit locks it, too",
                    ),
                    _ => error.hint(),
                };
                let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{what}: {}: {}{hint}", error.severity(), error.message())
            }
            None => with_sources(what, source),
        };
        let is_unusable = |code: &SqlState| {
            // Class 08: the connection; 57P01 to 57P04: the server shuts down; 25006: the server is
            // a replica.
            code.code().starts_with("08")
                || code.code().starts_with("57P")
                || *code == SqlState::READ_ONLY_SQL_TRANSACTION
        };
        // The next connection creates a missing schema.
        let code = source.code();
        let breaks_connection = code.is_none_or(is_unusable) || schema::is_missing(code);
        let is_locked = code == Some(&SqlState::LOCK_NOT_AVAILABLE);
        Self { text: text.into(), breaks_connection, is_locked }
    }

    /// Creates an error after which the next request needs a new connection.
    pub(super) fn broken(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), breaks_connection: true, is_locked: false }
    }

    pub(super) fn breaks_connection(&self) -> bool {
        self.breaks_connection
    }

    /// Returns `true` if the error of a transaction with several appends may concern only one
    /// append. The others may then succeed in another transaction.
    pub(super) fn can_concern_one_append(&self) -> bool {
        !self.breaks_connection && !self.is_locked
    }
}

fn with_sources(what: &str, error: &dyn Error) -> String {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text of the error contains its cause. So `source` returns `None`, and a report of the whole
/// chain of errors does not repeat the cause.
impl Error for RequestError {}
