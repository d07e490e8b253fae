//! The events and gaps that a client has received, and their positions in the log.

use e2e::StoreKind;
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// A position in the log: the index of the epoch, and two numbers from the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LogPosition(usize, u64, u64);

/// The events and gaps of one client, in order.
#[derive(Debug)]
pub(crate) struct Received {
    kind: StoreKind,
    epochs: Arc<Mutex<Vec<String>>>,
    /// The client is entitled to the events after this position.
    pub(crate) start: Option<LogPosition>,
    /// The position, the publisher, and the number of each event.
    pub(crate) events: Vec<(LogPosition, usize, u32)>,
    pub(crate) gaps: Vec<ReportedGap>,
    /// The last event id. The client reconnects with it.
    pub(crate) last: String,
}

/// A gap event.
#[derive(Clone, Debug)]
pub(crate) struct ReportedGap {
    pub(crate) reason: String,
    /// The number of events before the gap.
    pub(crate) at: usize,
    /// The number of acknowledged events that the gap covers.
    pub(crate) missed: usize,
    pub(crate) requested: LogPosition,
    pub(crate) resumed: Option<LogPosition>,
}

impl Received {
    pub(crate) fn new(kind: StoreKind, epochs: Arc<Mutex<Vec<String>>>) -> Self {
        Self { kind, epochs, start: None, events: Vec::new(), gaps: Vec::new(), last: String::new() }
    }

    /// Sets the id after which the client is entitled to events.
    pub(crate) fn start_after(&mut self, id: String) {
        self.start = Some(self.position(&id));
        self.last = id;
    }

    /// Parses an id.
    pub(crate) fn position(&self, id: &str) -> LogPosition {
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{id:?} is no id of {:?}", self.kind));
        let (first, rest) = id.split_once('-').unwrap_or_else(|| panic!("{id:?} is no id of {:?}", self.kind));
        if self.kind == StoreKind::Redis {
            return LogPosition(0, number(first), number(rest));
        }
        let mut epochs = self.epochs.lock().expect("no holder panics");
        let epoch = epochs.iter().position(|epoch| epoch == first).unwrap_or_else(|| {
            epochs.push(first.to_owned());
            epochs.len() - 1
        });
        // In an id of NATS, the second number says how many events of the same message follow.
        let (message, following) = rest.split_once('-').unwrap_or((rest, "0"));
        LogPosition(epoch, number(message), u64::MAX - number(following))
    }

    pub(crate) fn event(&mut self, id: &str, (publisher, n): (usize, u32)) {
        let position = self.position(id);
        self.events.push((position, publisher, n));
        self.last.clear();
        self.last.push_str(id);
    }

    pub(crate) fn gap(&mut self, id: &str, data: &str) {
        let gap: Value = serde_json::from_str(data).expect("the data of a gap is JSON");
        let field = |name: &str| gap[name].as_str();
        assert_eq!(field("requested"), Some(&*self.last), "the gap begins after the last id: {data}");
        let requested = self.position(&self.last);
        let resumed = field("resumed").map(|id| self.position(id));
        let reason = field("reason").expect("a gap has a reason").to_owned();
        let is_in_order = self.position(id) >= requested || reason == "other_epoch";
        assert!(is_in_order, "{data} has the id {id}");
        self.gaps.push(ReportedGap { reason, at: self.events.len(), missed: 0, requested, resumed });
        self.last = id.to_owned();
    }
}
