//! Measurements that are more than a load of fixed rate: saturation, idle streams, reconnects.

use crate::{
    client::{Stream, Verifier},
    measure::{Figures, Run, latency},
    row::Row,
    server::Schedule,
};
use std::{
    io,
    time::{Duration, Instant},
};

/// The number of bursts per second.
const BURSTS: f64 = 200.0;
/// The length of a step, in seconds.
const STEP: f64 = 0.5;
/// The largest burst. All steps together fit into the log of a hub, if it retains 65,536 events.
const LARGEST: u64 = 12_800;
/// The number of reconnects per second. At a higher rate, the client would be the bottleneck.
const RECONNECTS: f64 = 4000.0;
/// The number of reconnects that begin at the same time.
const RECONNECTS_AT_ONCE: usize = 100;
/// No step begins later than this. On a busy machine, a step takes longer.
const ALL_STEPS: Duration = Duration::from_secs(12);
/// The seconds between two heartbeats.
const HEARTBEAT: f64 = 15.0;

/// Doubles the bursts until each event costs no less, and returns the figures of the best step.
pub fn saturation(run: &mut Run, row: &Row) -> io::Result<Figures> {
    run.open_all(row)?;
    run.client.totals().sample_mask = 63;
    let mut best: Option<Figures> = None;
    let mut worse = 0;
    let mut burst = 25;
    let begin = Instant::now();
    while burst <= LARGEST && worse < 2 && (best.is_none() || begin.elapsed() < ALL_STEPS) {
        let rate = BURSTS * burst as f64;
        let schedule = Schedule { count: (BURSTS * STEP) as u64 * burst, rate, burst };
        let figures = match (run.figures(|run| run.deliver(row, &schedule)), &best) {
            (Ok(figures), _) => figures,
            // Beyond saturation, events are lost.
            (Err(_), Some(_)) => break,
            (Err(error), None) => return Err(error),
        };
        worse = if best.is_some_and(|best| figures.cpu > 0.97 * best.cpu) { worse + 1 } else { 0 };
        if best.is_none_or(|best| figures.cpu < best.cpu) {
            best = Some(figures);
        }
        burst *= 2;
    }
    best.ok_or_else(|| io::Error::other("no step was measured"))
}

/// Measures the heartbeats of idle streams: one for each stream.
pub fn idle(run: &mut Run, row: &Row) -> io::Result<Figures> {
    run.open_all(row)?;
    let figures = run.figures(|run| run.read_for(HEARTBEAT))?;
    let heartbeats = run.client.totals().heartbeats;
    if (heartbeats as usize) < row.clients / 2 {
        return Err(io::Error::other(format!("{heartbeats} heartbeats came to {} streams", row.clients)));
    }
    Ok(figures)
}

/// Reconnects all clients with an id after which they missed events. The latency is that of the
/// first event, from the beginning of the connection.
pub fn reconnect(run: &mut Run, row: &Row, missed: u64) -> io::Result<Figures> {
    run.client.open(1, || Stream::new(Verifier::beginning_with(0)))?;
    run.server.publish(&Schedule { count: 1, rate: 1000.0, burst: 1 })?;
    run.receive(1)?;
    let last_id = run.client.streams().next().map(|stream| stream.last_id.clone()).unwrap_or_default();
    run.server.publish(&Schedule { count: missed, rate: 1000.0, burst: 1 })?;
    run.receive(missed)?;

    let clients = row.clients - 1;
    let wanted = run.client.totals().events + clients as u64 * missed;
    run.client.totals().first_events.clear();
    let figures = run.figures(|run| {
        let begin = Instant::now();
        for opened in (0..clients).step_by(RECONNECTS_AT_ONCE) {
            let count = RECONNECTS_AT_ONCE.min(clients - opened);
            run.client.open(count, || Stream::resuming(Verifier::beginning_with(1), last_id.clone()))?;
            let due = begin + Duration::from_secs_f64((opened + count) as f64 / RECONNECTS);
            run.client.run_until(due, |_| false)?;
        }
        let left = wanted - run.client.totals().events;
        run.receive(left)
    })?;
    Ok(Figures { latency: latency(&mut run.client.totals().first_events), ..figures })
}
