//! Compares what every client received with what was acknowledged.

use crate::{
    checker::Numbers,
    received::{LogPosition, Received, ReportedGap},
};
use e2e::StoreKind;
use std::{collections::BTreeMap, fmt, time::Duration};

/// Events that were published together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) numbers: Numbers,
    /// The id of the last event, if the batch was acknowledged. After an error, the log may contain
    /// the batch once.
    pub(crate) id: Result<String, String>,
    pub(crate) took: Duration,
}

/// The result of a check.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The number of acknowledged events. The check has compared each of them for each client.
    pub(crate) acknowledged: usize,
    /// The number of events whose publication was an error, and how many of them are in the log.
    pub(crate) failed: usize,
    pub(crate) stored_despite_error: usize,
    /// The number of deliveries to all clients.
    pub(crate) delivered: usize,
    /// The gaps of each client.
    pub(crate) gaps: Vec<Vec<ReportedGap>>,
    /// The error messages, and their counts.
    pub(crate) errors: BTreeMap<String, usize>,
    /// The longest time until an error.
    pub(crate) slowest_error: Duration,
}

impl Report {
    /// Asserts that there are no gaps, and at least this many acknowledged events.
    pub(crate) fn assert_nothing_missed(self, min_events: usize) -> Self {
        assert!(self.gaps.iter().all(Vec::is_empty), "clients received gaps: {:?}", self.gaps);
        self.assert_acknowledged(min_events)
    }

    /// Asserts that at least this many events are acknowledged, so that the test has had its load.
    pub(crate) fn assert_acknowledged(self, min_events: usize) -> Self {
        assert!(self.acknowledged >= min_events, "{} of {min_events} events are acknowledged", self.acknowledged);
        assert!(self.delivered > 0 && !self.gaps.is_empty(), "no client has received an event");
        self
    }

    /// Asserts that there were errors during the outage, and that each came within this time.
    pub(crate) fn assert_errors_within(self, time: Duration) -> Self {
        assert!(self.failed > 0, "no publication was an error");
        assert!(self.slowest_error < time, "an error took {:?}", self.slowest_error);
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, failed, stored_despite_error: stored, delivered, slowest_error, .. } = self;
        write!(
            f,
            "{acknowledged} acknowledged; {failed} errors within {slowest_error:.1?}, {stored} of them stored; "
        )?;
        write!(f, "{delivered} delivered to {} clients; ", self.gaps.len())?;
        for (client, gaps) in self.gaps.iter().enumerate() {
            for ReportedGap { reason, at, missed, .. } in gaps {
                write!(f, "client {client} received a gap {reason:?} of {missed} events after {at}; ")?;
            }
        }
        for (error, times) in &self.errors {
            write!(f, "\n    {times} × {error:?}")?;
        }
        Ok(())
    }
}

/// The deadline of a gap for a missing event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum GapTiming {
    /// Before any later event.
    #[default]
    BeforeLaterEvents,
    /// At any time: a node may learn of a failover after its clients received later events.
    AnyTime,
}

/// Compares the batches of each publisher with what each client received.
pub(crate) fn compare(kind: StoreKind, timing: GapTiming, published: &[Vec<Batch>], clients: Vec<Received>) -> Report {
    let mut report = Report::default();
    assert_ids_unique(published);
    let positions = positions_of_events(published, &clients);
    for batch in published.iter().flatten() {
        match &batch.id {
            Ok(_) => report.acknowledged += batch.numbers.len(),
            Err(error) => {
                report.failed += batch.numbers.len();
                report.slowest_error = report.slowest_error.max(batch.took);
                *report.errors.entry(error.clone()).or_default() += 1;
            }
        }
    }
    for (publisher, batches) in published.iter().enumerate() {
        for batch in batches.iter().filter(|batch| batch.id.is_err()) {
            let stored = batch.numbers.clone().filter(|n| positions[publisher][*n as usize].is_some()).count();
            report.stored_despite_error += stored;
        }
    }
    for (name, mut client) in clients.into_iter().enumerate() {
        check_client(kind, timing, name, published, &positions, &mut client);
        report.delivered += client.events.len();
        report.gaps.push(client.gaps);
    }
    report
}

fn assert_ids_unique(published: &[Vec<Batch>]) {
    let mut ids = BTreeMap::new();
    for (publisher, batch) in (0..).zip(published).flat_map(|(n, batches)| batches.iter().map(move |batch| (n, batch)))
    {
        let Ok(id) = &batch.id else { continue };
        let other = ids.insert(id, (publisher, &batch.numbers));
        assert!(other.is_none(), "{id} was returned to {publisher}/{:?} and to {other:?}", batch.numbers);
    }
}

/// Returns the position of each event that a client received. Asserts that clients agree on it.
fn positions_of_events(published: &[Vec<Batch>], clients: &[Received]) -> Vec<Vec<Option<LogPosition>>> {
    let counts = published.iter().map(|batches| batches.last().map_or(0, |batch| batch.numbers.end as usize));
    let mut positions: Vec<Vec<Option<LogPosition>>> = counts.map(|count| vec![None; count]).collect();
    for client in clients {
        for (position, publisher, n) in &client.events {
            let known = positions.get_mut(*publisher).and_then(|positions| positions.get_mut(*n as usize));
            let known = known.unwrap_or_else(|| panic!("{publisher}/{n} was not published"));
            assert_eq!(*known.get_or_insert(*position), *position, "{publisher}/{n} has several positions");
        }
    }
    positions
}

fn check_client(
    kind: StoreKind,
    timing: GapTiming,
    name: usize,
    published: &[Vec<Batch>],
    positions: &[Vec<Option<LogPosition>>],
    client: &mut Received,
) {
    let events = &client.events;
    for (one, other) in events.iter().zip(events.iter().skip(1)) {
        assert!(one.0 < other.0, "{kind:?}: client {name} received {one:?} and then {other:?}");
    }
    // The index of each received event. Positions rise, and each event has one position, so no
    // event is there twice.
    let mut indices: Vec<Vec<Option<u32>>> = positions.iter().map(|positions| vec![None; positions.len()]).collect();
    for (index, (_, publisher, n)) in (0..).zip(events) {
        let before = indices[*publisher][*n as usize].replace(index);
        assert_eq!(before, None, "{kind:?}: client {name} received {publisher}/{n} twice");
    }
    for gap in &client.gaps {
        let next = events.get(gap.at).map(|(position, ..)| *position);
        let is_resumed = gap.resumed.is_none() || next.is_none() || gap.resumed == next;
        assert!(is_resumed, "{kind:?}: client {name} resumed at {next:?}: {gap:?}");
    }

    let mut gaps = std::mem::take(&mut client.gaps);
    for (publisher, batches) in published.iter().enumerate() {
        let mut newest = None;
        for Batch { numbers, id, .. } in batches {
            let indices: Vec<_> = numbers.clone().map(|n| indices[publisher][n as usize]).collect();
            let is_complete = indices.iter().all(Option::is_some);
            if is_complete {
                let is_consecutive = indices.windows(2).all(|two| two[0].map(|index| index + 1) == two[1]);
                assert!(is_consecutive, "{kind:?}: client {name} received {publisher}/{numbers:?} at {indices:?}");
            }
            let Ok(id) = id else {
                // All events or none. A part is possible only if there is a gap.
                let is_absent = indices.iter().all(Option::is_none);
                let is_valid = is_complete || is_absent || !gaps.is_empty();
                assert!(is_valid, "{kind:?}: {publisher}/{numbers:?} at {indices:?}");
                continue;
            };
            let id = client.position(id);
            let last = indices.last().copied().flatten().map(|last| events[last as usize].0);
            assert!(
                last.is_none_or(|last| last == id),
                "{kind:?}: {publisher}/{numbers:?} was acknowledged as {id:?}, and is at {last:?}"
            );
            let id = last.unwrap_or(id);
            if last.is_some() {
                assert!(newest < Some(id), "{kind:?}: {publisher}/{numbers:?} comes before an earlier batch");
                newest = Some(id);
            }
            for (n, _) in numbers.clone().zip(&indices).filter(|(_, index)| index.is_none()) {
                // If no client received the event, its position is at most that of its batch.
                let known = positions[publisher][n as usize];
                let (position, is_known) = known.map_or((id, false), |position| (position, true));
                if Some(position) <= client.start {
                    continue;
                }
                let is_within = |gap: &&mut ReportedGap| {
                    let is_before_end =
                        gap.resumed.is_none_or(|resumed| position < resumed || (position == resumed && !is_known));
                    (timing == GapTiming::AnyTime || gap.requested < position) && is_before_end
                };
                match gaps.iter_mut().find(is_within) {
                    Some(gap) => gap.missed += 1,
                    None => {
                        panic!("{kind:?}: client {name} missed {publisher}/{n} at {position:?}; its gaps: {gaps:?}")
                    }
                }
            }
        }
    }
    client.gaps = gaps;
}

/// The check itself must be able to fail.
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Returns a batch of two events, an event with an error, and two single events.
    fn published() -> Vec<Vec<Batch>> {
        let batch = |numbers, id: Result<&str, &str>| Batch {
            numbers,
            id: id.map(str::to_owned).map_err(str::to_owned),
            took: Duration::ZERO,
        };
        vec![vec![
            batch(0..2, Ok("10-1")),
            batch(2..3, Err("an error")),
            batch(3..4, Ok("30-0")),
            batch(4..5, Ok("40-0")),
        ]]
    }

    enum Item<'a> {
        Event(&'a str, u32),
        Gap(&'a str, &'a str),
    }
    use Item::{Event, Gap};

    fn client(items: &[Item<'_>]) -> Received {
        let mut received = Received::new(StoreKind::Redis, Arc::default());
        received.start_after("1-0".to_owned());
        for item in items {
            match item {
                Event(id, n) => received.event(id, (0, *n)),
                Gap(requested, resumed) => {
                    let gap = serde_json::json!({ "reason": "lagged", "requested": requested, "resumed": resumed });
                    received.gap(requested, &gap.to_string());
                }
            }
        }
        received
    }

    fn check(items: &[Item<'_>]) -> Report {
        compare(StoreKind::Redis, GapTiming::BeforeLaterEvents, &published(), vec![client(items)])
    }

    #[test]
    fn events_with_errors_may_arrive_or_not() {
        let without = [Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)];
        let report = check(&without).assert_nothing_missed(4);
        assert_eq!((report.acknowledged, report.failed, report.stored_despite_error), (4, 1, 0));
        let with = [Event("10-0", 0), Event("10-1", 1), Event("20-0", 2), Event("30-0", 3), Event("40-0", 4)];
        assert_eq!(check(&with).assert_nothing_missed(4).stored_despite_error, 1);
    }

    #[test]
    fn gap_covers_missing_events() {
        let report = check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-1", "40-0"), Event("40-0", 4)]);
        assert_eq!(report.gaps[0][0].missed, 1);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/3")]
    fn missing_event_without_gap_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/4")]
    fn missing_last_event_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3)]);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/3")]
    fn missing_event_outside_the_gap_fails() {
        check(&[Gap("1-0", "10-1"), Event("10-1", 1), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "resumed at")]
    fn wrong_end_of_a_gap_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-1", "35-0"), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "the gap begins after the last id")]
    fn wrong_start_of_a_gap_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-0", "40-0"), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "and then")]
    fn wrong_order_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("40-0", 4), Event("30-0", 3)]);
    }

    #[test]
    #[should_panic(expected = "and then")]
    fn repeated_delivery_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "has several positions")]
    fn event_stored_twice_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("35-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "was acknowledged as")]
    fn acknowledgement_with_a_wrong_id_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("31-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "was not published")]
    fn unpublished_event_fails() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4), Event("50-0", 9)]);
    }

    #[test]
    #[should_panic(expected = "0/0..2 at")]
    fn interrupted_batch_fails() {
        check(&[Event("9-0", 0), Event("9-1", 2), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "3 of 100 events are acknowledged")]
    fn too_few_events_fail() {
        Report { acknowledged: 3, ..Report::default() }.assert_acknowledged(100);
    }
}
