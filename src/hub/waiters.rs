//! The queue of the readers that wait for the next change of a topic. A reader reads one topic for
//! one subscription.

use super::ready_list::ReadyList;
use crate::callback::contain_panic;
use std::{collections::VecDeque, mem, num::NonZeroU64, sync::Arc, task::Waker};

/// The queue of the readers that wait for the next change of one topic. A reader reads the topic
/// for one subscription. A change makes all readers in the queue due, which means that they have to
/// be woken. Due readers are taken out of the queue in batches, so several threads can share the
/// work of waking them.
///
/// Waking or dropping a waker can run code of the application, and must not happen while a lock is
/// held. So the methods return wakers, and the caller wakes or drops them after it has released its
/// locks.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// The waiting readers of the topic. Each entry of the queue has a number, which is one greater
    /// than the number of the previous entry. The entry of a reader that no longer waits is `None`.
    queue: VecDeque<Option<Waiter>>,
    /// The number of the first entry in `queue`. Entries are numbered consecutively from 0. An
    /// entry keeps its number when earlier entries are removed, so its index in `queue` is its
    /// number minus `first`.
    first: u64,
    /// The readers whose entries in `queue` have smaller numbers than this number have to be woken,
    /// because the topic has changed since these entries were added.
    due: u64,
    /// The numbers of the empty entries of `queue`, which a new waiting reader can use: their
    /// readers have stopped waiting. Entries with smaller numbers than `due` are not listed,
    /// because a new reader must not be woken for an earlier change.
    vacant: Vec<u64>,
}

/// A reader that waits for the next change of its topic. A reader reads one topic for one
/// subscription.
#[derive(Debug)]
pub(super) enum Waiter {
    /// The waiting reader of a subscription to a single topic: the waker of the task that polls the
    /// subscription. A change of the topic wakes this task.
    Task(Waker),
    /// The waiting reader of a subscription to several topics: the ready list of the subscription,
    /// and the index of the reader. A change of the reader's topic adds the index to the list. If
    /// the subscription waits, the change also wakes the task of the subscription.
    Merged(Arc<ReadyList>, u32),
}

/// Identifies the entry of one waiting reader in the queue of a topic. Stores the number of the
/// entry plus one, which is never 0, so that an `Option<Ticket>` takes no more memory.
#[derive(Debug)]
pub(super) struct Ticket(NonZeroU64);

impl Ticket {
    fn new(number: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(number))
    }

    fn number(&self) -> u64 {
        self.0.get() - 1
    }
}

impl Waiters {
    /// Adds a waiting reader to the queue. If the reader already has an entry, which `ticket`
    /// identifies, replaces that entry. Stores the ticket of the new entry in `ticket`. Returns the
    /// replaced waker or ready list, which the caller drops after it has released its locks.
    ///
    /// The caller must hold the lock of the topic, and must have checked the topic under this lock.
    /// So the caller knows all earlier changes, and need not be woken for them. If the old entry
    /// was still due to be woken for an earlier change, it becomes empty, and the reader gets a new
    /// entry.
    pub(super) fn wait(&mut self, ticket: &mut Option<Ticket>, waiter: Waiter) -> Option<Waiter> {
        let due = self.due;
        let is_due = ticket.as_ref().is_some_and(|ticket| ticket.number() < due);
        let replaced = match self.entry(ticket.as_ref()) {
            Some(entry) if !is_due => return entry.replace(waiter),
            Some(entry) => entry.take(),
            None => None,
        };
        let number = match self.vacant.pop() {
            Some(number) => {
                let index = (number - self.first) as usize;
                self.queue[index] = Some(waiter);
                number
            }
            None => {
                if self.queue.len() == self.queue.capacity() {
                    // Doubling would leave up to half of the memory of a large audience unused.
                    self.queue.reserve_exact(4 + self.queue.len() / 4);
                }
                self.queue.push_back(Some(waiter));
                self.end() - 1
            }
        };
        *ticket = Some(Ticket::new(number));
        replaced
    }

    /// Removes a waiting reader from the queue. `ticket` identifies its entry. Returns the content
    /// of the entry, which the caller drops after it has released its locks. Returns `None` if the
    /// reader was not in the queue any more.
    pub(super) fn leave(&mut self, ticket: &mut Option<Ticket>) -> Option<Waiter> {
        let ticket = ticket.take();
        let waiter = self.entry(ticket.as_ref())?.take();
        self.vacant.extend(ticket.map(|ticket| ticket.number()).filter(|number| *number >= self.due));
        waiter
    }

    /// Marks all waiting readers in the queue as due to be woken, because the topic has changed.
    /// Returns the number that the next new entry will have. The entries of all marked readers have
    /// smaller numbers.
    pub(super) fn make_due(&mut self) -> u64 {
        self.due = self.end();
        self.vacant.clear();
        self.due
    }

    /// Returns `true` if readers that waited when the topic changed are still in the queue and have
    /// to be woken. `number` is the number that [`make_due`](Self::make_due) has returned for this
    /// change: the readers that waited at that time have entries with smaller numbers.
    pub(super) fn has_due_before(&self, number: u64) -> bool {
        self.first < self.due.min(number)
    }

    pub(super) fn has_due(&self) -> bool {
        self.first < self.due
    }

    /// Removes from the queue up to `N` waiting readers that have to be woken, oldest first. Adds
    /// their wakers to `batch`, which must be empty. The caller wakes the batch.
    pub(super) fn take_due<const N: usize>(&mut self, batch: &mut Batch<N>) {
        let mut count = 0;
        while count < N && self.first < self.due {
            self.first += 1;
            match self.queue.pop_front().flatten() {
                Some(Waiter::Task(waker)) => batch.push(waker),
                // The subscription still has the list, so this drops no waker.
                Some(Waiter::Merged(list, reader)) => list.mark(reader).into_iter().for_each(|waker| batch.push(waker)),
                // A reader that has left wakes no other readers, so it does not count.
                None => continue,
            }
            count += 1;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    fn entry(&mut self, ticket: Option<&Ticket>) -> Option<&mut Option<Waiter>> {
        let index = ticket?.number().checked_sub(self.first)?;
        self.queue.get_mut(usize::try_from(index).ok()?).filter(|entry| entry.is_some())
    }
}

/// Up to `N` wakers, to be woken after all locks are released. A batch is large, so it is filled
/// and woken in place, and never moved.
#[derive(Debug)]
pub(super) struct Batch<const N: usize> {
    wakers: [Option<Waker>; N],
    count: usize,
}

impl<const N: usize> Batch<N> {
    pub(super) const fn new() -> Self {
        Self { wakers: [const { None }; N], count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, waker: Waker) {
        self.wakers[self.count] = Some(waker);
        self.count += 1;
    }

    /// Wakes all wakers of the batch. The caller must hold no lock.
    pub(super) fn wake(&mut self) {
        let count = mem::take(&mut self.count);
        for waker in self.wakers[..count].iter_mut().filter_map(Option::take) {
            contain_panic("waker", || waker.wake());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waiter(count: &Arc<Count>) -> Waiter {
        Waiter::Task(count.clone().into())
    }

    /// Removes from a queue of waiting readers up to `N` entries that have to be woken, and wakes
    /// these readers.
    fn wake<const N: usize>(waiters: &mut Waiters) {
        let mut batch = Batch::<N>::new();
        waiters.take_due(&mut batch);
        batch.wake();
    }

    #[test]
    fn each_waiter_is_woken_once() {
        let count = Arc::new(Count::default());
        let mut waiters = Waiters::default();
        let mut tickets = [None, None, None];
        for ticket in &mut tickets {
            assert!(waiters.wait(ticket, waiter(&count)).is_none());
        }
        // The second reader waits again, which replaces its waker.
        assert!(waiters.wait(&mut tickets[1], waiter(&count)).is_some());
        wake::<9>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "no waiter is due");
        waiters.make_due();
        wake::<2>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(waiters.has_due());
        // A reader that waits again is not due, whether or not it was woken.
        assert!(waiters.wait(&mut tickets[1], waiter(&count)).is_none());
        assert!(waiters.wait(&mut tickets[2], waiter(&count)).is_some());
        wake::<9>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        waiters.make_due();
        wake::<9>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 4);
        assert!(!waiters.has_due());
    }

    #[test]
    fn ticket_of_a_woken_waiter_removes_no_other() {
        let mut waiters = Waiters::default();
        let count = Arc::new(Count::default());
        let (mut early, mut late) = (None, None);
        waiters.wait(&mut early, waiter(&count));
        waiters.make_due();
        wake::<9>(&mut waiters);
        waiters.wait(&mut late, waiter(&count));
        assert!(waiters.leave(&mut early).is_none());
        waiters.make_due();
        wake::<9>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn waiter_that_leaves_while_due_is_replaced_by_no_other() {
        let mut waiters = Waiters::default();
        let count = Arc::new(Count::default());
        let (mut leaves, mut comes) = (None, None);
        waiters.wait(&mut leaves, waiter(&count));
        waiters.make_due();
        assert!(waiters.leave(&mut leaves).is_some());
        waiters.wait(&mut comes, waiter(&count));
        wake::<9>(&mut waiters);
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "a new waiter is not due");
    }

    #[test]
    fn waiters_that_leave_free_their_entries() {
        let mut waiters = Waiters::default();
        let count = Arc::new(Count::default());
        let mut stays = None;
        waiters.wait(&mut stays, waiter(&count));
        for round in 0..1000 {
            let mut ticket = None;
            waiters.wait(&mut ticket, waiter(&count));
            if round % 10 == 0 {
                waiters.make_due();
                wake::<9>(&mut waiters);
                waiters.wait(&mut stays, waiter(&count));
            }
            let left = waiters.leave(&mut ticket);
            assert_eq!(left.is_some(), round % 10 != 0);
            assert!(waiters.leave(&mut ticket).is_none(), "it has left already");
        }
        assert!(waiters.queue.len() <= 3 && waiters.vacant.len() <= 2, "{waiters:?}");
    }
}
