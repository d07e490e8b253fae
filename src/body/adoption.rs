//! How a layer gives its settings to a body that already is an event stream of ours, instead of wrapping it again.

use super::Heartbeat;
use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

/// What a layer sets for the streams that pass through it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) retry: Option<Duration>,
}

/// What a layer has settled for a body, which reads it from its first poll on. The innermost layer is the one that settles it.
#[derive(Debug, Default)]
pub(crate) struct Adoption(Arc<OnceLock<Arc<Settings>>>);

impl Adoption {
    /// What goes into the extensions of the response, for a layer to find.
    pub(crate) fn offer(&self) -> Offer {
        Offer(Arc::downgrade(&self.0))
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.0.get().map(|settings| &**settings)
    }
}

/// A body's offer to take a layer's settings over. It does not outlive the body, which may be dropped for another one.
#[derive(Clone, Debug)]
pub(crate) struct Offer(Weak<OnceLock<Arc<Settings>>>);

impl Offer {
    /// Gives the body its settings, unless a layer has done so before. Answers whether there still is such a body.
    pub(crate) fn settle(&self, settings: &Arc<Settings>) -> bool {
        let Some(adoption) = self.0.upgrade() else { return false };
        let _settled_before = adoption.set(Arc::clone(settings));
        true
    }
}
