//! The set of wakers of the readers that wait for a topic.

use std::task::Waker;

/// The wakers of the subscriptions that wait for a topic.
///
/// Waking, cloning or dropping a waker runs code of the application, so none of it happens while a
/// lock is held. Therefore a change takes all wakers at once, and wakes them after the lock is
/// released. A waker that is no longer needed is returned to the caller, which drops it.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    wakers: Vec<Option<Waker>>,
    /// The indices of the free entries.
    vacant: Vec<u32>,
    /// The number of the current round. Taking all wakers begins a new round, and tickets of
    /// earlier rounds are invalid.
    round: u64,
    /// An empty buffer that the next round reuses.
    spare: Vec<Option<Waker>>,
}

/// Identifies the entry of one waker: its round and its index.
#[derive(Debug)]
pub(super) struct Ticket {
    round: u64,
    slot: u32,
}

impl Waiters {
    /// Adds a waker, or replaces the waker of the ticket. Returns the waker to drop.
    pub(super) fn wait(&mut self, ticket: &mut Option<Ticket>, waker: Waker) -> Option<Waker> {
        if let Some(entry) = self.entry(ticket.as_ref()) {
            return entry.replace(waker);
        }
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.wakers[slot as usize] = Some(waker);
                slot
            }
            None => {
                self.wakers.push(Some(waker));
                (self.wakers.len() - 1) as u32
            }
        };
        *ticket = Some(Ticket { round: self.round, slot });
        None
    }

    /// Removes a waker, and returns it to be dropped.
    pub(super) fn leave(&mut self, ticket: &mut Option<Ticket>) -> Option<Waker> {
        let ticket = ticket.take();
        let waker = self.entry(ticket.as_ref())?.take();
        self.vacant.extend(ticket.map(|ticket| ticket.slot));
        waker
    }

    /// Takes all wakers out of the set. The caller wakes them.
    pub(super) fn take(&mut self) -> Vec<Option<Waker>> {
        if self.wakers.is_empty() {
            return Vec::new();
        }
        self.round += 1;
        self.vacant.clear();
        std::mem::replace(&mut self.wakers, std::mem::take(&mut self.spare))
    }

    /// Gives the emptied buffer back, so that the next round reuses its memory.
    pub(super) fn give_back(&mut self, emptied: Vec<Option<Waker>>) {
        if emptied.capacity() > self.spare.capacity() {
            self.spare = emptied;
        }
    }

    fn entry(&mut self, ticket: Option<&Ticket>) -> Option<&mut Option<Waker>> {
        let ticket = ticket.filter(|ticket| ticket.round == self.round)?;
        self.wakers.get_mut(ticket.slot as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake(waiters: &mut Waiters) -> usize {
        let mut taken = waiters.take();
        let woken = taken.drain(..).flatten().map(Waker::wake).count();
        waiters.give_back(taken);
        woken
    }

    #[test]
    fn each_that_waits_is_woken_once() {
        let count = Arc::new(Count::default());
        let mut waiters = Waiters::default();
        let mut tickets = [None, None, None];
        for ticket in &mut tickets {
            assert!(waiters.wait(ticket, count.clone().into()).is_none());
        }
        // The second reader waits again, which replaces its waker.
        assert!(waiters.wait(&mut tickets[1], count.clone().into()).is_some());
        assert_eq!(wake(&mut waiters), 3);
        assert_eq!(wake(&mut waiters), 0);
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
        assert!(waiters.wait(&mut tickets[1], count.clone().into()).is_none());
        assert_eq!(wake(&mut waiters), 1);
    }

    #[test]
    fn ticket_of_an_earlier_round_takes_no_slot() {
        let mut waiters = Waiters::default();
        let (mut early, mut late) = (None, None);
        waiters.wait(&mut early, Waker::noop().clone());
        wake(&mut waiters);
        waiters.wait(&mut late, Waker::noop().clone());
        assert!(waiters.leave(&mut early).is_none());
        assert_eq!(wake(&mut waiters), 1);
    }

    #[test]
    fn who_comes_and_goes_leaves_nothing_behind() {
        let mut waiters = Waiters::default();
        let mut stays = None;
        waiters.wait(&mut stays, Waker::noop().clone());
        for _ in 0..1000 {
            let mut ticket = None;
            waiters.wait(&mut ticket, Waker::noop().clone());
            assert!(waiters.leave(&mut ticket).is_some());
            assert!(waiters.leave(&mut ticket).is_none(), "it has left already");
        }
        assert!(waiters.wakers.len() <= 2 && waiters.vacant.len() <= 1, "{waiters:?}");
    }
}
