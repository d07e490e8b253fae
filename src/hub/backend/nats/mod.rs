//! A log in a stream of NATS JetStream.

mod consumer;
mod link;
mod log;
mod message;

use self::{
    consumer::{Follower, Seen},
    link::{Link, Servers},
    log::Log,
    message::position,
};
use super::{Appended, Backend, Bounds, Ids, Page, Record};
use crate::{BoxError, random};
use async_nats::{
    HeaderMap,
    jetstream::{
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        publish::PublishAck,
        stream::Config,
    },
};
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

/// A log in one [stream](https://docs.nats.io/nats-concepts/jetstream/streams) of NATS JetStream, server 2.9 or later, with a
/// subject for each topic.
///
/// # What it guarantees
///
/// **Order.** The stream numbers its messages, and there is one order for all topics. The events of one
/// [`publish_all`](crate::hub::Topic::publish_all) are one message, so all of them are added, or none, and nothing is between
/// them. As one message they have to be smaller than the server's `max_payload`, 1 MiB unless it is set: more is an error that
/// says so, and none of it is added.
///
/// **Durability.** What was published is acknowledged when the stream has stored it, and, with [`replicas`](Self::replicas), when
/// most of these have. It survives the end of the server's process, however that comes. It does *not* always survive the end of
/// the machine's power or system: a server writes to its files at once, and has the system write them to the disk every
/// two minutes, unless its configuration says `jetstream { sync_interval: always }`. A stream with three replicas, on
/// machines that do not fail together, survives the loss of one of them; until the others have elected another leader, which
/// takes them several seconds, to publish is an error.
///
/// **Loss is told.** If a log has lost its end, because of that or because it was restored from a copy, its stream gives the same
/// numbers once more. Each node that reads on compares what is where it was. If that is something else it notes so in the
/// description of the stream, after which the ids from before are foreign to all nodes, and whoever has one is told a
/// [gap](crate::hub::Gap); only what no node has read that is still there cannot be compared. It is the same if the stream was
/// deleted, in which case it is made anew. What tells it from another one is its description: leave that as it is when you edit it.
/// What is deleted from the middle of the stream, or too old, is a gap for those who have not got it yet.
///
/// **Once.** If an answer is late, or the connection is lost, the message is sent once more with an id by which the server stores it
/// once. An error means that it is not known whether the events are in the log, unless it says that they were refused: they may
/// be there, or appear a little later. To publish them again is to publish others.
///
/// # Retention
///
/// The stream keeps [so many messages](Self::max_messages), of [such an age](Self::max_age), and, if that is set, [so many
/// bytes](Self::max_bytes); the oldest go. A stream that is there already is taken as it is, whatever it keeps, if it is
/// one for this: its subjects include `<stream>.>`, its retention is by limits, and it acknowledges. If it refuses what
/// is new when it is full (`discard: new`), and if there is no disk left, to publish is an error that says so.
///
/// # What it takes
///
/// One connection for each process, whatever the number of its clients, and one consumer, in the memory of the server, which
/// forgets it 5 seconds after the process is gone. While clients come back that have missed more than this process holds,
/// there is one more for each page of 1,000 messages or some 4 MiB, at most eight at a time.
/// With a server before 2.10, a client of several topics is read all topics.
///
/// A connection that is silent for some three seconds is given up for another one, to any of the servers. A name of a
/// topic is at most 2,048 bytes as a subject, in which a byte that is no letter, digit, `-`, `_` or `/` takes three.
///
/// A user with limited rights needs to publish to `<stream>.>`, `$JS.API.STREAM.INFO.<stream>`,
/// `$JS.API.CONSUMER.CREATE.<stream>`, `$JS.API.CONSUMER.*.<stream>.>` and `$JS.API.CONSUMER.MSG.NEXT.<stream>.>`, and to subscribe
/// to `_INBOX.>`; to make the stream, `$JS.API.STREAM.CREATE.<stream>`, and to note a loss, `$JS.API.STREAM.UPDATE.<stream>`.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use tower_sse::hub::{Hub, backend::NatsBackend};
///
/// # async fn connect() -> Result<Hub, tower_sse::BoxError> {
/// let nats = NatsBackend::new("tls://one.nats.internal,tls://two.nats.internal")?
///     .credentials_file("/etc/shop/nats.creds")
///     .root_certificates("/etc/shop/ca.pem")
///     .stream("shop")
///     .replicas(3)
///     .max_age(Duration::from_secs(24 * 60 * 60));
/// let hub = Hub::builder().backend(nats).connect().await?;
/// # Ok(hub) }
/// ```
pub struct NatsBackend {
    servers: Servers,
    config: Config,
    timeout: Duration,
    link: Mutex<Option<Link>>,
    following: Mutex<Following>,
    /// Of the stream as it was last seen by [`bounds`](Backend::bounds); 0 before.
    epoch: AtomicU64,
    /// The number of the newest message that is known of the log that is followed. One that is added later has a greater one,
    /// unless the log is another by now.
    newest: AtomicU64,
    /// Added to the epoch where the stream could not be marked.
    unmarked: AtomicU64,
}

/// How far the stream was followed.
#[derive(Default)]
struct Following {
    follower: Option<Follower>,
    /// Of the last page.
    end: Option<End>,
    /// The epoch of another log than that, if whoever follows was told of it.
    told: Option<u64>,
}

/// Where a log was followed to.
#[derive(Clone, Copy)]
struct End {
    position: u64,
    epoch: u64,
    seen: Option<Seen>,
}

/// For so many topics at most the server is asked for nothing but theirs.
const MAX_FILTERS: usize = 200;

/// For how long the server knows which messages it has stored: longer than one is sent again.
const DUPLICATES: Duration = Duration::from_secs(30);

const AWAY: &str = "there is no connection to the NATS server at the moment";

impl NatsBackend {
    /// A log on this server, or on one of several, with commas between them. It connects when it is used.
    ///
    /// The URLs begin with `nats://` or, for TLS, `tls://`. User and password, or a token, are those of the first URL that has any:
    /// `nats://user:password@host:4222`, `nats://token@host`; characters that are not allowed there are percent-encoded. The other
    /// servers of a cluster are learned from the first that answers.
    ///
    /// # Errors
    ///
    /// If this is no such address.
    pub fn new(servers: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            servers: Servers::parse(servers.as_ref())?,
            config: Config {
                name: "tower-sse".to_owned(),
                max_messages: 1_000_000,
                max_age: Duration::from_secs(60 * 60),
                num_replicas: 1,
                ..Config::default()
            },
            timeout: Duration::from_secs(2),
            link: Mutex::default(),
            following: Mutex::default(),
            epoch: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            unmarked: AtomicU64::new(0),
        })
    }

    /// Logs in with a file of credentials, as `nsc` makes it and NATS Cloud gives it out. It is read when it connects.
    #[must_use]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.servers.credentials_file = Some(path.into());
        self
    }

    /// Trusts servers with certificates from those in this file, in PEM, instead of those that the system trusts. It can be given
    /// several times.
    ///
    /// An application whose dependencies bring more than one cryptography to `rustls` says which one is to be used, with
    /// `CryptoProvider::install_default`, before it connects with TLS.
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.servers.root_certificates.push(path.into());
        self
    }

    /// The name of the stream, and the first part of its subjects. The default is `tower-sse`. Hubs with the same are one hub.
    ///
    /// The stream is made if it is not there. One that is there is [taken as it is](Self#retention).
    #[must_use]
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many messages the stream holds, of all topics together. The default is a million.
    #[must_use]
    pub fn max_messages(mut self, messages: u32) -> Self {
        self.config.max_messages = messages.into();
        self
    }

    /// How many bytes the stream holds, of all topics together. The default is as many as there are.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.config.max_bytes = bytes.try_into().unwrap_or(i64::MAX);
        self
    }

    /// How old a message can be. The default is an hour; [`Duration::MAX`] is for ever.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.config.max_age = if age == Duration::MAX { Duration::ZERO } else { age };
        self
    }

    /// On how many servers the stream is kept, of those that are a cluster. The default is one.
    #[must_use]
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.config.num_replicas = replicas.into();
        self
    }

    /// How long to wait for an answer, an hour at most. The default is two seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(Duration::from_secs(60 * 60));
        self
    }

    /// The connection. It is an error if there is none now: what would wait for one is not sent.
    async fn link(&self) -> Result<Link, BoxError> {
        let mut kept = timeout(self.timeout, self.link.lock()).await.map_err(|_| AWAY)?;
        match &*kept {
            Some(link) if link.is_stuck() => {}
            Some(link) if link.is_connected() => return Ok(link.clone()),
            Some(_) => return Err(AWAY.into()),
            None => {}
        }
        *kept = None;
        // It is large, and rare.
        let link = Box::pin(self.servers.connect(self.timeout)).await?;
        Ok(kept.insert(link).clone())
    }

    async fn log(&self, link: &Link) -> Result<Log, BoxError> {
        let duplicates = DUPLICATES.max(self.timeout * 4);
        let max_age = Some(self.config.max_age).filter(|age| !age.is_zero());
        let config = Config {
            subjects: vec![format!("{}.>", self.config.name)],
            duplicate_window: max_age.map_or(duplicates, |age| age.min(duplicates)),
            ..self.config.clone()
        };
        let was_there = self.epoch.load(Relaxed) != 0 || self.newest.load(Relaxed) != 0;
        let mut log = Log::get_or_create(link, &config, was_there).await?;
        log.epoch = log.epoch.wrapping_add(self.unmarked.load(Relaxed));
        Ok(log)
    }

    /// Follows the stream from this position on.
    async fn begin(&self, following: &mut Following, after: u64) -> Result<Follower, BoxError> {
        let link = self.link().await?;
        let log = self.log(&link).await?;
        let end = following.end.filter(|end| end.position == after);
        if end.is_some_and(|end| end.epoch != log.epoch) {
            // Whoever is told asks for the bounds next, and may be at the same position then.
            let is_known = following.told == Some(log.epoch) && self.epoch.load(Relaxed) == log.epoch;
            if !is_known {
                following.told = Some(log.epoch);
                self.epoch.store(0, Relaxed);
                return Err("the stream is not the one that it was before".into());
            }
        }
        let seen = end.filter(|end| end.epoch == log.epoch).and_then(|end| end.seen);
        let (epoch, newest) = (log.epoch, log.last);
        match Follower::begin(&link, &self.config.name, &log, after, seen, self.timeout).await? {
            Some(follower) => {
                following.end = Some(End { position: after, epoch, seen: follower.seen });
                following.told = None;
                self.newest.store(newest, Relaxed);
                Ok(follower)
            }
            None => {
                let marked = self.begin_anew(&link, log).await;
                let but = marked.map_or_else(|error| format!("; it cannot be marked: {error}"), |()| String::new());
                Err(format!("the stream has lost the end of what it had acknowledged{but}").into())
            }
        }
    }

    /// Makes the log another one for all nodes, or, if that is not allowed, for this one.
    async fn begin_anew(&self, link: &Link, log: Log) -> Result<(), BoxError> {
        let generation = match log.begin_anew(link).await {
            Ok(generation) => generation,
            Err(error) => {
                self.unmarked.fetch_add(1, Relaxed);
                return Err(error);
            }
        };
        // Nodes that follow on already are told. They all do this, so the server stores one.
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("log {generation}"));
        message::mark(&mut headers, generation);
        let subject = message::subject(&self.config.name, "").unwrap_or_default();
        self.publish(&subject, PublishMessage::build().headers(headers)).await.map(drop)
    }

    /// Adds a message, and returns its number.
    async fn publish(&self, subject: &str, message: PublishMessage) -> Result<u64, BoxError> {
        let deadline = Instant::now() + self.timeout;
        let link = self.link().await?;
        link.soon(async {
            loop {
                let mut losses = link.losses();
                let attempt = async { link.context.send_publish(subject.to_owned(), message.clone()).await?.await };
                // Half of the time, as what was asked for may be lost, too, with a server of a cluster for instance.
                let patience = (deadline - self.timeout / 2).max(Instant::now() + self.timeout / 8);
                match timeout_at(patience.min(deadline), losses.unless_lost(attempt)).await {
                    Ok(Ok(Ok(ack))) => return self.stored(ack),
                    Ok(Ok(Err(error))) if !is_unsure(&error) => return Err(error.into()),
                    Ok(Err(_is_lost)) => losses.is_mended().await,
                    Ok(Ok(Err(_))) | Err(_) => {}
                }
            }
        })
        .await
    }

    fn stored(&self, ack: PublishAck) -> Result<u64, BoxError> {
        if ack.stream == self.config.name {
            return Ok(ack.sequence);
        }
        Err(format!("it was stored in another stream, {:?}, which has the same subjects", ack.stream).into())
    }

    /// What there is now.
    async fn page(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
        let link = self.link().await?;
        let before = self.log(&link).await?;
        self.is_the_same(&before)?;
        let (lost, newest) = (before.lost(), before.newest());
        let epoch = before.epoch;
        let mut page = Page { epoch, lost, records: Vec::new(), through: newest };
        let wanted: BTreeSet<_> = topics.iter().collect();
        // One whose name is too long was never published to.
        let mut subjects: Vec<_> =
            wanted.iter().filter_map(|topic| message::subject(&self.config.name, topic)).collect();
        if after.max(lost) < newest && !subjects.is_empty() {
            if subjects.len() > MAX_FILTERS || (subjects.len() > 1 && !link.client.is_server_compatible(2, 10, 0)) {
                subjects.clear();
            }
            page = consumer::read(&link, &before, &self.config.name, subjects, after, self.timeout).await?;
            page.records.retain(|(_, record)| wanted.contains(&record.topic));
            // What was let go meanwhile may have been missed, and what is held now was not.
            let now = self.log(&link).await?;
            self.is_the_same(&now)?;
            page.lost = now.lost();
        }
        if page.lost <= after {
            page.lost = 0;
        }
        page.records.retain(|(position, _)| *position > page.lost);
        page.through = page.through.max(page.lost);
        Ok(page)
    }

    fn is_the_same(&self, log: &Log) -> Result<(), BoxError> {
        match self.epoch.load(Relaxed) {
            0 => Ok(()),
            epoch if epoch == log.epoch => Ok(()),
            _ => Err("the stream is another one than before".into()),
        }
    }
}

/// Whether it may have been stored all the same, and if not, may be the next time.
fn is_unsure(error: &PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe)
}

impl Backend for NatsBackend {
    const IDS: Ids = Ids::Messages;

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let link = self.link().await?;
        let log = self.log(&link).await?;
        self.epoch.store(log.epoch, Relaxed);
        Ok(Bounds { epoch: log.epoch, lost: log.lost(), newest: log.newest() })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        let link = self.link().await?;
        if let Some(refusal) = message::refusal(&records, link.client.server_info().max_payload) {
            return Err(refusal.into());
        }
        let Some(Record { topic, kind, .. }) = records.first() else { return Err("there is nothing to add".into()) };
        let subject = message::subject(&self.config.name, topic);
        let subject = subject.ok_or("the name of the topic is too long for a subject of NATS")?;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{:016x}{:016x}", random::bits(), random::bits()));
        message::set_kind(&mut headers, *kind);
        let message = PublishMessage::build().headers(headers).payload(message::join(&records));
        let before = self.newest.load(Relaxed);
        let sequence = self.publish(&subject, message).await?;
        if sequence <= before {
            // It has the id of something else, as long as this log is taken for the one before.
            return Err("it was stored in another stream than before, or in one that has lost its end".into());
        }
        self.newest.fetch_max(sequence, Relaxed);
        Ok(Appended { epoch: self.epoch.load(Relaxed), position: position(sequence) })
    }

    async fn read(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
        self.page(topics, after).await
    }

    async fn follow(&self, after: u64) -> Result<Page, BoxError> {
        let mut following = self.following.lock().await;
        let follower = match following.follower.take().filter(|follower| follower.after == after) {
            Some(follower) => follower,
            None => self.begin(&mut following, after).await?,
        };
        let follower = following.follower.insert(follower);
        let page = follower.page(&self.config.name).await;
        let seen = follower.seen;
        match (&page, &mut following.end) {
            (Ok(page), Some(end)) => (end.position, end.seen) = (page.through, seen),
            _ => following.follower = None,
        }
        page
    }
}

impl fmt::Debug for NatsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not how to log in.
        f.debug_struct("NatsBackend").field("stream", &self.config.name).finish_non_exhaustive()
    }
}
