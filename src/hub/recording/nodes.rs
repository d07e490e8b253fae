//! The recordings of this node, and those of the other nodes as this node has read them in the log.
//! A recording is a task that publishes a stream into a topic.

use super::{
    beat::{Announced, Beat, Beats, Message},
    keeper::MIN_TIME,
    outage::{Appends, Outage},
    outcome::Outcome,
};
use crate::{
    callback::contain_panic,
    hub::{
        backend::{Page, Position, Record, RecordKind},
        presence,
    },
    random,
};
use bytes::Bytes;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// The recordings of this node, and those of the other nodes as this node has read them in the log.
pub(in crate::hub) struct Recordings {
    /// The random number that identifies this node.
    pub(in crate::hub) node: u64,
    state: Mutex<State>,
    /// Wakes the keeper, the task that sends the signs of life of this node. This happens when a
    /// recording of this node begins or ends, and when the hub is shut down. It also happens when
    /// this node has appended the joins or leaves of members (names that are present in a topic) to
    /// the log.
    pub(in crate::hub) changed: Notify,
    /// Wakes the tasks that wait until this node has read more of the log.
    progressed: Notify,
    /// The number of the next beat, the sign of life that this node appends to the log. Other nodes
    /// ignore a beat with a smaller number than the newest that they have read.
    pub(super) next_beat: AtomicU64,
    pub(super) running: watch::Sender<usize>,
    /// Logs outages: one line when the backend begins to refuse the records of this node's
    /// recordings, and one line when it accepts them again.
    pub(super) outage: Arc<Outage>,
}

#[derive(Default)]
pub(super) struct State {
    /// The end of the part of the log that was applied to this `State`, as a position. The state
    /// contains what this node knows about the recordings of all nodes. If records of this part are
    /// read a second time, they have no effect.
    noted_through: Position,
    local: HashMap<Arc<str>, Vec<Arc<Local>>>,
    pub(super) peers: HashMap<u64, Peer>,
    claims: Vec<Arc<Claim>>,
    settled: Settled,
    /// Set while the keeper runs.
    is_kept: bool,
    pub(super) contact: Contact,
}

/// The times when this node was in contact with the backend. `last` is the latest time when this
/// node is known to have read the whole log. `last` is `None` before the first request to the
/// backend, and after a failed request.
#[derive(Clone, Copy, Default)]
pub(super) struct Contact {
    pub(super) last: Option<Instant>,
    /// The time when the last outage of the backend ended for this node. During the outage, this
    /// node could not read the signs of life of other nodes, so it measures their silence from this
    /// time.
    pub(super) since: Option<Instant>,
}

/// Another node of the hub, as its beats describe it. A beat is a sign of life that lists the
/// recordings of its node.
pub(super) struct Peer {
    lease: Duration,
    /// The time when this node read the newest sign of life of the other node.
    seen_at: Instant,
    pub(super) recordings: HashMap<Arc<str>, Foreign>,
    watching: HashSet<Arc<str>>,
    /// The parts that this node has read so far of a beat whose last part is still missing. `None`
    /// if no beat is incomplete.
    incoming: Option<Beat>,
    /// The number of the newest beat (sign of life) that this node has read from the other node. A
    /// node numbers its beats in ascending order. So a beat with a smaller number has arrived late,
    /// and is ignored.
    number: u64,
}

/// The recordings of other nodes that need no takeover any more, for example because their topics
/// were finished. If a node that was paused announces such a recording again, the announcement is
/// ignored.
#[derive(Default)]
struct Settled {
    ids: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Settled {
    /// The maximum number of ended recordings of other nodes that this node remembers, to ignore
    /// late announcements of them. Beyond this number, this node forgets the oldest of them.
    const MAX: usize = 10_000;

    fn note(&mut self, id: u64) {
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

/// A recording of this node: a task that publishes a stream into a topic.
pub(in crate::hub) struct Local {
    pub(super) announced: Announced,
    pub(super) lease: Duration,
    /// The requested outcome of this recording, such as [`Outcome::Stopped`] if the application has
    /// stopped the recording. `None` if nothing has requested the end of the recording.
    pub(super) stop: watch::Sender<Option<Outcome>>,
    /// The state of this recording's announcement to the other nodes: whether an attempt has
    /// succeeded, and how many have failed.
    pub(super) announcement: watch::Sender<Announcement>,
    /// The tracker of the appends to the backend's log by this recording. It notes which appends
    /// fail and succeed, so that the beginning and the end of each outage of the backend are logged
    /// once.
    pub(super) appends: Appends,
    state: Mutex<LocalState>,
}

/// The state of the announcement of a recording of this node. The announcement is a record in the
/// log that informs the other nodes of the recording and of its will. If this node dies, another
/// node publishes the will as the last event of the topic.
#[derive(Clone, Default)]
pub(super) struct Announcement {
    /// Set once this node has announced this recording to the other nodes. If this node dies after
    /// that, another node publishes the will of the recording and finishes its topic.
    pub(super) is_done: bool,
    /// The number of failed attempts to announce this recording to the other nodes.
    pub(super) failures: u64,
    /// The error of the last failed attempt.
    pub(super) error: Arc<str>,
}

#[derive(Default)]
struct LocalState {
    /// Set while this recording repeats an append for one of three reasons: the backend does not
    /// respond, it refuses a single record, or the log has records of the topic that this node has
    /// not read yet. A request to end the recording, such as a stop by the application, then need
    /// not wait for the append, which the backend may never accept.
    is_retrying: bool,
    /// The end of the log, as far as this node knew it, when this recording was started. A request
    /// to stop the recordings of the topic is a record in the log. If the position of the request
    /// is not after `started_at`, the request was meant for an earlier recording, and is ignored.
    started_at: Position,
    /// The position of the last record that this recording is known to have appended to the log. A
    /// later record of its topic is either from an append in progress, or from another publisher or
    /// node. So only later records are examined: they may finish the topic, or may be the will,
    /// which another node publishes if it considers this node dead.
    appended: Position,
    /// A log that has replaced another one can contain copies of earlier records of this recording,
    /// up to this position. An equal record up to this position is not from the current append.
    earlier_through: Position,
    /// Set if this recording must publish nothing more. The reason is that its topic is finished,
    /// that its topic has a name that recordings cannot use, or that the hub is shut down.
    has_ended: bool,
    /// Set if the hub is shut down.
    is_shut_down: bool,
    /// Set if this recording must publish no further event, and only finishes its topic. The reason
    /// is that another node has considered this node dead and has published the will of the
    /// recording. The flag is also set if this may have happened in a part of the log that was lost
    /// or evicted before this node has read it.
    is_silenced: bool,
    /// The records of the topic that this node has read from the log since this recording began its
    /// current append. If the append gets no response, these records show whether it has succeeded.
    /// `None` if no append is in progress.
    seen: Option<Vec<(Position, RecordKind, Bytes)>>,
}

impl Default for Recordings {
    fn default() -> Self {
        Self {
            node: random::bits(),
            state: Mutex::default(),
            changed: Notify::new(),
            progressed: Notify::new(),
            next_beat: AtomicU64::new(1),
            running: watch::Sender::new(0),
            outage: Arc::default(),
        }
    }
}

impl Recordings {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a recording of this node. `last` is the greatest position of the backend's log that
    /// this node knows, and `None` for a hub in memory. If a request to stop the recordings of the
    /// topic is at or before this position in the log, it was meant for an earlier recording and
    /// does not stop this one.
    pub(super) fn add(&self, local: &Arc<Local>, last: impl FnOnce() -> Option<Position>) {
        let mut state = self.state();
        state.local.entry(local.announced.topic.clone()).or_default().push(local.clone());
        // The position is read under the lock, so that it is of the log of the next `reset`.
        if let Some(last) = last() {
            local.lock().started_at = last.max(state.noted_through);
        }
        drop(state);
        self.running.send_modify(|running| *running += 1);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, local: &Arc<Local>) {
        let mut state = self.state();
        let topic = &local.announced.topic;
        if let Some(locals) = state.local.get_mut(topic) {
            locals.retain(|other| !Arc::ptr_eq(other, local));
            if locals.is_empty() {
                state.local.remove(topic);
            }
        }
        drop(state);
        self.running.send_modify(|running| *running -= 1);
        self.changed.notify_one();
    }

    /// Stops the recordings of a topic on this node. These recordings publish the event of
    /// [`Recorder::on_stop`](super::Recorder::on_stop) and finish the topic.
    pub(super) fn stop(&self, topic: &str) {
        self.state().local.get(topic).into_iter().flatten().for_each(|local| local.stop(Outcome::Stopped));
    }

    /// Requests all recordings of this node to end with the outcome [`Outcome::Interrupted`]. Each
    /// recording publishes its will, the last event that another node would publish if this node
    /// died, and finishes its topic.
    pub(super) fn interrupt(&self) {
        self.state().local.values().flatten().for_each(|local| local.stop(Outcome::Interrupted));
    }

    /// Marks the recordings of this topic on this node as ended, because the topic is finished.
    /// They publish nothing more. Returns these recordings. The caller calls [`end`](Local::end) on
    /// each recording after it has released its locks.
    pub(in crate::hub) fn note_finished(&self, topic: &str) -> Vec<Arc<Local>> {
        let locals = self.state().local.get(topic).cloned().unwrap_or_default();
        locals.iter().for_each(|local| local.lock().has_ended = true);
        locals
    }

    /// Ends all recordings of this node immediately. They publish nothing more, and do not finish
    /// their topics.
    pub(in crate::hub) fn shut_down(&self) {
        self.state().local.values().flatten().for_each(|local| local.shut_down());
        self.progressed.notify_waiters();
        self.changed.notify_one();
    }

    /// Notes that a recording of another node, `node`, needs no takeover by this node any more. Its
    /// topic is finished, a newer recording will finish the topic, or the backend refuses the
    /// records that the takeover appends. If a later sign of life of the other node still lists
    /// this recording, this node ignores the entry.
    pub(super) fn settle(&self, node: u64, announced: &Announced) {
        let mut state = self.state();
        state.settled.note(announced.id);
        if let Some(peer) = state.peers.get_mut(&node) {
            peer.recordings.retain(|_, foreign| foreign.announced.id != announced.id);
        }
    }

    /// Registers that the local node is about to take over a recording of the node `node`, which is
    /// dead or has given the recording up. The local node then publishes the will of the recording
    /// and finishes its topic. The returned [`Claim`] later shows whether the topic was finished
    /// after this registration.
    pub(super) fn claim(&self, node: u64, announced: &Announced) -> Arc<Claim> {
        let topic = announced.topic.clone();
        let mut state = self.state();
        let foreign = state.peers.get(&node).and_then(|peer| peer.recordings.get(&topic));
        let is_uncertain = AtomicBool::new(foreign.is_some_and(|foreign| foreign.is_uncertain));
        let claim = Arc::new(Claim { topic, is_finished: AtomicBool::new(false), is_uncertain });
        state.claims.push(claim.clone());
        claim
    }

    pub(super) fn end_claim(&self, claim: &Arc<Claim>) {
        self.state().claims.retain(|other| !Arc::ptr_eq(other, claim));
    }

    /// Updates what is known about recordings from a page, the next part of the backend's log. The
    /// caller adds the events of the page to their topics after this call. Returns the beats of the
    /// page, which are the signs of life of the nodes, in the order of the log.
    pub(in crate::hub) fn note(&self, page: &Page) -> Beats {
        let mut beats = Beats::new();
        let mut state = self.state();
        let noted_through = state.noted_through;
        if page.evicted_through > noted_through {
            state.note_loss(page.evicted_through);
        }
        for (position, record) in page.records.iter().filter(|(position, _)| *position > noted_through) {
            let is_presence = presence::is_of(record);
            if Message::is_of(record) && !is_presence {
                beats.extend(state.note_message(self.node, *position, record));
            } else if !is_presence && (!state.local.is_empty() || !state.peers.is_empty()) {
                state.note_record(*position, record);
            }
        }
        state.noted_through = state.noted_through.max(page.through);
        beats
    }

    /// Notes that the backend does not accept records of this node. The other nodes may have the
    /// same outage and be unable to send signs of life. So they count as dead only after a lease of
    /// silence that begins when this node has read the whole log again.
    pub(in crate::hub) fn lose_contact(&self) {
        self.state().contact.last = None;
    }

    /// Returns `true` if the caller must start the keeper, the task that sends the signs of life of
    /// this node. This is the case if the keeper does not run, and a known node has a recording or
    /// a member (a name that is present in a topic). The keeper then counts as running. If its
    /// start fails, the caller calls [`release_keeper`](Self::release_keeper).
    pub(super) fn needs_keeper(&self, has_members: bool) -> bool {
        let mut state = self.state();
        let has_recordings = !state.local.is_empty() || state.peers.values().any(|peer| !peer.recordings.is_empty());
        (has_recordings || has_members) && !std::mem::replace(&mut state.is_kept, true)
    }

    /// Notes that the keeper does not run. It can then be started again.
    pub(super) fn release_keeper(&self) {
        self.state().is_kept = false;
    }

    /// Returns `true` if `record` is a message between nodes about their recordings or about
    /// members (the names that are present in topics). The caller then does not add the record to a
    /// topic.
    pub(in crate::hub) fn is_own(record: &Record) -> bool {
        Message::is_of(record)
    }

    /// Wakes the tasks that wait in [`progressed`](Self::progressed), because this node has read a
    /// further part of the log or appended a sign of life.
    pub(in crate::hub) fn note_progress(&self) {
        // The application may have polled one of these tasks, so a waker may panic.
        contain_panic("waker", || self.progressed.notify_waiters());
    }

    /// Prepares the recordings for another log that has replaced the log of the backend. The
    /// recordings continue in the other log. This node reads the other log after the position
    /// `after`, and learns the state of the recordings from it. `last` is the last position of the
    /// other log.
    pub(in crate::hub) fn reset(&self, after: Position, last: Position) {
        let mut state = self.state();
        state.noted_through = after;
        state.local.values().flatten().for_each(|local| local.reset(last));
        // A completed takeover is repeated if the other log does not have its records.
        state.settled = Settled::default();
        state.contact.last = None;
        // A node without recordings may have some in the other log, with earlier numbers.
        for peer in state.peers.values_mut().filter(|peer| peer.recordings.is_empty()) {
            (peer.number, peer.incoming) = (0, None);
        }
        for foreign in state.peers.values_mut().flat_map(|peer| peer.recordings.values_mut()) {
            (foreign.has_will, foreign.is_claimed) = (false, false);
        }
    }

    /// Announces the recordings of this node again, because another log has replaced the log, and
    /// wakes the tasks that wait in [`progressed`](Self::progressed). The caller has called
    /// [`reset`](Self::reset), and holds no lock.
    pub(in crate::hub) fn announce_again(&self) {
        let locals: Vec<_> = self.state().locals().cloned().collect();
        locals.iter().for_each(|local| local.note_unannounced());
        self.changed.notify_one();
        self.note_progress();
    }

    /// Waits until `is_done` returns `true`. Calls `is_done` immediately, and again whenever this
    /// node has read a further part of the log or appended a sign of life to it. Also calls
    /// `is_done` when another log has replaced the log, and when the hub is shut down.
    pub(in crate::hub) async fn progressed(&self, is_done: impl Fn() -> bool) {
        loop {
            let mut progressed = pin!(self.progressed.notified());
            progressed.as_mut().enable();
            if is_done() {
                return;
            }
            progressed.await;
        }
    }

    /// Returns `true` if this node knows a newer recording in the topic of `announced`, which is a
    /// recording on this or another node. The end of the newer recording then finishes the topic.
    ///
    /// Called if `announced` may have ended in a part of the log that this node could not read.
    /// Another recording of the topic counts as newer if it is on this node and not over. It also
    /// counts as newer if another node has listed it in a sign of life after the unread part of the
    /// log.
    pub(super) fn has_successor(&self, announced: &Announced) -> bool {
        let state = self.state();
        let mut here = state.local.get(&announced.topic).into_iter().flatten();
        let mut elsewhere = state.peers.values().filter_map(|peer| peer.recordings.get(&announced.topic));
        here.any(|local| local.announced.id != announced.id && !local.is_over())
            || elsewhere.any(|foreign| foreign.announced.id != announced.id && !foreign.is_uncertain)
    }

    /// Returns `true` if the topic has subscribers on another node. Also returns `true` if this is
    /// unknown, because this node has not been in contact with the backend for the time `lease`, or
    /// for half a second if that is longer.
    pub(super) fn is_watched_elsewhere(&self, topic: &str, lease: Duration) -> bool {
        let state = self.state();
        let now = Instant::now();
        let is_in_contact = state.contact.last.is_some_and(|last| now.duration_since(last) < lease.max(MIN_TIME));
        let mut alive = state.peers.values().filter(|peer| !peer.is_dead(now, state.contact.since));
        !is_in_contact || alive.any(|peer| peer.watching.contains(topic))
    }
}

impl State {
    pub(super) fn is_idle(&self) -> bool {
        self.local.is_empty() && self.peers.is_empty()
    }

    /// Returns `true` if the keeper, the task that sends the signs of life of this node, must end:
    /// if no recording, no other node and no member (a name that is present in a topic) is left.
    /// The keeper then counts as ended, so that it can be started again.
    pub(super) fn release_keeper(&mut self, has_members: bool) -> bool {
        let is_idle = self.is_idle() && !has_members;
        self.is_kept &= !is_idle;
        is_idle
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = &Arc<Local>> {
        self.local.values().flatten()
    }

    /// Handles a loss: the log has evicted or lost records up to `evicted_through` that this node
    /// has not read. These records may include the end of a known recording, or its will (the event
    /// that another node publishes if the recording's node dies). So this node ends its own
    /// recordings without a further event, and takes over recordings of dead nodes without
    /// publishing their wills. The topics are finished, because readers would otherwise wait for
    /// ever. If a topic is finished twice, its readers do not notice this.
    ///
    /// A recording of this node ends even if this node was in contact with the backend until now.
    /// In a failover that splits the servers, the old server may still confirm the signs of life of
    /// this node, while another node already takes over its recording on the new server. The will
    /// is then at a position that this node has already read on the old server. So this node does
    /// not read the will any more.
    ///
    /// A recording of this node that has started after the lost part continues. Other nodes take it
    /// over only after they have read its announcement, which is also after the lost part.
    fn note_loss(&mut self, evicted_through: Position) {
        let concerned = self.locals().filter(|local| local.lock().started_at < evicted_through);
        concerned.for_each(|local| local.silence());
        // The lost records may include signs of life, so each node gets a whole lease to send
        // another one. Before the next contact, this node may not know the newer recordings.
        self.contact.last = None;
        self.claims.iter().for_each(|claim| claim.is_uncertain.store(true, Relaxed));
        for peer in self.peers.values_mut() {
            // Recordings in a lost part would count as orphans.
            peer.incoming = None;
            for foreign in peer.recordings.values_mut() {
                // The records of a completed takeover may be lost, so it is repeated.
                (foreign.is_uncertain, foreign.is_claimed) = (true, false);
            }
        }
    }

    /// Returns the topics with a recording on another node that ends after some time without
    /// subscribers. This node reports to the other nodes which of these topics have subscribers
    /// here.
    pub(super) fn topics_to_watch(&self) -> HashSet<Arc<str>> {
        let foreign = self.peers.values().flat_map(|peer| peer.recordings.values());
        foreign.map(|it| &it.announced).filter(|it| it.needs_subscribers).map(|it| it.topic.clone()).collect()
    }

    /// Applies a message of a node about recordings: a request to stop recordings, or a beat. A
    /// beat is a sign of life that lists the recordings of its node. For a beat, returns its
    /// position, its node and its sequence number.
    fn note_message(&mut self, own_node: u64, position: Position, record: &Record) -> Option<(Position, u64, u64)> {
        match Message::parse(record)? {
            Message::Stop(topic) => {
                // A request from before the recording stops an earlier recording of the topic.
                let of_topic = self.local.get(&topic).into_iter().flatten();
                let earlier = of_topic.filter(|local| local.lock().started_at < position);
                earlier.for_each(|local| local.stop(Outcome::Stopped));
                None
            }
            Message::Beat(beat) => {
                let noted = (position, beat.node, beat.number);
                if beat.node != own_node {
                    let peer = self.peers.entry(beat.node).or_insert_with(|| Peer::new(beat.lease));
                    peer.note(beat, &self.settled.ids);
                }
                Some(noted)
            }
        }
    }

    fn note_record(&mut self, position: Position, record: &Record) {
        for local in self.local.get(&record.topic).into_iter().flatten() {
            local.note(position, record);
        }
        if record.kind == RecordKind::Finish {
            let of_topic = self.claims.iter().filter(|claim| claim.topic == record.topic);
            of_topic.for_each(|claim| claim.is_finished.store(true, Relaxed));
        }
        for peer in self.peers.values_mut() {
            if record.kind == RecordKind::Finish {
                let finished = peer.recordings.remove(&record.topic);
                finished.inspect(|foreign| self.settled.note(foreign.announced.id));
            } else if let Some(foreign) = peer.recordings.get_mut(&record.topic) {
                foreign.has_will |= record.event == foreign.announced.will;
            }
        }
    }
}

impl Peer {
    fn new(lease: Duration) -> Self {
        let (recordings, watching) = (HashMap::new(), HashSet::new());
        Self { lease, seen_at: Instant::now(), recordings, watching, incoming: None, number: 0 }
    }

    fn note(&mut self, part: Beat, settled: &HashSet<u64>) {
        if part.number < self.number {
            return;
        }
        self.number = part.number;
        self.lease = part.lease;
        self.seen_at = Instant::now();
        if part.is_addition {
            self.add(part, settled);
            return;
        }
        let is_last = part.is_last;
        if part.is_first {
            self.incoming = Some(part);
        } else if let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.number == part.number) {
            incoming.recordings.extend(part.recordings);
            incoming.watching.extend(part.watching);
        }
        if let Some(beat) = self.incoming.take_if(|_| is_last) {
            self.apply(beat, settled);
        }
    }

    /// Replaces the known recordings of the other node by the recordings in `beat`, a sign of life
    /// that lists all of them. If a known recording is not in the list, its node has given the
    /// recording up without finishing its topic. Such a recording is marked as an orphan, and the
    /// local node takes it over.
    fn apply(&mut self, beat: Beat, settled: &HashSet<u64>) {
        self.watching.clear();
        let mut known = std::mem::take(&mut self.recordings);
        for announced in beat.recordings.iter().filter(|announced| !settled.contains(&announced.id)) {
            if let Some(same) = known.remove(&announced.topic).filter(|known| known.announced.id == announced.id) {
                self.recordings.insert(announced.topic.clone(), same);
            }
        }
        self.add(beat, settled);
        // A node finishes the topic of a recording before it stops announcing it, unless its hub
        // was shut down.
        for (topic, orphan) in known {
            self.recordings.entry(topic).or_insert(Foreign { is_orphan: true, ..orphan });
        }
    }

    /// Adds the content of a beat, a sign of life of the other node, to what is known about that
    /// node: its recordings, and the topics with subscribers there.
    fn add(&mut self, beat: Beat, settled: &HashSet<u64>) {
        self.watching.extend(beat.watching);
        for announced in beat.recordings.into_iter().filter(|announced| !settled.contains(&announced.id)) {
            let topic = announced.topic.clone();
            let same = self.recordings.remove(&topic).filter(|known| known.announced.id == announced.id);
            let is_claimed = same.as_ref().is_some_and(|same| same.is_claimed);
            let has_will = same.is_some_and(|same| same.has_will);
            let foreign = Foreign { announced, has_will, is_claimed, is_orphan: false, is_uncertain: false };
            self.recordings.insert(topic, foreign);
        }
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

impl Claim {
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished.load(Relaxed)
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.is_uncertain.load(Relaxed)
    }
}

impl Local {
    pub(super) fn new(announced: Announced, lease: Duration, outage: &Arc<Outage>) -> Self {
        Self {
            announced,
            lease,
            stop: watch::Sender::new(None),
            announcement: watch::Sender::default(),
            appends: Appends::new(outage),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LocalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests this recording to end with this outcome. Has no effect if an end was requested
    /// earlier.
    pub(super) fn stop(&self, outcome: Outcome) {
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            *stop = stop.or(Some(outcome));
            is_first
        });
    }

    /// Ends this recording immediately. The recording publishes no last event, and does not finish
    /// its topic.
    pub(in crate::hub) fn end(&self) {
        self.lock().has_ended = true;
        self.stop(Outcome::Interrupted);
    }

    /// Ends this recording in the same way as [`end`](Self::end): immediately and without a last
    /// event. Also remembers that the reason is the shutdown of the hub.
    pub(super) fn shut_down(&self) {
        self.lock().is_shut_down = true;
        self.end();
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.lock().is_shut_down
    }

    /// Makes this recording finish its topic and end, without publishing a further event.
    fn silence(&self) {
        self.lock().is_silenced = true;
        self.stop(Outcome::Interrupted);
    }

    pub(super) fn is_announced(&self) -> bool {
        self.announcement.borrow().is_done
    }

    fn note_unannounced(&self) {
        self.announcement.send_if_modified(|announcement| mem::take(&mut announcement.is_done));
    }

    pub(super) fn note_announced(&self) {
        self.announcement.send_if_modified(|announcement| !mem::replace(&mut announcement.is_done, true));
    }

    /// Notes a failed attempt to announce this recording to the other nodes. Has no effect if an
    /// earlier attempt has succeeded.
    pub(super) fn note_not_announced(&self, error: &Arc<str>) {
        self.announcement.send_if_modified(|announcement| {
            if !announcement.is_done {
                announcement.failures += 1;
                announcement.error = error.clone();
            }
            !announcement.is_done
        });
    }

    pub(super) fn is_retrying(&self) -> bool {
        self.lock().is_retrying
    }

    pub(super) fn note_retry(&self) {
        self.lock().is_retrying = true;
    }

    /// Notes that the log now contains further records of the current append by this recording. The
    /// recording then no longer counts as retrying. So a request to end it waits for the append.
    /// Only during a retry, such a request does not wait.
    pub(super) fn note_progress(&self) {
        self.lock().is_retrying = false;
    }

    fn note(&self, position: Position, record: &Record) {
        let mut state = self.lock();
        if position <= state.appended {
            return;
        }
        if let Some(seen) = &mut state.seen {
            seen.push((position, record.kind, record.event.clone()));
        } else {
            state.note_foreign(record.kind, &record.event, &self.announced.will);
            let is_over = state.has_ended || state.is_silenced;
            drop(state);
            if is_over {
                self.stop(Outcome::Interrupted);
            }
        }
    }

    /// Notes that another log with the last position `last` has replaced the log. The other log may
    /// be a copy. The records of a copy keep their positions.
    fn reset(&self, last: Position) {
        let mut state = self.lock();
        state.earlier_through = state.earlier_through.max(state.appended).max(state.started_at).min(last);
        state.appended = Position::START;
        state.started_at = Position::START;
        state.seen = state.seen.take().map(|_| Vec::new());
    }

    /// Prepares an append to the log by this recording. From now on, the records of its topic that
    /// this node reads are kept, to detect whether the append has succeeded.
    pub(super) fn begin_append(&self) {
        let mut state = self.lock();
        state.is_retrying = false;
        // The previous append may have been given up, so its records were not examined yet.
        for (_, kind, event) in state.seen.take().into_iter().flatten() {
            state.note_foreign(kind, &event, &self.announced.will);
        }
        state.seen = Some(Vec::new());
    }

    /// Returns `true` if the log already contains `records`, from an earlier attempt of this
    /// recording that got no response. Returns `false` if the caller has to append them.
    /// `is_unsure` is `true` if at least one earlier attempt got no response. `may_continue` is
    /// `true` if one of these attempts also contained further records. Records that follow
    /// `records` in the log may then be from that attempt. Without such an attempt, they are from
    /// another publisher: if they finish the topic, for example, this recording ends.
    ///
    /// Returns `None` if the caller must not append `records`: the topic is finished, the hub is
    /// shut down, or another node has published the recording's will, the event for the death of
    /// this node. A will that may be in a part of the log that this node could not read counts as
    /// published, too. After a will, the result is still `false` for the record that finishes the
    /// topic, unless the log already contains that record.
    pub(super) fn has_appended(&self, records: &[Record], is_unsure: bool, may_continue: bool) -> Option<bool> {
        let mut state = self.lock();
        // The records of an append may be in two pages, so those of all attempts are kept.
        let seen = state.seen.take().unwrap_or_default();
        let is_same = |(seen, record): (&(Position, RecordKind, Bytes), &Record)| {
            (seen.1, &seen.2) == (record.kind, &record.event)
        };
        let is_own = |window: &[(Position, RecordKind, Bytes)]| {
            window[0].0 > state.earlier_through && window.iter().zip(records).all(is_same)
        };
        let own = seen.windows(records.len()).position(|window| is_unsure && is_own(window));
        for (_, kind, event) in &seen[..own.unwrap_or(seen.len())] {
            state.note_foreign(*kind, event, &self.announced.will);
        }
        let is_finish = records.iter().all(|record| record.kind == RecordKind::Finish);
        let last = own.map(|own| seen[own + records.len() - 1].0);
        // Only the records after an append without a response can be its own.
        state.seen = Some(if is_unsure { seen } else { Vec::new() });
        if let Some(last) = last {
            if may_continue {
                // The records after `last` may be from the same attempt.
                state.appended = state.appended.max(last);
                state.seen.iter_mut().for_each(|seen| seen.retain(|(at, ..)| *at > last));
            } else {
                state.complete_append(last, &self.announced.will);
            }
            // Another node may have finished the topic, with the will.
            return (!is_finish || !state.is_silenced).then_some(true);
        }
        (!state.has_ended && (is_finish || !state.is_silenced)).then_some(false)
    }

    /// Notes that an append to the log by this recording has succeeded. `position` is the position
    /// of the last appended record.
    pub(super) fn note_appended(&self, position: Position) {
        self.lock().complete_append(position, &self.announced.will);
    }

    /// Returns `true` if this recording may publish no further event, and only finishes its topic.
    /// The reason is that another node has published the will of the recording, the event for the
    /// death of this node. The result is also `true` if this may have happened in a part of the log
    /// that this node could not read.
    pub(super) fn is_silenced(&self) -> bool {
        self.lock().is_silenced
    }

    /// Returns `true` if this recording must append nothing more to the log. The reason is that its
    /// topic is finished, that its topic has a name that recordings cannot use, or that the hub is
    /// shut down.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Returns `true` if this recording must publish no further event. The reason is that its topic
    /// is finished or has an invalid name, that the hub is shut down, or that another node has
    /// published the will of the recording. The result is also `true` if a will may be in a part of
    /// the log that this node could not read.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.has_ended || state.is_silenced
    }
}

impl LocalState {
    /// Handles a record of the topic that this recording has not appended itself. If the record
    /// finishes the topic, the recording must publish nothing more. If the event of the record is
    /// equal to `will`, the recording must publish no further event, and only finishes the topic.
    /// `will` is the event that another node publishes if it considers this node dead.
    fn note_foreign(&mut self, kind: RecordKind, event: &Bytes, will: &Bytes) {
        self.has_ended |= kind == RecordKind::Finish;
        // Without a will, `will` is empty. A record of another program can be empty, too.
        let is_will = matches!(kind, RecordKind::Event | RecordKind::State) && event == will;
        self.is_silenced |= is_will && !will.is_empty();
    }

    fn complete_append(&mut self, position: Position, will: &Bytes) {
        self.appended = self.appended.max(position);
        for (at, kind, event) in self.seen.take().into_iter().flatten() {
            if at > position {
                self.note_foreign(kind, &event, will);
            }
        }
    }
}
