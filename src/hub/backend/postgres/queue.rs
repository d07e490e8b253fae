//! The queue of appends to the log in Postgres, and the groups of them that share a transaction.

use super::error::RequestError;
use crate::hub::{
    backend::{Appended, Record},
    recording::beat,
    stream_registries::CLOSED_STREAMS,
};
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::oneshot;

/// The maximum size in bytes of the events in a transaction that several appends share. A larger
/// append has a transaction of its own.
const MAX_BYTES: usize = 1 << 20;
/// The maximum number of records in a transaction that several appends share. An append with more
/// records has a transaction of its own.
const MAX_RECORDS: usize = 1000;
/// The maximum number of conditional appends in a transaction. Such an append has a [`Condition`]:
/// it stores its records only if their topic has no newer record. Each of them takes about 0.1 ms.
const MAX_CONDITIONAL: usize = 100;

/// The maximum number of records that a conditional append examines. The condition is that the log
/// has no record of a topic after a certain position, so the append examines the records after this
/// position. Examining 5,000 takes about 3 ms. If more records follow the position, the append
/// appends nothing.
pub(super) const MAX_EXAMINED: i64 = 5000;
/// The maximum number of records that the conditional appends of one transaction examine together.
/// The number is an estimate. Examining 50,000 takes about 30 ms.
const MAX_EXAMINED_TOGETHER: i64 = 50_000;

/// The topics of the hub itself: one for signs of life and other messages between nodes, and one
/// for announcements of closed streams. Only these exact names count: an application may have a
/// topic with the name `tower-sse`.
const HUB_TOPICS: [&str; 2] = [beat::TOPIC, CLOSED_STREAMS];

/// The queue of appends to the log in Postgres. An append waits in the queue until the previous
/// transaction has ended.
#[derive(Default)]
pub(super) struct Appends(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// The appends to topics of the hub itself, which are performed before the `others`. Signs of
    /// life of this node are among them: if they waited behind a backlog, other nodes would declare
    /// this node dead.
    ///
    /// The queue may change the order of two waiting appends to different topics. Where this order
    /// matters, the hub waits for the result of the first append before it starts the second.
    of_hub: VecDeque<Waiting>,
    others: VecDeque<Waiting>,
    is_running: bool,
}

impl Queue {
    fn queue_of(&mut self, append: &Waiting) -> &mut VecDeque<Waiting> {
        if append.is_of_hub() { &mut self.of_hub } else { &mut self.others }
    }

    fn pop(&mut self) -> Option<Waiting> {
        self.of_hub.pop_front().or_else(|| self.others.pop_front())
    }
}

/// An append that waits for the next transaction, and the channel for its result.
pub(super) struct Waiting {
    pub(super) records: Vec<Record>,
    /// The state of the log that this append requires. `None` if the append has no condition.
    pub(super) condition: Option<Condition>,
    /// The sender of the result. The result is `None` if the append has appended nothing, because
    /// the log does not meet the `condition` of this append. For example, the log already has a
    /// newer record of the topic.
    pub(super) result: oneshot::Sender<Result<Option<Appended>, RequestError>>,
}

impl Waiting {
    /// Returns `true` if this append is of the hub itself, such as a sign of life of the node: its
    /// topic is one of [`HUB_TOPICS`].
    fn is_of_hub(&self) -> bool {
        self.records.first().is_some_and(|record| HUB_TOPICS.contains(&&*record.topic))
    }
}

/// The condition of an append: the log has this epoch (a number that identifies one lifetime of the
/// log), and no record of the topic after this position.
#[derive(Clone, Copy)]
pub(super) struct Condition {
    pub(super) epoch: i64,
    pub(super) since: i64,
}

/// The size of a transaction that several appends share: the numbers that its limits apply to, such
/// as [`MAX_BYTES`] and [`MAX_RECORDS`].
#[derive(Default)]
struct Size {
    bytes: usize,
    records: usize,
    conditional: usize,
    examined: i64,
}

impl Size {
    /// Adds an append to the size of the transaction: its numbers of bytes, records, conditional
    /// appends, and examined records. The number of examined records is estimated from `newest`,
    /// the position of the newest record in the log that this process knows.
    fn add(&mut self, append: &Waiting, newest: i64) {
        if let Some(condition) = append.condition {
            // The append also examines the earlier records of the transaction. Other nodes may have
            // appended records that this process does not know yet.
            let own = i64::try_from(self.records).unwrap_or(i64::MAX);
            let newer = newest.saturating_sub(condition.since).max(0).saturating_add(own);
            self.examined = self.examined.saturating_add(newer.min(MAX_EXAMINED));
            self.conditional += 1;
        }
        self.bytes += append.records.iter().map(|record| record.event.len()).sum::<usize>();
        self.records += append.records.len();
    }

    fn is_allowed(&self) -> bool {
        self.bytes <= MAX_BYTES
            && self.records <= MAX_RECORDS
            && self.conditional <= MAX_CONDITIONAL
            && self.examined <= MAX_EXAMINED_TOGETHER
    }
}

impl Appends {
    /// Adds an append to the queue. Returns `true` if the task that performs the waiting appends
    /// does not run. The caller then has to start this task.
    pub(super) fn push(&self, append: Waiting) -> bool {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.queue_of(&append).push_back(append);
        !mem::replace(&mut queue.is_running, true)
    }

    /// Takes the appends that share the next transaction from the queue. An empty result means that
    /// no append waits. The calling task, which performs the appends, then has to end, because the
    /// next append starts another task. Appends to the topics that the hub itself uses come first,
    /// such as signs of life of this node.
    ///
    /// `newest` is the position of the newest record in the log that this process knows. It serves
    /// to estimate how many records a conditional append examines.
    pub(super) fn next_group(&self, newest: i64) -> Vec<Waiting> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut group, mut size) = (Vec::new(), Size::default());
        while let Some(next) = queue.pop() {
            // The publisher may have dropped its future.
            if next.result.is_closed() {
                continue;
            }
            size.add(&next, newest);
            if !group.is_empty() && !size.is_allowed() {
                queue.queue_of(&next).push_front(next);
                break;
            }
            group.push(next);
        }
        queue.is_running = !group.is_empty();
        group
    }

    pub(super) fn take_all(&self) -> Vec<Waiting> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Queue { of_hub, others, .. } = &mut *queue;
        of_hub.drain(..).chain(others.drain(..)).collect()
    }
}

/// A guard in the task that performs the waiting appends. If the runtime shuts down and drops the
/// task, the guard makes all waiting appends fail. The next append then starts another task.
///
/// The guard must exist before the task is spawned, because a runtime can drop a task before it
/// polls the task for the first time.
pub(super) struct Running {
    appends: Arc<Appends>,
    has_ended: bool,
}

impl Running {
    pub(super) fn new(appends: &Arc<Appends>) -> Self {
        Self { appends: Arc::clone(appends), has_ended: false }
    }

    /// Drops this guard without making the waiting appends fail. (Any other drop of the guard makes
    /// them fail.) Called when the task that performs the appends ends because no append is
    /// waiting. The next append may already have started another task.
    pub(super) fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut queue = self.appends.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The receivers of the waiting appends return an error.
        *queue = Queue::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::RecordKind;

    type Results = Vec<oneshot::Receiver<Result<Option<Appended>, RequestError>>>;

    fn record(bytes: usize) -> Record {
        Record { topic: "t".into(), kind: RecordKind::Event, event: vec![b'x'; bytes].into() }
    }

    /// Creates a queue with these appends. Each pair is one append: the sizes of its records in
    /// bytes, and the position after which the log must have no record of its topic. `None` stands
    /// for an append without this condition.
    fn queue(appends: impl IntoIterator<Item = (Vec<usize>, Option<i64>)>) -> (Appends, Results) {
        let queue = Appends::default();
        let results = appends.into_iter().map(|(sizes, since)| {
            let (result, receiver) = oneshot::channel();
            let records = sizes.into_iter().map(record).collect();
            queue.push(Waiting { records, condition: since.map(|since| Condition { epoch: 1, since }), result });
            receiver
        });
        let results = results.collect();
        (queue, results)
    }

    /// Empties the queue with [`Appends::next_group`]. Returns the number of appends in each group.
    fn groups(queue: &Appends, newest: i64) -> Vec<usize> {
        std::iter::from_fn(|| Some(queue.next_group(newest).len()).filter(|len| *len > 0)).collect()
    }

    #[test]
    fn transaction_has_limited_bytes_and_records() {
        for (appends, expected) in [
            (vec![(vec![MAX_BYTES / 4], None); 10], vec![4, 4, 2]),
            (vec![(vec![MAX_BYTES / 4], Some(0)); 10], vec![4, 4, 2]),
            (vec![(vec![1; MAX_RECORDS / 2], None); 5], vec![2, 2, 1]),
            // An append is never divided.
            (vec![(vec![1], None), (vec![MAX_BYTES + 1], None), (vec![1], None)], vec![1, 1, 1]),
            (vec![(vec![1], None), (vec![1; MAX_RECORDS + 1], Some(0)), (vec![1], None)], vec![1, 1, 1]),
            (vec![(vec![1], None); MAX_RECORDS + 1], vec![MAX_RECORDS, 1]),
        ] {
            let (queue, _results) = queue(appends);
            assert_eq!(groups(&queue, 0), expected);
        }
    }

    #[test]
    fn transaction_has_limited_conditional_appends() {
        let (queue, _results) = queue(vec![(vec![1], Some(9)); MAX_CONDITIONAL * 2 + 1]);
        assert_eq!(groups(&queue, 9), [MAX_CONDITIONAL, MAX_CONDITIONAL, 1]);
    }

    #[test]
    fn transaction_examines_limited_records() {
        for (newest, since, expected) in [
            // Each append also examines the records of the appends before it.
            (2000, 0, 24),
            // An append with more records after its position examines at most 5,000.
            (1_000_000, 0, 10),
            (i64::MAX, -1, 10),
            // The position of the condition can be later than the newest known record.
            (0, i64::MAX, MAX_CONDITIONAL),
        ] {
            let (queue, _results) = queue(vec![(vec![1], Some(since)); MAX_CONDITIONAL]);
            let group = queue.next_group(newest).len();
            assert_eq!(group, expected, "{newest} {since}");
        }
    }

    #[test]
    fn appends_of_the_hub_come_first_in_their_order() {
        let queue = Appends::default();
        let results = ["a", "tower-sse/nodes", "b", "tower-sse/closed-streams", "tower-sse"].map(|topic| {
            let (result, receiver) = oneshot::channel();
            let record = Record { topic: topic.into(), ..record(1) };
            queue.push(Waiting { records: vec![record], condition: None, result });
            receiver
        });
        let group = queue.next_group(0);
        let topics: Vec<_> = group.iter().map(|append| &*append.records[0].topic).collect();
        assert_eq!(topics, ["tower-sse/nodes", "tower-sse/closed-streams", "a", "b", "tower-sse"]);
        drop(results);
    }

    #[test]
    fn abandoned_appends_are_not_performed() {
        let (queue, mut results) = queue(vec![(vec![1], Some(0)); 10]);
        results.truncate(3);
        results.remove(1);
        assert_eq!(groups(&queue, 0), [2]);
    }

    #[test]
    fn end_of_the_runtime_makes_waiting_appends_fail() {
        let (queue, mut results) = queue(vec![(vec![1], Some(0)); 2]);
        let queue = Arc::new(queue);
        drop(Running::new(&queue));
        for result in &mut results {
            result.try_recv().expect_err("the append has failed");
        }
        let (result, _receiver) = oneshot::channel();
        assert!(queue.push(Waiting { records: vec![record(1)], condition: None, result }), "another task starts");
    }
}
