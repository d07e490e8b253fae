//! The announcer, the task of a node that appends the records of presence and ends grace times; and
//! the tasks that publish the events of changes.

use super::{Presences, message::Message, state::Job};
use crate::hub::{
    backend::{Record, RecordKind},
    core::Core,
    node::BackendClient,
    recording::{
        append::{Fence, caught_up, retry_pause},
        keeper,
    },
};
use std::{
    panic,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, yield_now},
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// The longest time until this node reads what it has appended.
const FOLLOWER: Duration = Duration::from_secs(1);

impl Presences {
    /// Notes that the application uses presence on this node.
    pub(super) fn want(&self) {
        self.state().is_wanted = true;
    }

    /// Returns the time of the next task of the announcer, or `None` if the announcer must end.
    fn next_run(&self) -> Option<Instant> {
        let mut state = self.state();
        let next = state.next_time(self).filter(|_| !state.is_shut_down);
        if next.is_none() {
            state.task = None;
        }
        next
    }
}

/// Applies changes of the members of this node: in memory at once, and with a backend through the
/// log.
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

/// Publishes the events of changes in memory. One thread at a time publishes, so that they are in
/// order. The function of the application runs without a lock.
fn publish_in_memory(core: &Arc<Core>) {
    let presence = &core.presence;
    let mut is_publishing = false;
    loop {
        let mut state = presence.state();
        if state.is_publishing && !is_publishing {
            return;
        }
        let Some(transition) = state.unpublished.pop_front() else {
            state.is_publishing = false;
            return;
        };
        (state.is_publishing, is_publishing) = (true, true);
        drop(state);
        if let Some(event) = presence.event(&transition) {
            // A finished topic accepts no events.
            let _result = core.publish_now(&transition.topic, false, event);
        }
    }
}

/// Starts the announcer if it has something to do and does not run, and starts the tasks that
/// publish the events of changes.
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
    let topics = state.pending.begin();
    let is_running = state.task.as_ref().is_some_and(|task| !task.is_finished());
    if !is_running && state.next_time(presence).is_some() {
        // The task waits for this lock before it can end.
        state.task = Some(spawn(&handle, core));
    }
    drop(state);
    // A runtime that has ended drops the task in `spawn`, and dropping it locks the state.
    for topic in topics {
        handle.spawn(publish(Publishing { core: core.clone(), topic }));
    }
}

fn spawn(handle: &Handle, core: &Arc<Core>) -> AbortHandle {
    handle.spawn(announce(Arc::downgrade(core))).abort_handle()
}

async fn announce(core: Weak<Core>) {
    let mut failures = 0;
    loop {
        let Some(strong) = core.upgrade() else { return };
        let is_ok = run_once(&strong).await;
        failures = if is_ok { 0 } else { failures + 1 };
        let presence = strong.presence.clone();
        drop(strong);
        let Some(mut next) = presence.next_run() else { return };
        if !is_ok {
            next = next.max(Instant::now() + retry_pause(failures));
        }
        // `sleep_until` panics on a runtime without timers.
        let Ok(pause) = panic::catch_unwind(|| sleep_until(next)) else {
            presence.state().is_without_timers = true;
            return;
        };
        if is_ok {
            tokio::select! {
                () = pause => {}
                () = presence.changed.notified() => {}
            }
        } else {
            pause.await;
        }
        yield_now().await;
    }
}

/// Does what is due. Returns `false` if the backend has not confirmed it.
async fn run_once(core: &Arc<Core>) -> bool {
    let presence = &core.presence;
    let Some(backend) = &core.backend else {
        apply_in_memory(core);
        return true;
    };
    loop {
        presence.state().locals.expire(Instant::now());
        answer_questions(core);
        let request = presence.state().answered(presence);
        if let Some(request) = request {
            // The answers may be in the log, and not read yet.
            let Some(through) = backend.newest().await else { return false };
            if !caught_up(core, through, Instant::now() + FOLLOWER).await {
                return false;
            }
            let mut state = presence.state();
            state.end_request(request);
            presence.release(state);
        }
        let job = presence.state().take_job(presence);
        let Some(job) = job else { return true };
        let is_appended = append(backend, &job).await;
        let mut state = presence.state();
        state.end_job(job, is_appended);
        presence.release(state);
        if !is_appended {
            // If the backend accepts no records, silent nodes may be alive.
            core.recordings.lose_contact();
            return false;
        }
        // The first member of a node needs a sign of life.
        keeper::start(core);
        core.recordings.changed.notify_one();
    }
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

/// Answers the questions of other nodes about topics that exist here.
fn answer_questions(core: &Arc<Core>) {
    let presence = &core.presence;
    let questions = std::mem::take(&mut presence.state().questions);
    for (id, topic) in questions {
        if core.exists(&topic) {
            let answer = Message::Answer { node: presence.node, id, subscribers: core.subscribers(&topic) };
            presence.state().outgoing.push(answer);
        }
    }
}

/// The task that publishes the events of a topic.
struct Publishing {
    core: Arc<Core>,
    topic: Arc<str>,
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.core.presence.state().pending.stop(&self.topic);
    }
}

/// Publishes the pending events of a topic. Each append succeeds only if the topic has not changed
/// since this node has read it, so each event is published once, whichever node is faster.
async fn publish(publishing: Publishing) {
    let Publishing { core, topic } = &publishing;
    let (presence, Some(backend)) = (&core.presence, &core.backend) else { return };
    let mut failures = 0;
    // The fence first: an event that is published meanwhile makes the append fail.
    while let Some(fence) = Fence::new(core) {
        let next = presence.state().pending.next(topic, Instant::now());
        let events = match next {
            None => return,
            Some(Ok(events)) => events,
            Some(Err(due)) => {
                let published = presence.until(|state| !state.pending.has(topic));
                let _elapsed = timeout_at(due, published).await;
                continue;
            }
        };
        if core.is_finished(topic) {
            // An event would open it again.
            presence.state().pending.forget(topic);
            continue;
        }
        let Ok(_permit) = presence.publishing.acquire().await else { return };
        let record = |event| Record { topic: topic.clone(), kind: RecordKind::Event, event };
        match fence.append(backend, events.into_iter().map(record).collect()).await {
            Ok(Some(appended)) => {
                failures = 0;
                caught_up(core, appended.position, Instant::now() + FOLLOWER).await;
            }
            Ok(None) => fence.passed(core).await,
            Err(_) => {
                failures += 1;
                sleep(retry_pause(failures)).await;
            }
        }
    }
}
