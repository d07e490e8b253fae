//! The settings that a handler has made for its event stream.

use crate::{
    BoxError, Event, Heartbeat,
    body::observer::{HandlerEnd, Observation},
    heartbeat::HeartbeatSetting,
};
use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

type OnError = Box<dyn FnOnce(&BoxError) -> Option<Event> + Send>;

/// The settings that a handler has made for its response stream, such as the heartbeat.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) heartbeat: HeartbeatSetting,
    /// The handler's settings for its stream, except the heartbeat. Many handlers set only the
    /// heartbeat, so the other settings are allocated separately, when the handler first sets one
    /// of them.
    pub(super) rare: Option<Box<RareOptions>>,
}

/// The settings that few handlers make for their response stream, such as a last event.
#[derive(Default)]
pub(crate) struct RareOptions {
    pub(crate) retry: Option<Duration>,
    pub(crate) end_with: Option<Event>,
    /// The `on_error` closure of the handler. The mutex is never locked: it makes the body `Sync`
    /// although the closure is not.
    pub(crate) on_error: Mutex<Option<OnError>>,
    /// The handler's settings for the end of the stream. The mutex is never locked: it makes the
    /// body `Sync` although these settings are not.
    pub(crate) end: Mutex<HandlerEnd>,
}

impl Options {
    /// Returns the settings that few handlers change, which are all except the heartbeat. Creates
    /// these settings with their defaults if they do not exist yet.
    pub(crate) fn rare(&mut self) -> &mut RareOptions {
        self.rare.get_or_insert_default()
    }
}

impl RareOptions {
    /// Returns the handler's settings for the end of its stream, such as `on_close` and `end_when`.
    pub(crate) fn end(&mut self) -> &mut HandlerEnd {
        self.end.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the value out of a mutex that is never locked.
pub(super) fn take_unlocked<T>(mutex: &mut Mutex<Option<T>>) -> Option<T> {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner).take()
}

/// Returns the settings of the handler except the heartbeat, or `None` if the handler has made no
/// such setting.
pub(super) fn rare(options: &mut Option<Box<Options>>) -> Option<&mut RareOptions> {
    options.as_mut()?.rare.as_deref_mut()
}

/// Takes the settings of the handler for the end of its stream, and leaves the defaults.
pub(super) fn take_end(options: &mut Option<Box<Options>>) -> HandlerEnd {
    rare(options).map(|options| mem::take(options.end())).unwrap_or_default()
}

/// Returns the heartbeat that the handler has set, or else that of the layer, or else the default.
/// Returns `None` if heartbeats are disabled.
pub(super) fn heartbeat<'a>(options: &'a Option<Box<Options>>, observation: &'a Observation) -> Option<&'a Heartbeat> {
    let own = options.as_ref().map(|options| &options.heartbeat);
    let own = own.filter(|heartbeat| !matches!(heartbeat, HeartbeatSetting::Inherit));
    let setting = own.or_else(|| Some(&observation.settings()?.heartbeat));
    setting.unwrap_or(&HeartbeatSetting::Inherit).heartbeat()
}
