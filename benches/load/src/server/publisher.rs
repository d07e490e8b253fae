//! The publications, which are the same for all contestants on tokio.

use super::{Command, Commands, Schedule};
use crate::payload::{self, Payload};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::sleep_until,
};

/// A period of tokens has this many steps. In each step, some of the clients get a token.
pub(super) const STEPS: u64 = 20;

/// A timer is late by up to a millisecond, and by up to another one on a busy core.
const TIMER: Duration = Duration::from_millis(2);

/// The clients that get tokens, and the sequence number of the next publication.
#[derive(Debug)]
pub(super) struct Publisher {
    clients: Clients,
    size: usize,
    next: u64,
    next_token: u64,
}

/// The channels of the clients that get tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(Arc<Mutex<Vec<UnboundedSender<String>>>>);

impl Clients {
    pub(super) fn join(&self) -> UnboundedReceiver<String> {
        let (sender, receiver) = unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }
}

impl Publisher {
    pub(super) fn new(clients: Clients, size: usize) -> Self {
        Self { clients, size, next: 0, next_token: 0 }
    }

    /// Runs commands until the shutdown.
    pub(super) async fn run(mut self, mut commands: Commands, mut publish: impl AsyncFnMut(u64, &str)) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Publish(schedule) => self.publish(schedule, &mut publish).await,
                Command::Tokens(schedule) => self.send_tokens(schedule).await,
                Command::Shutdown => return,
            }
        }
    }

    async fn publish(&mut self, schedule: Schedule, publish: &mut impl AsyncFnMut(u64, &str)) {
        let mut payload = Payload::new(self.size);
        let mut clock = Clock::new(schedule.burst as f64 / schedule.rate);
        let end = self.next + schedule.count;
        while self.next < end {
            let sent = clock.tick().await;
            for _ in 0..schedule.burst.min(end - self.next) {
                publish(self.next, payload.of(self.next, sent)).await;
                self.next += 1;
            }
        }
    }

    async fn send_tokens(&mut self, schedule: Schedule) {
        let clients = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut payload = Payload::new(self.size);
        let mut clock = Clock::new(1.0 / schedule.rate / STEPS as f64);
        for _ in 0..schedule.count {
            for step in 0..STEPS {
                let sent = clock.tick().await;
                for client in clients.iter().skip(step as usize).step_by(STEPS as usize) {
                    // A client may have left.
                    let _ = client.send(payload.of(self.next_token, sent).to_owned());
                }
            }
            self.next_token += 1;
        }
    }
}

/// The times of publications.
///
/// A publication that is much too late postpones all later ones. Catching up would give the clients
/// several events at once, which cost less than single events, whenever the machine was busy.
#[derive(Debug)]
pub(super) struct Clock {
    period: Duration,
    next: Instant,
}

impl Clock {
    /// Creates a clock with this period in seconds. The first publication is due immediately.
    pub(super) fn new(period: f64) -> Self {
        Self { period: Duration::from_secs_f64(period), next: Instant::now() }
    }

    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// Returns the time of a publication that is due, in microseconds, and schedules the next one.
    pub(super) fn advance(&mut self) -> u64 {
        let late = self.next.elapsed();
        let is_postponed = late > (self.period / 2).max(TIMER);
        self.next += self.period + if is_postponed { late } else { Duration::ZERO };
        // An event that was published later was delayed by the server, and that is latency.
        let late = late.saturating_sub(TIMER).as_micros() as u64;
        (payload::micros() + payload::LIMIT - late) % payload::LIMIT
    }

    async fn tick(&mut self) -> u64 {
        sleep_until(self.next.into()).await;
        self.advance()
    }
}
