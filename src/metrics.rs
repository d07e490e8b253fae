//! Metrics for the `metrics` facade. No other file uses the crate `metrics`. Without the Cargo
//! feature `metrics`, all functions of this module are empty.
//!
//! The documentation of the crate lists the names of the metrics.

#[cfg(not(feature = "metrics"))]
pub(crate) use off::{Stream, refused};
#[cfg(all(feature = "hub", not(feature = "metrics")))]
pub(crate) use off::{backend_failed, gap, read_rejected};
#[cfg(feature = "metrics")]
pub(crate) use on::{Stream, refused};
#[cfg(all(feature = "hub", feature = "metrics"))]
pub(crate) use on::{backend_failed, gap, read_rejected};

#[cfg(feature = "metrics")]
mod on {
    use crate::StreamSummary;
    use metrics::{
        Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    };
    use std::sync::Once;

    const ACTIVE: &str = "tower_sse_streams_active";
    const CLOSED: &str = "tower_sse_streams_closed_total";
    const REFUSED: &str = "tower_sse_streams_refused_total";
    const DURATION: &str = "tower_sse_stream_duration_seconds";
    const EVENTS: &str = "tower_sse_events_sent_total";
    const BYTES: &str = "tower_sse_bytes_sent_total";
    const HEARTBEATS: &str = "tower_sse_heartbeats_sent_total";
    const GAPS: &str = "tower_sse_hub_gaps_total";
    #[cfg(feature = "hub")]
    const BACKEND_FAILURES: &str = "tower_sse_hub_backend_failures_total";
    #[cfg(feature = "hub")]
    const READS_REJECTED: &str = "tower_sse_hub_reads_rejected_total";

    /// Registers the descriptions of all metrics with the recorder of the application, once per
    /// process. Called before the first metric is recorded, because a recorder is usually installed
    /// by then.
    fn describe() {
        static DESCRIBED: Once = Once::new();
        DESCRIBED.call_once(|| {
            describe_gauge!(ACTIVE, Unit::Count, "Open event streams.");
            describe_counter!(CLOSED, Unit::Count, "Ended event streams, by reason.");
            describe_counter!(REFUSED, Unit::Count, "Event streams that a layer rejected.");
            describe_histogram!(DURATION, Unit::Seconds, "Duration of event streams.");
            describe_counter!(EVENTS, Unit::Count, "Events handed to the transport.");
            describe_counter!(BYTES, Unit::Bytes, "Bytes of event streams handed to the transport.");
            describe_counter!(HEARTBEATS, Unit::Count, "Heartbeats handed to the transport.");
            describe_counter!(GAPS, Unit::Count, "Gaps reported to subscribers of a hub, by reason.");
            #[cfg(feature = "hub")]
            describe_counter!(
                BACKEND_FAILURES,
                Unit::Count,
                "Requests to the backend of a hub that failed, by operation."
            );
            #[cfg(feature = "hub")]
            describe_counter!(
                READS_REJECTED,
                Unit::Count,
                "History reads that a hub rejected because too many ran or waited."
            );
        });
    }

    /// Counts a request that was rejected because a limit of streams was reached, or because of a
    /// temporary error of a hub.
    pub(crate) fn refused() {
        describe();
        counter!(REFUSED).increment(1);
    }

    /// Counts a gap (missing events) that a hub reports to a subscriber. `reason` is the value of
    /// the counter's label `reason`.
    #[cfg(feature = "hub")]
    pub(crate) fn gap(reason: &'static str) {
        describe();
        counter!(GAPS, "reason" => reason).increment(1);
    }

    /// Counts a failed request to the backend of a hub. `operation` is the value of the counter's
    /// label `operation`.
    #[cfg(feature = "hub")]
    pub(crate) fn backend_failed(operation: &'static str) {
        describe();
        counter!(BACKEND_FAILURES, "operation" => operation).increment(1);
    }

    /// Counts a history read (a request to the backend for past events) that a hub rejected because
    /// too many history reads were waiting.
    #[cfg(feature = "hub")]
    pub(crate) fn read_rejected() {
        describe();
        counter!(READS_REJECTED).increment(1);
    }

    /// The metrics of one stream. Counters that change with each frame are looked up in the metrics
    /// recorder once, when the stream begins.
    pub(crate) struct Stream(Option<Handles>);

    struct Handles {
        active: Gauge,
        events: Counter,
        bytes: Counter,
        heartbeats: Counter,
    }

    impl Stream {
        /// Returns metrics that record nothing, for a body that does not count as a stream.
        pub(crate) fn none() -> Self {
            Self(None)
        }

        /// Counts a stream that begins, and returns its metrics.
        pub(crate) fn begin() -> Self {
            describe();
            let active = gauge!(ACTIVE);
            active.increment(1);
            let [events, bytes, heartbeats] = [counter!(EVENTS), counter!(BYTES), counter!(HEARTBEATS)];
            Self(Some(Handles { active, events, bytes, heartbeats }))
        }

        pub(crate) fn is_on(&self) -> bool {
            self.0.is_some()
        }

        #[inline]
        pub(crate) fn events_sent(&self, events: u64) {
            if let Some(handles) = &self.0 {
                if events > 0 {
                    handles.events.increment(events);
                }
            }
        }

        #[inline]
        pub(crate) fn bytes_sent(&self, bytes: u64) {
            if let Some(handles) = &self.0 {
                handles.bytes.increment(bytes);
            }
        }

        pub(crate) fn heartbeat_sent(&self) {
            if let Some(handles) = &self.0 {
                handles.heartbeats.increment(1);
            }
        }

        pub(crate) fn ended(&self, summary: &StreamSummary) {
            if let Some(handles) = &self.0 {
                handles.active.decrement(1);
                counter!(CLOSED, "reason" => summary.reason.as_str()).increment(1);
                histogram!(DURATION).record(summary.duration);
            }
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use crate::StreamSummary;

    pub(crate) fn refused() {}

    #[cfg(feature = "hub")]
    pub(crate) fn gap(_: &'static str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn backend_failed(_: &'static str) {}

    #[cfg(feature = "hub")]
    pub(crate) fn read_rejected() {}

    pub(crate) struct Stream;

    impl Stream {
        pub(crate) fn none() -> Self {
            Self
        }

        pub(crate) fn begin() -> Self {
            Self
        }

        pub(crate) fn is_on(&self) -> bool {
            false
        }

        #[inline]
        pub(crate) fn events_sent(&self, _events: u64) {}

        #[inline]
        pub(crate) fn bytes_sent(&self, _bytes: u64) {}

        pub(crate) fn heartbeat_sent(&self) {}

        pub(crate) fn ended(&self, _: &StreamSummary) {}
    }
}
