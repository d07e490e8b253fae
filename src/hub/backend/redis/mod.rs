//! A log in a stream of Redis, or of another server with its protocol.

mod commands;
mod connection;
mod entry;
mod entry_id;
mod follower;
#[cfg(fuzzing)]
pub mod fuzzing;
mod losses;

#[cfg(feature = "redis-tls")]
use super::tls;
use super::{Appended, Backend, Bounds, IdFormat, Page, Position, Record};
use crate::BoxError;
use commands::{Command, Commands};
use connection::{Connection, RequestError, Server};
use losses::Losses;
use redis::{RedisError, Script, Value, cmd};
#[cfg(feature = "redis-tls")]
use std::path::PathBuf;
use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex as SyncMutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Mutex;

/// A log in one [stream](https://redis.io/docs/latest/develop/data-types/streams/) of Redis 6.2 or
/// later, or of Valkey.
///
/// # What it guarantees
///
/// - **Acknowledged** events are in the memory of the server. Its `appendfsync` decides whether
///   they survive a crash of the server. With `always` all of them do. With `everysec` the events
///   of the last second or two are lost. Without an append-only file the events since the last
///   snapshot are lost. A restart that has lost events is a failover (see below).
/// - **Order**: all topics and nodes share the order of the scripts that publish. One
///   [`publish_all`](crate::hub::Topic::publish_all) is one script: either all of its events are
///   stored, with no other event between them, or no event is. If the connection is lost before the
///   response, `publish` returns an error and the events may be in the log. The backend does not
///   send them again.
/// - **Comparison**: [`append_if_unchanged`](Backend::append_if_unchanged) is one script, too. It
///   examines the entries after the given position, which takes about 1.6 microseconds for each. If
///   there are more than 2,000 entries, if an entry is missing, or if the stream was deleted, it
///   appends nothing. After a failover that has lost an entry, only the processes that knew of this
///   entry count it as missing.
/// - **Retention**: [`max_records`](Self::max_records) and [`max_age`](Self::max_age) of the whole
///   stream, whichever limit is reached first. The server trims the stream when an event is
///   published.
/// - **Ids** are not used twice, with an exception after a failover.
///
/// # What it reports as a gap
///
/// Every entry identifies the entry before it. A client gets a [gap](crate::hub::Gap) if an entry
/// after its cursor is missing:
///
/// - **Trimmed entries** (by this backend or by `XTRIM`): a gap for each client that has not
///   received the newest trimmed entry.
/// - **`XDEL`**: a gap for each client that had not received the deleted entry, before its next
///   event. If other software has added the next entry, the deletion is not detected.
/// - **`DEL`, `FLUSHALL`, or an eviction of the stream**: a gap for each client with an id of the
///   old stream, even if the client has received all of that stream. A node without new events
///   detects this within 3 seconds. If the stream is deleted again in the first two milliseconds of
///   its life, every client gets a gap, but [`resumed`](crate::hub::Gap::resumed) may be too small.
/// - **Failover**: replication is asynchronous, so a failover may lose the newest events (see
///   `min-replicas-to-write` of Redis). Replicated events keep their positions. A node that has
///   read or published a lost event detects the loss after it has reconnected. The node adds a mark
///   to the log, even if no event is published. A mark is an entry that reports the loss. On all
///   nodes, every client gets a gap when it passes the mark. A client that had received a lost
///   event gets a gap before the next event, and another gap at the mark. If several nodes knew
///   different lost events, each of these nodes may add a mark.
///
/// After a failover, there are exceptions to this:
///
/// - Clients of nodes that did not know of the loss get later events first. Then they get a gap at
///   the position of the mark, which is after these events.
/// - A loss is not reported if each node that knew of it ends before it has reached the new master,
///   or has no permission to write there.
/// - Two masters at the same time (split brain) may give the same id to two events. To make this
///   improbable, each server begins a millisecond with a sequence number that is derived from its
///   identity, one of 655,360. If the servers publish at most n and m events in a millisecond, the
///   same id can occur on both with a probability of about (n + m) in 655,360 for each failover,
///   for example 1 in 3,300 for 100 and 100.
///
/// While the server is unreachable, or has no memory left (`maxmemory` with `noeviction`),
/// `publish` returns an error after at most one [`timeout`](Self::timeout) for a connection and one
/// for a response. Subscribers wait, and continue within a second after the server is available
/// again. With a policy that evicts keys without a time to live, such as `allkeys-lru`, a server
/// without memory may evict the whole log. Use `noeviction` or one of the `volatile` policies.
///
/// # Resources and permissions
///
/// - Two connections for each process, whatever the number of clients. `CLIENT LIST` shows them as
///   `tower-sse-commands`, which publishes and reads events that the node does not retain any more,
///   and `tower-sse-follow`, which waits for new events.
/// - Memory of the server: 25 to 55 bytes for each event, in addition to its topic and its text.
///   Memory of the process: the events that the hub [retains](crate::hub::Builder) for fan-out, and
///   at most eight pages of about 64 KiB for clients that reconnect.
/// - Permissions of a Redis user: `EVALSHA`, `SCRIPT LOAD`, `EXISTS`, `TIME`, `XADD`, `XINFO`,
///   `XRANGE`, `XREAD`, `XREVRANGE` and `XTRIM` on this key. `INFO` is optional: it identifies the
///   server, and without it each connection takes a random number instead. `CLIENT SETNAME` is
///   optional too. `ROLE` is needed only with sentinels.
///
/// The log is one key, so one node of a Redis Cluster has it. The backend follows the redirects
/// (`MOVED`) of the cluster to that node.
///
/// Entries of other software are skipped. If an entry has an id of a time after the year 2527,
/// nodes still follow and read, but `publish` returns an error until the stream is deleted. After
/// the deletion a new log begins, and clients with a later id get a gap. The same applies to every
/// id that is more than a day ahead of the server's clock.
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
    stream: String,
    max_records: u64,
    max_age: Duration,
    timeout: Duration,
    append: Script,
    append_if_unchanged: Script,
    bounds: Script,
    newest: Script,
    mark: Script,
    commands: Mutex<Commands>,
    /// The connection of the follower. `None` while `follow` uses it, and after the connection is
    /// lost.
    follower: Mutex<Option<Connection>>,
    /// The estimated size of the largest entries in bytes, which determines how many entries a page
    /// requests.
    entry_size: AtomicUsize,
    /// The newest position that this process has ever seen. The server may have lost it.
    high_watermark: AtomicU64,
    losses: SyncMutex<Losses>,
}

/// The approximate size of a page in bytes. The first value is for history reads, the second is for
/// the follower.
const PAGE_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// The maximum number of entries in a page.
const MAX_ENTRIES: usize = 1024;
/// The maximum number of entries in the first page, before the size of entries is known.
const INITIAL_ENTRIES: usize = 64;

impl RedisBackend {
    /// Creates a backend for the server at this URL: `redis://user:password@host:port/database`,
    /// `rediss://` for TLS (feature `redis-tls`), or `unix:///path?db=0&user=..&pass=..`. The
    /// parameter `?protocol=resp3` is supported. The backend connects when it is first used.
    ///
    /// # Errors
    ///
    /// If the URL is invalid, or has `rediss://` and the feature `redis-tls` is not enabled.
    pub fn new(url: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            server: Server::parse(url.as_ref())?,
            stream: "tower-sse".to_owned(),
            max_records: 1_000_000,
            max_age: Duration::from_secs(60 * 60),
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
            commands: Mutex::default(),
            follower: Mutex::default(),
            entry_size: AtomicUsize::new(PAGE_BYTES[0] / INITIAL_ENTRIES),
            high_watermark: AtomicU64::new(0),
            losses: SyncMutex::default(),
        })
    }

    /// Asks these sentinels for the address of the master before each connection. The host of the
    /// main URL is then the name of the master. The user, password, database and TLS setting of the
    /// main URL apply to the master. Each sentinel has its own URL with its own settings.
    ///
    /// # Errors
    ///
    /// If there is no sentinel, or a URL is invalid.
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
        Ok(self)
    }

    /// Trusts the root certificates in this PEM file instead of the system's. The file is read for
    /// each connection.
    ///
    /// It has no effect if the URL is not `rediss://`. With [`sentinels`](Self::sentinels), call it
    /// after them, so that it applies to their connections as well.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        self.each_tls(|tls| tls.roots = Some(path.clone()));
        self
    }

    /// Sets the PEM files of the client's certificate and key, for servers with
    /// `tls-auth-clients yes` (the default). The files are read for each connection.
    ///
    /// It has no effect if the URL is not `rediss://`. With [`sentinels`](Self::sentinels), call it
    /// after them, so that it applies to their connections as well.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let own = (certificate.into(), key.into());
        self.each_tls(|tls| tls.own = Some(own.clone()));
        self
    }

    #[cfg(feature = "redis-tls")]
    fn each_tls(&mut self, set: impl Fn(&mut tls::Tls)) {
        self.server.tls.as_mut().into_iter().for_each(&set);
        self.server.sentinels.iter_mut().filter_map(|sentinel| sentinel.tls.as_mut()).for_each(set);
    }

    /// Sets the key of the stream. Default: `tower-sse`. Hubs with the same key are one hub.
    #[must_use]
    pub fn stream(mut self, key: impl Into<String>) -> Self {
        self.stream = key.into();
        self
    }

    /// Sets the approximate number of records that the stream retains, for all topics together.
    /// Default: 1,000,000. The server [trims](https://redis.io/docs/latest/commands/xtrim/) the
    /// stream in blocks of about a hundred entries, so it may retain some hundred more.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    /// Sets the approximate age at which records are removed. Default: one hour. [`Duration::MAX`]
    /// and zero disable it.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = if age.is_zero() { Duration::MAX } else { age };
        self
    }

    /// Sets the timeout of a request, and of a connection attempt. Default: 2 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the epoch, a hash of the name of the stream. A stream that is deleted and created
    /// again keeps the epoch: positions are times, so the positions of the new stream are greater.
    fn epoch(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.stream.hash(&mut hasher);
        hasher.finish()
    }

    /// Returns the maximum age of entries in milliseconds. 0 means no limit.
    fn max_age_ms(&self) -> u64 {
        u64::try_from(self.max_age.as_millis()).map_or(0, |ms| ms.max(1))
    }

    fn error(&self, source: RedisError) -> RequestError {
        RequestError::new(format!("the stream {:?} of Redis", self.stream), source)
    }

    /// Returns the newest known position.
    fn high_watermark(&self) -> Position {
        self.high_watermark.load(Relaxed).into()
    }

    fn raise_high_watermark(&self, position: Position) {
        self.high_watermark.fetch_max(position.get(), Relaxed);
    }

    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Estimates how many entries have this total size, for the `COUNT` of a read.
    fn count(&self, bytes: usize) -> usize {
        (bytes / self.entry_size.load(Relaxed).max(1)).clamp(1, MAX_ENTRIES)
    }

    /// Updates the estimated size of the largest entries. The estimate rises immediately and falls
    /// slowly.
    fn note_entry_size(&self, largest: usize) {
        let _always =
            self.entry_size.fetch_update(Relaxed, Relaxed, |known| Some(largest.max(known.midpoint(largest))));
    }

    /// Returns the eviction watermark, the last position, and the time of the server in
    /// milliseconds.
    async fn ends(&self) -> Result<(Position, Position, u64), BoxError> {
        let mut bounds = self.bounds.key(&self.stream);
        bounds.arg(entry_id::id(self.high_watermark()));
        let (oldest, newest, now): (Vec<Value>, Vec<u8>, u64) = self.run(&Command::Script(bounds)).await?;
        let newest = entry_id::expect_position(&newest)?;
        Ok((entry::first(oldest)?.map_or(newest, |oldest| oldest.evicted_through()), newest, now))
    }

    /// Returns the eviction watermark for a reader with the cursor `after` that gets these entries.
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

    /// Runs a script that appends records, and returns its result. The last argument of the script
    /// is `since`, if any.
    async fn run_append(
        &self,
        script: &Script,
        records: Vec<Record>,
        since: Option<Position>,
    ) -> Result<Vec<u8>, RequestError> {
        let shared = self.shared_connection().await?;
        let mut append = script.key(&self.stream);
        append.arg(self.max_entries()).arg(self.max_age_ms());
        append.arg(entry_id::id(self.high_watermark())).arg(shared.0.region());
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

    /// Returns the result of an append whose last entry has this id.
    fn appended(&self, id: &[u8]) -> Result<Appended, BoxError> {
        let position = entry_id::expect_position(id)?;
        self.raise_high_watermark(position);
        self.losses().note_acknowledged(position);
        Ok(Appended { epoch: self.epoch(), position })
    }

    /// Trims entries by age when an append fails because the server has no memory. A successful
    /// append trims in its script.
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

    async fn bounds(&self) -> Result<Bounds, BoxError> {
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
        loop {
            let entries = match after {
                // No id follows the greatest position. `XRANGE` would return an error for it.
                Position::MAX => Vec::new(),
                _ => {
                    let mut range = cmd("XRANGE");
                    range.arg(&self.stream).arg(format!("({}", entry_id::id(after))).arg("+");
                    range.arg("COUNT").arg(self.count(PAGE_BYTES[0]));
                    self.run(&Command::Plain(range)).await?
                }
            };
            let wanted = |name: &str| topics.get(name).cloned();
            let batch = entry::decode(entries, after, wanted)?;
            if batch.entries > 0 {
                let evicted_through = self.evicted_through(&batch, after).await?;
                return Ok(self.page(batch, evicted_through));
            }
            let (evicted_through, newest, _) = self.ends().await?;
            // Otherwise an entry was added since `XRANGE`, and the loop reads again.
            if newest <= after || evicted_through >= newest {
                return Ok(Page { epoch: self.epoch(), evicted_through, records: Vec::new(), through: newest });
            }
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
