use super::{error, event, event_stream, events_of, json_text};
use crate::{
    StopReconnecting,
    hub::{
        self,
        GapReason::{Ahead, Evicted, Lagged, Malformed, OtherEpoch},
    },
};
use http::StatusCode;
use serde_json::json;
use std::{collections::BTreeMap, fmt, marker::PhantomData};
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ObjectBuilder, RefOr, Response, Type},
};

/// Describes the responses of a handler that returns a [`Subscription`](hub::Subscription) whose
/// events are made by [`Event::tagged`](crate::Event::tagged) from values of `T`.
///
/// Response 200 contains the events of [`TaggedEvents`](super::TaggedEvents), and two events that
/// the hub adds: `hub-cursor`, whose id is the position of the client, and `gap`, which reports
/// missing events. Response 204 means that the topics are finished, and that the client has all of
/// their events.
pub struct SubscriptionEvents<T>(PhantomData<fn() -> T>);

impl<T: ToSchema> IntoResponses for SubscriptionEvents<T> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let cursor = ObjectBuilder::new().schema_type(Type::String).max_length(Some(0));
        let cursor = event("hub-cursor", cursor.build(), Some("The position of the client. Ignore it."));
        let reasons = [Evicted, Ahead, OtherEpoch, Malformed, Lagged].map(|reason| reason.as_str());
        let gap = json!({
            "type": "object",
            "required": ["reason", "requested"],
            "properties": {
                "reason": { "type": "string", "enum": reasons },
                "requested": { "type": "string" },
                "resumed": { "type": ["string", "null"] },
            },
        });
        let gap = event("gap", json_text(gap), Some("Events are missing. Read the state again."));
        let events = events_of::<T>().into_iter().chain([cursor, gap]);
        let mut responses = StopReconnecting::responses();
        responses.extend([event_stream(events)]);
        responses
    }
}

impl IntoResponses for hub::Error {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [
            error(StatusCode::BAD_REQUEST, "The topics are not valid, or there are too many"),
            error(StatusCode::GONE, "The topic is finished"),
            error(StatusCode::INTERNAL_SERVER_ERROR, "An event does not serialize"),
            error(StatusCode::SERVICE_UNAVAILABLE, "The log cannot be used, or the hub is full. Try again later"),
        ]
        .into()
    }
}

impl<T> fmt::Debug for SubscriptionEvents<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscriptionEvents")
    }
}
