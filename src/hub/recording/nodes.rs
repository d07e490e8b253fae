//! The recordings of this node, and those of the other nodes as this node has read them in the log.
//! A recording is a task that publishes a stream into a topic.

use super::{
    beat::{Announced, Beats, Message},
    copy::ReadBeat,
    keeper::MIN_TIME,
    local::Local,
    outage::Outage,
    outcome::Outcome,
    peer::{Claim, Context, Peer, Settled},
};
use crate::{
    callback::contain_panic,
    hub::{
        backend::{Page, Position, Record, RecordKind},
        presence,
    },
    random,
};
use std::{
    collections::{HashMap, HashSet},
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// The recordings of this node, and those of the other nodes as this node has read them in the log.
/// A recording is a task that publishes a stream into a topic.
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
    /// The last position of the log that this `State` takes into account. The state is what this
    /// node knows about the recordings of all nodes. A record up to this position that is read a
    /// second time has no effect.
    pub(super) noted_through: Position,
    local: HashMap<Arc<str>, Vec<Arc<Local>>>,
    pub(super) peers: HashMap<u64, Peer>,
    claims: Vec<Arc<Claim>>,
    settled: Settled,
    /// If another log has replaced the log, its records up to this position can be copies of
    /// records that this node has already read.
    copied_through: Position,
    /// Records up to this position are missing, some or all of them. The log had evicted or lost
    /// them before this node could read them.
    lost_through: Position,
    /// The newest sign of life of any node that this node has read in this log. If another log
    /// replaces this log, this sign of life helps to find out whether the other log is a copy.
    newest_beat: Option<ReadBeat>,
    /// Set while this node does not know one of two facts. The first is whether another log, which
    /// has replaced the log, is a copy of it. The second is whether the topic of a recording was
    /// already finished when the recording was started.
    is_checking: bool,
    /// Set while the keeper runs, the task that sends the signs of life of this node.
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

    /// Adds a recording of this node: a task that publishes a stream into a topic. `last` returns
    /// the greatest position of the backend's log that this node knows, and `None` for a hub in
    /// memory. If a request to stop the recordings of the topic is at or before this position in
    /// the log, it was meant for an earlier recording and does not stop this one.
    pub(super) fn add(&self, local: &Arc<Local>, last: impl FnOnce() -> Option<Position>) {
        let mut state = self.state();
        state.local.entry(local.announced.topic.clone()).or_default().push(local.clone());
        // The position is read under the lock, so that it is of the log of the next `reset`.
        if let Some(last) = last() {
            let started_at = last.max(state.noted_through);
            local.note_start(started_at);
            state.is_checking |= started_at > state.noted_through;
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

    /// Returns the last position of the log that this node has searched for the ends of the
    /// recordings `locals`.
    pub(super) fn examined_through(&self, locals: &[Arc<Local>]) -> Position {
        let state = self.state();
        let through = locals.iter().map(|local| local.examined_through(state.noted_through));
        through.min().unwrap_or(state.noted_through)
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
        locals.iter().for_each(|local| local.note_end());
        locals
    }

    /// Ends all recordings of this node immediately, because the hub is shut down. The recordings
    /// publish nothing more, and do not finish their topics.
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
        self.state().settle(node, announced);
    }

    /// Registers that the local node is about to take over a recording of the node `node`, which is
    /// dead or has given the recording up. The local node then publishes the will of the recording
    /// and finishes its topic. The returned [`Claim`] later shows whether the topic was finished
    /// after this registration.
    pub(super) fn claim(&self, node: u64, announced: &Announced) -> Arc<Claim> {
        let topic = announced.topic.clone();
        let mut state = self.state();
        let foreign = state.peers.get(&node).and_then(|peer| peer.recordings.get(&topic));
        let is_uncertain = foreign.is_some_and(|foreign| foreign.is_uncertain);
        let claim = Arc::new(Claim::new(topic, is_uncertain));
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
        state.end_checks();
        beats
    }

    /// Notes that the backend does not accept records of this node. The other nodes may have the
    /// same outage and be unable to send signs of life. So they count as dead only if they stay
    /// silent for a whole lease, after this node has read the whole log again. A lease is the
    /// silence after which a node counts as dead.
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
        (has_recordings || has_members) && !mem::replace(&mut state.is_kept, true)
    }

    /// Notes that the keeper, the task that sends the signs of life of this node, does not run. It
    /// can then be started again.
    pub(super) fn release_keeper(&self) {
        self.state().is_kept = false;
    }

    /// Returns `true` if `record` is a message between nodes about their recordings or about
    /// members (the names that are present in topics). The caller then does not add the record to a
    /// topic.
    pub(in crate::hub) fn is_own(record: &Record) -> bool {
        Message::is_of(record)
    }

    /// Wakes the tasks that [wait](Self::progressed) until this node has made progress: it has read
    /// a further part of the log or appended a sign of life.
    pub(in crate::hub) fn note_progress(&self) {
        // The application may have polled one of these tasks, so a waker may panic.
        contain_panic("waker", || self.progressed.notify_waiters());
    }

    /// Prepares the known recordings of all nodes for another log that has replaced the log of the
    /// backend. The recordings continue in the other log. This node reads the other log after the
    /// position `after`, and learns the state of the recordings from it. `last` is the last
    /// position of the other log.
    pub(in crate::hub) fn reset(&self, after: Position, last: Position) {
        let mut state = self.state();
        // This node may not have read all of the replaced log, which may be a copy itself.
        state.copied_through = state.copied_through.max(state.noted_through).min(last);
        (state.noted_through, state.lost_through) = (after, after);
        let newest = state.newest_beat.take();
        state.local.values().flatten().for_each(|local| local.reset(after, last, newest));
        state.peers.values_mut().for_each(|peer| peer.reset(after, last, newest));
        state.is_checking = true;
        // A completed takeover is repeated if the other log does not have its records.
        state.settled = Settled::default();
        state.contact.last = None;
    }

    /// Makes this node announce its recordings to the other nodes again, because another log has
    /// replaced the log. Also wakes the tasks that [wait](Self::progressed) until this node has
    /// read more of the log. The caller has called [`reset`](Self::reset), and holds no lock.
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

    /// Returns `true` if this node knows another recording in the topic of the recording
    /// `announced`. `announced` itself may have ended in a part of the log that this node could not
    /// read. The end of the other recording then finishes the topic.
    pub(super) fn has_successor(&self, announced: &Announced) -> bool {
        self.state().has_successor(announced, true)
    }

    /// Marks the recording `announced` of the node `node` as settled if this node knows another
    /// recording in the same topic, whose end then finishes the topic. This node does not take over
    /// a settled recording. Returns `true` in this case. Set `is_uncertain` if `announced` may have
    /// ended in a part of the log that this node could not read.
    pub(super) fn settle_if_replaced(&self, node: u64, announced: &Announced, is_uncertain: bool) -> bool {
        // Under one lock: of two recordings of dead nodes, one must remain.
        let mut state = self.state();
        let is_replaced = state.has_successor(announced, is_uncertain);
        if is_replaced {
            state.settle(node, announced);
        }
        is_replaced
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
        self.lost_through = self.lost_through.max(evicted_through);
        self.locals().for_each(|local| local.note_loss(evicted_through));
        // The lost records may include signs of life, so each node gets a whole lease to send
        // another one. Before the next contact, this node may not know the newer recordings.
        self.contact.last = None;
        self.claims.iter().for_each(|claim| claim.note_uncertain());
        for peer in self.peers.values_mut() {
            // Recordings in a lost part would count as orphans.
            peer.incoming = None;
            for foreign in peer.recordings.values_mut() {
                // The records of a completed takeover may be lost, so it is repeated.
                (foreign.is_uncertain, foreign.is_unlisted, foreign.is_claimed) = (true, true, false);
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

    fn settle(&mut self, node: u64, announced: &Announced) {
        self.settled.note(announced.id);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.recordings.retain(|_, foreign| foreign.announced.id != announced.id);
        }
    }

    /// Returns `true` if this node knows another recording in the topic of the recording
    /// `announced`, whose end then finishes the topic. A recording on this node counts if it is not
    /// over. A recording on another node counts if its node has listed it after the last lost part
    /// of the log, and if it has certainly not ended. Set `is_uncertain` if `announced` may have
    /// ended itself. A recording on another node then also counts if it may have ended.
    fn has_successor(&self, announced: &Announced, is_uncertain: bool) -> bool {
        let mut here = self.local.get(&announced.topic).into_iter().flatten();
        let mut elsewhere = self.peers.values().filter_map(|peer| peer.recordings.get(&announced.topic));
        here.any(|local| local.announced.id != announced.id && !local.is_over())
            || elsewhere.any(|foreign| {
                let is_listed = !foreign.is_unlisted && (is_uncertain || !foreign.is_uncertain);
                foreign.announced.id != announced.id && is_listed
            })
    }

    /// Applies a message of a node about recordings: a request to stop recordings, or a beat. A
    /// beat is a sign of life that lists the recordings of its node. For a beat, returns its
    /// position, its node and its sequence number.
    fn note_message(&mut self, own_node: u64, position: Position, record: &Record) -> Option<(Position, u64, u64)> {
        match Message::parse(record)? {
            Message::Stop(topic) => {
                self.local.get(&topic).into_iter().flatten().for_each(|local| local.note_stop(position));
                None
            }
            Message::Beat(beat) => {
                let noted = (position, beat.node, beat.number);
                let read = ReadBeat { at: position, node: beat.node, number: beat.number };
                let newest_beat = self.newest_beat.replace(read);
                if self.is_checking {
                    self.locals().for_each(|local| local.find(read));
                    self.peers.values_mut().for_each(|peer| peer.find(read));
                }
                if beat.node == own_node {
                    for Announced { topic, id, .. } in &beat.recordings {
                        let of_topic = self.local.get(topic).into_iter().flatten();
                        let listed = of_topic.filter(|local| local.announced.id == *id);
                        listed.for_each(|local| local.note_beat(read, newest_beat));
                    }
                } else {
                    let peer = self.peers.entry(beat.node).or_insert_with(|| Peer::new(beat.lease));
                    let (lost_through, settled) = (self.lost_through, &self.settled.ids);
                    let context = Context { beat: read, newest_beat, lost_through, settled };
                    peer.note(beat, position <= self.copied_through, &context);
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
            self.claims.iter().for_each(|claim| claim.note_finished(&record.topic));
        }
        self.peers.values_mut().for_each(|peer| peer.note_record(position, record, &mut self.settled));
    }

    /// Ends two checks of each recording, as far as this node has read enough of the log. The first
    /// is whether another log, which has replaced the log, is a copy. The second is whether the
    /// topic was already finished when its recording was started.
    fn end_checks(&mut self) {
        if !self.is_checking {
            return;
        }
        let through = self.noted_through;
        let open = self.locals().filter(|local| !local.end_checks(through)).count();
        self.peers.values_mut().for_each(|peer| peer.end_checks(through, &mut self.settled));
        self.is_checking = open > 0 || self.peers.values().any(Peer::is_checking);
    }
}
