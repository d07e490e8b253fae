//! The rows of the table: what is measured, with how many clients.

use crate::{contestant::Contestant, server::Schedule};

#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name on the command line.
    pub key: &'static str,
    pub title: &'static str,
    pub clients: usize,
    /// The bytes of data of an event.
    pub size: usize,
    pub load: Load,
}

#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Events for all clients: how many per second, and how many at a time.
    FanOut { rate: f64, burst: u64 },
    /// The same, and tower-sse collects events for so many milliseconds.
    Linger { rate: f64, millis: u64 },
    /// Events that each client gets by itself, per second.
    Tokens { rate: f64 },
    /// Events that are always ready, for each client.
    Firehose,
    /// The largest number of events for all clients that the server can send, in bursts every 5 ms.
    Saturation,
    /// Heartbeats only.
    Idle,
    /// Clients that all reconnect and get this number of events that they missed.
    Reconnect { missed: u64 },
}

pub const ROWS: &[Row] = &[
    Row {
        key: "bursts",
        title: "fan-out 100 × 5,000/s (bursts of 25, 128 B)",
        clients: 100,
        size: 128,
        load: Load::FanOut { rate: 5000.0, burst: 25 },
    },
    Row {
        key: "single",
        title: "fan-out 1,000 × 100/s (single events)",
        clients: 1000,
        size: 128,
        load: Load::FanOut { rate: 100.0, burst: 1 },
    },
    Row {
        key: "many",
        title: "fan-out 10,000 × 10/s",
        clients: 10_000,
        size: 128,
        load: Load::FanOut { rate: 10.0, burst: 1 },
    },
    Row {
        key: "linger",
        title: "fan-out 1,000 × 200/s, with `linger(25 ms)`",
        clients: 1000,
        size: 128,
        load: Load::Linger { rate: 200.0, millis: 25 },
    },
    Row {
        key: "firehose-64",
        title: "firehose 64 B, own stream per client",
        clients: 16,
        size: 64,
        load: Load::Firehose,
    },
    Row { key: "firehose-1k", title: "firehose 1 KiB", clients: 16, size: 1024, load: Load::Firehose },
    Row {
        key: "tokens",
        title: "tokens 1,000 × 50/s, 12 B",
        clients: 1000,
        size: 12,
        load: Load::Tokens { rate: 50.0 },
    },
    Row { key: "saturation-100", title: "saturation, 100 clients", clients: 100, size: 128, load: Load::Saturation },
    Row {
        key: "saturation-1000",
        title: "saturation, 1,000 clients",
        clients: 1000,
        size: 128,
        load: Load::Saturation,
    },
    Row { key: "idle", title: "18,000 idle streams", clients: 18_000, size: 128, load: Load::Idle },
    Row {
        key: "reconnect",
        title: "18,000 reconnects, replay of 100 events each",
        clients: 18_000,
        size: 128,
        load: Load::Reconnect { missed: 100 },
    },
];

impl Row {
    pub fn find(key: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.key == key)
    }

    /// Returns whether a measurement takes long, so that it has rounds of its own.
    pub fn is_long(&self) -> bool {
        matches!(self.load, Load::Saturation | Load::Idle | Load::Reconnect { .. })
    }

    /// Returns whether the contestant can do it.
    pub fn has(&self, contestant: Contestant) -> bool {
        contestant.has_hub() || !matches!(self.load, Load::Reconnect { .. })
    }

    /// Returns the publications of so many seconds.
    pub fn schedule(&self, seconds: f64) -> Option<Schedule> {
        let (rate, burst) = match self.load {
            Load::FanOut { rate, burst } => (rate, burst),
            Load::Linger { rate, .. } | Load::Tokens { rate } => (rate, 1),
            _ => return None,
        };
        let bursts = (rate * seconds / burst as f64).ceil().max(1.0) as u64;
        Some(Schedule { count: bursts * burst, rate, burst })
    }
}
