//! A backend that stores the log of a hub, the ordered list of the events of all topics, in a
//! stream of Redis, or of another server that speaks the protocol of Redis.

mod commands;
mod connection;
mod entry;
mod entry_id;
mod follower;
#[cfg(fuzzing)]
pub mod fuzzing;
mod losses;

#[cfg(feature = "redis-tls")]
use super::tls::{Files, Tls};
use super::{
    Appended, Backend, Bounds, IdFormat, MaxAge, Page, Position, Record, fnv::fnv, shared_connection::SharedConnection,
};
use crate::BoxError;
use commands::Command;
use connection::{Connection, RequestError, Server};
use losses::Losses;
use redis::{RedisError, Script, Value, cmd};
#[cfg(feature = "redis-tls")]
use std::path::PathBuf;
use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, Mutex as SyncMutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Mutex;

/// A backend that stores the log of a hub, the ordered list of the events of all topics, in one
/// [stream](https://redis.io/docs/latest/develop/data-types/streams/) of Redis 6.2 or later, or of
/// Valkey.
///
/// # What it guarantees
///
/// - **Acknowledged** events are in the memory of the server. Its option `appendfsync` decides
///   whether they survive a crash of the server. With `always`, all of them survive. With
///   `everysec`, the events of the last second or two are lost. Without an append-only file, the
///   events since the last snapshot are lost. If a restart has lost events, clients get the gaps
///   that are described under **Failover** below.
/// - **Order**: each publish is one script, and all topics and processes share the order of these
///   scripts. One [`publish_all`](crate::hub::Topic::publish_all) call is one script. It stores all
///   of its events, with no other event between them, or none. If the connection is lost before the
///   response, `publish` returns an error, and the events may be in the log. The backend does not
///   send them again.
/// - **Comparison**: [`append_if_unchanged`](Backend::append_if_unchanged), which appends records
///   only if their topic has no newer record, is one script, too. It searches the entries after the
///   given position for entries of the topic, which takes about 1.6 microseconds for each entry. It
///   appends nothing if the search finds an entry, if there are 2,000 entries or more to search, if
///   one of these is missing, or if the stream was deleted. But an entry that a failover has lost
///   counts as missing only in the processes that had read or published it.
/// - **Retention**: [`max_records`](Self::max_records) and [`max_age`](Self::max_age) of the whole
///   stream, whichever limit is reached first. The server trims the stream when an event is
///   published.
/// - **Ids** of events are not used twice. The only exception is two masters after a failover, see
///   below.
///
/// # What it reports as a gap
///
/// Every entry of the stream contains the id of the entry before it. A client gets a
/// [gap](crate::hub::Gap) if an entry after its last received event is missing:
///
/// - **Trimmed entries** (by this backend or by `XTRIM`): a gap for each client that has not
///   received the newest trimmed entry.
/// - **`XDEL`**: each client that had not received the deleted entry gets a gap before the client's
///   next event. If the newest entry was deleted, the client gets the gap within a second. The
///   deletion of another entry is not detected if the next entry was added by software other than a
///   hub.
/// - **`DEL`, `FLUSHALL`, or an eviction of the stream**: a gap for each client with an id of the
///   old stream. This includes clients that have received all of that stream. A process without new
///   events detects this within 3 seconds. If the new stream is itself deleted within two
///   milliseconds after its creation, every client gets a gap.
///   [`Gap::resumed`](crate::hub::Gap::resumed), the id of the first event after this gap, may then
///   be smaller than the real id of that event.
/// - **Failover**: replication is asynchronous, so a failover may lose the newest events (see
///   `min-replicas-to-write` of Redis). Replicated events keep their positions. A process that has
///   read or published a lost event detects the loss after it has reconnected. It then adds a mark,
///   an entry that reports the loss, to the log, even if no event is published. In all processes,
///   every client gets a gap at the position of the mark. A client that had received a lost event
///   gets one gap before the next event, and another gap at the mark. If several processes knew
///   different lost events, each of them may add a mark.
///
/// There are exceptions to the reports after a failover:
///
/// - Clients of a process that had neither read nor published a lost event first get the events
///   that were published between the failover and the mark. Then they get a gap at the position of
///   the mark.
/// - A loss is not reported if no process that knew of it can report it: each of them has ended
///   before it has connected to the new master, or has no permission to write there. The same holds
///   if each of them connects only after the first entry after the loss was trimmed, or if software
///   other than a hub has added that entry.
/// - Two masters at the same time (split brain) may give the same id to two events. An id consists
///   of a time in milliseconds and a sequence number. To make equal ids improbable, each server has
///   its own first sequence number for every millisecond: one of 655,360, derived from its
///   identity. If one server publishes at most n events in a millisecond, and the other at most m,
///   the same id can occur on both with a probability of about (n + m) in 655,360 for each
///   failover. For n = m = 100, this is 1 in 3,300.
///
/// While the server is unreachable, or has no memory left (`maxmemory` with `noeviction`),
/// `publish` returns an error, after at most one [`timeout`](Self::timeout) for a connection and
/// one for a response. Subscribers wait, and continue within a second after the server is available
/// again. With a policy that evicts keys without a time to live, such as `allkeys-lru`, a server
/// without memory may evict the whole log. Use `noeviction` or one of the `volatile` policies.
///
/// # Resources and permissions
///
/// - Two connections for each process, whatever the number of clients. `CLIENT LIST` shows them as
///   `tower-sse-commands` and `tower-sse-follow`. The first publishes, and reads events that the
///   process does not retain in memory any more. The second waits for new events.
/// - Memory of the server: 25 to 55 bytes for each event, in addition to its topic and its text.
///   Memory of the process: the events that the hub [retains](crate::hub::Builder) for fan-out, and
///   at most eight pages for clients that reconnect. A page has about 64 KiB. If large events
///   follow small ones, a page can have up to 1,024 large events.
/// - Permissions of a Redis user: `EVALSHA`, `SCRIPT LOAD`, `EXISTS`, `TIME`, `XADD`, `XINFO`,
///   `XRANGE`, `XREAD`, `XREVRANGE` and `XTRIM` on this key. `INFO` is optional: it identifies the
///   server. Without `INFO`, the first sequence number of every millisecond is random for each
///   connection, instead of derived from the identity of the server. `CLIENT SETNAME` is optional
///   too. `ROLE` is needed only with sentinels.
///
/// The log is one key, so one node of a Redis Cluster has it. The backend follows the redirects
/// (`MOVED`) of the cluster to that node.
///
/// Entries that other software has added to the stream are skipped. If the id of such an entry has
/// a time after the year 2527, hubs still read the stream. Publishing then returns an error until
/// the stream is deleted. After the deletion of a stream with an id more than a day ahead of the
/// server's clock, the new log begins with ids of the current time. Clients with a greater id get a
/// gap.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use tower_sse::hub::{Hub, backend::RedisBackend};
///
/// # async fn connect() -> Result<Hub, tower_sse::BoxError> {
/// let redis = RedisBackend::new("redis://:secret@redis.internal:6379/0")?
///     .stream("shop:events")
///     .max_records(100_000)
///     .max_age(Duration::from_secs(10 * 60));
/// let hub = Hub::builder().backend(redis).connect().await?;
/// # Ok(hub) }
/// ```
pub struct RedisBackend {
    server: Server,
    #[cfg(feature = "redis-tls")]
    tls_files: Files,
    stream: String,
    max_records: u64,
    max_age: MaxAge,
    timeout: Duration,
    append: Script,
    append_if_unchanged: Script,
    bounds: Script,
    newest: Script,
    mark: Script,
    /// The connection to Redis that all requests of this process share, except requests that wait
    /// for new entries.
    commands: SharedConnection<Connection, RequestError>,
    /// The connection to Redis that waits for new entries. A request takes the connection from
    /// here, and puts it back after the response. So the field is `None` while a request runs,
    /// before the first request, and after the connection is lost.
    follower: Mutex<Option<Connection>>,
    /// The estimated size in bytes of the largest entries of the Redis stream. It determines how
    /// many entries one request asks for.
    entry_size: AtomicUsize,
    /// The greatest position that this process has ever seen in the log. The scripts that add
    /// entries give greater ids to the new entries. The server cannot ensure this alone, because it
    /// may have lost the entry with this position in a failover.
    high_watermark: AtomicU64,
    losses: SyncMutex<Losses>,
}

/// The approximate number of bytes that one read of the Redis stream requests: 64 KiB for a read of
/// old entries, and 1 MiB for a read of new entries.
const PAGE_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// The maximum number of entries that one read of the Redis stream returns.
const MAX_ENTRIES: usize = 1024;
/// The size in bytes that the backend assumes for each entry before its first read: 16 KiB. The
/// first read of new entries therefore requests only 64 entries (1 MiB), so that even a log of
/// large entries can be read over a slow connection.
const INITIAL_ENTRY_SIZE: usize = 16 << 10;

impl RedisBackend {
    /// Creates a backend for the server at this URL: `redis://user:password@host:port/database`,
    /// `rediss://` for TLS (feature `redis-tls`), or `unix:///path?db=0&user=..&pass=..`. The
    /// parameter `?protocol=resp3` is supported. The backend connects when a hub first uses it.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is invalid, or if it begins with `rediss://` and the feature
    /// `redis-tls` is not enabled.
    pub fn new(url: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            server: Server::parse(url.as_ref())?,
            #[cfg(feature = "redis-tls")]
            tls_files: Files::default(),
            stream: "tower-sse".to_owned(),
            max_records: 1_000_000,
            max_age: MaxAge::default(),
            timeout: Duration::from_secs(2),
            append: Script::new(concat!(include_str!("log.lua"), include_str!("append.lua"))),
            append_if_unchanged: Script::new(concat!(
                include_str!("log.lua"),
                include_str!("unchanged.lua"),
                include_str!("append.lua")
            )),
            bounds: Script::new(concat!(include_str!("log.lua"), include_str!("bounds.lua"))),
            newest: Script::new(concat!(include_str!("log.lua"), include_str!("newest.lua"))),
            mark: Script::new(concat!(include_str!("log.lua"), include_str!("mark.lua"))),
            commands: SharedConnection::default(),
            follower: Mutex::default(),
            entry_size: AtomicUsize::new(INITIAL_ENTRY_SIZE),
            high_watermark: AtomicU64::new(0),
            losses: SyncMutex::default(),
        })
    }

    /// Sets the URLs of the Redis sentinels. Before each connection, the backend requests the
    /// address of the master from a sentinel. The host of the URL in [`new`](Self::new) is then the
    /// name of the master. The user, password, database and TLS setting of that URL apply to the
    /// master. The URL of a sentinel contains the settings for that sentinel.
    ///
    /// # Errors
    ///
    /// Returns an error if `urls` is empty, if one of the URLs is invalid, or if the URL of the
    /// master is a path (`unix://`).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tower_sse::{BoxError, hub::{Hub, backend::RedisBackend}};
    /// # async fn connect() -> Result<Hub, BoxError> {
    /// let redis = RedisBackend::new("redis://:secret@mymaster")?
    ///     .sentinels(["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"])?;
    /// let hub = Hub::builder().backend(redis).connect().await?;
    /// # Ok(hub) }
    /// ```
    pub fn sentinels(mut self, urls: impl IntoIterator<Item: AsRef<str>>) -> Result<Self, BoxError> {
        let sentinels = urls.into_iter().map(|url| Server::parse(url.as_ref())).collect::<Result<_, _>>()?;
        self.server.set_sentinels(sentinels)?;
        #[cfg(feature = "redis-tls")]
        self.set_tls_files();
        Ok(self)
    }

    /// Trusts the root certificates in this PEM file instead of those of the operating system. The
    /// file is read for each connection.
    ///
    /// The setting applies to servers and [sentinels](Self::sentinels) whose URL begins with
    /// `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls_files.roots = Some(path.into());
        self.set_tls_files();
        self
    }

    /// Sets the PEM files of the client's certificate chain and of its private key. Servers with
    /// `tls-auth-clients yes` (the default) require them. The files are read for each connection.
    ///
    /// The setting applies to servers and [sentinels](Self::sentinels) whose URL begins with
    /// `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls_files.own = Some((certificate.into(), key.into()));
        self.set_tls_files();
        self
    }

    #[cfg(feature = "redis-tls")]
    fn set_tls_files(&mut self) {
        let sentinels = self.server.sentinels.iter_mut().filter_map(|sentinel| sentinel.tls.as_mut());
        for tls in self.server.tls.as_mut().into_iter().chain(sentinels) {
            *tls = Arc::new(Tls::new(self.tls_files.clone()));
        }
    }

    /// Sets the key of the stream in Redis. Default: `tower-sse`. All hubs with the same key share
    /// their topics and events.
    #[must_use]
    pub fn stream(mut self, key: impl Into<String>) -> Self {
        self.stream = key.into();
        self
    }

    /// Sets the approximate number of records that the Redis stream retains, for all topics
    /// together. Default: 1,000,000. The server
    /// [trims](https://redis.io/docs/latest/commands/xtrim/) the oldest entries in blocks of about
    /// a hundred, so the stream may retain some hundred records more.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    /// Sets the approximate maximum age of records in the Redis stream. Older records are removed.
    /// Default: one hour. [`Duration::MAX`] and zero mean that the age is not limited.
    ///
    /// A hub whose own [`max_age`](crate::hub::Builder::max_age) is not set takes over this age (at
    /// most a day), if it is limited. Conversely, a backend without this setting takes over the age
    /// of the hub. If both are set, each keeps its own.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age.set(age);
        self
    }

    /// Sets the time after which a request to Redis without a response fails, and after which a
    /// connection attempt fails. Default: 2 seconds. Maximum: one hour; a greater value has the
    /// same effect as one hour.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(Duration::from_secs(60 * 60));
        self
    }

    /// Returns the epoch, the number that identifies the log: a hash of the name of the Redis
    /// stream. A stream that is deleted and created again keeps the epoch. The new stream needs no
    /// other epoch: positions contain times, so the positions of the new stream are greater than
    /// those of the old one.
    fn epoch(&self) -> u64 {
        fnv(&self.stream)
    }

    /// Returns the maximum age of entries in milliseconds. 0 means that the age is not limited.
    fn max_age_ms(&self) -> u64 {
        u64::try_from(self.max_age.get().as_millis()).map_or(0, |ms| ms.max(1))
    }

    fn error(&self, source: RedisError) -> RequestError {
        RequestError::new(format!("the stream {:?} of Redis", self.stream), source)
    }

    /// Returns the greatest position that this process has ever seen in the log.
    fn high_watermark(&self) -> Position {
        self.high_watermark.load(Relaxed).into()
    }

    fn raise_high_watermark(&self, position: Position) {
        self.high_watermark.fetch_max(position.get(), Relaxed);
    }

    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of entries that a read of about `bytes` bytes requests (`COUNT` in
    /// Redis): at least 1, at most [`MAX_ENTRIES`]. Computes it with the estimated size of the
    /// largest entries.
    fn count(&self, bytes: usize) -> usize {
        (bytes / self.entry_size.load(Relaxed).max(1)).clamp(1, MAX_ENTRIES)
    }

    /// Updates the estimated size of the largest entries. `largest` is the size of the largest
    /// entry of a read, in bytes. A greater size replaces the estimate. A smaller size reduces the
    /// estimate by half of the difference.
    fn note_entry_size(&self, largest: usize) {
        let _always =
            self.entry_size.fetch_update(Relaxed, Relaxed, |known| Some(largest.max(known.midpoint(largest))));
    }

    /// Multiplies the estimated size of entries by 8, up to 1 MiB, so that the next reads request
    /// fewer entries. Called after a read got no complete response within the timeout: the
    /// connection may be slow, and the entries may be larger than the estimate.
    fn note_slow_read(&self) {
        let larger = |known: usize| Some(known.saturating_mul(8).min(PAGE_BYTES[1]));
        let _always = self.entry_size.fetch_update(Relaxed, Relaxed, larger);
    }

    /// Returns the eviction watermark of the log, its last position, and the time of the server in
    /// milliseconds since 1970. Records up to and including the watermark may have been evicted.
    async fn ends(&self) -> Result<(Position, Position, u64), BoxError> {
        let mut bounds = self.bounds.key(&self.stream);
        bounds.arg(entry_id::id(self.high_watermark()));
        let (oldest, newest, now): (Vec<Value>, Vec<u8>, u64) = self.run(&Command::Script(bounds)).await?;
        let newest = entry_id::expect_position(&newest)?;
        Ok((entry::first(oldest)?.map_or(newest, |oldest| oldest.evicted_through()), newest, now))
    }

    /// Returns the first entries of the Redis stream after the position `after`, at most `count`.
    async fn entries_after(&self, after: Position, count: usize) -> Result<Vec<Value>, RequestError> {
        let mut range = cmd("XRANGE");
        range.arg(&self.stream).arg(format!("({}", entry_id::id(after))).arg("+").arg("COUNT").arg(count);
        self.run(&Command::Plain(range)).await
    }

    /// Returns the eviction watermark for a reader: the reader may have missed entries up to this
    /// position, because they were evicted or lost. `after` is the last position that the reader
    /// has read, and `batch` contains the entries that the reader gets next. If the result is
    /// `None`, or at most `after`, the reader has missed no entry.
    async fn evicted_through(
        &self,
        batch: &entry::DecodedBatch,
        after: Position,
    ) -> Result<Option<Position>, BoxError> {
        if !batch.begins_with_foreign_entry {
            return Ok(batch.evicted_through);
        }
        // Streams are trimmed at their beginning. So if an entry before the cursor is retained, no
        // entry after it was trimmed.
        let mut range = cmd("XREVRANGE");
        range.arg(&self.stream).arg(entry_id::id(after)).arg("-").arg("COUNT").arg(1);
        if !self.run::<Vec<Value>>(&Command::Plain(range)).await?.is_empty() {
            return Ok(batch.evicted_through);
        }
        Ok(Some(self.ends().await?.0))
    }

    fn page(&self, batch: entry::DecodedBatch, evicted_through: Option<Position>) -> Page {
        self.note_entry_size(batch.largest);
        self.raise_high_watermark(batch.through);
        let evicted_through = evicted_through.unwrap_or_default();
        Page { epoch: self.epoch(), evicted_through, records: batch.records, through: batch.through }
    }

    fn max_entries(&self) -> i64 {
        i64::try_from(self.max_records).unwrap_or(i64::MAX)
    }

    /// Runs a script that appends records, and returns the id of the last new entry. With `since`,
    /// the script first checks that the topic of the records has no record after this position. If
    /// the topic has or may have such a record, the script appends nothing, and the returned id is
    /// empty.
    async fn run_append(
        &self,
        script: &Script,
        records: Vec<Record>,
        since: Option<Position>,
    ) -> Result<Vec<u8>, RequestError> {
        let shared = self.shared_connection().await?;
        let mut append = script.key(&self.stream);
        append.arg(self.max_entries()).arg(self.max_age_ms());
        append.arg(entry_id::id(self.high_watermark())).arg(shared.region());
        for record in &records {
            append.arg(&*record.topic).arg(entry::name(record.kind)).arg(&*record.event);
        }
        drop(records);
        if let Some(since) = since {
            append.arg(entry_id::id(since));
        }
        let id = self.run_on::<Vec<u8>>(shared, &Command::Script(append)).await;
        if id.as_ref().is_err_and(RequestError::is_out_of_memory) {
            self.trim().await;
        }
        id
    }

    /// Converts the response to an append, which is the id of the last entry that the append has
    /// added. Also remembers the position of this entry, so that this process can detect a later
    /// loss of the entry.
    fn appended(&self, id: &[u8]) -> Result<Appended, BoxError> {
        let position = entry_id::expect_position(id)?;
        self.raise_high_watermark(position);
        self.losses().note_acknowledged(position);
        Ok(Appended { epoch: self.epoch(), position })
    }

    /// Removes entries that are older than the maximum age from the Redis stream. Called after an
    /// append has failed because the server has no memory. A successful append needs no such call,
    /// because its script removes old entries itself.
    async fn trim(&self) {
        let age = self.max_age_ms();
        let newest = entry_id::ms(self.high_watermark());
        if age > 0 && age < newest {
            let mut trim = cmd("XTRIM");
            trim.arg(&self.stream).arg("MINID").arg(newest - age);
            let _reported_by_next_request = self.run::<Value>(&Command::Plain(trim)).await;
        }
    }
}

impl Backend for RedisBackend {
    const ID_FORMAT: IdFormat = IdFormat::Times;

    fn configured_max_age(&self) -> Option<Duration> {
        self.max_age.0
    }

    fn inherit_max_age(&mut self, age: Duration) {
        self.max_age.inherit(age);
    }

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.commands.use_this_runtime();
        let high_watermark = self.high_watermark();
        let (evicted_through, newest, now) = self.ends().await?;
        if newest < high_watermark && entry_id::is_far_ahead(high_watermark, now) {
            // The known position was a mistake of other software. It is replaced only if no append
            // has changed it in the meantime.
            let _changed = self.high_watermark.compare_exchange(high_watermark.get(), newest.get(), Relaxed, Relaxed);
        }
        self.raise_high_watermark(newest);
        // The result can be after the end of the log, if a failover has lost the newest entries.
        // The follower reports that loss.
        Ok(Bounds { epoch: self.epoch(), evicted_through, last: self.high_watermark() })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let id = self.run_append(&self.append, records, None).await?;
        self.appended(&id)
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        let Some(first) = records.first() else { return Err("there is nothing to add".into()) };
        if records.iter().any(|record| record.topic != first.topic) {
            return Err("records of several topics cannot be compared with the log together".into());
        }
        if epoch != self.epoch() {
            return Ok(None);
        }
        let id = self.run_append(&self.append_if_unchanged, records, Some(since)).await?;
        // The script returns an empty string if the topic may have changed.
        if id.is_empty() { Ok(None) } else { self.appended(&id).map(Some) }
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let topics: HashSet<_> = topics.iter().cloned().collect();
        let mut end = None;
        loop {
            let entries = match after {
                // No id follows the greatest position. `XRANGE` would return an error for it.
                Position::MAX => Vec::new(),
                _ => self.entries_after(after, self.count(PAGE_BYTES[0])).await.inspect_err(|error| {
                    if error.is_timeout() {
                        self.note_slow_read();
                    }
                })?,
            };
            let wanted = |name: &str| topics.get(name).cloned();
            let batch = entry::decode(entries, after, wanted)?;
            if batch.entries > 0 {
                let evicted_through = self.evicted_through(&batch, after).await?;
                return Ok(self.page(batch, evicted_through));
            }
            // The entries up to the end of the log, which was read before `XRANGE`, were deleted.
            if let Some(newest) = end {
                return Ok(self.loss_page(newest));
            }
            let (evicted_through, newest, _) = self.ends().await?;
            if newest <= after || evicted_through >= newest {
                return Ok(Page { epoch: self.epoch(), evicted_through, records: Vec::new(), through: newest });
            }
            // Entries were added since `XRANGE`, or the newest entries were deleted. The loop reads
            // once more.
            end = Some(newest);
        }
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        self.next_page(after).await
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `server` is left out because it contains the password.
        f.debug_struct("RedisBackend").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "redis-tls"))]
mod tests {
    use super::*;

    #[test]
    fn files_of_tls_apply_to_sentinels_in_any_order() {
        let sentinels = ["rediss://10.0.0.1:26379", "redis://10.0.0.2:26379"];
        let redis = || RedisBackend::new("redis://mymaster").unwrap();
        for redis in [
            redis().root_certificates("ca.pem").client_certificate("a.pem", "a.key").sentinels(sentinels).unwrap(),
            redis().sentinels(sentinels).unwrap().root_certificates("ca.pem").client_certificate("a.pem", "a.key"),
        ] {
            assert!(redis.server.tls.is_none() && redis.server.sentinels[1].tls.is_none());
            let files = &redis.server.sentinels[0].tls.as_ref().unwrap().files;
            assert_eq!(files.roots.as_deref(), Some("ca.pem".as_ref()));
            assert_eq!(files.own, Some(("a.pem".into(), "a.key".into())));
        }
    }
}
