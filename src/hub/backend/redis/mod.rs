//! A log in a stream of Redis, or of whatever speaks its protocol.

use super::{Backend, Bounds, Ids, Page, Record, RecordKind};
use crate::BoxError;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, Script, ServerErrorKind, Value,
    aio::MultiplexedConnection, cmd,
};
use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

/// A log in one [stream](https://redis.io/docs/latest/develop/data-types/streams/) of Redis 6.2 or later, or of Valkey.
///
/// # What it guarantees
///
/// What was published is acknowledged when the server has it in memory. Whether it survives a crash of the server is a matter of
/// the server's `appendfsync`, and whether it survives a failover one of its replication, which is asynchronous: the last
/// events before a failover may be lost. Publishing is one script, so all events of
/// [`publish_all`](crate::hub::Topic::publish_all) are added, or none. If the connection is lost before the answer came, an event may be
/// in the log although `publish` is an error; it is not sent again by itself.
///
/// # What it takes
///
/// Two connections for each process: one to publish, to look things up and for history, and one that waits.
///
/// # Examples
///
/// ```no_run
/// use tower_sse::hub::{Hub, backend::RedisBackend};
///
/// # async fn connect() -> Result<Hub, tower_sse::BoxError> {
/// let redis = RedisBackend::new("redis://:secret@redis.internal:6379/0")?.stream("shop:events");
/// let hub = Hub::builder().backend(redis).connect().await?;
/// # Ok(hub) }
/// ```
pub struct RedisBackend {
    client: Client,
    stream: String,
    max_records: u64,
    max_age: Duration,
    timeout: Duration,
    append: Script,
    bounds: Script,
    /// Each is `None` when it is lost.
    commands: Mutex<Option<MultiplexedConnection>>,
    follower: Mutex<Option<MultiplexedConnection>>,
}

/// How many entries are asked for at once.
const PAGE: usize = 2000;

/// For how long the server waits for an entry before it says that there is none.
const WAIT: Duration = Duration::from_secs(2);

/// As many bits of a position are the second part of an entry's id.
const SEQUENCE: u32 = 20;

impl RedisBackend {
    /// A log at this URL, `redis://`, `rediss://` (feature `redis-tls`) or `unix://`, with user, password and database if there
    /// are any. It connects when it is used.
    ///
    /// # Errors
    ///
    /// If this is no such URL.
    pub fn new(url: impl AsRef<str>) -> Result<Self, BoxError> {
        let client = Client::open(url.as_ref().into_connection_info()?)?;
        Ok(Self {
            client,
            stream: "tower-sse".to_owned(),
            max_records: 1_000_000,
            max_age: Duration::from_secs(60 * 60),
            timeout: Duration::from_secs(2),
            append: Script::new(include_str!("append.lua")),
            bounds: Script::new(include_str!("bounds.lua")),
            commands: Mutex::default(),
            follower: Mutex::default(),
        })
    }

    /// The key of the stream. The default is `tower-sse`. Hubs with the same key are one hub.
    #[must_use]
    pub fn stream(mut self, key: impl Into<String>) -> Self {
        self.stream = key.into();
        self
    }

    /// About how many records the stream holds, of all topics together. The default is a million. The server
    /// [trims](https://redis.io/docs/latest/commands/xtrim/) whole nodes of the stream, so it may be some hundred more.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    /// About how old a record can be. The default is an hour; [`Duration::MAX`] is for ever.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// How long to wait for an answer, or for a connection. The default is two seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What tells the hubs of different streams apart. It is the same for every stream of this name: as positions are times, those
    /// of a stream that was deleted are smaller than those of the one after it.
    fn epoch(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.stream.hash(&mut hasher);
        hasher.finish()
    }

    async fn connect(&self, wait: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout + wait));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Runs a command on the connection that is shared, and kept for as long as it works.
    async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let mut kept = self.commands.lock().await;
        let mut connection = match &*kept {
            Some(connection) => connection.clone(),
            None => kept.insert(self.connect(Duration::ZERO).await?).clone(),
        };
        drop(kept);
        let result = command(&mut connection).await;
        // What is wrong with a request is not wrong with the connection; a server that has become a replica is.
        if result.as_ref().is_err_and(|error| error.kind() != ErrorKind::Server(ServerErrorKind::ResponseError)) {
            *self.commands.lock().await = None;
        }
        result
    }
}

impl Backend for RedisBackend {
    const IDS: Ids = Ids::Times;

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let bounds = self
            .run(async |connection| self.bounds.key(&self.stream).invoke_async::<(String, String)>(connection).await);
        let (lost, newest) = bounds.await?;
        Ok(Bounds { epoch: self.epoch(), lost: position(&lost)?, newest: position(&newest)? })
    }

    async fn append(&self, records: Vec<Record>) -> Result<u64, BoxError> {
        let id = self.run(async |connection| {
            let mut append = self.append.key(&self.stream);
            append.arg(self.max_records).arg(u64::try_from(self.max_age.as_millis()).unwrap_or(0));
            for record in &records {
                append.arg(&*record.topic).arg(kind_name(record.kind)).arg(&*record.event);
            }
            append.invoke_async::<String>(connection).await
        });
        position(&id.await?)
    }

    async fn read(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
        let entries = self.run(async |connection| {
            let after = format!("({}", entry_id(after));
            cmd("XRANGE").arg(&self.stream).arg(after).arg("+").arg("COUNT").arg(PAGE).query_async(connection).await
        });
        let mut page = page(self.epoch(), entries.await?, after)?;
        if page.through == after {
            let bounds = self.bounds().await?;
            page.lost = Some(bounds.lost).filter(|lost| *lost > after).unwrap_or(0);
            page.through = bounds.newest;
        }
        page.records.retain(|(_, record)| topics.contains(&record.topic));
        Ok(page)
    }

    async fn follow(&self, after: u64) -> Result<Page, BoxError> {
        loop {
            // It is put back when it has answered: one that still waits for a place that nobody asks for any more is closed.
            let kept = self.follower.lock().await.take();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect(WAIT).await?,
            };
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(PAGE).arg("BLOCK").arg(WAIT.as_millis() as u64);
            read.arg("STREAMS").arg(&self.stream).arg(entry_id(after));
            let reply: Option<Vec<(Value, Vec<Entry>)>> = read.query_async(&mut connection).await?;
            *self.follower.lock().await = Some(connection);
            let entries = reply.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
            let page = page(self.epoch(), entries, after)?;
            if page.through > after {
                return Ok(page);
            }
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it has the password.
        f.debug_struct("RedisBackend").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// An id, and the names and values of fields.
type Entry = (String, Vec<Vec<u8>>);

/// What these entries are for somebody who has read up to `after`. Entries that somebody else has added are passed over.
fn page(epoch: u64, entries: Vec<Entry>, after: u64) -> Result<Page, BoxError> {
    let mut page = Page { epoch, lost: 0, records: Vec::with_capacity(entries.len()), through: after };
    for (n, entry) in entries.into_iter().enumerate() {
        let (position, previous, record) = read(entry)?;
        if n == 0 && previous > after {
            page.lost = previous;
        }
        page.through = position;
        page.records.extend(record.map(|record| (position, record)));
    }
    Ok(page)
}

/// The position of an entry, that of the one before it, and what it says.
fn read((id, fields): Entry) -> Result<(u64, u64, Option<Record>), BoxError> {
    let at = position(&id)?;
    let mut fields = fields.into_iter();
    let mut record = Record { topic: "".into(), kind: RecordKind::Event, event: Default::default() };
    let (mut previous, mut is_ours) = (0, false);
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match &*name {
            b"p" => previous = std::str::from_utf8(&value).map_err(Into::into).and_then(position).unwrap_or(0),
            b"t" => record.topic = String::from_utf8_lossy(&value).into(),
            b"k" => match kind(&value) {
                Some(kind) => (record.kind, is_ours) = (kind, true),
                None => return Ok((at, previous, None)),
            },
            b"e" => record.event = value.into(),
            _ => {}
        }
    }
    Ok((at, previous, is_ours.then_some(record)))
}

fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Event => "event",
        RecordKind::State => "state",
        RecordKind::Finish => "finish",
    }
}

fn kind(name: &[u8]) -> Option<RecordKind> {
    [RecordKind::Event, RecordKind::State, RecordKind::Finish]
        .into_iter()
        .find(|kind| kind_name(*kind).as_bytes() == name)
}

/// The position that an entry's id is.
fn position(id: &str) -> Result<u64, BoxError> {
    let parts =
        id.split_once('-').and_then(|(ms, sequence)| Some((ms.parse::<u64>().ok()?, sequence.parse::<u64>().ok()?)));
    match parts {
        Some((ms, sequence)) if ms >> (64 - SEQUENCE) == 0 && sequence >> SEQUENCE == 0 => {
            Ok(ms << SEQUENCE | sequence)
        }
        _ => Err(format!("the stream has an entry whose id was not made by this crate: {id}").into()),
    }
}

fn entry_id(position: u64) -> String {
    format!("{}-{}", position >> SEQUENCE, position & ((1 << SEQUENCE) - 1))
}
