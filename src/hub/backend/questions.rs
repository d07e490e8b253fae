//! What many ask of a backend at the same time is asked once.

use crate::BoxError;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{runtime::Handle, sync::oneshot, task::JoinSet};

/// Questions that are put in tasks of their own: who asks may not be polled for a long time, as the body of a client that does
/// not read, and is nobody for others to wait for.
#[derive(Debug)]
pub(super) struct Questions<K, T> {
    asking: Arc<Asking<K, T>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Who waits for the next answer to each question that is under way.
#[derive(Debug)]
struct Asking<K, T>(Mutex<HashMap<K, Waiting<T>>>);

type Waiting<T> = Vec<oneshot::Sender<Option<T>>>;

impl<K, T> Default for Questions<K, T> {
    fn default() -> Self {
        Self { asking: Arc::new(Asking(Mutex::default())), tasks: Mutex::default() }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static, T: Clone + Send + 'static> Questions<K, T> {
    /// The answer, or `None` if there is none now. It is for all who asked before the question was put, and for nobody else: so it is
    /// never older than who asked, and who asks meanwhile shares the next one.
    pub(super) async fn ask<A>(&self, runtime: &Handle, about: K, put: impl Fn() -> A + Send + 'static) -> Option<T>
    where
        A: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let is_under_way = match self.asking.lock().entry(about.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(tell);
                true
            }
            Entry::Vacant(free) => {
                free.insert(vec![tell]);
                false
            }
        };
        if !is_under_way {
            let asked = Asked { asking: Arc::clone(&self.asking), about: Some(about) };
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(asked.answer(put), runtime);
        }
        told.await.ok().flatten()
    }
}

impl<K, T> Asking<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Waiting<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that is under way. `None`: nobody waits any more.
struct Asked<K: Eq + Hash, T> {
    asking: Arc<Asking<K, T>>,
    about: Option<K>,
}

impl<K: Eq + Hash, T: Clone> Asked<K, T> {
    async fn answer<A: Future<Output = Result<T, BoxError>>>(mut self, put: impl Fn() -> A) {
        while let Some(waiting) = self.waiting() {
            let answer = put().await.ok();
            for tell in waiting {
                // Who has gone does not need it.
                let _is_there = tell.send(answer.clone());
            }
        }
    }

    /// Who has asked by now; at the end nobody.
    fn waiting(&mut self) -> Option<Waiting<T>> {
        let about = self.about.take()?;
        let mut asking = self.asking.lock();
        let mut waiting = mem::take(asking.get_mut(&about)?);
        waiting.retain(|tell| !tell.is_closed());
        if waiting.is_empty() {
            asking.remove(&about);
            return None;
        }
        drop(asking);
        self.about = Some(about);
        Some(waiting)
    }
}

/// It has not come to its end: whoever waits is told that there is no answer.
impl<K: Eq + Hash, T> Drop for Asked<K, T> {
    fn drop(&mut self) {
        if let Some(about) = self.about.take() {
            self.asking.lock().remove(&about);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicU64, Ordering::Relaxed},
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

    #[derive(Default)]
    struct World {
        questions: Questions<u8, u64>,
        put: Arc<AtomicU64>,
    }

    impl World {
        async fn ask(&self) -> Option<u64> {
            let put = Arc::clone(&self.put);
            let question = move || {
                let put = Arc::clone(&put);
                async move {
                    let n = put.fetch_add(1, Relaxed);
                    sleep(Duration::from_secs(1)).await;
                    if n == 7 { panic!("the seventh is one too many") } else { Ok(n) }
                }
            };
            self.questions.ask(&Handle::current(), 0, question).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_at_the_same_time_shares_an_answer_that_is_not_older() {
        let world = World::default();
        let others = async {
            // While the first question is under way.
            sleep(Duration::from_millis(1)).await;
            tokio::join!(world.ask(), world.ask(), world.ask())
        };
        let (first, others) = tokio::join!(world.ask(), others);
        assert_eq!((first, others), (Some(0), (Some(1), Some(1), Some(1))));
        assert_eq!(world.ask().await, Some(2));
        assert!(world.questions.asking.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_that_does_not_listen_or_has_gone() {
        let world = World::default();
        let mut silent = Box::pin(world.ask());
        assert!(timeout(Duration::from_millis(1), silent.as_mut()).await.is_err());
        assert!(timeout(Duration::from_millis(1), world.ask()).await.is_err());
        assert_eq!(world.ask().await, Some(1));
        assert_eq!(silent.await, Some(0));
        assert_eq!(world.put.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_lost_has_no_answer_and_can_be_put_again() {
        let world = World::default();
        world.put.store(7, Relaxed);
        assert_eq!(world.ask().await, None);
        assert_eq!(world.ask().await, Some(8));
    }
}
