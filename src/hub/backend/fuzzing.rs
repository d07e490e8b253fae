//! Access to the functions that decode the records of backends, for the fuzz targets only.

#[cfg(feature = "nats")]
pub use super::nats::fuzzing as nats;
#[cfg(feature = "redis")]
pub use super::redis::fuzzing as redis;

/// Parses the event of a record. Returns `None` if its bytes are not exactly one event.
pub fn event(record: &super::Record) -> Option<crate::Event> {
    crate::Event::from_wire(&record.event)
}
