//! Single-flight for checks that the JetStream stream still holds the same log.

use crate::BoxError;
use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{runtime::Handle, sync::watch};

/// Runs a check of whether the JetStream stream still holds the log that this process knows.
/// Concurrent callers share one check.
///
/// A caller gets the result of a check that began after its call, so the result is never older than
/// the call. A caller that arrives during a check waits for the next check. The checks run in a
/// task of their own, so a caller that is not polled does not block the others.
pub(super) struct SharedCheck<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    /// `true` while a task runs checks.
    is_running: bool,
    /// The check that begins next. `None` if no caller waits for it.
    next: Option<Next<T>>,
}

struct Next<T> {
    check: Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>,
    /// The channel to the callers that share the check.
    result: watch::Sender<Shared<T>>,
}

/// The result of a check, or `None` before the check has ended.
type Shared<T> = Option<Result<T, Arc<str>>>;

impl<T> Default for SharedCheck<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { is_running: false, next: None })))
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Clone + Send + Sync + 'static> SharedCheck<T> {
    /// Returns the result of the next check. Calls `check`, which returns the future, only for the
    /// first caller that waits for the next check. The check runs in `runtime`.
    pub(super) async fn run<F>(&self, runtime: &Handle, check: impl FnOnce() -> F) -> Result<T, BoxError>
    where
        F: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let mut result = self.join(runtime, check);
        match result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone()) {
            Some(result) => result.map_err(|error| error.to_string().into()),
            None => Err("the task that checks the log was aborted, or has panicked".into()),
        }
    }

    fn join<F>(&self, runtime: &Handle, check: impl FnOnce() -> F) -> watch::Receiver<Shared<T>>
    where
        F: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let mut state = lock(&self.0);
        if let Some(next) = &state.next {
            return next.result.subscribe();
        }
        let (sender, result) = watch::channel(None);
        state.next = Some(Next { check: Box::pin(check()), result: sender });
        let starts = !mem::replace(&mut state.is_running, true);
        drop(state);
        if starts {
            let running = Running { state: Arc::clone(&self.0), has_ended: false };
            drop(runtime.spawn(running.run()));
        }
        result
    }
}

/// A guard in the task that runs the checks. If the runtime shuts down and drops the task, the
/// guard makes the waiting callers fail. The next caller then starts another task.
///
/// The guard must exist before the task is spawned, because a runtime can drop a task before it
/// polls the task for the first time.
struct Running<T> {
    state: Arc<Mutex<State<T>>>,
    has_ended: bool,
}

impl<T: Clone> Running<T> {
    async fn run(mut self) {
        while let Some(Next { check, result }) = self.next() {
            let checked = check.await.map_err(|error| Arc::from(error.to_string()));
            result.send_replace(Some(checked));
        }
    }

    fn next(&mut self) -> Option<Next<T>> {
        let mut state = lock(&self.state);
        let next = state.next.take();
        state.is_running = next.is_some();
        self.has_ended = next.is_none();
        next
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut state = lock(&self.state);
        state.is_running = false;
        let aborted = state.next.take();
        drop(state);
        drop(aborted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::ended_runtime::{output, poll_before_the_end};
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        task::{Context, Waker},
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

    #[derive(Default)]
    struct Checks {
        shared: SharedCheck<usize>,
        count: Arc<AtomicUsize>,
        fails: bool,
    }

    impl Checks {
        async fn run(&self) -> Result<usize, BoxError> {
            let check = || {
                let (count, fails) = (Arc::clone(&self.count), self.fails);
                async move {
                    let number = count.fetch_add(1, SeqCst);
                    sleep(Duration::from_secs(1)).await;
                    if number == 2 && fails { Err("the third fails".into()) } else { Ok(number) }
                }
            };
            self.shared.run(&Handle::current(), check).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_checks_share_a_result_no_older_than_themselves() {
        let checks = Checks::default();
        let later = async {
            sleep(Duration::from_millis(1)).await;
            tokio::join!(checks.run(), checks.run(), checks.run())
        };
        let (first, later) = tokio::join!(checks.run(), later);
        assert_eq!((first.unwrap(), later.0.unwrap(), later.1.unwrap(), later.2.unwrap()), (0, 1, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn caller_that_is_not_polled_does_not_block_others() {
        let checks = Checks::default();
        let mut stalled = pin!(checks.run());
        assert!(stalled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        sleep(Duration::from_millis(1)).await;
        let both = async { tokio::join!(checks.run(), checks.run()) };
        let (one, other) = timeout(Duration::from_millis(2500), both).await.expect("they wait for two checks");
        assert_eq!((one.unwrap(), other.unwrap()), (1, 1), "they share the second check");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_caller_and_failed_check_delay_others_once() {
        let checks = Checks { fails: true, ..Checks::default() };
        let tick = Duration::from_millis(1);
        let (dropped, waiting) = tokio::join!(timeout(tick, checks.run()), async {
            sleep(tick / 2).await;
            checks.run().await
        });
        assert!(dropped.is_err());
        assert_eq!(waiting.unwrap(), 1);
        assert_eq!(checks.run().await.unwrap_err().to_string(), "the third fails");
        assert_eq!(checks.run().await.unwrap(), 3);
    }

    #[test]
    fn caller_after_an_aborted_check_starts_another() {
        let checks = Checks::default();
        for _ in 0..2 {
            let mut caller = pin!(checks.run());
            poll_before_the_end(caller.as_mut());
            let error = output(caller).unwrap_err();
            assert_eq!(error.to_string(), "the task that checks the log was aborted, or has panicked");
        }
    }
}
