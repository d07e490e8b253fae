//! The follower: the task of a node that reads the records of the shared log in their order, and
//! adds them to the topics in memory.

use super::{
    client::{BackendClient, in_time},
    dyn_backend::DynBackend,
};
use crate::{
    BoxError,
    hub::{
        backend::{Bounds, Page, Position},
        outage::Outage,
    },
    random, trace,
};
use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep, timeout, timeout_at},
};

/// The pause of the follower, the task that reads the log, after its first error, 25 ms, and its
/// longest pause, 0.4 s. Each further error doubles the pause. A random factor shortens each pause,
/// to between half and all of its length. The limit of 0.4 s lets a record be delivered within a
/// second after the end of an outage.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(400)];

/// The interval between two requests of the follower, the task that reads the log, for the last
/// position of the log. The follower sends these requests while no new records arrive.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of missed checks before the follower, the task that reads the log, cancels
/// its `follow` call to the backend and repeats it. While the call returns no page, the follower
/// asks for the last position of the log every two seconds. Such a check is missed if the log has
/// records that the call has not returned. The limit doubles with each repeated call, because a
/// large page may take longer. After a page has arrived, the limit is 3 again.
const MAX_MISSED_PROBES: u32 = 3;

/// The time limit for the initial read of the log in [`connect`], which connects a hub to its
/// backend. After the limit, [`connect`] returns, and a background task reads the rest.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The time after which the hub logs a warning while it opens the log of the backend: 5 s. Opening
/// has no time limit.
const SLOW_OPENING: Duration = Duration::from_secs(5);

/// Receives the records that the follower, a task, reads from the log. The follower reads page by
/// page: a page is the result of one read. The implementation of this trait adds the records of
/// each page to the topics in memory.
pub(in crate::hub) trait Node: Send + Sync + 'static {
    /// Begins to follow a log: the first log of the node, or another log that has replaced the
    /// previous one. `bounds` has the epoch of this log (the number that identifies it), and the
    /// positions that it retains. The records of this log are delivered next, from its oldest
    /// retained record.
    fn reset(self: &Arc<Self>, bounds: &Bounds);

    /// Adds the records of the next page of the log to the topics in memory.
    fn deliver(self: &Arc<Self>, page: Page);
}

/// Reads the retained log into the memory of `node`, and spawns the follower: the task that reads
/// new records until the hub is dropped. If reading takes longer than [`CATCH_UP`], the function
/// returns, and the follower reads the rest. Until the follower has read the rest, new events reach
/// the subscriptions on the local node late.
///
/// Reading a million records takes 0.3 s if the backend keeps them in memory. The node then knows
/// the finished topics and the newest state of each topic, and can resume clients without the
/// backend. Returns an error outside of a tokio runtime, or if the backend fails.
pub(in crate::hub) async fn connect<N: Node>(node: &Arc<N>, client: &BackendClient) -> Result<(), BoxError> {
    let runtime = Handle::try_current()?;
    client.set_runtime(&runtime);
    let backend = client.backend();
    open(&*backend).await?;
    let bounds = in_time(backend.bounds()).await?;
    node.reset(&bounds);
    let mut after = bounds.evicted_through;
    let catch_up = async {
        while after < bounds.last {
            let page = backend.follow(after).await?;
            if page.epoch != bounds.epoch {
                break;
            }
            after = page.through;
            node.deliver(page);
            // A backend whose futures are always ready would otherwise block the other tasks of
            // this thread.
            yield_now().await;
        }
        Ok::<_, BoxError>(())
    };
    timeout(CATCH_UP, catch_up).await.unwrap_or(Ok(()))?;
    let follower = runtime.spawn(follow(backend, client.checks(), Arc::downgrade(node), after, bounds.epoch));
    client.set_follower(follower.abort_handle());
    Ok(())
}

/// Opens the log of the backend. Logs a warning if this takes long, because the caller may have to
/// wait for minutes.
async fn open(backend: &dyn DynBackend) -> Result<(), BoxError> {
    let mut opened = pin!(backend.open());
    match timeout(SLOW_OPENING, opened.as_mut()).await {
        Ok(opened) => opened,
        Err(_) => {
            trace::backend_opens_slowly(SLOW_OPENING);
            opened.await
        }
    }
}

/// Reads the log page by page from the first record after `after`, and passes each page to `node`,
/// the hub, until the hub is dropped. `epoch` identifies the log. If another log has replaced this
/// log, makes the hub end its subscriptions and forget its topics, and continues with the other
/// log. A notification of `checks` makes the function ask the backend at once whether the log was
/// replaced. After an error, the function pauses and tries again.
async fn follow<N: Node>(
    backend: Arc<dyn DynBackend>,
    checks: Arc<Notify>,
    node: Weak<N>,
    mut after: Position,
    mut epoch: u64,
) {
    let [mut pause, longest] = PAUSES;
    let mut max_missed = MAX_MISSED_PROBES;
    let outage = Outage::of("follow");
    loop {
        let replaced_by = match next(&*backend, &checks, after, epoch, &mut max_missed, &outage).await {
            Ok(Next::Page(page)) if page.epoch == epoch => {
                let Some(node) = node.upgrade() else { return };
                outage.succeeded();
                (pause, max_missed) = (PAUSES[0], MAX_MISSED_PROBES);
                after = page.through;
                node.deliver(page);
                drop(node);
                yield_now().await;
                continue;
            }
            Ok(Next::Page(_)) => None,
            Ok(Next::Replaced(bounds)) => {
                outage.failed(&"another log has replaced the log".into());
                Some(bounds)
            }
            Err(error) => {
                outage.failed(&error);
                None
            }
        };
        // The log may have been replaced during the outage, so its epoch is checked before the next
        // page.
        let bounds = match replaced_by {
            Some(bounds) => bounds,
            None => loop {
                sleep(pause.mul_f64(0.5 + random::fraction() / 2.0)).await;
                pause = longest.min(pause * 2);
                match in_time(backend.bounds()).await {
                    Ok(bounds) => break bounds,
                    Err(error) => outage.failed(&error),
                }
            },
        };
        let Some(node) = node.upgrade() else { return };
        if bounds.epoch != epoch || bounds.last < after {
            (epoch, after) = (bounds.epoch, bounds.evicted_through);
            node.reset(&bounds);
        }
    }
}

/// The result of [`next`], which waits for the next page of the log.
enum Next {
    Page(Page),
    /// Another log has replaced the log that the follower, a task, was reading. [`Bounds`] has the
    /// epoch of the other log (the number that identifies it), and the range of positions that it
    /// retains.
    Replaced(Bounds),
}

/// Waits for the next page of the log, the next records after the position `after`, and returns it.
/// A dead connection to the backend may cause no error. So the function also asks the backend for
/// the epoch (the number that identifies the log) and the last position of the log. It asks every
/// two seconds, and when a subscription notifies `checks`, because its client has an id of another
/// log. A failed request is counted in `outage`.
///
/// Returns [`Next::Replaced`] if the log has another epoch than `epoch`. Returns an error after
/// `max_missed` missed checks, and then doubles `max_missed`, because a large page may take longer.
/// A two-second check is missed if the last position of the log differs from `after`, although the
/// backend has returned no page. A check that finds the position `after` sets the count to zero.
async fn next(
    backend: &dyn DynBackend,
    checks: &Notify,
    after: Position,
    epoch: u64,
    max_missed: &mut u32,
    outage: &Outage,
) -> Result<Next, BoxError> {
    let mut page = pin!(backend.follow(after));
    let mut missed = 0;
    let mut due = Instant::now() + PROBE_INTERVAL;
    while missed < *max_missed {
        let mut check = pin!(checks.notified());
        let page_or_check = poll_fn(|cx| match page.as_mut().poll(cx) {
            Poll::Ready(page) => Poll::Ready(Some(page)),
            Poll::Pending => check.as_mut().poll(cx).map(|()| None),
        });
        let is_due = match timeout_at(due, page_or_check).await {
            Ok(Some(page)) => return page.map(Next::Page),
            Ok(None) => false,
            Err(_) => true,
        };
        let mut bounds = pin!(in_time(backend.bounds()));
        let bounds = poll_fn(|cx| match page.as_mut().poll(cx) {
            Poll::Ready(page) => Poll::Ready(Err(page)),
            Poll::Pending => bounds.as_mut().poll(cx).map(Ok),
        });
        match bounds.await {
            Err(page) => return page.map(Next::Page),
            Ok(Ok(bounds)) if bounds.epoch != epoch => return Ok(Next::Replaced(bounds)),
            Ok(Ok(bounds)) if bounds.last == after => {
                missed = 0;
                outage.succeeded();
            }
            Ok(Ok(_)) => missed += u32::from(is_due),
            Ok(Err(error)) => outage.failed(&error),
        }
        if is_due {
            due = Instant::now() + PROBE_INTERVAL;
        }
    }
    *max_missed = max_missed.saturating_mul(2);
    Err("the backend does not hand out what is in the log".into())
}
