//! The keeper: the task of a node that announces its recordings (tasks that publish streams into
//! topics), sends signs of life, and notices the death of other nodes.

use super::{
    append::{Fence, REFUSED, caught_up, caught_up_unless_dropped, has_read_to_end, refused_time, retry_pause},
    beat::{self, Announced, Beat, Message},
    local::Local,
    nodes::{Contact, Recordings, State},
    outage::Appends,
    peer::{Foreign, Peer},
};
use crate::{
    BoxError,
    hub::{
        backend::{Record, RecordKind},
        core::Core,
        node::BackendClient,
        presence,
    },
    random, trace,
};
use bytes::Bytes;
use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The maximum pause between two runs of the keeper, the task that sends the signs of life of this
/// node. In each run, the keeper looks for subscribers on this node to topics into which other
/// nodes publish recordings. So the other nodes learn of these subscribers within about a second.
/// Without subscribers, they may end the recordings.
const TICK: Duration = Duration::from_secs(1);

/// The pause of the keeper after a failed request to the backend, before it tries again. The keeper
/// is the task that sends the signs of life of this node.
const RETRY: Duration = Duration::from_millis(200);

/// The number of beats (signs of life) that a node sends within one lease. A lease is the silence
/// after which a node counts as dead.
const BEATS: u32 = 3;

/// The lower limit of the timeout for requests of the keeper to the backend. The keeper is the task
/// that sends the signs of life of this node. Usually the timeout is a third of the lease, the
/// silence after which this node counts as dead. With a short lease, a slow backend could not
/// respond in a third of it.
pub(super) const MIN_TIME: Duration = Duration::from_millis(500);

/// The minimum time between two successful requests to the backend that counts as an outage.
/// Usually the time is two thirds of the shortest lease of all nodes. A lease is the silence after
/// which a node counts as dead. With a short lease, a slow response would count as an outage
/// without this minimum.
const MIN_GAP: Duration = Duration::from_millis(600);

/// Starts the keeper: the task that announces the recordings of this node to other nodes, and takes
/// over the recordings of dead nodes. A recording is a task that publishes a stream into a topic.
/// The keeper also notices the death of nodes with members (names that are present in topics).
///
/// Has no effect if the hub has no backend, if no known node has a recording or a member, or if the
/// keeper is already running. The keeper ends when no recording, no member and no other node is
/// left, or when the hub is dropped. After a shutdown of the hub, it ends when the recordings of
/// this node have ended.
pub(in crate::hub) fn start(core: &Arc<Core>) {
    let Some(backend) = &core.backend else { return };
    let has_members = core.presence.is_active();
    if core.recordings.needs_keeper(has_members) && !backend.spawn(keep(Arc::downgrade(core))) {
        core.recordings.release_keeper();
    }
}

async fn keep(core: Weak<Core>) {
    let mut keeper = Keeper::default();
    while let Some((next, recordings)) = keeper.run_once(&core).await {
        // Waits until something has changed, or until the time of the next run.
        let _elapsed = timeout_at(next, recordings.changed.notified()).await;
    }
}

#[derive(Default)]
struct Keeper {
    /// The time of the last full beat, the sign of life of this node that lists all of its
    /// recordings. Other beats only list what is new. `None` before the first beat and after a
    /// failed append: the next full beat is then due immediately.
    beat_at: Option<Instant>,
    /// The lease in the last beat (sign of life): the silence after which the other nodes consider
    /// this node dead. If the lease becomes longer, the shorter one applies until the next beat.
    /// `None` before the first beat.
    lease: Option<Duration>,
    /// The topics with subscribers on this node that the last beat (sign of life) has reported. If
    /// the topics to report change, the next beat is due immediately.
    watching: HashSet<Arc<str>>,
    /// Set if this node had a recording, a subscriber to report or a member (a name that is present
    /// in a topic) at its last sign of life. When nothing of this is left, the node sends one more,
    /// empty sign of life. Without it, the other nodes would wait until the silence of this node
    /// counts as its death.
    has_content: bool,
    /// The tracker of the appends of signs of life, which logs each outage once. While these
    /// appends fail, new recordings of this node wait: a recording publishes its first event only
    /// after a sign of life that lists the recording. `None` before the first append.
    appends: Option<Appends>,
}

/// The input of one run of the keeper, the task that sends the signs of life of this node. It is
/// the state of this node and of the other nodes when the run begins.
struct Plan {
    locals: Vec<Arc<Local>>,
    watching: HashSet<Arc<str>>,
    /// Set if this node has members: names that are present in topics because of subscriptions on
    /// this node.
    has_members: bool,
    /// The lease that this node announces: the silence after which other nodes consider it dead. It
    /// is the shortest lease of its recordings and of its members. Without either, it is the
    /// default of 10 seconds.
    lease: Duration,
    /// The shortest lease of all nodes with recordings or members. A lease is the silence after
    /// which a node counts as dead. The shortest lease determines how often the keeper runs.
    shortest: Duration,
    is_announced: bool,
    has_dead_peers: bool,
}

impl Plan {
    /// Collects the input of one run of the keeper, the task that sends the signs of life of this
    /// node: the recordings and members of this node, and the state of the other nodes.
    ///
    /// Returns `None` if this node has no recording and no member, and no other node is left to
    /// watch. Also returns `None` if the hub is shut down and its recordings have ended.
    fn new(core: &Core) -> Option<Self> {
        let is_shut_down = core.is_shut_down();
        let state = core.recordings.state();
        if (state.is_idle() && !core.presence.is_active()) || (is_shut_down && state.locals().next().is_none()) {
            return None;
        }
        let locals: Vec<_> = state.locals().cloned().collect();
        let topics = state.topics_to_watch();
        let peers = state.peers.values().filter(|peer| !peer.recordings.is_empty());
        let own_lease = core.presence.own_lease();
        let lease = locals.iter().map(|local| local.lease).chain(own_lease).min().unwrap_or(super::LEASE);
        let shortest = core.presence.shortest_lease().into_iter().fold(lease, Duration::min);
        let next_death = core.presence.next_death(state.contact.since);
        let now = Instant::now();
        let plan = Self {
            watching: HashSet::new(),
            has_members: own_lease.is_some(),
            lease,
            shortest: peers.map(|peer| peer.lease()).fold(shortest, Duration::min),
            is_announced: locals.iter().all(|local| local.is_announced()),
            has_dead_peers: state.peers.values().any(|peer| peer.is_dead(now, state.contact.since))
                || next_death.is_some_and(|death| death <= now),
            locals,
        };
        drop(state);
        let watching = topics.into_iter().filter(|topic| core.subscribers(topic) > 0).collect();
        Some(Self { watching, ..plan })
    }
}

impl Keeper {
    /// Runs the keeper once: appends the sign of life of this node to the log if it is due, and
    /// takes over the recordings of dead nodes. Returns the time of the next run. Returns `None` if
    /// the keeper has to end. During requests to the backend, the keeper holds no reference to the
    /// hub, so that the hub can be dropped.
    async fn run_once(&mut self, weak: &Weak<Core>) -> Option<(Instant, Arc<Recordings>)> {
        let core = weak.upgrade()?;
        let (recordings, backend) = (core.recordings.clone(), core.backend.clone()?);
        let plan = Plan::new(&core);
        drop(core);
        let Some(plan) = plan else {
            if self.has_content {
                // The other nodes need not wait for the end of the lease.
                let _result = self.beat(&recordings, &backend, None, super::LEASE).await;
            }
            let core = weak.upgrade()?;
            let is_shut_down = core.is_shut_down();
            let is_released = is_shut_down || recordings.state().release_keeper(core.presence.is_active());
            return (!is_released).then(|| (Instant::now(), recordings));
        };
        let interval = plan.shortest / BEATS;
        let now = Instant::now();
        // The end of a lease is noticed only by a node that has just read the whole log.
        let max_age = if plan.has_dead_peers { RETRY.min(interval / 2) } else { interval / 2 };
        let contact = recordings.state().contact.last;
        let is_in_contact = contact.is_some_and(|last| now.duration_since(last) < max_age);
        let time = (plan.lease / BEATS).max(MIN_TIME);
        if !is_in_contact {
            let probed = probe(weak, &recordings, &backend, time, (interval * 2).max(MIN_GAP)).await;
            if probed.is_none() {
                note_not_announced(&plan.locals, "the backend has not returned the end of its log");
            }
            if probed != Some(true) {
                return Some((Instant::now() + RETRY, recordings));
            }
        }
        let lease = plan.lease;
        let has_content = !plan.locals.is_empty() || !plan.watching.is_empty() || plan.has_members;
        let due = self.next_beat(lease).unwrap_or(now);
        let has_changed = !plan.is_announced || plan.watching != self.watching;
        let needs_beat = if has_content { now >= due || has_changed } else { self.has_content };
        // A beat with all recordings and topics is needed when it is due, and if a topic is not
        // watched any more.
        let is_addition = has_content && now < due && self.watching.is_subset(&plan.watching);
        let beaten = match needs_beat {
            true if is_addition => self.add(&recordings, &backend, plan).await,
            true => self.beat(&recordings, &backend, Some(plan), lease).await,
            false => Some(()),
        };
        if beaten.is_none() {
            return Some((Instant::now() + RETRY, recordings));
        }
        let core = &weak.upgrade()?;
        let next_beat = self.next_beat(lease).filter(|_| has_content);
        let next_death = self.take_over(core);
        let since = recordings.state().contact.since;
        core.presence.declare_deaths(since);
        presence::start(core);
        let next_member_death = core.presence.next_death(since);
        let next = next_beat
            .into_iter()
            .chain(next_death)
            .chain(next_member_death)
            .chain([now + TICK.min(interval / 2)])
            .min()
            .unwrap_or(now);
        Some((next.max(now + TICK / 100), recordings))
    }

    /// Returns the time when the next full beat (sign of life) is due: a third of the lease after
    /// the last full beat. The lease is the silence after which this node counts as dead: `lease`,
    /// or the lease in the last beat if that is shorter. Returns `None` if no beat was appended
    /// yet, or if the last append has failed.
    fn next_beat(&self, lease: Duration) -> Option<Instant> {
        let shorter = self.lease.map_or(lease, |announced| announced.min(lease));
        self.beat_at.map(|at| at + shorter / BEATS)
    }

    /// Appends a beat, the sign of life of this node. The beat lists the recordings in `plan`. It
    /// also lists the topics that have subscribers on this node and a recording on another node. If
    /// `plan` is `None`, the beat lists nothing.
    ///
    /// A large beat consists of several records. `lease` is the silence after which this node
    /// counts as dead. Returns `None` if the backend does not confirm each record in time: within a
    /// third of `lease`, or within half a second if that is longer.
    async fn beat(
        &mut self,
        recordings: &Recordings,
        backend: &BackendClient,
        plan: Option<Plan>,
        lease: Duration,
    ) -> Option<()> {
        // This position is read before ended recordings are left out. Otherwise, a recording could
        // end in between: the beat would list it, although its end is before the position.
        let read_through = plan.as_ref().map(|plan| recordings.examined_through(&plan.locals));
        let plan = plan.map(|plan| (plan.locals, plan.watching, plan.has_members));
        let (locals, watching, has_members) = plan.unwrap_or_default();
        // The topic of a recording that has ended may be finished, so it must not be announced
        // again.
        let locals: Vec<_> = locals.into_iter().filter(|local| !local.is_over()).collect();
        let beat = Beat {
            node: recordings.node,
            lease,
            recordings: locals.iter().map(|local| local.announced.clone()).collect(),
            watching: watching.clone(),
            number: recordings.next_beat.fetch_add(1, Relaxed),
            is_first: true,
            is_last: true,
            index: Some(0),
            is_addition: false,
            read_through,
        };
        let has_content = !beat.recordings.is_empty() || !watching.is_empty() || has_members;
        let now = Instant::now();
        self.append(recordings, backend, beat, &locals, lease).await?;
        (self.beat_at, self.lease) = (Some(now), Some(lease));
        (self.watching, self.has_content) = (watching, has_content);
        recordings.note_progress();
        Some(())
    }

    /// Appends a sign of life of this node that lists only what is new. It lists recordings that
    /// have begun on this node. It also lists topics that now have subscribers on this node and
    /// have recordings on other nodes, which could otherwise end for lack of subscribers. Returns
    /// `None` if the backend does not confirm the records within the time limit of
    /// [`beat`](Self::beat), and otherwise `Some(())`.
    async fn add(&mut self, recordings: &Recordings, backend: &BackendClient, plan: Plan) -> Option<()> {
        // This position is read before ended recordings are left out. Otherwise, a recording could
        // end in between: the beat would list it, although its end is before the position.
        let read_through = Some(recordings.examined_through(&plan.locals));
        let new = |local: &Arc<Local>| !local.is_announced() && !local.is_over();
        let locals: Vec<_> = plan.locals.into_iter().filter(new).collect();
        let beat = Beat {
            node: recordings.node,
            lease: plan.lease,
            recordings: locals.iter().map(|local| local.announced.clone()).collect(),
            watching: plan.watching.difference(&self.watching).cloned().collect(),
            number: recordings.next_beat.fetch_add(1, Relaxed),
            is_first: true,
            is_last: true,
            index: Some(0),
            is_addition: true,
            read_through,
        };
        // A recording that has ended is not announced.
        if !beat.recordings.is_empty() || !beat.watching.is_empty() {
            self.append(recordings, backend, beat, &locals, plan.lease).await?;
            self.lease = Some(plan.lease);
        }
        (self.watching, self.has_content) = (plan.watching, true);
        recordings.note_progress();
        Some(())
    }

    /// Appends the records of a beat, the sign of life of this node. Returns `None` if the backend
    /// does not confirm each record in time: within a third of `lease`, the silence that counts as
    /// death, or within half a second if that is longer. Also returns `None` if another log
    /// replaces the log meanwhile. The log may contain some of the records nevertheless. The next
    /// beat is then a full one, which lists all recordings of this node again.
    ///
    /// `locals` are the recordings in the beat. New recordings wait until a beat that lists them is
    /// in the log. So a failure delays them, and one line is logged per outage. If the beat has no
    /// recordings, its failure delays no recording, and no line is logged.
    async fn append(
        &mut self,
        recordings: &Recordings,
        backend: &BackendClient,
        beat: Beat,
        locals: &[Arc<Local>],
        lease: Duration,
    ) -> Option<()> {
        let appends = self.appends.get_or_insert_with(|| Appends::new(&recordings.outage));
        let resets = backend.resets();
        for part in beat.into_parts() {
            let record = Message::Beat(part).record();
            let appended = timeout((lease / BEATS).max(MIN_TIME), backend.append_record(record)).await;
            let error: BoxError = match appended {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.into_source(),
                Err(elapsed) => elapsed.into(),
            };
            self.beat_at = None;
            if !locals.is_empty() {
                appends.failed(&error);
                note_not_announced(locals, &error.to_string());
            }
            return None;
        }
        appends.succeeded();
        // Another log that has replaced the log since may lack these records.
        let is_current = || backend.resets() == resets;
        if is_current() {
            locals.iter().for_each(|local| local.note_announced());
        }
        if !is_current() {
            locals.iter().for_each(|local| local.note_unannounced());
            self.beat_at = None;
            return None;
        }
        Some(())
    }

    /// Starts one task for each recording of a dead node, and for each recording that its node no
    /// longer lists, although the topic is not finished. The task takes over the recording: it
    /// publishes the will, the event that the recording's node has written to the log for this
    /// case, and finishes the topic. Returns the earliest time when another node, alive now, counts
    /// as dead if it gives no further sign of life. Returns `None` if no other node is alive.
    fn take_over(&self, core: &Arc<Core>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = core.recordings.state();
        let State { peers, contact, .. } = &mut *state;
        // Another log may just have replaced the log. A claim in it would never be released.
        let is_in_contact = contact.last.is_some();
        let mut next = None;
        peers.retain(|node, peer| {
            let dies_at = peer.dies_at(contact.since);
            let is_dead = now >= dies_at;
            if !is_dead {
                next = next.into_iter().chain([dies_at]).min();
            }
            let finished = Arc::new(Finished::default());
            let is_due = |foreign: &Foreign| is_in_contact && !foreign.is_claimed && (is_dead || foreign.is_orphan);
            for foreign in peer.recordings.values_mut().filter(|foreign| is_due(foreign)) {
                foreign.is_claimed = true;
                tokio::spawn(take_over(core.clone(), *node, foreign.announced.clone(), Arc::clone(&finished)));
            }
            !is_dead || !peer.recordings.is_empty()
        });
        next
    }
}

/// Notes that this node has failed to append a sign of life that lists these recordings to the log.
/// Recordings that an earlier sign of life has listed are not affected.
fn note_not_announced(locals: &[Arc<Local>], error: &str) {
    let error = error.into();
    locals.iter().for_each(|local| local.note_not_announced(&error));
}

/// Asks the backend for the end of the log, and waits until this node has read the log up to there.
/// Returns `Some(true)` if the node reads that far within `time`, and otherwise `Some(false)`.
/// Returns `None` if the backend does not respond in this time, or if another log has replaced the
/// log.
///
/// A node counts as dead after a time of silence. If this call ends an outage, it stores the
/// current time in [`Contact::since`], and only silence after that time counts. The other nodes may
/// have had the same outage, and could not send signs of life. An outage means that the previous
/// call failed, or that the last successful call was more than `longest_gap` before this call.
async fn probe(
    core: &Weak<Core>,
    recordings: &Recordings,
    backend: &BackendClient,
    time: Duration,
    longest_gap: Duration,
) -> Option<bool> {
    let began = Instant::now();
    let deadline = began + time;
    let resets = backend.resets();
    let newest = timeout_at(deadline, backend.newest()).await.ok().flatten();
    let has_read = match newest {
        Some(through) => caught_up_unless_dropped(core, through, resets, deadline).await,
        None => None,
    };
    let contact = &mut recordings.state().contact;
    // After a pause of this process, the response may be old. The end of another log may be later.
    if has_read != Some(true) || Instant::now() > deadline || backend.resets() != resets {
        contact.last = None;
        return newest.map(|_| false);
    }
    // This node was paused, or had lost its connection. The other nodes may have had the same
    // outage, so they get a whole lease from here.
    if contact.last.is_none_or(|last| began.duration_since(last) > longest_gap) {
        contact.since = Some(Instant::now());
    }
    contact.last = Some(began);
    Some(true)
}

/// The number of topics that this node has finished in place of one other node. That node is dead
/// or has given up its recordings of these topics. All tasks that take over these recordings share
/// the number, and the last of them logs it.
#[derive(Default)]
struct Finished(AtomicUsize);

impl Finished {
    fn add(&self, topic: &str) {
        self.0.fetch_add(1, Relaxed);
        trace::recording_taken_over(topic);
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        match *self.0.get_mut() {
            0 => {}
            recordings => trace::recordings_taken_over(recordings),
        }
    }
}

/// Takes over a recording of the node `node`, which has died or has given the recording up:
/// publishes its will and finishes its topic. The will is the event that the recording has
/// announced for this case.
///
/// Several nodes may try this at the same time, and the dead node may come back. An append succeeds
/// only if the appending node has read all records of the topic. So the will is published once.
///
/// If the backend refuses the records for 60 seconds although it accepts others, for example
/// because the name of the topic is too long for it, this node gives up and forgets the recording.
async fn take_over(core: Arc<Core>, node: u64, announced: Announced, finished: Arc<Finished>) {
    let Some(backend) = &core.backend else { return };
    let claim = core.recordings.claim(node, &announced);
    let lease = core.recordings.state().peers.get(&node).map_or(super::LEASE, Peer::lease);
    // A takeover needs a contact with the backend in this time, so a longer wait has no use.
    let time = (lease / BEATS).max(MIN_TIME);
    // The pause is random, so that the nodes do not all try at once.
    sleep(RETRY.mul_f64(random::fraction())).await;
    let mut failures = 0;
    // The number of resets when this node has published the will. After another reset, the log may
    // lack the will.
    let mut will_resets = None;
    // How long the backend has refused the next record while it responded to other requests.
    let mut refused_for = Duration::ZERO;
    while let Some(fence) = Fence::new(&core) {
        if claim.is_finished() {
            // The finish record may be of an earlier recording, if this log is a copy. The keeper
            // then takes the recording over again, because the claim has ended with the other log.
            break;
        }
        let has_published_will = will_resets == Some(fence.resets());
        let is_uncertain = claim.is_uncertain();
        let read_to_end = timeout(time, has_read_to_end(&core, backend));
        let has_read = !is_uncertain || read_to_end.await.unwrap_or(false);
        let can_be_replaced = has_read && (is_uncertain || !has_published_will);
        if can_be_replaced && core.recordings.settle_if_replaced(node, &announced, is_uncertain) {
            // The other recording of the topic must not end. Its own end finishes the topic.
            break;
        }
        let Some((kind, event)) = needed(&core, node, &announced, has_published_will) else { break };
        // Only a node that has read the whole log knows whether the topic is finished.
        if !has_published_will && core.is_finished(&announced.topic) {
            // The node has announced the recording after its end.
            core.recordings.settle(node, &announced);
            break;
        }
        if !has_read {
            refused_for = Duration::ZERO;
            sleep(retry_pause(1)).await;
            continue;
        }
        if refused_for >= REFUSED {
            core.recordings.settle(node, &announced);
            break;
        }
        let record = Record { topic: announced.topic.clone(), kind, event };
        let began = Instant::now();
        match fence.append(backend, vec![record]).await {
            Ok(Some(_)) if kind == RecordKind::Finish => {
                finished.add(&announced.topic);
                break;
            }
            Ok(Some(appended)) => {
                // From here on, this node finishes the topic, even if the other node comes back.
                (will_resets, failures, refused_for) = (Some(fence.resets()), 0, Duration::ZERO);
                caught_up(&core, appended.position, fence.resets(), Instant::now() + TICK).await;
            }
            Ok(None) => fence.passed(&core).await,
            Err(_) => {
                failures += 1;
                let is_refused = match refused_for.is_zero() {
                    true => accepts_records(backend).await,
                    false => backend.newest().await.is_some(),
                };
                // If the backend accepts no records, the other node may be alive. A published will
                // ends its recording in any case.
                if !is_refused && !has_published_will {
                    core.recordings.lose_contact();
                }
                sleep(retry_pause(failures)).await;
                refused_for = if is_refused { refused_for + refused_time(began) } else { Duration::ZERO };
            }
        }
    }
    core.recordings.end_claim(&claim);
}

/// Tests whether the backend accepts any record. Called after the backend has refused a record by
/// which this node ends the recording of another node. Appends a harmless record: a request to stop
/// the recordings of a topic that cannot have recordings. Returns `true` if the backend accepts
/// this record.
async fn accepts_records(backend: &BackendClient) -> bool {
    backend.append_record(Message::Stop(beat::TOPIC.into()).record()).await.is_ok()
}

/// Returns the kind and the event of the next record that this node has to append to take over a
/// recording of the node `node`. The first record is the will, the event that the recording has
/// announced for the death of its node. The second record finishes the topic. The second record is
/// enough in three cases: there is no will, the will is in the topic already, or the recording may
/// have ended in a part of the log that this node could not read. `has_published_will` is `true` if
/// this node has published the will.
///
/// Returns `None` if this node must not take over the recording, for example because `node` is
/// alive and still lists the recording.
fn needed(core: &Core, node: u64, announced: &Announced, has_published_will: bool) -> Option<(RecordKind, Bytes)> {
    if has_published_will {
        return Some((RecordKind::Finish, Bytes::new()));
    }
    let mut state = core.recordings.state();
    let Contact { last, since } = state.contact;
    let peer = state.peers.get_mut(&node)?;
    let now = Instant::now();
    // This process may have been paused since it has found that the node is dead.
    // With a very short lease, the contact must be later than the death.
    let is_in_contact = last.is_some_and(|last| {
        let age = now.duration_since(last);
        age < peer.lease() / BEATS || (age < MIN_TIME && last >= peer.dies_at(since))
    });
    let is_dead = peer.is_dead(now, since);
    let foreign = peer.recordings.get_mut(&announced.topic)?;
    if foreign.announced.id != announced.id {
        return None;
    }
    foreign.is_claimed = is_in_contact && (is_dead || foreign.is_orphan);
    let will = &foreign.announced.will;
    let record = match foreign.will_at.is_some() || foreign.is_uncertain || will.is_empty() {
        true => (RecordKind::Finish, Bytes::new()),
        false => (foreign.announced.kind(), will.clone()),
    };
    foreign.is_claimed.then_some(record)
}
