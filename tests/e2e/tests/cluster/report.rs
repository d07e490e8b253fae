//! What every client has to have got of what was acknowledged.

use crate::checker::Numbers;
use e2e::store::Engine;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What was published together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) numbers: Numbers,
    /// Of the last of them, if it was acknowledged. If not, they may be in the log, once.
    pub(crate) id: Result<String, String>,
    pub(crate) took: Duration,
}

/// Where an event is in the log: the epoch, and two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(usize, u64, u64);

/// What one client got, in order.
#[derive(Debug)]
pub(crate) struct Entries {
    engine: Engine,
    epochs: Arc<Mutex<Vec<String>>>,
    /// What comes after it is for this client.
    start: Option<Place>,
    events: Vec<(Place, usize, u32)>,
    pub(crate) gaps: Vec<Told>,
    /// The id with which it comes back.
    pub(crate) last: String,
}

/// What it was told that it has missed.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) reason: String,
    /// How many events it had before.
    pub(crate) at: usize,
    /// How many of those that were acknowledged it has missed there.
    pub(crate) missed: usize,
    requested: Place,
    resumed: Option<Place>,
}

impl Entries {
    pub(crate) fn new(engine: Engine, epochs: Arc<Mutex<Vec<String>>>) -> Self {
        Self { engine, epochs, start: None, events: Vec::new(), gaps: Vec::new(), last: String::new() }
    }

    /// It follows from this id on.
    pub(crate) fn begin(&mut self, id: String) {
        self.start = Some(self.place(&id));
        self.last = id;
    }

    fn place(&self, id: &str) -> Place {
        let number =
            |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{id:?} is no id of {:?}", self.engine));
        let (first, rest) = id.split_once('-').unwrap_or_else(|| panic!("{id:?} is no id of {:?}", self.engine));
        if self.engine == Engine::Redis {
            return Place(0, number(first), number(rest));
        }
        let mut epochs = self.epochs.lock().expect("no holder panics");
        let epoch = epochs.iter().position(|epoch| epoch == first).unwrap_or_else(|| {
            epochs.push(first.to_owned());
            epochs.len() - 1
        });
        // Behind the number of a message is how many events of it follow.
        let (message, following) = rest.split_once('-').unwrap_or((rest, "0"));
        Place(epoch, number(message), u64::MAX - number(following))
    }

    pub(crate) fn event(&mut self, id: &str, (publisher, n): (usize, u32)) {
        let place = self.place(id);
        self.events.push((place, publisher, n));
        self.last.clear();
        self.last.push_str(id);
    }

    pub(crate) fn gap(&mut self, id: &str, data: &str) {
        let gap: Value = serde_json::from_str(data).expect("it is JSON");
        let field = |name: &str| gap[name].as_str();
        assert_eq!(field("requested"), Some(&*self.last), "it is told from where on: {data}");
        let requested = self.place(&self.last);
        let resumed = field("resumed").map(|id| self.place(id));
        let reason = field("reason").expect("there is one").to_owned();
        self.gaps.push(Told { reason, at: self.events.len(), missed: 0, requested, resumed });
        assert!(self.place(id) >= requested || reason_is_of_another_log(&self.gaps), "{data} has the id {id}");
        self.last = id.to_owned();
    }
}

fn reason_is_of_another_log(gaps: &[Told]) -> bool {
    gaps.last().is_some_and(|told| told.reason == "other_epoch")
}

/// What there is to tell of a test.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Events, and each of them compared with what each client got.
    pub(crate) acknowledged: usize,
    /// Events of which a publisher does not know, and those of them that are in the log.
    pub(crate) refused: usize,
    pub(crate) arrived_all_the_same: usize,
    /// Over all clients.
    pub(crate) delivered: usize,
    /// Of each client.
    pub(crate) gaps: Vec<Vec<Told>>,
    /// The messages of errors, and how often.
    pub(crate) errors: BTreeMap<String, usize>,
    /// How long it took at most until there was an error.
    pub(crate) slowest_error: Duration,
}

impl Report {
    /// What is asserted of each test in which nobody may miss anything.
    pub(crate) fn nothing_is_missed(self, at_least: usize) -> Self {
        assert!(self.gaps.iter().all(Vec::is_empty), "nobody has missed anything: {:?}", self.gaps);
        self.has(at_least)
    }

    pub(crate) fn has(self, at_least: usize) -> Self {
        assert!(self.acknowledged >= at_least, "{} of {at_least} were acknowledged", self.acknowledged);
        assert!(self.delivered > 0 && !self.gaps.is_empty(), "somebody has followed");
        self
    }

    /// While the backend is away there are errors, and nobody waits long for one.
    pub(crate) fn fails_within(self, time: Duration) -> Self {
        assert!(self.refused > 0, "there were errors");
        assert!(self.slowest_error < time, "an error came after {:?}", self.slowest_error);
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, refused, arrived_all_the_same: arrived, delivered, slowest_error, .. } = self;
        write!(f, "{acknowledged} acknowledged, {refused} refused (after {slowest_error:.1?} at most), of which ")?;
        write!(f, "{arrived} arrived; {delivered} delivered to {} clients; ", self.gaps.len())?;
        for (client, gaps) in self.gaps.iter().enumerate() {
            for Told { reason, at, missed, .. } in gaps {
                write!(f, "client {client} was told {reason:?} after {at}, and missed {missed}; ")?;
            }
        }
        for (error, times) in &self.errors {
            write!(f, "\n    {times} × {error:?}")?;
        }
        Ok(())
    }
}

/// The time by which a client has to get a gap for a missed event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tells {
    /// Before it gets a later event.
    #[default]
    Before,
    /// At any time: a node may learn of a failover after its clients got later events.
    Ever,
}

/// Compares what was published, by each publisher, with what each client got.
pub(crate) fn compare(engine: Engine, tells: Tells, published: &[Vec<Batch>], clients: Vec<Entries>) -> Report {
    let mut report = Report::default();
    no_id_is_given_twice(published);
    let places = all_agree_on_places(published, &clients);
    for batch in published.iter().flatten() {
        match &batch.id {
            Ok(_) => report.acknowledged += batch.numbers.len(),
            Err(error) => {
                report.refused += batch.numbers.len();
                report.slowest_error = report.slowest_error.max(batch.took);
                *report.errors.entry(error.clone()).or_default() += 1;
            }
        }
    }
    for (publisher, batches) in published.iter().enumerate() {
        for batch in batches.iter().filter(|batch| batch.id.is_err()) {
            let arrived = batch.numbers.clone().filter(|n| places[publisher][*n as usize].is_some()).count();
            report.arrived_all_the_same += arrived;
        }
    }
    for (name, mut client) in clients.into_iter().enumerate() {
        check_client(engine, tells, name, published, &places, &mut client);
        report.delivered += client.events.len();
        report.gaps.push(client.gaps);
    }
    report
}

fn no_id_is_given_twice(published: &[Vec<Batch>]) {
    let mut ids = BTreeMap::new();
    for (publisher, batch) in (0..).zip(published).flat_map(|(n, batches)| batches.iter().map(move |batch| (n, batch)))
    {
        let Ok(id) = &batch.id else { continue };
        let other = ids.insert(id, (publisher, &batch.numbers));
        assert!(other.is_none(), "{id} was given to {publisher}/{:?} and to {other:?}", batch.numbers);
    }
}

/// The place of each event that anybody has got. It is the same for all.
fn all_agree_on_places(published: &[Vec<Batch>], clients: &[Entries]) -> Vec<Vec<Option<Place>>> {
    let counts = published.iter().map(|batches| batches.last().map_or(0, |batch| batch.numbers.end as usize));
    let mut places: Vec<Vec<Option<Place>>> = counts.map(|count| vec![None; count]).collect();
    for client in clients {
        for (place, publisher, n) in &client.events {
            let known = places.get_mut(*publisher).and_then(|places| places.get_mut(*n as usize));
            let known = known.unwrap_or_else(|| panic!("nobody has published {publisher}/{n}"));
            assert_eq!(*known.get_or_insert(*place), *place, "{publisher}/{n} is at one place");
        }
    }
    places
}

fn check_client(
    engine: Engine,
    tells: Tells,
    name: usize,
    published: &[Vec<Batch>],
    places: &[Vec<Option<Place>>],
    client: &mut Entries,
) {
    let events = &client.events;
    for (one, other) in events.iter().zip(events.iter().skip(1)) {
        assert!(one.0 < other.0, "{engine:?}: client {name} got {one:?} and then {other:?}");
    }
    // Where it has got each event. As places rise and an event has one place, nothing is there twice.
    let mut got: Vec<Vec<Option<u32>>> = places.iter().map(|places| vec![None; places.len()]).collect();
    for (index, (_, publisher, n)) in (0..).zip(events) {
        let before = got[*publisher][*n as usize].replace(index);
        assert_eq!(before, None, "{engine:?}: client {name} got {publisher}/{n} twice");
    }
    for told in &client.gaps {
        let next = events.get(told.at).map(|(place, ..)| *place);
        let is_where_it_goes_on = told.resumed.is_none() || next.is_none() || told.resumed == next;
        assert!(is_where_it_goes_on, "{engine:?}: client {name} went on at {next:?}: {told:?}");
    }

    let mut gaps = std::mem::take(&mut client.gaps);
    for (publisher, batches) in published.iter().enumerate() {
        let mut newest = None;
        for Batch { numbers, id, .. } in batches {
            let indices: Vec<_> = numbers.clone().map(|n| got[publisher][n as usize]).collect();
            let is_whole = indices.iter().all(Option::is_some);
            if is_whole {
                // Together, and in order.
                let follow = indices.windows(2).all(|two| two[0].map(|index| index + 1) == two[1]);
                assert!(follow, "{engine:?}: client {name} got {publisher}/{numbers:?} at {indices:?}");
            }
            let Ok(id) = id else {
                // All of them or none; some of them only where there is a gap.
                let is_none = indices.iter().all(Option::is_none);
                assert!(is_whole || is_none || !gaps.is_empty(), "{engine:?}: {publisher}/{numbers:?} at {indices:?}");
                continue;
            };
            let id = client.place(id);
            let last = indices.last().copied().flatten().map(|last| events[last as usize].0);
            assert!(
                last.is_none_or(|last| last == id),
                "{engine:?}: {publisher}/{numbers:?} was acknowledged as {id:?}, and is {last:?}"
            );
            let id = last.unwrap_or(id);
            if last.is_some() {
                assert!(
                    newest < Some(id),
                    "{engine:?}: {publisher}/{numbers:?} is behind what was published before it"
                );
                newest = Some(id);
            }
            for (n, _) in numbers.clone().zip(&indices).filter(|(_, index)| index.is_none()) {
                // If nobody has got it, it was one of those before the last of its batch.
                let (place, is_known) = places[publisher][n as usize].map_or((id, false), |place| (place, true));
                if Some(place) <= client.start {
                    continue;
                }
                let is_within = |told: &&mut Told| {
                    let ends = told.resumed.is_none_or(|resumed| place < resumed || (place == resumed && !is_known));
                    (tells == Tells::Ever || told.requested < place) && ends
                };
                match gaps.iter_mut().find(is_within) {
                    Some(told) => told.missed += 1,
                    None => {
                        panic!("{engine:?}: client {name} missed {publisher}/{n} at {place:?}, and was told {gaps:?}")
                    }
                }
            }
        }
    }
    client.gaps = gaps;
}

/// It can fail.
mod tests {
    use super::*;

    /// Two events together, one that was refused, and two alone.
    fn published() -> Vec<Vec<Batch>> {
        let batch = |numbers, id: Result<&str, &str>| Batch {
            numbers,
            id: id.map(str::to_owned).map_err(str::to_owned),
            took: Duration::ZERO,
        };
        vec![vec![
            batch(0..2, Ok("10-1")),
            batch(2..3, Err("refused")),
            batch(3..4, Ok("30-0")),
            batch(4..5, Ok("40-0")),
        ]]
    }

    enum Got<'a> {
        Event(&'a str, u32),
        Gap(&'a str, &'a str),
    }
    use Got::{Event, Gap};

    fn client(got: &[Got<'_>]) -> Entries {
        let mut entries = Entries::new(Engine::Redis, Arc::default());
        entries.begin("1-0".to_owned());
        for got in got {
            match got {
                Event(id, n) => entries.event(id, (0, *n)),
                Gap(requested, resumed) => {
                    let gap = serde_json::json!({ "reason": "lagged", "requested": requested, "resumed": resumed });
                    entries.gap(requested, &gap.to_string());
                }
            }
        }
        entries
    }

    fn check(got: &[Got<'_>]) -> Report {
        compare(Engine::Redis, Tells::Before, &published(), vec![client(got)])
    }

    #[test]
    fn a_client_that_has_all_is_well_with_and_without_what_was_refused() {
        let without = [Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)];
        let report = check(&without).nothing_is_missed(4);
        assert_eq!((report.acknowledged, report.refused, report.arrived_all_the_same), (4, 1, 0));
        let with = [Event("10-0", 0), Event("10-1", 1), Event("20-0", 2), Event("30-0", 3), Event("40-0", 4)];
        assert_eq!(check(&with).nothing_is_missed(4).arrived_all_the_same, 1);
    }

    #[test]
    fn a_client_that_was_told_is_well() {
        let report = check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-1", "40-0"), Event("40-0", 4)]);
        assert_eq!(report.gaps[0][0].missed, 1);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/3")]
    fn what_is_lost_without_a_word_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/4")]
    fn what_is_lost_at_the_end_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3)]);
    }

    #[test]
    #[should_panic(expected = "client 0 missed 0/3")]
    fn what_is_lost_outside_of_the_gap_that_was_told_is_noticed() {
        check(&[Gap("1-0", "10-1"), Event("10-1", 1), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "went on at")]
    fn a_gap_that_tells_a_wrong_end_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-1", "35-0"), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "it is told from where on")]
    fn a_gap_that_tells_a_wrong_beginning_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Gap("10-0", "40-0"), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "and then")]
    fn a_wrong_order_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("40-0", 4), Event("30-0", 3)]);
    }

    #[test]
    #[should_panic(expected = "and then")]
    fn what_comes_twice_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "is at one place")]
    fn what_is_stored_twice_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("35-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "was acknowledged as")]
    fn an_answer_with_another_id_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("31-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "nobody has published")]
    fn what_nobody_has_published_is_noticed() {
        check(&[Event("10-0", 0), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4), Event("50-0", 9)]);
    }

    #[test]
    #[should_panic(expected = "0/0..2 at")]
    fn a_batch_that_is_torn_apart_is_noticed() {
        check(&[Event("9-0", 0), Event("9-1", 2), Event("10-1", 1), Event("30-0", 3), Event("40-0", 4)]);
    }

    #[test]
    #[should_panic(expected = "3 of 100 were acknowledged")]
    fn a_test_that_does_nothing_is_noticed() {
        Report { acknowledged: 3, ..Report::default() }.has(100);
    }
}
