//! How the settings of layers come to a body that is inside of them.

use crate::{
    lifecycle::{Passage, Settings},
    trace::Parent,
};
use std::{
    mem,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// The layers that a body's response passes through, from the innermost to the outermost.
type Passages = Option<Box<Vec<Passage>>>;

/// What is known of a response on its way.
#[derive(Default)]
pub(crate) struct Way {
    began: Parent,
    passages: Passages,
}

/// What layers have settled for a body. The innermost one decides where only one can.
pub(crate) enum Adoption {
    /// The response is on its way through the layers.
    Open(Arc<Mutex<Way>>),
    /// The body was polled, and its settings do not change any more.
    Closed(Passages),
}

impl Adoption {
    /// A new one, and what goes into the extensions of the response, for a layer to find.
    pub(crate) fn open() -> (Self, Offer) {
        let way = Arc::new(Mutex::new(Way { began: Parent::current(), passages: None }));
        let offer = Offer(Arc::downgrade(&way));
        (Self::Open(way), offer)
    }

    /// Ends it. Answers where the response was made, and the layers, if it had not ended before.
    pub(super) fn close(&mut self) -> Option<(Parent, &mut [Passage])> {
        let Self::Open(way) = self else { return None };
        let Way { began, passages } = mem::take(&mut *way.lock().unwrap_or_else(PoisonError::into_inner));
        *self = Self::Closed(passages);
        match self {
            Self::Closed(Some(passages)) => Some((began, passages)),
            _ => Some((began, &mut [])),
        }
    }

    /// What the innermost layer says, once this is closed.
    pub(super) fn settings(&self) -> Option<&Settings> {
        match self {
            Self::Closed(Some(passages)) => passages.first().map(|passage| &*passage.settings),
            _ => None,
        }
    }
}

/// A body's offer to take a layer's settings over. It does not outlive the body, which may be dropped for another one.
#[derive(Clone)]
pub(crate) struct Offer(Weak<Mutex<Way>>);

impl Offer {
    /// Tells the body of a layer that it passes through, if there still is such a body.
    pub(crate) fn settle(&self, passage: Passage) {
        if let Some(way) = self.0.upgrade() {
            way.lock().unwrap_or_else(PoisonError::into_inner).passages.get_or_insert_default().push(passage);
        }
    }

    /// Whether there still is such a body.
    pub(crate) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }
}
