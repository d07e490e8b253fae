//! The state of presence on this node.

use super::{
    Presences,
    local::Locals,
    message::{Author, Listed, Message, Part, fitting, into_parts},
    pending::Pending,
    stream::Watchers,
    survey::Survey,
    view::{Transition, View},
};
use crate::{
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

/// The longest pause before a roster. Several nodes can send it, and the first one is enough.
const ROSTER_PAUSE: Duration = Duration::from_millis(100);

/// The time after which a record is written again that this node has not read.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The number of finished topics after which those without members are forgotten.
const MAX_ENDED: usize = 1000;

/// The maximum number of messages in one append.
const MAX_MESSAGES: usize = 64;

#[derive(Default)]
pub(super) struct State {
    pub(super) noted_through: Position,
    /// The end of the log when this node began to read it. Other nodes publish the events of the
    /// changes up to it.
    pub(super) begin: Position,
    pub(super) locals: Locals,
    pub(super) view: View,
    pub(super) knowledge: Knowledge,
    pub(super) watchers: Watchers,
    pub(super) pending: Pending,
    /// In memory: the changes whose events are not published yet, and whether a thread publishes
    /// them.
    pub(super) unpublished: VecDeque<Transition>,
    pub(super) is_publishing: bool,
    /// Messages to append.
    pub(super) outgoing: Vec<Message>,
    /// The questions of other nodes: their ids and topics.
    pub(super) questions: Vec<(u64, Arc<str>)>,
    pub(super) surveys: HashMap<u64, Survey>,
    /// Set if the application uses presence on this node.
    pub(super) is_wanted: bool,
    /// The number of the newest record about members.
    number: u64,
    /// Set if the log may not have the members of this node as they are.
    needs_full: bool,
    /// Set while records about members are appended.
    is_appending: bool,
    /// The number of the newest job about members, and of the newest one that has succeeded.
    job: u64,
    done: u64,
    /// The topics with members that were finished. A removed topic is still in this set.
    ended: HashSet<Arc<str>>,
    /// The time of the last request to the other nodes.
    asked_at: Option<Instant>,
    /// The time when the announcer wakes up.
    pub(super) wakes_at: Option<Instant>,
    /// Set if a survey has a new answer.
    pub(super) has_answer: bool,
    /// The conditions that callers wait for, at the time when they were woken.
    conditions: (bool, bool, u64, bool),
    /// The time when this node sends a roster, and the position of the oldest request for it.
    roster: Option<(Instant, Position)>,
    /// The announcer, and the runtime of the first join.
    pub(super) task: Option<AbortHandle>,
    pub(super) runtime: Option<Handle>,
    /// Set if timers do not work on the runtime.
    pub(super) is_without_timers: bool,
    pub(super) is_shut_down: bool,
}

/// The state of the knowledge of this node about the members of all nodes.
#[derive(Default)]
pub(super) enum Knowledge {
    Complete,
    /// Records were evicted before this node has read them.
    #[default]
    Unknown,
    /// This node has asked the others.
    Asked {
        id: u64,
        /// The time when the request was written or read.
        at: Instant,
        /// The position of the request.
        position: Option<Position>,
        /// The nodes with members, from another node that knows them. Each of them answers, or
        /// another node announces its death.
        nodes: Option<Vec<Listed>>,
    },
}

/// Returns the time when each listed node has answered, or another node has announced its death. If
/// neither happens, the other node has died, too, and this node asks again.
fn settled_at(own: &Presences, at: Instant, nodes: &[Listed]) -> Instant {
    let longest = nodes.iter().map(|listed| listed.lease).fold(own.lease, Duration::max);
    at + longest + own.grace + ASK_AGAIN
}

/// Records to append.
pub(super) enum Job {
    /// The members of this node, or changes of them. After a failure, all members are announced
    /// again.
    Members(Vec<Message>),
    Messages(Vec<Message>),
}

impl State {
    pub(super) fn new(is_complete: bool) -> Self {
        let knowledge = if is_complete { Knowledge::Complete } else { Knowledge::Unknown };
        Self { knowledge, ..Self::default() }
    }

    /// Returns `true` if this node knows the members of all nodes, and has read the log that it
    /// found when it connected.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.knowledge, Knowledge::Complete) && self.noted_through >= self.begin
    }

    /// Returns the number of the job after which the log has all changes up to now.
    pub(super) fn ticket(&self) -> u64 {
        self.job + u64::from(self.locals.has_changes() || self.needs_full)
    }

    /// Returns `true` if the log has all changes before a [ticket](Self::ticket).
    pub(super) fn has_written(&self, ticket: u64) -> bool {
        self.done >= ticket || self.is_flushed()
    }

    /// Returns `true` if the log has the members of this node as they are.
    fn is_flushed(&self) -> bool {
        !self.locals.has_changes() && !self.needs_full && !self.is_appending
    }

    /// Returns `true` if callers may wait for something that has changed.
    pub(super) fn take_update(&mut self) -> bool {
        let conditions = (self.is_complete(), self.is_flushed(), self.done, self.is_shut_down);
        let has_changed = std::mem::replace(&mut self.conditions, conditions) != conditions;
        let has_answer = std::mem::take(&mut self.has_answer);
        self.pending.take_done() || has_answer || has_changed
    }

    /// Notes the end of a topic. Its members stay, but their changes have no events.
    pub(super) fn note_end(&mut self, topic: &Arc<str>) {
        self.pending.forget(topic);
        if self.view.members(topic).next().is_none() {
            return;
        }
        if self.ended.len() >= MAX_ENDED {
            let Self { view, pending, ended, .. } = self;
            ended.retain(|topic| view.members(topic).next().is_some() || pending.has(topic));
        }
        self.ended.insert(topic.clone());
    }

    /// Forgets the ends of topics, because another log has replaced this one.
    pub(super) fn forget_ends(&mut self) {
        self.ended.clear();
    }

    /// Returns `true` if the topic was finished while it had members. An event may have opened it
    /// again.
    pub(super) fn has_ended(&self, topic: &str) -> bool {
        self.ended.contains(topic)
    }

    /// Forgets the view, because records were evicted before this node has read them.
    pub(super) fn lose(&mut self) {
        self.locals.note_loss();
        self.view.clear();
        self.pending.clear();
        self.knowledge = Knowledge::Unknown;
        // The log may have members of this node that it has no more.
        self.needs_full |= self.number > 0;
        self.roster = None;
        self.watchers.note_loss();
    }

    fn note_complete(&mut self) {
        self.knowledge = Knowledge::Complete;
        self.watchers.note_loss();
    }

    /// Notes a record. Returns the changes of members.
    pub(super) fn note_record(&mut self, own: &Presences, position: Position, record: &Record) -> Vec<Transition> {
        if *record.topic != *beat::TOPIC {
            match record.kind {
                RecordKind::Event if self.pending.is_empty() => {}
                RecordKind::Event => self.pending.note(&record.topic, &record.event),
                RecordKind::Finish => self.note_end(&record.topic),
                // The members of a removed topic stay, and so do the events that are not published yet.
                RecordKind::State | RecordKind::Remove => {}
            }
            return Vec::new();
        }
        let Some(message) = Message::parse(record) else { return Vec::new() };
        let transitions = self.note_message(own, position, message);
        self.watchers.note(&transitions);
        transitions
    }

    fn note_message(&mut self, own: &Presences, position: Position, message: Message) -> Vec<Transition> {
        let transitions = match message {
            Message::Changes { author, changes } => self.view.change(author, &changes),
            Message::Full { author, part } => self.view.part(author, part),
            Message::Dead { by, node, number, beat } => {
                let dead = self.view.dead(by, node, number, beat);
                // This node was paused or cut off.
                self.needs_full |= node == own.node && dead.is_some() && !self.locals.is_empty();
                dead.unwrap_or_default()
            }
            // The requests and the questions from before this node are answered.
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
                // A roster can list each node that has written a record, also if its members have
                // left. Other nodes begin with all members.
                self.needs_full |= self.number > 0;
                Vec::new()
            }
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
                if node != own.node && position > self.begin {
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
            if nodes.iter().all(|listed| self.view.is_exact(listed.node)) {
                // The node that has sent the roster has the events of the changes before.
                self.pending.clear();
                self.note_complete();
            }
        }
        transitions
    }

    /// Returns the time after which the other nodes have had their lease to answer. Nodes that have
    /// not answered are dead.
    fn answered_at(&self, own: &Presences) -> Option<Instant> {
        // With a roster, this node waits for the answers or the deaths of the listed nodes.
        let Knowledge::Asked { at, position: Some(_), nodes: None, .. } = self.knowledge else { return None };
        let longest = self.view.leases(own.node).map_or(own.lease, |(longest, _)| longest.max(own.lease));
        Some(at + longest)
    }

    /// Returns the id of a request that all nodes have had time to answer.
    pub(super) fn answered(&self, own: &Presences) -> Option<u64> {
        let is_over = self.answered_at(own).is_some_and(|at| at <= Instant::now());
        match self.knowledge {
            Knowledge::Asked { id, .. } if is_over => Some(id),
            _ => None,
        }
    }

    /// Notes that this node has read all answers to a request.
    pub(super) fn end_request(&mut self, request: u64) {
        if matches!(self.knowledge, Knowledge::Asked { id, .. } if id == request) {
            self.note_complete();
        }
    }

    fn is_used(&self, own: &Presences) -> bool {
        self.is_wanted || own.events.is_some() || !self.locals.is_empty() || self.needs_full
    }

    fn needs_knowledge(&self, own: &Presences, now: Instant) -> bool {
        match self.knowledge {
            Knowledge::Unknown => self.is_used(own) && self.asks_at() <= now,
            // The request may be lost.
            Knowledge::Asked { at, position: None, .. } => now >= at + ASK_AGAIN,
            Knowledge::Asked { at, nodes: Some(ref nodes), .. } => now >= settled_at(own, at, nodes),
            _ => false,
        }
    }

    /// Returns the earliest time for the next request. The answers may be evicted before this node
    /// reads them, so it does not repeat the request at once.
    fn asks_at(&self) -> Instant {
        self.asked_at.map_or_else(Instant::now, |at| at + ASK_AGAIN)
    }

    /// Takes the next records to append.
    pub(super) fn take_job(&mut self, own: &Presences) -> Option<Job> {
        let now = Instant::now();
        if self.needs_knowledge(own, now) {
            let id = random::bits();
            self.knowledge = Knowledge::Asked { id, at: now, position: None, nodes: None };
            self.asked_at = Some(now);
            self.outgoing.push(Message::Ask { id });
        }
        if self.roster.take_if(|(at, _)| *at <= now).is_some() && self.is_complete() {
            self.outgoing.push(Message::Roster { through: self.noted_through, nodes: self.view.roster() });
        }
        if !self.outgoing.is_empty() {
            let count = self.outgoing.len().min(MAX_MESSAGES);
            return Some(Job::Messages(self.outgoing.drain(..count).collect()));
        }
        // The first record of a node has all of its members, so that no request can miss a member.
        self.needs_full |= self.number == 0 && self.locals.has_changes();
        let messages = if self.needs_full {
            self.needs_full = false;
            let author = self.author(own);
            let full = |part: Part| Message::Full { author, part };
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

    /// Notes the end of a job.
    pub(super) fn end_job(&mut self, job: Job, is_appended: bool) {
        match job {
            Job::Members(_) => {
                self.is_appending = false;
                self.needs_full |= !is_appended;
                if is_appended {
                    self.done = self.job;
                }
            }
            // The messages are too old when the backend is back. This node asks again.
            Job::Messages(_) if !is_appended => {
                self.outgoing.clear();
                if matches!(self.knowledge, Knowledge::Asked { position: None, .. }) {
                    self.knowledge = Knowledge::Unknown;
                }
            }
            Job::Messages(_) => {}
        }
    }

    /// Returns the time of the next task of the announcer. `None`: there is nothing to do.
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
            Knowledge::Asked { at, position: None, .. } => Some(at + ASK_AGAIN),
            Knowledge::Asked { at, nodes: Some(ref nodes), .. } => Some(settled_at(own, at, nodes)),
            Knowledge::Unknown if self.is_used(own) => Some(self.asks_at()),
            _ => self.answered_at(own),
        };
        let roster = self.roster.map(|(at, _)| at);
        next.into_iter().chain(is_due.then_some(now)).chain(again).chain(roster).min()
    }
}
