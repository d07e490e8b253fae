//! Replay from the backend: the events that the topics of this node do not retain any more, for
//! clients that return late and for subscribers that have lagged.

use super::{
    error::{Error, SubscriptionError},
    gap::{GapReason, LagPolicy},
    node::{EncodedPage, MAX_QUEUED_READS, RunError},
    resume::ResumePoint,
    subscription::{Came, Subscription},
};
use crate::{EncodedEvents, Event, EventId, random};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

/// The pause before a history read is sent again: between once and twice this time, so that not all
/// subscriptions read at once.
const PAUSE: Duration = Duration::from_millis(200);

/// The time limit of a new subscription for its first page. Then the client gets its response, and
/// later the page.
const ANSWER: Duration = Duration::from_secs(2);

/// A replay from the backend. It ends as soon as the topics of this node retain what follows.
pub(super) struct History {
    untold: Option<Untold>,
    /// Whether the cursor may be greater than any in the log.
    is_unsure: bool,
    state: State,
}

/// Who is to be told if something is lost.
struct Untold {
    requested: EventId,
    reason: GapReason,
    /// It is lost, whatever the backend says, and only to be told with what the client goes on.
    is_certain: bool,
}

enum State {
    /// Nothing is under way.
    Begins,
    Asks(Asked),
    Waits(Pin<Box<Sleep>>),
    /// What is handed out next, and up to where it goes.
    Has(EncodedEvents, u64),
}

/// A requested page. The mutex is never locked. It makes a subscription `Sync`, as other streams
/// are, whatever the future of the backend is.
struct Asked(Mutex<Pin<Box<Asking>>>);

type Asking = dyn Future<Output = Result<Arc<EncodedPage>, RunError>> + Send;

impl Future for Asked {
    type Output = Result<Arc<EncodedPage>, RunError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll(cx)
    }
}

impl Subscription {
    /// Starts a replay after the cursor. With a reason, a gap is reported whatever the backend
    /// retains.
    pub(super) fn look_back(&mut self, requested: Option<EventId>, reason: Option<GapReason>, is_unsure: bool) {
        let untold = requested.map(|requested| Untold {
            requested,
            reason: reason.unwrap_or(GapReason::Evicted),
            is_certain: reason.is_some(),
        });
        self.history = Some(Box::new(History { untold, is_unsure, state: State::Begins }));
    }

    /// Starts a replay for a subscription that has lagged.
    fn fall_back(&mut self) {
        let untold = Untold { requested: self.cursor(), reason: GapReason::Lagged, is_certain: false };
        self.history = Some(Box::new(History { untold: Some(untold), is_unsure: false, state: State::Begins }));
    }

    /// Starts a replay for a subscription that has lagged, if there is a backend. Returns whether
    /// it has.
    pub(super) fn can_look_back(&mut self) -> bool {
        let has_backend = self.core.backend.is_some();
        if has_backend {
            self.fall_back();
        }
        has_backend
    }

    /// Whether it is not known yet what the client has missed.
    pub(super) fn is_undecided(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.untold.is_some())
    }

    /// Whether it is not known yet that there is its cursor.
    pub(super) fn is_unsure(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.is_unsure)
    }

    /// Reads the first page of the history, so that a gap is known before the response. Continues
    /// without the page after [`ANSWER`]. Fails if too many reads are waiting.
    pub(super) async fn begin_with_history(&mut self) -> Result<(), Error> {
        let answer = Instant::now() + ANSWER;
        let comes_back = self.is_undecided();
        while let Some(State::Begins) = self.history.as_ref().map(|history| &history.state) {
            let Some(mut page) = self.page() else { return Ok(()) };
            match timeout_at(answer, &mut page).await {
                Ok(Err(RunError::Full)) => return Err(Error::overloaded(MAX_QUEUED_READS)),
                Ok(part) => {
                    if let Some(gap) = self.turn(part.ok()) {
                        self.opening = Some(Box::new(gap.into()));
                    }
                }
                Err(_) => self.set(State::Asks(page)),
            }
        }
        if self.gap().is_none() && self.is_undecided() {
            let certain = self.history.as_mut().and_then(|history| history.untold.take_if(|untold| untold.is_certain));
            self.opening = certain.map(|untold| Box::new(self.tell(untold.reason, untold.requested, None).into()));
        } else if self.gap().is_none() && comes_back {
            self.came = Came::Back;
        }
        Ok(())
    }

    /// Returns the next events of the replay, or `None` once the topics of this node have the rest.
    pub(super) fn poll_history(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<EncodedEvents, SubscriptionError>>> {
        loop {
            let Some(history) = &mut self.history else { return Poll::Ready(None) };
            // All of them are cut at the same time.
            if self.readers.first_mut().is_some_and(|reader| reader.is_cut(cx.waker())) {
                self.history = None;
                return Poll::Ready(Some(Err(self.fail(SubscriptionError::Shutdown))));
            }
            match &mut history.state {
                State::Has(events, through) => {
                    let (events, through) = (events.clone(), *through);
                    self.cursor = self.cursor.max(through);
                    self.history = None;
                    return Poll::Ready(Some(Ok(events)));
                }
                State::Begins => match self.page() {
                    Some(page) => self.set(State::Asks(page)),
                    None => self.history = None,
                },
                State::Waits(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.set(State::Begins);
                }
                State::Asks(page) => {
                    // A page that is rejected because too many reads are waiting is tried again,
                    // too: the client has its response already.
                    let part = ready!(Pin::new(page).poll(cx)).ok();
                    let Some(gap) = self.turn(part) else { continue };
                    let has_lagged = self.gap().is_some_and(|gap| gap.reason() == GapReason::Lagged);
                    if has_lagged && self.lag_policy == LagPolicy::Disconnect {
                        self.history = None;
                        return Poll::Ready(Some(Err(self.fail(SubscriptionError::Lagged))));
                    }
                    return Poll::Ready(Some(Ok(gap.into())));
                }
            }
        }
    }

    fn set(&mut self, state: State) {
        if let Some(history) = &mut self.history {
            history.state = state;
        }
    }

    fn page(&self) -> Option<Asked> {
        self.core.backend.as_ref()?;
        let core = Arc::clone(&self.core);
        let topics: Arc<[_]> = self.readers.iter().map(|reader| reader.topic.name.clone()).collect();
        let after = self.cursor;
        let page = async move {
            let backend = core.backend.as_ref().ok_or(RunError::Failed)?;
            backend.read(topics, after).await
        };
        Some(Asked(Mutex::new(Box::pin(page))))
    }

    /// Whether the topics of this process hold all that follows.
    fn is_here_after(&self, cursor: u64) -> bool {
        self.readers.iter().all(|reader| reader.topic.lock().log.lost() <= cursor.max(reader.told))
    }

    /// Takes over what the backend holds. Returns the event that tells of what it does not.
    fn turn(&mut self, part: Option<Arc<EncodedPage>>) -> Option<Event> {
        // Of another log the reader of this process will know soon, and then this subscription ends.
        let part = part.filter(|part| part.epoch == self.epoch);
        let (Some(part), Some(history)) = (part, &mut self.history) else {
            self.set(State::Waits(Box::pin(pause())));
            return None;
        };
        if part.evicted_through > self.cursor {
            self.core.backend.as_ref().inspect(|backend| backend.advance_evicted(part.epoch, part.evicted_through));
        }
        if history.is_unsure && part.through < self.cursor {
            // It has never been there: the client goes on with all that is held.
            history.is_unsure = false;
            if let Some(untold) = &mut history.untold {
                (untold.reason, untold.is_certain) = (GapReason::Ahead, true);
            }
            history.state = State::Begins;
            self.cursor = 0;
            return None;
        }
        history.is_unsure = false;
        if part.through <= self.cursor && !self.is_here_after(self.cursor) {
            // What was read in this process it does not know, as a replica that lags for instance.
            self.set(State::Waits(Box::pin(pause())));
            return None;
        }

        let is_lost = part.evicted_through > self.cursor;
        if is_lost {
            self.cursor = ResumePoint::of(part.first, part.through).cursor.max(part.evicted_through);
        }
        for reader in &mut self.readers {
            reader.told = reader.told.max(part.evicted_through);
            reader.ends = part.topics.get(&reader.topic.name).copied().unwrap_or(reader.ends);
            reader.begin_anew();
            if reader.ends > 0 {
                self.core.note_end(&reader.topic, reader.ends, part.through);
            }
        }

        let is_at_end = part.events.is_empty() && self.is_here_after(part.through);
        let history = self.history.as_mut()?;
        let mut untold = history.untold.take();
        if let Some(untold) = &mut untold {
            untold.is_certain |= is_lost;
        }
        history.state = State::Has(part.events.clone(), part.through);
        if part.events.is_empty() {
            self.cursor = self.cursor.max(part.through);
            // If more of the history follows, it is as that of one that has fallen behind.
            self.history = None;
        }
        let untold = untold.filter(|untold| untold.is_certain)?;
        if part.first.is_none() && !is_at_end {
            // Not before it is known with what the client goes on.
            self.history = Some(Box::new(History { untold: Some(untold), is_unsure: false, state: State::Begins }));
            return None;
        }
        let here = self.readers.iter().filter_map(|reader| reader.topic.lock().log.first_after(self.cursor));
        let resumed = part.first.or_else(|| here.min());
        Some(self.tell(untold.reason, untold.requested, resumed))
    }
}

fn pause() -> Sleep {
    sleep(PAUSE.mul_f64(1.0 + random::part()))
}
