//! Reading from a stream. Its consumers are ephemeral: the server forgets them a while after nobody reads any more.

use super::{
    link::{Link, Losses},
    log::Log,
    message::{self, position, sequence_after},
};
use crate::{BoxError, hub::backend::Page};
use async_nats::{
    client::Request,
    jetstream::{
        Message,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    },
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{runtime::Handle, time::timeout};
use tokio_stream::StreamExt;

/// How many messages make a page.
pub(super) const PAGE: usize = 1000;

/// How many bytes make a page; besides, there is room for the largest message.
const BYTES: usize = 4 << 20;

/// After this time without a reader a consumer is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// How often a server says that there is nothing new. It is not there any more if it does not, twice.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Reads a stream from a message on, those of some subjects, or all.
async fn consume(link: &Link, stream: &str, from: u64, mut subjects: Vec<String>) -> Result<PullConsumer, BoxError> {
    let (filter_subject, filter_subjects) = match &mut subjects[..] {
        [] => (String::new(), subjects),
        [only] => (mem::take(only), Vec::new()),
        _ => (String::new(), subjects),
    };
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        filter_subject,
        filter_subjects,
        ..pull::Config::default()
    };
    link.answer(link.context.create_consumer_on_stream(config, stream)).await
}

fn bytes_of_a_page(link: &Link) -> usize {
    BYTES + 2 * link.client.server_info().max_payload
}

/// A page of what there is now of these subjects after a position.
pub(super) async fn read(
    link: &Link,
    log: &Log,
    stream: &str,
    subjects: Vec<String>,
    after: u64,
    patience: Duration,
) -> Result<Page, BoxError> {
    let consumer = consume(link, stream, sequence_after(after), subjects).await?;
    let mut page = Page { epoch: log.epoch, lost: 0, records: Vec::new(), through: after };
    let mut pending = consumer.cached_info().num_pending;
    let mut count = PAGE.min(pending.try_into().unwrap_or(PAGE));
    if count > 0 {
        let fetch = consumer.fetch().max_messages(count).max_bytes(bytes_of_a_page(link)).expires(patience);
        let mut messages = link.answer(fetch.messages()).await?;
        while count > 0 && pending > 0 {
            let message = match timeout(patience, messages.next()).await? {
                Some(Ok(message)) => message,
                // It is as many bytes as fit.
                _ if page.through > after => break,
                Some(Err(error)) => return Err(error),
                None => return Err("the NATS server does not send what it has".into()),
            };
            let info = message.info()?;
            pending = info.pending;
            count -= 1;
            message::add(&mut page, after, stream, info.stream_sequence, &message);
        }
    }
    if pending == 0 {
        page.through = page.through.max(log.newest());
    }
    // Nobody waits for this: if it fails the consumer is forgotten all the same.
    let delete = format!("CONSUMER.DELETE.{stream}.{}", consumer.cached_info().name);
    let _is_forgotten = link.context.send_request(delete, Request::new()).await;
    Ok(page)
}

/// A message that was followed: that it is still there tells that the log has not lost its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sequence: u64,
    /// When it was stored: nothing that is stored later under the same number has the same time.
    identity: u64,
}

impl Seen {
    fn of(message: &Message) -> Result<Self, BoxError> {
        let info = message.info()?;
        let mut hasher = DefaultHasher::new();
        info.published.hash(&mut hasher);
        Ok(Self { sequence: info.stream_sequence, identity: hasher.finish() })
    }
}

/// Follows a stream.
pub(super) struct Follower {
    /// Up to where it was handed out.
    pub(super) after: u64,
    /// The last message that was handed out, if there was one.
    pub(super) seen: Option<Seen>,
    /// None only while it is dropped.
    messages: Option<pull::Stream>,
    losses: Losses,
    /// Of the log when this began.
    epoch: u64,
    generation: u64,
    /// How many messages were received.
    received: u64,
    /// The one that is next.
    next: Option<Message>,
    runtime: Handle,
}

impl Follower {
    /// From a position on, which was the end of the last message that was seen, if there was one. `None`: the log has lost its
    /// end, as it does not hold that any more, though it is not too old.
    pub(super) async fn begin(
        link: &Link,
        stream: &str,
        log: &Log,
        after: u64,
        seen: Option<Seen>,
        patience: Duration,
    ) -> Result<Option<Self>, BoxError> {
        // What is not held cannot be compared.
        let seen = seen.filter(|seen| seen.sequence >= log.first);
        if seen.is_some_and(|seen| seen.sequence > log.last) {
            return Ok(None);
        }
        // What happens from here on is noticed.
        let losses = link.losses();
        let from = seen.map_or(sequence_after(after), |seen| seen.sequence);
        let consumer = consume(link, stream, from, Vec::new()).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PAGE)
            .max_bytes_per_batch(bytes_of_a_page(link))
            .heartbeat(HEARTBEAT)
            .messages();
        let messages = Some(link.answer(messages).await?);
        let (epoch, generation, runtime) = (log.epoch, log.generation, Handle::current());
        let mut follower = Self { after, seen, messages, losses, epoch, generation, received: 0, next: None, runtime };
        if let Some(seen) = seen {
            let first = timeout(patience, follower.receive()).await.map_err(|_| "the NATS server sends nothing")??;
            let found = Seen::of(&first)?;
            if found.sequence > seen.sequence {
                // It was too old by now.
                follower.next = Some(first);
            } else if found != seen {
                return Ok(None);
            }
        }
        Ok(Some(follower))
    }

    /// The next messages, at least one. To drop the future loses nothing.
    pub(super) async fn page(&mut self, stream: &str) -> Result<Page, BoxError> {
        let mut next = match self.next.take() {
            Some(next) => Some(next),
            None => Some(self.receive().await?),
        };
        // From here on nothing is waited for.
        let mut page = Page { epoch: self.epoch, lost: 0, records: Vec::new(), through: self.after };
        let mut count = 0;
        while let Some(message) = next {
            if message::generation(&message).is_some_and(|generation| generation > self.generation) {
                return Err("the stream has lost the end of what it had acknowledged".into());
            }
            let sequence = message.info()?.stream_sequence;
            let before = position(sequence.saturating_sub(1));
            if before > page.through {
                if count > 0 {
                    // What is between is lost, which the next page tells.
                    self.next = Some(message);
                    break;
                }
                page.lost = before;
            }
            message::add(&mut page, self.after, stream, sequence, &message);
            self.seen = Some(Seen::of(&message)?);
            count += 1;
            next = if count < PAGE { self.received()? } else { None };
        }
        self.after = page.through;
        Ok(page)
    }

    /// The next message, as soon as there is one.
    async fn receive(&mut self) -> Result<Message, BoxError> {
        let messages = self.messages.as_mut().ok_or(ENDED)?;
        let message = self.losses.unless_lost(messages.next()).await?;
        self.is_next(message.ok_or(ENDED)??)
    }

    /// The next message, if it is here already.
    fn received(&mut self) -> Result<Option<Message>, BoxError> {
        let messages = self.messages.as_mut().ok_or(ENDED)?;
        // Whoever waits for the next one is woken.
        match pin!(messages.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => self.is_next(message.ok_or(ENDED)??).map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// A message may be lost on its way, with the connection for instance: then it is begun once more.
    fn is_next(&mut self, message: Message) -> Result<Message, BoxError> {
        self.received += 1;
        if message.info()?.consumer_sequence != self.received {
            return Err("a message was lost on its way from the NATS server".into());
        }
        Ok(message)
    }
}

const ENDED: &str = "the consumer has ended";

impl Drop for Follower {
    fn drop(&mut self) {
        // What it reads from spawns a task when it goes, so it needs a runtime, which whoever drops a hub may not be in.
        let _inside = self.runtime.enter();
        self.messages = None;
    }
}
