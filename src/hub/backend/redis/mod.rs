//! A log in a stream of Redis, or of whatever speaks its protocol.

mod connection;
mod entry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod losses;
#[cfg(feature = "redis-tls")]
mod tls;

use super::{Appended, Backend, Bounds, IdFormat, Page, Position, Record};
use crate::BoxError;
use connection::{COMMANDS, Connection, RequestError, Server, is_connection_error, is_redirect};
use losses::Losses;
use redis::{Cmd, FromRedisValue, RedisError, Script, ScriptInvocation, Value, cmd};
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
    time::{Duration, Instant},
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
///   [`publish_all`](crate::hub::Topic::publish_all) is one script: all of its events are stored
///   with nothing between them, or none is. If the connection is lost before the answer, `publish`
///   returns an error and the events may be in the log. They are not sent again.
/// - **Retention**: [`max_records`](Self::max_records) and [`max_age`](Self::max_age) of the whole
///   stream, whichever is less. The server trims when something is published.
/// - **Ids** are not used twice, with an exception after a failover.
///
/// # What it reports as a gap
///
/// Every entry knows the one before it. A client gets a [gap](crate::hub::Gap) if an entry after
/// its cursor is missing:
///
/// - **Trimmed entries** (by this backend or by `XTRIM`): the clients that have not read the newest
///   trimmed entry.
/// - **`XDEL`**: the clients that read past the deleted entry, when they get the next event. If
///   other software has added the next entry, the deletion is not noticed.
/// - **`DEL`, `FLUSHALL`, or an eviction of the stream**: every client with an id of the old
///   stream, also if it has read all of that stream. A node without new events notices it within 3
///   seconds. If the stream is deleted again in the first two milliseconds of its life, every
///   client gets a gap, but [`resumed`](crate::hub::Gap::resumed) may be too small.
/// - **Failover**: replication is asynchronous, so the last events may be lost with a master (see
///   `min-replicas-to-write` of Redis). Replicated events keep their positions. A node that has
///   read or published a lost event notices the loss when it has reconnected. It adds a mark to the
///   log, also if nothing is published. Every client gets a gap when it passes the mark, on all
///   nodes. A client that had read a lost event gets a gap before the next event, and one more at
///   the mark. Where nodes have known different events, each of them may add a mark.
///
/// Exceptions after a failover:
///
/// - Clients of nodes that knew nothing of the loss get later events first. Their gap says the
///   position of the mark, which is after these events.
/// - A loss is not reported if all nodes that knew of it end before they reach the new master, or
///   may not write to it.
/// - Two masters at the same time (split brain) may give the same id to two events. Each server
///   begins a millisecond with a sequence number derived from its identity, one of 655,360. If the
///   servers publish at most n and m events in a millisecond, their ids can meet with a probability
///   of about (n + m) in 655,360 for each failover, for example 1 in 3,300 for 100 and 100.
///
/// While the server is away, or has no memory left (`maxmemory` with `noeviction`), `publish`
/// returns an error after at most one [`timeout`](Self::timeout) for a connection and one for an
/// answer. Subscribers wait, and continue within a second after the server is back. With a policy
/// that evicts keys without a time to live, such as `allkeys-lru`, a server without memory may
/// evict the whole log. Use `noeviction` or one of the `volatile` policies.
///
/// # What it takes
///
/// - Two connections for each process, whatever the number of clients. `CLIENT LIST` shows them as
///   `tower-sse-commands`, which publishes and reads what the node no longer holds, and
///   `tower-sse-follow`, which waits for new events.
/// - In the server, 25 to 55 bytes for each event beside its topic and its text. In the process,
///   what is [held](crate::hub::Builder) for fan-out, and at most eight pages of about 64 KiB for
///   clients that come back.
/// - For a user with limited commands: `EVALSHA`, `SCRIPT LOAD`, `EXISTS`, `TIME`, `XADD`, `XINFO`,
///   `XRANGE`, `XREAD`, `XREVRANGE` and `XTRIM` on this key. `INFO` identifies the server; where it
///   is forbidden, each connection takes a random number instead. `CLIENT SETNAME` is optional too.
///   `ROLE` is asked only of a master that sentinels name.
///
/// The log is one key, so a Redis Cluster has it on one node. The connections go where that node,
/// or another one of the cluster, says that it is.
///
/// Entries of other software are passed over. If an entry has an id of a time after the year
/// 2527, nodes still follow and read, but `publish` returns an error until the stream is deleted.
/// After the deletion a new log begins, and clients with a later id get a gap. The same holds for
/// every id that is more than a day ahead of the server's clock.
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
    bounds: Script,
    newest: Script,
    mark: Script,
    commands: Mutex<Commands>,
    /// `None` when it is lost, or in use.
    follower: Mutex<Option<Connection>>,
    /// The size of the largest entries in bytes.
    entry_size: AtomicUsize,
    /// The newest position that was ever seen, which the server may have lost.
    high_watermark: AtomicU64,
    losses: SyncMutex<Losses>,
}

/// The shared connection.
#[derive(Default)]
struct Commands {
    connection: Option<Connection>,
    /// The number of connections so far.
    number: u64,
    /// The time and the error of the last failed attempt.
    last_failure: Option<(Instant, RequestError)>,
}

/// The approximate size of a page in bytes: for history reads, and for the follower.
const PAGE_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// The maximum number of entries in a page.
const MAX_ENTRIES: usize = 1024;
/// The maximum number of entries in the first page, whose size is not known.
const INITIAL_ENTRIES: usize = 64;

/// The number of pages that the server searches for the mark of another node.
const MARK_SEARCH_PAGES: usize = 8;

/// The time for which the server waits for an entry.
const BLOCK_TIME: Duration = Duration::from_millis(500);

impl RedisBackend {
    /// A log at this URL: `redis://user:password@host:port/database`, `rediss://` for TLS (feature
    /// `redis-tls`), or `unix:///path?db=0&user=..&pass=..`; `?protocol=resp3` is understood. It
    /// connects when it is used.
    ///
    /// # Errors
    ///
    /// If this is no such URL, or one of TLS without the feature.
    pub fn new(url: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            server: Server::parse(url.as_ref())?,
            stream: "tower-sse".to_owned(),
            max_records: 1_000_000,
            max_age: Duration::from_secs(60 * 60),
            timeout: Duration::from_secs(2),
            append: Script::new(concat!(include_str!("log.lua"), include_str!("append.lua"))),
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
    /// main URL is then the name of the master. Its user, password, database and TLS setting apply
    /// to the master. Each sentinel has a URL with its own.
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
    /// Ignored unless the URL is `rediss://`. Call it after [`sentinels`](Self::sentinels).
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
    /// Ignored unless the URL is `rediss://`. Call it after [`sentinels`](Self::sentinels).
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
    /// Default: 1,000,000. The server [trims](https://redis.io/docs/latest/commands/xtrim/) whole
    /// nodes of the stream, so it may retain some hundred more.
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

    /// Returns the epoch, a hash of the name of the stream. A stream that is deleted and made again
    /// keeps it: positions are times, so the positions of the new stream are greater.
    fn epoch(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.stream.hash(&mut hasher);
        hasher.finish()
    }

    /// The age in milliseconds; 0 is for ever.
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

    /// Runs a command on the connection that is shared, and kept for as long as it works.
    async fn run<T: FromRedisValue>(&self, command: &Command<'_>) -> Result<T, RequestError> {
        self.run_on(self.shared_connection().await?, command).await
    }

    /// Runs a command on the connection that is shared, which was asked for before.
    async fn run_on<T: FromRedisValue>(
        &self,
        (mut connection, mut number): (Connection, u64),
        command: &Command<'_>,
    ) -> Result<T, RequestError> {
        let mut is_new = false;
        loop {
            let error = match command.run(&mut connection).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.server.follow_redirect(&error);
            if is_connection_error(&error) {
                self.disconnect(Some(number)).await;
            }
            // It has done nothing, and another one may: the new master, or the node of the cluster
            // that has the key.
            if is_new || !is_redirect(&error) {
                return Err(self.error(error));
            }
            is_new = true;
            (connection, number) = self.shared_connection().await?;
        }
    }

    /// The connection that is shared, and its number.
    async fn shared_connection(&self) -> Result<(Connection, u64), RequestError> {
        let begin = Instant::now();
        let mut commands = self.commands.lock().await;
        if let Some(connection) = &commands.connection {
            return Ok((connection.clone(), commands.number));
        }
        // A caller that has waited for a failed attempt does not try again at once.
        if let Some((at, failed)) = &commands.last_failure {
            if *at >= begin {
                return Err(failed.clone());
            }
        }
        match self.server.connect(COMMANDS, self.timeout, Duration::ZERO).await {
            Ok(connection) => {
                commands.connection = Some(connection.clone());
                commands.number += 1;
                Ok((connection, commands.number))
            }
            Err(failed) => {
                commands.last_failure = Some((Instant::now(), failed.clone()));
                Err(failed)
            }
        }
    }

    /// Lets go of the connection that is shared, if it still is the one of this number.
    async fn disconnect(&self, number: Option<u64>) {
        let mut commands = self.commands.lock().await;
        if number.is_none_or(|number| number == commands.number) {
            commands.connection = None;
        }
    }

    /// Returns the number of entries with about this size together.
    fn count(&self, bytes: usize) -> usize {
        (bytes / self.entry_size.load(Relaxed).max(1)).clamp(1, MAX_ENTRIES)
    }

    /// Learns how large entries can be: at once if they are larger than before, slowly if they are
    /// smaller.
    fn note_entry_size(&self, largest: usize) {
        let _always =
            self.entry_size.fetch_update(Relaxed, Relaxed, |known| Some(largest.max(known.midpoint(largest))));
    }

    /// Returns the eviction watermark, the last position, and the time of the server in
    /// milliseconds.
    async fn ends(&self) -> Result<(Position, Position, u64), BoxError> {
        let mut bounds = self.bounds.key(&self.stream);
        bounds.arg(entry::id(self.high_watermark()));
        let (oldest, newest, now): (Vec<Value>, Vec<u8>, u64) = self.run(&Command::Script(bounds)).await?;
        let newest = entry::expect_position(&newest)?;
        Ok((entry::first(oldest)?.map_or(newest, |oldest| oldest.evicted_through()), newest, now))
    }

    /// Returns the eviction watermark of a reader at `after` that gets these entries.
    async fn evicted_through(
        &self,
        batch: &entry::DecodedBatch,
        after: Position,
    ) -> Result<Option<Position>, BoxError> {
        if !batch.begins_with_foreign_entry {
            return Ok(batch.evicted_through);
        }
        // As streams are trimmed at their beginning, nothing is missing where there is something
        // before.
        let mut range = cmd("XREVRANGE");
        range.arg(&self.stream).arg(entry::id(after)).arg("-").arg("COUNT").arg(1);
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

    /// Compares the end of the log with what is known of it, when nothing follows after a position.
    /// Returns a page if everything that follows is lost. Returns an error if another log has
    /// replaced it.
    async fn check_end(&self, after: Position) -> Result<Option<Page>, BoxError> {
        // Before the server is asked: what another task appends meanwhile is no loss.
        let high_watermark = self.high_watermark().max(after);
        let (newest, now): (Option<Vec<u8>>, u64) = self.run(&Command::Script(self.newest.key(&self.stream))).await?;
        let Some(newest) = newest else { return Ok(None) };
        let newest = entry::expect_position(&newest)?;
        if newest > after {
            // Otherwise there are entries by now.
            let (evicted_through, newest, _) = self.ends().await?;
            let is_empty = evicted_through >= newest && newest > after;
            return Ok(is_empty.then(|| self.loss_page(newest)));
        }
        let is_mistake = entry::is_far_ahead(high_watermark, now);
        let before = self.losses().replace_regressed_to((newest < after).then_some(newest));
        // Others add entries before the place that was read, and this process could not mark the
        // loss.
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

    fn loss_page(&self, through: Position) -> Page {
        self.raise_high_watermark(through);
        Page { epoch: self.epoch(), evicted_through: through, records: Vec::new(), through }
    }

    /// Marks in the log that it has lost entries, if this process knows of any and the log does not
    /// say so.
    ///
    /// An attempt that fails is repeated before the next page.
    async fn mark(&self, after: Position) {
        let Some((lost, is_forced)) = self.losses().attempt() else { return };
        let Ok(shared) = self.shared_connection().await else { return };
        let mut mark = self.mark.key(&self.stream);
        mark.arg(self.max_entries()).arg(entry::id(self.high_watermark())).arg(shared.0.region());
        mark.arg(entry::id(lost))
            .arg(entry::id(after))
            .arg(self.count(PAGE_BYTES[1]) * MARK_SEARCH_PAGES)
            .arg(u8::from(is_forced));
        if let Ok(Some(id)) = self.run_on::<Option<Vec<u8>>>(shared, &Command::Script(mark)).await {
            // It is empty if another node was first.
            entry::position(&id).inspect(|position| self.raise_high_watermark(*position));
            self.losses().note_marked(lost);
        }
    }

    fn max_entries(&self) -> i64 {
        i64::try_from(self.max_records).unwrap_or(i64::MAX)
    }
}

impl Backend for RedisBackend {
    const ID_FORMAT: IdFormat = IdFormat::Times;

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let high_watermark = self.high_watermark();
        let (evicted_through, newest, now) = self.ends().await?;
        if newest < high_watermark && entry::is_far_ahead(high_watermark, now) {
            // Nothing was added since, unless the position has changed.
            let _changed = self.high_watermark.compare_exchange(high_watermark.get(), newest.get(), Relaxed, Relaxed);
        }
        self.raise_high_watermark(newest);
        // A failover has lost a position that is known and not in the log. The follower reports it.
        Ok(Bounds { epoch: self.epoch(), evicted_through, last: self.high_watermark() })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let shared = self.shared_connection().await?;
        let mut append = self.append.key(&self.stream);
        append.arg(self.max_entries()).arg(self.max_age_ms());
        append.arg(entry::id(self.high_watermark())).arg(shared.0.region());
        for record in &records {
            append.arg(&*record.topic).arg(entry::name(record.kind)).arg(&*record.event);
        }
        drop(records);
        let id = self.run_on::<Vec<u8>>(shared, &Command::Script(append)).await;
        if id.as_ref().is_err_and(RequestError::is_out_of_memory) {
            self.trim().await;
        }
        let position = entry::expect_position(&id?)?;
        self.raise_high_watermark(position);
        self.losses().note_acknowledged(position);
        Ok(Appended { epoch: self.epoch(), position })
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let topics: HashSet<_> = topics.iter().cloned().collect();
        loop {
            let entries = match after {
                // There is no id after it, and the server says so by an error.
                Position::MAX => Vec::new(),
                _ => {
                    let mut range = cmd("XRANGE");
                    range.arg(&self.stream).arg(format!("({}", entry::id(after))).arg("+");
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
            // Otherwise something was added since.
            if newest <= after || evicted_through >= newest {
                return Ok(Page { epoch: self.epoch(), evicted_through, records: Vec::new(), through: newest });
            }
        }
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
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
            read.arg("STREAMS").arg(&self.stream).arg(entry::id(after));
            let answer = match read.query_async::<Value>(&mut connection.commands).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.server.follow_redirect(&error);
                    if is_connection_error(&error) {
                        // The other one will hardly be any better, and may not have noticed yet.
                        self.disconnect(None).await;
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
}

impl RedisBackend {
    /// Lets go of what is too old, as adding something does, where nothing can be added.
    async fn trim(&self) {
        let age = self.max_age_ms();
        let newest = entry::ms(self.high_watermark());
        if age > 0 && age < newest {
            let mut trim = cmd("XTRIM");
            trim.arg(&self.stream).arg("MINID").arg(newest - age);
            let _reported_by_next_request = self.run::<Value>(&Command::Plain(trim)).await;
        }
    }
}

/// A command that can be sent several times.
enum Command<'a> {
    Plain(Cmd),
    Script(ScriptInvocation<'a>),
}

impl Command<'_> {
    async fn run<T: FromRedisValue>(&self, connection: &mut Connection) -> Result<T, RedisError> {
        match self {
            Self::Plain(command) => command.query_async(&mut connection.commands).await,
            Self::Script(script) => script.invoke_async(&mut connection.commands).await,
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the server: it has the password.
        f.debug_struct("RedisBackend").field("stream", &self.stream).finish_non_exhaustive()
    }
}
