//! The follower, the task that reads the log of Redis: it waits for new entries, and detects that
//! the log has lost its newest entries.

use super::{PAGE_BYTES, RedisBackend, commands::Command, connection::is_connection_error, entry, entry_id};
use crate::{
    BoxError,
    hub::backend::{Page, Position},
};
use redis::{Value, cmd};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// The maximum length of a search for a mark, in units of about 1 MiB of entries. A mark is an
/// entry of the log that reports a loss of entries. Before a process adds a mark, the server
/// searches the log for an entry of another process that already reports this loss.
const MARK_SEARCH_PAGES: usize = 8;

/// The maximum time that one `XREAD` waits for a new entry. After this time, the follower, the task
/// that reads the log, checks whether the log has lost its newest entries. Then it sends the next
/// `XREAD`.
const BLOCK_TIME: Duration = Duration::from_millis(500);

impl RedisBackend {
    /// Waits for new entries of the Redis stream after the position `after`, and returns their
    /// records as a page, the result of one read of the log. Implements
    /// [`Backend::follow`](crate::hub::backend::Backend::follow).
    pub(super) async fn next_page(&self, after: Position) -> Result<Page, BoxError> {
        self.losses().begin(after);
        loop {
            self.mark(after).await;
            // The connection is put back after its response. If this future is dropped earlier, the
            // connection is closed, because it still waits for entries after an old position.
            let kept = self.follower.lock().await.take();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.server.connect("tower-sse-follow", self.timeout, BLOCK_TIME).await?,
            };
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(self.count(PAGE_BYTES[1])).arg("BLOCK").arg(BLOCK_TIME.as_millis() as u64);
            read.arg("STREAMS").arg(&self.stream).arg(entry_id::id(after));
            let answer = match read.query_async::<Value>(&mut connection.commands).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.server.follow_redirect(&error);
                    if error.is_timeout() {
                        self.note_slow_read();
                    }
                    if is_connection_error(&error) {
                        // The shared connection is probably broken too, and may not have reported
                        // it yet.
                        self.commands.close_if(|_| true);
                    }
                    return Err(self.error(error).into());
                }
            };
            *self.follower.lock().await = Some(connection);
            let mut last: Option<Arc<str>> = None;
            let topic = |name: &str| {
                if last.as_deref() != Some(name) {
                    last = Some(name.into());
                }
                last.clone()
            };
            let batch = entry::decode(entry::stream_entries(answer)?, after, topic)?;
            if batch.entries > 0 {
                let evicted_through = self.evicted_through(&batch, after).await?;
                self.losses().note_read(&batch, after, evicted_through);
                return Ok(self.page(batch, evicted_through));
            }
            if let Some(page) = self.check_end(after).await? {
                return Ok(page);
            }
        }
    }

    /// Checks whether the log has lost its newest entries, by comparing its end with the positions
    /// that this process knows. Called when `XREAD` has returned no entry after the position
    /// `after`.
    ///
    /// Returns a page without records, which reports a loss to the hub, if all entries after
    /// `after` were evicted, deleted or lost. Returns `None` if there is nothing to report to the
    /// hub. Returns an error if another log has replaced the log.
    async fn check_end(&self, after: Position) -> Result<Option<Page>, BoxError> {
        // Read the known watermark before the request. An entry that another task appends during
        // the request is then not mistaken for a loss.
        let high_watermark = self.high_watermark().max(after);
        let (newest, now) = self.newest().await?;
        let Some(newest) = newest else { return Ok(None) };
        let before = self.losses().replace_regressed_to((newest < after).then_some(newest));
        if newest > after {
            // If retained entries have arrived since, the caller reads them next.
            let is_empty = self.entries_after(after, 1).await?.is_empty();
            return Ok(is_empty.then(|| self.loss_page(newest)));
        }
        let is_mistake = entry_id::is_far_ahead(high_watermark, now);
        // The log still ends before the cursor, but its end has moved since the previous check. So
        // other nodes append at positions that the follower has already passed, and this process
        // could not mark the loss.
        let has_continued = before.is_some_and(|before| before < newest);
        if newest < after && (is_mistake || has_continued) {
            self.high_watermark.store(newest.get(), Relaxed);
            self.losses().reset(newest);
            return Err(format!("the stream {:?} of Redis is another one than before", self.stream).into());
        }
        if newest < high_watermark && !is_mistake {
            self.losses().note_missing(high_watermark);
        }
        Ok(None)
    }

    /// Returns the position at the end of the log, and the current time of the Redis server in
    /// milliseconds. The position is `None` if there is no log.
    async fn newest(&self) -> Result<(Option<Position>, u64), BoxError> {
        let (newest, now): (Option<Vec<u8>>, u64) = self.run(&Command::Script(self.newest.key(&self.stream))).await?;
        Ok((newest.map(|newest| entry_id::expect_position(&newest)).transpose()?, now))
    }

    /// Returns a page without records, which reports that the entries up to `through` are missing.
    pub(super) fn loss_page(&self, through: Position) -> Page {
        self.raise_high_watermark(through);
        Page { epoch: self.epoch(), evicted_through: through, records: Vec::new(), through }
    }

    /// Adds a mark (an entry that reports a loss of entries) to the log, if this process knows of a
    /// loss that the log does not report yet. `after` is the last position that this process has
    /// read. Ignores an error, because the caller calls this method again before its next read of
    /// the log.
    async fn mark(&self, after: Position) {
        let unread = self.losses().unread_mark();
        if unread.is_some() {
            // A master that was replaced may have lost the mark.
            let Ok((Some(newest), _)) = self.newest().await else { return };
            self.losses().note_end(newest);
        }
        let Some((lost, is_forced)) = self.losses().attempt() else { return };
        let Ok(shared) = self.shared_connection().await else { return };
        let mut mark = self.mark.key(&self.stream);
        mark.arg(self.max_entries()).arg(entry_id::id(self.high_watermark())).arg(shared.region());
        mark.arg(entry_id::id(lost))
            .arg(entry_id::id(after))
            .arg(self.count(PAGE_BYTES[1]) * MARK_SEARCH_PAGES)
            .arg(u8::from(is_forced));
        let mark = self.run_on::<Option<Vec<u8>>>(shared, &Command::Script(mark)).await;
        if let Some(position) = mark.ok().flatten().and_then(|id| entry_id::position(&id)) {
            // The loss counts as reported only when this process reads the mark: the server may be
            // a master that is replaced, and that loses the mark, too.
            self.raise_high_watermark(position);
            self.losses().note_marked(position);
        }
    }
}
