//! Reads the new messages of a log in a NATS stream, for the hub. Usually a consumer delivers the
//! messages to the [`Follower`]. While the server creates a consumer, the follower requests the
//! messages one by one. After a consumer has failed, the follower also requests the next messages
//! one by one: the cause may be a message of another program whose headers the client library
//! cannot parse. The library then ends the connection, and would end it again if a new consumer
//! delivered this message.

use super::{
    confirmation::Confirmations,
    consumer::{HEARTBEAT, PAGE_MESSAGES, check_sequence, consume, max_page_bytes},
    identity::{Identity, KnownLog},
    link::{Link, Losses},
    message::{self, Delivered, Stored, position, sequence, sequence_after},
    read::{next_messages, report_holes},
    stream::Stream,
    witness::{Witness, Witnesses},
};
use crate::{
    BoxError,
    hub::backend::{Page, Position},
};
use async_nats::jetstream::consumer::pull;
use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

/// The interval of the requests for new messages by the follower, the task that reads the NATS
/// stream, while the server creates a consumer. The consumer then delivers new messages without
/// such requests.
const WITHOUT_CONSUMER: Duration = Duration::from_millis(150);

/// The pause between a failed attempt to create a NATS consumer and the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// The number of consecutive failed attempts to create a NATS consumer after which `follow` returns
/// an error to the hub.
const MAX_ATTEMPTS: u32 = 5;

/// The time without a new message after which the follower checks whether the newest messages were
/// deleted. The consumer does not report deleted messages.
const UNTIL_END_CHECK: Duration = Duration::from_secs(1);

/// Reads the new messages of a log in a NATS stream for the hub, in pages of up to 1,000 messages.
pub(super) struct Follower {
    /// The position at the end of the new messages of the log that this follower has returned to
    /// the hub. The next messages come after this position.
    pub(super) after: Position,
    /// The epoch of the log that this follower reads: the number that identifies one lifetime of
    /// the log.
    pub(super) epoch: u64,
    log: KnownLog,
    pub(super) link: Link,
    source: Source,
    losses: Losses,
    /// A message that the consumer has already delivered, and that begins the next page (the result
    /// of the next read). The previous page ended before it, because a page can report missing
    /// messages only at its beginning.
    next: Option<Stored>,
}

enum Source {
    /// The NATS server is creating a consumer, which will deliver the new messages of the log.
    /// Meanwhile, the follower reads these messages one by one. The number counts the failed
    /// attempts to create the consumer.
    ///
    /// In a cluster, only the meta leader can create a consumer. While the meta leader is being
    /// elected, the leader of the stream can already return single messages.
    Starting(Starting, u32),
    /// The NATS server has created a consumer for the follower. The follower has not checked yet
    /// that the stream still holds the same log.
    Unchecked(Box<Consumer>),
    Consumer(Box<Consumer>),
    /// The NATS consumer has failed with this error. The follower, which reads the new messages of
    /// the log, requests the next messages without a consumer.
    Failed(Option<BoxError>),
}

type Starting = Pin<Box<dyn Future<Output = Result<Consumer, BoxError>> + Send>>;

struct Consumer {
    messages: pull::Stream,
    /// The number of messages that this process has received through the NATS consumer. The server
    /// numbers the messages that it sends through a consumer. If the number of the newest message
    /// differs from this count, a message was lost.
    received: u64,
}

async fn start(link: Link, stream: String, from: u64) -> Result<Consumer, BoxError> {
    let consumer = consume(&link, &stream, from, Vec::new()).await?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(PAGE_MESSAGES)
        .max_bytes_per_batch(max_page_bytes(&link))
        .heartbeat(HEARTBEAT)
        .messages();
    Ok(Consumer { messages: link.request(messages).await?, received: 0 })
}

impl Follower {
    /// Creates a follower, which reads the new messages of `log`. Its first page (the result of its
    /// first read) begins after the position `after`.
    pub(super) fn new(stream: &Stream, log: &KnownLog, after: Position) -> Self {
        let mut follower = Self {
            after,
            epoch: log.epoch,
            log: log.clone(),
            link: stream.link.clone(),
            source: Source::Starting(Box::pin(std::future::pending()), 0),
            // The watch starts before the first read, so it sees each loss of the connection since
            // then.
            losses: stream.link.losses(),
            next: None,
        };
        follower.start(stream, Duration::ZERO, 0);
        follower
    }

    fn start(&mut self, stream: &Stream, pause: Duration, failures: u32) {
        let (link, name, from) = (stream.link.clone(), stream.name().to_owned(), sequence_after(self.after));
        let starting = async move {
            sleep(pause).await;
            start(link, name, from).await
        };
        self.source = Source::Starting(Box::pin(starting), failures);
    }

    /// Waits for the next messages of the log that this follower reads, and returns at least one
    /// message as a page. Cancel safe: dropping the future loses no message. After an error, the
    /// follower cannot be used any more. `stream` is the NATS stream of the log. It must use the
    /// connection of this follower, which is in the field [`link`](Self::link).
    pub(super) async fn page(
        &mut self,
        stream: &Stream,
        identity: &Arc<Identity>,
        confirmations: &Confirmations,
    ) -> Result<Page, BoxError> {
        loop {
            let page = match &mut self.source {
                // While messages of other programs arrive all the time, the hub sends no request
                // that adds the mark.
                Source::Consumer(_) if identity.is_mark_due() => match identity.check(stream).await {
                    Ok((log, _)) => {
                        expect_epoch(self.epoch, &log)?;
                        None
                    }
                    Err(error) => self.fail(error, confirmations),
                },
                Source::Consumer(_) => {
                    let page = match timeout(UNTIL_END_CHECK, self.receive_page(stream, confirmations)).await {
                        Ok(page) => page.map(Some),
                        Err(_) => self.deleted_end(stream, identity).await,
                    };
                    page.unwrap_or_else(|error| self.fail(error, confirmations))
                }
                Source::Failed(error) => {
                    let error = error.take();
                    match self.read_past_failure(stream, identity).await {
                        Ok(Some(page)) => Some(page),
                        Ok(None) => return Err(error.unwrap_or_else(|| CONSUMER_ENDED.into())),
                        Err(later) => return Err(error.unwrap_or(later)),
                    }
                }
                Source::Unchecked(_) => {
                    // If the future is dropped here, the next call checks again.
                    expect_log(stream, identity, self.epoch).await?;
                    self.use_consumer();
                    confirmations.set_following(true);
                    None
                }
                Source::Starting(starting, failures) => {
                    let failures = *failures;
                    match timeout(WITHOUT_CONSUMER, starting).await {
                        Ok(Ok(consumer)) => {
                            self.source = Source::Unchecked(Box::new(consumer));
                            None
                        }
                        Ok(Err(error)) if failures + 1 >= MAX_ATTEMPTS => return Err(error),
                        Ok(Err(_)) => {
                            self.start(stream, RETRY_PAUSE, failures + 1);
                            None
                        }
                        Err(_) => self.read_page(stream, identity).await?,
                    }
                }
            };
            if let Some((page, witnesses)) = page {
                identity.note_followed(&self.log, sequence(page.through), witnesses);
                self.after = page.through;
                if matches!(self.source, Source::Failed(_)) {
                    self.start(stream, Duration::ZERO, 0);
                }
                return Ok(page);
            }
        }
    }

    /// Notes that requests fail or that the consumer has ended. Returns no page.
    fn fail(&mut self, error: BoxError, confirmations: &Confirmations) -> Option<(Page, Witnesses)> {
        confirmations.set_following(false);
        self.source = Source::Failed(Some(error));
        None
    }

    /// Begins to receive the next messages through the NATS consumer. Called after the check that
    /// the stream still holds the same log.
    fn use_consumer(&mut self) {
        let idle = Source::Starting(Box::pin(std::future::pending()), 0);
        self.source = match std::mem::replace(&mut self.source, idle) {
            Source::Unchecked(consumer) => Source::Consumer(consumer),
            other => other,
        };
    }

    /// Requests the next messages from the NATS server one by one, without a consumer, and returns
    /// them as a page. Returns `None` if there are no new messages.
    async fn read_page(
        &mut self,
        stream: &Stream,
        identity: &Arc<Identity>,
    ) -> Result<Option<(Page, Witnesses)>, BoxError> {
        let messages = next_messages(stream, sequence_after(self.after)).await?;
        if messages.is_empty() {
            return Ok(None);
        }
        expect_log(stream, identity, self.epoch).await?;
        self.fill_page(stream, messages).map(Some)
    }

    /// Requests the next messages from the NATS server one by one, after a consumer has failed.
    /// Returns `None` if there are no new messages. If the connection is lost, waits up to one
    /// second until the NATS client is connected again.
    async fn read_past_failure(
        &mut self,
        stream: &Stream,
        identity: &Arc<Identity>,
    ) -> Result<Option<(Page, Witnesses)>, BoxError> {
        self.losses.reconnected_soon().await?;
        self.losses = stream.link.losses();
        let messages = next_messages(stream, sequence_after(self.after)).await?;
        // The stream may have been replaced while there was no connection, as for a new follower.
        if messages.is_empty() || identity.check(stream).await?.0.epoch != self.epoch {
            return Ok(None);
        }
        self.fill_page(stream, messages).map(Some)
    }

    fn fill_page(&mut self, stream: &Stream, messages: Vec<Stored>) -> Result<(Page, Witnesses), BoxError> {
        let mut page = self.new_page();
        for message in messages {
            if !page.add(stream.name(), &mut self.log, &message)? {
                break;
            }
        }
        Ok((page.page, page.witnesses))
    }

    async fn receive_page(
        &mut self,
        stream: &Stream,
        confirmations: &Confirmations,
    ) -> Result<(Page, Witnesses), BoxError> {
        let mut page = self.new_page();
        loop {
            // There is no `await` after the first message is taken, so dropping the future loses no
            // message.
            let message = match self.next.take() {
                Some(next) => next,
                None if page.count == 0 => self.receive().await?,
                None => match self.try_receive()? {
                    Some(message) => message,
                    None => break,
                },
            };
            confirmations.received(self.epoch, &message);
            // A new consumer delivers messages again that were read without a consumer while it was
            // created.
            if position(message.sequence) <= page.page.through {
                continue;
            }
            if !page.add(stream.name(), &mut self.log, &message)? {
                self.next = Some(message);
                break;
            }
            if page.count == PAGE_MESSAGES {
                break;
            }
        }
        Ok((page.page, page.witnesses))
    }

    /// Returns a page without records if all messages after the last page were deleted or evicted.
    /// Returns `None` if the log ends with the last page, or if the stream retains a later message.
    async fn deleted_end(
        &mut self,
        stream: &Stream,
        identity: &Arc<Identity>,
    ) -> Result<Option<(Page, Witnesses)>, BoxError> {
        // While no new messages arrive, the hub asks for the end of the log every two seconds.
        if identity.known().is_none_or(|known| known.newest <= sequence(self.after)) {
            return Ok(None);
        }
        let (state, holes) = stream.state_with_holes().await?;
        expect_log(stream, identity, self.epoch).await?;
        let end = position(state.last);
        let mut page = self.new_page().page;
        (page.evicted_through, page.through) = (self.log.evicted_through(&state), end);
        report_holes(&mut page, self.after, &holes);
        let is_deleted = self.after < end && page.evicted_through == end;
        page.through = end;
        Ok(is_deleted.then(|| (page, Witnesses::default())))
    }

    fn new_page(&self) -> NewPage {
        let page = Page { epoch: self.epoch, through: self.after, ..Page::default() };
        NewPage { page, after: self.after, count: 0, witnesses: Witnesses::default() }
    }

    /// Waits until the NATS consumer delivers its next message. Returns an error if the connection
    /// or the consumer is lost, or if a message between the previous one and this one is missing.
    async fn receive(&mut self) -> Result<Stored, BoxError> {
        let Source::Consumer(consumer) = &mut self.source else { return Err(CONSUMER_ENDED.into()) };
        let message = self.losses.unless_lost(consumer.messages.next()).await?;
        consumer.accept(message.ok_or(CONSUMER_ENDED)??)
    }

    /// Returns the next message that the NATS consumer has delivered, without waiting. Returns
    /// `None` if no message has arrived yet.
    fn try_receive(&mut self) -> Result<Option<Stored>, BoxError> {
        let Source::Consumer(consumer) = &mut self.source else { return Err(CONSUMER_ENDED.into()) };
        // No waker is needed here: `receive` polls the same stream and registers the waker of its
        // task.
        match pin!(consumer.messages.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => consumer.accept(message.ok_or(CONSUMER_ENDED)??).map(Some),
            Poll::Pending => Ok(None),
        }
    }
}

/// Returns an error if the NATS stream does not hold the log with this epoch any more. The epoch
/// identifies one lifetime of a log.
async fn expect_log(stream: &Stream, identity: &Arc<Identity>, epoch: u64) -> Result<(), BoxError> {
    expect_epoch(epoch, &identity.check_witness(stream).await?)
}

fn expect_epoch(epoch: u64, log: &KnownLog) -> Result<(), BoxError> {
    if log.epoch == epoch { Ok(()) } else { Err(OTHER_LOG.into()) }
}

impl Consumer {
    fn accept(&mut self, message: async_nats::jetstream::Message) -> Result<Stored, BoxError> {
        let delivered = Delivered::try_from(message)?;
        self.received += 1;
        check_sequence(&delivered, self.received)?;
        Ok(delivered.stored)
    }
}

/// A page of the log that the follower, the task that reads the NATS stream, is filling with
/// messages.
struct NewPage {
    page: Page,
    after: Position,
    count: usize,
    witnesses: Witnesses,
}

impl NewPage {
    /// Adds a message of the NATS stream to the page, the result of one read. If messages directly
    /// before it are missing from the stream, the page has to report a gap, which it can do only at
    /// its beginning. So if the page already has messages, this message is not added, and the
    /// result is `false`.
    fn add(&mut self, stream: &str, log: &mut KnownLog, message: &Stored) -> Result<bool, BoxError> {
        let is_mark = *message.subject == *message::mark_subject(stream);
        if is_mark && !log.accept(message) {
            return Err(OTHER_LOG.into());
        }
        let before = position(message.sequence.saturating_sub(1));
        if before > log.skip_marks(self.page.through) {
            if self.count > 0 {
                return Ok(false);
            }
            self.page.evicted_through = before;
        }
        message::add(&mut self.page, self.after, stream, message);
        Witness::of(message).into_iter().for_each(|witness| self.witnesses.add(witness));
        self.count += 1;
        Ok(true)
    }
}

const CONSUMER_ENDED: &str = "the consumer has ended";
const OTHER_LOG: &str = "the stream holds another log than before";

impl Drop for Follower {
    fn drop(&mut self) {
        // Dropping a consumer of `async_nats` spawns a task, which needs a runtime. The hub may be
        // dropped outside of any runtime.
        let _inside = self.link.runtime.enter();
        self.source = Source::Starting(Box::pin(std::future::pending()), 0);
    }
}
