//! The announcer is the task of a node that appends presence records to the log: records about the
//! members of topics. A member is a name that is present in a topic. The announcer also ends the
//! grace times: a member stays for the grace time after its last subscription has ended, and then
//! leaves.
//!
//! Other tasks of this module publish the join and leave events of members.

use super::{Presence, Presences, Transition, message::Message, pending::MAX_BATCH, state::Job};
use crate::hub::{
    backend::{Position, Record, RecordKind},
    core::Core,
    node::BackendClient,
    recording::{
        append::{Fence, REFUSED, caught_up_unless_dropped, refused_time, retry_pause},
        keeper,
    },
    registry::Registry,
};
use bytes::Bytes;
use std::{
    future::{Future as _, poll_fn},
    panic,
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, yield_now},
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// The maximum time that a task waits for the local node to read the log: 1 s. The announcer, the
/// task that appends records about members of topics, needs the log up to its end. The tasks that
/// publish join and leave events need the log up to the records that they have just appended.
const FOLLOWER: Duration = Duration::from_secs(1);

impl Presences {
    /// Notes that the application on the local node needs the members of a topic: the names that
    /// are present in the topic on any node. If the local node does not know them all, it requests
    /// the lists of the other nodes, even if it has no members itself.
    pub(super) fn want(&self) {
        self.state().is_wanted = true;
    }

    /// Returns the time when the announcer must run next. The announcer is the task that appends
    /// records about members of topics to the log, and ends grace times. Returns `None` and marks
    /// the announcer as ended if it has nothing to do, or if the hub is shut down.
    fn next_run(&self) -> Option<Instant> {
        let mut state = self.state();
        let next = state.next_time(self).filter(|_| !state.is_shut_down);
        if next.is_none() {
            state.task = None;
        }
        state.wakes_at = next;
        next
    }
}

/// Makes the joins and leaves of members on the local node take effect. A hub without a backend
/// updates the members of its topics before this function returns. With a backend, the function
/// starts or wakes the announcer, the task that appends the joins and leaves to the log.
pub(super) fn apply(core: &Arc<Core>) {
    if core.backend.is_none() {
        apply_in_memory(core);
    }
    start(core);
    core.presence.changed.notify_one();
    keeper::start(core);
}

fn apply_in_memory(core: &Arc<Core>) {
    let presence = &core.presence;
    let mut state = presence.state();
    if state.is_shut_down {
        return;
    }
    state.locals.expire(Instant::now());
    let changes = state.locals.take_changes();
    if changes.is_empty() {
        return;
    }
    let author = state.author(presence);
    let transitions = state.view.change(author, &changes);
    state.watchers.note(&transitions);
    if presence.events.is_some() {
        state.unpublished.extend(transitions);
    }
    presence.release(state);
    publish_in_memory(core);
}

/// Publishes the join and leave events of members in a hub without a backend. To keep the order of
/// the events, only one thread publishes at a time. If another thread calls this function in the
/// meantime, the call returns at once, and the first thread also publishes the events of that
/// thread. The function of the application that creates the events runs without a lock.
fn publish_in_memory(core: &Arc<Core>) {
    let presence = &core.presence;
    let mut is_publishing = false;
    loop {
        let mut state = presence.state();
        if is_publishing {
            // A removal of the topic has to know of this change until its event is published.
            state.unpublished.pop_front();
        } else if state.is_publishing {
            return;
        }
        let Some(transition) = state.unpublished.front().cloned() else {
            state.is_publishing = false;
            return;
        };
        (state.is_publishing, is_publishing) = (true, true);
        drop(state);
        let Transition { topic, change, .. } = &transition;
        if is_over(core, topic) {
            continue;
        }
        if let Some(event) = presence.event(&transition) {
            // A topic without events and subscribers does not exist, but a client that returns to
            // it resumes, and needs the leave. A leave does not bring a removed topic back. Neither
            // does a join or a leave bring back a topic that was finished and removed while the
            // application created the event.
            let is_leave = matches!(change, Presence::Left { .. });
            let is_allowed = |registry: &Registry| {
                !(is_leave && registry.is_removed_with_members(topic))
                    && (registry.exists(topic) || !presence.state().has_ended(topic))
            };
            // A topic that is finished in between accepts no events.
            let _result = core.publish_in_memory(topic, false, [event], is_allowed);
        }
    }
}

/// Returns `true` if a topic is finished, or if it was finished and then removed. Names can still
/// become members of such a topic and leave it, but no events are published about these changes,
/// because an event would open or create the topic again.
fn is_over(core: &Core, topic: &Arc<str>) -> bool {
    // The registry is locked before the state of presence, never after it.
    let (is_finished, exists) = (core.is_finished(topic), core.exists(topic));
    let mut state = core.presence.state();
    if is_finished {
        // The set of ended topics may have forgotten the topic while it had no members.
        state.note_end(topic);
        state.clean_up();
    } else if exists {
        state.note_reopened(topic);
    }
    is_finished || (!exists && state.has_ended(topic))
}

/// Starts the announcer if it has work and does not run yet. The announcer is the task that informs
/// other nodes of joins and leaves by records in the log, and ends grace times. With a backend,
/// also starts one task for each topic whose subscribers still have to get events about joins and
/// leaves. Has no effect without a tokio runtime, or if the hub is shut down.
pub(in crate::hub) fn start(core: &Arc<Core>) {
    let presence = &core.presence;
    let mut state = presence.state();
    let handle = match &core.backend {
        Some(backend) => backend.runtime(),
        None => {
            let current = Handle::try_current().ok();
            state.runtime = current.or(state.runtime.take());
            state.runtime.clone()
        }
    };
    let Some(handle) = handle.filter(|_| !state.is_shut_down && !state.is_without_timers) else { return };
    let topics = if state.is_complete() { state.pending.begin() } else { Vec::new() };
    let next = state.next_time(presence);
    if state.task.as_ref().is_some_and(|task| !task.is_finished()) {
        // The announcer sleeps until the time that was next before.
        if next.is_some_and(|next| state.wakes_at.is_none_or(|wakes_at| next < wakes_at)) {
            presence.changed.notify_one();
        }
    } else if next.is_some() {
        // The new task waits for this lock before it can end.
        state.task = Some(spawn(&handle, core));
    }
    drop(state);
    // A runtime that has ended drops the task in `spawn`, and dropping it locks the state.
    for (topic, changed) in topics {
        let task = handle.spawn(publish(Publishing::new(core, topic.clone(), changed)));
        let mut state = presence.state();
        state.pending.set_task(&topic, task.abort_handle());
        let is_shut_down = state.is_shut_down;
        drop(state);
        if is_shut_down {
            task.abort();
        }
    }
}

fn spawn(handle: &Handle, core: &Arc<Core>) -> AbortHandle {
    handle.spawn(announce(Arc::downgrade(core))).abort_handle()
}

/// The end of the log when the other nodes have had enough time to answer the local node's request
/// for the members of topics. After the local node has read the log up to this end, it has read all
/// answers.
#[derive(Clone, Copy)]
struct AnswersEnd {
    /// The id of the request for members, and the end of the time for the answers to it. The end
    /// becomes later if the local node reads of a node with a longer lease: the time of silence
    /// after which a node counts as dead.
    request: (u64, Instant),
    through: Position,
}

async fn announce(core: Weak<Core>) {
    let mut failures = 0;
    let mut answers_end = None;
    loop {
        let Some((presence, is_ok)) = run_once(&core, &mut answers_end).await else { return };
        failures = if is_ok { 0 } else { failures + 1 };
        let Some(mut next) = presence.next_run() else { return };
        if !is_ok {
            // After a failure, a change does not wake the announcer. So the announcer always wakes
            // up after a short pause, and then sees the change.
            next = Instant::now() + retry_pause(failures);
        }
        // `sleep_until` panics on a runtime without timers.
        let Ok(pause) = panic::catch_unwind(|| sleep_until(next)) else {
            presence.state().is_without_timers = true;
            return;
        };
        let mut pause = pin!(pause);
        let mut changed = pin!(presence.changed.notified());
        poll_fn(|cx| {
            if is_ok && changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            pause.as_mut().poll(cx)
        })
        .await;
        yield_now().await;
    }
}

/// Does the due work of the announcer, a task of the local node: ends the memberships whose grace
/// time is over, appends records about members of topics to the log, and answers other nodes. These
/// nodes ask whether a topic exists on the local node, and how many subscriptions it has. During
/// requests to the backend, the function holds no reference to the hub, so that the hub can be
/// dropped.
///
/// Returns the [`Presences`] of the hub, and `false` if a request to the backend has failed. The
/// caller then tries again after a pause. Returns `None` if the hub was dropped.
async fn run_once(weak: &Weak<Core>, answers_end: &mut Option<AnswersEnd>) -> Option<(Arc<Presences>, bool)> {
    loop {
        let core = weak.upgrade()?;
        let presence = core.presence.clone();
        let Some(backend) = core.backend.clone() else {
            apply_in_memory(&core);
            return Some((presence, true));
        };
        expire(&presence);
        answer_questions(&core);
        drop(core);
        let request = presence.state().answered(&presence);
        // The log can have answers up to this position that the local node has not read yet.
        let mut unread = None;
        if let Some(request) = request {
            // A node that is always a second behind a busy log would never reach a later end, so
            // the backend is asked only once for each request.
            let through = match answers_end.filter(|end| end.request == request) {
                Some(end) => end.through,
                None => match backend.newest().await {
                    Some(newest) => newest,
                    None => return Some((presence, false)),
                },
            };
            *answers_end = Some(AnswersEnd { request, through });
            if weak.upgrade()?.committed() >= through {
                let mut state = presence.state();
                state.end_request(request.0);
                presence.release(state);
                start(&weak.upgrade()?);
            } else {
                unread = Some(through);
            }
        }
        let job = presence.state().take_job(&presence);
        let Some(job) = job else {
            if let Some(through) = unread {
                let resets = weak.upgrade()?.resets();
                caught_up_unless_dropped(weak, through, resets, Instant::now() + FOLLOWER).await?;
            }
            return Some((presence, true));
        };
        let is_appended = append(&backend, &job).await;
        let core = weak.upgrade()?;
        let mut state = presence.state();
        state.end_job(job, is_appended);
        presence.release(state);
        if !is_appended {
            // If the backend accepts no records, the other nodes cannot write signs of life,
            // either. So a silent node may be alive.
            core.recordings.lose_contact();
            return Some((presence, false));
        }
        // A node with members must send signs of life.
        keeper::start(&core);
        core.recordings.changed.notify_one();
    }
}

fn expire(presence: &Presences) {
    let mut state = presence.state();
    state.locals.expire(Instant::now());
    presence.release(state);
}

async fn append(backend: &BackendClient, job: &Job) -> bool {
    match job {
        Job::Members(messages) => {
            for message in messages {
                if backend.append_records(vec![message.record()]).await.is_err() {
                    return false;
                }
            }
            true
        }
        Job::Messages(messages) => backend.append_records(messages.iter().map(Message::record).collect()).await.is_ok(),
    }
}

/// Answers the questions of other nodes about topics: whether a topic exists on the local node, and
/// how many subscriptions it has here. The answers are queued for the log. A question about a topic
/// that does not exist here gets no answer.
fn answer_questions(core: &Arc<Core>) {
    let presence = &core.presence;
    let questions = std::mem::take(&mut presence.state().questions);
    for (id, topic) in questions {
        if core.exists(&topic) {
            let answer = Message::Answer { node: presence.node, id, subscribers: core.subscribers(&topic) };
            presence.state().send(answer);
        }
    }
}

/// The task that publishes the events of one topic about the joins and leaves of its members. The
/// task does not keep the hub alive.
struct Publishing {
    core: Weak<Core>,
    presence: Arc<Presences>,
    topic: Arc<str>,
    /// Notified when a join or leave event of this topic does not have to be published any more,
    /// for example because another node has published it.
    changed: Arc<Notify>,
    failures: u32,
    /// The total time of the consecutive refusals of the first join or leave event alone, while the
    /// backend responded to other requests. Zero after a successful append, and if the backend does
    /// not respond at all.
    refused_for: Duration,
    /// The maximum number of join and leave events that one append to the log contains. A refused
    /// append halves this number, and a successful append doubles it, up to 1,000.
    max: usize,
    has_given_up: bool,
    has_ended: bool,
}

/// The next action of the task that publishes the join and leave events of one topic: events that
/// report the joins and leaves of its members.
enum Next {
    Append,
    /// Wait until this time. Another node has caused the next join or leave, and probably also
    /// publishes the event about it. If the event is not in the log at this time, the local node
    /// publishes it.
    Wait(Instant),
    End,
}

impl Publishing {
    fn new(core: &Arc<Core>, topic: Arc<str>, changed: Arc<Notify>) -> Self {
        Self {
            core: Arc::downgrade(core),
            presence: core.presence.clone(),
            topic,
            changed,
            failures: 0,
            refused_for: Duration::ZERO,
            max: MAX_BATCH,
            has_given_up: false,
            has_ended: false,
        }
    }

    fn next_events(&mut self) -> Option<Result<Vec<Bytes>, Instant>> {
        let mut state = self.presence.state();
        let next = if state.is_complete() {
            state.pending.next(&self.topic, Instant::now(), self.max)
        } else {
            state.pending.stop(&self.topic);
            None
        };
        self.has_ended = next.is_none();
        next
    }

    /// Publishes at most one batch of the topic's unpublished join and leave events. Several nodes
    /// can try to publish the same event, but only one node succeeds: an append fails if the log
    /// has records of the topic that the local node has not read.
    async fn run_once(&mut self) -> Next {
        // Waits for the permit first. A fence and events that are taken before the wait would be
        // outdated.
        let presence = self.presence.clone();
        let Ok(permit) = presence.publishing.acquire().await else { return Next::End };
        let Some(core) = self.core.upgrade() else { return Next::End };
        // The fence is created before the events are read. If another node publishes an event of
        // this topic in between, the append fails.
        let (Some(backend), Some(fence)) = (core.backend.clone(), Fence::new(&core)) else { return Next::End };
        if is_over(&core, &self.topic) {
            presence.state().pending.forget(&self.topic);
        } else if core.is_removed_with_members(&self.topic) {
            presence.state().pending.forget_leaves(&self.topic);
        } else if !core.exists(&self.topic) {
            presence.state().pending.forget_leaves_of_others(&self.topic, Instant::now());
        }
        let events = match self.next_events() {
            None => return Next::End,
            Some(Ok(events)) => events,
            Some(Err(due)) => return Next::Wait(due),
        };
        // The hub is not kept alive during requests to the backend.
        drop(core);
        let (first, count) = (events.first().cloned().unwrap_or_default(), events.len());
        let record = |event| Record { topic: self.topic.clone(), kind: RecordKind::Event, event };
        let began = Instant::now();
        let appended = fence.append(&backend, events.into_iter().map(record).collect()).await;
        // The waits below may take a second, so other topics get the permit first.
        drop(permit);
        match appended {
            Ok(Some(appended)) => {
                (self.failures, self.refused_for, self.has_given_up) = (0, Duration::ZERO, false);
                self.max = MAX_BATCH.min(self.max * 2);
                caught_up_unless_dropped(&self.core, appended.position, fence.resets(), Instant::now() + FOLLOWER)
                    .await;
                Next::Append
            }
            Ok(None) => {
                fence.passed_unless_dropped(&self.core).await;
                Next::Append
            }
            Err(_) => {
                self.failures += 1;
                let is_refused = backend.newest().await.is_some();
                sleep(retry_pause(self.failures)).await;
                if is_refused {
                    self.note_refused(count, &first, began);
                } else {
                    self.refused_for = Duration::ZERO;
                }
                Next::Append
            }
        }
    }

    /// Handles an append of `count` join and leave events that the backend has refused. The next
    /// append has half as many events. If the backend has refused a single event, `first`, for a
    /// minute, drops this event. If the backend then also refuses the following event, drops all
    /// unpublished events of the topic at once. `began` is the time when the append began: see
    /// [`refused_time`].
    fn note_refused(&mut self, count: usize, first: &Bytes, began: Instant) {
        self.max = (count / 2).max(1);
        if count > 1 {
            return;
        }
        self.refused_for += refused_time(began);
        if self.refused_for < REFUSED {
            return;
        }
        let pending = &mut self.presence.state().pending;
        if self.has_given_up {
            pending.forget(&self.topic);
        } else {
            self.has_given_up = pending.forget_refused(&self.topic, first);
            // Otherwise another node has published the event, so the backend accepts events.
            if !self.has_given_up {
                self.refused_for = Duration::ZERO;
            }
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        // The events stay pending, so that another task can publish them.
        if !self.has_ended {
            self.presence.state().pending.stop(&self.topic);
        }
    }
}

/// Publishes the events of one topic that report joins and leaves to its subscribers. Returns when
/// no unpublished event is left, or when the hub was dropped.
async fn publish(mut publishing: Publishing) {
    loop {
        match publishing.run_once().await {
            Next::Append => {}
            Next::Wait(due) => _ = timeout_at(due, publishing.changed.notified()).await,
            Next::End => return,
        }
    }
}
