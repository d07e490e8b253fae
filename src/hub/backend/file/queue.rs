//! The queue between publishers and the writer, the thread that stores appends in the database.

use super::{error::FileError, replies::Publisher};
use crate::hub::backend::{Position, Record};
use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// An append that waits for its commit.
pub(super) struct Append {
    pub(super) records: Vec<Record>,
    pub(super) condition: Option<Unchanged>,
    pub(super) publisher: Publisher,
}

/// The condition of an append: the log still has this epoch (the number that identifies one
/// lifetime of the log), and has no record of the append's topic after the position `since`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unchanged {
    pub(super) epoch: u64,
    pub(super) since: Position,
}

impl Append {
    /// Returns the total size in bytes of the records of this append: their topics and events.
    fn size(&self) -> usize {
        self.records.iter().map(|record| record.event.len() + record.topic.len()).sum()
    }
}

/// The appends of one commit.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) appends: Vec<Append>,
    /// The total size in bytes of the records of these appends: their topics and events.
    size: usize,
}

/// The maximum size of the records in one commit, in bytes. A larger append has a commit of its
/// own.
const MAX_BATCH: usize = 8 << 20;

/// If the writer expects at most this number of further appends for a commit, it waits for all of
/// them. If it expects more, it stores the first appends while the others arrive.
const FEW: usize = 8;

/// The maximum time that the writer polls the queue for expected appends, before it sleeps until
/// they arrive. Publishers that got the result of the last commit usually need less time for their
/// next appends than the operating system needs to wake the writer.
const POLLING: Duration = Duration::from_micros(50);

impl Batch {
    /// Moves appends from the front of the queue to the batch, until the batch has its maximum size
    /// or `is_suitable` rejects an append.
    fn fill(&mut self, waiting: &mut Waiting, is_suitable: impl Fn(&Append) -> bool) {
        let mut size = self.size;
        let fits = |append: &&Append| {
            let is_first = size == 0;
            size += append.size();
            (is_first || size <= MAX_BATCH) && is_suitable(append)
        };
        let count = waiting.appends.iter().take_while(fits).count();
        let rest = waiting.appends.split_off(count);
        waiting.cleaned = waiting.cleaned.min(rest.len());
        let taken = mem::replace(&mut waiting.appends, rest);
        self.size += taken.iter().map(Append::size).sum::<usize>();
        self.appends.extend(taken);
    }
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    appends: Vec<Append>,
    failure: Option<FileError>,
    is_closed: bool,
    /// The number of queued appends that makes [`push`](Queue::push) wake the sleeping writer. Each
    /// wake-up takes a system call, so earlier appends do not wake the writer. `None` while the
    /// writer is awake.
    awaited: Option<usize>,
    /// The number of appends that were left in the queue after its last cleanup: a cleanup removes
    /// the appends of publishers that have stopped waiting. The next cleanup happens when the queue
    /// has twice this number of appends, and at least [`MANY`].
    cleaned: usize,
}

impl Waiting {
    /// Returns `true` if this queue has `count` appends, or another reason not to wait for them.
    fn is_ready(&self, count: usize) -> bool {
        self.appends.len() >= count || self.is_closed || self.failure.is_some()
    }
}

/// The minimum number of queued appends for a cleanup, which removes the appends of publishers that
/// have stopped waiting. The queue becomes this long, for example, if the disk does not respond.
const MANY: usize = 4096;

/// The next work of the writer.
pub(super) enum Work {
    Appends(Batch),
    /// No append has arrived before the deadline of [`take`](Queue::take), the time when the writer
    /// has to apply the retention. The writer only applies the retention.
    Idle,
    /// A reader could not use the database because of this error. The writer may have to open the
    /// database again.
    Failure(FileError),
    /// The log is closed, and no append is left in the queue. The writer ends.
    Close,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, append: Append) {
        let mut waiting = self.lock();
        waiting.appends.push(append);
        // Each append is examined a constant number of times on average.
        if waiting.appends.len() >= MANY.max(2 * waiting.cleaned) {
            waiting.appends.retain(|append| !append.publisher.has_left());
            waiting.cleaned = waiting.appends.len();
        }
        let is_due = waiting.awaited.is_some_and(|awaited| waiting.appends.len() >= awaited);
        if is_due {
            waiting.awaited = None;
        }
        drop(waiting);
        if is_due {
            self.changed.notify_one();
        }
    }

    /// Reports to the writer that a reader could not use the database. The writer can then open the
    /// database again.
    pub(super) fn report(&self, error: FileError) {
        self.lock().failure = Some(error);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for the `expected` appends, which can share a commit, at most until the time `window`.
    /// This wait ends earlier if a quarter of them are in the queue, or all of them if `expected`
    /// is at most 8 ([`FEW`]). If the queue is empty after this wait, waits for the first append,
    /// at most until the time `deadline` (`None`: without a time limit). Returns the first appends
    /// of the next commit, or other work for the writer: for example, the report of a failed read.
    pub(super) fn take(&self, deadline: Option<Instant>, expected: usize, window: Instant) -> Work {
        let waiting = self.wait_for_expected(share(expected, 4), window);
        let mut waiting = self.wait(waiting, 1, deadline);
        if let Some(error) = waiting.failure.take() {
            return Work::Failure(error);
        }
        if waiting.appends.is_empty() {
            return if waiting.is_closed { Work::Close } else { Work::Idle };
        }
        let mut batch = Batch::default();
        batch.fill(&mut waiting, |_| true);
        Work::Appends(batch)
    }

    /// Waits for further appends until the deadline `window`, and adds those at the front of the
    /// queue to the batch. `expected` is the number of appends that the batch should reach. The
    /// wait ends early when half of the missing appends are in the queue, or all if at most 8
    /// ([`FEW`]) are missing. Stops adding before an append with a condition (that its topic is
    /// unchanged). Returns `false` if no append was added, for example because the batch already
    /// has `expected` appends.
    pub(super) fn take_more(&self, batch: &mut Batch, expected: usize, window: Instant) -> bool {
        let before = batch.appends.len();
        if before >= expected {
            return false;
        }
        let mut waiting = self.wait_for_expected(share(expected - before, 2), window);
        batch.fill(&mut waiting, |append| append.condition.is_none());
        batch.appends.len() > before
    }

    /// Waits like [`wait`](Self::wait), but first polls the queue for up to 50 µs ([`POLLING`]).
    /// Between two polls, other threads of the machine can run.
    fn wait_for_expected(&self, count: usize, window: Instant) -> MutexGuard<'_, Waiting> {
        let end = window.min(Instant::now() + POLLING);
        loop {
            let waiting = self.lock();
            if waiting.is_ready(count) || Instant::now() >= end {
                return self.wait(waiting, count, Some(window));
            }
            drop(waiting);
            thread::yield_now();
        }
    }

    /// Waits until this queue has `count` appends, a reader of the log has reported that it could
    /// not use the database, or the log is closed. Waits at most until the time `deadline`, or
    /// without a time limit if `deadline` is `None`.
    fn wait<'a>(
        &self,
        mut waiting: MutexGuard<'a, Waiting>,
        count: usize,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Waiting> {
        while !waiting.is_ready(count) {
            waiting.awaited = Some(count);
            waiting = match deadline {
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(rest) = deadline.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
                    else {
                        break;
                    };
                    self.changed.wait_timeout(waiting, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        waiting.awaited = None;
        waiting
    }
}

/// Returns the number of appends that the writer waits for, if it expects `missing` further appends
/// for a commit: their share `1/divisor`, or all if `missing` is at most 8 ([`FEW`]).
fn share(missing: usize, divisor: usize) -> usize {
    if missing > FEW { missing / divisor } else { missing }
}

#[cfg(test)]
mod tests {
    use super::{super::replies::ReplyTasks, *};
    use crate::hub::backend::RecordKind;
    use std::{thread, time::Duration};

    const LATER: Duration = Duration::from_secs(60);

    fn append(tasks: &ReplyTasks, condition: Option<Unchanged>) -> Append {
        Append { records: Vec::new(), condition, publisher: tasks.publisher().0 }
    }

    fn take(queue: &Queue, expected: usize, window: Instant) -> Batch {
        match queue.take(Some(Instant::now()), expected, window) {
            Work::Appends(batch) => batch,
            _ => panic!("the queue has appends"),
        }
    }

    /// A batch begins with a quarter of the 64 expected appends. Further appends are added if they
    /// arrive before the deadline `window`.
    #[test]
    fn batch_grows_while_appends_arrive() {
        let (queue, tasks) = (Queue::default(), ReplyTasks::default());
        let window = Instant::now() + LATER;
        thread::scope(|scope| {
            scope.spawn(|| (0..16).for_each(|_| queue.push(append(&tasks, None))));
            let mut batch = take(&queue, 64, window);
            assert_eq!(batch.appends.len(), 16);
            scope.spawn(|| (0..24).for_each(|_| queue.push(append(&tasks, None))));
            assert!(queue.take_more(&mut batch, 64, window));
            assert_eq!(batch.appends.len(), 40);
            scope.spawn(|| (0..40).for_each(|_| queue.push(append(&tasks, None))));
            while queue.take_more(&mut batch, 64, window) {}
            assert!(batch.appends.len() >= 64, "{}", batch.appends.len());
        });
        assert!(Instant::now() < window);
    }

    #[test]
    fn missing_appends_delay_a_batch_until_the_window_ends() {
        let (queue, tasks) = (Queue::default(), ReplyTasks::default());
        queue.push(append(&tasks, None));
        let window = Instant::now() + Duration::from_millis(20);
        let mut batch = take(&queue, 64, window);
        assert!(Instant::now() >= window);
        assert!(!queue.take_more(&mut batch, 64, window));
        assert_eq!(batch.appends.len(), 1);
    }

    /// Conditions are checked before the transaction begins.
    #[test]
    fn append_with_condition_is_not_added_to_a_batch() {
        let (queue, tasks) = (Queue::default(), ReplyTasks::default());
        let condition = Some(Unchanged { epoch: 1, since: Position::START });
        [None, condition].into_iter().for_each(|condition| queue.push(append(&tasks, condition)));
        let mut batch = take(&queue, 4, Instant::now());
        assert_eq!(batch.appends.len(), 2);
        [None, condition, None].into_iter().for_each(|condition| queue.push(append(&tasks, condition)));
        assert!(queue.take_more(&mut batch, 5, Instant::now()));
        assert!(!queue.take_more(&mut batch, 5, Instant::now()));
        assert_eq!(batch.appends.len(), 3);
        assert_eq!(take(&queue, 2, Instant::now()).appends.len(), 2);
    }

    /// Tests that the maximum size of a batch (8 MiB) also applies if its appends arrive one after
    /// the other.
    #[test]
    fn size_of_a_batch_is_limited() {
        let (queue, tasks) = (Queue::default(), ReplyTasks::default());
        let push = |size: usize| {
            let record = Record { topic: "t".into(), kind: RecordKind::Event, event: vec![0; size].into() };
            queue.push(Append { records: vec![record], ..append(&tasks, None) });
        };
        push(MAX_BATCH / 2);
        let mut batch = take(&queue, 3, Instant::now());
        push(MAX_BATCH / 4);
        push(MAX_BATCH / 2);
        assert!(queue.take_more(&mut batch, 3, Instant::now()));
        assert!(!queue.take_more(&mut batch, 3, Instant::now()));
        assert_eq!(batch.appends.len(), 2);
        push(2 * MAX_BATCH);
        assert_eq!(take(&queue, 1, Instant::now()).appends.len(), 1);
        assert_eq!(take(&queue, 1, Instant::now()).appends.len(), 1, "a larger append has a commit of its own");
    }

    #[test]
    fn appends_without_publisher_take_no_memory() {
        let (queue, tasks) = (Queue::default(), ReplyTasks::default());
        let append = |publishers: &mut Vec<_>, is_kept: bool| {
            let (publisher, response) = tasks.publisher();
            queue.push(Append { records: Vec::new(), condition: None, publisher });
            publishers.extend(is_kept.then_some(response));
        };
        let mut publishers = Vec::new();
        for n in 0..100_000 {
            append(&mut publishers, n % 100 == 0);
        }
        let len = || queue.lock().appends.len();
        assert!((publishers.len()..2 * MANY).contains(&len()), "{}", len());
        for _ in 0..3 * MANY {
            append(&mut publishers, true);
        }
        queue.lock().appends.retain(|append| !append.publisher.has_left());
        assert_eq!(len(), publishers.len(), "no other append is removed");
    }
}
