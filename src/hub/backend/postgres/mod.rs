//! A backend that stores the log of a hub, the ordered list of the events of all topics, in tables
//! of Postgres.

mod append;
mod commands;
mod connection;
mod error;
mod follower;
mod hosts;
mod notifications;
mod page;
mod queue;
mod retention;
mod schema;
#[cfg(feature = "postgres-tls")]
mod tls;

use super::{Appended, Backend, Bounds, MaxAge, Page, Position, Record};
use crate::{BoxError, hub::outage::Outage};
use commands::Commands;
use connection::Server;
use follower::{FailedReads, Follower};
use page::{Known, KnownParameters};
use queue::Appends;
use retention::Eviction;
use schema::Schema;
#[cfg(feature = "postgres-tls")]
use std::path::PathBuf;
use std::{
    fmt,
    sync::{Arc, Mutex as SyncMutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::Mutex};

/// A backend that stores the log of a hub, the ordered list of the events of all topics, in a
/// schema of a [PostgreSQL](https://www.postgresql.org) database, version 13 or later.
///
#[doc = include_str!("guarantees.md")]
pub struct PostgresBackend {
    settings: Settings,
    log: OnceLock<Arc<Log>>,
}

#[derive(Clone)]
struct Settings {
    server: Server,
    /// The server for the connection of the follower, the task that reads new records. `None` means
    /// that the follower connects to the same server as all other requests.
    follower: Option<Server>,
    #[cfg(feature = "postgres-tls")]
    tls_files: super::tls::Files,
    schema: Schema,
    max_records: u64,
    max_age: MaxAge,
    timeout: Duration,
}

/// The state of a Postgres backend, which it shares with its tasks: they perform appends and
/// evictions.
struct Log {
    settings: Settings,
    sql: Statements,
    commands: Mutex<Commands>,
    /// The connection of the follower, the task that reads new records. `None` before its first
    /// use, and after the connection is lost.
    follower: Mutex<Option<Follower>>,
    failed_reads: FailedReads,
    appends: Arc<Appends>,
    eviction: Eviction,
    /// Counts and logs failed evictions, the deletions of old records. The log line is necessary,
    /// because no publisher or client gets the errors, and the log grows until an eviction
    /// succeeds.
    eviction_outage: Outage,
    known: SyncMutex<Option<Known>>,
    /// The tokio runtime of the hub: the runtime of the last call of `bounds`. Tasks that work for
    /// several callers run there, because the runtime of one publisher may end earlier.
    runtime: SyncMutex<Option<Handle>>,
}

/// The SQL query that appends records. It calls the SQL function `append` for each range of the
/// records, in the order of the ranges. The function is volatile, so each call sees the records of
/// the earlier calls. `LATERAL` ensures the order: each call refers to its range, so the server can
/// only run the calls in a nested loop over the ranges.
///
/// `unnest` needs no schema name: with several arguments, it is special syntax, which never means a
/// function of another schema.
const APPEND: &str = "SELECT call.n, ends.epoch, ends.last, ends.stored_at
    FROM unnest($4, $5, $6, $7) WITH ORDINALITY AS call (first, last, epoch, since, n)
    CROSS JOIN LATERAL {schema}.append(
        $1[call.first:call.last], $2[call.first:call.last], $3[call.first:call.last],
        call.epoch, call.since, $8, $9, $10, $11, $12
    ) AS ends";

/// The SQL statements of the backend. They contain the name of its Postgres schema.
struct Statements {
    append: String,
    bounds: String,
    listen: String,
    page: String,
    evict: String,
}

impl PostgresBackend {
    /// Creates a backend for the server at this URL: `postgres://user:password@host:port/database`.
    /// The backend connects when it is first used.
    ///
    /// - Several hosts, for a failover: `postgres://user@one,two/database`. Each connection goes to
    ///   the first host that accepts writes. Each address of a host has its own time limit, the
    ///   [`timeout`](Self::timeout). So an address that does not answer is skipped after 2 seconds
    ///   by default.
    /// - A Unix socket: `postgres:///database?host=/run/postgresql`.
    /// - TLS (feature `postgres-tls`): `?sslmode=require`. The certificate of the server is always
    ///   verified, so `verify-ca` and `verify-full` mean the same. Without `sslmode`, or with
    ///   `prefer`, the connection is not encrypted.
    ///
    /// # Errors
    ///
    /// If the URL is invalid, or requires TLS and the feature `postgres-tls` is not enabled.
    pub fn new(url: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            settings: Settings {
                server: Server::parse(url.as_ref())?,
                follower: None,
                #[cfg(feature = "postgres-tls")]
                tls_files: super::tls::Files::default(),
                schema: Schema::new("tower_sse".to_owned())?,
                max_records: 1_000_000,
                max_age: MaxAge::default(),
                timeout: Duration::from_secs(2),
            },
            log: OnceLock::new(),
        })
    }

    /// Sets another URL for the connection of the follower, the task that reads new records. This
    /// connection uses `LISTEN`.
    ///
    /// Call this method if the main URL belongs to a connection pool in transaction mode, such as
    /// PgBouncer. The URL of the follower then names the server itself, or a pool in session mode.
    /// Without such a URL, `LISTEN` has no effect in the pool, and a node reads new records only
    /// once a second.
    ///
    /// # Errors
    ///
    /// If the URL is invalid, or requires TLS and the feature `postgres-tls` is not enabled.
    pub fn follower_url(mut self, url: impl AsRef<str>) -> Result<Self, BoxError> {
        self.settings.follower = Some(Server::parse(url.as_ref())?);
        #[cfg(feature = "postgres-tls")]
        self.set_tls_files();
        Ok(self)
    }

    /// Trusts the root certificates in this PEM file instead of those of the operating system. The
    /// file is read for each connection.
    ///
    /// The setting has no effect if the URL has no `sslmode=require`.
    #[cfg(feature = "postgres-tls")]
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.tls_files.roots = Some(path.into());
        self.set_tls_files();
        self
    }

    /// Sets the PEM files of the client's certificate chain and of its private key, for servers
    /// that ask for a certificate. The files are read for each connection.
    ///
    /// The setting has no effect if the URL has no `sslmode=require`.
    #[cfg(feature = "postgres-tls")]
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.settings.tls_files.own = Some((certificate.into(), key.into()));
        self.set_tls_files();
        self
    }

    #[cfg(feature = "postgres-tls")]
    fn set_tls_files(&mut self) {
        let Settings { server, follower, tls_files, .. } = &mut self.settings;
        server.set_tls_files(tls_files);
        follower.iter_mut().for_each(|follower| follower.set_tls_files(tls_files));
    }

    /// Sets the name of the Postgres schema that contains the log. Default: `tower_sse`. All hubs
    /// with the same schema share their topics and events.
    ///
    /// Choose a schema without other tables and functions. The log has tables with names such as
    /// `log`, `records` and `version`. It uses existing tables with these names, and replaces
    /// functions that have the name and the parameters of its own. Other functions, and their
    /// permissions, do not change.
    ///
    /// # Errors
    ///
    /// If the name is not 1 to 63 ASCII letters, digits, `_` and `-`.
    pub fn schema(mut self, name: impl Into<String>) -> Result<Self, BoxError> {
        self.settings.schema = Schema::new(name.into())?;
        Ok(self)
    }

    /// Returns the SQL that creates the tables and functions of a log in the Postgres schema with
    /// this name, for the migrations of an application. The default name is `tower_sse`.
    ///
    /// Without such a migration, the first node that connects creates the schema. Until then, a
    /// trigger that calls `tower_sse.publish` fails.
    ///
    /// The SQL contains several statements without `BEGIN` and `COMMIT`. Run it in one transaction.
    /// Running it again has no effect, except that it creates dropped tables and updates the schema
    /// from an older version of this crate. It fails if the schema has a newer version. A later
    /// version of this crate may have other SQL: add it as another migration, or let a node update
    /// the schema when it connects.
    ///
    /// The role that runs the SQL owns the schema. If nodes have another role, grant it the
    /// [permissions](Self#connections-and-permissions).
    ///
    /// # Errors
    ///
    /// If the name is not 1 to 63 ASCII letters, digits, `_` and `-`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{BoxError, hub::backend::PostgresBackend};
    /// # fn write() -> Result<(), BoxError> {
    /// let migration = PostgresBackend::schema_sql("tower_sse")?;
    /// std::fs::write("migrations/0007_tower_sse.sql", migration)?;
    /// # Ok(()) }
    /// # assert!(PostgresBackend::schema_sql("tower_sse").unwrap().contains("CREATE SCHEMA \"tower_sse\""));
    /// ```
    pub fn schema_sql(schema: impl Into<String>) -> Result<String, BoxError> {
        Ok(Schema::new(schema.into())?.create())
    }

    /// Sets the approximate number of records that the log retains, for all topics together.
    /// Default: 1,000,000. Nodes delete older records in batches of up to 1,000 records. If a node
    /// has appended or read more than 1,000 records since its last batch, its next batch deletes up
    /// to this greater number of records.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.settings.max_records = records;
        self
    }

    /// Sets the approximate maximum age of records. Older records are deleted. Default: one hour.
    /// [`Duration::MAX`] and zero disable the limit. Each node deletes old records about every ten
    /// seconds, or after each quarter of `age` if this is shorter.
    ///
    /// A hub whose own [`max_age`](crate::hub::Builder::max_age) is not set takes over this age (at
    /// most a day), if it is limited. Conversely, a backend without this setting takes over the age
    /// of the hub. If both are set, each keeps its own.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.settings.max_age.set(age);
        self
    }

    /// Sets the timeout of a request to Postgres, and of a connection attempt to each address of
    /// each host. Default: 2 seconds. Maximum: one hour; a greater value has the same effect as one
    /// hour.
    ///
    /// A node reads new records in pages of at most 17 MiB. If a page does not arrive within the
    /// timeout, the time limit of the next attempt is twice as long, up to 30 seconds.
    ///
    /// A hub waits at most ten seconds for each request to its backend, including the attempts to
    /// connect. So if more than four addresses can be unreachable at the same time, set a shorter
    /// timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout.min(Duration::from_secs(60 * 60));
        self
    }

    fn log(&self) -> &Arc<Log> {
        self.log.get_or_init(|| Arc::new(Log::new(self.settings.clone())))
    }
}

impl Log {
    fn new(settings: Settings) -> Self {
        let sql = Statements {
            append: settings.schema.sql(APPEND),
            bounds: settings.schema.sql("SELECT * FROM {schema}.bounds($1, $2, $3)"),
            listen: settings.schema.sql("SELECT {schema}.listen()"),
            page: settings.schema.sql("SELECT * FROM {schema}.page($1, $2, $3, $4, $5, $6, $7, $8)"),
            evict: settings.schema.sql("SELECT {schema}.evict($1, $2, $3, $4)"),
        };
        Self {
            settings,
            sql,
            commands: Mutex::default(),
            follower: Mutex::default(),
            failed_reads: FailedReads::default(),
            appends: Arc::default(),
            eviction: Eviction::default(),
            eviction_outage: Outage::of("evict"),
            known: SyncMutex::default(),
            runtime: SyncMutex::default(),
        }
    }

    /// Spawns a task that works for several callers, in the runtime of the hub. Without a hub, the
    /// task runs in the runtime of the caller.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    /// Returns the description of the log for error messages.
    fn what(&self) -> String {
        format!("the log {:?} of Postgres", self.settings.schema.name())
    }

    /// Returns the newest record of the log that this process knows.
    fn known(&self) -> Option<Known> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores `newer` as the newest record of the log that this process knows. Has no effect if the
    /// process already knows a newer record: a record of a later epoch, or a later record of the
    /// same epoch. An epoch is a number that identifies one lifetime of the log, and a later epoch
    /// is a greater number.
    fn note_known(&self, newer: Known) {
        let order = |known: Known| (known.epoch, known.position);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| order(known) < order(newer)) {
            *known = Some(newer);
        }
    }

    /// Returns the bounds of the log: its epoch (the number that identifies it), and the range of
    /// positions that it retains. If another log has replaced the log that this process knows, for
    /// example after a failover, the function first starts a new epoch: another number, which
    /// identifies the new log. The ids of earlier events are then not valid any more.
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let connection = self.shared_connection().await?;
        let known = KnownParameters::of(self.known());
        let rows = self.query(&connection, &self.sql.bounds, &known.all()).await?;
        let row = rows.first().ok_or("there are no bounds")?;
        let epoch: i64 = row.try_get(0)?;
        Ok(Bounds {
            epoch: epoch as u64,
            evicted_through: page::from_sql(row.try_get(1)?),
            last: page::from_sql(row.try_get(2)?),
        })
    }
}

impl Backend for PostgresBackend {
    fn configured_max_age(&self) -> Option<Duration> {
        self.settings.max_age.0
    }

    fn inherit_max_age(&mut self, age: Duration) {
        self.settings.max_age.inherit(age);
    }

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let log = self.log();
        if let Ok(runtime) = Handle::try_current() {
            *log.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        }
        log.bounds().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.log().append(records).await
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        self.log().append_if_unchanged(records, epoch, since).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.log().read(topics, after).await
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        self.log().next_page(after).await
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The server is left out because it contains the password.
        f.debug_struct("PostgresBackend").field("schema", &self.settings.schema.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    /// A response with an older epoch (an earlier lifetime of the log) can be decoded after a
    /// response with a later epoch. The record in the older response must not replace the newest
    /// record that the process knows.
    #[test]
    fn older_record_does_not_replace_known_record() {
        let backend = PostgresBackend::new("postgres://host").unwrap();
        let log = backend.log();
        let record = |epoch, position| Known { epoch, position, stored_at: SystemTime::UNIX_EPOCH };
        for (noted, known) in [
            (record(1, 5), record(1, 5)),
            (record(1, 4), record(1, 5)),
            (record(1, 6), record(1, 6)),
            // The epoch of a copy that lacks some records.
            (record(2, 3), record(2, 3)),
            (record(1, 7), record(2, 3)),
        ] {
            log.note_known(noted);
            assert_eq!(log.known(), Some(known));
        }
    }
}
