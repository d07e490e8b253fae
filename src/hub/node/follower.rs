//! The follower: the task that reads the log for the topics of a node.

use super::{
    client::{BackendClient, in_time},
    dyn_backend::DynBackend,
    outage::Outage,
};
use crate::{
    BoxError,
    hub::backend::{Bounds, Page, Position},
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

/// The first and the longest pause of the follower, the task that reads the log, after an error.
/// Each further error doubles the pause. A random factor shortens it, to between half and all of
/// its length. The longest pause is 0.4 s, so that a record is delivered within a second after the
/// end of an outage.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(400)];

/// The time without new records after which the follower, the task that reads the log, asks the
/// backend for the last position.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The number of missed checks after which the follower, the task that reads the log, cancels its
/// `follow` call to the backend and repeats it. The follower checks the end of the log every two
/// seconds while the call returns no page. The check is missed if the log has records that the call
/// has not returned. The limit doubles with each repeated call, because a large page may take
/// longer. It is 3 again after a page has arrived.
const MAX_MISSED_PROBES: u32 = 3;

/// The time limit for the initial read of the log in [`connect`]. After the limit, [`connect`]
/// returns, and a background task reads the rest.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The hub logs a warning if opening the log of the backend takes longer than this time. Opening
/// has no time limit.
const SLOW_OPENING: Duration = Duration::from_secs(5);

/// Receives the log that the follower reads. The follower is a task that reads the log page by
/// page. The implementation of this trait adds the records of each page to the topics in memory.
pub(in crate::hub) trait Node: Send + Sync + 'static {
    /// Switches to another log, because it has replaced the current log. `bounds` describes the
    /// other log. The other log is then delivered from its oldest retained record.
    fn reset(&self, bounds: &Bounds);

    /// Adds the records of the next page of the log to the topics in memory.
    fn deliver(self: &Arc<Self>, page: Page);
}

/// Reads the retained log into the memory of `node`, and spawns the follower: the task that reads
/// new records until the hub is dropped. If reading takes longer than [`CATCH_UP`], the follower
/// reads the rest, and subscriptions on the local node get events later.
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

/// Reads the log page by page from the first record after `after`, and delivers each page to
/// `node`, until the node is dropped. `epoch` identifies the log. If another log has replaced this
/// log, resets the node and continues with the other log. `checks` asks for a check of that. After
/// an error, tries again after a pause.
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

/// The result of a wait of the follower, the task that reads the log.
enum Next {
    Page(Page),
    /// Another log, with these bounds, has replaced the log.
    Replaced(Bounds),
}

/// Waits for the next page of the log after the position `after`. A connection can be dead without
/// an error. So every two seconds, and when `checks` asks for it, the function also asks the
/// backend for the epoch and the last position of the log. A failed request is counted in `outage`.
///
/// Returns [`Next::Replaced`] if the log does not have the epoch `epoch` any more. Returns an
/// error, and doubles `max_missed`, if the backend returns no page although the last position of
/// the log differs from `after` in `max_missed` checks in a row.
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
