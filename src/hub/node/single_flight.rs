//! Single-flight: identical concurrent requests share one call.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::poll_fn,
    hash::Hash,
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, watch},
    task::JoinSet,
};

/// Runs calls of a function so that concurrent requests with equal keys share one call.
///
/// Each call runs in its own task, so a request that is not polled cannot block the other requests.
/// A call waits for a semaphore permit before it starts, because the number of running calls is
/// limited. If all requests that share the call are dropped before it starts, the call is dropped,
/// too.
#[derive(Debug)]
pub(super) struct SingleFlight<K, T> {
    shared: Arc<Shared<K, T>>,
    tasks: Mutex<JoinSet<()>>,
}

/// The reasons why [`SingleFlight::run`], a request that may share a function call with other
/// requests, returns no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum RunError {
    /// The function call, which several requests for one key can share, has failed: it returned
    /// `None`, panicked or was aborted.
    Failed,
    /// The request for a key was rejected: it could share no function call for its key, and too
    /// many calls for other keys run or wait to run.
    Full,
}

#[derive(Debug)]
struct Shared<K, T> {
    calls: Mutex<Calls<K, T>>,
    permits: Semaphore,
    max_keys: usize,
}

#[derive(Debug)]
struct Calls<K, T> {
    by_key: HashMap<K, Call<T>>,
    next_number: u64,
}

/// The entry of one key in the map of shared function calls. A function call runs for this key, or
/// waits for a permit of the semaphore that limits the number of running calls. Requests that
/// arrive during a call share the next call, and keep the entry.
#[derive(Debug)]
struct Call<T> {
    /// A number that identifies this entry in the map of calls. Earlier and later entries for an
    /// equal key have other numbers.
    number: u64,
    is_running: bool,
    /// The channel of the next function call for this key, which sends its result to the waiting
    /// requests. A call that already runs has its own channel. Requests subscribe to the channel
    /// only while the map of all calls is locked. So no request can join an entry that is being
    /// removed.
    callers: Callers<T>,
}

/// The channel through which a shared function call sends its result to all waiting requests. The
/// channel contains `None` until the call has returned a value. The channel is closed without a
/// value if the call fails.
type Callers<T> = watch::Sender<Option<T>>;

impl<K, T> SingleFlight<K, T> {
    /// Creates a [`SingleFlight`] that runs at most `max_running` function calls at the same time.
    /// At most `max_keys` calls run or wait to run. A request for one more key fails with
    /// [`RunError::Full`].
    pub(super) fn new(max_running: usize, max_keys: usize) -> Self {
        let calls = Mutex::new(Calls { by_key: HashMap::new(), next_number: 0 });
        let permits = Semaphore::new(max_running);
        Self { shared: Arc::new(Shared { calls, permits, max_keys }), tasks: Mutex::default() }
    }
}

impl<K: Eq + Hash, T> SingleFlight<K, T> {
    /// Returns the number of keys with a shared function call that runs or waits to run.
    pub(super) fn len(&self) -> usize {
        self.shared.calls().by_key.len()
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static, T: Clone + Send + Sync + 'static> SingleFlight<K, T> {
    /// Returns the value of a call of `f` that starts after this request, so the value is never
    /// older than the request. Concurrent requests with an equal `key` share the call.
    ///
    /// If a call for the key is already running, the request waits for the next call. The call runs
    /// in a task on `runtime`, and uses the `f` of the first request. Fails if `f` returns `None`
    /// or panics, or if there are too many other keys.
    pub(super) async fn run<F>(
        &self,
        runtime: &Handle,
        key: K,
        f: impl Fn() -> F + Send + 'static,
    ) -> Result<T, RunError>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let (mut caller, starts) = self.shared.join(key)?;
        if let Some(in_flight) = starts {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(in_flight.serve(f), runtime);
        }
        let value = caller.value.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        value.ok_or(RunError::Failed)
    }
}

impl<K: Eq + Hash, T> Shared<K, T> {
    fn calls(&self) -> MutexGuard<'_, Calls<K, T>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash, T> Shared<K, T> {
    /// Adds a request for `key` that waits for the result of the shared function call. If there is
    /// no call for this key yet, creates the call and also returns it, because this request then
    /// has to start it. Returns [`RunError::Full`] if a new call would exceed the limit.
    fn join(self: &Arc<Self>, key: K) -> Result<Joined<K, T>, RunError> {
        let mut calls = self.calls();
        let Calls { by_key, next_number } = &mut *calls;
        let is_full = by_key.len() >= self.max_keys;
        let (call, is_new) = match by_key.entry(key.clone()) {
            Entry::Occupied(call) => (call.into_mut(), false),
            Entry::Vacant(_) if is_full => return Err(RunError::Full),
            Entry::Vacant(free) => {
                *next_number += 1;
                let callers = Callers::new(None);
                (free.insert(Call { number: *next_number, is_running: false, callers }), true)
            }
        };
        let (number, value) = (call.number, call.callers.subscribe());
        drop(calls);
        let withdraw = Withdraw { shared: Arc::clone(self), key: key.clone(), number };
        let caller = Caller { value, _withdraw: withdraw };
        let starts = is_new.then(|| InFlight { shared: Arc::clone(self), key, number });
        Ok((caller, starts))
    }
}

impl<K: Eq + Hash, T> Calls<K, T> {
    fn get_mut(&mut self, key: &K, number: u64) -> Option<&mut Call<T>> {
        self.by_key.get_mut(key).filter(|call| call.number == number)
    }

    /// Removes and returns the shared function call for `key` that has this `number`, if the call
    /// is not running and no request waits for its result. Does not touch another call for an equal
    /// key, which has another number.
    fn remove_if_unused(&mut self, key: &K, number: u64) -> Option<Call<T>> {
        let call = self.get_mut(key, number)?;
        if call.is_running || call.callers.receiver_count() > 0 { None } else { self.by_key.remove(key) }
    }
}

/// The result of [`Shared::join`]. The first part is the added request, which waits for the result
/// of the shared function call. The second part is the call, which the caller has to start, or
/// `None` if an earlier request has created the call.
type Joined<K, T> = (Caller<K, T>, Option<InFlight<K, T>>);

/// A request that waits for the result of a shared function call. The fields must be dropped in
/// this order: first the receiver of the result, then `_withdraw`, which removes a call that has no
/// receiver any more.
struct Caller<K: Eq + Hash, T> {
    value: watch::Receiver<Option<T>>,
    _withdraw: Withdraw<K, T>,
}

/// A guard of one request for a shared function call. When the guard is dropped, the call is
/// removed from the map if it is not running and no other request waits for its result.
struct Withdraw<K: Eq + Hash, T> {
    shared: Arc<Shared<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T> Drop for Withdraw<K, T> {
    fn drop(&mut self) {
        let withdrawn = self.shared.calls().remove_if_unused(&self.key, self.number);
        drop(withdrawn);
    }
}

/// The task that calls the function that was passed to [`SingleFlight::run`], for one key. All
/// concurrent requests for this key share the result of a call.
struct InFlight<K: Eq + Hash, T> {
    shared: Arc<Shared<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T> InFlight<K, T> {
    /// Calls `f` and sends its value to all requests that were waiting when the call began. While
    /// `f` runs, further requests may arrive. So calls `f` again for these requests, until no
    /// request waits.
    async fn serve<F: Future<Output = Option<T>>>(self, f: impl Fn() -> F) {
        while let Some(permit) = self.permit().await {
            let Some(callers) = self.begin() else { return };
            let value = f().await;
            drop(permit);
            if value.is_some() {
                callers.send_replace(value);
            }
            self.end();
        }
    }

    /// Waits for a semaphore permit to run the shared function call. Returns `None` if all requests
    /// that wait for the result are dropped before the permit is available.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        let mut permit = pin!(self.shared.permits.acquire());
        loop {
            let callers = self.shared.calls().get_mut(&self.key, self.number)?.callers.clone();
            let mut left = pin!(callers.closed());
            let permit = poll_fn(|cx| match left.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => permit.as_mut().poll(cx).map(Result::ok),
            });
            if let Some(permit) = permit.await {
                return Some(permit);
            }
            // Another caller may have joined since, so this is checked again under the lock.
            let withdrawn = self.shared.calls().remove_if_unused(&self.key, self.number);
            drop(withdrawn);
        }
    }

    /// Notes that the function now runs for the waiting requests of this key. Returns the channel
    /// that sends the result to these requests. Requests that arrive later get a new channel, and
    /// share the next call of the function. If no request waits any more, removes the key from the
    /// map of calls and returns `None`.
    fn begin(&self) -> Option<Callers<T>> {
        let mut calls = self.shared.calls();
        let withdrawn = calls.remove_if_unused(&self.key, self.number);
        let callers = calls.get_mut(&self.key, self.number).map(|call| {
            call.is_running = true;
            mem::replace(&mut call.callers, Callers::new(None))
        });
        drop(calls);
        drop(withdrawn);
        callers
    }

    /// Notes that the function has returned. Removes the key from the map of calls if no further
    /// request for it waits. Otherwise [`serve`](Self::serve) calls the function again for the
    /// further requests.
    fn end(&self) {
        let mut calls = self.shared.calls();
        if let Some(call) = calls.get_mut(&self.key, self.number) {
            call.is_running = false;
        }
        let unused = calls.remove_if_unused(&self.key, self.number);
        drop(calls);
        drop(unused);
    }
}

/// Dropping an [`InFlight`], the task of a shared function call, removes the call from the map if
/// the task panicked or was aborted. The requests that wait for its result then fail with
/// [`RunError::Failed`].
impl<K: Eq + Hash, T> Drop for InFlight<K, T> {
    fn drop(&mut self) {
        let mut calls = self.shared.calls();
        let call = calls.get_mut(&self.key, self.number).is_some().then(|| calls.by_key.remove(&self.key));
        drop(calls);
        drop(call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicU64, Ordering::Relaxed},
        task::{Context, Waker},
        time::Duration,
    };
    use tokio::time::{Instant, sleep, timeout};

    const MAX_RUNNING: usize = 2;
    const MAX_KEYS: usize = 4;
    const SECOND: Duration = Duration::from_secs(1);

    fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// A test fixture that runs shared function calls. Each call takes a second and returns the
    /// number of calls that were started before it. The call that would return 7 panics.
    struct World {
        flights: SingleFlight<u32, u64>,
        calls: Arc<AtomicU64>,
    }

    impl World {
        fn new() -> Self {
            Self { flights: SingleFlight::new(MAX_RUNNING, MAX_KEYS), calls: Arc::default() }
        }

        async fn run(&self, key: u32) -> Result<u64, RunError> {
            let calls = Arc::clone(&self.calls);
            let call = move || {
                let calls = Arc::clone(&calls);
                async move {
                    let n = calls.fetch_add(1, Relaxed);
                    sleep(SECOND).await;
                    assert_ne!(n, 7, "the eighth call panics");
                    Some(n)
                }
            };
            self.flights.run(&Handle::current(), key, call).await
        }

        fn keys(&self) -> usize {
            self.flights.len()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_the_next_call() {
        let world = World::new();
        let others = async {
            // Join while the first call runs.
            sleep(Duration::from_millis(1)).await;
            tokio::join!(world.run(0), world.run(0), world.run(0))
        };
        let (first, others) = tokio::join!(world.run(0), others);
        assert_eq!((first, others), (Ok(0), (Ok(1), Ok(1), Ok(1))));
        assert_eq!(world.run(0).await, Ok(2));
        assert_eq!(world.keys(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_or_cancelled_callers_block_no_other() {
        let world = World::new();
        let mut idle = Box::pin(world.run(0));
        assert!(timeout(Duration::from_millis(1), idle.as_mut()).await.is_err());
        assert!(timeout(Duration::from_millis(1), world.run(0)).await.is_err());
        assert_eq!(world.run(0).await, Ok(1));
        assert_eq!(idle.await, Ok(0));
        assert_eq!(world.calls.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_panics_fails_and_can_be_repeated() {
        let world = World::new();
        world.calls.store(7, Relaxed);
        assert_eq!(world.run(0).await, Err(RunError::Failed));
        assert_eq!(world.run(0).await, Ok(8));
        assert_eq!((world.keys(), world.flights.shared.permits.available_permits()), (0, MAX_RUNNING));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_call_without_callers_is_withdrawn() {
        let world = World::new();
        let mut running = [Box::pin(world.run(0)), Box::pin(world.run(1))];
        for caller in &mut running {
            assert!(timeout(Duration::from_millis(1), caller).await.is_err());
        }
        for _ in 0..1000 {
            // Both callers leave early: one before the task of its call was polled, the other after
            // that.
            assert!(poll_once(world.run(2)).is_none());
            assert!(timeout(Duration::ZERO, world.run(3)).await.is_err());
        }
        assert_eq!(world.keys(), 2);
        let begin = Instant::now();
        assert_eq!(world.run(4).await, Ok(2));
        assert!(begin.elapsed() <= 2 * SECOND, "{:?}", begin.elapsed());
        for (n, caller) in (0..).zip(running) {
            assert_eq!(caller.await, Ok(n));
        }
        assert_eq!((world.calls.load(Relaxed), world.keys()), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn call_is_rejected_while_the_queue_is_full() {
        let world = World::new();
        let mut callers: Vec<_> = (0..MAX_KEYS as u32).map(|key| Box::pin(world.run(key))).collect();
        assert!(callers.iter_mut().all(|caller| poll_once(caller).is_none()));
        assert_eq!(world.run(9).await, Err(RunError::Full));
        // A call that waits for a permit accepts any number of further callers.
        assert!(poll_once(world.run(3)).is_none());
        drop(callers.pop());
        let last = Box::pin(world.run(9));
        callers.push(last);
        for caller in callers {
            assert!(caller.await.is_ok());
        }
        assert_eq!((world.calls.load(Relaxed), world.keys()), (4, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn callers_that_join_and_leave_on_four_threads_never_fail() {
        let flights = Arc::new(SingleFlight::<u32, u32>::new(MAX_RUNNING, 64));
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let flights = Arc::clone(&flights);
            tasks.spawn(async move {
                for n in 0..5_000 {
                    let key = (task + n) % 3;
                    let call = move || async move {
                        tokio::task::yield_now().await;
                        Some(key)
                    };
                    let runtime = Handle::current();
                    let run = flights.run(&runtime, key, call);
                    if n % 2 == 0 {
                        assert_eq!(run.await, Ok(key));
                    } else if let Some(early) = poll_once(run) {
                        assert_eq!(early, Ok(key));
                    }
                }
            });
        }
        while let Some(ended) = timeout(Duration::from_secs(60), tasks.join_next()).await.expect("no caller is stuck") {
            ended.unwrap();
        }
        assert_eq!(flights.shared.permits.available_permits(), MAX_RUNNING);
    }
}
