//! A log, the ordered list of the events of all topics, in a stream of NATS JetStream.

mod append;
mod confirmation;
mod consumer;
mod follower;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
mod link;
mod mark;
mod message;
mod read;
mod shared_check;
mod stream;
mod witness;

use self::{
    append::Unchanged,
    confirmation::Confirmations,
    follower::Follower,
    identity::Identity,
    link::{Link, Servers},
    message::position,
    read::PageSize,
    stream::Stream,
};
use super::{Appended, Backend, Bounds, IdFormat, MaxAge, Page, Position, Record, shared_connection::SharedConnection};
use crate::BoxError;
use async_nats::jetstream::stream::Config;
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::Mutex;

/// A log, the ordered list of the events of all topics, in one
/// [stream](https://docs.nats.io/nats-concepts/jetstream/streams) of NATS JetStream, server 2.9 or
/// later. Each topic has a subject in this stream.
///
/// # What it guarantees
///
/// **Order.** The stream numbers its messages, and all topics share this order. The events of one
/// [`publish_all`](crate::hub::Topic::publish_all) call are one message. So the log gets all of
/// them, with no other event between them, or none. This message must be smaller than the server's
/// `max_payload` (1 MiB by default). Otherwise `publish_all` returns an error and adds no event.
///
/// **Durability.** An event is acknowledged when the stream has stored it. If
/// [`replicas`](Self::replicas) is over 1, a majority of the servers that store the stream has
/// stored the event by then. The event survives the end of a server's process, even a crash. It
/// does *not* always survive a power failure or a crash of the operating system. A server writes to
/// its files immediately, but syncs them to the disk only every two minutes. With
/// `jetstream { sync_interval: always }` in its configuration, it syncs them immediately. A stream
/// with three replicas, on machines that do not fail together, survives the loss of one machine. If
/// this machine was the leader of the stream, publishing returns an error until the other two have
/// elected another leader, which takes several seconds.
///
/// **Loss is reported.** A stream can lose its newest messages: in a power failure, when an old
/// copy of the stream is restored, or when its only server loses its disk. A stream that is deleted
/// and created again has lost all messages. The stream then issues the sequences of the lost
/// messages again, so a sequence alone does not identify an event. Therefore a new log, with new
/// event ids, begins in the same stream after a loss. Each log begins with a *mark*: a message with
/// a random id on the subject `<stream>._log`, which identifies the log.
///
/// To detect a loss, each node (each process with a hub) also remembers a recent message that it
/// has read or published. The node checks that the stream still has this message before it returns
/// the id of a published event, and when it reads. While no new messages arrive, the node also
/// checks this every two seconds. If the stream ends before this message, or has another message in
/// its place, the node adds a mark, which begins a new log. The node also adds a mark if the stream
/// stores a new message under a sequence that the node has already seen. From then on no node
/// accepts an id of the old log. A client that reconnects with such an id gets a
/// [gap](crate::hub::Gap), which reports missing events.
///
/// There is one exception. A node detects only the loss of messages that it has read or published
/// itself. If all nodes that know a message stop, and the stream then loses this message, nodes
/// that start later continue the old log. They can issue the ids of the lost events again. If you
/// restore a copy of the stream while no node runs, begin a new log yourself:
/// `nats pub '<stream>._log' "$(uuidgen)"`.
///
/// A client gets a gap for messages that were deleted from the stream, or removed by retention,
/// before the client received them. If the newest messages were deleted, the client gets the gap
/// within four seconds.
///
/// **Once.** If a response is late, or the connection is lost, the backend sends the message again
/// with the same message id. The server stores the message once. The server detects duplicates only
/// within the `duplicate_window` of the stream, so the backend sends a message again only within
/// half of this time. Streams that the backend creates have a window of 30 seconds or four
/// [timeouts](Self::timeout), whichever is longer, but at most the maximum age of messages. If
/// `publish` returns an error, the events may already be in the log, or appear a little later. They
/// are certainly not in the log if the error says that the server refused them. An application that
/// publishes the same events again after another error can therefore store them twice. If the
/// connection is lost, the client library sends the messages in its queue after the reconnect. So
/// the stream can have a second copy if an earlier copy was stored, its response was lost, and the
/// reconnect takes longer than the `duplicate_window`.
///
/// **Comparison.** [`append_if_unchanged`](Backend::append_if_unchanged) compares and appends in
/// one step: the server stores the new message only if the topic has no newer message than the
/// backend has seen. Nothing is appended if messages after the given position are missing, because
/// they may have been of this topic. Another stream may replace the stream directly after the
/// backend has checked it. If the new stream then stores the message, the call nevertheless returns
/// an error.
///
/// Servers before 2.9.21 cannot compare one subject of a stream with several replicas, so they
/// compare the whole stream. These servers also refuse the message if another topic has a new
/// event. The backend then tries again, and returns an error after one [`timeout`](Self::timeout).
///
/// # Retention
///
/// The stream retains up to [`max_messages`](Self::max_messages), [`max_age`](Self::max_age) and,
/// if set, [`max_bytes`](Self::max_bytes). Beyond these limits, the server removes the oldest
/// messages. The marks, which identify the log, count as messages. Each log begins with a mark, and
/// a node adds another mark whenever half of `max_age` has passed without a message of a hub.
///
/// A node that starts looks for the id of the log in the marks, in the 32 oldest messages, and in
/// the newest one. If these messages are all of other programs, and the marks were removed, the
/// node begins another log. Clients then get a gap, and the remaining events are not replayed.
///
/// The backend does not change the configuration of an existing stream. The stream must have the
/// subject `<stream>.>` and the retention `limits`, and acknowledge messages. It must have no limit
/// per subject (`max_msgs_per_subject`), no mirror and no subject transform, and must not be
/// sealed. Any other stream causes an error. If the stream is full and rejects new messages
/// (`discard: new`), or the disk is full, `publish` returns an error that says so.
///
/// Other programs can publish to other subjects of the stream. Nodes skip these messages. If the
/// client library cannot parse the headers of such a message, the library ends the connection. The
/// node then requests this message alone. So each node loses its connection once when this message
/// is new, and again when a later read of old events reaches the message.
///
/// # Resources and permissions
///
/// Each process has one connection, whatever the number of its clients, and one consumer in the
/// memory of the server. The server deletes the consumer 5 seconds after the process has ended. If
/// a client resumes before the oldest event in the memory of the process, the process reads pages
/// of old messages from the server, of 1,000 messages or about 4 MiB. Over a slow connection, a
/// page ends after three seconds, and the next pages have fewer messages. Each page takes one more
/// consumer while it is read. At most eight pages are read at a time. With a server before 2.10, a
/// read of several topics reads all topics.
///
/// Publishing takes one request if the process also receives the message from the stream within 5
/// milliseconds after the acknowledgement. Otherwise publishing takes two more requests, to check
/// the log. Concurrent publishers share these requests. The received message, or the check, proves
/// which log has stored the message. The acknowledgement does not: another log may just have
/// replaced the log in the stream. `append_if_unchanged` takes four more requests before it
/// publishes, and a fifth if messages were deleted from the middle of the stream.
///
/// After about three seconds without a byte from the server, the NATS client reconnects, to any of
/// the servers. The subject of a topic is at most 2,048 bytes long. In the subject, each byte of
/// the topic's name takes three bytes, except letters, digits, `-`, `_` and `/`.
///
/// A user with limited permissions needs to publish to `<stream>.>`,
/// `$JS.API.STREAM.INFO.<stream>`, `$JS.API.STREAM.MSG.GET.<stream>`,
/// `$JS.API.CONSUMER.CREATE.<stream>`, `$JS.API.CONSUMER.*.<stream>.>` and
/// `$JS.API.CONSUMER.MSG.NEXT.<stream>.>`, and to subscribe to `_INBOX.>`. Creating the stream
/// needs `$JS.API.STREAM.CREATE.<stream>` as well.
///
/// The client library writes passwords and tokens to its log at the level `TRACE`. Keep the target
/// `async_nats` below that level in production, for instance with the filter `async_nats=debug`.
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
    max_age: MaxAge,
    timeout: Duration,
    /// The connection to NATS that all requests of this process share, also those of the follower.
    link: SharedConnection<Link, Arc<str>>,
    identity: Arc<Identity>,
    confirmations: Confirmations,
    follower: Mutex<Option<Follower>>,
    page_size: PageSize,
    /// The epoch that the last call of [`bounds`](Backend::bounds) has returned: the number that
    /// identifies one lifetime of the log. 0 before the first call. If the JetStream stream has a
    /// log with another epoch, `follow` returns an error.
    reported: AtomicU64,
}

/// The maximum number of topics that a read sends to the NATS server as a filter. For more topics,
/// the backend reads the messages of all topics and filters them itself.
const MAX_FILTERS: usize = 200;

/// The time within which the NATS server detects that a message is sent twice. The backend creates
/// the stream with this time, or with four of its request timeouts if they are longer, but at most
/// with the maximum age of messages.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);

const DISCONNECTED: &str = "there is no connection to the NATS server at the moment";

impl NatsBackend {
    /// Creates a backend for this server, or for several servers separated by commas. The backend
    /// connects when a hub first uses it.
    ///
    /// A URL begins with `nats://`, or with `tls://` for TLS. The user and password, or the token,
    /// come from the first URL that has them: `nats://user:password@host:4222`,
    /// `nats://token@host`. Special characters in them are percent-encoded. The first server that
    /// responds also names the other servers of its cluster. The client can reconnect to these
    /// servers, too.
    ///
    /// # Errors
    ///
    /// Returns an error if a URL is invalid.
    pub fn new(servers: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            servers: Servers::parse(servers.as_ref())?,
            config: Config {
                name: "tower-sse".to_owned(),
                max_messages: 1_000_000,
                num_replicas: 1,
                ..Config::default()
            },
            max_age: MaxAge::default(),
            timeout: Duration::from_secs(2),
            link: SharedConnection::default(),
            identity: Arc::default(),
            confirmations: Confirmations::default(),
            follower: Mutex::default(),
            page_size: PageSize::default(),
            reported: AtomicU64::new(0),
        })
    }

    /// Sets the file with the credentials of the client, made by `nsc` or NATS Cloud. The file is
    /// read when the backend connects. Automatic reconnects use the contents that were read then.
    #[must_use]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.servers.credentials_file = Some(path.into());
        self
    }

    /// Trusts the root certificates in this PEM file instead of those of the operating system. A
    /// second call replaces the file of the first. The file is read for each connection.
    ///
    /// If the dependencies of the application bring more than one cryptography provider for
    /// `rustls`, call `CryptoProvider::install_default` before the first connection with TLS.
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.servers.root_certificates = Some(path.into());
        self
    }

    /// Sets the name of the JetStream stream, which is also the first part of its subjects.
    /// Default: `tower-sse`. All hubs with the same stream share their topics and events.
    ///
    /// The backend creates the stream if it does not exist. An existing stream [keeps its
    /// configuration](Self#retention).
    #[must_use]
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Sets the number of messages that the JetStream stream retains, for all topics together. The
    /// server removes the oldest messages beyond this number. Default: 1,000,000. Has no effect on
    /// an existing stream.
    #[must_use]
    pub fn max_messages(mut self, messages: u32) -> Self {
        self.config.max_messages = messages.into();
        self
    }

    /// Sets the number of bytes that the JetStream stream retains, for all topics together. The
    /// server removes the oldest messages beyond this number. Default: no limit. Has no effect on
    /// an existing stream.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.config.max_bytes = bytes.try_into().unwrap_or(i64::MAX);
        self
    }

    /// Sets the maximum age of messages in the JetStream stream. The server removes older messages.
    /// Default: one hour. [`Duration::MAX`] and zero mean that the age is not limited. Has no
    /// effect on an existing stream.
    ///
    /// A hub whose own [`max_age`](crate::hub::Builder::max_age) is not set takes over this age (at
    /// most a day), if it is limited. Conversely, this backend takes over the age of the hub if it
    /// has none. If both are set, each keeps its own.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age.set(age);
        self
    }

    /// Sets the number of servers of a NATS cluster that store the JetStream stream. Default: 1.
    /// Has no effect on an existing stream.
    #[must_use]
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.config.num_replicas = replicas.into();
        self
    }

    /// Sets the time after which a request to NATS without a response fails. Default: 2 seconds.
    /// Maximum: one hour; a greater value has the same effect as one hour.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(Duration::from_secs(60 * 60));
        self
    }

    /// Returns the connection to NATS. Opens a connection if there is none, or if the client no
    /// longer tries to reconnect. Returns an error immediately while the client reconnects: a
    /// request does not wait for a reconnect.
    async fn link(&self) -> Result<Link, BoxError> {
        self.link.close_if(Link::is_stuck);
        let open = || {
            let (servers, timeout) = (self.servers.clone(), self.timeout);
            async move { servers.connect(timeout).await.map_err(|error| error.to_string().into()) }
        };
        let link = self.link.get(open).await.map_err(|error| error.to_string())?;
        if link.is_connected() { Ok(link) } else { Err(DISCONNECTED.into()) }
    }

    /// Returns the JetStream stream of the log, for requests over `link`.
    fn stream_over(&self, link: &Link) -> Stream {
        Stream { link: link.clone(), config: Arc::new(self.config()) }
    }

    /// Returns the configuration of the JetStream stream. The backend creates a missing stream with
    /// this configuration.
    fn config(&self) -> Config {
        let duplicates = DUPLICATE_WINDOW.max(self.timeout * 4);
        // Zero means that the age is not limited.
        let max_age = Some(self.max_age.get()).filter(|age| *age != Duration::MAX);
        Config {
            subjects: vec![format!("{}.>", self.config.name)],
            max_age: max_age.unwrap_or_default(),
            duplicate_window: max_age.map_or(duplicates, |age| age.min(duplicates)),
            description: Some("The log of a hub of tower-sse".to_owned()),
            ..self.config.clone()
        }
    }
}

impl Backend for NatsBackend {
    const ID_FORMAT: IdFormat = IdFormat::Messages;

    fn configured_max_age(&self) -> Option<Duration> {
        self.max_age.0
    }

    fn inherit_max_age(&mut self, age: Duration) {
        self.max_age.inherit(age);
    }

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.link.use_this_runtime();
        let stream = self.stream_over(&self.link().await?);
        let (log, state) = self.identity.check(&stream).await?;
        self.reported.store(log.epoch, Relaxed);
        Ok(Bounds { epoch: log.epoch, evicted_through: log.evicted_through(&state), last: position(state.last) })
    }

    async fn append(&self, records: Vec<Record>) -> Result<Appended, BoxError> {
        self.store(&records, None).await?.ok_or_else(|| "the server has compared sequences without being asked".into())
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<Appended>, BoxError> {
        self.store(&records, Some(Unchanged { epoch, since })).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        let link = self.link().await?;
        let stream = self.stream_over(&link);
        let (log, state) = self.identity.check(&stream).await?;
        let (mut evicted_through, last) = (log.evicted_through(&state), position(state.last));
        let mut page = Page { through: last, ..Page::default() };
        let wanted: BTreeSet<_> = topics.iter().collect();
        // A topic whose name is too long was never published to.
        let mut subjects: Vec<_> =
            wanted.iter().filter_map(|topic| message::subject(&self.config.name, topic)).collect();
        if after.max(evicted_through) < last && !subjects.is_empty() {
            if subjects.len() > MAX_FILTERS || (subjects.len() > 1 && !link.client.is_server_compatible(2, 10, 0)) {
                subjects.clear();
            }
            page = read::read(&stream, &state, subjects, after, self.timeout, &self.page_size).await?;
            page.records.retain(|(_, record)| wanted.contains(&record.topic));
            // Messages that were removed during the read may be missing from the page, so the
            // watermark is read after the page.
            let (state, holes) = stream.state_with_holes().await?;
            if self.identity.check_witness(&stream).await?.epoch != log.epoch {
                return Err("the stream was replaced while it was read".into());
            }
            page.evicted_through = log.evicted_through(&state);
            read::report_holes(&mut page, after, &holes);
            evicted_through = page.evicted_through;
        }
        page.epoch = log.epoch;
        page.evicted_through = evicted_through;
        page.records.retain(|(position, _)| *position > page.evicted_through);
        page.through = page.through.max(page.evicted_through);
        Ok(page)
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        let mut kept = self.follower.lock().await;
        let follower = kept.take().filter(|follower| follower.after == after && !follower.link.is_stuck());
        // A follower also handles a loss of its connection, so it keeps its link.
        let link = match &follower {
            Some(follower) => follower.link.clone(),
            None => self.link().await?,
        };
        let stream = self.stream_over(&link);
        let log = self.identity.known();
        let reported = self.reported.load(Relaxed);
        if log.is_some_and(|log| reported != 0 && reported != log.epoch) {
            self.confirmations.set_following(false);
            return Err("the stream was replaced".into());
        }
        let follower = match follower {
            Some(follower) => follower,
            None => {
                self.confirmations.set_following(false);
                Follower::new(&stream, &self.identity.check(&stream).await?.0, after)
            }
        };
        if reported != 0 && follower.epoch != reported {
            self.confirmations.set_following(false);
            return Err("the stream was replaced".into());
        }
        // A failed follower is dropped. If this future is dropped early, the follower is kept for
        // the next call.
        let page = kept.insert(follower).page(&stream, &self.identity, &self.confirmations).await;
        if page.is_err() {
            *kept = None;
            self.confirmations.set_following(false);
        }
        page
    }
}

impl fmt::Debug for NatsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `servers` is left out because it contains the credentials.
        f.debug_struct("NatsBackend").field("stream", &self.config.name).finish_non_exhaustive()
    }
}
