//! How a layer gives its settings to a body that already is an event stream of ours, instead of wrapping it again.

use super::Heartbeat;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// What a layer sets for the streams that pass through it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) retry: Option<Duration>,
}

/// Shared by a body, which reads it from its first poll on, and the extensions of the response it is in.
///
/// The innermost layer is the one that settles it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adoption(Arc<OnceLock<Arc<Settings>>>);

impl Adoption {
    /// Gives the body its settings, if no layer has done so before.
    ///
    /// Answers whether there is such a body: it may have been dropped, and the response been given another one.
    pub(crate) fn settle(&self, settings: &Arc<Settings>) -> bool {
        let _settled_before = self.0.set(Arc::clone(settings));
        Arc::strong_count(&self.0) > 1
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.0.get().map(|settings| &**settings)
    }
}
