//! The connection to the server of a log that the requests of this process share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::{
    runtime::{self, Handle},
    sync::watch,
};

/// A connection that requests share, and the attempt to open it.
///
/// Each attempt runs in a task of its own, in the runtime of the hub. So a caller that is not
/// polled does not block the others. A runtime of a publisher that shuts down does not stop the
/// tasks of the connection.
pub(super) struct SharedConnection<C, E>(Arc<Mutex<State<C, E>>>);

struct State<C, E> {
    connection: Option<C>,
    /// The attempt that runs, which all callers share.
    attempt: Option<Attempt<C, E>>,
    /// The runtime of the hub. `None` without a hub, or after an attempt in this runtime without a
    /// result.
    runtime: Option<Handle>,
}

#[derive(Clone)]
struct Attempt<C, E> {
    /// The channel is closed without a result if the attempt was aborted or has panicked.
    result: watch::Receiver<Option<Result<C, E>>>,
    runtime: runtime::Id,
}

impl<C, E> Default for SharedConnection<C, E> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { connection: None, attempt: None, runtime: None })))
    }
}

fn lock<C, E>(state: &Mutex<State<C, E>>) -> MutexGuard<'_, State<C, E>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C, E> SharedConnection<C, E> {
    /// From now on, opens connections in the runtime of the caller. Requests for the bounds call
    /// this method, because a hub sends them in its own runtime. Has no effect outside of a tokio
    /// runtime.
    pub(super) fn use_this_runtime(&self) {
        if let Ok(runtime) = Handle::try_current() {
            lock(&self.0).runtime = Some(runtime);
        }
    }

    /// Drops the connection if `is_failed` returns `true` for it. The next caller then opens
    /// another connection.
    pub(super) fn close_if(&self, is_failed: impl FnOnce(&C) -> bool) {
        let mut state = lock(&self.0);
        let closed = state.connection.take_if(|connection| is_failed(connection));
        // Dropping a connection can run code of its client library.
        drop(state);
        drop(closed);
    }
}

impl<C, E> SharedConnection<C, E>
where
    C: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<&'static str> + 'static,
{
    /// Returns the connection. Without a connection, opens it with the future that `open` returns.
    /// Callers that arrive during an attempt share this attempt, and its error.
    pub(super) async fn get<F>(&self, open: impl FnOnce() -> F) -> Result<C, E>
    where
        F: Future<Output = Result<C, E>> + Send + 'static,
    {
        let mut attempt = {
            let mut state = lock(&self.0);
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            match &state.attempt {
                Some(attempt) if attempt.result.has_changed().is_ok() => attempt.clone(),
                _ => self.start(&mut state, open()),
            }
        };
        match attempt.result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone()) {
            Some(result) => result,
            None => {
                // The runtime may have ended. The next attempt uses the runtime of its caller,
                // unless a hub in another runtime uses the backend by now.
                let _ended = lock(&self.0).runtime.take_if(|runtime| runtime.id() == attempt.runtime);
                Err("the task that opens the connection was aborted, or has panicked".into())
            }
        }
    }

    fn start<F>(&self, state: &mut State<C, E>, open: F) -> Attempt<C, E>
    where
        F: Future<Output = Result<C, E>> + Send + 'static,
    {
        let (sender, result) = watch::channel(None);
        let runtime = state.runtime.clone().unwrap_or_else(Handle::current);
        let attempt = Attempt { result, runtime: runtime.id() };
        state.attempt = Some(attempt.clone());
        let shared = Arc::clone(&self.0);
        drop(runtime.spawn(async move {
            let result = open.await;
            let mut state = lock(&shared);
            state.attempt = None;
            state.connection = result.as_ref().ok().cloned();
            drop(state);
            sender.send_replace(Some(result));
        }));
        attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::ended_runtime::{output, poll_before_the_end};
    use std::{
        pin::pin,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        task::{Context, Waker},
    };
    use tokio::{
        runtime::{Builder, Id, Runtime},
        task::yield_now,
    };

    const ABORTED: &str = "the task that opens the connection was aborted, or has panicked";

    type Shared<C> = SharedConnection<C, Arc<str>>;

    /// Opens connections, and counts the attempts.
    #[derive(Default)]
    struct Server(Arc<AtomicU32>);

    impl Server {
        /// Returns a connection with the number of the attempt. The first attempt fails.
        fn open(&self) -> impl Future<Output = Result<u32, Arc<str>>> + Send + 'static {
            let attempts = Arc::clone(&self.0);
            async move {
                yield_now().await;
                match attempts.fetch_add(1, Relaxed) {
                    0 => Err("the first attempt fails".into()),
                    number => Ok(number),
                }
            }
        }
    }

    #[tokio::test]
    async fn callers_share_an_attempt_and_its_error() {
        let (shared, server) = (Shared::default(), Server::default());
        let get = || shared.get(|| server.open());
        let (one, other) = tokio::join!(get(), get());
        assert_eq!((one, other), (Err("the first attempt fails".into()), Err("the first attempt fails".into())));
        let (one, other) = tokio::join!(get(), get());
        assert_eq!((one, other, get().await), (Ok(1), Ok(1), Ok(1)));
        shared.close_if(|number| *number == 0);
        assert_eq!(get().await, Ok(1), "another connection has failed");
        shared.close_if(|number| *number == 1);
        assert_eq!(get().await, Ok(2));
    }

    #[tokio::test]
    async fn caller_that_is_not_polled_does_not_block_others() {
        let (shared, server) = (Shared::default(), Server(Arc::new(1.into())));
        let mut stalled = pin!(shared.get(|| server.open()));
        assert!(stalled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(shared.get(|| server.open()).await, Ok(1));
        assert_eq!(stalled.await, Ok(1));
    }

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).build().unwrap()
    }

    /// Opens a connection, and returns the runtime of the task that has opened it.
    async fn runtime_of(shared: &SharedConnection<Id, Arc<str>>) -> Result<Id, Arc<str>> {
        shared.get(|| async { Ok(Handle::current().id()) }).await
    }

    #[test]
    fn connection_is_opened_in_the_runtime_of_the_hub() {
        let (shared, hub, publisher) = (SharedConnection::default(), runtime(), runtime());
        hub.block_on(async { shared.use_this_runtime() });
        assert_eq!(publisher.block_on(runtime_of(&shared)), Ok(hub.handle().id()));
    }

    #[test]
    fn caller_after_an_aborted_attempt_starts_another() {
        let (shared, server) = (Shared::default(), Server::default());
        for _ in 0..2 {
            let mut caller = pin!(shared.get(|| server.open()));
            poll_before_the_end(caller.as_mut());
            assert_eq!(output(caller), Err(ABORTED.into()));
        }
    }

    #[test]
    fn ended_runtime_of_the_hub_is_forgotten() {
        let (shared, publisher) = (SharedConnection::default(), runtime());
        let mut caller = pin!(async {
            shared.use_this_runtime();
            runtime_of(&shared).await
        });
        poll_before_the_end(caller.as_mut());
        assert_eq!(output(caller), Err(ABORTED.into()));
        assert_eq!(publisher.block_on(runtime_of(&shared)), Ok(publisher.handle().id()));
    }

    #[test]
    fn late_caller_does_not_forget_a_new_hub() {
        let (shared, hub, publisher) = (SharedConnection::default(), runtime(), runtime());
        let mut late = pin!(async {
            shared.use_this_runtime();
            runtime_of(&shared).await
        });
        poll_before_the_end(late.as_mut());
        hub.block_on(async { shared.use_this_runtime() });
        assert_eq!(output(late), Err(ABORTED.into()));
        assert_eq!(publisher.block_on(runtime_of(&shared)), Ok(hub.handle().id()));
    }
}
