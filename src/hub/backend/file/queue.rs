//! The queue between publishers and the writer, the thread that stores appends in the database.

use super::{error::FileError, replies::Publisher};
use crate::hub::backend::{Position, Record};
use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// An append that waits for its commit.
pub(super) struct Append {
    pub(super) records: Vec<Record>,
    pub(super) condition: Option<Unchanged>,
    pub(super) publisher: Publisher,
}

/// The condition of an append: the log has this epoch, and after the position `since` it has no
/// record of the topic of the append.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unchanged {
    pub(super) epoch: u64,
    pub(super) since: Position,
}

/// The maximum size of the events in one commit, in bytes. A larger append has a commit of its own.
const MAX_BATCH: usize = 8 << 20;

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
    /// The writer waits until the queue has this number of appends. [`push`](Queue::push) then
    /// wakes it. `None` if the writer does not wait. Each wake-up takes a system call.
    awaited: Option<usize>,
    /// The number of appends that were left in the queue after its last cleanup: a cleanup removes
    /// the appends of publishers that have stopped waiting. The next cleanup happens when the queue
    /// has twice this number of appends, and at least [`MANY`].
    cleaned: usize,
}

/// The queue removes the appends of publishers that have stopped waiting when it has at least this
/// number of appends. The queue becomes this long, for example, if the disk does not respond.
const MANY: usize = 4096;

/// The next work of the writer, the thread that stores appends.
pub(super) enum Work {
    Appends(Vec<Append>),
    /// No append has arrived before the deadline. The writer only applies the retention.
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

    /// Reports to the writer, the thread that stores appends, that a reader could not use the
    /// database. The writer can then open the database again.
    pub(super) fn report(&self, error: FileError) {
        self.lock().failure = Some(error);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits at most `window` until the queue has `expected` appends, which can share a commit.
    /// Then waits for the first append until the deadline. Returns the appends of the next commit,
    /// or other work for the writer, such as the report of a failed read.
    pub(super) fn take(&self, deadline: Option<Instant>, expected: usize, window: Duration) -> Work {
        let mut waiting = self.lock();
        if waiting.appends.len() < expected && !window.is_zero() {
            waiting = self.wait(waiting, expected, Some(Instant::now() + window));
        }
        let mut waiting = self.wait(waiting, 1, deadline);
        if let Some(error) = waiting.failure.take() {
            return Work::Failure(error);
        }
        if waiting.appends.is_empty() {
            return if waiting.is_closed { Work::Close } else { Work::Idle };
        }
        let mut bytes = 0;
        let fits = |append: &Append| {
            let is_first = bytes == 0;
            bytes += append.records.iter().map(|record| record.event.len() + record.topic.len()).sum::<usize>();
            is_first || bytes <= MAX_BATCH
        };
        let count = waiting.appends.iter().map(fits).take_while(|fits| *fits).count();
        let rest = waiting.appends.split_off(count);
        waiting.cleaned = waiting.cleaned.min(rest.len());
        Work::Appends(mem::replace(&mut waiting.appends, rest))
    }

    /// Waits until the queue has `count` appends, a reader has reported a failure, or the log is
    /// closed. Waits at most until the deadline.
    fn wait<'a>(
        &self,
        mut waiting: MutexGuard<'a, Waiting>,
        count: usize,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Waiting> {
        while waiting.appends.len() < count && !waiting.is_closed && waiting.failure.is_none() {
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

#[cfg(test)]
mod tests {
    use super::{super::replies::ReplyTasks, *};

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
