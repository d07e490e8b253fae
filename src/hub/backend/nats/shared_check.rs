//! Single-flight for checks that the JetStream stream still holds the same log.

use crate::BoxError;
use std::{
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{sync::Mutex, time::timeout};

/// The maximum time that a caller waits for the checks of other callers. After this time, it shares
/// a new check with later callers. Without this limit, a caller that is not polled would block the
/// others.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// Runs a check of whether the JetStream stream still holds the log that this process knows.
/// Concurrent callers share one check.
///
/// A caller gets the result of a check that began after its call, so the result is never older than
/// the call. A caller that arrives during a check waits for the next check.
pub(super) struct SharedCheck<T> {
    begun: AtomicU64,
    last: SyncMutex<Arc<Last<T>>>,
}

/// The last check that has ended: its number (the checks are counted from 1), and its result.
/// `None` before the first check has ended. The lock is held while a check runs.
type Last<T> = Mutex<Option<Ended<T>>>;

type Ended<T> = (u64, Result<T, Arc<str>>);

impl<T> Default for SharedCheck<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: SyncMutex::default() }
    }
}

impl<T: Clone> SharedCheck<T> {
    pub(super) async fn run(&self, check: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let before = self.begun.load(SeqCst);
        let current = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = loop {
            let shared = Arc::clone(&current());
            if let Ok(last) = timeout(MAX_WAIT, Arc::clone(&shared).lock_owned()).await {
                break last;
            }
            let mut current = current();
            if Arc::ptr_eq(&current, &shared) {
                *current = Arc::default();
            }
        };
        let shared = last.as_ref().filter(|(number, _)| *number > before);
        let result = match shared {
            Some((_, result)) => result.clone(),
            None => {
                let number = self.begun.fetch_add(1, SeqCst) + 1;
                let result = check.await.map_err(|error| Arc::from(error.to_string()));
                *last = Some((number, result.clone()));
                result
            }
        };
        result.map_err(|error| error.to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        sync::atomic::AtomicUsize,
        task::{Context, Waker},
    };
    use tokio::time::sleep;

    #[derive(Default)]
    struct Checks {
        shared: SharedCheck<usize>,
        count: AtomicUsize,
        fails: bool,
    }

    impl Checks {
        async fn run(&self) -> Result<usize, BoxError> {
            let check = async {
                let number = self.count.fetch_add(1, SeqCst);
                sleep(Duration::from_secs(1)).await;
                if number == 2 && self.fails { Err("the third fails".into()) } else { Ok(number) }
            };
            self.shared.run(check).await
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
        let time = Duration::from_millis(1500);
        let both = async { tokio::join!(checks.run(), checks.run()) };
        let (one, other) = timeout(MAX_WAIT + time, both).await.expect("they run a check");
        assert_eq!((one.unwrap(), other.unwrap()), (1, 1), "they share it");
        assert_eq!(timeout(time, checks.run()).await.expect("it does not wait").unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_or_dropped_check_delays_others_once() {
        let checks = Checks { fails: true, ..Checks::default() };
        let tick = Duration::from_millis(1);
        let (dropped, waiting) = tokio::join!(timeout(tick, checks.run()), async {
            sleep(tick / 2).await;
            checks.run().await
        });
        assert!(dropped.is_err());
        assert_eq!(waiting.unwrap(), 1);
        let (one, other) = tokio::join!(checks.run(), checks.run());
        let other = other.map_err(|error| error.to_string());
        assert_eq!((one.unwrap_err().to_string(), other), ("the third fails".to_owned(), Ok(3)));
    }
}
