//! Replies to the publishers of a commit.

use super::{clock::StoppedClock, error::FileError};
use crate::hub::backend::Appended;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tokio::{
    runtime::{Handle, Id},
    sync::{mpsc, oneshot},
};

/// The result of an append. `None` if the append requires that its topic has no newer record, and
/// this condition does not hold.
pub(super) type Outcome = Result<Option<Appended>, FileError>;

/// A publisher that waits for the result of its append.
pub(super) struct Publisher {
    reply: oneshot::Sender<Outcome>,
    /// Keeps tokio from advancing the paused clock of a test until the writer, the thread that
    /// stores appends, has woken all tasks that wait for the append: a blocking thread of the
    /// publisher's runtime waits as long as this value exists. The publisher's future does not own
    /// this value, because the future may exist for long without being polled. The shutdown of the
    /// runtime, which waits for the blocking thread, would wait as long.
    clock: StoppedClock,
    /// The task in this publisher's runtime that passes results to all publishers of this runtime.
    /// `None` if the publisher runs outside of a runtime.
    task: Option<ReplyTask>,
}

type ReplyTask = mpsc::UnboundedSender<Replies>;

impl Publisher {
    /// Returns `true` if the publisher no longer waits for the result of its append.
    pub(super) fn has_left(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The results of appends, each with the channel to the publisher that waits for it. Dropping this
/// value sends each result to its publisher.
#[derive(Default)]
struct Replies(Vec<(oneshot::Sender<Outcome>, Outcome)>);

impl Drop for Replies {
    fn drop(&mut self) {
        for (reply, outcome) in self.0.drain(..) {
            // The publisher may have stopped waiting.
            drop(reply.send(outcome));
        }
    }
}

/// The tasks that send replies: one for each runtime with publishers, until the log is closed.
///
/// Waking a task from a thread outside of its runtime takes a system call in this thread, and
/// another one in the runtime. With many publishers in one commit, these calls would take longer
/// than the commit. So the thread that stores appends wakes one task in each runtime, and that task
/// wakes the publishers of its runtime.
#[derive(Default)]
pub(super) struct ReplyTasks(Mutex<HashMap<Id, ReplyTask>>);

impl ReplyTasks {
    /// Creates a [`Publisher`] for an append from the current runtime, and the receiver of the
    /// result of this append.
    pub(super) fn publisher(&self) -> (Publisher, oneshot::Receiver<Outcome>) {
        let (reply, response) = oneshot::channel();
        (Publisher { reply, clock: StoppedClock::new(), task: self.of_current_runtime() }, response)
    }

    fn of_current_runtime(&self) -> Option<ReplyTask> {
        let runtime = Handle::try_current().ok()?;
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = tasks.get(&runtime.id()) {
            return Some(task.clone());
        }
        // The runtimes of the other tasks may have shut down.
        tasks.retain(|_, task| !task.is_closed());
        let (task, mut replies) = mpsc::unbounded_channel();
        runtime.spawn(async move { while replies.recv().await.is_some() {} });
        tasks.insert(runtime.id(), task.clone());
        Some(task)
    }
}

/// Sends the results of appends to the publishers. If several of these publishers are in one
/// runtime, a task of this runtime passes the results to them. If a publisher is alone in its
/// runtime, or outside of a runtime, the calling thread (the writer) sends its result.
///
/// Returns values that keep tokio from advancing the paused clock of a test, so that the writer can
/// wake other tasks before this clock advances.
pub(super) fn send(outcomes: impl Iterator<Item = (Publisher, Outcome)>) -> Vec<StoppedClock> {
    let mut groups: Vec<(Option<ReplyTask>, Replies)> = Vec::new();
    let mut clocks = Vec::new();
    for (Publisher { reply, clock, task }, outcome) in outcomes {
        let is_same = |other: &Option<ReplyTask>| match (other, &task) {
            (Some(other), Some(task)) => other.same_channel(task),
            (other, task) => other.is_none() && task.is_none(),
        };
        let group = groups.iter().position(|(other, _)| is_same(other)).unwrap_or_else(|| {
            groups.push((task.clone(), Replies::default()));
            groups.len() - 1
        });
        groups[group].1.0.push((reply, outcome));
        clocks.push(clock);
    }
    for (task, replies) in groups {
        if let Some(task) = task.filter(|_| replies.0.len() > 1) {
            // If the runtime has shut down, the error contains the replies, and dropping it sends
            // them.
            drop(task.send(replies));
        }
    }
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::join_all};
    use std::{
        sync::Arc,
        task::{Context, Wake},
        thread::{self, ThreadId},
    };
    use tokio::runtime::{Builder, Runtime};

    /// Notes the threads that have woken it.
    #[derive(Default)]
    struct Noting(Mutex<Vec<ThreadId>>);

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().push(thread::current().id());
        }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    /// Creates publishers in a runtime.
    fn publishers(tasks: &ReplyTasks, runtime: &Runtime) -> (Vec<Publisher>, Vec<oneshot::Receiver<Outcome>>) {
        runtime.block_on(async { (0..64).map(|_| tasks.publisher()).unzip() })
    }

    fn send_all(publishers: impl IntoIterator<Item = Publisher>) {
        drop(send(publishers.into_iter().map(|publisher| (publisher, Ok(None)))));
    }

    fn assert_all_replied(responses: Vec<oneshot::Receiver<Outcome>>) {
        for response in responses {
            assert!(matches!(response.now_or_never(), Some(Ok(Ok(None)))));
        }
    }

    #[test]
    fn publishers_are_woken_on_the_thread_of_their_runtime() {
        let (tasks, runtime) = (ReplyTasks::default(), runtime());
        let (publishers, mut responses) = publishers(&tasks, &runtime);
        let noting = Arc::new(Noting::default());
        let waker = Arc::clone(&noting).into();
        for response in &mut responses {
            assert!(response.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        thread::spawn(move || send_all(publishers)).join().unwrap();
        assert!(noting.0.lock().unwrap().is_empty());
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(*noting.0.lock().unwrap(), [thread::current().id(); 64]);
        assert_all_replied(responses);
    }

    /// A current-thread runtime outside of `block_on` runs no task.
    #[test]
    fn runtime_that_does_not_run_delays_no_publisher_of_another_runtime() {
        let (tasks, stopped, running) = (ReplyTasks::default(), runtime(), runtime());
        let (first, mut waiting) = publishers(&tasks, &stopped);
        let (second, responses) = publishers(&tasks, &running);
        send_all(first.into_iter().zip(second).flat_map(|(one, other)| [one, other]));
        let received = running.block_on(join_all(responses));
        assert!(received.iter().all(|outcome| matches!(outcome, Ok(Ok(None)))));
        assert!((&mut waiting[0]).now_or_never().is_none());
        drop(stopped);
        assert_all_replied(waiting);
    }

    #[test]
    fn publishers_get_results_after_the_end_of_their_runtime() {
        // A publisher does not stop the clock of a runtime with several threads, so the runtime can
        // end before it.
        let (tasks, runtime) = (ReplyTasks::default(), Builder::new_multi_thread().worker_threads(1).build().unwrap());
        let (publishers, responses) = publishers(&tasks, &runtime);
        drop(runtime);
        send_all(publishers);
        assert_all_replied(responses);
    }

    #[test]
    fn single_publisher_and_publishers_without_runtime_are_woken_at_once() {
        let (tasks, runtime) = (ReplyTasks::default(), runtime());
        let mut pairs: Vec<_> = [0, 1].map(|_| tasks.publisher()).into();
        pairs.push(runtime.block_on(async { tasks.publisher() }));
        let (publishers, responses): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        send_all(publishers);
        assert_all_replied(responses);
    }

    #[test]
    fn task_ends_with_the_log() {
        let (tasks, runtime) = (ReplyTasks::default(), runtime());
        drop(publishers(&tasks, &runtime));
        assert_eq!(runtime.metrics().num_alive_tasks(), 1);
        drop(tasks);
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    }
}
