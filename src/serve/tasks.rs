//! The tasks of the connections, and the time limit of a graceful shutdown.

use crate::trace;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

/// Spawns one task for each connection. If the graceful shutdown has a time limit, also keeps a
/// list of the running tasks, so that it can abort them at this limit.
pub(super) struct Tasks(Option<Arc<List>>);

type List = Mutex<JoinSet<()>>;

fn lock(list: &List) -> MutexGuard<'_, JoinSet<()>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    /// Creates the spawner for the tasks of a server's connections. `timeout` is the time limit of
    /// the graceful shutdown. `shutdown` is cancelled when the graceful shutdown begins, and
    /// `all_closed` when all connections are closed.
    pub(super) fn new(timeout: Option<Duration>, shutdown: &CancellationToken, all_closed: &CancellationToken) -> Self {
        Self(timeout.map(|timeout| {
            let list = Arc::default();
            // This task outlives the future of the server. So the limit also applies to the
            // shutdown that begins when that future is dropped.
            tokio::spawn(limit(timeout, shutdown.clone(), all_closed.clone(), Arc::clone(&list)));
            list
        }))
    }

    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        // Each task ends by itself, or is aborted through the list.
        match &self.0 {
            Some(list) => drop(lock(list).spawn(connection)),
            None => drop(tokio::spawn(connection)),
        }
    }

    /// Removes the tasks of closed connections from the list of running tasks, which frees their
    /// memory.
    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) {
        let Some(list) = &self.0 else { return };
        let mut list = lock(list);
        while let Poll::Ready(Some(_)) = list.poll_join_next(cx) {}
    }
}

/// Waits until the graceful shutdown begins, and aborts the connections that are still open after
/// `timeout`. Aborting a task drops the connection, and thereby its responses and the handlers of
/// its requests.
async fn limit(timeout: Duration, shutdown: CancellationToken, all_closed: CancellationToken, list: Arc<List>) {
    shutdown.cancelled().await;
    if time::timeout(timeout, all_closed.cancelled()).await.is_err() {
        let mut list = lock(&list);
        while list.try_join_next().is_some() {}
        trace::shutdown_timed_out(list.len());
        list.abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{poll_fn, ready};

    /// Checks that the tasks of closed connections leave the list of running tasks: polls the list,
    /// as the accept loop does, until it is empty.
    #[tokio::test]
    async fn ended_connections_leave_list() {
        let tasks = Tasks::new(Some(Duration::from_secs(3600)), &CancellationToken::new(), &CancellationToken::new());
        (0..10).for_each(|_| tasks.spawn(ready(())));
        tasks.spawn(async { panic!("a connection that panics") });
        poll_fn(|cx| {
            tasks.poll_ended(cx);
            match tasks.0.as_ref().is_some_and(|list| lock(list).is_empty()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}
