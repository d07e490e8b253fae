//! The recordings of another node, as far as this node knows them. A recording is a task that
//! publishes a stream into a topic.

use super::{
    beat::{Announced, Beat},
    copy::{CopyCheck, Ends, ReadBeat},
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
    /// The parts of an incomplete beat (sign of life) that this node has read so far. `None` if
    /// this node has read the last part of each beat.
    pub(super) incoming: Option<Beat>,
    /// The number of the newest beat (sign of life) that this node has read from the other node. A
    /// node numbers its beats in ascending order. So a beat with a smaller number has arrived late,
    /// and is ignored.
    number: u64,
}

/// A recording of another node: a task there that publishes a stream into a topic.
pub(super) struct Foreign {
    pub(super) announced: Announced,
    /// The position of this recording's will if the topic has it already. The will is the event
    /// that one of the remaining nodes publishes if the recording's node dies.
    pub(super) will_at: Option<Position>,
    /// The position of this recording's will in the log that another log has replaced. If the other
    /// log is a copy of the records up to this position, it has the will, too.
    earlier_will_at: Option<Position>,
    /// Set while the local node takes over this recording: publishes its will, the event for the
    /// death of its node, and finishes its topic.
    pub(super) is_claimed: bool,
    /// Set if the newest sign of life of the other node does not list this recording any more,
    /// although the topic is not finished. This node then takes the recording over, without waiting
    /// until the other node counts as dead.
    pub(super) is_orphan: bool,
    /// Set if this recording may have ended in a part of the log that was lost or evicted before
    /// this node has read it. If this node takes the recording over, it then only finishes the
    /// topic. It does not publish the will, the event that the recording has announced for the
    /// death of its node. The next sign of life that lists the recording clears this flag. The flag
    /// stays set only if the sender of the sign of life had not read that part of the log, either.
    pub(super) is_uncertain: bool,
    /// Set if a part of the log was lost or evicted before this node has read it, and no later sign
    /// of life has listed this recording yet.
    pub(super) is_unlisted: bool,
    /// Recognizes the records that are older than this recording in another log that has replaced
    /// the log. Such records do not end the recording.
    check: CopyCheck,
}

/// The state of the local node when it reads a part of a beat. A beat is a sign of life of another
/// node.
pub(super) struct Context<'a> {
    pub(super) beat: ReadBeat,
    /// The newest beat (sign of life) of any node that the local node has read before this beat.
    pub(super) newest_beat: Option<ReadBeat>,
    /// Records up to this position are missing, some or all of them. The log had evicted or lost
    /// them before the local node could read them.
    pub(super) lost_through: Position,
    /// The ids of recordings that the local node ignores in signs of life, because they need no
    /// takeover any more.
    pub(super) settled: &'a HashSet<u64>,
}

impl Foreign {
    fn new(announced: Announced) -> Self {
        Self {
            announced,
            will_at: None,
            earlier_will_at: None,
            is_claimed: false,
            is_orphan: false,
            is_uncertain: false,
            is_unlisted: false,
            check: CopyCheck::default(),
        }
    }
}

impl Peer {
    pub(super) fn new(lease: Duration) -> Self {
        let (recordings, watching) = (HashMap::new(), HashSet::new());
        Self { lease, seen_at: Instant::now(), recordings, watching, incoming: None, number: 0 }
    }

    /// Applies a part of a beat, the sign of life of the other node, to what is known about that
    /// node. `is_again` is `true` if the local node may have read the beat before, in a log that
    /// was replaced.
    pub(super) fn note(&mut self, mut part: Beat, is_again: bool, context: &Context<'_>) {
        if part.number < self.number {
            if is_again {
                // The end of these recordings may follow, and then a beat that has arrived late.
                part.recordings.retain(|announced| !self.recordings.contains_key(&announced.topic));
                self.add(Beat { watching: HashSet::new(), ..part }, context);
            }
            return;
        }
        self.number = part.number;
        self.lease = part.lease;
        self.seen_at = Instant::now();
        if part.is_addition {
            self.add(part, context);
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
            self.apply(beat, context);
        }
    }

    /// Replaces the known recordings of the other node by the recordings in `beat`, a sign of life
    /// that lists all of them. If a known recording is not in the list, its node has given the
    /// recording up without finishing its topic. Such a recording is marked as an orphan, and the
    /// local node takes it over.
    fn apply(&mut self, beat: Beat, context: &Context<'_>) {
        self.watching.clear();
        let mut known = mem::take(&mut self.recordings);
        for announced in beat.recordings.iter().filter(|announced| !context.settled.contains(&announced.id)) {
            if let Some(same) = known.remove(&announced.topic).filter(|known| known.announced.id == announced.id) {
                self.recordings.insert(announced.topic.clone(), same);
            }
        }
        self.add(beat, context);
        // A node finishes the topic of a recording before it stops announcing it, unless its hub
        // was shut down.
        for (topic, orphan) in known {
            self.recordings.entry(topic).or_insert(Foreign { is_orphan: true, ..orphan });
        }
    }

    /// Adds the content of a beat, a sign of life of the other node, to what is known about that
    /// node: its recordings, and the topics with subscribers there.
    fn add(&mut self, beat: Beat, context: &Context<'_>) {
        self.watching.extend(beat.watching);
        // The sender did not know either how a recording has ended in the part that was lost.
        let is_uncertain = beat.read_through.is_some_and(|through| through < context.lost_through);
        for announced in beat.recordings.into_iter().filter(|announced| !context.settled.contains(&announced.id)) {
            let topic = announced.topic.clone();
            let same = self.recordings.remove(&topic).filter(|known| known.announced.id == announced.id);
            let mut foreign = same.unwrap_or_else(|| Foreign::new(announced.clone()));
            foreign.check.note_beat(context.beat, context.newest_beat);
            let foreign = Foreign { announced, is_orphan: false, is_uncertain, is_unlisted: false, ..foreign };
            self.recordings.insert(topic, foreign);
        }
    }

    /// Applies a record of a topic, in case the other node has a recording in this topic. The
    /// record may finish the topic, or be the will: the event that a remaining node publishes if
    /// the other node dies.
    pub(super) fn note_record(&mut self, position: Position, record: &Record, settled: &mut Settled) {
        let Some(foreign) = self.recordings.get_mut(&record.topic) else { return };
        let mut ends = Ends::default();
        let will = &foreign.announced.will;
        foreign.check.held().unwrap_or(&mut ends).note(position, record.kind, &record.event, will);
        foreign.will_at = foreign.will_at.or(ends.will_at);
        if ends.is_finished {
            settled.note(foreign.announced.id);
            self.recordings.remove(&record.topic);
        }
    }

    /// Prepares the recordings of the other node for another log that has replaced the log. The
    /// other log retains the records after `after` and up to `last`. `newest` is the newest beat
    /// (sign of life) of any node that the local node has read in the replaced log.
    pub(super) fn reset(&mut self, after: Position, last: Position, newest: Option<ReadBeat>) {
        if self.recordings.is_empty() {
            // A node without recordings may have some in the other log, with earlier numbers.
            (self.number, self.incoming) = (0, None);
        }
        for foreign in self.recordings.values_mut() {
            let will_at = foreign.will_at.take();
            if !foreign.check.is_open() {
                foreign.earlier_will_at = will_at;
            }
            foreign.is_claimed = false;
            foreign.check.reset(after, last, newest);
        }
    }

    /// Notes a beat (sign of life) of any node in another log that has replaced the log. If the
    /// replaced log had the same beat at the same position, the other log is a copy up to this
    /// beat.
    pub(super) fn find(&mut self, beat: ReadBeat) {
        for foreign in self.recordings.values_mut() {
            if foreign.check.find(beat) {
                foreign.will_at = foreign.earlier_will_at.filter(|at| *at < beat.at);
            }
        }
    }

    /// Applies the records of another log that may end recordings of the other node. The local node
    /// has held their effects back, because the log may be a copy with old records. It applies them
    /// when it has read enough of the log to know that they are not copied. `through` is the last
    /// position that it has read.
    pub(super) fn end_checks(&mut self, through: Position, settled: &mut Settled) {
        self.recordings.retain(|_, foreign| {
            let ends = foreign.check.end(through).unwrap_or_default();
            foreign.will_at = foreign.will_at.or(ends.will_at);
            if ends.is_finished {
                settled.note(foreign.announced.id);
            }
            !ends.is_finished
        });
    }

    /// Returns `true` while the local node does not know yet whether records of another log, which
    /// has replaced the log, are older than a recording of the other node.
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
/// given the recording up. The local node is about to publish the will, the last event of the
/// recording, and to finish its topic. The note stores whether the topic was finished in the
/// meantime.
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
