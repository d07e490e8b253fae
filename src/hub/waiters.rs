//! The queue of the readers that wait for a topic.

use super::ready_list::ReadyList;
use crate::callback::contain_panic;
use std::{collections::VecDeque, num::NonZeroU64, sync::Arc, task::Waker};

/// The readers of a topic that wait for its next change.
///
/// A change makes all readers that wait at that time due. They leave the queue in batches, so a
/// large audience does not have to be woken at once, or by one thread.
///
/// Waking, cloning or dropping a waker runs code of the application, so none of it happens while a
/// lock is held. A batch is woken after the lock is released. A waiter that is no longer needed is
/// returned to the caller, which drops it.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// The waiters, in the order of their registration. A waiter that has left leaves a vacant
    /// entry.
    queue: VecDeque<Option<Waiter>>,
    /// The number of the first entry. Entries are numbered in the order of the queue.
    first: u64,
    /// The entries before this number are due.
    due: u64,
    /// The numbers of the vacant entries that are not due. The next waiters get them.
    vacant: Vec<u64>,
}

/// A reader that waits.
#[derive(Debug)]
pub(super) enum Waiter {
    /// The only topic of a subscription changes: its task is woken.
    Task(Waker),
    /// One of several topics of a subscription changes: the reader with this index is marked, and
    /// the task is woken if it waits.
    Merged(Arc<ReadyList>, u32),
}

/// Identifies the entry of one waiter by its number. It stores the number after it, so that an
/// `Option` of it takes no more memory.
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
    /// Adds a waiter, or replaces the waiter of the ticket. Returns the waiter to drop.
    ///
    /// The caller has seen every change until now. So if its previous entry is due, it leaves that
    /// entry. Otherwise the entry would be woken for a change that the caller has seen already, and
    /// would be missing at the next one.
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

    /// Removes a waiter, and returns it to be dropped.
    pub(super) fn leave(&mut self, ticket: &mut Option<Ticket>) -> Option<Waiter> {
        let ticket = ticket.take();
        let waiter = self.entry(ticket.as_ref())?.take();
        self.vacant.extend(ticket.map(|ticket| ticket.number()).filter(|number| *number >= self.due));
        waiter
    }

    /// Makes all waiters due, and returns the end of their range.
    pub(super) fn make_due(&mut self) -> u64 {
        self.due = self.end();
        self.vacant.clear();
        self.due
    }

    /// Returns whether a waiter before this number is due.
    pub(super) fn has_due_before(&self, number: u64) -> bool {
        self.first < self.due.min(number)
    }

    /// Returns whether a waiter is due.
    pub(super) fn has_due(&self) -> bool {
        self.first < self.due
    }

    /// Takes up to `N` waiters that are due.
    pub(super) fn take_due<const N: usize>(&mut self) -> Batch<N> {
        let mut batch = Batch::new();
        for _ in 0..N {
            if self.first >= self.due {
                break;
            }
            self.first += 1;
            match self.queue.pop_front().flatten() {
                Some(Waiter::Task(waker)) => batch.push(waker),
                // The subscription still has the list, so this drops no waker.
                Some(Waiter::Merged(list, reader)) => list.mark(reader).into_iter().for_each(|waker| batch.push(waker)),
                None => {}
            }
        }
        batch
    }

    fn end(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    fn entry(&mut self, ticket: Option<&Ticket>) -> Option<&mut Option<Waiter>> {
        let index = ticket?.number().checked_sub(self.first)?;
        self.queue.get_mut(usize::try_from(index).ok()?).filter(|entry| entry.is_some())
    }
}

/// Wakers to wake after all locks are released. Merged readers count only if their task waits.
#[derive(Debug)]
pub(super) struct Batch<const N: usize> {
    wakers: [Option<Waker>; N],
    count: usize,
}

impl<const N: usize> Batch<N> {
    const fn new() -> Self {
        Self { wakers: [const { None }; N], count: 0 }
    }

    fn push(&mut self, waker: Waker) {
        self.wakers[self.count] = Some(waker);
        self.count += 1;
    }

    /// Wakes the wakers. The caller holds no lock.
    pub(super) fn wake(mut self) {
        for waker in self.wakers[..self.count].iter_mut().filter_map(Option::take) {
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

    /// Wakes up to `N` waiters that are due.
    fn wake<const N: usize>(waiters: &mut Waiters) {
        waiters.take_due::<N>().wake();
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
