//! Pages of the log in Postgres: the query for a page, and the decoding of its rows.

use super::{Log, error::RequestError};
use crate::{
    BoxError,
    hub::backend::{Page, Position, Record, RecordKind},
};
use std::{collections::HashMap, str, sync::Arc, time::SystemTime};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// The maximum number of records in a page, the result of one read of the log.
const MAX_RECORDS: i64 = 1000;
/// The maximum number of records that a query examines to find the records of the wanted topics,
/// including records of other topics. Examining this number takes about 10 ms.
const MAX_EXAMINED: i64 = 10_000;
/// The maximum size in bytes of a page: 64 KiB if the query is for some topics, and 1 MiB if it is
/// for all topics. The last record of a page can exceed the size.
const MAX_BYTES: [i64; 2] = [64 << 10, 1 << 20];

/// The newest record that this process knows, and its epoch, the number that identifies one
/// lifetime of the log. If the log in Postgres does not have this record, and has not evicted it,
/// another log has replaced the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) epoch: i64,
    pub(super) position: i64,
    pub(super) stored_at: SystemTime,
}

/// The newest record that this process knows, as parameters of an SQL query. The server checks that
/// the log still has this record.
pub(super) struct KnownParameters {
    epoch: Option<i64>,
    position: Option<i64>,
    stored_at: Option<SystemTime>,
}

impl KnownParameters {
    pub(super) fn of(known: Option<Known>) -> Self {
        Self {
            epoch: known.map(|known| known.epoch),
            position: known.map(|known| known.position),
            stored_at: known.map(|known| known.stored_at),
        }
    }

    pub(super) fn all(&self) -> [(&(dyn ToSql + Sync), Type); 3] {
        [(&self.epoch, Type::INT8), (&self.position, Type::INT8), (&self.stored_at, Type::TIMESTAMPTZ)]
    }
}

/// A page of the log, and the state of the log when the page was read.
pub(super) struct LogPage {
    pub(super) page: Page,
    pub(super) last: Position,
    /// `true` if the log is still the log that this process knows: it is on the Postgres server
    /// that has issued its epoch, and has the newest record that this process knows. This record
    /// may be missing if it was evicted, or if it is from an earlier epoch.
    pub(super) is_current: bool,
    /// The number of records that the read has returned, including records that this crate cannot
    /// decode, because a program other than a hub has inserted them. Such records count, too, when
    /// the node decides whether there are enough new records for an eviction, the deletion of old
    /// ones.
    pub(super) count: usize,
}

/// The topics whose records a query for a page of the log returns: all topics, or these topics.
pub(super) enum Wanted<'a> {
    All,
    Topics(&'a [Arc<str>]),
}

/// A query for a page of the log: its parameters, and the decoder of its rows. The query can run on
/// the connection that the requests of this process share, or on the connection of the follower,
/// the task that reads new records.
pub(super) struct PageQuery<'a> {
    wanted: Wanted<'a>,
    after: i64,
    topics: Option<Vec<&'a [u8]>>,
    known: KnownParameters,
}

impl<'a> PageQuery<'a> {
    pub(super) fn new(log: &Log, wanted: Wanted<'a>, after: Position) -> Self {
        let topics = match wanted {
            Wanted::All => None,
            Wanted::Topics(topics) => Some(topics.iter().map(|topic| topic.as_bytes()).collect()),
        };
        Self { wanted, after: to_sql(after), topics, known: KnownParameters::of(log.known()) }
    }

    fn max_bytes(&self) -> &'static i64 {
        match self.wanted {
            Wanted::All => &MAX_BYTES[1],
            Wanted::Topics(_) => &MAX_BYTES[0],
        }
    }

    pub(super) fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&self.after, Type::INT8),
            (&self.topics, Type::BYTEA_ARRAY),
            (&MAX_EXAMINED, Type::INT8),
            (&MAX_RECORDS, Type::INT8),
            (self.max_bytes(), Type::INT8),
        ];
        parameters.extend(self.known.all());
        parameters
    }

    /// Decodes the rows that this query has returned. If no other log has replaced the log, also
    /// remembers the newest of these records as the newest record that this process knows.
    pub(super) fn decode(&self, log: &Log, rows: &[Row]) -> Result<LogPage, BoxError> {
        let Some((state, rows)) = rows.split_last() else { return Err("the page has no end".into()) };
        let epoch: i64 = state.try_get("epoch")?;
        let mut names: HashMap<&[u8], Arc<str>> = match self.wanted {
            Wanted::All => HashMap::new(),
            Wanted::Topics(topics) => topics.iter().map(|topic| (topic.as_bytes(), topic.clone())).collect(),
        };
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let position: i64 = row.try_get(0)?;
            let topic: &[u8] = row.try_get(2)?;
            let topic = match names.get(topic) {
                Some(name) => Some(name.clone()),
                None => name(topic).map(|name| names.entry(topic).or_insert(name).clone()),
            };
            if let (Some(topic), Some(kind)) = (topic, kind(row.try_get(1)?)) {
                let event: &[u8] = row.try_get(3)?;
                records.push((from_sql(position), Record { topic, kind, event: event.to_vec().into() }));
            }
        }
        let is_current = state.try_get("is_current")?;
        // A record of another log must not replace the known record, because `bounds` needs the
        // known record to detect this other log.
        if let Some(newest) = rows.last().filter(|_| is_current) {
            log.note_known(Known { epoch, position: newest.try_get(0)?, stored_at: newest.try_get(4)? });
        }
        Ok(LogPage {
            page: Page {
                epoch: epoch as u64,
                evicted_through: from_sql(state.try_get("evicted_through")?),
                records,
                through: from_sql(state.try_get(0)?),
            },
            last: from_sql(state.try_get("last")?),
            is_current,
            count: rows.len(),
        })
    }
}

impl Log {
    /// Reads the log after the position `after`, and returns the records of these topics as a page.
    /// The page ends after 1,000 such records, after 64 KiB of them, or after 10,000 records of any
    /// topics.
    pub(super) async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let connection = self.shared_connection().await?;
        let query = PageQuery::new(self, Wanted::Topics(topics), after);
        let rows = self.query(&connection, &self.sql.page, &query.parameters()).await?;
        let page = query.decode(self, &rows)?;
        if !page.is_current {
            return Err(self.is_replaced().into());
        }
        Ok(page.page)
    }

    /// Returns the error of a read after another log has replaced the log in Postgres. The hub then
    /// calls `bounds`, which starts a new epoch: another number, which identifies the other log.
    pub(super) fn is_replaced(&self) -> RequestError {
        RequestError::broken(format!("{} is another one than before", self.what()))
    }
}

/// Converts a position for SQL, whose integers are signed. A position above the range of these
/// integers becomes the greatest integer.
pub(super) fn to_sql(position: Position) -> i64 {
    i64::try_from(position.get()).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(position: i64) -> Position {
    Position::new(u64::try_from(position).unwrap_or(0))
}

/// Returns the letter for a kind of record in SQL, such as `e` for an event. The type `"char"` of
/// Postgres is an `i8`.
pub(super) fn kind_to_sql(kind: RecordKind) -> i8 {
    let byte = match kind {
        RecordKind::Event => b'e',
        RecordKind::State => b's',
        RecordKind::Finish => b'f',
        RecordKind::Remove => b'r',
    };
    byte as i8
}

/// Decodes a record. Returns `None` if another program has inserted the record, with a kind or a
/// topic that this crate does not use.
pub(super) fn record(byte: i8, topic: &[u8], event: Vec<u8>) -> Option<Record> {
    Some(Record { topic: name(topic)?, kind: kind(byte)?, event: event.into() })
}

/// Returns the name of a topic, or `None` if the bytes are not UTF-8. Only another program inserts
/// records with such topics.
fn name(topic: &[u8]) -> Option<Arc<str>> {
    str::from_utf8(topic).ok().map(Arc::from)
}

fn kind(byte: i8) -> Option<RecordKind> {
    match byte as u8 {
        b'e' => Some(RecordKind::Event),
        b's' => Some(RecordKind::State),
        b'f' => Some(RecordKind::Finish),
        b'r' => Some(RecordKind::Remove),
        _ => None,
    }
}
