//! Appending of records to the log in Postgres. Appends that wait at the same time share one
//! transaction.

use super::{
    Log,
    error::RequestError,
    page,
    queue::{Condition, MAX_EXAMINED, Running, Waiting},
    schema::MAX_RECORD_BYTES,
};
use crate::{
    BoxError,
    hub::backend::{Appended, Position, Record},
};
use page::{Known, KnownParameters};
use std::{sync::Arc, time::Instant};
use tokio::sync::oneshot;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

impl Log {
    /// Appends records to the log. Appends that wait at the same time share one transaction,
    /// because each commit waits for the disk of the server.
    pub(super) async fn append(self: &Arc<Self>, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.check_sizes(&records)?;
        self.enqueue(records, None).await?.ok_or_else(|| self.has_no_position().into())
    }

    /// Appends records of one topic if the topic has no record after the position `since`.
    /// Otherwise returns `None`, and appends nothing. Also returns `None` if the log has another
    /// epoch than `epoch` (a number that identifies one lifetime of the log), if records after
    /// `since` were evicted, or if more than 5,000 records follow `since` ([`MAX_EXAMINED`]).
    ///
    /// Shares a transaction with the other appends that wait at the same time, like
    /// [`append`](Self::append). The condition also covers the records of the earlier appends in
    /// this transaction.
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
        self.enqueue(records, Some(Condition { epoch, since: page::to_sql(since) })).await
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

    /// Adds an append to the queue, starts the task that performs the appends if it does not run,
    /// and waits for the result.
    async fn enqueue(
        self: &Arc<Self>,
        records: Vec<Record>,
        condition: Option<Condition>,
    ) -> Result<Option<Appended>, BoxError> {
        let (result, appended) = oneshot::channel();
        if self.appends.push(Waiting { records, condition, result }) {
            let running = Running::new(&self.appends);
            // A publisher that drops its future must not interrupt the appends of others.
            self.spawn(Arc::clone(self).run_appends(running));
        }
        match appended.await {
            Ok(result) => Ok(result?),
            Err(_) => Err("the runtime that performs the appends has ended".into()),
        }
    }

    async fn run_appends(self: Arc<Self>, running: Running) {
        loop {
            let newest = self.known().map_or(0, |known| known.position);
            let group = self.appends.next_group(newest);
            if group.is_empty() {
                return running.end();
            }
            self.run_group(group).await;
        }
    }

    /// Performs appends in one transaction, and sends each of them its result. If the transaction
    /// fails with an error that may concern only one of the appends, performs each half of them in
    /// a transaction of its own, and so on. So an append that the server refuses does not make the
    /// others fail.
    async fn run_group(self: &Arc<Self>, group: Vec<Waiting>) {
        let began = Instant::now();
        let mut groups = vec![group];
        while let Some(mut group) = groups.pop() {
            match self.append_now(&group).await {
                Ok(results) => {
                    for (append, result) in group.into_iter().zip(results) {
                        let _dropped = append.result.send(Ok(result));
                    }
                }
                Err(error) if error.breaks_connection() => {
                    // The server may be unreachable. So appends that have waited for it fail now,
                    // and do not wait for another attempt.
                    let others = groups.drain(..).rev().flatten().chain(self.appends.take_all());
                    for append in group.into_iter().chain(others) {
                        let _dropped = append.result.send(Err(error.clone()));
                    }
                }
                // Without the time limit, a server that slowly refuses all appends would delay the
                // later appends.
                Err(error)
                    if group.len() > 1 && error.can_concern_one_append() && began.elapsed() < self.settings.timeout =>
                {
                    let rest = group.split_off(group.len() / 2);
                    groups.extend([rest, group]);
                }
                Err(error) => {
                    for append in group {
                        let _dropped = append.result.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Performs appends in one transaction, in their order. Returns the result of each append:
    /// `None` if the append has a [`Condition`] that does not hold, so that nothing was appended.
    async fn append_now(self: &Arc<Self>, group: &[Waiting]) -> Result<Vec<Option<Appended>>, RequestError> {
        let records = || group.iter().flat_map(|append| &append.records);
        let kinds: Vec<_> = records().map(|record| page::kind_to_sql(record.kind)).collect();
        let topics: Vec<_> = records().map(|record| record.topic.as_bytes()).collect();
        let events: Vec<_> = records().map(|record| &*record.event).collect();
        let calls = Call::all(group);
        let firsts: Vec<_> = calls.iter().map(|call| to_index(call.first + 1)).collect();
        let lasts: Vec<_> = calls.iter().map(|call| to_index(call.last)).collect();
        let epochs: Vec<_> = calls.iter().map(|call| call.condition.map(|condition| condition.epoch)).collect();
        let sinces: Vec<_> = calls.iter().map(|call| call.condition.map(|condition| condition.since)).collect();
        // The server stops waiting for the lock of the log before the request of this process times
        // out.
        let lock_timeout = i64::try_from(self.settings.timeout.mul_f64(0.75).as_millis()).unwrap_or(i64::MAX).max(1);
        let connection = self.shared_connection().await?;
        let known = KnownParameters::of(self.known());
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&kinds, Type::CHAR_ARRAY),
            (&topics, Type::BYTEA_ARRAY),
            (&events, Type::BYTEA_ARRAY),
            (&firsts, Type::INT4_ARRAY),
            (&lasts, Type::INT4_ARRAY),
            (&epochs, Type::INT8_ARRAY),
            (&sinces, Type::INT8_ARRAY),
            (&MAX_EXAMINED, Type::INT8),
            (&lock_timeout, Type::INT8),
        ];
        parameters.extend(known.all());
        let rows = self.query(&connection, &self.sql.append, &parameters).await?;
        let ends = ends(&rows, calls.len()).map_err(|error| RequestError::new(&self.what(), &error))?;
        if let Some(newest) = ends.iter().flatten().last() {
            self.note_known(*newest);
        }
        let (mut count, mut bytes) = (0, 0);
        let mut results = Vec::with_capacity(group.len());
        for (call, end) in calls.iter().zip(ends) {
            let mut left = call.last - call.first;
            for append in group.iter().skip(results.len()).take(call.appends) {
                left -= append.records.len();
                results.push(end.map(|end| Appended {
                    epoch: end.epoch as u64,
                    position: Position::new(page::from_sql(end.position).get().saturating_sub(left as u64)),
                }));
                if end.is_some() {
                    count += append.records.len();
                    bytes += append.records.iter().map(|record| record.event.len()).sum::<usize>();
                }
            }
        }
        self.note_new(count, bytes);
        Ok(results)
    }

    /// Returns the error for an append without a condition if the server's response contains no
    /// position.
    fn has_no_position(&self) -> RequestError {
        RequestError::broken(format!("{}: the response to an append has no position", self.what()))
    }
}

/// A call of the SQL function `append`, which stores records. Consecutive appends share a call if
/// they have no condition. An append with a condition (its topic must have no newer record) has a
/// call of its own.
struct Call {
    /// The records that this call of the SQL function `append` stores: those with the indexes
    /// `first..last` among all records of the transaction, which are counted from 0.
    first: usize,
    last: usize,
    condition: Option<Condition>,
    /// The number of appends that share this call of the SQL function `append`.
    appends: usize,
}

impl Call {
    /// Returns the calls of the SQL function `append` that perform these appends in their order.
    fn all(group: &[Waiting]) -> Vec<Self> {
        let mut calls: Vec<Self> = Vec::new();
        let mut records = 0;
        for append in group {
            let first = records;
            records += append.records.len();
            match calls.last_mut() {
                Some(call) if call.condition.is_none() && append.condition.is_none() => {
                    call.last = records;
                    call.appends += 1;
                }
                _ => calls.push(Self { first, last: records, condition: append.condition, appends: 1 }),
            }
        }
        calls
    }
}

/// Converts an index of a record to an SQL integer, for the array of the records of a transaction.
/// An index above the range of these integers becomes the greatest integer.
fn to_index(records: usize) -> i32 {
    i32::try_from(records).unwrap_or(i32::MAX)
}

/// Decodes the response to a transaction of appends. Returns the position and the time of the last
/// record of each call of the SQL function `append`, and the epoch of the log, which identifies one
/// lifetime of the log. The element of a call is `None` if its condition did not hold, so that the
/// call has appended nothing.
fn ends(rows: &[Row], calls: usize) -> Result<Vec<Option<Known>>, tokio_postgres::Error> {
    let mut ends = vec![None; calls];
    for row in rows {
        let number: i64 = row.try_get(0)?;
        let end = usize::try_from(number.saturating_sub(1)).ok().and_then(|index| ends.get_mut(index));
        if let (Some(end), Some(position)) = (end, row.try_get(2)?) {
            *end = Some(Known { epoch: row.try_get(1)?, position, stored_at: row.try_get(3)? });
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::super::PostgresBackend;
    use super::*;
    use crate::hub::backend::RecordKind;
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };
    use tokio::runtime::Builder;

    /// Tests the next append after a runtime has dropped the task that performs the appends. A
    /// runtime that shuts down can drop this task before it polls the task for the first time.
    #[test]
    fn append_after_a_dropped_task_starts_another() {
        let backend = PostgresBackend::new("postgres://host").unwrap();
        let log = backend.log();
        for _ in 0..2 {
            let record = Record { topic: "t".into(), kind: RecordKind::Event, event: "x".into() };
            let mut append = pin!(log.append(vec![record]));
            let mut poll = || append.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let runtime = Builder::new_current_thread().build().unwrap();
            let entered = runtime.enter();
            assert!(poll().is_pending());
            drop(entered);
            drop(runtime);
            let Poll::Ready(Err(error)) = poll() else { panic!("the append still waits") };
            assert_eq!(error.to_string(), "the runtime that performs the appends has ended");
        }
    }
}
