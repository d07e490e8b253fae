//! Appending of records to the log in Postgres. Appends that wait at the same time share one
//! transaction.

use super::{Log, error::RequestError, page, schema::MAX_RECORD_BYTES};
use crate::{
    BoxError,
    hub::backend::{Appended, Position, Record},
};
use page::{Known, KnownParameters};
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::oneshot;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// The maximum size in bytes of the events in a transaction that several appends share. A larger
/// append has a transaction of its own.
const MAX_BYTES: usize = 1 << 20;
/// The maximum number of records in a transaction that several appends share. An append with more
/// records has a transaction of its own.
const MAX_RECORDS: usize = 1000;

/// The maximum number of records that `append_if_unchanged` examines to detect that a topic has a
/// new record. Examining them takes about 3 ms. If more records follow the position `since`,
/// `append_if_unchanged` appends nothing.
const MAX_EXAMINED: i64 = 5000;

/// The queue of appends to the log in Postgres. An append waits in the queue until the previous
/// transaction has ended.
#[derive(Default)]
pub(super) struct Appends(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    is_running: bool,
}

/// An append that waits for the next transaction, and the channel for its result.
struct Waiting {
    records: Vec<Record>,
    result: oneshot::Sender<Result<Appended, RequestError>>,
}

impl Appends {
    /// Adds an append to the queue. Returns `true` if the task that performs the waiting appends
    /// does not run. The caller then has to start this task.
    fn push(&self, append: Waiting) -> bool {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.push_back(append);
        !mem::replace(&mut queue.is_running, true)
    }

    /// Takes the appends that share the next transaction from the queue. An empty result means that
    /// no append waits. The calling task, which performs the appends, then has to end, because the
    /// next append starts another task.
    fn next_group(&self) -> Vec<Waiting> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut group, mut bytes, mut records) = (Vec::new(), 0, 0);
        while let Some(next) = queue.waiting.front() {
            bytes += next.records.iter().map(|record| record.event.len()).sum::<usize>();
            records += next.records.len();
            if !group.is_empty() && (bytes > MAX_BYTES || records > MAX_RECORDS) {
                break;
            }
            let Some(next) = queue.waiting.pop_front() else { break };
            // The publisher may have dropped its future.
            if !next.result.is_closed() {
                group.push(next);
            }
        }
        queue.is_running = !group.is_empty();
        group
    }

    fn take_all(&self) -> Vec<Waiting> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.drain(..).collect()
    }
}

/// A guard in the task that performs the waiting appends. If the runtime shuts down and drops the
/// task, the guard makes all waiting appends fail. The next append then starts another task.
struct Running<'a> {
    appends: &'a Appends,
    /// `true` if the task that performs the appends has ended because no append was waiting.
    /// Dropping this guard then has no effect, because the next append may already have started
    /// another task.
    has_ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut queue = self.appends.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_running = false;
        // The receivers return an error.
        queue.waiting.clear();
    }
}

impl Log {
    /// Appends records to the log. Appends that wait at the same time share one transaction,
    /// because each commit waits for the disk of the server.
    pub(super) async fn append(self: &Arc<Self>, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.check_sizes(&records)?;
        let (result, appended) = oneshot::channel();
        if self.appends.push(Waiting { records, result }) {
            let log = Arc::clone(self);
            // A publisher that drops its future must not interrupt the appends of others.
            tokio::spawn(log.run_appends());
        }
        match appended.await {
            Ok(result) => Ok(result?),
            Err(_) => Err("the runtime of the publisher has ended".into()),
        }
    }

    async fn run_appends(self: Arc<Self>) {
        let mut running = Running { appends: &self.appends, has_ended: false };
        loop {
            let group = self.appends.next_group();
            if group.is_empty() {
                running.has_ended = true;
                return;
            }
            let records: Vec<_> = group.iter().flat_map(|append| &append.records).collect();
            match self.append_now(&records, None).await {
                Ok(Some(last)) => {
                    let mut left = records.len() as u64;
                    for append in group {
                        left -= append.records.len() as u64;
                        let position = Position::new(last.position.get() - left);
                        let _dropped = append.result.send(Ok(Appended { epoch: last.epoch, position }));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    // An append that waits for an unreachable server does not wait again.
                    let others = if error.breaks_connection() { self.appends.take_all() } else { Vec::new() };
                    for append in group.into_iter().chain(others) {
                        let _dropped = append.result.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Appends records of one topic if the topic has no record after the position `since`. Returns
    /// `None`, and appends nothing, if it has. Also returns `None` if the log has another epoch (a
    /// number that identifies one lifetime of the log), if records after `since` were evicted, or
    /// if more than 5,000 records follow `since` ([`MAX_EXAMINED`]).
    pub(super) async fn append_if_unchanged(
        self: &Arc<Self>,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let Some(first) = records.first() else { return Err("there is nothing to add".into()) };
        if records.iter().any(|record| record.topic != first.topic) {
            return Err("records of several topics cannot be compared with the log together".into());
        }
        self.check_sizes(&records)?;
        // This backend never issues an epoch outside of this range.
        let Ok(epoch) = i64::try_from(epoch) else { return Ok(None) };
        let records: Vec<_> = records.iter().collect();
        Ok(self.append_now(&records, Some((epoch, page::to_sql(since)))).await?)
    }

    /// Returns an error if a record is so large that nodes would skip it when they read the log.
    fn check_sizes(&self, records: &[Record]) -> Result<(), BoxError> {
        let size = records.iter().map(|record| record.topic.len() + record.event.len()).max();
        match size {
            Some(bytes) if bytes > MAX_RECORD_BYTES => Err(format!(
                "the event is too large for {}: {bytes} bytes of at most {MAX_RECORD_BYTES}, with its topic",
                self.what()
            )
            .into()),
            _ => Ok(()),
        }
    }

    /// Appends records in one transaction. `condition` is the epoch that the log must have (the
    /// number that identifies one lifetime of the log), and the position after which the topic must
    /// have no record. Returns `None`, and appends nothing, if the condition does not hold.
    async fn append_now(
        self: &Arc<Self>,
        records: &[&Record],
        condition: Option<(i64, i64)>,
    ) -> Result<Option<Appended>, RequestError> {
        let kinds: Vec<_> = records.iter().map(|record| page::kind_to_sql(record.kind)).collect();
        let topics: Vec<_> = records.iter().map(|record| record.topic.as_bytes()).collect();
        let events: Vec<_> = records.iter().map(|record| &*record.event).collect();
        let (epoch, since) = condition.unzip();
        // The server stops waiting for the lock of the log before the request of this process times
        // out.
        let lock_timeout = i64::try_from(self.settings.timeout.mul_f64(0.75).as_millis()).unwrap_or(i64::MAX).max(1);
        let connection = self.shared_connection().await?;
        let known = KnownParameters::of(self.known());
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&kinds, Type::CHAR_ARRAY),
            (&topics, Type::BYTEA_ARRAY),
            (&events, Type::BYTEA_ARRAY),
            (&epoch, Type::INT8),
            (&since, Type::INT8),
            (&MAX_EXAMINED, Type::INT8),
            (&lock_timeout, Type::INT8),
        ];
        parameters.extend(known.all());
        let rows = self.query(&connection, &self.sql.append, &parameters).await?;
        let Some(known) =
            rows.first().map(appended).transpose().map_err(|e| RequestError::new(&self.what(), &e))?.flatten()
        else {
            return Ok(None);
        };
        self.note_known(known);
        let bytes = events.iter().map(|event| event.len()).sum();
        self.note_new(records.len(), bytes);
        Ok(Some(Appended { epoch: known.epoch as u64, position: page::from_sql(known.position) }))
    }
}

/// Decodes the response to an append: the epoch, the position and the time of the last appended
/// record. Returns `None` if the condition of the append did not hold, so that nothing was
/// appended.
fn appended(row: &Row) -> Result<Option<Known>, tokio_postgres::Error> {
    let Some(position) = row.try_get(1)? else { return Ok(None) };
    Ok(Some(Known { epoch: row.try_get(0)?, position, stored_at: row.try_get(2)? }))
}
