//! Reading of old events: returns the retained messages of a JetStream stream in pages of about
//! 1,000 messages.

use super::{
    consumer::{PAGE_BYTES, PAGE_MESSAGES, check_sequence, consume, max_page_bytes},
    link::Losses,
    message::{self, Delivered, Stored, position, sequence, sequence_after},
    stream::{State, Stream},
};
use crate::{
    BoxError,
    hub::backend::{Page, Position},
};
use async_nats::{client::Request, jetstream::consumer::pull};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;

/// The maximum time that a read waits for the server to create a JetStream consumer. After this
/// time, the read requests the messages one by one, which needs no consumer. In a cluster, only the
/// meta leader, one server of the cluster, can create a consumer. While the meta leader is being
/// elected, the leader of the stream can already return single messages.
const CONSUMER_TIMEOUT: Duration = Duration::from_millis(700);

/// The maximum time to read a page (up to 1,000 messages) while the messages are requested one by
/// one. After this time, the page ends early. Over a slow network, a page of 1,000 messages would
/// take longer than the ten seconds that a hub waits for a page.
const ONE_BY_ONE: Duration = Duration::from_secs(1);

/// The time of a read after which the page ends with the messages that have arrived. Over a slow
/// network, a full page would take longer than the ten seconds that a hub waits for a page, and the
/// hub would then request the same page again.
const MAX_READ_TIME: Duration = Duration::from_secs(3);

/// The time that a page may take. After a slower page, the next pages have fewer messages. The
/// server sends all requested messages at once, and later responses wait behind them.
const FAST_READ_TIME: Duration = Duration::from_secs(1);

/// The maximum number of messages of the next page of old events. It adapts to the speed of the
/// connection.
pub(super) struct PageSize(AtomicUsize);

impl Default for PageSize {
    fn default() -> Self {
        Self(AtomicUsize::new(PAGE_MESSAGES))
    }
}

/// The minimum of [`PageSize`]. Without it, a page of one slow message would reduce the next pages
/// to one message. A page over a slow connection ends early anyway.
const MIN_PAGE_MESSAGES: usize = 16;

impl PageSize {
    /// Returns the number of messages to request from the server.
    fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Adapts the size of the next page to a read that has received `received` of `count` requested
    /// messages in the time `elapsed`. A slow read makes the next page smaller.
    fn note_read(&self, received: usize, count: usize, elapsed: Duration) {
        if elapsed > FAST_READ_TIME {
            self.0.store((received / 2).max(MIN_PAGE_MESSAGES), Relaxed);
        } else if received >= count {
            let _always = self.0.fetch_update(Relaxed, Relaxed, |size| Some((size * 2).min(PAGE_MESSAGES)));
        }
    }
}

/// Reads a page of old events: messages of a JetStream stream that come after the position `after`
/// and have one of these `subjects`. If `subjects` is empty, the page contains the messages of all
/// subjects. If the server does not create a consumer within 700 milliseconds
/// ([`CONSUMER_TIMEOUT`]), or the consumer fails before its first message, the page also contains
/// messages of other subjects. `size` limits the page, and the read updates it.
///
/// `state` is the state of the stream before the read. If the page contains all remaining messages,
/// it ends at the last position in `state`, or at a newer message that has arrived since.
pub(super) async fn read(
    stream: &Stream,
    state: &State,
    subjects: Vec<String>,
    after: Position,
    timeout_per_message: Duration,
    size: &PageSize,
) -> Result<Page, BoxError> {
    let consumer =
        timeout(CONSUMER_TIMEOUT, consume(&stream.link, stream.name(), sequence_after(after), subjects.clone())).await;
    let Ok(Ok(consumer)) = consumer else {
        return read_one_by_one(stream, state, after).await;
    };
    let mut page = Page { through: after, ..Page::default() };
    let mut pending = consumer.cached_info().num_pending;
    let count = size.get().min(pending.try_into().unwrap_or(PAGE_MESSAGES));
    if count > 0 {
        let begin = Instant::now();
        let mut losses = stream.link.losses();
        let fetch =
            consumer.fetch().max_messages(count).max_bytes(max_page_bytes(&stream.link)).expires(timeout_per_message);
        let mut messages = stream.link.request(fetch.messages()).await?;
        let mut received = 0;
        while received < count as u64 && pending > 0 {
            if page.through > after && begin.elapsed() > MAX_READ_TIME {
                break;
            }
            let delivered = match next_delivered(&mut messages, received, &mut losses, timeout_per_message).await {
                Ok(delivered) => delivered,
                // The server has ended the fetch at its byte limit, or a message was lost. The next
                // page begins after the messages of this page.
                Err(_) if page.through > after => break,
                // The next message may have headers that end the connection.
                Err(_) => {
                    size.note_read(0, count, begin.elapsed());
                    losses.reconnected_soon().await?;
                    return read_one_by_one(stream, state, after).await;
                }
            };
            received += 1;
            pending = delivered.pending;
            message::add(&mut page, after, stream.name(), &delivered.stored);
        }
        size.note_read(received.try_into().unwrap_or(count), count, begin.elapsed());
    }
    let request = |subject: &str, from| {
        let subject = subject.to_owned();
        async move { stream.next_of(&subject, from).await }
    };
    let log = (stream.name(), state.last);
    if pending == 0 && (state.replicas <= 1 || add_rest(request, log, &subjects, after, &mut page).await?) {
        page.through = page.through.max(position(state.last));
    }
    // If the deletion fails, the server deletes the consumer after its inactivity timeout.
    let delete = format!("CONSUMER.DELETE.{}.{}", stream.name(), consumer.cached_info().name);
    let _result = stream.link.context.send_request(delete, Request::new()).await;
    Ok(page)
}

/// Waits for the next message of a fetch, a request for several messages through a consumer.
/// `received` is the number of messages that the fetch has delivered so far. Returns an error if no
/// message arrives within `patience`, or if an earlier message of the fetch was lost. A reconnect
/// can lose messages: `async_nats` subscribes again, but does not receive the messages that the
/// server has sent before.
async fn next_delivered(
    messages: &mut pull::Batch,
    received: u64,
    losses: &mut Losses,
    patience: Duration,
) -> Result<Delivered, BoxError> {
    let message = timeout(patience, losses.unless_lost(messages.next())).await??;
    let delivered = Delivered::try_from(message.ok_or("the NATS server does not send what it has")??)?;
    check_sequence(&delivered, received + 1)?;
    Ok(delivered)
}

/// Extends `page`, the result of one read, by the next messages of `subjects`, up to the sequence
/// `last`. Returns `false` if the page becomes full before it contains all of these messages.
/// `request` returns the first message of a subject from a sequence on.
///
/// The consumer that has delivered the page can run on another server than the leader of the
/// stream. The server of the consumer may not have the newest messages yet. The leader has them,
/// and returns them one by one.
async fn add_rest<F>(
    request: impl Fn(&str, u64) -> F,
    (stream, last): (&str, u64),
    subjects: &[String],
    after: Position,
    page: &mut Page,
) -> Result<bool, BoxError>
where
    F: Future<Output = Result<Option<Stored>, BoxError>>,
{
    let begin = sequence(page.through);
    // If fewer messages than subjects are left, requesting all messages takes fewer requests.
    let all = [">".to_owned()];
    let is_few = last.saturating_sub(begin) < subjects.len() as u64;
    let subjects = if subjects.is_empty() || is_few { &all } else { subjects };
    // The next message of each subject, by its sequence.
    let mut next = BTreeMap::<_, (_, Stored)>::new();
    let mut ask = subjects.iter().map(|subject| (subject, begin)).collect::<Vec<_>>();
    let (mut count, mut bytes) = (0, 0);
    // The page contains no message after this sequence.
    let mut end = last;
    loop {
        for (subject, before) in ask.drain(..) {
            let found = match before.checked_add(1) {
                Some(from) if from <= end => request(subject, from).await?,
                _ => None,
            };
            next.extend(found.filter(|found| found.sequence <= end).map(|found| (found.sequence, (subject, found))));
            // Messages beyond the end of a full page are dropped. So the others take no more memory
            // than a page.
            let (mut used, mut used_bytes) = (count, bytes);
            let beyond = next.values().find(|(_, found)| {
                let is_full = used == PAGE_MESSAGES || used_bytes >= PAGE_BYTES;
                used += 1;
                used_bytes += found.payload.len();
                is_full
            });
            if let Some(beyond) = beyond.map(|(_, found)| found.sequence) {
                drop(next.split_off(&beyond));
                end = beyond.saturating_sub(1);
            }
        }
        let Some((sequence, (subject, found))) = next.pop_first() else { return Ok(end == last) };
        message::add(page, after, stream, &found);
        count += 1;
        bytes += found.payload.len();
        ask.push((subject, sequence));
    }
}

async fn read_one_by_one(stream: &Stream, state: &State, after: Position) -> Result<Page, BoxError> {
    let mut page = Page { through: after, ..Page::default() };
    let messages = next_messages(stream, sequence_after(after)).await?;
    for message in &messages {
        message::add(&mut page, after, stream.name(), message);
    }
    if messages.is_empty() {
        page.through = page.through.max(position(state.last));
    }
    Ok(page)
}

/// Returns the messages of the JetStream stream from this sequence on, each from a request of its
/// own. Returns at most 1,000 messages and about 4 MiB, and stops after about one second
/// ([`ONE_BY_ONE`]). The result is empty at the end of the stream.
///
/// Single requests can also return messages with malformed headers, which a consumer cannot
/// deliver. The response to a single request contains the headers in Base64. A consumer delivers
/// the headers as they are stored, and the client library ends the connection if it cannot parse
/// them.
pub(super) async fn next_messages(stream: &Stream, mut sequence: u64) -> Result<Vec<Stored>, BoxError> {
    let (mut messages, mut bytes) = (Vec::new(), 0);
    let begin = Instant::now();
    while messages.len() < PAGE_MESSAGES && bytes < PAGE_BYTES && begin.elapsed() < ONE_BY_ONE {
        let Some(message) = stream.next(sequence).await? else { break };
        let next = message.sequence.checked_add(1);
        bytes += message.payload.len();
        messages.push(message);
        let Some(next) = next else { break };
        sequence = next;
    }
    Ok(messages)
}

/// Changes a page, the result of one read, so that it reports messages that were deleted from the
/// middle of the JetStream stream. The page begins after the position `after`. `deleted` contains
/// the sequences of the deleted messages in rising order.
///
/// If the message directly after `after` was deleted, the page reports a gap at its beginning. Its
/// eviction watermark, the end of the gap, becomes the last position of this range of deleted
/// messages. The page ends before the first later deleted message, so that the next page reports
/// that message as a gap.
pub(super) fn report_holes(page: &mut Page, after: Position, deleted: &[u64]) {
    let next = sequence_after(after.max(page.evicted_through));
    let holes = &deleted[deleted.partition_point(|sequence| *sequence < next)..];
    let Some(hole) = holes.first() else { return };
    if *hole > next {
        let end = position(hole - 1);
        page.records.retain(|(position, _)| *position <= end);
        page.through = page.through.min(end);
        return;
    }
    let missing = (next..).zip(holes).take_while(|(expected, hole)| expected == *hole).count() as u64;
    page.evicted_through = position(next + missing - 1);
    report_holes(page, page.evicted_through, deleted);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::{Record, RecordKind};
    use arbtest::arbtest;
    use bytes::Bytes;
    use std::{
        cell::Cell,
        collections::BTreeSet,
        future::ready,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };
    use tokio::runtime::Builder;

    fn record() -> Record {
        Record { topic: "t".into(), kind: RecordKind::Event, event: Bytes::new() }
    }

    #[test]
    fn pages_deliver_each_message_or_report_it_missing() {
        arbtest(|u| {
            let length = u.int_in_range(0..=39)?;
            let deleted = (0..length).map(|_| u.int_in_range(1..=39_u64)).collect::<Result<BTreeSet<_>, _>>()?;
            let (from, size) = (u.int_in_range(0..=39_u64)?, u.int_in_range(1..=9_usize)?);
            let holes: Vec<_> = deleted.iter().copied().collect();
            let mut after = position(from);
            while after < position(40) {
                let retained = (sequence_after(after)..=40).filter(|sequence| !deleted.contains(sequence));
                let records: Vec<_> = retained.take(size).map(|sequence| (position(sequence), record())).collect();
                let through = records.last().map_or(position(40), |(position, _)| *position);
                let mut page = Page { through, records, ..Page::default() };
                report_holes(&mut page, after, &holes);
                assert!(page.through > after || page.evicted_through > after);
                let end = page.through.max(page.evicted_through);
                for sequence in sequence_after(after)..=sequence(end) {
                    let at = position(sequence);
                    let is_delivered =
                        page.records.iter().any(|(position, _)| *position == at) && at > page.evicted_through;
                    let is_reported = at <= page.evicted_through;
                    assert!(is_delivered || is_reported, "{sequence} of {page:?}");
                    assert!(is_delivered != deleted.contains(&sequence), "{sequence} of {page:?}");
                }
                after = end;
            }
            Ok(())
        });
    }

    #[test]
    fn pages_become_smaller_over_a_slow_connection() {
        let (size, [fast, slow]) = (PageSize::default(), [FAST_READ_TIME / 2, FAST_READ_TIME * 2]);
        for (received, count, elapsed, expected) in [
            (1000, 1000, fast, 1000),
            (300, 1000, slow, 150),
            (150, 150, fast, 300),
            (40, 40, slow, 20),
            (5, 20, fast, 20),
            (0, 20, slow, 16),
            (1, 1, slow, 16),
            (16, 16, fast, 32),
        ] {
            size.note_read(received, count, elapsed);
            assert_eq!(size.get(), expected, "{received} of {count} messages in {elapsed:?}");
        }
    }

    /// The leader of a stream has messages of a few subjects that the server of the consumer does
    /// not have.
    #[test]
    fn rest_of_a_page_has_each_message_once_in_few_requests() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        arbtest(|u| {
            let topics: Vec<_> = (0..u.int_in_range(1..=8_u64)?).map(|n| n.to_string()).collect();
            let subjects: Vec<_> = topics.iter().filter_map(|topic| message::subject("s", topic)).collect();
            let length = u.int_in_range(0..=20_u64)?;
            // The others of these messages are of topics that the page does not need.
            let topic_of = (1..=length).map(|_| u.int_in_range(0..=15)).collect::<Result<Vec<usize>, _>>()?;
            let last = u.int_in_range(0..=length)?;
            let after = position(u.int_in_range(0..=length)?);
            let requests = Cell::new(0);
            let request = |subject: &str, from| {
                requests.set(requests.get() + 1);
                let subject_of = |sequence: u64| message::subject("s", &topic_of[sequence as usize - 1].to_string());
                let is_found = |sequence: &u64| subject == ">" || subject_of(*sequence).as_deref() == Some(subject);
                let found = (from..=length).find(is_found).map(|sequence| Stored {
                    subject: subject_of(sequence).expect("the topic is short").into(),
                    sequence,
                    time: 0,
                    headers: None,
                    payload: Bytes::new(),
                });
                ready(Ok(found))
            };
            let mut page = Page { through: after, ..Page::default() };
            let is_complete = runtime.block_on(add_rest(request, ("s", last), &subjects, after, &mut page));
            assert!(is_complete.expect("no request fails"));
            page.records.retain(|(_, record)| topics.iter().any(|topic| **topic == *record.topic));
            let expected = (sequence(after) + 1..=last).filter(|n| topic_of[*n as usize - 1] < topics.len());
            let expected: Vec<_> = expected.map(position).collect();
            assert_eq!(page.records.iter().map(|(position, _)| *position).collect::<Vec<_>>(), expected);
            let rest = last.saturating_sub(sequence(after)) as usize;
            let most = if rest < topics.len() { rest } else { topics.len() + expected.len() };
            assert!(requests.get() <= most, "{} requests", requests.get());
            Ok(())
        });
    }

    /// Payloads of one mebibyte, which know how many of them are in memory.
    struct Mebibyte(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Mebibyte {
        fn as_ref(&self) -> &[u8] {
            static BYTES: [u8; 1 << 20] = [b'x'; 1 << 20];
            &BYTES
        }
    }

    impl Drop for Mebibyte {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn rest_of_many_large_topics_takes_the_memory_of_a_page() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let count = 200_u64;
        let subjects: Vec<_> = (1..=count).filter_map(|n| message::subject("s", &format!("{n:03}"))).collect();
        // The messages have the order of the subjects, or the reverse order.
        for is_reverse in [false, true] {
            let (live, most) = (Arc::new(AtomicUsize::new(0)), Cell::new(0));
            let request = |subject: &str, from| {
                let sequence_of = |index: usize| if is_reverse { count - index as u64 } else { index as u64 + 1 };
                let index = match subject {
                    // A request for all subjects.
                    ">" => {
                        (0..subjects.len()).filter(|index| sequence_of(*index) >= from).min_by_key(|i| sequence_of(*i))
                    }
                    subject => subjects.iter().position(|it| it == subject),
                };
                let found = index.filter(|index| sequence_of(*index) >= from).map(|index| {
                    let (subject, sequence) = (&*subjects[index], sequence_of(index));
                    most.set(most.get().max(live.fetch_add(1, SeqCst) + 1));
                    let payload = Bytes::from_owner(Mebibyte(live.clone()));
                    Stored { subject: subject.into(), sequence, time: 0, headers: None, payload }
                });
                ready(Ok(found))
            };
            let (mut after, mut received) = (Position::START, Vec::new());
            while after < position(count) {
                let mut page = Page { through: after, ..Page::default() };
                let is_complete = runtime.block_on(add_rest(request, ("s", count), &subjects, after, &mut page));
                assert_eq!(is_complete.expect("no request fails"), page.through == position(count));
                received.extend(page.records.iter().map(|(position, _)| sequence(*position)));
                after = page.through;
            }
            assert_eq!(received, (1..=count).collect::<Vec<_>>());
            assert!(most.get() <= 10, "{} messages are in memory", most.get());
        }
    }
}
