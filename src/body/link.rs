//! The hand-over of layer settings to the body of a response.
//!
//! A body that can apply settings opens a [`LayerLink`]. The other end of the link, the
//! [`LayerHandle`], is in the extensions of the response. Each layer that finds an open handle
//! attaches an [`AppliedLayer`] instead of wrapping the body. The first poll of the body closes the
//! link.

use crate::{
    limit::{Limit, Permit},
    registry::Registration,
    settings::{LayerOnClose, Settings},
    trace,
};
use std::{
    mem,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::time::Instant;

/// A layer that a response has passed through. Contains the settings of the layer, the permits of
/// its stream limits, and the registrations of the stream in its stream registries, which can close
/// the stream.
pub(crate) struct AppliedLayer {
    pub(crate) settings: Arc<Settings>,
    pub(super) permits: Vec<Permit>,
    pub(super) registrations: Vec<Registration>,
    /// The callback that the layer's `on_close_with` has created for this request. It contains a
    /// value that was read from the request, and runs when the stream ends.
    pub(super) on_close: Option<LayerOnClose>,
    pub(super) request: trace::Request,
    /// The time when the response passed this layer. `None` if the layer has no `on_close`
    /// callback. All `on_close` callbacks of a stream get the same stream duration. The duration
    /// begins when the handler sets its callback. If the handler sets no callback, the duration
    /// begins when the response passes the innermost layer with a callback.
    pub(super) at: Option<Instant>,
}

impl AppliedLayer {
    pub(crate) fn new(
        settings: &Arc<Settings>,
        permits: Vec<Permit>,
        registrations: Vec<Registration>,
        on_close: Option<LayerOnClose>,
        request: trace::Request,
    ) -> Self {
        let at = (settings.on_close.is_some() || on_close.is_some()).then(Instant::now);
        Self { settings: Arc::clone(settings), permits, registrations, on_close, request, at }
    }

    /// Copies the settings that this layer leaves unset from `outer`, the next outer layer.
    fn inherit(&mut self, outer: &Self) {
        let mut settings = Settings::clone(&self.settings);
        if settings.inherit(&outer.settings) {
            self.settings = Arc::new(settings);
        }
    }

    /// Returns `true` if both layers have the same `on_close_with` setting. Clones of a layer share
    /// this setting.
    fn shares_on_close_with(&self, other: &Self) -> bool {
        let both = self.settings.on_close_with.as_ref().zip(other.settings.on_close_with.as_ref());
        both.is_some_and(|(own, other)| Arc::ptr_eq(own, other))
    }

    /// Returns whether the streams that pass this layer need a
    /// [`StreamObserver`](super::observer::StreamObserver), which records a stream and can end it.
    /// This is so if the layer limits streams, can end streams, or has an `on_close` callback.
    pub(crate) fn is_observed(&self) -> bool {
        let Settings { shutdown, max_lifetime, .. } = &*self.settings;
        let is_ended = shutdown.is_some() || max_lifetime.is_some() || !self.registrations.is_empty();
        is_ended || self.at.is_some() || !self.permits.is_empty()
    }
}

/// The layers that a response has passed through, from the innermost to the outermost. `None` if
/// the response has passed through no layer.
type AppliedLayers = Option<Box<Vec<AppliedLayer>>>;

/// The state that a body shares with the layers around it until the first poll of the body: the
/// settings that layers have attached so far, and a tracing span.
#[derive(Default)]
pub(crate) struct LinkState {
    /// The tracing span that was current when the response was created.
    parent: trace::Parent,
    layers: AppliedLayers,
    /// Set by the first poll of the body. After that, layers can attach no more settings.
    is_closed: bool,
}

/// The body's end of a link through which the layers around the body attach their settings. A
/// stream has only one value of some settings, such as the heartbeat. For these settings, the value
/// of the innermost layer is used. Shutdowns, lifetimes and callbacks of all layers apply.
pub(crate) enum LayerLink {
    /// The body was not polled yet. The layers share this state with the body, and can still add
    /// settings to it.
    Open(Arc<Mutex<LinkState>>),
    /// Layers can attach no more settings: the body was polled, or accepts no settings from the
    /// beginning, such as an empty body. Contains the settings of the innermost layer. Values that
    /// this layer has not set are copied from the outer layers. `None` if no layer has attached
    /// settings.
    Closed(Option<Arc<Settings>>),
}

impl LayerLink {
    /// Creates the link and the handle through which the layers around a body attach their
    /// settings. The link stays open until the first poll of the body. The caller puts the handle
    /// into the extensions of the response.
    pub(crate) fn open() -> (Self, LayerHandle) {
        let state = Arc::new(Mutex::new(LinkState { parent: trace::Parent::current(), ..LinkState::default() }));
        let handle = LayerHandle(Arc::downgrade(&state));
        (Self::Open(state), handle)
    }

    /// Creates a link that is closed from the beginning, so that the layers around a body cannot
    /// attach their settings to this body.
    pub(crate) fn closed() -> Self {
        Self::Closed(None)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub(super) fn is_closed_without_layers(&self) -> bool {
        matches!(self, Self::Closed(None))
    }

    /// Closes the link between the body and its layers, so that layers can attach no more settings.
    /// Returns the tracing span that was current when the response was created, and the layers that
    /// the response has passed through, from the innermost to the outermost. Returns `None` if the
    /// link was already closed.
    pub(super) fn close(&mut self) -> Option<(trace::Parent, Vec<AppliedLayer>)> {
        let Self::Open(state) = self else { return None };
        let LinkState { parent, layers, .. } = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            mem::replace(&mut *state, LinkState { is_closed: true, ..LinkState::default() })
        };
        let mut layers = layers.map(|layers| *layers).unwrap_or_default();
        for inner in (1..layers.len()).rev() {
            if let [inner, outer] = &mut layers[inner - 1..=inner] {
                inner.inherit(outer);
            }
        }
        *self = Self::Closed(layers.first().map(|layer| Arc::clone(&layer.settings)));
        Some((parent, layers))
    }

    /// Returns the settings of all layers around the body, merged into one value. `None` before the
    /// first poll of the body, and for a stream without layers.
    pub(super) fn settings(&self) -> Option<&Settings> {
        match self {
            Self::Closed(settings) => settings.as_deref(),
            Self::Open(_) => None,
        }
    }
}

/// A handle for the layers outside of a body, which attach their settings to the body. The handle
/// is stored in the extensions of the response. A middleware may drop the body and keep the
/// extensions. So the handle has only a weak reference to the state that it shares with the body,
/// and the state is dropped with the body.
#[derive(Clone)]
pub(crate) struct LayerHandle(Weak<Mutex<LinkState>>);

impl LayerHandle {
    /// Attaches the settings of a layer to the body, and returns `None`. Returns the layer if the
    /// body was already polled or dropped. A middleware may poll the body in another thread at the
    /// same time.
    ///
    /// A layer counts once, even if it is applied to a router and again to a route of that router.
    /// If several layers register the stream under the same key of the same stream registry, only
    /// the registration of the outermost layer stays. A request passes the outermost layer first,
    /// so this registration is the earliest. A later registration would miss a call that closes the
    /// streams of the key between the two registrations. If several layers share an
    /// `on_close_with`, its callback gets the value that the outermost of them has read.
    pub(crate) fn attach(&self, mut layer: AppliedLayer) -> Option<AppliedLayer> {
        let Some(state) = self.0.upgrade() else { return Some(layer) };
        // Dropped without the lock, because dropping a value runs code of the application.
        let _replaced;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Some(layer);
        }
        let layers = state.layers.get_or_insert_default();
        for outer in &layer.registrations {
            layers.iter_mut().for_each(|inner| inner.registrations.retain(|inner| !inner.has_same_key(outer)));
        }
        if let Some(inner) = layers.iter_mut().find(|inner| inner.shares_on_close_with(&layer)) {
            _replaced = mem::replace(&mut inner.on_close, layer.on_close.take());
        }
        match layers.iter_mut().find(|inner| Arc::ptr_eq(&inner.settings, &layer.settings)) {
            Some(inner) => {
                // The span of the stream shows the request as the outermost layer saw it.
                inner.request = layer.request;
                // A middleware between the two may have removed the keys from the request. Then
                // only the outer layer has permits and registrations.
                inner.permits.append(&mut layer.permits);
                inner.registrations.append(&mut layer.registrations);
            }
            None => {
                // Most streams have one layer, and a `Vec` would reserve the memory of four.
                layers.reserve_exact(1);
                layers.push(layer);
            }
        }
        None
    }

    /// Returns whether an inner layer already holds a permit of the stream limit `limit` for this
    /// stream. Returns `false` if the body was polled or dropped, even if a layer holds a permit.
    pub(crate) fn holds_permit_of(&self, limit: &Limit) -> bool {
        let Some(state) = self.0.upgrade() else { return false };
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .layers
            .iter()
            .flat_map(|layers| layers.iter())
            .any(|layer| layer.permits.iter().any(|permit| permit.is_of(limit)))
    }

    /// Returns whether layers can still attach settings: the body exists and was not polled.
    pub(crate) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that a layer cannot attach its settings to a body that was polled meanwhile. A
    /// middleware can move the body into a task, which polls the body while the layer runs.
    #[test]
    fn layer_is_returned_if_the_body_was_polled_meanwhile() {
        let layer = || AppliedLayer::new(&Arc::default(), Vec::new(), Vec::new(), None, Default::default());
        let (mut link, handle) = LayerLink::open();
        assert!(handle.is_open() && handle.attach(layer()).is_none());
        let state = handle.0.upgrade().unwrap();
        assert_eq!(link.close().unwrap().1.len(), 1);
        assert!(handle.attach(layer()).is_some(), "the state is closed");
        drop(state);
        assert!(handle.attach(layer()).is_some(), "the state is dropped");
    }

    /// Checks that an `on_close_with` callback, when another replaces it, is dropped after the
    /// state of the link is unlocked. The callback contains values of the application, and dropping
    /// these values may wait for a thread that uses the body.
    #[test]
    fn replaced_callback_is_dropped_without_lock() {
        struct Value(LayerHandle, Arc<Mutex<Vec<bool>>>);
        impl Drop for Value {
            fn drop(&mut self) {
                // The last callback is dropped together with the state.
                let Some(state) = self.0.0.upgrade() else { return };
                self.1.lock().unwrap().push(state.try_lock().is_ok());
            }
        }
        let (_link, handle) = LayerLink::open();
        let dropped = Arc::default();
        let settings = Settings { on_close_with: Some(Arc::new(|_| Arc::new(drop))), ..Settings::default() };
        for settings in [settings.clone(), settings].map(Arc::new) {
            let value = Value(handle.clone(), Arc::clone(&dropped));
            let on_close: LayerOnClose = Arc::new(move |_| {
                let _value = &value;
            });
            let layer = AppliedLayer::new(&settings, Vec::new(), Vec::new(), Some(on_close), Default::default());
            assert!(handle.attach(layer).is_none());
        }
        assert_eq!(*dropped.lock().unwrap(), [true]);
    }
}
