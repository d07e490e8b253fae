//! What a subscription gets from the backend: what the topics of this process no longer hold, for whoever comes back late or is
//! slower than they are.

use super::{
    GapReason, LagPolicy, Subscription,
    backend::{BoxFuture, Page, RecordKind},
    core::least,
    subscription::Came,
};
use crate::{EncodedEvents, Event, EventId, random};
use std::{
    collections::HashSet,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// How long to wait before a backend that did not answer is asked again; up to twice as long, so that not all ask at once.
const PAUSE: Duration = Duration::from_millis(200);

/// A look into the log of the backend. It goes on in the topics of this process as soon as these hold what follows.
pub(super) struct History {
    /// Who is to be told if something is lost, and of what kind of loss. `None`: nobody, as the client has asked for nothing, or
    /// was told.
    untold: Option<(EventId, GapReason)>,
    state: State,
}

enum State {
    /// Nothing is under way.
    Begins,
    Asks(BoxFuture<'static, Page>),
    Waits(Pin<Box<Sleep>>),
    /// What is handed out next, and up to where it goes.
    Has(EncodedEvents, u64),
}

impl History {
    fn new(untold: Option<(EventId, GapReason)>) -> Self {
        Self { untold, state: State::Begins }
    }
}

impl Subscription {
    /// Goes on from its cursor with what the backend holds.
    pub(super) fn look_back(&mut self, requested: Option<EventId>, reason: Option<GapReason>) {
        let untold = match (requested, reason) {
            (Some(requested), None) => Some((requested, GapReason::Evicted)),
            (Some(requested), Some(reason)) => {
                // It is a gap whatever the backend holds.
                self.resume(Some(requested), Some(reason), None);
                None
            }
            (None, _) => None,
        };
        self.history = Some(Box::new(History::new(untold)));
    }

    /// The same for one that has fallen behind.
    pub(super) fn fall_back(&mut self) {
        self.history = Some(Box::new(History::new(Some((self.cursor(), GapReason::Lagged)))));
    }

    /// Whether it is not known yet what the client has missed.
    pub(super) fn is_undecided(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.untold.is_some())
    }

    /// Finds out what the client has missed, before it is answered.
    pub(super) async fn begin_with_history(&mut self) {
        if self.history.is_none() {
            return;
        }
        let Some(page) = self.page() else { return };
        let page = page.await;
        let Some(history) = &mut self.history else { return };
        match page {
            Ok(page) => {
                let requested = history.untold.is_some();
                self.opening = self.turn(page).map(|event| Box::new(event.into())).or(self.opening.take());
                if requested && self.gap().is_none() {
                    self.came = Came::Back;
                }
            }
            Err(_) => history.state = State::Waits(Box::pin(pause())),
        }
    }

    /// What is to be handed out next, as long as that is history. `None`: the rest is in the topics of this process.
    pub(super) fn poll_history(&mut self, cx: &mut Context<'_>) -> Poll<Option<EncodedEvents>> {
        loop {
            let Some(history) = &mut self.history else { return Poll::Ready(None) };
            match &mut history.state {
                State::Has(events, through) => {
                    let events = mem::take(events);
                    self.cursor = self.cursor.max(*through);
                    self.history = None;
                    return Poll::Ready(Some(events));
                }
                State::Begins => match self.page() {
                    Some(page) => self.set(State::Asks(page)),
                    None => self.history = None,
                },
                State::Waits(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.set(State::Begins);
                }
                State::Asks(page) => match ready!(page.as_mut().poll(cx)) {
                    Err(_) => self.set(State::Waits(Box::pin(pause()))),
                    Ok(page) => {
                        let told = self.turn(page);
                        if told.is_some() && self.lag_policy == LagPolicy::Disconnect {
                            self.history = None;
                            return Poll::Ready(Some(self.cut(super::Cut::Lagged)));
                        }
                        if let Some(event) = told {
                            return Poll::Ready(Some(event.into()));
                        }
                    }
                },
            }
        }
    }

    fn set(&mut self, state: State) {
        if let Some(history) = &mut self.history {
            history.state = state;
        }
    }

    fn page(&self) -> Option<BoxFuture<'static, Page>> {
        let node = self.core.node.as_ref()?;
        let topics: Arc<[_]> = self.readers.iter().map(|reader| reader.topic.name.clone()).collect();
        Some(Arc::clone(&node.backend).read(topics, self.cursor))
    }

    /// Takes over what the backend holds. Returns the event that tells of what it does not.
    fn turn(&mut self, page: Page) -> Option<Event> {
        self.core.node.as_ref().inspect(|node| node.is_lost(page.lost));
        let first = page.records.first().map(|(position, _)| *position);
        let untold = self.history.as_mut().and_then(|history| history.untold.take());
        // One that knows less than was in the topics here, a replica that lags for instance, will not find it later either.
        let is_behind = page.through <= self.cursor;
        let is_lost = page.lost > self.cursor || is_behind;
        for reader in &mut self.readers {
            let lost = if is_behind { reader.topic.lock().log.lost() } else { page.lost };
            reader.told = reader.told.max(lost);
            reader.begin_anew();
        }
        if page.lost > self.cursor {
            // As far on as nothing is between.
            self.cursor = first.map_or(page.through, |first| first - 1);
        }
        let event = untold.filter(|_| is_lost).map(|(requested, reason)| {
            let here = self.readers.iter().map(|reader| reader.topic.lock().log.first_after(page.through));
            let resumed = first.or(here.fold(None, least));
            self.tell(reason, requested, resumed)
        });
        let through = page.through;
        let events = self.encode(page);
        if events.is_empty() {
            self.cursor = self.cursor.max(through);
            self.history = None;
        } else {
            self.set(State::Has(events, through));
        }
        event
    }

    fn encode(&mut self, page: Page) -> EncodedEvents {
        let mut states = HashSet::new();
        let mut events = Vec::with_capacity(page.records.len());
        for (position, record) in page.records.into_iter().rev() {
            match record.kind {
                RecordKind::Finish => {
                    let topic =
                        self.readers.iter().map(|reader| &reader.topic).find(|topic| topic.name == record.topic);
                    topic.into_iter().for_each(|topic| self.core.is_finished(topic));
                    continue;
                }
                // The newest stands for those before it.
                RecordKind::State if !states.insert(record.topic) => continue,
                _ => {}
            }
            let Some(event) = Event::from_wire(&record.event) else { continue };
            events.push(event.id(self.epoch.id(position)));
        }
        events.into_iter().rev().collect()
    }
}

fn pause() -> Sleep {
    sleep(PAUSE.mul_f64(1.0 + random::part()))
}
