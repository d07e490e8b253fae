//! Errors of connections and requests to Postgres.

use super::schema;
use std::{error::Error, fmt, sync::Arc};
use tokio_postgres::error::{DbError, Severity, SqlState};

/// The error of a request to Postgres, or of a connection attempt. The error can be cloned, because
/// all appends that share a failed transaction return the same error.
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
        let is_fatal = source.as_db_error().is_some_and(is_fatal);
        let breaks_connection = code.is_none_or(is_unusable) || is_fatal || schema::is_missing(code);
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

/// Returns `true` if this error of Postgres ends the session (severity `FATAL` or `PANIC`). The
/// transaction may have been committed: a pool, such as PgCat, sends such an error if it loses the
/// server during a commit.
fn is_fatal(error: &DbError) -> bool {
    match error.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        // The response has no untranslated severity (field `V`). Servers always send it. A pool may
        // send only the field `S`, in English.
        None => matches!(error.severity(), "FATAL" | "PANIC"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};
    use tokio_postgres::{Config, NoTls};

    /// Returns the error that a client decodes from a response with these fields.
    async fn response(fields: &[&str]) -> tokio_postgres::Error {
        let (client, mut server) = duplex(1024);
        let mut body = fields.join("\0").into_bytes();
        body.extend([0, 0]);
        let length = u32::try_from(body.len() + 4).unwrap();
        server.write_all(&[b"E", &length.to_be_bytes()[..], &body].concat()).await.unwrap();
        Config::new().user("user").connect_raw(client, NoTls).await.err().expect("the server responds with an error")
    }

    /// After a fatal error, the transaction of an append may have been committed. Another attempt
    /// could store its records twice, so the backend makes none.
    #[tokio::test]
    async fn fatal_error_breaks_the_connection() {
        for (severity, code, is_broken) in [
            ("ERROR", "23514", false),
            ("ERROR", "58000", false),
            ("FATAL", "58000", true),
            ("PANIC", "XX000", true),
            ("FATAL", "25P03", true),
            ("ERROR", "57P01", true),
        ] {
            let [text, code, parsed] = [format!("S{severity}"), format!("C{code}"), format!("V{severity}")];
            let of_pool = [text.as_str(), code.as_str(), "Mmessage"];
            let translated = ["SFEHLER", code.as_str(), "Mmessage", parsed.as_str()];
            for fields in [&of_pool[..], &translated[..]] {
                let error = RequestError::new("a request", &response(fields).await);
                assert_eq!(error.breaks_connection(), is_broken, "{fields:?}");
                assert_eq!(error.can_concern_one_append(), !is_broken, "{fields:?}");
            }
        }
    }
}
