//! Replies to the publishers of a commit.

use super::{clock::StoppedClock, error::FileError};
use crate::hub::backend::Appended;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

/// The result of an append. `None` if the condition of the append does not hold.
pub(super) type Outcome = Result<Option<Appended>, FileError>;

/// A publisher that waits for the result of its append.
pub(super) struct Publisher {
    pub(super) reply: oneshot::Sender<Outcome>,
    /// Is dropped after the reply, even if the publisher does not poll its future again. Otherwise
    /// its runtime, which waits for the thread of the stopped clock, could not shut down.
    pub(super) _clock: StoppedClock,
}

impl Publisher {
    pub(super) fn has_left(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The publishers of one commit with their results. Dropping this value sends the results.
struct Replies(Vec<(Publisher, Outcome)>);

impl Drop for Replies {
    fn drop(&mut self) {
        for (publisher, outcome) in self.0.drain(..) {
            // The publisher may have stopped waiting.
            drop(publisher.reply.send(outcome));
        }
    }
}

/// Sends the results of appends to their publishers, through a task of the runtime that has opened
/// the log.
///
/// Each task that another thread wakes takes a system call on both sides. With many publishers in
/// one commit, these calls would take longer than the commit. So the thread of the writer wakes one
/// task, and this task wakes the publishers.
pub(super) struct Replier(Option<mpsc::UnboundedSender<Replies>>);

impl Replier {
    /// Spawns the task on the current runtime. Without a runtime, the thread of the writer wakes the
    /// publishers itself.
    pub(super) fn new() -> Self {
        let Ok(runtime) = Handle::try_current() else { return Self(None) };
        let (sender, mut receiver) = mpsc::unbounded_channel();
        runtime.spawn(async move { while receiver.recv().await.is_some() {} });
        Self(Some(sender))
    }

    /// Sends the results of a commit. If the runtime of the task has shut down, sends them from this
    /// thread.
    pub(super) fn send(&self, outcomes: impl Iterator<Item = (Publisher, Outcome)>) {
        let replies = Replies(outcomes.collect());
        if let (Some(task), true) = (&self.0, replies.0.len() > 1) {
            // If the task has ended, the error contains the replies, and dropping it sends them.
            drop(task.send(replies));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::{
        pin::pin,
        sync::{Arc, Mutex},
        task::{Context, Wake},
        thread::{self, ThreadId},
    };

    /// Notes the threads that have woken it.
    #[derive(Default)]
    struct Noting(Mutex<Vec<ThreadId>>);

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().push(thread::current().id());
        }
    }

    fn publishers(count: usize) -> (Vec<(Publisher, Outcome)>, Vec<oneshot::Receiver<Outcome>>) {
        let pair = |_| {
            let (reply, response) = oneshot::channel();
            ((Publisher { reply, _clock: StoppedClock::new() }, Ok(None)), response)
        };
        (0..count).map(pair).unzip()
    }

    #[tokio::test]
    async fn publishers_are_woken_on_the_thread_of_their_runtime() {
        let replier = Replier::new();
        let (outcomes, responses) = publishers(64);
        let noting = Arc::new(Noting::default());
        let waker = Arc::clone(&noting).into();
        let mut responses: Vec<_> = responses.into_iter().map(Box::pin).collect();
        for response in &mut responses {
            assert!(response.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let writer = thread::spawn(move || replier.send(outcomes.into_iter()));
        for response in &mut responses {
            assert!(response.await.is_ok());
        }
        writer.join().unwrap();
        assert!(noting.0.lock().unwrap().iter().all(|thread| *thread == thread::current().id()));
    }

    #[test]
    fn publishers_get_results_after_the_end_of_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let replier = runtime.block_on(async { Replier::new() });
        let (before, mut responses) = publishers(2);
        // The task does not run any more.
        replier.send(before.into_iter());
        assert!(pin!(&mut responses[0]).now_or_never().is_none());
        drop(runtime);
        let (after, more) = publishers(2);
        replier.send(after.into_iter());
        responses.extend(more);
        for response in responses {
            assert!(matches!(response.now_or_never(), Some(Ok(Ok(None)))));
        }
    }

    #[tokio::test]
    async fn single_publisher_is_woken_by_the_writer() {
        let replier = Replier::new();
        let (outcomes, mut responses) = publishers(1);
        replier.send(outcomes.into_iter());
        assert!(responses.remove(0).now_or_never().is_some());
    }
}
