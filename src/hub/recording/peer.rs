//! The recordings of another node, as far as this node knows them. A recording is a task that
//! publishes a stream into a topic.

use super::{
    beat::{Announced, Beat},
    copy::{CopyCheck, Ends},
};
use crate::hub::backend::{Position, Record};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Another node of the hub, as its beats describe it. A beat is a sign of life that lists the
/// recordings of its node.
pub(super) struct Peer {
    lease: Duration,
    /// The time when this node read the newest sign of life of the other node.
    seen_at: Instant,
    pub(super) recordings: HashMap<Arc<str>, Foreign>,
    pub(super) watching: HashSet<Arc<str>>,
    /// The parts that this node has read so far of a beat whose last part is still missing. `None`
    /// if no beat is incomplete.
    pub(super) incoming: Option<Beat>,
    /// The number of the newest beat (sign of life) that this node has read from the other node. A
    /// node numbers its beats in ascending order. So a beat with a smaller number has arrived late,
    /// and is ignored.
    number: u64,
}

/// A recording of another node: a task there that publishes a stream into a topic.
pub(super) struct Foreign {
    pub(super) announced: Announced,
    /// Set if the will of this recording is already in the topic. The will is the event that one of
    /// the remaining nodes publishes if the recording's node dies.
    pub(super) has_will: bool,
    /// Set while the local node takes over this recording: publishes its will and finishes its
    /// topic.
    pub(super) is_claimed: bool,
    /// Set if the newest sign of life of the other node does not list this recording any more,
    /// although the topic is not finished. This node then takes the recording over, without waiting
    /// until the other node counts as dead.
    pub(super) is_orphan: bool,
    /// Set if this recording may have ended in a part of the log that was lost or evicted before
    /// this node has read it. If this node takes the recording over, it then only finishes the
    /// topic. It does not publish the will, the event that the recording has announced for the
    /// death of its node. The next sign of life that lists the recording clears this flag.
    pub(super) is_uncertain: bool,
    /// Recognizes records of another log that are older than this recording.
    check: CopyCheck,
}

impl Peer {
    pub(super) fn new(lease: Duration) -> Self {
        let (recordings, watching) = (HashMap::new(), HashSet::new());
        Self { lease, seen_at: Instant::now(), recordings, watching, incoming: None, number: 0 }
    }

    /// Applies a part of a beat, the sign of life of the other node, which is at `position` in the
    /// log. `settled` contains the recordings to ignore. `is_again` is `true` if the local node may
    /// have read the beat before, in a log that was replaced.
    pub(super) fn note(&mut self, position: Position, mut part: Beat, settled: &HashSet<u64>, is_again: bool) {
        if part.number < self.number {
            if is_again {
                // The end of these recordings may follow, and then a beat that has arrived late.
                part.recordings.retain(|announced| !self.recordings.contains_key(&announced.topic));
                self.add(position, Beat { watching: HashSet::new(), ..part }, settled);
            }
            return;
        }
        self.number = part.number;
        self.lease = part.lease;
        self.seen_at = Instant::now();
        if part.is_addition {
            self.add(position, part, settled);
            return;
        }
        let is_last = part.is_last;
        if part.is_first {
            self.incoming = Some(part);
        } else {
            // A log that has replaced another one may lack a part.
            let is_next = |incoming: &Beat| incoming.number == part.number && part.follows(incoming);
            self.incoming = self.incoming.take().filter(is_next);
            if let Some(incoming) = &mut self.incoming {
                incoming.recordings.extend(part.recordings);
                incoming.watching.extend(part.watching);
                incoming.index = part.index;
            }
        }
        if let Some(beat) = self.incoming.take_if(|_| is_last) {
            self.apply(position, beat, settled);
        }
    }

    /// Replaces the known recordings of the other node by the recordings in `beat`, a sign of life
    /// that lists all of them. If a known recording is not in the list, its node has given the
    /// recording up without finishing its topic. Such a recording is marked as an orphan, and the
    /// local node takes it over.
    fn apply(&mut self, position: Position, beat: Beat, settled: &HashSet<u64>) {
        self.watching.clear();
        let mut known = mem::take(&mut self.recordings);
        for announced in beat.recordings.iter().filter(|announced| !settled.contains(&announced.id)) {
            if let Some(same) = known.remove(&announced.topic).filter(|known| known.announced.id == announced.id) {
                self.recordings.insert(announced.topic.clone(), same);
            }
        }
        self.add(position, beat, settled);
        // A node finishes the topic of a recording before it stops announcing it, unless its hub
        // was shut down.
        for (topic, orphan) in known {
            self.recordings.entry(topic).or_insert(Foreign { is_orphan: true, ..orphan });
        }
    }

    /// Adds the content of a beat, a sign of life of the other node, to what is known about that
    /// node: its recordings, and the topics with subscribers there.
    fn add(&mut self, position: Position, beat: Beat, settled: &HashSet<u64>) {
        self.watching.extend(beat.watching);
        for announced in beat.recordings.into_iter().filter(|announced| !settled.contains(&announced.id)) {
            let topic = announced.topic.clone();
            let same = self.recordings.remove(&topic).filter(|known| known.announced.id == announced.id);
            let (has_will, is_claimed, mut check) =
                same.map(|same| (same.has_will, same.is_claimed, same.check)).unwrap_or_default();
            check.note_beat(position, beat.number);
            let foreign = Foreign { announced, has_will, is_claimed, is_orphan: false, is_uncertain: false, check };
            self.recordings.insert(topic, foreign);
        }
    }

    /// Applies a record of a topic, which may finish the topic or be the will of a recording.
    pub(super) fn note_record(&mut self, record: &Record, settled: &mut Settled) {
        let Some(foreign) = self.recordings.get_mut(&record.topic) else { return };
        let mut ends = Ends::default();
        let will = &foreign.announced.will;
        foreign.check.held().unwrap_or(&mut ends).note(record.kind, &record.event, will);
        foreign.has_will |= ends.has_will;
        if ends.is_finished {
            settled.note(foreign.announced.id);
            self.recordings.remove(&record.topic);
        }
    }

    /// Prepares the recordings for another log, which retains the records after `after` and up to
    /// `last`.
    pub(super) fn reset(&mut self, after: Position, last: Position) {
        if self.recordings.is_empty() {
            // A node without recordings may have some in the other log, with earlier numbers.
            (self.number, self.incoming) = (0, None);
        }
        for foreign in self.recordings.values_mut() {
            (foreign.has_will, foreign.is_claimed) = (false, false);
            foreign.check.reset(after, last);
        }
    }

    /// Notes the position and the number of a beat, also of a beat that has arrived late.
    pub(super) fn note_beat(&mut self, position: Position, number: u64) {
        self.recordings.values_mut().for_each(|foreign| foreign.check.note_beat(position, number));
    }

    /// Applies the records of another log that may end recordings of the other node, if the local
    /// node has read enough of that log to know that it is no copy. `through` is the end of the
    /// part that it has read.
    pub(super) fn end_checks(&mut self, through: Position, settled: &mut Settled) {
        self.recordings.retain(|_, foreign| {
            let ends = foreign.check.end(through).unwrap_or_default();
            foreign.has_will |= ends.has_will;
            if ends.is_finished {
                settled.note(foreign.announced.id);
            }
            !ends.is_finished
        });
    }

    /// Returns `true` while the local node cannot tell whether records of another log are older
    /// than a recording of the other node.
    pub(super) fn is_checking(&self) -> bool {
        self.recordings.values().any(|foreign| foreign.check.is_open())
    }

    /// Returns the time when the other node counts as dead if this node reads no further sign of
    /// life of it. `contact_since` is the time when this node could reach the backend again after
    /// its last outage: silence before that time does not count.
    pub(super) fn dies_at(&self, contact_since: Option<Instant>) -> Instant {
        contact_since.map_or(self.seen_at, |since| since.max(self.seen_at)) + self.lease
    }

    pub(super) fn is_dead(&self, now: Instant, contact_since: Option<Instant>) -> bool {
        now >= self.dies_at(contact_since)
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease
    }
}

/// A note that the local node is taking over a recording of another node, which is dead or has
/// given the recording up. The local node is about to publish the will of the recording and to
/// finish its topic. The note stores whether the topic was finished in the meantime.
pub(super) struct Claim {
    topic: Arc<str>,
    is_finished: AtomicBool,
    /// Set if the recording that this node takes over may already have ended, in a part of the log
    /// that this node could not read. The topic may already have a newer recording, which this node
    /// must not end.
    is_uncertain: AtomicBool,
}

impl Claim {
    pub(super) fn new(topic: Arc<str>, is_uncertain: bool) -> Self {
        Self { topic, is_finished: AtomicBool::new(false), is_uncertain: AtomicBool::new(is_uncertain) }
    }

    pub(super) fn note_finished(&self, topic: &str) {
        self.is_finished.fetch_or(*self.topic == *topic, Relaxed);
    }

    pub(super) fn note_uncertain(&self) {
        self.is_uncertain.store(true, Relaxed);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished.load(Relaxed)
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.is_uncertain.load(Relaxed)
    }
}

/// The recordings of other nodes that need no takeover any more, for example because their topics
/// were finished. If a node that was paused announces such a recording again, the announcement is
/// ignored.
#[derive(Default)]
pub(super) struct Settled {
    pub(super) ids: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Settled {
    /// The maximum number of ended recordings of other nodes that this node remembers, to ignore
    /// late announcements of them. Beyond this number, this node forgets the oldest of them.
    const MAX: usize = 10_000;

    pub(super) fn note(&mut self, id: u64) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > Self::MAX {
            self.order.pop_front().inspect(|oldest| {
                self.ids.remove(oldest);
            });
        }
    }
}
