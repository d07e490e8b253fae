//! The schema of a log in Postgres: its tables and functions in SQL, and how they are created.

use crate::{BoxError, hub::backend::fnv::fnv};
use tokio_postgres::{Client, error::SqlState, types::Type};

/// The version of the tables and functions in Postgres that this crate creates and uses.
const VERSION: i32 = 4;

/// The maximum size of an event that a client of the database publishes in SQL, in bytes: topic,
/// name and data together. Each node must be able to read the event within the timeout of a
/// request. A node that cannot read the event can read no later event, either.
const MAX_BYTES: usize = 1 << 20;

/// The maximum size of a record, in bytes: topic and event together. Nodes skip a larger record,
/// which only a program other than a hub can insert. A read that returns such a record could take
/// longer than the timeout of a request, and nodes would repeat this read again and again.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// The maximum number of records in a Postgres notification. If a transaction appends more records,
/// its notification only wakes the followers of the nodes, the tasks that read new records. Reading
/// many records together takes less time than notifying of each.
const MAX_NOTIFIED: usize = 16;

/// The greatest position that a record can have. The limit prevents an overflow of positions. After
/// a record at this position, which only a program other than a hub can insert, nothing can be
/// appended any more.
const MAX_POSITION: u64 = 1 << 62;

/// The name of the Postgres schema that contains a log. Other names in SQL are derived from it.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    name: String,
}

impl Schema {
    /// The maximum length of an identifier in Postgres, in bytes.
    const MAX_LENGTH: usize = 63;

    /// Checks the name of a Postgres schema: returns an error if the name is not 1 to 63 ASCII
    /// letters, digits, `_` and `-`. The name is part of SQL texts, so no other characters are
    /// allowed.
    pub(super) fn new(name: String) -> Result<Self, BoxError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.bytes().all(is_allowed) {
            return Err(format!(
                "{name:?} cannot be the schema of a log: use 1 to {} letters, digits, _ and -",
                Self::MAX_LENGTH
            )
            .into());
        }
        Ok(Self { name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Replaces the placeholders in an SQL text, such as `{schema}`, with the names and limits of
    /// this log.
    pub(super) fn sql(&self, text: &str) -> String {
        let hash = fnv(&self.name);
        text.replace("{schema}", &format!("\"{}\"", self.name))
            // The key of the advisory lock is positive, and smaller than the greatest key, because
            // the key after it is used, too.
            .replace("{lock}", &(hash >> 2).to_string())
            .replace("{pending}", &format!("tower_sse.pending_{hash:x}"))
            .replace("{evicting}", &format!("tower_sse.evicting_{hash:x}"))
            .replace("{max_position}", &MAX_POSITION.to_string())
            .replace("{max_record_bytes}", &MAX_RECORD_BYTES.to_string())
            .replace("{max_notified}", &MAX_NOTIFIED.to_string())
            .replace("{max_bytes}", &MAX_BYTES.to_string())
            .replace("{version}", &VERSION.to_string())
    }

    /// Returns the SQL statements that create the Postgres schema of the log, or update it from an
    /// older version. The statements expect to run in one transaction.
    pub(super) fn create(&self) -> String {
        self.sql(concat!(
            "SELECT pg_advisory_xact_lock({lock});
DO $tower_sse$ BEGIN
    -- IF NOT EXISTS needs the permission to create a schema, even if it exists.
    IF to_regnamespace('{schema}') IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;
    IF to_regclass('{schema}.version') IS NOT NULL THEN
        IF EXISTS (SELECT FROM {schema}.version WHERE version > {version}) THEN
            RAISE EXCEPTION 'the schema % has a newer version than {version}', '{schema}';
        END IF;
    END IF;
END $tower_sse$;

",
            include_str!("schema.sql"),
            "
CREATE TABLE IF NOT EXISTS {schema}.version (version integer PRIMARY KEY);
INSERT INTO {schema}.version VALUES ({version}) ON CONFLICT DO NOTHING;
",
        ))
    }

    /// Creates the Postgres schema of the log, or updates it from an older version. Does nothing if
    /// the schema in the database has the version of this crate. Returns an error if it has a later
    /// version.
    ///
    /// Several nodes can call this function at the same time. If the schema exists, the role needs
    /// no permission to create a schema.
    pub(super) async fn prepare(&self, client: &Client) -> Result<(), BoxError> {
        if self.version(client).await? == Some(VERSION) {
            return Ok(());
        }
        // One transaction, so that it also works in a pool of connections.
        let create = format!(
            "BEGIN; SET LOCAL lock_timeout = '1500ms'; SET LOCAL client_min_messages = warning; {} COMMIT",
            self.create()
        );
        let created = client.batch_execute(&create).await;
        if created.is_err() {
            let _already_ended = client.batch_execute("ROLLBACK").await;
        }
        Ok(created?)
    }

    /// Returns the version of the log's schema in the database. Returns `None` if a table is
    /// missing, and an error if the version is later than the version that this crate uses.
    async fn version(&self, client: &Client) -> Result<Option<i32>, BoxError> {
        // The casts fail if a table does not exist.
        let find = self.sql(
            "SELECT max(version), '{schema}.log'::regclass::oid, '{schema}.records'::regclass::oid,
                '{schema}.positions'::regclass::oid, '{schema}.inbox'::regclass::oid, '{schema}.channel'::regclass::oid
            FROM {schema}.version",
        );
        let rows = match client.query_typed(&find, NO_PARAMETERS).await {
            Ok(rows) => rows,
            Err(error) if is_missing(error.code()) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let version: Option<i32> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
        match version {
            Some(newer) if newer > VERSION => Err(format!(
                "the schema {:?} has the version {newer}, and this version of tower-sse knows {VERSION}: update it",
                self.name
            )
            .into()),
            version => Ok(version),
        }
    }
}

const NO_PARAMETERS: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];

/// Returns `true` if an error code of Postgres says that the schema, or a part of it, does not
/// exist.
pub(super) fn is_missing(code: Option<&SqlState>) -> bool {
    let missing = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::UNDEFINED_OBJECT,
    ];
    code.is_some_and(|code| missing.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        for name in ["tower_sse", "Shop-1", &"a".repeat(63)] {
            assert!(Schema::new(name.to_owned()).is_ok(), "{name}");
        }
        for name in ["", "a\"b", "a'b", "a.b", "a b", "a$tower_sse$", "ä", "a\0", &"a".repeat(64)] {
            assert!(Schema::new(name.to_owned()).is_err(), "{name}");
        }
    }

    #[test]
    fn only_publish_is_callable_by_every_role() {
        let sql = include_str!("schema.sql");
        let (_, revoked) = sql.split_once("REVOKE ALL ON FUNCTION").unwrap();
        let (revoked, _) = revoked.split_once("FROM PUBLIC;").unwrap();
        let functions = sql.split("CREATE OR REPLACE FUNCTION ").skip(1);
        let names: Vec<_> = functions.map(|function| function.split_once('(').unwrap().0).collect();
        assert!(names.len() > 10, "{names:?}");
        let callable: Vec<_> = names.into_iter().filter(|name| !revoked.contains(&format!("{name}("))).collect();
        assert_eq!(callable, ["{schema}.publish"]);
    }

    #[test]
    fn each_placeholder_is_replaced() {
        let sql = Schema::new("shop".to_owned()).unwrap().create();
        let left: Vec<_> = sql.lines().filter(|line| !line.starts_with("--") && line.contains(['{', '}'])).collect();
        assert_eq!(left, [""; 0]);
    }
}
