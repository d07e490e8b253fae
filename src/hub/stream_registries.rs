//! The names of the stream registries that follow a hub. A stream registry that follows a hub
//! closes streams on all nodes of the hub.

use super::error::Error;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The maximum length of the name of a stream registry, in bytes. When a registry closes streams,
/// it announces this to the other nodes of the hub, and each announcement contains the name.
const MAX_NAME_BYTES: usize = 256;

/// The names of the stream registries of this process that follow the hub.
#[derive(Default)]
pub(super) struct StreamRegistries(Mutex<BTreeSet<Box<str>>>);

impl StreamRegistries {
    /// Reserves a name for a stream registry that follows the hub, to close streams on all of its
    /// nodes.
    ///
    /// Returns an error if the name has more than 256 bytes, or if a registry of this process
    /// already uses this name to follow the hub.
    pub(super) fn reserve(self: &Arc<Self>, name: &str) -> Result<RegistryName, Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::registry_name_too_long(name, MAX_NAME_BYTES));
        }
        if !self.names().insert(name.into()) {
            return Err(Error::registry_name_in_use(name));
        }
        Ok(RegistryName { registries: self.clone(), name: name.into() })
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<Box<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a stream registry that follows a hub. Until this value is dropped, no other registry
/// of this process can follow the hub with the same name.
pub(crate) struct RegistryName {
    registries: Arc<StreamRegistries>,
    name: Box<str>,
}

impl RegistryName {
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }
}

impl Drop for RegistryName {
    fn drop(&mut self) {
        self.registries.names().remove(&self.name);
    }
}
