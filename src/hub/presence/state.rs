//! The members of topics (names that are present in them) on all nodes, as far as the local node
//! knows them. Also the records about members that the announcer, a task of the local node, still
//! has to append to the log.

use super::{
    Presence, Presences,
    local::Locals,
    message::{Author, Listed, Message, Part, fitting, into_parts},
    pending::Pending,
    stream::Watchers,
    survey::Survey,
    view::{Transition, View},
};
use crate::{
    Event,
    hub::{
        backend::{Position, Record, RecordKind},
        recording::beat,
    },
    random,
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};

/// The maximum pause, 100 ms, before the local node answers another node's request for members with
/// a roster: the list of all nodes with members of topics. The pause is random. Several nodes can
/// answer with a roster, but one roster is enough: the other nodes read it during their pauses and
/// then send none.
const ROSTER_PAUSE: Duration = Duration::from_millis(100);

/// An additional pause, 500 ms, before a node that does not know all members of topics declares a
/// silent node dead. It is longer than the random pause of each node before a declaration. So a
/// node that knows all members usually declares the death first.
const DEATH_DELAY: Duration = Duration::from_millis(500);

/// The shortest pause, 2 s, and the longest pause, 8 s, between two requests of the local node for
/// the members of topics on other nodes. Each further request doubles the pause, because every node
/// answers a request with all of its members.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// The local node cleans up its memory of finished topics only when it remembers at least this
/// number of them. It remembers finished topics, because it publishes no join and leave events in
/// them. The cleanup forgets the topics that have neither members nor unpublished join and leave
/// events.
const MAX_ENDED: usize = 1000;

/// The maximum length of each of two queues. One queue has the questions of other nodes about
/// topics. The other queue has the messages to other nodes that wait for the announcer, the task
/// that appends them to the log. If a queue is full, a further question gets no answer, and a
/// further message is not sent.
const MAX_WAITING: usize = 10_000;

/// The maximum number of messages to other nodes about members of topics that one append to the log
/// contains.
const MAX_MESSAGES: usize = 64;

#[derive(Default)]
pub(super) struct State {
    pub(super) noted_through: Position,
    /// The end of the log when the local node connected to it. The local node publishes no events
    /// for joins and leaves of members up to this position, because other nodes have published
    /// them.
    pub(super) begin: Position,
    pub(super) locals: Locals,
    pub(super) view: View,
    /// The last known members of topics, for the time while the local node does not know all
    /// members. They are the members that it knew before it missed records, with the changes that
    /// it has read since. They may be outdated, so no caller gets them. They decide which joins and
    /// leaves have events, and which silent nodes are declared dead. `None` if the local node knows
    /// all members. Also `None` if the node does not use presence: `view` then has the same
    /// members, which are stored only once.
    pub(super) last_known: Option<View>,
    pub(super) knowledge: Knowledge,
    pub(super) watchers: Watchers,
    pub(super) pending: Pending,
    /// In a hub without a backend: the joins and leaves of members that are not published as events
    /// yet. The first of them stays here while a thread publishes its event.
    pub(super) unpublished: VecDeque<Transition>,
    /// Set while a thread publishes the join and leave events of members, in a hub without a
    /// backend.
    pub(super) is_publishing: bool,
    /// The messages to other nodes that wait for the announcer, the task that appends them to the
    /// log: requests for members, rosters (lists of all nodes with members), answers to questions
    /// about topics, and declarations that a node is dead. The joins and leaves of members on the
    /// local node are not in this queue.
    outgoing: VecDeque<Message>,
    /// The questions of other nodes that wait for an answer: whether a topic exists on the local
    /// node, and how many subscriptions it has on this node. Each entry has the id of the question
    /// and the name of the topic.
    pub(super) questions: Vec<(u64, Arc<str>)>,
    pub(super) surveys: HashMap<u64, Survey>,
    /// Set once the application on the local node has read the members of a topic or opened a
    /// stream of joins and leaves. The node must then know the members of topics on all nodes.
    pub(super) is_wanted: bool,
    /// The number of the newest record of the local node about its members of topics. The number
    /// lets other nodes detect records that arrive late. 0 before the first record.
    number: u64,
    /// Set if the next record of the local node about its members must list all of them. One reason
    /// is that the records in the log are outdated or incomplete, for example after a failed
    /// append. Another reason is a request of another node for these members.
    needs_full: bool,
    /// Set while the announcer, a task, appends records about the members of topics on the local
    /// node to the log.
    is_appending: bool,
    /// The number of the newest append of records about the members of topics on the local node.
    /// The number increases by one with each append, successful or not.
    job: u64,
    /// The number of the newest successful append of records about the members of topics on the
    /// local node. The log then has all of their joins and leaves up to that append, because an
    /// append after a failed append lists all members.
    done: u64,
    /// The number of the append that has to list all members of topics on the local node again,
    /// because the node has missed records or was declared dead. Appends are numbered in order. The
    /// loss or the declaration has removed these members from `view`, the members on all nodes as
    /// read from the log. So calls that ask for members wait until this append or a later one has
    /// succeeded.
    needed: u64,
    /// The topics that were finished. A topic stays in this set if it is removed afterwards, so
    /// that no join event of a member creates it again.
    ended: HashSet<Arc<str>>,
    /// The number of remembered finished topics at which the next cleanup takes place: twice the
    /// number after the last cleanup. So the average cost of the cleanups per finished topic stays
    /// constant.
    cleanup_at: usize,
    /// The time when the local node last requested the members of topics on the other nodes. The
    /// node sends its next request only after a pause of 2 s to 8 s since this time. `None` before
    /// the first request.
    asked_at: Option<Instant>,
    /// The number of requests for the members on other nodes since the local node last knew the
    /// members on all nodes. A request whose append has failed does not count. Each request doubles
    /// the pause before the next one, from 2 s up to 8 s.
    asked: u32,
    /// The time until which the announcer sleeps. The announcer is the task that appends records
    /// about members of topics. Work that is due before this time has to wake the announcer.
    pub(super) wakes_at: Option<Instant>,
    /// Set if another node has answered a question of the local node, and the local callers that
    /// wait for the answer were not woken yet. The question is whether a topic exists on the other
    /// nodes, and how many subscriptions it has there.
    pub(super) has_answer: bool,
    /// The values that decide whether an async call that waits for the members of topics can
    /// return, as they were at the last check. If a value has changed at the next check, such calls
    /// are woken. The values are: whether all members are known; whether the log has all joins and
    /// leaves of the local node; the number of the newest successful append.
    conditions: (bool, bool, u64),
    /// The time when the local node sends the roster to the other nodes, and the position of the
    /// newest request for it in the log. The roster is the list of all nodes with members of
    /// topics. `None` if no request waits for a roster.
    roster: Option<(Instant, Position)>,
    /// The handle of the announcer, the task that appends the records about members of topics, and
    /// ends the memberships whose grace time is over. `None` before its first start, and after it
    /// has ended because it had nothing more to do.
    pub(super) task: Option<AbortHandle>,
    /// In a hub without a backend: the tokio runtime of the announcer, the task that ends
    /// memberships after their grace time. It is the runtime of the last join, leave or other call
    /// about members that was made on a runtime.
    pub(super) runtime: Option<Handle>,
    /// Set if the tokio runtime has no timers, so that the announcer, the task that ends
    /// memberships after their grace time, does not run. A member whose grace time is over then
    /// leaves late: when any member joins or leaves, or when the application reads members.
    pub(super) is_without_timers: bool,
    pub(super) is_shut_down: bool,
}

/// States whether the local node knows the members of topics on all nodes.
#[derive(Default)]
pub(super) enum Knowledge {
    Complete,
    /// The local node does not know the members of topics on all nodes. Records of the log were or
    /// may have been evicted before the node has read them.
    #[default]
    Unknown,
    /// The local node has requested the members of topics from the other nodes, and waits for their
    /// answers.
    Asked {
        /// The random number that identifies the request for members.
        id: u64,
        /// The time when the local node created the request for members. When the node reads this
        /// request in the log, the field is set to the time of that read.
        at: Instant,
        /// The position of the request for members in the log. `None` until the local node has read
        /// the request there.
        position: Option<Position>,
        /// The list of all nodes with members of topics, sent by another node that knows all
        /// members. The local node then waits until each listed node has sent its members, or was
        /// declared dead. `None` until the local node has read such a list.
        nodes: Option<Vec<Listed>>,
    },
}

/// The next records about members of topics for the announcer, the task that appends them to the
/// log.
pub(super) enum Job {
    /// Records about the members of topics on the local node: their joins and leaves, or a list of
    /// all of them. If the append of these records fails, the next record lists all members.
    Members(Vec<Message>),
    Messages(Vec<Message>),
}

impl State {
    pub(super) fn new(is_complete: bool) -> Self {
        let knowledge = if is_complete { Knowledge::Complete } else { Knowledge::Unknown };
        Self { knowledge, ..Self::default() }
    }

    /// Returns `true` if the local node knows the members of topics on all nodes, and has read at
    /// least the part of the log that existed when it connected.
    pub(super) fn is_complete(&self) -> bool {
        self.knows_all() && self.noted_through >= self.begin
    }

    /// Returns the names of the members of a topic on all nodes, sorted.
    pub(super) fn members(&self, topic: &str) -> Vec<Arc<str>> {
        self.view.members(topic).cloned().collect()
    }

    /// Returns the number of the append that writes the newest join or leave of a member on the
    /// local node to the log. This append may begin only later. After its success, the log has all
    /// joins and leaves on the local node that came before this call.
    pub(super) fn ticket(&self) -> u64 {
        self.job + u64::from(self.locals.has_changes() || self.needs_full)
    }

    /// Returns `true` if the log has all joins and leaves of members that happened on the local
    /// node before a call of [`ticket`](Self::ticket). The parameter `ticket` is the number that
    /// this call has returned.
    pub(super) fn has_written(&self, ticket: u64) -> bool {
        self.done >= ticket.max(self.needed) || self.is_flushed()
    }

    /// Returns `true` if the log has all joins and leaves of members that have happened on the
    /// local node so far.
    fn is_flushed(&self) -> bool {
        !self.locals.has_changes() && !self.needs_full && !self.is_appending
    }

    /// Returns `true` if async calls that wait with [`Presences::until`] have to check again
    /// whether their wait is over. The reason is a change since the last call of this method: for
    /// example, the members of topics on all nodes have become known.
    pub(super) fn take_update(&mut self) -> bool {
        let conditions = (self.is_complete(), self.is_flushed(), self.done);
        let has_changed = std::mem::replace(&mut self.conditions, conditions) != conditions;
        std::mem::take(&mut self.has_answer) || has_changed
    }

    /// Notes that a topic was finished. Its members stay members, but their joins and leaves are
    /// not published as events any more. The caller then calls [`clean_up`](Self::clean_up).
    pub(super) fn note_end(&mut self, topic: &Arc<str>) {
        self.pending.forget(topic);
        self.ended.insert(topic.clone());
    }

    /// Forgets finished topics that have neither members nor unpublished join and leave events, if
    /// many finished topics (at least 1,000) are remembered.
    pub(super) fn clean_up(&mut self) {
        if self.ended.len() >= self.cleanup_at.max(MAX_ENDED) {
            let mut ended = std::mem::take(&mut self.ended);
            ended.retain(|topic| self.has_members_or_events(topic));
            self.ended = ended;
            self.cleanup_at = 2 * self.ended.len();
        }
    }

    /// Returns `true` if the topic has members, or has unpublished join or leave events of members.
    pub(super) fn has_members_or_events(&self, topic: &str) -> bool {
        let mut unpublished = self.unpublished.iter();
        self.view.members(topic).next().is_some()
            || self.pending.has(topic)
            || unpublished.any(|transition| *transition.topic == *topic)
    }

    /// Notes that a finished topic was opened again, for example by a new event. Joins and leaves
    /// of its members are published as events again.
    pub(super) fn note_reopened(&mut self, topic: &str) {
        self.ended.remove(topic);
    }

    /// Forgets which topics were finished, because another log has replaced the log of the local
    /// node.
    pub(super) fn forget_ends(&mut self) {
        self.ended.clear();
    }

    /// Returns `true` if the topic was finished, and the local node does not know that an event has
    /// opened it again since then.
    pub(super) fn has_ended(&self, topic: &str) -> bool {
        self.ended.contains(topic)
    }

    /// Notes that the local node does not know all members of topics any more. Called if records of
    /// the log were evicted before the local node has read them, or if the node begins to read
    /// another log. If the node uses presence, it keeps the members in `last_known`, and later
    /// requests all members from the other nodes. Otherwise it forgets the members. If it kept
    /// them, members whose leaves it has missed would stay forever.
    ///
    /// The unpublished join and leave events remain. The local node publishes them later if no
    /// other node knows all members.
    pub(super) fn lose(&mut self, own: &Presences) {
        let view = self.view.take();
        let last_known = self.last_known.take().unwrap_or(view);
        self.last_known = self.is_used(own).then_some(last_known);
        self.last_known.iter_mut().for_each(View::note_loss);
        self.knowledge = Knowledge::Unknown;
        self.roster = None;
    }

    /// Returns the view (the nodes with their members) that the local node searches for silent
    /// nodes, to declare them dead. While the local node does not know all members, the view has
    /// the nodes that it knew before it missed records, and those of later records.
    pub(super) fn watched(&self) -> &View {
        self.last_known.as_ref().unwrap_or(&self.view)
    }

    /// Returns the pause between the end of a silent node's lease and the time when the local node
    /// declares it dead, without the random part. The pause is the grace time of members. If the
    /// local node does not know all members, the pause is 500 ms longer, so that another node
    /// declares the death first. The declaring node publishes the leave events at once, so it has
    /// to know all members.
    pub(super) fn death_grace(&self, own: &Presences) -> Duration {
        if self.knows_all() { own.grace } else { own.grace.saturating_add(DEATH_DELAY) }
    }

    /// Returns the same view (the nodes with their members) as [`watched`](Self::watched), but
    /// mutably. The local node notes in it which silent nodes it has declared dead.
    pub(super) fn watched_mut(&mut self) -> &mut View {
        self.last_known.as_mut().unwrap_or(&mut self.view)
    }

    fn knows_all(&self) -> bool {
        matches!(self.knowledge, Knowledge::Complete)
    }

    /// Requires a new record that lists all members of topics on the local node, if the log may
    /// have earlier records about such members. These members are missing in `view`, the members on
    /// all nodes, because the node has missed records or was declared dead. Until the new record is
    /// in the log, callers that ask for the members of a topic wait.
    pub(super) fn announce_all(&mut self) {
        if self.number > 0 {
            self.needs_full = true;
            self.needed = self.job + 1;
        }
    }

    fn note_complete(&mut self) {
        self.note_all_known();
        self.asked = 0;
        self.watchers.note_loss();
    }

    /// Notes that the local node knows the members of topics on all nodes: `view` contains them.
    pub(super) fn note_all_known(&mut self) {
        self.knowledge = Knowledge::Complete;
        self.last_known = None;
    }

    /// Notes that the local node has read a sign of life of the node `node`. `beat` is its number.
    pub(super) fn note_beat(&mut self, own: &Presences, node: u64, beat: u64) {
        self.keep_last_known(own);
        self.view.beat(node, beat);
        self.last_known.iter_mut().for_each(|last_known| last_known.beat(node, beat));
    }

    /// Copies the members in `view` into `last_known`, if the local node uses presence and does not
    /// know all members of topics. Has no effect if `last_known` is set. Called before each change
    /// of `view`: until the first of these calls, both would be the same.
    fn keep_last_known(&mut self, own: &Presences) {
        if self.last_known.is_none() && !self.knows_all() && self.is_used(own) {
            self.last_known = Some(self.view.clone());
        }
    }

    /// Updates what the local node knows about the members of topics from `record`, which has the
    /// given position in the log. Returns the joins and leaves that the record causes.
    pub(super) fn note_record(&mut self, own: &Presences, position: Position, record: &Record) -> Vec<Transition> {
        if *record.topic != *beat::TOPIC {
            let is_event = matches!(record.kind, RecordKind::Event | RecordKind::State);
            if is_event && self.ended.contains(&record.topic) && Event::from_wire(&record.event).is_some() {
                self.note_reopened(&record.topic);
            }
            match record.kind {
                RecordKind::Event if self.pending.is_empty() => {}
                RecordKind::Event => self.pending.note(&record.topic, &record.event),
                RecordKind::Finish if own.events.is_some() => {
                    self.note_end(&record.topic);
                    self.clean_up();
                }
                // The members of a removed topic stay, and so do the events that are not published
                // yet.
                RecordKind::Finish | RecordKind::State | RecordKind::Remove => {}
            }
            return Vec::new();
        }
        let Some(message) = Message::parse(record) else { return Vec::new() };
        let transitions = self.note_message(own, position, message);
        // Until the local node knows all members, streams wait. `note_complete` wakes them.
        if self.is_complete() {
            self.watchers.note(&transitions);
        }
        transitions
    }

    fn note_message(&mut self, own: &Presences, position: Position, message: Message) -> Vec<Transition> {
        self.keep_last_known(own);
        let transitions = match message {
            Message::Changes { author, changes } => {
                let transitions = self.view.change(author, &changes);
                match &mut self.last_known {
                    None => transitions,
                    Some(last_known) => change_last_known(last_known, &mut self.pending, own, author, &changes),
                }
            }
            Message::Full { author, part } => match &mut self.last_known {
                None => self.view.part(author, part),
                Some(last_known) => {
                    self.view.part(author, part.clone());
                    add_to_last_known(last_known, &mut self.pending, own, author, part)
                }
            },
            Message::Dead { by, node, number, beat } => {
                let dead = self.view.dead(by, node, number, beat);
                // The local node was paused or cut off, so another node has declared it dead. It
                // announces its members again. It does so even if it has read a later sign of life
                // of itself, because other nodes may have missed that sign of life.
                if node == own.node && !self.locals.is_empty() {
                    self.announce_all();
                }
                let dead = match &mut self.last_known {
                    None => dead,
                    Some(last_known) => last_known.dead(by, node, number, beat),
                };
                dead.unwrap_or_default()
            }
            // Other nodes have answered the requests and the questions from before the local node
            // connected.
            Message::Ask { .. } if position <= self.begin => Vec::new(),
            Message::Ask { id: asked } => {
                match &mut self.knowledge {
                    Knowledge::Asked { id, at, position: known, .. } if *id == asked => {
                        (*at, *known) = (Instant::now(), Some(position));
                        return Vec::new();
                    }
                    Knowledge::Complete => {
                        let (_, after) = self.roster.unwrap_or((Instant::now(), position));
                        let at = Instant::now() + ROSTER_PAUSE.mul_f64(random::fraction());
                        self.roster = Some((at, after.max(position)));
                    }
                    _ => {}
                }
                // A roster can list each node that has written a record about members, even if its
                // members have left. So each of these nodes answers. The first record of any other
                // node lists all of its members.
                self.needs_full |= self.number > 0;
                Vec::new()
            }
            // Such a roster is not valid: its sender cannot have read records after its own record.
            Message::Roster { through, .. } if through >= position => Vec::new(),
            Message::Roster { through, nodes: listed } => {
                self.roster.take_if(|(_, after)| through >= *after);
                if let Knowledge::Asked { position: Some(position), nodes: nodes @ None, .. } = &mut self.knowledge {
                    if through >= *position {
                        *nodes = Some(listed);
                    }
                }
                Vec::new()
            }
            Message::Question { node, id, topic } => {
                if node != own.node && position > self.begin && self.questions.len() < MAX_WAITING {
                    self.questions.push((id, topic));
                }
                Vec::new()
            }
            Message::Answer { node, id, subscribers } => {
                if let Some(survey) = self.surveys.get_mut(&id) {
                    survey.note(node, subscribers);
                    self.has_answer = true;
                }
                Vec::new()
            }
        };
        if let Knowledge::Asked { nodes: Some(nodes), .. } = &self.knowledge {
            if nodes.iter().all(|listed| self.view.is_exact(listed)) {
                // The node that has sent the roster publishes the events of earlier joins and
                // leaves.
                self.pending.leave_to_others();
                self.note_complete();
            }
        }
        transitions
    }

    /// Returns the time when every node has had time to answer the local node's request for the
    /// members of topics. It is the time when the local node has read its request in the log, plus
    /// the longest lease of all nodes. A lease is the time of silence after which a node counts as
    /// dead, so a node that has not answered by then is dead.
    ///
    /// Returns `None` if the local node has made no request, or has not read it in the log yet.
    /// Also returns `None` if it has a list of the nodes with members, because it then waits for
    /// these nodes instead.
    fn answered_at(&self, own: &Presences) -> Option<Instant> {
        // With a roster, the local node waits for the answers or the deaths of the listed nodes.
        let Knowledge::Asked { at, position: Some(_), nodes: None, .. } = self.knowledge else { return None };
        let longest = self.view.leases(own.node).map_or(own.lease, |(longest, _)| longest.max(own.lease));
        Some(at + longest)
    }

    /// If every other node has had enough time to answer the local node's request for the members
    /// of topics, returns the id of this request, and the end of the time for the answers.
    /// Otherwise returns `None`.
    pub(super) fn answered(&self, own: &Presences) -> Option<(u64, Instant)> {
        let at = self.answered_at(own).filter(|at| *at <= Instant::now())?;
        match self.knowledge {
            Knowledge::Asked { id, .. } => Some((id, at)),
            _ => None,
        }
    }

    /// Marks the members of topics on all nodes as known, because the local node has read all
    /// answers to its request for them. `request` is the id of this request. Has no effect if the
    /// node has sent another request since.
    pub(super) fn end_request(&mut self, request: u64) {
        if matches!(self.knowledge, Knowledge::Asked { id, .. } if id == request) {
            // A node that has not answered may only be cut off. Its members stay until its death.
            // `last_known` has all records that `view` has.
            if let Some(last_known) = self.last_known.take() {
                self.view = last_known;
            }
            self.note_complete();
        }
    }

    fn is_used(&self, own: &Presences) -> bool {
        self.is_wanted || own.events.is_some() || !self.locals.is_empty() || self.needs_full
    }

    fn needs_knowledge(&self, own: &Presences, now: Instant) -> bool {
        match self.knowledge {
            Knowledge::Unknown => self.is_used(own) && self.asks_at(now) <= now,
            Knowledge::Asked { at, ref position, ref nodes, .. } => {
                self.repeats_at(own, at, position.is_some(), nodes.as_deref()).is_some_and(|at| at <= now)
            }
            Knowledge::Complete => false,
        }
    }

    /// Returns the time when the local node repeats its request for the members of topics on the
    /// other nodes, or `None` if it does not repeat the request. `at` is the time of the request.
    /// `was_read` is `true` if the local node has read the request in the log. `nodes` is the list
    /// of all nodes with members, if another node has sent it.
    ///
    /// Without the list, the local node repeats the request only if it has not read this request in
    /// the log. With the list, it repeats the request when every listed node should have answered,
    /// or should have been declared dead. Without this repetition, it could wait forever: a listed
    /// node can die before it answers, and so can the node that would declare it dead.
    fn repeats_at(&self, own: &Presences, at: Instant, was_read: bool, nodes: Option<&[Listed]>) -> Option<Instant> {
        let at = at + self.ask_pause();
        let Some(nodes) = nodes else { return (!was_read).then_some(at) };
        let longest = nodes.iter().map(|listed| listed.lease).fold(own.lease, Duration::max);
        Some(at + longest + own.grace)
    }

    /// Returns the earliest time when the local node may send its next request for the members of
    /// topics on other nodes: `now` if it is the first request, and otherwise the end of the pause
    /// after the last request. A further request is necessary if the log has evicted answers before
    /// the local node has read them.
    fn asks_at(&self, now: Instant) -> Instant {
        self.asked_at.map_or(now, |at| at + self.ask_pause())
    }

    fn ask_pause(&self) -> Duration {
        let [first, longest] = ASK_AGAIN;
        longest.min(first * (1 << self.asked.saturating_sub(1).min(8)))
    }

    /// Queues a message to other nodes for the announcer, the task that appends such messages to
    /// the log. Drops the message if 10,000 messages are already waiting.
    pub(super) fn send(&mut self, message: Message) {
        if self.outgoing.len() < MAX_WAITING {
            self.outgoing.push_back(message);
        }
    }

    /// Returns the next records for the announcer, the task that appends them to the log, and
    /// removes them from the queues. If the local node needs the members of topics on other nodes,
    /// first adds a request for them. If it is time to send a roster, the list of nodes with
    /// members, adds it, too. Returns `None` if there is nothing to append.
    pub(super) fn take_job(&mut self, own: &Presences) -> Option<Job> {
        let now = Instant::now();
        if self.needs_knowledge(own, now) {
            let id = random::bits();
            self.knowledge = Knowledge::Asked { id, at: now, position: None, nodes: None };
            self.asked_at = Some(now);
            self.asked = self.asked.saturating_add(1);
            // The request goes before answers that wait for the announcer.
            self.outgoing.push_front(Message::Ask { id });
            // The local node answers its own request. It does not list its members after each loss:
            // if all nodes read a small log in small pages, the lists after one page would evict
            // the records of the next page.
            self.announce_all();
        }
        if self.roster.take_if(|(at, _)| *at <= now).is_some() && self.is_complete() {
            self.outgoing.push_front(Message::Roster { through: self.noted_through, nodes: self.view.roster() });
        }
        if !self.outgoing.is_empty() {
            let count = self.outgoing.len().min(MAX_MESSAGES);
            return Some(Job::Messages(self.outgoing.drain(..count).collect()));
        }
        // The first record of a node lists all of its members, so that no request misses a member.
        self.needs_full |= self.number == 0 && self.locals.has_changes();
        let messages = if self.needs_full {
            self.needs_full = false;
            let author = self.author(own);
            let is_new = self.done == 0;
            let full = |part: Part| Message::Full { author, part: Part { is_new, ..part } };
            into_parts(self.locals.take_all()).into_iter().map(full).collect::<Vec<_>>()
        } else if self.locals.has_changes() {
            let changes = self.locals.take_changes();
            let mut rest = &changes[..];
            let mut messages = Vec::new();
            while !rest.is_empty() {
                let (first, others) = rest.split_at(fitting(rest));
                messages.push(Message::Changes { author: self.author(own), changes: first.to_vec() });
                rest = others;
            }
            messages
        } else {
            return None;
        };
        self.is_appending = true;
        self.job += 1;
        Some(Job::Members(messages))
    }

    pub(super) fn author(&mut self, own: &Presences) -> Author {
        self.number += 1;
        Author { node: own.node, number: self.number, lease: own.lease }
    }

    /// Updates the state after an attempt to append `job`, records about members of topics, to the
    /// log. If the append has failed (`is_appended` is `false`), the records about members of the
    /// local node are dropped. A list of all these members is appended later in their place.
    pub(super) fn end_job(&mut self, job: Job, is_appended: bool) {
        match job {
            Job::Members(_) => {
                self.is_appending = false;
                self.needs_full |= !is_appended;
                if is_appended {
                    self.done = self.job;
                }
            }
            Job::Messages(messages) if !is_appended => {
                for message in messages {
                    match message {
                        // The request may be in the log in spite of the failure. If the local node
                        // does not read it, it repeats the request.
                        Message::Ask { .. } => self.asked = self.asked.saturating_sub(1),
                        // Without a roster, the asking node would not know that another node has
                        // published the events of its members.
                        Message::Roster { through, .. } if self.roster.is_none() => {
                            self.roster = Some((Instant::now(), through));
                        }
                        _ => {}
                    }
                }
                // By the time the backend works again, the other messages are too old.
                self.outgoing.clear();
            }
            Job::Messages(_) => {}
        }
    }

    /// Stops tracking members of topics on the local node, because its hub is shut down. If the log
    /// has records about such members, returns the last record of the local node about them. When
    /// the other nodes read that record, they begin the grace times of these members: members that
    /// do not reconnect in this time leave.
    pub(super) fn end(&mut self, own: &Presences) -> Option<Record> {
        let was_shut_down = std::mem::replace(&mut self.is_shut_down, true);
        let has_members = !self.locals.is_empty() || self.needs_full || self.is_appending;
        self.locals = Locals::default();
        (self.outgoing, self.questions) = Default::default();
        if was_shut_down || !own.has_backend || self.number == 0 || !has_members {
            return None;
        }
        let [shortest, _] = beat::LEASES;
        let author = Author { lease: shortest, ..self.author(own) };
        Some(Message::Changes { author, changes: Vec::new() }.record())
    }

    /// Returns two numbers for a test of the memory use: the stored entries about members, and the
    /// capacity of the maps whose keys are topics.
    #[cfg(all(test, not(tower_sse_loom)))]
    pub(super) fn size(&self) -> (usize, usize) {
        let last_known = self.last_known.as_ref().map(View::size).unwrap_or_default();
        let sizes = [self.locals.size(), self.view.size(), last_known];
        let sum = |index: usize| sizes.iter().map(|size| size[index]).sum::<usize>();
        (sum(0) + self.unpublished.len(), sum(1))
    }

    /// Returns the time when the announcer, a task, must run next: to append records about members
    /// of topics, or to end a membership whose grace time is over. Returns `None` if the announcer
    /// has nothing to do.
    pub(super) fn next_time(&self, own: &Presences) -> Option<Instant> {
        let now = Instant::now();
        let next = self.locals.next_end();
        if !own.has_backend {
            return next;
        }
        let is_due = self.needs_full
            || self.locals.has_changes()
            || !self.outgoing.is_empty()
            || !self.questions.is_empty()
            || self.needs_knowledge(own, now);
        let again = match self.knowledge {
            Knowledge::Unknown if self.is_used(own) => Some(self.asks_at(now)),
            Knowledge::Asked { at, ref position, ref nodes, .. } => {
                let repeats_at = self.repeats_at(own, at, position.is_some(), nodes.as_deref());
                repeats_at.or_else(|| self.answered_at(own))
            }
            _ => None,
        };
        let roster = self.roster.map(|(at, _)| at);
        next.into_iter().chain(is_due.then_some(now)).chain(again).chain(roster).min()
    }
}

/// Applies the joins and leaves in a record of the node `author` to `last_known`: the members of
/// topics that the local node knew before it missed records. Returns the resulting joins and leaves
/// of topics.
///
/// The record can report the leave of a member whose join the local node has not read. If the local
/// node does not know all members of `author`, such a member may have been present all the time.
/// Its unpublished join and leave events may then be wrong, so they are dropped.
fn change_last_known(
    last_known: &mut View,
    pending: &mut Pending,
    own: &Presences,
    author: Author,
    changes: &[(Arc<str>, Presence)],
) -> Vec<Transition> {
    let is_unknown = is_unknown(last_known, own, author);
    for (topic, member) in last_known.restore_leaving(author, changes) {
        if is_unknown {
            pending.forget_member(&topic, &member);
        }
    }
    last_known.change(author, changes)
}

/// Adds a part of a list of all members of the node `author` to `last_known`: the members of topics
/// that the local node knew before it missed records. Returns the resulting joins and leaves of
/// topics.
///
/// If the local node does not know all members of `author`, the listed members may have been
/// present there for a long time. So they do not count as joined. Members that were not known on
/// that node also lose their unpublished join and leave events, because these may be wrong: a
/// member that has left another node, for example, was still present. If the list is the first
/// record of `author`, all of this does not apply: its members have joined with it.
fn add_to_last_known(
    last_known: &mut View,
    pending: &mut Pending,
    own: &Presences,
    author: Author,
    part: Part,
) -> Vec<Transition> {
    let is_unknown = !part.is_new && is_unknown(last_known, own, author);
    if is_unknown && last_known.is_new_part(author, part.is_first) {
        let members = part.members.iter().flat_map(|(topic, of)| of.iter().map(move |it| (topic, it)));
        for (topic, member) in members {
            if !last_known.is_on_node(author.node, topic, member) {
                pending.forget_member(topic, member);
            }
        }
    }
    let mut transitions = last_known.part(author, part);
    transitions.retain(|transition| !is_unknown || matches!(transition.change, Presence::Left { .. }));
    transitions
}

/// Returns `true` if the author of a record is another node, and the local node may not know all of
/// its members.
fn is_unknown(last_known: &View, own: &Presences, author: Author) -> bool {
    author.node != own.node && !last_known.is_known(author.node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::config::HubConfig;

    fn own() -> Presences {
        Presences::new(7, &HubConfig::DEFAULT, true)
    }

    fn append_all(state: &mut State, own: &Presences) -> usize {
        let mut asks = 0;
        while let Some(job) = state.take_job(own) {
            if let Job::Messages(messages) = &job {
                asks += messages.iter().filter(|message| matches!(message, Message::Ask { .. })).count();
            }
            state.end_job(job, true);
        }
        asks
    }

    #[tokio::test(start_paused = true)]
    async fn callers_wait_for_the_members_of_this_node_after_a_loss() {
        let own = own();
        let mut state = State::new(true);
        state.locals.join(&"t".into(), &"a".into());
        let ticket = state.ticket();
        assert!(!state.has_written(ticket));
        append_all(&mut state, &own);
        assert!(state.has_written(ticket));
        state.lose(&own);
        assert!(!state.is_complete());
        let Some(request @ Job::Messages(_)) = state.take_job(&own) else { panic!("the node asks") };
        state.end_job(request, true);
        assert!(!state.has_written(ticket), "the view of this node has lost its own members");
        append_all(&mut state, &own);
        assert!(state.has_written(ticket));
    }

    fn list(node: u64, number: u64, members: &[&str], own: &Presences) -> Message {
        let members = [("t".into(), members.iter().map(|member| (*member).into()).collect())].into();
        let author = Author { node, number, lease: own.lease };
        Message::Full { author, part: Part { members, is_first: true, is_last: true, is_new: true } }
    }

    /// The local node misses the records that declare the other nodes dead. If it kept their
    /// members, they would stay forever.
    #[tokio::test(start_paused = true)]
    async fn node_that_does_not_use_presence_forgets_members() {
        let own = own();
        let mut state = State::new(true);
        for node in 100..200 {
            state.note_message(&own, Position::new(node), list(node, 1, &["a"], &own));
            assert_eq!(state.size().0, 2);
            state.lose(&own);
            assert_eq!(state.size(), (0, 0));
            assert_eq!(append_all(&mut state, &own), 0);
        }
    }

    /// The local node first misses records, then reads members again, and only then uses presence.
    /// It keeps the members that it has read before that.
    #[tokio::test(start_paused = true)]
    async fn members_that_were_read_before_they_are_needed_stay() {
        let own = own();
        let mut state = State::new(false);
        state.note_message(&own, Position::new(1), list(8, 1, &["a"], &own));
        state.is_wanted = true;
        state.note_message(&own, Position::new(2), list(9, 1, &["b"], &own));
        let Some(Job::Messages(messages)) = state.take_job(&own) else { panic!("the node asks") };
        let Message::Ask { id } = messages[0] else { panic!("{messages:?}") };
        state.end_request(id);
        assert_eq!(state.members("t"), ["a", "b"].map(Arc::from));
    }

    /// A request for members is due immediately. The two readings of the clock in this test must
    /// return different times. A paused clock of tokio would return the same time twice, so the
    /// clock is not paused.
    #[tokio::test]
    async fn first_request_is_due_at_once() {
        let own = own();
        let mut state = State::new(false);
        state.is_wanted = true;
        assert_eq!(append_all(&mut state, &own), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_requests_have_longer_pauses() {
        let own = own();
        let mut state = State::new(false);
        state.is_wanted = true;
        let asks = async |state: &mut State, seconds: u64| {
            let mut asks = 0;
            for _ in 0..seconds * 10 {
                // The answers are evicted before the local node reads them.
                state.lose(&own);
                asks += append_all(state, &own);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            asks
        };
        assert_eq!(asks(&mut state, 60).await, 9, "after 0, 2, 6, 14, 22 … seconds");
        state.note_complete();
        assert_eq!(asks(&mut state, 6).await, 2, "the pauses are short again");
    }

    #[tokio::test(start_paused = true)]
    async fn foreign_questions_and_topics_need_little_memory() {
        let own = own();
        let mut state = State::new(true);
        for n in 0..3 * MAX_WAITING as u64 {
            let question = Message::Question { node: n, id: n, topic: "t".into() };
            state.note_message(&own, Position::new(n + 1), question);
            state.send(Message::Answer { node: 7, id: n, subscribers: 1 });
            state.note_end(&n.to_string().into());
            state.clean_up();
        }
        assert_eq!((state.questions.len(), state.outgoing.len()), (MAX_WAITING, MAX_WAITING));
        assert!(state.ended.len() <= MAX_ENDED, "{}", state.ended.len());
    }

    #[tokio::test(start_paused = true)]
    async fn roster_from_the_future_has_no_effect() {
        let own = own();
        let mut state = State::new(true);
        state.note_message(&own, Position::new(1), Message::Ask { id: 5 });
        let roster = |through| Message::Roster { through: Position::new(through), nodes: Vec::new() };
        state.note_message(&own, Position::new(2), roster(u64::MAX));
        assert!(state.roster.is_some(), "this node still answers");
        state.note_message(&own, Position::new(3), roster(2));
        assert!(state.roster.is_none());
    }

    /// Another node has declared a living node dead, because the log has evicted the newest records
    /// of the living node before the other node could read them. A roster, the list of all nodes
    /// with members, names the living node. The local node must wait for the list of the living
    /// node's members, although it has read the declaration.
    #[tokio::test(start_paused = true)]
    async fn outdated_death_does_not_replace_the_answer_of_a_node() {
        let own = own();
        let lease = own.lease;
        let changes = |number, members: &[&str]| {
            let joined = |member: &&str| ("t".into(), Presence::joined(*member));
            Message::Changes {
                author: Author { node: 8, number, lease },
                changes: members.iter().map(joined).collect(),
            }
        };
        let part = |members: &[&str]| {
            let members = [("t".into(), members.iter().map(|member| (*member).into()).collect())].into();
            Part { members, is_first: true, is_last: true, is_new: false }
        };
        // The newest record of the node has the number 6, and its newest sign of life the number 4.
        for (number, beat, is_alive, is_valid) in
            [(5, 4, false, false), (6, 3, false, false), (6, 4, true, false), (6, 4, false, true)]
        {
            let mut state = State::new(false);
            state.is_wanted = true;
            let Some(Job::Messages(messages)) = state.take_job(&own) else { panic!("the node asks") };
            let mut position = Position::START;
            let mut note = |state: &mut State, message| {
                position = position.next();
                state.note_message(&own, position, message);
                state.is_complete()
            };
            note(&mut state, messages[0].clone());
            note(&mut state, Message::Dead { by: 9, node: 8, number, beat });
            if is_alive {
                note(&mut state, changes(7, &["b"]));
            }
            let nodes = vec![Listed { node: 8, lease, number: 6, beat: 4 }];
            let is_complete = note(&mut state, Message::Roster { through: Position::new(1), nodes });
            assert_eq!(is_complete, is_valid, "{number} {beat} {is_alive}");
            if !is_valid {
                let author = Author { node: 8, number: 8, lease };
                assert!(note(&mut state, Message::Full { author, part: part(&["a", "b"]) }));
                assert_eq!(state.view.members("t").count(), 2);
            }
        }
    }
}
