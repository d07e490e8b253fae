//! A recorder of metrics and a subscriber of spans that a test can read.

use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};
use tokio::runtime;
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Runs a test in paused time, with its own recorder of metrics and subscriber of spans.
pub(crate) fn observed(test: impl AsyncFnOnce(Seen)) {
    run(true, test);
}

pub(crate) fn observed_in_real_time(test: impl AsyncFnOnce(Seen)) {
    run(false, test);
}

fn run(paused: bool, test: impl AsyncFnOnce(Seen)) {
    let recorder = DebuggingRecorder::new();
    let seen = Seen { snapshotter: recorder.snapshotter(), totals: Arc::default(), trace: Trace::default() };
    let _subscriber = tracing_subscriber::registry().with(seen.trace.clone()).set_default();
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().expect("a runtime");
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(seen)));
}

/// Waits until no stream is open, and returns the metrics.
pub(crate) async fn settled(seen: &Seen) -> BTreeMap<String, f64> {
    loop {
        let numbers = seen.numbers();
        if numbers["tower_sse_streams_active"] == 0.0 {
            return numbers;
        }
        tokio::task::yield_now().await;
    }
}

/// The sums of all snapshots, because each snapshot resets the recorder.
#[derive(Default)]
struct Totals {
    numbers: BTreeMap<String, f64>,
    durations: Vec<f64>,
}

#[derive(Clone)]
pub(crate) struct Seen {
    snapshotter: Snapshotter,
    totals: Arc<Mutex<Totals>>,
    pub(crate) trace: Trace,
}

impl Seen {
    /// Returns the gauges and counters by name and labels.
    pub(crate) fn numbers(&self) -> BTreeMap<String, f64> {
        let mut totals = self.totals.lock().expect("no panic");
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let labels: Vec<_> = key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = key.key().name();
            let id = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
            let (value, kind) = match value {
                DebugValue::Counter(value) => (value as f64, MetricKind::Counter),
                DebugValue::Gauge(value) => (value.into_inner(), MetricKind::Gauge),
                DebugValue::Histogram(values) => {
                    assert_eq!(name, "tower_sse_stream_duration_seconds");
                    totals.durations.extend(values.into_iter().map(|value| value.into_inner()));
                    continue;
                }
            };
            assert_eq!(kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
            *totals.numbers.entry(id).or_default() += value;
        }
        totals.numbers.clone()
    }

    pub(crate) fn durations(&self) -> Vec<f64> {
        self.numbers();
        self.totals.lock().expect("no panic").durations.clone()
    }

    pub(crate) fn events(&self) -> Vec<Emitted> {
        self.trace.0.lock().expect("no panic").events.clone()
    }

    pub(crate) fn spans(&self, name: &str) -> Vec<SeenSpan> {
        let trace = self.trace.0.lock().expect("no panic");
        trace.spans.values().filter(|span| span.name == name).cloned().collect()
    }
}

/// An event of `tracing`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Emitted {
    pub(crate) level: Level,
    pub(crate) in_span: Option<&'static str>,
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl Emitted {
    pub(crate) fn message(&self) -> String {
        self.fields["message"].clone()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct SeenSpan {
    pub(crate) name: &'static str,
    pub(crate) parent: Option<&'static str>,
    pub(crate) fields: BTreeMap<&'static str, String>,
    pub(crate) is_closed: bool,
}

/// Records the spans and events of the library and of these tests.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    spans: BTreeMap<u64, SeenSpan>,
    events: Vec<Emitted>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // The target of this crate's own events is the path of a module.
        metadata.target() == "tower_sse" || metadata.target().starts_with("observe::")
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.name());
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = SeenSpan { name: attributes.metadata().name(), parent, fields: fields.0, is_closed: false };
        self.0.lock().expect("no panic").spans.insert(id.into_u64(), span);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        let mut recorded = self.0.lock().expect("no panic");
        recorded.spans.get_mut(&id.into_u64()).expect("a new span came first").fields.extend(fields.0);
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let in_span = context.event_span(event).map(|span| span.name());
        let emitted = Emitted { level: *event.metadata().level(), in_span, fields: fields.0 };
        self.0.lock().expect("no panic").events.push(emitted);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.0.lock().expect("no panic").spans.get_mut(&id.into_u64()).expect("a new span came first").is_closed = true;
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // `Received` formats its numbers with `Display`, where 60.0 is "60".
        let text = format!("{value:?}");
        self.0.insert(field.name(), text.strip_suffix(".0").map(str::to_owned).unwrap_or(text));
    }
}
