//! The stream registries that follow a hub. A stream registry is a table of open streams, by keys
//! such as users. If a registry follows a hub, closing the streams of a key closes the streams of
//! this key on all nodes of the hub.

use super::backend::{Page, Position, RecordKind};
#[cfg(feature = "json")]
use super::error::Error;
use crate::Event;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// The topic where each node of a hub announces which streams it has closed, by their keys (such as
/// users). The other nodes then close their streams of the same keys.
pub(crate) const CLOSED_STREAMS: &str = "tower-sse/closed-streams";

/// The maximum length, in bytes, of the name of a stream registry (a table of open streams). When a
/// registry closes streams, it announces this to the other nodes of the hub. The length is limited
/// because each announcement contains the name.
#[cfg(feature = "json")]
const MAX_NAME_BYTES: usize = 256;

/// The part of a stream registry, a table of open streams, that the hub calls for announcements in
/// its log. Each announcement names streams that all nodes have to close.
///
/// The hub calls the methods without holding a lock, in the order of the hub's log, and before any
/// subscription can read an event that follows the announcement. So each method must close the
/// streams before it returns. The methods run code of the application, and must not let a panic of
/// that code pass to the hub.
pub(crate) trait Announcements: Send + Sync {
    /// Closes the streams that `announcement` names. Called for each event in the topic
    /// [`CLOSED_STREAMS`]. Events that name no streams, such as the signs of life of the nodes,
    /// close nothing.
    fn read(&self, announcement: &Event);

    /// Closes all streams of the registry, because this node may have missed announcements of
    /// streams that other nodes have closed: the log has evicted records before this node has read
    /// them, or another log has replaced the log.
    fn missed(&self);
}

/// The stream registries of this process that follow the hub, by their names. A stream registry is
/// a table of open streams. If it follows the hub, it closes the streams that other nodes announce
/// as closed.
#[derive(Default)]
pub(super) struct StreamRegistries(Mutex<BTreeMap<Box<str>, Weak<dyn Announcements>>>);

impl StreamRegistries {
    /// Reserves a name for a stream registry, a table of open streams by keys such as users. From
    /// now on, the registry follows the hub: when another node announces that it has closed the
    /// streams of a key, the hub calls `announcements`, which closes the streams of this key here.
    ///
    /// Returns an error if the name has more than 256 bytes, or if a registry of this process
    /// already uses this name to follow the hub.
    #[cfg(feature = "json")]
    pub(super) fn reserve(
        self: &Arc<Self>,
        name: &str,
        announcements: Weak<dyn Announcements>,
    ) -> Result<RegistryName, Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::registry_name_too_long(name, MAX_NAME_BYTES));
        }
        let mut by_name = self.by_name();
        if by_name.contains_key(name) {
            return Err(Error::registry_name_in_use(name));
        }
        by_name.insert(name.into(), announcements);
        Ok(RegistryName { registries: self.clone(), name: name.into() })
    }

    /// Returns `true` if no stream registry follows the hub. A registry that follows the hub closes
    /// the streams that other nodes announce as closed.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name().is_empty()
    }

    /// Passes the announcements of closed streams in a page, the next part of the backend's log, to
    /// the stream registries. `committed` is the last position that this node has read and
    /// delivered. Records up to this position are skipped. If later records were evicted before
    /// this node has read them, the registries close all of their streams.
    ///
    /// The caller delivers the page after this call. So a closed stream gets no event that follows
    /// the close. It may also miss earlier events of the page, as it does if this node itself
    /// closes the stream.
    pub(super) fn note(&self, page: &Page, committed: Position) {
        if page.evicted_through > committed {
            self.note_missed();
        }
        for (position, record) in &page.records {
            let is_event = matches!(record.kind, RecordKind::Event | RecordKind::State);
            // A backend may repeat a record.
            if *record.topic != *CLOSED_STREAMS || !is_event || *position <= committed {
                continue;
            }
            if let Some(announcement) = Event::from_wire(&record.event) {
                self.following().iter().for_each(|registry| registry.read(&announcement));
            }
        }
    }

    /// Closes all streams of the stream registries that follow the hub, because this node may have
    /// missed announcements of streams that other nodes have closed.
    pub(super) fn note_missed(&self) {
        for registry in self.following() {
            registry.missed();
        }
    }

    /// Returns the stream registries that follow the hub. The caller passes each announcement of
    /// closed streams to all of them.
    ///
    /// The result is a copy of the list, so that the map of names is not locked while the
    /// registries are called. If a registry is dropped meanwhile, the drop locks this map to remove
    /// the name.
    fn following(&self) -> Vec<Arc<dyn Announcements>> {
        self.by_name().values().filter_map(Weak::upgrade).collect()
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Weak<dyn Announcements>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reserved name of a stream registry (a table of open streams) that follows a hub, to close
/// streams on all nodes. Until this value is dropped, no other registry of this process can follow
/// the hub with the same name.
#[cfg(feature = "json")]
pub(crate) struct RegistryName {
    registries: Arc<StreamRegistries>,
    name: Box<str>,
}

#[cfg(feature = "json")]
impl RegistryName {
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }
}

#[cfg(feature = "json")]
impl Drop for RegistryName {
    fn drop(&mut self) {
        self.registries.by_name().remove(&self.name);
    }
}
