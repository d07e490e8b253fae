//! Merges the topics of one subscription: delivers the events of all of its topics in the order of
//! the log.

use super::{
    backend::Position,
    linger::Linger,
    reader::{Reader, Step},
    ready_list::ReadyList,
    topic_state::EarlyEnd,
    waiters::Waiter,
    wake_queue::WakeQueue,
};
use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, task::Waker};

/// The maximum number of topics in which one poll of a subscription looks for events. After this
/// number, the poll returns `Pending` and wakes its own task again, so that other tasks can run.
/// Looking for events in 256 topics takes about 50 µs.
const SLICE: usize = 256;

/// Merges the events of the topics of one subscription, in the order of the log. The delivery of an
/// event costs O(log n), where n is the number of topics with an undelivered event.
///
/// The subscription has one reader for each of its topics. Each reader is in one of three states:
///
/// - It waits until its topic changes. The change adds the reader to the [`ReadyList`].
/// - It has to look for the next event of its topic, for example because the topic has changed. The
///   reader is then in the list `unchecked`.
/// - It knows the position of the next event of its topic. The reader is then in the heap `turns`.
pub(super) struct Merge {
    pub(super) ready: Arc<ReadyList>,
    /// The pauses that the subscription makes after it has written events to the client: their
    /// length, and the timer of the current pause. `None` if the subscription makes no pauses.
    pub(super) linger: Option<Linger>,
    /// The readers that have to look for the next event of their topics, as indices into the list
    /// of all readers of the subscription. An index can be in this list twice.
    unchecked: Vec<u32>,
    /// The readers that know the position of the next event of their topics, with this position.
    /// The event with the smallest position is delivered next.
    turns: BinaryHeap<Reverse<(Position, u32)>>,
    /// The number of topics of the subscription that are finished and whose events were all
    /// delivered to the client.
    finished: usize,
    /// `true` if the hub is shut down. The subscription then ends as soon as it has delivered all
    /// events.
    is_shut_down: bool,
    /// The greatest position that was delivered in any single topic. It can be after the cursor of
    /// the subscription: the events of all topics were delivered only up to the cursor. One
    /// possible reason is that the subscription began at a greater position in one topic than in
    /// others. Another is that a `latest_only` topic has delivered its newest event in place of an
    /// older event. When no topic has a further event, the cursor moves to this position, but not
    /// past the hub's last event that is visible to subscribers.
    delivered_through: Position,
    /// The number of the first addition to the hub's wake queue that this subscription has not seen
    /// yet. A changed topic with many waiting subscriptions is in this queue until they are woken.
    looked_at: u64,
    /// The index of the reader whose events [`step`](Self::step) has returned last. A reader reads
    /// one topic, so the index also identifies the topic of these events.
    pub(super) last_turn: u32,
}

impl Merge {
    pub(super) fn new(readers: &[Reader]) -> Self {
        let mut merge = Self {
            ready: Arc::default(),
            linger: None,
            unchecked: Vec::new(),
            turns: BinaryHeap::new(),
            finished: 0,
            is_shut_down: false,
            delivered_through: Position::START,
            looked_at: 0,
            last_turn: 0,
        };
        merge.reset(readers);
        merge
    }

    /// Rebuilds `turns` (the readers that know the position of their next event) and `unchecked`
    /// (the readers that have to look for it). Called after the readers were changed, for example
    /// because a gap was reported.
    pub(super) fn reset(&mut self, readers: &[Reader]) {
        self.turns.clear();
        self.unchecked.clear();
        let delivered = readers.iter().map(|reader| reader.delivered_through).max();
        self.delivered_through = self.delivered_through.max(delivered.unwrap_or_default());
        self.finished = readers.iter().filter(|reader| reader.is_finished).count();
        for (index, reader) in (0..).zip(readers) {
            match reader.next {
                Some(next) => self.turns.push(Reverse((next, index))),
                None => self.unchecked.push(index),
            }
        }
    }

    /// Returns the next events of the subscription after `cursor`, all from one topic. If the topic
    /// is `latest_only` (each event replaces the previous one) and the next event was replaced,
    /// returns the newest event of the topic instead.
    ///
    /// `committed` returns the position up to which all events of the hub are visible. Later events
    /// are not delivered yet. If no event is available, registers `waker` for the next change of
    /// any topic of the subscription, and returns [`Step::Wait`]. If `waker` is `None`, registers
    /// nothing.
    pub(super) fn step(
        &mut self,
        readers: &mut [Reader],
        committed: impl Fn() -> Position,
        wake_queue: &WakeQueue,
        cursor: Position,
        waker: Option<&Waker>,
    ) -> Step {
        // The next event can be at or before the cursor if a gap has passed over a `latest_only`
        // topic. Its event is delivered first, with the id of the gap. Otherwise another topic that
        // lags all the time, with gap after gap, would starve this topic.
        while let Some(position) = self.next_position().filter(|position| *position <= cursor) {
            if let Some(step) = self.take_turn(readers, cursor, position) {
                return step;
            }
        }
        let mut checked = 0;
        loop {
            // No event becomes visible after a shutdown of the hub. So a committed position that is
            // read after the shutdown was noticed is final.
            let was_shut_down = self.is_shut_down;
            // Read the committed position before the topics, so that the topics contain every event
            // up to it, and all changes up to it are marked or in the wake queue.
            let committed = committed();
            self.collect(readers, wake_queue);
            // An eviction has to be reported before any later event. Otherwise a client could
            // disconnect after that event and resume with its id, without the gap. So no event is
            // delivered before all readers were checked.
            while let Some(index) = self.unchecked.pop() {
                let reader = &mut readers[index as usize];
                if reader.next.is_some() {
                    continue;
                }
                if checked == SLICE {
                    self.unchecked.push(index);
                    return Step::Yield;
                }
                checked += 1;
                let was_finished = reader.is_finished;
                if let Err(step) = reader.peek(cursor, || Waiter::Merged(self.ready.clone(), index)) {
                    self.unchecked.push(index);
                    return step;
                }
                self.note(index, reader, was_finished);
            }
            match self.turns.peek().copied() {
                // This event is after the committed position, so an event with a smaller position
                // may not be visible yet. A topic is unlocked after its last event was committed,
                // so the loop continues with the next committed position. There are two exceptions.
                // Another log has replaced the log, and its positions are smaller. Or the hub was
                // shut down before it has committed the last events of its backend. In both cases,
                // the topic has an early end, or another thread is about to set it.
                Some(Reverse((next, index))) if next > committed => {
                    match readers[index as usize].topic.lock().early_end {
                        Some(end) if end == EarlyEnd::Replaced || was_shut_down => return Step::EarlyEnd(end),
                        Some(_) => self.is_shut_down = true,
                        None => {}
                    }
                }
                Some(_) => {
                    if let Some(step) = self.take_turn(readers, cursor, committed) {
                        return step;
                    }
                }
                None => {
                    // The delivered event of a `latest_only` topic can be after the committed
                    // position. Events of other topics before it may not be visible yet, so the
                    // cursor does not pass the committed position.
                    let caught_up = self.delivered_through.min(committed);
                    if caught_up > cursor {
                        return Step::CaughtUp(caught_up);
                    }
                    if self.finished == readers.len() {
                        return Step::Finished;
                    }
                    if was_shut_down {
                        return Step::EarlyEnd(EarlyEnd::Shutdown);
                    }
                    if self.is_shut_down {
                        // Read the final committed position.
                        continue;
                    }
                    if waker.is_none_or(|waker| self.ready.wait(waker)) {
                        return Step::Wait;
                    }
                }
            }
        }
    }

    /// Returns `true` if the client has received every event of its topics up to the committed
    /// position, the position of the hub's last event that is visible to subscribers. The caller
    /// must have read this position before this call. Returns `false` if a topic was finished since
    /// the last call of [`step`](Self::step), because the subscription has not handled the end of
    /// the topic yet.
    ///
    /// Looks only at the topics that have changed since the last call of [`step`](Self::step). So
    /// the cost does not depend on the number of topics. The exception is a shutdown of the hub,
    /// which changes all topics.
    pub(super) fn is_caught_up(&mut self, readers: &[Reader], wake_queue: &WakeQueue, cursor: Position) -> bool {
        // The next step looks at the collected topics again. It follows soon, because a topic that
        // is in one of the two lists wakes the subscription.
        self.collect(readers, wake_queue);
        let mut unchecked = self.unchecked.iter().map(|index| &readers[*index as usize]);
        self.turns.is_empty() && unchecked.all(|reader| reader.is_caught_up(cursor))
    }

    fn next_position(&self) -> Option<Position> {
        self.turns.peek().map(|Reverse((position, _))| *position)
    }

    /// Adds the readers whose topics have changed to the field `unchecked`, the list of the readers
    /// that have to look for the next event of their topics. A changed topic is in the ready list,
    /// which is the subscription's own list of changed topics. If many subscriptions wait for the
    /// topic, it can still be in the hub's wake queue instead.
    fn collect(&mut self, readers: &[Reader], wake_queue: &WakeQueue) {
        let unchecked = &mut self.unchecked;
        wake_queue.look_through(&mut self.looked_at, |topic| {
            // The readers are sorted by the names of their topics.
            let found = readers.binary_search_by(|reader| reader.topic.name.cmp(&topic.name));
            unchecked.extend(found.ok().map(|index| index as u32));
        });
        self.ready.take(unchecked);
    }

    /// Returns the next events of the subscription, all from the topic whose next event has the
    /// smallest position. They end at `through`, and before the next event of any other topic. If
    /// the topic is `latest_only` and these events were replaced, returns the newest event of the
    /// topic instead.
    ///
    /// Returns `None` if no topic has a known next event, or if the topic with the smallest
    /// position has no undelivered event any more.
    fn take_turn(&mut self, readers: &mut [Reader], cursor: Position, through: Position) -> Option<Step> {
        let Reverse((position, index)) = self.turns.pop()?;
        let through = self.next_position().map_or(through, |second| through.min(second.previous()));
        self.last_turn = index;
        let reader = &mut readers[index as usize];
        let was_finished = reader.is_finished;
        let waiter = || Waiter::Merged(self.ready.clone(), index);
        let step = match reader.take_turn(position, cursor, through.max(position), waiter) {
            Ok(step) => step,
            // The reader has an undelivered event and waits for nothing. In none of the lists, it
            // would count as caught up.
            Err(step) => {
                self.unchecked.push(index);
                return Some(step);
            }
        };
        self.note(index, reader, was_finished);
        self.delivered_through = self.delivered_through.max(reader.delivered_through);
        step
    }

    /// Stores the result after a reader has looked for the next event of its topic. If there is an
    /// event, adds the reader to `turns`, the heap of the readers that know the position of their
    /// next event. If the topic is finished and has no further event, counts it in `finished`.
    /// `was_finished` is `true` if the topic was already counted there.
    fn note(&mut self, index: u32, reader: &Reader, was_finished: bool) {
        self.turns.extend(reader.next.map(|next| Reverse((next, index))));
        self.finished = self.finished + usize::from(reader.is_finished) - usize::from(was_finished);
        self.is_shut_down |= reader.is_shut_down;
    }
}
