//! A log in a stream of NATS JetStream.

use super::{Backend, Bounds, Ids, Page, Record, RecordKind};
use crate::{BoxError, random};
use async_nats::{
    ConnectOptions, HeaderMap,
    connection::State,
    jetstream::{
        self,
        consumer::{
            DeliverPolicy,
            pull::{Ordered, OrderedConfig},
        },
        context::Context,
        stream::{Config, Stream as JetStream},
    },
};
use bytes::Bytes;
use std::{fmt, future::poll_fn, pin::Pin, str::FromStr, sync::Arc, task::Poll, time::Duration};
use tokio::{
    sync::{Mutex, OnceCell},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt};

/// A log in one [stream](https://docs.nats.io/nats-concepts/jetstream/streams) of NATS JetStream, server 2.9 or later, with a
/// subject for each topic.
///
/// # What it guarantees
///
/// What was published is acknowledged when the stream has stored it: in a file, and with [`replicas`](Self::replicas) on a majority
/// of them, so that it survives the loss of a minority. The events of one [`publish_all`](crate::hub::Topic::publish_all) are one
/// message, so all of them are added, or none. If an answer is late the message is sent once more, with an id by which the
/// server stores it once.
///
/// # What it takes
///
/// One connection for each process, and one consumer, which the server forgets when it is gone; one more while somebody
/// comes back so late that this process does not hold what it missed.
///
/// # Examples
///
/// ```no_run
/// use tower_sse::hub::{Hub, backend::NatsBackend};
///
/// # async fn connect() -> Result<Hub, tower_sse::BoxError> {
/// let nats = NatsBackend::new("nats://token@nats.internal:4222")?.stream("shop").replicas(3);
/// let hub = Hub::builder().backend(nats).connect().await?;
/// # Ok(hub) }
/// ```
pub struct NatsBackend {
    server: async_nats::ServerAddr,
    config: Config,
    timeout: Duration,
    context: OnceCell<Context>,
    follower: Mutex<Option<Follower>>,
}

/// What follows the stream, and from where on.
struct Follower {
    after: u64,
    epoch: u64,
    messages: Ordered,
}

/// How many messages make a page.
const PAGE: usize = 1000;

/// A message holds as many events as this at most, so a position is the number of the message and that of the event in it.
const EVENTS: u64 = 1 << 16;

const KIND: &str = "Tower-Sse-Kind";

impl NatsBackend {
    /// A log on this server, `nats://` or `tls://`, with user and password or token if there are any. It connects when it is used.
    ///
    /// # Errors
    ///
    /// If this is no such address.
    pub fn new(server: impl AsRef<str>) -> Result<Self, BoxError> {
        Ok(Self {
            server: async_nats::ServerAddr::from_str(server.as_ref())?,
            config: Config {
                name: "tower-sse".to_owned(),
                max_messages: 1_000_000,
                max_age: Duration::from_secs(60 * 60),
                num_replicas: 1,
                ..Config::default()
            },
            timeout: Duration::from_secs(2),
            context: OnceCell::new(),
            follower: Mutex::default(),
        })
    }

    /// The name of the stream, and the first part of its subjects. The default is `tower-sse`. Hubs with the same are one hub.
    ///
    /// The stream is made if it is not there. One that is there is taken as it is.
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

    /// How old a message can be. The default is an hour; [`Duration::MAX`] is for ever.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.config.max_age = if age == Duration::MAX { Duration::ZERO } else { age };
        self
    }

    /// On how many servers the stream is kept. The default is one.
    #[must_use]
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.config.num_replicas = replicas.into();
        self
    }

    /// How long to wait for an answer. The default is two seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The connection, which mends itself. It is an error if there is none now: what would wait for one is not sent.
    async fn context(&self) -> Result<&Context, BoxError> {
        let connect = async || {
            let options = ConnectOptions::new()
                .connection_timeout(self.timeout)
                .request_timeout(Some(self.timeout))
                .reconnect_delay_callback(|attempt| Duration::from_millis(50 * attempt.min(8) as u64));
            let client = options.connect(&self.server).await?;
            let context = jetstream::context::ContextBuilder::new().timeout(self.timeout).ack_timeout(self.timeout);
            Ok::<_, BoxError>(context.build(client))
        };
        let context = self.context.get_or_try_init(connect).await?;
        match context.client().connection_state() {
            State::Connected => Ok(context),
            _ => Err("there is no connection to the NATS server at the moment".into()),
        }
    }

    async fn jetstream(&self) -> Result<JetStream, BoxError> {
        let context = self.context().await?;
        let config = Config { subjects: vec![format!("{}.>", self.config.name)], ..self.config.clone() };
        Ok(context.get_or_create_stream(config).await?)
    }

    fn subject(&self, topic: &str) -> String {
        let mut subject = format!("{}.", self.config.name);
        for byte in topic.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'/' => subject.push(byte.into()),
                _ => subject.push_str(&format!("={byte:02X}")),
            }
        }
        // A topic without a name has a subject, too.
        subject.push('=');
        subject
    }

    fn topic(&self, subject: &str) -> Option<Arc<str>> {
        let mut rest = subject.strip_prefix(&*self.config.name)?.strip_prefix('.')?.strip_suffix('=')?;
        let mut topic = Vec::new();
        while let Some((plain, escaped)) = rest.split_once('=') {
            topic.extend_from_slice(plain.as_bytes());
            let (hex, after) = escaped.split_at_checked(2)?;
            topic.push(u8::from_str_radix(hex, 16).ok()?);
            rest = after;
        }
        topic.extend_from_slice(rest.as_bytes());
        String::from_utf8(topic).ok().map(Into::into)
    }

    /// What comes after a position, as it comes, and how many messages that are now.
    async fn consume(
        &self,
        stream: &JetStream,
        filter_subject: String,
        after: u64,
    ) -> Result<(Ordered, u64), BoxError> {
        // The message that has the first event after it.
        let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: after / EVENTS + 1 };
        let config = OrderedConfig { deliver_policy, filter_subject, ..OrderedConfig::default() };
        let consumer = stream.create_consumer(config).await?;
        let pending = consumer.cached_info().num_pending;
        Ok((consumer.messages().await?, pending))
    }

    /// Adds the events of a message after a position to a page. Returns how many messages there are behind it.
    fn take(&self, message: &jetstream::Message, after: u64, page: &mut Page) -> Result<u64, BoxError> {
        let info = message.info()?;
        let last = info.stream_sequence * EVENTS;
        page.through = last;
        let Some(topic) = self.topic(&message.subject) else { return Ok(info.pending) };
        let kind = message.headers.as_ref().and_then(|headers| headers.get(KIND)).map_or("event", |kind| kind.as_str());
        let kind = match kind {
            "event" => RecordKind::Event,
            "state" => RecordKind::State,
            "finish" => RecordKind::Finish,
            _ => return Ok(info.pending),
        };
        let events = split(&message.payload);
        let first = (last + 1).saturating_sub(events.len() as u64);
        let records = (first..).zip(events).filter(|(position, _)| *position > after);
        page.records.extend(records.map(|(position, event)| (position, Record { topic: topic.clone(), kind, event })));
        Ok(info.pending)
    }
}

impl Backend for NatsBackend {
    const IDS: Ids = Ids::Messages;

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        let stream = self.jetstream().await?;
        let info = stream.get_info().await?;
        Ok(Bounds {
            epoch: epoch(&info),
            lost: info.state.first_sequence.saturating_sub(1) * EVENTS,
            newest: info.state.last_sequence * EVENTS,
        })
    }

    async fn append(&self, records: Vec<Record>) -> Result<u64, BoxError> {
        let context = self.context().await?;
        let mut newest = 0;
        for records in records.chunk_by(|one, other| one.topic == other.topic && one.kind == other.kind) {
            for records in records.chunks(EVENTS as usize) {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("{:016x}{:016x}", random::bits(), random::bits()));
                match records[0].kind {
                    RecordKind::Event => {}
                    RecordKind::State => headers.insert(KIND, "state"),
                    RecordKind::Finish => headers.insert(KIND, "finish"),
                }
                let payload = match records {
                    [only] => only.event.clone(),
                    many => many.iter().flat_map(|record| record.event.iter().copied()).collect::<Vec<_>>().into(),
                };
                let subject = self.subject(&records[0].topic);
                let publish = async || -> Result<u64, BoxError> {
                    let ack = context.publish_with_headers(subject.clone(), headers.clone(), payload.clone()).await?;
                    Ok(ack.await?.sequence)
                };
                // Once more if the answer was late: with the same id it is stored once.
                let sequence = match publish().await {
                    Ok(sequence) => sequence,
                    Err(_) if context.client().connection_state() == State::Connected => publish().await?,
                    Err(error) => return Err(error),
                };
                newest = sequence * EVENTS;
            }
        }
        Ok(newest)
    }

    async fn read(&self, topics: &[Arc<str>], after: u64) -> Result<Page, BoxError> {
        let stream = self.jetstream().await?;
        let info = stream.get_info().await?;
        let (epoch, state) = (epoch(&info), info.state);
        let lost = state.first_sequence.saturating_sub(1) * EVENTS;
        let newest = state.last_sequence * EVENTS;
        let mut page = Page { epoch, lost: if lost > after { lost } else { 0 }, records: Vec::new(), through: after };
        if after.max(lost) >= newest {
            page.through = newest;
            return Ok(page);
        }
        let filter = match topics {
            [only] => self.subject(only),
            _ => String::new(),
        };
        let (mut messages, mut pending) = self.consume(&stream, filter, after).await?;
        for _ in 0..PAGE {
            if pending == 0 {
                page.through = page.through.max(newest);
                break;
            }
            let message = timeout(self.timeout, messages.next()).await?.ok_or("the consumer has ended")??;
            pending = self.take(&message, after, &mut page)?;
        }
        page.records.retain(|(_, record)| topics.contains(&record.topic));
        Ok(page)
    }

    async fn follow(&self, after: u64) -> Result<Page, BoxError> {
        let mut kept = self.follower.lock().await;
        // It is put back when a page was handed out.
        let mut follower = match kept.take().filter(|follower| follower.after == after) {
            Some(follower) => follower,
            None => {
                let stream = self.jetstream().await?;
                let epoch = epoch(stream.cached_info());
                Follower { after, epoch, messages: self.consume(&stream, String::new(), after).await?.0 }
            }
        };
        let mut page = Page { epoch: follower.epoch, lost: 0, records: Vec::new(), through: after };
        let first = follower.messages.next().await.ok_or("the consumer has ended")??;
        let before = (first.info()?.stream_sequence - 1) * EVENTS;
        if before > after {
            page.lost = before;
        }
        self.take(&first, after, &mut page)?;
        for _ in 1..PAGE {
            let ready = poll_fn(|cx| match Pin::new(&mut follower.messages).poll_next(cx) {
                Poll::Ready(message) => Poll::Ready(message),
                Poll::Pending => Poll::Ready(None),
            });
            let Some(message) = ready.await else { break };
            self.take(&message?, after, &mut page)?;
        }
        follower.after = page.through;
        *kept = Some(follower);
        Ok(page)
    }
}

impl fmt::Debug for NatsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the address: it may have the password.
        f.debug_struct("NatsBackend").field("stream", &self.config.name).finish_non_exhaustive()
    }
}

fn epoch(stream: &jetstream::stream::Info) -> u64 {
    stream.created.unix_timestamp_nanos() as u64
}

/// The events of a message: each ends with its blank line, and has no other.
fn split(payload: &Bytes) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut start = 0;
    while start < payload.len() {
        // An event that is nothing but its blank line begins with it.
        let end = match payload[start] {
            b'\n' => start + 1,
            _ => memchr::memmem::find(&payload[start..], b"\n\n").map_or(payload.len(), |at| start + at + 2),
        };
        events.push(payload.slice(start..end));
        start = end;
    }
    if events.is_empty() {
        // The end of a topic has none.
        events.push(Bytes::new());
    }
    events
}
