//! The serde traits of [`EventId`], for applications that store cursors.

use super::EventId;
use serde_core::{
    de::{Deserialize, Deserializer, Error, Visitor},
    ser::{Serialize, Serializer},
};
use std::fmt;

/// Serializes the id as a string.
impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Deserializes the id from a string. A string that [`EventId::new`] rejects is an error.
impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(IdVisitor)
    }
}

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = EventId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event id")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EventId, E> {
        EventId::new(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_the_same_after_serialization() {
        for id in [EventId::from(7), EventId::from_static(""), EventId::new("é \"x\" ".repeat(10)).unwrap()] {
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(json, serde_json::to_string(id.as_str()).unwrap());
            assert_eq!(serde_json::from_str::<EventId>(&json).unwrap(), id);
            assert_eq!(serde_json::from_value::<EventId>(json.parse().unwrap()).unwrap(), id);
        }
    }

    #[test]
    fn invalid_id_does_not_deserialize() {
        for json in [r#""a\rb""#, r#""a\nb""#, r#""\u0000""#, "7", "null"] {
            serde_json::from_str::<EventId>(json).unwrap_err();
        }
        let error = serde_json::from_str::<EventId>(r#""a\rb""#).unwrap_err().to_string();
        assert!(error.starts_with(r#"an event id cannot hold a line break: "a\rb", at byte 1"#), "{error}");
    }
}
